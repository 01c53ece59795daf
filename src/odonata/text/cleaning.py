"""How each family of checkpoints cleans a caption before its tokenizer sees it. A model is only as good as this match.

- clip: mended mojibake, HTML entities (doubly escaped ones too), white space, lower case. openai/CLIP
  `simple_tokenizer.py`: `basic_clean`, `whitespace_clean`, `.lower()`.
- siglip: underscores become spaces, ASCII punctuation is dropped, lower case, white space. big_vision
  `evaluators/proj/image_text/prompt_engineering.py`: `canonicalize_text`. (transformers drops underscores instead.)
- siglip2: lower case. arXiv:2502.14786, section 2.1; transformers `Siglip2Tokenizer`.
- bert: nothing; case and accents are the business of BERT's own normaliser. google-research/bert `tokenization.py`.
- lower, whitespace: for vocabularies trained here: white space collapsed, with and without lower case.
- none: the text as it stands.
"""

import html
import re
import string
from collections.abc import Callable
from typing import Literal, get_args

import ftfy

from odonata.errors import RecipeError

Cleaning = Literal["clip", "siglip", "siglip2", "bert", "lower", "whitespace", "none"]

_PUNCTUATION = str.maketrans("", "", string.punctuation)


def clean(text: str, family: Cleaning) -> str:
    """Return a caption as the family's models saw it in training.

    Args:
        text: the caption.
        family: whose rule; see the module.

    Raises:
        RecipeError: there is no such family.

    >>> clean("A &amp;amp;  B\\n", "clip")
    'a & b'
    >>> clean("Traffic_light: a close-up!", "siglip")
    'traffic light a closeup'
    """
    rule = _RULES.get(family)
    if rule is None:
        raise RecipeError(f"there is no cleaning {family!r}; choose one of {', '.join(get_args(Cleaning))}")
    return rule(text)


def _collapse(text: str) -> str:
    return re.sub(r"\s+", " ", text).strip()


def _clip(text: str) -> str:
    return _collapse(html.unescape(html.unescape(ftfy.fix_text(text)))).lower()


def _siglip(text: str) -> str:
    return _collapse(text.replace("_", " ").translate(_PUNCTUATION).lower())


def _unchanged(text: str) -> str:
    return text


_RULES: dict[str, Callable[[str], str]] = {
    "clip": _clip,
    "siglip": _siglip,
    "siglip2": str.lower,
    "bert": _unchanged,
    "lower": lambda text: _collapse(text).lower(),
    "whitespace": _collapse,
    "none": _unchanged,
}
