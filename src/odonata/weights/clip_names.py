"""Rules for the parameter names of openai/CLIP, which open_clip kept: towers, text, projections, scale."""

from odonata.weights.layout import Plain
from odonata.weights.maps import Rule, layers, packed_attention, pair, rename, reshape, transpose

IGNORED = ("input_resolution", "context_length", "vocab_size", "attn_mask", "text.attn_mask")


def blocks(theirs: str, ours: str, depth: int) -> list[Rule]:
    """The residual blocks of a transformer, `{theirs}resblocks.N` ⇄ `{ours}.N`."""
    source, target = theirs + "resblocks.{i}", ours + ".{i}"
    rules = [
        *pair(f"{source}.ln_1", f"{target}.norm1"),
        *packed_attention(f"{source}.attn", f"{target}.attn", "in_proj_{part}"),
        *pair(f"{source}.ln_2", f"{target}.norm2"),
        *pair(f"{source}.mlp.c_fc", f"{target}.mlp.fc1"),
        *pair(f"{source}.mlp.c_proj", f"{target}.mlp.fc2"),
    ]
    return layers(rules, depth)


def vit(config: Plain) -> list[Rule]:
    """CLIP's ViT tower and its projection."""
    visual = config["visual"]
    rules = [
        rename("visual.class_embedding", "visual.class_token"),
        rename("visual.conv1.weight", "visual.patch_embed.proj.weight"),
        *blocks("visual.transformer.", "visual.transformer.layers", visual["depth"]),
        *pair("visual.ln_post", "visual.norm"),
        transpose("visual.proj", "visual_projection.weight"),
    ]
    if visual.get("positions", "learned") == "learned":
        rules.append(rename("visual.positional_embedding", "visual.positions"))
    if visual["pre_norm"]:
        rules += pair("visual.ln_pre", "visual.norm_pre")
    return rules


def resnet(config: Plain) -> list[Rule]:
    """CLIP's ResNet tower: the names are the same, but for those of the attention pooling."""
    rules: list[Rule] = []
    for i in (1, 2, 3):
        rules += _conv("visual", i)
    for stage, depth in enumerate(config["visual"]["layers"], start=1):
        for block in range(depth):
            name = f"visual.layer{stage}.{block}"
            for i in (1, 2, 3):
                rules += _conv(name, i)
            if block == 0:
                rules += [rename(f"{name}.downsample.0.weight", f"{name}.downsample.0.weight")]
                rules += _norm(f"{name}.downsample.1")
    for theirs, ours in (("q_proj", "q"), ("k_proj", "k"), ("v_proj", "v"), ("c_proj", "proj")):
        rules += pair(f"visual.attnpool.{theirs}", f"visual.attnpool.{ours}")
    rules.append(rename("visual.attnpool.positional_embedding", "visual.attnpool.positions"))
    return rules


def text(config: Plain, prefix: str) -> list[Rule]:
    """The text tower under `prefix`, and its projection."""
    rules = [
        rename(f"{prefix}token_embedding.weight", "text.token_embedding.weight"),
        rename(f"{prefix}positional_embedding", "text.positions"),
        *blocks(f"{prefix}transformer.", "text.transformer.layers", config["text"]["depth"]),
        *pair(f"{prefix}ln_final", "text.norm"),
    ]
    if config["text_projection"] == "linear":
        rules.append(transpose(f"{prefix}text_projection", "text_projection.weight"))
    elif config["text_projection"] == "linear_bias":
        rules += pair(f"{prefix}text_projection", "text_projection")
    return rules


def scalars(config: Plain) -> list[Rule]:
    """The logit scale and, where there is one, the bias."""
    names = ["logit_scale"] + ([] if config.get("logit_bias_init") is None else ["logit_bias"])
    return [reshape(name, name, (), ()) for name in names]


def _conv(prefix: str, i: int) -> list[Rule]:
    return [rename(f"{prefix}.conv{i}.weight", f"{prefix}.conv{i}.weight"), *_norm(f"{prefix}.bn{i}")]


def _norm(name: str) -> list[Rule]:
    parts = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    return [rename(f"{name}.{part}", f"{name}.{part}") for part in parts]
