"""What the tests of this room's methods share: tiny towers, transformers' models of equal size, and short runs."""

import dataclasses
import hashlib

import torch
from torch import nn
from transformers import CLIPConfig, CLIPModel, Siglip2Config, Siglip2Model, SiglipConfig, SiglipModel

from odonata.align.batch import ImageTextBatch
from odonata.align.build import build
from odonata.align.dual_encoder import DualEncoderConfig
from odonata.align.dual_encoder_variants import flip, siglip
from odonata.align.text_tower import TextConfig
from odonata.app.api import recipe
from odonata.backbones.vit import VARIANTS, ViTConfig
from odonata.engine.distributed import World
from odonata.engine.fit import train

WORLD = World(0, 1, torch.device("cpu"))
METHODS = ("clip", "siglip", "lit", "flip", "catlip", "dfn")

# ---- tiny towers: 32 pixels, 16 patches, two layers ---------------------------------------------------------------

SIZE = ViTConfig(image_size=32, patch_size=8, width=64, depth=2, num_heads=2, mlp_width=128)
TEXT = TextConfig(vocab_size=300, context_length=20, width=64, depth=2, num_heads=2, mlp_width=128, eot_id=299)
_CLIP_VISUAL = dataclasses.replace(
    SIZE, activation="quick_gelu", pre_norm=True, patch_bias=False, norm_eps=1e-5, init="clip"
)
CLIP_TOWERS = DualEncoderConfig(visual=_CLIP_VISUAL, text=TEXT, embed_dim=48)
SIGLIP_TOWERS = siglip(SIZE, 8, 32, 300, context_length=20)
NAFLEX_TOWERS = siglip(SIZE, 8, 32, 300, naflex=True, context_length=20)
_FLIP = flip(SIZE, 8, 32, 48, TEXT)
FLIP_TOWERS = dataclasses.replace(_FLIP, text=dataclasses.replace(_FLIP.text, context_length=20, eot_id=299))
TOWERS = {
    "clip": CLIP_TOWERS, "dfn": CLIP_TOWERS, "lit": CLIP_TOWERS, "siglip": SIGLIP_TOWERS, "flip": FLIP_TOWERS,
}  # fmt: skip


def tiny(name, **fields):
    """The method's recipe on tiny towers and a few embedded scenes, with nothing measured unless asked."""
    given = {
        "data__path": "scenes:n=40,size=32", "data__batch_size": 8, "data__augment": "none", "steps": 6, "seed": 3,
        "save_every": 2, "log_every": 1, "evaluation__pairs": 0, "device": "cpu",
    }  # fmt: skip
    given |= {"min_count": 1} if name == "catlip" else {"model": TOWERS[name], "vocab_size": 300}
    if name != "catlip":
        given["evaluation__zeroshot"] = "none"
    if name == "dfn":
        given |= {"clean": "scenes:n=24,size=32,seed=1", "filter_steps": 3, "keep": 0.6}
    if name == "lit":
        given["tower_steps"] = 2
    return recipe(name, **(given | fields))


def run(chosen, folder):
    """Train in this process and return the task and the run folder."""
    torch.manual_seed(chosen.seed)
    task = build(chosen)
    train(chosen, task, folder, WORLD)
    return task, folder


def small_vit(monkeypatch):
    """Make CatLIP's `vit-tiny16` the tiny image tower."""
    monkeypatch.setitem(VARIANTS, "vit-tiny16", SIZE)


def digest(module: nn.Module) -> str:
    h = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        h.update(name.encode() + value.detach().contiguous().numpy().tobytes())
    return h.hexdigest()


# ---- transformers' models of the parity tests ---------------------------------------------------------------------

PEER_VISION = {"hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 3, "num_attention_heads": 4}
PEER_TEXT = PEER_VISION | {"vocab_size": 70, "max_position_embeddings": 14, "bos_token_id": 67, "pad_token_id": 1}
PEER_IMAGE = {"image_size": 32, "patch_size": 8}
END = 68


def relative(ours, theirs):
    return ((ours - theirs).norm() / theirs.norm()).item()


def randomise(model):
    """Weights far from their start, so that no term is too small to be seen."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if name in ("logit_scale", "logit_bias"):
                parameter.fill_({"logit_scale": 2.0, "logit_bias": -1.5}[name])
            elif parameter.requires_grad:
                parameter.copy_(parameter + 0.1 * noise if parameter.ndim < 2 else noise / parameter.shape[-1] ** 0.5)
    return model.eval()


def clip_peer(size=None, **text):
    vision = PEER_VISION | PEER_IMAGE | {"layer_norm_eps": 1e-5} | (size or {})
    text = PEER_TEXT | {"eos_token_id": END, "layer_norm_eps": 1e-5} | (size or {}) | text
    return randomise(CLIPModel(CLIPConfig(vision_config=vision, text_config=text, projection_dim=40)))


def siglip_peer(naflex=False):
    text = PEER_TEXT | {"eos_token_id": 1}
    if naflex:
        vision = PEER_VISION | {"num_patches": 16, "patch_size": 8}
        return randomise(Siglip2Model(Siglip2Config(vision_config=vision, text_config=text)))
    return randomise(SiglipModel(SiglipConfig(vision_config=PEER_VISION | PEER_IMAGE, text_config=text)))


def clip_texts():
    tokens = torch.randint(2, 60, (5, 14))
    for row, position in enumerate((3, 13, 6, 9, 4)):
        tokens[row, position], tokens[row, position + 1 :] = END, 1
    return tokens


def batch_of(images, tokens, **more):
    return ImageTextBatch(images, tokens, torch.arange(len(tokens)), **more)


def assert_gradients(ours, theirs, bound=1e-5):
    """Each tensor within the bound of its own norm; return the largest error.

    Key biases have no gradient in exact arithmetic, so a tensor of next to none is measured against the whole.
    """
    assert ours.keys() == theirs.keys(), ours.keys() ^ theirs.keys()
    whole = torch.cat([value.flatten() for value in theirs.values()]).norm()
    worst = 0.0
    for name, value in theirs.items():
        scale = value.norm() if value.norm() > 1e-5 * whole else whole
        error = ((ours[name] - value).norm() / scale).item()
        assert error < bound, (name, error)
        worst = max(worst, error)
    return worst


def gradients(module):
    return {name: p.grad for name, p in module.named_parameters() if p.grad is not None}


def as_checkpoint(model, folder, values):
    """These values of the model's parameters, by the names that `save_pretrained` writes (not those in memory)."""
    from safetensors.torch import load_file

    kept = {name: p.detach().clone() for name, p in model.named_parameters()}
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.copy_(values.get(name, torch.zeros_like(p)))
    model.save_pretrained(folder)
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.copy_(kept[name])
    return load_file(folder / "model.safetensors")
