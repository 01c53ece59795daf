"""What one row of text data says: a conversation, a preference, a judgement, judged steps, or a question.

Everything here is text; tokens, templates and masks belong to the methods. Where a file lies and how it spells its
fields is forgotten but for `where`, which messages name.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Generic, Literal, TypeVar

Role = Literal["system", "user", "assistant", "tool"]
ROLES: tuple[Role, ...] = ("system", "user", "assistant", "tool")
RIGHT, NEUTRAL, WRONG = 1, 0, -1
"""Labels of steps, as PRM800K rates them (Lightman et al. 2023, "Let's Verify Step by Step")."""


@dataclass(frozen=True)
class Turn:
    """What one side says.

    Args:
        role: system, user, assistant or tool.
        content: never blank.
    """

    role: Role
    content: str


@dataclass(frozen=True)
class Prompt:
    """What a completion answers: turns or text, exactly one of both.

    Args:
        turns: go through the model's chat template.
        text: is taken as it is.
    """

    turns: tuple[Turn, ...] = ()
    text: str = ""

    def __post_init__(self) -> None:
        if bool(self.turns) == bool(self.text):
            raise ValueError("a Prompt takes either turns or text")


@dataclass(frozen=True)
class Exchange:
    """A prompt and the completion to learn.

    Args:
        prompt: of a conversation, all turns but the last.
        completion: of a conversation, the last turn, which is the assistant's.
        where: place of the row.
    """

    prompt: Prompt
    completion: str
    where: str

    @property
    def turns(self) -> tuple[Turn, ...]:
        """The whole conversation, the completion last; empty where the prompt is text."""
        return (*self.prompt.turns, Turn("assistant", self.completion)) if self.prompt.turns else ()


@dataclass(frozen=True)
class Preference:
    """Two completions of one prompt, which differ.

    Args:
        prompt: common to both.
        chosen, rejected: the better and the worse.
        margin: by how much, as the file says (finite); None where it does not.
        where: place of the row.
    """

    prompt: Prompt
    chosen: str
    rejected: str
    margin: float | None
    where: str


@dataclass(frozen=True)
class Judgement:
    """A completion that is wanted or not (KTO).

    Args:
        prompt, completion: as they are.
        desirable: whether it is wanted.
        where: place of the row; a pair gives two judgements of the same place.
    """

    prompt: Prompt
    completion: str
    desirable: bool
    where: str


@dataclass(frozen=True)
class Steps:
    """A solution in steps, each judged (process rewards).

    Args:
        prompt: the problem.
        steps: at least one.
        labels: of each step `RIGHT` (1), `NEUTRAL` (0) or `WRONG` (-1).
        where: place of the row.
    """

    prompt: Prompt
    steps: tuple[str, ...]
    labels: tuple[int, ...]
    where: str

    def __post_init__(self) -> None:
        if len(self.steps) != len(self.labels) or not self.steps:
            raise ValueError(f"{len(self.steps)} steps, but {len(self.labels)} labels")

    @property
    def first_mistake(self) -> int | None:
        """Number of the first wrong step, from 0; None where there is none."""
        return self.labels.index(WRONG) if WRONG in self.labels else None


@dataclass(frozen=True)
class Question:
    """A prompt whose answers a program can judge.

    Args:
        prompt: what the model is asked.
        row: the fields of the file, and under the names that rewards look for: `answer` (text), `numbers` and `target`.
        where: place of the row.
    """

    prompt: Prompt
    row: Mapping[str, Any]
    where: str


Item = Exchange | Preference | Judgement | Steps | Question
ItemT = TypeVar("ItemT", Exchange, Preference, Judgement, Steps, Question)


@dataclass(frozen=True)
class Read(Generic[ItemT]):
    """What a reader returns.

    Args:
        items: in the order of the file.
        problems: "file:line: what" of each row that was left out.
        kind: name of the format.
        origin: the file or folder.
        parts: of each item the part that its file's name says: "train", "validation", "test" or "". Empty unless a
            folder was read.
    """

    items: tuple[ItemT, ...]
    problems: tuple[str, ...]
    kind: str
    origin: str
    parts: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.items)

    def fingerprint(self) -> str:
        """16 hexadecimal digits that change with the content and the order of the items, not with their places."""
        digest = hashlib.sha256(self.kind.encode())
        for item in self.items:
            digest.update(content(item).encode("utf-8", "surrogatepass") + b"\n")
        return digest.hexdigest()[:16]

    def choose(self, numbers: list[int]) -> Read[ItemT]:
        """Some of the items, by their numbers; problems are kept."""
        parts = tuple(self.parts[i] for i in numbers) if self.parts else ()
        return replace(self, items=tuple(self.items[i] for i in numbers), parts=parts)


def content(item: Item | Prompt) -> str:
    """One line of JSON with all that an item says, but not where it stands: equal items have equal lines."""
    fields = asdict(item)
    fields.pop("where", None)
    return json.dumps(fields, sort_keys=True, ensure_ascii=False, default=repr)
