"""Which experts of a mixture the tokens meet, and how unevenly the chips are loaded for it.

Pure arithmetic on the popularity of experts. A token picks ``k`` of ``E`` experts; expert ``i`` is
among them with probability ``q_i``, and the ``q_i`` add up to ``k``. `BALANCED` makes them equal,
`Routing` by itself is what serving runs were met best with.

What was measured: NVIDIA AIConfigurator draws loads of experts from a density ``x^-alpha`` and
matches alpha by latency, 1.01 for DeepSeek-V3 and R1 and 1.2 for Qwen3-235B
(github.com/ai-dynamo/aiconfigurator, docs/POWER_LAW_DISTRIBUTION.md): knobs, not histograms of
routers. Balancing with redundant experts (github.com/deepseek-ai/EPLB) gave LMSYS 1.49 times the
prefill and 2.54 times the decode throughput of DeepSeek on 96 H100, with statistics of the tested
distribution itself; DeepSeek serves with 32 redundant experts
(github.com/deepseek-ai/open-infra-index, day 6).
"""

import heapq
import math
from collections.abc import Sequence
from functools import lru_cache
from statistics import NormalDist
from typing import Annotated, NamedTuple, Self

import numpy as np
import numpy.typing as npt
from annotated_types import Ge, Gt
from pydantic import model_validator

from sim.schema import StrictModel
from sim.seeds import stream
from sim.units import NonNegativeInt

Array = npt.NDArray[np.float64]
Number = float | Array

FITTED_SKEW = 0.7
"""`Routing.skew` unless given: one number for all mixtures, chosen 2026-11-22 by the errors of 901
measured serving runs, for which overheads of engines were fitted anew each time. With the luck of
the draw and a skew of 0, 0.5, 0.7 and 1 the time per token of all runs is off by 7.3 (even, and
without luck), 7.2, 7.0 and 7.7 % in the median with random fifths held out, by 9.1 % with a
``power_law`` of 1.2. Of the four skews 0.7 meets the other mixtures best whichever one of them is
left out. Prompts of most of these runs were random tokens."""

POWER_LAW_DEEPSEEK = 1.01
"""`Routing.power_law` of DeepSeek-V3 and R1 (AIConfigurator, matched by latency)."""

POWER_LAW_QWEN3_235B = 1.2
"""`Routing.power_law` of Qwen3-235B-A22B (AIConfigurator, matched by latency)."""

POWER_LAW_TOKENS = 1024
"""Tokens of the batches in which AIConfigurator draws the loads of experts."""

POWER_LAW_SPAN = 0.8 * POWER_LAW_TOKENS
"""Largest over smallest load of the power law: loads are drawn from 1 to 0.8 times the tokens."""

_PLACEMENTS = 200
"""Random placements of experts on ranks from which a typical one is taken."""


class Routing(StrictModel):
    """How unevenly a router loads the experts, and what is done about it.

    Experts lie on the ranks without regard to their popularity, unless there are redundant ones:
    then replicas go to the most popular experts and all are packed by their exact loads (EPLB;
    a bound, for its statistics are yesterday's).
    """

    skew: Annotated[float, Ge(0)] = FITTED_SKEW
    """Exponent ``s`` of the popularity ``i^-s`` of the i-th expert; 0: all are equally popular."""
    power_law: Annotated[float, Gt(1)] | None = None
    """Exponent ``alpha`` of the density ``x^-alpha`` of the experts' loads, in place of ``skew``:
    `POWER_LAW_DEEPSEEK`, `POWER_LAW_QWEN3_235B`."""
    redundant_experts: NonNegativeInt = 0
    """Replicas per layer, on all ranks together."""
    sampling_noise: bool = True
    """Whether the slowest rank also has the bad luck of the draw: with few tokens even a uniform
    router loads the ranks unevenly."""

    @model_validator(mode="after")
    def _one_law(self) -> Self:
        if self.power_law is not None and self.skew and "skew" in self.model_fields_set:
            msg = (
                f"skew is {self.skew} and power_law is {self.power_law}: "
                "give one law of the experts' popularity"
            )
            raise ValueError(msg)
        return self

    @property
    def uniform(self) -> bool:
        """Whether all experts are equally popular."""
        return self.skew == 0.0 and self.power_law is None

    @property
    def source(self) -> str:
        """Where the law of the experts' popularity comes from."""
        if "skew" in self.model_fields_set or self.power_law is not None:
            return "given"
        return "fitted: one skew for all mixtures, 901 serving runs, 2026-11-22"

    def inclusion(self, experts: int, experts_per_token: int) -> Array:
        """Probability that a token picks each expert, most popular first; they add up to k.

        >>> q = Routing(skew=1.0).inclusion(256, 8)
        >>> round(float(q.sum()), 9), round(float(q[0] * 256 / 8))  # busiest over mean
        (8.0, 25)
        """
        if self.power_law is not None:
            return power_law_inclusion(experts, experts_per_token, self.power_law)
        weights = np.arange(1, experts + 1, dtype=float) ** -self.skew
        return inclusion_probabilities(weights, experts_per_token)

    def slots(self, experts: int, ranks: int) -> int:
        """Experts that each rank holds, replicas included.

        >>> Routing(redundant_experts=32).slots(256, 32)  # DeepSeek's prefill
        9
        """
        return -(-(experts + self.redundant_experts) // ranks)

    def touched(self, tokens: Number, experts: int, experts_per_token: int, ranks: int) -> Number:
        """Experts of the slowest rank that at least one token visits, expected.

        The sum over its experts of ``1 - (1 - q_i)^T``; equal ``q`` make it
        ``E / ranks * (1 - (1 - k/E)^T)``. With the luck of the draw it is the largest of the ranks'
        numbers, and not that of the rank that has most on average.

        Parameters
        ----------
        tokens : float or array
            Tokens of all ranks together.
        experts, experts_per_token, ranks : int
        """
        count = np.asarray(tokens, dtype=float)
        if self.uniform and not self.redundant_experts and not self.sampling_noise:
            missed = (1 - experts_per_token / experts) ** count
            return experts // ranks * (1 - missed)
        listed, numbers = _touched(self, experts, experts_per_token, ranks)
        most: Array = np.interp(count, listed, numbers)
        return most

    def visits(self, tokens: Number, experts: int, experts_per_token: int, ranks: int) -> Number:
        """Token-expert pairs that the slowest rank computes, expected.

        Unevenness of placement and luck of the draw are independent, so their excesses over the
        mean add up as squares.
        """
        slots = self.slots(experts, ranks)
        if self.uniform and not self.redundant_experts and not self.sampling_noise:
            return tokens * (experts_per_token * slots / experts)
        excess: Number = self.hottest_over_mean(experts, experts_per_token, ranks) - 1
        if self.sampling_noise:
            noise = sampling_imbalance(tokens, experts, experts_per_token, ranks) - 1
            excess = np.hypot(excess, noise)
        hottest = tokens * (experts_per_token / ranks) * (1 + excess)
        return np.minimum(hottest, np.multiply(tokens, min(experts_per_token, slots)))

    def hottest_over_mean(self, experts: int, experts_per_token: int, ranks: int) -> float:
        """Load of the hottest rank over the mean, with many tokens.

        >>> naive, balanced = Routing(power_law=1.2), Routing(power_law=1.2, redundant_experts=32)
        >>> [round(routing.hottest_over_mean(256, 8, 32), 1) for routing in (naive, balanced)]
        [2.9, 1.0]
        """
        return _hottest_over_mean(self, experts, experts_per_token, ranks)


LOAD_UNIT = 1000
"""Loads are counted in parts of this size, so that times stay whole numbers of ticks."""

_BLOCK = 500
"""Periods whose loads are drawn at once."""

_PERIODS = 500
"""Periods of which the law of an imbalance consists: loads of a run are drawn from theirs."""


class ExpertLayout(NamedTuple):
    """How the routed experts of a model lie on the ranks."""

    experts: int
    experts_per_token: int
    ranks: int
    layers: int


class Imbalance:
    """How the load of the fullest expert rank varies from period to period.

    Which experts are popular changes with what is being asked. A load is that of the fullest rank
    over what `Routing` expects of it, and never less.

    Parameters
    ----------
    loads : array
        Loads that occur, each as often as the others.
    period_steps : int
        Steps for which a load lasts.
    seed : int
        Of the run.
    names : sequence of str or int
        Of the stream of draws: replicas with names of their own draw for themselves.
    """

    def __init__(
        self, loads: Array, period_steps: int, seed: int, names: Sequence[str | int] = ()
    ) -> None:
        self.period_steps = period_steps
        self._seed = seed
        self._names = ("routing", "imbalance", *names)
        self._loads = np.rint(loads * LOAD_UNIT).astype(np.int64)
        self._drawn: dict[int, list[int]] = {}

    @classmethod
    def of_experts(
        cls,
        cv: float,
        layout: ExpertLayout,
        routing: Routing,
        period_steps: int,
        seed: int,
        names: Sequence[str | int] = (),
    ) -> Self:
        """Draw the loads of single experts; see `fullest_loads` for the law.

        >>> layout = ExpertLayout(experts=256, experts_per_token=8, ranks=8, layers=58)
        >>> experts = Imbalance.of_experts(1.0, layout, BALANCED, 128, seed=7)
        >>> loads = [experts.sample(period) / LOAD_UNIT for period in range(500)]
        >>> round(min(loads), 1), round(experts.mean, 2)
        (1.2, 1.27)
        """
        return cls(fullest_loads(cv, layout, routing), period_steps, seed, names)

    @property
    def mean(self) -> float:
        """Mean load over all periods."""
        return float(self._loads.mean()) / LOAD_UNIT

    def sample(self, period: int) -> int:
        """Load in a period, in `LOAD_UNIT`ths; the same whenever it is asked for."""
        block, place = divmod(period, _BLOCK)
        if block not in self._drawn:
            random = stream(self._seed, *self._names, block)
            self._drawn[block] = random.choice(self._loads, size=_BLOCK).tolist()
        return self._drawn[block][place]


@lru_cache(maxsize=64)
def fullest_loads(cv: float, layout: ExpertLayout, routing: Routing) -> Array:
    """Load of the fullest expert rank over what the law of routing expects, in many periods.

    In each period every expert of every layer, or replica of one, draws a log-normal factor of mean
    1 for the visits that the law of routing gives it. The load of a rank is that of the experts
    which lie on it, over the mean of all ranks: the total stays what it is. The fullest rank has
    the largest, so one rank always has 1, and of several that are alike the fullest never has less.
    A step meets all layers, each with draws of its own, so a period's load is the mean of theirs.
    Where the law of routing has a hottest rank, that of a period is drawn with it in place, not on
    top of it, and is taken to be no less than it.

    Deterministic: the draws have a seed of their own.

    Parameters
    ----------
    cv : float
        Coefficient of variation of the load of one expert from period to period.
    layout : ExpertLayout
    routing : Routing

    Returns
    -------
    loads : array of shape (periods,)
        At least 1.
    """
    experts, experts_per_token, ranks, layers = layout
    if ranks == 1:
        return np.ones(_PERIODS)
    random = stream(0, "routing", "imbalance", "law")
    sigma = math.sqrt(math.log1p(cv**2))
    placed = _placement(routing, experts, experts_per_token, ranks)
    chances, sizes = np.concatenate(placed), np.array([rank.size for rank in placed])
    first = np.cumsum(sizes) - sizes
    total = np.zeros(_PERIODS)
    for _ in range(layers):
        drawn = chances * np.exp(sigma * random.standard_normal((_PERIODS, chances.size)))
        total += np.add.reduceat(drawn, first, axis=1).max(axis=1) / drawn.mean(axis=1)
    hottest = total / (layers * chances.size) * ranks
    expected = routing.hottest_over_mean(experts, experts_per_token, ranks)
    return np.maximum(hottest / expected, 1.0)


BALANCED = Routing(skew=0.0, sampling_noise=False)
"""Every expert is equally popular and no rank has luck, as DeepSeek's published kernel profiles
assume."""


def inclusion_probabilities(weights: Array, picks: int) -> Array:
    """Probability that each item is among those drawn one by one without replacement.

    Rosen's approximation ``q_i = 1 - exp(-t w_i)``, with ``t`` such that they add up to the number
    of picks (B. Rosen, Ann. Math. Statist. 43, 1972): a router that adds Gumbel noise to the
    logarithms of the weights and takes the largest. Equal weights give exactly ``picks / n``.

    Parameters
    ----------
    weights : array
        Positive, in any unit.
    picks : int
        At most as many as there are weights.

    >>> inclusion_probabilities(np.array([1.0, 1.0, 1.0, 1.0]), 2).tolist()
    [0.5, 0.5, 0.5, 0.5]
    """
    if picks >= weights.size:
        return np.ones(weights.size)
    if np.ptp(weights) == 0.0:
        return np.full(weights.size, picks / weights.size)
    scaled = weights / weights.sum()
    low, high = 0.0, -math.log1p(-picks / weights.size) / float(scaled.min())
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        if -np.expm1(-middle * scaled).sum() < picks:
            low = middle
        else:
            high = middle
    found: Array = -np.expm1(-high * scaled)
    return found


_BISECTIONS = 100


def power_law_inclusion(experts: int, picks: int, alpha: float) -> Array:
    """Probability that a token picks each expert when loads have the density ``x^-alpha``.

    The loads are the quantiles of that density on ``[1, POWER_LAW_SPAN]``, most popular first, in
    proportion; none is picked twice by a token, so what is above one goes to the others.
    """
    quantiles = (np.arange(experts) + 0.5) / experts
    bent = 1 - alpha
    loads = (1 + quantiles * (POWER_LAW_SPAN**bent - 1)) ** (1 / bent)
    return _at_most_one(loads[::-1], picks)


def _at_most_one(loads: Array, total: int) -> Array:
    """Scale loads, largest first, to a total in which none is above one."""
    if total >= loads.size:
        return np.ones(loads.size)
    full = 0
    while True:
        found = np.ones(loads.size)
        found[full:] = loads[full:] * ((total - full) / loads[full:].sum())
        if found[full] <= 1.0:
            return found
        full += 1


def sampling_imbalance(tokens: Number, experts: int, experts_per_token: int, ranks: int) -> Number:
    """Visits of the busiest rank over the mean when the router is uniform but tokens are few.

    A rank gets ``k / ranks`` visits of a token on average, with the variance of drawing ``k`` of
    ``E`` without replacement; over many tokens the ranks are normal and add up to a constant. The
    largest of n normals is taken at its Blom score. Not for single experts, whose few visits are
    not normal.

    >>> [round(float(sampling_imbalance(t, 256, 8, 8)), 2) for t in (32, 128, 512)]
    [1.25, 1.13, 1.06]
    """
    if ranks == 1 or experts_per_token >= experts:
        return np.ones_like(np.asarray(tokens, dtype=float))
    mean = experts_per_token / ranks
    unseen = (experts - experts_per_token) / (experts - 1)
    variance = mean * (1 - 1 / ranks) * unseen * ranks / (ranks - 1)
    blom = NormalDist().inv_cdf((ranks - 0.375) / (ranks + 0.25))
    count = np.maximum(np.asarray(tokens, dtype=float), 1.0)
    imbalance: Array = 1 + blom * np.sqrt(variance / count) / mean
    return imbalance


@lru_cache(maxsize=256)
def _touched(
    routing: Routing, experts: int, experts_per_token: int, ranks: int
) -> tuple[Array, Array]:
    """Experts that some numbers of tokens touch on the slowest rank, to interpolate between."""
    placed = _placement(routing, experts, experts_per_token, ranks)
    missed = [(1 - rank) ** _LISTED_TOKENS[:, np.newaxis] for rank in placed]
    if routing.sampling_noise and ranks > 1:
        most = _most_of_all(missed)
    else:
        most = np.maximum.reduce([(1 - each).sum(axis=-1) for each in missed])
    most = np.minimum(most, _LISTED_TOKENS * experts_per_token)
    return _LISTED_TOKENS, np.maximum.accumulate(most)


def _most_of_all(missed: Sequence[Array]) -> Array:
    """Largest of the ranks' numbers of touched experts, expected.

    Experts are taken to be touched independently of each other, so the number of a rank is Poisson
    binomial, and the largest has the product of their distribution functions.

    Parameters
    ----------
    missed : sequence of array of shape (tokens, experts)
        Of each rank: probability that nobody visits an expert.
    """
    slots = max(rank.shape[1] for rank in missed)
    none_has_more = np.ones((missed[0].shape[0], slots + 1))
    for rank in missed:
        chance = np.zeros_like(none_has_more)
        chance[:, 0] = 1.0
        for miss in rank.T[:, :, np.newaxis]:
            touched = (1 - miss) * chance
            chance = miss * chance
            chance[:, 1:] += touched[:, :-1]
        none_has_more *= np.cumsum(chance, axis=1)
    most: Array = np.sum(1 - none_has_more, axis=1)
    return most


_LISTED_TOKENS = np.append(np.arange(32.0), np.geomspace(32.0, 1e6, 350))
"""Whole numbers while they are few, then within 3 % of each other: no rank of any model misses an
expert beyond."""


@lru_cache(maxsize=256)
def _hottest_over_mean(routing: Routing, experts: int, experts_per_token: int, ranks: int) -> float:
    loads = [float(rank.sum()) for rank in _placement(routing, experts, experts_per_token, ranks)]
    return max(loads) * ranks / experts_per_token


@lru_cache(maxsize=256)
def _placement(
    routing: Routing, experts: int, experts_per_token: int, ranks: int
) -> tuple[Array, ...]:
    """Probabilities by which a token picks the experts of each rank."""
    chances = routing.inclusion(experts, experts_per_token)
    if routing.redundant_experts:
        return _balanced(chances, routing.slots(experts, ranks), ranks, routing.redundant_experts)
    return _typical(chances, ranks)


def _typical(chances: Array, ranks: int) -> tuple[Array, ...]:
    """Place experts at random: of many placements one whose hottest rank is as hot as on average.

    Deterministic: the draws have a seed of their own.
    """
    random = stream(0, "routing", "placement")
    drawn = [random.permutation(chances) for _ in range(_PLACEMENTS)]
    hottest = np.array([rank_loads(placed, ranks).max() for placed in drawn])
    typical = drawn[int(np.abs(hottest - hottest.mean()).argmin())]
    return tuple(np.array_split(typical, ranks))


def rank_loads(chances: Array, ranks: int) -> Array:
    """Visits per token of each rank, when experts are dealt to them in equal runs."""
    return np.array([part.sum() for part in np.array_split(chances, ranks)])


def _balanced(chances: Array, slots: int, ranks: int, replicas: int) -> tuple[Array, ...]:
    """Replicate the most loaded experts, then give each to the least loaded rank with room.

    The greedy rules of EPLB's global policy (github.com/deepseek-ai/EPLB, ``eplb.py``); tokens are
    spread evenly over the replicas of an expert.
    """
    heap = [(-chance, 1, chance) for chance in chances.tolist()]
    heapq.heapify(heap)
    for _ in range(replicas):
        _, copies, chance = heap[0]
        heapq.heapreplace(heap, (-chance / (copies + 1), copies + 1, chance))
    parts = sorted((chance / n for _, n, chance in heap for _ in range(n)), reverse=True)
    placed: list[list[float]] = [[] for _ in range(ranks)]
    open_ranks = [(0.0, rank) for rank in range(ranks)]
    for part in parts:
        load, rank = heapq.heappop(open_ranks)
        placed[rank].append(part)
        if len(placed[rank]) < slots:
            heapq.heappush(open_ranks, (load + part, rank))
    return tuple(np.array(rank) for rank in placed)
