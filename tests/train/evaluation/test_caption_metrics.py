"""Caption metrics against the COCO evaluation's numbers, cases counted by hand, and what always holds."""

from math import exp, log

import pytest
from hypothesis import given
from hypothesis import strategies as st

from train.evaluation.caption_metrics import CiderD, bleu_4, distinct, has_repeated_trigram, rouge_l, words

REFERENCES = (
    ("A dog runs over the green grass.", "Two dogs? No, one dog runs on grass."),
    ("A plate of rice with two eggs and a fork.",),
    ("The man's red T-shirt is on the bed.", "A red shirt lies on a bed.", "Clothes on a bed"),
    ("A dog sleeps on a bed.",),
    ("An orange cat looks out of the window at the rain.", "Cat at a window"),
)
CANDIDATES = (
    "A dog runs on the grass.",
    "A plate of food with rice, rice and eggs on a table next to a cup of tea.",
    "a red shirt is on the bed",
    "A cat sleeps on the sofa.",
    "the cat looks out of the window",
)
# pycocoevalcap 1.2 on " ".join(words(caption)): Cider().compute_score(gts, res)[1], Rouge().compute_score(gts, res)[1]
# and Bleu(4).compute_score(gts, res)[0][3], with gts = {0: [reference, ...], ...} and res = {0: [candidate], ...}.
COCO_CIDER = (2.93373887, 0.80127727, 2.60321693, 1.811421, 3.09626005)
COCO_ROUGE = (0.75870647, 0.45185185, 0.71428571, 0.5, 0.64098074)
COCO_BLEU = 0.3290689211160912

captions = st.lists(
    st.sampled_from(["a", "the", "dog", "cat", "red", "bed", "on", "runs"]), min_size=1, max_size=8
).map(" ".join)
references = st.lists(st.lists(captions, min_size=1, max_size=4), min_size=2, max_size=5)


def test_words_drop_signs_and_case() -> None:
    caption = "The man's T-shirt: 3 “red” (or blue) – dots!"
    assert words(caption) == ["the", "man's", "t-shirt", "3", "red", "or", "blue", "dots"]
    assert words("…?!") == []


def test_numbers_of_the_coco_evaluation() -> None:
    assert CiderD(REFERENCES).scores(CANDIDATES) == pytest.approx([100 * score for score in COCO_CIDER])
    rouge = [rouge_l(candidate, known) for candidate, known in zip(CANDIDATES, REFERENCES, strict=True)]
    assert rouge == pytest.approx(COCO_ROUGE)
    assert bleu_4(CANDIDATES, REFERENCES) == pytest.approx(COCO_BLEU)


def test_cider_by_hand() -> None:
    # Of two images, words of both ("a") weigh log(2 / 2) = 0 and the others log 2, which cosines do not feel.
    cider = CiderD([["a red cup"], ["a dog"]])
    unigrams, bigrams, penalty = 1 / 2**0.5, 1 / 2**0.5, exp(-1 / 72)
    assert cider.scores(["a red", "a dog"])[0] == pytest.approx(1000 * penalty * (unigrams + bigrams) / 4)
    assert cider.scores(["a red", "a dog"])[1] == pytest.approx(1000 * 2 / 4)  # it has no trigrams
    # A word that is said three times counts once in the product, and three times in the caption's own length.
    assert cider.scores(["red red red", "a dog"])[0] == pytest.approx(1000 * (1 / (3 * 2**0.5)) / 4)


def test_bleu_by_hand() -> None:
    # 4 of 5 words, 3 of 4 pairs, 2 of 3 triples, 1 of 2 quadruples; the reference is two words longer.
    expected = (4 / 5 * 3 / 4 * 2 / 3 * 1 / 2) ** 0.25 * exp(1 - 7 / 5)
    assert bleu_4(["a dog runs on tiles"], [["a dog runs on the green grass"]]) == pytest.approx(expected)
    assert bleu_4(["a cup"], [["a dog"]]) == 0


def test_rouge_by_hand() -> None:
    # The longest common subsequence is "a dog grass": 3 of 4 words, and 3 of 6.
    precision, recall = 3 / 4, 3 / 6
    expected = 2.44 * precision * recall / (recall + 1.44 * precision)
    assert rouge_l("a dog eats grass", ["a dog runs on green grass"]) == pytest.approx(expected)
    assert rouge_l("", ["a dog"]) == rouge_l("cat", ["a dog"]) == rouge_l("cat", ["…"]) == 0


def test_variety_by_hand() -> None:
    assert distinct(["a dog", "a cat"], 1) == 3 / 4
    assert distinct(["a dog", "a cat", "a dog"], 2) == 2 / 3
    assert distinct(["dog"], 2) == 0
    assert has_repeated_trigram("a red dog and a red dog")
    assert has_repeated_trigram("a,,,,")
    assert not has_repeated_trigram("a red dog and a red cat, a red cup")


@given(references, st.data())
def test_nothing_scores_above_the_reference_itself(known: list[list[str]], data: st.DataObject) -> None:
    single = [[captions[0]] for captions in known]
    others = data.draw(st.lists(captions, min_size=len(known), max_size=len(known)))
    cider = CiderD(single)
    best, found = cider.scores([captions[0] for captions in single]), cider.scores(others)
    assert (found <= best + 1e-9).all()
    assert (best <= 1000 + 1e-9).all()
    assert (found >= 0).all()
    assert all(rouge_l(one[0], one) == pytest.approx(1) for one in known)


@given(references, st.data())
def test_the_order_of_references_does_not_matter(known: list[list[str]], data: st.DataObject) -> None:
    candidates = data.draw(st.lists(captions, min_size=len(known), max_size=len(known)))
    turned = [data.draw(st.permutations(one)) for one in known]
    assert CiderD(turned).scores(candidates) == pytest.approx(CiderD(known).scores(candidates))
    assert bleu_4(candidates, turned) == pytest.approx(bleu_4(candidates, known))
    assert [rouge_l(c, r) for c, r in zip(candidates, turned, strict=True)] == pytest.approx(
        [rouge_l(c, r) for c, r in zip(candidates, known, strict=True)]
    )


def test_rare_words_count_more() -> None:
    # "dog" is said of two images of three, "cup" of one.
    cider = CiderD([["dog cup"], ["dog"], ["cat"]])
    rare, common = log(3), log(3) - log(2)
    norm = (rare**2 + common**2) ** 0.5
    scores = [cider.scores([candidate, "dog", "cat"])[0] for candidate in ("cup", "dog")]
    assert scores == pytest.approx([250 * exp(-1 / 72) * weight / norm for weight in (rare, common)])
