"""Every format is found by itself, and every bad row is named with its place."""

import gzip
import io
import json
import struct
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from odonata.data.images import to_tensor
from odonata.data.sample import ImageRef, ImageText, ImageTextSource
from odonata.data.sources import open_image_text
from odonata.data.tar_shards import index_shard, write_index
from odonata.errors import DataError


def jpeg(grey: int = 100) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (12, 8), (grey, grey, grey)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for number in range(6):
        (tmp_path / f"{number}.png").write_bytes(jpeg(number * 20))
    return tmp_path


def write(path: Path, text: str | bytes) -> Path:
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def test_repeated_rows_gather_the_captions_of_a_picture(folder: Path):
    table = write(folder / "c.csv", 'image,caption\n0.png,"a cat, red"\n1.png,a dog\n0.png,another cat\n')
    source = open_image_text(table)
    assert [sample.captions for sample in source] == [("a cat, red", "another cat"), ("a dog",)]
    assert [sample.id for sample in source] == ["0.png", "1.png"]


def test_tsv_jsonl_and_json_lists_say_the_same(folder: Path):
    write(folder / "a.tsv", "filepath\ttitle\tsplit\n0.png\ta cat\ttrain\n1.png\ta dog\tval\n")
    rows = [
        {"file_name": "0.png", "text": ["a cat"], "split": "train"},
        {"file_name": "1.png", "text": "a dog", "split": "val"},
    ]
    write(folder / "a.jsonl", "\n\n".join(json.dumps(row) for row in rows))
    write(folder / "a.json", json.dumps(rows))
    sources = [open_image_text(folder / name) for name in ("a.tsv", "a.jsonl", "a.json")]
    assert len({source.fingerprint() for source in sources}) == 1
    assert sources[0].split("val")[0].captions == ("a dog",)
    with pytest.raises(DataError, match="no items of split 'test'; splits found: train, val"):
        open_image_text(folder / "a.tsv", split="test")


def test_a_table_with_classes_only_makes_captions(folder: Path):
    table = write(folder / "labels.csv", "file,label\n0.png,red_fox\n1.png,hen\n")
    source = open_image_text(table, class_template="a {}.")
    assert source.classes == ("hen", "red_fox")
    assert [(s.captions, s.label) for s in source] == [(("a red fox.",), 1), (("a hen.",), 0)]


def test_byte_order_marks_and_line_breaks_in_captions(folder: Path):
    table = write(folder / "c.csv", b'\xef\xbb\xbfimage,caption\r\n0.png,"two\r\nlines"\r\n9.png,x\r\n')
    with pytest.raises(DataError, match=r"c\.csv:4: the picture '9\.png' was not found; tried "):
        open_image_text(table)


BAD_ROWS = [
    ("9.png,a cat", "2: the picture '9.png' was not found; tried"),
    ("0.png,", "2: the caption is empty"),
    ("0.png,   ", "2: the caption is empty"),
    ("0.png", "2: the caption is missing"),
    (b"0.png,caf\xe9", "2: the caption is not UTF-8; save the file as UTF-8"),
    (",a cat", "2: the picture's name is empty"),
    ("0.png,a cat, red", "2: 3 cells, but 2 columns; a text with ',' needs quotes"),
    ("https://a.b/c.jpg,a cat", "2: the picture 'https://a.b/c.jpg' is an address"),
]


@pytest.mark.parametrize("row, words", BAD_ROWS)
def test_a_bad_row_is_named_or_skipped_and_counted(folder: Path, row: str | bytes, words: str):
    content = b"image,caption\n" + (row if isinstance(row, bytes) else row.encode()) + b"\n1.png,a dog\n"
    table = write(folder / "c.csv", content)
    with pytest.raises(DataError) as error:
        open_image_text(table)
    assert f"c.csv:{words}" in str(error.value)
    source = open_image_text(table, on_error="skip")
    assert len(source) == 1 and len(source.problems) == 1
    assert words in str(source.problems[0])


@pytest.mark.parametrize(
    "line, words",
    [
        ("{", "2: not valid JSON"),
        ("[1]", "2: want an object"),
        ('{"image": "0.png"}', "2: the caption is missing"),
        ('{"image": "0.png", "caption": 3}', "2: the caption is int 3, not text"),
        ('{"image": "0.png", "caption": []}', "2: the caption is missing"),
        ('{"image": 7, "caption": "x"}', "2: column 'image' has no picture file, but 7"),
        (b'{"image": "0.png", "caption": "caf\xe9"}', "2: the line is not UTF-8"),
    ],
)
def test_a_bad_line_of_json_is_named(folder: Path, line: str | bytes, words: str):
    good = b'{"image": "1.png", "caption": "a dog"}\n'
    path = write(folder / "c.jsonl", good + (line if isinstance(line, bytes) else line.encode()))
    with pytest.raises(DataError) as error:
        open_image_text(path)
    assert f"c.jsonl:{words}" in str(error.value)
    assert len(open_image_text(path, on_error="skip").problems) == 1


def test_a_duplicate_id_names_both_lines(folder: Path):
    table = write(folder / "c.csv", "id,image,caption\n7,0.png,a cat\n8,1.png,a dog\n7,2.png,a hen\n")
    with pytest.raises(DataError, match=r"c\.csv:4: duplicate id '7', first used at .*c\.csv:2"):
        open_image_text(table)
    write(table, "id,image,caption\n7,0.png,a cat\n7,0.png,a red cat\n")
    assert open_image_text(table)[0].captions == ("a cat", "a red cat")
    write(table, "id,image,caption\n7,0.png,a cat\n7,0.png,a cat\n")
    with pytest.raises(DataError, match="duplicate id '7'"):
        open_image_text(table)


def test_a_missing_column_lists_those_present(folder: Path):
    table = write(folder / "c.csv", "image,question\n0.png,what?\n")
    with pytest.raises(DataError, match=r"no column with captions; columns present: image, question; name it"):
        open_image_text(table)
    with pytest.raises(DataError, match=r"no column 'words' \(caption_column\); columns present: image, question"):
        open_image_text(table, caption_column="words")
    assert open_image_text(table, caption_column="question")[0].captions == ("what?",)
    write(table, "a,b\n1,2\n")
    with pytest.raises(DataError, match="no column with picture files; columns present: a, b"):
        open_image_text(table)
    write(table, "")
    with pytest.raises(DataError, match="the manifest is empty"):
        open_image_text(table)


def test_a_caption_of_ten_thousand_words_is_read(folder: Path):
    long = "word " * 10_000
    source = open_image_text(write(folder / "c.csv", f"image,caption\n0.png,{long}\n1.png,{long * 5}\n"))
    assert len(source[0].captions[0].split()) == 10_000


def test_pictures_are_looked_for_where_images_says(folder: Path, tmp_path: Path):
    elsewhere = tmp_path / "lists"
    elsewhere.mkdir()
    table = write(elsewhere / "c.csv", "image,caption\n0.png,a cat\n")
    assert len(open_image_text(table, images=folder)) == 1
    with pytest.raises(DataError, match="the folder of pictures does not exist"):
        open_image_text(table, images=folder / "none")


def test_karpathy_and_coco_are_told_apart(folder: Path):
    (folder / "annotations").mkdir()
    karpathy = {
        "images": [
            {"filename": "0.png", "sentences": [{"raw": "a cat"}, {"raw": "b"}], "split": "restval", "imgid": 3},
            {"filepath": "images", "filename": "1.png", "sentences": [{"raw": "a dog"}], "split": "test", "imgid": 4},
        ]
    }
    source = open_image_text(write(folder / "annotations" / "k.json", json.dumps(karpathy)))
    assert source.kind == "karpathy" and source[0].id == "3"
    assert source.split("train")[0].captions == ("a cat", "b")
    coco = {
        "images": [{"id": 1, "file_name": "0.png"}, {"id": 2, "file_name": "1.png"}],
        "annotations": [
            {"image_id": 1, "caption": "a cat"},
            {"image_id": 2, "caption": "x"},
            {"image_id": 1, "caption": "c"},
        ],
    }
    source = open_image_text(write(folder / "annotations" / "captions_val2017.json", json.dumps(coco)))
    assert source.kind == "coco" and source.splits == ("val",)
    assert source[0].captions == ("a cat", "c")
    coco["annotations"] = [{"image_id": 1, "bbox": []}]
    with pytest.raises(DataError, match="this is another COCO file"):
        open_image_text(write(folder / "instances.json", json.dumps(coco)))
    karpathy["images"][0]["filename"] = "none.png"
    with pytest.raises(DataError, match=r"k\.json: images\[0\]: the picture 'none\.png' was not found; tried"):
        open_image_text(write(folder / "k.json", json.dumps(karpathy)))
    with pytest.raises(DataError, match=r"b\.json:2: not valid JSON"):
        open_image_text(write(folder / "b.json", '{"images":\n nope}'))
    with pytest.raises(DataError, match="there is no list 'images'; found: a, b"):
        open_image_text(write(folder / "b.json", '{"a": 1, "b": 2}'))


def test_folders_of_classes_with_and_without_splits(tmp_path: Path):
    for split in ("train", "val"):
        for name in ("hot_dog", "bun"):
            (tmp_path / split / name).mkdir(parents=True)
            write(tmp_path / split / name / "a.png", jpeg())
    source = open_image_text(tmp_path)
    assert source.kind == "folders" and source.classes == ("bun", "hot_dog") and source.splits == ("train", "val")
    assert source.split("val")[1].captions == ("a photo of a hot dog",)
    assert open_image_text(tmp_path / "train").splits == ()
    with pytest.raises(DataError, match="no pictures, class folders or caption files here"):
        open_image_text(_empty(tmp_path))


def _empty(tmp_path: Path) -> Path:
    (tmp_path / "empty").mkdir()
    return tmp_path / "empty"


def test_pictures_with_text_files_beside_them(folder: Path):
    for number in range(5):
        write(folder / f"{number}.txt", f"picture {number}\n")
    with pytest.raises(DataError, match=r"5\.png \(no 5\.txt beside it\): the caption is missing"):
        open_image_text(folder)
    source = open_image_text(folder, on_error="skip")
    assert len(source) == 5 and source[2].captions == ("picture 2",)


def test_the_manifest_in_a_folder_is_found(folder: Path):
    write(folder / "metadata.csv", "file_name,text\n0.png,a cat\n")
    assert open_image_text(folder).kind == "manifest"
    write(folder / "captions.csv", "file_name,text\n0.png,another\n")
    assert open_image_text(folder)[0].captions == ("another",)
    (folder / "captions.csv").rename(folder / "x.csv")
    (folder / "metadata.csv").rename(folder / "y.csv")
    with pytest.raises(DataError, match=r"several caption files: x\.csv, y\.csv; name the one to read"):
        open_image_text(folder)


def shard(path: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def test_tar_shards_are_read_at_random(tmp_path: Path):
    members = {
        "a/000.png": jpeg(10),
        "a/000.txt": b"first",
        "a/001.json": b'{"caption": "second", "label": 1}',
        "a/001.png": jpeg(20),
    }
    shard(tmp_path / "x-000.tar", members)
    shard(tmp_path / "x-001.tar", {"000.png": jpeg(30), "000.cls": b"4"})
    for path in (tmp_path, tmp_path / "x-*.tar"):
        source = open_image_text(path)
        assert [s.captions[0] for s in source] == ["first", "second", "a photo of a 4"]
        assert source.classes == ("1", "4") and source[1].label == 0
        assert [int(s.image.tensor()[0, 0, 0]) for s in source] == [10, 20, 30]
    before = index_shard(tmp_path / "x-000.tar")
    write_index(tmp_path / "x-000.tar")
    assert index_shard(tmp_path / "x-000.tar") == before
    assert open_image_text(tmp_path).fingerprint() == source.fingerprint()
    shard(tmp_path / "x-000.tar", {"b.png": jpeg(), "b.txt": b"new"})
    assert len(index_shard(tmp_path / "x-000.tar")) == 2, "a stale index is not used"


def test_bad_shards_are_named(tmp_path: Path):
    shard(
        tmp_path / "a.tar",
        {"0.txt": b"alone", "1.png": jpeg(), "2.png": jpeg(), "2.txt": b"caf\xe9", "3.png": jpeg(), "3.txt": b"ok"},
    )
    source = open_image_text(tmp_path / "a.tar", on_error="skip")
    assert [problem.what for problem in source.problems] == [
        "no picture among 0.txt",
        "the caption is missing",
        "the caption is not UTF-8; save the file as UTF-8",
    ]
    assert source.problems[1].where.endswith("a.tar:1")
    write(tmp_path / "b.tar", b"no tar at all" * 100)
    with pytest.raises(DataError, match=r"b\.tar: cannot read the shard"):
        open_image_text(tmp_path / "b.tar")
    with pytest.raises(DataError, match="no file matches"):
        open_image_text(tmp_path / "z-*.tar")


def idx(array: np.ndarray) -> bytes:
    return bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def test_idx_files_and_their_mistakes(tmp_path: Path):
    pictures = np.arange(3 * 4 * 4, dtype=np.uint8).reshape(3, 4, 4)
    write(tmp_path / "train-images-idx3-ubyte.gz", gzip.compress(idx(pictures)))
    with pytest.raises(DataError, match=r"the labels train-labels-idx1-ubyte\.gz are not beside it"):
        open_image_text(tmp_path)
    write(tmp_path / "train-labels-idx1-ubyte.gz", gzip.compress(idx(np.array([2, 0, 1], np.uint8))))
    source = open_image_text(tmp_path)
    assert source.classes == ("0", "1", "2") and source[0].label == 2 and source.splits == ("train",)
    assert torch.equal(source[1].image.tensor()[2], torch.from_numpy(pictures[1]))
    write(tmp_path / "train-labels-idx1-ubyte.gz", idx(np.array([2, 0], np.uint8)))
    with pytest.raises(DataError, match=r"\(3, 4, 4\) pictures do not fit \(2,\) labels"):
        open_image_text(tmp_path)
    write(tmp_path / "train-labels-idx1-ubyte.gz", idx(np.array([2, 0], np.uint8))[:-1])
    with pytest.raises(DataError, match=r"the header says \(2,\), but 1 bytes follow"):
        open_image_text(tmp_path)


def test_the_embedded_set_by_name():
    source = open_image_text("scenes:n=16,size=32,objects=1-2,seed=4")
    assert source.splits == ("train", "val", "test") and len(source) == 20
    assert open_image_text("scenes:n=16,size=32", split="val")[0].image.tensor().shape == (3, 32, 32)
    assert open_image_text("scenes-classes:n=80").classes is not None
    for text, words in (
        ("scenes:colour=3", "unknown option 'colour'"),
        ("scenes:n=many", "needs a whole number"),
        ("scenes:size=4", "size >= 32"),
    ):
        with pytest.raises(DataError, match=words):
            open_image_text(text)


def test_unknown_paths_and_formats(tmp_path: Path):
    with pytest.raises(DataError, match="no such file or folder; for the embedded set write 'scenes'"):
        open_image_text(tmp_path / "none")
    with pytest.raises(DataError, match=r"the format \.xls is unknown; known: \.jsonl"):
        open_image_text(write(tmp_path / "a.xls", "x"))


def test_the_fingerprint_sees_captions_labels_and_sizes_but_not_the_folder(folder: Path, tmp_path: Path):
    def make(**changes: object) -> str:
        values = {"image": ImageRef(folder / "0.png"), "captions": ("a",), "label": 1, "id": "x"} | changes
        return ImageTextSource([ImageText(**values)]).fingerprint()  # type: ignore[arg-type]

    moved = tmp_path / "moved"
    moved.mkdir()
    write(moved / "0.png", (folder / "0.png").read_bytes())
    assert make() == make(image=ImageRef(moved / "0.png"))
    write(moved / "0.png", (folder / "0.png").read_bytes() + b"x")
    variants = [make(), make(captions=("b",)), make(label=2), make(id="y"), make(image=ImageRef(moved / "0.png"))]
    assert len(set(variants)) == 5


def test_arrays_are_pictures_too():
    array = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
    reference = ImageRef(pixels=array, label="mine")
    assert torch.equal(reference.tensor(), torch.from_numpy(array).permute(2, 0, 1))
    assert torch.equal(to_tensor(reference.open()), reference.tensor())
    with pytest.raises(DataError, match=r"mine: want uint8 pixels .* got float64"):
        ImageRef(pixels=array.astype(float), label="mine").tensor()


@pytest.mark.parametrize(
    "path, images, captions, kind",
    [
        ("image-text/coco-mini/annotations/captions_karpathy.json", 332, 1661, "karpathy"),
        ("image-text/coco-mini", 332, 1661, "karpathy"),
        ("image-text/ikea-products", 900, 900, "manifest"),
        ("image-text/cc12m-sample", 32, 32, "manifest"),
        ("classification/cifar10", 5403, 5403, "folders"),
        ("classification/clothing-small", 1091, 1091, "folders"),
        ("classification/imagenet-sample", 200, 200, "manifest"),
        ("classification/mnist/t10k-images-idx3-ubyte.gz", 10_000, 10_000, "idx"),
    ],
)
def test_real_sets_open(shared_data: Path, path: str, images: int, captions: int, kind: str):
    source = open_image_text(shared_data / path)
    assert (len(source), sum(len(s.captions) for s in source), source.kind) == (images, captions, kind)
    assert source[-1].image.tensor().shape[0] == 3


def test_coco_mini_has_its_splits(shared_data: Path):
    source = open_image_text(shared_data / "image-text" / "coco-mini")
    assert len(source.split("train")) + len(source.split("val")) == 332
