"""RMSNorm: its value to the bit of Llama's, and its written-out gradient."""

import pytest
import torch
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from odonata.nn.rms_norm import RMSNorm


def random_norm(dim: int) -> RMSNorm:
    torch.manual_seed(0)
    norm = RMSNorm(dim, 1e-6)
    norm.weight.data.normal_()
    return norm


@pytest.mark.parametrize("shape", [(5, 7), (2, 3, 16), (1, 1, 4)])
def test_the_gradient_is_the_true_one(shape):
    norm = random_norm(shape[-1]).double()
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(norm, (x,))

    def of_weight(weight):
        return torch.func.functional_call(norm, {"weight": weight}, (x.detach(),))

    assert torch.autograd.gradcheck(of_weight, (norm.weight.detach().requires_grad_(),))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_values_are_llamas_to_the_bit_with_and_without_gradients(dtype):
    norm = random_norm(48).to(dtype)
    reference = LlamaRMSNorm(48, 1e-6).to(dtype)
    reference.load_state_dict(norm.state_dict())
    x = torch.randn(4, 9, 48).to(dtype)
    assert torch.equal(norm(x), reference(x))
    with torch.no_grad():
        assert torch.equal(norm(x), reference(x))


def test_gradients_of_gradients_are_refused():
    x = torch.randn(3, 8, requires_grad=True)
    with pytest.raises(RuntimeError, match="RMSNorm cannot be differentiated twice here"):
        torch.autograd.grad(random_norm(8)(x).sum(), x, create_graph=True)
