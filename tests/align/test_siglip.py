"""SigLIP and its NaFlex inputs: what it must show, against transformers' SiglipModel and Siglip2Model."""

import dataclasses

import pytest
import torch
from PIL import Image

import odonata
from align.towers import (
    CLIP_TOWERS,
    NAFLEX_TOWERS,
    SIGLIP_TOWERS,
    assert_gradients,
    batch_of,
    digest,
    gradients,
    relative,
    run,
    siglip_peer,
    tiny,
)
from odonata.align.dual_encoder import DualEncoder, config_to_dict
from odonata.align.siglip import SigLIP, SigLIPConfig
from odonata.errors import RecipeError
from odonata.weights import hf_siglip
from odonata.weights.read import read_state


def against(peer, folder, batch, **inputs):
    """The method's loss and every gradient against the peer's."""
    peer.save_pretrained(folder)
    model = odonata.load(folder, device="cpu").model
    method = SigLIP(SigLIPConfig(init=str(folder)), model).train()
    theirs = peer(input_ids=batch.tokens, return_loss=True, **inputs)
    ours = method(batch)["loss"]
    assert relative(ours, theirs.loss) < 1e-5
    theirs.loss.backward()
    ours.backward()
    named = hf_siglip.key_map(config_to_dict(model.config)).from_ours(gradients(model))
    assert_gradients(named, gradients(peer))


@pytest.mark.shows("siglip", "parity")
def test_loss_and_gradients_equal_transformers(tmp_path):
    images, tokens = torch.randn(5, 3, 32, 32), torch.randint(2, 70, (5, 14))
    against(siglip_peer(), tmp_path, batch_of(images, tokens), pixel_values=images)


def naflex_inputs():
    grids = torch.tensor([[4, 4], [2, 7], [1, 16], [3, 3], [5, 3]])
    return torch.randn(5, 16, 192), torch.arange(16) < grids.prod(1, keepdim=True), grids


@pytest.mark.shows("siglip", "parity")
def test_naflex_loss_and_gradients_equal_transformers(tmp_path):
    patches, mask, grids = naflex_inputs()
    inputs = {"pixel_values": patches, "pixel_attention_mask": mask.long(), "spatial_shapes": grids}
    batch = batch_of(patches, torch.randint(2, 70, (5, 14)), mask=mask, grids=grids)
    against(siglip_peer(naflex=True), tmp_path, batch, **inputs)


@pytest.mark.shows("siglip", "weights")
@pytest.mark.parametrize("naflex", [False, True], ids=["fixed", "naflex"])
def test_published_weights_go_out_as_they_came(tmp_path, naflex):
    peer = siglip_peer(naflex)
    peer.save_pretrained(tmp_path / "hf")
    odonata.load(tmp_path / "hf", device="cpu").convert(tmp_path / "own", "odonata")
    odonata.load(tmp_path / "own", device="cpu").convert(tmp_path / "back", "hf")
    first, last = read_state(tmp_path / "hf").state, read_state(tmp_path / "back").state
    assert first.keys() == last.keys()
    assert all(torch.equal(first[name], last[name]) and first[name].shape == last[name].shape for name in first)
    _, info = type(peer).from_pretrained(tmp_path / "back", output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))


@pytest.mark.shows("siglip", "weights")
@pytest.mark.parametrize("layout", ["odonata", "hf", "big_vision"])
def test_a_run_answers_the_same_from_every_layout(tmp_path, layout):
    _, folder = run(tiny("siglip", steps=2), tmp_path / "run")
    model = odonata.load(folder, device="cpu")
    images, texts = torch.randint(256, (3, 3, 40, 32), dtype=torch.uint8), ["a red 3", "two blue digits"]
    written = model.convert(tmp_path / layout, layout)
    path = next(p for p in written if p.suffix == ".npz") if layout == "big_vision" else tmp_path / layout
    again = odonata.load(path, device="cpu", **({"layout": layout} if layout == "big_vision" else {}))
    assert digest(again.model) == digest(model.model)
    assert torch.equal(again.embed_text(texts), model.embed_text(texts))
    if layout != "big_vision":  # an npz says nothing of preprocessing: big_vision's own is taken, another resize
        assert torch.equal(again.embed_image(images), model.embed_image(images))


@pytest.mark.shows("siglip", "trains")
def test_naflex_trains_end_to_end_on_pictures_of_any_ratio(tmp_path):
    generator = torch.Generator().manual_seed(0)
    rows = []
    for number, size in enumerate([(32, 32), (64, 16), (16, 64), (48, 24), (24, 40), (56, 16), (32, 24), (40, 40)]):
        colour = tuple(torch.randint(256, (3,), generator=generator).tolist())
        Image.new("RGB", size, colour).save(tmp_path / f"{number}.png")
        rows.append(f"{number}.png,caption of number {number}")
    (tmp_path / "pairs.csv").write_text("image,caption\n" + "\n".join(rows) + "\n")
    chosen = tiny(
        "siglip", model=NAFLEX_TOWERS, max_patches=16, data__path=str(tmp_path / "pairs.csv"), steps=60,
        data__batch_size=4, optim__lr=2e-3, bias_init=-1.4, data__augment="crop", save_every=60,
    )  # fmt: skip
    task, folder = run(chosen, tmp_path / "run")
    batch = next(task.batches.start())
    assert len({tuple(grid) for grid in batch.grids.tolist()}) > 1, "training must keep the pictures' own ratios"
    model = odonata.load(folder, device="cpu")
    assert model.assets.max_patches == 16
    similar = (
        model.embed_image([tmp_path / f"{n}.png" for n in range(8)])
        @ model.embed_text([f"caption of number {n}" for n in range(8)]).T
    )
    assert (similar.argmax(1) == torch.arange(8)).float().mean() >= 0.5  # chance is 1 in 8


@pytest.mark.shows("siglip", "manners")
def test_naflex_answers_depend_on_neither_padding_nor_batch_nor_order(tmp_path):
    _, folder = run(tiny("siglip", model=NAFLEX_TOWERS, max_patches=16, steps=1), tmp_path / "run")
    model = odonata.load(folder, device="cpu")
    pictures = [torch.randint(256, (3, h, w), dtype=torch.uint8) for h, w in ((32, 32), (64, 16), (20, 50), (8, 96))]
    whole = model.embed_image(pictures)
    alone = torch.cat([model.embed_image(picture) for picture in pictures])
    assert relative(alone, whole) < 1e-5
    assert relative(model.embed_image(pictures, batch_size=3), whole) < 1e-5
    order = [2, 0, 3, 1]
    assert relative(model.embed_image([pictures[i] for i in order]), whole[order]) < 1e-5
    with torch.no_grad():  # padding beyond the longest of the batch, filled with noise
        patches, mask, grids = naflex_inputs()
        tower = model.model.visual
        padded = torch.cat([patches, torch.randn(5, 9, 192)], 1)
        more = torch.cat([mask, torch.zeros(5, 9, dtype=torch.bool)], 1)
        assert relative(tower(padded, more, grids), tower(patches, mask, grids)) < 1e-5


@pytest.mark.shows("siglip", "manners")
@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"model": CLIP_TOWERS}, "has no logit bias; SigLIP needs one, such as ViT-B-16-SigLIP"),
        ({"variant": "clip-laptop", "model": None}, "--variant clip-laptop has no logit bias"),
        ({"scale_init": -1.0}, r"--scale-init is -1.0; it must be positive"),
        ({"variant": "ViT-B-16-SigLP", "model": None}, "is unknown; there are ViT-B-16-SigLIP"),
        ({"max_patches": 64}, "--max-patches needs a NaFlex tower"),
    ],
)
def test_wrong_options_are_named(tmp_path, fields, message):
    with pytest.raises(RecipeError, match=message):
        run(tiny("siglip", **fields), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.shows("siglip", "manners")
def test_captions_must_be_padded_to_the_whole_context():
    method = SigLIP(SigLIPConfig(), DualEncoder(SIGLIP_TOWERS))
    images = torch.randn(2, 3, 32, 32)
    with pytest.raises(
        ValueError, match=r"texts of 7 tokens: this bidirectional tower sees its padding and takes exac"
    ):
        method(batch_of(images, torch.ones(2, 7, dtype=torch.long)))
    with pytest.raises(ValueError, match=r"flat patches need grids"):
        batch = batch_of(torch.randn(2, 4, 192), torch.ones(2, 20, dtype=torch.long))
        SigLIP(SigLIPConfig(), DualEncoder(NAFLEX_TOWERS))(dataclasses.replace(batch, mask=torch.ones(2, 4).bool()))


def test_the_scalars_start_where_the_options_say():
    model = SigLIP(SigLIPConfig(scale_init=20.0, bias_init=-3.0), DualEncoder(SIGLIP_TOWERS)).model
    assert model.logit_scale.exp().item() == pytest.approx(20)
    assert model.logit_bias.item() == -3
