"""The node's own trouble pauses it and blames no row: resolvers that die, descriptors that run out."""

import asyncio
import logging
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.web import dns, health
from pipeline.web.fetcher import Fetched, NodeUnavailable
from tests.pipeline.web.hostile import ALLOWED, HostileServer
from tests.pipeline.web.nameserver import REFUSED, SERVFAIL, SILENT, start_nameserver

Fetch = Callable[..., list[Fetched]]


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shorter patience than with the real internet."""
    monkeypatch.setattr(dns, "_TIMEOUT_S", 0.3)
    monkeypatch.setattr(dns, "_CANARY_TTL_S", 0.2)
    monkeypatch.setattr(dns, "_FAILURE_TTL_S", 0.2)
    monkeypatch.setattr(health, "MAX_DELAY_S", 0.5)


def test_names_that_fail_get_their_own_reason(hostile: HostileServer, fetch: Fetch) -> None:
    with start_nameserver(broken_example=SERVFAIL, refused_example=REFUSED, slow_example=SILENT) as names:
        names.zone |= {"empty.example": [], "good.example": [ALLOWED]}
        hosts = ["broken.example", "refused.example", "slow.example", "empty.example", "none.example", "good.example"]
        ends = fetch([hostile.at("ok", host) for host in hosts], resolvers=(names.address,), retries=0)
    assert [one.reason for one in ends] == ["dns_fail", "dns_fail", "dns_timeout", "dns_nx", "dns_nx", ""]


def test_each_host_is_asked_once_for_many_rows(hostile: HostileServer, fetch: Fetch) -> None:
    with start_nameserver(many_example=[ALLOWED]) as names:
        ends = fetch([hostile.at("ok", "many.example")] * 50, resolvers=(names.address,))
        assert {one.reason for one in ends} == {""}
        assert names.asked["many.example"] == 1


@pytest.mark.parametrize("death", ["closed", "silent"])
def test_second_resolver_takes_over(death: str, hostile: HostileServer, fetch: Fetch) -> None:
    with start_nameserver(**{"": SILENT}) as dead, start_nameserver() as alive:
        hosts = [f"host{number}.example" for number in range(10)]
        alive.zone |= {host: [ALLOWED] for host in hosts}
        dead.zone |= dict.fromkeys(hosts, SILENT)
        if death == "closed":
            dead.stop()
        ends = fetch([hostile.at("ok", host) for host in hosts], resolvers=(dead.address, alive.address))
    assert {one.reason for one in ends} == {""}


@pytest.mark.parametrize("death", ["closed", SILENT, SERVFAIL])
def test_dead_resolver_pauses_the_node_and_blames_no_row(
    death: str, hostile: HostileServer, fetch: Fetch, caplog: pytest.LogCaptureFixture
) -> None:
    hosts = [f"host{number}.example" for number in range(40)]
    with start_nameserver() as names, caplog.at_level(logging.WARNING):
        alive = {key: [ALLOWED] for key in hosts}

        def die() -> None:
            if death == "closed":
                names.stop()
            else:
                names.zone = {"": death} | dict.fromkeys(hosts, death)

        def revive() -> None:
            names.zone = alive
            if death == "closed":
                names.start()

        die()
        timer = threading.Timer(2.0, revive)
        timer.start()
        ends = fetch([hostile.at("ok", host) for host in hosts], resolvers=(names.address,), retries=0)
        timer.join()
    assert {one.reason for one in ends} == {""}
    assert "downloads pause: no DNS resolver answers" in caplog.text
    assert "downloads go on" in caplog.text


def test_resolver_that_dies_mid_run_and_comes_back(hostile: HostileServer, fetch: Fetch) -> None:
    hosts = [f"host{number}.example" for number in range(200)]
    with start_nameserver() as names:
        names.zone |= {host: [ALLOWED] for host in hosts}
        timers = [threading.Timer(0.1, names.stop), threading.Timer(1.5, names.start)]
        for timer in timers:
            timer.start()
        urls = [hostile.at("hold", host) for host in hosts]
        ends = fetch(urls, resolvers=(names.address,), in_flight=8, retries=0, robots=False)
        for timer in timers:
            timer.join()
    assert {one.reason for one in ends} == {""}


def test_trouble_that_lasts_gives_the_unit_back(hostile: HostileServer, fetch: Fetch) -> None:
    with start_nameserver() as names:
        names.stop()
        with pytest.raises(NodeUnavailable, match="no DNS resolver answers"):
            fetch([hostile.at("ok", "some.example")], resolvers=(names.address,), pause_limit_s=1.0)


def test_without_descriptors_all_rows_succeed_in_the_end(hostile: HostileServer) -> None:
    script = Path(__file__).with_name("few_descriptors.py")
    urls = [hostile.at("hold", f"host{number}.localhost") for number in range(150)]
    child = subprocess.run(
        [sys.executable, str(script), *urls], capture_output=True, text=True, timeout=120, check=False
    )
    assert child.returncode == 0, child.stderr
    assert child.stdout.split() == ["150"]
    assert "downloads pause: EMFILE" in child.stderr


def test_delay_grows_until_a_host_has_answered() -> None:
    async def scenario() -> list[float]:
        async def is_alive() -> bool:
            return True

        gate = health.Health(60.0, is_alive, [])
        waits = []
        for _ in range(3):
            gate.report("no route")
            began = time.monotonic()
            await gate.wait()
            waits.append(time.monotonic() - began)
        gate.worked()
        gate.report("no route")
        began = time.monotonic()
        await gate.wait()
        return [*waits, time.monotonic() - began]

    first, second, _, again = asyncio.run(scenario())
    assert second > first
    assert again < second
