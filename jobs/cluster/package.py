"""What a Ray job gets along: the files of the current folder that are not ignored, genlip itself, and the recipe."""

import os
import zipfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from pathspec import GitIgnoreSpec

from pipeline.errors import UserError

MAX_BYTES = 100 << 20
"""Ray keeps the package in the memory of its head, and refuses larger ones there with a less helpful message."""
RECIPE_FILE = "submitted-recipe.yaml"
NUM_SHOWN = 5

_IGNORE_FILES = (".gitignore", ".rayignore")
_ALWAYS_IGNORED = GitIgnoreSpec.from_lines([".git/", ".venv/", "__pycache__/"])
_CODE = Path(__file__).resolve().parents[2]
_PACKAGES = ("pipeline", "model", "train", "jobs")


def shipped_files(folder: Path) -> Iterator[Path]:
    """The files below a folder, but those that a .gitignore or .rayignore on the way to them names; no links."""
    yield from _walk(folder, [(folder, _ALWAYS_IGNORED)])


def pack(folder: Path, recipe: str, to: Path) -> Path:
    """Make the working directory of a job: a zip.

    Args:
        folder: Whose files go along, for plug-ins and whatever else the recipe names by a relative path.
        recipe: The resolved recipe's text; the command reads it as `RECIPE_FILE`.
        to: The folder that gets the zip.

    Raises:
        UserError: The files are too large together; the largest entries are named.
    """
    files = {path.relative_to(folder): path for path in shipped_files(folder)}
    if not (folder / "jobs" / "cli.py").exists():  # not a checkout: genlip comes from where it runs here
        code = (path for name in _PACKAGES for path in shipped_files(_CODE / name))
        files |= {path.relative_to(_CODE): path for path in code}
    _require_small({name: path.stat().st_size for name, path in files.items()}, folder)
    package = to / "working_dir.zip"
    with zipfile.ZipFile(package, "w", zipfile.ZIP_DEFLATED, strict_timestamps=False) as archive:
        for name, path in files.items():
            archive.write(path, name)
        archive.writestr(RECIPE_FILE, recipe)
    return package


def _walk(folder: Path, ignored: list[tuple[Path, GitIgnoreSpec]]) -> Iterator[Path]:
    own = [folder / name for name in _IGNORE_FILES]
    ignored = ignored + [(folder, _read(path)) for path in own if path.is_file()]
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        path = Path(entry.path)
        is_folder = entry.is_dir(follow_symlinks=False)
        if any(spec.match_file(f"{path.relative_to(at)}{'/' * is_folder}") for at, spec in ignored):
            continue
        if is_folder:
            yield from _walk(path, ignored)
        elif entry.is_file(follow_symlinks=False):
            yield path


def _read(path: Path) -> GitIgnoreSpec:
    return GitIgnoreSpec.from_lines(path.read_text(encoding="utf-8").splitlines())


def _require_small(sizes: dict[Path, int], folder: Path) -> None:
    total = sum(sizes.values())
    if total <= MAX_BYTES:
        return
    by_entry: Counter[str] = Counter()
    for path, size in sizes.items():
        by_entry["/".join(path.parts[:2])] += size
    largest = ", ".join(f"{name} {size / 2**20:,.1f} MiB" for name, size in by_entry.most_common(NUM_SHOWN))
    raise UserError(
        f"the job's files come to {total / 2**20:,.1f} MiB, {MAX_BYTES >> 20} MiB may be sent to a cluster",
        where=str(folder),
        why=f"the largest: {largest}",
        next_step=f"name what the job does not need in {folder / '.rayignore'}, or submit from another folder",
    )
