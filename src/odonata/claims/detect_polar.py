"""PolarMask's claim: more rays draw an outline better, and what they can reach at best is known before any training."""

from __future__ import annotations

import torch

from odonata.claims.claim import Claim, Comparison, Figures, Plot, Trial
from odonata.data.object_scenes import ObjectScenes
from odonata.ops.masks import polygons_to_mask
from odonata.ops.polar import largest_part, mask_outline, mass_centre, polar_polygons, rays

RAYS = (18, 24, 36, 72)
PICTURES = 60


def ceiling(mask: torch.Tensor, count: int, centre: str) -> float:
    """IoU of a mask with the polygon that its own rays draw."""
    part = largest_part(mask)
    middle = mass_centre(part) if centre == "mass" else box_centre(part)
    distances = rays(mask_outline(part), middle[None].double(), count)
    polygon = polar_polygons(middle[None].double(), distances)[0]
    drawn = polygons_to_mask([polygon.flatten().tolist()], *mask.shape)
    return float((drawn & mask).sum() / (drawn | mask).sum())


def box_centre(mask: torch.Tensor) -> torch.Tensor:
    """The (x, y) of the middle of a mask's box, in pixels."""
    cells = mask.nonzero().double()
    return ((cells.amin(0) + cells.amax(0) + 1) / 2).flip(0)


def run(trial: Trial) -> Figures:
    """Mean ceiling over the digits of so many pictures."""
    count, centre = trial.variant.split(" rays")[0], "box" if "box" in trial.variant else "mass"
    scenes = ObjectScenes(trial.steps(PICTURES), "train", trial.seed, size=192, sides=(32, 96))
    found = [
        ceiling(torch.from_numpy(mask), int(count), centre)
        for index in range(scenes.n)
        for mask in scenes.sample(index).masks()
        if mask.any()
    ]
    return {"IoU": 100 * sum(found) / len(found)}


_WHERE = "mass centre"
_VARIANTS = (*(f"{count} rays" for count in RAYS), "36 rays, box centre")

CLAIM = Claim(
    name="polar-ceiling",
    room="detect",
    methods=("polarmask",),
    source="Xie et al. 2020, arXiv:1909.13226, figure 4 and table 2: more rays, higher ceiling; the mass centre "
    "above the "
    "box's",
    hypothesis="The best mask that rays can draw is better with 36 rays than with 18 and with 72 than with 36, and "
    "from "
    "the mass centre than from the box's.",
    data="Outlines of digits of 32 to 96 pixels on embedded pictures of 192; 60 pictures a seed. Digits have holes "
    "and bays, "
    "which no ray from one centre can draw.",
    scaled_down="Nothing is trained: rays are taken of the true masks. The paper takes COCO's.",
    trial=run,
    conditions=(_WHERE,),
    variants=_VARIANTS,
    comparisons=(
        Comparison("36 rays against 18", f"36 rays@{_WHERE}", f"18 rays@{_WHERE}", "IoU", ">"),
        Comparison("72 rays against 36", f"72 rays@{_WHERE}", f"36 rays@{_WHERE}", "IoU", ">"),
        Comparison("mass centre against box centre", f"36 rays@{_WHERE}", f"36 rays, box centre@{_WHERE}", "IoU", ">"),
        Comparison("24 rays against 18", f"24 rays@{_WHERE}", f"18 rays@{_WHERE}", "IoU", ">", primary=False),
    ),
    plots=(Plot("IoU", "IoU of the best polar mask, %"),),
    seeds=(1, 2, 3, 4, 5),
)  # fmt: skip
