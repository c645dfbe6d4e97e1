"""The vocabulary of outcomes: every reason has one status, and what may end differently is told from what is final."""

import pytest

from pipeline.outcomes import FAILED, REASONS, REJECTED, find_reason


@pytest.mark.parametrize("reason", REASONS)
def test_every_reason_is_itself(reason: str) -> None:
    assert find_reason(reason) is REASONS[reason]
    assert REASONS[reason].status in (REJECTED, FAILED)


@pytest.mark.parametrize(
    ("reason", "status", "is_answer"),
    [
        ("http_404", FAILED, True),
        ("http_410", FAILED, True),
        ("http_429", FAILED, False),
        ("http_500", FAILED, False),
        ("http_503", FAILED, False),
        ("opt_out_noai", REJECTED, True),
        ("filter_TypeError", FAILED, True),
        ("adopted_lost", FAILED, True),
        ("caption_too_short", REJECTED, True),
        ("image_too_small", REJECTED, True),
        ("timeout", FAILED, False),
        ("dns_nx", FAILED, True),
        ("dns_fail", FAILED, False),
    ],
)
def test_families_and_filters(reason: str, status: str, is_answer: bool) -> None:
    found = find_reason(reason)
    assert (found.status, found.is_answer) == (status, is_answer)
