"""The thirteen losses against RepDistiller's: values, and gradients of features and of the losses' own parameters."""

import pytest
import torch

from distill.taps import CASES, RECORDED, assert_close, both_shapes, both_taps, tensor
from fixtures.named_numbers import numbers
from odonata.distill.losses import LOSSES, crd
from odonata.distill.losses.crd import CRDLoss
from odonata.distill.losses.interface import TapShapes, loss_class

BOUNDS = {torch.float64: 1e-6, torch.float32: 1e-5}


def name_of(case):
    """The loss of a recorded case; RepDistiller calls FitNets' loss a hint."""
    return {"hint": "fitnets"}.get(case.split("_")[0], case.split("_")[0])


def set_numbers(loss: torch.nn.Module, case: str, dtype: torch.dtype) -> list[torch.nn.Parameter]:
    """Gives the parameters the numbers that the reference had."""
    parameters = list(loss.parameters())
    for i, parameter in enumerate(parameters):
        parameter.data = numbers(f"{case}/parameter.{i}.weight", tuple(parameter.shape)).to(dtype)
    return parameters


def options_of(case: str) -> dict:
    return {"keep": True} if case in ("ab", "fsp") else {}


@pytest.mark.parametrize("dtype", BOUNDS, ids=["float64", "float32"])
@pytest.mark.parametrize("case", CASES)
def test_loss_and_gradients_are_repdistillers(case, dtype):
    student, teacher = both_taps(case, dtype)
    loss = loss_class(name_of(case))(*both_shapes(student, teacher), **options_of(case)).to(dtype)
    parameters = set_numbers(loss, case, dtype)
    parameters = parameters if case != "ft_init" else list(loss.init_parameters())
    result = loss.first_stage(student, teacher) if case == "ft_init" else loss(student, teacher)
    result["loss"].backward()
    assert result["loss"].dtype == dtype
    assert_close(result["loss"], RECORDED[f"{case}/loss"], BOUNDS[dtype])
    leaves = {f"maps.{i}": value for i, value in enumerate(student.maps)}
    leaves |= {f"preactivations.{i}": value for i, value in enumerate(student.preactivations)}
    leaves |= {"pooled": student.pooled, "logits": student.logits}
    leaves |= {f"parameter.{i}": value for i, value in enumerate(parameters)}
    gradients = {name: leaf.grad for name, leaf in leaves.items() if leaf.grad is not None}
    recorded = {key.rpartition("/gradient/")[2]: RECORDED[key] for key in RECORDED if key.startswith(f"{case}/grad")}
    assert gradients.keys() == recorded.keys()
    for name, gradient in gradients.items():
        # A bias before a batch norm has no gradient but rounding.
        if max(abs(recorded[name]).max(), float(gradient.abs().max())) > 1e-6:
            assert_close(gradient, recorded[name], BOUNDS[dtype])


def test_every_loss_is_recorded():
    assert {name_of(case) for case in CASES} | {"crd"} == set(LOSSES)


@pytest.mark.parametrize("dtype", BOUNDS, ids=["float64", "float32"])
@pytest.mark.parametrize("limit", [0, 100], ids=["gathered", "whole bank"])
def test_three_steps_of_crd_are_repdistillers(dtype, limit, monkeypatch):
    monkeypatch.setattr(crd, "_BANK_OVER_NEGATIVES", limit)
    shapes = TapShapes("student", dim=10), TapShapes("teacher", dim=12)
    loss = CRDLoss(*shapes, num_samples=40, negatives="other_samples", num_negatives=16, dim=5).to(dtype)
    parameters = set_numbers(loss, "crd", dtype)
    for name in ("student_bank", "teacher_bank"):
        getattr(loss, name).copy_(tensor(f"crd/{name}", (40, 5), dtype) / 5**0.5)
    for step in range(3):
        student = tensor(f"crd/{step}/student.pooled", (6, 10), dtype).requires_grad_()
        teacher = tensor(f"crd/{step}/teacher.pooled", (6, 12), dtype)
        candidates = torch.from_numpy(RECORDED[f"crd/{step}/candidates"]).long()
        loss.zero_grad()
        result = loss.contrast(student, teacher, candidates[:, 0], candidates[:, 1:])
        result["loss"].backward()
        found = {"loss": result["loss"], "gradient/pooled": student.grad, "z": loss.z}
        found |= {f"gradient/parameter.{i}": parameter.grad for i, parameter in enumerate(parameters)}
        found |= {"student_bank": loss.student_bank, "teacher_bank": loss.teacher_bank}
        for name, value in found.items():
            assert_close(value, RECORDED[f"crd/{step}/{name}"], BOUNDS[dtype])
