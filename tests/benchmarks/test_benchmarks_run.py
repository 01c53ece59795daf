import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PEERS = ROOT / ".peers" / "bin" / "python"


def printed(name: str, *arguments: str) -> str:
    """What a benchmark prints; it fails by itself where outputs disagree."""
    command = [sys.executable, str(ROOT / "benchmarks" / name), "--quick", *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=900, cwd=ROOT, env=environment, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.mark.slow
def test_losses_agree_and_the_table_is_printed():
    table = printed("losses.py")
    assert all(f"{rows}  ours" in table for rows in (2048, 4096))
    assert "naive" in table


@pytest.mark.slow
def test_log_probabilities_of_the_head_agree_and_the_table_is_printed():
    table = printed("head_logprobs.py")
    assert all(f"4,096  {name}" in table for name in ("ours, frozen", "full", "selective"))
    assert "--trl was not given" in table


@pytest.mark.slow
def test_generation_says_what_transformers_says_and_the_table_is_printed():
    table = printed("generate.py")
    assert table.count("as RL has it") == 2 and table.count("equal lengths") == 2 and "transformers" in table


@pytest.mark.slow
def test_crd_agrees_with_its_peer_and_the_table_is_printed():
    table = printed("distill_crd.py")
    assert "loader, our loss" in table and "N = 5,000, K = 1,024" in table


@pytest.mark.slow
def test_a_step_of_mae_agrees_with_transformers_and_the_table_is_printed():
    table = printed("mae_step.py")
    assert "transformers, fp32" in table and "all patches" in table


@pytest.mark.slow
def test_the_engine_ends_where_bare_loops_do_and_the_tables_are_printed():
    table = printed("engine_overhead.py")
    assert "bare, checked" in table and "odonata train --help" in table


@pytest.mark.slow
def test_neighbours_agree_with_scikit_learn_and_the_table_is_printed():
    table = printed("knn.py")
    assert "500 × 5,000" in table and "scikit-learn" in table


@pytest.mark.slow
def test_what_a_gpu_is_measured_by_runs_without_one():
    table = printed("gpu.py", "--device", "cpu")
    assert "resnet50" in table and "MAE" in table and "no MFU" in table


@pytest.mark.slow
def test_a_step_of_grpo_runs_and_the_table_is_printed():
    table = printed("grpo_step.py", "--limits", "32")
    assert "32  ours" in table and "--trl was not given" in table


@pytest.mark.slow
def test_every_table_of_the_grid_world_holds_and_is_printed():
    table = printed("gridworld.py")
    assert "figure 5.7(d)" in table and "FrozenLake-v1 8x8" in table and "56 sweeps an iteration: 8" in table


@pytest.mark.slow
@pytest.mark.skipif(not PEERS.is_file(), reason="the peers are not installed: sh benchmarks/peers.sh")
@pytest.mark.parametrize(
    ("name", "peer"),
    [
        ("backbones.py", "efficientnet-b0"),
        ("dino_step.py", "lightly"),
        ("augmentations.py", "torchvision, tensors"),
        ("nms.py", "torchvision, ms"),
        ("roi_align.py", "torchvision"),
        ("detr.py", "transformers"),
        ("detectors.py", "faster-rcnn   torchvision"),
        ("assignment.py", "RetinaNet"),
    ],
)
def test_towers_steps_and_views_agree_with_their_peers(name, peer):
    table = printed(name)
    assert "ours" in table and peer in table


@pytest.mark.slow
@pytest.mark.skipif(not PEERS.is_file(), reason="the peers are not installed: sh benchmarks/peers.sh")
@pytest.mark.parametrize(("name", "peer"), [("text_templates.py", "transformers"), ("embed_files.py", "one by one")])
def test_peers_agree_and_the_table_is_printed(name, peer):
    table = printed(name)
    assert "ours" in table and "open_clip" in table and peer in table


@pytest.mark.slow
@pytest.mark.skipif(
    not any(PEERS.parent.parent.glob("lib/python*/site-packages/stable_baselines3")),
    reason="stable_baselines3 is not among the peers: sh benchmarks/peers.sh",
)
def test_a_policy_answers_as_stable_baselines3s_and_the_table_is_printed():
    table = printed("ppo_control.py")
    assert "ours" in table and "stable_baselines3" in table


def test_without_peers_a_benchmark_says_how_to_install_them(tmp_path):
    # A copy of the benchmarks stands where no environment of peers is.
    folder = tmp_path / "benchmarks"
    folder.mkdir()
    for file in (ROOT / "benchmarks").glob("*.py"):
        (folder / file.name).write_text(file.read_text())
    command = [sys.executable, str(folder / "text_templates.py"), "--quick"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "sh benchmarks/peers.sh" in done.stderr


def test_what_bf16_costs_in_ap_is_skipped_with_a_reason_where_the_files_are_absent(tmp_path):
    code = "import sys, pathlib; sys.path.insert(0, sys.argv[1]); import detectors; path = pathlib.Path(sys.argv[2])"
    code += "; print(detectors.precision_figures(None, None)); print(detectors.precision_figures(path / 'net', path))"
    command = [sys.executable, "-c", code, str(ROOT / "benchmarks"), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    first, second = done.stdout.splitlines()
    assert first == "AP in bf16: skipped, --yolo and --coco were not given"
    assert second == f"AP in bf16: skipped, there is no {tmp_path / 'net'}"


@pytest.mark.slow
@pytest.mark.skipif(not PEERS.is_file(), reason="the peers are not installed: sh benchmarks/peers.sh")
def test_faces_agree_with_facenet_pytorch_and_the_table_is_printed(shared_data):
    table = printed("mtcnn.py", "--pictures", str(shared_data / "image-text/coco-mini/val2017"), "--count", "1")
    assert "facenet-pytorch 2" in table and "all" in table
