"""Gets packages from the npm registry and from Debian into a cache folder; nothing is installed, no root is needed."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote

from pipeline.errors import EXIT_ENVIRONMENT

TIMEOUT_S = 300.0
# npm's own defaults wait more than a minute before they give up on a registry that is not there.
NPM_FLAGS = ("--loglevel=error", "--fetch-retries=1", "--fetch-retry-mintimeout=1000", "--fetch-retry-maxtimeout=5000")
HOW_WITHOUT = "or use the corpus that ships with genlip (tier 'fixtures')"


class RegistryUnavailable(RuntimeError):
    """A package cannot be had: its client is missing, fails or takes too long.

    Attributes:
        what: what was wanted.
        why: the reason, in the client's own words where there are any.
        next_step: what the user can do.
    """

    exit_code = EXIT_ENVIRONMENT

    def __init__(self, what: str, why: str, next_step: str) -> None:
        super().__init__(f"cannot get {what}: {why}. Next: {next_step}")
        self.what = what
        self.why = why
        self.next_step = next_step


@dataclass(frozen=True)
class Package:
    """A package in the cache.

    Attributes:
        sha256: of the archive as it was downloaded.
        folder: where its files lie.
    """

    registry: str
    name: str
    version: str
    sha256: str
    num_bytes: int
    folder: Path


def default_cache() -> Path:
    """Returns ``$XDG_CACHE_HOME/genlip``, or ``~/.cache/genlip``."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "genlip"


def get_package(spec: str, cache: Path, timeout_s: float = TIMEOUT_S) -> Package:
    """Returns a package from the cache, after downloading and unpacking it there on first use.

    Args:
        spec: ``npm:NAME@VERSION`` or ``debian:NAME``.
        cache: folder for unpacked packages; two processes may share it.
        timeout_s: limit for each call of a registry client.

    Raises:
        RegistryUnavailable: the client is missing, fails or takes too long.
        ValueError: the spec names no known registry.
    """
    registry, _, wanted = spec.partition(":")
    if registry not in {"npm", "debian"}:
        raise ValueError(f"package {spec!r}: use npm:NAME@VERSION or debian:NAME")
    cache = cache.resolve()  # the clients run in another folder
    entry = cache / f"{registry}-{wanted.lstrip('@').replace('/', '-')}"
    if not (entry / "PACKAGE.json").is_file():
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache, prefix=".part-") as work:
            new = Path(work) / "entry"
            new.mkdir()
            facts = _npm(wanted, new, timeout_s) if registry == "npm" else _debian(wanted, new, cache, timeout_s)
            (new / "PACKAGE.json").write_text(json.dumps(facts, indent=1), encoding="utf-8")
            try:
                new.rename(entry)
            except OSError:
                if not (entry / "PACKAGE.json").is_file():  # else another process was faster
                    raise
    facts = json.loads((entry / "PACKAGE.json").read_text(encoding="utf-8"))
    return Package(**facts, folder=entry / "content" / ("package" if registry == "npm" else ""))


def _npm(wanted: str, entry: Path, timeout_s: float) -> dict[str, str | int]:
    next_step = f"install Node.js (the `npm` client) or check the network and `npm config get registry`, {HOW_WITHOUT}"
    _run(["npm", "pack", wanted, *NPM_FLAGS], entry, f"npm package {wanted}", next_step, timeout_s)
    archive = next(entry.glob("*.tgz"))
    _unpack(archive, entry / "content")
    name, _, version = wanted.rpartition("@")
    return _facts("npm", name, version, archive)


def _unpack(archive: Path, folder: Path) -> None:
    """The archive's files, and nothing outside the folder. Debian 12's Python 3.11.2 knows no extraction filter."""
    with tarfile.open(archive) as tar:
        for member in tar:
            path = (folder / member.name).resolve()
            body = tar.extractfile(member) if member.isfile() else None
            if body is None:
                continue
            if not path.is_relative_to(folder.resolve()):
                why = f"its file {member.name!r} lies outside the package"
                raise RegistryUnavailable(archive.name, why, HOW_WITHOUT)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(body.read())


def _debian(name: str, entry: Path, cache: Path, timeout_s: float) -> dict[str, str | int]:
    what = f"Debian package {name}"
    next_step = f"use a Debian or Ubuntu machine with `apt-get` and `dpkg-deb` and a network, {HOW_WITHOUT}"
    try:
        _run(["apt-get", "download", "-q", name], entry, what, next_step, timeout_s)
    except RegistryUnavailable:
        # This machine's package lists are empty or old, and only root may update them: keep lists of our own.
        state = cache / "apt"
        for folder in ("lists/partial", "cache/archives/partial"):
            (state / folder).mkdir(parents=True, exist_ok=True)
        apt = ["apt-get", "-q", "-o", f"Dir::State::Lists={state}/lists", "-o", f"Dir::Cache={state}/cache"]
        _run([*apt, "update"], entry, what, next_step, timeout_s)
        _run([*apt, "download", name], entry, what, next_step, timeout_s)
    archive = next(entry.glob("*.deb"))
    _run(["dpkg-deb", "-x", str(archive), str(entry / "content")], entry, what, next_step, timeout_s)
    return _facts("debian", name, unquote(archive.name.split("_")[1]), archive)


def _facts(registry: str, name: str, version: str, archive: Path) -> dict[str, str | int]:
    """Describes the archive, then deletes it: its files are unpacked."""
    with archive.open("rb") as stream:
        sha256 = hashlib.file_digest(stream, "sha256").hexdigest()
    num_bytes = archive.stat().st_size
    archive.unlink()
    return {"registry": registry, "name": name, "version": version, "sha256": sha256, "num_bytes": num_bytes}


def _run(command: Sequence[str], folder: Path, what: str, next_step: str, timeout_s: float) -> None:
    # A client that was installed into the virtual environment is found even if that is not activated.
    search_path = os.pathsep.join([os.environ.get("PATH", os.defpath), str(Path(sys.executable).parent)])
    client = shutil.which(command[0], path=search_path)
    if client is None:
        raise RegistryUnavailable(what, f"the client `{command[0]}` is neither on PATH nor beside python", next_step)
    env = {**os.environ, "PATH": search_path, "LC_ALL": "C"}
    try:
        done = subprocess.run(
            [client, *command[1:]], cwd=folder, env=env, capture_output=True, text=True, timeout=timeout_s, check=False
        )
    except subprocess.TimeoutExpired:
        why = f"`{command[0]}` did not finish within {timeout_s:.0f} s"
        raise RegistryUnavailable(what, why, next_step) from None
    if done.returncode:
        said = [line.strip() for line in done.stderr.splitlines() if line.strip()] or ["no message"]
        why = f"`{command[0]}` ended with status {done.returncode}: {' / '.join(said[:3])}"
        raise RegistryUnavailable(what, why, next_step)
