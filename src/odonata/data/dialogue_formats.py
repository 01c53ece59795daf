"""The formats of text data: how each is recognised by its fields, and what its rows can be read as.

The table is searched from the top, so a format with more fields stands before one with fewer: a judgement is no
exchange with a label that nobody looks at. A field that is null counts as absent, since tables of many formats fill up
their rows with it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from odonata.data import dialogue_rows as rows
from odonata.data import dialogue_tasks as tasks
from odonata.data.dialogue_items import Item
from odonata.data.dialogue_prompts import Row
from odonata.data.gold_answers import ends_in_hashes

Kind = Literal["exchanges", "preferences", "judgements", "steps", "questions"]
RowReader = Callable[[Row], list[Item]]


@dataclass(frozen=True)
class Format:
    """A way to write rows.

    Args:
        name: what `Read.kind` says.
        fields: that a row must have, not null.
        readers: what a row can be read as, and how.
        nullable: fields that must be there but may be null.
        when: what else must hold of a row.
    """

    name: str
    fields: tuple[str, ...]
    readers: Mapping[Kind, RowReader]
    nullable: tuple[str, ...] = ()
    when: Callable[[Mapping[str, Any]], bool] = field(default=lambda record: True)

    def fits(self, record: Mapping[str, Any]) -> bool:
        """Whether a row is of this format."""
        return (
            all(record.get(name) is not None for name in self.fields)
            and all(name in record for name in self.nullable)
            and self.when(record)
        )

    def lacks(self, record: Mapping[str, Any]) -> str | None:
        """What a row lacks of this format's fields, as a message says it; None: nothing."""
        for name in (*self.fields, *self.nullable):
            if name not in record:
                return f"{name!r} is missing"
            if record[name] is None and name not in self.nullable:
                return f"{name!r} is null"
        return None


_PAIR: dict[Kind, RowReader] = {
    "preferences": rows.preference,
    "judgements": rows.judgements_of_pair,
    "questions": tasks.question_of_pair,
}
FORMATS = (
    Format("preference", ("prompt", "chosen", "rejected"), _PAIR),
    Format("pair", ("chosen", "rejected"), _PAIR),
    Format("messages", ("messages",), {
        "exchanges": rows.exchange_of_messages,
        "questions": tasks.question_of_messages,
    }),
    Format("conversations", ("conversations",), {"exchanges": rows.exchange_of_messages}),
    Format("steps", ("prompt", "completions", "labels"), {"steps": tasks.steps_with_labels}),
    Format("first-mistake", ("input", "steps"), {"steps": tasks.steps_to_mistake}, nullable=("mistake_index",)),
    Format("judgement", ("prompt", "completion", "label"), {"judgements": rows.judgement}),
    Format("completion", ("prompt", "completion"), {
        "exchanges": rows.exchange_of_completion,
        "questions": tasks.question_of_prompt,
    }),
    Format("instruction", ("instruction", "output"), {"exchanges": rows.exchange_of_instruction}),
    Format("prompt", ("prompt",), {"questions": tasks.question_of_prompt}),
    Format("model-solutions", ("question", "ground_truth"), {
        "exchanges": rows.exchange_between("question", "ground_truth"),
        "judgements": rows.judgements_of_solutions,
        "questions": tasks.question_under("question", tasks.gold_letter),
    }),
    Format("problem", ("problem", "answer"), {
        "exchanges": rows.exchange_between("problem", "solution"),
        "questions": tasks.question_under("problem", tasks.gold_field),
    }),
    Format("math", ("problem", "solution"), {
        "exchanges": rows.exchange_between("problem", "solution"),
        "questions": tasks.question_under("problem", tasks.gold_boxed),
    }),
    Format("gsm8k", ("question", "answer"), {
        "exchanges": (_answered := rows.exchange_between("question", "answer")),
        "questions": tasks.question_under("question", tasks.gold_hashes),
    }, when=lambda record: ends_in_hashes(record["answer"])),
    Format("question", ("question", "answer"), {
        "exchanges": _answered,
        "questions": tasks.question_under("question", tasks.gold_field),
    }),
    Format("svamp", ("Body", "Question", "Answer"), {"questions": tasks.question_of_svamp}),
    Format("countdown", ("numbers", "target"), {"questions": tasks.question_of_countdown}),
    Format("countdown", ("nums", "target"), {"questions": tasks.question_of_countdown}),
)  # fmt: skip


def format_of(record: Mapping[str, Any]) -> Format | None:
    """Return the format of a row; None where it has the fields of none."""
    return next((format for format in FORMATS if format.fits(record)), None)


def formats_with(kind: Kind) -> str:
    """The fields of the formats that can be read as a kind, for messages."""
    fitting = [format for format in FORMATS if kind in format.readers]
    return "; ".join(dict.fromkeys(", ".join((*format.fields, *format.nullable)) for format in fitting))
