from dataclasses import replace

import pytest
import torch

from odonata.backbones.interface import Backbone
from odonata.backbones.modified_resnet import VARIANTS as RESNETS
from odonata.backbones.modified_resnet import ModifiedResNet, ModifiedResNetConfig
from odonata.backbones.vit import VARIANTS, ViT, ViTConfig
from odonata.nn.patches import patchify

TINY = ViTConfig(image_size=32, patch_size=8, width=32, depth=2, num_heads=2, mlp_width=64)
NAFLEX = replace(TINY, positions="naflex", class_token=False, pool="map")
RESNET = ModifiedResNetConfig(image_size=64, layers=(1, 1, 1, 1), width=8, num_heads=4, embed_dim=20)


@pytest.mark.parametrize(
    "config",
    [
        TINY,
        replace(TINY, pool="mean", positions="sincos_2d"),
        replace(TINY, pool="map", class_token=False, init="siglip"),
        NAFLEX,
        RESNET,
    ],
    ids=["class", "flip", "siglip", "naflex", "resnet"],
)
def test_every_tower_offers_the_backbone_interface(config):
    tower = (ModifiedResNet(config) if config is RESNET else ViT(config)).eval()
    images = torch.randn(2, 3, config.image_size, config.image_size)
    assert isinstance(tower, Backbone)
    assert tower(images).shape == (2, tower.num_features)
    features = tower.forward_features(images)
    torch.testing.assert_close(tower.forward_head(features), tower(images))
    assert len(tower.features(images, [0, -1])) == 2
    tower.reset_head(5)
    assert tower(images).shape == (2, 5)
    assert tower.forward_head(features, pre_logits=True).shape == (2, tower.num_features)
    tower.reset_head(0)
    assert tower(images).shape == (2, tower.num_features)


def test_published_sizes_have_the_published_numbers_of_parameters():
    def count(config):
        with torch.device("meta"):
            return sum(p.numel() for p in ViT(config).parameters()) / 1e6

    # Dosovitskiy et al. 2020, table 1: 86, 307 and 632 million, without the classifier.
    assert count(VARIANTS["vit-b16"]) == pytest.approx(85.8, abs=0.1)
    assert count(VARIANTS["vit-l16"]) == pytest.approx(303.3, abs=0.1)
    assert count(VARIANTS["vit-h14"]) == pytest.approx(630.8, abs=0.1)
    with torch.device("meta"):
        rn50 = sum(p.numel() for p in ModifiedResNet(RESNETS["RN50"]).parameters()) / 1e6
    assert rn50 == pytest.approx(38.3, abs=0.1)  # open_clip model_profile.csv: image_mparams of RN50


def test_patch_dropout_equals_the_tower_on_the_kept_tokens():
    tower = ViT(replace(TINY, pool="mean", positions="sincos_2d", patch_dropout=0.5)).train()
    images = torch.randn(2, 3, 32, 32)
    tokens = tower.embed(images)
    _, kept = tower.patch_dropout(tokens, torch.Generator().manual_seed(3))
    rows = torch.arange(2)[:, None]
    shorter = torch.cat([tokens[:, :1], tokens[rows, kept + 1]], 1)
    want = tower.norm(tower.transformer(shorter)).mean(1)
    torch.testing.assert_close(tower(images, generator=torch.Generator().manual_seed(3)), want)
    assert tower.eval()(images).shape == (2, 32)


def test_images_and_their_flat_patches_give_the_same_features():
    tower, images = ViT(NAFLEX), torch.randn(2, 3, 24, 40)
    patches, grids = patchify(images, 8), torch.tensor([[3, 5], [3, 5]])
    torch.testing.assert_close(tower(patches, None, grids), tower(images), rtol=1e-5, atol=1e-6)


def test_padding_and_company_do_not_change_a_naflex_image():
    tower, images = ViT(NAFLEX), torch.randn(1, 3, 24, 40)
    patches = patchify(images, 8)
    padded = torch.cat([torch.cat([patches, torch.full((1, 5, 192), 9.0)], 1), torch.randn(1, 20, 192)])
    mask = torch.ones(2, 20).bool()
    mask[0, 15:] = False
    both = tower(padded, mask, torch.tensor([[3, 5], [4, 5]]))
    torch.testing.assert_close(both[:1], tower(images), rtol=1e-5, atol=1e-5)


def test_other_image_sizes_are_taken():
    for config in (TINY, replace(TINY, positions="sincos_2d"), replace(TINY, position_convention="big_vision")):
        assert ViT(config)(torch.randn(1, 3, 48, 24)).shape == (1, 32)
    assert ModifiedResNet(RESNET)(torch.randn(2, 3, 96, 64)).shape == (2, 20)


def test_wrong_use_is_explained():
    with pytest.raises(ValueError, match=r"images of shape \(1, 1, 32, 32\): want \[batch, 3, height, width\]"):
        ViT(TINY)(torch.randn(1, 1, 32, 32))
    with pytest.raises(ValueError, match="flat patches need grids"):
        ViT(NAFLEX)(torch.randn(1, 4, 192))
    with pytest.raises(ValueError, match="pool 'class' needs class_token"):
        replace(TINY, class_token=False)
    with pytest.raises(ValueError, match="not a multiple of num_heads 5"):
        replace(TINY, num_heads=5)


def test_initialisations_have_the_published_spread():
    torch.manual_seed(0)
    config = replace(TINY, width=256, num_heads=4, mlp_width=1024, depth=1, pre_norm=True, patch_bias=False)
    clip = ViT(replace(config, init="clip"))
    assert clip.positions.std().item() == pytest.approx(256**-0.5, rel=0.1)
    packed = torch.nn.MultiheadAttention(256, 4).in_proj_weight
    assert clip.transformer.layers[0].attn.q.weight.std().item() == pytest.approx(packed.std().item(), rel=0.02)
    siglip = ViT(replace(config, init="siglip", class_token=False, pool="map"))
    assert siglip.patch_embed.proj.weight.std().item() == pytest.approx((3 * 64) ** -0.5, rel=0.02)
    assert siglip.transformer.layers[0].mlp.fc1.bias.abs().max() < 1e-5
    assert siglip.transformer.layers[0].attn.q.weight.std().item() == pytest.approx((2 / 512) ** 0.5, rel=0.02)
    mae = ViT(config)
    assert mae.patch_embed.proj.weight.std().item() == pytest.approx((2 / (256 + 192)) ** 0.5, rel=0.02)
