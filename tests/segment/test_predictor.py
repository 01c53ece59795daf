"""Looking at pictures: windows, mirroring, scales, sizes."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from odonata.data.framing import Framing
from odonata.data.semantic import voc_palette
from odonata.errors import RecipeError, WeightsError
from odonata.segment.assets import SegmenterAssets
from odonata.segment.fcn import FCN8sConfig
from odonata.segment.predictor import SegmenterPredictor, load, recognises, starts
from odonata.segment.pspnet import PSPNetConfig

NAMES = ("sky", "road", "tree")


def predictor(config=None, name: str = "pspnet") -> SegmenterPredictor:
    torch.manual_seed(0)
    assets = SegmenterAssets(name, config or PSPNetConfig(), NAMES, voc_palette(3))
    segmenter = assets.build().eval()
    with torch.no_grad():
        for parameter in segmenter.network.head.logits.parameters() if name == "pspnet" else ():
            parameter.normal_()
    return SegmenterPredictor(segmenter, assets, torch.device("cpu"), name)


def pictures(*sizes: tuple[int, int]) -> list[torch.Tensor]:
    return [torch.randint(0, 256, (3, *size), dtype=torch.uint8) for size in sizes]


class Colours(torch.nn.Module):
    """Stands in for a network: the surest class is the brightest channel, wherever the picture is."""

    def forward(self, images, auxiliary=False):
        return [images * 3]


def by_colour(**config) -> SegmenterPredictor:
    model = predictor(PSPNetConfig(framing=Framing(resize="keep", divisor=1), **config))
    model.segmenter.network = Colours()
    return model


def test_windows_overlap_by_a_third_and_end_at_the_edge():
    """tool/test.py of the authors: windows of 473 every ⌈473 · 2/3⌉ = 316 pixels, the last moved back."""
    assert starts(1000, 473, 1 / 3) == [0, 316, 527]
    assert starts(473, 473, 1 / 3) == [0] == starts(100, 473, 1 / 3)
    assert starts(474, 473, 1 / 3) == [0, 1]
    for length in range(1, 60):
        begun = starts(length, 17, 0.25)
        seen = {pixel for start in begun for pixel in range(start, start + 17)}
        assert seen >= set(range(length)) and len(set(begun)) == len(begun)


@pytest.mark.parametrize(
    "ways", [{"tile": 17}, {"tile": 33, "overlap": 0.5}, {"flip": True}, {"tile": 17, "flip": True}]
)
def test_every_way_to_look_keeps_every_pixel_in_its_place(ways):
    model, (image,) = by_colour(), pictures((40, 51))
    mean = torch.tensor(model.framing.mean)[:, None, None]
    std = torch.tensor(model.framing.std)[:, None, None]
    wanted = ((image / 255 - mean) / std).argmax(0)
    assert torch.equal(model.predict(image, **ways).map.long(), wanted)


def test_several_scales_agree_on_large_areas():
    image = torch.zeros(3, 40, 60, dtype=torch.uint8)
    image[0, :, :30], image[1, :, 30:] = 255, 255
    answer = by_colour().predict(image, scales=(0.5, 1.0, 1.75), flip=True)
    wanted = torch.zeros(40, 60, dtype=torch.uint8)
    wanted[:, 30:] = 1
    assert (answer.map != wanted).float().mean() < 0.02


def test_a_scaled_frame_is_brought_back_to_the_pictures_size():
    model = predictor(PSPNetConfig(framing=Framing(size=33, max_size=60, divisor=1)))
    answers = model.predict(pictures((70, 50), (20, 90), (1, 40)))
    assert [answer.size for answer in answers] == [(70, 50), (20, 90), (1, 40)]


def test_an_answer_does_not_depend_on_the_pictures_beside_it():
    model, images = predictor(), pictures((33, 41), (25, 41), (33, 41))
    together = model.predict(images, batch_size=3, with_scores=True)
    for image, answer in zip(images, together, strict=True):
        alone = model.predict(image, with_scores=True)
        assert torch.allclose(alone.scores, answer.scores, atol=1e-5)
        assert (alone.map == answer.map).float().mean() > 0.999


def test_small_pictures_are_padded_to_the_window_and_cut_back():
    model = predictor(PSPNetConfig(window=65))
    answer = model.predict(pictures((30, 70))[0], with_scores=True)
    assert answer.size == (30, 70) and bool((answer.scores > 1 / 3 - 1e-6).all()) and bool((answer.scores <= 1).all())


def test_bfloat16_gives_nearly_the_same_map():
    model, images = predictor(), pictures((49, 49))
    first, second = model.predict(images[0]), model.predict(images[0], precision="bf16")
    assert (first.map == second.map).float().mean() > 0.9


@pytest.mark.shows("pspnet", "manners")
@pytest.mark.shows("fcn-8s", "manners")
@pytest.mark.parametrize("model", [predictor(), predictor(FCN8sConfig(), "fcn-8s")], ids=["pspnet", "fcn"])
def test_what_detectors_take_and_segmenters_do_not_is_refused_in_words(model):
    image = pictures((33, 33))[0]
    assert model.predict(image, batch_size=2, precision="fp32", tile=17, overlap=None, merge="nms").size == (33, 33)
    with pytest.raises(RecipeError, match="segmenters have no threshold"):
        model.predict(image, score=0.5)
    with pytest.raises(RecipeError, match=r"overlap in \[0, 1\)"):
        model.predict(image, overlap=1.0)
    with pytest.raises(RecipeError, match="batch size"):
        model.predict(image, batch_size=0)


def test_a_folder_of_odonatas_comes_back_with_its_classes(tmp_path):
    model, image = predictor(), pictures((33, 33))[0]
    model.convert(tmp_path / "out", "odonata")
    assert recognises(tmp_path / "out")
    again = load(tmp_path / "out", None, torch.device("cpu"))
    assert again.assets == model.assets
    assert torch.equal(again.predict(image).map, model.predict(image).map)
    with pytest.raises(WeightsError, match="no layout 'darknet' for pspnet; there are odonata, semseg"):
        model.convert(tmp_path / "other", "darknet")
    (tmp_path / "out/model.json").write_text('{"segmenter": "unet"}')
    with pytest.raises(WeightsError, match="cannot read the model's description"):
        load(tmp_path / "out", None, torch.device("cpu"))


@pytest.mark.slow
@pytest.mark.parametrize(
    "model",
    [predictor(PSPNetConfig(window=65)), predictor(FCN8sConfig(), "fcn-8s")],
    ids=["pspnet", "fcn"],
)
def test_onnxruntime_gives_the_same_maps(model, tmp_path):
    pytest.importorskip("onnxruntime")
    from odonata.segment.export import export_onnx

    with torch.no_grad():
        for parameter in model.segmenter.network.parameters():
            if not parameter.any():
                parameter.normal_()
    done = export_onnx(model, tmp_path / "model.onnx")
    assert done.outputs == ("labels", "scores") and len(done.report) == 2
    assert [file.name for file in tmp_path.iterdir()] == ["model.onnx"]


def test_options_that_cannot_be_are_named():
    for wrong, named in (
        ({"scale": (1.0, 0.5)}, "--scale"),
        ({"window_overlap": 1.0}, "--window-overlap"),
        ({"test_scales": ()}, "--test-scales"),
        ({"crop": -1}, "--crop"),
        ({"framing": replace(Framing(), resize="letterbox")}, "margins have no class"),
    ):
        with pytest.raises(RecipeError, match=named):
            FCN8sConfig(**wrong)
