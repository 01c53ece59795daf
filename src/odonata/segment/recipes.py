"""The default recipes of this room: each trains on the embedded set, or on CamVid, within minutes on a laptop.

The papers' own settings stand in the comments, and as presets of the methods.
"""

from __future__ import annotations

from odonata.data.semantic_batches import SemanticData
from odonata.engine.recipe import AdamW, Clip, Recipe, Schedule
from odonata.segment.evaluation import SegmentEvaluation
from odonata.segment.fcn import FCN8sConfig, FCN16sConfig, FCN32sConfig, FCNOptions
from odonata.segment.pspnet import PSPNetConfig


def _fcn(name: str, config: FCNOptions) -> Recipe:
    """FCN at laptop size. The paper: SGD 1e-10 with momentum 0.99 and decay 5e-4, one picture a step, 100,000 steps."""
    return Recipe(
        name=name,
        method=config,
        data=SemanticData(),
        evaluation=SegmentEvaluation(),
        optim=AdamW(lr=3e-3, weight_decay=0.01, betas=(0.9, 0.999)),
        schedule=Schedule("poly", warmup=0.02),
        clip=Clip("norm", 5.0),
        steps=600,
    )


def fcn_32s() -> Recipe:
    """FCN-32s at laptop size."""
    return _fcn("fcn-32s", FCN32sConfig())


def fcn_16s() -> Recipe:
    """FCN-16s at laptop size."""
    return _fcn("fcn-16s", FCN16sConfig())


def fcn_8s() -> Recipe:
    """FCN-8s at laptop size."""
    return _fcn("fcn-8s", FCN8sConfig())


def pspnet() -> Recipe:
    """PSPNet at laptop size. The paper: SGD 0.01, heads ten times that, decay 1e-4, 16 pictures a step, poly 0.9."""
    return Recipe(
        name="pspnet",
        method=PSPNetConfig(),
        data=SemanticData(),
        evaluation=SegmentEvaluation(),
        optim=AdamW(lr=3e-3, weight_decay=0.01, betas=(0.9, 0.999)),
        schedule=Schedule("poly", warmup=0.02),
        clip=Clip("norm", 5.0),
        steps=600,
    )
