"""Which class trains which configuration, and what each is called."""

from __future__ import annotations

from odonata.detect.detector import Detector, DetectorOptions
from odonata.detect.fcos import FCOS, FCOSConfig

METHOD_OF: dict[type[DetectorOptions], type[Detector]] = {
    FCOSConfig: FCOS,
}

CONFIG_OF: dict[str, type[DetectorOptions]] = {
    "fcos": FCOSConfig,
}
"""Method → its configuration, for weights that come without a recipe."""
