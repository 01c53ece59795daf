"""Rows in parts of like lengths: as many as asked for at least, and cut where padding and calls together cost least."""

from itertools import combinations, pairwise

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from odonata.language import sequences
from odonata.language.sequences import like_lengths


def cost(sizes: list[list[int]], call: int) -> int:
    """Tokens with padding, and what the calls cost."""
    return sum(len(part) * max(part) + call for part in sizes)


@settings(deadline=None, max_examples=60)
@given(lengths=st.lists(st.integers(1, 900), min_size=1, max_size=8), parts=st.integers(1, 10))
def test_every_row_is_in_one_part_and_no_other_cuts_cost_less(lengths, parts):
    found = like_lengths(torch.tensor(lengths), parts)
    assert sorted(row for part in found for row in part.tolist()) == list(range(len(lengths)))
    sizes = [[lengths[row] for row in part.tolist()] for part in found]
    assert [length for part in sizes for length in part] == sorted(lengths)
    assert len(found) >= min(parts, len(torch.chunk(torch.tensor(lengths), parts)))
    if parts == 1:
        ordered, places, call = sorted(lengths), range(1, len(lengths)), sequences._CALL["cpu"]
        ways = [cuts for count in range(len(lengths)) for cuts in combinations(places, count)]
        bounds = [[0, *cuts, len(lengths)] for cuts in ways]
        least = min(cost([ordered[a:b] for a, b in pairwise(cuts)], call) for cuts in bounds)
        assert cost(sizes, call) == least


def test_rows_of_one_length_stay_together_and_a_long_one_stands_alone():
    assert [len(part) for part in like_lengths(torch.full((64,), 30))] == [64]
    assert [part.tolist() for part in like_lengths(torch.tensor([10, 2000, 12, 11, 9] + [8] * 20))][-1] == [1]
    assert [len(part) for part in like_lengths(torch.full((64,), 2), 4)] == [16] * 4
