"""`meta`: the input's carried-along columns (KEY.json of a sample) as annotation columns, to be used in rules."""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import pyarrow as pa
from pydantic import field_validator

from pipeline.annotate.annotator import Annotator, Batch, Column, annotator

_ARROW = {"string": pa.string(), "float": pa.float64(), "int": pa.int64(), "bool": pa.bool_()}
_PYTHON: dict[str, tuple[type, ...]] = {"string": (str,), "float": (int, float), "int": (int,), "bool": (bool,)}
_INT64_MIN, _INT64_MAX = -(2**63), 2**63 - 1


@annotator("meta")
class Meta(Annotator):
    """Values that came with the input, such as a similarity score that others have computed."""

    batch_samples: ClassVar[int] = 1024

    fields: dict[str, Literal["string", "float", "int", "bool"]]
    """Name and type of each value. `a.b` is the value b inside of a, and becomes the column `a_b`."""

    @field_validator("fields")
    @classmethod
    def _columns_differ(cls, fields: dict[str, str]) -> dict[str, str]:
        if not fields or len({_column(name) for name in fields}) < len(fields):
            raise ValueError("name at least one value, and no two that become the same column")
        return fields

    def columns(self) -> dict[str, pa.DataType]:
        """A value that a sample lacks, or has in another type, is null."""
        return {_column(name): _ARROW[kind] for name, kind in self.fields.items()}

    def annotate(self, batch: Batch) -> Mapping[str, Column]:
        return {
            _column(name): [_typed(_value(meta, name), kind) for meta in batch.meta]
            for name, kind in self.fields.items()
        }


def _column(name: str) -> str:
    return name.replace(".", "_")


def _value(meta: Mapping[str, Any], name: str) -> Any:
    if name in meta or "." not in name:
        return meta.get(name)
    first, rest = name.split(".", 1)
    inner = meta.get(first)
    return _value(inner, rest) if isinstance(inner, Mapping) else None


def _typed(value: Any, kind: str) -> Any:
    # In Python, True is an int as well.
    if not isinstance(value, _PYTHON[kind]) or (isinstance(value, bool) and kind != "bool"):
        return None
    # JSON's integers know no bounds.
    if isinstance(value, int) and not _INT64_MIN <= value <= _INT64_MAX:
        return None
    return value * 1.0 if isinstance(value, int) and kind == "float" else value
