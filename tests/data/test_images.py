"""Decoding: every kind of file that lies in real folders becomes 8-bit RGB, or an error that names it."""

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from odonata.data import images
from odonata.data.images import decode, image_size, to_image, to_tensor
from odonata.errors import DataError


def encode(image: Image.Image, format: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def photo(height: int = 40, width: int = 60) -> Image.Image:
    y, x = np.mgrid[:height, :width]
    return Image.fromarray(np.stack([x * 4, y * 6, (x + y) * 2], -1).astype(np.uint8))


def png_header(width: int, height: int) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunk = b"IHDR" + header
    return (
        b"\x89PNG\r\n\x1a\n"
        + struct.pack(">I", 13)
        + chunk
        + struct.pack(">I", zlib.crc32(chunk))
        + struct.pack(">I", 99)
        + b"IDAT"
    )


@pytest.mark.parametrize(
    "data, words",
    [
        (b"", "empty (0 bytes)"),
        (b"<html>not found</html>", "not a picture"),
        (encode(photo(), "JPEG")[:-200], "truncated or damaged"),
        (encode(photo(), "JPEG")[:400], "header cannot be read: Truncated"),
        (encode(photo(), "PNG")[:-80], "truncated or damaged"),
        (encode(photo(), "JPEG")[:20], "a.jpg"),
        (png_header(30_000, 20_000), "DataError"),
    ],
)
def test_a_bad_file_is_named(data: bytes, words: str, tmp_path: Path):
    path = tmp_path / "a.jpg"
    path.write_bytes(data)
    for read in (decode, to_tensor):
        with pytest.raises(DataError) as error:
            read(path)
        assert str(path) in str(error.value)
        assert words in str(error.value) or words == "DataError"


def test_a_missing_file_is_named(tmp_path: Path):
    with pytest.raises(DataError, match=r"nowhere\.jpg: the picture file does not exist"):
        decode(tmp_path / "nowhere.jpg")


def test_a_decompression_bomb_is_refused_with_its_size_and_the_limit():
    with pytest.raises(DataError, match=r"bomb\.png: the picture has 120,000,000 pixels .* limit of 89,478,485"):
        decode(png_header(12_000, 10_000), "bomb.png")
    with pytest.raises(DataError, match=r"2,400 pixels .* limit of 100;"):
        decode(encode(photo(), "PNG"), "small.png", max_pixels=100)
    with pytest.raises(DataError, match=r"huge\.png: .*600000000 pixels"):
        decode(png_header(30_000, 20_000), "huge.png")


def test_jpeg_through_simplejpeg_has_pillows_bits(monkeypatch: pytest.MonkeyPatch):
    pytest.importorskip("simplejpeg")
    for image in (photo(), photo().convert("L"), photo(33, 47)):
        for options in ({}, {"quality": 30, "progressive": True}, {"subsampling": 0} if image.mode == "RGB" else {}):
            content = encode(image, "JPEG", **options)
            fast = to_tensor(content)
            with monkeypatch.context() as patch:
                patch.setattr(images, "_simplejpeg", lambda: None)
                slow = to_tensor(content)
            assert torch.equal(fast, slow)
            assert torch.equal(
                slow, torch.from_numpy(np.array(Image.open(io.BytesIO(content)).convert("RGB"))).permute(2, 0, 1)
            )


def test_exif_rotation_is_applied():
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held upright: turn a quarter clockwise
    content = encode(photo(40, 60), "JPEG", exif=exif, quality=95)
    assert to_tensor(content).shape == (3, 60, 40)
    assert image_size(content) == (60, 40)
    upright = to_tensor(encode(photo(40, 60), "JPEG", quality=95))
    assert torch.equal(to_tensor(content), torch.rot90(upright, -1, (1, 2)))


def test_16_bit_grey_is_scaled_not_clipped():
    values = np.linspace(0, 65535, 256 * 4).reshape(32, 32).astype(np.uint16)
    got = to_tensor(encode(Image.fromarray(values), "PNG"))
    assert torch.equal(got[0], torch.from_numpy(np.rint(values / 257).astype(np.uint8)))
    assert torch.equal(got[0], got[2])


def test_float_and_negative_values():
    values = np.linspace(0, 1, 64, dtype=np.float32).reshape(8, 8)
    assert int(to_tensor(encode(Image.fromarray(values), "TIFF"))[0, -1, -1]) == 255
    with pytest.raises(DataError, match=r"x\.tif: .*negative"):
        to_tensor(encode(Image.fromarray(values - 2), "TIFF"), "x.tif")


def test_grey_cmyk_and_palette_become_rgb():
    for mode, format in (("L", "PNG"), ("1", "PNG"), ("P", "PNG"), ("CMYK", "JPEG"), ("LA", "PNG")):
        got = to_tensor(encode(photo().convert(mode), format))
        assert got.shape == (3, 40, 60) and got.dtype == torch.uint8
    cmyk = to_tensor(encode(photo().convert("CMYK"), "JPEG", quality=100))
    assert (cmyk.int() - to_tensor(photo()).int()).abs().float().mean() < 4


def test_transparency_is_composed_over_white():
    rgba = Image.new("RGBA", (4, 4), (255, 0, 0, 0))
    assert to_tensor(encode(rgba, "PNG")).unique().tolist() == [255]
    half = Image.new("RGBA", (4, 4), (0, 0, 0, 128))
    assert to_tensor(encode(half, "PNG")).unique().tolist() == [127]
    palette = Image.new("P", (4, 4), 1)
    palette.putpalette([0, 0, 0, 9, 9, 9])
    assert to_tensor(encode(palette, "PNG", transparency=1)).unique().tolist() == [255]


def test_of_an_animation_the_first_frame_is_taken():
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    content = encode(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert to_tensor(content)[:, 0, 0].tolist() == [255, 0, 0]


def test_scaled_decoding_keeps_the_shorter_side_long_enough():
    content = encode(photo(800, 1200), "JPEG")
    small = to_tensor(content, min_side=150)
    assert small.shape == (3, 200, 300)
    assert to_tensor(content).shape == (3, 800, 1200)


def test_tensor_and_image_are_inverse():
    assert np.array_equal(np.array(to_image(to_tensor(photo()))), np.array(photo()))
