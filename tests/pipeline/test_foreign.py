"""Tars of others: the index finds the samples that webdataset finds, whoever wrote the tar and whatever is wrong."""

import io
import json
import os
import pickle
import struct
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import webdataset
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from model.processing_genlip import load_rgb
from pipeline.foreign import CUT_SHORT, NOT_A_TAR, ForeignIndex, index_tar
from pipeline.shards import Sample, ShardWriter, parse_sample
from pipeline.store import Store
from pipeline.tar import split_name
from tests.stores import noise

WIDTH, HEIGHT = 40, 24
JPEG = noise(0, WIDTH, HEIGHT)
FORMATS = {"ustar": tarfile.USTAR_FORMAT, "gnu": tarfile.GNU_FORMAT, "pax": tarfile.PAX_FORMAT}

Members = Sequence[tuple[str, bytes]]


def _encode(ending: str) -> bytes:
    pixels = np.random.default_rng(1).integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)
    return bytes(cv2.imencode(ending, pixels)[1])


IMAGES = {"jpg": JPEG, "jpeg": noise(2, WIDTH, HEIGHT), "png": _encode(".png"), "webp": _encode(".webp")}


def _tar(members: Members, kind: str = "ustar") -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=FORMATS[kind]) as tar:
        for name, body in members:
            info = tarfile.TarInfo(name)
            info.size = len(body)
            if kind == "pax":
                info.mtime = 1.5  # makes a pax header for each member, as webdataset's writer does
            tar.addfile(info, io.BytesIO(body))
    return stream.getvalue()


def _sample(key: str, caption: str = "a cat", **further: bytes) -> list[tuple[str, bytes]]:
    return [(f"{key}.jpg", JPEG), (f"{key}.txt", caption.encode()), *((f"{key}.{e}", b) for e, b in further.items())]


def _index(folder: Path, tar: bytes, caption: str = "txt") -> ForeignIndex:
    path = folder / "a.tar"
    path.write_bytes(tar)
    return index_tar(str(path), len(tar), caption)


def _spans(index: ForeignIndex, tar: bytes) -> list[bytes]:
    return [tar[offset : offset + size] for offset, size in zip(index.offsets, index.sizes, strict=True)]


def _reasons(index: ForeignIndex) -> list[tuple[str, str]]:
    return [(one.key, one.reason) for one in index.left_out]


# ---------------------------------------------------------------- the same samples as webdataset


FOLDERS = st.sampled_from(["", "a/", "./", "v1.0/part.2/", "ü" * 60 + "/", "d" * 90 + "/" + "e" * 90 + "/"])
STEMS = st.text("0123456789abcDEF-_ é☃", min_size=1, max_size=120)
EXTRAS = st.sampled_from(["cls", "pyd", "seg.png", "npy", "JSON5", ""])


@st.composite
def _tars(draw: st.DrawFn) -> list[tuple[str, bytes]]:
    members: list[tuple[str, bytes]] = []
    keys = draw(st.lists(st.tuples(FOLDERS, STEMS).map("".join), max_size=6, unique=True))
    for key in keys:
        image = draw(st.sampled_from([*IMAGES, "gif", ""]))
        parts = {image: IMAGES.get(image, b"GIF89a")} if image else {}
        if draw(st.booleans()):
            parts["txt"] = draw(st.text(min_size=1).filter(lambda text: text.strip())).encode()
        if draw(st.booleans()):
            parts["json"] = json.dumps(draw(st.dictionaries(st.text(), st.integers(), max_size=3))).encode()
        for extra in draw(st.sets(EXTRAS, max_size=2)):
            parts[extra] = draw(st.binary(max_size=1100))
        for name in draw(st.permutations(sorted(parts))):
            written = name.upper() if draw(st.booleans()) else name
            members.append((f"{key}.{written}", parts[name]))
    return members


def _of_webdataset(path: Path) -> list[tuple[str, bytes, str, dict[str, Any]]]:
    """What webdataset yields, as far as it has an image and a caption."""
    found = []
    for entry in webdataset.WebDataset(str(path), shardshuffle=False, empty_check=False):
        image = next((entry[extension] for extension in IMAGES if extension in entry), None)
        if image is not None and "txt" in entry:
            meta = json.loads(entry.get("json", b"{}"))
            found.append((entry["__key__"], image, entry["txt"].decode(), meta))
    return found


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(_tars(), st.sampled_from(["gnu", "pax"]))
def test_the_spans_parsed_are_what_webdataset_yields(tmp_path: Path, members: Members, kind: str) -> None:
    tar = _tar(members, kind)
    index = _index(tmp_path, tar)
    samples = [parse_sample(span) for span in _spans(index, tar)]
    assert [(one.key, one.image, one.caption, one.meta) for one in samples] == _of_webdataset(tmp_path / "a.tar")
    assert index.keys == [one.key for one in samples]
    assert set(zip(index.widths, index.heights, strict=True)) <= {(WIDTH, HEIGHT)}
    assert {reason for _, reason in _reasons(index)} <= {"no_image", "no_caption"}


def test_names_of_all_lengths_in_every_format(tmp_path: Path) -> None:
    for kind, longest in {"ustar": 190, "gnu": 3000, "pax": 3000}.items():
        keys = [f"{'d' * (length // 2)}/{'f' * (length // 2)}" for length in (4, 96, 99, 180, longest)]
        tar = _tar([member for key in keys for member in _sample(key)], kind)
        index = _index(tmp_path, tar)
        assert index.keys == keys
        assert [parse_sample(span).key for span in _spans(index, tar)] == keys


def test_tars_of_the_webdataset_writers(tmp_path: Path) -> None:
    samples = [
        {"__key__": f"part.1/{n:05d}", "jpg": JPEG, "txt": f"number {n}", "json": {"n": n}, "cls": n} for n in range(5)
    ]
    with webdataset.TarWriter(str(tmp_path / "plain.tar")) as writer:
        for sample in samples:
            writer.write(sample)
    with webdataset.ShardWriter(str(tmp_path / "shard-%06d.tar"), maxcount=2, verbose=0) as writer:
        for sample in samples:
            writer.write(sample)
    for names in (["plain.tar"], sorted(path.name for path in tmp_path.glob("shard-*.tar"))):
        read = []
        for name in names:
            tar = (tmp_path / name).read_bytes()
            read += [parse_sample(span) for span in _spans(index_tar(str(tmp_path / name), len(tar), "txt"), tar)]
        assert [(one.key, one.image, one.caption, one.meta) for one in read] == [
            (sample["__key__"], JPEG, sample["txt"], sample["json"]) for sample in samples
        ]


def test_a_remote_tar_gives_the_same_index(tmp_path: Path) -> None:
    tar = _tar([member for n in range(50) for member in _sample(f"{n:03d}", json=b'{"n": 1}')], "pax")
    Store(f"memory://{tmp_path.name}").write("x/a.tar", tar)
    assert index_tar(f"memory://{tmp_path.name}/x/a.tar", len(tar), "txt") == _index(tmp_path, tar)


def test_a_tar_of_our_own_has_the_offsets_of_its_writer(tmp_path: Path) -> None:
    stream = io.BytesIO()
    writer = ShardWriter(stream)
    places = [writer.add(Sample(f"{n:020x}", JPEG, f"number {n}", {"n": n})) for n in range(3)]
    writer.close()
    index = _index(tmp_path, stream.getvalue())
    assert list(zip(index.offsets, index.sizes, strict=True)) == places


def test_directories_links_and_notes_are_passed_over(tmp_path: Path) -> None:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", pax_headers={"comment": "global"}) as tar:
        for kind, name in ((tarfile.DIRTYPE, "v1.0"), (tarfile.SYMTYPE, "b.jpg"), (tarfile.LNKTYPE, "c.jpg")):
            info = tarfile.TarInfo(name)
            info.type, info.linkname, info.size = kind, "v1.0/0.jpg", 0
            tar.addfile(info)
        for name, body in [("__meta__/a.jpg", JPEG), ("README", b"x"), *_sample("v1.0/0")]:
            info = tarfile.TarInfo(name)
            info.size = len(body)
            tar.addfile(info, io.BytesIO(body))
    index = _index(tmp_path, stream.getvalue())
    assert (index.keys, index.left_out) == (["v1.0/0"], [])


def test_nothing_is_unpickled(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> Any:
            return os.mkdir, (str(tmp_path / "sprung"),)

    body = pickle.dumps(Trap())
    tar = _tar([("0.pyd", body), ("0.pickle", body), *_sample("0", pkl=body, pth=body)])
    index = _index(tmp_path, tar)
    assert [parse_sample(span).caption for span in _spans(index, tar)] == ["a cat"]
    assert not (tmp_path / "sprung").exists()


def test_split_name_cuts_at_the_first_dot_after_the_last_slash() -> None:
    assert split_name("v1.0/00.SEG.Png") == ("v1.0/00", "seg.png")
    assert split_name("./00.jpg") == ("./00", "jpg")
    assert split_name("README") == ("", "")
    assert split_name("a/.hidden") == ("", "")


# ---------------------------------------------------------------- captions


def test_captions_from_a_field_of_the_json(tmp_path: Path) -> None:
    records: Sequence[Mapping[str, Any]] = [{"re.cap": "long ☃"}, {"re.cap": None}, {}, {"re.cap": " "}, {"re.cap": 3}]
    members = [
        member for n, record in enumerate(records) for member in _sample(str(n), json=json.dumps(record).encode())
    ]
    tar = _tar([*members, ("5.jpg", JPEG), ("5.json", json.dumps({"re.cap": "no txt"}).encode())])
    index = _index(tmp_path, tar, "json:re.cap")
    assert [parse_sample(span, "json:re.cap").caption for span in _spans(index, tar)] == ["long ☃", "no txt"]
    assert _reasons(index) == [(key, "no_caption") for key in "1234"]


@pytest.mark.parametrize(
    ("members", "reason"),
    [
        ([("0.txt", b"a")], "no_image"),
        ([("0.jpg", JPEG)], "no_caption"),
        ([("0.jpg", JPEG), ("0.txt", b" \n")], "no_caption"),
        ([("0.jpg", JPEG), ("0.txt", b"\xff")], "unreadable_text"),
        ([("0.jpg", JPEG), ("0.txt", b"a"), ("0.json", b"{")], "unreadable_text"),
        ([("0.jpg", JPEG), ("0.txt", b"a"), ("0.json", b"[]")], "unreadable_text"),
        ([("0.jpg", b""), ("0.txt", b"a")], "not_image"),
        ([("0.jpg", b"GIF89a" + bytes(99)), ("0.txt", b"a")], "not_image"),
        ([("0.jpg", JPEG[:-2]), ("0.txt", b"a")], "image_truncated"),
        ([("0.png", IMAGES["png"][:-12]), ("0.txt", b"a")], "image_truncated"),
        ([("0.png", b"\x89PNG\r\n\x1a\n" + struct.pack(">I4s4x", 13, b"IHDR")), ("0.txt", b"a")], "undecodable"),
        ([("0.webp", IMAGES["webp"][:30]), ("0.txt", b"a")], "image_truncated"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_cannot_be_trained_on_is_left_out_with_its_reason(tmp_path: Path, members: Members, reason: str) -> None:
    index = _index(tmp_path, _tar([*members, *_sample("1")]))
    assert (_reasons(index), index.keys) == ([("0", reason)], ["1"])


# ---------------------------------------------------------------- sizes


def _turned_images() -> dict[str, bytes]:
    pixels = Image.fromarray(np.random.default_rng(3).integers(0, 256, (600, 900, 3), np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6
    images = {}
    for name, options in {
        "plain jpeg": {"format": "jpeg"},
        "progressive": {"format": "jpeg", "progressive": True},
        "profile first": {"format": "jpeg", "icc_profile": bytes(150_000)},
        "profile of half a megabyte": {"format": "jpeg", "icc_profile": bytes(500_000)},
        "turned jpeg": {"format": "jpeg", "exif": exif},
        "turned png": {"format": "png", "exif": exif},
        "turned webp": {"format": "webp", "exif": exif},
        "lossless webp": {"format": "webp", "lossless": True},
    }.items():
        stream = io.BytesIO()
        pixels.save(stream, **options)
        images[name] = stream.getvalue()
    return images


@pytest.mark.parametrize(
    ("name", "image"), _turned_images().items(), ids=lambda value: value if isinstance(value, str) else ""
)
def test_the_size_is_the_one_that_training_decodes(tmp_path: Path, name: str, image: bytes) -> None:
    index = _index(tmp_path, _tar([("0.jpg", image), ("0.txt", b"a")]))
    assert list(zip(index.widths, index.heights, strict=True)) == [load_rgb(image).size]
    assert index.widths[0] == (600 if name.startswith("turned") else 900)


def test_an_image_that_only_its_xmp_turns_is_left_out(tmp_path: Path) -> None:
    stream = io.BytesIO()
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><a tiff:Orientation="6"/></x:xmpmeta>'
    Image.new("RGB", (300, 200)).save(stream, "jpeg", xmp=xmp)
    assert load_rgb(stream.getvalue()).size == (200, 300)
    index = _index(tmp_path, _tar([("0.jpg", stream.getvalue()), ("0.txt", b"a")]))
    assert _reasons(index) == [("0", "orientation_in_xmp")]


@pytest.mark.parametrize("image", [noise(0, 3000, 2000), JPEG + bytes(1_000_000)], ids=["large", "with a trailer"])
def test_of_a_jpeg_only_the_beginning_is_read(tmp_path: Path, image: bytes) -> None:
    path = tmp_path / "a.tar"
    path.write_bytes(_tar([("0.jpg", image), ("0.txt", b"a")]))
    before = _bytes_read()
    assert index_tar(str(path), path.stat().st_size, "txt").keys == ["0"]
    assert _bytes_read() - before < 20_000 < len(image)


def _bytes_read() -> int:
    """By this process, from files, whether or not they were in the page cache."""
    return int(Path("/proc/self/io").read_text().split("rchar: ")[1].split()[0])


# ---------------------------------------------------------------- damage


def test_a_tar_cut_anywhere_keeps_its_whole_samples(tmp_path: Path) -> None:
    tar = _tar([member for n in range(3) for member in _sample(str(n))])
    whole = _index(tmp_path, tar)
    ends = [offset + size for offset, size in zip(whole.offsets, whole.sizes, strict=True)]
    for num_bytes in range(512, ends[-1] + 1, 256):
        index = _index(tmp_path, tar[:num_bytes])
        assert index.keys == whole.keys[: sum(end <= num_bytes for end in ends)]
        assert index.left_out[-1].reason == CUT_SHORT
        assert ends[len(index.keys) - 1] <= index.left_out[-1].offset <= num_bytes if index.keys else True
        assert {one.reason for one in index.left_out[:-1]} <= {"sample_cut_short", "no_caption"}


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data(), st.sampled_from(["ustar", "gnu", "pax"]))
def test_damage_is_never_an_error_and_what_is_indexed_can_be_parsed(
    tmp_path: Path, data: st.DataObject, kind: str
) -> None:
    tar = bytearray(_tar([member for n in range(3) for member in _sample(f"{'long' * 30}/{n}", json=b"{}")], kind))
    for _ in range(data.draw(st.integers(1, 4))):
        start = data.draw(st.integers(0, len(tar) - 1))
        tar[start : start + 20] = data.draw(st.binary(min_size=1, max_size=20))
    index = _index(tmp_path, bytes(tar))
    assert [parse_sample(span).key for span in _spans(index, bytes(tar))] == index.keys


@pytest.mark.parametrize(
    "body", [b"", b"x" * 5000, b"\x1f\x8b" + bytes(3000), b"PAR1" + bytes(600), bytes(600)], ids=str
)
def test_what_is_no_tar_says_so(tmp_path: Path, body: bytes) -> None:
    index = _index(tmp_path, body)
    assert (index.keys, _reasons(index)) == ([], [("", NOT_A_TAR)])


def test_a_tar_without_members_is_one(tmp_path: Path) -> None:
    assert _index(tmp_path, _tar([])) == ForeignIndex()


def test_a_file_that_is_gone_is_an_error_of_the_system(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        index_tar(str(tmp_path / "none.tar"), 1024, "txt")
