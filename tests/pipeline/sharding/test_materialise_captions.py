"""Further captions travel from annotation columns into the shard's samples."""

from collections.abc import Mapping

import pyarrow as pa
import pytest

from pipeline.annotate.columns import Annotations, read_stored, write_annotations
from pipeline.curate.rows import Rows, open_rows
from pipeline.each import in_turn
from pipeline.errors import UserError
from pipeline.ledger import committed_units
from pipeline.recipe import ShardSpec
from pipeline.sharding.dataset import materialise
from pipeline.shards import Sample
from tests.pipeline.sharding.selections import key_of, make, numbered_store, read_dataset, write_selection

FOLDER = "describe-0"
UNITS = [range(8), range(8, 16)]


def _annotated(texts: Mapping[str, Mapping[int, str | None]]) -> Rows:
    """A selected store with these columns; a sample that a column does not name has a null."""
    store = numbered_store(UNITS)
    write_selection(store, "d")
    for unit_name in committed_units(store):
        unit = read_stored(store, unit_name)
        numbers = [int(key, 16) for key in unit.rows["key"].to_pylist()]
        columns = {name: pa.array([of.get(number) for number in numbers], pa.string()) for name, of in texts.items()}
        write_annotations(store, FOLDER, unit, Annotations(pa.table(columns), {}))
    types = open_rows(store, []).types | dict.fromkeys(texts, "string")
    return Rows(store, dict.fromkeys(texts, FOLDER), types)


def _samples(rows: Rows, captions: tuple[str, ...]) -> dict[int, Sample]:
    spec = ShardSpec(name="d", shard_samples=7, captions=captions)
    assert materialise(rows, "d", spec, 1, in_turn).num_refused == 0
    return {int(sample.key, 16): sample for sample in read_dataset(rows.store, "d")}


def test_further_captions_are_in_the_samples_json_and_nothing_else_changes() -> None:
    rows = _annotated({"short": {3: "ein Bär", 4: "a cup"}, "long": {3: "a brown bear in the snow"}})
    made = _samples(rows, ("short", "long"))
    plain = numbered_store(UNITS)
    write_selection(plain, "d")
    make(plain)
    for sample in read_dataset(plain, "d"):
        captions = made[int(sample.key, 16)].meta.pop("captions", {})
        assert made[int(sample.key, 16)] == sample
        number = int(sample.key, 16)
        wanted = {3: {"short": "ein Bär", "long": "a brown bear in the snow"}, 4: {"short": "a cup"}}
        assert captions == wanted.get(number, {})


def test_equal_captions_are_left_out() -> None:
    rows = _annotated({"short": {3: f"the picture {key_of(3)}", 4: "a cup"}, "long": {4: "a cup", 5: "two cups"}})
    made = _samples(rows, ("short", "long"))
    assert "captions" not in made[3].meta
    assert made[4].meta["captions"] == {"short": "a cup"}
    assert made[5].meta["captions"] == {"long": "two cups"}


def test_only_the_named_columns_are_taken() -> None:
    made = _samples(_annotated({"short": {3: "a bear"}, "long": {3: "a brown bear"}}), ("long",))
    assert made[3].meta["captions"] == {"long": "a brown bear"}


@pytest.mark.parametrize("column", ["recaption", "width"])
def test_a_column_that_is_no_text_is_refused_before_anything_is_written(column: str) -> None:
    rows = _annotated({"short": {}})
    with pytest.raises(UserError, match=f"no column with text is called '{column}'") as caught:
        _samples(rows, (column,))
    assert "short" in caught.value.message
    assert "genlip annotate RECIPE" in caught.value.message
    assert rows.store.names("shards/d", "") == []
