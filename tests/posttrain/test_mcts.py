"""PUCT: choices computed by hand, signs for one agent and two players, and perfect play by minimax."""

import math
import random

import pytest

from odonata.claims import posttrain_mcts
from odonata.claims.claim import Trial
from odonata.errors import DataError, OdonataError, RecipeError
from odonata.posttrain.search.evaluations import Rollouts, by_value
from odonata.posttrain.search.games import ConnectGame, Minimax, Nim
from odonata.posttrain.search.mcts import MCTS, AlphaZeroC, ConstantC, MCTSConfig, RootNoise, puct_scores
from odonata.posttrain.search.tree import Evaluation, best_end, best_line, draw_tree, nodes

GAME = ConnectGame(3, 3, 3)


class Branching:
    """States are paths of letters; priors and ends are written down."""

    def __init__(self, priors, ends, players=1):
        self.priors, self.ends, self.players = priors, ends, players

    def actions(self, state):
        return self.priors(state) if callable(self.priors) else self.priors

    def step(self, state, action):
        return state + action

    def terminal_value(self, state):
        return self.ends(state)


def hand_tree(players, **options):
    """Priors .6 and .4 at the root, .5 and .5 below; values as in the tests' arithmetic."""
    problem = Branching(lambda s: [("a", 0.6), ("b", 0.4)] if not s else [("a", 0.5), ("b", 0.5)], lambda _: None,
                        players)  # fmt: skip
    values = {"": 0.0, "a": 0.2, "b": 0.5, "aa": 0.1}
    config = MCTSConfig(exploration=ConstantC(1.0), **options)
    return MCTS(problem, by_value(lambda states: [values[state] for state in states]), "", config)


def test_a_search_can_be_asked_from_outside():
    values = {"": 0.0, "a": 0.2, "b": 0.5, "aa": 0.1}
    alone, driven = hand_tree(1), hand_tree(1)
    search = driven.searching(4)
    wanted, asked = next(search), []
    with pytest.raises(StopIteration) as end:
        while True:
            asked += wanted
            wanted = search.send([Evaluation(values[state]) for state in wanted])
    assert end.value.value == alone.run(4)
    assert asked[0] == "" and len(asked) == 4
    with pytest.raises(RecipeError, match="one simulation or more, not 0"):
        next(driven.searching(0))


def binary(depth, worth):
    return Branching([("l", 1.0), ("r", 1.0)], lambda state: worth[state] if len(state) == depth else None)


def random_ends(depth, seed):
    generator = random.Random(seed)
    return {"".join("lr"[n >> i & 1] for i in range(depth)): generator.random() for n in range(2**depth)}


# ---- the formula ---------------------------------------------------------------------------------------------------


def test_choices_of_one_agent_by_hand():
    tree = hand_tree(1)
    # 1: the root. 2: a (.6 > .4), worth .2. 3: a: .2 + .6·√2/2 = .624 > b: .4·√2 = .566, so aa, worth .1.
    # 4: a: .15 + .6·√3/3 = .496 < b: .4·√3 = .693, worth .5.
    decision = tree.run(4)
    assert decision.visits == {"a": 2, "b": 1}
    assert decision.values == pytest.approx({"a": 0.15, "b": 0.5})
    assert decision.value == pytest.approx((0 + 0.2 + 0.1 + 0.5) / 4)
    assert decision.action == "a"  # by visits, although b has the better value
    assert puct_scores(tree.root, tree.root.priors, tree.config) == pytest.approx([0.15 + 0.6 * 2 / 3, 0.5 + 0.4])


def test_choices_of_two_players_by_hand():
    tree = hand_tree(2)
    # 2: a, worth −.2 to the root. 3: a: −.2 + .6·√2/2 = .224 < b: .566, worth −.5.
    # 4: a: −.2 + .6·√3/2 = .320 > b: −.5 + .4·√3/2 = −.154; so aa, whose .1 is the root's again.
    decision = tree.run(4)
    assert decision.visits == {"a": 2, "b": 1}
    assert decision.values == pytest.approx({"a": (-0.2 + 0.1) / 2, "b": -0.5})
    assert tree.root.children[0].totals[0] == pytest.approx(-0.1)
    assert decision.value == pytest.approx((0 - 0.2 - 0.5 + 0.1) / 4)


def test_unvisited_edges_count_zero_or_their_parent():
    zero, parent = hand_tree(1), hand_tree(1, unvisited="parent")
    zero.run(2), parent.run(2)
    exploration = math.sqrt(2) * 0.4
    assert puct_scores(zero.root, zero.root.priors, zero.config)[1] == pytest.approx(exploration)
    assert puct_scores(parent.root, parent.root.priors, parent.config)[1] == pytest.approx(0.1 + exploration)


def test_alphazero_weight():
    assert AlphaZeroC()(0) == pytest.approx(1.25 + math.log(19653 / 19652))
    assert AlphaZeroC()(19652) == pytest.approx(1.25 + math.log(2 + 1 / 19652))
    tree = hand_tree(1)
    tree.run(1)
    scores = puct_scores(tree.root, tree.root.priors, MCTSConfig(exploration=AlphaZeroC()))
    assert scores == pytest.approx([0.6 * AlphaZeroC()(1), 0.4 * AlphaZeroC()(1)])


# ---- one agent, two players ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(5))
def test_one_agent_finds_the_optimum(seed):
    secret = "".join(random.Random(seed).choices("lr", k=8))
    worth = {path: (sum(map(str.__eq__, path, secret)) / 8) ** 2 for path in random_ends(8, seed)}
    problem = binary(8, worth)
    tree = MCTS(problem, Rollouts(problem, seed=seed), "", MCTSConfig(seed=seed))
    tree.run(1000)
    assert "".join(best_line(tree.root).actions) == secret


def test_the_best_end_of_the_tree_is_known_without_being_chosen():
    worth = random_ends(4, 1)
    problem = binary(4, worth)
    tree = MCTS(problem, Rollouts(problem, seed=0), "", MCTSConfig(seed=0))
    tree.run(1500)  # all 16 ends are in the tree by then
    best = best_end(tree.root)
    assert "".join(best.actions) == max(worth, key=worth.get) and best.value == max(worth.values())
    small = MCTS(problem, Rollouts(problem, seed=0), "", MCTSConfig(seed=0))
    small.run(3)
    assert best_end(small.root) is None


def test_values_of_one_agent_keep_their_sign():
    problem = binary(3, dict.fromkeys(random_ends(3, 0), -1.0))
    tree = MCTS(problem, Rollouts(problem, seed=0), "", MCTSConfig())
    assert tree.run(60).value == -1
    assert all(node.value == -1 for node in nodes(tree.root) if node.count)


@pytest.mark.parametrize(
    ("board", "move"),
    [
        ("XX. OO. ...", 2),  # wins at once
        ("X.. OO. X..", 5),  # X must stop O
        ("XO. .X. ..O", 6),  # X threatens two rows at once, or 3
        ("OO. XX. ..X", 2),  # O wins rather than stops X
    ],
)
def test_two_players_win_and_defend(board, move):
    state = GAME.parse(board)
    perfect = Minimax(GAME).best_actions(state)
    assert move in perfect
    decision = MCTS(GAME, Rollouts(GAME, seed=1), state, MCTSConfig(seed=1)).run(400)
    assert decision.action in perfect


def test_wrong_signs_miss_a_win_at_once():
    wrong = posttrain_mcts.UnsignedConnectGame(3, 3, 3)
    decision = MCTS(wrong, Rollouts(GAME, seed=1), GAME.parse("XX. OO. ..."), MCTSConfig(seed=1)).run(400)
    assert decision.action != 2 and decision.values[2] == -1


def test_as_good_as_minimax_on_tic_tac_toe():
    generator, perfect = random.Random(5), Minimax(GAME)
    for _ in range(25):
        state = GAME.start
        for _ in range(generator.randrange(6)):
            after = GAME.step(state, generator.choice(GAME.actions(state))[0])
            state = state if GAME.terminal_value(after) is not None else after
        decision = MCTS(GAME, Rollouts(GAME, seed=3), state, MCTSConfig(seed=3)).run(1500)
        assert decision.action in perfect.best_actions(state), GAME.show(state)


def test_with_exact_values_a_visit_to_each_move_is_enough():
    perfect = Minimax(Nim())
    values = by_value(lambda states: [perfect.value(state) for state in states])
    tree = MCTS(Nim(), values, (3, 4, 5), MCTSConfig(exploration=ConstantC(1.0)))
    assert tree.run(60).action == (0, 2)  # 1, 4, 5: the only move that makes the XOR 0


# ---- invariances ---------------------------------------------------------------------------------------------------


def uneven(order):
    """A problem without ties, whose actions stand in any order."""

    def priors(state):
        weights = {letter: 1 + math.sin(3 + 7 * len(state) + ord(letter)) ** 2 for letter in "abcd"}
        return [("abcd"[n], weights["abcd"[n]]) for n in order]

    return Branching(priors, lambda state: math.cos(hash_of(state)) if len(state) == 4 else None)


def hash_of(state):
    return sum((n + 2) ** 1.7 * ord(letter) for n, letter in enumerate(state))


def test_the_order_of_actions_changes_nothing_but_ties():
    decisions = []
    for order in ([0, 1, 2, 3], [3, 1, 0, 2], [2, 3, 1, 0]):
        tree = MCTS(uneven(order), by_value(lambda states: [math.cos(hash_of(s)) for s in states]), "", MCTSConfig())
        decisions.append(tree.run(300))
    assert decisions[0].visits == decisions[1].visits == decisions[2].visits
    assert decisions[0].values == decisions[1].values == decisions[2].values
    assert list(decisions[0].visits) != list(decisions[1].visits)


def test_ties_go_to_the_first_or_by_chance():
    flat = Branching([("a", 1.0), ("b", 1.0), ("c", 1.0)], lambda state: 0.0 if state else None)
    asked = by_value(lambda states: [0.0] * len(states))
    assert MCTS(flat, asked, "", MCTSConfig()).run(2).action == "a"
    assert {MCTS(flat, asked, "", MCTSConfig(seed=seed)).run(2).action for seed in range(20)} == {"a", "b", "c"}
    assert MCTS(flat, asked, "", MCTSConfig(seed=4)).run(9) == MCTS(flat, asked, "", MCTSConfig(seed=4)).run(9)


@pytest.mark.parametrize("virtual_loss", [None, -1.0])
@pytest.mark.parametrize("batch", [2, 7, 64])
def test_many_leaves_at_once_leave_the_same_books(batch, virtual_loss):
    seen = []

    def asked(states):
        seen.append(list(states))
        return [Evaluation(math.tanh(sum(state) - 4)) for state in states]

    tree = MCTS(Nim(), asked, (2, 3, 3), MCTSConfig(batch=batch, virtual_loss=virtual_loss))
    decision = tree.run(300)
    single = MCTS(Nim(), by_value(lambda states: [math.tanh(sum(s) - 4) for s in states]), (2, 3, 3), MCTSConfig())
    alone = single.run(300)
    assert sum(decision.visits.values()) == sum(alone.visits.values()) == 299
    assert decision.evaluations == sum(map(len, seen)) and decision.calls == len(seen) < alone.calls
    assert max(map(len, seen)) <= batch
    for node in nodes(tree.root):
        assert not any(node.pending)
        if node.expanded:
            own = math.tanh(sum(node.state) - 4)
            assert node.count == 1 + sum(node.visits)
            assert node.total == pytest.approx(own + sum(node.totals))
            for child, visits, total in zip(node.children, node.visits, node.totals, strict=True):
                assert (child.count if child else 0) == visits and total == pytest.approx(-child.total if child else 0)


def test_many_leaves_at_once_evaluate_the_same_states_of_a_finished_tree():
    sets = []
    for batch in (1, 16):
        seen = []
        evaluate = by_value(lambda states, seen=seen: [seen.append(state) or 0.0 for state in states])
        decision = MCTS(Nim(), evaluate, (2, 2), MCTSConfig(batch=batch)).run(3000)
        assert decision.evaluations == len(seen) and decision.simulations == 3000
        sets.append(sorted(seen))
    assert sets[0] == sets[1]


def test_kept_subtree_goes_on_where_it_was():
    tree = MCTS(GAME, Rollouts(GAME, seed=0), GAME.start, MCTSConfig(seed=0))
    first = tree.run(300)
    tree.advance(first.action)
    kept = tree.root.count
    assert kept == first.visits[first.action] > 30
    second = tree.run(50)
    assert tree.root.count == kept + 50 and second.evaluations <= 50
    unseen = MCTS(GAME, Rollouts(GAME, seed=0), GAME.start, MCTSConfig(seed=0))
    unseen.advance(4)  # before any search
    assert unseen.root.state == GAME.step(GAME.start, 4) and unseen.run(5).evaluations == 5


def test_noise_is_on_the_root_alone_and_not_kept():
    config = MCTSConfig(noise=RootNoise(0.3, 0.5), seed=3)
    tree = MCTS(GAME, by_value(lambda states: [0.0] * len(states)), GAME.start, config)
    noisy = tree.run(200)
    assert all(prior == pytest.approx(1 / len(node.priors)) for node in nodes(tree.root) for prior in node.priors)
    plain = MCTS(GAME, by_value(lambda states: [0.0] * len(states)), GAME.start, MCTSConfig(seed=3)).run(200)
    assert max(noisy.visits.values()) > 1.5 * max(plain.visits.values())
    again = MCTS(GAME, by_value(lambda states: [0.0] * len(states)), GAME.start, config).run(200)
    assert again == noisy


def test_evaluations_can_bring_their_own_actions():
    problem = Branching(lambda _: pytest.fail("the problem was asked"), lambda s: None if len(s) < 2 else len(s) * 0.1)
    asked = lambda states: [Evaluation(0.0, [("x", 3.0), ("y", 1.0)]) for _ in states]  # noqa: E731
    tree = MCTS(problem, asked, "", MCTSConfig())
    tree.run(4)
    assert tree.root.actions == ["x", "y"] and tree.root.priors == [0.75, 0.25]


def test_rollouts_are_for_who_moves():
    rollouts = Rollouts(GAME, seed=0, count=4)
    one_left = GAME.parse("XOX OXO OX.")  # X fills the last field, and has a diagonal
    assert [e.value for e in rollouts([one_left])] == [1]
    lost = GAME.step(GAME.parse("XX. OO. ..."), 5)  # O is to move and can win by 5; by chance it does not always
    values = [rollouts([lost])[0].value for _ in range(50)]
    assert -1 < sum(values) / 50 < 1
    weighted = Branching([("a", 0.0), ("b", 1.0)], lambda s: float(s == "b") if s else None)
    by_prior = Rollouts(weighted, seed=0, policy="prior")
    assert {by_prior.play("") for _ in range(20)} == {1.0} and by_prior.best == (1.0, "b")


# ---- drawing -------------------------------------------------------------------------------------------------------


def test_the_drawing_shows_the_best_lines():
    tree = hand_tree(1)
    tree.run(4)
    assert draw_tree(tree.root).splitlines() == [
        "4 visits, value +0.200",
        "├─ a  2 (67%)  Q +0.150  P 0.600",
        "│  └─ a  1 (100%)  Q +0.100  P 0.500",
        "└─ b  1 (33%)  Q +0.500  P 0.400",
    ]
    assert draw_tree(tree.root, width=1, depth=1, name=str.upper).splitlines()[1:] == [
        "├─ A  2 (67%)  Q +0.150  P 0.600",
        "└─ … 1 more  1 (33%)",
    ]
    won = MCTS(GAME, Rollouts(GAME, seed=1), GAME.parse("XX. OO. ..."), MCTSConfig(seed=1))
    won.run(50)
    assert "2  " in draw_tree(won.root).splitlines()[1] and draw_tree(won.root).splitlines()[1].endswith("  end")


# ---- the claim -----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_more_simulations_lose_less_often():
    def lost(condition, variant):
        return posttrain_mcts.trial(Trial("x", condition, variant, {}, 7001, "test", 0.2))["loss rate"]

    assert lost("10", posttrain_mcts.SIGNED) - lost("200", posttrain_mcts.SIGNED) > 0.25
    assert lost("200", posttrain_mcts.UNSIGNED) - lost("200", posttrain_mcts.SIGNED) > 0.25


# ---- bad input -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch": 0}, "batch must be 1 or more, not 0"),
        ({"virtual_loss": -1.0}, "virtual_loss has no use where one leaf"),
        ({"noise": RootNoise()}, "noise is drawn, so it needs a seed"),
        ({"noise": RootNoise(alpha=0.0), "seed": 1}, "alpha must be above 0"),
        ({"exploration": ConstantC(-1.0)}, "c must be 0 or more, not -1.0"),
        ({"exploration": AlphaZeroC(base=0.0)}, "base must be above 0"),
        ({"unvisited": "one"}, "unvisited must be zero or parent, not 'one'"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(RecipeError, match=message):
        MCTSConfig(**options)


@pytest.mark.parametrize(
    ("priors", "values", "message"),
    [
        ([("a", 1.0)], [], "was asked for 1 states and returned 0 values"),
        ([("a", 1.0)], [math.nan], "the value of '' is nan"),
        ([], [0.0], "'' is no end, but has no action"),
        ([("a", 1.0), ("a", 2.0)], [0.0], "has the action 'a' twice"),
        ([("a", -1.0), ("b", 2.0)], [0.0], "the prior of 'a' is -1.0"),
        ([("a", 0.0), ("b", 0.0)], [0.0], "all 2 priors of the state '' are 0"),
    ],
)
def test_bad_answers_of_problem_and_evaluation(priors, values, message):
    problem = Branching(priors, lambda _: None)
    with pytest.raises(DataError, match=message):
        MCTS(problem, by_value(lambda _: values), "", MCTSConfig()).run(3)


def test_nothing_to_choose():
    evaluate = Rollouts(GAME, seed=0)
    with pytest.raises(DataError, match="is an end"):
        MCTS(GAME, evaluate, GAME.parse("XXX OO. ..."), MCTSConfig())
    tree = MCTS(GAME, evaluate, GAME.parse("XX. OO. ..."), MCTSConfig())
    with pytest.raises(RecipeError, match="one simulation or more, not 0"):
        tree.run(0)
    with pytest.raises(DataError, match="has no action 0"):
        tree.advance(0)
    with pytest.raises(DataError, match="2 leads to an end"):
        tree.advance(2)
    with pytest.raises(RecipeError, match="1 player or 2 who move in turn, not 3"):
        MCTS(Branching([], lambda _: None, players=3), evaluate, "", MCTSConfig())
    with pytest.raises(DataError, match="terminal value of '' is inf"):
        MCTS(Branching([], lambda _: math.inf), evaluate, "", MCTSConfig())


def test_plays_that_do_not_end():
    forever = Branching([("a", 1.0)], lambda _: None)
    with pytest.raises(DataError, match="did not end within 9 steps"):
        Rollouts(forever, seed=0, max_steps=9)([""])
    with pytest.raises(DataError, match="is no end, but has no action"):
        Rollouts(Branching([], lambda _: None), seed=0)([""])
    with pytest.raises(DataError, match="all 1 priors"):
        Rollouts(Branching([("a", 0.0)], lambda _: None), seed=0, policy="prior")([""])
    with pytest.raises(OdonataError, match="must be 1 or more"):
        Rollouts(forever, seed=0, count=0)
    with pytest.raises(RecipeError, match="policy must be uniform or prior"):
        Rollouts(forever, seed=0, policy="best")
