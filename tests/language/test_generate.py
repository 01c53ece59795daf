"""Continuing prompts: transformers' tokens, rows that depend on nothing beside them, and rows that leave."""

import pytest
import torch
from transformers import GenerationConfig

from language.hf_decoders import both
from odonata.errors import DataError, RecipeError
from odonata.language.decoder import Decoder, DecoderConfig
from odonata.language.generate import generate
from odonata.language.sampling import Sampling
from odonata.language.sequences import pad_sequences, token_logprobs

PROMPTS = [[5, 9, 12], [7], [8, 3, 4, 11, 30, 31, 60], [14, 15, 16, 17], [80, 81], [33] * 12, [5, 9]]
GREEDY = Sampling(0)


def decoder_of(**changes) -> Decoder:
    torch.manual_seed(4)
    sizes = {
        "vocab_size": 97,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "intermediate_size": 64,
    }
    decoder = Decoder(DecoderConfig(**sizes | changes)).eval()
    with torch.no_grad():  # probabilities that differ
        for parameter in decoder.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return decoder


def their_completions(model, eos, limit):
    longest = max(map(len, PROMPTS))
    ids = torch.tensor([[0] * (longest - len(p)) + p for p in PROMPTS])
    mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in PROMPTS])
    options = GenerationConfig(max_new_tokens=limit, do_sample=False, eos_token_id=eos, pad_token_id=0)
    out = model.generate(ids, attention_mask=mask, generation_config=options)[:, longest:]
    rows = []
    for row in out.tolist():
        ends = [place for place, token in enumerate(row) if token in eos]
        rows.append(row[: ends[0] + 1] if ends else row)
    return rows


@pytest.mark.shows("decoder", "parity")
@pytest.mark.parametrize("name", ["qwen2", "qwen3", "llama-llama3", "gpt2"])
@pytest.mark.parametrize("batch_rows", [0, 3])
def test_greedy_tokens_are_those_of_transformers_for_prompts_of_any_length_and_a_list_of_ends(
    name, batch_rows, tmp_path
):
    model, decoder = both(name, tmp_path)
    with torch.no_grad():  # sharper than a random head, so that texts wander and end
        for parameter in (model.get_input_embeddings().weight, decoder.embed_tokens.weight):
            parameter.mul_(8)
    free = generate(decoder, PROMPTS, max_new_tokens=20, eos_ids=[], sampling=GREEDY)
    eos = sorted({int(free.tokens[2, 4]), int(free.tokens[0, 9]), 2})
    found = generate(decoder, PROMPTS, max_new_tokens=20, eos_ids=eos, sampling=GREEDY, batch_rows=batch_rows)
    reference = their_completions(model, eos, 20)
    assert found.lists() == reference
    assert found.finished.tolist() == [row[-1] in eos for row in reference]
    assert len(set(map(len, reference))) > 1, "ends of different rows at different places are what is tested"


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(0.8, top_p=0.9)])
def test_a_row_says_the_same_alone_in_any_batch_and_in_any_order(sampling):
    decoder, seeds = decoder_of(), list(range(100, 107))
    options = {"max_new_tokens": 24, "eos_ids": [1, 2, 3, 4, 5], "sampling": sampling}
    whole = generate(decoder, PROMPTS, seeds=seeds, **options).lists()
    assert generate(decoder, PROMPTS, seeds=seeds, batch_rows=2, **options).lists() == whole
    assert generate(decoder, PROMPTS[::-1], seeds=seeds[::-1], **options).lists() == whole[::-1]
    for row, prompt in enumerate(PROMPTS):
        assert generate(decoder, [prompt], seeds=[seeds[row]], **options).lists() == [whole[row]]


def test_a_group_is_as_many_rows_of_one_prompt():
    decoder, seeds = decoder_of(), list(range(21))
    options = {"max_new_tokens": 16, "eos_ids": [1, 2, 3], "seeds": seeds}
    grouped = generate(decoder, PROMPTS, group=3, **options)
    repeated = generate(decoder, [prompt for prompt in PROMPTS for _ in range(3)], **options)
    assert grouped.lists() == repeated.lists()
    assert generate(decoder, PROMPTS, group=3, batch_rows=4, **options).lists() == grouped.lists()
    assert len(set(map(tuple, grouped.lists()[:3]))) == 3, "the ways of a prompt differ"


def sizes_of_steps(decoder, monkeypatch):
    seen, hidden = [], decoder.hidden

    def watched(ids, *arguments, **options):
        seen.append(tuple(ids.shape))
        return hidden(ids, *arguments, **options)

    monkeypatch.setattr(decoder, "hidden", watched)
    return seen


def test_prompts_are_read_once_a_group_and_rows_that_have_ended_leave(monkeypatch):
    decoder = decoder_of()
    seen = sizes_of_steps(decoder, monkeypatch)
    generate(decoder, PROMPTS, max_new_tokens=6, eos_ids=[], group=4)
    assert seen == [(7, 12), *[(28, 1)] * 5]

    seen.clear()
    found = generate(
        decoder, PROMPTS, max_new_tokens=30, eos_ids=[], group=4, stop=lambda row: len(row) >= 2 + row[0] % 7
    )
    lengths = [len(row) for row in found.lists()]
    assert lengths == [2 + row[0] % 7 for row in found.lists()] and bool(found.finished.all())
    steps = [rows for rows, _ in seen[1:]]
    assert len(steps) == max(lengths) - 1 and steps[-1] < 28
    for place, rows in enumerate(steps, 1):
        running = sum(length > place for length in lengths)
        assert running <= rows and running >= rows * 0.8, "few rows are computed in vain"


def test_a_stop_is_asked_of_rows_that_still_run_only():
    asked = []
    generate(
        decoder_of(), [[3], [4]], max_new_tokens=5, eos_ids=[], stop=lambda row: asked.append(len(row)) or len(row) == 2
    )
    assert asked == [1, 1, 2, 2]


def test_log_probabilities_are_those_of_scoring_what_was_said():
    decoder = decoder_of()
    found = generate(decoder, PROMPTS, max_new_tokens=12, eos_ids=[1, 2, 3], sampling=Sampling(0.7), group=2)
    prompts = [prompt for prompt in PROMPTS for _ in range(2)]
    batch = pad_sequences(prompts, found.lists(), 0)
    with torch.no_grad():
        scored = token_logprobs(decoder, batch, temperature=0.7)[0]
    for row, prompt in enumerate(prompts):
        length = int(found.lengths[row])
        own = scored[row, len(prompt) - 1 : len(prompt) - 1 + length]
        assert torch.allclose(own, found.logprobs[row, :length], atol=1e-5)
    assert not found.logprobs[~found.mask].any()


def test_padding_may_be_the_end_token():
    decoder = decoder_of()
    options = {"max_new_tokens": 16, "eos_ids": [1, 2, 3], "group": 4}
    plain, same = generate(decoder, PROMPTS, pad_id=0, **options), generate(decoder, PROMPTS, pad_id=2, **options)
    assert plain.lists() == same.lists() and torch.equal(plain.mask, same.mask)
    assert set(same.tokens[~same.mask].tolist()) == {2}
    ended = [row for row, finished in zip(same.lists(), same.finished, strict=True) if finished]
    assert ended and all(row[-1] in (1, 2, 3) and not {1, 2, 3} & set(row[:-1]) for row in ended)
    cut = [row for row, finished in zip(same.lists(), same.finished, strict=True) if not finished]
    assert cut and all(len(row) == 16 for row in cut)


def test_what_was_generated_can_be_trained_on_and_the_mode_is_given_back():
    decoder = decoder_of(dropout=0.5).train()
    found = generate(decoder, [[3, 4]], max_new_tokens=4, eos_ids=[], group=2)
    assert decoder.training
    assert not found.tokens.is_inference() and not found.logprobs.is_inference()
    again = generate(decoder, [[3, 4]], max_new_tokens=4, eos_ids=[], group=2)
    assert torch.equal(found.tokens, again.tokens), "dropout does not act"
    token_logprobs(decoder, pad_sequences([[3, 4]] * 2, found.lists(), 0))[0].sum().backward()


@pytest.mark.shows("decoder", "manners")
@pytest.mark.parametrize(("prompts", "options", "message"), [
    ([], {}, "there is no prompt to continue"),
    ([[3], []], {}, "prompt 1 has no token; give the model one to go on from"),
    ([[3, 97]], {}, "prompt 0 has the token 97; this model knows 97"),
    ([[3]], {"max_new_tokens": 0}, "1 completions of 0 new tokens: there must be at least one of each"),
    ([[3]], {"group": 0}, "0 completions of 4 new tokens"),
    ([[3] * 30], {}, "a prompt of 30 tokens and 4 new ones: this model's learned positions end at 32"),
])  # fmt: skip
def test_prompts_that_cannot_be_continued_are_refused(prompts, options, message):
    decoder = decoder_of(positions="learned", max_position_embeddings=32)
    with pytest.raises(DataError, match=message):
        generate(decoder, prompts, **{"max_new_tokens": 4, "eos_ids": []} | options)


def test_learned_positions_can_be_used_to_the_last():
    decoder = decoder_of(positions="learned", max_position_embeddings=32)
    assert generate(decoder, [[3] * 28, [4]], max_new_tokens=4, eos_ids=[]).tokens.shape == (2, 4)


def test_a_distribution_that_cannot_be_is_refused_before_anything_is_read():
    with pytest.raises(RecipeError, match="--top-p is 2"):
        generate(decoder_of(), [[3]], max_new_tokens=4, eos_ids=[], sampling=Sampling(top_p=2))
