"""Programs beside requests, and beside other programs: jumps equal steps, and nothing is lost.

The clusters and requests are those of `test_engine_features`, the programs those of
`test_programs_equality`: strategies of two tenants run at the same time as the requests of a third.
"""

from collections import Counter
from dataclasses import dataclass, replace
from itertools import count

import numpy as np
import pytest
from test_engine_conservation import assert_tokens_add_up
from test_engine_features import EXAMPLES, fates, setup
from test_programs_equality import Anything, assert_calls_add_up, told

from sim.engine.clients import OpenLoop, Source
from sim.engine.clock import TICKS_PER_S
from sim.engine.cluster import Cluster, Companion, PoolPlan, RunRecord
from sim.engine.programs import Programs
from sim.engine.records import joined_columns
from sim.engine.requests import Request
from sim.engine.sessions import Together
from sim.quality import Unknown
from sim.workload.mix import mixed
from sim.workload.programs import ProgramPlans
from sim.workload.single import ConstantTokens
from sim.workload.tasks import traffic_of

FIRST_SESSION = 1_000


@dataclass(frozen=True)
class Beside:
    """Requests and programs, and what they run on."""

    plans: tuple[PoolPlan, ...]
    requests: tuple[Request, ...]
    programs: tuple[ProgramPlans, ...]
    companions: tuple[Companion, ...]

    def run(self, *, every_step: bool = False) -> RunRecord:
        numbers = count(len(self.requests))
        sources = [
            Programs(plans, numbers, answer_ticks=3, priority=1, first_session=FIRST_SESSION)
            for plans in self.programs
        ]
        copies = [replace_request(request) for request in self.requests]
        others: list[Source] = [OpenLoop(copies)] if copies else []
        cluster = Cluster(self.plans, every_step=every_step)
        record = cluster.run(Together(*others, *sources), self.companions)
        assert all(source.exhausted for source in sources)
        assert cluster.in_system == 0
        return replace(
            record,
            programs=joined_columns([source.programs for source in sources]),
            calls=joined_columns([source.calls for source in sources]),
        )


def replace_request(request: Request) -> Request:
    """Make a request anew: a run leaves its marks."""
    fresh = Request(
        request.request_id, request.arrival_tick, request.input_tokens, request.output_tokens
    )
    fresh.max_tokens, fresh.priority = request.max_tokens, request.priority
    fresh.tenant, fresh.session = 0, request.session
    fresh.content = request.content
    return fresh


def plans_of(rng: np.random.Generator, seed: int, name: str) -> ProgramPlans:
    tasks = int(rng.integers(1, 5))
    closed = rng.random() < 0.3
    return ProgramPlans(
        Anything(judge=False),
        [Unknown()] * tasks,
        np.ones(tasks, dtype=np.int64),
        ConstantTokens(tokens=1),
        seed,
        (name,),
        start_s=None if closed else np.cumsum(rng.choice([0, 5, 60, 500], tasks)) / TICKS_PER_S,
        clients=int(rng.integers(1, 4)) if closed else 0,
    )


def beside(seed: int) -> Beside:
    case, rng = setup(seed), np.random.default_rng((seed, 2))
    parts = {name: traffic_of(plans_of(rng, seed, name)) for name in ("night", "day")}
    merged = mixed(parts)
    shifted = tuple(replace(plans, tenant=plans.tenant + 1) for plans in merged.programs)
    plans = tuple(plan for plan in case.plans if plan.role != "encode")
    return Beside(plans, tuple(case.requests()), shifted, case.companions)


@pytest.mark.parametrize("seed", range(EXAMPLES))
def test_jumps_equal_single_steps(seed: int) -> None:
    case = beside(seed)
    jumped, walked = case.run(), case.run(every_step=True)
    assert fates(jumped) == fates(walked)
    assert told(jumped.programs) == told(walked.programs)
    assert told(jumped.calls) == told(walked.calls)


def test_every_token_is_accounted_for_once() -> None:
    """What replicas computed is what requests and calls had of it, answered or thrown away."""
    seen: Counter[str] = Counter()
    for seed in range(EXAMPLES):
        case = beside(seed)
        record = case.run()
        if not any(plan.plan.new_batch for plan in case.plans):  # those are settled late
            assert_tokens_add_up(record, [False] * len(record.stretches["replica"]))
            seen["settled at once"] += 1
        numbers = record.requests["request_id"]
        called = np.isin(numbers, record.calls["request_id"])
        assert sorted(numbers[~called].tolist()) == list(range(len(case.requests)))
        assert len(set(record.calls["request_id"].tolist())) == len(record.calls["request_id"])
        assert_calls_add_up(only(record, called))
        seen.update(record.requests["outcome"].tolist())
        seen["hits of calls"] += int((record.requests["cached_tokens"][called] > 0).sum())
    wanted = ("settled at once", "hits of calls", "completed", "cancelled", "timed_out", "lost")
    assert {name: seen[name] for name in wanted if seen[name] < 20} == {}


def only(record: RunRecord, rows: np.ndarray) -> RunRecord:
    """Give the calls alone, their sessions numbered like their tasks."""
    requests = {name: column[rows] for name, column in record.requests.items()}
    requests["session"] = requests["session"] - FIRST_SESSION
    return replace(record, requests=requests)


@pytest.mark.parametrize("seed", range(40))
def test_tasks_of_all_parts_have_numbers_and_tenants_of_their_own(seed: int) -> None:
    case = beside(seed)
    record = case.run()
    tasks = dict(
        zip(record.programs["task"].tolist(), record.programs["tenant"].tolist(), strict=True)
    )
    night, day = (len(plans) for plans in case.programs)
    assert tasks == dict.fromkeys(range(night), 1) | dict.fromkeys(range(night, night + day), 2)
    task_of = dict(
        zip(record.calls["request_id"].tolist(), record.calls["task"].tolist(), strict=True)
    )
    for number, tenant, session in zip(
        *(record.requests[name].tolist() for name in ("request_id", "tenant", "session")),
        strict=True,
    ):
        task = task_of.get(number)
        assert tenant == (0 if task is None else tasks[task])
        assert task is None or session == FIRST_SESSION + task


@pytest.mark.parametrize("seed", range(60))
def test_programs_beside_nobody_are_programs_alone(seed: int) -> None:
    """In a mix with one part, which is asked at the same times and draws the same."""
    case = beside(seed)
    night = case.programs[0]
    mine = Beside(case.plans, (), (night,), case.companions).run()
    alone = replace(night, first_stream=0, part=0, first_number=0)
    other = Beside(case.plans, (), (alone,), case.companions).run()
    assert fates(mine) == fates(other)
    assert told(mine.programs) == told(other.programs)


def test_parts_share_no_token() -> None:
    """Equal programs of two parts: neither finds the other's beginnings or texts in a cache."""
    rng = np.random.default_rng(3)
    plans = plans_of(rng, 3, "same")
    first, second = mixed({"a": traffic_of(plans), "b": traffic_of(plans)}).programs
    streams = [
        {run[0] for number in range(len(each)) for run in contents(each, number)}
        for each in (first, second)
    ]
    assert streams[0]
    assert not streams[0] & streams[1]


def contents(plans: ProgramPlans, number: int) -> list[tuple[int, int, int]]:
    task = plans.task(number)
    return [*task.head(5), *task.head(5, 7), *task.text(3), *task.text(4), *task.asked]
