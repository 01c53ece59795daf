"""GradCache: micro-batches give the gradients of the whole batch, with the same dropout masks."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from odonata.align.grad_cache import grad_cache_step
from odonata.align.losses import sigmoid_loss, softmax_loss


def towers(dropout: float) -> nn.ModuleDict:
    def tower(width: int) -> nn.Sequential:
        return nn.Sequential(nn.Linear(width, 32), nn.GELU(), nn.Dropout(dropout), nn.Linear(32, 8))

    model = nn.ModuleDict({"image": tower(12), "text": tower(6)})
    model.register_parameter("logit_scale", nn.Parameter(torch.tensor(2.3)))
    model.register_parameter("logit_bias", nn.Parameter(torch.tensor(-3.0)))
    return model


def encoders(model):
    def encode(tower, index):
        return lambda part: F.normalize(model[tower](part[index]), dim=-1)

    return [encode("image", 0), encode("text", 1)]


def gradients(model):
    return {name: parameter.grad for name, parameter in model.named_parameters()}


def batch(rows=30):
    return torch.randn(rows, 12), torch.randn(rows, 6)


@pytest.mark.parametrize("size", [1, 7, 30])
def test_gradients_equal_those_of_the_whole_batch(size):
    model, (x, y) = towers(0.0), batch()
    whole = copy.deepcopy(model)
    image, text = (encode((x, y)) for encode in encoders(whole))
    expected = sigmoid_loss(image, text, whole.logit_scale, whole.logit_bias)
    expected.backward()
    parts = list(zip(x.split(size), y.split(size), strict=True))
    loss = grad_cache_step(
        encoders(model), (parts, parts), lambda a, b: sigmoid_loss(a, b, model.logit_scale, model.logit_bias)
    )
    torch.testing.assert_close(loss, expected.detach())
    for name, reference in gradients(whole).items():
        assert (gradients(model)[name] - reference).norm() <= 1e-5 * reference.norm(), name


def test_dropout_falls_the_same_way_both_times():
    model, (x, y) = towers(0.5), batch()
    manual = copy.deepcopy(model)
    parts = list(zip(x.split(8), y.split(8), strict=True))
    torch.manual_seed(5)
    grad_cache_step(encoders(model), (parts, parts), lambda a, b: softmax_loss(a, b, model.logit_scale))
    after = torch.rand(1)
    torch.manual_seed(5)  # by hand: the graph of all micro-batches at once, the masks drawn in the same order
    whole = [torch.cat([encode(part) for part in parts]) for encode in encoders(manual)]
    softmax_loss(*whole, manual.logit_scale).backward()
    for name, reference in gradients(manual).items():
        if reference is not None:
            assert (gradients(model)[name] - reference).norm() <= 1e-5 * reference.norm(), name
    assert torch.equal(after, torch.rand(1)), "the second pass must not draw anew for what follows"


def test_a_locked_tower_keeps_its_parameters_out():
    model, (x, y) = towers(0.0), batch(8)
    model["image"].requires_grad_(False)
    grad_cache_step(encoders(model), [[(x, y)]] * 2, lambda a, b: softmax_loss(a, b, model.logit_scale))
    assert all(parameter.grad is None for parameter in model["image"].parameters())
    assert all(parameter.grad is not None for parameter in model["text"].parameters())


def test_an_enclosing_autocast_does_not_lose_gradients_to_its_cache():
    model, (x, y) = towers(0.0), batch(8)
    parts = list(zip(x.split(4), y.split(4), strict=True))
    with torch.autocast("cpu", torch.bfloat16):
        grad_cache_step(encoders(model), (parts, parts), lambda a, b: softmax_loss(a, b, model.logit_scale))
    assert all(parameter.grad.abs().sum() > 0 for parameter in model["image"].parameters())


def test_towers_may_be_cut_differently():
    model, (x, y) = towers(0.0), batch(9)
    whole = copy.deepcopy(model)
    softmax_loss(*(encode((x, y)) for encode in encoders(whole)), whole.logit_scale).backward()
    parts = [list(zip(x.split(size), y.split(size), strict=True)) for size in (2, 9)]
    grad_cache_step(encoders(model), parts, lambda a, b: softmax_loss(a, b, model.logit_scale))
    torch.testing.assert_close(model["image"][0].weight.grad, whole["image"][0].weight.grad)


def test_an_encoder_that_cannot_be_repeated_is_named():
    sizes = iter([4, 3])
    weight = nn.Parameter(torch.ones(4, 2))
    with pytest.raises(ValueError, match=r"micro-batch 0 gave embeddings \[4, 2\] the first time and \[3, 2\]"):
        grad_cache_step([lambda _: 2 * weight[: next(sizes)]], [[None]], lambda a: a.sum())


def test_nothing_to_embed_is_named():
    with pytest.raises(ValueError, match=r"got 1 functions and sequences of \[0\]"):
        grad_cache_step([lambda x: x], [[]], lambda a: a.sum())
