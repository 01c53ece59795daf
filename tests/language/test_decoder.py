"""The decoder gives transformers' numbers for the architectures whose files it reads, however a text is read."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from language.hf_decoders import BIT_EQUAL, MODELS, both, ids_of
from odonata.errors import WeightsError
from odonata.language.cache import Cache
from odonata.language.decoder import VARIANTS, Decoder, DecoderConfig, variant
from odonata.language.sequences import Sequences, pad_sequences, token_logprobs


def small(**changes) -> Decoder:
    sizes = {
        "vocab_size": 50,
        "hidden_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 6,
        "intermediate_size": 40,
    }
    torch.manual_seed(1)
    return Decoder(DecoderConfig(**sizes | changes)).eval()


def relative(ours: torch.Tensor, reference: torch.Tensor) -> float:
    return float((ours - reference).norm() / reference.norm())


@pytest.mark.shows("decoder", "parity")
@pytest.mark.parametrize("name", MODELS)
def test_scores_are_those_of_transformers(name, tmp_path):
    model, decoder = both(name, tmp_path)
    ids = ids_of(3, 90)
    with torch.no_grad():
        reference, found = model(ids).logits, decoder(ids)
    if name in BIT_EQUAL:
        assert torch.equal(found, reference)
    else:  # their GELU is written out in parts
        assert relative(found, reference) < 1e-6


@pytest.mark.shows("decoder", "parity")
@pytest.mark.parametrize("name", MODELS)
def test_loss_and_gradients_of_the_next_token_are_those_of_transformers(name, tmp_path):
    model, decoder = both(name, tmp_path)
    ids = ids_of(4, 24)
    reference = model(ids, labels=ids).loss
    reference.backward()
    batch = pad_sequences([row[:1] for row in ids.tolist()], [row[1:] for row in ids.tolist()], 0)
    loss = -token_logprobs(decoder, batch)[0].sum() / (4 * 23)
    loss.backward()
    assert abs(loss.item() - reference.item()) < 1e-6 * reference.item()
    wanted, found = dict(model.named_parameters()), dict(decoder.named_parameters())
    if name == "gpt2":
        pairs = [("transformer.wte.weight", "embed_tokens.weight"),
                 ("transformer.wpe.weight", "embed_positions.weight"),
                 ("transformer.h.1.ln_2.bias", "layers.1.post_attention_layernorm.bias"),
                 ("transformer.h.2.mlp.c_fc.bias", "layers.2.mlp.up_proj.bias")]  # fmt: skip
        fused = torch.cat([found[f"layers.1.self_attn.{part}_proj.weight"].grad for part in "qkv"]).T
        assert relative(fused, wanted["transformer.h.1.attn.c_attn.weight"].grad) < 1e-5
    else:
        pairs = [(key if key == "lm_head.weight" else f"model.{key}", key) for key in found]
        assert len(pairs) == len(wanted)
    for key, own in pairs:
        assert relative(found[own].grad, wanted[key].grad) < 1e-5, key


@pytest.mark.shows("decoder", "parity")
@pytest.mark.parametrize("name", MODELS)
def test_padding_on_the_left_changes_nothing_and_is_read_as_transformers_reads_it(name, tmp_path):
    model, decoder = both(name, tmp_path)
    ids, mask = ids_of(3, 20), torch.ones(3, 20, dtype=torch.bool)
    mask[0, :7] = mask[2, :1] = False
    positions = (mask.long().cumsum(1) - 1).clamp(min=0)
    with torch.no_grad():
        reference = model(ids, attention_mask=mask.long(), position_ids=positions).logits
        found, alone = decoder(ids, mask), decoder(ids[:1, 7:])
    assert torch.isfinite(found).all(), "a row of padding is no softmax over nothing"
    assert relative(found[mask], reference[mask]) < 1e-6
    assert relative(found[0, 7:], alone[0]) < 1e-6


@pytest.mark.parametrize("name", ["qwen3", "llama-llama3", "llama-one-key-head", "gpt2"])
@pytest.mark.parametrize("padded", [False, True])
def test_a_text_read_in_pieces_with_a_cache_gives_the_scores_of_reading_it_at_once(name, padded, tmp_path):
    _, decoder = both(name, tmp_path)
    ids, mask = ids_of(2, 30), torch.ones(2, 30, dtype=torch.bool)
    mask[0, :5] = not padded
    config = decoder.config
    cache = Cache(config.num_hidden_layers, 2, config.num_key_value_heads, 30, config.head_dim, decoder.head_weight)
    pieces, start = [], 0
    with torch.no_grad():
        for length in (11, 1, 7, 1, 1, 9):
            stop = start + length
            pieces.append(decoder.hidden(ids[:, start:stop], mask[:, :stop] if padded else None, cache))
            start = stop
        found = decoder.logits(torch.cat(pieces, 1))
        reference = decoder(ids, mask if padded else None)
    assert relative(found[mask], reference[mask]) < 1e-6
    assert torch.equal(found[mask].argmax(-1), reference[mask].argmax(-1))


def test_only_wanted_states_are_returned_and_they_are_the_same():
    decoder = small()
    ids, wanted = ids_of(4, 12, vocab=50), torch.rand(4, 12) < 0.3
    with torch.no_grad():
        found, whole = decoder.hidden(ids, wanted=wanted), decoder.hidden(ids)
    assert found.shape == (int(wanted.sum()), 24)
    assert torch.allclose(found, whole[wanted], atol=1e-6)


def test_what_stands_behind_a_sequence_changes_none_of_its_numbers():
    decoder = small()
    short = pad_sequences([[3, 4]], [[5, 6, 7]], 0)
    long = pad_sequences([[3, 4], [8]], [[5, 6, 7], list(range(9, 40))], 49)
    one, other = token_logprobs(decoder, short, entropy=True), token_logprobs(decoder, long, entropy=True)
    for alone, beside in zip(one, other, strict=True):
        assert torch.allclose(alone[0], beside[0, :4], atol=1e-6)
        assert not beside[0, 4:].any()
    assert short.scored.tolist() == [[False, False, True, True, True]]


def test_sequences_without_a_scored_token_have_no_loss():
    batch = Sequences(torch.tensor([[3, 4, 5], [6, 7, 8]]), torch.zeros(2, 3, dtype=torch.bool))
    assert batch.rows(torch.tensor([0])).ids.shape == (1, 1)
    assert not token_logprobs(small(), batch)[0].any()
    assert token_logprobs(small(), batch.rows(torch.tensor([0])))[0].shape == (1, 0)


def test_the_temperature_of_log_probabilities_divides_the_scores():
    decoder, batch = small(), pad_sequences([[3, 4]], [[5, 6]], 0)
    scores = torch.log_softmax(decoder(batch.ids) / 0.5, -1)
    found = token_logprobs(decoder, batch, temperature=0.5)[0]
    assert torch.allclose(found[0, 1:], torch.stack([scores[0, 1, 5], scores[0, 2, 6]]), atol=1e-6)


def test_a_full_cache_says_so():
    decoder = small()
    cache = Cache(2, 1, 2, 4, 6, decoder.head_weight)
    with torch.no_grad():
        decoder.hidden(ids_of(1, 3, vocab=50), None, cache)
        with pytest.raises(ValueError, match="a cache for 4 tokens cannot take 5"):
            decoder.hidden(ids_of(1, 2, vocab=50), None, cache)


def test_a_cache_keeps_and_repeats_rows_in_the_order_asked_for():
    cache = Cache(1, 3, 1, 2, 1, torch.zeros(1))
    cache.extend(0, torch.tensor([1.0, 2, 3]).view(3, 1, 1, 1), torch.tensor([4.0, 5, 6]).view(3, 1, 1, 1))
    cache.length = 1
    cache.keep(torch.tensor([2, 0, 0]))
    assert cache.keys[0][:, 0, 0, 0].tolist() == [3, 1, 1]
    cache.repeat(2, 7)
    assert cache.values[0][:, 0, 0, 0].tolist() == [6, 6, 4, 4, 4, 4] and cache.keys[0].shape[2] == 7


def test_learned_positions_end():
    decoder = small(positions="learned", max_position_embeddings=8)
    assert decoder(ids_of(1, 8, vocab=50)).shape == (1, 8, 50)
    with pytest.raises(WeightsError, match="a sequence of 9 tokens: this model's learned positions end at 8"):
        decoder(ids_of(1, 9, vocab=50))


@pytest.mark.parametrize(("fields", "message"), [
    ({"num_key_value_heads": 3}, "4 heads of queries cannot share 3 heads of keys"),
    ({"head_dim": 5}, "rotary positions turn pairs: head_dim is 5, which is odd"),
    ({"vocab_size": 0}, "vocab_size is 0; a decoder wants at least 1"),
    ({"num_key_value_heads": 0}, "num_key_value_heads is 0; a decoder wants at least 1"),
])  # fmt: skip
def test_sizes_that_cannot_be_are_refused(fields, message):
    with pytest.raises(WeightsError, match=message):
        small(**fields)


def test_a_configuration_survives_plain_values():
    config = small(rope_theta=5e5, qk_norm=True).config
    assert DecoderConfig.from_dict(config.to_dict()) == config
    with pytest.raises(WeightsError, match="a decoder has no field widht"):
        DecoderConfig.from_dict({"widht": 3})


def test_named_sizes_go_from_24_thousand_weights_to_23_million():
    counts = {name: sum(p.numel() for p in Decoder(variant(name, 14)).layers.parameters()) for name in VARIANTS}
    assert counts["nano"] == 23_872 and counts["base"] == 23_019_520
    assert list(counts.values()) == sorted(counts.values())


@pytest.mark.parametrize(("way", "deviations"), [
    ("flat", (0.02, 0.02, 0.02)),
    ("scaled", (0.02 * 6**0.5, 0.02 * (768 / 336 / 8) ** 0.5, 0.02 * 6**0.5)),  # 128 dimensions, 4 layers
])  # fmt: skip
def test_new_matrices_have_the_deviation_that_was_asked_for(way, deviations):
    torch.manual_seed(0)
    decoder = Decoder(variant("mini", 500), way)
    mlp = decoder.layers[2].mlp
    assert mlp.up_proj.weight.std().item() == pytest.approx(deviations[0], rel=0.02)
    assert mlp.down_proj.weight.std().item() == pytest.approx(deviations[1], rel=0.02)
    assert decoder.embed_tokens.weight.std().item() == pytest.approx(deviations[2], rel=0.02)
    assert not decoder.layers[0].self_attn.q_proj.bias.any()


def test_dropout_acts_in_training_alone():
    decoder, ids = small(dropout=0.3), ids_of(2, 9, vocab=50)
    assert torch.equal(decoder(ids), decoder(ids))
    decoder.train()
    assert not torch.equal(decoder(ids), decoder(ids))


@pytest.mark.shows("decoder", "parity")
@pytest.mark.parametrize("name", ["qwen2", "qwen3", "llama-llama3"])
def test_bfloat16_weights_give_transformers_numbers(name, tmp_path):
    _, decoder = both(name, tmp_path)
    model = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16).eval()
    ids = ids_of(2, 90)
    with torch.no_grad():
        reference, found = model(ids).logits, decoder.bfloat16()(ids)
    assert found.dtype == torch.bfloat16 and torch.equal(found, reference)
