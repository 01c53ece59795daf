"""The thirteen classic distillation losses, one file each. This index needs no torch; the modules that it names do."""

LOSSES = {
    "kd": "odonata.distill.losses.kd:KDLoss",
    "fitnets": "odonata.distill.losses.fitnets:HintLoss",
    "at": "odonata.distill.losses.attention:AttentionLoss",
    "sp": "odonata.distill.losses.similarity:SimilarityLoss",
    "cc": "odonata.distill.losses.correlation:CorrelationLoss",
    "vid": "odonata.distill.losses.vid:VIDLoss",
    "rkd": "odonata.distill.losses.rkd:RKDLoss",
    "pkt": "odonata.distill.losses.pkt:PKTLoss",
    "ab": "odonata.distill.losses.ab:ABLoss",
    "ft": "odonata.distill.losses.factor:FactorLoss",
    "fsp": "odonata.distill.losses.fsp:FSPLoss",
    "nst": "odonata.distill.losses.nst:NSTLoss",
    "crd": "odonata.distill.losses.crd:CRDLoss",
}
"""Module and class of each loss."""
