"""`odonata generate`: what a language model makes of prompts."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from odonata.app.commands.arguments import at_least, parse, print_json
from odonata.app.commands.language_models import SpeakingOptions, open_language_model
from odonata.errors import RecipeError

if TYPE_CHECKING:
    from odonata.language.language_model import Said, Text


@dataclass(frozen=True)
class GenerateArguments(SpeakingOptions):
    """Continue prompts: `odonata generate MODEL "Once upon a time" --n 8 --temperature 0.7`.

    MODEL is a run, or a directory as transformers writes it (Qwen2, Qwen3, Llama, GPT-2). A prompt stands as it is, or
    with --chat as a question put through the model's chat template. A line before each completion says how many tokens
    it took, its log-probability, and whether it was cut.
    """

    model: Annotated[Path, tyro.conf.Positional]
    """A run folder, or a directory of published weights."""
    prompts: Annotated[tuple[str, ...], tyro.conf.Positional] = ()
    """Texts to go on from; - reads one from standard input."""
    n: int = 1
    """Completions of each prompt."""
    stop: tuple[str, ...] = ()
    """Texts that end a completion, besides the model's end tokens; they stay in it."""
    chat: bool = False
    """Each prompt is a question to answer, written by the model's chat template."""
    system: str = ""
    """With --chat: what the model is told before the question."""
    batch_rows: int = 64
    """Completions made at a time."""
    json: bool = False
    """For programs: [{prompt, completions: [{text, tokens, logprob, finished}]}]."""


def generate(arguments: Sequence[str]) -> None:
    """Print completions."""
    options = parse(GenerateArguments, "generate", arguments)
    at_least(1, n=options.n, batch_rows=options.batch_rows)
    if not options.prompts:
        raise RecipeError('name a model and a prompt: odonata generate MODEL "Once upon a time"')
    if options.system and not options.chat:
        raise RecipeError("--system is said in a conversation: add --chat")
    if options.template != "auto" and not options.chat:
        raise RecipeError("--template writes conversations: add --chat")
    sampling = options.sampling()
    prompts = [_read(prompt) for prompt in options.prompts]
    model = open_language_model(
        options.model, device=options.device, dtype=options.dtype, which=options.which, template=options.template
    )
    if not options.json:
        for note in model.notes:
            print(f"- {note}", file=sys.stderr)
    told = [{"role": "system", "content": options.system}] if options.system else []
    asked: list[Text] = [[*told, {"role": "user", "content": p}] if options.chat else p for p in prompts]
    said = model.generate(
        asked, n=options.n, max_new_tokens=options.max_new_tokens, sampling=sampling, seed=options.seed,
        stop=options.stop, batch_rows=options.batch_rows,
    )  # fmt: skip
    if options.json:
        rows = zip(prompts, said, strict=True)
        print_json([{"prompt": prompt, "completions": [one.to_dict() for one in ways]} for prompt, ways in rows])
        return
    for prompt, ways in zip(prompts, said, strict=True):
        _print(prompt, ways, many=len(prompts) > 1)


def _read(prompt: str) -> str:
    return sys.stdin.read() if prompt == "-" else prompt


def _print(prompt: str, ways: Sequence[Said], many: bool) -> None:
    if many:
        print(f"=== {prompt}")
    for number, said in enumerate(ways, 1):
        cut = "" if said.finished else ", cut"
        print(f"--- {number}: {len(said.ids)} tokens, log-probability {said.logprob:.2f}{cut}")
        print(said.text)
