"""Figures of segmentation against scikit-learn and torchmetrics, and a worked example."""

import pytest
import torch
from sklearn.metrics import accuracy_score, balanced_accuracy_score, jaccard_score
from sklearn.metrics import confusion_matrix as sklearn_confusion
from torchmetrics.functional.classification import multiclass_jaccard_index

from odonata.errors import DataError
from odonata.metrics.segmentation import confusion_matrix, segmentation_figures


def maps(seed: int = 0, classes: int = 5, void: float = 0.1) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    target = torch.randint(0, classes, (3, 20, 30), generator=generator)
    wrong = torch.randint(0, classes, target.shape, generator=generator)
    predicted = torch.where(torch.rand(target.shape, generator=generator) < 0.7, target, wrong)
    target[torch.rand(target.shape, generator=generator) < void] = 255
    return predicted, target


@pytest.mark.parametrize("seed", range(3))
def test_figures_are_scikit_learns_and_torchmetrics(seed: int):
    predicted, target = maps(seed)
    figures = segmentation_figures(confusion_matrix(predicted, target, 5))
    counted = target != 255
    y, p = target[counted].numpy(), predicted[counted].numpy()
    assert figures.confusion.tolist() == sklearn_confusion(y, p, labels=range(5)).tolist()
    assert figures.miou == pytest.approx(jaccard_score(y, p, average="macro"), abs=1e-12)
    assert figures.iou.tolist() == pytest.approx(jaccard_score(y, p, average=None).tolist(), abs=1e-12)
    assert figures.frequency_weighted_iou == pytest.approx(jaccard_score(y, p, average="weighted"), abs=1e-12)
    assert figures.pixel_accuracy == pytest.approx(accuracy_score(y, p), abs=1e-12)
    assert figures.mean_accuracy == pytest.approx(balanced_accuracy_score(y, p), abs=1e-12)
    theirs = multiclass_jaccard_index(predicted, target, num_classes=5, ignore_index=255)
    assert figures.miou == pytest.approx(theirs.item(), abs=1e-6)


def test_a_worked_example():
    target = torch.tensor([[0, 0, 0, 1], [1, 1, 255, 255]], dtype=torch.uint8)
    predicted = torch.tensor([[0, 0, 1, 1], [1, 0, 0, 77]], dtype=torch.uint8)
    figures = segmentation_figures(confusion_matrix(predicted, target, 3), ["road", "car", "sky"])
    assert figures.confusion.tolist() == [[2, 1, 0], [1, 2, 0], [0, 0, 0]]
    assert figures.miou == pytest.approx(0.5) and figures.pixel_accuracy == pytest.approx(4 / 6)
    assert figures.to_dict()["per_class"] == {"road": 0.5, "car": 0.5, "sky": None}


def test_a_class_that_is_only_predicted_counts_as_zero():
    figures = segmentation_figures(confusion_matrix(torch.tensor([0, 0, 1]), torch.tensor([0, 0, 0]), 3))
    assert figures.iou[:2].tolist() == pytest.approx([2 / 3, 0]) and figures.iou[2].isnan()
    assert figures.miou == pytest.approx(1 / 3)
    assert figures.mean_accuracy == pytest.approx(2 / 3) and figures.frequency_weighted_iou == pytest.approx(2 / 3)


def test_matrices_of_pictures_add_up():
    predicted, target = maps()
    parts = sum(confusion_matrix(p, t, 5) for p, t in zip(predicted, target, strict=True))
    assert torch.equal(parts, confusion_matrix(predicted, target, 5))


def test_wrong_maps_are_named():
    zero = torch.zeros(2, 2, dtype=torch.int64)
    with pytest.raises(DataError, match="the right map says class 7, but there are 3 classes and 255 is ignored"):
        confusion_matrix(zero, zero + 7, 3)
    with pytest.raises(DataError, match="the predicted map says class -1"):
        confusion_matrix(zero - 1, zero, 3)
    with pytest.raises(DataError, match=r"the map of classes is \[2, 2\], the right one \[2\]"):
        confusion_matrix(zero, zero[0], 3)
    with pytest.raises(DataError, match="every one is ignored"):
        segmentation_figures(confusion_matrix(zero, zero + 255, 3))
    with pytest.raises(DataError, match="does not fit 2 classes"):
        segmentation_figures(torch.ones(3, 3, dtype=torch.int64), ["a", "b"])
