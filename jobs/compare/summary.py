"""What a comparison says in sentences, each computed from its numbers."""

from collections.abc import Sequence

from jobs.compare.results import Comparison, Difference, Row

TITLES = {"genlip": "GenLIP", "clip": "CLIP", "siglip": "SigLIP", "mae": "MAE", "cappa": "CapPa"}
HEADLINES = {
    "zero_shot/names_top1": "zero-shot classification by class names",
    "zero_shot/captions_top1": "zero-shot classification by class captions",
    "retrieval/image_to_text_r1": "image → text retrieval, R@1",
    "retrieval/text_to_image_r1": "text → image retrieval, R@1",
    "captioning/cider": "captioning, CIDEr",
    "probe/linear_top1": "linear probe",
    "probe/attentive_top1": "attentive probe",
    "knn/top1": "k-nearest neighbours",
    "segmentation/miou": "linear segmentation probe, mIoU",
}
"""The metrics that the summary speaks of, and their names there."""
OUTCOMES = ("ahead of", "not distinguishable from", "behind", "compared without an interval with")


def write_value(value: float, unit: str) -> str:
    """A number with its unit: shares as per cent."""
    if unit == "share":
        return f"{value:.1%}"
    return f"{value:,.3g}" if abs(value) < 1000 else f"{value:,.0f}"


def write_interval(low: float | None, high: float | None, unit: str) -> str:
    """[low, high] without the unit; empty where there is none."""
    if low is None or high is None:
        return ""
    bounds = [f"{100 * bound:.1f}" if unit == "share" else write_value(bound, unit) for bound in (low, high)]
    return f"[{', '.join(bounds)}]".replace("-", "−")


def write_signed(value: float, unit: str) -> str:
    """A difference; shares as percentage points, without the word."""
    size = f"{abs(100 * value):.1f}" if unit == "share" else write_value(abs(value), unit)
    return f"{'+' if value >= 0 else '−'}{size}"


def write_difference(difference: Difference, unit: str) -> str:
    """With its unit and interval: +3.2 points [0.4, 6.1]."""
    points = " points" if unit == "share" else ""
    interval = write_interval(difference.low, difference.high, unit)
    return f"{write_signed(difference.mean, unit)}{points} {interval}".rstrip()


def tally_sentences(comparison: Comparison) -> list[str]:
    """How often the first objective is ahead of each other one among the headline metrics."""
    first, sentences = comparison.objectives[0], []
    rows = [row for name in HEADLINES if (row := comparison.row(name))]
    for other in comparison.objectives[1:]:
        counts = {
            words: sum(other in names for names in (group_others(row)[words] for row in rows)) for words in OUTCOMES
        }
        if num_rows := sum(counts.values()):
            told = join([f"{words} it in {count}" for words, count in counts.items() if count])
            sentences.append(f"{TITLES[first]} beside {TITLES[other]}, headline metrics of both: {num_rows}; {told}.")
    return sentences


def headline_sentences(comparison: Comparison) -> list[str]:
    """A sentence for each headline metric that two objectives or more have."""
    rows = [(comparison.row(name), title) for name, title in HEADLINES.items()]
    return [_sentence(row, title, comparison.objectives[0]) for row, title in rows if row and len(row.values) > 1]


def _sentence(row: Row, title: str, first: str) -> str:
    chance = "" if row.chance is None else f" (chance {write_value(row.chance, row.unit)})"
    ordered = sorted(row.values, key=lambda name: row.values[name].mean, reverse=row.better != "lower")
    ranking = ", ".join(f"{TITLES[name]} {write_value(row.values[name].mean, row.unit)}" for name in ordered)
    sentence = f"{title[0].upper()}{title[1:]}{chance}: {ranking}."
    return f"{sentence} {_against_others(row, first)}".rstrip()


def _against_others(row: Row, first: str) -> str:
    """The first objective against each other one."""
    if first not in row.values:
        return ""
    groups = group_others(row)
    parts = [f"{words} {_listed(groups[words], row)}" for words in groups if groups[words]]
    return f"{TITLES[first]} is {'; '.join(parts)}." if parts else ""


def group_others(row: Row) -> dict[str, list[str]]:
    """The other objectives by how the first one does against them."""
    groups: dict[str, list[str]] = {words: [] for words in OUTCOMES}
    for name, difference in row.differences.items():
        is_ahead = difference.mean < 0 if row.better == "lower" else difference.mean > 0
        if difference.excludes_zero is None:
            groups["compared without an interval with"].append(name)
        elif not difference.excludes_zero:
            groups["not distinguishable from"].append(name)
        else:
            groups["ahead of" if is_ahead else "behind"].append(name)
    return groups


def _listed(names: Sequence[str], row: Row) -> str:
    return join([f"{TITLES[name]} ({write_difference(row.differences[name], row.unit)})" for name in names])


def seeds(count: int) -> str:
    """1 seed, 3 seeds."""
    return f"{count} seed{'s' if count != 1 else ''}"


def join(parts: Sequence[str]) -> str:
    """a, b and c."""
    return " and ".join(filter(None, [", ".join(parts[:-1]), *parts[-1:]]))
