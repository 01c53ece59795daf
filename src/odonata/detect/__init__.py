"""Objects in pictures: boxes, and outlines. This index needs no torch; what it names does."""

from odonata.card import Card

METHODS = {
    "fcos": Card(
        "Every point in an object says how far its four sides are; --preset v1 for the paper's recipe.",
        "Tian et al. 2019, arXiv:1904.01355",
        "odonata.detect.recipes:fcos",
        claims=(),
    ),
}
"""Every method of this room by name."""

BUILD = "odonata.detect.build:build"
"""`build(recipe, assets) -> Task`."""

LOAD = "odonata.detect.predictor:load"
"""`load(path, method, device) -> predictor`, for run folders of this room's methods and for published detectors."""

RECOGNISES = "odonata.detect.predictor:recognises"
"""`recognises(path) -> bool`: whether published weights, or a folder of Odonata's, are for this room."""

EXHIBITS = "odonata.detect.exhibits:exhibits"
"""`exhibits(recipe, run, count) -> [(picture as a data: address, lines of text)]` for the report page."""
