"""What darknet's three heads tell each of their inputs in training, number by number, in float64.

Written from what `forward_detection_layer`, `forward_region_layer` (with the GPU's backward pass) and
`forward_yolo_layer` of pjreddie/darknet do, one loop for each of theirs. A delta is minus the gradient of a loss.
Objects are (x, y, w, h, class) as shares of the picture.
"""

from __future__ import annotations

import math

import numpy as np


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


def softmax(row):
    high = np.exp(row - row.max())
    return high / high.sum()


def box_iou(a, b):
    """Of (x, y, w, h)."""
    across = min(a[0] + a[2] / 2, b[0] + b[2] / 2) - max(a[0] - a[2] / 2, b[0] - b[2] / 2)
    down = min(a[1] + a[3] / 2, b[1] + b[3] / 2) - max(a[1] - a[3] / 2, b[1] - b[3] / 2)
    if across < 0 or down < 0:
        return 0.0
    shared = across * down
    return shared / (a[2] * a[3] + b[2] * b[3] - shared)


def detection_deltas(raw, head, objects):
    """Of one picture's vector."""
    side, boxes, classes = head.side, head.boxes, head.classes
    cells, out, delta = side * side, raw.astype(np.float64).copy(), np.zeros(len(raw))
    if head.softmax:
        for i in range(cells):
            out[i * classes : (i + 1) * classes] = softmax(out[i * classes : (i + 1) * classes])
    truth = {}
    for x, y, w, h, label in objects:
        column, row = int(x * side), int(y * side)
        truth.setdefault(row * side + column, (x * side - column, y * side - row, w, h, label))
    for i in range(cells):
        for j in range(boxes):
            at = cells * classes + i * boxes + j
            delta[at] = head.noobject_scale * (0 - out[at])
        if i not in truth:
            continue
        x, y, w, h, label = truth[i]
        for c in range(classes):
            delta[i * classes + c] = head.class_scale * ((c == label) - out[i * classes + c])
        goal = (x / side, y / side, w, h)
        best, best_iou, best_rmse = -1, 0.0, 20.0
        for j in range(boxes):
            guess = _free_box(out, head, i, j)
            iou = box_iou(guess, goal)
            rmse = math.sqrt(sum((g - t) ** 2 for g, t in zip(guess, goal, strict=True)))
            if best_iou > 0 or iou > 0:
                if iou > best_iou:
                    best, best_iou = j, iou
            elif rmse < best_rmse:
                best, best_rmse = j, rmse
        iou = box_iou(_free_box(out, head, i, best), goal)
        at = cells * classes + i * boxes + best
        delta[at] = head.object_scale * ((iou if head.rescore else 1.0) - out[at])
        at = cells * (classes + boxes) + (i * boxes + best) * 4
        wanted = (x, y, math.sqrt(w), math.sqrt(h)) if head.sqrt else (x, y, w, h)
        for k in range(4):
            delta[at + k] = head.coord_scale * (wanted[k] - out[at + k])
    return delta


def _free_box(out, head, i, j):
    at = head.side**2 * (head.classes + head.boxes) + (i * head.boxes + j) * 4
    x, y, w, h = out[at : at + 4]
    return (x / head.side, y / head.side, w * w if head.sqrt else w, h * h if head.sqrt else h)


def region_deltas(raw, head, objects, prior):
    """Of one picture's map [maps, height, width]; carried through the sigmoids of x, y and objectness."""
    count, classes = len(head.anchors), head.classes
    height, width = raw.shape[1:]
    x = raw.reshape(count, 5 + classes, height, width).astype(np.float64)
    out, delta = x.copy(), np.zeros_like(x)
    for n, j, i in np.ndindex(count, height, width):
        for k in (0, 1, 4):
            out[n, k, j, i] = sigmoid(x[n, k, j, i])
        row = x[n, 5:, j, i]
        out[n, 5:, j, i] = softmax(row) if head.softmax else [sigmoid(v) for v in row]

    def predicted(n, j, i):
        aw, ah = head.anchors[n]
        bx, by, bw, bh = out[n, :4, j, i]
        return ((i + bx) / width, (j + by) / height, math.exp(bw) * aw / width, math.exp(bh) * ah / height)

    def learn_box(n, j, i, truth, scale):
        aw, ah = head.anchors[n]
        wanted = (truth[0] * width - i, truth[1] * height - j)
        wanted += (math.log(truth[2] * width / aw), math.log(truth[3] * height / ah))
        for k in range(4):
            delta[n, k, j, i] = scale * (wanted[k] - out[n, k, j, i])
        return box_iou(predicted(n, j, i), truth)

    for j, i, n in np.ndindex(height, width, count):
        best_iou = max((box_iou(predicted(n, j, i), one[:4]) for one in objects), default=0.0)
        delta[n, 4, j, i] = 0.0 if best_iou > head.thresh else head.noobject_scale * (0 - out[n, 4, j, i])
        if prior:
            aw, ah = head.anchors[n]
            learn_box(n, j, i, ((i + 0.5) / width, (j + 0.5) / height, aw / width, ah / height), 0.01)
    for *truth, label in objects:
        i, j = int(truth[0] * width), int(truth[1] * height)
        best, best_iou = 0, 0.0
        for n in range(count):
            shape = predicted(n, j, i)[2:]
            if head.bias_match:
                shape = (head.anchors[n][0] / width, head.anchors[n][1] / height)
            iou = box_iou((0, 0, *shape), (0, 0, *truth[2:]))
            if iou > best_iou:
                best, best_iou = n, iou
        iou = learn_box(best, j, i, truth, head.coord_scale * (2 - truth[2] * truth[3]))
        delta[best, 4, j, i] = head.object_scale * ((iou if head.rescore else 1.0) - out[best, 4, j, i])
        if delta[best, 5, j, i] and not head.softmax:
            delta[best, 5 + label, j, i] = head.class_scale * (1 - out[best, 5 + label, j, i])
            continue
        for c in range(classes):
            delta[best, 5 + c, j, i] = head.class_scale * ((c == label) - out[best, 5 + c, j, i])
    for k in (0, 1, 4):
        delta[:, k] *= out[:, k] * (1 - out[:, k])
    return delta.reshape(raw.shape)


def yolo_deltas(raw, head, objects, frame):
    """Of one picture's map [maps, height, width] at one scale."""
    count, classes = len(head.mask), head.classes
    height, width = raw.shape[1:]
    x = raw.reshape(count, 5 + classes, height, width).astype(np.float64)
    out, delta = x.copy(), np.zeros_like(x)
    for n, j, i in np.ndindex(count, height, width):
        for k in (0, 1, *range(4, 5 + classes)):
            out[n, k, j, i] = sigmoid(x[n, k, j, i])
        for k in (0, 1):
            out[n, k, j, i] = out[n, k, j, i] * head.scale_x_y - 0.5 * (head.scale_x_y - 1)

    def predicted(n, j, i):
        aw, ah = head.anchors[head.mask[n]]
        bx, by, bw, bh = out[n, :4, j, i]
        return ((i + bx) / width, (j + by) / height, math.exp(bw) * aw / frame[1], math.exp(bh) * ah / frame[0])

    for j, i, n in np.ndindex(height, width, count):
        best_iou = max((box_iou(predicted(n, j, i), one[:4]) for one in objects), default=0.0)
        delta[n, 4, j, i] = 0.0 if best_iou > head.ignore_thresh else 0 - out[n, 4, j, i]
    for *truth, label in objects:
        i, j = int(truth[0] * width), int(truth[1] * height)
        best, best_iou = 0, 0.0
        for n, (aw, ah) in enumerate(head.anchors):
            iou = box_iou((0, 0, aw / frame[1], ah / frame[0]), (0, 0, *truth[2:]))
            if iou > best_iou:
                best, best_iou = n, iou
        if best not in head.mask:
            continue
        n = head.mask.index(best)
        aw, ah = head.anchors[best]
        wanted = (truth[0] * width - i, truth[1] * height - j)
        wanted += (math.log(truth[2] * frame[1] / aw), math.log(truth[3] * frame[0] / ah))
        for k in range(4):
            delta[n, k, j, i] = (2 - truth[2] * truth[3]) * (wanted[k] - out[n, k, j, i])
        delta[n, 4, j, i] = 1 - out[n, 4, j, i]
        if delta[n, 5, j, i]:
            delta[n, 5 + label, j, i] = 1 - out[n, 5 + label, j, i]
            continue
        for c in range(classes):
            delta[n, 5 + c, j, i] = (c == label) - out[n, 5 + c, j, i]
    return delta.reshape(raw.shape)
