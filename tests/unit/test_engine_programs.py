"""Programs on a cluster, worked out on paper; steps take ten ticks.

A call with an answer of n tokens takes n steps where nobody waits: the first token comes with the
prompt, if that fits into one step of a hundred tokens.
"""

import gc
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import pytest
from small_clusters import STEP, At, cluster_of, replica_plan

from sim.engine.clock import TICKS_PER_S
from sim.engine.cluster import Cluster, Companion, PoolPlan, RunRecord
from sim.engine.elasticity import BootTicks
from sim.engine.patience import Patience, PatiencePlan
from sim.engine.programs import Programs
from sim.engine.requests import Request
from sim.engine.ticks import ConstantPace
from sim.engine.upkeep import Upkeep, UpkeepPlan
from sim.quality import Unknown
from sim.reliability import Autoscaling
from sim.workload.programs import Call, Control, Parallel, ProgramPlans, Task, Unanswered
from sim.workload.single import ConstantTokens


@dataclass(frozen=True)
class Written:
    """A strategy written out as a function."""

    write: Callable[[Task], Control]
    models: frozenset[str] = frozenset()

    def control(self, task: Task) -> Control:
        """Begin."""
        return self.write(task)


def plans(
    write: Callable[[Task], Control], starts: Sequence[int] = (0,), clients: int = 0
) -> ProgramPlans:
    """Plan one task for each start, in ticks; prompts have ten tokens."""
    count = len(starts)
    return ProgramPlans(
        Written(write),
        [Unknown()] * count,
        np.full(count, 10),
        ConstantTokens(tokens=1),
        seed=1,
        start_s=None if clients else np.array(starts) / TICKS_PER_S,
        clients=clients,
    )


def run(
    source: Programs,
    cluster: Cluster | None = None,
    companions: Sequence[Companion] = (),
    **plan: Any,
) -> tuple[pd.DataFrame, pd.DataFrame, RunRecord]:
    """Run programs; give their table and that of their calls with the requests, times in ticks."""
    record = (cluster or cluster_of(**plan)).run(source, companions)
    programs = pd.DataFrame(source.programs).sort_values("task").reset_index(drop=True)
    calls = pd.DataFrame(source.calls).merge(
        pd.DataFrame(record.requests), on="request_id", how="left"
    )
    for frame in (programs, calls):
        times = [name for name in frame if str(name).endswith("_s")]
        frame[times] = (frame[times] * TICKS_PER_S).round()
    return programs, calls.sort_values("request_id").reset_index(drop=True), record


def sample(task: Task, tokens: int, label: str = "sample") -> Call:
    """One call with a prompt of ten tokens of its own."""
    return task.call(label, task.text(10), tokens)


def test_calls_in_a_row_take_the_sum_of_their_times() -> None:
    def write(task: Task) -> Control:
        first = yield sample(task, 3)
        yield task.call("again", (*first.transcript, *task.text(5)), 4)
        return 0

    programs, calls, _ = run(Programs(plans(write)))
    assert calls["input_tokens"].tolist() == [10, 10 + 3 + 5]
    assert calls["arrival_s"].tolist() == [0, 3 * STEP]
    assert calls["done_s"].tolist() == [3 * STEP, 7 * STEP]
    assert calls["after"].tolist() == [-1, 0]
    row = programs.iloc[0]
    assert (row.done_s, row.calls, row.critical_calls, row.critical_s) == (70, 2, 2, 70)
    assert (row.outcome, row.answer) == ("completed", 0)


def test_a_barrier_waits_for_the_slowest() -> None:
    def write(task: Task) -> Control:
        drawn = yield Parallel([sample(task, n) for n in (2, 5, 3)])
        assert [call.output_tokens for call in drawn] == [2, 5, 3]
        yield sample(task, 1, "vote")

    programs, calls, _ = run(Programs(plans(write)))
    assert calls["done_s"].tolist() == [20, 50, 30, 60]
    assert calls["after"].tolist() == [-1, -1, -1, 1]
    row = programs.iloc[0]
    assert (row.done_s, row.critical_calls, row.critical_s, row.answer) == (60, 2, 60, -1)


def test_branches_go_on_by_themselves() -> None:
    """Each sample is judged as soon as it is done, not when all are."""

    def judged(task: Task, tokens: int) -> Control:
        answer = yield sample(task, tokens)
        yield task.call("judge", answer.transcript, 1)
        return tokens

    def write(task: Task) -> Control:
        scores = yield Parallel([judged(task, 2), judged(task, 4)])
        assert scores == [2, 4]
        return max(scores)

    programs, calls, _ = run(Programs(plans(write)))
    judges = calls[calls["label"] == "judge"]
    assert judges["arrival_s"].tolist() == [20, 40]
    assert programs.iloc[0][["done_s", "critical_calls", "answer"]].tolist() == [50, 2, 4]


def test_enough_branches_cancel_the_others() -> None:
    """Of 3 samples the second to arrive is enough: the slowest is dropped after 4 of 9 tokens."""

    def write(task: Task) -> Control:
        came = yield Parallel(
            [sample(task, 2), sample(task, 9), sample(task, 4)], lambda came: len(came) == 2
        )
        assert [call and call.output_tokens for call in came] == [2, None, 4]

    programs, calls, record = run(Programs(plans(write)))
    assert calls["outcome"].tolist() == ["completed", "cancelled", "completed"]
    assert programs.iloc[0][["done_s", "calls", "cancelled_calls"]].tolist() == [40, 3, 1]
    assert record.losses["cause"].tolist() == ["cancelled"]
    # what was decided before the answers of tick 40 were known may be under way
    assert record.losses["generated_tokens"].tolist() in ([4], [5])
    assert record.losses["prefilled_tokens"].tolist() == [10]


def test_calls_that_wait_in_line_are_cancelled_at_once() -> None:
    """One place: the second sample gets it before the client has seen the first answer."""

    def write(task: Task) -> Control:
        yield Parallel([sample(task, 3) for _ in range(3)], lambda came: len(came) == 1)

    programs, calls, record = run(Programs(plans(write)), seqs=1)
    assert calls["outcome"].tolist() == ["completed", "cancelled", "cancelled"]
    assert calls["done_s"].isna().tolist() == [False, True, True]
    assert programs["done_s"].tolist() == [30]
    assert record.losses["request_id"].tolist() == [1]
    assert record.stretches["end_s"].max() * TICKS_PER_S == pytest.approx(40)


def test_what_is_cancelled_while_a_tool_runs_is_never_sent() -> None:
    def tool(task: Task) -> Control:
        yield task.call("tool", task.text(10), 2, wait_s=50 / TICKS_PER_S)

    def write(task: Task) -> Control:
        yield Parallel([sample(task, 3), tool(task)], lambda came: len(came) == 1)

    programs, calls, _ = run(Programs(plans(write)))
    assert calls["outcome"].isna().tolist() == [False, True]
    assert programs.iloc[0][["done_s", "cancelled_calls"]].tolist() == [30, 1]


def test_tools_take_their_time_and_are_not_on_the_bill_of_calls() -> None:
    def write(task: Task) -> Control:
        first = yield sample(task, 3)
        yield task.call("next", first.transcript, 2, wait_s=100 / TICKS_PER_S)

    programs, calls, _ = run(Programs(plans(write)))
    assert calls["arrival_s"].tolist() == [0, 130]
    assert programs.iloc[0][["done_s", "critical_s"]].tolist() == [150, 50]


def test_siblings_compute_their_prompt_once() -> None:
    """Of 64 tokens in blocks of 16 the last must be computed, so 48 are found."""

    def write(task: Task) -> Control:
        prompt = task.text(64)
        yield Parallel([task.call("sample", prompt, 2) for _ in range(4)])

    _, calls, _ = run(Programs(plans(write)), budget=1000, prefix_caching=True)
    assert calls["cached_tokens"].tolist() == [0, 48, 48, 48]
    _, calls, _ = run(Programs(plans(write)), budget=1000)
    assert calls["cached_tokens"].tolist() == [0] * 4


def test_a_continuation_finds_the_answer_before_it() -> None:
    """60 + 20 tokens, of which the last was never computed: four full blocks of 16."""

    def write(task: Task) -> Control:
        first = yield task.call("sample", task.text(60), 20)
        yield task.call("again", (*first.transcript, *task.text(20)), 2)

    _, calls, _ = run(Programs(plans(write)), budget=1000, prefix_caching=True)
    assert calls["input_tokens"].tolist() == [60, 100]
    assert calls["cached_tokens"].tolist() == [0, 64]


def test_the_client_sees_answers_later() -> None:
    def write(task: Task) -> Control:
        yield sample(task, 3)
        yield sample(task, 2)

    programs, calls, _ = run(Programs(plans(write), answer_ticks=7))
    assert calls["arrival_s"].tolist() == [0, 37]
    assert programs["done_s"].tolist() == [37 + 27]


def test_clients_ask_one_question_after_the_other() -> None:
    """Who sees an answer when a step begins asks too late to be in it."""

    def write(task: Task) -> Control:
        yield sample(task, 3 + task.number)

    programs, _, _ = run(Programs(plans(write, [0] * 4, clients=2)))
    assert programs["arrival_s"].tolist() == [0, 0, 30, 40]
    assert programs["done_s"].tolist() == [30, 40, 40 + 50, 50 + 60]


def test_who_is_refused_an_answer_fails_unless_the_strategy_knows_better() -> None:
    def write(task: Task) -> Control:
        yield Parallel([sample(task, 3), task.call("long", task.text(500), 1)])

    def second_try(task: Task) -> Control:
        try:
            yield task.call("long", task.text(500), 1)
        except Unanswered as unanswered:
            assert unanswered.args == ("rejected",)
            yield sample(task, 2)
        return 0

    programs, calls, _ = run(Programs(plans(write)), max_model_len=100)
    assert programs.iloc[0][["outcome", "cancelled_calls"]].tolist() == ["rejected", 1]
    assert calls["outcome"].tolist() == ["cancelled", "rejected"]
    programs, _, _ = run(Programs(plans(second_try)), max_model_len=100)
    assert programs.iloc[0][["outcome", "answer", "done_s"]].tolist() == ["completed", 0, 20]


def test_other_models_have_pools_of_their_own() -> None:
    """The judge is busy with nobody else, and reads prompt and answer in one step."""

    def write(task: Task) -> Control:
        answer = yield sample(task, 3)
        yield task.call("judge", answer.transcript, 1, model="judge")

    cluster = Cluster(
        [
            PoolPlan("serve", 1, replica_plan()),
            PoolPlan("judge", 1, replica_plan(max_model_len=20), other_model=True),
        ]
    )
    programs, calls, _ = run(Programs(plans(write)), cluster)
    assert calls["replica"].tolist() == [0, 1]
    assert calls["input_tokens"].tolist() == [10, 13]
    assert programs["done_s"].tolist() == [40]


@pytest.mark.parametrize("every_step", [False, True])
def test_programs_compete_for_one_place(every_step: bool) -> None:
    """One place in the batch: calls of two programs take turns, first come first served."""

    def write(task: Task) -> Control:
        yield sample(task, 2)
        yield sample(task, 2)

    source = Programs(plans(write, [0, 1]))
    programs, calls, _ = run(source, cluster_of(seqs=1, every_step=every_step))
    assert calls.sort_values("done_s")["task"].tolist() == [0, 1, 0, 1]
    assert programs["done_s"].tolist()[0] < programs["done_s"].tolist()[1]
    assert calls["done_s"].max() == 80


def two_models(step: int) -> Cluster:
    """The main model, and a judge with steps of its own length."""
    judge = PoolPlan("judge", 1, replica_plan(pace=ConstantPace(step)), other_model=True)
    return Cluster([PoolPlan("serve", 1, replica_plan()), judge])


def race(task: Task) -> Control:
    """The faster of an answer of 3 tokens and a judgement of 50 is enough."""
    judged = task.call("judge", task.text(10), 50, model="judge")
    yield Parallel([sample(task, 3), judged], lambda came: len(came) == 1)


@pytest.mark.parametrize(
    ("timeout", "attempts"),
    [
        # the judge's client gives up in its step from 20 to 40, in which the answer is seen too
        (35, 1),
        # it gives up at 15, is dropped at 20, and would try again at 50
        (15, 2),
    ],
    ids=["while it is given up", "between two attempts"],
)
def test_what_is_cancelled_is_not_tried_again(timeout: int, attempts: int) -> None:
    plan = PatiencePlan(
        timeout_s=timeout / TICKS_PER_S,
        until="first_token" if timeout < 30 else "completion",
        max_retries=3,
        backoff_s=lambda _: 30 / TICKS_PER_S,
    )
    _, calls, record = run(
        Programs(plans(race), answer_ticks=7), two_models(20), [Patience([plan])]
    )
    assert calls["outcome"].tolist() == ["completed", "cancelled"]
    assert calls["attempts"].tolist() == [1, attempts]
    assert record.stretches["end_s"].max() * TICKS_PER_S == pytest.approx(
        40 if attempts == 1 else 30
    )


def test_a_failure_of_what_is_cancelled_does_not_send_it_again() -> None:
    """Answer and judgement are under way; the judge fails after the answer is seen at 37."""

    @dataclass
    class Trouble:
        asked: int = 0

        def attach(self, cluster: Cluster) -> None:
            cluster.when_lost = self.again

        def again(self, _: Request) -> bool:
            self.asked += 1
            return False

    trouble = Trouble()
    crash = At({38: lambda cluster: cluster.replicas[1].fail()})
    _, calls, _ = run(Programs(plans(race), answer_ticks=7), two_models(20), [trouble, crash])
    assert calls["outcome"].tolist() == ["completed", "cancelled"]
    assert trouble.asked == 0


def test_clients_ask_thousands_of_questions_that_need_no_call() -> None:
    """One after the other at the same moment, not each inside the one before it."""

    def write(task: Task) -> Control:
        return 0
        yield sample(task, 1)

    programs, _, _ = run(Programs(plans(write, [0] * 3000, clients=2)))
    assert programs["outcome"].tolist() == ["completed"] * 3000


def failing(task: Task) -> Control:
    """Ask three questions that are too long."""
    yield Parallel([task.call("long", task.text(500), 1) for _ in range(3)])


def branching(task: Task) -> Control:
    """Take the first of two branches, and go on from there."""

    def branch(tokens: int) -> Control:
        call = yield sample(task, tokens)
        yield task.call("again", call.transcript, 1)

    yield Parallel([branch(2), branch(9)], lambda came: len(came) == 1)
    yield sample(task, 1)


@pytest.mark.parametrize("write", [failing, branching])
def test_tasks_that_are_over_leave_nothing_behind(write: Callable[[Task], Control]) -> None:
    """The collector of reference cycles rests during a run: nothing must wait for it."""
    parts = ("Unanswered", "_Program", "_Branch", "_Group", "_Sent", "Request", "Call", "Parallel")

    def alive() -> Counter[str]:
        names = (type(each).__name__ for each in gc.get_objects())
        return Counter(name for name in names if name in parts)

    gc.collect()
    gc.disable()
    try:
        before = alive()
        run(Programs(plans(write, [0] * 20)), max_model_len=100)
        assert alive() - before == Counter()
    finally:
        gc.enable()


def test_each_model_is_scaled_by_its_own_requests() -> None:
    """Judgements take a hundred times as long as the target, answers a tenth of it."""
    plan = partial(UpkeepPlan, wanted=1, times=BootTicks(cold=0, restart=0, spare=0))
    scaling = Autoscaling(
        signal="ttft_p95_s",
        target=100 / TICKS_PER_S,
        interval_s=500 / TICKS_PER_S,
        min_replicas=1,
        max_replicas=2,
    )
    upkeep = Upkeep({role: plan(autoscaling=scaling) for role in ("serve", "judge")}, seed=1)
    judge = replica_plan(pace=ConstantPace(10_000))
    cluster = Cluster(
        [
            PoolPlan("serve", 2, replica_plan()),
            PoolPlan("judge", 2, judge, other_model=True),
        ]
    )

    def write(task: Task) -> Control:
        yield sample(task, 1)
        yield task.call("judge", task.text(10), 1, model="judge")

    run(Programs(plans(write, range(0, 50_000, 500))), cluster, [upkeep])
    assert {role: each.wanted for role, each in upkeep.replica_sets.items()} == {
        "serve": 1,
        "judge": 2,
    }
