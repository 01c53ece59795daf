"""The default recipes of this room: each trains on the embedded objects within minutes on a laptop.

The papers' own settings stand in the comments, and as presets of the methods.
"""

from __future__ import annotations

from typing import Any

from odonata.data.object_batches import ObjectData
from odonata.detect.centernet import CenterNetConfig
from odonata.detect.cornernet import CornerNetConfig
from odonata.detect.detector import DetectorOptions
from odonata.detect.detr import DETRConfig
from odonata.detect.evaluation import DetectEvaluation
from odonata.detect.faster_rcnn import FasterRCNNConfig
from odonata.detect.fcos import FCOSConfig
from odonata.detect.mtcnn import MTCNNConfig
from odonata.detect.polarmask import PolarMaskConfig
from odonata.detect.retinanet import RetinaNetConfig
from odonata.detect.ssd import SSDConfig
from odonata.detect.tridentnet import TridentNetConfig
from odonata.detect.yolo import YOLOv1Config, YOLOv2Config, YOLOv3Config, YOLOv3SPPConfig
from odonata.engine.recipe import AdamW, Clip, Recipe, Schedule


def _laptop(name: str, method: DetectorOptions, lr: float = 2e-3, decay: float = 0.05, **fields: Any) -> Recipe:
    """What all share: AdamW on a cosine with a short warm-up, 900 steps."""
    common: dict[str, Any] = {
        "data": ObjectData(),
        "evaluation": DetectEvaluation(),
        "optim": AdamW(lr=lr, weight_decay=decay, betas=(0.9, 0.999)),
        "schedule": Schedule(warmup=0.05),
        "clip": Clip("norm", 10.0),
        "steps": 900,
    }
    return Recipe(name=name, method=method, **{**common, **fields})


def fcos() -> Recipe:
    """FCOS at laptop size. The paper: ResNet-50, SGD 0.01 for 16, decay 1e-4, 90,000 steps, falls at 60 and 80 k."""
    return _laptop("fcos", FCOSConfig())


def detr() -> Recipe:
    """DETR at laptop size. The paper: AdamW 1e-4, the tower 1e-5, decay 1e-4, clip 0.1, 64 pictures, 500 epochs."""
    return _laptop("detr", DETRConfig(), decay=0.01, data=ObjectData(augment="none"), steps=6000)


def retinanet() -> Recipe:
    """RetinaNet at laptop size. The paper: SGD 0.01 for 16, decay 1e-4, 90,000 steps, falls at 60,000 and 80,000."""
    return _laptop("retinanet", RetinaNetConfig())


def ssd() -> Recipe:
    """SSD at laptop size. The paper: SGD 1e-3 for 32 pictures, decay 5e-4, 120,000 steps on VOC, falls at 80,000 and
    100,000, and `--data.augment ssd`."""
    return _laptop("ssd", SSDConfig())


def faster_rcnn() -> Recipe:
    """Faster R-CNN at laptop size. With a pyramid, in its paper: ResNet-50, SGD 0.02 for 16, decay 1e-4, 80,000 steps,
    the rate falls at 60,000."""
    return _laptop("faster-rcnn", FasterRCNNConfig(), lr=1e-3)


def centernet() -> Recipe:
    """CenterNet at laptop size. The paper: Adam 1.25e-4 for 32 pictures (hourglass: 2.5e-4), no decay, 140 epochs,
    falls at 90 and 120."""
    return _laptop("centernet", CenterNetConfig())


def cornernet() -> Recipe:
    """CornerNet at laptop size. The paper: Adam 2.5e-4 for 49 pictures, 250,000 steps and 250,000 more at a tenth."""
    return _laptop("cornernet", CornerNetConfig())


def polarmask() -> Recipe:
    """PolarMask at laptop size. The paper: SGD 0.01 for 16 pictures, decay 1e-4, 90,000 steps, falls at 60 and 80 k."""
    return _laptop("polarmask", PolarMaskConfig())


def yolo_v1() -> Recipe:
    """YOLO's first version at laptop size. The paper: trunk from ImageNet, SGD 0.01 for 64, 135 epochs, decay 5e-4."""
    return _laptop("yolo-v1", YOLOv1Config())


def yolo_v2() -> Recipe:
    """YOLO's second version at laptop size. The paper: trunk from ImageNet, SGD 1e-3 for 64, 160 epochs, decay 5e-4."""
    return _laptop("yolo-v2", YOLOv2Config())


def yolo_v3() -> Recipe:
    """YOLO's third version at laptop size. Its cfg: trunk from ImageNet, SGD 1e-3 for 64, 500,200 steps, decay 5e-4."""
    return _laptop("yolo-v3", YOLOv3Config())


def yolo_v3_spp() -> Recipe:
    """YOLO's third version with pyramid pooling at laptop size. Its cfg: as that of `yolo_v3`."""
    return _laptop("yolo-v3-spp", YOLOv3SPPConfig())


def mtcnn() -> Recipe:
    """MTCNN on the embedded digits as one class, all three networks at once; for faces, `--overlap box` and `--min-face
    20`. The paper does not say its rates."""
    return _laptop(
        "mtcnn",
        MTCNNConfig(min_face=12.0, overlap="square"),
        decay=1e-4,
        data=ObjectData(path="objects:n=1500,sides=14-48", one_class="digit", augment="none"),
    )


def tridentnet() -> Recipe:
    """TridentNet at laptop size. The paper: ResNet-101, SGD 0.02 for 16, decay 1e-4, 90,000 steps, the rate falls at
    60,000 and 80,000."""
    return _laptop("tridentnet", TridentNetConfig(), lr=1e-3)


def by_name(name: str) -> Recipe:
    """Return the default recipe of a method of this room."""
    return globals()[name.replace("-", "_")]()
