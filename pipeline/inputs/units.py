"""The rows of one unit, whatever it is made of."""

from pipeline.inputs.adopt import read_images
from pipeline.inputs.files import READ_ERRORS, InputFile, unreadable
from pipeline.inputs.rows import Row, Unit, rows_of
from pipeline.inputs.spec import SourceSpec
from pipeline.inputs.tables import read_slice

__all__ = ["Row", "Unit", "read_rows"]


def read_rows(unit: Unit, spec: SourceSpec) -> list[Row]:
    """The unit's rows in order, reading only what holds them: row groups of a table, or members of a tar.

    Raises:
        UserError: The unit's file cannot be read.
    """
    if unit.kind == "images":
        return read_images(unit, spec)
    try:
        table = read_slice(unit.file, unit.first_row, unit.num_rows)
    except READ_ERRORS as error:
        raise unreadable(InputFile(unit.file, "parquet", "", 0), error) from error
    return rows_of(table, spec.columns)
