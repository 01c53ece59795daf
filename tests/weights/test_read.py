import json
import os
import pickle

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from odonata.errors import WeightsError
from odonata.weights.read import read_state

STATE = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.tensor(2.5, dtype=torch.float16)}


def same(read, expected=STATE):
    return read.keys() == expected.keys() and all(torch.equal(read[name], expected[name]) for name in expected)


class Malicious:
    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return os.system, (f"touch {self.target}",)


@pytest.mark.parametrize("name", ["x.safetensors", "x.pt", "x.bin", "x.npz"])
def test_every_format_is_read_bit_equal(tmp_path, name):
    file = tmp_path / name
    if name.endswith("safetensors"):
        save_file(STATE, file)
    elif name.endswith("npz"):
        np.savez(file, **{key: value.numpy() for key, value in STATE.items()})
    else:
        torch.save(STATE, file)
    assert same(read_state(file).state)


def test_wrapped_and_prefixed_weights_are_unwrapped_and_it_is_said(tmp_path):
    torch.save({"epoch": 3, "state_dict": {f"module.{key}": value for key, value in STATE.items()}}, tmp_path / "x.pt")
    raw = read_state(tmp_path / "x.pt")
    assert same(raw.state)
    assert raw.notes == [
        "weights taken from the entry 'state_dict' of x.pt",
        "prefix 'module.' stripped from all names",
    ]


def test_shards_are_joined_and_a_missing_one_is_named(tmp_path):
    save_file({"a": STATE["a"]}, tmp_path / "m-1.safetensors")
    save_file({"b": STATE["b"]}, tmp_path / "m-2.safetensors")
    index = {"weight_map": {"a": "m-1.safetensors", "b": "m-2.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    assert same(read_state(tmp_path).state)
    (tmp_path / "m-2.safetensors").unlink()
    with pytest.raises(WeightsError, match=r"shard m-2\.safetensors is missing; download it too"):
        read_state(tmp_path)
    index["weight_map"]["b"] = "../m-1.safetensors"
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(WeightsError, match="lies outside the folder"):
        read_state(tmp_path)


@pytest.mark.parametrize("protocol", [2, 4])
def test_a_pickle_that_runs_code_is_not_run(tmp_path, protocol):
    target = tmp_path / "side_effect"
    torch.save({"a": STATE["a"], "x": Malicious(target)}, tmp_path / "zip.pt", pickle_protocol=protocol)
    (tmp_path / "bare.bin").write_bytes(pickle.dumps({"x": Malicious(target)}, protocol))
    for name in ("zip.pt", "bare.bin"):
        with pytest.raises(WeightsError, match=r"could run code when read.*it was not loaded.*safetensors"):
            read_state(tmp_path / name)
    assert not target.exists()


def test_objects_in_npz_are_not_unpickled(tmp_path):
    target = tmp_path / "side_effect"
    np.savez(tmp_path / "x.npz", a=np.array([Malicious(target)], dtype=object))
    with pytest.raises(WeightsError, match="holds Python objects, which are not read"):
        read_state(tmp_path / "x.npz")
    assert not target.exists()


def test_torchscript_needs_permission(tmp_path):
    class Layer(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(STATE["a"].half())

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x @ self.weight

    torch.jit.script(Layer()).save(str(tmp_path / "x.pt"))
    with pytest.raises(WeightsError, match=r"TorchScript archive, which carries code.*allow_torchscript=True"):
        read_state(tmp_path / "x.pt")
    raw = read_state(tmp_path / "x.pt", allow_torchscript=True)
    assert raw.kind == "torchscript" and same(raw.state, {"weight": STATE["a"].half()})


@pytest.mark.parametrize("name", ["x.safetensors", "x.pt", "x.npz"])
@pytest.mark.parametrize("keep", [0, 20, 0.6])
def test_truncated_files_are_named(tmp_path, name, keep):
    file, whole = tmp_path / name, {"a": torch.randn(300)}
    if name.endswith("safetensors"):
        save_file(whole, file)
    elif name.endswith("npz"):
        np.savez(file, a=whole["a"].numpy())
    else:
        torch.save(whole, file)
    content = file.read_bytes()
    file.write_bytes(content[: int(keep * len(content)) if keep < 1 else keep])
    with pytest.raises(WeightsError, match=f"{name} (is|holds)"):
        read_state(file)


def test_other_mistakes_are_explained(tmp_path):
    with pytest.raises(WeightsError, match="does not exist"):
        read_state(tmp_path / "none.pt")
    with pytest.raises(WeightsError, match=r"holds no weights: looked for open_clip_model\.safetensors"):
        read_state(tmp_path)
    (tmp_path / "x.h5").write_bytes(b"1")
    with pytest.raises(WeightsError, match=r"files of type \.h5 are not known; known are \.safetensors"):
        read_state(tmp_path / "x.h5")
    (tmp_path / "x.bin").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\n")
    with pytest.raises(WeightsError, match=r"Git LFS pointer.*git lfs pull"):
        read_state(tmp_path / "x.bin")
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(WeightsError, match="holds a list, not a dictionary of tensors"):
        read_state(tmp_path / "list.pt")
    save_file(STATE, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text('{\n"a": 1,,\n}')
    with pytest.raises(WeightsError, match=r"config\.json:2: not valid JSON"):
        read_state(tmp_path)


def test_bfloat16_that_numpy_stored_as_bytes_is_read(tmp_path):
    value = torch.randn(5).bfloat16()
    np.savez(tmp_path / "x.npz", a=value.view(torch.int16).numpy().view("V2"))
    assert torch.equal(read_state(tmp_path / "x.npz").state["a"], value)
