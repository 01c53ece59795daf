import dataclasses
import math
from dataclasses import replace

import pytest
import torch
import tyro

from odonata.align.dual_encoder import DualEncoder, DualEncoderConfig, config_from_dict, config_to_dict
from odonata.align.dual_encoder_variants import CLIP, SIGLIP, VARIANTS


def millions(config):
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in DualEncoder(config).parameters()) / 1e6


def test_published_models_have_the_published_numbers_of_parameters():
    # open_clip docs/model_profile.csv, column mparams.
    assert millions(CLIP["ViT-B-32"]) == pytest.approx(151.28, abs=0.01)
    assert millions(CLIP["ViT-B-16"]) == pytest.approx(149.62, abs=0.01)
    assert millions(CLIP["ViT-L-14"]) == pytest.approx(427.62, abs=0.01)
    assert millions(CLIP["RN50"]) == pytest.approx(102.01, abs=0.01)
    assert millions(SIGLIP["ViT-B-16-SigLIP"]) == pytest.approx(203.16, abs=0.01)
    assert millions(SIGLIP["ViT-L-16-SigLIP-384"]) == pytest.approx(652.48, abs=0.01)
    assert millions(SIGLIP["ViT-SO400M-14-SigLIP"]) == pytest.approx(877.36, abs=0.01)
    assert millions(SIGLIP["ViT-SO400M-14-SigLIP-384"]) == pytest.approx(877.96, abs=0.01)


@pytest.mark.parametrize("name", VARIANTS)
def test_configuration_survives_plain_values(name):
    assert config_from_dict(config_to_dict(VARIANTS[name])) == VARIANTS[name]


def test_configurations_hold_plain_values_only():
    for config in VARIANTS.values():
        for tower in (config.visual, config.text):
            for field in dataclasses.fields(tower):
                assert isinstance(getattr(tower, field.name), int | float | str | bool | tuple | None)


def test_command_line_reads_a_configuration():
    args = ["--embed-dim", "64", "visual:vi-t-config", "--visual.width", "96", "--visual.num-heads", "3"]
    config = tyro.cli(DualEncoderConfig, args=args)
    assert (config.embed_dim, config.visual.width) == (64, 96)


@pytest.mark.parametrize("name", ["clip-laptop", "siglip-laptop"])
def test_laptop_models_run_and_start_as_published(name):
    config = VARIANTS[name]
    model = DualEncoder(config)
    tokens = torch.randint(0, 4000, (3, config.text.context_length))
    image, text = model(torch.randn(3, 3, 64, 64), tokens)
    torch.testing.assert_close(image.norm(dim=1), torch.ones(3))
    torch.testing.assert_close(text.norm(dim=1), torch.ones(3))
    scale, bias = (1 / 0.07, 0) if "clip" in name else (10, -10)
    torch.testing.assert_close(model.logits(image, text), scale * image @ text.T + bias)
    assert model.logit_scale.item() == pytest.approx(math.log(scale))


def test_contradictions_are_refused():
    with pytest.raises(ValueError, match="image tower's 192 must equal embed_dim 128"):
        replace(VARIANTS["clip-laptop"], visual_projection=False)
    with pytest.raises(ValueError, match="unexpected keyword argument 'widht'"):
        config_from_dict({"visual": {"widht": 3}, "text": {}})
    with pytest.raises(ValueError, match=r"visual\.kind 'swin' is unknown"):
        config_from_dict({"visual": {"kind": "swin"}, "text": {}})
