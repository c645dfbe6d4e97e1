"""What can become of an input row: three statuses, and one vocabulary of reasons for the two that are not a success.

A reason is a snake_case word of `REASONS`, or one of its families with a tail: `http_404`, `opt_out_noai`,
`filter_TypeError`, and whatever the recipe's own filters return.
"""

from dataclasses import dataclass

SUCCESS, REJECTED, FAILED = "success", "rejected", "failed"


@dataclass(frozen=True)
class Reason:
    """One entry of the vocabulary."""

    status: str
    """`rejected` where a rule or the owner said no, `failed` where there is no image."""
    is_answer: bool
    """Whether it is the URL's own and final. Where it is not (a time-out, a 5xx), another try may end differently."""
    meaning: str


def _rejected(meaning: str) -> Reason:
    return Reason(REJECTED, True, meaning)


def _final(meaning: str) -> Reason:
    return Reason(FAILED, True, meaning)


def _transient(meaning: str) -> Reason:
    return Reason(FAILED, False, meaning)


REASONS: dict[str, Reason] = {
    # Before anything is asked of the network.
    "caption_empty": _rejected("no caption, or only white space"),
    "caption_not_utf8": _rejected("the caption's bytes are not UTF-8"),
    "duplicate_row": _rejected("the same key stands earlier in the unit"),
    "url_invalid": _final("not a URL, or one whose host cannot be spelled"),
    "url_not_http": _final("another scheme than http and https"),
    # Consent and safety.
    "blocked_address": _rejected("the host, or a redirect's, resolves to an address that the recipe does not allow"),
    "robots_txt": _rejected("the origin's robots.txt disallows it"),
    "opt_out": _rejected("an X-Robots-Tag header has a directive that the recipe obeys: opt_out_noai"),
    "tdm_reserved": _rejected("the answer reserves text-and-data-mining rights (tdm-reservation: 1)"),
    # The way to the host.
    "dns_nx": _final("the host does not exist"),
    "dns_fail": _transient("the host's name servers fail (SERVFAIL, REFUSED)"),
    "dns_timeout": _transient("the host's name servers do not answer, though the resolver does"),
    "connect": _transient("refused, reset or unreachable"),
    "connect_timeout": _transient("no connection within the limit"),
    "tls": _transient("the TLS handshake or the certificate failed"),
    "host_down": _transient("not asked: the host failed many times in a row just before"),
    # The answer.
    "http": _final("the answer's status: http_404; http_429 and http_5xx are transient"),
    "redirect_limit": _final("more redirects than the recipe allows"),
    "redirect_invalid": _final("a redirect without a usable target"),
    "protocol": _final("not HTTP, or headers beyond the limits"),
    "timeout": _transient("not complete within the deadline"),
    "too_slow": _transient("slower than the least speed for too long"),
    "too_big": _final("the body is longer than the recipe allows"),
    "truncated": _transient("the connection ended before the body did"),
    "body_empty": _final("an answer without a body"),
    "spilled": _transient("one of the last of its unit, given up so that the unit could close; a retry unit takes it"),
    # The image.
    "not_image": _final("the content is of no known image type"),
    "undecodable": _final("an image type, but its decoder refuses it"),
    "image_truncated": _final("the image's data ends before the image does"),
    "bomb": _final("more pixels, frames or expansion than the recipe allows, decided from the header"),
    "decoder_crashed": _final("the decoder process died of it (crash, or out of memory)"),
    "decoder_timeout": _final("the decoder process did not finish within its limit"),
    "image_too_small": _rejected("its shorter side is below the recipe's least"),
    "image_too_narrow": _rejected("its sides differ by more than the recipe's largest aspect ratio"),
    "hash_mismatch": _rejected("neither the expected sha256 nor an image that looks the same"),
    # Filters and datasets of others.
    "filter": _final("a filter raised: filter_TypeError"),
    "adopted": _final("failed in the dataset that was adopted: adopted_TEXT"),
}

_FAMILIES = ("opt_out", "http", "filter", "adopted")


def find_reason(reason: str) -> Reason:
    """The vocabulary's entry for a reason; a word of a recipe's own filter is a rejection."""
    if reason in ("http_429",) or reason.startswith("http_5"):
        return _transient(REASONS["http"].meaning)
    for family in _FAMILIES:
        if reason.startswith(f"{family}_"):
            return REASONS[family]
    return REASONS.get(reason, _rejected("a filter of the recipe said no"))
