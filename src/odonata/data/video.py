"""Videos as frames, and frames as videos, by PyAV (the extra `video`)."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from odonata.errors import DataError

VIDEO_SUFFIXES = (".mp4", ".mov", ".avi", ".mkv", ".webm", ".m4v")


def is_video(path: Path) -> bool:
    """Whether a file is a video by its name."""
    return path.suffix.lower() in VIDEO_SUFFIXES


def _av() -> Any:
    try:
        import av
    except ImportError as error:
        raise DataError("videos need PyAV: pip install 'odonata[video]'") from error
    return av


def frame_rate(path: Path) -> Fraction:
    """Return the frames a second of a video.

    Raises:
        DataError: it cannot be read, or has no picture.
    """
    av = _av()
    try:
        with av.open(str(path)) as container:
            return Fraction(container.streams.video[0].average_rate or 25)
    except (av.FFmpegError, IndexError, OSError) as error:
        raise DataError(f"{path}: cannot read the video: {error}") from error


def read_frames(path: Path, every: int = 1) -> Iterator[tuple[int, Image.Image]]:
    """Yield every so many frames of a video with their numbers, from 0.

    Raises:
        DataError: it cannot be read, or has no picture.
    """
    av = _av()
    try:
        with av.open(str(path)) as container:
            for number, frame in enumerate(container.decode(container.streams.video[0])):
                if number % every == 0:
                    yield number, frame.to_image()
    except (av.FFmpegError, IndexError, OSError) as error:
        raise DataError(f"{path}: cannot read the video: {error}") from error


class VideoWriter:
    """Writes pictures of one size as an MPEG-4 video; use it in a `with` block.

    Args:
        path: the file; it appears under this name only when it is whole.
        rate: frames a second.
    """

    def __init__(self, path: Path, rate: Fraction) -> None:
        self.path, self.rate = path, rate
        self.partial = path.with_name(f".{path.name}")
        self.container: Any = None
        self.stream: Any = None

    def write(self, picture: Image.Image) -> None:
        """Add one picture; odd sides lose a row or column, which the codec cannot hold."""
        av = _av()
        if self.container is None:
            self.container = av.open(str(self.partial), "w", format="mp4")
            self.stream = self.container.add_stream("mpeg4", rate=self.rate)
            self.stream.width, self.stream.height = picture.width // 2 * 2, picture.height // 2 * 2
            self.stream.pix_fmt, self.stream.bit_rate = "yuv420p", 4_000_000
        pixels = np.asarray(picture.convert("RGB"))[: self.stream.height, : self.stream.width]
        for packet in self.stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), "rgb24")):
            self.container.mux(packet)

    def __enter__(self) -> VideoWriter:
        return self

    def __exit__(self, kind: object, *rest: object) -> None:
        if self.container is None:
            return
        if kind is None:
            for packet in self.stream.encode(None):
                self.container.mux(packet)
        self.container.close()
        if kind is None:
            self.partial.replace(self.path)
        else:
            self.partial.unlink(missing_ok=True)
