"""Countdown: exact fractions, an oracle that tries everything, and three searches with the same budget."""

import json
import random
from fractions import Fraction

import pytest

from odonata.errors import DataError, RecipeError
from odonata.posttrain.search.best_first import best_first, random_search
from odonata.posttrain.search.countdown_problem import CountdownProblem, Joining, solve
from odonata.posttrain.search.evaluations import Rollouts
from odonata.posttrain.search.games import ConnectGame
from odonata.posttrain.search.mcts import MCTS, ConstantC, MCTSConfig
from odonata.posttrain.search.tree import best_end


def worth(expression):
    """The exact value of an expression of numbers, in Python's own arithmetic on fractions."""
    tokens = expression.replace("(", " ( ").replace(")", " ) ").split()
    return eval(
        " ".join(f"Fraction({token})" if token.isdigit() else token for token in tokens), {"Fraction": Fraction}
    )


def numbers_in(expression):
    return sorted(int(token) for token in expression.replace("(", " ").replace(")", " ").split() if token.isdigit())


def test_fractions_are_exact():
    problem = CountdownProblem(24)
    found = solve(problem, problem.start([8, 3, 8, 3]))
    assert worth(found) == 24 and numbers_in(found) == [3, 3, 8, 8]
    assert solve(CountdownProblem(24, operations="+-*"), problem.start([3, 3, 8, 8])) is None


def test_actions_of_two_and_of_equal_numbers():
    problem = CountdownProblem(1)
    names = [str(action) for action, _ in problem.actions(problem.start([2, 6]))]
    assert names == ["2 + 6", "2 - 6", "6 - 2", "2 * 6", "2 / 6", "6 / 2"]
    assert len(problem.actions(problem.start([1, 2, 3, 4]))) == 36
    assert [str(action) for action, _ in problem.actions(problem.start([5, 5]))] == ["5 + 5", "5 - 5", "5 * 5", "5 / 5"]
    assert "4 / 0" not in [str(a) for a, _ in problem.actions(((Fraction(0), "(1 - 1)"), (Fraction(4), "4")))]


def test_the_oracle_solves_real_tasks_and_only_what_can_be_solved(shared_data):
    lines = (shared_data / "reasoning/countdown/test.jsonl").read_text().splitlines()[:60]
    for line in lines:
        task = json.loads(line)
        problem = CountdownProblem(task["target"])
        found = solve(problem, problem.start(task["nums"]))
        assert worth(found) == task["target"] and numbers_in(found) == sorted(task["nums"])
        assert worth(task["solution"]) == task["target"]
    impossible = CountdownProblem(1000)
    assert solve(impossible, impossible.start([1, 2, 3])) is None


def test_what_an_end_is_worth():
    exact, near, early = CountdownProblem(10), CountdownProblem(10, score="near"), CountdownProblem(10, use_all=False)
    hit, miss, open_state = ((Fraction(10), "x"),), ((Fraction(13), "x"),), exact.start([10, 3])
    assert [p.terminal_value(hit) for p in (exact, near, early)] == [1, 1, 1]
    assert [p.terminal_value(miss) for p in (exact, near, early)] == [0, 0.25, 0]
    assert [p.terminal_value(open_state) for p in (exact, near, early)] == [None, None, 1]
    assert exact.is_solved(hit) and not exact.is_solved(miss) and not exact.is_solved(open_state)


def test_a_step_writes_down_how_it_came_about():
    problem = CountdownProblem(5)
    state = problem.step(problem.start([2, 7, 4]), Joining(Fraction(7), "-", Fraction(4)))
    assert state == ((Fraction(2), "2"), (Fraction(3), "(7 - 4)"))
    assert problem.step(state, Joining(Fraction(2), "+", Fraction(3))) == ((Fraction(5), "(2 + (7 - 4))"),)


@pytest.fixture(scope="module")
def tasks():
    """Tasks of three and four numbers that can be solved."""
    generator, found = random.Random(3), []
    while len(found) < 24:
        numbers = [generator.randint(1, 12) for _ in range(3 + len(found) % 2)]
        target = generator.randint(10, 60)
        if solve(CountdownProblem(target), CountdownProblem(target).start(numbers)):
            found.append((target, numbers))
    return found


def solved_by_trees(tasks, budget, seed, **options):
    count = 0
    for target, numbers in tasks:
        problem = CountdownProblem(target, score="near")
        plays = Rollouts(problem, seed=seed)
        tree = MCTS(problem, plays, problem.start(numbers), MCTSConfig(seed=seed, **options))
        tree.run(budget)
        in_tree = best_end(tree.root)
        count += max(plays.best[0], in_tree.value if in_tree else 0.0) == 1
    return count


def test_searches_find_what_the_oracle_knows(tasks):
    """With a budget far above the number of ends all three find a solution."""
    for target, numbers in tasks:
        problem = CountdownProblem(target, score="near")
        found = best_first(problem, problem.start(numbers), problem.nearness, 20_000)
        assert found.value == 1 and worth(found.state[0][1]) == target
        by_chance = random_search(problem, problem.start(numbers), 20_000, seed=0)
        assert by_chance.value == 1 and worth(by_chance.state[0][1]) == target
    small = [task for task in tasks if len(task[1]) == 3]  # 108 ends at most
    assert solved_by_trees(small, 2000, 0, exploration=ConstantC(20.0)) == len(small)


def test_a_sharp_tree_holds_on_to_near_misses(tasks):
    """What is near is not on the way: with little exploration the search stays where it came close."""
    wide, sharp = (solved_by_trees(tasks, 300, 0, exploration=ConstantC(c)) for c in (5.0, 0.1))
    assert wide > sharp


def test_random_search_counts_its_plays(tasks):
    target, numbers = tasks[0]
    problem = CountdownProblem(target)
    few = random_search(problem, problem.start(numbers), 5, seed=0, good=2.0)
    assert few.evaluations == 5
    many = random_search(problem, problem.start(numbers), 20_000, seed=0)
    assert many.value == 1 and many.evaluations < 20_000 and problem.is_solved(many.state)
    hopeless = CountdownProblem(1000)
    assert random_search(hopeless, hopeless.start([1, 2]), 50, seed=0).value == 0


def test_best_first_keeps_its_budget_and_tells_when_it_saw_no_end():
    problem = CountdownProblem(1000)
    found = best_first(problem, problem.start([1, 2, 3, 4]), problem.nearness, 3)
    assert (found.evaluations, found.value, found.state) == (3, float("-inf"), None)
    everything = best_first(problem, problem.start([1, 2]), problem.nearness, 100, seed=1)
    assert everything.evaluations == 7 and everything.value == 0  # itself and six ends


def test_bad_input():
    with pytest.raises(RecipeError, match=r"some of \+ - \* /, not '\^'"):
        CountdownProblem(3, operations="^")
    with pytest.raises(RecipeError, match="score must be exact or near"):
        CountdownProblem(3, score="close")
    with pytest.raises(RecipeError, match="one number or more"):
        CountdownProblem(3).start([])
    game = ConnectGame(3, 3, 3)
    with pytest.raises(RecipeError, match="for one agent; the problem has 2 players"):
        random_search(game, game.start, 5, seed=0)
    with pytest.raises(RecipeError, match="budget must be 1 or more, not 0"):
        best_first(CountdownProblem(3), CountdownProblem(3).start([1]), lambda _: 0.0, 0)
    stuck = CountdownProblem(3, operations="/")
    zeros = ((Fraction(0), "0"), (Fraction(0), "(1 - 1)"))
    with pytest.raises(DataError, match="is no end, but has no action"):
        best_first(stuck, zeros, lambda _: 0.0, 5)
