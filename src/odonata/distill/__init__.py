"""Teacher → student: thirteen classic losses. This index needs no torch; what it names does."""

from odonata.card import Card

METHODS = {
    "distill": Card(
        "A small network learns from a large one: KD, FitNets, AT, SP, CC, VID, RKD, PKT, AB, FT, FSP, NST, CRD.",
        "Hinton et al. 2015, arXiv:1503.02531; Tian et al. 2019, arXiv:1910.10699 (all thirteen compared)",
        "odonata.distill.recipes:distill",
        claims=("distillation-losses",),
    ),
}
"""Every method of this room by name."""

BUILD = "odonata.distill.build:build"
"""`build(recipe, assets) -> Task`."""

LOAD = "odonata.distill.build:load"
"""`load(path, method, device) -> predictor`: the student of a run."""

EXHIBITS = "odonata.distill.build:exhibits"
"""`exhibits(recipe, run, count) -> [(picture as a data: address, lines of text)]` for the report page."""
