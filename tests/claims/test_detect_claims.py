"""The claims of `detect` and `segment`: what is arithmetic is asserted, and a short trial of the others runs."""

from __future__ import annotations

import math

import pytest
import torch

from odonata import claims
from odonata.claims.claim import Claim, Trial
from odonata.claims.detect_polar import ceiling
from odonata.claims.detect_scale import RANGES, SIZES, at_random_size, snip_config
from odonata.claims.detect_toy import SIDE, answers, fcos_config, figures, items
from odonata.claims.segment_toy import maps_of
from odonata.data.detections import Detections
from odonata.detect.fcos import FCOS

ARITHMETIC = {
    "kmeans-anchors": "mean IoU",
    "best-possible-recall": "recall",
    "polar-ceiling": "IoU",
    "fcn-stride-ceiling": "mIoU",
    "yolo-grids": "recall",
}
TRAINED = (
    "focal-loss", "prior-bias", "several-levels", "fpn-top-down", "snip-ranges", "anchor-free-parity",
    "detr-slow-start", "trident-ranges", "ssd-hard-negatives", "centernet-no-nms", "corner-pooling", "mtcnn-cascade",
    "pspnet-context",
)  # fmt: skip


def trial_of(claim: Claim, variant: str, budget: float, seed: int = 1) -> Trial:
    setting = claim.settings(variant)[0]
    return Trial(claim.name, claim.conditions[0], variant, setting, seed, "test", budget)


@pytest.mark.parametrize("name", ARITHMETIC)
def test_what_needs_no_training_agrees_with_its_paper_in_a_tenth_of_its_length(name):
    claim = claims.load(name)
    found = {variant: claim.trial(trial_of(claim, variant, 0.1))[ARITHMETIC[name]] for variant in claim.variants}
    for comparison in claim.comparisons:
        if comparison.primary and isinstance(comparison.control, str):
            treatment, control = (side.split("@")[0] for side in (comparison.treatment, comparison.control))
            assert found[treatment] >= found[control], comparison.name


@pytest.mark.slow
@pytest.mark.parametrize("name", TRAINED)
def test_a_short_trial_of_every_variant_runs(name):
    claim = claims.load(name)
    for variant in claim.variants[:2]:
        found = claim.trial(trial_of(claim, variant, 0.002))
        read = {comparison.quantity for comparison in claim.comparisons}
        assert read <= found.keys()
        assert all(math.isfinite(found[key]) or key.startswith("AP_") for key in read)


@pytest.mark.slow
def test_a_trial_is_a_function_of_what_it_is_given():
    claim = claims.load("several-levels")
    once, again = (claim.trial(trial_of(claim, "pyramid", 0.01)) for _ in range(2))
    assert str(once) == str(again)


def test_the_worlds_figures_are_cocos_on_their_own_scale():
    trial = Trial("x", "c", "v", {}, 1, "val", 0.1)
    seen = items(trial, "val")
    perfect = [
        Detections(item.boxes, torch.ones(len(item.boxes)), item.labels, (SIDE, SIDE))
        for item in seen
        if item.boxes is not None and item.labels is not None
    ]
    found = figures(seen, perfect)
    assert found["AP"] == found["AP50"] == found["AP_S"] == found["AP_M"] == pytest.approx(100)
    untrained = FCOS(fcos_config(), 10)
    assert figures(seen, answers(untrained, seen))["AP"] < 5


def test_the_same_pictures_whatever_the_variant():
    one, other = (Trial("x", "c", variant, {}, 3, "test", 0.1) for variant in ("a", "b"))
    assert all(torch.equal(a.image, b.image) for a, b in zip(items(one, "train"), items(other, "train"), strict=True))
    assert not torch.equal(items(one, "train")[0].image, items(one, "test")[0].image)
    assert torch.equal(maps_of(one, "train", "scene").maps, maps_of(other, "train", "scene").maps)


def test_in_the_scene_world_the_large_digit_names_the_small_ones():
    seen = maps_of(Trial("x", "c", "v", {}, 1, "val", 0.1), "val", "scene").maps
    for picture in seen:
        assert not {2, 3} <= set(picture.unique().tolist()), "small digits are of one class in a picture"
    assert {2, 3} <= set(seen.unique().tolist())


def test_snip_marks_what_is_out_of_range_and_plain_pyramids_do_not():
    trial = Trial("x", "c", "v", {}, 1, "val", 0.1)
    chosen = list(items(trial, "val"))[:16]
    for kind in ("snip", "pyramid"):
        framed = at_random_size(snip_config(kind), chosen, torch.Generator().manual_seed(0))
        size = framed[0].image.shape[-1]
        ignored = [bool(item.ignore.any()) for item in framed if item.ignore is not None]
        assert size in SIZES and any(ignored) == (kind == "snip")
    assert len(RANGES) == len(SIZES)


def test_a_disc_is_drawn_nearly_whole_by_its_rays():
    y, x = torch.meshgrid(torch.arange(64), torch.arange(64), indexing="ij")
    disc = (x - 32) ** 2 + (y - 32) ** 2 < 400
    assert ceiling(disc, 72, "mass") > 0.97 > ceiling(disc, 6, "mass") > 0.7
