"""The way from stored to kept, step by step, as report and card show it."""

from dataclasses import dataclass

from pipeline.curate.spec import FATES, HELDOUT, TRAIN
from pipeline.curate.summary import Summary

_MEANING = {
    "duplicate_key": "the same key as an earlier sample",
    "evaluation_image": "an image of an evaluation set",
    "duplicate_image": "the same bytes as the sample that stayed",
    "duplicate_url": "the same address as the sample that stayed",
    "near_duplicate": "nearly the same picture as the sample that stayed",
    "over_cap": "only mentions frequent entries, beyond the cap",
    "over_share": "beyond its source's share of the mix",
    "over_limit": "beyond the wanted number of samples",
    "near_heldout": "nearly the same picture as a held-out one",
}


@dataclass(frozen=True)
class Step:
    """Samples that leave at one step."""

    fate: str
    meaning: str
    num_out: int
    num_left: int
    """After the step."""
    is_rule: bool = False
    """Whether `meaning` is the recipe's condition."""


def steps(summary: Summary) -> list[Step]:
    """The rules in the recipe's order, then the other reasons that occur."""
    rules: dict[str, str] = summary.selection["spec"]["where"]
    others = [fate for fate in FATES if fate not in (TRAIN, HELDOUT) and fate in summary.fates]
    unknown = [fate for fate in summary.fates if fate not in rules and fate not in FATES]
    left, found = summary.num_samples, []
    for fate in [*rules, *others, *unknown]:
        num_out = summary.fates.get(fate, 0)
        left -= num_out
        found.append(Step(fate, rules.get(fate) or _MEANING.get(fate, ""), num_out, left, fate in rules))
    return found
