"""Random programs on random clusters: jumps equal steps, and every call is accounted for.

The clusters are those of `test_engine_features`; what is asked of them are trees of calls that wait
for one another, run side by side, race, use tools and other models, with prompts that continue
those before or begin alike.
"""

from collections import Counter
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
from engine_cases import whole_ticks
from test_engine_conservation import assert_tokens_add_up
from test_engine_features import EXAMPLES, TICK_S, Trouble, fates, replica_plan, setup

from sim.engine.clock import TICKS_PER_S
from sim.engine.cluster import Cluster, Companion, PoolPlan, RunRecord
from sim.engine.programs import Programs
from sim.quality import Unknown
from sim.workload.content import Content
from sim.workload.programs import (
    Call,
    Control,
    Parallel,
    ProgramPlans,
    Strategy,
    Task,
    Unanswered,
)
from sim.workload.single import ConstantTokens, UniformTokens
from sim.workload.strategies.direct import Direct
from sim.workload.strategies.samples import Samples


@dataclass(frozen=True)
class Anything:
    """A strategy that does anything that strategies can do."""

    judge: bool
    """Whether there is another model to call."""
    models: frozenset[str] = frozenset()

    def control(self, task: Task) -> Control:
        """Begin."""
        return self._branch(task, task.rng, task.text(int(task.rng.integers(1, 20))), 0)

    def _branch(self, task: Task, rng: np.random.Generator, prompt: Content, depth: int) -> Control:
        answer = int(rng.integers(0, 3))
        for _ in range(int(rng.integers(1, 4))):
            if rng.random() < 0.5 or depth == 2:
                call = self._call(task, rng, prompt)
                try:
                    yield call
                except Unanswered:
                    if rng.random() < 0.5:
                        raise
                    continue
                if rng.random() < 0.7:
                    prompt = (*call.transcript, *task.text(int(rng.integers(1, 6))))
            else:
                yield self._side_by_side(task, rng, prompt, depth)
        return answer

    def _side_by_side(
        self, task: Task, rng: np.random.Generator, prompt: Content, depth: int
    ) -> Parallel:
        branches: list[Call | Control] = []
        for _ in range(int(rng.integers(0, 5))):
            (child,) = rng.spawn(1)
            if rng.random() < 0.6:
                branches.append(self._call(task, child, prompt))
            else:
                branches.append(self._branch(task, child, prompt, depth + 1))
        need = int(rng.integers(1, 5)) if rng.random() < 0.5 else None
        return Parallel(branches, None if need is None else lambda came: len(came) >= need)

    def _call(self, task: Task, rng: np.random.Generator, prompt: Content) -> Call:
        if rng.random() < 0.3:
            prompt = (*task.head(int(rng.integers(1, 30))), *task.text(int(rng.integers(1, 10))))
        model = "judge" if self.judge and rng.random() < 0.2 else ""
        wait_s = int(rng.integers(1, 80)) * TICK_S if rng.random() < 0.2 else 0.0
        return task.call("any", prompt, int(rng.integers(1, 15)), model=model, wait_s=wait_s)


@dataclass(frozen=True)
class Job:
    """Programs and what they run on."""

    plans: tuple[PoolPlan, ...]
    programs: ProgramPlans
    companions: tuple[Companion, ...]
    answer_ticks: int

    def run(self, *, every_step: bool = False) -> RunRecord:
        source = Programs(self.programs, answer_ticks=self.answer_ticks)
        cluster = Cluster(self.plans, every_step=every_step)
        record = cluster.run(source, self.companions)
        assert source.exhausted
        assert cluster.in_system == 0
        return replace(record, programs=source.programs, calls=source.calls)


def job(seed: int) -> Job:
    case, rng = setup(seed), np.random.default_rng((seed, 1))
    plans = [plan for plan in case.plans if plan.role != "encode"]
    judge = bool(rng.random() < 0.3)
    if judge:
        short = replace(replica_plan(rng, 60), max_model_len=30)
        plans.append(PoolPlan("judge", 1, short, other_model=True))
    count = int(rng.integers(1, 8))
    closed = rng.random() < 0.3
    programs = ProgramPlans(
        Anything(judge),
        [Unknown()] * count,
        np.ones(count, dtype=np.int64),
        ConstantTokens(tokens=1),
        seed,
        start_s=None if closed else np.cumsum(rng.choice([0, 5, 60, 500], count)) / TICKS_PER_S,
        clients=int(rng.integers(1, 4)) if closed else 0,
    )
    return Job(tuple(plans), programs, case.companions, int(rng.choice([0, 3])))


def told(columns: dict[str, np.ndarray]) -> dict[str, list[object]]:
    """Columns with their times in whole ticks."""
    return {
        name: whole_ticks(values) if name.endswith("_s") else values.tolist()
        for name, values in columns.items()
    }


@pytest.mark.parametrize("seed", range(EXAMPLES))
def test_jumps_equal_single_steps(seed: int) -> None:
    case = job(seed)
    jumped, walked = case.run(), case.run(every_step=True)
    assert fates(jumped) == fates(walked)
    assert told(jumped.programs) == told(walked.programs)
    assert told(jumped.calls) == told(walked.calls)


def test_every_call_and_every_token_is_accounted_for() -> None:
    seen: Counter[str] = Counter()
    for seed in range(EXAMPLES):
        case = job(seed)
        record = case.run()
        seen += assert_calls_add_up(record)
        if not any(plan.plan.new_batch for plan in case.plans):  # those are settled late
            seen += assert_tokens_add_up(record, [False] * len(record.stretches["replica"]))
        assert sorted(record.programs["task"].tolist()) == list(range(len(case.programs)))
        seen.update(record.programs["outcome"].tolist())
        seen.update(record.requests["outcome"].tolist())
    wanted = ("completed", "cancelled", "hits", "never sent", "rejected", "timed_out", "lost")
    assert {name: seen[name] for name in wanted if seen[name] < 20} == {}


def assert_calls_add_up(record: RunRecord) -> Counter[str]:
    """Every call follows an answer, becomes one request or none, and is cancelled or counted."""
    requests, calls, programs = record.requests, record.calls, record.programs
    rows = {number: row for row, number in enumerate(requests["request_id"].tolist())}
    arrival, done = whole_ticks(requests["arrival_s"]), whole_ticks(requests["done_s"])
    assert len(rows) == len(arrival)
    assert set(rows) <= set(calls["request_id"].tolist())
    unsent: Counter[int] = Counter()
    by_task: Counter[int] = Counter(calls["task"].tolist())
    for number, task, after in zip(
        calls["request_id"].tolist(), calls["task"].tolist(), calls["after"].tolist(), strict=True
    ):
        if number not in rows:
            unsent[task] += 1
        elif after >= 0 and requests["outcome"][rows[after]] == "completed":
            assert arrival[rows[number]] >= done[rows[after]]
    cancelled: Counter[int] = Counter(
        requests["session"][requests["outcome"] == "cancelled"].tolist()
    )
    times = (whole_ticks(programs[name]) for name in ("arrival_s", "done_s", "critical_s"))
    columns = (programs[name].tolist() for name in ("task", "calls", "cancelled_calls"))
    for begin, end, critical, task, count, dropped in zip(*times, *columns, strict=True):
        assert 0 <= critical <= end - begin
        assert count == by_task[task]
        # of those whose answer was not awaited, some had it by then and none had heard
        assert unsent[task] + cancelled[task] <= dropped <= count
    return Counter(
        {
            "never sent": unsent.total(),
            "hits": int((requests["cached_tokens"] > 0).sum()),
        }
    )


def test_trouble_is_among_the_examples() -> None:
    """Failures and impatient clients meet with programs too, or the above would prove less."""
    kinds = Counter(
        type(companion).__name__ for seed in range(EXAMPLES) for companion in job(seed).companions
    )
    assert min(kinds[Trouble.__name__], kinds["Patience"]) > 50


class Coin(Unknown):
    """A question that is answered right half of the time."""

    known = True

    def answers(
        self, rng: np.random.Generator, count: int, *, effort: float = 1.0, model: str = ""
    ) -> Any:
        del effort, model
        return rng.integers(0, 2, count)


class AnythingMayFollow(Task):
    """A task of whose calls nothing is promised."""

    def call(self, *args: Any, **options: Any) -> Call:
        return replace(super().call(*args, **options), reuse="all")


@dataclass(frozen=True)
class Unpromised:
    """Does what another strategy does, one task after the other, and makes no promises."""

    strategy: Strategy
    models: frozenset[str] = frozenset()

    def control(self, task: Task) -> Control:
        fields = (task.number, task.rng, task.question, task.question_tokens, task.answer_tokens)
        return self.strategy.control(AnythingMayFollow(*fields, task.first_stream, task.part))


PROMISING: tuple[Strategy, ...] = (
    Direct(),
    Direct(instruction_tokens=9),
    Samples(samples=3),
    Samples(samples=5, instruction_tokens=7, cancel=True),
    Samples(samples=4, batch=2, select="oracle", cancel=True),
)


def alone_on_its_chips(case: Job) -> Job:
    """Let a pool have few blocks, and no way to keys and values elsewhere: promises count there."""
    (plan, *others) = case.plans
    if plan.role != "serve":
        return case
    blocks = -(-60 // plan.plan.block_tokens)
    small = replace(plan.plan, prefix_caching=True, kv_blocks=blocks, whole_answers=False)
    small = replace(small, estimate=None)
    alone = replace(plan, host_link=None, port=None, tiers=(), plan=small)
    return replace(case, plans=(alone, *others))


@pytest.mark.parametrize("strategy", PROMISING, ids=range(len(PROMISING)))
def test_promises_of_calls_change_nothing(strategy: Strategy) -> None:
    """Wherever blocks are scarce, replicas fail, clients lose patience, or prefixes are kept."""
    seen: Counter[str] = Counter()
    for seed in range(EXAMPLES // 5):
        case = alone_on_its_chips(job(seed)) if seed % 4 else job(seed)
        rng, count = np.random.default_rng((seed, 2)), 4 * len(case.programs)
        starts_s = np.sort(rng.integers(0, 900, count)).astype(float) * TICK_S
        programs = replace(
            case.programs,
            strategy=strategy,
            questions=[Coin()] * count,
            question_tokens=rng.integers(1, 25, count),
            answer_tokens=UniformTokens(min_tokens=1, max_tokens=14),
            start_s=None if case.programs.clients else starts_s,
        )
        promised = replace(case, programs=programs).run()
        unpromised = replace(programs, strategy=Unpromised(strategy))
        plain = replace(case, programs=unpromised).run()
        for table in ("requests", "stretches", "transfers", "losses", "programs", "calls"):
            ours, theirs = getattr(promised, table), getattr(plain, table)
            assert told(ours) == told(theirs), (seed, table)
        seen.update(promised.requests["outcome"].tolist())
        seen["preempted"] += int((promised.requests["preemptions"] > 0).sum())
        seen["tried again"] += int((promised.requests["attempts"] > 1).sum())
        seen["hits"] += int((promised.requests["cached_tokens"] > 0).sum())
    assert min(seen[name] for name in ("completed", "lost", "preempted", "tried again", "hits")) > 0
