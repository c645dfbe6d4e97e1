"""The URL tables of the ingest benchmark: which image from which host, and the URLs that fail, one in ten."""

import ipaddress
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

NUM_HOSTS = 200
FIRST_HOST = ipaddress.IPv4Address("127.1.0.1")
HOSTS = tuple(str(FIRST_HOST + number) for number in range(NUM_HOSTS))
"""Loopback addresses stand for host names: Linux answers on all of 127.0.0.0/8, so no name server and no root is
needed, and every engine takes each for a host of its own."""
FIRST_BAD_HOST = ipaddress.IPv4Address("127.2.0.1")
"""Every bad URL has a host of its own, so that nobody gains by remembering which host was bad."""

BAD_KINDS = (
    "dead",  # 404
    "error",  # 503
    "refused",  # nothing listens on the port
    "html",  # a page with status 200
    "truncated",  # half of the announced bytes
    "drip",  # one byte a second for a minute
    "silent",  # the connection is taken, no answer comes
    "endless",  # 20 kB a second, for ever
    "unresolvable",  # the name does not exist
    "loop",  # redirects to itself
    "noai",  # an image whose owner opts out
)
BAD_SHARE = 0.1


def good_urls(files: Sequence[str], num_urls: int, scheme: str, port: int) -> list[str]:
    """URLs of the corpus in turn, all different; hosts have between one and some hundred of them, as on the web."""
    rng = np.random.Generator(np.random.Philox(key=1))
    weights = 1 / np.arange(1, NUM_HOSTS + 1)
    hosts = rng.choice(HOSTS, num_urls, p=weights / weights.sum())
    return [
        f"{scheme}://{host}:{port}/img/{files[number % len(files)]}?n={number}"
        for number, host in enumerate(hosts.tolist())
    ]


def with_bad_urls(good: Sequence[str], bad_port: int, closed_port: int) -> list[str]:
    """The same URLs and, at places taken by chance, so many bad ones that they are a tenth of the list."""
    num_bad = round(len(good) * BAD_SHARE / (1 - BAD_SHARE))
    kinds = [BAD_KINDS[number % len(BAD_KINDS)] for number in range(num_bad)]
    urls = [*good, *(_bad_url(kind, number, bad_port, closed_port) for number, kind in enumerate(kinds))]
    order = np.random.Generator(np.random.Philox(key=2)).permutation(len(urls))
    return [urls[position] for position in order]


def _bad_url(kind: str, number: int, bad_port: int, closed_port: int) -> str:
    host = str(FIRST_BAD_HOST + number)
    if kind == "unresolvable":
        return f"http://host-{number}.invalid/{number}.jpg"
    return f"http://{host}:{closed_port if kind == 'refused' else bad_port}/{kind}/{number}.jpg"


def write_table(path: Path, urls: Sequence[str]) -> Path:
    """Writes the table that every side reads."""
    captions = [f"photograph number {number} of the benchmark's corpus" for number in range(len(urls))]
    pq.write_table(pa.table({"url": list(urls), "caption": captions}), path)
    return path
