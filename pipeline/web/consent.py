"""What the owner of an image says in the answer's headers."""

import re
from collections.abc import Iterator, Sequence

from multidict import CIMultiDictProxy

from pipeline.web.spec import FetchSpec

_TOKEN = re.compile(r"[^\s,;:]+|:")
_AGENT = re.compile(r"\*|[a-z][^\s]*")
_WITH_VALUE = frozenset({"max-snippet", "max-image-preview", "max-video-preview", "unavailable_after"})
_FOR_SEARCH = frozenset({"noindex", "noimageindex"})
"""Directives that are about being found by a search engine: addressed to another agent, they do not concern us."""


def find_objection(headers: CIMultiDictProxy[str], spec: FetchSpec) -> str:
    """The reason why an answer's image is not to be taken (`opt_out_noai`, `tdm_reserved`), or the empty string."""
    directive = opt_out(headers.getall("X-Robots-Tag", ()), spec.obey, product_token(spec.user_agent))
    if directive:
        return f"opt_out_{directive}"
    if spec.tdm and headers.get("tdm-reservation", "").strip() == "1":
        return "tdm_reserved"
    return ""


def opt_out(headers: Sequence[str], obeyed: Sequence[str], agent: str) -> str:
    """The first directive in the X-Robots-Tag headers that is obeyed, or the empty string.

    A directive against machine learning (`noai`) is obeyed whomever it is addressed to: it says what the owner wants.
    One about search results (`noindex`) is obeyed where it is addressed to everybody or to `agent`. `none` stands for
    `noindex, nofollow`.
    """
    for header in headers:
        for addressee, word in _directives(header, obeyed):
            directive = "noindex" if word == "none" else word
            if directive not in obeyed:
                continue
            if directive not in _FOR_SEARCH or addressee in ("", "*", agent):
                return directive
    return ""


def product_token(user_agent: str) -> str:
    """The name by which robots.txt and X-Robots-Tag address an agent: `genlip/1.0 (+https://…)` → `genlip`."""
    return re.split(r"[/\s(]", user_agent.strip(), maxsplit=1)[0].lower()


def _directives(header: str, obeyed: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Pairs of addressee and directive.

    A word before a colon addresses all that follows it, unless it is a directive itself, with a value after the colon
    (`max-snippet: 20`) or by mistake. A date's hours look like such a word, but begin with a digit.
    """
    addressee = ""
    tokens = _TOKEN.findall(header.lower())
    for word, following in zip(tokens, [*tokens[1:], ""], strict=False):
        is_directive = word in _WITH_VALUE or word in obeyed or word == "none"
        if following == ":" and not is_directive and _AGENT.fullmatch(word):
            addressee = word
        elif word != ":":
            yield addressee, word
