"""The options of the Vision Transformer: what each promises."""

import copy
from dataclasses import replace

import pytest
import torch

from odonata.backbones import FAMILIES
from odonata.backbones.vit import VARIANTS, ViT, ViTConfig

TINY = ViTConfig(image_size=32, patch_size=8, width=32, depth=2, num_heads=2, mlp_width=64)
ROPE = replace(TINY, positions="rope", registers=3, qkv_bias="no_key", rope_rescale=2.0, layer_scale=1.0)
SIZES = [(32, 32), (24, 48), (16, 8), (40, 40), (8, 8)]


def test_the_index_lists_the_variants():
    assert set(FAMILIES["vit"].names) == VARIANTS.keys()


@pytest.mark.parametrize(
    ("name", "millions"),
    # DeiT table 1 says 5 and 86; DINOv2's and DINOv3's model cards 21, 86, 300, 1100 and 21, 29, 86, 300, 840, 6716.
    # The decimals are counted here, without classifiers, and pin them.
    [("deit-ti16", 5.52), ("deit-b16-distilled", 85.8), ("dinov2-s14", 22.1), ("dinov2-g14", 1136.5),
     ("dinov3-s16", 21.6), ("dinov3-s16plus", 28.7), ("dinov3-l16", 303.1), ("dinov3-h16plus", 840.5),
     ("dinov3-7b16", 6716.0)],
)  # fmt: skip
def test_published_numbers_of_parameters(name, millions):
    with torch.device("meta"):
        found = sum(p.numel() for p in ViT(VARIANTS[name]).parameters()) / 1e6
    assert found == pytest.approx(millions, rel=0.003)


@pytest.mark.parametrize("config", [
    TINY, replace(TINY, pool="patches", fc_norm=True), replace(TINY, distilled=True), ROPE, replace(TINY, registers=2),
    replace(TINY, pool="map", class_token=False), replace(TINY, pool="class_mean", position_convention="dino"),
], ids=["plain", "mean", "distilled", "rope", "registers", "map", "class_mean"])  # fmt: skip
def test_packed_images_have_the_features_of_one_by_one(config):
    tower = ViT(config).double().eval()
    images = [torch.randn(3, *size, dtype=torch.float64) for size in SIZES]
    one_by_one = torch.cat([tower(image[None]) for image in images])
    for row_length in (None, 100):
        torch.testing.assert_close(tower.forward_packed(images, row_length), one_by_one, rtol=1e-9, atol=1e-9)


def test_both_heads_are_averaged_and_can_be_had_apart():
    tower = ViT(replace(TINY, distilled=True)).eval()
    tower.reset_head(4)
    assert not torch.equal(tower.head.weight, tower.head_distilled.weight)
    images = torch.randn(2, 3, 32, 32)
    first, second = tower.forward_heads(images)
    torch.testing.assert_close(tower(images), (first + second) / 2)
    tokens = tower.forward_features(images)
    torch.testing.assert_close(first, tower.head(tokens[:, 0]))
    torch.testing.assert_close(second, tower.head_distilled(tokens[:, 1]))
    with pytest.raises(ValueError, match="needs a distillation token"):
        ViT(TINY).forward_heads(images)


def test_poolings_are_what_they_say():
    images = torch.randn(2, 3, 32, 32)
    tower = ViT(replace(TINY, registers=2, pool="patches")).eval()
    tokens = tower.forward_features(images)
    assert tokens.shape == (2, 19, 32)
    torch.testing.assert_close(tower(images), tokens[:, 3:].mean(1))
    both = ViT(replace(TINY, pool="class_mean")).eval()
    tokens = both.forward_features(images)
    torch.testing.assert_close(both(images), torch.cat([tokens[:, 0], tokens[:, 1:].mean(1)], 1))
    assert both.num_features == 64
    normed = ViT(replace(TINY, pool="patches", fc_norm=True)).eval()
    torch.testing.assert_close(normed(images), normed.fc_norm(normed.forward_features(images)[:, 1:].mean(1)))


def test_registers_have_no_position_and_are_no_cells_of_the_map():
    tower = ViT(replace(TINY, registers=2)).eval()
    images = torch.randn(1, 3, 32, 40)
    embedded = tower.embed(images)
    torch.testing.assert_close(embedded[0, 1:3], tower.register_tokens)
    torch.testing.assert_close(embedded[0, 0], tower.class_token + tower.positions[0])
    assert tower.features(images, [-1], "nchw")[0].shape == (1, 32, 4, 5)


def test_a_bias_of_the_keys_changes_no_answer():
    """All logits of a query move alike, which the softmax does not see: DINOv3 leaves it out."""
    tower = ViT(TINY).eval()
    other = copy.deepcopy(tower)
    for layer in other.transformer.layers:
        torch.nn.init.normal_(layer.attn.k.bias)
    images = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(other(images), tower(images), rtol=1e-4, atol=1e-5)
    masked = ViT(replace(TINY, qkv_bias="no_key"))
    masked.load_state_dict({k: v for k, v in tower.state_dict().items() if not k.endswith("k.bias")})
    torch.testing.assert_close(masked.eval()(images), tower(images))


def test_normed_queries_and_keys_do_not_see_their_scale():
    tower = ViT(replace(TINY, qk_norm=True)).eval()
    images, before = torch.randn(1, 3, 32, 32), None
    before = tower(images)
    with torch.no_grad():
        for layer in tower.transformer.layers:
            layer.attn.q.weight *= 50
            layer.attn.q.bias *= 50
    torch.testing.assert_close(tower(images), before, rtol=1e-3, atol=1e-3)


def test_dropped_patches_keep_their_rotary_places():
    tower = ViT(replace(ROPE, patch_dropout=0.5, rope_rescale=None)).train()
    images = torch.randn(2, 3, 32, 32)
    _, kept = tower.patch_dropout(tower.embed(images), torch.Generator().manual_seed(3))
    found = tower.forward_features(images, generator=torch.Generator().manual_seed(3))
    mask = torch.zeros(2, 20, dtype=torch.bool)
    mask[:, :4] = True
    mask.scatter_(1, kept + 4, True)
    rotation = tower.rope((4, 4), 4)
    everything = tower.norm(tower.transformer(tower.embed(images), mask=mask, rotation=rotation))
    rows = torch.cat([torch.arange(4).expand(2, -1), kept + 4], 1)
    torch.testing.assert_close(found, everything[torch.arange(2)[:, None], rows], rtol=1e-4, atol=1e-5)


def test_merging_acts_outside_training_and_keeps_the_grid():
    plain, merging = ViT(TINY), ViT(replace(TINY, merge_tokens=4))
    merging.load_state_dict(plain.state_dict())
    images = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(merging.train()(images), plain(images))
    found = merging.eval().forward_features(images)
    assert found.shape == (2, 17, 32)
    assert len({tuple(token) for token in found[0].tolist()}) == 17 - 2 * 4
    flat = images.mean((2, 3), keepdim=True).expand_as(images)  # patches that differ by their positions only
    with torch.no_grad():
        for tower in (plain, merging):
            tower.positions[1:] = 0
    torch.testing.assert_close(merging(flat), plain.eval()(flat), rtol=1e-4, atol=1e-5)


def test_patches_of_another_size_are_taken():
    tower = ViT(TINY).eval()
    small, large = torch.randn(2, 3, 32, 32), torch.randn(2, 3, 64, 64)
    other = tower.with_patch_size(16)
    assert other.config.image_size == 64 and tower.config.patch_size == 8
    torch.testing.assert_close(other(large), tower(large, patch_size=16))
    torch.testing.assert_close(tower.with_patch_size(8)(small), tower(small))
    cells = small.unflatten(3, (-1, 8)).unflatten(2, (-1, 8)).permute(0, 2, 4, 1, 3, 5).flatten(0, 2)
    grown = torch.nn.functional.interpolate(cells, (16, 16), mode="bilinear")
    grown = grown.unflatten(0, (2, 4, 4)).permute(0, 3, 1, 4, 2, 5).flatten(4, 5).flatten(2, 3)
    torch.testing.assert_close(other(grown), tower(small), rtol=1e-4, atol=1e-4)


def test_moco_v3_draws_query_key_and_value_apart_and_freezes_the_projection():
    torch.manual_seed(0)
    config = replace(VARIANTS["moco-v3-s16"], depth=1)
    tower = ViT(config)
    assert config.num_heads == 12
    # facebookresearch/moco-v3 vits.py: bound sqrt(6 / (width + width)), not that of the packed 3 width x width.
    bound = (6 / (384 + 384)) ** 0.5
    q = tower.transformer.layers[0].attn.q.weight
    assert 0.99 * bound < q.abs().max().item() <= bound
    assert q.std().item() == pytest.approx(bound / 3**0.5, rel=0.01)
    assert tower.class_token.abs().max() < 1e-5
    bound = (6 / (3 * 256 + 384)) ** 0.5
    assert tower.patch_embed.proj.weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.01)
    assert not any(p.requires_grad for p in tower.patch_embed.parameters())
    assert "positions" not in dict(tower.named_parameters())


def test_moco_v3_and_mae_positions_differ_by_their_halves():
    mae, moco = (ViT(replace(TINY, positions=kind)).positions for kind in ("sincos_2d", "sincos_2d_y"))
    assert torch.equal(mae, moco.roll(16, 1))
    assert not torch.allclose(mae, moco)


def test_timm_draws_a_normal_of_two_hundredths():
    tower = ViT(replace(TINY, width=256, num_heads=4, mlp_width=512, init="timm"))
    assert tower.transformer.layers[0].mlp.fc1.weight.std().item() == pytest.approx(0.02, rel=0.02)
    assert tower.positions.std().item() == pytest.approx(0.02, rel=0.1)


@pytest.mark.parametrize(("change", "message"), [
    ({"pool": "class_mean", "class_token": False}, "pool 'class_mean' needs class_token"),
    ({"distilled": True, "pool": "mean"}, "goes with pool 'class'"),
    ({"positions": "rope", "merge_tokens": 2}, "merge_tokens does not go with positions 'rope'"),
    ({"positions": "rope", "width": 36, "num_heads": 6}, "divisible by 4, not 6"),
    ({"pool": "none", "fc_norm": True}, "fc_norm=True does not go with pool 'none'"),
])  # fmt: skip
def test_what_does_not_go_together_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        replace(TINY, **change)
