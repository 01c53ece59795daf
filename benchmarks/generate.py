"""Useful tokens a second of generation, against transformers' `generate`.

    python benchmarks/generate.py            # some minutes
    python benchmarks/generate.py --quick    # a small model, one round

A decoder of Qwen2's form with random weights, written by us and read by transformers. Two jobs:

- as reinforcement learning has it: 16 prompts of 16 to 64 tokens, padded on the left, 8 samples each, at most 256 new
  tokens. One token in 64 is an end token, so a random model's completions have about 63 tokens: most of a batch has
  ended long before its last row has;
- equal lengths: 64 prompts of 32 tokens, 128 new tokens each, nothing ends.

Tokens behind an end are no use and are not counted. Both sample at temperature 1 from all tokens, each from its own
random numbers. Before that both must say the same tokens greedily, for prompts of several lengths and many ends. One
process, the contestants in turn, the best rate of each.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import torch
from torch import Tensor

from odonata.language.assets import DecoderAssets
from odonata.language.decoder import Decoder, DecoderConfig
from odonata.language.generate import generate
from odonata.language.language_model import published_files
from odonata.language.sampling import Sampling
from odonata.text.text_tokenizer import characters
from odonata.weights.published import write_folder

Prompts = list[list[int]]
Job = Callable[[int], Tensor]
"""From a seed to the lengths of all completions."""
ENDS_SHARE = 64


def ours(quick: bool) -> Decoder:
    """Return our decoder, the same weights at every call."""
    width, layers, vocab = (32, 2, 256) if quick else (256, 4, 4096)
    config = DecoderConfig(
        vocab_size=vocab, hidden_size=width, num_hidden_layers=layers, num_attention_heads=8, num_key_value_heads=4,
        head_dim=width // 8, intermediate_size=width * 8 // 3 // 16 * 16, qkv_bias=True, tie_word_embeddings=False,
    )  # fmt: skip
    torch.manual_seed(0)
    return Decoder(config).eval()


def theirs(decoder: Decoder) -> Any:
    """Return transformers' model with our weights."""
    from transformers import AutoModelForCausalLM

    with tempfile.TemporaryDirectory() as folder:
        assets = DecoderAssets(decoder.config, characters("ab"))
        write_folder(Path(folder) / "hf", published_files(decoder.state_dict(), assets))
        return AutoModelForCausalLM.from_pretrained(Path(folder) / "hf").eval()


def padded(prompts: Prompts) -> tuple[Tensor, Tensor]:
    """Return ids padded on the left, and which are real."""
    longest = max(map(len, prompts))
    ids = torch.tensor([[0] * (longest - len(p)) + p for p in prompts])
    mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts])
    return ids, mask


def lengths_of(tokens: Tensor, ends: list[int]) -> Tensor:
    """Return how many tokens of each row are of use: up to its first end."""
    ended = torch.isin(tokens, torch.tensor(ends, dtype=tokens.dtype)).int()
    first = ended.argmax(1) + 1
    return torch.where(ended.any(1), first, tokens.shape[1])


def their_tokens(model: Any, prompts: Prompts, ends: list[int], limit: int, **options: Any) -> Tensor:
    """Return what transformers says, without the prompts."""
    ids, mask = padded(prompts)
    out = model.generate(
        ids, attention_mask=mask, max_new_tokens=limit, pad_token_id=0, eos_token_id=ends or None, **options
    )
    return out[:, ids.shape[1] :]


def jobs(decoder: Decoder, model: Any, prompts: Prompts, ends: list[int], limit: int, group: int) -> dict[str, Job]:
    """Return one job done by each."""

    def by_ours(seed: int) -> Tensor:
        return generate(decoder, prompts, max_new_tokens=limit, eos_ids=ends, group=group, seeds=seed).lengths

    def by_theirs(seed: int) -> Tensor:
        torch.manual_seed(seed)
        options = {"do_sample": True, "top_k": 0, "top_p": 1.0, "temperature": 1.0, "num_return_sequences": group}
        return lengths_of(their_tokens(model, prompts, ends, limit, **options), ends)

    return {"ours": by_ours, "transformers": by_theirs}


def check_agreement(decoder: Decoder, model: Any, prompts: Prompts, ends: list[int]) -> None:
    """Stop if the two do not say the same greedily."""
    found = generate(decoder, prompts, max_new_tokens=40, eos_ids=ends, sampling=Sampling(0))
    reference = their_tokens(model, prompts, ends, 40, do_sample=False)
    wanted = [row[:length].tolist() for row, length in zip(reference, lengths_of(reference, ends), strict=True)]
    if found.lists() != wanted:
        raise SystemExit("ours and transformers do not say the same tokens greedily")


def measure(name: str, contestants: dict[str, Job], rounds: int) -> None:
    """Print the rates of one job."""
    best, said = dict.fromkeys(contestants, 0.0), dict.fromkeys(contestants, 0.0)
    seconds = dict.fromkeys(contestants, 0.0)
    for seed in range(rounds):
        for contestant, job in contestants.items():
            start = time.perf_counter()
            lengths = job(seed).float()
            took = time.perf_counter() - start
            if float(lengths.sum()) / took > best[contestant]:
                best[contestant], said[contestant] = float(lengths.sum()) / took, float(lengths.mean())
                seconds[contestant] = took
    for contestant, rate in best.items():
        print(
            f"{name:14}{contestant:14}{seconds[contestant]:9.2f}{said[contestant]:13.1f}{rate:17.0f}"
            f"{rate / best['transformers']:22.2f}"
        )


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a small model, one round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[-arguments.threads :])
    import transformers

    transformers.logging.set_verbosity_error()
    decoder = ours(arguments.quick)
    model = theirs(decoder)
    vocab, random = decoder.config.vocab_size, Random(0)
    ends = sorted(random.sample(range(1, vocab), vocab // ENDS_SHARE))
    uneven = [[random.randrange(vocab) for _ in range(random.randint(16, 64))] for _ in range(16)]
    even = [[random.randrange(vocab) for _ in range(32)] for _ in range(64)]
    check_agreement(decoder, model, uneven, ends)
    weights = sum(p.numel() for p in decoder.parameters())
    rounds, limits = (1, (24, 8)) if arguments.quick else (arguments.rounds, (256, 128))
    print(
        f"{weights / 1e6:.1f} M weights, torch {torch.__version__}, transformers {transformers.__version__}, "
        f"{arguments.threads} threads, best of {rounds}"
    )
    print(f"{'':28}{'seconds':>9}{'mean length':>13}{'useful tokens/s':>17}{'times transformers':>22}")
    measure("as RL has it", jobs(decoder, model, uneven, ends, limits[0], 8), rounds)
    measure("equal lengths", jobs(decoder, model, even, [], limits[1], 1), rounds)


if __name__ == "__main__":
    main()
