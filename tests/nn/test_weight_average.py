import pytest
import torch

from odonata.nn.weight_average import interpolate


def test_line_between_two_states():
    a = {"w": torch.zeros(3), "steps": torch.tensor(1)}
    b = {"w": torch.ones(3), "steps": torch.tensor(5)}
    torch.testing.assert_close(interpolate(a, b, 0.25)["w"], torch.full((3,), 0.25))
    assert interpolate(a, b, 0.25)["steps"] == 1 and interpolate(a, b, 0.75)["steps"] == 5


def test_ends_are_bit_equal():
    a, b = {"w": torch.randn(50)}, {"w": torch.randn(50) * 1e6}
    assert torch.equal(interpolate(a, b, 0)["w"], a["w"]) and torch.equal(interpolate(a, b, 1)["w"], b["w"])


def test_half_precision_is_summed_in_float32():
    a, b = {"w": torch.tensor([1.0]).half()}, {"w": torch.tensor([1.001]).half()}
    between = interpolate(a, b, 0.5)["w"]
    assert between.dtype == torch.float16
    assert between == ((a["w"].float() + b["w"].float()) / 2).half()


def test_differences_are_named():
    with pytest.raises(ValueError, match="1 keys stand in one state only: v"):
        interpolate({"w": torch.zeros(1)}, {"w": torch.zeros(1), "v": torch.zeros(1)}, 0.5)
    with pytest.raises(ValueError, match=r"w: shape \(1,\) in one state, \(2,\) in the other"):
        interpolate({"w": torch.zeros(1)}, {"w": torch.zeros(2)}, 0.5)
