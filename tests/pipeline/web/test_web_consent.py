"""What owners say: X-Robots-Tag in all its forms, and robots.txt."""

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.web.consent import opt_out, product_token
from pipeline.web.fetcher import Fetched, Node
from pipeline.web.spec import FetchSpec
from tests.pipeline.web.hostile import LIMITS, HostileServer

Fetch = Callable[..., list[Fetched]]

OBEY = FetchSpec().obey
HARMLESS = st.sampled_from(
    [
        "nofollow",
        "noarchive",
        "max-snippet: 20",
        "max-image-preview:large",
        "unavailable_after: 25 Jun 2010 15:00:00 PST",
        "unavailable_after: Friday, 25-Jun-10 15:00:00 PST",
        "unavailable_after: 2010-06-25T15:00:00+01:00",
        "otherbot: nofollow",
        "",
        " ",
    ]
)


@given(st.lists(HARMLESS), st.lists(HARMLESS), st.sampled_from(("noai", "NoImageAI", "noml")), st.lists(HARMLESS))
def test_directive_is_found_anywhere(before: list[str], after: list[str], directive: str, other: list[str]) -> None:
    header = ", ".join([*before, directive, *after])
    assert opt_out([", ".join(other), header], OBEY, "genlip") == directive.lower()


@given(st.lists(HARMLESS))
def test_harmless_directives_do_not_matter(harmless: list[str]) -> None:
    assert opt_out([", ".join(harmless)], OBEY, "genlip") == ""


@given(st.lists(st.text()))
def test_no_header_makes_it_raise(headers: list[str]) -> None:
    assert opt_out(headers, OBEY, "genlip") in ("", *OBEY)


@pytest.mark.parametrize(
    ("header", "directive"),
    [
        ("noindex", "noindex"),
        ("none", "noindex"),
        ("*: noindex", "noindex"),
        ("genlip: nofollow, noindex", "noindex"),
        ("GenLIP: noimageindex", "noimageindex"),
        ("googlebot: noindex", ""),
        ("googlebot: none", ""),
        ("googlebot: nofollow, bingbot: noindex", ""),
        ("googlebot: noindex, genlip: noindex", "noindex"),
        ("googlebot: noai", "noai"),
        ("unavailable_after: 25 Jun 2010 15:00:00 PST, noindex", "noindex"),
        ("noai: yes", "noai"),
        ("index, follow, all", ""),
        ("noaix, xnoai", ""),
    ],
)
def test_whom_a_directive_concerns(header: str, directive: str) -> None:
    assert opt_out([header], OBEY, "genlip") == directive


def test_recipe_decides_what_is_obeyed(hostile: HostileServer, fetch: Fetch) -> None:
    urls = [hostile.at("noai"), hostile.at("noindex-none"), hostile.at("tdm"), hostile.at("ok", "robots-all.localhost")]
    ends = fetch(urls, obey=(), tdm=False, robots=False)
    assert {one.reason for one in ends} == {""}
    assert "robots.txt" not in hostile.hits


@pytest.mark.parametrize(
    ("user_agent", "token"),
    [("genlip", "genlip"), ("Genlip/1.0 (+https://x.example)", "genlip"), ("My-Bot (me@x.example)", "my-bot")],
)
def test_product_token(user_agent: str, token: str) -> None:
    assert product_token(user_agent) == token


def test_robots_is_asked_once_per_origin_and_remembered(hostile: HostileServer, fetch: Fetch) -> None:
    spec = FetchSpec(**LIMITS)
    node = Node(spec)
    host = "many-rows.localhost"
    ends = fetch([hostile.at("ok", host)] * 50 + [hostile.at("no/1", host)] * 50, node=node)
    assert [one.reason for one in ends] == [""] * 50 + ["robots_txt"] * 50
    assert hostile.hits["no/1"] == 0
    fetch([hostile.at("ok", host)], node=node)
    assert hostile.hits["robots.txt"] == 1


def test_origin_whose_robots_fails_is_not_asked(hostile: HostileServer, fetch: Fetch) -> None:
    ends = fetch([hostile.at("ok", "robots-500.localhost")] * 3, retries=0)
    assert {one.reason for one in ends} == {"http_500"}
    assert hostile.hits["ok"] == 0
