"""Why information gain classifies worse than plain likelihood, where it does: what the data say, in a sentence.

Shape legend: I images, C classes.
"""

import numpy as np

from train.evaluation.bootstrap import difference_interval
from train.evaluation.ranking import Classes, Scores, class_ranks


def why_gain_is_worse(gain_IC: Scores, plain_IC: Scores, class_I: Classes, prior_C: Scores, length_C: Scores) -> str:
    """By how much, whether that is more than chance, and which trait of a class's captions decides what gain chooses.

    Args:
        gain_IC: Information gain of each class.
        plain_IC: Log-likelihood of each class, per token or not.
        class_I: The true ones.
        prior_C: Mean log P(T) of each class's captions.
        length_C: Their mean length in tokens.
    """
    right_gain_I, right_plain_I = ((class_ranks(x, class_I) == 1).astype(np.float64) for x in (gain_IC, plain_IC))
    loss = right_plain_I.mean() - right_gain_I.mean()
    low, high = difference_interval(right_plain_I, right_gain_I)
    certain = "more than the images' chance explains" if low > 0 else "which may be the chance of these images"
    num_classes = gain_IC.shape[1]
    # How much too often each class is chosen.
    excess_of_gain_C, excess_of_plain_C = (
        (np.bincount(x.argmax(axis=1), minlength=num_classes) - np.bincount(class_I, minlength=num_classes)).astype(
            float
        )
        for x in (gain_IC, plain_IC)
    )
    traits = {"log P(T)": prior_C, "length": length_C}
    pull = {
        name: (_correlation(excess_of_gain_C, x_C), _correlation(excess_of_plain_C, x_C))
        for name, x_C in traits.items()
    }
    name, (of_gain, of_plain) = max(pull.items(), key=lambda item: abs(item[1][0]))
    return (
        f"information gain is right {loss:.1%} less often than plain likelihood ({low:.1%} to {high:.1%}, {certain})."
        f" How much too often gain chooses a class correlates most with the {name} of its captions"
        f" ({of_gain:+.2f}; under plain likelihood {of_plain:+.2f}):"
        f" {_meaning(name, of_gain, of_plain)}"
    )


def _meaning(name: str, of_gain: float, of_plain: float) -> str:
    if abs(of_gain) < 0.2:
        return "too little to explain the loss, which lies in the likelihoods themselves"
    if abs(of_gain) < abs(of_plain):
        return "a bias that plain likelihood has more of, so the prior does not explain it"
    if name == "length":
        return f"gain prefers {'long' if of_gain > 0 else 'short'} captions"
    if of_gain < 0:
        return "gain prefers captions that are unlikely without the image: P(T) takes away too much"
    return "gain prefers captions that are likely without the image: P(T) takes away too little"


def _correlation(x: Scores, y: Scores) -> float:
    """Pearson's; 0 where one of the two does not vary."""
    if np.ptp(x) == 0 or np.ptp(y) == 0:
        return 0.0
    return float(np.corrcoef(x, y)[0, 1])
