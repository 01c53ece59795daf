"""Vectors of pictures on disk, and exact search among them."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from odonata.data.sample import ImageRef
from odonata.errors import DataError

_ON_CPU = 8
"""Pictures that go through the network together on a CPU: of a ViT-B/16, more of them do not fit its caches."""


@dataclass(frozen=True)
class Vectors:
    """Unit-length vectors with the names of what they stand for.

    Args:
        vectors: one row a picture; memory-mapped when loaded.
        names: paths of the pictures.
        model: the path of what made them; a query must come from the same.
    """

    vectors: Float[np.ndarray, "items dim"]
    names: list[str]
    model: str

    @classmethod
    def collect(cls, parts: Iterable[tuple[list[str], Tensor]], model: str) -> Vectors:
        """Return the parts as one.

        Raises:
            DataError: there are none.
        """
        names: list[str] = []
        rows: list[np.ndarray] = []
        for part_names, part in parts:
            names += part_names
            rows.append(part.float().numpy())
        if not names:
            raise DataError("no picture could be embedded")
        return cls(np.concatenate(rows), names, model)

    def save(self, folder: Path) -> None:
        """Write vectors.npy, items.jsonl and index.json; the folder appears whole."""
        partial = folder.with_name(folder.name + ".partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        np.save(partial / "vectors.npy", self.vectors)
        (partial / "items.jsonl").write_text("".join(json.dumps({"image": name}) + "\n" for name in self.names))
        (partial / "index.json").write_text(json.dumps({"model": self.model, "dim": int(self.vectors.shape[1])}))
        if folder.is_dir():  # an empty one: anything else was refused
            folder.rmdir()
        partial.replace(folder)

    @classmethod
    def load(cls, folder: Path) -> Vectors:
        """Open what `save` wrote.

        Raises:
            DataError: the folder is none of ours, or its files disagree.
        """
        try:
            about = json.loads((folder / "index.json").read_text())
            vectors = np.load(folder / "vectors.npy", mmap_mode="r", allow_pickle=False)
            names = [json.loads(line)["image"] for line in (folder / "items.jsonl").read_text().splitlines()]
        except (OSError, json.JSONDecodeError, KeyError, ValueError) as error:
            raise DataError(f"{folder}: not a folder of vectors made by `odonata embed`: {error}") from error
        if len(names) != len(vectors):
            raise DataError(f"{folder}: {len(vectors)} vectors but {len(names)} items")
        return cls(vectors, names, about["model"])

    def nearest(self, query: Float[Tensor, " dim"], top: int, chunk: int = 65536) -> list[tuple[str, float]]:
        """Return the names of the largest cosines, exactly; ties by order of embedding.

        Raises:
            DataError: the query has another width.
        """
        if query.shape[0] != self.vectors.shape[1]:
            raise DataError(
                f"the query has {query.shape[0]} dimensions, the vectors {self.vectors.shape[1]}: another model?"
            )
        scores = np.concatenate(
            [
                np.asarray(self.vectors[i : i + chunk]) @ query.float().numpy()
                for i in range(0, len(self.vectors), chunk)
            ]
        )
        order = np.argsort(-scores, kind="stable")[:top]
        return [(self.names[i], float(scores[i])) for i in order.tolist()]


def embed_files(
    model: Any, files: Sequence[Path], batch_size: int, on_error: str = "raise", precision: str = "fp32"
) -> Iterator[tuple[list[str], Tensor]]:
    """Yield names and vectors, a batch at a time; threads decode the next batch while this one is encoded.

    Raises:
        DataError: a picture cannot be read and `on_error` is "raise"; with "skip" it is named on stderr.
    """

    def read(file: Path) -> tuple[str, Tensor | None]:
        try:
            return str(file), model.prepare(ImageRef(file).tensor())
        except DataError as error:
            if on_error == "raise":
                raise
            print(f"skipped {error}", file=sys.stderr)
            return str(file), None

    parts = [files[i : i + batch_size] for i in range(0, len(files), batch_size)]
    at_once = _ON_CPU if model.device.type == "cpu" else batch_size
    with ThreadPoolExecutor(max_workers=min(4, _cores())) as pool:
        waiting = [pool.submit(read, file) for file in parts[0]] if parts else []
        for number in range(len(parts)):
            following = [pool.submit(read, file) for file in parts[number + 1]] if number + 1 < len(parts) else []
            try:
                done = [future.result() for future in waiting]
            except DataError:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
            good = [(name, tensor) for name, tensor in done if tensor is not None]
            if good:
                # The context ends before the caller goes on, whose own arithmetic it would change.
                with torch.autocast(model.device.type, torch.bfloat16, enabled=precision == "bf16"):
                    pieces = [good[i : i + at_once] for i in range(0, len(good), at_once)]
                    vectors = torch.cat([model.embed_prepared([tensor for _, tensor in piece]) for piece in pieces])
                yield [name for name, _ in good], vectors
            waiting = following


def _cores() -> int:
    """Return how many cores this process may use: fewer than the machine has, in many containers and job queues."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
