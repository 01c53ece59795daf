"""Beam search: token for token what transformers' generate returns, and cases worked out by hand."""

import itertools
import math

import pytest
import torch

from odonata.errors import DataError, RecipeError
from odonata.posttrain.search.beam import BeamConfig, BeamSearch, beam_search

VOCAB, PAD, END = 40, 0, 1


@pytest.fixture(scope="module")
def models():
    """Tiny random Qwen2 decoders with peaked answers and a likely end."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    found = []
    for seed in range(3):
        torch.manual_seed(seed)
        config = Qwen2Config(
            vocab_size=VOCAB, hidden_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
            intermediate_size=128, eos_token_id=END, bos_token_id=None, pad_token_id=PAD, tie_word_embeddings=False,
        )  # fmt: skip
        model = Qwen2ForCausalLM(config).eval()
        with torch.no_grad():
            model.lm_head.weight *= 6
            model.lm_head.weight[END] = model.lm_head.weight.mean(0) + 0.4 * torch.randn(64)
        found.append(model)
    return found


PROMPTS = torch.tensor([[PAD, PAD, 5, 6], [7, 8, 9, 10], [PAD, 11, 12, 13]])


def asking(model, prompts, beams):
    """The model as a function of the tokens generated so far, recomputed from the start."""
    repeated = prompts.repeat_interleave(beams, 0)

    @torch.no_grad()
    def next_logprobs(tokens, parents):
        ids = torch.cat((repeated, tokens), 1)
        mask = torch.cat((repeated != PAD, torch.ones_like(tokens, dtype=torch.bool)), 1).long()
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        return model(ids, attention_mask=mask, position_ids=positions).logits[:, -1].float().log_softmax(-1)

    return next_logprobs


def generated(model, prompts, config):
    from transformers import GenerationConfig

    return model.generate(
        prompts, attention_mask=(prompts != PAD).long(),
        generation_config=GenerationConfig(
            num_beams=config.num_beams, max_new_tokens=config.max_new_tokens, length_penalty=config.length_penalty,
            num_return_sequences=config.num_return, early_stopping=config.early_stopping, do_sample=False,
            eos_token_id=list(config.eos_ids), pad_token_id=PAD, return_dict_in_generate=True, output_scores=True,
        ),
    )  # fmt: skip


def assert_same(answers, reference, prompts, ends):
    ours = answers.tokens.flatten(0, 1)
    theirs = reference.sequences[:, prompts.shape[1] :]
    assert ours.shape == theirs.shape
    for row, other, length in zip(ours.tolist(), theirs.tolist(), answers.lengths.flatten().tolist(), strict=True):
        assert row[:length] == other[:length]  # behind it the two pad with different tokens
        assert all(token not in ends for token in row[: length - 1])
    scores, expected = answers.scores.flatten(), reference.sequences_scores
    assert float((scores - expected).abs().max() / expected.abs().max()) < 1e-5


@pytest.mark.parametrize("length_penalty", [0.0, 0.6, 1.0, 2.0, -1.0])
@pytest.mark.parametrize("early_stopping", [True, False, "never"])
def test_transformers_returns_the_same(models, early_stopping, length_penalty):
    lengths = set()
    for model, beams in itertools.product(models, (2, 4)):
        config = BeamConfig(beams, 10, (END,), PAD, length_penalty, early_stopping, num_return=beams)
        answers = beam_search(asking(model, PROMPTS, beams), 3, config)
        assert_same(answers, generated(model, PROMPTS, config), PROMPTS, {END})
        lengths |= set(answers.lengths.flatten().tolist())
    assert len(lengths) > 1  # some end early


def test_several_ends_and_greedy(models):
    config = BeamConfig(3, 8, (END, 7, 21), PAD, 1.0, "never", num_return=2)
    for model in models:
        answers = beam_search(asking(model, PROMPTS, 3), 3, config)
        assert_same(answers, generated(model, PROMPTS, config), PROMPTS, {END, 7, 21})
    greedy = BeamConfig(1, 8, (END,), PAD, 0.0)
    ours = beam_search(asking(models[0], PROMPTS, 1), 3, greedy)
    expected = models[0].generate(PROMPTS, attention_mask=(PROMPTS != PAD).long(), max_new_tokens=8, do_sample=False)
    for row, other, length in zip(ours.tokens[:, 0], expected[:, 4:], ours.lengths[:, 0], strict=True):
        assert row[:length].tolist() == other[:length].tolist()


def test_parents_reorder_what_belongs_to_a_beam():
    """A function that keeps its own state per row, as a cache does, and one that recomputes say the same."""
    torch.manual_seed(3)
    table = torch.randn(12, 12).mul(2).log_softmax(-1)
    config = BeamConfig(4, 6, (0,), 0, 1.0, "never", num_return=4)
    sums = torch.zeros(8, dtype=torch.long)
    kept: list[torch.Tensor] = []

    def with_cache(tokens, parents):
        last = tokens[:, -1] if tokens.shape[1] else torch.full((8,), 5)
        state = (kept[-1][parents] if kept else sums) + last
        kept.append(state)
        return table[state % 12]

    def recomputed(tokens, parents):
        return table[(tokens.sum(1) + 5) % 12]

    first, second = beam_search(with_cache, 2, config), beam_search(recomputed, 2, config)
    assert first.tokens.tolist() == second.tokens.tolist()
    assert torch.equal(first.scores, second.scores)


CHAIN = torch.tensor([[0.1, 0.6, 0.3], [0.5, 0.2, 0.3], [0.9, 0.05, 0.05]]).log()


def chain(tokens, parents):
    """Token 0 ends; what follows depends on the last token, 0 at first."""
    return CHAIN[tokens[:, -1] if tokens.shape[1] else torch.zeros(len(tokens), dtype=torch.long)]


def test_by_hand():
    # The sums: 1 0 → ln(.6·.5) = ln .30, 2 0 → ln(.3·.9) = ln .27, 1 2 0 → ln(.6·.3·.9) = ln .162.
    plain = beam_search(chain, 1, BeamConfig(2, 4, (0,), 9, 0.0, "never", num_return=2))
    assert plain.tokens.tolist() == [[[1, 0], [2, 0]]]
    assert plain.scores.exp().tolist()[0] == pytest.approx([0.30, 0.27])
    # Per token: .30^½ = .548 and .162^⅓ = .545, so 2 0 with .27^½ = .520 gives way.
    by_length = beam_search(chain, 1, BeamConfig(2, 3, (0,), 9, 1.0, "never", num_return=2))
    assert by_length.tokens.tolist() == [[[1, 0, 9], [1, 2, 0]]]
    assert by_length.scores.exp().tolist()[0] == pytest.approx([0.30**0.5, 0.162 ** (1 / 3)])


def test_wide_enough_a_beam_is_exhaustive():
    config = BeamConfig(81, 4, (0,), 0, 0.7, "never", num_return=5)
    found = beam_search(chain, 1, config)
    everything = []
    for length in range(1, 5):
        for body in itertools.product((1, 2), repeat=length - 1):
            for last in (0, 1, 2) if length == 4 else (0,):
                path = (0, *body, last)
                total = sum(CHAIN[a, b].item() for a, b in itertools.pairwise(path))
                everything.append((total / length**0.7, list(path[1:])))
    everything.sort(reverse=True)
    assert found.scores[0].tolist() == pytest.approx([score for score, _ in everything[:5]], abs=1e-5)
    for row, length, (_, path) in zip(found.tokens[0].tolist(), found.lengths[0].tolist(), everything, strict=False):
        assert row[:length] == path


def test_an_end_ranked_behind_the_first_k_is_dropped():
    first = torch.tensor([[0.05, 0.5, 0.45]]).log()
    later = torch.tensor([[0.9, 0.05, 0.05]]).log()
    ask = lambda tokens, parents: (later if tokens.shape[1] else first).expand(len(tokens), 3)  # noqa: E731
    answers = beam_search(ask, 1, BeamConfig(2, 2, (0,), 9, 0.0, "never", num_return=2))
    assert answers.tokens.tolist() == [[[1, 0], [2, 0]]]  # [0] at once scores ln .05, third of the first step


def test_one_prompt_does_not_change_another(models):
    config = BeamConfig(3, 8, (END,), PAD, 1.0, "never", num_return=3)
    together = beam_search(asking(models[1], PROMPTS, 3), 3, config)
    for number in range(3):
        alone = beam_search(asking(models[1], PROMPTS[number : number + 1], 3), 1, config)
        assert alone.lengths[0].tolist() == together.lengths[number].tolist()
        for row, other, length in zip(alone.tokens[0], together.tokens[number], alone.lengths[0], strict=True):
            assert row[:length].tolist() == other[:length].tolist()
        assert alone.scores[0].tolist() == pytest.approx(together.scores[number].tolist(), rel=1e-5)


def test_fewer_answers_than_beams_are_said_to_be_absent():
    only = torch.tensor([[-math.inf, 0.0, -math.inf]])
    found = beam_search(lambda tokens, _: only.expand(len(tokens), 3), 1, BeamConfig(3, 4, (0,), 0, num_return=3))
    assert found.lengths.tolist() == [[4, 0, 0]] and found.scores.tolist() == [[0.0, -math.inf, -math.inf]]
    assert found.tokens[0, 0].tolist() == [1, 1, 1, 1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_beams": 0}, "num_beams must be 1 or more, not 0"),
        ({"max_new_tokens": 0}, "max_new_tokens must be 1 or more"),
        ({"num_beams": 2, "num_return": 3}, "num_return 3 is more than the 2 beams"),
        ({"length_penalty": math.inf}, "length_penalty must be finite"),
        ({"early_stopping": "always"}, "early_stopping is True, False or 'never'"),
        ({"eos_ids": (1, 1)}, "eos_ids must be different tokens"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(RecipeError, match=message):
        BeamConfig(**options)


def test_bad_input():
    with pytest.raises(RecipeError, match="one prompt or more, not 0"):
        BeamSearch(0, BeamConfig())
    with pytest.raises(DataError, match=r"must be \(2, vocab\), not \(1, 5\)"):
        BeamSearch(1, BeamConfig(2)).update(torch.zeros(1, 5))
    with pytest.raises(DataError, match="step 0: a log-probability of row 1 is NaN"):
        BeamSearch(1, BeamConfig(2)).update(torch.tensor([[0.0, 0.0], [0.0, math.nan]]))
    with pytest.raises(RecipeError, match="the vocabulary has only 3 tokens"):
        BeamSearch(1, BeamConfig(1, eos_ids=(3,))).update(torch.zeros(1, 3))
    search = BeamSearch(1, BeamConfig(1, 1))
    search.update(torch.zeros(1, 3))
    with pytest.raises(RecipeError, match="the search is done"):
        search.update(torch.zeros(1, 3))
