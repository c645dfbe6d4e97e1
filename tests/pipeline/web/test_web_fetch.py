"""What a caller of `fetch_all` relies on: each row once, bounded memory, stragglers that do not hold a unit up."""

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from pipeline.errors import UserError
from pipeline.web import fetcher
from pipeline.web.fetcher import Fetched, Node, fetch_all
from pipeline.web.spec import FetchSpec
from tests.pipeline.web.hostile import LIMITS, HostileServer
from tests.pipeline.web.hostile_answers import BODY

Fetch = Callable[..., list[Fetched]]


def test_no_urls_is_no_work(fetch: Fetch) -> None:
    assert fetch([]) == []


@settings(max_examples=10, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.sampled_from(("ok", "status-404", "redirect-chain", "closes", "noai", "empty")), max_size=40))
def test_every_row_ends_once_whatever_the_mix(hostile: HostileServer, fetch: Fetch, paths: list[str]) -> None:
    ends = fetch([hostile.at(path) for path in paths], retries=0, robots=False)
    assert len(ends) == len(paths)
    for path, fetched in zip(paths, ends, strict=True):
        assert (fetched.reason == "") == (path in ("ok", "redirect-chain")) or fetched.reason == "host_down"


def test_connections_are_reused(hostile: HostileServer, fetch: Fetch) -> None:
    fetch([hostile.at("ok")] * 30, per_host=1)
    assert len([head for head in hostile.heads if "Connection: close" in head]) == 1


def test_slow_delivery_stops_new_downloads(hostile: HostileServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetcher, "BUFFER_BYTES", 4 * (1 << 16))
    spec = FetchSpec(**LIMITS, robots=False)
    most_waiting = num_waiting = 0

    async def deliver(position: int, fetched: Fetched) -> None:
        nonlocal most_waiting, num_waiting
        assert fetched.body == BODY
        num_waiting += 1
        most_waiting = max(most_waiting, num_waiting)
        await asyncio.sleep(0.02)
        num_waiting -= 1

    asyncio.run(fetch_all([hostile.at("ok")] * 60, spec, Node(spec), deliver))
    # The buffer's worth, and what was under way when it was full.
    assert 1 < most_waiting <= 5 + spec.per_host


def test_failure_of_delivery_ends_the_run(hostile: HostileServer) -> None:
    spec = FetchSpec(**LIMITS)

    async def deliver(position: int, fetched: Fetched) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        asyncio.run(fetch_all([hostile.at("ok"), hostile.at("silent")], spec, Node(spec), deliver))


def test_last_rows_are_spilled_so_that_the_unit_can_close(hostile: HostileServer, fetch: Fetch) -> None:
    late = hostile.at("status-429-seconds", "late.localhost")
    urls = [hostile.at("ok")] * 20 + [hostile.at("silent")]
    hostile.hits["status-429-seconds"] = -1_000  # it will never be satisfied
    ends = fetch([*urls, late], spill=0.01, timeout_s=1.0, retries=10, robots=False)
    assert [one.reason for one in ends] == [""] * 20 + ["timeout", "spilled"]


def test_none_is_spilled_where_the_recipe_says_so(hostile: HostileServer, fetch: Fetch) -> None:
    urls = [hostile.at("ok"), hostile.at("status-429-seconds", "patient.localhost")]
    hostile.hits["status-429-seconds"] = -1
    ends = fetch(urls, spill=0.0, timeout_s=0.5, retries=3, robots=False)
    assert [one.reason for one in ends] == ["", ""]


def test_node_serves_one_unit_after_another(hostile: HostileServer, fetch: Fetch) -> None:
    node = Node(FetchSpec(**LIMITS))
    for _ in range(3):
        assert [one.reason for one in fetch([hostile.at("ok"), "ftp://x"], node=node)] == ["", "url_not_http"]


def test_authority_of_the_recipe_is_needed_and_enough(hostile: HostileServer, fetch: Fetch) -> None:
    url = f"https://127.0.0.1:{hostile.ports['https']}/ok"
    assert fetch([url])[0].reason == ""
    assert fetch([url], ca_file="")[0].reason == "tls"
    with pytest.raises(UserError, match="ca_file"):
        fetch([url], ca_file="/no/such/file.pem")


def test_unusable_authority_file_is_explained(tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_text("not a certificate")
    with pytest.raises(UserError, match="ca_file"):
        Node(FetchSpec(ca_file=str(tmp_path / "ca.pem")))


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("allow_addresses", ("127.0.0.1/8",), "not a network"),
        ("allow_addresses", ("localhost",), "not a network"),
        ("resolvers", ("dns.example",), "not an address"),
        ("resolvers", ("1.2.3.4:0",), "not an address"),
        ("resolvers", ("1.2.3.4:99999",), "not an address"),
        ("user_agent", "genlip\r\nX-Evil: 1", "printable"),
        ("timeout_s", 0, "greater than 0"),
        ("spill", 1.5, "less than or equal to 1"),
    ],
)
def test_bad_field_is_refused_with_a_reason(name: str, value: object, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        FetchSpec(**{name: value})


@pytest.mark.parametrize("resolver", ["1.2.3.4", "1.2.3.4:5353", "fd00::1", "[fd00::1]", "[fd00::1]:5353"])
def test_resolver_notations(resolver: str) -> None:
    assert FetchSpec(resolvers=(resolver,)).resolvers == (resolver,)
