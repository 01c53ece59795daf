"""The papers' claims as experiments: hypothesis, variants, seeds, a test, and a verdict that can come out either way.

This index needs no torch; the modules that it names do.
"""

from __future__ import annotations

import difflib
import importlib
import importlib.resources
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from odonata.errors import RecipeError

if TYPE_CHECKING:
    from odonata.claims.claim import Claim


@dataclass(frozen=True)
class ClaimCard:
    """One claim in the index."""

    room: str
    summary: str
    """One line: what is claimed."""
    reference: str
    """`module:object` of the `Claim`."""


CLAIMS = {
    "siglip-batch-size": ClaimCard(
        "align",
        "A sigmoid per pair beats the softmax at small batches, and the gap closes as batches grow.",
        "odonata.claims.align_siglip:BATCH_SIZE",
    ),
    "siglip-bias-init": ClaimCard(
        "align",
        "A bias that starts at −10 spares SigLIP its first steps and ends better than none or one at 0.",
        "odonata.claims.align_siglip:BIAS_INIT",
    ),
    "lit-locked-tower": ClaimCard(
        "align",
        "With few pairs a locked pretrained image tower beats the same tower unlocked, and one from scratch.",
        "odonata.claims.align_lit:CLAIM",
    ),
    "flip-masking": ClaimCard(
        "align",
        "Dropping half of the patches halves the time of a step, and costs no accuracy.",
        "odonata.claims.align_flip:CLAIM",
    ),
    "catlip-time-to-accuracy": ClaimCard(
        "align",
        "Classifying the nouns of captions reaches CLIP's linear-probe accuracy in less time.",
        "odonata.claims.align_catlip:CLAIM",
    ),
    "dfn-filter": ClaimCard(
        "align",
        "What a filter trained on clean pairs keeps of a noisy pool trains better than chance, and than all of it.",
        "odonata.claims.align_dfn:CLAIM",
    ),
    "chunked-losses": ClaimCard(
        "align",
        "The tiled losses are exact and need a fraction of the memory of a loop that retains its logits.",
        "odonata.claims.align_losses:CLAIM",
    ),
    "infonce-bound": ClaimCard(
        "represent",
        "What InfoNCE estimates never exceeds the mutual information, nor ln K.",
        "odonata.claims.represent_infonce:CLAIM",
    ),
    "sppf-equals-spp": ClaimCard(
        "represent",
        "SPPF gives SPP's bits; SPPNet's formula for windows miscounts ten pairs of size and bins.",
        "odonata.claims.represent_spp:CLAIM",
    ),
    "compound-scaling": ClaimCard(
        "represent",
        "At equal cost, scaling depth, width and resolution together beats scaling one of them.",
        "odonata.claims.represent_scaling:CLAIM",
    ),
    "moco-slow-encoder": ClaimCard(
        "represent",
        "MoCo's features are better with a slow key encoder than with one that is the query's own.",
        "odonata.claims.represent_moco:SLOW_ENCODER",
    ),
    "moco-queue": ClaimCard(
        "represent",
        "MoCo's features are better with a queue of 4,096 keys than with one of 64.",
        "odonata.claims.represent_moco:QUEUE_LENGTH",
    ),
    "moco-queue-cost": ClaimCard(
        "represent",
        "64 times as many negatives cost a queue next to nothing, and end-to-end training many times as much.",
        "odonata.claims.represent_moco:QUEUE_COST",
    ),
    "rotation-transfer": ClaimCard(
        "represent",
        "Features that tell how a picture was turned tell what is on it, better than random ones and pixels.",
        "odonata.claims.represent_rotation:CLAIM",
    ),
    "jigsaw-transfer": ClaimCard(
        "represent",
        "Features that tell how a picture's pieces were shuffled tell what is on it, better than random ones.",
        "odonata.claims.represent_jigsaw:CLAIM",
    ),
    "moco-v3-predictor": ClaimCard(
        "represent",
        "MoCo v3's predictor makes features better, and is not essential.",
        "odonata.claims.represent_moco_v3:CLAIM",
    ),
    "label-free-features": ClaimCard(
        "represent",
        "MoCo v2's and MAE's features tell classes apart better than random towers' and pixels.",
        "odonata.claims.represent_features:CLAIM",
    ),
    "mae-mask-ratio": ClaimCard(
        "represent",
        "Dropping three patches in four costs MAE no probe accuracy, and makes its steps much cheaper.",
        "odonata.claims.represent_mae:CLAIM",
    ),
    "dino-collapse": ClaimCard(
        "represent",
        "Without centring DINO's teacher gives one answer for all pictures, without sharpening the same flat one.",
        "odonata.claims.represent_dino:CLAIM",
    ),
    "swav-equipartition": ClaimCard(
        "represent",
        "Codes balanced by Sinkhorn keep SwAV's prototypes in use; plain softmax codes collapse.",
        "odonata.claims.represent_swav:EQUIPARTITION",
    ),
    "swav-multi-crop": ClaimCard(
        "represent",
        "Small crops beside two large ones give SwAV better features in equal time.",
        "odonata.claims.represent_swav:MULTI_CROP",
    ),
    "moby-parents": ClaimCard(
        "represent",
        "MoBY's features are no worse than those of either parent, MoCo v2 and BYOL, in equal steps.",
        "odonata.claims.represent_moby:CLAIM",
    ),
    "focal-loss": ClaimCard(
        "detect",
        "Where objects are rare the focal loss beats cross-entropy, plain or balanced.",
        "odonata.claims.detect_focal:FOCAL",
    ),
    "prior-bias": ClaimCard(
        "detect",
        "Biases that begin every answer at a low probability make the first loss at least ten times smaller.",
        "odonata.claims.detect_focal:PRIOR",
    ),
    "several-levels": ClaimCard(
        "detect",
        "Three levels of a pyramid find more than one, most of all small objects.",
        "odonata.claims.detect_levels:LEVELS",
    ),
    "fpn-top-down": ClaimCard(
        "detect",
        "The pyramid's path from the top beats the same levels without it.",
        "odonata.claims.detect_levels:TOP_DOWN_PATH",
    ),
    "snip-ranges": ClaimCard(
        "detect",
        "On the same pyramid, ignoring objects outside each size's range beats counting all of them.",
        "odonata.claims.detect_scale:SNIP",
    ),
    "trident-ranges": ClaimCard(
        "detect",
        "Three branches with ranges of their own detect better than the same branches for all objects.",
        "odonata.claims.detect_trident:CLAIM",
    ),
    "tiles-small-objects": ClaimCard(
        "detect",
        "With unchanged weights, windows of a large picture find more than the picture scaled down.",
        "odonata.claims.detect_scale:TILES",
    ),
    "best-possible-recall": ClaimCard(
        "detect",
        "FCOS's points can be assigned to at least as many objects as RetinaNet's anchors.",
        "odonata.claims.detect_anchors:COVERAGE",
    ),
    "kmeans-anchors": ClaimCard(
        "detect",
        "Five anchors from k-means fit boxes at least as well as nine hand-picked ones.",
        "odonata.claims.detect_anchors:SHAPES",
    ),
    "anchor-free-parity": ClaimCard(
        "detect",
        "On the same trunk FCOS and RetinaNet are within four points of AP.",
        "odonata.claims.detect_anchors:PARITY",
    ),
    "detr-slow-start": ClaimCard(
        "detect",
        "A fully convolutional detector finds more after a fifth of the steps than DETR after all.",
        "odonata.claims.detect_detr:CLAIM",
    ),
    "yolo-grids": ClaimCard(
        "detect",
        "Of crowded objects more can have a prediction of their own from each version of YOLO to the next.",
        "odonata.claims.detect_yolo:CLAIM",
    ),
    "centernet-no-nms": ClaimCard(
        "detect",
        "CenterNet's peaks do without suppression: it adds less than one point of AP.",
        "odonata.claims.detect_points:NO_SUPPRESSION",
    ),
    "corner-pooling": ClaimCard(
        "detect",
        "CornerNet detects better with corner pooling than with the same layers without it.",
        "odonata.claims.detect_points:CORNER_POOLING",
    ),
    "ssd-hard-negatives": ClaimCard(
        "detect",
        "SSD detects better with three hard negatives for each positive than with all of them.",
        "odonata.claims.detect_points:HARD_NEGATIVES",
    ),
    "mtcnn-cascade": ClaimCard(
        "detect",
        "MTCNN's first network rejects nearly every window, and the cascade detects better than it alone.",
        "odonata.claims.detect_cascade:CLAIM",
    ),
    "polar-ceiling": ClaimCard(
        "detect",
        "More rays, and the mass centre, raise the best mask that PolarMask can draw.",
        "odonata.claims.detect_polar:CLAIM",
    ),
    "pspnet-context": ClaimCard(
        "segment",
        "Pyramid pooling segments better than none where the scene decides what small things are called.",
        "odonata.claims.segment_context:CLAIM",
    ),
    "fcn-stride-ceiling": ClaimCard(
        "segment",
        "The best map of a network of stride 32 is worse than that of stride 16, and this than that of 8.",
        "odonata.claims.segment_stride:CLAIM",
    ),
    "robbins-monro": ClaimCard(
        "decide",
        "A noisy search rests at its root under Robbins and Monro's conditions, and misses it without any one of them.",
        "odonata.claims.decide_robbins_monro:CLAIM",
    ),
    "monte-carlo-dp": ClaimCard(
        "decide",
        "Monte Carlo and temporal differences come to the values that dynamic programming finds with the model.",
        "odonata.claims.decide_monte_carlo:CLAIM",
    ),
    "r1-zero": ClaimCard(
        "posttrain",
        "Rewarded for right answers alone, a model comes to write its steps; one that never learned them does not.",
        "odonata.claims.posttrain_r1_zero:CLAIM",
    ),
    "preference-compute": ClaimCard(
        "posttrain",
        "From the same pairs DPO is as good as a reward model with reinforcement, at half the cost; then it decays.",
        "odonata.claims.posttrain_compute:CLAIM",
    ),
    "distillation-beats-rl": ClaimCard(
        "posttrain",
        "A small model learns more from a larger one's right answers than from rewards for its own.",
        "odonata.claims.posttrain_distil:CLAIM",
    ),
    "distillation-losses": ClaimCard(
        "distill",
        "Soft targets beat the student alone, and need their T²; all thirteen losses compared.",
        "odonata.claims.distill_losses:CLAIM",
    ),
    "test-time-scaling": ClaimCard(
        "posttrain",
        "Votes and best of N by log-probability gain up to 64 samples; by a learned judge up to 8, and then they lose.",
        "odonata.claims.posttrain_test_time:CLAIM",
    ),
    "preference-losses": ClaimCard(
        "posttrain",
        "DPO, IPO, KTO and SimPO each raise right answers by more than ten points from the same pairs.",
        "odonata.claims.posttrain_preferences:CLAIM",
    ),
    "reward-hacking": ClaimCard(
        "posttrain",
        "A learned reward alone is earned without being right; a price on leaving the reference prevents that.",
        "odonata.claims.posttrain_hacking:CLAIM",
    ),
    "grouped-query-attention": ClaimCard(
        "language",
        "Heads of queries that share keys in pairs cost next to nothing, and halve the cache.",
        "odonata.claims.language_gqa:CLAIM",
    ),
    "mcts-perfect-player": ClaimCard(
        "posttrain",
        "More simulations lose less often to a perfect player, if values change sign from ply to ply.",
        "odonata.claims.posttrain_mcts:CLAIM",
    ),
    "kl-gradients": ClaimCard(
        "posttrain",
        "As losses k1 has no gradient, k2 that of KL(π‖π_ref), k3 that of KL(π_ref‖π); the ratio mends all three.",
        "odonata.claims.posttrain_kl:CLAIM",
    ),
    "loss-normalisation": ClaimCard(
        "posttrain",
        "What a loss is divided by favours short wrong answers, hard and easy prompts, or lone micro-batches.",
        "odonata.claims.posttrain_normalisation:CLAIM",
    ),
    "ppo-clip": ClaimCard(
        "decide",
        "With ten passes over each rollout the clipped objective learns better than the same surrogate unclipped.",
        "odonata.claims.decide_ppo:CLAIM",
    ),
}
"""Every claim by name."""


def find(name: str) -> ClaimCard:
    """Return a claim's card.

    Raises:
        RecipeError: no such claim; names the nearest.
    """
    if name not in CLAIMS:
        near = difflib.get_close_matches(name, CLAIMS, 3)
        hint = f"did you mean {' or '.join(near)}?" if near else f"there are {', '.join(CLAIMS)}"
        raise RecipeError(f"no claim {name!r}; {hint}")
    return CLAIMS[name]


def load(name: str) -> Claim:
    """Return a claim by name; imports its module, and torch with it.

    Raises:
        RecipeError: no such claim.
    """
    module, _, attribute = find(name).reference.partition(":")
    return getattr(importlib.import_module(module), attribute)


def recorded() -> dict[str, dict[str, Any]]:
    """Return name → what was last recorded, for those claims of the index that have a record."""
    folder = importlib.resources.files("odonata.claims") / "recorded"
    files = {name: folder / f"{name}.json" for name in CLAIMS}
    return {name: json.loads(file.read_text(encoding="utf-8")) for name, file in files.items() if file.is_file()}
