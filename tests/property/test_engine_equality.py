"""The engine jumps; the same engine walks every step; a naive engine loops over lists: all equal.

Equal means equal: ticks are whole numbers, and there is no tolerance anywhere.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from naive_engine import Limits, NaiveRun, StepSums

from sim.engine.cluster import Cluster, ReplicaPlan, RunRecord
from sim.engine.clock import TICKS_PER_S
from sim.engine.requests import Request
from sim.engine.scheduler import BatchLimits, Stretch

NEVER = -1


@dataclass(frozen=True)
class LinearPace:
    """Whole ticks that depend on every sum of a step, each with a coefficient of its own."""

    step: int
    token: int = 0
    sequence: int = 0
    key: int = 0
    window_key: int = 0
    pair: int = 0
    window_pair: int = 0
    crowd: int = 0
    """Per decoding sequence and key: the slope itself depends on the batch."""

    def ticks(self, sums: StepSums) -> int:
        """Duration of one step, for the naive engine."""
        decoding = sums.decode_sequences
        return (
            self.step
            + self.token * (decoding + sums.prefill_tokens)
            + self.sequence * (decoding + sums.prefill_sequences)
            + (self.key + self.crowd * decoding) * sums.decode_keys
            + self.window_key * sums.decode_window_keys
            + self.pair * sums.prefill_pairs
            + self.window_pair * sums.prefill_window_pairs
        )

    def line(self, stretch: Stretch) -> tuple[int, int]:
        """Start and growth of the steps of a stretch, for the engine.

        The keys of its step ``i`` are ``context_tokens + i * decode_sequences``.
        """
        decoding = stretch.decode_sequences
        key = self.key + self.crowd * decoding
        start = (
            self.step
            + self.token * (decoding + stretch.prefill_tokens)
            + self.sequence * (decoding + len(stretch.chunks))
            + key * stretch.context_tokens
            + self.window_key * stretch.window_tokens
            + self.pair * stretch.prefill_pairs
            + self.window_pair * stretch.prefill_window_pairs
        )
        return start, key * decoding + self.window_key * stretch.window_growing


@dataclass(frozen=True)
class Config:
    """A cluster and its traffic."""

    limits: Limits
    pace: LinearPace
    requests: tuple[tuple[int, int, int], ...]
    """Arrival tick, input and output tokens; a closed loop ignores the arrivals."""
    clients: int | None = None

    @property
    def lengths(self) -> list[tuple[int, int]]:
        return [(inputs, outputs) for _, inputs, outputs in self.requests]


def simulated(config: Config, *, every_step: bool) -> tuple[Cluster, RunRecord]:
    limits = config.limits
    plan = ReplicaPlan(
        limits=BatchLimits(limits.max_num_seqs, limits.max_num_batched_tokens),
        kv_blocks=limits.kv_blocks,
        block_tokens=limits.block_tokens,
        window_tokens=limits.window_tokens,
        pace=config.pace,
        max_model_len=limits.max_model_len,
    )
    cluster = Cluster(plan, limits.replicas, limits.router, every_step=every_step)
    if config.clients is not None:
        return cluster, cluster.run_closed(config.lengths, config.clients)
    requests = (Request(number, *row) for number, row in enumerate(config.requests))
    return cluster, cluster.run_open(requests)


def naive(config: Config) -> NaiveRun:
    run = NaiveRun(config.limits, config.pace.ticks)
    if config.clients is not None:
        return run.closed_loop(config.lengths, config.clients)
    return run.open_loop(config.requests)


def whole_ticks(seconds: np.ndarray) -> list[int]:
    """Ticks behind recorded seconds: exact, for these runs stay below 2**52 ticks."""
    return [NEVER if np.isnan(s) else round(s * TICKS_PER_S) for s in seconds.tolist()]


def fates(record: RunRecord) -> dict[int, tuple[object, ...]]:
    """What became of each request."""
    columns = record.requests
    times = (whole_ticks(columns[f"{name}_s"]) for name in ("arrival", "admit"))
    later = (whole_ticks(columns[f"{name}_s"]) for name in ("first_token", "done"))
    rest = (columns[name].tolist() for name in ("replica", "preemptions", "outcome"))
    rows = zip(*times, *later, *rest, strict=True)
    return dict(zip(columns["request_id"].tolist(), rows, strict=True))


def naive_fates(run: NaiveRun) -> dict[int, tuple[object, ...]]:
    return {
        sequence.number: (
            sequence.arrival,
            sequence.admitted,
            sequence.first_token,
            sequence.done,
            sequence.replica,
            sequence.preemptions,
            "rejected" if sequence.rejected else "completed",
        )
        for sequence in run.sequences
    }


SUMS = (
    "decode_context_tokens",
    "decode_window_tokens",
    "prefill_sequences",
    "prefill_tokens",
    "prefill_pairs",
    "prefill_window_pairs",
    "first_tokens",
)


def totals(record: RunRecord, replicas: int) -> list[dict[str, int]]:
    """Work of each replica, summed over its stretches."""
    columns = record.stretches
    found = []
    for index in range(replicas):
        mine = columns["replica"] == index
        sums = {name: int(columns[name][mine].sum()) for name in SUMS}
        steps = columns["steps"][mine]
        starts, ends = (whole_ticks(columns[name][mine]) for name in ("start_s", "end_s"))
        sums["steps"] = int(steps.sum())
        sums["decode_sequences"] = int((steps * columns["decode_sequences"][mine]).sum())
        sums["busy"] = sum(ends) - sum(starts)
        found.append(sums)
    return found


def naive_totals(run: NaiveRun) -> list[dict[str, int]]:
    windowed = run.limits.window_tokens is not None
    found = []
    for index in range(run.limits.replicas):
        steps = [step for step in run.steps if step.replica == index]
        sums = [step.sums for step in steps]
        decoded = sum(s.decode_sequences for s in sums)
        found.append(
            {
                "decode_context_tokens": sum(s.decode_keys for s in sums),
                "decode_window_tokens": windowed * sum(s.decode_window_keys for s in sums),
                "prefill_sequences": sum(s.prefill_sequences for s in sums),
                "prefill_tokens": sum(s.prefill_tokens for s in sums),
                "prefill_pairs": sum(s.prefill_pairs for s in sums),
                "prefill_window_pairs": windowed * sum(s.prefill_window_pairs for s in sums),
                "first_tokens": sum(step.tokens for step in steps) - decoded,
                "steps": len(steps),
                "decode_sequences": decoded,
                "busy": sum(step.end - step.start for step in steps),
            }
        )
    return found


@st.composite
def limits_of_replicas(draw: st.DrawFn) -> Limits:
    block_tokens = draw(st.sampled_from([1, 2, 3, 4, 16]))
    max_num_seqs = draw(st.integers(1, 6))
    pool_tokens = draw(st.integers(block_tokens, 120))  # small: preemption is the rule
    return Limits(
        block_tokens=block_tokens,
        kv_blocks=pool_tokens // block_tokens,
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=max_num_seqs + draw(st.integers(0, 24)),
        max_model_len=draw(st.sampled_from([50, 1000, 1000])),
        window_tokens=draw(st.none() | st.integers(1, 30)),
        replicas=draw(st.integers(1, 3)),
        router=draw(st.sampled_from(["round_robin", "least_outstanding"])),
    )


paces = st.builds(
    LinearPace,
    step=st.sampled_from([1, 7, 10, 100]),  # few values, so that boundaries often coincide
    token=st.integers(0, 2),
    sequence=st.integers(0, 2),
    key=st.integers(0, 2),
    window_key=st.integers(0, 2),
    pair=st.integers(0, 1),
    window_pair=st.integers(0, 1),
    crowd=st.integers(0, 1),
) | st.builds(LinearPace, step=st.sampled_from([1, 10]))

gaps = st.just(0) | st.integers(0, 60) | st.integers(0, 2000)


@st.composite
def configs(draw: st.DrawFn) -> Config:
    shapes = st.tuples(gaps, st.integers(1, 40), st.integers(1, 30) | st.just(1))
    rows = draw(st.lists(shapes, min_size=1, max_size=12))
    arrivals = np.cumsum([gap for gap, _, _ in rows]).tolist()
    requests = tuple(
        (arrival, inputs, outputs)
        for arrival, (_, inputs, outputs) in zip(arrivals, rows, strict=True)
    )
    clients = draw(st.none() | st.integers(1, 8))
    return Config(draw(limits_of_replicas()), draw(paces), requests, clients)


def random_examples(count: int) -> settings:
    """The same examples on every machine and in every run."""
    return settings(
        max_examples=count,
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow],
    )


@random_examples(400)
@given(configs())
def test_jumping_over_stretches_equals_walking_every_step(config: Config) -> None:
    replicas = config.limits.replicas
    _, fast = simulated(config, every_step=False)
    _, slow = simulated(config, every_step=True)
    assert fates(fast) == fates(slow)
    assert totals(fast, replicas) == totals(slow, replicas)


@random_examples(250)
@given(configs())
def test_the_engine_equals_the_naive_engine(config: Config) -> None:
    _, fast = simulated(config, every_step=False)
    run = naive(config)
    assert fates(fast) == naive_fates(run)
    assert totals(fast, config.limits.replicas) == naive_totals(run)
