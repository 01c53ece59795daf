"""Which class trains which configuration."""

from __future__ import annotations

from odonata.represent.classify import Classify, ClassifyConfig
from odonata.represent.cpc import CPC, CPCConfig
from odonata.represent.dino import DINO, DINOConfig
from odonata.represent.jigsaw import Jigsaw, JigsawConfig
from odonata.represent.mae import MAE, MAEConfig
from odonata.represent.moby import MoBY, MoBYConfig
from odonata.represent.moco import MoCo, MoCoConfig
from odonata.represent.moco_v3 import MoCoV3, MoCoV3Config
from odonata.represent.representation import Representation, TowerOptions
from odonata.represent.rotation import Rotation, RotationConfig
from odonata.represent.swav import SwAV, SwAVConfig

METHOD_OF: dict[type[TowerOptions], type[Representation]] = {
    ClassifyConfig: Classify,
    MAEConfig: MAE,
    MoCoConfig: MoCo,
    RotationConfig: Rotation,
    JigsawConfig: Jigsaw,
    CPCConfig: CPC,
    SwAVConfig: SwAV,
    DINOConfig: DINO,
    MoCoV3Config: MoCoV3,
    MoBYConfig: MoBY,
}
