"""Clients that give up and try again; steps take ten ticks."""

import pytest
from small_clusters import chain_of, cluster_of, events, outcomes, port_of, requests_of, run_open

from sim.engine.clock import TICKS_PER_S
from sim.engine.cluster import RunRecord
from sim.engine.patience import Patience, PatiencePlan, start_again
from sim.engine.requests import NEVER, Request

PATIENT = PatiencePlan()


def impatient(
    ticks: int, retries: int = 0, backoff: int = 0, until: str = "first_token"
) -> PatiencePlan:
    return PatiencePlan(
        ticks / TICKS_PER_S,
        until,  # type: ignore[arg-type]
        retries,
        lambda _: backoff / TICKS_PER_S,
    )


def run(plan: PatiencePlan, *rows: tuple[int, int, int], every_step: bool = False) -> RunRecord:
    """One place; the first request is patient."""
    requests = requests_of(*rows)
    for request in requests[1:]:
        request.tenant = 1
    cluster = cluster_of(seqs=1, every_step=every_step)
    return run_open(cluster, requests, [Patience([PATIENT, plan])])


def lost(record: RunRecord) -> list[tuple[object, ...]]:
    """Request, cause, tokens of the prompt and of the answer of all work that was lost."""
    names = ("request_id", "cause", "prefilled_tokens", "generated_tokens")
    return list(zip(*(record.losses[name].tolist() for name in names), strict=True))


both_ways = pytest.mark.parametrize("every_step", [False, True])


class TestFirstToken:
    @both_ways
    @pytest.mark.parametrize(
        ("retries", "outcome", "attempts"),
        [(0, "timed_out", 1), (1, "timed_out", 2), (2, "completed", 3)],
    )
    def test_attempts_follow_each_other(
        self, retries: int, outcome: str, attempts: int, every_step: bool
    ) -> None:
        """The place is taken until 100. Sent at 0, 55 and 110, each given up 35 later."""
        plan = impatient(35, retries, backoff=20)
        record = run(plan, (0, 5, 10), (0, 5, 1), every_step=every_step)
        assert outcomes(record) == ["completed", outcome]
        assert sorted(record.requests["attempts"].tolist()) == sorted([1, attempts])
        assert events(record, "arrival_s") == {0: 0, 1: 0}  # the client has waited since
        if outcome == "completed":
            assert events(record, "admit_s")[1] == 110
            assert events(record, "done_s")[1] == 120
        else:
            assert 1 not in events(record, "done_s")

    def test_one_more_tick_suffices(self) -> None:
        # admitted at 100, first token at 110
        assert outcomes(run(impatient(111), (0, 5, 10), (0, 5, 3)))[1] == "completed"
        assert outcomes(run(impatient(109), (0, 5, 10), (0, 5, 3)))[1] == "timed_out"

    def test_after_the_first_token_it_waits_for_ever(self) -> None:
        record = run(impatient(15), (0, 5, 1), (20, 5, 50))
        assert outcomes(record) == ["completed", "completed"]
        assert events(record, "done_s")[1] == 20 + 500

    def test_the_time_is_that_of_the_attempt(self) -> None:
        """Sent again at 105 it has its first token at 115, 115 after it came."""
        record = run(impatient(100, retries=1, backoff=5), (0, 5, 10), (0, 5, 9))
        assert outcomes(record)[1] == "completed"
        assert events(record, "first_token_s")[1] == 115

    def test_who_gives_up_makes_way(self) -> None:
        # the second waits until 50, the third would have come after it
        record = run(impatient(50), (0, 5, 10), (0, 5, 40), (60, 5, 1))
        assert outcomes(record) == ["completed", "timed_out", "completed"]
        assert lost(record) == []  # it had only waited
        assert events(record, "admit_s")[2] == 100


class TestCompletion:
    @both_ways
    def test_an_answer_in_progress_is_dropped_at_the_end_of_the_step(
        self, every_step: bool
    ) -> None:
        # from 100 on, given up at 135: four steps of its ten
        record = run(
            impatient(135, until="completion"), (0, 5, 10), (0, 5, 10), every_step=every_step
        )
        assert outcomes(record) == ["completed", "timed_out"]
        assert record.stretches["steps"].sum() == 10 + 4
        assert events(record, "first_token_s")[1] == 110
        assert 1 not in events(record, "done_s")
        assert lost(record) == [(1, "timed_out", 5, 4)]

    def test_it_begins_from_the_start_when_it_is_sent_again(self) -> None:
        # dropped at 140, sent again at 150, done ten steps later; 135 are not over then
        record = run(
            impatient(135, retries=1, backoff=10, until="completion"), (0, 5, 10), (0, 5, 10)
        )
        assert outcomes(record)[1] == "completed"
        assert events(record, "first_token_s")[1] == 160
        assert events(record, "done_s")[1] == 250
        assert lost(record) == [(1, "timed_out", 5, 4)]  # its second attempt is of use

    def test_prompts_of_another_pool_are_given_up_too(self) -> None:
        # prompt to 10, on its way from 10 to 30: given up at 20
        cluster = chain_of(("prefill", 1), ("decode", 1), port=port_of(1))
        plan = impatient(20, until="completion")
        record = run_open(cluster, requests_of((0, 20, 9)), [Patience([plan])])
        assert outcomes(record) == ["timed_out"]
        assert [each.scheduler.pool.used_blocks for each in cluster.replicas] == [0, 0]
        assert lost(record) == [(0, "timed_out", 20, 1)]


def test_what_can_never_run_is_not_tried_again() -> None:
    cluster = cluster_of(max_model_len=10)
    record = run_open(cluster, requests_of((0, 10, 10)), [Patience([impatient(50, retries=3)])])
    assert outcomes(record) == ["rejected"]
    assert record.requests["attempts"].tolist() == [1]


def test_a_new_attempt_forgets_what_was_reached_but_not_what_it_cost() -> None:
    request = Request(0, 7, 10, 20)
    request.admit_tick = request.first_token_tick = request.left_batch_tick = 50
    request.generated_tokens, request.computed_tokens, request.replica = 5, 14, 3
    request.prefilled_tokens, request.cached_tokens, request.first_tokens = 6, 4, 1
    request.outcome, request.preemptions, request.attempts = "timed_out", 2, 2
    start_again(request)
    assert request.admit_tick == request.first_token_tick == request.left_batch_tick == NEVER
    assert (request.generated_tokens, request.computed_tokens, request.replica) == (0, 0, -1)
    assert (request.prefilled_tokens, request.cached_tokens, request.first_tokens) == (0, 0, 0)
    assert (request.outcome, request.arrival_tick) == ("unfinished", 7)
    assert (request.preemptions, request.attempts) == (2, 2)
