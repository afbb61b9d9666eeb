"""Votes among answers: which one wins, and when that is certain enough."""

from collections import Counter
from collections.abc import Iterable, Sequence

from scipy.special import betainc

from sim.workload.single import Floats


def majority(classes: Iterable[int]) -> int:
    """Give the class with the most votes; of several, the one that was there first.

    >>> majority([3, 0, 0, 3, 5])
    3
    """
    return Counter(classes).most_common(1)[0][0]


def heaviest(classes: Sequence[int], weights: Floats) -> int:
    """Give the class whose votes weigh most; of several, the one that was there first.

    >>> import numpy
    >>> heaviest([3, 0, 3], numpy.array([0.2, 0.7, 0.4]))
    0
    """
    totals: dict[int, float] = {}
    for each, weight in zip(classes, weights.tolist(), strict=True):
        totals[each] = totals.get(each, 0.0) + weight
    return max(totals, key=totals.__getitem__)


def lead_chance(first: int, second: int) -> float:
    """Give the chance that the class with the most votes is indeed more frequent than the second.

    Between the two of them alone, with all shares equally likely beforehand, the share of the
    first is Beta(first + 1, second + 1); this is its weight above one half (Aggarwal et al.,
    Adaptive-Consistency, arXiv:2305.11860, the Beta stopping criterion).

    Examples
    --------
    After four equal answers the density is 5 x^4, with 1 - 1/2^5 of it above one half:

    >>> float(lead_chance(4, 0))
    0.96875
    """
    return float(betainc(second + 1, first + 1, 0.5))


class Tally:
    """Votes that come one by one."""

    def __init__(self) -> None:
        self.votes: Counter[int] = Counter()

    def leaders(self) -> tuple[int, int]:
        """Give the votes of the two most frequent classes; 0 for those that are not there."""
        counts = [count for _, count in self.votes.most_common(2)] + [0, 0]
        return counts[0], counts[1]

    def is_decided(self, remaining: int) -> bool:
        """Tell whether no class can catch up with the first, whatever the remaining votes are."""
        first, second = self.leaders()
        return first - second > remaining
