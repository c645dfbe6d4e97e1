"""URLs as strangers write them, in the one spelling that is asked."""

import re
import socket
import unicodedata
from ipaddress import AddressValueError, IPv6Address
from urllib.parse import unquote

from yarl import URL

from pipeline.web.failures import Failed

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.\-]*):")
_AUTHORITY = re.compile(r"(https?)://([^/?#]*)(.*)", re.IGNORECASE | re.DOTALL)
_PLAIN_NAME = re.compile(r"(?:[A-Za-z0-9_-]+\.)*[A-Za-z][A-Za-z0-9-]*")
_NUMERIC_LABEL = re.compile(r"\d+|0[xX][0-9a-fA-F]*")
_CREDENTIALS = re.compile(r"(\s*[A-Za-z][A-Za-z0-9+.\-]*://)[^/?#]*@")
_FULL_STOPS = str.maketrans("。．｡", "...")
_MAX_URL_CHARS = 8_000


def parse_url(text: str) -> URL:
    """The URL to ask, its host spelled as the connection will see it: `http://0x7f.1/a` → `http://127.0.0.1/a`.

    Raises:
        Failed: `url_invalid` or `url_not_http`.
    """
    text = text.strip()
    scheme = _SCHEME.match(text)
    if scheme and scheme[1].lower() not in ("http", "https"):
        raise Failed("url_not_http")
    parts = _AUTHORITY.fullmatch(text)
    if not parts or len(text) > _MAX_URL_CHARS or any(char < " " or char == "\x7f" for char in text):
        raise Failed("url_invalid")
    userinfo, at, host_port = parts[2].rpartition("@")
    host, colon, port = _split_port(host_port)
    try:
        url = URL(f"{parts[1].lower()}://{userinfo}{at}{canonical_host(host)}{colon}{port}{parts[3]}")
        if not url.raw_host or url.port is None or not 0 < url.port < 65536:
            raise Failed("url_invalid")
    except ValueError:  # UnicodeError too: a host that DNS cannot spell
        raise Failed("url_invalid") from None
    return url.with_fragment(None)


def canonical_host(host: str) -> str:
    """A host's one spelling: percent signs, full-width characters and the notations of `inet_aton` resolved.

    Raises:
        Failed: `url_invalid` where it looks like an address and is none.
        ValueError: not a host.
    """
    if _PLAIN_NAME.fullmatch(host):
        return host.lower()
    host = unicodedata.normalize("NFKC", unquote(host, errors="strict")).translate(_FULL_STOPS).lower()
    if host.startswith("[") and host.endswith("]"):
        return f"[{_ipv6(host[1:-1])}]"
    if set(host) & set("\\/?#@:[]<>^|% "):
        raise ValueError(f"not a host: {host!r}")
    host = host.removesuffix(".")
    if _NUMERIC_LABEL.fullmatch(host.rpartition(".")[2]):
        try:
            return socket.inet_ntoa(socket.inet_aton(host))
        except OSError:
            raise Failed("url_invalid") from None
    return host


def public_text(url: URL) -> str:
    """The URL without user name and password, to be stored and shown."""
    return str(url.with_user(None))


def host_key(url: URL) -> str:
    """What politeness counts by: the host, with its port where that is not the usual one."""
    host = url.raw_host or ""
    return host if url.is_default_port() else f"{host} {url.port}"


def _split_port(host_port: str) -> tuple[str, str, str]:
    if host_port.startswith("["):
        host, bracket, rest = host_port.partition("]")
        return host + bracket, rest[:1], rest[1:]
    return host_port.partition(":")


def _ipv6(host: str) -> str:
    try:
        return str(IPv6Address(host.partition("%")[0]))
    except AddressValueError:
        raise Failed("url_invalid") from None


def without_credentials(text: str) -> str:
    """A URL as it was written, but for the user name and password in it."""
    return _CREDENTIALS.sub(r"\1", text, count=1)
