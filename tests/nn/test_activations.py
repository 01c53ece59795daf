import pytest
import torch
from transformers.activations import ACT2FN

from odonata.nn.activations import activation

HF = {"quick_gelu": "quick_gelu", "gelu": "gelu", "gelu_tanh": "gelu_pytorch_tanh", "relu": "relu", "silu": "silu"}


@pytest.mark.parametrize("name", HF)
def test_equals_transformers(name):
    x = torch.linspace(-6, 6, 1001)
    torch.testing.assert_close(activation(name)(x), ACT2FN[HF[name]](x), rtol=1e-6, atol=1e-7)


def test_unknown_name_lists_the_known_ones():
    with pytest.raises(ValueError, match="'swish' is unknown; choose one of quick_gelu, gelu"):
        activation("swish")
