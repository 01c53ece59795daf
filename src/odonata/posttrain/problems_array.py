"""The catalogue of array problems: statements, brute-force references, and how inputs are drawn.

Each draws small numbers, so that ties, zeros and duplicates are frequent, and lengths up to 24, so that brute force
stays fast and a wrong idea rarely survives eighteen cases.
"""

from __future__ import annotations

from itertools import combinations, permutations
from math import prod
from random import Random
from typing import Any

from odonata.posttrain.problems import Problem


def most_water(heights: list[int]) -> int:
    """Over every pair of lines."""
    return max(((j - i) * min(heights[i], heights[j]) for i, j in _pairs(heights)), default=0)


def two_sum(numbers: list[int], target: int) -> list[int]:
    """The first pair in order of positions."""
    return next(([i, j] for i, j in _pairs(numbers) if numbers[i] + numbers[j] == target), [])


def largest_slice_sum(numbers: list[int]) -> int:
    """Over every slice that is not empty."""
    return max(sum(numbers[i:j]) for i, j in _slices(numbers))


def best_trade(prices: list[int]) -> int:
    """Over every day of buying and later day of selling; 0 if none gains."""
    return max([0, *(prices[j] - prices[i] for i, j in _pairs(prices))])


def trapped_rain(heights: list[int]) -> int:
    """Each cell up to the lower of the highest walls on both sides."""
    return sum(min(max(heights[: i + 1]), max(heights[i:])) - height for i, height in enumerate(heights))


def product_except_self(numbers: list[int]) -> list[int]:
    """The product of the others, for each."""
    return [prod(numbers[:i] + numbers[i + 1 :]) for i in range(len(numbers))]


def longest_rise(numbers: list[int]) -> int:
    """The length of the longest strictly rising subsequence, over every start."""
    best = [1] * len(numbers)
    for i in range(len(numbers)):
        best[i] = 1 + max((best[j] for j in range(i) if numbers[j] < numbers[i]), default=0)
    return max(best, default=0)


def missing_number(numbers: list[int]) -> int:
    """The first of 0 to n that is not there."""
    return next(n for n in range(len(numbers) + 1) if n not in numbers)


def majority(numbers: list[int]) -> int:
    """The one that stands in more than half the places."""
    return next(n for n in numbers if 2 * numbers.count(n) > len(numbers))


def slices_with_sum(numbers: list[int], target: int) -> int:
    """Over every slice that is not empty."""
    return sum(sum(numbers[i:j]) == target for i, j in _slices(numbers))


def merged_intervals(intervals: list[list[int]]) -> list[list[int]]:
    """Merge any two that touch, until none do."""
    rest = [list(interval) for interval in intervals]
    touching = _touching(rest)
    while touching:
        a, b = touching
        rest = [x for x in rest if x is not a and x is not b] + [[min(a[0], b[0]), max(a[1], b[1])]]
        touching = _touching(rest)
    return sorted(rest)


def next_permutation(numbers: list[int]) -> list[int]:
    """The smallest of all orders that are larger; the smallest of all after the last."""
    orders = set(permutations(numbers))
    return list(min((order for order in orders if order > tuple(numbers)), default=min(orders)))


def zero_triples(numbers: list[int]) -> list[list[int]]:
    """Over every three places; each triple rising and once."""
    found = {tuple(sorted(triple)) for triple in combinations(numbers, 3) if sum(triple) == 0}
    return [list(triple) for triple in sorted(found)]


def can_reach_end(jumps: list[int]) -> bool:
    """Spread from the first place until nothing is new."""
    reached = {0}
    while True:
        more = {j for i in reached for j in range(i, min(i + jumps[i], len(jumps) - 1) + 1)} | reached
        if more == reached:
            return len(jumps) - 1 in reached
        reached = more


def moved_zeros(numbers: list[int]) -> list[int]:
    """The others in their order, then the zeros."""
    return [n for n in numbers if n != 0] + [n for n in numbers if n == 0]


def _pairs(numbers: list[Any]) -> list[tuple[int, int]]:
    return list(combinations(range(len(numbers)), 2))


def _slices(numbers: list[Any]) -> list[tuple[int, int]]:
    return list(combinations(range(len(numbers) + 1), 2))


def _touching(intervals: list[list[int]]) -> tuple[list[int], list[int]] | None:
    pairs = combinations(intervals, 2)
    return next(((a, b) for a, b in pairs if a[0] <= b[1] and b[0] <= a[1]), None)


def _ints(rng: Random, low: int, high: int, shortest: int = 1, longest: int = 24) -> list[int]:
    return [rng.randint(low, high) for _ in range(rng.randint(shortest, longest))]


def _with_majority(rng: Random) -> tuple[list[int]]:
    n, most = rng.randint(1, 12), rng.randint(0, 9)
    numbers = [most] * n + [rng.randint(0, 9) for _ in range(rng.randint(0, n - 1))]
    rng.shuffle(numbers)
    return (numbers,)


def _with_gap(rng: Random) -> tuple[list[int]]:
    n = rng.randint(1, 24)
    numbers = rng.sample(range(n + 1), n)
    return (numbers,)


def _with_pair(rng: Random) -> tuple[list[int], int]:
    while True:
        numbers = _ints(rng, -20, 40, 2, 16)
        i, j = rng.sample(range(len(numbers)), 2)
        target = numbers[i] + numbers[j]
        if sum(numbers[a] + numbers[b] == target for a, b in _pairs(numbers)) == 1:
            return numbers, target


def _some_intervals(rng: Random) -> tuple[list[list[int]]]:
    starts = [rng.randint(0, 40) for _ in range(rng.randint(1, 10))]
    return ([[start, start + rng.randint(0, 8)] for start in starts],)


PROBLEMS = (
    Problem(
        "container-with-most-water",
        "max_area",
        "Vertical lines of the given heights stand one unit apart. Choose two that, with the ground between them, hold "
        "the most water, and return how much: their distance times the lower height.",
        ([1, 8, 6, 2, 5, 4, 8, 3, 7],),
        most_water,
        lambda rng: (_ints(rng, 0, 49, 2),),
        (([1, 1],), ([0, 5, 0],), ([4, 3, 2, 1, 4],), ([1, 2, 1],)),
    ),
    Problem(
        "two-sum",
        "two_sum",
        "Exactly one pair of places holds numbers that add up to the target. Return the two places, the smaller first.",
        ([2, 7, 11, 15], 9),
        two_sum,
        _with_pair,
        (([3, 3], 6), ([3, 2, 4], 6), ([-1, -2, -3, -4], -7)),
    ),
    Problem(
        "maximum-subarray",
        "max_subarray",
        "Return the largest sum of consecutive numbers; at least one must be taken.",
        ([-2, 1, -3, 4, -1, 2, 1, -5, 4],),
        largest_slice_sum,
        lambda rng: (_ints(rng, -9, 9),),
        (([-3],), ([-2, -1, -4],), ([5, 4, -1, 7, 8],)),
    ),
    Problem(
        "best-time-to-buy-and-sell",
        "max_profit",
        "Given the price of each day, buy once and sell on a later day. Return the largest profit, or 0 if there is "
        "none.",
        ([7, 1, 5, 3, 6, 4],),
        best_trade,
        lambda rng: (_ints(rng, 0, 30),),
        (([7, 6, 4, 3, 1],), ([2],), ([3, 8, 1, 4],)),
    ),
    Problem(
        "trapping-rain-water",
        "trap",
        "Bars of the given heights stand side by side. Return how many units of rain they hold between them.",
        ([0, 1, 0, 2, 1, 0, 1, 3, 2, 1, 2, 1],),
        trapped_rain,
        lambda rng: (_ints(rng, 0, 9),),
        (([5],), ([3, 2, 1],), ([4, 2, 0, 3, 2, 5],)),
    ),
    Problem(
        "product-except-self",
        "product_except_self",
        "Return, for each place, the product of all other numbers.",
        ([1, 2, 3, 4],),
        product_except_self,
        lambda rng: (_ints(rng, -4, 4, 2, 10),),
        (([0, 0],), ([-1, 1, 0, -3, 3],), ([5, 2],)),
    ),
    Problem(
        "longest-increasing-subsequence",
        "length_of_lis",
        "Return the length of the longest strictly increasing subsequence.",
        ([10, 9, 2, 5, 3, 7, 101, 18],),
        longest_rise,
        lambda rng: (_ints(rng, 0, 15),),
        (([7, 7, 7],), ([4],), ([0, 1, 0, 3, 2, 3],)),
    ),
    Problem(
        "missing-number",
        "missing_number",
        "The array holds n different numbers of 0, 1, …, n. Return the one that is missing.",
        ([3, 0, 1],),
        missing_number,
        _with_gap,
        (([0],), ([1],), ([0, 1, 2],)),
    ),
    Problem(
        "majority-element",
        "majority_element",
        "One number stands in more than half of the places. Return it.",
        ([2, 2, 1, 1, 1, 2, 2],),
        majority,
        _with_majority,
        (([4],), ([3, 2, 3],), ([1, 2, 2],)),
    ),
    Problem(
        "subarray-sum",
        "subarray_sum",
        "Return how many runs of consecutive numbers have the given sum; a run has at least one number.",
        ([1, 1, 1], 2),
        slices_with_sum,
        lambda rng: (_ints(rng, -3, 4), rng.randint(-3, 6)),
        (([0, 0, 0], 0), ([1, -1, 1], 1), ([5], 2)),
    ),
    Problem(
        "merge-intervals",
        "merge",
        "Merge all intervals [begin, end] that overlap or touch at a point, and return them in rising order.",
        ([[1, 3], [2, 6], [8, 10], [15, 18]],),
        merged_intervals,
        _some_intervals,
        (([[1, 4], [4, 5]],), ([[1, 9], [2, 3]],), ([[5, 6], [1, 2]],)),
    ),
    Problem(
        "next-permutation",
        "next_permutation",
        "Return the next order of the numbers in lexicographic order; after the last comes the first.",
        ([1, 2, 3],),
        next_permutation,
        lambda rng: (_ints(rng, 0, 4, 1, 7),),
        (([3, 2, 1],), ([1, 1, 5],), ([1, 3, 2],)),
    ),
    Problem(
        "three-sum",
        "three_sum",
        "Return all triples of numbers from three different places that add up to 0: each triple in rising order, none "
        "twice, and the triples in rising order.",
        ([-1, 0, 1, 2, -1, -4],),
        zero_triples,
        lambda rng: (_ints(rng, -6, 6, 3, 14),),
        (([0, 0, 0, 0],), ([0, 1, 1],)),
    ),
    Problem(
        "jump-game",
        "can_jump",
        "You stand on the first place; each number says how far you may jump forward from it at most. Return whether "
        "the last place can be reached.",
        ([2, 3, 1, 1, 4],),
        can_reach_end,
        lambda rng: (_ints(rng, 0, 3, 1, 10),),
        (([0],), ([3, 2, 1, 0, 4],), ([0, 1],)),
    ),
    Problem(
        "move-zeroes",
        "move_zeroes",
        "Return the numbers with all zeros moved to the end and the others in their order.",
        ([0, 1, 0, 3, 12],),
        moved_zeros,
        lambda rng: (_ints(rng, -2, 3),),
        (([0],), ([0, 0, 1],)),
    ),
)
"""All problems; the order is that of the documents."""
