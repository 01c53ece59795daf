from dataclasses import replace

import pytest
import torch

from odonata.align.prefix_tree import prefix_trees
from odonata.align.text_tower import TextConfig, TextTransformer

CAUSAL = TextConfig(vocab_size=50, context_length=12, width=32, depth=2, num_heads=2, mlp_width=64, eot_id=49)
SIGLIP = replace(CAUSAL, causal=False, pool="last", pad_id=1, init="siglip", activation="gelu_tanh")


def texts():
    tokens = torch.randint(2, 48, (4, 12))
    for row, end in enumerate((3, 7, 5, 2)):
        tokens[row, end], tokens[row, end + 1 :] = 49, 0
    return tokens


@pytest.mark.parametrize("pool", ["argmax", "eot"])
def test_trimming_is_exact(pool):
    tower, tokens = TextTransformer(replace(CAUSAL, pool=pool)), texts()
    full = tower(tokens, trim=False)
    torch.testing.assert_close(tower(tokens), full, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(tower(tokens[:, :8]), full, rtol=1e-5, atol=1e-5)


def test_company_and_padding_id_do_not_change_a_text():
    tower, tokens = TextTransformer(CAUSAL), texts()
    alone = torch.cat([tower(row[None]) for row in tokens])
    torch.testing.assert_close(tower(tokens), alone, rtol=1e-5, atol=1e-5)
    other = tokens.clone()
    other[other == 0] = 1
    torch.testing.assert_close(tower(other), alone, rtol=1e-5, atol=1e-5)


def test_end_token_rules_differ_once_larger_ids_exist():
    tokens = torch.tensor([[5, 40, 6, 49, 0, 0]])
    first = TextTransformer(replace(CAUSAL, pool="eot", eot_id=40))
    largest = TextTransformer(replace(CAUSAL, pool="argmax"))
    largest.load_state_dict(first.state_dict())
    normed = first.norm(first.forward_features(tokens))
    torch.testing.assert_close(first(tokens)[0], normed[0, 1], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(largest(tokens)[0], normed[0, 3], rtol=1e-5, atol=1e-5)


def test_missing_end_token_is_reported():
    tokens = texts()
    tokens[2][tokens[2] == 49] = 5
    with pytest.raises(ValueError, match=r"texts \[2\] of the batch have no end token \(id 49\)"):
        TextTransformer(replace(CAUSAL, pool="eot"))(tokens)


def test_bidirectional_tower_refuses_short_texts_and_sees_its_padding():
    tower, tokens = TextTransformer(SIGLIP), torch.randint(2, 48, (2, 12))
    with pytest.raises(ValueError, match="takes exactly 12; pad with id 1"):
        tower(tokens[:, :8])
    padded = tokens.clone()
    padded[:, 8:] = 1
    assert (tower(tokens) - tower(padded)).norm() > 0.1


def test_masked_padding_is_not_seen():
    tower = TextTransformer(replace(SIGLIP, pool="first", mask_padding=True, pad_id=0, init="bert"))
    tokens = texts()
    torch.testing.assert_close(tower(tokens), tower(tokens[:, :8]), rtol=1e-5, atol=1e-5)


def test_too_long_and_contradicting_configurations_are_refused():
    with pytest.raises(ValueError, match="texts of 13 tokens are longer than the context of 12"):
        TextTransformer(CAUSAL)(torch.zeros(1, 13, dtype=torch.long))
    with pytest.raises(ValueError, match="pool 'first' reads a position that sees only itself"):
        replace(CAUSAL, pool="first")
    with pytest.raises(ValueError, match="eot_id 50 is not in a vocabulary of 50"):
        replace(CAUSAL, pool="eot", eot_id=50)


def test_clip_initialisation_has_the_published_spread():
    tower = TextTransformer(replace(CAUSAL, width=256, num_heads=4, mlp_width=1024, vocab_size=500, eot_id=499))
    block = tower.transformer.layers[0]
    expected = {
        tower.token_embedding.weight: 0.02,
        tower.positions: 0.01,
        block.attn.q.weight: 256**-0.5,
        block.attn.proj.weight: 256**-0.5 * 4**-0.5,
        block.mlp.fc1.weight: 512**-0.5,
        block.mlp.fc2.weight: 256**-0.5 * 4**-0.5,
    }
    for parameter, std in expected.items():
        assert parameter.std().item() == pytest.approx(std, rel=0.05)


@pytest.mark.parametrize("pool", ["argmax", "eot"])
def test_sharing_common_beginnings_is_exact(pool):
    tower = TextTransformer(replace(CAUSAL, pool=pool)).eval()
    tokens = torch.randint(2, 4, (60, 12))  # two words only: nearly all texts share a beginning, and some are equal
    for row in range(60):
        end = int(torch.randint(1, 12, ()))
        tokens[row, end], tokens[row, end + 1 :] = 49, 0
    torch.testing.assert_close(tower(tokens, share_prefixes=True), tower(tokens, trim=False), rtol=1e-5, atol=1e-5)


def test_common_beginnings_take_no_room_and_cut_trees_lose_no_text():
    tokens = torch.tensor([[7, 8, 9, 49], [7, 8, 49, 0], [7, 8, 9, 49], [6, 49, 0, 0]])
    ends = torch.tensor([3, 2, 3, 1])
    whole = prefix_trees(tokens, ends)
    assert sorted(whole.tokens[0].tolist()) == [6, 7, 8, 9, 49, 49, 49]
    assert whole.ends[0] == whole.ends[2]
    tower = TextTransformer(CAUSAL).eval()
    cut = prefix_trees(tokens, ends, max_tokens=3)
    assert cut.tokens.shape[0] > 1
    for trees in (whole, cut):
        x = tower.token_embedding(trees.tokens) + tower.positions[trees.depths]
        x = tower.norm(tower.transformer(x, mask=trees.mask).flatten(0, 1)[trees.ends])
        torch.testing.assert_close(x, tower(tokens), rtol=1e-5, atol=1e-5)
