"""The decoding batch under speculative decoding, against hand arithmetic."""

import pytest

from sim.engine.kv import SequenceBlocks
from sim.engine.requests import Request
from sim.engine.speculative import GRAIN, SpeculativeBatch


def fresh(number: int, inputs: int, outputs: int) -> Request:
    """A request whose prompt has just given its first token."""
    request = Request(number, 0, inputs, outputs)
    request.generated_tokens = 1
    return request


def batch_of(
    steps: dict[int, int], drafted: int = 3, window: int | None = None
) -> SpeculativeBatch:
    """A batch in which each request needs the given number of steps."""
    blocks = SequenceBlocks(growing=1, windowed=0 if window is None else 2)
    return SpeculativeBatch(16, lambda number, _: steps[number], drafted, window, blocks)


def test_sums_of_two_sequences() -> None:
    batch = batch_of({0: 4, 1: 2})
    first, second = fresh(0, inputs=10, outputs=11), fresh(1, inputs=30, outputs=6)
    batch.add(first)  # ten tokens in four steps, 2.5 each
    batch.add(second)  # five in two, 2.5 each
    assert (batch.size, batch.context_tokens, batch.context_growing) == (2, 40 * 16, 80)
    assert batch.grain == GRAIN == 16
    assert batch.steps_to_next_change() == 2
    assert batch.decoded_tokens(1) == 5.0
    assert batch.advance(1) == []
    assert (batch.context_of(first), batch.context_of(second)) == (12, 32)
    assert batch.context_tokens == 45 * 16
    assert batch.advance(1) == [second]
    assert second.generated_tokens == 6
    assert (batch.size, batch.context_tokens) == (1, 15 * 16)
    assert batch.advance(2) == [first]
    assert (first.generated_tokens, batch.context_tokens, batch.context_growing) == (11, 0, 0)


def test_what_is_rounded_is_made_good_with_the_last_step() -> None:
    batch = batch_of({0: 3})
    batch.add(fresh(0, inputs=10, outputs=8))  # seven tokens in three steps: 37.33 grains each
    assert batch.context_growing == 37
    produced = []
    for _ in range(3):
        produced.append(batch.decoded_tokens(1))
        batch.advance(1)
    assert produced == [37 / 16, 37 / 16, 38 / 16]
    assert sum(produced) == 7


def test_slots_for_drafts_come_with_the_first_step_and_stay() -> None:
    """Contexts of 14 + 2, 4 and 6 tokens after each step, and 3 slots more: 19, 21 and 23."""
    batch = batch_of({0: 3})
    request = fresh(0, inputs=14, outputs=7)
    batch.add(request)
    assert batch.blocks_of(request) == 1  # as the prompt left it
    assert [batch.blocks_needed(steps) for steps in (1, 2, 3)] == [1, 1, 1]
    batch.advance(1)
    assert batch.blocks_of(request) == 2
    assert batch.advance(2) == [request]
    assert batch.final_blocks(request) == 2  # 14 + 6 + 3 slots


def test_blocks_limit_the_steps() -> None:
    """Four tokens a step from 16: with 3 slots more 23, 27, 31, 35, 39 ... after each step."""
    batch = batch_of({0: 10})
    batch.add(fresh(0, inputs=16, outputs=41))
    assert [batch.blocks_needed(steps) for steps in (1, 3, 4, 7, 8, 10)] == [1, 1, 2, 2, 3, 3]
    assert [batch.steps_within(blocks, 10) for blocks in (0, 1, 2, 3)] == [0, 3, 7, 10]
    assert batch.steps_within(1, 2) == 2


def test_a_preempted_sequence_comes_back_for_the_steps_it_lacks() -> None:
    batch = batch_of({0: 20, 1: 4})
    batch.add(fresh(0, inputs=10, outputs=41))
    request = fresh(1, inputs=20, outputs=11)  # ten tokens in four steps
    batch.add(request)
    batch.advance(3)
    assert (batch.context_of(request), batch.blocks_of(request)) == (27, 2)
    assert batch.preempt_last() is request
    # floor(10 x 3 / 4) = 7 tokens, where 3 steps of 40 grains account for 7.5
    assert (request.generated_tokens, batch.unsettled_tokens) == (8, -0.5)
    assert batch.steps_to_next_change() == 17
    assert batch.decoded_tokens(1) == 2 - 0.5
    assert batch.advance(1) == []
    assert batch.unsettled_tokens == 0
    request.generated_tokens += 1  # by the computation of its prompt and answer so far
    batch.add(request)
    assert batch.steps_to_next_change() == 1  # two tokens left, one step
    assert batch.decoded_tokens(1) == 4
    assert batch.advance(1) == [request]
    assert request.generated_tokens == 11


def test_steps_left_are_no_more_than_tokens_left() -> None:
    batch = batch_of({0: 3})
    request = fresh(0, inputs=5, outputs=4)  # three tokens in three steps
    batch.add(request)
    batch.advance(1)
    batch.remove(request)
    request.generated_tokens += 1
    batch.add(request)  # one token left, though two steps were
    assert batch.advance(1) == [request]


def test_blocks_of_a_sequence_that_left_are_not_due() -> None:
    batch = batch_of({0: 100, 1: 100})
    batch.add(fresh(0, inputs=10, outputs=301))
    request = fresh(1, inputs=300, outputs=301)
    batch.add(request)
    before = batch.blocks_needed(100)
    batch.remove(request)
    # 310 + 3 slots are 20 blocks less the one of the prompt; 603 slots, 38 less 19
    assert (before, batch.blocks_needed(100)) == (19 + 19, 19)


def test_those_of_the_last_priority_go_first() -> None:
    steps = {0: 9, 1: 9}
    batch = SpeculativeBatch(16, lambda number, _: steps[number], 1, by_priority=True)
    low, high = fresh(0, 10, 19), fresh(1, 10, 19)
    low.priority, high.priority = 5, 1
    batch.add(low)
    batch.add(high)
    assert batch.last() is low
    assert [batch.preempt_last(), batch.preempt_last()] == [low, high]
    assert (batch.size, batch.context_tokens, list(batch)) == (0, 0, [])


def test_a_window_counts_as_full_from_the_last_step_below_it() -> None:
    """Contexts of 10, 13, 16, 19, 22 tokens in a window of 20: full after three steps, 19."""
    batch = batch_of({0: 8}, window=20)
    batch.add(fresh(0, inputs=10, outputs=25))
    assert (batch.window_tokens, batch.window_growing) == (160, 48)
    assert batch.steps_to_next_change() == 3
    # slots after each step: 16, 19, 22 ...; windowed layers hold two times ceil(20 / 16) at most
    assert batch.blocks_needed(8) == (3 - 1) + 2 * (2 - 1)  # 37 slots, and the window
    batch.advance(3)
    assert (batch.window_tokens, batch.window_growing) == (320, 0)
    assert batch.steps_to_next_change() == 5
    batch.advance(5)
    assert batch.window_tokens == 0


def test_a_long_prompt_fills_the_window_at_once() -> None:
    batch = batch_of({0: 2}, window=20)
    batch.add(fresh(0, inputs=50, outputs=5))
    assert (batch.window_tokens, batch.window_growing, batch.steps_to_next_change()) == (320, 0, 2)


def test_an_equal_request_may_return_while_its_old_entry_is_still_known() -> None:
    """A client that tries again sends a new request of the same number."""
    batch = batch_of({0: 5})
    first = fresh(0, inputs=5, outputs=11)
    batch.add(first)
    batch.remove(first)
    second = fresh(0, inputs=5, outputs=11)
    batch.add(second)
    assert batch.advance(5) == [second]


def test_decoded_tokens_are_exact_fractions() -> None:
    batch = batch_of({0: 7})
    batch.add(fresh(0, inputs=5, outputs=18))
    assert batch.decoded_tokens(3) == pytest.approx(3 * 17 / 7, abs=3 / 32)
