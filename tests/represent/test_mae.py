import dataclasses
import json
import logging
import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from odonata.app.api import load, train
from odonata.backbones.create import create
from odonata.backbones.pretrained import load_backbone
from odonata.data.pictures import ViewBatch
from odonata.data.preprocess import IMAGENET
from odonata.engine.distributed import World
from odonata.engine.fit import Engine
from odonata.engine.param_groups import build_optimizer
from odonata.engine.recipe import AdamW, Clip, Recipe, Schedule
from odonata.engine.task import Task
from odonata.errors import RecipeError, WeightsError
from odonata.nn.patches import patchify
from odonata.represent.classify import Classify, ClassifyConfig
from odonata.represent.finetune import finetuning_form, mae_finetune, mae_linear_probe
from odonata.represent.mae import MAE, MAEConfig, pixel_targets, random_masking, unpatchify
from odonata.represent.mae_published import load_mae, save_mae
from odonata.represent.predictor import method_of_run
from odonata.weights import mae as layouts
from odonata.weights.maps import KeyMap

FIXTURES = Path(__file__).parents[1] / "fixtures"
sys.path.append(str(FIXTURES))
from named_numbers import numbers  # noqa: E402

TINY = "vit-tiny8:positions=sincos_2d,width=48,depth=2,num_heads=4,mlp_width=192"
RECORDED = ("small", "larger")


def tiny(**options) -> MAE:
    torch.manual_seed(0)
    config = MAEConfig(**{"backbone": TINY, "image_size": 32, "decoder_width": 24, "decoder_heads": 2, **options})
    return MAE(config, create(config.backbone, image_size=config.image_size), IMAGENET)


def pictures(count: int = 3, size: int = 32) -> torch.Tensor:
    return torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def noise_for(count: int = 3, patches: int = 16) -> torch.Tensor:
    return torch.rand(count, patches, generator=torch.Generator().manual_seed(2))


def far(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return float((ours - theirs).norm() / theirs.norm())


# transformers


def transformers_model(size: int, depth: int, norm_pix: bool):
    import transformers.models.vit_mae.modeling_vit_mae as theirs

    torch.manual_seed(size)
    config = theirs.ViTMAEConfig(
        hidden_size=48, num_hidden_layers=depth, num_attention_heads=4, intermediate_size=192, image_size=size,
        patch_size=8, decoder_hidden_size=24, decoder_num_hidden_layers=2, decoder_num_attention_heads=2,
        decoder_intermediate_size=96, layer_norm_eps=1e-6, norm_pix_loss=norm_pix,
    )  # fmt: skip
    model = theirs.ViTMAEForPreTraining(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "pos" not in name:
                parameter.add_(0.1 * torch.randn_like(parameter))
        # A model made from a configuration has zeros there; its own function makes what its files hold.
        for stored in (model.vit.embeddings.position_embeddings, model.decoder.decoder_pos_embed):
            rows = theirs.build_2d_sinusoidal_position_embedding(size // 8, size // 8, stored.shape[2], cls_token=True)
            stored.copy_(torch.cat(rows.chunk(2, 1)[::-1], 1)[None])
    return model


@pytest.mark.shows("mae", "parity")
@pytest.mark.parametrize("norm_pix", [False, True])
@pytest.mark.parametrize(("size", "depth"), [(32, 2), (48, 3)])
@pytest.mark.parametrize(("dtype", "limit"), [(torch.float32, 1e-5), (torch.float64, 1e-9)])
def test_loss_prediction_and_every_gradient_are_those_of_transformers(tmp_path, norm_pix, size, depth, dtype, limit):
    theirs = transformers_model(size, depth, norm_pix)
    theirs.save_pretrained(tmp_path)
    ours = load_mae(tmp_path).to(dtype).train()
    theirs = theirs.to(dtype).train()
    images = torch.randn(3, 3, size, size, dtype=dtype)
    noise = torch.rand(3, (size // 8) ** 2, dtype=dtype)
    expected = theirs(images, noise=noise)
    expected.loss.backward()
    loss = ours.reconstruction_loss(images, noise)
    loss.backward()
    predicted, mask = ours.predict_patches(images, noise)
    assert ours.config.norm_pix == norm_pix
    assert far(loss.detach(), expected.loss.detach()) < limit
    assert far(predicted.detach(), expected.logits.detach()) < limit
    assert torch.equal(mask, expected.mask.bool())
    named = layouts.version_4_names({k: p.grad for k, p in theirs.named_parameters() if p.grad is not None})
    rules = layouts.encoder_map("hf", 48, depth).rules + layouts.decoder_map("hf", 24, 2).rules
    gradients, _ = KeyMap(rules).to_ours(named)
    own = {k: p.grad for k, p in ours.named_parameters()}
    assert own.keys() == gradients.keys()
    whole = torch.cat([g.flatten() for g in gradients.values()]).norm()
    for name, gradient in gradients.items():
        if name.endswith("attn.k.bias"):  # zero but for rounding: a bias of the keys moves all logits alike
            assert gradient.norm() < limit * whole and own[name].norm() < limit * whole
        else:
            assert far(own[name], gradient) < limit, name


@pytest.mark.shows("mae", "parity")
def test_pictures_of_another_size_than_the_towers_are_encoded_as_transformers_does(tmp_path):
    theirs = transformers_model(32, 2, False)
    theirs.save_pretrained(tmp_path)
    images, noise = torch.randn(2, 3, 48, 64), torch.rand(2, 48)
    with torch.no_grad():
        expected = theirs.vit.eval()(images, noise=noise, interpolate_pos_encoding=True).last_hidden_state
        ours = load_mae(tmp_path)
        assert far(ours.encode(images, ours.masking(images, noise)), expected) < 1e-5
        predicted, mask = ours.predict_patches(images, noise)
    assert predicted.shape == (2, 48, 192)
    assert mask.sum(1).tolist() == [36, 36]


# facebookresearch/mae, recorded by fixtures/make_mae.py


def recorded(name: str) -> tuple[dict, dict[str, np.ndarray]]:
    with np.load(FIXTURES / "mae.npz") as archive:
        arrays = {k.partition("/")[2]: archive[k] for k in archive.files if k.startswith(f"{name}/")}
    return json.loads(arrays.pop("json").tobytes()), arrays


def original_checkpoint(name: str, file: Path) -> tuple[dict, dict[str, np.ndarray]]:
    about, arrays = recorded(name)
    state = {
        k: torch.from_numpy(arrays[k])[None] if k.endswith("pos_embed") else numbers(k, tuple(shape))
        for k, shape in about["shapes"].items()
    }
    torch.save({"model": state}, file)
    return about, arrays


def load_recorded(name: str, file: Path) -> tuple[MAE, dict, dict[str, np.ndarray]]:
    about, arrays = original_checkpoint(name, file)
    config = about["config"]
    method = load_mae(
        file, num_heads=config["num_heads"], decoder_heads=config["decoder_num_heads"], norm_pix=config["norm_pix_loss"]
    )
    return method, about, arrays


@pytest.mark.shows("mae", "parity")
@pytest.mark.parametrize("name", RECORDED)
def test_loss_and_gradients_are_those_of_the_authors_code(tmp_path, name):
    method, about, arrays = load_recorded(name, tmp_path / "mae.pth")
    method.double()
    size = about["config"]["img_size"]
    images, noise = numbers("images", (3, 3, size, size)).double() * size, torch.from_numpy(arrays["noise"])
    loss = method.reconstruction_loss(images, noise)
    loss.backward()
    predicted, mask = method.predict_patches(images, noise)
    assert abs(float(loss.detach()) / about["loss"] - 1) < 1e-9
    assert far(predicted.detach(), torch.from_numpy(arrays["prediction"])) < 1e-6  # stored in float32
    assert np.array_equal(mask.numpy(), arrays["mask"])
    rules = [
        *layouts.encoder_map("mae", method.tower.width, method.tower.depth).rules,
        *layouts.decoder_map("mae", method.config.decoder_width, method.config.decoder_depth).rules,
    ]
    gradients = KeyMap(rules).from_ours({k: p.grad for k, p in method.named_parameters()})
    assert gradients.keys() == about["gradients"].keys()
    for key, (norm, projection) in about["gradients"].items():
        probe = numbers(f"probe {key}", tuple(gradients[key].shape)).double()
        assert abs(float(gradients[key].norm()) / norm - 1) < 1e-9, key
        assert abs(float((gradients[key] * probe).sum()) - projection) < 1e-9 * norm * float(probe.norm()), key


def test_rates_of_layers_are_those_of_the_authors_rule():
    expected, _ = recorded("lr_decay")
    recipe = mae_finetune("b")
    backbone = create(f"vit-b16:{recipe.method.backbone.partition(':')[2]}", width=32, num_heads=2, mlp_width=64)
    method = Classify(ClassifyConfig(), backbone, IMAGENET, 10)
    rates = {name: g["scale"] for g in build_optimizer(method, recipe.optim).param_groups for name in g["names"]}
    names = {"cls_token": "class_token", "pos_embed": "positions"} | {
        f"blocks.{i}.mlp.fc1.weight": f"transformer.layers.{i}.mlp.fc1.weight" for i in range(12)
    }
    for name, rate in expected.items():
        assert math.isclose(rates[f"backbone.{names.get(name, name)}"], rate, rel_tol=1e-12), name
    assert math.isclose(rates["backbone.class_token"], 0.65**13)
    assert math.isclose(rates["backbone.transformer.layers.3.mlp.fc1.weight"], 0.65 ** (12 - 3))


def test_the_decoder_starts_with_the_authors_deviations():
    expected, _ = recorded("initial")
    torch.manual_seed(3)
    method = MAE(
        MAEConfig(decoder_width=96, decoder_heads=3), create("vit-tiny4:positions=sincos_2d", image_size=32), IMAGENET
    )
    method.requires_grad_(False)
    assert method.decoder.transformer.layers[0].attn.q.weight.std() == pytest.approx(
        expected["decoder_blocks.0.attn.qkv.weight"], rel=0.03
    )
    for name in ("embed", "pred"):
        weight = method.decoder.get_submodule(name).weight
        assert weight.std() == pytest.approx(expected[f"decoder_{name}.weight"], rel=0.03)
    patches = method.backbone.patch_embed.proj.weight.std()
    assert patches == pytest.approx(expected["patch_embed.proj.weight"], rel=0.03)
    assert not any(p.any() for n, p in method.named_parameters() if n.endswith("bias"))


# Weights


@pytest.mark.shows("mae", "weights")
@pytest.mark.parametrize("name", RECORDED)
def test_the_authors_layout_goes_out_as_it_came_in(tmp_path, name):
    method, _, _ = load_recorded(name, tmp_path / "in.pth")
    (written,) = save_mae(tmp_path / "out", method, "mae")
    before = torch.load(tmp_path / "in.pth", weights_only=True)["model"]
    after = torch.load(written, weights_only=True)
    assert before.keys() == after.keys()
    assert all(torch.equal(after[k], v) for k, v in before.items() if not k.endswith("pos_embed"))
    assert all(torch.allclose(after[k], v, atol=1e-6) for k, v in before.items() if k.endswith("pos_embed"))


@pytest.mark.shows("mae", "weights")
def test_transformers_predicts_the_same_from_what_is_written(tmp_path):
    from transformers import ViTMAEForPreTraining, ViTMAEModel

    method = tiny().eval()
    save_mae(tmp_path / "hf", method, "hf", IMAGENET)
    theirs, info = ViTMAEForPreTraining.from_pretrained(tmp_path / "hf", output_loading_info=True)
    assert not any(info[k] for k in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    images, noise = method.pixels(pictures()), noise_for()
    with torch.no_grad():
        expected = theirs.eval()(images, noise=noise)
        assert far(method.predict_patches(images, noise)[0], expected.logits) < 1e-5
        assert far(method.reconstruction_loss(images, noise), expected.loss) < 1e-5
        encoder = ViTMAEModel.from_pretrained(tmp_path / "hf").eval()(images, noise=noise).last_hidden_state
        assert far(method.encode(images, method.masking(images, noise)), encoder) < 1e-5
    again = load_mae(tmp_path / "hf")
    assert again.config.norm_pix and again.config.mask_ratio == 0.75
    assert all(torch.equal(v, again.state_dict()[k]) for k, v in method.state_dict().items())


@pytest.mark.shows("mae", "weights")
def test_the_authors_encoder_is_read_as_a_backbone_and_its_decoder_by_the_method(tmp_path):
    method, about, _ = load_recorded("small", tmp_path / "mae.pth")
    from odonata.weights.towers import Hints

    found = load_backbone(tmp_path / "mae.pth", Hints(num_heads=about["config"]["num_heads"]))
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        expected = method.backbone.forward_features(images)
        assert far(found.backbone.forward_features(images), expected) < 1e-6
    fresh = tiny(norm_pix=False)
    assert fresh.load_published_rest(found.published.rest) == ["decoder: the file's"]
    assert all(torch.equal(v, method.decoder.state_dict()[k]) for k, v in fresh.decoder.state_dict().items())
    (note,) = tiny(decoder_width=32).load_published_rest(found.published.rest)
    assert "--decoder-width 24 --decoder-depth 1" in note
    assert tiny().load_published_rest({}) == ["no decoder in the file: it starts anew"]


def test_checkpoints_that_are_not_whole_are_refused(tmp_path):
    original_checkpoint("small", tmp_path / "mae.pth")
    with pytest.raises(WeightsError, match="an encoder of width 48 is not published; say num_heads"):
        load_mae(tmp_path / "mae.pth")
    state = torch.load(tmp_path / "mae.pth", weights_only=True)["model"]
    torch.save({k: v for k, v in state.items() if "decoder" not in k}, tmp_path / "encoder.pth")
    with pytest.raises(WeightsError, match=r"encoder.pth: no decoder of a masked autoencoder"):
        load_mae(tmp_path / "encoder.pth")
    torch.save(state | {"pos_embed": torch.randn_like(state["pos_embed"])}, tmp_path / "trained.pth")
    with pytest.raises(WeightsError, match=r"pos_embed \[1, 17, 48\] are not the fixed positions of a grid of 4x4"):
        load_mae(tmp_path / "trained.pth", num_heads=4, decoder_heads=2)


# Invariances


@pytest.mark.parametrize(("ratio", "patches", "kept"), [(0.75, 196, 49), (0.75, 16, 4), (0.6, 64, 25), (0.9, 64, 6)])
def test_a_picture_keeps_the_whole_number_of_patches_below_its_share(ratio, patches, kept):
    masking = random_masking(noise_for(5, patches), ratio)
    assert masking.kept.shape == (5, kept)
    assert masking.mask.sum(1).tolist() == [patches - kept] * 5
    both = torch.cat([masking.kept, masking.dropped], 1).sort(1).values
    assert torch.equal(both, torch.arange(patches).expand(5, -1))


def test_patches_of_least_noise_stay_and_the_mask_moves_with_the_noise():
    noise, order = noise_for(4), torch.randperm(16)
    mask = random_masking(noise, 0.75).mask
    assert torch.equal(random_masking(noise[:, order], 0.75).mask, mask[:, order])
    assert all(row[~gone].max() < row[gone].min() for row, gone in zip(noise, mask, strict=True))


def test_patches_are_masked_for_each_picture_by_itself():
    method = tiny()
    torch.manual_seed(0)
    masks = method.masking(torch.zeros(64, 3, 32, 32)).mask
    assert len({tuple(row.tolist()) for row in masks}) > 60
    assert (masks.float().mean(0) - 0.75).abs().max() < 0.25


def test_targets_of_patches_that_stay_do_not_enter_the_loss(monkeypatch):
    method, images, noise = tiny(), tiny().pixels(pictures()), noise_for()
    mask = random_masking(noise, 0.75).mask
    loss = method.reconstruction_loss(images, noise)

    def loss_with(changed: torch.Tensor) -> torch.Tensor:
        """With other targets where `changed`; the encoder sees what it saw."""
        with monkeypatch.context() as patch:
            patch.setattr("odonata.represent.mae.patchify", lambda x, p: patchify(x, p).masked_fill(changed, 7.0))
            return method.reconstruction_loss(images, noise)

    assert torch.equal(loss_with(~mask[..., None]), loss)
    assert not torch.isclose(loss_with(mask[..., None]), loss)


def test_the_encoder_sees_kept_patches_only():
    method, noise = tiny().eval(), noise_for()
    images = method.pixels(pictures())
    mask = random_masking(noise, 0.75).mask
    hidden = unpatchify(patchify(images, 8).masked_fill(mask[..., None], 5.0), 8, (4, 4))
    masking = method.masking(images, noise)
    with torch.no_grad():
        tokens = method.encode(images, masking)
        assert torch.equal(method.encode(hidden, masking), tokens)
    assert tokens.shape == (3, 1 + 4, 48)
    seen: list[int] = []
    for layer in method.backbone.transformer.layers:
        layer.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0].shape[1]))
    method.reconstruction_loss(images, noise)
    assert seen == [5, 5]


def test_one_picture_alone_is_what_it_is_in_a_batch():
    method, noise = tiny().double().eval(), noise_for().double()
    images = method.pixels(pictures()).double()
    with torch.no_grad():
        whole, _ = method.predict_patches(images, noise)
        alone = [method.predict_patches(images[i : i + 1], noise[i : i + 1])[0] for i in range(3)]
        losses = [method.reconstruction_loss(images[i : i + 1], noise[i : i + 1]) for i in range(3)]
        loss = method.reconstruction_loss(images, noise)
    assert torch.allclose(torch.cat(alone), whole, rtol=0, atol=1e-12)
    assert torch.isclose(torch.stack(losses).mean(), loss, rtol=1e-12)


def test_targets_are_normed_by_the_unbiased_variance():
    patches = torch.randn(2, 5, 192, dtype=torch.float64) * 3 + 1
    targets, mean, deviation = pixel_targets(patches, True)
    assert torch.allclose(targets.var(2), torch.ones(2, 5, dtype=torch.float64), atol=1e-5)
    assert torch.allclose(targets * deviation + mean, patches)
    flat, _, _ = pixel_targets(torch.full((1, 1, 12), 0.3), True)
    assert flat.abs().max() < 1e-3


@pytest.mark.parametrize("norm_pix", [False, True])
def test_a_reconstruction_keeps_visible_patches_bit_by_bit(norm_pix):
    method, images, noise = tiny(norm_pix=norm_pix).eval(), pictures(), noise_for()
    drawn, mask = method.reconstruct(images, noise)
    before, after = (patchify(x.float(), 8) for x in (images, drawn))
    assert torch.equal(after[~mask], before[~mask])
    assert (after[mask] != before[mask]).any(1).all()
    with torch.no_grad():
        predicted, _ = method.predict_patches(method.pixels(images), noise)
    if norm_pix:
        _, mean, deviation = pixel_targets(patchify(method.pixels(images), 8), True)
        predicted = predicted * deviation + mean
    wanted = (unpatchify(predicted, 8, (4, 4)) * method.std + method.mean) * 255
    dropped = patchify(wanted.round().clamp(0, 255), 8)[mask]
    assert torch.equal(after[mask], dropped)


def test_patches_are_put_together_as_they_were():
    images = torch.randn(2, 3, 32, 48)
    assert torch.equal(unpatchify(patchify(images, 8), 8, (4, 6)), images)


# Training


class Eight:
    """The same eight pictures for ever."""

    def start(self, step=0, rank=0, world=1):
        while True:
            yield ViewBatch([pictures(8)], torch.zeros(8), torch.arange(8))


@pytest.mark.shows("mae", "trains")
def test_it_overfits_eight_pictures():
    method = tiny(norm_pix=False, mask_ratio=0.5, decoder_width=48, decoder_heads=4)
    # Pictures of one colour per quarter: what is dropped can be told from what is left.
    quarters = torch.randint(0, 256, (8, 3, 2, 2), generator=torch.Generator().manual_seed(3))
    images = quarters.repeat_interleave(16, 2).repeat_interleave(16, 3).to(torch.uint8)
    stream = Eight()
    stream.start = lambda *_: iter(lambda: ViewBatch([images], torch.zeros(8), torch.arange(8)), None)
    before = float(method.pixels(images).var())
    recipe = Recipe(
        name="mae", method=method.config, data=None, evaluation=None, optim=AdamW(lr=3e-3),
        schedule=Schedule(warmup=0.1), clip=Clip("none"), steps=250, precision="fp32",
    )  # fmt: skip
    Engine(recipe, Task(method, stream, 8, "eight"), None, World(0, 1, torch.device("cpu"))).fit()
    with torch.no_grad():
        after = float(method.eval().reconstruction_loss(method.pixels(images), noise_for(8)))
    assert after < 0.1 * before


SHORT = {
    "steps": 4, "data__path": "scenes-digits:n=64,size=32", "data__batch_size": 8, "save_every": 2, "log_every": 1,
    "backbone": TINY, "decoder_width": 24, "decoder_heads": 2, "evaluation__pictures": 8, "evaluation__neighbours": 16,
    "device": "cpu",
}  # fmt: skip


def test_a_resumed_run_ends_with_the_same_bits_and_its_report_shows_reconstructions(tmp_path):
    from odonata.app.api import read_run_recipe, train_recipe

    whole = train("mae", out=str(tmp_path / "a"), **SHORT)
    half = train("mae", out=str(tmp_path / "b"), **SHORT)
    for step in (half / "checkpoints").glob("step-*4"):
        for file in sorted(step.rglob("*"), reverse=True):
            file.unlink() if file.is_file() else file.rmdir()
        step.rmdir()
    torch.manual_seed(99)
    train_recipe(read_run_recipe(half), half)
    first, second = (method_of_run(run, "last")[0].state_dict() for run in (whole, half))
    assert all(torch.equal(v, second[k]) for k, v in first.items())
    page = (whole / "report.html").read_text()
    assert "75% dropped; reconstruction, off by" in page and "data:image/png" in page
    vectors = load(whole, device="cpu").embed_image(pictures(1)[0])
    assert vectors.shape == (1, 48)


# Fine-tuning and probe


def test_the_finetuning_form_keeps_the_blocks_and_trains_positions():
    tower = create(TINY, image_size=32)
    with torch.no_grad():
        tower.norm.weight.fill_(3.0)
    form = finetuning_form(tower)
    assert isinstance(form.positions, nn.Parameter) and form.positions.requires_grad
    assert form.fc_norm.weight.eq(1).all(), "the norm after the pooling begins anew"
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        before, after = tower.features(images, [-1])[0], form.features(images, [-1])[0]
        pooled = form.forward_head(form.forward_features(images), pre_logits=True)
    assert torch.equal(before, after)
    assert torch.allclose(pooled, nn.functional.layer_norm(before[:, 1:].mean(1), (48,), eps=1e-6), atol=1e-6)
    larger = finetuning_form(tower, dataclasses.replace(form.config, image_size=64))
    assert larger.positions.shape == (1 + 64, 48)


def test_recipes_hold_the_authors_values():
    base, large, huge = (mae_finetune(size) for size in "blh")
    assert (base.optim.lr, base.optim.layer_decay, base.method.drop_path, base.method.epochs) == (5e-4, 0.65, 0.1, 100)
    assert (large.optim.lr, large.optim.layer_decay, large.method.drop_path) == (1e-3, 0.75, 0.2)
    assert (huge.optim.lr, huge.optim.layer_decay, huge.method.drop_path) == (1e-3, 0.75, 0.3)
    for recipe in (base, large, huge):
        tower = create(recipe.method.backbone.replace("mae-l16", "mae-b16").replace("mae-h14", "mae-b16"), depth=1)
        assert tower.config.pool == "patches" and tower.config.fc_norm and isinstance(tower.positions, nn.Parameter)
        assert recipe.schedule.warmup * recipe.method.epochs == pytest.approx(5)
        assert (recipe.method.mixup, recipe.method.cutmix, recipe.method.label_smoothing) == (0.8, 1.0, 0.1)


def test_the_linear_probe_trains_the_classifier_alone_behind_a_norm_without_parameters():
    recipe = mae_linear_probe("b", backbone=TINY, image_size=32)
    assert recipe.optim.lr == 0.1 and recipe.optim.weight_decay == 0
    method = Classify(recipe.method, create(TINY, image_size=32), IMAGENET, 10)
    assert {n for n, p in method.named_parameters() if p.requires_grad} == {
        "backbone.head.weight",
        "backbone.head.bias",
    }
    assert isinstance(method.norm, nn.BatchNorm1d) and not method.norm.affine


# Manners


@pytest.mark.shows("mae", "manners")
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mask_ratio": 0.99}, r"--mask-ratio 0.99 keeps 0 of 64 patches"),
        ({"mask_ratio": 0.0}, r"--mask-ratio 0.0 keeps 64 of 64 patches"),
        ({"backbone": "resnet18"}, r"--backbone resnet18: MAE drops tokens, so its tower is a Vision Transformer"),
        ({"backbone": TINY + ",fc_norm=true"}, r"its last norm before the pooling"),
        (
            {"decoder_width": 30, "decoder_heads": 4},
            r"--decoder-width 30 must be divisible by 4 and by --decoder-heads",
        ),
        ({"image_size": 36}, r"--image-size 36 does not divide into patches of 8 pixels"),
    ],
)
def test_options_that_cannot_be_are_named(options, message):
    from odonata.represent.build import build
    from odonata.represent.recipes import by_name

    recipe = by_name("mae")
    method = dataclasses.replace(recipe.method, **{"backbone": TINY, **options})
    data = dataclasses.replace(recipe.data, path="scenes-digits:n=32,size=32", batch_size=8)
    logging.disable(logging.WARNING)
    try:
        with pytest.raises(RecipeError, match=message):
            build(dataclasses.replace(recipe, method=method, data=data))
    finally:
        logging.disable(logging.NOTSET)
