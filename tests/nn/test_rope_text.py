"""Rotary positions of words: transformers' frequencies, and angles that no cast of the model rounds."""

import pytest
import torch
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from odonata.nn.rope import rotate
from odonata.nn.rope_text import RopeScaling, TextRoPE

KINDS = {
    "default": ({}, RopeScaling()),
    "linear": ({"factor": 4.0}, RopeScaling("linear", 4.0)),
    "llama3": ({"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64},
               RopeScaling("llama3", 8.0, 1.0, 4.0, 64)),
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_tables_are_transformers_to_the_bit_whatever_the_model_is_cast_to(kind, dtype):
    keys, scaling = KINDS[kind]
    config = LlamaConfig(hidden_size=32, num_attention_heads=1, head_dim=32, max_position_embeddings=4096,
                         rope_parameters={"rope_type": kind, "rope_theta": 10000.0, **keys})  # fmt: skip
    reference = LlamaRotaryEmbedding(config)
    positions = torch.tensor([[0, 1, 2, 77, 500], [3, 4, 9, 2000, 4095]])
    cos, sin = reference(torch.zeros(1, dtype=dtype), positions)
    found = TextRoPE(32, 10000.0, scaling).to(dtype)(positions, dtype)
    assert found.cos.dtype == dtype
    assert torch.equal(found.cos, cos) and torch.equal(found.sin, sin)


def test_what_two_words_say_of_each_other_depends_on_their_distance_alone():
    rope = TextRoPE(16, 10000.0, RopeScaling())
    torch.manual_seed(0)
    query, key = torch.randn(1, 1, 1, 16), torch.randn(1, 1, 1, 16)

    def score(i: int, j: int) -> torch.Tensor:
        return (
            rotate(query, rope(torch.tensor([i]), torch.float32)) * rotate(key, rope(torch.tensor([j]), torch.float32))
        ).sum()

    assert torch.allclose(score(9, 4), score(105, 100), atol=1e-4)
    assert not torch.allclose(score(9, 4), score(9, 5), atol=1e-3)
