"""The papers' claims as experiments: hypothesis, variants, seeds, a test, and a verdict that can come out either way.

This index needs no torch; the modules that it names do.
"""

from __future__ import annotations

import difflib
import importlib
import importlib.resources
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from odonata.errors import RecipeError

if TYPE_CHECKING:
    from odonata.claims.claim import Claim


@dataclass(frozen=True)
class ClaimCard:
    """One claim in the index."""

    room: str
    summary: str
    """One line: what is claimed."""
    reference: str
    """`module:object` of the `Claim`."""


CLAIMS = {
    "siglip-batch-size": ClaimCard(
        "align",
        "A sigmoid per pair beats the softmax at small batches, and the gap closes as batches grow.",
        "odonata.claims.align_siglip:BATCH_SIZE",
    ),
    "siglip-bias-init": ClaimCard(
        "align",
        "A bias that starts at −10 spares SigLIP its first steps and ends better than none or one at 0.",
        "odonata.claims.align_siglip:BIAS_INIT",
    ),
    "lit-locked-tower": ClaimCard(
        "align",
        "With few pairs a locked pretrained image tower beats the same tower unlocked, and one from scratch.",
        "odonata.claims.align_lit:CLAIM",
    ),
    "flip-masking": ClaimCard(
        "align",
        "Dropping half of the patches halves the time of a step, and costs no accuracy.",
        "odonata.claims.align_flip:CLAIM",
    ),
    "catlip-time-to-accuracy": ClaimCard(
        "align",
        "Classifying the nouns of captions reaches CLIP's linear-probe accuracy in less time.",
        "odonata.claims.align_catlip:CLAIM",
    ),
    "dfn-filter": ClaimCard(
        "align",
        "What a filter trained on clean pairs keeps of a noisy pool trains better than chance, and than all of it.",
        "odonata.claims.align_dfn:CLAIM",
    ),
    "chunked-losses": ClaimCard(
        "align",
        "The tiled losses are exact and need a fraction of the memory of a loop that retains its logits.",
        "odonata.claims.align_losses:CLAIM",
    ),
}
"""Every claim by name."""


def find(name: str) -> ClaimCard:
    """Return a claim's card.

    Raises:
        RecipeError: no such claim; names the nearest.
    """
    if name not in CLAIMS:
        near = difflib.get_close_matches(name, CLAIMS, 3)
        hint = f"did you mean {' or '.join(near)}?" if near else f"there are {', '.join(CLAIMS)}"
        raise RecipeError(f"no claim {name!r}; {hint}")
    return CLAIMS[name]


def load(name: str) -> Claim:
    """Return a claim by name; imports its module, and torch with it.

    Raises:
        RecipeError: no such claim.
    """
    module, _, attribute = find(name).reference.partition(":")
    return getattr(importlib.import_module(module), attribute)


def recorded() -> dict[str, dict[str, Any]]:
    """Return name → what was last recorded, for those claims of the index that have a record."""
    folder = importlib.resources.files("odonata.claims") / "recorded"
    files = {name: folder / f"{name}.json" for name in CLAIMS}
    return {name: json.loads(file.read_text(encoding="utf-8")) for name, file in files.items() if file.is_file()}
