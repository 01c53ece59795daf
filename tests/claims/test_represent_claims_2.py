"""The claims about MAE, DINO, SwAV and MoBY: their trials measure what their comparisons read, and do what they say."""

import math

import pytest
import torch
import torch.nn.functional as F

from odonata import claims
from odonata.claims import represent_dino, represent_mae, represent_moby, represent_swav
from odonata.claims.claim import Trial
from odonata.claims.represent_toy import cells, crops
from odonata.data.pictures import ViewBatch
from odonata.represent.moco import info_nce

NAMES = ("dino-collapse", "mae-mask-ratio", "swav-equipartition", "swav-multi-crop", "moby-parents")
QUICK = ("75 %", "Sinkhorn", represent_swav.TWO, "MoBY")
CELLS = [
    pytest.param(name, variant, marks=() if variant in QUICK else pytest.mark.slow)
    for name in NAMES
    for variant in claims.load(name).variants
]


def short_trial(name: str, variant: str) -> Trial:
    """Return a trial of two or three steps."""
    claim = claims.load(name)
    return Trial(name, claim.conditions[0], variant, claim.settings(variant)[0], 7, "val", 0.01)


@pytest.mark.parametrize(("name", "variant"), CELLS)
def test_a_trial_measures_all_that_is_compared(name, variant):
    trial = short_trial(name, variant)
    figures = claims.load(name).trial(trial)
    compared = {c.quantity for c in claims.load(name).comparisons if trial.cell in c.cells()}
    assert compared <= figures.keys()
    assert all(math.isfinite(value) for value in figures.values())


def test_trials_are_paired_by_seed():
    trial = short_trial("dino-collapse", represent_dino.BOTH)
    other = short_trial("dino-collapse", represent_dino.UNCENTRED)
    one, two = (represent_dino.trial(each) for each in (trial, other))
    assert one["knn_untrained"] == two["knn_untrained"]
    assert one == represent_dino.trial(trial)


@pytest.fixture
def pixels():
    seen = cells(short_trial("mae-mask-ratio", "75 %"), "train", coloured=False)
    return represent_mae.make(0.75).pixels(seen.images[: represent_mae.BATCH])


def test_a_step_without_masking_encodes_as_the_tower_alone_does(pixels):
    method = represent_mae.make(0.75).eval()
    torch.testing.assert_close(represent_mae.encode_all(method, pixels), method.backbone.forward_features(pixels))


def test_the_unmasked_loss_is_that_of_every_patch_on_its_own_place(pixels):
    method = represent_mae.make(0.75).eval()
    whole = represent_mae.unmasked_loss(method, pixels)
    # The encoder takes patches in any order, as long as the decoder is told of it.
    order = torch.rand(len(pixels), 64).argsort(1)
    shuffled = represent_mae.Masking(order, order[:, :0], order.argsort(1))
    tokens = method.encode(pixels, shuffled)
    predicted = method.decoder(tokens, shuffled.restore, represent_mae.VIT.grid)
    targets, _, _ = represent_mae.pixel_targets(represent_mae.patchify(pixels, 2), method.config.norm_pix)
    torch.testing.assert_close(whole, F.mse_loss(predicted, targets))


def test_crops_of_another_side_show_the_same_picture():
    ramp = torch.linspace(0, 255, 16).expand(5, 3, 16, 16).to(torch.uint8)
    small = crops(ramp, (1.0, 1.0), 8)
    assert small.shape == (5, 3, 8, 8)
    # Whole pictures but for the ratio of their sides, which clips one of them: still a ramp from left to right.
    assert (small.float().diff(dim=3) > 0).all()


def test_prototypes_are_counted_by_the_nearest_of_some_picture():
    images = cells(short_trial("swav-equipartition", "Sinkhorn"), "val", coloured=False).images
    method = represent_swav.make().train()
    for module in method.modules():
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
            module.momentum = 1.0  # its statistics are those of the pictures at once
    method.projector(method.backbone(method.pixels(images)))
    assert 1 < represent_swav.prototypes_used(method, images) <= represent_swav.PROTOTYPES
    with torch.no_grad():
        method.projector[3].weight.zero_()  # every picture gets the bias
    assert represent_swav.prototypes_used(method, images) == 1


def test_equal_time_means_fewer_steps():
    figures = represent_swav.multi_crop_trial(
        Trial("swav-multi-crop", represent_swav.WHERE, represent_swav.IN_TIME, {"lr": 2e-3}, 7, "val", 0.05)
    )
    assert 2 <= figures["steps"] < 0.05 * represent_swav.STEPS


def views_of(images: torch.Tensor) -> ViewBatch:
    """Return a batch that is seen twice as it is."""
    rows = torch.arange(len(images))
    return ViewBatch([images, images], rows, rows)


@pytest.fixture
def images():
    return cells(short_trial("moby-parents", "BYOL"), "train", coloured=False).images[:32]


def test_byol_asks_for_agreement_alone(images):
    method = represent_moby.make("BYOL").train()
    method.predictor = torch.nn.Sequential()  # then online and target networks are one
    assert method.loss(views_of(images))["loss"].item() == pytest.approx(0, abs=1e-5)
    method.slow_projector[3].weight.data.neg_()
    method.slow_projector[3].bias.data.neg_()
    assert method.loss(views_of(images))["loss"].item() == pytest.approx(8, abs=1e-5)


def test_moco_s_part_is_the_contrast_of_projections(images):
    method = represent_moby.make("MoCo v2").train()
    rows = [queue().clone() for queue in (method.queue2, method.queue1)]
    with torch.no_grad():
        queries = F.normalize(method.projector(method.backbone(method.pixels(images))), dim=1)
        wanted = sum(info_nce(queries, queries, negatives, 0.2)[0] for negatives in rows)
    assert method.loss(views_of(images))["loss"].item() == pytest.approx(float(wanted), rel=1e-5)


def test_moby_and_its_parents_begin_with_one_tower():
    towers = []
    for variant in ("MoBY", "MoCo v2", "BYOL"):
        torch.manual_seed(0)
        towers.append(represent_moby.make(variant).backbone.state_dict())
    for name, value in towers[0].items():
        assert torch.equal(value, towers[1][name])
        assert torch.equal(value, towers[2][name])
