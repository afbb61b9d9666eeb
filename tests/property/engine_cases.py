"""Clusters and traffic for tests of the engine: small, crowded, and full of coincidences."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st
from naive_engine import Limits, NaiveRun, StepSums

from sim.engine.clients import ClosedLoop, OpenLoop
from sim.engine.clock import TICKS_PER_S
from sim.engine.cluster import Cluster, PoolPlan, RunRecord
from sim.engine.kv import SequenceBlocks
from sim.engine.plan import ReplicaPlan
from sim.engine.requests import Request
from sim.engine.router import LeastOutstanding, RoundRobin
from sim.engine.rules import SchedulerRules
from sim.engine.stretch import Stretch

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

    def line(self, stretch: Stretch, _steps_before: int = 0, /) -> tuple[int, int, None]:
        """Start and growth of the steps of a stretch, for the engine.

        The keys of its step ``i`` are ``context_tokens + i * context_growing``.
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
        growth = key * stretch.context_growing + self.window_key * stretch.window_growing
        return start, growth, None


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


def cluster_of(config: Config, *, every_step: bool) -> Cluster:
    limits = config.limits
    plan = ReplicaPlan(
        rules=SchedulerRules(
            limits.max_num_seqs,
            limits.max_num_batched_tokens,
            limits.max_chunk_tokens,
            window_tokens=limits.window_tokens,
        ),
        kv_blocks=limits.kv_blocks,
        block_tokens=limits.block_tokens,
        pace=config.pace,
        max_model_len=limits.max_model_len,
        sequence_blocks=SequenceBlocks(
            limits.growing_blocks, limits.windowed_blocks, limits.fixed_blocks
        ),
    )
    router = {"round_robin": RoundRobin, "least_outstanding": LeastOutstanding}[limits.router]
    return Cluster([PoolPlan("serve", limits.replicas, plan, router)], every_step=every_step)


def serve(cluster: Cluster, config: Config) -> RunRecord:
    if config.clients is not None:
        supply = [Request(number, 0, *row) for number, row in enumerate(config.lengths)]
        return cluster.run(ClosedLoop(supply, config.clients))
    return cluster.run(
        OpenLoop(Request(number, *row) for number, row in enumerate(config.requests))
    )


def simulated(config: Config, *, every_step: bool = False) -> RunRecord:
    return serve(cluster_of(config, every_step=every_step), config)


def naive(config: Config) -> NaiveRun:
    run = NaiveRun(config.limits, config.pace.ticks)
    if config.clients is not None:
        return run.closed_loop(config.lengths, config.clients)
    return run.open_loop(config.requests)


def whole_ticks(seconds: np.ndarray) -> list[int]:
    """Ticks behind recorded seconds: exact, for these runs stay below 2**52 ticks."""
    return [NEVER if np.isnan(s) else round(s * TICKS_PER_S) for s in seconds.tolist()]


# few values, so that step boundaries of different replicas and arrivals often coincide
constant_paces = st.builds(LinearPace, step=st.sampled_from([1, 10]))
paces = constant_paces | st.builds(
    LinearPace,
    step=st.sampled_from([1, 7, 10, 100]),
    token=st.integers(0, 2),
    sequence=st.integers(0, 2),
    key=st.integers(0, 2),
    window_key=st.integers(0, 2),
    pair=st.integers(0, 1),
    window_pair=st.integers(0, 1),
    crowd=st.integers(0, 1),
)
gaps = st.just(0) | st.integers(0, 60) | st.integers(0, 2000)
shapes = st.tuples(gaps, st.integers(1, 40), st.just(1) | st.integers(1, 30) | st.integers(10, 30))


@st.composite
def traffics(draw: st.DrawFn) -> tuple[tuple[int, int, int], ...]:
    rows = draw(st.lists(shapes, min_size=2, max_size=16))
    arrivals = np.cumsum([gap for gap, _, _ in rows]).tolist()
    return tuple(
        (at, inputs, outputs) for at, (_, inputs, outputs) in zip(arrivals, rows, strict=True)
    )


@st.composite
def limits_for(draw: st.DrawFn, traffic: Sequence[tuple[int, int, int]]) -> Limits:
    """Room for little more than one request, so that preemption is the rule."""
    block_tokens = draw(st.sampled_from([1, 2, 3, 4, 16]))
    longest = max(inputs + outputs - 1 for _, inputs, outputs in traffic)
    max_num_seqs = draw(st.integers(1, 6))
    window_tokens = draw(st.none() | st.integers(1, 40))
    growing, windowed, fixed = draw(holdings)
    limits = Limits(
        block_tokens=block_tokens,
        kv_blocks=1,
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=max_num_seqs + draw(st.integers(0, 40)),
        max_model_len=draw(st.sampled_from([1000, 1000, 60])),
        window_tokens=window_tokens,
        replicas=draw(st.integers(1, 3)),
        router=draw(st.sampled_from(["round_robin", "least_outstanding"])),
        max_chunk_tokens=draw(st.none() | st.integers(1, 25)),
        growing_blocks=growing,
        windowed_blocks=0 if window_tokens is None else windowed,
        fixed_blocks=fixed or (growing == 0),  # every sequence holds something
    )
    each = growing + limits.windowed_blocks
    spare_blocks = draw(st.integers(0, 6) | st.integers(-2, each * 60 // block_tokens))
    return replace(limits, kv_blocks=max(1, limits.blocks_of(longest) + spare_blocks))


holdings = st.just((1, 0, 0)) | st.tuples(st.integers(0, 2), st.integers(0, 3), st.integers(0, 3))
"""Blocks of a sequence: growing, windowed, fixed."""


@st.composite
def configs(draw: st.DrawFn) -> Config:
    traffic = draw(traffics())
    clients = draw(st.none() | st.integers(1, 8))
    return Config(draw(limits_for(traffic)), draw(paces), traffic, clients)


@st.composite
def configs_in_lockstep(draw: st.DrawFn) -> Config:
    """Clients of several equal replicas whose steps begin and end together."""
    short = st.tuples(st.just(0), st.integers(1, 6), st.integers(1, 8))
    traffic = tuple(draw(st.lists(short, min_size=4, max_size=16)))
    limits = draw(limits_for(traffic))
    replicas, clients = draw(st.integers(2, 3)), draw(st.integers(2, 8))
    return Config(replace(limits, replicas=replicas), draw(constant_paces), traffic, clients)


def random_examples(count: int) -> settings:
    """The same examples on every machine and in every run."""
    return settings(max_examples=count, derandomize=True, database=None, deadline=None)
