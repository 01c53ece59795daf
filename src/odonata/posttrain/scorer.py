"""A decoder that says a number instead of a token: what reward models, process reward models and values are made of.

Notable:
- The head begins at zero: every text is worth the same before training, and the first loss is known (ln 2 for pairs).
- Only a decoder's states are used. A head over the vocabulary of its own is taken off, and no file holds one.
- What is scored is the state at a token that a mask names, never the last one that differs from padding: where padding
  is the end token, that would be another.

References: Ziegler et al. 2019, arXiv:1909.08593 (a linear head at the last token); Stiennon et al. 2020,
arXiv:2009.01325 (values start from the reward model).
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from odonata.engine.checkpoint import weights_file
from odonata.engine.run import write_atomically
from odonata.errors import RecipeError, WeightsError
from odonata.language.assets import DecoderAssets
from odonata.language.decoder import Decoder, DecoderConfig
from odonata.language.language_model import ends_of
from odonata.language.sequences import Sequences
from odonata.nn.lora import merge_lora
from odonata.text.text_tokenizer import TextTokenizer
from odonata.weights.maps import check_fit
from odonata.weights.read import read_json, read_state
from odonata.weights.scorers import OUTPUTS, ScorerKind, is_scorer, read_scorer

StepRule = Literal["separator", "digits-sum", "whole"]
"""How a text falls into steps: at a separator, as the texts of a built-in task do, or not at all."""
_FOLDER, _FILE = "scorer", "scorer.json"


@dataclass(frozen=True)
class ScorerEvaluation:
    """What is measured on rows that are held back."""

    rows: int = 512
    """Held-back rows used at most (0 = nothing is measured)."""
    batch_size: int = 64
    """Rows read at a time."""


class Scorer(nn.Module):
    """A decoder with a linear head.

    Args:
        decoder: gives states; its head over the vocabulary is taken off, in place.
        outputs: of the head.
        bias: whether the head has one.
    """

    def __init__(self, decoder: Decoder, outputs: int = 1, *, bias: bool = False) -> None:
        super().__init__()
        self.decoder = headless(decoder)
        self.score = nn.Linear(decoder.config.hidden_size, outputs, bias=bias)
        for parameter in self.score.parameters():
            nn.init.zeros_(parameter)

    def forward(self, ids: Int[Tensor, "batch time"]) -> Float[Tensor, "batch time outputs"]:
        """Return the head's outputs at every token; what stands behind a token changes none of them."""
        return self.score(self.decoder.hidden(ids))

    def at_end(self, batch: Sequences) -> Float[Tensor, " batch"]:
        """Return the first output at each row's last scored token: the end of sequence, or where an answer was cut."""
        hidden = self.decoder.hidden(batch.ids)
        rows = torch.arange(len(hidden), device=hidden.device)
        return self.score(hidden[rows, (batch.lengths - 1).clamp(min=0)])[:, 0]

    def values(self, batch: Sequences) -> Float[Tensor, "batch steps"]:
        """Return the first output before each token but the first, for sequences of `steps` + 1 tokens."""
        return self(batch.ids[:, :-1])[..., 0]


def headless(decoder: Decoder) -> Decoder:
    """Return the decoder without a head over the vocabulary of its own; it is changed in place."""
    if decoder.lm_head is not None:
        decoder.lm_head = None
        decoder.config = dataclasses.replace(decoder.config, tie_word_embeddings=True)
    return decoder


@dataclass(frozen=True)
class ScorerAssets:
    """What a run keeps of a scorer besides its weights."""

    decoder: DecoderAssets
    kind: ScorerKind
    steps: StepRule = "separator"
    """Of a process reward model: how a text falls into steps."""
    separator: str = "\n"
    """What ends each step."""

    def make(self) -> Scorer:
        """Return a scorer of these sizes, with adapters if there are any."""
        return Scorer(self.decoder.make(), OUTPUTS[self.kind], bias=self.kind == "steps")

    def save(self, folder: Path) -> None:
        """Write `scorer.json`, and the decoder's files in a folder `scorer`: no language model lies beside them."""
        inner = folder / _FOLDER
        inner.mkdir(exist_ok=True)
        self.decoder.save(inner)
        plain = {"kind": self.kind, "steps": self.steps, "separator": self.separator}
        write_atomically(folder / _FILE, json.dumps(plain, indent=1))

    @classmethod
    def load(cls, folder: Path) -> ScorerAssets:
        """Read what `save` wrote.

        Raises:
            WeightsError: the files are missing or not what they should be.
        """
        try:
            plain = json.loads((folder / _FILE).read_text(encoding="utf-8"))
            return cls(DecoderAssets.load(folder / _FOLDER), plain["kind"], plain["steps"], plain["separator"])
        except (OSError, json.JSONDecodeError, KeyError, TypeError) as error:
            raise WeightsError(f"{folder / _FILE}: cannot read the scorer's description: {error}") from error


def decoder_folder(folder: Path) -> Path:
    """Return where the decoder's assets lie within the `assets/` of a scorer's run."""
    return folder / _FOLDER


def check_scores(path: str | Path) -> Path:
    """Return a path at which there is a reward model; its weights are not read.

    Raises:
        WeightsError: nothing there that scores.
    """
    path = Path(path)
    if not path.is_dir():
        raise WeightsError(f"{path}: no such run or directory of a reward model")
    if (path / "config.yaml").is_file() and not (path / "assets" / _FILE).is_file():
        raise WeightsError(f"{path} is a run of another kind: it holds no reward model")
    if not (path / "config.yaml").is_file() and not is_scorer(path):
        raise WeightsError(
            f"{path} holds no reward model: that is a run of reward or prm, or a directory of transformers whose "
            "config.json names …ForSequenceClassification or …ForTokenClassification"
        )
    return path


def open_scorer(path: str | Path, which: str = "best") -> tuple[Scorer, ScorerAssets, list[str]]:
    """Return scorer, assets and notes of a run, or of a directory as transformers writes it.

    Args:
        path: of a run of `reward` or `prm`, or of a `…ForSequenceClassification` or `…ForTokenClassification`.
        which: "best" or "last" checkpoint of a run.

    Raises:
        WeightsError: nothing there that scores.
    """
    path = check_scores(path)
    if not (path / "config.yaml").is_file():
        return _read_folder(path)
    assets = ScorerAssets.load(path / "assets")
    scorer = assets.make()
    state = read_state(weights_file(path, which)).state
    own = {key.removeprefix("scorer."): value for key, value in state.items() if key.startswith("scorer.")}
    check_fit(own, scorer.state_dict(), str(path))
    scorer.load_state_dict(own)
    if assets.decoder.lora.rank:
        merge_lora(scorer.decoder)
    assets = dataclasses.replace(assets, decoder=assets.decoder.without_lora())
    return scorer, assets, [f"weights of the run {path}"]


def _read_folder(path: Path) -> tuple[Scorer, ScorerAssets, list[str]]:
    found = read_scorer(path)
    config = DecoderConfig.from_dict(found.fields)
    scorer = Scorer(Decoder(config), OUTPUTS[found.kind], bias="bias" in found.head)
    state = {f"decoder.{name}": value.float() for name, value in found.state.items()}
    state |= {f"score.{name}": value.float() for name, value in found.head.items()}
    check_fit(state, scorer.state_dict(), str(path))
    scorer.load_state_dict(state)
    generation = read_json(path / "generation_config.json") if (path / "generation_config.json").is_file() else {}
    tokenizer = TextTokenizer.load(path, ends_of(found.config, generation))
    assets = ScorerAssets(DecoderAssets(config, tokenizer, published=found.config, generation=generation), found.kind)
    weights = sum(parameter.numel() for parameter in scorer.parameters())
    what = "reward model" if found.kind == "reward" else "process reward model; steps end with a line break"
    return scorer, assets, [f"{path}: {found.config['model_type']}, {weights:,} weights, a {what}", *found.notes]


def check_vocabulary(policy: TextTokenizer, scorer: TextTokenizer, what: str) -> None:
    """Refuse a scorer that reads other tokens than the policy writes.

    Args:
        policy: its tokenizer.
        scorer: the scorer's.
        what: names the scorer in the message.

    Raises:
        RecipeError: an id means something else, or a text ends otherwise.
    """
    ours, theirs = (t.backend.get_vocab(with_added_tokens=True) for t in (policy, scorer))
    if ours != theirs:
        differing = sorted(token for token in ours.keys() | theirs.keys() if ours.get(token) != theirs.get(token))
        raise RecipeError(
            f"{what} reads other tokens than the policy writes: {len(differing)} entries of the vocabularies differ, "
            f"such as {differing[0]!r}. Train it from a model with the policy's tokenizer"
        )
    if policy.eos_ids[:1] != scorer.eos_ids[:1]:
        raise RecipeError(
            f"{what} knows another end of a text ({list(scorer.eos_ids)}) than the policy ({list(policy.eos_ids)})"
        )
