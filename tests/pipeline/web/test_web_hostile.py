"""Every case of the hostile server's table ends with its reason."""

from collections.abc import Callable

import pytest

from pipeline.outcomes import find_reason
from pipeline.web.fetcher import Fetched
from tests.pipeline.web.hostile import CASES, Case, HostileServer
from tests.pipeline.web.hostile_answers import BODY

Fetch = Callable[..., list[Fetched]]


@pytest.fixture(scope="module")
def ends() -> dict[str, Fetched]:
    """The ends of all cases, fetched together once."""
    return {}


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_case_ends_with_its_reason(case: Case, hostile: HostileServer, fetch: Fetch, ends: dict[str, Fetched]) -> None:
    if not ends:
        ends.update(zip((one.name for one in CASES), fetch([hostile.url(one) for one in CASES]), strict=True))
        assert hostile.forbidden_hits == 0
    assert ends[case.name].reason == case.reason
    assert bool(ends[case.name].body) == (not case.reason)


def test_all_expected_reasons_are_of_the_vocabulary() -> None:
    for case in CASES:
        assert not case.reason or find_reason(case.reason) != find_reason("no_such_word")


def test_body_arrives_whole_and_after_redirects(hostile: HostileServer, fetch: Fetch) -> None:
    plain, chain, gzipped = fetch([hostile.at("ok"), hostile.at("redirect-chain"), hostile.at("gzip")])
    assert plain.body == chain.body == gzipped.body == BODY
    assert plain.final_url == chain.final_url == hostile.at("ok")


def test_identity_and_wishes_are_sent_and_credentials_are_not_kept(hostile: HostileServer, fetch: Fetch) -> None:
    url = hostile.at("ok").replace("//", "//me:secret@")
    (fetched,) = fetch([url], robots=False, user_agent="genlip (+https://example.org)")
    assert fetched.final_url == hostile.at("ok")
    (head,) = hostile.heads
    assert "User-Agent: genlip (+https://example.org)" in head
    assert "Accept-Encoding: identity" in head
    assert "Accept: image/*" in head
    assert "Cookie" not in head
