import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from odonata.errors import WeightsError
from odonata.weights.maps import (
    KeyMap,
    check_fit,
    depth_of,
    layers,
    packed_attention,
    pair,
    permute,
    rename,
    reshape,
    split,
    stacked_layers,
    transpose,
)


@given(depth=st.integers(1, 4), width=st.integers(1, 5), seed=st.integers(0, 99))
def test_every_round_trip_is_bit_equal(depth, width, seed):
    generator = torch.Generator().manual_seed(seed)

    def noise(*shape):
        return torch.randn(shape, generator=generator)

    block = [*packed_attention("b.{i}.attn", "ours.{i}.attn"), *pair("b.{i}.ln", "ours.{i}.norm")]
    stack = stacked_layers([transpose("s/kernel", "stack.{i}.weight")], depth)
    rules = [*layers(block, depth), *stack, permute("conv", "c", (3, 2, 0, 1)), reshape("t", "scale", (1,), ())]
    theirs = {"s/kernel": noise(depth, width, 3), "conv": noise(2, 3, width, 4), "t": noise(1)}
    for i in range(depth):
        theirs |= {f"b.{i}.attn.in_proj_weight": noise(3 * width, width), f"b.{i}.attn.in_proj_bias": noise(3 * width)}
        for name, shape in (("attn.out_proj.weight", (width, width)), ("ln.weight", (width,))):
            theirs |= {f"b.{i}.{name}": noise(*shape), f"b.{i}.{name.replace('weight', 'bias')}": noise(width)}
    ours, unused = KeyMap(rules).to_ours(theirs)
    assert not unused
    torch.testing.assert_close(ours["ours.0.attn.k.weight"], theirs["b.0.attn.in_proj_weight"][width : 2 * width])
    torch.testing.assert_close(ours[f"stack.{depth - 1}.weight"], theirs["s/kernel"][-1].T)
    back = KeyMap(rules).from_ours(ours)
    assert back.keys() == theirs.keys()
    assert all(torch.equal(back[name], theirs[name]) for name in theirs)


def test_missing_and_unknown_entries_are_named():
    key_map = KeyMap([rename("a", "b")], ignored=("*.position_ids",))
    x = torch.zeros(2, 3)
    assert key_map.to_ours({"a": x, "m.position_ids": x}) == ({"b": x}, ["m.position_ids"])
    with pytest.raises(WeightsError, match=r"file.bin: 1 tensors are missing: a; it holds 1 others: c \[2, 3\]"):
        key_map.to_ours({"c": x}, "file.bin")
    with pytest.raises(WeightsError, match=r"1 tensors have no place in this architecture: c \[2, 3\].*strict=False"):
        key_map.to_ours({"a": x, "c": x})
    assert key_map.to_ours({"a": x, "c": x}, strict=False)[1] == ["c"]
    with pytest.raises(WeightsError, match="1 tensors missing: b; 1 tensors without a place there: head"):
        key_map.from_ours({"head": x})


def test_unfit_shapes_are_named():
    with pytest.raises(WeightsError, match=r"t of shape \[2\] cannot become scale"):
        KeyMap([reshape("t", "scale", (1,), ())]).to_ours({"t": torch.zeros(2)})
    with pytest.raises(WeightsError, match="does not split into 3 parts"):
        KeyMap([split("qkv", ["q", "k", "v"])]).to_ours({"qkv": torch.zeros(2)})
    with pytest.raises(WeightsError, match="stacks 3 layers, not 2"):
        KeyMap(stacked_layers([rename("s", "o.{i}")], 2)).to_ours({"s": torch.zeros(3, 1)})


def test_fit_lists_at_most_eight_differences():
    wanted = {f"w{i}": torch.zeros(2) for i in range(12)}
    state = {"w0": torch.zeros(3)}
    with pytest.raises(WeightsError, match=r"w1 is missing; .*; and 4 more"):
        check_fit(state, wanted)
    with pytest.raises(WeightsError, match=r"w0 has shape \[3\], the model wants \[2\]"):
        check_fit(state, {"w0": torch.zeros(2)})


def test_depth_counts_layers():
    assert depth_of({"a.0.x": torch.zeros(1), "a.0.y": torch.zeros(1), "a.11.x": torch.zeros(1)}, "a.") == 2
