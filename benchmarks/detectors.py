"""Detectors with a ResNet-50 and a feature pyramid, from a picture's bytes to boxes, against torchvision.

    python benchmarks/detectors.py            # some minutes
    python benchmarks/detectors.py --quick    # one round, at a third of the size
    python benchmarks/detectors.py --yolo FOLDER/yolo-fastest-1.1.weights --coco FOLDER

FCOS, RetinaNet and Faster R-CNN in torchvision's layout, 91 classes, frozen statistics; pictures of 480 × 640 pixels
that each scales to 800 × 1066 itself. Scaling, network and suppression are part of the time; with one thread it is
that of the CPU. "ours, bf16" is ours with `--precision bf16`.

Both read one file: weights by chance, whose last layers are scaled so that about as many scores pass the threshold as
in a crowded photograph. In float32 the same objects must be found: the run fails where fewer than 99 in 100 have a
partner of the same class, within half a pixel and a thousandth of the score.

With --yolo and --coco it also prints the average precision of real weights in float32 and in bf16 on photographs with
their boxes (`annotations/boxes_val2017.json` and `val2017` of the folder).
"""

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import turns
from turns import PEERS, Contestant

MODELS = ("fcos", "retinanet", "faster-rcnn")
NAMES = ("ours", "ours, bf16", "torchvision")
SIZE, QUICK_SIZE = (480, 640), (160, 213)
SHORTEST, QUICK_SHORTEST = 800, 256
CLASSES = 91
CANDIDATES = 1000
"""Scores that pass the threshold, of the dense detectors."""
PARTNERED = 0.99
GOAL_AP = 0.2


def picture(quick: bool) -> Any:
    """Return a picture [3, height, width], uint8, where no two places look alike: the same for everybody."""
    import torch
    import torch.nn.functional as F

    generator, size = torch.Generator().manual_seed(0), QUICK_SIZE if quick else SIZE
    coarse = F.interpolate(torch.randn(1, 3, 15, 20, generator=generator), size, mode="bicubic")[0]
    return ((coarse + 0.5 * torch.randn(3, *size, generator=generator)).sigmoid() * 255).round().byte()


def torchvision_model(name: str, quick: bool) -> Any:
    """Return torchvision's detector as its published weights make it: with frozen statistics."""
    import torchvision_on_cpu

    torchvision_on_cpu.preload()
    from torchvision.models import resnet50
    from torchvision.models.detection import FCOS, FasterRCNN, RetinaNet
    from torchvision.models.detection.backbone_utils import _resnet_fpn_extractor
    from torchvision.ops.feature_pyramid_network import LastLevelP6P7
    from torchvision.ops.misc import FrozenBatchNorm2d

    tower, size = resnet50(norm_layer=FrozenBatchNorm2d), {"min_size": QUICK_SHORTEST if quick else SHORTEST}
    if name == "faster-rcnn":
        return FasterRCNN(_resnet_fpn_extractor(tower, 3), CLASSES, **size).eval()
    trunk = _resnet_fpn_extractor(tower, 3, returned_layers=[2, 3, 4], extra_blocks=LastLevelP6P7(256, 256))
    return (FCOS if name == "fcos" else RetinaNet)(trunk, CLASSES, **size).eval()


def write_models(folder: Path, quick: bool) -> None:
    """Write a file of weights for each detector; runs among the peers."""
    import torch

    for name in MODELS:
        torch.manual_seed(0)
        model = torchvision_model(name, quick)
        for key, module in model.named_modules():
            if type(module).__name__ == "FrozenBatchNorm2d":
                module.running_var.uniform_(0.5, 2)
                # Each block adds little, so that maps neither grow without bound nor forget the picture.
                module.weight.uniform_(0.2, 0.4) if key.endswith("bn3") else module.weight.uniform_(0.8, 1.2)
                module.bias.normal_(0, 0.1)
            elif isinstance(module, torch.nn.Conv2d) and ("head" in key or "rpn" in key):
                torch.nn.init.kaiming_normal_(module.weight)
        speak_out(model, name, picture(quick))
        torch.save(model.state_dict(), folder / f"{name}.pth")


def speak_out(model: Any, name: str, pixels: Any) -> None:
    """Scale a detector's last layers by what they say of a picture, as training would have it."""
    if name == "faster-rcnn":
        rpn, head = model.rpn.head, model.roi_heads.box_predictor
        spread(model, rpn.cls_logits, pixels, 2.0, 0.0)
        spread(model, rpn.bbox_pred, pixels, 0.2, 0.0)
        spread(model, head.bbox_pred, pixels, 0.5, 0.0)
        said = spread(model, head.cls_score, pixels, 2.0, 0.0)
        # The background is what most regions are: it wins against all but the surest.
        head.cls_score.bias.data[0] += said[:, 1:].exp().sum(1).log().quantile(0.9) + 1
        return
    classes, boxes = model.head.classification_head, model.head.regression_head
    if name == "fcos":
        spread(model, boxes.bbox_reg, pixels, 1.5, 4.0)
        spread(model, boxes.bbox_ctrness, pixels, 1.0, 0.0)
    else:
        spread(model, boxes.bbox_reg, pixels, 0.2, 0.0)
    said = spread(model, classes.cls_logits, pixels, 1.5, 0.0).flatten()
    surest = said.topk(CANDIDATES).values[-1]
    # FCOS thresholds √(class · centerness) at 0.2, RetinaNet the class at 0.05.
    classes.cls_logits.bias.data += (-2.4 if name == "fcos" else -2.94) - surest


def spread(model: Any, layer: Any, pixels: Any, deviation: float, middle: float) -> Any:
    """Scale each output of a layer to a mean and a deviation over all places; return what it then says, in rows."""
    import torch

    heard: list[Any] = []
    handle = layer.register_forward_hook(lambda _module, _given, said: heard.append(said.transpose(0, 1).flatten(1).T))
    with torch.inference_mode():
        model([pixels / 255])
    handle.remove()
    said = torch.cat(heard).clone()
    scale = deviation / said.std(0)
    layer.weight.data *= scale.view(-1, *[1] * (layer.weight.ndim - 1))
    layer.bias.data = (layer.bias.data - said.mean(0)) * scale + middle
    return (said - said.mean(0)) * scale + middle


def prepare(name: str, folder: Path, threads: int, quick: bool) -> tuple[dict[str, Any], Any]:
    """Load one contestant; return its version and what it does in a round."""
    import torch

    torch.set_num_threads(threads)
    load = _torchvision if name == "torchvision" else _ours
    version, models = "", dict[str, Callable[[Any], Any]]()
    for model in MODELS:
        version, models[model] = load(model, folder / f"{model}.pth", name.endswith("bf16"), quick)
    pixels, clock = picture(quick), time.process_time if threads == 1 else time.perf_counter

    def round_() -> dict[str, Any]:
        seconds, saved = dict[str, float](), dict[str, str]()
        for model, find in models.items():
            start = clock()
            with torch.inference_mode():
                answer = find(pixels)
            seconds[model] = clock() - start
            saved[model] = str(folder / f"{name} {model}.pt")
            torch.save([part.float().clone() for part in answer], saved[model])
        return {"seconds": sum(seconds.values()), "cases": seconds, "files": saved}

    return {"version": version}, round_


def _ours(_model: str, file: Path, bf16: bool, quick: bool) -> tuple[str, Callable[[Any], Any]]:
    from dataclasses import replace

    import odonata

    predictor: Any = odonata.load(file, device="cpu")
    if quick:
        options = replace(predictor.detector.options, framing=predictor.framing.with_size(QUICK_SHORTEST))
        predictor.detector.options = options
        predictor.assets = replace(predictor.assets, config=options)

    def find(pixels: Any) -> Any:
        answer = predictor.predict(pixels, precision="bf16" if bf16 else "fp32")
        # torchvision counts the background among the classes of its two-stage detectors, we do not.
        return answer.boxes, answer.scores, answer.labels + int(predictor.assets.method == "faster-rcnn")

    return odonata.__version__, find


def _torchvision(model: str, file: Path, _bf16: bool, quick: bool) -> tuple[str, Callable[[Any], Any]]:
    import torch

    detector = torchvision_model(model, quick)
    import torchvision

    detector.load_state_dict(torch.load(file))

    def find(pixels: Any) -> Any:
        answer = detector([pixels / 255])[0]
        return answer["boxes"], answer["scores"], answer["labels"]

    return torchvision.__version__, find


def partnered(found: list[Any], expected: list[Any], pixels: float, share: float) -> float:
    """Return the share of the expected objects that are found within so many pixels and this share of the score."""
    import torch

    if not len(expected[0]) or not len(found[0]):
        return float(len(expected[0]) == len(found[0]))
    apart = torch.cdist(expected[0], found[0], p=float("inf"))
    other = (expected[1][:, None] - found[1]).abs() / expected[1][:, None]
    same = expected[2][:, None] == found[2]
    return float(((apart <= pixels) & (other <= share) & same).any(1).float().mean())


def compare(name: str, model: str, file: str, expected: str) -> tuple[int, float]:
    """Return how many objects torchvision finds, and the share of them that we find too.

    Raises:
        SystemExit: in float32 it is too small, or there is nothing to compare.
    """
    import torch

    ours, theirs = torch.load(file), torch.load(expected)
    count = len(theirs[0])
    if not count:
        raise SystemExit(f"{model}: torchvision finds nothing; there is nothing to compare")
    bf16 = name.endswith("bf16")
    share = partnered(ours, theirs, 16 if bf16 else 0.5, 0.2 if bf16 else 1e-3)
    if not bf16 and (share < PARTNERED or len(ours[0]) != count):
        raise SystemExit(f"{model}: torchvision finds {count}, we find {len(ours[0])}, of which {share:.1%} agree")
    return count, share


def precision_figures(yolo: Path | None, coco: Path | None) -> str:
    """Return a line on what bf16 does to the average precision of real weights, or why there is none."""
    if yolo is None or coco is None:
        return "AP in bf16: skipped, --yolo and --coco were not given"
    for path in (yolo, coco / "annotations/boxes_val2017.json"):
        if not path.is_file():
            return f"AP in bf16: skipped, there is no {path}"
    import odonata
    from odonata.data.open_objects import open_objects
    from odonata.detect.evaluation import detections_of, founds, truths
    from odonata.metrics.coco import coco_figures

    model: Any = odonata.load(yolo, device="cpu")
    source = open_objects(str(coco / "annotations/boxes_val2017.json"), images=str(coco / "val2017"))
    source = source.with_categories(model.categories)
    names, figures = [category.name for category in model.categories], dict[str, dict[str, float]]()
    for precision in ("fp32", "bf16"):
        answers = detections_of(model, list(source), 8, score=0.005, precision=precision)
        figures[precision] = coco_figures(truths(list(source)), founds(answers), names).flat()
    points = {name: [100 * figures[p][name] for p in ("fp32", "bf16")] for name in ("AP", "AP50")}
    said = ", ".join(f"{name} {a:.2f} fp32, {b:.2f} bf16 ({b - a:+.2f})" for name, (a, b) in points.items())
    return f"{yolo.name} on {len(source)} pictures: {said}; goal |ΔAP| <= {GOAL_AP}"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one round, at a third of the size")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--yolo", type=Path, help="real weights of a detector, such as yolo-fastest-1.1.weights")
    parser.add_argument("--coco", type=Path, help="folder with annotations/boxes_val2017.json and val2017")
    parser.add_argument("--write", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        name, folder, threads = arguments.child
        turns.serve(lambda: prepare(name, Path(folder), int(threads), arguments.quick))
        return
    if arguments.write:
        turns.serve(lambda: ({}, lambda: write_models(arguments.write, arguments.quick) or {"seconds": 0.0}))
        return
    turns.require_peers()
    rounds, quick = (1, ["--quick"]) if arguments.quick else (arguments.rounds, list[str]())
    with tempfile.TemporaryDirectory() as made:
        writer = Contestant("weights", PEERS, [__file__, *quick, "--write", made], arguments.threads)
        writer.round()
        writer.leave()
        contestants = [
            Contestant(
                name, PEERS if name == "torchvision" else sys.executable,
                [__file__, *quick, "--child", name, made, str(arguments.threads)], arguments.threads,
            )
            for name in NAMES
        ]  # fmt: skip
        best, agreement = measured(contestants, rounds)
    print_times(best, agreement, contestants[-1].about["version"], arguments.threads, rounds)
    print(precision_figures(arguments.yolo, arguments.coco))


def measured(
    contestants: list[Contestant], rounds: int
) -> tuple[dict[tuple[str, str], float], dict[tuple[str, str], tuple[int, float]]]:
    """Return the best time of every contestant and detector, and how ours agree with torchvision."""
    best: dict[tuple[str, str], float] = {}
    agreement: dict[tuple[str, str], tuple[int, float]] = {}
    for _ in range(rounds + 1):  # the first warms up and is compared
        found = {contestant.name: contestant.round() for contestant in contestants}
        for name, answer in found.items():
            for model, seconds in answer["cases"].items():
                best[name, model] = min(seconds, best.get((name, model), float("inf")))
                if name != "torchvision" and (name, model) not in agreement:
                    files = answer["files"][model], found["torchvision"]["files"][model]
                    agreement[name, model] = compare(name, model, *files)
    for contestant in contestants:
        contestant.leave()
    return best, agreement


def print_times(
    best: dict[tuple[str, str], float], agreement: dict[tuple[str, str], tuple[int, float]],
    version: str, threads: int, rounds: int,
) -> None:  # fmt: skip
    """Print what was measured."""
    load = f"load {os.getloadavg()[0]:.0f}" if hasattr(os, "getloadavg") else ""
    print(f"threads: {threads}, best of {rounds + 1} rounds, {load}; torchvision {version}")
    print(f"{'':14}{'':14}{'seconds':>9}{'torchvision / it':>18}{'objects':>9}{'found too':>11}")
    for model in MODELS:
        for name in NAMES:
            count, share = agreement.get((name, model), agreement["ours", model])
            said = f"{share:11.1%}" if name != "torchvision" else ""
            ratio = best["torchvision", model] / best[name, model]
            print(f"{model:14}{name:14}{best[name, model]:9.3f}{ratio:18.2f}{count:9}{said}")


if __name__ == "__main__":
    main()
