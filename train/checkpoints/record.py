"""The file COMMITTED: what a checkpoint holds, with a checksum of every file and of itself."""

import hashlib
import json
from typing import Any

from pydantic import BaseModel, ConfigDict

from pipeline.errors import StoreError
from pipeline.store import Store
from train.checkpoints.state import TrainState

COMMITTED = "COMMITTED"
FORMAT_VERSION = 1


class Damaged(Exception):
    """A checkpoint, or a file of it, is not what was written."""


class FileFacts(BaseModel):
    """What a file must be."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    size: int
    sha256: str


class Parameter(BaseModel):
    """Where a parameter's master weight and moments are."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    shape: tuple[int, ...]
    file: str


class Record(BaseModel):
    """All about a checkpoint but the numbers themselves."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    format_version: int = FORMAT_VERSION
    state: TrainState
    optimizer_steps: int = 0
    """Updates made, which Adam's bias correction counts."""
    kinds: tuple[str, ...] = ()
    """The tensors of each parameter: KIND/NAME in its file."""
    parameters: dict[str, Parameter] = {}
    files: dict[str, FileFacts] = {}
    """By their names inside the checkpoint's folder."""
    made_of: dict[str, Any] = {}
    """What must be the same in a run that resumes from it."""
    written_by: dict[str, Any] = {}
    """Versions, processes, ZeRO stage: for people."""
    keep: bool = False
    """Never pruned."""


def write_record(store: Store, name: str, record: Record) -> None:
    """Commit a checkpoint: from here on it counts."""
    content = record.model_dump(mode="json")
    store.write_json(f"{name}/{COMMITTED}", {"sha256": _digest(content), "record": content})


def read_record(store: Store, name: str) -> Record:
    """The record of a committed checkpoint.

    Raises:
        Damaged: It cannot be read, is of another version, or does not fit its own checksum.
        StoreError: The store fails, which says nothing of the checkpoint.
    """
    try:
        content = store.read_json(f"{name}/{COMMITTED}")
        if _digest(content["record"]) != content["sha256"]:
            raise Damaged(f"{COMMITTED} does not fit its checksum")
        if (version := content["record"]["format_version"]) != FORMAT_VERSION:
            raise Damaged(f"it has format {version}, this version reads {FORMAT_VERSION}")
        return Record.model_validate(content["record"])
    except StoreError:
        raise
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise Damaged(f"{COMMITTED} cannot be read: {error}") from error


def _digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
