"""Words: the decoder language model that writes. This index needs no torch; what it names does."""

from odonata.card import Card

METHODS = {
    "decoder": Card(
        "A decoder in the Qwen and Llama names, or GPT-2's: next-token prediction from scratch or from weights.",
        "Radford et al. 2019 (GPT-2); Touvron et al. 2023, arXiv:2302.13971 (LLaMA); Qwen Team 2024, arXiv:2412.15115",
        "odonata.language.recipes:decoder",
        claims=("grouped-query-attention",),
    ),
}
"""Every method of this room by name."""

BUILD = "odonata.language.build:build"
"""`build(recipe, assets) -> Task`."""

LOAD = "odonata.language.language_model:load"
"""`load(path, method, device) -> LanguageModel`, for run folders and for published directories."""

RECOGNISES = "odonata.language.language_model:recognises"
"""`recognises(path) -> bool`: whether a directory holds a decoder."""

EXHIBITS = "odonata.language.exhibits:exhibits"
"""`exhibits(recipe, run, count) -> [(picture as a data: address, lines of text)]` for the report page."""
