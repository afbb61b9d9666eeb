"""With a constant step time a replica is a textbook queue, and the textbook knows its waits.

``max_num_seqs`` is the number of servers, an answer of ``n`` tokens is a service of ``n`` steps
(its prompt of one token and its first token share a step). Times are in steps. Each comparison
uses a 99 % confidence interval from batch means and also shows that it would see an error of
10 %: a formula off by that much lies outside of the interval.

Formulas: L. Kleinrock, Queueing Systems, volume 1 (Wiley, 1975), chapters 3 and 5; for processor
sharing volume 2 (1976), chapter 4.
"""

from collections.abc import Sequence
from math import factorial, sqrt

import numpy as np
import numpy.typing as npt
import pytest
from scipy import stats

from sim.engine.clients import OpenLoop
from sim.engine.cluster import Cluster, PoolPlan, RunRecord
from sim.engine.plan import ReplicaPlan
from sim.engine.requests import Request
from sim.engine.rules import SchedulerRules
from sim.engine.stretch import Stretch
from sim.engine.ticks import ConstantPace, Line, Pace

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]

STEP = 1_000_000
"""Ticks of a step: so many that arrivals hardly ever fall on a boundary."""
SEQUENCE = STEP
BATCHES = 20
UNLIMITED = 10_000


class SharedPace:
    """Steps in proportion to the sequences in them: the replica shares itself out equally."""

    def line(self, stretch: Stretch, steps_before: int = 0, /) -> Line:
        del steps_before
        return SEQUENCE * (stretch.decode_sequences + len(stretch.chunks)), 0, None


def poisson_arrivals(rng: np.random.Generator, per_step: float, count: int) -> Integers:
    """Arrival ticks of a Poisson process of ``per_step`` arrivals a step."""
    return np.cumsum(rng.exponential(STEP / per_step, count)).astype(np.int64)


def serve(
    arrivals: Integers,
    outputs: Integers,
    servers: int,
    *,
    pace: Pace | None = None,
    inputs: Sequence[int] | None = None,
    budget: int | None = None,
) -> tuple[list[Request], RunRecord]:
    """Run one replica with as many places as there are servers, and no want of KV blocks."""
    plan = ReplicaPlan(
        rules=SchedulerRules(servers, budget or servers + 1),
        kv_blocks=10**9,
        block_tokens=16,
        pace=pace or ConstantPace(STEP),
        max_model_len=10**9,
    )
    prompts = [1] * len(outputs) if inputs is None else inputs
    rows = zip(arrivals.tolist(), prompts, outputs.tolist(), strict=True)
    requests = [Request(number, *row) for number, row in enumerate(rows)]
    return requests, Cluster([PoolPlan("serve", 1, plan)]).run(OpenLoop(requests))


def waits(requests: Sequence[Request]) -> Floats:
    """Steps from arrival to admission, in order of arrival."""
    return np.array([request.admit_tick - request.arrival_tick for request in requests]) / STEP


def sojourns(requests: Sequence[Request]) -> Floats:
    """Steps from arrival to completion, in order of arrival."""
    return np.array([request.done_tick - request.arrival_tick for request in requests]) / STEP


def confidence_interval(samples: Floats) -> tuple[float, float]:
    """Interval that holds the mean with 99 % confidence; samples may be correlated.

    The first part, filled from an empty system, does not count; the means of the long batches
    that follow are nearly independent.
    """
    settled = samples[samples.size // 20 :]
    size = settled.size // BATCHES
    means = settled[: size * BATCHES].reshape(BATCHES, size).mean(axis=1)
    half = float(stats.t.ppf(0.995, BATCHES - 1) * means.std(ddof=1) / sqrt(BATCHES))
    return float(means.mean()) - half, float(means.mean()) + half


def assert_mean(samples: Floats, expected: float) -> None:
    """Demand that the interval contains the expected mean, and would not if it were 10 % off."""
    low, high = confidence_interval(samples)
    assert low < expected < high
    assert high < 1.1 * expected
    assert low > 0.9 * expected


def pollaczek_khinchine(per_step: float, mean: float, second_moment: float) -> float:
    """Mean wait in M/G/1: ``lambda E[S^2] / (2 (1 - rho))``.

    >>> pollaczek_khinchine(0.05, 10.0, 100.0)  # M/D/1 at load 0.5: 0.5 * 10 / (2 * 0.5)
    5.0
    """
    return per_step * second_moment / (2.0 * (1.0 - per_step * mean))


def erlang_c(servers: int, offered: float) -> float:
    """Probability that all servers of M/M/c are busy, by Erlang's second formula.

    >>> erlang_c(1, 0.7)  # of a single server: its load
    0.7
    >>> round(erlang_c(2, 1.0), 12)  # (1/2) 2 / (1 + 1 + 1) = 1/3
    0.333333333333
    """
    load = offered / servers
    all_busy = offered**servers / factorial(servers) / (1.0 - load)
    return all_busy / (sum(offered**n / factorial(n) for n in range(servers)) + all_busy)


def lindley_waits(arrivals: Integers, services: Integers) -> list[int]:
    """Waits of a single server, exactly: ``w' = max(0, w + s - a)`` with the next gap ``a``."""
    wait, found = 0, [0]
    for service, gap in zip(services[:-1].tolist(), np.diff(arrivals).tolist(), strict=True):
        wait = max(0, wait + service - gap)
        found.append(wait)
    return found


def test_one_place_is_a_single_server_to_the_tick() -> None:
    """Lindley's recursion, with prompts in chunks: ``ceil(in / 8) + out - 1`` steps each."""
    rng = np.random.default_rng(11)
    inputs, outputs = rng.integers(1, 60, 5000), rng.integers(1, 40, 5000)
    steps = -(-inputs // 8) + outputs - 1
    arrivals = poisson_arrivals(rng, 0.9 / float(steps.mean()), 5000)
    requests, _ = serve(arrivals, outputs, 1, inputs=inputs.tolist(), budget=8)
    ticks = [request.admit_tick - request.arrival_tick for request in requests]
    assert ticks == lindley_waits(arrivals, steps * STEP)
    assert max(ticks) > 100 * STEP


def test_answers_of_equal_length_wait_as_in_m_d_1() -> None:
    rng = np.random.default_rng(12)
    tokens, load, count = 20, 0.8, 60_000
    arrivals = poisson_arrivals(rng, load / tokens, count)
    requests, _ = serve(arrivals, np.full(count, tokens), servers=1)
    expected = load * tokens / (2.0 * (1.0 - load))
    assert expected == pytest.approx(pollaczek_khinchine(load / tokens, tokens, tokens**2))
    assert_mean(waits(requests), expected)


def test_answers_of_geometric_length_wait_as_in_m_m_1() -> None:
    rng = np.random.default_rng(13)
    tokens, load, count = 200.0, 0.6, 100_000
    arrivals = poisson_arrivals(rng, load / tokens, count)
    requests, _ = serve(arrivals, rng.geometric(1.0 / tokens, count), servers=1)
    expected = load / (1.0 - load) * tokens  # rho / (mu - lambda)
    # exactly it is M/G/1 with E[S^2] = (2 - p) / p^2, which is 2 / p^2 but for 0.25 %
    second_moment = (2.0 - 1.0 / tokens) * tokens**2
    assert pollaczek_khinchine(load / tokens, tokens, second_moment) == pytest.approx(
        expected, rel=0.003
    )
    assert_mean(waits(requests), expected)


@pytest.mark.parametrize(("servers", "load"), [(2, 0.7), (4, 0.7)])
def test_several_places_wait_as_in_m_m_c(servers: int, load: float) -> None:
    """A newcomer who finds a free place still waits for the boundary: half a step on average.

    The queue itself sees no such delay: there a place becomes free at a boundary.
    """
    rng = np.random.default_rng(14)
    tokens, count = 100.0, 120_000
    offered = servers * load
    arrivals = poisson_arrivals(rng, offered / tokens, count)
    requests, _ = serve(arrivals, rng.geometric(1.0 / tokens, count), servers)
    queued = erlang_c(servers, offered)
    in_the_queue = queued * tokens / (servers - offered)  # C / (c mu - lambda)
    idle = (1.0 - queued) / sum(offered**n / factorial(n) for n in range(servers))
    assert_mean(waits(requests), in_the_queue + 0.5 * (1.0 - queued - idle))


def test_the_queue_is_met_as_often_as_erlang_says() -> None:
    """Arrivals that find all places taken: those who wait longer than to the next boundary."""
    rng = np.random.default_rng(15)
    servers, offered, tokens, count = 4, 2.6, 400.0, 60_000
    arrivals = poisson_arrivals(rng, offered / tokens, count)
    requests, _ = serve(arrivals, rng.geometric(1.0 / tokens, count), servers)
    # who finds all places taken gets one at the very next boundary in one case of 100
    assert_mean((waits(requests) > 1.0).astype(float), 0.99 * erlang_c(servers, offered))


@pytest.mark.parametrize("shape", ["fixed", "geometric"])
def test_places_for_all_make_an_infinite_server(shape: str) -> None:
    """M/G/inf: the number running is Poisson with mean ``lambda E[S]`` for any lengths."""
    rng = np.random.default_rng(16)
    tokens, offered, count = 200, 6.0, 25_000
    outputs = np.full(count, tokens) if shape == "fixed" else rng.geometric(1.0 / tokens, count)
    arrivals = poisson_arrivals(rng, offered / tokens, count)
    requests, record = serve(arrivals, outputs, UNLIMITED)
    # idle or at the boundary, half a step on average when others run: P(N = 0) = exp(-6)
    assert_mean(sojourns(requests), tokens + 0.5 * (1.0 - np.exp(-offered)))
    stretches = record.stretches
    running = stretches["decode_sequences"] + stretches["prefill_sequences"]
    shares = np.bincount(running, weights=stretches["steps"].astype(float))
    shares[0] = requests[-1].done_tick / STEP - shares.sum()
    shares /= shares.sum()
    poisson = stats.poisson.pmf(np.arange(shares.size), offered)
    distance = 0.5 * np.abs(shares - poisson).sum()
    assert distance < 0.03
    wrong = stats.poisson.pmf(np.arange(shares.size), 1.1 * offered)
    assert 0.5 * np.abs(shares - wrong).sum() > 0.06


@pytest.mark.parametrize("shape", ["fixed", "geometric"])
def test_steps_in_proportion_to_the_batch_share_the_processor(shape: str) -> None:
    """M/G/1-PS: mean time in the system is ``E[S] / (1 - rho)``, whatever the lengths.

    A newcomer also waits for the end of the step in progress: half of ``E[N]`` service times of
    one token, with ``E[N] = rho / (1 - rho)``.
    """
    rng = np.random.default_rng(17)
    tokens, load, count = 100, 0.6, 40_000
    outputs = np.full(count, tokens) if shape == "fixed" else rng.geometric(1.0 / tokens, count)
    arrivals = poisson_arrivals(rng, load / tokens, count)
    requests, _ = serve(arrivals, outputs, UNLIMITED, pace=SharedPace())
    others = load / (1.0 - load)
    assert_mean(sojourns(requests), tokens / (1.0 - load) + 0.5 * others)
