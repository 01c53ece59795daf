"""The claims of `represent` and `distill`: what is exact is asserted, and a short trial of each runs."""

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from odonata import claims
from odonata.backbones.compound import macs
from odonata.claims import distill_losses, represent_infonce, represent_moco, represent_scaling, represent_spp
from odonata.claims.claim import Claim, Trial
from odonata.claims.represent_toy import (
    Pictures,
    cells,
    colours,
    crops,
    flat_pixels,
    measure,
    moco_view,
    pictures,
    prepare_pictures,
    shifts,
)
from odonata.distill.losses import LOSSES

TRAINED = (
    "moco-slow-encoder", "moco-queue", "compound-scaling", "rotation-transfer", "label-free-features",
    "distillation-losses",
)  # fmt: skip
BUDGET = 0.005


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("claims")


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def figures_of(claim: Claim, condition: str, variant: str, folder: Path, split="val", seed=None) -> dict[str, float]:
    seed = claim.tuning_seeds[0] if seed is None else seed
    setting = claim.settings(variant)[-1]
    return claim.trial(Trial(claim.name, condition, variant, setting, seed, split, BUDGET, folder))


@pytest.mark.slow
@pytest.mark.parametrize("name", TRAINED)
def test_a_trial_of_every_claim_runs_and_gives_what_is_compared_and_plotted(name, folder):
    claim = claims.load(name)
    if claim.prepare is not None:
        claim.prepare(folder, BUDGET)
    wanted: dict[str, set[str]] = {f"{variant}@{condition}": set() for condition, variant in claim.cells()}
    for comparison in claim.comparisons:
        for cell in comparison.cells():
            wanted[cell].add(comparison.quantity)
    first = claim.conditions[0]
    for variant in claim.variants:
        figures = figures_of(claim, first, variant, folder)
        assert wanted[f"{variant}@{first}"] <= figures.keys()
        assert all(math.isfinite(value) for value in figures.values())
        assert any(plot.quantity in figures for plot in claim.plots)


@pytest.mark.slow
def test_a_trial_is_a_function_of_what_it_is_given(folder):
    claim = represent_moco.SLOW_ENCODER
    where = claim.conditions[0]
    one, same = (figures_of(claim, where, "m = 0.99", folder) for _ in range(2))
    other = figures_of(claim, where, "m = 0.99", folder, seed=7)
    assert one == same
    assert one["loss"] != other["loss"]


def test_infonce_stays_below_its_bound_and_reaches_it():
    for variant, information in represent_infonce.INFORMATION.items():
        for candidates in (4, 64):
            trial = Trial("infonce-bound", str(candidates), variant, {}, 101, "val", 0.1)
            figures = represent_infonce.trial(trial)
            assert figures["cap"] == min(information, math.log(candidates))
            assert figures["estimate"] <= figures["cap"] + represent_infonce.TOLERANCE
            assert figures["excess"] == pytest.approx(figures["estimate"] - figures["cap"])
    reached = represent_infonce.trial(Trial("infonce-bound", "4", "10 nats, optimal critic", {}, 101, "val"))
    assert reached["estimate"] > math.log(4) - 0.02


def test_sppf_is_spp_in_every_precision_and_ten_windows_are_wrong():
    for condition in represent_spp.DTYPES:
        figures = represent_spp.trial(Trial("sppf-equals-spp", condition, "SPPF", {}, 101, "val", 0.2))
        assert figures["unequal_values"] == 0
        assert (figures["wrong_windows"], figures["wrong_adaptive"]) == (10, 0)
        if condition in ("float32", "float64"):
            assert figures["gradient_error"] < 1e-5
    assert represent_spp.wrong_windows()[0] == (8, 6)


def test_a_queue_keeps_no_graph_of_its_negatives_and_a_batch_does(folder):
    kept = {
        (variant, negatives): figures_of(represent_moco.QUEUE_COST, negatives, variant, folder)["graph_mib"]
        for variant in ("queue", "end to end")
        for negatives in ("64", "512")
    }
    assert kept["queue", "512"] / kept["queue", "64"] < 1.1
    assert kept["end to end", "512"] / kept["end to end", "64"] > 6


def test_scaled_towers_cost_the_same_within_a_tenth():
    costs = {name: macs(config) for name, config in represent_scaling.configs().items()}
    for axis in ("depth", "width", "resolution"):
        assert costs[axis] / costs["compound"] == pytest.approx(1, abs=0.1)
    assert costs["compound"] / costs["base"] == pytest.approx(3.7, abs=0.1)


def test_every_distillation_loss_is_compared_with_the_student_alone_and_stands_beside_its_published_figure():
    claim = distill_losses.CLAIM
    compared = {c.treatment for c in claim.comparisons if c.control == "student@alone"}
    assert compared == {f"student@{name}" for name in LOSSES}
    assert claim.published is not None
    assert set(claim.published.figures) == {*compared, "student@alone"}
    primary = [c.name for c in claim.comparisons if c.primary]
    assert primary == ["kd against alone", "kd against kd/T²"]


@pytest.mark.slow
@pytest.mark.parametrize("condition", distill_losses.CONDITIONS)
def test_every_distillation_loss_trains(condition, folder):
    distill_losses.prepare(folder, BUDGET)
    assert 0 <= figures_of(distill_losses.CLAIM, condition, "student", folder)["top1"] <= 100


def test_a_seed_chooses_pictures_and_splits_share_none(folder):
    prepare_pictures(folder, BUDGET)
    trial = Trial("any", "c", "v", {}, 1, "test", BUDGET, folder)
    one, same = pictures(trial, "train", 50), pictures(trial, "train", 50)
    assert torch.equal(one.images, same.images)
    other = pictures(Trial("any", "c", "v", {}, 2, "test", BUDGET, folder), "train", 50)
    assert not torch.equal(one.images, other.images)
    new = pictures(trial, "test", 50)
    known = {picture.numpy().tobytes() for picture in pictures(trial, "train").images}
    assert not known & {picture.numpy().tobytes() for picture in new.images}


def test_cells_are_of_their_digits_and_white_ones_have_no_colour():
    trial = Trial("any", "c", "v", {}, 1, "test", 0.1)
    white, coloured = cells(trial, "train", coloured=False), cells(trial, "train")
    assert white.images.shape == (400, 3, 16, 16)
    assert sorted(white.labels.unique().tolist()) == list(range(10))
    saturation = [(p.images.float().amax(1) - p.images.float().amin(1)).mean() for p in (white, coloured)]
    assert saturation[0] < saturation[1]


@pytest.mark.parametrize("look", [lambda x: crops(x, (0.3, 1.0)), shifts, colours, moco_view])
def test_views_are_bytes_of_the_same_size_and_differ_from_picture_to_picture(look: Callable):
    torch.manual_seed(0)
    picture = torch.randint(0, 256, (1, 3, 16, 16), dtype=torch.uint8)
    views = look(picture.repeat(20, 1, 1, 1))
    assert views.dtype == torch.uint8
    assert views.shape == (20, 3, 16, 16)
    assert len({view.numpy().tobytes() for view in views}) > 10


def test_a_crop_of_everything_is_the_picture_and_a_shift_of_nothing_too():
    picture = torch.randint(0, 256, (4, 3, 16, 16), dtype=torch.uint8)
    assert torch.equal(shifts(picture, 0), picture)
    assert torch.equal(colours(picture, 0.0, 0.0, 1.0, 0.0), picture)
    torch.manual_seed(0)
    whole = crops(picture[:1].repeat(50, 1, 1, 1), (1.0, 1.0))
    assert whole.float().std() > 0  # the ratio still cuts: sides are clipped to the picture


def test_a_view_of_colours_turns_hue_and_keeps_grey():
    torch.manual_seed(0)
    grey = torch.full((8, 3, 4, 4), 120, dtype=torch.uint8)
    turned = colours(grey, 0.0, 0.5, 1.0, 0.0)
    assert (turned.int() - 120).abs().max() <= 1
    red = torch.zeros(8, 3, 4, 4, dtype=torch.uint8)
    red[:, 0] = 200
    assert (colours(red, 0.0, 0.5, 1.0, 0.0)[:, 1:].float().amax((1, 2, 3)) > 20).any()


def test_measuring_finds_what_is_there_and_nothing_where_nothing_is():
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(600) % 10
    told = torch.zeros(600, 3, 4, 4, dtype=torch.uint8)
    told.view(600, -1)[torch.arange(600), labels] = 255
    noise = torch.randint(0, 256, (600, 3, 4, 4), dtype=torch.uint8, generator=generator)
    bank, new = Pictures(told[:400], labels[:400]), Pictures(told[400:], labels[400:])
    assert measure(flat_pixels, bank, new, 0) == {"knn": 100.0, "probe": 100.0}
    chance = measure(flat_pixels, Pictures(noise[:400], labels[:400]), Pictures(noise[400:], labels[400:]), 0)
    assert max(chance.values()) < 25
