"""The array problems: right programs pass all tests, classic mistakes fail, and statements do not show the tests."""

from itertools import accumulate

import pytest

from odonata.errors import DataError
from odonata.posttrain.problems import problem_named, problems
from odonata.posttrain.rewards import Answered
from odonata.posttrain.rewards.code import CodeReward
from odonata.posttrain.sandbox import Sandbox, agrees


def max_area(h):
    i, j, best = 0, len(h) - 1, 0
    while i < j:
        best = max(best, (j - i) * min(h[i], h[j]))
        i, j = (i + 1, j) if h[i] < h[j] else (i, j - 1)
    return best


def max_area_moves_the_taller(h):
    i, j, best = 0, len(h) - 1, 0
    while i < j:
        best = max(best, (j - i) * min(h[i], h[j]))
        i, j = (i + 1, j) if h[i] > h[j] else (i, j - 1)
    return best


def two_sum(a, t):
    seen = {}
    for i, n in enumerate(a):
        if t - n in seen:
            return [seen[t - n], i]
        seen[n] = i
    return None


def two_sum_takes_a_number_twice(a, t):
    return next([i, a.index(t - n)] for i, n in enumerate(a) if t - n in a)


def max_subarray(a):
    best = here = a[0]
    for n in a[1:]:
        here = max(n, here + n)
        best = max(best, here)
    return best


def max_subarray_may_be_empty(a):
    best = here = 0
    for n in a:
        here = max(0, here + n)
        best = max(best, here)
    return best


def max_profit(p):
    return max(price - low for price, low in zip(p, accumulate(p, min), strict=True))


def max_profit_sells_before(p):
    return max(p) - min(p)


def trap(h):
    left, right = list(accumulate(h, max)), list(accumulate(h[::-1], max))[::-1]
    return sum(min(a, b) - c for a, b, c in zip(left, right, h, strict=True))


def trap_below_the_highest(h):
    return sum(max(h) - n for n in h[1:-1])


def product_except_self(a):
    left, right = [1, *accumulate(a[:-1], int.__mul__)], [1, *accumulate(a[:0:-1], int.__mul__)][::-1]
    return [x * y for x, y in zip(left, right, strict=True)]


def product_except_self_divides(a):
    whole = 1
    for n in a:
        whole *= n
    return [whole // n if n else 0 for n in a]


def length_of_lis(a):
    from bisect import bisect_left

    tails = []
    for n in a:
        at = bisect_left(tails, n)
        tails[at : at + 1] = [n]
    return len(tails)


def length_of_lis_may_repeat(a):
    from bisect import bisect_right

    tails = []
    for n in a:
        at = bisect_right(tails, n)
        tails[at : at + 1] = [n]
    return len(tails)


def missing_number(a):
    return len(a) * (len(a) + 1) // 2 - sum(a)


def missing_number_starts_at_one(a):
    return next((n for n in range(1, len(a) + 1) if n not in a), len(a) + 1)


def majority_element(a):
    return sorted(a)[len(a) // 2]


def majority_element_takes_the_first(a):
    return a[0]


def subarray_sum(a, k):
    counts, total, found = {0: 1}, 0, 0
    for n in a:
        total += n
        found += counts.get(total - k, 0)
        counts[total] = counts.get(total, 0) + 1
    return found


def subarray_sum_slides_a_window(a, k):
    i = total = found = 0
    for j, n in enumerate(a):
        total += n
        while total > k and i < j:
            total -= a[i]
            i += 1
        found += total == k
    return found


def merge(v):
    out = []
    for begin, end in sorted(v):
        if out and begin <= out[-1][1]:
            out[-1][1] = max(out[-1][1], end)
        else:
            out.append([begin, end])
    return out


def merge_forgets_the_longer(v):
    out = []
    for begin, end in sorted(v):
        if out and begin <= out[-1][1]:
            out[-1][1] = end
        else:
            out.append([begin, end])
    return out


def next_permutation(a):
    i = len(a) - 2
    while i >= 0 and a[i] >= a[i + 1]:
        i -= 1
    if i >= 0:
        j = len(a) - 1
        while a[j] <= a[i]:
            j -= 1
        a[i], a[j] = a[j], a[i]
    return a[: i + 1] + a[i + 1 :][::-1]


def next_permutation_swaps_the_last(a):
    return [*a[:-2], *a[-2:][::-1]]


def three_sum(a):
    found = set()
    for i, x in enumerate(a):
        seen = set()
        for y in a[i + 1 :]:
            if -x - y in seen:
                found.add(tuple(sorted((x, y, -x - y))))
            seen.add(y)
    return [list(t) for t in sorted(found)]


def three_sum_repeats(a):
    n = len(a)
    return sorted(
        sorted((a[i], a[j], a[k])) for i in range(n) for j in range(i) for k in range(j) if a[i] + a[j] + a[k] == 0
    )


def can_jump(a):
    far = 0
    for i, n in enumerate(a):
        if i > far:
            return False
        far = max(far, i + n)
    return True


def can_jump_if_no_zero(a):
    return 0 not in a[:-1]


def move_zeroes(a):
    return sorted(a, key=lambda n: n == 0)


def move_zeroes_sorts(a):
    return sorted(a, key=lambda n: (n == 0, n))


def solutions():
    """The functions above by the function that each problem asks for: the right one first, then the mistakes."""
    here = {name: value for name, value in globals().items() if callable(value)}
    return {
        problem.name: [here[problem.function]]
        + [f for name, f in here.items() if name.startswith(problem.function + "_")]
        for problem in problems()
    }


def passes(function, problem, seed=0):
    verdicts = []
    for case in problem.cases(seed):
        try:
            arguments = [list(a) if isinstance(a, list) else a for a in case.arguments]
            verdicts.append(agrees(case.expected, function(*arguments)))
        except Exception:
            verdicts.append(False)
    return verdicts


def test_there_are_at_least_eleven_and_the_container_comes_first():
    names = [problem.name for problem in problems()]
    assert names[0] == "container-with-most-water"
    assert len(names) == len(set(names)) >= 11
    assert len({problem.function for problem in problems()}) == len(names)


@pytest.mark.parametrize("problem", problems(), ids=lambda problem: problem.name)
def test_the_fast_solution_passes_and_the_classic_mistake_fails(problem):
    right, *mistakes = solutions()[problem.name]
    for seed in range(5):
        assert all(passes(right, problem, seed))
    assert mistakes
    for mistake in mistakes:
        for seed in range(5):
            share = sum(passes(mistake, problem, seed)) / len(problem.cases(seed))
            assert share < 1, (mistake.__name__, seed)


def test_the_known_answers_of_the_container():
    container = problem_named("container-with-most-water")
    assert container.cases()[0].arguments == ([1, 8, 6, 2, 5, 4, 8, 3, 7],) and container.cases()[0].expected == 49
    assert [case.expected for case in container.cases()[1:5]] == [1, 0, 16, 2]


@pytest.mark.parametrize("problem", problems(), ids=lambda problem: problem.name)
def test_tests_are_hidden_drawn_from_their_seed_and_not_all_alike(problem):
    cases = problem.cases()
    shown = [case for case in cases if repr(case.arguments[0]) in problem.prompt()]
    assert len(shown) <= 2 and len(cases) >= 20
    assert "problem" in problem.row() and "tests" not in problem.row()
    assert problem.cases(7) == problem.cases(7) != cases
    constant = max(sum(agrees(a.expected, b.expected) for b in cases) for a in cases)
    assert constant <= 0.75 * len(cases)  # no constant answer comes near


def test_references_leave_their_arguments_as_they_are():
    for problem in problems():
        before = repr([case.arguments for case in problem.cases()])
        for case in problem.cases():
            problem.reference(*case.arguments)
        assert repr([case.arguments for case in problem.cases()]) == before


def test_right_programs_earn_the_reward_in_the_sandbox():
    import inspect

    reward, found = CodeReward(Sandbox(workers=2)), solutions()
    answers = []
    for problem in problems():
        for function in found[problem.name][:2]:
            source = inspect.getsource(function).replace(f"def {function.__name__}(", f"def {problem.function}(", 1)
            text = f"```python\nfrom itertools import accumulate\n{source}```"
            answers.append(Answered(problem.prompt(), text, problem.row(), True))
    assert reward(answers) == [1.0, 0.0] * len(problems())


def test_an_unknown_problem_names_the_nearest():
    with pytest.raises(DataError, match="unknown problem 'jump'; perhaps you meant jump-game"):
        problem_named("jump")
