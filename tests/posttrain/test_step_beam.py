"""A beam search over steps: where steps end, what is kept, what it finds, and what it costs."""

import pytest

from odonata.errors import RecipeError
from odonata.posttrain.search import by_model
from odonata.posttrain.search.by_model import Speaker
from odonata.posttrain.search.scorers import values_of
from odonata.posttrain.search.solve import solve
from odonata.posttrain.search.step_beam import StepEnd, guided_beam
from odonata.text.text_tokenizer import characters
from posttrain.search_models import asked, opened, questions, random_qwen2

PROMPTS = ("12=", "314=", "2718=")
CHARACTER = StepEnd("", 1)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A random model whose answers are nearly uniform: nothing is found by chance alone."""
    folder = tmp_path_factory.mktemp("uniform") / "model"
    random_qwen2(folder, peaked=0.1)
    return opened(folder)


class Oracle:
    """Knows the running sums: a step is worth how far the answer has come by then, and nothing once it is wrong."""

    def step_scores(self, prompts, completions, finished):
        found = []
        for prompt, text, ended in zip(prompts, completions, finished, strict=True):
            wanted = self.wanted(prompt.text)
            whole = len(wanted) + (not ended)  # one thing more is to be done where the end is missing
            right = [wanted.startswith(text[: i + 1]) and (not ended or text == wanted) for i in range(len(text))]
            found.append([good * (i + 1) / whole for i, good in enumerate(right)])
        return found

    @staticmethod
    def wanted(prompt):
        total, said = 0, ""
        for digit in prompt.rstrip("="):
            total = (total + int(digit)) % 10
            said += str(total)
        return f"{said}#{total}"


def test_steps_end_with_a_text_or_after_so_many_tokens():
    tokenizer = characters("ab;\n")
    ids = tokenizer.encode("ab;ba\na")
    assert tokenizer.decode(StepEnd(";", 9).first(ids, tokenizer)) == "ab;"
    assert tokenizer.decode(StepEnd("\n", 9).first(ids, tokenizer)) == "ab;ba\n"
    assert tokenizer.decode(StepEnd("\n", 4).first(ids, tokenizer)) == "ab;b"
    assert tokenizer.decode(StepEnd("", 2).first(ids, tokenizer)) == "ab"
    assert tokenizer.decode(StepEnd("x", 99).first(ids, tokenizer)) == "ab;ba\na"
    assert StepEnd(";", 9).stop(tokenizer)(ids[:3]) and not StepEnd(";", 9).stop(tokenizer)(ids[:2])
    with pytest.raises(RecipeError, match="--step-tokens is 0; a step has at least 1"):
        StepEnd("", 0)


def test_a_judge_of_steps_finds_what_greedy_and_samples_do_not(model):
    rows = [q for prompt in PROMPTS for q in questions(prompt, answer=Oracle.wanted(prompt)[-1])]
    found = solve(
        model, rows, by=("greedy", "prm"), budget=128, reward="marked-answer", scorer=Oracle(), step=CHARACTER,
        width=64, aggregate="last", max_new_tokens=8,
    )  # fmt: skip
    accuracy = {(row.method, row.budget): row.accuracy for row in found.rows}
    assert accuracy["greedy", 1] == 0 and accuracy["pass@k", 128] < 1
    assert accuracy["prm (beam)", 128] == 1
    assert [record["prm (beam)"]["128"]["text"] for record in found.records] == [Oracle.wanted(p) for p in PROMPTS]
    assert all(record["prm (beam)"]["128"]["score"] == 1 for record in found.records)


def test_a_budget_of_one_follows_the_only_step_it_draws(model):
    values = values_of(Oracle(), "last")
    found = guided_beam(Speaker(model, 6), asked(model, *PROMPTS), values, CHARACTER, budget=1, width=4)
    assert [each.tokens for each in found] == [len(each.answer.ids) for each in found]


def test_as_many_steps_are_drawn_as_the_budget_has_beams(model, monkeypatch):
    made = []
    plain = by_model.generate

    def counting(decoder, prompts, **options):
        found = plain(decoder, prompts, **options)
        made.append((len(prompts), options["group"], int(found.lengths.sum())))
        return found

    monkeypatch.setattr(by_model, "generate", counting)

    def values(questions, answers):
        return [len(set(answer.text)) / 12 for answer in answers]

    found = guided_beam(Speaker(model, 5), asked(model, *PROMPTS), values, CHARACTER, budget=8, width=4)
    assert made[0][:2] == (3, 8)
    # Two beams of each question at most, four steps from each.
    assert all(prompts <= 3 * 2 and group == 4 for prompts, group, _ in made[1:]) and len(made) <= 5
    assert sum(each.tokens for each in found) == sum(tokens for _, _, tokens in made)


def test_copies_of_a_beginning_count_once(model):
    seen = []

    def values(questions, answers):
        seen.append([answer.ids for answer in answers])
        return [0.5] * len(answers)

    guided_beam(Speaker(model, 3), asked(model, "12="), values, CHARACTER, budget=64, width=16)
    assert all(len(set(beginnings)) == len(beginnings) for beginnings in seen)
    assert len(seen[0]) <= 14  # tokens that there are


def test_questions_that_are_searched_together_are_answered_as_alone(model):
    values, every = values_of(Oracle(), "last"), asked(model, *PROMPTS)
    speaker = Speaker(model, 6, seed=7)
    together = guided_beam(speaker, every, values, CHARACTER, budget=12, width=4)
    alone = [guided_beam(speaker, [question], values, CHARACTER, budget=12, width=4)[0] for question in every]
    assert [each.answer.ids for each in together] == [each.answer.ids for each in alone]
    assert [each.tokens for each in together] == [each.tokens for each in alone]


def test_bad_input(model):
    with pytest.raises(RecipeError, match="a budget and a width of 1 or more, not 4 and 0"):
        guided_beam(Speaker(model, 4), asked(model, "12="), values_of(Oracle(), "last"), CHARACTER, budget=4, width=0)
