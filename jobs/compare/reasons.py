"""Why an objective has no value of a metric."""

_NO_TEXT = "learns from images alone"
_NO_WRITING = "scores captions, but does not write them"
_NO_LIKELIHOOD = "has no likelihoods"
_ONE_STAGE = "ranks in one stage"
_GENLIP_ALONE = "measured where text and image share one transformer"

_LACKING: dict[str, dict[str, str]] = {
    "mae": dict.fromkeys(("language", "zero_shot", "retrieval", "captioning"), _NO_TEXT),
    "clip": dict.fromkeys(("language", "captioning"), _NO_WRITING),
    "siglip": dict.fromkeys(("language", "captioning"), _NO_WRITING),
}


def why_not(objective: str, metric: str, is_measured: bool) -> str:
    """In words that fit after the dash of an empty cell.

    Args:
        objective: That has no value.
        metric: TASK/METRIC.
        is_measured: Whether a run of it was measured at all.
    """
    task = metric.partition("/")[0]
    if not is_measured:
        return "no run was measured to the end"
    if task in ("readout", "attention") and objective != "genlip":
        return _GENLIP_ALONE
    if reason := _LACKING.get(objective, {}).get(task):
        return reason
    if objective in ("clip", "siglip"):
        return _ONE_STAGE if "two_stage" in metric else _NO_LIKELIHOOD
    return "not measured"
