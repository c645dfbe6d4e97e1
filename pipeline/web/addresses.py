"""Which addresses may be asked, and by whom."""

import ipaddress
import socket
from collections.abc import Sequence

from pipeline.errors import UserError
from pipeline.web.spec import FetchSpec

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

_METADATA = frozenset(
    ipaddress.ip_address(text)
    for text in (
        "169.254.169.254",
        "169.254.170.2",
        "169.254.170.23",
        "100.100.100.200",
        "168.63.129.16",
        "192.0.0.192",
        "fd00:ec2::254",
        "fd00:ec2::23",
        "fd20:ce::254",
    )
)
"""Where clouds hand out credentials to whoever can connect: never asked, whatever the recipe allows."""
_REFUSED_V4 = tuple(
    ipaddress.IPv4Network(text)
    for text in ("100.64.0.0/10", "192.0.0.0/24", "192.88.99.0/24", "198.18.0.0/15", "224.0.0.0/3")
)
_PUBLIC_V6 = ipaddress.IPv6Network("2000::/3")
_COMPATIBLE = ipaddress.IPv6Network("::/96")
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
_ANY_PUBLIC_V4, _ANY_PUBLIC_V6 = "192.0.2.1", "2001:db8::1"


def is_allowed(address: str, allowed: Sequence[Network] = ()) -> bool:
    """Whether an address may be connected to: a public one, or one of the recipe's networks.

    An IPv6 address that carries an IPv4 address (mapped, compatible, 6to4, NAT64) is judged by what it carries.
    """
    ip = _without_wrapping(ipaddress.ip_address(address.partition("%")[0]))
    if ip in _METADATA:
        return False
    return any(ip in network for network in allowed) or _is_public(ip)


def is_public(address: str) -> bool:
    """Whether an address belongs to the public internet."""
    return _is_public(_without_wrapping(ipaddress.ip_address(address.partition("%")[0])))


def is_literal(host: str) -> bool:
    """Whether a host is an address rather than a name."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def has_route(family: socket.AddressFamily) -> bool:
    """Whether this machine has a route to the public internet. Sends no packet."""
    target = _ANY_PUBLIC_V6 if family == socket.AF_INET6 else _ANY_PUBLIC_V4
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect((target, 53))
    except OSError:
        return False
    return True


def has_contact(user_agent: str) -> bool:
    """Whether a user agent says whom to write to."""
    return any(sign in user_agent for sign in ("http://", "https://", "@"))


def check_identity(spec: FetchSpec) -> None:
    """Refuse a recipe that would ask the public web without saying who asks.

    Raises:
        UserError: `user_agent` names no contact, and no `allow_addresses` says that the job stays on own networks.
    """
    if not spec.allow_addresses and not has_contact(spec.user_agent):
        raise anonymous(spec)


def anonymous(spec: FetchSpec) -> UserError:
    """The error for a public address that is about to be asked without a contact."""
    return UserError(
        "The user agent does not say whom to contact.",
        where="ingest.fetch.user_agent",
        why=f"{spec.user_agent!r} has neither a URL nor an e-mail address; site owners must be able to reach you",
        next_step="user_agent: 'genlip (+https://example.org/our-crawler; crawler@example.org)'",
    )


def _without_wrapping(ip: Address) -> Address:
    if isinstance(ip, ipaddress.IPv4Address):
        return ip
    carried = ip.ipv4_mapped or ip.sixtofour
    if carried is not None:
        return carried
    if ip in _NAT64 or (ip in _COMPATIBLE and int(ip) > 1):
        return ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
    return ip


def _is_public(ip: Address) -> bool:
    if isinstance(ip, ipaddress.IPv4Address):
        return ip.is_global and not any(ip in network for network in _REFUSED_V4)
    return ip.is_global and ip in _PUBLIC_V6 and not ip.is_multicast and ip.teredo is None
