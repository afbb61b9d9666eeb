"""Attention ranks in lockstep: jumps equal single steps, and both equal ranks that loop over lists.

One rank equals a plain scheduler. There is no tolerance anywhere.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace

import numpy as np
import pytest
from engine_cases import (
    Config,
    LinearPace,
    configs,
    configs_in_lockstep,
    random_examples,
    serve,
    whole_ticks,
)
from hypothesis import given
from hypothesis import strategies as st
from naive_engine import Job, Limits, NaiveReplica, NaiveRun, StepSums
from test_engine_equality import fates, naive_fates, naive_totals, totals
from test_engine_features import EXAMPLES, Setup, setup
from test_engine_features import fates as all_fates

from sim.engine.cluster import Cluster, PoolPlan, RunRecord
from sim.engine.kv import SequenceBlocks
from sim.engine.lockstep import (
    LockstepScheduler,
    RankChoice,
    RankedPace,
    ReplicaScheduler,
)
from sim.engine.plan import ReplicaPlan
from sim.engine.router import LeastOutstanding, RoundRobin
from sim.engine.rules import SchedulerRules
from sim.engine.stretch import Stretch
from sim.engine.ticks import Line, slowest

CHOICES: tuple[RankChoice, ...] = ("fewest_waiting", "fewest_requests", "round_robin")


@dataclass(frozen=True)
class SlowestRank:
    """The slowest rank, and what all do with as many tokens each as the fullest one has."""

    rank: LinearPace
    group_token: int = 0

    def line(self, stretches: Sequence[Stretch], _steps_before: int = 0, /) -> Line:
        lines = [self.rank.line(stretch) for stretch in stretches]
        start, growth, holds = slowest([(start, growth) for start, growth, _ in lines])
        width = max(each.decode_sequences + each.prefill_tokens for each in stretches)
        return start + self.group_token * len(stretches) * width, growth, holds

    def ticks(self, sums: Sequence[StepSums]) -> int:
        """Duration of one step, for the naive engine."""
        width = max(each.decode_sequences + each.prefill_tokens for each in sums)
        return max(map(self.rank.ticks, sums)) + self.group_token * len(sums) * width


class RankedPlan(ReplicaPlan):
    """A plan whose replicas have schedulers of their ranks, be it a single one."""

    def new_scheduler(self) -> ReplicaScheduler:
        ranks = [self._rank_scheduler() for _ in range(self.ranks)]
        return LockstepScheduler(ranks, self.rank_choice)


def ranked(plan: ReplicaPlan, pace: SlowestRank, ranks: int, choice: RankChoice) -> ReplicaPlan:
    settings = {each.name: getattr(plan, each.name) for each in fields(plan)}
    found = RankedPlan(**settings)
    return replace(found, pace=RankedPace(pace), ranks=ranks, rank_choice=choice)


def plan_of(config: Config) -> ReplicaPlan:
    limits = config.limits
    return ReplicaPlan(
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


def run(config: Config, plan: ReplicaPlan, *, every_step: bool = False) -> RunRecord:
    limits = config.limits
    router = {"round_robin": RoundRobin, "least_outstanding": LeastOutstanding}[limits.router]
    pool = PoolPlan("serve", limits.replicas, plan, router)
    return serve(Cluster([pool], every_step=every_step), config)


@dataclass(frozen=True)
class Ranks:
    """A cluster whose replicas have ranks, and its traffic."""

    config: Config
    ranks: int
    choice: RankChoice = "fewest_waiting"
    group_token: int = 0

    @property
    def pace(self) -> SlowestRank:
        return SlowestRank(self.config.pace, self.group_token)

    def simulated(self, *, every_step: bool = False) -> RunRecord:
        plan = ranked(plan_of(self.config), self.pace, self.ranks, self.choice)
        return run(self.config, plan, every_step=every_step)

    def naive(self) -> "NaiveRanks":
        found = NaiveRanks(self.config.limits, self.config.pace.ticks, case=self)
        if self.config.clients is not None:
            found.closed_loop(self.config.lengths, self.config.clients)
        else:
            found.open_loop(self.config.requests)
        return found


# -- the oracle: lists of ranks, every one with its lists -----------------------------------------


class NaiveGroup(NaiveReplica):
    """Ranks that begin and end their steps together."""

    case: Ranks
    ranks: list[NaiveReplica]
    dealt: int = 0

    @classmethod
    def of(cls, index: int, limits: Limits, case: Ranks, seen: Counter[str]) -> "NaiveGroup":
        group = cls(index, limits, case.config.pace.ticks, limits.kv_blocks, seen=seen)
        group.case = case
        group.ranks = [
            NaiveReplica(index, limits, case.config.pace.ticks, limits.kv_blocks, seen=seen)
            for _ in range(case.ranks)
        ]
        return group

    def look(self) -> None:
        """Show those who ask what all ranks have."""
        self.waiting = [job for rank in self.ranks for job in rank.waiting]
        self.running = [job for rank in self.ranks for job in rank.running]

    def accept(self, sequence: Job) -> None:
        place = self.dealt % len(self.ranks)
        if self.case.choice != "round_robin":
            weight = 4 if self.case.choice == "fewest_waiting" else 1
            loads = [weight * len(rank.waiting) + len(rank.running) for rank in self.ranks]
            place = loads.index(min(loads))
        self.dealt += 1
        self.ranks[place].waiting.append(sequence)
        self.look()

    def begin_step(self, now: int) -> None:
        for rank in self.ranks:
            rank.begin_step(now)
        everything = [rank.sums for rank in self.ranks]
        self.sums = StepSums(
            **{
                each.name: sum(getattr(sums, each.name) for sums in everything)
                for each in fields(StepSums)
            }
        )
        self.scheduled = [pair for rank in self.ranks for pair in rank.scheduled]
        self.start, self.boundary = now, now + self.case.pace.ticks(everything)
        working = [bool(rank.scheduled) for rank in self.ranks]
        self.seen["a rank is idle"] += len(set(working)) > 1
        full = [bool(rank.waiting) for rank in self.ranks]
        self.seen["requests wait at one rank alone"] += len(set(full)) > 1
        self.look()

    def end_step(self, now: int) -> tuple[list[Job], int]:
        done, tokens = [], 0
        for rank in self.ranks:
            leaving, sampled = rank.end_step(now)
            done += leaving
            tokens += sampled
        self.scheduled = []
        self.look()
        return done, tokens


@dataclass
class NaiveRanks(NaiveRun):
    """A run of replicas with ranks."""

    case: Ranks = field(kw_only=True)

    def __post_init__(self) -> None:
        self.groups = [
            NaiveGroup.of(index, self.limits, self.case, self.seen)
            for index in range(self.limits.replicas)
        ]
        self.replicas = list(self.groups)

    def submit(self, sequence: Job, now: int) -> None:
        limits = self.limits
        self.sequences.append(sequence)
        if sequence.inputs + sequence.outputs > limits.max_model_len:
            self.reject(sequence, now)
            return
        group = self.groups[self.route().index]
        sequence.replica = group.index
        if limits.blocks_of(sequence.inputs + sequence.outputs - 1) > limits.kv_blocks:
            self.reject(sequence, now)
            return
        group.accept(sequence)
        if group.boundary is None:
            group.boundary = now


# -- examples -------------------------------------------------------------------------------------


ranks_of = st.builds(
    Ranks,
    configs() | configs() | configs_in_lockstep(),
    st.integers(1, 4),
    st.sampled_from(CHOICES),
    st.integers(0, 3),
)


@random_examples(300)
@given(configs() | configs_in_lockstep(), st.sampled_from(CHOICES))
def test_one_rank_is_a_plain_scheduler(config: Config, choice: RankChoice) -> None:
    plain = run(config, plan_of(config))
    alone = Ranks(config, 1, choice).simulated()
    assert_equal_records(plain, alone)


def assert_equal_records(one: RunRecord, other: RunRecord) -> None:
    for table, same in ((one.requests, other.requests), (one.stretches, other.stretches)):
        assert table.keys() == same.keys()
        for name, values in table.items():
            np.testing.assert_array_equal(values, same[name], name)


def test_ranks_equal_lists_of_ranks() -> None:
    examples_with: Counter[str] = Counter()

    @random_examples(600)
    @given(ranks_of)
    def check(case: Ranks) -> None:
        fast, oracle = case.simulated(), case.naive()
        assert fates(fast) == naive_fates(oracle)
        assert totals(fast, case.config.limits.replicas) == naive_totals(oracle)
        examples_with.update(event for event, times in oracle.seen.items() if times)

    check()
    rare = {event: examples_with[event] for event in EVENTS if examples_with[event] < 25}
    assert not rare, "the examples hardly ever exercise these rules"


EVENTS = (
    "a rank is idle",
    "cut prompt",
    "held back by blocks",
    "held back by places",
    "preempted while decoding",
    "rejected",
    "requests wait at one rank alone",
)


@random_examples(300)
@given(ranks_of)
def test_jumps_equal_single_steps(case: Ranks) -> None:
    fast, slow = case.simulated(), case.simulated(every_step=True)
    assert fates(fast) == fates(slow)
    replicas = case.config.limits.replicas
    assert totals(fast, replicas) == totals(slow, replicas)


@pytest.mark.parametrize("seed", range(4))
def test_a_busy_group_equals_lists_of_ranks(seed: int) -> None:
    """Realistic blocks and batches, overloaded, with little room for KV cache."""
    rng = np.random.default_rng(seed)
    count = 150
    arrivals = np.cumsum(rng.exponential(200.0, count)).astype(int)
    inputs, outputs = rng.integers(1, 300, count), rng.integers(1, 120, count)
    requests = tuple(zip(arrivals.tolist(), inputs.tolist(), outputs.tolist(), strict=True))
    limits = Limits(16, 60, 24, 128, 4096, 64 if seed % 2 else None)
    pace = LinearPace(100, token=1, sequence=2, key=seed % 2, window_key=1, crowd=1)
    case = Ranks(Config(limits, pace, requests), 2 + seed, CHOICES[seed % 3], group_token=1)
    fast, oracle = case.simulated(), case.naive()
    assert fates(fast) == naive_fates(oracle)
    assert fates(fast) == fates(case.simulated(every_step=True))
    assert oracle.seen["preempted while decoding"] > 20


# -- with everything else that an engine does ------------------------------------------------------


def with_ranks(seed: int) -> Setup:
    """Give the replicas of a cluster full of features two to four ranks."""
    case, rng = setup(seed), np.random.default_rng(seed)

    def of(plan: PoolPlan) -> PoolPlan:
        pace = plan.plan.pace
        assert isinstance(pace, LinearPace)
        slowest_rank = SlowestRank(pace, int(rng.integers(0, 3)))
        choice = CHOICES[int(rng.integers(3))]
        return replace(plan, plan=ranked(plan.plan, slowest_rank, int(rng.integers(2, 5)), choice))

    return replace(case, plans=tuple(of(plan) for plan in case.plans))


@pytest.mark.parametrize("seed", range(EXAMPLES))
def test_jumps_equal_single_steps_with_any_features(seed: int) -> None:
    case = with_ranks(seed)
    jumped, walked = case.run(every_step=False), case.run(every_step=True)
    assert all_fates(jumped) == all_fates(walked)
    assert len(all_fates(jumped)) == len(case.rows)
    for name in ("kind", "request_id", "source", "replica"):
        assert jumped.transfers[name].tolist() == walked.transfers[name].tolist()
    for name in ("start_s", "end_s"):
        assert whole_ticks(jumped.transfers[name]) == whole_ticks(walked.transfers[name])


def test_the_examples_with_features_are_full_of_events() -> None:
    seen: Counter[str] = Counter()
    for seed in range(EXAMPLES):
        record = with_ranks(seed).run(every_step=False)
        seen.update(record.requests["outcome"].tolist())
        seen.update(record.transfers["kind"].tolist())
        seen["hits"] += int((record.requests["cached_tokens"] > 0).sum())
        seen["preemptions"] += int(record.requests["preemptions"].sum())
        seen["jumps"] += int((record.stretches["steps"] > 1).sum())
    wanted = ("completed", "timed_out", "handover", "load", "hits", "preemptions", "jumps")
    assert {name: seen[name] for name in wanted if seen[name] < 20} == {}
