"""What is measured: one matrix over all pixels, by the names of the classes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from odonata.app.commands.evaluate_segment import interval
from odonata.data.sample import ImageRef
from odonata.data.semantic import MapRef, SemanticImage
from odonata.errors import DataError
from odonata.metrics.segmentation import segmentation_figures
from odonata.segment.evaluation import confusions, label_table
from segment.test_predictor import NAMES, by_colour


def sample(labels: np.ndarray, colours: np.ndarray) -> SemanticImage:
    """A picture whose pixels have pure colours, with a map."""
    pixels = np.zeros((*colours.shape, 3), np.uint8)
    np.put_along_axis(pixels, colours[..., None].astype(np.int64), 255, axis=2)
    return SemanticImage(ImageRef(pixels=pixels), MapRef(paint=lambda: labels), labels.shape)


def test_maps_are_counted_by_the_models_names_whatever_their_own_order():
    generator = np.random.default_rng(0)
    colours = generator.integers(0, 3, (12, 16))
    theirs = ("tree", "sky", "road")
    labels = np.array([theirs.index(name) for name in NAMES])[colours].astype(np.uint8)
    labels[:3] = 255
    (matrix,) = confusions(by_colour(), [sample(labels, colours)], theirs)
    assert segmentation_figures(matrix, NAMES).miou == 1.0 and int(matrix.sum()) == 9 * 16


def test_classes_that_the_model_does_not_know_are_named():
    with pytest.raises(DataError, match="does not know: pole; it knows sky, road, tree"):
        label_table(("sky", "pole"), NAMES)
    assert label_table(("tree",), NAMES)[[0, 1, 255]].tolist() == [2, 255, 255]


def test_a_map_of_another_size_is_named():
    there = sample(np.zeros((4, 4), np.uint8), np.zeros((4, 4)))
    wrong = replace(there, map=MapRef(paint=lambda: np.zeros((4, 5), np.uint8)))
    with pytest.raises(DataError, match="5 × 4 px, and its picture 4 × 4"):
        list(confusions(by_colour(), [wrong], NAMES))


def test_the_interval_holds_the_figure_and_shrinks_to_it_where_pictures_are_alike():
    same = torch.tensor([[8, 2], [1, 9]]).repeat(6, 1, 1)
    miou = segmentation_figures(same.sum(0)).miou
    assert interval(same, 50) == pytest.approx((miou, miou))
    mixed = torch.stack([torch.tensor([[n, 10 - n], [10 - n, n]]) for n in (2, 5, 8, 9)])
    low, high = interval(mixed, 200)
    assert low < segmentation_figures(mixed.sum(0)).miou < high
