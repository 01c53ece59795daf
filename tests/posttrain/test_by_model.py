"""How a decoder answers in a search: beams as transformers finds them, log-probabilities that are the model's own."""

import pytest
import torch

from odonata.errors import DataError
from odonata.posttrain.search.beam import BeamConfig
from odonata.posttrain.search.by_model import Speaker, decoder_beam_search
from posttrain.search_models import asked, opened, random_qwen2

PROMPTS = ("12=", "314159=", "7=", "2718=")


@pytest.fixture(scope="module", params=[0, 1])
def both(request, tmp_path_factory):
    """A model of transformers, and ours read from its directory."""
    folder = tmp_path_factory.mktemp("qwen2") / "model"
    return random_qwen2(folder, request.param), opened(folder)


def theirs(model, ours, width, penalty, limit):
    """What transformers finds for each prompt, all in one batch, padded on the left."""
    tokenizer = ours.tokenizer
    ids = [tokenizer.encode(prompt) for prompt in PROMPTS]
    longest = max(map(len, ids))
    batch = torch.tensor([[tokenizer.pad_id] * (longest - len(row)) + row for row in ids])
    mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in ids])
    found = model.generate(
        batch, attention_mask=mask, num_beams=width, max_new_tokens=limit, length_penalty=penalty, do_sample=False,
        num_return_sequences=width, return_dict_in_generate=True, output_scores=True,
    )  # fmt: skip
    return found.sequences[:, longest:].tolist(), found.sequences_scores


@pytest.mark.parametrize("penalty", [0.0, 1.0, 2.0])
@pytest.mark.parametrize("width", [2, 4])
def test_beams_over_the_cache_are_transformers(both, width, penalty):
    model, ours = both
    config = BeamConfig(width, 12, ours.eos_ids, ours.tokenizer.pad_id, penalty, num_return=width)
    found, _ = decoder_beam_search(ours.decoder, [ours.tokenizer.encode(prompt) for prompt in PROMPTS], config)
    sequences, scores = theirs(model, ours, width, penalty, 12)
    lengths = found.lengths.flatten().tolist()
    for row, other, length in zip(found.tokens.flatten(0, 1).tolist(), sequences, lengths, strict=True):
        assert row[:length] == other[:length]
    assert penalty == 2 or len(set(lengths)) > 1  # some end before the limit
    assert float((found.scores.flatten() - scores).abs().max() / scores.abs().max()) < 1e-5


def test_an_answer_of_a_beam_search_has_its_score_and_log_probability(both):
    _, ours = both
    speaker = Speaker(ours, 12, batch_rows=4)
    answers, scores, costs = speaker.beam(asked(ours, *PROMPTS), 4, 2.0)
    alone = [speaker.beam(asked(ours, prompt), 4, 2.0)[0][0].text for prompt in PROMPTS]
    assert [answer.text for answer in answers] == alone  # batches of one prompt and of several agree
    for answer, score, cost, prompt in zip(answers, scores, costs, PROMPTS, strict=True):
        assert answer.logprob == pytest.approx(score * len(answer.ids) ** 2, rel=1e-5)
        if answer.finished and ours.tokenizer.encode(answer.text) == list(answer.ids[:-1]):
            assert answer.logprob == pytest.approx(ours.logprob(prompt, answer.text), rel=1e-4)
        assert cost >= 4 * len(answer.ids) and cost <= 4 * 12


def test_one_beam_is_greedy(both):
    _, ours = both
    speaker = Speaker(ours, 12)
    greedy = speaker.greedy(asked(ours, *PROMPTS))
    assert [a.ids for a in speaker.beam(asked(ours, *PROMPTS), 1)[0]] == [a.ids for a in greedy]


@pytest.mark.parametrize("temperature", [0.5, 1.0, 1.5])
def test_log_probabilities_are_those_at_temperature_1(both, temperature):
    _, ours = both
    found = Speaker(ours, 12, temperature, batch_rows=5).sample(asked(ours, *PROMPTS), 8)
    checked = 0
    for prompt, answers in zip(PROMPTS, found, strict=True):
        for answer in answers:
            if answer.finished and ours.tokenizer.encode(answer.text) == list(answer.ids[:-1]):
                assert answer.logprob == pytest.approx(ours.logprob(prompt, answer.text), rel=1e-4, abs=1e-5)
                checked += 1
    assert checked > 5


def test_what_is_drawn_depends_on_no_batch(both):
    _, ours = both
    every = asked(ours, *PROMPTS)
    wide, narrow = (Speaker(ours, 12, seed=3, batch_rows=rows).sample(every, 6) for rows in (256, 2))
    assert [[a.ids for a in said] for said in wide] == [[a.ids for a in said] for said in narrow]
    last = Speaker(ours, 12, seed=3).sample(every[2:3], 6)[0]
    assert [a.ids for a in last] == [a.ids for a in wide[2]]
    other = Speaker(ours, 12, seed=4).sample(every, 6)
    assert [[a.ids for a in said] for said in other] != [[a.ids for a in said] for said in wide]


def test_beginnings_go_on_to_the_same_limit(both):
    _, ours = both
    question = asked(ours, "12=")[0]
    short, long = (3, 4), (3, 4, 5, 6, 7, 8, 9)
    found = Speaker(ours, 8).go_on([question, question], [short, long], 5, [0, 1])
    for prefix, answers in zip((short, long), found, strict=True):
        assert all(answer.ids[: len(prefix)] == prefix and len(prefix) < len(answer.ids) <= 8 for answer in answers)
        assert all(answer.finished or len(answer.ids) == 8 for answer in answers)
    stopped = Speaker(ours, 8).go_on([question], [short], 5, [0], lambda ids: len(ids) == 2)
    assert all(len(answer.ids) == 4 or answer.finished for answer in stopped[0])
    with pytest.raises(DataError, match="an answer of 2 tokens, the most there may be, cannot go on"):
        Speaker(ours, 2).go_on([question], [short], 1, [0])
