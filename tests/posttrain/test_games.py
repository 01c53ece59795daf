"""The small games, and their perfect players, against what is known of them."""

import functools
import itertools
import operator
import random

import pytest

from odonata.errors import DataError, RecipeError
from odonata.posttrain.search.countdown_problem import CountdownProblem
from odonata.posttrain.search.games import ConnectGame, Minimax, Nim, play_game

GAME = ConnectGame(3, 3, 3)


def test_tic_tac_toe_is_a_draw_of_5478_positions():
    perfect = Minimax(GAME)
    assert perfect.value(GAME.start) == 0
    assert len(perfect._values) == 5478  # all that legal play can reach
    assert perfect.best_actions(GAME.start) == list(range(9))


def test_perfect_players_draw_and_never_lose_to_chance():
    perfect, generator = Minimax(GAME), random.Random(0)
    best = lambda state: generator.choice(perfect.best_actions(state))  # noqa: E731
    chance = lambda state: generator.choice(GAME.actions(state))[0]  # noqa: E731
    assert {play_game(GAME, GAME.start, best, best) for _ in range(20)} == {0}
    results = [play_game(GAME, GAME.start, best, chance) for _ in range(40)]
    results += [-play_game(GAME, GAME.start, chance, best) for _ in range(40)]
    assert min(results) == 0 and results.count(1) > 40


@pytest.mark.parametrize("heaps", itertools.product(range(4), repeat=3))
def test_nim_by_minimax_is_nim_by_xor(heaps):
    perfect, xor = Minimax(Nim()), functools.reduce(operator.xor, heaps)
    assert perfect.value(heaps) == (1 if xor else -1)
    if xor:
        for heap, taken in perfect.best_actions(heaps):
            after = [size - taken * (n == heap) for n, size in enumerate(heaps)]
            assert functools.reduce(operator.xor, after) == 0


def test_stones_fall():
    game = ConnectGame(3, 4, 3, gravity=True)
    state = game.start
    for column in (1, 1, 1, 0):
        state = game.step(state, column)
    assert game.show(state) == ".X..\n.O..\nOX.."
    assert [column for column, _ in game.actions(state)] == [0, 2, 3]
    assert game.parse(game.show(state)) == state


def test_connect_three_in_four_columns_is_won_by_who_begins():
    game = ConnectGame(4, 4, 3, gravity=True)
    assert Minimax(game).value(game.start) == 1
    narrow = ConnectGame(2, 2, 2, gravity=True)
    assert Minimax(narrow).value(narrow.start) == 1


def test_rows_in_all_directions():
    assert len(GAME.lines) == 8
    assert len(ConnectGame(6, 7, 4, gravity=True).lines) == 69  # as of Connect Four
    for board in ("XXX OO. ...", "X.. XOO X..", "X.. OXO ..X", "OOX .X. X.."):
        assert GAME.terminal_value(GAME.parse(board)) == -1
    assert GAME.terminal_value(GAME.parse("XOX XOO OXX")) == 0
    assert GAME.terminal_value(GAME.parse("XX. OO. ...")) is None


def test_bad_boards():
    with pytest.raises(RecipeError, match="no row of 4 fits on a board of 3 × 3"):
        ConnectGame(3, 3, 4)
    with pytest.raises(DataError, match="3 × 3 fields"):
        GAME.parse("XX. OO.")
    with pytest.raises(DataError, match=r"has \+2"):
        GAME.parse("XX. ... ...")
    with pytest.raises(RecipeError, match="minimax is for 2 players, not 1"):
        Minimax(CountdownProblem(1))
