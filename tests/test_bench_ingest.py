"""What the ingest benchmark's numbers rest on: all CPU time is counted, and bad URLs are what it says they are."""

import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from dnslib import RCODE, DNSRecord
from hypothesis import given
from hypothesis import strategies as st

from tests.bench.ingest_bad_server import BadServer, start_bad_server
from tests.bench.ingest_cost import measure_command
from tests.bench.ingest_lists import BAD_KINDS, good_urls, with_bad_urls

BUSY_S = 0.5
BUSY = f"import time\nwhile time.process_time() < {BUSY_S}: pass"
MIDDLE = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {BUSY!r}])"
IMAGE = b"\xff\xd8" + bytes(50_000)


@pytest.fixture(scope="module")
def bad_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BadServer]:
    image = tmp_path_factory.mktemp("bad") / "image.jpg"
    image.write_bytes(IMAGE)
    with start_bad_server(image) as server:
        yield server


def test_the_cpu_time_of_a_process_whose_parent_has_ended_is_counted(tmp_path: Path) -> None:
    outer = f"import subprocess, sys, time; subprocess.run([sys.executable, '-c', {MIDDLE!r}]); time.sleep(3)"
    cost = measure_command([sys.executable, "-c", outer], {}, tmp_path / "log", limit_s=60)
    assert cost.exit_code == 0
    assert cost.cpu_s > BUSY_S
    assert cost.peak_bytes > 0


def test_a_command_that_does_not_end_is_killed_with_its_children(tmp_path: Path) -> None:
    endless = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'import time; time.sleep(600)'])"
    cost = measure_command([sys.executable, "-c", endless], {}, tmp_path / "log", limit_s=0.5)
    assert cost.exit_code is None  # and the call returned, so nobody is left to be waited for


def test_the_environment_reaches_the_command_and_its_output_the_log(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "import os; print(os.environ['WORD'])"]
    assert measure_command(command, {"WORD": "heard"}, tmp_path / "log", limit_s=60).exit_code == 0
    assert (tmp_path / "log").read_text() == "heard\n"


@given(num_good=st.integers(min_value=1, max_value=3_000))
def test_a_tenth_of_the_mixed_list_is_bad_and_nothing_is_said_twice(num_good: int) -> None:
    good = good_urls(["a.jpg", "b.png"], num_good, "http", 80)
    mixed = with_bad_urls(good, 81, 82)
    assert len(set(mixed)) == len(mixed)
    assert set(good) <= set(mixed)
    assert abs((len(mixed) - len(good)) - 0.1 * len(mixed)) <= 1


def test_every_kind_is_in_the_mixed_list() -> None:
    bad = [url for url in with_bad_urls(good_urls(["a.jpg"], 900, "http", 80), 81, 82) if "/img/" not in url]
    by_path = {url.split("/")[3] for url in bad if ":81/" in url}
    assert by_path == set(BAD_KINDS) - {"refused", "unresolvable"}
    assert {url.split("/")[3] for url in bad if ":82/" in url} == {"refused"}
    assert any(".invalid/" in url for url in bad)


@pytest.mark.parametrize(
    ("kind", "error"),
    [
        ("dead", "404"),
        ("error", "503"),
        ("truncated", "IncompleteRead"),
        ("loop", "redirect"),
        ("silent", "timed out"),
        ("robots.txt", "404"),
    ],
)
def test_the_bad_server_fails_as_named(kind: str, error: str, bad_server: BadServer) -> None:
    with pytest.raises(Exception, match=error):
        urllib.request.urlopen(f"http://127.2.0.9:{bad_server.port}/{kind}", timeout=2).read()


@pytest.mark.parametrize("kind", ["drip", "endless"])
def test_a_body_that_never_ends_has_a_beginning(kind: str, bad_server: BadServer) -> None:
    with urllib.request.urlopen(f"http://127.2.0.9:{bad_server.port}/{kind}/1.jpg", timeout=5) as answer:
        assert answer.read(1) == IMAGE[:1]


def test_the_html_and_opted_out_answers_are_complete(bad_server: BadServer) -> None:
    base_url = f"http://127.2.0.9:{bad_server.port}"
    with urllib.request.urlopen(f"{base_url}/html/1.jpg", timeout=5) as answer:
        assert answer.read().startswith(b"<!doctype html>")
    with urllib.request.urlopen(f"{base_url}/noai/1.jpg", timeout=5) as answer:
        assert answer.headers["X-Robots-Tag"] == "noai"
        assert answer.read() == IMAGE


def test_the_name_server_knows_no_name(bad_server: BadServer) -> None:
    answer = DNSRecord.parse(DNSRecord.question("host-1.invalid").send("127.0.0.1", bad_server.name_server_port))
    assert answer.header.rcode == RCODE.NXDOMAIN
    assert str(answer.q.qname) == "host-1.invalid."
