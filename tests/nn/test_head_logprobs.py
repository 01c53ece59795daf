"""The head's log-probabilities are those of log_softmax, whatever the chunk; nobody holds rows × vocab logits."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.autograd import gradcheck
from torch.utils._python_dispatch import TorchDispatchMode

from odonata.errors import RecipeError
from odonata.nn.head_logprobs import head_logprobs

RECORDED = np.load(Path(__file__).parents[1] / "fixtures/trl_losses.npz")
FACTS = json.loads(bytes(RECORDED["json"]))


def inputs(rows=13, dim=6, vocab=29, dtype=torch.float64):
    hidden, weight, bias = torch.randn(rows, dim), torch.randn(vocab, dim), torch.randn(vocab)
    return [x.to(dtype).requires_grad_() for x in (hidden, weight, bias)], torch.randint(0, vocab, (rows,))


def plain(hidden, weight, bias, targets, temperature):
    """The usual way: all logits at once, in float32 at least."""
    logits = hidden @ weight.T
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32)) + (0 if bias is None else bias)
    logprobs = (logits / temperature).log_softmax(-1)
    entropy = torch.special.entr(logprobs.exp()).sum(-1)
    return logprobs.gather(1, targets[:, None])[:, 0], entropy


class LargestTensor(TorchDispatchMode):
    """Remembers how many elements the largest tensor made under it has."""

    largest = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor):
            self.largest = max(self.largest, result.numel())
        return result


@pytest.mark.parametrize("chunk", [0, 1, 5, 13, 100])
@pytest.mark.parametrize(("temperature", "biased"), [(1.0, False), (0.7, True)])
def test_values_and_gradients_are_those_of_log_softmax(chunk, temperature, biased):
    (hidden, weight, bias), targets = inputs()
    leaves = [hidden, weight, bias] if biased else [hidden, weight]
    upstream = torch.randn(2, 13, dtype=torch.float64)
    results = []
    for ours in (True, False):
        if ours:
            logprobs, entropy = head_logprobs(
                hidden, weight, targets, bias=bias if biased else None, temperature=temperature, chunk=chunk,
                entropy=True, entropy_gradient=True,
            )  # fmt: skip
        else:
            logprobs, entropy = plain(hidden, weight, bias if biased else None, targets, temperature)
        loss = (upstream[0] * logprobs + upstream[1] * entropy).sum()
        results.append([logprobs, entropy, *torch.autograd.grad(loss, leaves)])
    for found, expected in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_values_and_gradients_are_trls(dtype):
    leaves = {
        name: torch.from_numpy(RECORDED[f"head/{name}"]).to(dtype).requires_grad_()
        for name in ("hidden", "weight", "bias")
    }
    logprobs, entropy = head_logprobs(
        leaves["hidden"], leaves["weight"], torch.tensor(FACTS["head/targets"]), bias=leaves["bias"], temperature=0.7,
        chunk=5, entropy=True, entropy_gradient=True,
    )  # fmt: skip
    upstream = torch.from_numpy(RECORDED["head/upstream"]).to(dtype)
    gradients = torch.autograd.grad((upstream[0] * logprobs + upstream[1] * entropy).sum(), list(leaves.values()))
    found = {"logprobs": logprobs, "entropy": entropy}
    found |= {f"gradient/{name}": gradient for name, gradient in zip(leaves, gradients, strict=True)}
    for name, value in found.items():
        expected = torch.from_numpy(RECORDED[f"head/{name}"])
        error = (value.detach().double() - expected).norm() / expected.norm()
        assert error < (1e-10 if dtype == torch.float64 else 1e-6), f"{name}: {error:.1e}"


def test_gradients_pass_gradcheck():
    leaves, targets = inputs(rows=7, dim=3, vocab=8)

    def both(hidden, weight, bias):
        return head_logprobs(
            hidden, weight, targets, bias=bias, temperature=1.3, chunk=3, entropy=True, entropy_gradient=True
        )

    assert gradcheck(both, leaves)
    assert gradcheck(lambda *x: both(*x)[1], leaves)  # nobody asks for the log-probabilities' gradient


def test_two_tokens_by_hand():
    # Logits 0 and ln 3 at temperature 1: probabilities ¼ and ¾.
    weight = torch.tensor([[0.0], [3.0]]).log().nan_to_num(neginf=0.0)
    hidden = torch.ones(2, 1, requires_grad=True)
    logprobs, entropy = head_logprobs(hidden, weight, torch.tensor([0, 1]), entropy=True)
    assert logprobs.tolist() == pytest.approx([np.log(0.25), np.log(0.75)])
    assert entropy.tolist() == pytest.approx([-0.25 * np.log(0.25) - 0.75 * np.log(0.75)] * 2)
    logprobs.sum().backward()
    # ∂ ln p_y / ∂h = w_y − Σ p w: −¾ ln 3 and ¼ ln 3.
    assert hidden.grad.flatten().tolist() == pytest.approx([-0.75 * np.log(3), 0.25 * np.log(3)])
    # At temperature ½ the odds are squared: 1 to 9.
    logprobs, _ = head_logprobs(hidden, weight, torch.tensor([0, 1]), temperature=0.5)
    assert logprobs.exp().tolist() == pytest.approx([0.1, 0.9])


def test_entropy_is_a_figure_unless_its_gradient_is_asked_for():
    (hidden, weight, _), targets = inputs()
    _, entropy = head_logprobs(hidden, weight, targets, entropy=True)
    assert not entropy.requires_grad
    _, entropy = head_logprobs(hidden, weight, targets, entropy=True, entropy_gradient=True)
    assert entropy.requires_grad
    assert head_logprobs(hidden, weight, targets)[1] is None


def test_a_token_that_cannot_be_has_no_entropy_and_no_gradient():
    (hidden, weight, bias), targets = inputs()
    with torch.no_grad():
        bias[3] = -torch.inf
    logprobs, entropy = head_logprobs(
        hidden, weight, targets.clamp(min=4), bias=bias, entropy=True, entropy_gradient=True
    )
    (logprobs + entropy).sum().backward()
    assert entropy.isfinite().all() and hidden.grad.isfinite().all()
    assert (weight.grad[3] == 0).all() and bias.grad[3] == 0


def test_large_logits_do_not_overflow():
    hidden, weight = torch.full((2, 1), 1e4), torch.tensor([[1.0], [0.5], [-1.0]])
    logprobs, entropy = head_logprobs(hidden, weight, torch.tensor([0, 1]), entropy=True)
    assert logprobs.tolist() == [0.0, -5000.0]
    assert entropy.tolist() == [0.0, 0.0]


def test_the_log_sum_exp_is_in_float32_in_bfloat16_and_under_autocast():
    (hidden, weight, _), targets = inputs(rows=40, dim=64, vocab=500, dtype=torch.bfloat16)
    expected, entropy = plain(hidden, weight, None, targets, 1.0)
    low = head_logprobs(hidden, weight, targets, chunk=7, entropy=True)
    hidden32, weight32 = hidden.detach().float().requires_grad_(), weight.detach().float().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        mixed = head_logprobs(hidden32, weight32, targets, chunk=7, entropy=True)
    for found in (low, mixed):
        assert found[0].dtype == found[1].dtype == torch.float32
        torch.testing.assert_close(found[0], expected, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(found[1], entropy, rtol=1e-5, atol=1e-5)
    low[0].sum().backward()
    with torch.autocast("cpu", torch.bfloat16):  # a backward pass inside the context must not fall to bfloat16 sums
        mixed[0].sum().backward()
    assert hidden.grad.dtype == torch.bfloat16 and weight32.grad.dtype == torch.float32
    exact = torch.autograd.grad(plain(hidden32, weight32, None, targets, 1.0)[0].sum(), [hidden32, weight32])
    with torch.autocast("cpu", torch.bfloat16):
        usual = torch.autograd.grad(plain(hidden32, weight32, None, targets, 1.0)[0].sum(), [hidden32, weight32])
    # Rounding of the logits is all that there is: no worse than the usual way under the same autocast.
    for found, same, expected in zip((hidden32.grad, weight32.grad), usual, exact, strict=True):
        assert (found - expected).norm() < 1.2 * (same - expected).norm() < 0.02 * expected.norm()
    assert (hidden.grad.float() - exact[0]).norm() < 0.02 * exact[0].norm()


def test_no_tensor_of_rows_times_vocab_is_ever_made():
    rows, dim, vocab, chunk = 64, 4, 512, 8
    (hidden, weight, _), targets = inputs(rows, dim, vocab, torch.float32)
    with LargestTensor() as seen:
        logprobs, entropy = head_logprobs(hidden, weight, targets, chunk=chunk, entropy=True, entropy_gradient=True)
        (logprobs.sum() + entropy.sum()).backward()
    assert seen.largest == chunk * vocab
    with LargestTensor() as seen:
        plain(hidden, weight, None, targets, 1.0)
    assert seen.largest == rows * vocab


def test_a_frozen_head_costs_no_product_for_its_gradient():
    class Products(TorchDispatchMode):
        count = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            self.count += "mm" in func.name()
            return func(*args, **(kwargs or {}))

    counts = {}
    for frozen in (False, True):
        (hidden, weight, _), targets = inputs()
        logprobs, _ = head_logprobs(hidden, weight.detach() if frozen else weight, targets, chunk=13)
        with Products() as products:
            logprobs.sum().backward()
        counts[frozen] = products.count
        assert hidden.grad is not None
    assert counts == {False: 3, True: 2}  # the logits again, hidden states, and the weight


def test_a_tied_embedding_gets_both_of_its_gradients():
    embedding = nn.Embedding(11, 4).double()
    tokens = torch.tensor([1, 2, 3])
    gradients = []
    for ours in (True, False):
        embedding.weight.grad = None
        hidden = embedding(tokens)
        args = hidden, embedding.weight
        logprobs, _ = head_logprobs(*args, tokens) if ours else plain(*args, None, tokens, 1.0)
        logprobs.sum().backward()
        gradients.append(embedding.weight.grad)
    torch.testing.assert_close(*gradients)


def test_no_rows_have_no_gradient_but_are_connected():
    (hidden, weight, _), targets = inputs()
    logprobs, entropy = head_logprobs(hidden[:0], weight, targets[:0], entropy=True)
    assert len(logprobs) == len(entropy) == 0
    logprobs.sum().backward()
    assert (weight.grad == 0).all()


def test_a_second_derivative_is_refused():
    (hidden, weight, _), targets = inputs()
    logprobs, _ = head_logprobs(hidden, weight, targets)
    with pytest.raises(RuntimeError, match="cannot be differentiated twice"):
        torch.autograd.grad(logprobs.sum(), hidden, create_graph=True)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"weight": torch.zeros(5, 3)}, r"hidden \[rows, dim\] and weight \[vocab, dim\] of one dim, not \[2, 4\]"),
        ({"targets": torch.tensor([0, 5])}, r"targets reach from 0 to 5, and the vocabulary from 0 to 4; leave out"),
        ({"targets": torch.tensor([-100, 1])}, r"targets reach from -100 to 1"),
        ({"targets": torch.zeros(2)}, r"targets must be 2 integers, not \[2\] of torch.float32"),
        ({"bias": torch.zeros(4)}, r"bias must be \[5\], not \[4\]"),
        ({"temperature": 0.0}, r"temperature must be positive and chunk at least 0, not 0.0 and 0"),
        ({"entropy_gradient": True}, r"entropy_gradient needs entropy=True"),
    ],
)
def test_what_does_not_fit_is_named(changes, message):
    given = {"hidden": torch.zeros(2, 4), "weight": torch.zeros(5, 4), "targets": torch.tensor([0, 1])}
    with pytest.raises(RecipeError, match=message):
        head_logprobs(**(given | changes))
