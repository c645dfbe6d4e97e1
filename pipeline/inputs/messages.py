"""img2dataset's error messages in our vocabulary of reasons."""

import re

_REDIRECTS = (
    (r"redirect error that would lead to an infinite loop", "redirect_limit"),
    (r"redirection to url .* is not allowed", "redirect_invalid"),
)
_OTHERS = (
    (r"name or service not known|no address associated|nodename nor servname|getaddrinfo failed", "dns_nx"),
    (r"name resolution|non-recoverable failure", "dns_fail"),
    (r"connection timed out|handshake operation timed out", "connect_timeout"),
    (r"timed out|timeout", "timeout"),
    (r"\bssl\b|_ssl|\btls|certificate", "tls"),
    (r"refused|reset by peer|unreachable|no route|without response|broken pipe", "connect"),
    (r"incompleteread|ended prematurely", "truncated"),
    (r"badstatusline|linetoolong|got more than \d+ (bytes|headers)|^http/|chunked", "protocol"),
    (r"unknown url type: ''|no host given|control characters|invalid (ipv6|url)|nonnumeric port", "url_invalid"),
    (r"label (empty or )?too long|'idna' codec|'ascii' codec", "url_invalid"),
    (r"unknown url type", "url_not_http"),
    (r"x-robots-tag", "opt_out"),
    (r"image decoding error", "undecodable"),
    (r"image too small", "image_too_small"),
    (r"aspect ratio too large", "image_too_narrow"),
    (r"image area too large", "bomb"),
    (r"hash mismatch", "hash_mismatch"),
)
_MAX_SLUG_CHARS = 40


def reason_of_message(message: str) -> str:
    """The reason that an error message of img2dataset stands for; `adopted_` and its words where none does."""
    text = message.lower()
    if reason := _find(text, _REDIRECTS):
        return reason
    if status := re.search(r"http error (\d{3})\b", text):
        return f"http_{status[1]}"
    slug = re.sub(r"[^a-z]+", "_", re.sub(r"\S*\d\S*|\S+://\S+", " ", text))[:_MAX_SLUG_CHARS].strip("_")
    return _find(text, _OTHERS) or f"adopted_{slug or 'unknown'}"


def _find(text: str, reasons: tuple[tuple[str, str], ...]) -> str:
    return next((reason for pattern, reason in reasons if re.search(pattern, text)), "")
