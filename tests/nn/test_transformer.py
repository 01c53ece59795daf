import pytest
import torch
from torch import nn

from odonata.nn.transformer import DropPath, Transformer


@pytest.mark.parametrize("norm", ["pre", "post"])
def test_block_equals_torch_encoder_layer(norm):
    ours = Transformer(16, 1, 2, mlp_width=40, norm=norm)
    theirs = nn.TransformerEncoderLayer(
        16, 2, 40, dropout=0, activation="gelu", norm_first=norm == "pre", batch_first=True
    )
    block, state = ours.layers[0], theirs.state_dict()
    attention = block.attn
    state["self_attn.in_proj_weight"] = torch.cat([attention.q.weight, attention.k.weight, attention.v.weight])
    state["self_attn.in_proj_bias"] = torch.cat([attention.q.bias, attention.k.bias, attention.v.bias])
    pairs = {"self_attn.out_proj": attention.proj, "linear1": block.mlp.fc1, "linear2": block.mlp.fc2}
    for name, part in (pairs | {"norm1": block.norm1, "norm2": block.norm2}).items():
        state |= {f"{name}.weight": part.weight, f"{name}.bias": part.bias}
    theirs.load_state_dict(state)
    x = torch.randn(2, 5, 16)
    torch.testing.assert_close(ours(x), theirs(x))


def test_checkpointing_changes_no_gradient():
    x, grads = torch.randn(2, 5, 16), []
    for checkpointing in (False, True):
        torch.manual_seed(0)
        model = Transformer(16, 2, 2, checkpointing=checkpointing).train()
        model(x).square().sum().backward()
        grads.append([p.grad for p in model.parameters()])
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


def test_features_are_the_outputs_of_the_named_blocks():
    model, x = Transformer(16, 3, 2), torch.randn(2, 5, 16)
    last, first = model.features(x, [-1, 0])
    torch.testing.assert_close(last, model(x))
    torch.testing.assert_close(first, model.layers[0](x))
    with pytest.raises(ValueError, match=r"layers \[3\] do not exist: there are 3"):
        model.features(x, [3])


def test_drop_path_drops_whole_samples_and_keeps_the_mean():
    x = torch.ones(20000, 3)
    dropped = DropPath(0.25).train()(x)
    assert dropped.unique().tolist() == [0, pytest.approx(4 / 3)]
    assert (dropped == dropped[:, :1]).all()
    assert dropped.mean().item() == pytest.approx(1, abs=0.02)
    assert DropPath(0.25).eval()(x) is x
