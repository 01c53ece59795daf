"""Forward, loss and gradients against transformers' CLIPModel, SiglipModel and Siglip2Model, from the same weights."""

import pytest
import torch
import torch.nn.functional as F
from transformers import CLIPConfig, CLIPModel

from align.towers import randomise, relative, siglip_peer
from odonata.align.pretrained import load_dual_encoder, save_dual_encoder
from odonata.weights import hf_clip, hf_siglip

VISION = {"hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 3, "num_attention_heads": 4}
TEXT = VISION | {"vocab_size": 70, "max_position_embeddings": 14, "bos_token_id": 67, "pad_token_id": 1}
IMAGE = {"image_size": 32, "patch_size": 8}


def clip_texts(end=68):
    tokens = torch.randint(2, 60, (5, 14))
    for row, position in enumerate((3, 13, 6, 9, 4)):
        tokens[row, position], tokens[row, position + 1 :] = end, 1
    return tokens


def compare(theirs_model, theirs, ours_model, image, text, loss, key_map):
    """All outputs, the loss, and the gradient of every parameter, mapped to their names."""
    logits = ours_model.logits(image, text)
    loss_ours = loss(logits)
    assert relative(image, theirs.image_embeds) < 1e-5
    assert relative(text, theirs.text_embeds) < 1e-5
    assert relative(logits, theirs.logits_per_image) < 1e-5
    assert relative(loss_ours, theirs.loss) < 1e-5
    theirs.loss.backward()
    loss_ours.backward()
    gradients = key_map.from_ours({name: parameter.grad for name, parameter in ours_model.named_parameters()})
    expected = {name: parameter.grad for name, parameter in theirs_model.named_parameters()}
    assert gradients.keys() == expected.keys()
    whole = torch.cat([value.flatten() for value in expected.values()]).norm()
    for name, value in expected.items():
        # Key biases have no gradient in exact arithmetic, so their error is measured against the whole gradient.
        scale = value.norm() if value.norm() > 1e-5 * whole else whole
        assert ((gradients[name] - value).norm() / scale).item() < 1e-5, name


def softmax_loss(logits):
    labels = torch.arange(len(logits))
    return (F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)) / 2


def sigmoid_loss(logits):
    return -F.logsigmoid(logits * (2 * torch.eye(len(logits)) - 1)).sum() / len(logits)


@pytest.mark.parametrize(("activation", "end"), [("quick_gelu", 68), ("gelu", 68), ("quick_gelu", 2)])
def test_clip(tmp_path, activation, end):
    text = TEXT | {"eos_token_id": end, "hidden_act": activation, "layer_norm_eps": 1e-5}
    vision = VISION | IMAGE | {"hidden_act": activation, "layer_norm_eps": 1e-5}
    peer = randomise(CLIPModel(CLIPConfig(vision_config=vision, text_config=text, projection_dim=40)))
    peer.save_pretrained(tmp_path)
    ours, published = load_dual_encoder(tmp_path)
    assert published.config["text"]["pool"] == ("argmax" if end == 2 else "eot")
    images, tokens = torch.randn(5, 3, 32, 32), clip_texts(68)
    theirs = peer(input_ids=tokens, pixel_values=images, return_loss=True)
    image, text = ours.encode_image(images), ours.encode_text(tokens)
    compare(peer, theirs, ours, image, text, softmax_loss, hf_clip.key_map(published.config))


def test_siglip(tmp_path):
    peer = siglip_peer()
    peer.save_pretrained(tmp_path)
    ours, published = load_dual_encoder(tmp_path)
    images, tokens = torch.randn(5, 3, 32, 32), torch.randint(2, 70, (5, 14))
    theirs = peer(input_ids=tokens, pixel_values=images, return_loss=True)
    image, text = ours.encode_image(images), ours.encode_text(tokens)
    compare(peer, theirs, ours, image, text, sigmoid_loss, hf_siglip.key_map(published.config))


def test_siglip2_naflex_with_padding_and_mixed_grids(tmp_path):
    peer = siglip_peer(naflex=True)
    peer.save_pretrained(tmp_path)
    ours, published = load_dual_encoder(tmp_path)
    grids = torch.tensor([[4, 4], [2, 7], [1, 16], [3, 3], [5, 3]])
    mask = torch.arange(16) < grids.prod(1, keepdim=True)
    patches, tokens = torch.randn(5, 16, 192), torch.randint(2, 70, (5, 14))
    inputs = {"pixel_values": patches, "pixel_attention_mask": mask.long(), "spatial_shapes": grids}
    theirs = peer(input_ids=tokens, **inputs, return_loss=True)
    image = ours.encode_image(patches, mask=mask, grids=grids)
    text = ours.encode_text(tokens)
    compare(peer, theirs, ours, image, text, sigmoid_loss, hf_siglip.key_map(published.config))


@pytest.mark.parametrize("kind", ["clip", "siglip", "naflex"])
def test_transformers_loads_what_is_exported(tmp_path, kind):
    if kind == "clip":
        text = TEXT | {"eos_token_id": 68}
        peer = randomise(CLIPModel(CLIPConfig(vision_config=VISION | IMAGE, text_config=text, projection_dim=40)))
    else:
        peer = siglip_peer(kind == "naflex")
    peer.save_pretrained(tmp_path / "theirs")
    ours, _ = load_dual_encoder(tmp_path / "theirs")
    save_dual_encoder(tmp_path / "ours", ours, "hf")
    again, info = type(peer).from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    for name, value in peer.state_dict().items():
        assert torch.equal(again.state_dict()[name], value), name
    tokens = clip_texts(68)
    with torch.no_grad():
        a, b = peer.get_text_features(tokens), again.eval().get_text_features(tokens)
        assert torch.equal(a.pooler_output, b.pooler_output)
    if kind != "naflex":
        images = torch.randn(2, 3, 32, 32)
        with torch.no_grad():
            a, b = peer.get_image_features(images), again.get_image_features(images)
        assert torch.equal(a.pooler_output, b.pooler_output)
        embedding = ours.encode_image(images, normalize=False)
        assert relative(embedding, b.pooler_output) < 1e-5


def test_images_of_another_size_equal_transformers_interpolation(tmp_path):
    text = TEXT | {"eos_token_id": 68}
    clip = randomise(CLIPModel(CLIPConfig(vision_config=VISION | IMAGE, text_config=text, projection_dim=40)))
    for name, peer in (("clip", clip), ("siglip", siglip_peer())):
        peer.save_pretrained(tmp_path / name)
        ours, _ = load_dual_encoder(tmp_path / name)
        images = torch.randn(2, 3, 48, 40)
        with torch.no_grad():
            theirs = peer.get_image_features(images, interpolate_pos_encoding=True).pooler_output
            assert relative(ours.encode_image(images, normalize=False), theirs) < 1e-5, name


def test_splitting_a_batch_changes_nothing(tmp_path):
    peer = siglip_peer()
    peer.save_pretrained(tmp_path)
    ours, _ = load_dual_encoder(tmp_path)
    images, tokens = torch.randn(5, 3, 32, 32), torch.randint(2, 70, (5, 14))
    with torch.no_grad():
        split = torch.cat([ours.encode_image(images[:2]), ours.encode_image(images[2:])])
        assert relative(split, ours.encode_image(images)) < 1e-5
        split = torch.cat([ours.encode_text(tokens[:2]), ours.encode_text(tokens[2:])])
        assert relative(split, ours.encode_text(tokens)) < 1e-5
