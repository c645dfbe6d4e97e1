"""The recipe's `fetch` section: how to ask the web for images."""

import ipaddress
from typing import Annotated, Literal

from pydantic import Field, field_validator

from pipeline.section import Section

Seconds = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=1)]


class FetchSpec(Section):
    """How to download: limits, courtesy, consent and where the network is."""

    engine: Literal["genlip", "img2dataset"] = "genlip"
    """Whose downloader; everything below is genlip's unless its text says otherwise."""
    timeout_s: Seconds = 20.0
    """Most time for one attempt at a URL, from the name's resolution to the last byte, redirects included."""
    connect_timeout_s: Seconds = 6.0
    """Most time for one address to accept the connection, TLS handshake included."""
    min_bytes_per_s: Annotated[int, Field(ge=0)] = 1_000
    """A body that comes slower than this for `slow_for_s` is given up as too_slow."""
    slow_for_s: Seconds = 5.0
    """How long a body may be slower than `min_bytes_per_s`."""
    retries: Annotated[int, Field(ge=0, le=10)] = 2
    """Further attempts after a passing failure; none after a time-out, because one deadline is enough."""
    in_flight: Count = 128
    """Most downloads at a time in one process. Under stress fewer run."""
    per_host: Count = 8
    """Most downloads at a time from one host."""
    per_host_rate: Annotated[float, Field(ge=0)] = 0.0
    """Most requests per second to one host; 0 is no limit. A robots.txt's Crawl-delay counts too."""
    max_bytes: Count = 20_000_000
    """Longest body that is accepted."""
    max_redirects: Annotated[int, Field(ge=0, le=20)] = 5
    """Most redirects that are followed."""
    user_agent: Annotated[str, Field(min_length=1, max_length=500)] = "genlip"
    """Who asks. Must name a contact (a URL or an e-mail address) before any public address is asked."""
    robots: bool = True
    """Whether to ask for, and obey, each origin's robots.txt."""
    obey: tuple[str, ...] = ("noai", "noimageai", "noindex", "noimageindex", "noml")
    """Directives of the X-Robots-Tag header that make an image unwanted."""
    tdm: bool = True
    """Whether to honour the header `tdm-reservation: 1`."""
    allow_addresses: tuple[str, ...] = ()
    """Networks that would be refused (private, loopback …) and that this recipe may ask: `127.0.0.0/8`."""
    resolvers: tuple[str, ...] = ()
    """DNS servers, `1.2.3.4` or `1.2.3.4:5353`; empty is the system's."""
    ca_file: str = ""
    """A file with further certificate authorities (PEM)."""
    pause_limit_s: Annotated[float, Field(ge=0)] = 300.0
    """How long this machine's own trouble (no resolver, no route) may last before the unit is given back."""
    spill: Annotated[float, Field(ge=0, le=1)] = 0.001
    """Share of a unit's rows that may be given up as `spilled`, at least one row, so that it can close; 0 is none."""

    @field_validator("user_agent")
    @classmethod
    def _is_one_line(cls, user_agent: str) -> str:
        if not user_agent.isprintable():
            raise ValueError("must be one printable line")
        return user_agent

    @field_validator("obey")
    @classmethod
    def _are_lower_case(cls, directives: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(directive.lower() for directive in directives)

    @field_validator("allow_addresses")
    @classmethod
    def _are_networks(cls, networks: tuple[str, ...]) -> tuple[str, ...]:
        for network in networks:
            try:
                ipaddress.ip_network(network)
            except ValueError as error:
                raise ValueError(f"not a network such as 127.0.0.0/8 or fd00::/8: {error}") from None
        return networks

    @field_validator("resolvers")
    @classmethod
    def _are_addresses(cls, resolvers: tuple[str, ...]) -> tuple[str, ...]:
        for resolver in resolvers:
            if not _is_resolver(resolver):
                raise ValueError(f"not an address such as 1.2.3.4, 1.2.3.4:5353 or [fd00::1]:5353: {resolver!r}")
        return resolvers


def _is_resolver(text: str) -> bool:
    host, colon, port = text.rpartition(":")
    if text.startswith("["):
        host, port = (host[1:-1], port) if host.endswith("]") else (text[1:-1], "53")
    elif not colon or ":" in host:
        host, port = text, "53"
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return port.isascii() and port.isdigit() and 0 < int(port) < 65536
