"""Sessions that send their turns, worked out on paper; steps take ten ticks.

An answer of n tokens takes n steps where nobody waits: the first comes with the prompt.
"""

from collections.abc import Sequence
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from small_clusters import STEP, At, cluster_of, events, outcomes, requests_of

from sim.engine.clients import OpenLoop, Source
from sim.engine.clock import TICKS_PER_S, Clock
from sim.engine.cluster import Cluster, Companion, RunRecord
from sim.engine.patience import Patience, PatiencePlan
from sim.engine.requests import Request
from sim.engine.sessions import Sessions, Together
from sim.workload.sessions import SessionLaw, SessionPlans

Row = tuple[int, int, int]
"""Prompt, answer, ticks to wait before it is sent."""


def plans_of(*sessions: tuple[int, Sequence[Row]], **more: object) -> SessionPlans:
    """Plan sessions of given starts (ticks) and turns."""
    rows = [row for _, turns in sessions for row in turns]
    inputs, outputs, waits = zip(*rows, strict=True) if rows else ((), (), ())
    return SessionPlans(
        start_s=np.array([start for start, _ in sessions]) / TICKS_PER_S,
        first_turn=np.append(0, np.cumsum([len(turns) for _, turns in sessions])).astype(np.int64),
        input_tokens=np.array(inputs, dtype=np.int32),
        output_tokens=np.array(outputs, dtype=np.int32),
        wait_s=np.array(waits, dtype=float) / TICKS_PER_S,
        **more,  # type: ignore[arg-type]
    )


def run(
    source: Source, *companions: Companion, cluster: Cluster | None = None, every_step: bool = False
) -> RunRecord:
    return (cluster or cluster_of(every_step=every_step)).run(source, companions)


def by_number(record: RunRecord, name: str) -> list[object]:
    """A column in the order of the requests."""
    values: list[object] = record.requests[name][np.argsort(record.requests["request_id"])].tolist()
    return values


both_ways = pytest.mark.parametrize("every_step", [False, True])


class TestTimes:
    @both_ways
    def test_a_turn_is_sent_when_the_answer_before_it_has_been_thought_over(
        self, every_step: bool
    ) -> None:
        """Starts at 3, two steps; thinks 7 from 23; three steps; a tool runs 100 from 60."""
        plans = plans_of((3, [(5, 2, 0), (12, 3, 7), (20, 1, 100)]))
        record = run(Sessions(plans), every_step=every_step)
        assert events(record, "arrival_s") == {0: 3, 1: 30, 2: 160}
        assert events(record, "done_s") == {0: 23, 1: 60, 2: 170}

    def test_the_first_turn_waits_from_the_start_of_its_session(self) -> None:
        # as sub-agents do, who start with their session and are called later
        record = run(Sessions(plans_of((10, [(5, 1, 25)]))))
        assert events(record, "arrival_s") == {0: 35}

    def test_no_time_to_think_is_no_time_at_all(self) -> None:
        record = run(Sessions(plans_of((0, [(5, 1, 0)] * 4))))
        assert list(events(record, "arrival_s").values()) == [0, 10, 20, 30]

    def test_the_answer_has_to_be_seen_first(self) -> None:
        """Four ticks from the end in the engine to the client; the first turn answers nothing."""
        plans = plans_of((3, [(5, 2, 0), (12, 3, 7)]))
        record = run(Sessions(plans, answer_ticks=4))
        assert events(record, "arrival_s") == {0: 3, 1: 23 + 4 + 7}

    def test_sessions_do_not_wait_for_each_other(self) -> None:
        """One place. A at 0 and B at 1: B waits in the line, A's second turn does so later.

        A: 0 to 20. B: 20 to 30. A thinks until 25 and comes in at 30. B thinks until 35: in at 40.
        """
        plans = plans_of((0, [(5, 2, 0), (9, 1, 5)]), (1, [(5, 1, 0), (9, 1, 5)]))
        record = run(Sessions(plans), cluster=cluster_of(seqs=1))
        assert events(record, "arrival_s") == {0: 0, 1: 25, 2: 1, 3: 35}
        assert events(record, "admit_s") == {0: 0, 1: 30, 2: 20, 3: 40}

    def test_sessions_that_start_together_start_in_order(self) -> None:
        plans = plans_of(*[(5, [(5, 1, 0)])] * 3)
        record = run(Sessions(plans), cluster=cluster_of(seqs=1))
        assert events(record, "arrival_s") == {0: 5, 1: 5, 2: 5}
        assert events(record, "admit_s") == {0: 5, 1: 15, 2: 25}

    def test_a_law_with_tools_gives_the_times_between_turns(self) -> None:
        """Users think 30 steps, tools run 2; every gap between answer and next turn is its wait."""
        law = SessionLaw.model_validate(
            {
                "turns": {"kind": "constant", "turns": 5},
                "first_tokens": {"kind": "constant", "tokens": 9},
                "new_tokens": {"kind": "constant", "tokens": 4},
                "answer_tokens": {"kind": "constant", "tokens": 3},
                "think": {"kind": "constant", "duration_s": 30 * STEP / TICKS_PER_S},
                "tools": {
                    "fraction": 0.5,
                    "wait": {"kind": "constant", "duration_s": 2 * STEP / TICKS_PER_S},
                },
                "max_context_tokens": 1000,
            }
        )
        plans = law.sample(1, np.zeros(40))
        record = run(Sessions(plans), cluster=cluster_of(seqs=100, budget=10_000))
        frame = pd.DataFrame(record.requests).sort_values(["session", "turn"])
        ticks = frame[["arrival_s", "done_s"]].mul(TICKS_PER_S).round()
        gaps = ticks["arrival_s"] - ticks["done_s"].shift()
        later = frame["turn"] > 0
        assert gaps[later].tolist() == (plans.wait_s[plans.wait_s > 0] * TICKS_PER_S).tolist()
        assert set(gaps[later]) == {20, 300}
        # a prompt is all that was said before, and 4 tokens: 9, then 9 + 3 + 4, ...
        assert frame["input_tokens"].tolist() == [9, 16, 23, 30, 37] * 40


class TestContext:
    def test_the_next_turn_finds_prompt_and_answer(self) -> None:
        """Blocks of four. Ten tokens and an answer of three, the last of which is not cached: 12.

        Of the next prompt (10 + 3 + 5 = 18) three blocks are found. With its answer of four 21
        tokens are cached: five blocks, 20 tokens, of the third prompt (18 + 4 + 1 = 23).
        """
        plans = plans_of((0, [(10, 3, 0), (18, 4, 5), (23, 1, 5)]))
        cluster = cluster_of(block_tokens=4, prefix_caching=True)
        record = run(Sessions(plans), cluster=cluster)
        assert by_number(record, "cached_tokens") == [0, 12, 20]

    def test_sessions_share_the_system_prompt_alone(self) -> None:
        """Eight tokens of system prompt in front of each: two blocks, whatever comes behind."""
        plans = plans_of((0, [(14, 2, 0)]), (50, [(14, 2, 0), (20, 1, 0)]), system_tokens=8)
        cluster = cluster_of(block_tokens=4, prefix_caching=True)
        record = run(Sessions(plans), cluster=cluster)
        # of the third prompt: 14 and one token of the answer are cached, three blocks of four
        assert by_number(record, "cached_tokens") == [0, 8, 12]

    def test_a_context_that_starts_anew_finds_the_system_prompt(self) -> None:
        plans = plans_of(
            (0, [(14, 2, 0), (14, 1, 0)]), system_tokens=8, position=np.array([0, 100])
        )
        cluster = cluster_of(block_tokens=4, prefix_caching=True)
        assert by_number(run(Sessions(plans), cluster=cluster), "cached_tokens") == [0, 8]


class TestEndings:
    def test_a_session_ends_with_a_turn_that_is_rejected(self) -> None:
        """Longest context 50 tokens: the second turn of the first session does not fit."""
        plans = plans_of((0, [(5, 1, 0), (60, 1, 5), (5, 1, 5)]), (0, [(5, 1, 0), (9, 1, 40)]))
        source = Sessions(plans)
        record = run(source, cluster=cluster_of(max_model_len=50))
        assert by_number(record, "request_id") == [0, 1, 3, 4]
        assert outcomes(record) == ["completed", "rejected", "completed", "completed"]
        assert source.exhausted

    @both_ways
    @pytest.mark.parametrize(
        ("retries", "sent"), [(0, ["completed", "timed_out"]), (1, ["completed"] * 3)]
    )
    def test_a_session_ends_when_its_client_gives_up_for_good(
        self, retries: int, sent: list[str], every_step: bool
    ) -> None:
        """One place, taken by another from 15 to 55; clients wait 30 ticks for the first token.

        The second turn is sent at 20, given up at 50, sent again at once if at all, admitted at 55
        and answered at 65; the third is sent then.
        """
        plans = plans_of((0, [(5, 1, 0), (9, 1, 10), (13, 1, 0)]))
        sessions = Sessions(plans, first_request_id=1)
        (other,) = requests_of((15, 5, 4))
        record = run(
            Together(OpenLoop([other]), sessions),
            Patience([PatiencePlan(30 / TICKS_PER_S, "first_token", retries)]),
            cluster=cluster_of(seqs=1, every_step=every_step),
        )
        assert outcomes(record)[1:] == sent
        assert sessions.exhausted
        assert events(record, "arrival_s")[2] == 20
        if retries:
            assert by_number(record, "attempts")[1:] == [1, 2, 1]
            assert events(record, "done_s") == {0: 55, 1: 10, 2: 65, 3: 75}

    def test_a_session_ends_with_a_turn_that_is_lost(self) -> None:
        """The replica fails at 35, in the middle of the second turn, and comes back at 40."""
        plans = plans_of((0, [(5, 1, 0), (9, 5, 10), (20, 1, 0)]), (100, [(5, 1, 0)]))
        source = Sessions(plans)
        fails = At(
            {
                35: lambda cluster: cluster.replicas[0].fail(),
                40: lambda cluster: cluster.replicas[0].set_state("up"),
            }
        )
        record = run(source, fails)
        assert by_number(record, "request_id") == [0, 1, 3]
        assert outcomes(record) == ["completed", "lost", "completed"]
        assert source.exhausted

    def test_nothing_is_sent_where_nothing_is_planned(self) -> None:
        source = Sessions(plans_of())
        assert source.exhausted
        assert len(run(source).requests["request_id"]) == 0

    def test_a_session_without_turns_is_passed_over(self) -> None:
        record = run(Sessions(plans_of((0, []), (7, [(5, 1, 0)]))))
        assert by_number(record, "session") == [1]
        assert events(record, "arrival_s") == {0: 7}


class TestWhatIsSent:
    def test_turns_are_numbered_session_by_session(self) -> None:
        plans = plans_of(
            (0, [(5, 1, 0), (9, 1, 90)]),
            (20, [(6, 2, 0), (7, 1, 0)]),
            tenant=np.array([1, 0], dtype=np.int16),
        )
        record = run(Sessions(plans, first_request_id=100))
        frame = pd.DataFrame(record.requests).sort_values("request_id")
        names = ["request_id", "session", "turn", "tenant", "input_tokens", "output_tokens"]
        assert frame[names].to_numpy().tolist() == [
            [100, 0, 0, 1, 5, 1],
            [101, 0, 1, 1, 9, 1],
            [102, 1, 0, 0, 6, 2],
            [103, 1, 1, 0, 7, 1],
        ]

    def test_tenants_have_their_priorities(self) -> None:
        plans = plans_of(
            (0, [(5, 1, 0)]), (0, [(5, 1, 0)]), tenant=np.array([0, 1], dtype=np.int16)
        )
        sent: list[Request] = []
        clock = Clock()
        desk = SimpleNamespace(env=clock, submit=sent.append)
        Sessions(plans, priorities=(7, 3)).start(desk)
        clock.run_to_the_end()
        assert [request.priority for request in sent] == [7, 3]

    def test_all_is_sent_when_the_last_turn_is_and_not_before(self) -> None:
        """While the user thinks there is nobody in the system, and more to come."""
        source, seen = Sessions(plans_of((0, [(5, 1, 0), (9, 1, 50)]))), []
        look = At({tick: lambda _: seen.append(source.exhausted) for tick in (5, 30, 65)})
        run(source, look)
        assert seen == [False, False, True]

    def test_several_sources_are_done_when_all_of_them_are(self) -> None:
        sessions, others = (
            Sessions(plans_of((0, [(5, 1, 0)])), 1),
            OpenLoop(requests_of((99, 5, 1))),
        )
        both, seen = Together(sessions, others), []
        run(both, At({50: lambda _: seen.append((sessions.exhausted, both.exhausted))}))
        assert seen == [(True, False)]
        assert both.exhausted
