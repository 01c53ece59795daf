"""Representations from pictures, without labels and with them. This index needs no torch; what it names does."""

from odonata.card import Card

METHODS = {
    "classify": Card(
        "Classification with labels: the supervised baseline, and fine-tuning with layer-wise rates.",
        "Bao et al. 2021, arXiv:2106.08254 (layer-wise decay); He et al. 2021, arXiv:2111.06377 (recipes)",
        "odonata.represent.recipes:classify",
        claims=("sppf-equals-spp", "compound-scaling"),
    ),
    "rotation": Card(
        "Say by which quarter turn a picture was turned (RotNet).",
        "Gidaris et al. 2018, arXiv:1803.07728",
        "odonata.represent.recipes:rotation",
        claims=("rotation-transfer",),
    ),
    "jigsaw": Card(
        "Put nine tiles of a picture in order.",
        "Noroozi and Favaro 2016, arXiv:1603.09246",
        "odonata.represent.recipes:jigsaw",
        claims=("jigsaw-transfer",),
    ),
    "cpc": Card(
        "Predict the patches below from those above, among all others; --version v2 in four directions.",
        "van den Oord et al. 2018, arXiv:1807.03748; Hénaff et al. 2019, arXiv:1905.09272",
        "odonata.represent.recipes:cpc",
        claims=("infonce-bound",),
    ),
    "mae": Card(
        "Masked autoencoder: a picture from a quarter of its patches.",
        "He et al. 2021, arXiv:2111.06377",
        "odonata.represent.recipes:mae",
        claims=("label-free-features", "mae-mask-ratio"),
    ),
    "moco-v1": Card(
        "Contrast with a queue of keys from a slow encoder.",
        "He et al. 2019, arXiv:1911.05722",
        "odonata.represent.recipes:moco_v1",
        claims=("infonce-bound", "moco-slow-encoder", "moco-queue", "moco-queue-cost"),
    ),
    "moco-v2": Card(
        "MoCo with a projector of two layers, stronger views and a cosine schedule.",
        "Chen et al. 2020, arXiv:2003.04297",
        "odonata.represent.recipes:moco_v2",
        claims=("moco-slow-encoder", "moco-queue", "moco-queue-cost", "label-free-features"),
    ),
    "moco-v3": Card(
        "Contrast within the batch against a slow encoder, without a queue; for Vision Transformers too.",
        "Chen et al. 2021, arXiv:2104.02057",
        "odonata.represent.recipes:moco_v3",
        claims=("moco-v3-predictor",),
    ),
    "moby": Card(
        "MoCo v2's queues with BYOL's predictor, for hierarchical transformers.",
        "Xie et al. 2021, arXiv:2105.04553",
        "odonata.represent.recipes:moby",
        claims=("moby-parents",),
    ),
    "swav": Card(
        "Clusters balanced online: each crop predicts the cluster of another.",
        "Caron et al. 2020, arXiv:2006.09882",
        "odonata.represent.recipes:swav",
        claims=("swav-equipartition", "swav-multi-crop"),
    ),
    "dino": Card(
        "Self-distillation without labels, with DINOv2's options.",
        "Caron et al. 2021, arXiv:2104.14294; Oquab et al. 2023, arXiv:2304.07193 (DINOv2)",
        "odonata.represent.recipes:dino",
        claims=("dino-collapse",),
    ),
}
"""Every method of this room by name."""

BUILD = "odonata.represent.build:build"
"""`build(recipe, assets) -> Task`."""

LOAD = "odonata.represent.predictor:load"
"""`load(path, method, device) -> predictor`, for run folders of this room's methods and for published towers."""

RECOGNISES = "odonata.represent.predictor:recognises"
"""`recognises(path) -> bool`: whether published weights, or a folder of Odonata's, are for this room."""

EXHIBITS = "odonata.represent.exhibits:exhibits"
"""`exhibits(recipe, run, count) -> [(picture as a data: address, lines of text)]` for the report page."""
