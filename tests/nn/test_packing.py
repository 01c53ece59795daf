"""Packing sequences into rows."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from odonata.nn.packing import first_fit, pack
from odonata.nn.transformer import Transformer


@given(st.lists(st.integers(1, 20), min_size=1, max_size=20), st.integers(20, 50))
def test_every_sequence_has_one_row_and_no_row_overflows(lengths, row_length):
    rows = first_fit(lengths, row_length)
    assert sorted(i for row in rows for i in row) == list(range(len(lengths)))
    assert max(sum(lengths[i] for i in row) for row in rows) <= row_length
    assert len(rows) == 1 or 2 * sum(lengths) > row_length * (len(rows) - 1)


def test_packed_sequences_do_not_see_each_other():
    blocks = Transformer(16, 2, 2).eval()
    sequences = [torch.randn(n, 16) for n in (3, 7, 2, 5)]
    packed = pack(sequences, 9)
    assert packed.tokens.shape == (2, 9, 16)
    for one, found in zip(sequences, packed.unpack(blocks(packed.tokens, mask=packed.mask)), strict=True):
        torch.testing.assert_close(found, blocks(one[None])[0], rtol=1e-5, atol=1e-5)


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="7 tokens does not fit a row of 5"):
        pack([torch.zeros(7, 2)], 5)
    with pytest.raises(ValueError, match="nothing to pack"):
        pack([])
