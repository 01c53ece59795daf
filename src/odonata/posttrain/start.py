"""What a run of this room begins with: a policy, its assets, and the reference that it is tied to."""

from __future__ import annotations

import dataclasses
import logging
import time
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from odonata.data.text_sets import TextSet
from odonata.engine.distributed import World
from odonata.engine.fit import train as train_task
from odonata.errors import DataError, RunError
from odonata.language import recipes as language_recipes
from odonata.language.assets import DecoderAssets, adapt
from odonata.language.build import build as build_decoder
from odonata.language.decoder import Decoder
from odonata.language.language_model import open_model
from odonata.language.next_token import NextToken
from odonata.posttrain.options import PolicyOptions
from odonata.posttrain.reference import Reference
from odonata.posttrain.tasks import TASKS, Task, task_named
from odonata.text.text_tokenizer import TextTokenizer

log = logging.getLogger(__name__)
_REFERENCE = "reference.safetensors"


@dataclass
class Start:
    """A policy before training, and what belongs to it."""

    decoder: Decoder
    assets: DecoderAssets
    reference: Reference | None
    task: Task | None
    notes: list[str] = field(default_factory=list[str])

    def save(self, folder: Path) -> None:
        """Write what belongs to the policy besides its weights, the reference included."""
        self.assets.save(folder)
        if self.reference is not None and (state := self.reference.state()):
            save_file({name: value.cpu().contiguous() for name, value in state.items()}, folder / _REFERENCE)


def starting_point(
    options: PolicyOptions, path: str, *, seed: int, wants_reference: bool, folder: Path | None = None
) -> Start:
    """Return what a recipe begins with.

    Args:
        options: of the method.
        path: of the data; empty: those of a task.
        seed: of a base that is made here.
        wants_reference: whether the method compares with the model that it began with.
        folder: the `assets/` of a run that is resumed.

    Raises:
        OdonataError: the weights cannot be used, or the model cannot write what its task is about.
    """
    task = None if path else task_named(options.task or next(iter(TASKS)))
    if folder is not None:
        return _resumed(folder, wants_reference, task)
    if options.model:
        decoder, assets, notes = open_model(options.model)
        if task is not None:
            _check_alphabet(task.texts, assets.tokenizer, options.model)
    else:
        assert task is not None  # `PolicyOptions.check` saw to it
        decoder, assets, notes = make_base(task, seed)
    assets = dataclasses.replace(assets, template=options.template)
    if options.lora.rank:
        adapted = adapt(decoder, options.lora)
        notes.append(f"LoRA: rank {options.lora.rank} beside {len(adapted)} matrices; the rest is frozen")
        assets = dataclasses.replace(assets, lora=options.lora)
    return Start(decoder, assets, Reference(decoder) if wants_reference else None, task, notes)


def _check_alphabet(texts: TextSet, tokenizer: TextTokenizer, model: str) -> None:
    lacking = [c for c in texts.alphabet if tokenizer.decode(tokenizer.encode(c)).strip() != c.strip()]
    if lacking:
        raise DataError(
            f"{model} has no token for {''.join(lacking)!r}, which {texts.name} is written with; take a model that has "
            "them, or leave out --model for the task's own base"
        )


def _resumed(folder: Path, wants_reference: bool, task: Task | None) -> Start:
    assets = DecoderAssets.load(folder)
    decoder = assets.make()
    if not wants_reference:
        return Start(decoder, assets, None, task)
    reference = Reference(decoder)
    if not reference.shared:
        file = folder / _REFERENCE
        if not file.is_file():
            raise RunError(f"{file} is missing: the run cannot go on without its reference")
        reference.decoder.load_state_dict(load_file(file))
    return Start(decoder, assets, reference, task)


def make_base(task: Task, seed: int) -> tuple[Decoder, DecoderAssets, list[str]]:
    """Train the base of a task from nothing on its texts; return it, its assets and what to say of it.

    Under several ranks each makes the same base: what it computes depends on the seed alone.
    """
    built_in = task.built_in
    plain = language_recipes.decoder()
    recipe = dataclasses.replace(
        plain,
        method=dataclasses.replace(plain.method, variant=built_in.variant, initialisation="flat"),
        data=dataclasses.replace(plain.data, path=task.texts.name, batch_size=built_in.batch_size),
        optim=dataclasses.replace(plain.optim, lr=built_in.lr),
        steps=built_in.steps,
        accumulate=built_in.parts,
        seed=seed,
    )
    log.info("making the base of %s", task.texts.name)
    began = time.perf_counter()
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        built = build_decoder(recipe)
        figures = train_task(recipe, built, None, World(0, 1, torch.device("cpu")))
    assert isinstance(built.method, NextToken)
    took = f"{built_in.steps} steps, {time.perf_counter() - began:.0f} s"
    note = f"base: {built.notes[0]}, trained on {task.texts.name}: {took}, {figures['nats']:.3f} nats a token held back"
    return built.method.decoder, built.assets, [note]
