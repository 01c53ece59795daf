"""Image ⇄ text. This index needs no torch; the modules that it names do."""

from odonata.card import Card

METHODS = {
    "clip": Card(
        "Two towers, one space: matching pictures and captions by a softmax over the batch.",
        "Radford et al. 2021, arXiv:2103.00020",
        "odonata.align.recipes:clip",
        claims=("chunked-losses",),
    ),
    "siglip": Card(
        "CLIP with a sigmoid per pair instead of a softmax per row; also SigLIP 2's native-ratio inputs (NaFlex).",
        "Zhai et al. 2023, arXiv:2303.15343; Tschannen et al. 2025, arXiv:2502.14786",
        "odonata.align.recipes:siglip",
        claims=("siglip-batch-size", "siglip-bias-init", "chunked-losses"),
    ),
    "lit": Card(
        "CLIP with a pretrained tower locked: only the other one learns.",
        "Zhai et al. 2021, arXiv:2111.07991",
        "odonata.align.recipes:lit",
        claims=("lit-locked-tower",),
    ),
    "flip": Card(
        "CLIP that sees half of the patches while training, and all of them in a short last stretch.",
        "Li et al. 2022, arXiv:2212.00794",
        "odonata.align.recipes:flip",
        claims=("flip-masking",),
    ),
    "catlip": Card(
        "Pre-training on the nouns of captions as a classification problem: no text tower, no negatives.",
        "Mehta et al. 2024, arXiv:2404.15653",
        "odonata.align.recipes:catlip",
        claims=("catlip-time-to-accuracy",),
    ),
    "dfn": Card(
        "A small CLIP, trained on clean pairs, scores a noisy pool; the best part of it trains the model.",
        "Fang et al. 2023, arXiv:2309.17425",
        "odonata.align.recipes:dfn",
        claims=("dfn-filter",),
    ),
}
"""Every method of this room by name."""

BUILD = "odonata.align.build:build"
"""`build(recipe, assets) -> Task`."""

LOAD = "odonata.align.predictor:load"
"""`load(path, method, device) -> predictor`, for run folders of this room's methods and for published weights."""

RECOGNISES = "odonata.align.predictor:recognises"
"""`recognises(path) -> bool`: whether published weights, or a folder of Odonata's, are for this room."""

EXHIBITS = "odonata.align.evaluation:exhibits"
"""`exhibits(recipe, run, count) -> [(picture as a data: address, lines of text)]` for the report page."""
