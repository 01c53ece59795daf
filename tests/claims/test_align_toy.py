"""The small world: what it shows is what its captions say, and its splits share no handwriting."""

import pytest
import torch

from odonata.claims import align_dfn, align_losses
from odonata.claims.align_toy import (
    paint_cells,
    paint_grids,
    paint_pairs,
    recall_at_1,
    shuffled_batches,
    train_cell_tower,
)


def test_pictures_are_a_function_of_seed_and_split():
    one, same = paint_pairs(20, 3, "train", 1, 30.0), paint_pairs(20, 3, "train", 1, 30.0)
    assert torch.equal(one.images, same.images)
    assert torch.equal(one.captions, same.captions)
    assert not torch.equal(one.captions, paint_pairs(20, 3, "train", 2, 30.0).captions)
    assert not torch.equal(one.captions, paint_pairs(20, 3, "test", 1, 30.0).captions)
    assert one.images.shape == (20, 3, 3, 16, 16)
    assert one.images.abs().max() <= 1


@pytest.mark.parametrize("paint", ["cells", "grids"])
def test_colours_are_those_of_the_captions(paint):
    colours = torch.tensor([0, 1, 2]).repeat_interleave(100)  # red, green, blue
    generator = torch.Generator().manual_seed(0)
    if paint == "cells":
        images, phrases = paint_cells(10 * colours, "train", generator, 5.0), 10 * colours
    else:
        pairs = paint_grids(2000, "train", 1, 5.0, side=1)
        images, phrases = pairs.images, pairs.captions[:, 0]
    for channel in range(3):
        own = images[phrases // 10 == channel].mean((0, 2, 3))
        assert own.argmax() == channel


def test_a_grid_shows_its_cells_in_reading_order():
    pairs = paint_grids(3000, "train", 1, 5.0)
    for place, (y, x) in enumerate([(0, 0), (0, 8), (8, 0), (8, 8)]):
        red = pairs.captions[:, place] // 10 == 0
        corner = pairs.images[red][:, :, y : y + 8, x : x + 8].mean((0, 2, 3))
        assert corner.argmax() == 0


def test_recall_counts_partners_found_first():
    eye = torch.eye(10)
    assert recall_at_1(eye, eye) == pytest.approx(100)
    assert recall_at_1(eye, eye.roll(1, 0)) == pytest.approx(0)
    half = eye.clone()
    half[5:] = eye[5:].roll(1, 0)
    assert recall_at_1(half, eye) == pytest.approx(50)


def test_batches_show_every_pair_once_an_epoch_in_an_order_of_the_seed():
    batches = list(shuffled_batches(10, 4, 5, seed=3))
    assert torch.cat(batches)[:10].sort().values.tolist() == list(range(10))
    assert torch.cat(batches)[10:].sort().values.tolist() == list(range(10))
    again = torch.cat(list(shuffled_batches(10, 4, 5, seed=3)))
    assert torch.equal(torch.cat(batches), again)


@pytest.mark.parametrize(("how", "changed"), [("shuffled", None), ("near miss", 1)])
def test_noise_spoils_the_share_that_it_says(how, changed):
    captions = torch.randint(80, (5000, 4), generator=torch.Generator().manual_seed(0))
    wrong, bad = align_dfn.spoil(captions, how, torch.Generator().manual_seed(1))
    assert bad.float().mean() == pytest.approx(align_dfn.NOISY, abs=0.02)
    differing = (wrong != captions).sum(1)
    assert (differing[~bad] == 0).all()
    assert (differing[bad] > 0).all()
    if changed is None:
        assert torch.equal(wrong.sort(0).values, captions.sort(0).values)
    else:
        assert (differing[bad] == changed).all()
        place = (wrong != captions)[bad]
        old, new = captions[bad][place], wrong[bad][place]
        assert ((old % 10 == new % 10) ^ (old // 10 == new // 10)).all()  # either the colour or the digit is kept


@pytest.mark.parametrize("name", ["sigmoid", "softmax"])
def test_both_ways_of_the_losses_agree_with_float64(name):
    for kind in ("tiled", "retained loop"):
        assert (
            align_losses.relative_error(align_losses.LOSSES[kind, name], align_losses.LOSSES["retained loop", name], 0)
            < 1e-5
        )


@pytest.mark.slow
def test_a_tower_learns_to_name_cells_of_new_handwriting():
    tower = train_cell_tower(32, 200, 20.0)
    fitted, new = paint_pairs(2000, 1, "train", 5, 20.0), paint_pairs(500, 1, "test", 5, 20.0)
    with torch.no_grad():
        x, z = tower(fitted.images[:, 0]), tower(new.images[:, 0])
    weights = torch.linalg.lstsq(x, torch.nn.functional.one_hot(fitted.captions[:, 0], 80).float()).solution
    # Colour alone would give a tenth, and chance an eightieth.
    assert ((z @ weights).argmax(1) == new.captions[:, 0]).float().mean() > 0.2
