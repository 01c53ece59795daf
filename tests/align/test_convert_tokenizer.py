"""The tokenizer that travels with converted weights gives transformers the same ids as ours."""

import pytest
import torch
from transformers import AutoTokenizer

from odonata.align.assets import Assets
from odonata.align.convert import convert
from odonata.align.dual_encoder import DualEncoder, DualEncoderConfig
from odonata.align.predictor import TwoTowerPredictor, load
from odonata.align.text_tower import TextConfig
from odonata.backbones.vit import ViTConfig
from odonata.data.preprocess import CLIP
from odonata.text.bpe import train_bpe
from odonata.text.families import clip_tokenizer

TEXTS = ["a Dalmatian, running!", "A RED bus", "  two   spaces ", "it's 3 o'clock!!", "x"]


def predictor_with(tokenizer) -> TwoTowerPredictor:
    text = TextConfig(
        vocab_size=tokenizer.vocab_size, context_length=tokenizer.context_length, width=32, depth=1, num_heads=2,
        mlp_width=64, eot_id=tokenizer.eos_id, pad_id=tokenizer.pad_id,
    )  # fmt: skip
    visual = ViTConfig(
        image_size=32, patch_size=16, width=32, depth=1, num_heads=2, mlp_width=64, pre_norm=True, patch_bias=False,
        activation="quick_gelu", norm_eps=1e-5,
    )  # fmt: skip
    config = DualEncoderConfig(visual=visual, text=text, embed_dim=16)
    preprocess = CLIP.from_dict(CLIP.to_dict() | {"size": 32})
    return TwoTowerPredictor(DualEncoder(config), Assets(config, preprocess, tokenizer), "tiny", torch.device("cpu"))


def of_transformers(folder, tokenizer) -> list[list[int]]:
    peer = AutoTokenizer.from_pretrained(folder)
    return [peer(text, truncation=True, max_length=tokenizer.context_length)["input_ids"] for text in TEXTS]


def without_padding(tokenizer) -> list[list[int]]:
    rows = tokenizer.encode(TEXTS).tolist()
    return [row[: row.index(tokenizer.eos_id) + 1] for row in rows]


@pytest.mark.shows("clip", "weights")
def test_ids_of_a_learned_bpe_survive_the_way_to_transformers(tmp_path):
    tokenizer = train_bpe(["a red bus", "a dalmatian is running", "two spaces"], vocab_size=300, context_length=24)
    convert(predictor_with(tokenizer), tmp_path / "hf", "hf")
    assert of_transformers(tmp_path / "hf", tokenizer) == without_padding(tokenizer)


@pytest.mark.shows("clip", "weights")
def test_ids_of_clips_own_merges_survive_the_way_to_transformers(tmp_path, shared_data):
    tokenizer = clip_tokenizer(shared_data / "weights/tokenizers/clip/bpe_simple_vocab_16e6.txt.gz")
    convert(predictor_with(tokenizer), tmp_path / "hf", "hf")
    assert of_transformers(tmp_path / "hf", tokenizer) == without_padding(tokenizer)


@pytest.mark.shows("clip", "weights")
def test_a_converted_folder_answers_as_before(tmp_path):
    tokenizer = train_bpe(["a red bus", "a dalmatian is running"], vocab_size=300, context_length=24)
    before = predictor_with(tokenizer)
    convert(before, tmp_path / "hf", "hf")
    after = load(tmp_path / "hf", None, torch.device("cpu"))
    torch.testing.assert_close(after.embed_text(TEXTS), before.embed_text(TEXTS))
