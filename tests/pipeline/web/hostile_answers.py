"""The bytes that the hostile server answers with."""

import gzip
import zlib
from dataclasses import dataclass

BODY = bytes(range(256)) * 40


@dataclass(frozen=True)
class Answer:
    """Parts to send; then, for ever, `again` after each pause; or one pause, and the end of the connection."""

    parts: list[bytes]
    again: bytes = b""
    pause_s: float = 0.0
    ends: bool = False
    resets: bool = False


def reply(body: bytes = BODY, *headers: str, status: str = "200 OK", ends: bool = False) -> Answer:
    """An honest answer, with a length."""
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", *headers]
    return Answer([("\r\n".join(lines) + "\r\n\r\n").encode("latin-1") + body], ends=ends)


def raw(text: str, body: bytes = b"", **how: object) -> Answer:
    """A head as it is, which ends the connection."""
    return Answer([text.encode("latin-1") + body], ends=True, **how)  # type: ignore[arg-type]


def _redirect(location: str, status: str = "302 Found") -> Answer:
    return reply(b"", f"Location: {location}", status=status)


def _robots(text: str) -> Answer:
    return reply(text.encode())


_HEAD = "HTTP/1.1 200 OK\r\n"
_UNSAID = "HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n"
_CHUNKED = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
_GZIP = "Content-Encoding: gzip"
_BOMB = gzip.compress(bytes(20_000_000))

ANSWERS: dict[str, Answer] = {
    "ok": reply(),
    "html": reply(b"<html>sold out</html>", "Content-Type: text/html"),
    "short-length": raw(f"{_HEAD}Content-Length: 10\r\n\r\n", BODY),
    "chunked": Answer([_CHUNKED.encode() + b"5\r\nhello\r\n0\r\n\r\n"]),
    "no-length": raw(_UNSAID, BODY),
    "gzip": reply(gzip.compress(BODY), _GZIP),
    "status-503-then-ok": reply(b"", status="503 Busy"),
    "status-429-seconds": reply(b"", "Retry-After: 1", status="429 Slow"),
    "status-429-nonsense": reply(b"", "Retry-After: when the cows come home", status="429 Slow"),
    "status-429-ten-years": reply(b"", "Retry-After: 315360000", status="429 Slow"),
    "status-429": reply(b"", status="429 Slow"),
    "status-403": reply(b"no", status="403 Forbidden"),
    "status-404": reply(b"none", status="404 Not Found"),
    "status-410": reply(b"gone", status="410 Gone"),
    "status-204": Answer([b"HTTP/1.1 204 No Content\r\n\r\n"]),
    "status-206": reply(status="206 Partial Content"),
    "status-500": reply(b"oops", status="500 Broken"),
    "status-503": reply(b"busy", status="503 Busy"),
    "drip": Answer([f"{_HEAD}Content-Length: 5000\r\n\r\n".encode()], again=b"x", pause_s=0.1, ends=True),
    "stalls": Answer([f"{_HEAD}Content-Length: 50000\r\n\r\n".encode(), BODY], pause_s=20.0, ends=True),
    "slow-but-steady": Answer(
        [f"{_HEAD}Content-Length: 150000\r\n\r\n".encode()], again=b"x" * 400, pause_s=0.1, ends=True
    ),
    "silent": Answer([], pause_s=20.0, ends=True),
    "slow-headers": Answer([_HEAD.encode()], again=b"X-Slow: 1\r\n", pause_s=0.3, ends=True),
    "endless": Answer([_UNSAID.encode()], again=b"x" * 50_000, pause_s=0.001, ends=True),
    "big-by-header": raw(f"{_HEAD}Content-Length: 9000000000\r\n\r\n", pause_s=20.0),
    "big-by-body": raw(_UNSAID, b"x" * 300_000),
    "gzip-bomb": reply(_BOMB, _GZIP),
    "truncated": raw(f"{_HEAD}Content-Length: 50000\r\n\r\n", BODY),
    "truncated-chunked": raw(_CHUNKED, b"64\r\nhello"),
    "truncated-gzip": reply(gzip.compress(BODY)[:-9], _GZIP),
    "reset-in-body": Answer([f"{_HEAD}Content-Length: 50000\r\n\r\n".encode(), BODY], 0 * b"", 0.1, True, True),
    "empty": reply(b""),
    "empty-chunked": Answer([_CHUNKED.encode() + b"0\r\n\r\n"]),
    "garbage": raw("\x00\x01\x02 SSH-2.0-OpenSSH_9.2\r\n\r\n"),
    "bad-status-line": raw("HTTP/1.1 abc OK\r\n\r\n"),
    "giant-header": raw(f"{_HEAD}X-Giant: {'x' * 100_000}\r\n\r\n"),
    "many-headers": raw(_HEAD + "".join(f"X-{i}: y\r\n" for i in range(1_000)) + "\r\n"),
    "gzip-broken": reply(b"this is not gzip", _GZIP),
    "brotli": reply(b"whatever", "Content-Encoding: br"),
    "closes": Answer([], ends=True),
    "reset": Answer([], ends=True, resets=True),
    "redirect-chain": _redirect("/redirect-307"),
    "redirect-307": _redirect("/ok", "307 Temporary Redirect"),
    "redirect-loop": _redirect("/redirect-loop"),
    "redirect-long-chain": _redirect("/redirect-long-chain-1"),
    "redirect-long-chain-1": _redirect("/redirect-long-chain-2"),
    "redirect-long-chain-2": _redirect("/redirect-long-chain-3"),
    "redirect-long-chain-3": _redirect("/ok"),
    "redirect-file": _redirect("file:///etc/hostname"),
    "redirect-ftp": _redirect("ftp://127.0.0.1/ok"),
    "redirect-bad-url": _redirect("http://[::1"),
    "redirect-nowhere": reply(b"", status="302 Found"),
    "redirect-private": _redirect("http://192.168.0.1/ok"),
    "redirect-metadata": _redirect("http://169.254.169.254/latest/meta-data/"),
    "redirect-decimal": _redirect("//2130706434/ok"),
    "noai": reply(BODY, "X-Robots-Tag: noai"),
    "noai-second-header": reply(BODY, "X-Robots-Tag: nofollow", "X-Robots-Tag: noai"),
    "noai-after-value": reply(BODY, "X-Robots-Tag: max-image-preview:large, noai"),
    "noai-after-date": reply(BODY, "X-Robots-Tag: unavailable_after: Friday, 25-Jun-10 15:00:00 PST, noai"),
    "noai-other-agent": reply(BODY, "X-Robots-Tag: otherbot: nofollow, noai"),
    "noai-upper-case": reply(BODY, "x-robots-tag: NoFollow,NOAI"),
    "noimageai-after-number": reply(BODY, "X-Robots-Tag: nofollow, max-snippet: 20, noimageai"),
    "noml": reply(BODY, "X-Robots-Tag: noml"),
    "noindex-none": reply(BODY, "X-Robots-Tag: none"),
    "noindex-us": reply(BODY, "X-Robots-Tag: googlebot: nofollow", "X-Robots-Tag: genlip: noindex"),
    "noindex-googlebot": reply(BODY, "X-Robots-Tag: googlebot: noindex, nofollow"),
    "nofollow-only": reply(BODY, "X-Robots-Tag: nofollow"),
    "tdm": reply(BODY, "tdm-reservation: 1"),
    "tdm-zero": reply(BODY, "tdm-reservation: 0"),
    "other-robots": _robots("User-agent: *\nDisallow: /\n"),
}

ROBOTS: dict[str, Answer] = {
    "robots-all": _robots("User-agent: *\nDisallow: /\n"),
    "robots-us": _robots("User-agent: *\nAllow: /\n\nUser-agent: GenLIP\nDisallow: /robots\n"),
    "robots-other-agent": _robots("User-agent: ImgBot\nDisallow: /\n"),
    "robots-gzip": reply(gzip.compress(b"User-agent: *\nDisallow: /\n"), _GZIP),
    "robots-garbage": reply(zlib.compress(bytes(1000)), "Content-Type: image/png"),
    "robots-big": _robots("User-agent: *\nDisallow: /\n" + "# much to say\n" * 100_000),
    "robots-redirect": _redirect("/other-robots"),
    "robots-loop": _redirect("/robots.txt"),
    "robots-500": reply(b"", status="500 Broken"),
    "robots-silent": Answer([], pause_s=20.0, ends=True),
    "crawl-delay": _robots("User-agent: *\nCrawl-delay: 0.2\n"),
    "many-rows": _robots("User-agent: *\nDisallow: /no\n"),
}
"""What `/robots.txt` answers, by the first label of the host's name; 404 for all others."""
