"""MoCo v1 and v2 against their original code, shuffled batch normalisation, ranks, and handwritten digits."""

import copy
import dataclasses
import re

import pytest
import torch
import torch.nn.functional as F

from odonata.backbones.create import create, to_plain
from odonata.backbones.pretrained import load_backbone, published_files
from odonata.data.preprocess import IMAGENET
from odonata.errors import RecipeError
from odonata.represent.moco import MoCo, MoCoConfig, info_nce
from odonata.weights import resnet_torchvision
from represent.originals import STEPS, batch_of, follow_original, official_state
from represent.short_runs import overfits_eight_pictures, report_of_ranks, resumes_to_the_same_bits

CONFIGS = {
    "v1": MoCoConfig(dim=16, queue=24, momentum=0.9, temperature=0.07, bn_groups=1),
    "v2": MoCoConfig(dim=16, queue=24, momentum=0.9, temperature=0.2, mlp=True, bn_groups=1),
}
LAYERS = {"v1": ("",), "v2": ("0.", "2.")}


def saved(tmp_path, name):
    path = tmp_path / f"moco_{name}_200ep_pretrain.pth.tar"
    torch.save({"arch": "resnet18", "state_dict": {f"module.{k}": v for k, v in official_state(name).items()}}, path)
    return path


def original(tmp_path, name, **changes):
    """Our method with the original's first weights, read from a file of its layout."""
    found = load_backbone(saved(tmp_path, name))
    method = MoCo(dataclasses.replace(CONFIGS[name], **changes), found.backbone, IMAGENET)
    return method, found, method.load_published_rest(found.published.rest)


def names_of(method, name):
    """Two functions: our gradients, and our slow state, under the original's names."""
    plain = to_plain(method.backbone.config)

    def head(state, prefix):
        ours = [f"{number}.{part}" for number in (0, 2)[: len(LAYERS[name])] for part in ("weight", "bias")]
        theirs = [f"fc.{layer}{part}" for layer in LAYERS[name] for part in ("weight", "bias")]
        return {their: state[f"{prefix}{our}"] for our, their in zip(ours, theirs, strict=True)}

    def theirs(gradients):
        full = {k: gradients.get(f"backbone.{k}", v) for k, v in method.backbone.state_dict().items()}
        tower = resnet_torchvision.key_map(plain, 0).from_ours(full)
        tower = {k: v for k, v in tower.items() if "running" not in k and "num_batches" not in k}
        return {f"encoder_q.{k}": v for k, v in (tower | head(gradients, "projector.")).items()}

    def slow():
        tower = resnet_torchvision.key_map(plain, 0).from_ours(method.slow_backbone.state_dict())
        return {f"encoder_k.{k}": v for k, v in (tower | head(method.slow_projector.state_dict(), "")).items()}

    return theirs, slow


@pytest.mark.shows("moco-v1", "parity")
@pytest.mark.shows("moco-v2", "parity")
@pytest.mark.parametrize("name", ["v1", "v2"])
def test_loss_gradients_queue_and_slow_encoder_are_the_originals_while_the_queue_wraps(tmp_path, name):
    method, _, _ = original(tmp_path, name)
    # Queues are stored in float32; all else agrees far better.
    assert follow_original(name, method, *names_of(method, name), {"queue": method.queue}) < 1e-6
    assert method.queue.position == STEPS * 8 % 24


@pytest.mark.shows("moco-v1", "weights")
@pytest.mark.shows("moco-v2", "weights")
@pytest.mark.parametrize("name", ["v1", "v2"])
def test_a_training_checkpoint_gives_the_tower_and_a_projector_that_is_no_classifier(tmp_path, name):
    method, found, notes = original(tmp_path, name)
    state = official_state(name)
    assert found.published.classes == 0
    assert "classifier: none" in found.published.notes
    assert f"fc.{LAYERS[name][0]}weight" in found.published.rest
    assert any(note.startswith("not used: ") for note in found.published.notes)
    assert notes == ["projector: fc of the checkpoint; the queue starts anew"]
    weight = state[f"encoder_q.fc.{LAYERS[name][0]}weight"]
    assert torch.equal(method.projector[0].weight, weight)
    assert torch.equal(method.slow_projector[0].weight, weight)
    exported = published_files(method.encoder, "torchvision").state
    tower = {
        k.removeprefix("encoder_q."): v for k, v in state.items() if k.startswith("encoder_q.") and ".fc." not in k
    }
    assert exported.keys() == tower.keys()
    assert all(torch.equal(exported[k], v) for k, v in tower.items())


@pytest.mark.shows("moco-v2", "weights")
def test_transformers_reads_the_tower_that_is_written(tmp_path):
    transformers = pytest.importorskip("transformers")
    from odonata.weights.published import write_folder

    method, _, _ = original(tmp_path, "v2")
    write_folder(tmp_path / "hf", published_files(method.encoder, "hf"))
    peer = transformers.ResNetModel.from_pretrained(tmp_path / "hf").eval()
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        ours, theirs = method.encoder.eval()(images), peer(images).pooler_output.flatten(1)
    assert (ours - theirs).norm() / theirs.norm() < 1e-5


def test_the_slow_encoders_weights_are_read_by_name(tmp_path):
    from odonata.weights.towers import Hints

    path = saved(tmp_path, "v1")
    slow = load_backbone(path, Hints(part="encoder_k"))
    assert slow.published.classes == 0
    assert any(note.startswith("part 'encoder_k'") for note in slow.published.notes)


def small(groups, **changes):
    config = dataclasses.replace(CONFIGS["v2"], bn_groups=groups, **changes)
    return MoCo(config, create("resnet8"), IMAGENET).double().train()


@pytest.mark.parametrize("groups", [2, 4])
def test_shuffled_keys_are_those_of_groups_normalised_apart(groups):
    method, view = small(groups), batch_of(0).views[1]
    apart = copy.deepcopy(method)
    torch.manual_seed(5)
    keys = method._keys(view)
    torch.manual_seed(5)
    order = torch.randperm(len(view))
    expected = torch.empty_like(keys)
    for rows in order.tensor_split(groups):
        expected[rows] = F.normalize(apart.slow_projector(apart.slow_backbone(view[rows])), dim=1)
    assert torch.allclose(keys, expected, rtol=1e-12, atol=1e-12)
    for (name, ours), theirs in zip(method.state_dict().items(), apart.state_dict().values(), strict=True):
        assert torch.equal(ours, theirs), name
    assert method.slow_backbone.stem.norms[0].num_batches_tracked == groups


def test_one_joint_normalisation_gives_other_keys_and_no_order_matters_to_it():
    view = batch_of(0).views[1]
    torch.manual_seed(1)
    shuffled = small(4)
    joint = copy.deepcopy(shuffled)
    joint.config = dataclasses.replace(joint.config, bn_groups=1)
    again = copy.deepcopy(joint)
    keys = joint._keys(view)
    assert (shuffled._keys(view) - keys).norm() > 0.05 * keys.norm()
    assert torch.allclose(again._keys(view.flip(0)).flip(0), keys, atol=1e-12)


def test_groups_have_two_pictures_at_least():
    method = small(4)
    view = batch_of(0).views[1][:5]
    assert method._keys(view).shape == (5, 16)
    assert method.slow_backbone.stem.norms[0].num_batches_tracked == 2


def test_the_loss_at_the_start_of_v1_is_the_softmax_over_the_queue_in_half_precision_too():
    q, k, n = (F.normalize(torch.randn(rows, 16), dim=1) for rows in (8, 8, 64))
    exact, _ = info_nce(q, k, n, 0.07)
    with torch.autocast("cpu", torch.bfloat16):
        autocast, _ = info_nce(q, k, n, 0.07)
    assert autocast == exact
    equal, _ = info_nce(torch.ones(4, 1), torch.ones(4, 1), torch.ones(4096, 1), 0.2)
    assert equal.item() == pytest.approx(8.3180, abs=1e-4)  # ln 4097


@pytest.mark.slow
def test_two_ranks_fill_one_queue_in_the_order_of_the_global_batch(tmp_path):
    found = report_of_ranks("moco-v2", 2, tmp_path)
    first, second = found["queues"]
    assert torch.equal(first["queue.rows"], second["queue.rows"])
    assert first["queue.position"] == second["queue.position"] == 3 * 8 % 20
    # What was pushed last lies before the position: the last step's keys, ranks in their order.
    alone = report_of_ranks("moco-v2", 1, tmp_path)
    assert alone["queues"][0]["queue.position"] == first["queue.position"]


@pytest.mark.shows("moco-v1", "manners")
@pytest.mark.shows("moco-v2", "manners")
@pytest.mark.parametrize(
    ("field", "value"), [("momentum", 1.5), ("temperature", 0.0), ("queue", 0), ("bn_groups", 0), ("dim", 0)]
)
def test_bad_options_are_named(field, value):
    with pytest.raises(RecipeError, match=re.escape(f"--{field.replace('_', '-')} is {value}")):
        MoCoConfig(**{field: value})


def test_a_run_that_stops_and_goes_on_ends_with_the_same_bits(tmp_path):
    assert resumes_to_the_same_bits("moco-v2", tmp_path, queue=20)


@pytest.mark.slow
@pytest.mark.shows("moco-v2", "trains")
@pytest.mark.shows("moco-v1", "trains")
@pytest.mark.parametrize("name", ["moco-v1", "moco-v2"])
def test_overfits_eight_pictures(name):
    # The queue holds older keys of the same pictures, so that a query can hardly ever be sure: a mean over seeds.
    found = torch.tensor([overfits_eight_pictures(name, seed, 200, lr=0.05) for seed in range(3)])
    before, after = found.mean(0).tolist()
    assert after > before + 0.05, found
