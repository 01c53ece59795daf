"""The contrastive losses against the written-out N × N float64 loss, F.cross_entropy and the losses of transformers."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from odonata.align.losses import sigmoid_loss, softmax_loss


def naive_sigmoid(x, y, t, b, alike=None, duplicates="positive"):
    logits = t.exp() * x @ y.T + b
    eye = torch.eye(len(x), dtype=torch.bool)
    alike = eye if alike is None else alike
    label = torch.where(alike if duplicates == "positive" else eye, 1.0, -1.0).to(x.dtype)
    losses = -F.logsigmoid(label * logits)
    if duplicates == "ignore":
        losses = losses.masked_fill(alike & ~eye, 0)
    return losses.sum() / len(x)


def naive_softmax(x, y, t, alike=None, duplicates="positive"):
    logits = t.exp() * x @ y.T
    eye = torch.eye(len(x), dtype=torch.bool)
    alike = eye if alike is None else alike
    if duplicates == "ignore":
        logits, alike = logits.masked_fill(alike & ~eye, -1e9), eye
    target = alike.to(x.dtype) / alike.sum(1, keepdim=True)
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target.T / target.T.sum(1, keepdim=True))) / 2


def embeddings(rows: int, dim: int, seed: int = 0, scale: float = 10.0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x, y = (F.normalize(torch.randn(rows, dim, generator=generator), dim=-1) for _ in range(2))
    return [x, y, torch.tensor(math.log(scale)), torch.tensor(-5.0)]


def value_and_grads(loss, inputs, dtype=torch.float32):
    leaves = [value.detach().to(dtype).requires_grad_() for value in inputs]
    value = loss(*leaves)
    return [value.detach(), *torch.autograd.grad(value, leaves)]


def assert_close(ours, reference, bound=1e-5):
    for mine, theirs in zip(ours, reference, strict=True):
        error = (mine.double() - theirs.double()).norm() / theirs.double().norm()
        assert error < bound, f"relative error {error:.2e}"


@settings(max_examples=40, deadline=None)
@given(
    rows=st.integers(1, 33),
    chunk=st.integers(1, 40),
    classes=st.integers(0, 5),
    duplicates=st.sampled_from(["positive", "ignore"]),
    seed=st.integers(0, 1000),
)
def test_any_chunk_gives_the_value_and_gradients_of_the_full_matrix(rows, chunk, classes, duplicates, seed):
    inputs = embeddings(rows, 8, seed)
    groups = torch.randint(classes, (rows,), generator=torch.Generator().manual_seed(seed)) if classes else None
    alike = groups[:, None] == groups[None, :] if groups is not None else None
    arguments = {"groups": groups, "duplicates": duplicates, "chunk": chunk}
    assert_close(
        value_and_grads(lambda *a: sigmoid_loss(*a, **arguments), inputs, torch.float64),
        value_and_grads(lambda *a: naive_sigmoid(*a, alike, duplicates), inputs, torch.float64),
        1e-10,
    )
    ours = value_and_grads(lambda *a: softmax_loss(*a, **arguments), inputs[:3], torch.float64)
    reference = value_and_grads(lambda *a: naive_softmax(*a, alike, duplicates), inputs[:3], torch.float64)
    for mine, theirs in zip(ours, reference, strict=True):  # a batch of one has the loss and gradient 0
        torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("chunk", [None, 100, 257])
@pytest.mark.parametrize("scale", [1.0, 1 / 0.07, 100.0])
def test_float32_is_within_1e5_of_float64(chunk, scale):
    inputs = embeddings(300, 64, scale=scale)
    inputs[1] = F.normalize(inputs[0] + 1.4 * inputs[1], dim=-1)  # matching pairs resemble each other, as in training
    assert_close(
        value_and_grads(lambda *a: sigmoid_loss(*a, chunk=chunk), inputs),
        value_and_grads(naive_sigmoid, inputs, torch.float64),
    )
    assert_close(
        value_and_grads(lambda *a: softmax_loss(*a, chunk=chunk), inputs[:3]),
        value_and_grads(naive_softmax, inputs[:3], torch.float64),
        # Logits near 100 are themselves off by 1e-5 in float32, whoever computes them.
        1e-5 if scale < 100 else 2e-4,
    )


def test_a_sure_softmax_model_keeps_the_digits_that_cross_entropy_loses():
    inputs = embeddings(300, 64, scale=28.0)
    inputs[1] = F.normalize(inputs[0] + 0.7 * inputs[1], dim=-1)
    exact = naive_softmax(*(value.double() for value in inputs[:3])).item()
    plain = abs(naive_softmax(*inputs[:3]).item() - exact)
    assert abs(softmax_loss(*inputs[:3]).item() - exact) < min(plain / 10, 1e-5 * exact)


def test_a_sure_sigmoid_model_does_not_cancel():
    x = torch.eye(6)
    inputs = [x, x, torch.tensor(math.log(60.0)), torch.tensor(-30.0)]
    ours = value_and_grads(sigmoid_loss, inputs)
    assert 0 < ours[0] < 1e-11
    assert_close(ours, value_and_grads(naive_sigmoid, inputs, torch.float64), 1e-5)


def test_positives_may_be_any_matrix():
    inputs = embeddings(20, 8)
    positives = torch.rand(20, 20) < 0.3
    assert_close(
        value_and_grads(lambda *a: sigmoid_loss(*a, positives=positives, chunk=7), inputs),
        value_and_grads(lambda *a: naive_sigmoid(*a, positives), inputs, torch.float64),
    )


def test_the_softmax_loss_is_that_of_transformers_clip():
    modeling = pytest.importorskip("transformers.models.clip.modeling_clip")
    theirs = (
        getattr(modeling, "clip_loss", None)
        or pytest.importorskip("transformers.loss.loss_utils").__dict__.get("ForImageTextContrastiveLoss")
        or modeling.image_text_contrastive_loss
    )
    inputs = embeddings(50, 16)
    assert_close(
        value_and_grads(lambda *a: softmax_loss(*a, chunk=16), inputs[:3]),
        value_and_grads(lambda x, y, t: theirs(t.exp() * y @ x.T), inputs[:3]),
    )


def test_the_sigmoid_loss_is_that_of_transformers_siglip():
    transformers = pytest.importorskip("transformers")
    tower = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.SiglipConfig(
        text_config={**tower, "vocab_size": 30, "max_position_embeddings": 8, "projection_size": 16},
        vision_config={**tower, "image_size": 16, "patch_size": 8},
    )
    model = transformers.SiglipModel(config).eval()
    with torch.no_grad():
        model.logit_scale.fill_(math.log(10.0))
        model.logit_bias.fill_(-4.0)
    output = model(torch.randint(30, (9, 8)), torch.randn(9, 3, 16, 16), return_loss=True)
    ours = sigmoid_loss(output.image_embeds, output.text_embeds, model.logit_scale[0], model.logit_bias[0], chunk=4)
    torch.testing.assert_close(ours, output.loss, rtol=1e-6, atol=0)
    parameters = list(model.parameters())
    grads = [torch.autograd.grad(loss, parameters, retain_graph=True) for loss in (ours, output.loss)]
    flat = [torch.cat([g.flatten() for g in gradient]) for gradient in grads]
    assert (flat[0] - flat[1]).norm() / flat[1].norm() < 1e-5


def test_the_first_sigmoid_loss_is_about_minus_bias_and_the_first_softmax_loss_about_log_n():
    x, y, t, _ = embeddings(1000, 512, scale=1.0)
    assert sigmoid_loss(x, y, t, torch.tensor(-10.0)).item() == pytest.approx(10, rel=0.02)
    assert softmax_loss(x, y, t).item() == pytest.approx(math.log(1000), rel=0.02)


def test_the_order_of_the_batch_does_not_matter():
    x, y, t, b = embeddings(40, 8)
    groups = torch.randint(9, (40,))
    order = torch.randperm(40)
    for loss, scalars in ((sigmoid_loss, (t, b)), (softmax_loss, (t,))):
        torch.testing.assert_close(
            loss(x, y, *scalars, groups=groups, chunk=13),
            loss(x[order], y[order], *scalars, groups=groups[order], chunk=13),
        )


@pytest.mark.parametrize("locked", [0, 1])
def test_a_locked_tower_gets_no_gradient_and_the_others_are_unchanged(locked):
    inputs = embeddings(12, 8)
    full = value_and_grads(lambda *a: softmax_loss(*a, chunk=5), inputs[:3])[1:]
    leaves = [value.clone().requires_grad_(index != locked) for index, value in enumerate(inputs[:3])]
    softmax_loss(*leaves, chunk=5).backward()
    assert leaves[locked].grad is None
    for index in {0, 1, 2} - {locked}:
        torch.testing.assert_close(leaves[index].grad, full[index])


def test_only_the_scalars_may_need_gradients_and_no_grad_needs_none():
    x, y, t, b = embeddings(12, 8)
    t.requires_grad_()
    (grad,) = torch.autograd.grad(sigmoid_loss(x, y, t, b, chunk=5), t)
    (reference,) = torch.autograd.grad(naive_sigmoid(x, y, t, b), t)
    torch.testing.assert_close(grad, reference)
    with torch.no_grad():
        assert not sigmoid_loss(x, y, t, b).requires_grad


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_inputs_are_summed_in_float32_and_get_their_own_kind_of_gradient(dtype):
    x, y, t, b = embeddings(64, 32)
    low = [x.to(dtype), y.to(dtype)]
    leaves = [value.clone().requires_grad_() for value in low]
    with torch.autocast("cpu", torch.bfloat16):
        loss = sigmoid_loss(*leaves, t, b)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss.double(), naive_sigmoid(*(v.double() for v in (*low, t, b))), rtol=1e-6, atol=0)
    loss.backward()
    assert leaves[0].grad is not None
    assert leaves[0].grad.dtype == dtype


def test_a_loss_scale_multiplies_the_gradients_and_the_graph_may_be_kept():
    inputs = [value.requires_grad_() for value in embeddings(12, 8)]
    loss = sigmoid_loss(*inputs)
    once = torch.autograd.grad(loss, inputs, retain_graph=True)
    thrice = torch.autograd.grad(3 * loss, inputs, retain_graph=True)
    for a, b in zip(once, thrice, strict=True):
        torch.testing.assert_close(3 * a, b)
    loss.backward(retain_graph=True)
    loss.backward()
    for a, leaf in zip(once, inputs, strict=True):
        torch.testing.assert_close(leaf.grad, 2 * a)


@pytest.mark.parametrize("name", ["sigmoid", "softmax"])
def test_what_is_kept_for_the_backward_pass_is_no_larger_than_the_embeddings(name):
    inputs = [value.requires_grad_() for value in embeddings(200, 8)]
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor.numel()) or tensor, lambda x: x):
        sigmoid_loss(*inputs, chunk=50) if name == "sigmoid" else softmax_loss(*inputs[:3], chunk=50)
    assert sum(kept) <= 2 * 200 * 8 + 2


def test_gradients_of_gradients_are_refused():
    inputs = [value.requires_grad_() for value in embeddings(6, 8)]
    with pytest.raises(RuntimeError, match="cannot be differentiated twice"):
        torch.autograd.grad(softmax_loss(*inputs[:3]), inputs[0], create_graph=True)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"chunk": 0}, "chunk must be at least 1, not 0"),
        ({"groups": torch.zeros(3, dtype=torch.int64)}, r"groups must be 4 integers, not \[3\]"),
        ({"groups": torch.zeros(4)}, "of torch.float32"),
        ({"positives": torch.ones(2, 4, dtype=torch.bool)}, r"positives must be \[4, 4\], not \[2, 4\]"),
        ({"positives": torch.eye(4) > 0, "groups": torch.arange(4)}, "positives or groups, not both"),
    ],
)
def test_arguments_that_do_not_fit_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        sigmoid_loss(*embeddings(4, 8), **arguments)


def test_unequal_batches_are_named():
    x, y, t, _ = embeddings(4, 8)
    with pytest.raises(ValueError, match=r"one shape \[batch ≥ 1, dim\], not \[4, 8\] and \[3, 8\]"):
        softmax_loss(x, y[:3], t)
