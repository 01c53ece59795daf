"""Whether a detector learns a few pictures by heart: the least that a right loss and right targets must do."""

from __future__ import annotations

import torch

from odonata.data.object_batches import ObjectData, read_item, to_batch, train_and_heldout_objects
from odonata.data.object_transforms import FrameItem
from odonata.detect.detector import DetectorOptions
from odonata.detect.methods import METHOD_OF
from odonata.ops.boxes import iou_matrix


def recall_after(config: DetectorOptions, steps: int, rate: float = 3e-3, pictures: int = 8) -> float:
    """Share of the objects of some embedded pictures that are found, as the right class with an IoU of 0.5 and a score
    of 0.3, after so many steps on them."""
    train, _ = train_and_heldout_objects(ObjectData(path="objects:n=24"))
    framed, generator = FrameItem(config.framing), torch.Generator()
    masks = METHOD_OF[type(config)].needs_masks
    items = [framed(read_item(train[i], masks), generator) for i in range(pictures)]
    batch = to_batch(items, config.framing.divisor)
    torch.manual_seed(0)
    detector = METHOD_OF[type(config)](config, len(train.categories)).train()
    optimizer = torch.optim.AdamW(detector.parameters(), rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps)
    for _ in range(steps):
        detector.loss(batch)["loss"].backward()
        torch.nn.utils.clip_grad_norm_(detector.parameters(), 10.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
    detector.eval()
    with torch.no_grad():
        answers = detector.predict(batch)
    found = total = 0
    for answer, boxes, labels in zip(answers, batch.boxes, batch.labels, strict=True):
        sure = answer.scores > 0.3
        hit = iou_matrix(boxes, answer.boxes[sure]) >= 0.5
        hit &= labels[:, None] == answer.labels[sure][None]
        found, total = found + int(hit.any(1).sum()), total + len(boxes)
    return found / total
