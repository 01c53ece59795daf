"""Darknet's layers as loops in NumPy, written from its C: the oracle of `test_darknet.py`.

Arrays are (channels, height, width) in float64; a whole network is run on one image.
"""

import numpy as np

LEAKY = 0.1


def activate(x, name):
    if name == "leaky":
        return np.where(x > 0, x, LEAKY * x)
    if name == "relu":
        return x * (x > 0)
    if name == "relu6":
        return np.minimum(np.maximum(x, 0), 6)
    if name == "logistic":
        return 1 / (1 + np.exp(-x))
    if name == "loggy":
        return 2 / (1 + np.exp(-x)) - 1
    if name == "tanh":
        return 2 / (1 + np.exp(-2 * x)) - 1
    if name == "elu":
        return (x >= 0) * x + (x < 0) * (np.exp(x) - 1)
    if name == "selu":
        return np.where(x >= 0, 1.0507 * x, 1.0507 * 1.6732 * (np.exp(x) - 1))
    if name == "gelu":
        return 0.5 * x * (1 + np.tanh(0.797885 * x + 0.035677 * x**3))
    if name == "swish":
        return x / (1 + np.exp(-x))
    if name == "mish":
        return x * np.tanh(np.log(np.exp(x) + 1))
    if name == "hard_mish":
        return np.where(x > 0, x, np.where(x > -2, x * x / 2 + x, 0))
    if name == "relie":
        return np.where(x > 0, x, 0.01 * x)
    if name == "ramp":
        return x * (x > 0) + 0.1 * x
    if name == "hardtan":
        return np.clip(x, -1, 1)
    assert name == "linear"
    return x


def normalize(x, bias, scale, mean, variance, cpu):
    shape = (-1, 1, 1)
    deviation = np.sqrt(variance) + 1e-6 if cpu else np.sqrt(variance + 1e-5)
    return (x - mean.reshape(shape)) / deviation.reshape(shape) * scale.reshape(shape) + bias.reshape(shape)


def convolve(x, weight, stride, pad, dilation, groups):
    filters, per_group, size, _ = weight.shape
    _, height, width = x.shape
    reach = dilation * (size - 1) + 1
    out_h = (height + 2 * pad * dilation - reach) // stride + 1
    out_w = (width + 2 * pad * dilation - reach) // stride + 1
    out = np.zeros((filters, out_h, out_w))
    for f in range(filters):
        first = f // (filters // groups) * per_group
        for i, j in np.ndindex(out_h, out_w):
            for c, m, n in np.ndindex(per_group, size, size):
                row = i * stride + (m - pad) * dilation
                column = j * stride + (n - pad) * dilation
                if 0 <= row < height and 0 <= column < width:
                    out[f, i, j] += weight[f, c, m, n] * x[first + c, row, column]
    return out


def maxpool(x, size, stride, padding):
    channels, height, width = x.shape
    out_h, out_w = (height + padding - size) // stride + 1, (width + padding - size) // stride + 1
    offset = -(padding // 2)
    out = np.full((channels, out_h, out_w), -np.inf)
    for k, i, j, n, m in np.ndindex(channels, out_h, out_w, size, size):
        row, column = offset + i * stride + n, offset + j * stride + m
        if 0 <= row < height and 0 <= column < width:
            out[k, i, j] = max(out[k, i, j], x[k, row, column])
    return out


def reorg(x, stride, reverse):
    """`reorg_cpu` on flat memory, index by index."""
    c, h, w = x.shape
    flat, out = x.ravel(), np.zeros(x.size)
    out_c = c // stride**2
    for k, j, i in np.ndindex(c, h, w):
        inner = i + w * (j + h * k)
        offset = k // out_c
        w2, h2 = i * stride + offset % stride, j * stride + offset // stride
        outer = w2 + w * stride * (h2 + h * stride * (k % out_c))
        if reverse:
            out[outer] = flat[inner]
        else:
            out[inner] = flat[outer]
    return out.reshape((out_c, h * stride, w * stride) if reverse else (c * stride**2, h // stride, w // stride))


def local(x, weight, bias, size, stride, pad):
    filters, out_h, out_w = bias.shape
    channels, height, width = x.shape
    out = bias.copy()
    for f, i, j in np.ndindex(filters, out_h, out_w):
        kernel = weight[i * out_w + j, f].reshape(channels, size, size)
        for c, m, n in np.ndindex(channels, size, size):
            row, column = i * stride + m - pad, j * stride + n - pad
            if 0 <= row < height and 0 <= column < width:
                out[f, i, j] += kernel[c, m, n] * x[c, row, column]
    return out


def shortcut(x, add, alpha, beta):
    c1, h1, w1 = add.shape
    c2, h2, w2 = x.shape
    stride = max(1, w1 // w2)
    out = x.copy()
    for k, j, i in np.ndindex(min(c1, c2), min(h1, h2), min(w1, w2)):
        out[k, j, i] = alpha * x[k, j, i] + beta * add[k, j * stride, i * stride]
    return out


def run(sections, state, image, cpu=False):
    """Returns what each layer gives.

    Args:
        sections: (kind, options) of each layer.
        state: tensors under the names of a DarknetNetwork, as float64 arrays.
        image: (channels, height, width).
        cpu: darknet's normalisation on CPUs.
    """
    outputs = []
    for number, (kind, options) in enumerate(sections):
        x = outputs[-1] if outputs else image
        get = {name: options.get(name, default) for name, default in _DEFAULTS.items()}
        held = {name.split(".", 2)[2]: value for name, value in state.items() if name.startswith(f"layers.{number}.")}
        earlier = [i if i >= 0 else number + i for i in (options.get("layers") or options.get("from") or ())]
        if kind == "convolutional":
            pad = get["size"] // 2 if get["pad"] else get["padding"]
            x = convolve(x, held["conv.weight"], get["stride"], pad, get["dilation"], get["groups"])
            x = _finish(x, held, "conv", get, cpu)
        elif kind == "connected":
            x = (held["linear.weight"] @ x.ravel()).reshape(-1, 1, 1)
            x = _finish(x, held, "linear", get, cpu)
        elif kind == "local":
            x = local(x, held["weight"], held["bias"], get["size"], get["stride"], get["pad"])
            x = activate(x, get["activation"])
        elif kind == "maxpool":
            size = options.get("size", get["stride"])
            x = maxpool(x, size, get["stride"], options.get("padding", size - 1))
        elif kind == "avgpool":
            x = x.mean((1, 2), keepdims=True)
        elif kind == "route":
            x = np.concatenate([np.split(outputs[i], get["groups"])[get["group_id"]] for i in earlier])
        elif kind == "shortcut":
            for i in earlier:
                x = shortcut(x, outputs[i], get["alpha"], get["beta"])
            x = activate(x, options.get("activation", "linear"))
        elif kind == "upsample":
            x = options.get("scale", 1) * x.repeat(options["stride"], 1).repeat(options["stride"], 2)
        elif kind == "reorg":
            x = reorg(x, options["stride"], options.get("reverse", 0))
        else:
            assert kind in ("dropout", "yolo", "region", "detection", "softmax")
        outputs.append(x)
    return outputs


_DEFAULTS = {
    **dict.fromkeys(("size", "stride", "dilation", "groups", "alpha", "beta"), 1),
    **dict.fromkeys(("pad", "padding", "group_id"), 0),
    "activation": "logistic",
}


def _finish(x, held, part, get, cpu):
    if "norm.weight" in held:
        norm = (held[f"norm.{name}"] for name in ("bias", "weight", "running_mean", "running_var"))
        x = normalize(x, *norm, cpu)
    else:
        x = x + held[f"{part}.bias"].reshape(-1, 1, 1)
    return activate(x, get["activation"])


def cfg_text(sections, width, height, channels=3):
    """Returns the cfg of sections."""
    parts = [f"[net]\nwidth={width}\nheight={height}\nchannels={channels}"]
    for kind, options in sections:
        lines = [f"[{kind}]"]
        for name, value in options.items():
            shown = ",".join(map(str, value)) if isinstance(value, tuple | list) else value
            lines.append(f"{name}={shown}")
        parts.append("\n".join(lines))
    return "\n\n".join(parts) + "\n"
