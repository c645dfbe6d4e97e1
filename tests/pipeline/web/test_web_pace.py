"""Courtesy: how many at a time, how often, when to leave a host alone, and when to slow down altogether."""

import asyncio
from collections import Counter
from collections.abc import Callable
from itertools import pairwise

import pytest

from pipeline.web import hosts
from pipeline.web.fetcher import Fetched, Node
from pipeline.web.hosts import DOWN_S, MAX_RETRY_AFTER_S, NUM_FAILURES, REST_S, Host, Hosts
from pipeline.web.schedule import Job, Schedule
from pipeline.web.spec import FetchSpec
from pipeline.web.throttle import LEAST, NUM_LATEST, Throttle
from pipeline.web.urls import parse_url
from tests.pipeline.web.hostile import LIMITS, HostileServer

Fetch = Callable[..., list[Fetched]]


def test_downloads_from_one_host_are_bounded(hostile: HostileServer, fetch: Fetch) -> None:
    ends = fetch([hostile.at("hold")] * 40, per_host=3)
    assert {one.reason for one in ends} == {""}
    assert hostile.most_parallel == 3


def test_downloads_in_all_are_bounded(hostile: HostileServer, fetch: Fetch) -> None:
    fetch([hostile.at("hold", f"host{number}.localhost") for number in range(60)], in_flight=12)
    assert LEAST < hostile.most_parallel <= 12


def test_rate_is_kept(hostile: HostileServer, fetch: Fetch) -> None:
    fetch([hostile.at("hold")] * 6, per_host_rate=10, robots=False)
    assert min(later - sooner for sooner, later in pairwise(hostile.starts)) > 0.05


def test_crawl_delay_is_kept_after_robots_is_known(hostile: HostileServer, fetch: Fetch) -> None:
    fetch([hostile.at("hold", "crawl-delay.localhost")] * 5, per_host=1)
    gaps = [later - sooner for sooner, later in pairwise(hostile.starts)]
    assert min(gaps[1:]) > 0.15


def test_slow_host_holds_no_other_up(hostile: HostileServer, fetch: Fetch, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hosts, "REST_S", 0.3)
    slow = [hostile.at("silent", "slow.localhost")] * 30
    quick = [hostile.at("ok", f"quick{number}.localhost") for number in range(30)]
    ends = fetch(slow + quick, in_flight=12, per_host=4, timeout_s=0.5, robots=False)
    reasons = [one.reason for one in ends]
    assert reasons[30:] == [""] * 30
    assert set(reasons[:30]) <= {"timeout", "host_down"}


def test_dead_host_is_left_alone(hostile: HostileServer, fetch: Fetch, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hosts, "REST_S", 0.3)
    ends = fetch([hostile.at("closes", "dead.localhost")] * 60, retries=0, per_host=4, robots=False)
    reasons = Counter(one.reason for one in ends)
    assert set(reasons) == {"connect", "host_down"}
    # Each attempt may count twice, because an idle connection's end is tried again at once.
    assert reasons["connect"] < NUM_FAILURES + 2 * 4
    assert hostile.hits["closes"] < 2 * reasons["connect"] + 1


def test_host_that_recovers_during_its_rest_loses_no_row(
    hostile: HostileServer, fetch: Fetch, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hosts, "NUM_FAILURES", 1)
    monkeypatch.setattr(hosts, "REST_S", 0.3)
    urls = [hostile.at("status-503-then-ok", "blip.localhost")] + [hostile.at("ok", "blip.localhost")] * 20
    assert {one.reason for one in fetch(urls, per_host=1)} == {""}


def test_a_few_urls_that_fail_again_and_again_do_not_take_their_host_down(
    hostile: HostileServer, fetch: Fetch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are the last rows of a unit: nothing good comes between their attempts, and the next unit needs the host."""
    monkeypatch.setattr(hosts, "REST_S", 0.1)
    urls = [hostile.at("status-503", "some-bad.localhost")] * 6 + [hostile.at("ok", "some-bad.localhost")] * 10
    node = Node(FetchSpec(**LIMITS))
    reasons = [one.reason for one in fetch(urls, node=node, per_host=1, retries=3)]
    assert reasons == ["http_503"] * 6 + [""] * 10
    assert fetch([hostile.at("ok", "some-bad.localhost")], node=node)[0].reason == ""


def test_breaker_rests_probes_and_gives_up() -> None:
    host = Host(0.0)
    for _ in range(NUM_FAILURES - 1):
        host.fail(started_at=0.0, now=1.0)
    assert (host.ready_at(), host.most(8)) == (0.0, 8)
    host.fail(started_at=0.0, now=1.0)
    assert (host.ready_at(), host.most(8), host.is_down(1.5)) == (1.0 + REST_S, 1, False)
    host.fail(started_at=0.5, now=2.0)  # begun before the rest
    assert host.ready_at() == 1.0 + REST_S
    host.fail(started_at=5.0, now=6.0)  # the probe
    assert host.is_down(7.0)
    assert not host.is_down(6.0 + DOWN_S)
    host.succeed()
    assert (host.most(8), host.is_down(7.0), host.ready_at()) == (8, False, 0.0)


def test_retry_after_and_crawl_delay_are_capped() -> None:
    host = Host(0.0)
    host.slow_down(now=100.0, retry_after_s=1e9)
    assert host.ready_at() == 100.0 + MAX_RETRY_AFTER_S
    host.slow_down(now=100.0, retry_after_s=0.0)  # never sooner
    assert host.ready_at() == 100.0 + MAX_RETRY_AFTER_S
    slow = Host(0.0)
    slow.limit_rate(86_400.0)
    slow.start(now=5.0)
    assert slow.ready_at() == 5.0 + hosts.MAX_CRAWL_DELAY_S


def test_retry_after_slows_the_whole_host(hostile: HostileServer, fetch: Fetch) -> None:
    urls = [hostile.at("status-429-seconds", "busy.localhost")] + [hostile.at("hold", "busy.localhost")] * 3
    fetch([hostile.at("ok", "busy.localhost")])
    hostile.hits.clear()
    ends = fetch(urls, per_host=1, robots=False)
    assert {one.reason for one in ends} == {""}
    assert hostile.hits["status-429-seconds"] == 2


def test_throttle_falls_fast_and_rises_slowly() -> None:
    throttle = Throttle(128)
    throttle.tick(lag_s=0.5)
    assert throttle.limit == 89
    throttle.tick(lag_s=0.0)
    assert throttle.limit == 91
    for number in range(NUM_LATEST):
        throttle.record(number % 2 == 0)
    assert throttle.limit == 64
    for number in range(NUM_LATEST):
        throttle.record(number % 5 == 0)
    assert throttle.limit == 64
    for _ in range(100):
        throttle.tick(lag_s=1.0)
    assert throttle.limit == LEAST
    for _ in range(200):
        throttle.tick(lag_s=0.0)
    assert throttle.limit == 128


def test_schedule_stays_with_a_host_while_it_has_room_and_keeps_later_rows_back() -> None:
    async def scenario() -> list[str]:
        schedule = Schedule(Hosts(0.0), per_host=2)
        for name in ("a", "a", "a", "a", "a", "b", "c"):
            schedule.add(Job(0, parse_url(f"http://{name}.example/")), is_open=name != "c")
        schedule.add(Job(0, parse_url("http://d.example/")), delay_s=0.05)
        order = [str((await schedule.next()).url.host) for _ in range(3)]
        schedule.release("a.example")
        schedule.release("a.example")
        order.append(str((await schedule.next()).url.host))
        order.append(str((await schedule.next()).url.host))  # waits for d: two rows are worth one connection only
        assert sorted(str(job.url.host) for job in schedule.drain()) == ["a.example", "a.example", "c.example"]
        return order

    order = asyncio.run(scenario())
    assert sorted(order[:3]) == ["a.example", "a.example", "b.example"]
    assert order[3:] == ["a.example", "d.example"]
