"""Nothing reaches an address that the recipe does not allow: the forbidden server counts zero connections."""

import ipaddress
from collections import deque
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import UserError
from pipeline.web.addresses import check_identity, is_allowed
from pipeline.web.dns import MAX_CACHED
from pipeline.web.failures import Failed
from pipeline.web.fetcher import Fetched, Node
from pipeline.web.memory import Remembered
from pipeline.web.spec import FetchSpec
from pipeline.web.urls import canonical_host, parse_url, public_text
from tests.pipeline.web.hostile import ALLOWED, FORBIDDEN, LIMITS, HostileServer
from tests.pipeline.web.nameserver import start_nameserver

Fetch = Callable[..., list[Fetched]]

NOTATIONS = [
    "127.0.0.2",
    "127.0.0.2.",
    "127.2",
    "127.0.2",
    "2130706434",
    "0x7f000002",
    "0x7f.2",
    "0X7F.0.0.0x2",
    "0177.0.0.2",
    "0177.0.0.02",
    "017700000002",
    "127.0.0.0x2",
    "%31%32%37.0.0.2",
    "%3127.0.0.2",
    "127%2e0%2e0%2e2",
    "１２７.０.０.２",
    "①②⑦.0.0.2",
    "127。0。0。2",
    "127．0．0．2",
    "[::ffff:127.0.0.2]",
    "[::ffff:7f00:2]",
    "[0:0:0:0:0:ffff:127.0.0.2]",
    "[::127.0.0.2]",
    "[64:ff9b::127.0.0.2]",
    "[2002:7f00:2::]",
    "[::ffff:127.0.0.2%25lo]",
    "[::ffff:127.0.0.2%lo]",
    "user:pw@127.0.0.2",
    "127.0.0.1@127.0.0.2",
]


@pytest.mark.parametrize("robots", [True, False])
def test_no_notation_of_a_literal_address_gets_through(robots: bool, hostile: HostileServer, fetch: Fetch) -> None:
    urls = [f"http://{notation}:{hostile.ports['forbidden']}/ok" for notation in NOTATIONS]
    reasons = [fetched.reason for fetched in fetch(urls, robots=robots)]
    assert reasons == ["blocked_address"] * len(urls)
    assert hostile.forbidden_hits == 0


def test_forbidden_server_would_answer_if_it_were_allowed(hostile: HostileServer, fetch: Fetch) -> None:
    url = f"http://127.2:{hostile.ports['forbidden']}/ok"
    assert fetch([url], allow_addresses=("127.0.0.0/8",))[0].reason == ""
    assert hostile.forbidden_hits > 0


@pytest.mark.parametrize("notation", ["127.0.0.1", "127.1", "2130706433", "0x7f.1", "１２７.0.0.1", "localhost"])
def test_allowed_address_in_any_notation_is_asked(notation: str, hostile: HostileServer, fetch: Fetch) -> None:
    (fetched,) = fetch([hostile.at("ok", notation)])
    assert fetched.reason == ""


def test_name_of_a_forbidden_address_is_refused(hostile: HostileServer, fetch: Fetch) -> None:
    with start_nameserver(evil_example=[FORBIDDEN], mapped_example=[f"::ffff:{FORBIDDEN}"]) as names:
        names.zone["good.example"] = [ALLOWED]
        port = hostile.ports["forbidden"]
        urls = [f"http://evil.example:{port}/ok", hostile.at("ok", "good.example"), hostile.at("ok", "none.example")]
        ends = fetch(urls, resolvers=(names.address,))
    assert [fetched.reason for fetched in ends] == ["blocked_address", "", "dns_nx"]
    assert hostile.forbidden_hits == 0


def test_of_a_mixed_answer_only_the_allowed_address_is_asked(hostile: HostileServer, fetch: Fetch) -> None:
    port = hostile.ports["forbidden"]
    with start_nameserver(mixed_example=[FORBIDDEN, ALLOWED, FORBIDDEN]) as names:
        # Nothing listens there on the allowed address, so a fall-back to the other one would show.
        (blocked,) = fetch([f"http://mixed.example:{port}/ok"], resolvers=(names.address,), retries=0)
        (good,) = fetch([hostile.at("ok", "mixed.example")], resolvers=(names.address,))
    assert (blocked.reason, good.reason) == ("connect", "")
    assert hostile.forbidden_hits == 0


def test_rebinding_between_units_and_within_is_refused(hostile: HostileServer, fetch: Fetch) -> None:
    port = hostile.ports["http"]
    urls = [f"http://rebind.example:{port}/{path}" for path in ("ok", "html", "closes", "gzip")]
    with start_nameserver(rebind_example=[FORBIDDEN]) as names:
        names.turns["rebind.example"] = deque([[ALLOWED]])
        changes = {"resolvers": (names.address,), "robots": False}
        node = Node(FetchSpec(**{**LIMITS, **changes}))
        assert [one.reason for one in fetch(urls, node=node, **changes)] == ["", "", "connect", ""]
        assert names.asked["rebind.example"] == 1  # the checked answer is the one that is connected to
        node.dns = Remembered(MAX_CACHED)  # as if it had expired
        assert {one.reason for one in fetch(urls, node=node, **changes)} == {"blocked_address"}
    assert hostile.forbidden_hits == 0


def test_redirect_to_a_forbidden_name_is_refused(hostile: HostileServer, fetch: Fetch) -> None:
    ends = fetch([hostile.at("redirect-forbidden"), hostile.at("redirect-decimal"), hostile.at("redirect-private")])
    assert {fetched.reason for fetched in ends} == {"blocked_address"}
    assert hostile.forbidden_hits == 0


@pytest.mark.parametrize(
    "address",
    [
        *("10.0.0.1", "172.16.0.1", "192.168.1.1", "127.0.0.1", "169.254.1.1", "224.0.0.1", "240.0.0.1", "0.0.0.0"),
        *("100.64.0.1", "192.0.0.8", "198.18.0.1", "255.255.255.255", "192.0.2.1", "168.63.129.16"),
        *("::", "::1", "fe80::1", "fc00::1", "fd00:ec2::254", "ff02::1", "2001:db8::1", "fec0::1", "2001::1"),
        *("::ffff:10.0.0.1", "::10.0.0.1", "2002:a00:1::", "64:ff9b::a00:1", "64:ff9b:1::1", "fe80::1%eth0"),
    ],
)
def test_address_that_is_not_public_is_refused(address: str) -> None:
    assert not is_allowed(address)


@pytest.mark.parametrize("address", ["8.8.8.8", "2606:4700::1111", "::ffff:8.8.8.8", "64:ff9b::808:808"])
def test_public_address_is_allowed(address: str) -> None:
    assert is_allowed(address)


def test_metadata_address_is_refused_whatever_the_recipe_says() -> None:
    everything = (ipaddress.ip_network("0.0.0.0/0"), ipaddress.ip_network("::/0"))
    assert is_allowed("10.0.0.1", everything)
    for address in ("169.254.169.254", "::ffff:169.254.169.254", "fd00:ec2::254", "2002:a9fe:a9fe::"):
        assert not is_allowed(address, everything)


@given(st.ip_addresses(v=4), st.sampled_from(["{0}", "0x{0:x}", "0{0:o}"]))
def test_number_as_host_is_the_address_that_connect_would_use(ip: ipaddress.IPv4Address, notation: str) -> None:
    assert canonical_host(notation.format(int(ip))) == str(ip)


@given(st.text(max_size=60), st.text(max_size=30))
def test_any_text_is_a_url_or_refused(host: str, rest: str) -> None:
    for text in (host + rest, f"http://{host}/{rest}", f"https://{host}"):
        try:
            url = parse_url(text)
        except Failed:
            continue
        assert url.scheme in ("http", "https")
        assert url.raw_host
        assert parse_url(str(url)) == url
        assert "@" not in public_text(url).split("/")[2]


def test_public_address_needs_a_contact(fetch: Fetch) -> None:
    with start_nameserver(public_example=["198.41.0.4"]) as names, pytest.raises(UserError, match="user_agent"):
        fetch(["http://public.example/ok"], resolvers=(names.address,), robots=False)
    with pytest.raises(UserError, match="user_agent"):
        fetch(["http://198.41.0.4/ok"], robots=True)


def test_identity_is_checked_before_a_run() -> None:
    with pytest.raises(UserError, match="user_agent"):
        check_identity(FetchSpec())
    check_identity(FetchSpec(user_agent="genlip (+https://example.org/bot)"))
    check_identity(FetchSpec(allow_addresses=("127.0.0.0/8",)))
