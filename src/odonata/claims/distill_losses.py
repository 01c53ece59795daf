"""The thirteen distillation losses under equal conditions: which of them beat the student alone?

`odonata claim run distillation-losses` compares them all, with a table and a plot, beside the published order.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from odonata.backbones.resnet import ResNet, ResNetConfig
from odonata.claims.align_toy import CELL, PHRASES
from odonata.claims.claim import Claim, Comparison, Figures, Plot, Published, Trial
from odonata.claims.represent_toy import (
    CELL_PREPROCESS,
    Images,
    Pictures,
    accuracy,
    learning,
    phrase_cells,
    shifts,
    train,
)
from odonata.distill.distill import Distill, DistillConfig
from odonata.distill.losses import LOSSES
from odonata.distill.losses.interface import DistillLoss, loss_class
from odonata.distill.taps import TappedTower, read_taps, shapes_of
from odonata.represent.classify import Classify, ClassifyConfig

STEPS = 800
TEACHER_STEPS = 1500
BATCH = 64
LR = 0.1
"""For teacher and students alike; RepDistiller has 0.05 for a schedule of two hundred times as many steps."""
TEMPERATURE = 4.0
NEGATIVES = 1280
"""Of crd: a third of the pictures, as 16,384 are of CIFAR-100's 50,000."""
DATA_SEED = 0
"""Of the training pictures, which the teacher and all students see."""
ALONE, NO_SQUARE = "alone", "kd/T²"
CONDITIONS = (ALONE, NO_SQUARE, *LOSSES)

PUBLISHED = {
    "alone": 72.50, "kd": 73.33, "fitnets": 73.50, "at": 73.44, "sp": 72.94, "cc": 72.97, "vid": 73.09, "rkd": 71.90,
    "pkt": 73.64, "ab": 73.17, "ft": 72.86, "fsp": 72.62, "nst": 73.30, "crd": 75.51,
}  # fmt: skip
"""Top-1 on CIFAR-100, resnet32x4 → resnet8x4, from RepDistiller's README."""


def tower(depth: int) -> ResNet:
    """Return a residual network with so many blocks in each of its three stages; widths are the same for all."""
    widths, stem = (8, 16, 32), 8
    return ResNet(ResNetConfig("basic", (depth, depth, depth), widths, stem="cifar", stem_width=stem))


def look(images: Images) -> Images:
    """CIFAR's padded crop, by an eighth; nothing is mirrored."""
    return shifts(images, CELL // 8)


def sgd(parameters: list[torch.nn.Parameter]) -> torch.optim.Optimizer:
    """Return RepDistiller's optimiser."""
    return torch.optim.SGD(parameters, lr=LR, momentum=0.9, weight_decay=5e-4)


def prepare(folder: Path, budget: float) -> None:
    """Train the teacher; kept where it is there."""
    file = _teacher_file(folder, budget)
    if file.is_file():
        return
    torch.manual_seed(0)
    method = Classify(ClassifyConfig(), tower(3), CELL_PREPROCESS, PHRASES)
    seen = phrase_cells("train", DATA_SEED, budget)
    steps = max(2, round(TEACHER_STEPS * budget))
    train(method, [look], seen, steps=steps, batch=BATCH, optimizer=sgd(learning(method)), seed=0)
    partial = file.with_suffix(".partial")
    save_file(method.backbone.state_dict(), partial)
    partial.replace(file)


def _teacher_file(folder: Path, budget: float) -> Path:
    return folder / f"teacher-{budget:g}.safetensors"


def read_teacher(trial: Trial) -> ResNet:
    """Return the teacher that `prepare` trained."""
    teacher = tower(3)
    teacher.reset_head(PHRASES)
    teacher.load_state_dict(load_file(_teacher_file(trial.folder, trial.budget)))
    return teacher.eval()


def losses_of(
    condition: str, student: ResNet, teacher: TappedTower, labels: Tensor, seed: int
) -> dict[str, DistillLoss]:
    """Return the losses of a condition, built for both sides."""
    if condition == ALONE:
        return {}
    name = "kd" if condition == NO_SQUARE else condition
    cpu = torch.device("cpu")
    ours = shapes_of(lambda x: read_taps(student.eval(), x, "student"), "student", CELL, cpu)
    theirs = shapes_of(teacher.eval(), "teacher", CELL, cpu)
    options: dict[str, Any] = {}
    if name == "kd":
        options = {"temperature": TEMPERATURE}
    elif name == "crd":
        options = {"labels": labels, "num_negatives": NEGATIVES, "seed": seed}
    return {name: loss_class(name)(ours, theirs, **options)}


@torch.no_grad()
def top_1(network: ResNet, measured: Pictures) -> float:
    """Return the accuracy in percent."""
    network.eval()
    return accuracy(torch.cat([network(part.float() / 127.5 - 1) for part in measured.images.split(250)]), measured)


def trial(trial: Trial) -> Figures:
    """Train the student with one loss, and measure it."""
    seen = phrase_cells("train", DATA_SEED, trial.budget)
    measured = phrase_cells(trial.split, trial.seed, trial.budget)
    teacher = read_teacher(trial)
    torch.manual_seed(trial.seed)
    student = tower(1)
    student.reset_head(PHRASES)
    tapped = TappedTower(teacher, "teacher")
    losses = losses_of(trial.condition, student, tapped, seen.labels, trial.seed)
    # Without the factor T² the soft targets weigh 0.9 / T², at the same nominal weights of 0.1 and 0.9.
    config = (
        DistillConfig(ce_weight=0.1, beta=0.9 / TEMPERATURE**2) if trial.condition == NO_SQUARE else DistillConfig()
    )
    method = Distill(config, student, CELL_PREPROCESS, PHRASES, tapped, CELL_PREPROCESS, losses)
    torch.manual_seed(trial.seed)  # losses draw numbers when they are made: views must not depend on that
    steps = trial.steps(STEPS)
    train(method, [look], seen, steps=steps, batch=BATCH, optimizer=sgd(learning(method)), seed=trial.seed)
    top1, teachers = top_1(student, measured), top_1(teacher, measured)
    return {"top1": top1, "teacher_top1": teachers, "lead_of_teacher": teachers - top1}


def _against(name: str, control: str = ALONE, primary: bool = False) -> Comparison:
    return Comparison(f"{name} against {control}", f"student@{name}", f"student@{control}", "top1", ">",
                      primary=primary)  # fmt: skip


CLAIM = Claim(
    name="distillation-losses",
    room="distill",
    methods=("distill",),
    source="Hinton et al. 2015, arXiv:1503.02531 (soft targets, section 2.1 for T²); Tian et al. 2019, "
    "arXiv:1910.10699, table 1, whose figures RepDistiller's README gives with those of later losses",
    hypothesis="With the weights that were published, a student taught by soft targets beats the student alone, and "
    "beats one taught by soft targets that were not multiplied by T². Of the other losses RKD and PKT are expected to "
    "beat it too.",
    data="Pictures of 16 × 16 pixels: one real handwritten digit (UCI) in one of 8 colours at a random place, size and "
    "slant on a grainy ground; 80 classes of colour and digit. 4,000 training pictures, the same for teacher and "
    "students, and 1,500 of handwriting never seen to test on.",
    scaled_down="The paper's pair resnet32x4 → resnet8x4 (five blocks a stage teach one, equal widths) on CIFAR-100 "
    "for 240 epochs; here three blocks a stage of 8, 16 and 32 channels teach one, for 800 steps of 64 pictures, 13 "
    "epochs; the teacher had 1,500 steps. One rate with a cosine for all, weight decay 5e-4, RepDistiller's weight for "
    "each loss; nothing is tuned for a loss. CRD draws 1,280 negatives. The first stage of ab, ft and fsp is part of "
    "the 800 steps. Direction, not magnitude.",
    trial=trial,
    conditions=CONDITIONS,
    variants=("student",),
    comparisons=(
        _against("kd", primary=True),
        _against("kd", NO_SQUARE, primary=True),
        *(_against(name) for name in ("rkd", "pkt", *(name for name in LOSSES if name not in ("kd", "rkd", "pkt")))),
        Comparison("the teacher knows more than the student alone", "student@alone", 0.0, "lead_of_teacher", ">",
                   primary=False),
    ),
    plots=(Plot("top1", "student's accuracy, %"),),
    axis="loss",
    seeds=(1, 2, 3),
    prepare=prepare,
    published=Published(
        "top1",
        "CIFAR-100, resnet32x4 → resnet8x4, top-1 % (RepDistiller's README)",
        {f"student@{name}": figure for name, figure in PUBLISHED.items()},
    ),
)  # fmt: skip
