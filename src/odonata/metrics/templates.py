"""Named sets of prompt templates for zero-shot classification. ``{}`` stands for the class name.

CLIP (arXiv:2103.00020, section 3.1.4) averages the embeddings of many phrasings. These sets are our own and short; a
longer one (such as the 80 that openai/CLIP publishes for ImageNet) is read from a file by `read_templates`.
"""

from pathlib import Path

from odonata.errors import DataError, RecipeError

TEMPLATES: dict[str, tuple[str, ...]] = {
    "name": ("{}",),
    "simple": ("a photo of a {}.",),
    "photo": (
        "a photo of a {}.",
        "a picture of the {}.",
        "one {}, seen from nearby.",
        "a {} in the distance.",
        "a dark photo of a {}.",
        "a bright photo of a {}.",
        "a cropped photo showing a {}.",
    ),
    "small": (
        "a photo of a {}.",
        "a tiny picture of a {}.",
        "a coarse, pixelated photo of a {}.",
        "a blurred photo of the {}.",
        "a low-contrast photo of a {}.",
    ),
}
"""The sets: ``name`` is the bare class name, ``small`` is meant for pictures of few pixels (CIFAR)."""


def templates(name: str) -> tuple[str, ...]:
    """Return a named set.

    Raises:
        RecipeError: there is none of that name.
    """
    if name not in TEMPLATES:
        raise RecipeError(f"there is no template set {name!r}; choose one of {', '.join(TEMPLATES)}, or give a file")
    return TEMPLATES[name]


def read_templates(path: str | Path) -> tuple[str, ...]:
    """Read templates from a text file, one a line; empty lines and lines that start with ``#`` are passed over.

    Raises:
        DataError: the file cannot be read, holds none, or a line has no ``{}``.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read: {error}") from error
    found: list[str] = []
    for number, line in enumerate(lines, start=1):
        template = line.strip()
        if not template or template.startswith("#"):
            continue
        if "{}" not in template:
            raise DataError(f"{path}:{number}: template {template!r} has no {{}} for the class name")
        found.append(template)
    if not found:
        raise DataError(f"{path}: it holds no template")
    return tuple(found)
