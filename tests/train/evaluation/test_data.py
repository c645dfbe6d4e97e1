"""Every kind of data, small and real: what is read of it, what is left out, what is refused."""

import io
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from jobs.demo.corpus import FIXTURES
from model import load_rgb
from pipeline.curate.spec import CurateSpec
from pipeline.errors import UserError
from pipeline.foreign_dataset import begin_index, finish_index, write_foreign_index
from pipeline.foreign_files import list_row_groups, list_tars
from pipeline.recipe import ShardSpec
from pipeline.row_groups import TableColumns
from pipeline.shards import Sample, ShardWriter
from pipeline.store import Store
from tests.stores import Stored, curate_in_turn, make_store, noise
from train.data.dataset import first_samples, open_dataset
from train.evaluation.data import NEAR_DUPLICATE, NOT_DECODED, TOO_LONG, read_eval_data, read_run_data
from train.evaluation.samples import Labelled


def again(image: bytes, scale: float, quality: int) -> bytes:
    """The same picture as another file."""
    picture, stream = load_rgb(image), io.BytesIO()
    size = (round(scale * picture.width), round(scale * picture.height))
    picture.resize(size, Image.Resampling.BILINEAR).save(stream, "JPEG", quality=quality)
    return stream.getvalue()


def put(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def keys(samples: list[Labelled]) -> list[str]:
    return [one.key for one in samples]


# Stores


def own_store(root: Path, **shards: Any) -> Store:
    samples = [Stored(f"{number:04d}", meta={"class_name": f"class {number % 3}"}) for number in range(40)]
    store = make_store([samples], str(root))
    spec = ShardSpec(name="demo", holdout=0.4, shard_samples=10, check="none", **shards)
    curate_in_turn(store, CurateSpec(), spec, seed=0)
    return store


def test_a_runs_own_store(tmp_path: Path) -> None:
    store = own_store(tmp_path / "store")
    data = read_run_data(store, "demo", limit=8)
    first = list(first_samples(open_dataset(store, "demo-heldout"), 8))
    assert keys(data.heldout) == [sample.key for sample in first]
    assert len(data.training) == open_dataset(store, "demo").num_samples
    one = data.heldout[0]
    number = int(one.key)
    assert (one.caption, one.class_name) == (f"the picture {one.key}", f"class {number % 3}")
    assert data.skipped == {}
    assert len(read_run_data(store, "demo", limit=8, max_training=3).training) == 3
    assert read_run_data(store, "demo", limit=8, max_training=0).training == []


def test_a_store_by_its_name_and_its_datasets(tmp_path: Path) -> None:
    store = own_store(tmp_path / "store")
    asked = read_run_data(store, "demo", limit=5)
    for where in (store.root, f"{store.root}#demo", f"file://{store.root}#demo", f"{store.root}#demo-heldout"):
        assert read_eval_data(where, limit=5) == asked
    curate_in_turn(store, CurateSpec(), ShardSpec(name="more"), seed=0)
    with pytest.raises(UserError, match=r"2 datasets[\s\S]*demo, more[\s\S]*store#demo"):
        read_eval_data(store.root, limit=5)
    with pytest.raises(UserError, match="no such shards"):
        read_eval_data(f"{store.root}#missing", limit=5)


def test_nothing_held_out_of_a_run(tmp_path: Path) -> None:
    store = make_store([[Stored(f"{number:04d}") for number in range(9)]], str(tmp_path))
    curate_in_turn(store, CurateSpec(), ShardSpec(name="demo"), seed=0)
    with pytest.raises(UserError, match=r"shards\.holdout=0\.1"):
        read_run_data(store, "demo", limit=5)


def test_tars_of_others_are_split_by_the_content_of_images(tmp_path: Path) -> None:
    copies = {number: noise(number % 20) for number in range(60)}  # each image three times, under other keys
    (tmp_path / "cc12m").mkdir()
    with open(tmp_path / "cc12m" / "00000.tar", "wb") as stream:
        writer = ShardWriter(stream)
        for number, image in copies.items():
            writer.add(Sample(f"{number:09d}", image, f"thing {number}", {}))
        writer.close()
    with pytest.raises(UserError, match="genlip index"):
        read_eval_data(str(tmp_path / "cc12m"), limit=9)
    store = Store(str(tmp_path / "store"))
    for job in begin_index(store, "cc", str(tmp_path / "cc12m"), "txt", list_tars(str(tmp_path / "cc12m"), store), ""):
        write_foreign_index(job, store)
    finish_index(store, "cc")
    data = read_eval_data(store.root, limit=100)
    assert len(data.heldout) + len(data.training) == 60
    assert not {one.image for one in data.heldout} & {one.image for one in data.training}
    assert data.skipped == {}


def test_a_table_of_others(tmp_path: Path) -> None:
    table = pa.table({"image": [noise(number) for number in range(30)], "text": [f"thing {n}" for n in range(30)]})
    pq.write_table(table, tmp_path / "photos.parquet")
    store, columns = Store(str(tmp_path / "store")), TableColumns("image", "text")
    source = str(tmp_path / "photos.parquet")
    for job in begin_index(store, "t", source, "text", list_row_groups(source, store, columns), "image"):
        write_foreign_index(job, store)
    finish_index(store, "t")
    data = read_eval_data(f"{store.root}#t", limit=100)
    assert {one.caption for one in data.heldout + data.training} == {f"thing {number}" for number in range(30)}


# Folders of classes


def imagenet(root: Path, num_images: int = 4) -> None:
    for number in range(num_images):
        for part, first in (("train", 0), ("val", 500)):
            put(root / part / "n01" / f"{part}_{number}.JPEG", noise(first + number))
            put(root / part / "n02" / f"{part}_{number}.JPEG", noise(first + 100 + number))


def test_train_and_val_folders_with_readable_names_and_masks(tmp_path: Path) -> None:
    imagenet(tmp_path)
    put(tmp_path / "class_names.txt", b"n01 tench, Tinca tinca\nn02  goldfish\nn03 not here\n")
    put(tmp_path / "masks" / "val" / "n01" / "val_0.png", b"a mask")
    data = read_eval_data(str(tmp_path), limit=100)
    assert data.class_names == ("tench, Tinca tinca", "goldfish")
    assert {one.class_name for one in data.heldout if "n01" in one.key} == {"tench, Tinca tinca"}
    assert sorted(keys(data.heldout)) == [f"val/n0{c}/val_{number}.JPEG" for c in (1, 2) for number in range(4)]
    assert {key.split("/")[0] for key in keys(data.training)} == {"train"}
    assert {one.key: one.mask for one in data.heldout if one.mask} == {"val/n01/val_0.JPEG": b"a mask"}


def test_a_few_images_are_of_all_classes_and_always_the_same(tmp_path: Path) -> None:
    imagenet(tmp_path, num_images=20)
    put(tmp_path / "class_names.json", json.dumps({"n01": "tench", "n02": "goldfish"}).encode())
    few, all_of_them = (read_eval_data(str(tmp_path), limit=limit, max_training=12) for limit in (12, 100))
    assert few.heldout == all_of_them.heldout[:12]
    assert {one.class_name for one in few.heldout} == {one.class_name for one in few.training} == {"tench", "goldfish"}


def test_class_folders_alone_are_split_by_content(tmp_path: Path) -> None:
    for number in range(40):
        put(tmp_path / "red_fox" / f"{number}.jpg", noise(number))
        put(tmp_path / "owl" / f"{number}.jpg", noise(100 + number))
        put(tmp_path / "owl" / f"copy of {number}.jpg", noise(100 + number))
    put(tmp_path / "masks" / "owl" / "3.png", b"a mask")
    data = read_eval_data(str(tmp_path), limit=1000)
    assert data.class_names == ("owl", "red fox")
    assert len(data.heldout) + len(data.training) == 120
    assert 0 < len(data.heldout) < len(data.training)
    assert not {one.image for one in data.heldout} & {one.image for one in data.training}


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ("n01 crane\nn02 crane\n", r"same name: n01 \(crane\), n02 \(crane\)"),
        ("n01 crane\nn02 \n", "no class name for n02"),
        ("n01 crane\n", "no class name for n02"),
    ],
)
def test_names_that_are_no_names(tmp_path: Path, names: str, message: str) -> None:
    imagenet(tmp_path)
    put(tmp_path / "class_names.txt", names.encode())
    with pytest.raises(UserError, match=message):
        read_eval_data(str(tmp_path), limit=5)


@pytest.mark.parametrize("names", ["[]", '{"n01": 3}', "{"])
def test_a_file_of_names_that_is_none(tmp_path: Path, names: str) -> None:
    imagenet(tmp_path)
    put(tmp_path / "class_names.json", names.encode())
    with pytest.raises(UserError, match=r"class_names\.json"):
        read_eval_data(str(tmp_path), limit=5)


def test_a_class_without_images(tmp_path: Path) -> None:
    imagenet(tmp_path)
    (tmp_path / "val" / "n03").mkdir()
    with pytest.raises(UserError, match="no images for n03"):
        read_eval_data(str(tmp_path), limit=5)


# Caption files


def coco(file: Path, captions: dict[str, list[str]]) -> None:
    images = [{"id": number, "file_name": name} for number, name in enumerate(captions)]
    annotations = [
        {"id": 10 * number + place, "image_id": number, "caption": text}
        for number, texts in enumerate(captions.values())
        for place, text in enumerate(texts)
    ]
    put(file, json.dumps({"images": images, "annotations": annotations, "info": {}}).encode())


def test_coco_captions_with_and_without_a_training_part(tmp_path: Path) -> None:
    coco(
        tmp_path / "annotations" / "captions_val2017.json",
        {"v0.jpg": ["A dog. ", "One\n dog"], "v1.jpg": ["A cat"], "v2.jpg": [], "v3.jpg": ["gone"]},
    )
    for number in range(3):
        put(tmp_path / "val2017" / f"v{number}.jpg", noise(number))
    data = read_eval_data(str(tmp_path), limit=10)
    assert {one.key: one.captions for one in data.heldout} == {"v0.jpg": ("A dog.", "One dog"), "v1.jpg": ("A cat",)}
    assert data.skipped == {"no caption": 1, "image file is missing": 1}
    assert data.training == []
    coco(tmp_path / "annotations" / "captions_train2017.json", {"t0.jpg": ["A cup"]})
    assert read_eval_data(str(tmp_path), limit=10).training == []
    put(tmp_path / "train2017" / "t0.jpg", noise(9))
    again_read = read_eval_data(str(tmp_path / "annotations" / "captions_val2017.json"), limit=10)
    assert keys(again_read.training) == ["t0.jpg"]
    assert again_read.heldout == data.heldout


def karpathy(file: Path, splits: dict[str, str], folder: str) -> None:
    images = [
        {"filename": name, "split": split, "sentences": [{"raw": f"{name} {place}."} for place in range(5)]}
        | ({"filepath": folder} if folder else {})
        for name, split in splits.items()
    ]
    put(file, json.dumps({"images": images, "dataset": "x"}).encode())


@pytest.mark.parametrize("folder", ["val2014", ""])
def test_karpathys_splits(tmp_path: Path, folder: str) -> None:
    splits = {"a.jpg": "train", "b.jpg": "restval", "c.jpg": "val", "d.jpg": "test"}
    karpathy(tmp_path / "dataset_coco.json", splits, folder)
    for number, name in enumerate(splits):
        put(tmp_path / "images" / folder / name, noise(number))
    data = read_eval_data(str(tmp_path), limit=10)
    assert [Path(key).name for key in keys(data.heldout)] == ["d.jpg"]
    assert data.heldout[0].captions == tuple(f"d.jpg {place}." for place in range(5))
    assert sorted(Path(key).name for key in keys(data.training)) == ["a.jpg", "b.jpg"]


def test_without_test_images_karpathys_val_is_measured(tmp_path: Path) -> None:
    karpathy(tmp_path / "dataset_flickr30k.json", {"a.jpg": "train", "c.jpg": "val"}, "")
    put(tmp_path / "flickr30k-images" / "c.jpg", noise(1))
    data = read_eval_data(str(tmp_path / "dataset_flickr30k.json"), limit=10)
    assert keys(data.heldout) == ["c.jpg"]
    assert data.skipped == {"image file is missing (training)": 1}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not JSON"),
        ("[1]", "not a caption file"),
        ('{"images": [{"filename": "a.jpg"}]}', "lacks a field[\\s\\S]*split"),
        ('{"images": [{"id": 1}], "annotations": []}', "lacks a field[\\s\\S]*file_name"),
        (
            '{"images": [{"id": 1, "file_name": "a.jpg"}], "annotations": []}',
            "images of the caption",
        ),
    ],
)
def test_caption_files_that_cannot_be_read(tmp_path: Path, content: str, message: str) -> None:
    put(tmp_path / "captions_val.json", content.encode())
    with pytest.raises(UserError, match=message):
        read_eval_data(str(tmp_path), limit=5)


# What is left out


def test_copies_and_near_copies_of_training_images_are_not_measured(tmp_path: Path) -> None:
    imagenet(tmp_path)
    pictures = [file.read_bytes() for file in sorted((FIXTURES / "images").iterdir())[:2]]
    put(tmp_path / "train" / "n01" / "large.webp", pictures[0])
    put(tmp_path / "train" / "n02" / "fine.webp", pictures[1])
    put(tmp_path / "val" / "n01" / "copy.jpg", noise(0))
    put(tmp_path / "val" / "n02" / "small.jpg", again(pictures[0], 0.5, 90))
    put(tmp_path / "val" / "n02" / "coarse.jpg", again(pictures[1], 1, 60))
    data = read_eval_data(str(tmp_path), limit=100)
    assert data.skipped == {NEAR_DUPLICATE: 3}
    assert len(data.heldout) == 8
    # Those that are left out do not count against the limit.
    assert len(read_eval_data(str(tmp_path), limit=8).heldout) == 8


def test_images_that_no_model_takes_are_counted(tmp_path: Path) -> None:
    imagenet(tmp_path)
    put(tmp_path / "val" / "n01" / "cut.jpg", noise(7, 320, 240)[:900])
    put(tmp_path / "val" / "n01" / "text.png", b"no image")
    put(tmp_path / "val" / "n01" / "line.jpg", noise(7, 500, 2))
    put(tmp_path / "train" / "n01" / "empty.png", b"")
    data = read_eval_data(str(tmp_path), limit=100)
    assert data.skipped == {NOT_DECODED: 2, TOO_LONG: 1, f"{NOT_DECODED} (training)": 1}
    assert len(data.heldout) == 8
    assert len(data.training) == 8


def test_nothing_left_to_measure(tmp_path: Path) -> None:
    put(tmp_path / "train" / "owl" / "a.jpg", noise(1))
    put(tmp_path / "val" / "owl" / "b.jpg", noise(1))
    put(tmp_path / "val" / "owl" / "c.jpg", b"")
    with pytest.raises(UserError, match=r"no held-out image(?=[\s\S]*1 near-duplicate)(?=[\s\S]*1 cannot be decoded)"):
        read_eval_data(str(tmp_path), limit=5)


@pytest.mark.parametrize("name", ["missing", "table.tsv", "empty"])
def test_places_without_data(tmp_path: Path, name: str) -> None:
    put(tmp_path / "table.tsv", b"url\tcaption\n")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=name):
        read_eval_data(str(tmp_path / name), limit=5)
