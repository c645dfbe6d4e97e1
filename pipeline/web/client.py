"""One HTTP request: pinned to a checked address, bounded in every direction, and its failures in our words."""

import email.utils
import errno
import ipaddress
import re
import socket
import ssl
import time
import zlib
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import aiohttp
import certifi
from aiohttp.abc import AbstractResolver, ResolveResult
from yarl import URL

from pipeline.errors import UserError
from pipeline.web.addresses import anonymous, has_contact, has_route, is_allowed, is_public
from pipeline.web.consent import find_objection
from pipeline.web.dns import Resolver
from pipeline.web.failures import LOCAL_ERRNOS, Failed, LocalFailure
from pipeline.web.spec import FetchSpec
from pipeline.web.transfer import Transfer

REDIRECTS = frozenset({301, 302, 303, 307, 308})
MAX_ADDRESSES = 3
MAX_HEADERS = 128
MAX_HEADER_BYTES = 16_384
KEEP_ALIVE_S = 5.0
_CLOSE = {"Connection": "close"}
_OUT_OF_SOCKETS = frozenset({errno.EMFILE, errno.ENFILE})


@dataclass(frozen=True)
class Answer:
    """A body, or where a redirect leads."""

    body: bytes = b""
    location: str | None = None


def build_tls_context(ca_file: str) -> ssl.SSLContext:
    """The one TLS context of a process: the system's authorities (or certifi's), and those of the recipe.

    Raises:
        UserError: the recipe's file cannot be read.
    """
    context = ssl.create_default_context()
    paths = ssl.get_default_verify_paths()
    if not paths.cafile and not paths.capath:
        context.load_verify_locations(certifi.where())
    if ca_file:
        try:
            context.load_verify_locations(ca_file)
        except (OSError, ssl.SSLError) as error:
            raise UserError(
                f"The file of certificate authorities cannot be used: {ca_file}",
                where="ingest.fetch.ca_file",
                why=str(error),
                next_step="name a PEM file that exists on every node",
            ) from None
    return context


class Client:
    """The session of one unit: connections are kept and reused inside it."""

    def __init__(self, spec: FetchSpec, tls: ssl.SSLContext, resolver: Resolver) -> None:
        self._spec = spec
        gate = _Gate(spec, resolver)
        # The connector sees only addresses that the gate has checked; a literal address has no name to resolve, so
        # the gate makes the sockets as well. No proxies, cookies, .netrc or further limits: they would be another way.
        connector = aiohttp.TCPConnector(
            resolver=gate,
            socket_factory=gate.open_socket,
            ssl=tls,
            limit=0,
            use_dns_cache=False,
            happy_eyeballs_delay=None,
            keepalive_timeout=KEEP_ALIVE_S,
        )
        self._session = aiohttp.ClientSession(
            connector=connector,
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=spec.connect_timeout_s),
            headers={"User-Agent": spec.user_agent, "Accept": "image/*,*/*;q=0.5", "Accept-Encoding": "identity"},
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            trust_env=False,
            max_line_size=MAX_HEADER_BYTES,
            max_field_size=MAX_HEADER_BYTES,
            max_headers=MAX_HEADERS,
        )

    async def __aenter__(self) -> "Client":
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._session.close()

    async def get_image(self, url: URL, transfer: Transfer, *, keep: bool) -> Answer:
        """Ask for an image; `keep` says whether more is wanted from that host soon.

        Raises:
            Failed: the reason why there are no bytes.
            LocalFailure: this node could not ask.
            UserError: a public address is about to be asked by nobody in particular.
        """
        response = await self._get(url, keep=keep)
        transfer.answered = True
        try:
            if response.status in REDIRECTS:
                return Answer(location=response.headers.get("Location", ""))
            if response.status != 200:
                raise Failed(f"http_{response.status}", _retry_after_s(response))
            objection = find_objection(response.headers, self._spec)
            if objection:
                raise Failed(objection)
            return Answer(await self._read_image(response, transfer))
        finally:
            _give_back(response)

    async def get_text(self, url: URL, max_bytes: int) -> tuple[int, str, str]:
        """Ask for a small text: its status, its first `max_bytes`, and where a redirect leads.

        Raises:
            Failed, LocalFailure, UserError: as `get_image` does, but not for a status.
        """
        response = await self._get(url, keep=True)
        try:
            if response.status != 200:
                return response.status, "", response.headers.get("Location", "")
            body = bytearray()
            async for part in response.content.iter_any():
                body += part
                if len(body) >= max_bytes:
                    break
            plain = _without_encoding(bytes(body), response, max_bytes)
            return 200, plain[:max_bytes].decode("utf-8-sig", "replace"), ""
        except (aiohttp.ClientError, OSError):
            raise Failed("truncated") from None
        finally:
            _give_back(response)

    async def _get(self, url: URL, *, keep: bool) -> aiohttp.ClientResponse:
        try:
            return await self._session.get(url, allow_redirects=False, headers=None if keep else _CLOSE)
        except aiohttp.ConnectionTimeoutError:
            raise Failed("connect_timeout") from None
        except aiohttp.ClientSSLError:
            raise Failed("tls") from None
        except aiohttp.InvalidURL:
            raise Failed("url_invalid") from None
        except (aiohttp.ClientResponseError, aiohttp.ClientPayloadError):
            raise Failed("protocol") from None
        except (aiohttp.ClientError, OSError) as error:  # ServerDisconnectedError has no errno
            raise _connection_failure(error) from None

    async def _read_image(self, response: aiohttp.ClientResponse, transfer: Transfer) -> bytes:
        length = response.content_length or 0
        if length > self._spec.max_bytes:
            raise Failed("too_big")
        transfer.expect(length)
        parts: list[bytes] = []
        try:
            async for part in response.content.iter_any():
                parts.append(part)
                if transfer.add(len(part)) > self._spec.max_bytes:
                    raise Failed("too_big")
        except (aiohttp.ClientError, OSError):
            raise Failed("truncated") from None
        body = parts[0] if len(parts) == 1 else b"".join(parts)
        plain = _without_encoding(body, response, self._spec.max_bytes)
        if plain is not body:
            transfer.add(len(plain))
        if not plain:
            raise Failed("body_empty")
        return plain


class _Gate(AbstractResolver):
    """What stands between the connector and the network."""

    def __init__(self, spec: FetchSpec, resolver: Resolver) -> None:
        self._spec = spec
        self._networks = tuple(ipaddress.ip_network(network) for network in spec.allow_addresses)
        self._has_contact = has_contact(spec.user_agent)
        self._resolver = resolver

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        """The addresses of a host that may be asked, for the connector."""
        addresses = [one for one in await self._resolver.addresses(host) if is_allowed(one, self._networks)]
        if not addresses:
            raise Failed("blocked_address")
        return [
            ResolveResult(
                hostname=host,
                host=address,
                port=port,
                family=socket.AF_INET6 if ":" in address else socket.AF_INET,
                proto=0,
                flags=socket.AI_NUMERICHOST,
            )
            for address in addresses[:MAX_ADDRESSES]
        ]

    async def close(self) -> None:
        """The resolver belongs to the unit."""

    def open_socket(self, info: tuple[Any, Any, int, str, tuple[Any, ...]]) -> socket.socket:
        """The socket for the address that is about to be connected to."""
        family, kind, protocol, _, address = info
        if not is_allowed(address[0], self._networks):
            raise Failed("blocked_address")
        if not self._has_contact and is_public(address[0]):
            raise anonymous(self._spec)
        return socket.socket(family, kind, protocol)


def _connection_failure(error: Exception) -> Failed | LocalFailure:
    """Whose fault it is that there is no connection."""
    code = error.errno if isinstance(error, OSError) else None
    if code in LOCAL_ERRNOS and not _is_ipv6(error):
        return LocalFailure(f"{errno.errorcode[code]} on connect", "connect", out_of_sockets=code in _OUT_OF_SOCKETS)
    # A router says ENETUNREACH too, about its own side.
    if code == errno.ENETUNREACH and not has_route(socket.AF_INET):
        return LocalFailure("no route to the network", "connect")
    return Failed("connect")


def _is_ipv6(error: Exception) -> bool:
    """Whether the failure is about an IPv6 address: a machine without any is not in trouble."""
    return isinstance(error, aiohttp.ClientConnectorError) and ":" in error.host


def _give_back(response: aiohttp.ClientResponse) -> None:
    """The connection is used again after a complete body, and closed otherwise."""
    if response.content.is_eof():
        response.release()
    else:
        response.close()


def _without_encoding(body: bytes, response: aiohttp.ClientResponse, max_bytes: int) -> bytes:
    """The body without an encoding that was not asked for; no more than is allowed is ever expanded."""
    encoding = response.headers.get("Content-Encoding", "").strip().lower()
    if encoding in ("", "identity"):
        return body
    if encoding not in ("gzip", "x-gzip", "deflate"):
        raise Failed("protocol")
    decoder = zlib.decompressobj(wbits=zlib.MAX_WBITS | 32)
    try:
        plain = decoder.decompress(body, max_bytes + 1)
    except zlib.error:
        raise Failed("protocol") from None
    if len(plain) > max_bytes:
        raise Failed("too_big")
    if not decoder.eof:
        raise Failed("truncated")
    return plain


def _retry_after_s(response: aiohttp.ClientResponse) -> float | None:
    """What `Retry-After` asks for, in seconds or as a date; nonsense and dates gone by ask for nothing."""
    text = response.headers.get("Retry-After", "").strip()
    if re.fullmatch(r"[0-9]{1,10}", text):
        return float(text)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(text).timestamp() - time.time()) or None
    except (ValueError, OverflowError, OSError):
        return None
