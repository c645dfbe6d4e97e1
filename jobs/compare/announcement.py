"""What was announced of GenLIP, what its paper has, and what this comparison says about it."""

from jobs.compare.results import Comparison
from jobs.compare.summary import HEADLINES, TITLES, group_others, join, seeds

RIVALS = ("clip", "siglip")
CLAIMS = {
    "zero-shot classification": ("zero_shot/names_top1", "zero_shot/captions_top1"),
    "retrieval": ("retrieval/image_to_text_r1", "retrieval/text_to_image_r1"),
}
"""What was claimed, and the metrics that test it."""
PUBLISHED_SAMPLES = 8_000_000_000
FACTS = (
    "Articles about GenLIP say that it beats CLIP and SigLIP at zero-shot classification and at retrieval. The paper"
    " (arXiv 2605.00809, second version) has neither experiment, and its model has no embedding that images and texts"
    " share, which both are usually made with.",
    "What the paper does report: with frozen features and an attentive probe on ImageNet-1K, GenLIP So/16 reaches"
    " 84.3 %, below CLIP L/14 with 85.1 % and SigLIP So/14 with 86.7 %; GenLIP g/16, the largest, reaches 85.2 %. With"
    " a linear segmentation probe on ADE20K, GenLIP So/16 reaches 42.8 % mIoU, above CLIP (39.0 %) and SigLIP (40.8 %),"
    " below SigLIP2 (45.4 %). As the frozen eye of a language model it is ahead of both on average, above all where"
    " text in images is read.",
    "It was trained on 8 billion samples; the paper gives 12.8 billion for CLIP and 40 billion for SigLIP.",
)
"""Of Tables 3 to 5 and 11 of the paper."""


def own_sentences(comparison: Comparison) -> list[str]:
    """The announcement's claims by this comparison's own numbers, and how far these reach."""
    if comparison.objectives[0] != "genlip":
        return [f"This comparison is of {TITLES[comparison.objectives[0]]} with others, and says nothing about it."]
    sentences = [_claim(comparison, claim, names) for claim, names in CLAIMS.items()]
    return [*sentences, _reach(comparison)]


def _claim(comparison: Comparison, claim: str, names: tuple[str, ...]) -> str:
    parts, verdicts = [], set()
    for name in names:
        row = comparison.row(name)
        if not row or "genlip" not in row.values or not any(rival in row.values for rival in RIVALS):
            continue
        groups = {words: [one for one in found if one in RIVALS] for words, found in group_others(row).items()}
        told = [f"{words} {join([TITLES[one] for one in found])}" for words, found in groups.items() if found]
        parts.append(f"{HEADLINES[name]}: GenLIP is {', '.join(told)}")
        verdicts |= {words for words, found in groups.items() if found}
    if not parts:
        return f"On {claim} this comparison has no numbers of GenLIP beside CLIP or SigLIP."
    return f"On {claim}, the claim {_verdict(verdicts)} here ({'; '.join(parts)})."


def _verdict(verdicts: set[str]) -> str:
    if verdicts == {"ahead of"}:
        return "holds"
    if "behind" in verdicts and "ahead of" not in verdicts:
        return "does not hold"
    if "ahead of" in verdicts:
        return "holds in part"
    return "can be neither confirmed nor refuted"


def _reach(comparison: Comparison) -> str:
    backbone = next(iter(comparison.systems.values())).backbone_parameters if comparison.systems else 0
    ratio = PUBLISHED_SAMPLES / comparison.samples
    return (
        f"How far this reaches: {comparison.samples:,} samples a run, 1/{ratio:,.0f} of the published 8 billion, on a"
        f" backbone of {backbone:,} parameters (published: some 300 million to 1.1 billion), measured on"
        f" {comparison.num_images:,} held-out images of the same source, with {seeds(len(comparison.seeds))}. Every"
        " objective had the same data, backbone, batches and samples, and none was tuned for long: contrastive"
        " objectives are known to need far larger batches than these. It tells what these objectives learn at this"
        " scale, and nothing about the published models."
    )
