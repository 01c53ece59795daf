"""DINO against its authors' code and lightly, its two collapses, its options, resumed, and on small crops."""

import dataclasses
import json
import math

import pytest
import torch
import torch.nn.functional as F

from fixtures.named_numbers import numbers
from odonata.backbones.create import create
from odonata.errors import RecipeError
from odonata.nn.centre import Centre
from odonata.represent.dino import DINO, DINOConfig, distillation_loss
from odonata.represent.ibot import koleo, patch_weights
from odonata.represent.recipes import dino
from odonata.weights.dino import find_head, write_head
from odonata.weights.maps import KeyMap, layers, pair, reshape, split
from represent.self_distillation import (
    ORACLE,
    PREPROCESS,
    assert_close,
    batch,
    expected,
    gradients_of,
    published,
    resumed_and_whole,
    short_run,
    write_digits,
)  # fmt: skip

TINY = "vit-tiny4:image_size=16,width=24,depth=2,num_heads=3,mlp_width=96,position_convention=dino"
SMALL = {
    "backbone": TINY, "image_size": 16, "small_size": 8, "small_crops": 3, "prototypes": 20, "head_hidden": 16,
    "head_dim": 8,
}  # fmt: skip


def tower():
    return create(TINY)


def tower_map() -> KeyMap:
    """DINO's names for a Vision Transformer of two blocks, and ours."""
    block = [
        *pair("blocks.{i}.norm1", "transformer.layers.{i}.norm1"),
        *(
            split(f"blocks.{{i}}.attn.qkv.{kind}", [f"transformer.layers.{{i}}.attn.{part}.{kind}" for part in "qkv"])
            for kind in ("weight", "bias")
        ),
        *pair("blocks.{i}.attn.proj", "transformer.layers.{i}.attn.proj"),
        *pair("blocks.{i}.norm2", "transformer.layers.{i}.norm2"),
        *pair("blocks.{i}.mlp.fc1", "transformer.layers.{i}.mlp.fc1"),
        *pair("blocks.{i}.mlp.fc2", "transformer.layers.{i}.mlp.fc2"),
    ]
    return KeyMap(
        [
            reshape("cls_token", "class_token", (1, 1, -1), (-1,)),
            reshape("pos_embed", "positions", (1, 17, 24), (17, 24)),
            *pair("patch_embed.proj", "patch_embed.proj"),
            *pair("norm", "norm"),
            *layers(block, 2),
        ]
    )


def from_record(case: str, **options) -> DINO:
    """The method with the weights of the record, in float64."""
    method = DINO(DINOConfig(**SMALL, **options), tower(), PREPROCESS)
    theirs = {k: v for k, v in published(case).items() if not k.startswith("backbone.")}
    bare = {k.removeprefix("backbone."): v for k, v in published(case).items() if k.startswith("backbone.")}
    ours, _ = tower_map().to_ours(bare)
    for part in (method.backbone, method.slow_backbone):
        part.load_state_dict(ours)
    assert method.load_published_rest(theirs) == ["head: 20 prototypes of the file"]
    return method.double()


@pytest.mark.shows("dino", "parity")
@pytest.mark.parametrize(
    ("case", "options"),
    [("dino", {}), ("dino_lengths", {"norm_last_layer": False, "head_norm": True, "head_layers": 2})],
)
def test_six_steps_of_the_authors_code(case, options):
    """Losses, the centre, and the gradients of the last step; crops of 8 pixels on a tower for 16."""
    method = from_record(case, **options, momentum=0.9, teacher_warmup=2, freeze_last_layer=1)
    parameters = [p for p in method.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(parameters, lr=0.05)
    losses = []
    for step in range(6):
        method.begin_step(step, 6)
        value = method.loss(batch(case, step))["loss"]
        value.backward()
        losses.append(value.detach())
        method.after_backward()
        if step < 5:
            optimizer.step()
            optimizer.zero_grad()
            method.after_update()
    assert_close(torch.stack(losses), expected(f"{case}/losses"), 1e-9, "losses")
    assert_close(method.centre.value, expected(f"{case}/centre"), 1e-9, "centre")
    found = gradients_of(method)
    key_map = tower_map()
    reference = {
        name.removeprefix(f"{case}/grad/"): expected(name) for name in ORACLE.files if name.startswith(f"{case}/grad/")
    }
    bare = {k.removeprefix("backbone."): v for k, v in reference.items() if k.startswith("backbone.")}
    wanted = {f"backbone.{k}": v for k, v in key_map.to_ours(bare)[0].items()}
    wanted |= {k: v for k, v in reference.items() if k.startswith("head.")}
    assert found.keys() == wanted.keys()
    for name, gradient in found.items():
        if wanted[name].norm() < 1e-12:  # a softmax or a batch norm takes it out: only rounding is left
            assert gradient.norm() < 1e-12, name
        else:
            assert_close(gradient, wanted[name], 1e-6, name)  # stored in float32


@pytest.mark.shows("dino", "parity")
def test_loss_and_gradients_equal_lightlys():
    leaf = torch.stack([(0.7 * numbers(f"lightly/{i}", (6, 10)) * 10**0.5).double() for i in range(5)]).requires_grad_()
    targets = (leaf[:2].detach() / 0.05).softmax(2)
    value = distillation_loss(leaf, torch.eye(10, dtype=torch.float64), targets, 0.1)
    assert_close(value.detach(), expected("lightly/dino/loss"), 1e-10)
    assert_close(torch.autograd.grad(value, leaf)[0], expected("lightly/dino/grad"), 1e-10)


@pytest.mark.shows("dino", "parity")
def test_koleo_equals_lightlys():
    leaf = numbers("koleo", (9, 7)).double().requires_grad_()
    value = koleo(leaf)
    assert_close(value.detach(), expected("koleo/loss"), 1e-12)
    assert_close(torch.autograd.grad(value, leaf)[0], expected("koleo/grad"), 1e-12)


@pytest.mark.shows("dino", "parity")
def test_masked_patch_loss_and_its_centre_equal_lightlys():
    from odonata.nn.prototype_head import cross_entropy

    masks = numbers("masks", (5, 3, 4)) > 0.05
    masks[1] = False
    masks, centre = masks.flatten(1), Centre(6).double()
    for step in range(3):
        leaf = numbers(f"ibot/student/{step}", (int(masks.sum()), 6)).double().requires_grad_()
        teacher = numbers(f"ibot/teacher/{step}", tuple(leaf.shape)).double()
        losses = cross_entropy(leaf, torch.eye(6, dtype=torch.float64), (centre(teacher) / 0.05).softmax(1), 0.1)
        value = (losses * patch_weights(masks)).sum()
        centre.update(teacher)
        assert_close(value.detach(), expected(f"ibot/{step}/loss"), 1e-6)  # lightly's weights are float32
        assert_close(torch.autograd.grad(value, leaf)[0], expected(f"ibot/{step}/grad"), 1e-6)


@pytest.mark.shows("dino", "weights")
@pytest.mark.parametrize("parametrized", [False, True])
def test_head_of_a_training_checkpoint_in_and_out(parametrized):
    """Both names of a weight-normed layer; `module.` before the student's, none before the teacher's."""
    names = json.loads(str(ORACLE["dino/names"]))
    method = DINO(DINOConfig(**SMALL), tower(), PREPROCESS)
    written = write_head(method.head, parametrized=parametrized)
    assert parametrized or {k: list(v.shape) for k, v in written.items()} == {
        k: shape for k, shape in names.items() if k.startswith("head.")
    }
    torch.manual_seed(7)
    fresh = DINO(DINOConfig(**SMALL), tower(), PREPROCESS)
    rest = {f"module.{k}": v for k, v in written.items()} | {"dino_loss.center": torch.full((1, 20), 0.25)}
    assert fresh.load_published_rest(rest) == ["head: 20 prototypes of the file", "centre: of the file"]
    for head in (fresh.head, fresh.slow_head):
        for name, value in head.state_dict().items():
            assert torch.equal(value, method.head.state_dict()[name]), name
    assert float(fresh.centre.value[3]) == 0.25
    assert find_head({"dino_head.mlp.0.weight": torch.ones(1)}) == {"mlp.0.weight": torch.ones(1)}


@pytest.mark.shows("dino", "weights")
@pytest.mark.parametrize("part", ["teacher", "student"])
def test_full_training_checkpoint_with_its_head(tmp_path, part):
    """The names that the authors' networks have, in a file as main_dino.py saves it."""
    from odonata.backbones.pretrained import load_backbone, published_files
    from odonata.weights.towers import Hints

    networks = {
        "student": {f"module.{k}": v for k, v in published("dino").items()},
        "teacher": {k: v / 2 for k, v in published("dino").items()},
    }
    torch.save({**networks, "epoch": 7, "dino_loss": {"center": torch.zeros(1, 20)}}, tmp_path / "checkpoint.pth")
    found = load_backbone(tmp_path / "checkpoint.pth", Hints(num_heads=3, part=part))
    names = {k.removeprefix("module."): v for k, v in networks[part].items()}
    bare = {k.removeprefix("backbone."): v for k, v in names.items() if k.startswith("backbone.")}
    for name, value in tower_map().to_ours(bare)[0].items():
        assert torch.equal(found.backbone.state_dict()[name], value), name
    written = published_files(found.backbone, "timm").state
    assert all(torch.equal(written[name], value) for name, value in bare.items())
    method = DINO(DINOConfig(**SMALL), found.backbone, PREPROCESS)
    assert method.load_published_rest(found.published.rest)[0] == "head: 20 prototypes of the file"
    assert torch.equal(method.head.last_layer.weight_v, names["head.last_layer.weight_v"])
    assert torch.equal(method.slow_head.mlp[2].weight, names["head.mlp.2.weight"])


def test_a_head_of_another_size_starts_anew_and_says_so():
    method = DINO(DINOConfig(**SMALL | {"prototypes": 21}), tower(), PREPROCESS)
    note = method.load_published_rest(published("dino"))[0]
    assert "last_layer.weight_v is [20, 8] in the file and [21, 8] here, so it starts anew" in note
    assert method.load_published_rest({"fc.weight": torch.zeros(1)}) == ["head: none in the file; it starts anew"]


def test_a_large_number_of_prototypes_is_scored_in_parts_with_the_same_gradients():
    torch.manual_seed(0)
    vectors = F.normalize(torch.randn(5, 6, 8, dtype=torch.float64), dim=2)
    targets = torch.rand(2, 6, 40, dtype=torch.float64).softmax(2)
    outcomes = []
    for most in (2**25, 300):
        leaves = [vectors.clone().requires_grad_(), numbers("p", (40, 8)).double().requires_grad_()]
        value = distillation_loss(*leaves, targets, 0.1, most)
        outcomes.append([value.detach(), *torch.autograd.grad(value, leaves)])
    for parts, whole in zip(*outcomes, strict=True):
        assert torch.allclose(parts, whole, rtol=1e-12)


def entropies(targets_of, scores):
    from odonata.represent.multicrop import target_figures

    return {k: float(v) for k, v in target_figures(targets_of(scores)).items()}


def test_sharpening_and_centring_pull_in_opposite_directions():
    """Sec. 5.3: a shared preference wins without centring; without sharpening the answers are flat."""
    torch.manual_seed(0)
    scores = 0.1 * torch.randn(512, 20) + 0.8 * F.one_hot(torch.tensor(3), 20)

    def figures(centering: str, temperature: float):
        method = DINO(DINOConfig(**SMALL, centering=centering), tower(), PREPROCESS)
        method.teacher_temperature = temperature
        method.centre.value.copy_(scores.mean(0))
        return entropies(lambda s: method._targets(s, method.centre), scores)

    for centering in ("centre", "sinkhorn"):
        healthy = figures(centering, 0.04)
        assert healthy["marginal_entropy"] > 0.95 * math.log(20)
        assert healthy["teacher_entropy"] < 0.7 * math.log(20)
    assert figures("none", 0.04)["marginal_entropy"] < 0.01
    assert figures("centre", 1.0)["teacher_entropy"] > 0.99 * math.log(20)


def test_schedules_are_the_papers():
    method = DINO(DINOConfig(**SMALL, teacher_warmup=0.3, freeze_last_layer=0.01), tower(), PREPROCESS)
    seen = []
    for step in (0, 15, 30, 99):
        method.begin_step(step, 100)
        seen.append((round(method.teacher_temperature, 4), round(method.slowness, 5), method.frozen))
    assert seen[0] == (0.04, 0.996, True)
    assert seen[1][0] == 0.055
    assert seen[2][0] == 0.07
    assert seen[3] == (0.07, 1.0, False)


def test_the_teacher_follows_parameters_only_and_has_no_stochastic_depth():
    method = DINO(DINOConfig(**SMALL, momentum=0.5), create(TINY + ",drop_path=0.5"), PREPROCESS)
    method.train()
    pictures = torch.randn(4, 3, 16, 16)
    assert torch.equal(method.slow_backbone(pictures), method.slow_backbone(pictures))
    assert not torch.equal(method.backbone(pictures), method.backbone(pictures))
    before = method.slow_backbone.patch_embed.proj.weight.clone()
    method.backbone.patch_embed.proj.weight.data += 1
    method.begin_step(0, 10)
    method.after_update()
    assert torch.allclose(method.slow_backbone.patch_embed.proj.weight, before + 0.5)
    assert not any(p.requires_grad for p in [*method.slow_backbone.parameters(), *method.slow_head.parameters()])
    assert method.encoder is method.slow_backbone


@pytest.mark.parametrize("patch_head", ["shared", "separate"])
def test_every_parameter_learns_with_dinov2s_options(patch_head):
    options = SMALL | {"ibot": 1.0, "koleo": 0.1, "patch_head": patch_head, "centering": "sinkhorn"}
    method = DINO(DINOConfig(**options), create(TINY + ",registers=2"), PREPROCESS)
    out = method.loss(batch("dino", 0))
    out["loss"].backward()
    dino_part = out["kl"] + out["teacher_entropy"]
    assert torch.allclose(out["loss"], dino_part + 0.1 * out["koleo"] + out["ibot"], atol=1e-5)
    silent = [n for n, p in method.named_parameters() if p.requires_grad and p.grad is None]
    assert silent == []
    assert method.mask_token.grad.norm() > 0
    again = method.loss(batch("dino", 0))  # other masks
    assert not torch.equal(again["ibot"], out["ibot"])


def test_hidden_patches_do_not_reach_the_student():
    from odonata.represent.ibot import hidden_patches

    model, token = tower(), torch.randn(24)
    pictures = torch.randn(3, 3, 16, 16)
    changed = pictures.clone()
    changed[0, :, 4:8, 8:12] += 1.0  # patch 6 of the first picture
    masks = torch.zeros(2, 16, dtype=torch.bool)  # the third picture is beyond the masks
    masks[0, 6] = True
    with hidden_patches(model, masks, token):
        assert torch.equal(model.forward_features(pictures), model.forward_features(changed))
        assert not torch.equal(model.forward_features(pictures)[0], model.forward_features(pictures.flip(0))[2])
    assert not torch.equal(model.forward_features(pictures), model.forward_features(changed))


def test_convolutional_towers_learn_too():
    config = DINOConfig(**SMALL | {"backbone": "resnet8"})
    method = DINO(config, create("resnet8"), PREPROCESS)
    out = method.loss(batch("dino", 0))
    out["loss"].backward()
    assert torch.isfinite(out["loss"])
    assert all(p.grad is not None for p in method.backbone.parameters())


def test_resumed_run_is_bit_equal_centres_masks_and_all(tmp_path):
    recipe = dino()
    recipe = dataclasses.replace(
        recipe, data=dataclasses.replace(recipe.data, path="scenes-digits:n=60,size=32", batch_size=8),
        steps=7, save_every=3, log_every=1, evaluation=dataclasses.replace(recipe.evaluation, pictures=0),
    )  # fmt: skip
    resumed, whole = resumed_and_whole(recipe, tmp_path, 5, **SMALL, ibot=1.0, koleo=0.1)
    assert whole["centre.value"].norm() > 0
    for name, value in whole.items():
        assert torch.equal(resumed[name], value), name


@pytest.mark.shows("dino", "manners")
@pytest.mark.parametrize(
    ("change", "backbone", "message"),
    [
        ({"prototypes": 1}, TINY, "--prototypes is 1; the loss needs 2 or more"),
        ({"teacher_temperature": 0.0}, TINY, "--teacher-temperature is 0.0; it must be positive"),
        ({"head_layers": 0}, TINY, "--head-layers is 0; the head has one or more"),
        ({"mask_ratio": (0.5, 0.1)}, TINY, "--mask-ratio 0.5 0.1: want two shares between 0 and 1, the lower first"),
        ({"ibot": 1.0, "backbone": "resnet8"}, "resnet8", "--ibot hides patches, and resnet8 has none"),
        ({"ibot": 1.0}, TINY + ",patch_dropout=0.5", "--ibot does not go with a patch_dropout"),
    ],
)
def test_options_that_cannot_be_are_refused(change, backbone, message):
    with pytest.raises(RecipeError, match=message):
        DINO(DINOConfig(**SMALL | change), create(backbone), PREPROCESS)


@pytest.mark.slow
@pytest.mark.shows("dino", "trains")
def test_short_runs_beat_their_random_towers_on_digits_and_do_not_collapse(tmp_path):
    folder, gains = write_digits(tmp_path), []
    for seed in (0, 1):
        before, after, said = short_run(dino(), folder, seed)
        gains.append(after["knn"] - before["knn"])
        assert said == []
    assert sum(gains) / len(gains) > 0.015, gains
