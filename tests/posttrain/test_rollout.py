"""Answers, what they earned, and what is kept of them."""

import dataclasses
import json

import pytest
import torch

from odonata.errors import RunError
from odonata.language.sampling import Sampling
from odonata.language.sequences import pad_sequences, token_logprobs
from odonata.posttrain.reference import Reference
from odonata.posttrain.rewards.names import reward_named
from odonata.posttrain.rollout import Rollout, figures_of, reference_logprobs
from odonata.posttrain.rollout_log import RolloutLog
from odonata.text.text_tokenizer import TextTokenizer
from posttrain.online_setting import TOKENIZER, Said, asking_with, engine_for, items, method_of, nano

PROMPTS = ("1=", "12345=", "314159=", "7=")


def ask(asking=None, prompts=PROMPTS, decoder=None):
    with torch.no_grad():
        return (asking or asking_with()).ask(decoder or nano(), items(*prompts))


def test_an_answer_depends_on_its_prompts_visit_and_place_alone():
    whole = ask()
    alone = [asking_with().ask(nano(), items(*PROMPTS)[i : i + 1]) for i in range(4)]
    assert whole.texts == [text for one in alone for text in one.texts]
    backwards = asking_with().ask(nano(), items(*PROMPTS)[::-1])
    assert backwards.texts == [t for i in (3, 2, 1, 0) for t in whole.texts[4 * i : 4 * i + 4]]
    more = ask(asking_with(group=6))
    assert [more.texts[6 * i : 6 * i + 4] for i in range(4)] == [whole.texts[4 * i : 4 * i + 4] for i in range(4)]
    assert ask(asking_with(seed=1)).texts != whole.texts
    again = asking_with().ask(nano(), items(*PROMPTS, first_key=500))
    assert again.texts != whole.texts, "another visit of the same prompts"


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_log_probabilities_of_sampling_are_those_of_learning(temperature):
    decoder = nano()
    answers = ask(asking_with(sampling=Sampling(temperature)), decoder=decoder)
    with torch.no_grad():
        found, _ = token_logprobs(decoder, answers.sequences, temperature=temperature)
    assert torch.allclose(found, answers.old_logprobs, atol=1e-5)
    where = answers.sequences.scored[:, 1:]
    assert not answers.old_logprobs[~where].any() and (answers.old_logprobs[where] < 0).all()
    assert where.sum(1).tolist() == answers.lengths.tolist()


def test_texts_are_of_the_sampled_tokens_without_the_end():
    answers = ask()
    finished = answers.finished.tolist()
    for row, (text, ended) in enumerate(zip(answers.texts, finished, strict=True)):
        ids = answers.sequences.ids[row][answers.sequences.scored[row]].tolist()
        assert text == TOKENIZER.decode(ids[:-1] if ended else ids)
        assert (ids[-1] == TOKENIZER.end()) == ended
    assert any(finished) and not all(finished)


def test_padding_that_is_the_end_token_changes_nothing():
    files = TOKENIZER.files
    config = json.loads(files["tokenizer_config.json"]) | {"pad_token": "$"}
    same = TextTokenizer({**files, "tokenizer_config.json": json.dumps(config).encode()})
    assert same.pad_id == same.end() != TOKENIZER.pad_id
    plain, other = ask(), ask(asking_with(tokenizer=same))
    assert plain.texts == other.texts and torch.equal(plain.lengths, other.lengths)
    assert torch.equal(plain.sequences.scored, other.sequences.scored)
    assert torch.allclose(plain.old_logprobs, other.old_logprobs)


def test_figures_are_means_over_all_answers_and_name_every_reward():
    values = iter([1.0, None, 0.0, 0.0] + [0.5] * 4 + [None] * 4 + [2.0, 0.0, 0.0, 0.0])
    answers = ask(asking_with(Said(lambda answer: next(values))))
    figures = {name: float(value) for name, value in figures_of(answers).items()}
    assert figures["reward"] == figures["reward/said"] == pytest.approx((1 + 4 * 0.5 + 2) / 11)
    assert figures["live_groups"] == 0.5 and figures["unscored"] == 5 / 16
    assert figures["length"] == float(answers.lengths.float().mean())
    assert figures["truncated"] == float((~answers.finished).float().mean())
    assert figures["entropy"] == pytest.approx(float(-answers.old_logprobs.sum() / answers.lengths.sum()))
    assert "kl" not in figures
    assert float(figures_of(answers, answers.old_logprobs + 1)["kl"]) == pytest.approx(torch.e - 2, rel=1e-6)


def test_a_reward_that_nobody_knows_is_left_out_of_the_figures():
    figures = figures_of(ask(asking_with(Said(lambda answer: None))))
    assert float(figures["unscored"]) == 1 and not {"reward", "reward/said"} & set(figures)


def test_the_reference_says_the_same_in_parts():
    decoder = nano()
    reference = Reference(decoder)
    answers = ask(decoder=decoder)
    whole = reference_logprobs(reference, answers.sequences, 0.7)
    for parts in (3, 5, 99):
        assert torch.allclose(reference_logprobs(reference, answers.sequences, 0.7, parts), whole, atol=1e-6)
    assert reference_logprobs(None, answers.sequences, 0.7) is None


def test_rows_of_a_rollout_lose_padding_and_nothing_else():
    sequences = pad_sequences([[5], [5, 6, 7], [5, 6]], [[8, 9, 1], [8, 1], [8, 9, 10, 11, 1]], 0)
    steps = sequences.ids.shape[1] - 1
    numbers = torch.arange(3 * steps).view(3, steps).float()
    rollout = Rollout(sequences, numbers, sequences.scored[:, 1:], torch.tensor([[1.0], [2.0], [3.0]]), values=numbers)
    first = rollout.rows(torch.tensor([1, 0]))
    assert first.sequences.ids.tolist() == [[5, 6, 7, 8, 1], [5, 8, 9, 1, 0]]
    assert first.old_logprobs.tolist() == numbers[[1, 0], :4].tolist() == first.values.tolist()
    assert first.mask.sum(1).tolist() == [2, 3] and first.advantages[:, 0].tolist() == [2, 1]
    assert [part.mask.shape for part in rollout.by_length(2)] == [(2, 4), (1, 6)]
    assert [part.advantages.item() for part in rollout.by_length(9)] == [1, 2, 3]
    nothing = rollout.nothing()
    assert nothing.mask.shape == (1, 3) and not nothing.mask.any()


def test_one_line_of_answers_is_kept_for_each_step_that_is_logged(tmp_path):
    @dataclasses.dataclass
    class Run:
        folder = tmp_path

    judged = Said(lambda answer: None if "7" in answer.completion else float(len(answer.completion)))
    method = method_of("grpo", nano(), beta=0.0, asking=asking_with(judged))
    (tmp_path / "rollouts.jsonl").write_text('{"step": 1, "kept": true}\n{"step": 4, "kept": false}\n')
    engine = engine_for(method, log_every=2, steps=5)
    engine.run = Run()
    for step in (2, 3, 4):  # a run resumed at step 2
        engine.step = step
        method.step(items("12=", "3="), engine)
    lines = [json.loads(line) for line in (tmp_path / "rollouts.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 4, 5] and lines[0]["kept"]
    assert lines[1]["prompt"] == "12=" and len(lines[1]["answers"]) == 4
    for answer in lines[1]["answers"]:
        known = "7" not in answer["text"]
        assert answer["reward"] == answer["parts"]["said"] == (len(answer["text"]) if known else None)
        assert answer["tokens"] == len(answer["text"]) + answer["finished"]
        assert known or answer["advantage"] == 0
    assert any(answer["advantage"] for answer in lines[1]["answers"])


def test_a_log_is_not_kept_without_a_run_folder():
    log = RolloutLog()
    log.write(engine_for(method_of("grpo", nano())), ask(), torch.zeros(4, 4))
    assert log.lines is None


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("return [1 / 0 for _ in answers]", r"mine.py:2.*ZeroDivisionError|ZeroDivisionError.*mine.py:2"),
        ("return [float('nan') for _ in answers]", r"returned nan for the row .*: wanted a finite number, or None"),
        ("return ['good' for _ in answers]", r"returned 'good' for the row .*: wanted a finite number, or None"),
        ("return 'good'", r"returned 'good': wanted a list of 16 numbers"),
        ("return [1.0]", r"returned 1 values for 16 answers"),
    ],
)
def test_a_reward_of_the_users_own_that_is_wrong_says_where(tmp_path, body, said):
    (tmp_path / "mine.py").write_text(f"def judge(answers):\n    {body}\n")
    with pytest.raises(RunError, match=said):
        ask(asking_with(reward_named(f"{tmp_path / 'mine.py'}:judge")))


def test_answers_on_which_the_users_reward_hangs_stay_unjudged(tmp_path):
    (tmp_path / "mine.py").write_text("import time\ndef judge(answers):\n    time.sleep(60)\n")
    reward = reward_named(f"{tmp_path / 'mine.py'}:judge")
    reward.wall_seconds = 0.3
    method = method_of("grpo", nano(), asking=asking_with(reward), beta=0.0)
    values = method.step(items("1=", "2="), engine_for(method))
    assert float(values["unscored"]) == 1 and float(values["loss"]) == 0 and "reward" not in values
    reward.close()
