"""A tree over steps of text: what its leaves are worth, how it is widened, what it costs, and what it finds."""

import pytest

from odonata.errors import RecipeError
from odonata.posttrain.search import by_model
from odonata.posttrain.search.asked import Answer
from odonata.posttrain.search.by_model import Speaker
from odonata.posttrain.search.step_beam import StepEnd
from odonata.posttrain.search.text_tree import OTHER, Beginning, TextTree, Written, grow_trees
from posttrain.search_models import asked, opened, random_qwen2

PROMPTS = ("12=", "314=", "2718=")
STEP = StepEnd("", 1)
LENGTH = 6


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A random model whose answers are nearly uniform: nothing is found by chance alone."""
    folder = tmp_path_factory.mktemp("uniform") / "model"
    random_qwen2(folder, peaked=0.1)
    return opened(folder)


def near(target):
    """What an answer is worth: the share of the target that it begins with."""

    def values(questions, answers):
        found = []
        for answer in answers:
            same = next((i for i, (a, b) in enumerate(zip(answer.text, target, strict=False)) if a != b), None)
            found.append((min(len(answer.text), len(target)) if same is None else same) / len(target))
        return found

    return values


def written(text, value=0.0):
    ids = tuple(map(int, text))
    return Written(Answer(ids, text, -1.0, True), value, len(ids))


def take(tree, state, *answers):
    """Tell a tree of answers, given as digits, whose steps are single digits."""
    start = len(state.ids)
    return tree.take(state, answers, [answer.answer.ids[start : start + 1] for answer in answers])


def test_a_leaf_is_worth_what_its_answers_are_and_its_edges_are_their_steps(model):
    tree = TextTree(asked(model, "12=")[0])
    found = take(tree, Beginning(()), written("34", 1.0), written("35", 0.5), written("4", 0.0), written("56", 0.5))
    assert found.value == 0.5
    # "3" was seen twice; "4" and "5" once each, so two of six are left for what was not seen.
    assert found.actions == [((3,), 2.0), ((4,), 1.0), ((5,), 1.0), (OTHER, 2.0)]
    assert tree.terminal_value(Beginning((3,))) is None
    assert (tree.terminal_value(Beginning((4,))), tree.terminal_value(Beginning((3, 4)))) == (0.0, 1.0)
    assert tree.step(Beginning((3,)), (4,)) == Beginning((3, 4))


def test_other_steps_are_looked_for_from_the_same_beginning(model):
    tree = TextTree(asked(model, "12=")[0])
    assert take(tree, Beginning(()), written("34"), written("35")).actions == [((3,), 2.0), (OTHER, 1.0)]
    again = tree.step(Beginning(()), OTHER)
    assert again == Beginning((), 1)
    assert take(tree, again, written("36"), written("47")).actions == [((4,), 1.0), (OTHER, 1.0)]  # 3 is known
    assert take(tree, tree.step(again, OTHER), written("37"), written("48")).actions == [(OTHER, 1.0)]


def test_the_best_of_the_first_answers_is_given():
    tree = TextTree(None)
    tree.written += [written("1", 0.2), written("2", 0.7), written("3", 0.7), written("4", 0.9)]
    assert [tree.best(budget).answer.text for budget in (1, 2, 3, 4, 64)] == ["1", "2", "2", "4", "4"]


def test_a_tree_finds_what_as_many_samples_do_not(model):
    questions = [q for n in range(5) for q in asked(model, *PROMPTS[:2])]
    questions = [by_number(q, i) for i, q in enumerate(questions)]
    values, speaker = near("348#2"), Speaker(model, LENGTH, seed=5)
    trees = grow_trees(speaker, questions, values, STEP, budget=256, width=4, c=0.5)
    sampled = speaker.sample(questions, 256)
    best = [max(values([q] * 256, said)) for q, said in zip(questions, sampled, strict=True)]
    found = [tree.best(256).value for tree in trees]
    assert sum(found) / 10 > sum(best) / 10 + 0.15
    means = [sum(tree.best(budget).value for tree in trees) for budget in (4, 16, 64, 256)]
    assert means == sorted(means) and means[-1] > means[0] + 2


def by_number(question, number):
    return type(question)(number, question.ids, question.prompt, question.text, question.row, question.where)


def test_trees_that_grow_together_are_those_that_grow_alone(model):
    speaker, every = Speaker(model, LENGTH, seed=1), asked(model, *PROMPTS)
    together = grow_trees(speaker, every, near("348#2"), STEP, budget=24, width=4)
    for question, tree in zip(every, together, strict=True):
        alone = grow_trees(speaker, [question], near("348#2"), STEP, budget=24, width=4)[0]
        assert [w.answer.ids for w in alone.written] == [w.answer.ids for w in tree.written]


def test_a_smaller_budget_is_the_beginning_of_a_larger_one(model):
    speaker, every = Speaker(model, LENGTH, seed=1), asked(model, *PROMPTS)
    small, large = (grow_trees(speaker, every, near("348#2"), STEP, budget=n, width=4) for n in (8, 24))
    for one, other in zip(small, large, strict=True):
        assert [w.answer.ids for w in one.written] == [w.answer.ids for w in other.written[:8]]
    few = grow_trees(speaker, every, near("348#2"), STEP, budget=2, width=4)  # best of two samples
    assert [[w.answer.ids for w in tree.written] for tree in few] == [
        [answer.ids for answer in said] for said in speaker.sample(every, 2)
    ]


def test_every_answer_and_every_token_is_counted(model, monkeypatch):
    made = []
    plain = by_model.generate

    def counting(*args, **options):
        found = plain(*args, **options)
        made.append((len(found.lengths), int(found.lengths.sum())))
        return found

    monkeypatch.setattr(by_model, "generate", counting)
    speaker = Speaker(model, LENGTH, seed=2)
    trees = grow_trees(speaker, asked(model, *PROMPTS), near("348#2"), STEP, budget=20, width=4)
    assert [len(tree.written) for tree in trees] == [20, 20, 20]
    assert sum(rows for rows, _ in made) == 60
    # A row of a batch may run past the room that its own beginning leaves; what is cut there was not asked for.
    tokens = sum(w.tokens for tree in trees for w in tree.written)
    assert tokens <= sum(tokens for _, tokens in made)
    assert all(w.tokens <= len(w.answer.ids) <= LENGTH for tree in trees for w in tree.written)


def test_enough_ends_a_search(model):
    def values(questions, answers):
        return [float("3" in answer.text) for answer in answers]

    trees = grow_trees(Speaker(model, LENGTH), asked(model, *PROMPTS), values, STEP, budget=256, width=4, enough=1.0)
    for tree in trees:
        assert tree.best(256).value == 1.0 and len(tree.written) < 256
        assert all(w.value < 1 for w in tree.written[:-4])


def test_a_tree_whose_answers_are_all_there_comes_to_an_end(model):
    # Answers of one token: every edge but one is an end, and visits to ends write nothing.
    trees = grow_trees(Speaker(model, 1), asked(model, "12="), near("3"), STEP, budget=512, width=4)
    assert 0 < len(trees[0].written) <= 512


def test_bad_input(model):
    with pytest.raises(RecipeError, match="a budget and a width of 1 or more, not 0 and 4"):
        grow_trees(Speaker(model, 4), asked(model, "12="), near("3"), STEP, budget=0, width=4)
