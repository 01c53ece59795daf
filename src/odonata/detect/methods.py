"""Which class trains which configuration, and what each is called."""

from __future__ import annotations

from odonata.detect.centernet import CenterNet, CenterNetConfig
from odonata.detect.cornernet import CornerNet, CornerNetConfig
from odonata.detect.detector import Detector, DetectorOptions
from odonata.detect.detr import DETR, DETRConfig
from odonata.detect.faster_rcnn import FasterRCNN, FasterRCNNConfig
from odonata.detect.fcos import FCOS, FCOSConfig
from odonata.detect.mtcnn import MTCNN, MTCNNConfig
from odonata.detect.polarmask import PolarMask, PolarMaskConfig
from odonata.detect.retinanet import RetinaNet, RetinaNetConfig
from odonata.detect.ssd import SSD, SSDConfig
from odonata.detect.tridentnet import TridentNet, TridentNetConfig
from odonata.detect.yolo import YOLO, YOLOv1Config, YOLOv2Config, YOLOv3Config, YOLOv3SPPConfig

METHOD_OF: dict[type[DetectorOptions], type[Detector]] = {
    FCOSConfig: FCOS,
    MTCNNConfig: MTCNN,
    FasterRCNNConfig: FasterRCNN,
    TridentNetConfig: TridentNet,
    RetinaNetConfig: RetinaNet,
    SSDConfig: SSD,
    DETRConfig: DETR,
    CenterNetConfig: CenterNet,
    CornerNetConfig: CornerNet,
    PolarMaskConfig: PolarMask,
    YOLOv1Config: YOLO,
    YOLOv2Config: YOLO,
    YOLOv3Config: YOLO,
    YOLOv3SPPConfig: YOLO,
}

CONFIG_OF: dict[str, type[DetectorOptions]] = {
    "fcos": FCOSConfig,
    "mtcnn": MTCNNConfig,
    "faster-rcnn": FasterRCNNConfig,
    "tridentnet": TridentNetConfig,
    "retinanet": RetinaNetConfig,
    "ssd": SSDConfig,
    "detr": DETRConfig,
    "centernet": CenterNetConfig,
    "cornernet": CornerNetConfig,
    "polarmask": PolarMaskConfig,
    "yolo-v1": YOLOv1Config,
    "yolo-v2": YOLOv2Config,
    "yolo-v3": YOLOv3Config,
    "yolo-v3-spp": YOLOv3SPPConfig,
}
"""Method → its configuration, for weights that come without a recipe."""
