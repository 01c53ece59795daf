"""Objects in pictures: boxes, and outlines. This index needs no torch; what it names does."""

from odonata.card import Card

METHODS = {
    "fcos": Card(
        "Every point in an object says how far its four sides are; --preset v1 for the paper's recipe.",
        "Tian et al. 2019, arXiv:1904.01355",
        "odonata.detect.recipes:fcos",
        claims=(
            "best-possible-recall",
            "anchor-free-parity",
            "several-levels",
            "fpn-top-down",
            "focal-loss",
            "prior-bias",
            "snip-ranges",
            "tiles-small-objects",
        ),
    ),
    "faster-rcnn": Card(
        "Regions are proposed, pooled and told apart, on a pyramid or one map; --preset vgg16 for the first paper's.",
        "Ren et al. 2015, arXiv:1506.01497; Lin et al. 2017, arXiv:1612.03144",
        "odonata.detect.recipes:faster_rcnn",
        claims=("several-levels", "fpn-top-down"),
    ),
    "tridentnet": Card(
        "Three branches with one set of weights and dilations 1, 2 and 3, each for objects of its size; or --fast.",
        "Li et al. 2019, arXiv:1901.01892",
        "odonata.detect.recipes:tridentnet",
        claims=("trident-ranges",),
    ),
    "retinanet": Card(
        "Anchors on a pyramid, all trained by the focal loss; --preset paper-r50, torchvision-r50-v2, mmdet-r50, ….",
        "Lin et al. 2017, arXiv:1708.02002",
        "odonata.detect.recipes:retinanet",
        claims=("focal-loss", "prior-bias", "anchor-free-parity", "best-possible-recall"),
    ),
    "ssd": Card(
        "Default boxes on maps of several strides, hard negatives 3 to 1; --preset ssd300-voc, ssd512-coco, ….",
        "Liu et al. 2016, arXiv:1512.02325",
        "odonata.detect.recipes:ssd",
        claims=("ssd-hard-negatives",),
    ),
    "detr": Card(
        "A set of queries, each an object or nothing, without anchors or suppression; --preset r50, r50-dc5, ….",
        "Carion et al. 2020, arXiv:2005.12872",
        "odonata.detect.recipes:detr",
        claims=("detr-slow-start",),
    ),
    "centernet": Card(
        "Objects are peaks of a heat map, with sizes beside them; --preset resnet18, resnet101, hourglass104.",
        "Zhou et al. 2019, arXiv:1904.07850",
        "odonata.detect.recipes:centernet",
        claims=("centernet-no-nms",),
    ),
    "cornernet": Card(
        "Pairs of corners, found by corner pooling and joined by tags; --preset hourglass104.",
        "Law and Deng 2018, arXiv:1808.01244",
        "odonata.detect.recipes:cornernet",
        claims=("corner-pooling",),
    ),
    "polarmask": Card(
        "Outlines as distances along rays from a centre; learns from masks; --preset r50, released-r50.",
        "Xie et al. 2020, arXiv:1909.13226",
        "odonata.detect.recipes:polarmask",
        claims=("polar-ceiling",),
    ),
    "yolo-v1": Card(
        "Each cell of a grid says its class and a few free boxes; one look at the whole picture.",
        "Redmon et al. 2015, arXiv:1506.02640",
        "odonata.detect.recipes:yolo_v1",
        claims=("yolo-grids",),
    ),
    "yolo-v2": Card(
        "Boxes are changes of anchors that k-means finds in the training set; --preset v2 for the paper's size.",
        "Redmon and Farhadi 2016, arXiv:1612.08242",
        "odonata.detect.recipes:yolo_v2",
        claims=("yolo-grids", "kmeans-anchors"),
    ),
    "yolo-v3": Card(
        "Three scales and independent logistic classes; reads and writes darknet's cfg and weights.",
        "Redmon and Farhadi 2018, arXiv:1804.02767",
        "odonata.detect.recipes:yolo_v3",
        claims=("yolo-grids", "kmeans-anchors"),
    ),
    "yolo-v3-spp": Card(
        "YOLO v3 with maxima in windows of several sizes before its first head.",
        "Redmon and Farhadi 2018, arXiv:1804.02767; He et al. 2014, arXiv:1406.4729",
        "odonata.detect.recipes:yolo_v3_spp",
        claims=("yolo-grids",),
    ),
    "mtcnn": Card(
        "Three small networks, each asked only about the windows that the one before lets pass; five landmarks.",
        "Zhang et al. 2016, arXiv:1604.02878",
        "odonata.detect.recipes:mtcnn",
        claims=("mtcnn-cascade",),
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
