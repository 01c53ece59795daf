"""The example runs as it stands, on the real data."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
@pytest.mark.shows("siglip", "trains")
def test_it_trains_on_coco_captions_and_measures_retrieval_and_zero_shot(shared_data, tmp_path):
    command = [sys.executable, ROOT / "examples/siglip_coco_cifar.py", "--data", shared_data, "--steps", "5"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, "--out", tmp_path / "run"], capture_output=True, text=True, timeout=600, env=environment, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "80 pictures to train on, 252 held back" in done.stderr
    for name in ("image_to_text/recall@1", "text_to_image/recall@10", "zeroshot/top1"):
        assert re.search(rf"{name} +\d+\.\d%  \[\d+\.\d%, \d+\.\d%\]", done.stdout), done.stdout
