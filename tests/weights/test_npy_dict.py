"""Dictionaries of arrays in `.npy` files: NumPy's own, Python 2's, and those that would run something."""

from __future__ import annotations

import io
import os
import pickle
import struct

import numpy as np
import pytest
import torch

from odonata.errors import WeightsError
from odonata.weights.npy_dict import read_npy_dict, write_npy_dict

STATE = {"conv1.weights": torch.randn(3, 3, 2, 4), "conv1.biases": torch.randn(4), "conv4-1.biases": torch.randn(2)}


def saved(path, content):
    holder = np.empty((), dtype=object)
    holder[()] = content
    np.save(path, holder, allow_pickle=True)
    return path


def test_what_is_written_is_what_numpy_reads_and_comes_back_bit_equal(tmp_path):
    write_npy_dict(tmp_path / "net.npy", STATE)
    theirs = np.load(tmp_path / "net.npy", allow_pickle=True, encoding="latin1").item()
    assert set(theirs) == {"conv1", "conv4-1"} and set(theirs["conv1"]) == {"weights", "biases"}
    assert np.array_equal(theirs["conv1"]["weights"], STATE["conv1.weights"].numpy())
    read = read_npy_dict(tmp_path / "net.npy")
    assert read.keys() == STATE.keys() and all(torch.equal(read[name], value) for name, value in STATE.items())


def test_arrays_stored_column_by_column_or_big_endian_are_read(tmp_path):
    array = np.arange(12, dtype=np.float32).reshape(3, 4)
    file = saved(tmp_path / "net.npy", {"a": {"w": np.asfortranarray(array), "x": array.astype(">f4")}})
    assert all(np.array_equal(value.numpy(), array) for value in read_npy_dict(file).values())


def python2(array: np.ndarray) -> bytes:
    """A dictionary {"conv1": {"alpha": array}} as NumPy under Python 2 pickled it: bytes are plain strings."""

    def text(value: bytes) -> bytes:
        return b"T" + struct.pack("<i", len(value)) + value

    def empty() -> bytes:
        return b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"

    def dtype(code: bytes, order: bytes, flags: bytes) -> bytes:
        made = b"cnumpy\ndtype\n" + text(code) + b"K\x00K\x01\x87R"
        return made + b"(K\x03" + text(order) + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK" + flags + b"tb"

    numbers = empty() + b"(K\x01K" + bytes([len(array)]) + b"\x85" + dtype(b"f4", b"<", b"\x00") + b"\x89"
    inner = b"}" + text(b"alpha") + numbers + text(array.tobytes()) + b"tbs"
    outer = b"]}" + text(b"conv1") + inner + b"sa"
    return b"\x80\x02" + empty() + b"(K\x01)" + dtype(b"O8", b"|", b"?") + b"\x89" + outer + b"tb."


def test_files_of_python_2_are_read(tmp_path):
    array, stream = np.array([0.5, -3.25, 1e-3], dtype=np.float32), io.BytesIO()
    np.lib.format.write_array_header_1_0(stream, {"descr": "|O", "fortran_order": False, "shape": ()})
    (tmp_path / "net.npy").write_bytes(stream.getvalue() + python2(array))
    assert (
        np.load(tmp_path / "net.npy", allow_pickle=True, encoding="latin1").item()["conv1"]["alpha"].tolist()
        == array.tolist()
    )
    assert read_npy_dict(tmp_path / "net.npy")["conv1.alpha"].tolist() == array.tolist()


class Runs:
    def __reduce__(self):
        return os.mkdir, ("made",)


def test_a_file_that_would_run_something_is_refused_and_runs_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(WeightsError, match=r"net\.npy .* more than arrays: (posix|nt)\.mkdir is no array"):
        read_npy_dict(saved(tmp_path / "net.npy", {"conv1": Runs()}))
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize("content", [{"conv1": {"weights": 3}}, [1, 2], {"conv1": np.array(["a"])}])
def test_what_is_no_dictionary_of_numbers_is_refused(tmp_path, content):
    with pytest.raises(WeightsError, match=r"net\.npy"):
        read_npy_dict(saved(tmp_path / "net.npy", content))


@pytest.mark.parametrize("content", [b"", b"\x93NUMPY\x01\x00", pickle.dumps({"a": 1})])
def test_a_damaged_file_is_named(tmp_path, content):
    (tmp_path / "net.npy").write_bytes(content)
    with pytest.raises(WeightsError, match=r"net\.npy is damaged"):
        read_npy_dict(tmp_path / "net.npy")


def test_a_plain_array_is_no_dictionary(tmp_path):
    np.save(tmp_path / "net.npy", np.zeros(3))
    with pytest.raises(WeightsError, match="holds no dictionary of arrays"):
        read_npy_dict(tmp_path / "net.npy")
