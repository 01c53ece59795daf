"""CPC: loss and gradients against a reference in NumPy, what a context sees, and what InfoNCE can prove."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import odonata
from odonata.backbones.create import create
from odonata.backbones.pretrained import load_backbone
from odonata.data.pictures import ViewBatch
from odonata.data.preprocess import IMAGENET
from odonata.errors import OdonataError, WeightsError
from odonata.represent.cpc import (
    CPC,
    ContextNetwork,
    CPCConfig,
    augment_patches,
    cut_patches,
    info_nce_grid,
    jitter_patches,
)
from represent.pretext import assert_resumes, assert_torchvision_file, digest, relative, run, started, tiny, views

TINY = {"backbone": "resnet8:norm=layer", "image_size": 32, "context_layers": 2, "context_width": 8}

# ---- the reference: one place at a time, in NumPy and float64 ------------------------------------------------------


def numpy_info_nce(predictions, targets, step):
    """Loss of one distance, and its gradients by predictions and targets, worked out by hand."""
    batch, rows, columns, _ = targets.shape
    by_predictions, by_targets = np.zeros_like(predictions), np.zeros_like(targets)
    total, count = 0.0, batch * (rows - step) * columns
    for b in range(batch):
        for r in range(rows - step):
            for c in range(columns):
                scores = np.tensordot(targets, predictions[b, r, c], 1)
                top = scores.max()
                log_sum = top + np.log(np.exp(scores - top).sum())
                total += (log_sum - scores[b, r + step, c]) / count
                slope = np.exp(scores - log_sum)
                slope[b, r + step, c] -= 1
                by_predictions[b, r, c] += np.tensordot(slope, targets, 3) / count
                by_targets += slope[..., None] * predictions[b, r, c] / count
    return total, by_predictions, by_targets


def numpy_context(weights, prefix, codes, depth):
    """The context network place by place: 1 × 1, three columns, this row and the one above, 1 × 1."""
    batch, rows, columns, _ = codes.shape
    for layer in range(depth):
        own = {part: weights[f"{prefix}layers.{layer}.{part}"] for part in
               ("narrow.weight", "narrow.bias", "across.weight", "across.bias",
                "down.weight", "down.bias", "widen.weight", "widen.bias")}  # fmt: skip
        after = np.zeros_like(codes)
        for b in range(batch):
            narrow = np.maximum(codes[b] @ own["narrow.weight"][:, :, 0, 0].T + own["narrow.bias"], 0)
            across = np.zeros_like(narrow)
            for r in range(rows):
                for c in range(columns):
                    across[r, c] = own["across.bias"]
                    for tap in range(3):
                        if 0 <= c + tap - 1 < columns:
                            across[r, c] += own["across.weight"][:, :, 0, tap] @ narrow[r, c + tap - 1]
            for r in range(rows):
                above = across[r - 1] if r else np.zeros_like(across[0])
                down = above @ own["down.weight"][:, :, 0, 0].T + across[r] @ own["down.weight"][:, :, 1, 0].T
                down = np.maximum(down + own["down.bias"], 0)
                after[b, r] = codes[b, r] + down @ own["widen.weight"][:, :, 0, 0].T + own["widen.bias"]
        codes = after
    return np.maximum(codes, 0)


def numpy_turned(grid, turn):
    """The grid as seen after so many quarter turns counter-clockwise, entry by entry."""
    for _ in range(turn):
        grid = np.stack([grid[:, :, grid.shape[2] - 1 - row] for row in range(grid.shape[2])], 1)
    return grid


def numpy_cpc(weights, codes, version, steps, depth):
    losses = []
    for turn in range(4 if version == "v2" else 1):
        grid = numpy_turned(codes, turn)
        seen, targets, scale = numpy_context(weights, f"contexts.{turn}.", grid, depth), grid, 1.0
        if version == "v2":
            targets, scale = grid @ weights["project.weight"].T + weights["project.bias"], 0.1
        for index, step in enumerate(steps):
            predictions = scale * seen[:, :-step] @ weights[f"predictions.{turn}.{index}.weight"].T
            losses.append(numpy_info_nce(predictions, targets, step)[0])
    return sum(losses) / len(losses)


# ---- parity --------------------------------------------------------------------------------------------------------


@pytest.mark.shows("cpc", "parity")
@pytest.mark.parametrize("step", [1, 2, 3])
def test_info_nce_and_its_gradients_are_those_worked_out_by_hand(step):
    targets = torch.randn(3, 4, 2, 5, dtype=torch.float64, requires_grad=True)
    predictions = torch.randn(3, 4 - step, 2, 5, dtype=torch.float64, requires_grad=True)
    loss, _ = info_nce_grid(predictions, targets, step)
    loss.backward()
    value, by_predictions, by_targets = numpy_info_nce(predictions.detach().numpy(), targets.detach().numpy(), step)
    # Scores are taken to float32, where a half-precision run needs it.
    assert relative(loss, torch.tensor(value)) < 1e-6
    assert relative(predictions.grad, torch.from_numpy(by_predictions)) < 1e-6
    assert relative(targets.grad, torch.from_numpy(by_targets)) < 1e-6


@pytest.mark.shows("cpc", "parity")
@pytest.mark.parametrize("version", ["v1", "v2"])
def test_the_whole_objective_equals_the_reference_and_its_slope_by_finite_differences(version):
    torch.manual_seed(2)
    tower = create("resnet8", norm="layer", widths=(4, 6, 8), stem_width=4)
    config = CPCConfig(
        version=version, context_layers=2, context_width=5, last_step=2, image_size=16, patch=8, stride=4
    )
    method = CPC(config, tower, IMAGENET).double()
    codes = torch.randn(2, 3, 3, 8, dtype=torch.float64, requires_grad=True)
    losses, _ = method.contrast(codes)
    losses.mean().backward()
    weights = {name: p.detach().numpy() for name, p in method.named_parameters() if not name.startswith("backbone")}

    def reference(at, changed=None):
        return numpy_cpc(weights | (changed or {}), at, version, (1, 2), 2)

    start = codes.detach().numpy()
    assert float(losses.detach().mean()) == pytest.approx(reference(start), rel=1e-6)
    generator = np.random.RandomState(0)
    names = ["predictions.0.1.weight", "contexts.0.layers.0.down.weight", "contexts.0.layers.1.across.bias"]
    grads = dict(method.named_parameters())
    step = 1e-5
    for _ in range(2):
        way = generator.standard_normal(start.shape)
        slope = (reference(start + step * way) - reference(start - step * way)) / (2 * step)
        assert float((codes.grad.numpy() * way).sum()) == pytest.approx(slope, rel=1e-5, abs=1e-8)
    for name in names + (["project.weight"] if version == "v2" else []):
        way = generator.standard_normal(weights[name].shape)
        ends = [reference(start, {name: weights[name] + sign * step * way}) for sign in (1, -1)]
        slope = (ends[0] - ends[1]) / (2 * step)
        assert float((grads[name].grad.numpy() * way).sum()) == pytest.approx(slope, rel=1e-5, abs=1e-8), name


@pytest.mark.shows("cpc", "parity")
def test_gradients_pass_gradcheck():
    """PyTorch's own check of the derivative by finite differences, through the context network to the loss."""
    network = ContextNetwork(3, 4, 1).double()

    def objective(codes):
        seen = network(codes)
        # Written out in float64: `info_nce_grid` takes scores to float32, too coarse for this check.
        scores = seen[:, :-1].reshape(-1, 3) @ codes.reshape(-1, 3).T
        own = torch.arange(18).view(2, 3, 3)[:, 1:].flatten()
        return F.cross_entropy(scores, own)

    codes = torch.randn(2, 3, 3, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(objective, (codes,))
    assert relative(info_nce_grid(network(codes)[:, :-1], codes, 1)[0], objective(codes)) < 1e-6


# ---- what is seen --------------------------------------------------------------------------------------------------


def test_the_context_of_a_row_sees_rows_up_to_it_and_none_below():
    network = ContextNetwork(6, 8, 5).double()
    for row in range(7):
        codes = torch.randn(1, 7, 7, 6, dtype=torch.float64, requires_grad=True)
        network(codes)[0, row, 3].sum().backward()
        touched = codes.grad[0].abs().amax(-1) > 0
        assert not touched[row + 1 :].any()
        assert touched[max(0, row - 5) : row + 1].any(1).all(), "five blocks reach five rows up"
        if row:
            assert touched[row - 1].all(), "and every column"


def test_no_pixel_of_a_predicted_patch_is_in_the_context_but_for_what_overlaps():
    """Of context row r, the lowest pixel seen is the last of patch row r."""
    method = CPC(CPCConfig(**TINY), create("resnet8", norm="layer"), IMAGENET).eval()
    images = torch.randn(1, 3, 32, 32, requires_grad=True)
    method.contexts[0](method.codes(images))[0, 2].sum().backward()
    rows = images.grad.abs().amax((0, 1, 3)) > 0
    assert rows.tolist() == [row < 2 * 4 + 8 for row in range(32)]


@pytest.mark.parametrize(("norm", "leaks"), [("layer", False), ("group", False), ("batch", True)])
def test_batch_normalisation_tells_each_patch_of_the_others(norm, leaks):
    method = CPC(CPCConfig(**TINY), create("resnet8", norm=norm), IMAGENET).train()
    patches = torch.randn(2, 1, 3, 3, 8, 8, requires_grad=True)
    codes = method.backbone(patches.reshape(-1, 3, 8, 8))
    codes[0].square().sum().backward()
    other = float(patches.grad[1].abs().max())
    assert (other > 0) == leaks


def test_the_papers_grid():
    patches = cut_patches(torch.arange(256.0).expand(1, 3, 256, 256), 64, 32)
    assert patches.shape == (1, 7, 7, 3, 64, 64)
    assert patches[0, 2, 3, 0, 0, 0] == 3 * 32, "columns across"
    rows = cut_patches(torch.arange(32.0)[:, None].expand(1, 3, 32, 32), 8, 4)
    assert rows.shape == (1, 7, 7, 3, 8, 8)
    assert rows[0, 5, 1, 0, 0, 0] == 5 * 4, "rows down"


# ---- what InfoNCE says ---------------------------------------------------------------------------------------------


def test_the_positive_is_none_of_the_negatives():
    """Where each place has a code of its own and is predicted rightly the loss is 0; twice the positive were ln 2."""
    targets = torch.eye(18).view(2, 3, 3, 18)
    loss, right = info_nce_grid(100 * targets[:, 1:], targets, 1)
    assert float(loss) < 1e-6
    assert float(right) == 1


def test_scores_of_any_size_have_their_exact_loss():
    """log(softmax + 1e-11), as one port has it, never exceeds 25.3."""
    targets = torch.eye(4).view(1, 2, 2, 4)
    wrong = 5000 * targets[:, 1:].flip(2)
    assert float(info_nce_grid(wrong, targets, 1)[0]) == pytest.approx(5000)


def test_a_model_that_knows_nothing_has_the_loss_ln_of_the_candidates_and_proves_nothing():
    method = CPC(CPCConfig(**TINY, group=2), create("resnet8", norm="layer"), IMAGENET)
    assert method.chance == pytest.approx(math.log(2 * 49))
    for head in method.predictions[0]:
        torch.nn.init.zeros_(head.weight)
    found = method.loss(views(4))
    assert float(found["loss"]) == pytest.approx(math.log(2 * 49), abs=1e-5)
    for step in range(1, 6):
        assert float(found[f"mi_{step}"]) == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_no_step_proves_more_than_ln_of_the_candidates(version):
    method = CPC(CPCConfig(**TINY, group=2, version=version), create("resnet8", norm="layer"), IMAGENET)
    found = method.loss(views(4))
    proved = [float(found[f"mi_{step}"]) for step in range(1, 6)]
    assert all(value < math.log(2 * 49) for value in proved)
    assert float(found["loss"]) == pytest.approx(math.log(2 * 49) - sum(proved) / 5, abs=1e-4)


def test_groups_do_not_see_one_another_and_their_order_does_not_matter():
    method = CPC(CPCConfig(**TINY, group=2), create("resnet8", norm="layer"), IMAGENET).eval()
    batch, other = views(6), views(6)
    other.views = [batch.views[0][[4, 5, 1, 0, 2, 3]]]
    whole = method.loss(batch)
    assert relative(method.loss(other)["loss"], whole["loss"]) < 1e-5
    empty = torch.zeros(2)
    alone = [method.loss(ViewBatch([batch.views[0][i : i + 2]], empty, empty)) for i in (0, 2, 4)]
    assert relative(sum(part["loss"] for part in alone) / 3, whole["loss"]) < 1e-5


def test_four_directions_see_a_turned_picture_as_one_sees_the_picture():
    """The second context network reads the turned grid as it would read the codes of a picture turned beforehand."""
    method = CPC(CPCConfig(**TINY, version="v2"), create("resnet8", norm="layer"), IMAGENET).eval()
    codes = torch.randn(2, 7, 7, 64)
    for turn in range(4):
        assert np.array_equal(torch.rot90(codes, turn, (1, 2)).numpy(), numpy_turned(codes.numpy(), turn))
    assert len(method.contexts) == len(method.predictions) == 4


# ---- what is done to patches ---------------------------------------------------------------------------------------


def test_jitter_moves_each_patch_by_itself_and_leaves_a_margin():
    patches = torch.arange(1.0, 65).view(1, 1, 8, 8).expand(200, 3, 8, 8)
    moved = jitter_patches(patches)
    assert moved.shape == patches.shape
    kept = moved[:, :, :7, :7]
    assert sorted({int(value) for value in kept[:, 0, 0, 0]}) == [1, 2, 9, 10], "four places of 7 × 7 in 8 × 8"
    assert torch.equal(kept - kept[:, :, :1, :1], (patches - 1)[:, :, :7, :7])
    assert not moved[:, :, 7].any()
    assert not moved[:, :, :, 7].any()
    big = jitter_patches(torch.ones(3, 3, 64, 64))
    assert (big > 0).sum((1, 2, 3)).tolist() == [3 * 60 * 60] * 3, "60 of 64 pixels, as the paper has it"


def test_each_patch_is_augmented_by_itself_and_colours_are_dropped_as_often_as_asked():
    torch.manual_seed(0)
    patches = torch.rand(1, 3, 8, 8).add(1).expand(300, 3, 8, 8)
    changed = augment_patches(patches, 0.5)
    assert changed.shape == patches.shape
    assert len({float(value) for value in changed.sum((1, 2, 3))}) == 300
    silent = (changed == 0).all(-1).all(-1).sum(1)
    assert set(silent.tolist()) == {0, 2}, "one colour of three is kept, or all"
    assert 0.4 < float((silent == 2).float().mean()) < 0.6
    assert torch.isfinite(changed).all()


# ---- weights, training, manners ------------------------------------------------------------------------------------


@pytest.mark.shows("cpc", "weights")
def test_the_tower_goes_out_in_torchvisions_layout_and_comes_back(tmp_path):
    task, _ = run(tiny("cpc", backbone="resnet18-small", steps=1, data__batch_size=3), tmp_path / "run")
    model = odonata.load(tmp_path / "run", device="cpu")
    model.convert(tmp_path / "out", "torchvision")
    assert_torchvision_file(tmp_path / "out", model.backbone)
    back = load_backbone(tmp_path / "out").backbone
    assert digest(back) == digest(task.method.backbone)
    begun = started(tiny("cpc", backbone="resnet18-small", init=str(tmp_path / "out")))
    assert digest(begun.method.backbone) == digest(back)


@pytest.mark.shows("cpc", "weights")
def test_a_tower_with_layer_normalisation_keeps_its_weights_in_the_own_layout(tmp_path):
    task, _ = run(tiny("cpc", **TINY, steps=1), tmp_path / "run")
    model = odonata.load(tmp_path / "run", device="cpu")
    model.convert(tmp_path / "out", "odonata")
    again = odonata.load(tmp_path / "out", device="cpu")
    assert digest(again.backbone) == digest(task.method.backbone)
    with pytest.raises(WeightsError, match="normalisation 'layer' is not torchvision's"):
        model.backbone = create("resnet18-small", norm="layer")
        model.convert(tmp_path / "no", "torchvision")
    assert not (tmp_path / "no").exists()


@pytest.mark.shows("cpc", "trains")
@pytest.mark.slow
@pytest.mark.parametrize("version", ["v1", "v2"])
def test_eight_pictures_are_learned(tmp_path, version):
    """It proves more than a nat of information about the row below, where chance proves none."""
    chosen = tiny(
        "cpc", **TINY, data__path="scenes-digits:n=8,size=32", data__batch_size=8, crop_scale=(1.0, 1.0), grey=0.0,
        drop_colours=0.0, version=version, steps=60 if version == "v1" else 80, optim__lr=3e-3, lr_per=0, group=8,
    )  # fmt: skip
    task, _ = run(chosen, tmp_path / "run")
    batch = next(iter(task.batches.start()))
    with torch.no_grad():
        found = task.method.eval().loss(batch)
    assert float(found["mi_1"]) > 1.0
    assert float(found["loss"]) < task.method.chance - 0.5


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_a_killed_run_resumes_to_the_same_bits(tmp_path, version):
    assert_resumes(tiny("cpc", **TINY, version=version, data__batch_size=3), tmp_path)


@pytest.mark.shows("cpc", "manners")
@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"patch": 40}, "--patch 40 --stride 20: want a patch of 4 to 32 px"),
        ({"stride": -1}, "--patch 8 --stride -1"),
        ({"last_step": 7}, "--last-step 7: patches of 8 px at a stride of 4 make 7 rows of a picture of 32 px"),
        ({"first_step": 0}, "--first-step 0"),
        ({"group": 0}, "--group is 0; want at least one picture"),
        ({"data__path": "/nowhere"}, "/nowhere"),
    ],
)
def test_wrong_options_are_named(tmp_path, fields, message):
    with pytest.raises(OdonataError, match=message):
        run(tiny("cpc", **fields), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.shows("cpc", "manners")
def test_predictions_that_do_not_fit_the_grid_are_refused():
    with pytest.raises(ValueError, match="4 rows of predictions for 4 rows of codes, 1 steps ahead"):
        info_nce_grid(torch.zeros(1, 4, 4, 2), torch.zeros(1, 4, 4, 2), 1)
