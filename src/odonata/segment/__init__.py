"""The class of every pixel. This index needs no torch; what it names does."""

from odonata.card import Card

_FCN = "Long, Shelhamer and Darrell 2014, arXiv:1411.4038"
METHODS = {
    "fcn-32s": Card(
        "A classifier's layers slide over the picture; their scores are enlarged 32 times at once.",
        _FCN,
        "odonata.segment.recipes:fcn_32s",
        claims=("fcn-stride-ceiling", "pspnet-context"),
    ),
    "fcn-16s": Card(
        "FCN whose coarse scores are joined by those of the fourth pooling; --init a run of fcn-32s for stages.",
        _FCN,
        "odonata.segment.recipes:fcn_16s",
        claims=("fcn-stride-ceiling",),
    ),
    "fcn-8s": Card(
        "FCN with scores of three layers; --preset torchvision-r50 for torchvision's dilated network.",
        _FCN,
        "odonata.segment.recipes:fcn_8s",
        claims=("fcn-stride-ceiling",),
    ),
    "pspnet": Card(
        "Every cell is judged beside means over the whole picture and over parts of it.",
        "Zhao et al. 2016, arXiv:1612.01105",
        "odonata.segment.recipes:pspnet",
        claims=("pspnet-context",),
    ),
}
"""Every method of this room by name."""

BUILD = "odonata.segment.build:build"
"""`build(recipe, assets) -> Task`."""

LOAD = "odonata.segment.predictor:load"
"""`load(path, method, device) -> predictor`, for run folders of this room's methods and for published segmenters."""

RECOGNISES = "odonata.segment.predictor:recognises"
"""`recognises(path) -> bool`: whether published weights, or a folder of Odonata's, are for this room."""

EXHIBITS = "odonata.segment.exhibits:exhibits"
"""`exhibits(recipe, run, count) -> [(picture as a data: address, lines of text)]` for the report page."""
