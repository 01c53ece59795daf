"""Each kind of collapse is named by its figures, and a healthy run is left in peace."""

import logging
import math

import pytest
import torch

from odonata.engine.fit import train
from odonata.represent.build import build
from odonata.represent.monitor import Monitor, at_chance, diagnose
from represent.short_runs import WORLD, short


def names(scalars, chance=None, stood=1.0):
    return [finding.name for finding in diagnose(scalars, chance, stood)]


@pytest.mark.parametrize(("loss", "count"), [(8.3178, 4096), (6.238, 512), (8.006, 3000), (3.0445, 21)])
def test_the_constants_of_published_reports_are_ln_k(loss, count):
    assert loss == pytest.approx(math.log(count), abs=1e-3)
    assert names({"loss": loss}, math.log(count)) == ["loss at its constant"]
    assert names({"loss": loss}, math.log(count), stood=0.05) == []
    assert not at_chance({"loss": 0.9 * loss}, math.log(count))


@pytest.mark.parametrize(
    ("scalars", "found"),
    [
        ({"teacher_entropy": 6.93, "marginal_entropy": 6.93, "loss": 5.0}, ["uniform targets"]),
        ({"teacher_entropy": 0.15, "marginal_entropy": 0.60, "loss": 0.43}, ["one answer for all pictures"]),
        ({"teacher_entropy": 2.77, "marginal_entropy": 4.59, "loss": 3.9}, []),
        ({"prototypes_used": 0.01, "loss": 1.0}, ["few prototypes in use"]),
        ({"prototypes_used": 0.71, "loss": 4.09}, []),
        ({"spread": 0.01, "loss": 1.0}, ["constant features"]),
        ({"feature_spread": 0.4, "feature_rank": 1.2}, ["features on a line"]),
        ({"loss": 2.0, "spread": 0.6, "feature_rank": 40.0}, []),
    ],
)
def test_each_collapse_has_its_name(scalars, found):
    """Entropies are those measured of DINO with K = 1024: healthy, without centring, without sharpening."""
    assert names(scalars, math.log(1024)) == found


def test_a_message_says_cause_and_remedy():
    (finding,) = diagnose({"spread": 0.0, "loss": 1.0}, None)
    assert str(finding).startswith("collapse watch: constant features: unit-length features spread 0.000")
    assert "Lower the learning rate" in str(finding)


def moco(steps=20, **changes):
    recipe = short("moco-v2", "scenes-digits:n=60,size=32", steps=steps, batch=8, method={"queue": 64, **changes})
    torch.manual_seed(0)
    return build(recipe)


def test_a_constant_encoder_is_found_in_a_real_run(caplog):
    task = moco()
    with torch.no_grad():
        for parameter in task.method.projector[-1].parameters():
            parameter.zero_()
        task.method.projector[-1].bias.fill_(1.0)
    task.method.backbone.requires_grad_(False)
    task.method.projector.requires_grad_(False)
    batch = next(task.batches.start())
    scalars = {k: float(v) for k, v in task.method.train().loss(batch).items()}
    watch = Monitor(task.method, 100)
    with caplog.at_level(logging.WARNING):
        for step in range(1, 6):
            watch(step, scalars)
    said = [record.getMessage() for record in caplog.records]
    assert len([line for line in said if "constant features" in line]) == 1
    assert said[0].startswith("step 3: collapse watch: ")


def test_a_loss_is_stuck_only_after_its_patience(caplog):
    task = moco()
    watch = Monitor(task.method, 2000)
    with caplog.at_level(logging.WARNING):
        for step in range(200, 480, 40):
            watch(step, {"loss": math.log(65)})
        assert not caplog.records
        watch(480, {"loss": 1.0})
        for step in range(520, 1000, 80):
            watch(step, {"loss": math.log(65)})
    assert [record.getMessage()[:43] for record in caplog.records] == ["step 840: collapse watch: loss at its const"]


def test_a_healthy_run_is_left_in_peace(caplog):
    task = moco(steps=30)
    with caplog.at_level(logging.WARNING):
        train(task.recipe, task, None, WORLD)
    assert not [record for record in caplog.records if "collapse" in record.getMessage()]
