"""Small models for the tests of searches: random ones, as transformers writes them, and questions for them."""

import contextlib
import io
from pathlib import Path

import torch

from odonata.data.dialogues import Prompt, Question
from odonata.language.language_model import LanguageModel, load
from odonata.posttrain.rows import Encoder
from odonata.posttrain.search.asked import Asked, asked_of
from odonata.text.text_tokenizer import TextTokenizer, characters

ALPHABET = "0123456789=#"
CPU = torch.device("cpu")


def random_qwen2(folder: Path, seed: int = 0, peaked: float = 6.0, tokenizer: TextTokenizer | None = None):
    """Write a random Qwen2 with a tokenizer, of the built-in task's characters if none is given; return it."""
    import transformers

    transformers.logging.set_verbosity_error()
    tokenizer = tokenizer or characters(ALPHABET)
    torch.manual_seed(seed)
    config = transformers.Qwen2Config(
        vocab_size=tokenizer.vocab_size, hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, intermediate_size=64, max_position_embeddings=128, tie_word_embeddings=False,
        eos_token_id=tokenizer.eos_ids[0], pad_token_id=tokenizer.pad_id, bos_token_id=None,
    )  # fmt: skip
    with contextlib.redirect_stderr(io.StringIO()):
        model = transformers.Qwen2ForCausalLM(config).eval()
    with torch.no_grad():
        model.lm_head.weight *= peaked
        model.lm_head.weight[tokenizer.eos_ids[0]] = model.lm_head.weight.mean(0) + 0.05 * peaked * torch.randn(32)
    folder.mkdir(parents=True, exist_ok=True)
    with contextlib.redirect_stderr(io.StringIO()):
        model.save_pretrained(folder)
    tokenizer.save(folder)
    return model


def opened(folder: Path) -> LanguageModel:
    """The same model, read by us."""
    return load(folder, None, CPU)


def questions(*texts: str, answer: str = "3") -> list[Question]:
    """Prompts that are text as it is, all with one answer."""
    return [Question(Prompt(text=text), {"answer": answer}, f"row {i}") for i, text in enumerate(texts)]


def asked(model: LanguageModel, *texts: str, answer: str = "3") -> list[Asked]:
    """Questions as a model reads them."""
    return asked_of(questions(*texts, answer=answer), Encoder(model.tokenizer))
