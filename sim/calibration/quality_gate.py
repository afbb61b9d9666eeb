"""How good gates are: what measured ones know, and what dynamic allocation is said to need."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import optimize, special, stats

from sim.quality.benchmark import Assumed, Benchmark, GateMeasurement, Laws
from sim.quality.laws import Difficulty, Floats, GateLaw, LawFit, all_ranks, shift_to, shifted
from sim.quality.selection import counts_of_right

SCORES = np.linspace(-5.0, 5.0, 1001)
"""Normal scores of questions, and of what a gate believes of them."""
NOISES = 800
"""What the truth may be for one guess."""


class Option(NamedTuple):
    """One way to work on a question."""

    cost: float
    """Direct answers."""
    chance: Floats
    """Of a right answer, at each of `SCORES`."""


class Allocation(NamedTuple):
    """What the best allocation at a mean cost achieves."""

    accuracy: float
    cost: float


def options(benchmark: Benchmark, laws: Laws) -> list[Option]:
    """Return what a gate can choose between: a direct answer, and all that was measured.

    A chain of x tokens costs x over those of a direct answer, r rounds of refinement cost r, and
    a search of x nodes x direct answers.
    """
    chances = _chances(laws.difficulty)
    found = [Option(1.0, chances)]
    for point in benchmark.points:
        if point.strategy == "effort":
            cost = point.x / benchmark.answer_tokens.mean_tokens
            shift = shift_to(laws.difficulty, point.accuracy)
            found.append(Option(cost, shifted(chances, shift)))
        if point.strategy == "search":
            found.append(
                Option(point.x, shifted(chances, shift_to(laws.difficulty, point.accuracy)))
            )
        if point.strategy == "revision" and laws.revision is not None:
            gain = [laws.revision.accuracy(start, round(point.x)) for start in (0.0, 1.0)]
            found.append(Option(point.x, gain[0] + (gain[1] - gain[0]) * chances))
    return [one for one in found if one.cost >= 1.0]


def _chances(difficulty: Difficulty) -> Floats:
    return difficulty.chances(special.ndtr(SCORES))


def allocated(choices: Sequence[Option], correlation: float, cost: float) -> Allocation:
    """Return the best that a gate of some correlation can do at a mean cost.

    For each guess, the gate takes the option with the most expected accuracy less a price of
    compute; the price is such that the mean cost is met. The allocation that does so is optimal
    among all that know only the guess (Lagrange).
    """
    weights = np.exp(-(SCORES**2) / 2)
    weights /= weights.sum()
    believed = np.array([_expected(one.chance, correlation) for one in choices])
    costs = np.array([one.cost for one in choices])

    def at(price: float) -> Allocation:
        chosen = np.argmax(believed - price * costs[:, None], axis=0)
        accuracy = float(weights @ believed[chosen, np.arange(len(SCORES))])
        return Allocation(accuracy, float(weights @ costs[chosen]))

    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        if at(middle).cost > cost:
            low = middle
        else:
            high = middle
    below, above = at(high), at(low)
    if above.cost <= below.cost:
        return below
    # Some guesses are worth two options equally: a share of them has the dearer one.
    share = min(max((cost - below.cost) / (above.cost - below.cost), 0.0), 1.0)
    return Allocation(
        below.accuracy + share * (above.accuracy - below.accuracy),
        below.cost + share * (above.cost - below.cost),
    )


def _expected(chance: Floats, correlation: float) -> Floats:
    """Return the expected chance of questions by what a gate believes of them.

    True score given guess g: normal with mean rho g and variance 1 - rho^2.
    """
    spread = np.sqrt(1 - correlation**2)
    # Equally likely noises, for chances may step from 0 to 1 where Gauss nodes would miss it.
    noise = special.ndtri((np.arange(NOISES) + 0.5) / NOISES)
    truth = correlation * SCORES[:, None] + spread * noise[None, :]
    return np.asarray(np.interp(truth, SCORES, chance).mean(axis=1))


def correlation_for(choices: Sequence[Option], cost: float, accuracy: float) -> float | None:
    """Return the correlation at which a gate achieves an accuracy; none if no gate does."""
    if allocated(choices, 1.0, cost).accuracy < accuracy:
        return None
    if allocated(choices, 0.0, cost).accuracy >= accuracy:
        return 0.0
    return float(
        optimize.brentq(lambda x: allocated(choices, x, cost).accuracy - accuracy, 0, 1, xtol=1e-6)
    )


def expected(measurement: GateMeasurement, difficulty: Difficulty, correlation: float) -> float:
    """Return what a statistic of a gate comes to if its correlation of normal scores is so."""
    guesses = _expected_guesses(correlation)
    chances = difficulty.chances(all_ranks())
    if measurement.statistic == "auc":
        return _auc(chances, guesses)
    return _spearman(difficulty, guesses, measurement.samples)


def _expected_guesses(correlation: float) -> Floats:
    """Return the expected guessed rank of questions by their true one.

    E Phi(rho z + sqrt(1 - rho^2) noise) = Phi(rho z / sqrt(2 - rho^2)).
    """
    scores = special.ndtri(all_ranks())
    return np.asarray(special.ndtr(correlation * scores / np.sqrt(2 - correlation**2)))


def _auc(chances: Floats, guesses: Floats) -> float:
    """Return the chance that a right answer was to a question guessed easier than a wrong one.

    The mean rank of those with a right answer is AUC (1 - share) + share / 2.
    """
    share = float(chances.mean())
    mean_rank = float((chances * guesses).mean()) / share
    return (mean_rank - share / 2) / (1 - share)


def _spearman(difficulty: Difficulty, guesses: Floats, samples: int) -> float:
    """Return the rank correlation of guesses and right answers among some, ties at middle ranks."""
    counts = counts_of_right(difficulty, samples)
    middle_ranks = np.cumsum(counts) - counts / 2
    chances = difficulty.chances(all_ranks())
    places = stats.binom.pmf(np.arange(samples + 1), samples, chances[:, None]) @ middle_ranks
    covariance = float(((guesses - 0.5) * (places - 0.5)).mean())
    variance = float(counts @ (middle_ranks - 0.5) ** 2)
    return float(covariance / np.sqrt(variance / 12))


def _measured_gate(benchmark: Benchmark, laws: Laws) -> GateLaw | None:
    """Fit the correlation to what was measured of a gate."""
    own = [one for one in benchmark.gates if one.fitted]
    if not own:
        return None

    def errors(correlation: float) -> Floats:
        return np.array([expected(one, laws.difficulty, correlation) - one.value for one in own])

    best = optimize.minimize_scalar(
        lambda x: float((errors(x) ** 2).sum()), bounds=(0, 1), options={"xatol": 1e-7}
    )
    correlation = round(float(best.x), 3)
    left = np.abs(errors(correlation))
    fit = LawFit(
        points=len(own),
        parameters=1,
        max_error_fraction=float(np.ceil(left.max() * 1e4) / 1e4),
        rms_error_fraction=float(np.ceil(np.sqrt(np.mean(left**2)) * 1e4) / 1e4),
        range=(min(one.samples for one in own), max(one.samples for one in own)),
        date=laws.difficulty.fit.date if laws.difficulty.fit else "",
    )
    source = "; ".join(one.source for one in own)
    return GateLaw(correlation=correlation, source=source, confidence=own[0].confidence, fit=fit)


def fitted_gate(benchmark: Benchmark, laws: Laws, assumed: Assumed) -> GateLaw | None:
    """Return a measured gate, or that which dynamic allocation asks for, or an assumed one."""
    measured = _measured_gate(benchmark, laws)
    if measured is not None:
        return measured
    dynamic = [one for one in benchmark.points if one.strategy == "dynamic"]
    if not dynamic:
        if assumed.gate_correlation is None:
            return None
        return GateLaw(
            correlation=assumed.gate_correlation, source=assumed.why, confidence="estimate"
        )
    point = dynamic[0]
    choices = options(benchmark, laws)
    needed = correlation_for(choices, point.x, point.accuracy)
    correlation = 1.0 if needed is None else round(needed, 4)
    best = allocated(choices, correlation, point.x).accuracy
    error = float(np.ceil(abs(best - point.accuracy) * 1e4) / 1e4)
    reached = (
        f"correlation at which the best allocation of the other rows reaches {point.accuracy:g} "
        f"at {point.x:g} direct answers"
        if needed is not None
        else f"no gate reaches {point.accuracy:g} at {point.x:g} direct answers with the other "
        f"rows' strategies: a perfect one has {best:.3f}"
    )
    fit = LawFit(
        points=1,
        parameters=1,
        max_error_fraction=error,
        rms_error_fraction=error,
        range=(point.x, point.x),
        date=laws.difficulty.fit.date if laws.difficulty.fit else "",
        assumed=None,
    )
    return GateLaw(correlation=correlation, source=reached, confidence="estimate", fit=fit)
