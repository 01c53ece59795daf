"""Conversations as the text that a model was trained to go on from: chat templates.

A template is a Jinja program in the model's directory. It is run in Jinja's sandbox, with the few names that
transformers offers it, and nothing else: it can refuse a conversation and waste time, but reach no file and no object
of Python's. Three plain ones stand here for models that bring none.

Source: transformers, `utils/chat_template_utils.py`.
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.parser
import jinja2.sandbox

from odonata.errors import DataError

TEMPLATES = {
    "chatml": "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
    "llama3": "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n"
    "{{ m.content | trim }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}",
    "plain": "{{ bos_token }}{% for m in messages %}{{ m.role | capitalize }}: {{ m.content }}"
    "{{ (eos_token if m.role == 'assistant' else '') + '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}Assistant:{% endif %}",
}
"""Templates by name: ChatML (Qwen's), Llama 3's, and words alone, for models without tokens for roles."""

Message = dict[str, str]
"""`{"role": …, "content": …}`."""


def render(
    messages: Sequence[Message], template: str, *, add_generation_prompt: bool, tokens: dict[str, str] | None = None
) -> str:
    """Return a conversation as text.

    Args:
        messages: role and content of each turn.
        template: a Jinja program, or the name of one in `TEMPLATES`.
        add_generation_prompt: end with what begins the assistant's turn.
        tokens: `bos_token`, `eos_token` and the like, by name.

    Raises:
        DataError: the template refuses the conversation, is wrong, or reaches for what it may not have.
    """
    names: dict[str, Any] = {"bos_token": "", "eos_token": "", **(tokens or {}), "tools": None, "documents": None}
    try:
        return _program(TEMPLATES.get(template, template)).render(
            messages=[dict(message) for message in messages], add_generation_prompt=add_generation_prompt, **names
        )
    except Exception as error:  # a program of unknown origin fails in any way
        what = getattr(error, "message", None) or str(error) or type(error).__name__
        raise DataError(f"the chat template cannot write this conversation: {what}") from error


class _Generation(jinja2.ext.Extension):
    """`{% generation %} … {% endgeneration %}`, by which some templates mark what the assistant says: it is written."""

    tags = frozenset({"generation"})  # pyright: ignore[reportAssignmentType]

    def parse(self, parser: jinja2.parser.Parser) -> list[jinja2.nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class _Sandbox(jinja2.sandbox.ImmutableSandboxedEnvironment):
    """Jinja's, which writes nothing where a template reaches for what it may not have; this one refuses."""

    def unsafe_undefined(self, obj: Any, attribute: str) -> jinja2.Undefined:
        raise jinja2.sandbox.SecurityError(f"access to {attribute!r} of a {type(obj).__name__} is unsafe")


@lru_cache(maxsize=16)
def _program(template: str) -> jinja2.Template:
    environment = _Sandbox(trim_blocks=True, lstrip_blocks=True, extensions=[jinja2.ext.loopcontrols, _Generation])
    names: dict[str, Any] = environment.globals  # pyright: ignore[reportAssignmentType]
    names["raise_exception"] = _refuse
    names["strftime_now"] = _now
    environment.filters["tojson"] = _tojson
    return environment.from_string(template)


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    # Jinja's own filter would escape what HTML has a meaning for.
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _refuse(message: str) -> None:
    raise jinja2.TemplateError(message)


def _now(form: str) -> str:
    return datetime.datetime.now().strftime(form)
