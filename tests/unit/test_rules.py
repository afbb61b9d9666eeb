"""The rules in which serving engines differ, each in a scenario worked out by hand.

Steps take ten ticks; a request of ``(inputs, outputs)`` has its first token with its prompt.
"""

import pytest
from small_clusters import (
    STEP,
    chunks,
    pass_step,
    planned,
    requests_of,
    scheduler_of,
    served,
    with_requests,
)

from sim.engine.requests import Request
from sim.engine.waiting import PriorityLine

AHEAD = {"steps_ahead": 1}


def admit_ticks(requests: list[Request]) -> list[int]:
    return [request.admit_tick for request in requests]


def done_ticks(requests: list[Request]) -> list[int]:
    return [request.done_tick for request in requests]


class TestStepsAhead:
    """A step is decided when the one before it begins."""

    @pytest.mark.parametrize(
        ("arrival", "in_time", "ahead"),
        [
            (20, 20, 30),  # at a boundary: the step that begins then was decided at 10
            (21, 30, 40),  # the step of 30 was decided at 20
            (29, 30, 40),
            (30, 30, 40),
        ],
    )
    def test_an_arrival_counts_one_step_later(self, arrival: int, in_time: int, ahead: int) -> None:
        rows = [(0, 5, 10), (arrival, 5, 1)]
        requests, _ = served(requests_of(*rows))
        assert admit_ticks(requests) == [0, in_time]
        requests, record = served(requests_of(*rows), rules=AHEAD)
        assert admit_ticks(requests) == [0, ahead]
        # the steps themselves are the same
        assert done_ticks(requests) == [100, ahead + STEP]
        assert record.stretches["steps"].sum() == 10

    def test_an_idle_engine_starts_at_once(self) -> None:
        # The third comes while the second's first step runs: the step of 110 was decided at 100.
        requests, _ = served(requests_of((3, 5, 1), (100, 5, 3), (105, 5, 1)), rules=AHEAD)
        assert admit_ticks(requests) == [3, 100, 120]
        assert done_ticks(requests) == [13, 130, 130]

    def test_an_engine_that_runs_empty_starts_at_once(self) -> None:
        # One place: when the first is done at 30 nothing runs, so the second need not wait.
        requests, _ = served(requests_of((0, 5, 3), (0, 5, 1)), seqs=1, rules=AHEAD)
        assert admit_ticks(requests) == [0, 30]

    def test_a_place_comes_free_one_step_later(self) -> None:
        # Two places; the second is done at 30, when the step of 30 has long been decided.
        rows = [(0, 5, 10), (0, 5, 3), (0, 5, 1)]
        requests, _ = served(requests_of(*rows), seqs=2)
        assert admit_ticks(requests) == [0, 0, 30]
        requests, record = served(requests_of(*rows), seqs=2, rules=AHEAD)
        assert admit_ticks(requests) == [0, 0, 40]
        # prompts, 2 of decoding, one without the newcomer, one with its prompt, 5 to the end
        assert record.stretches["steps"].tolist() == [1, 2, 1, 1, 5]
        assert done_ticks(requests) == [100, 30, 50]

    def test_blocks_come_free_one_step_later(self) -> None:
        # Thirteen blocks of a token. Two prompts of 4 leave 5, and 3 in the step of 10, which is
        # too few for the third. At 30, when the second is done, both have 6: 7 are free, of which
        # 6 count one step later. In each step the first takes one before the third is let in.
        rows = [(0, 4, 10), (0, 4, 3), (5, 4, 1)]
        requests, _ = served(requests_of(*rows), blocks=13, block_tokens=1)
        assert admit_ticks(requests) == [0, 0, 30]
        requests, _ = served(requests_of(*rows), blocks=13, block_tokens=1, rules=AHEAD)
        assert admit_ticks(requests) == [0, 0, 40]
        assert [request.preemptions for request in requests] == [0, 0, 0]

    def test_a_preemption_may_come_because_blocks_come_late(self) -> None:
        # Nine blocks of a token. At 30 all have 3, and the third is done: its blocks do not count
        # yet, so the second makes room for the first.
        rows = [(0, 1, 4), (0, 1, 4), (0, 1, 3)]
        plain, _ = served(requests_of(*rows), blocks=9, block_tokens=1)
        assert [request.preemptions for request in plain] == [0, 0, 0]
        ahead, _ = served(requests_of(*rows), blocks=9, block_tokens=1, rules=AHEAD)
        assert [request.preemptions for request in ahead] == [0, 1, 0]


class TestWholePromptMustFit:
    def test_a_first_chunk_is_not_enough(self) -> None:
        # Budget 50, five blocks of 16: the first prompt takes three; of the second ten tokens
        # would fit into the step, and one block, but all of it wants three.
        for must_fit, expected in ((False, [(0, 40), (1, 10)]), (True, [(0, 40)])):
            rules = {"whole_prompt_must_fit": must_fit}
            scheduler = scheduler_of(budget=50, blocks=5, rules=rules)
            with_requests(scheduler, (40, 2), (33, 2))
            assert chunks(pass_step(scheduler, 0)) == expected

    def test_nothing_is_set_aside(self) -> None:
        # Five blocks: a prompt of five begins with two, and the next one, of three, sees three.
        rules = {"whole_prompt_must_fit": True, "max_chunk_tokens": 32}
        scheduler = scheduler_of(blocks=5, rules=rules)
        with_requests(scheduler, (80, 1), (48, 1))
        assert chunks(pass_step(scheduler, 0)) == [(0, 32), (1, 32)]

    def test_what_was_answered_before_a_preemption_counts(self) -> None:
        # Blocks of a token, eight of them; both have 4 tokens when the second is preempted, with
        # 2 + 3 to compute. The first has 5 + 1 in the next step, is done, and it fits.
        rules = {"whole_prompt_must_fit": True}
        scheduler = scheduler_of(blocks=8, block_tokens=1, budget=4, rules=rules)
        _, second = with_requests(scheduler, (2, 5), (2, 6))
        for tick in range(4):
            pass_step(scheduler, tick)
        assert (second.preemptions, list(scheduler.line)) == (1, [second])
        # three blocks are free, one goes to the first; four tokens would fit the budget
        assert chunks(pass_step(scheduler, 4)) == []
        assert chunks(pass_step(scheduler, 5)) == [(1, 4)]
        assert second.prefill_tokens == 5


class TestWatermark:
    def test_blocks_stay_free_while_others_run(self) -> None:
        # Ten blocks, two of them spare. The first takes seven: one block may still be taken.
        scheduler = scheduler_of(blocks=10, budget=200, rules={"watermark_fraction": 0.2})
        with_requests(scheduler, (7 * 16, 2), (17, 1), (16, 1))
        assert chunks(pass_step(scheduler, 0)) == [(0, 112)]  # two for the second are too many
        scheduler = scheduler_of(blocks=10, budget=200, rules={"watermark_fraction": 0.2})
        with_requests(scheduler, (7 * 16, 2), (16, 1), (16, 1))
        assert chunks(pass_step(scheduler, 0)) == [(0, 112), (1, 16)]

    def test_whoever_is_alone_may_take_them_all(self) -> None:
        scheduler = scheduler_of(blocks=10, budget=200, rules={"watermark_fraction": 0.2})
        with_requests(scheduler, (160, 1))
        assert chunks(pass_step(scheduler, 0)) == [(0, 160)]

    def test_those_who_run_may_take_them(self) -> None:
        # Three blocks of four, one spare: the sequence grows from 8 tokens to 12 unhindered.
        scheduler = scheduler_of(
            blocks=3, block_tokens=4, budget=20, rules={"watermark_fraction": 0.4}
        )
        (request,) = with_requests(scheduler, (8, 5))
        for tick in range(2):
            pass_step(scheduler, tick)
        assert scheduler.pool.free_blocks == 0
        assert (request.preemptions, scheduler.batch.size) == (0, 1)

    def test_a_share_of_a_block_does_not_count(self) -> None:
        scheduler = scheduler_of(blocks=9, rules={"watermark_fraction": 0.2})  # 1.8 blocks: one
        with_requests(scheduler, (16 * 6, 2), (4, 1))
        assert chunks(pass_step(scheduler, 0)) == [(0, 96), (1, 4)]
        assert scheduler.pool.used_blocks == 6 + 0  # the second is done with its prompt


class TestPrefillFirst:
    def test_decoding_waits_for_a_step_of_prompts(self) -> None:
        rows = [(0, 5, 10), (25, 5, 2)]
        requests, record = served(requests_of(*rows), rules={"prefill_first": True})
        # 0 to 30 as ever; 30 to 40 the prompt alone; two decode to 50, and one to 110
        assert admit_ticks(requests) == [0, 30]
        assert [request.first_token_tick for request in requests] == [10, 40]
        assert done_ticks(requests) == [110, 50]
        stretches = record.stretches
        assert stretches["steps"].tolist() == [1, 2, 1, 1, 6]
        assert stretches["decode_sequences"].tolist() == [0, 1, 0, 2, 1]
        assert stretches["prefill_tokens"].tolist() == [5, 0, 5, 0, 0]
        requests, _ = served(requests_of(*rows))
        assert done_ticks(requests) == [100, 50]

    def test_the_whole_budget_is_for_prompts(self) -> None:
        scheduler = scheduler_of(budget=5, rules={"prefill_first": True})
        with_requests(scheduler, (5, 9), (12, 1), (2, 1))
        found = [pass_step(scheduler, tick) for tick in range(5)]
        assert [chunks(stretch) for stretch in found] == [
            [(0, 5)],
            [(1, 5)],
            [(1, 5)],
            [(1, 2), (2, 2)],
            [],
        ]
        assert [stretch.decode_sequences for stretch in found] == [0, 0, 0, 0, 1]

    def test_decoding_goes_on_when_no_prompt_can_come_in(self) -> None:
        # Five blocks: three for the first; the second wants three and waits to the end.
        scheduler = scheduler_of(blocks=5, rules={"prefill_first": True})
        first, second = with_requests(scheduler, (40, 4), (33, 1))
        pass_step(scheduler, 0)
        stretch = planned(scheduler, 1)
        assert (stretch.decode_sequences, stretch.chunks, stretch.max_steps) == (1, [], 3)
        assert scheduler.finish(stretch, 3, 4) == [first]
        assert chunks(pass_step(scheduler, 4)) == [(1, 33)]
        assert second.preemptions == 0


class TestPromptsPerStep:
    def test_so_many_come_in_at_once(self) -> None:
        scheduler = scheduler_of(rules={"max_prompts_per_step": 2})
        with_requests(scheduler, (10, 3), (10, 3), (10, 3))
        assert chunks(pass_step(scheduler, 0)) == [(0, 10), (1, 10)]
        assert chunks(pass_step(scheduler, 1)) == [(2, 10)]

    def test_a_prompt_that_goes_on_is_one_of_them(self) -> None:
        scheduler = scheduler_of(budget=20, rules={"max_prompts_per_step": 1})
        with_requests(scheduler, (25, 3), (10, 3))
        assert chunks(pass_step(scheduler, 0)) == [(0, 20)]
        assert chunks(pass_step(scheduler, 1)) == [(0, 5)]
        assert chunks(pass_step(scheduler, 2)) == [(1, 10)]


class TestWithoutChunks:
    def test_a_prompt_waits_for_a_step_with_room_for_all_of_it(self) -> None:
        scheduler = scheduler_of(budget=50, rules={"chunked_prefill": False})
        with_requests(scheduler, (30, 5), (30, 5), (49, 5), (1, 5))
        assert chunks(pass_step(scheduler, 0)) == [(0, 30)]  # and nobody overtakes
        assert chunks(pass_step(scheduler, 1)) == [(1, 30)]  # beside one token of the first
        # two decode: 48 are left, which is not enough for the third as long as both are there
        stretches = [pass_step(scheduler, tick) for tick in (2, 3, 4)]
        assert [chunks(stretch) for stretch in stretches] == [[], [], []]
        # the first is done: 49 are left
        stretch = pass_step(scheduler, 5)
        assert (stretch.decode_sequences, chunks(stretch)) == (1, [(2, 49)])

    def test_what_no_step_has_room_for_is_rejected(self) -> None:
        """Nor one that would not come back after a preemption: 50 of 50 tokens."""
        scheduler = scheduler_of(budget=50, rules={"chunked_prefill": False})
        assert not scheduler.can_ever_run(Request(0, 0, 51, 1))
        assert scheduler.can_ever_run(Request(1, 0, 50, 1))


class TestPriorities:
    def test_the_last_of_the_last_class_is_preempted(self) -> None:
        # Blocks of a token, nine of them: three sequences of 3 tokens fill them.
        scheduler = scheduler_of(blocks=9, block_tokens=1, by_priority=True, new_line=PriorityLine)
        requests = [Request(number, 0, 1, 9) for number in range(3)]
        for request, priority in zip(requests, (5, 5, 1), strict=True):
            request.priority = priority
            scheduler.add(request, 0)
        for tick in range(4):
            pass_step(scheduler, tick)
        assert [request.preemptions for request in requests] == [0, 1, 0]
        pass_step(scheduler, 4)
        assert [request.preemptions for request in requests] == [1, 1, 0]
        assert list(scheduler.line) == requests[:2]

    def test_without_it_the_last_admitted_goes(self) -> None:
        scheduler = scheduler_of(blocks=9, block_tokens=1)
        requests = with_requests(scheduler, (1, 9), (1, 9), (1, 9))
        requests[2].priority = -1
        for tick in range(4):
            pass_step(scheduler, tick)
        assert [request.preemptions for request in requests] == [0, 0, 1]

    def test_an_urgent_prompt_in_progress_is_spared(self) -> None:
        """The running sequence with the worst priority goes, also if it decodes.

        Seven blocks of a token, two tokens of a prompt per step. The patient sequence of 4 tokens
        decodes while the urgent prompt, admitted later, has 2 of 6: 4 + 2 + 1. The next step
        wants one block for the first and two for the second.
        """
        rules = {"max_chunk_tokens": 2}
        scheduler = scheduler_of(
            blocks=7, block_tokens=1, by_priority=True, new_line=PriorityLine, rules=rules
        )
        patient, urgent = Request(0, 0, 2, 5), Request(1, 0, 6, 1)
        patient.priority, urgent.priority = 5, 0
        scheduler.add(patient, 0)
        for tick in range(2):
            pass_step(scheduler, tick)
        scheduler.add(urgent, 2)
        for tick in range(2, 4):
            pass_step(scheduler, tick)
        assert (patient.preemptions, urgent.preemptions) == (1, 0)
