"""What engines set aside for answers before they let a request in, by hand."""

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

from sim.engine.admission import AnswerEstimate, WholeAnswer
from sim.engine.kv import BlockPool, SequenceBlocks
from sim.engine.requests import Request


class TestWholeAnswers:
    """``no_evict``: the longest answer that the client asks for has its blocks from the start."""

    def test_blocks_of_prompt_and_answer(self) -> None:
        # 16 + 17 - 1 tokens are in the cache at the end: two blocks of four
        requests, _ = served(requests_of(*[(0, 16, 17)] * 3), blocks=4, whole_answers=True)
        assert [request.admit_tick for request in requests] == [0, 0, 17 * STEP]
        # without it all three come in, and one has to go when the answers grow
        requests, _ = served(requests_of(*[(0, 16, 17)] * 3), blocks=4)
        assert [request.admit_tick for request in requests] == [0, 0, 0]
        assert sum(request.preemptions for request in requests) > 0

    def test_what_is_asked_for_counts_and_not_what_comes(self) -> None:
        requests = requests_of(*[(0, 16, 2)] * 2)
        for request in requests:
            request.max_tokens = 33  # 48 tokens: three blocks of four
        requests, _ = served(requests, blocks=4, whole_answers=True)
        assert [request.admit_tick for request in requests] == [0, 2 * STEP]

    def test_nobody_is_ever_preempted(self) -> None:
        rows = [(7 * number, 1 + 13 * number % 40, 1 + 29 * number % 60) for number in range(40)]
        crowded, _ = served(requests_of(*rows), blocks=9)
        assert sum(request.preemptions for request in crowded) > 0
        spared, _ = served(requests_of(*rows), blocks=9, whole_answers=True)
        assert sum(request.preemptions for request in spared) == 0
        assert {request.outcome for request in spared} == {"completed"}

    def test_what_is_set_aside_comes_back(self) -> None:
        pool = BlockPool(10, 16)
        whole = WholeAnswer(pool, SequenceBlocks())
        first, second = Request(0, 0, 100, 13), Request(1, 0, 33, 1)  # 7 and 3 blocks
        assert whole.admits(first, 1, pool.free_blocks)
        whole.admitted(first, 1)
        assert (whole.reserved_blocks, whole.admits(second, 1, pool.free_blocks)) == (7, True)
        second.max_tokens = 17  # 49 tokens: 4 blocks
        assert not whole.admits(second, 1, pool.free_blocks)
        whole.left(first)
        assert (whole.reserved_blocks, whole.admits(second, 1, pool.free_blocks)) == (0, True)

    def test_windows_are_set_aside_as_far_as_they_go(self) -> None:
        # of 16 + 81 - 1 tokens a window of 32 keeps two blocks
        whole = WholeAnswer(BlockPool(3, 16), SequenceBlocks(growing=0, windowed=1), 32)
        request = Request(0, 0, 16, 81)
        whole.admitted(request, 1)
        assert whole.reserved_blocks == 2


FIRST, NEWCOMER = (0, 20, 50), (1, 20, 2)
"""The newcomer asks for 40 tokens: it wants 20 + 40 = 60."""


def estimate(initial: float, least: float, decay_steps: int, longest: int = 4096) -> AnswerEstimate:
    return AnswerEstimate(initial, least, decay_steps, longest)


class TestEstimate:
    """``estimated``: a falling share of what is left of the answers asked for (SGLang).

    A request comes in when prompt and longest answer are less than the free tokens, less the
    share of what each running request may still produce: its longest answer less its tokens so
    far. The share falls with every step that decodes.
    """

    @pytest.mark.parametrize("every_step", [False, True])
    def test_the_falling_share_lets_the_head_in(self, every_step: bool) -> None:
        """A hundred blocks of a token, a share of 0.8 that falls by 0.1 a step to 0.2.

        After ``s`` steps of decoding 80 - s are free, and 49 - s of the first answer's 50 tokens
        are to come: 80 - s - (0.8 - 0.1 s)(49 - s) is 40.8 at first, 58.0 after four steps and
        61.8 after five, which is more than 60 for the first time.
        """
        requests = requests_of(FIRST, NEWCOMER)
        requests[1].max_tokens = 40
        served(
            requests,
            blocks=100,
            block_tokens=1,
            estimate=estimate(0.8, 0.2, 6),
            rules={"prefill_first": True},
            every_step=every_step,
        )
        assert requests[1].admit_tick == STEP + 5 * STEP

    @pytest.mark.parametrize("every_step", [False, True])
    def test_it_does_not_fall_below_the_least(self, every_step: bool) -> None:
        """A share of 0.8 that falls to 0.6 in two steps and stays there.

        80 - s - 0.6 (49 - s) = 50.6 - 0.4 s does not come to 60: the newcomer waits for the end.
        """
        requests = requests_of(FIRST, NEWCOMER)
        requests[1].max_tokens = 40
        served(
            requests,
            blocks=100,
            block_tokens=1,
            estimate=estimate(0.8, 0.6, 2),
            rules={"prefill_first": True},
            every_step=every_step,
        )
        assert requests[1].admit_tick == 50 * STEP

    def test_long_answers_count_as_so_long(self) -> None:
        # The newcomer's 1000 count as 40: all as in the first test.
        requests = requests_of((0, 20, 40), NEWCOMER)
        requests[0].max_tokens = 50
        requests[1].max_tokens = 1000
        found, _ = served(
            requests,
            blocks=1100,
            block_tokens=1,
            estimate=estimate(0.8, 0.2, 6, longest=40),
            rules={"prefill_first": True},
        )
        assert found[1].admit_tick == STEP
        assert found[1].preemptions == 0

    def test_who_comes_in_at_the_same_step_counts_in_full(self) -> None:
        """With its prompt, which takes its blocks, and all of its answer.

        A hundred and thirty blocks of a token, a constant share of a half. The first is let in
        with 20 + 50; 60 are left, and the second wants 70. In the next step 110 are free, and
        half of the first's 49 to come are set aside: 85.5.
        """
        scheduler = scheduler_of(
            blocks=130,
            block_tokens=1,
            estimate=estimate(0.5, 0.5, 1),
            rules={"prefill_first": True},
        )
        with_requests(scheduler, (20, 50), (20, 50))
        assert chunks(pass_step(scheduler, 0)) == [(0, 20)]
        assert chunks(pass_step(scheduler, 1)) == [(1, 20)]

    def test_whoever_is_alone_comes_in(self) -> None:
        scheduler = scheduler_of(blocks=60, block_tokens=1, estimate=estimate(1.0, 1.0, 1))
        with_requests(scheduler, (20, 41), (1, 1))
        assert chunks(pass_step(scheduler, 0)) == [(0, 20)]

    def test_a_preemption_sets_the_estimate_anew(self) -> None:
        """To what those who stay have produced and will in the spare steps, of all they ask for.

        Fifty blocks of a token, one spare step, no share at first. Prompts of 20 that ask for 7
        tokens. The first leaves 30 blocks, less 7 of its answer: the second comes in when that
        counts no more, a step later. After five steps of the first they have 25 and 24 tokens, and
        the next one preempts the second. The first has 6 tokens of its answer, the last of them
        not in the cache: (6 + 1) / (7 + 1).
        """
        few = AnswerEstimate(0.0, 0.0, 1, 4096, spare_steps=1)
        scheduler = scheduler_of(blocks=50, block_tokens=1, estimate=few)
        requests = with_requests(scheduler, (20, 7), (20, 7))
        for tick in range(6):
            pass_step(scheduler, tick)
        assert [request.admit_tick for request in requests] == [0, 1]
        assert scheduler.pool.free_blocks == 1
        planned(scheduler, 6)
        assert [request.preemptions for request in requests] == [0, 1]
        reservation = scheduler.reservation
        assert reservation is not None
        share = reservation._fraction(scheduler.batch.step)  # type: ignore[attr-defined]
        assert share == pytest.approx(7 / 8)

    @pytest.mark.parametrize(("newcomer", "admit"), [(37, 5 * STEP + STEP), (38, 60 * STEP)])
    def test_an_answer_beyond_what_is_counted_is_so_long_from_its_start(
        self, newcomer: int, admit: int
    ) -> None:
        """A constant share of a half, and 40 tokens at most of any answer.

        When five steps are over, at 60, 75 of a hundred blocks are free. The first asked for 60,
        which count as 40, and has 6: 34 are to come. 75 - 17 = 58 is more than 20 + 37 tokens of
        a newcomer. Each further step takes a block and gives half a token free, so that one of
        20 + 38 waits for the end.
        """
        requests = requests_of((0, 20, 60), (55, 20, 2))
        requests[1].max_tokens = newcomer
        served(
            requests,
            blocks=100,
            block_tokens=1,
            estimate=estimate(0.5, 0.5, 1, longest=40),
            rules={"prefill_first": True},
        )
        assert requests[1].admit_tick == admit
