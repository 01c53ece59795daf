"""The gated MLP."""

import pytest
import torch
import torch.nn.functional as F

from odonata.nn.swiglu import SwiGLU, swiglu_width


def test_it_is_equation_six_of_shazeer():
    mlp, x = SwiGLU(6, 10), torch.randn(3, 6)
    want = (F.silu(x @ mlp.gate.weight.T + mlp.gate.bias) * (x @ mlp.up.weight.T + mlp.up.bias)) @ mlp.down.weight.T
    torch.testing.assert_close(mlp(x), want + mlp.down.bias)


# DINOv2 g; DINOv3 S+, H+ and 7B (facebookresearch/dinov3 hub/backbones.py).
@pytest.mark.parametrize(
    ("width", "multiple", "gate"), [(6144, 8, 4096), (2304, 8, 1536), (7680, 8, 5120), (12288, 64, 8192)]
)
def test_published_widths_of_the_gate(width, multiple, gate):
    assert swiglu_width(width, multiple) == gate


def test_widths_round_up():
    assert swiglu_width(128) == 88
