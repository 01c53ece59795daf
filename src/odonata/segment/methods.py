"""Which class trains which configuration, and what each is called."""

from __future__ import annotations

from odonata.segment.fcn import FCN, FCN8sConfig, FCN16sConfig, FCN32sConfig
from odonata.segment.pspnet import PSPNet, PSPNetConfig
from odonata.segment.segmenter import Segmenter, SegmenterOptions

METHOD_OF: dict[type[SegmenterOptions], type[Segmenter]] = {
    FCN32sConfig: FCN,
    FCN16sConfig: FCN,
    FCN8sConfig: FCN,
    PSPNetConfig: PSPNet,
}  # pyright: ignore[reportAssignmentType]

CONFIG_OF: dict[str, type[SegmenterOptions]] = {
    "fcn-32s": FCN32sConfig,
    "fcn-16s": FCN16sConfig,
    "fcn-8s": FCN8sConfig,
    "pspnet": PSPNetConfig,
}
"""Method → its configuration, for weights that come without a recipe."""
