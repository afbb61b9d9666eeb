"""The decoding batch kept as sums, against hand arithmetic and a list of sequences."""

import numpy as np
import pytest

from sim.engine.batch import DecodeBatch
from sim.engine.kv import SequenceBlocks, blocks_for
from sim.engine.requests import Request


def fresh(number: int, inputs: int, outputs: int) -> Request:
    """A request whose prompt has just given its first token."""
    request = Request(number, 0, inputs, outputs)
    request.generated_tokens = 1
    return request


def test_sums_of_two_sequences() -> None:
    batch = DecodeBatch(block_tokens=16)
    first, second = fresh(0, inputs=10, outputs=5), fresh(1, inputs=30, outputs=3)
    batch.add(first)
    batch.add(second)
    assert (batch.size, batch.context_tokens) == (2, 40)
    assert batch.steps_to_next_change() == 2  # the second has its first token and lacks two
    assert batch.advance(1) == []
    assert batch.context_tokens == 42
    assert (batch.context_of(first), batch.context_of(second)) == (11, 31)
    assert batch.advance(1) == [second]
    assert second.generated_tokens == 3
    # the last token is never put into the cache: prompt and two tokens, as for any sequence
    assert (batch.size, batch.context_tokens, list(batch)) == (1, 12, [first])
    assert batch.steps_to_next_change() == 2
    assert batch.advance(2) == [first]
    assert (batch.size, batch.context_tokens) == (0, 0)


def test_sequences_may_join_at_any_step() -> None:
    batch = DecodeBatch(block_tokens=16)
    batch.add(fresh(0, inputs=10, outputs=50))
    batch.advance(7)
    batch.add(fresh(1, inputs=100, outputs=4))
    assert batch.context_tokens == 17 + 100
    assert batch.steps_to_next_change() == 3
    batch.advance(3)
    assert batch.context_tokens == 20


def test_sequences_that_finish_together_leave_together() -> None:
    batch = DecodeBatch(block_tokens=16)
    requests = [fresh(number, inputs=5 + number, outputs=4) for number in range(3)]
    for request in requests:
        batch.add(request)
    assert batch.advance(3) == requests


def test_the_last_admitted_is_preempted_and_keeps_its_answer() -> None:
    batch = DecodeBatch(block_tokens=16)
    batch.add(fresh(0, inputs=10, outputs=9))
    last = fresh(1, inputs=20, outputs=9)
    batch.add(last)
    batch.advance(3)
    assert batch.preempt_last() is last
    assert (last.generated_tokens, batch.context_of(last)) == (4, 23)
    assert last.prefill_tokens == 24  # the fourth token was sampled and not yet in the cache
    assert (batch.size, batch.context_tokens) == (1, 13)
    assert batch.steps_to_next_change() == 5  # its own entry no longer counts


def test_a_preempted_sequence_may_finish_at_the_step_count_of_before() -> None:
    """Preempted one step before the batch ran empty, computed again with no step in between."""
    batch = DecodeBatch(block_tokens=16)
    batch.add(fresh(0, inputs=1, outputs=4))
    request = fresh(1, inputs=1, outputs=6)
    batch.add(request)
    batch.advance(2)
    batch.preempt_last()  # three tokens answered, three to come
    batch.advance(1)  # the first sequence is done
    request.generated_tokens += 1  # by the prompt's computation
    batch.add(request)
    assert batch.steps_to_next_change() == 2
    assert batch.advance(2) == [request]
    assert batch.size == 0


@pytest.mark.parametrize("every_step", [False, True])
def test_windows_are_filled_on_the_way(every_step: bool) -> None:
    batch = DecodeBatch(block_tokens=16, window_tokens=12)
    batch.add(fresh(0, inputs=10, outputs=50))
    batch.add(fresh(1, inputs=100, outputs=50))
    assert (batch.window_tokens, batch.window_growing) == (10 + 12, 1)
    assert batch.steps_to_next_change() == 2
    for steps in (1, 1) if every_step else (2,):
        batch.advance(steps)
    assert (batch.window_tokens, batch.window_growing) == (12 + 12, 0)
    assert batch.steps_to_next_change() == 47


def test_without_a_window_nothing_is_counted() -> None:
    batch = DecodeBatch(block_tokens=16)
    batch.add(fresh(0, inputs=10, outputs=50))
    assert (batch.window_tokens, batch.window_growing) == (0, 0)


def random_batch(rng: np.random.Generator) -> tuple[DecodeBatch, list[int]]:
    """A batch that sequences joined and left, and the contexts of those that are in it."""
    block_tokens = int(rng.choice([1, 2, 3, 16]))
    batch = DecodeBatch(block_tokens)
    for number in range(int(rng.integers(1, 9))):
        batch.add(fresh(number, int(rng.integers(1, 60)), outputs=1000))
        batch.advance(int(rng.integers(0, 20)))
        if batch.size > 1 and rng.integers(4) == 0:
            batch.preempt_last()
    return batch, [batch.context_of(request) for request in batch]


def counted_blocks(contexts: list[int], steps: int, block_tokens: int) -> int:
    """Blocks that sequences hold after some steps, less those that they hold now."""
    after = sum(blocks_for(context + steps, block_tokens) for context in contexts)
    return after - sum(blocks_for(context, block_tokens) for context in contexts)


@pytest.mark.parametrize("seed", range(15))
def test_blocks_needed_equal_a_count_over_the_sequences(seed: int) -> None:
    batch, contexts = random_batch(np.random.default_rng(seed))
    assert batch.context_tokens == sum(contexts)
    for steps in range(1, 4 * batch.block_tokens + 3):
        expected = counted_blocks(contexts, steps, batch.block_tokens)
        assert batch.blocks_needed(steps) == expected


@pytest.mark.parametrize("seed", range(15))
def test_steps_within_is_the_inverse_of_blocks_needed(seed: int) -> None:
    batch, contexts = random_batch(np.random.default_rng(seed))
    limit = 3 * batch.block_tokens + 2
    for free in range(counted_blocks(contexts, 1, batch.block_tokens), 40):
        steps = batch.steps_within(free, limit)
        assert 1 <= steps <= limit
        assert counted_blocks(contexts, steps, batch.block_tokens) <= free
        if steps < limit:
            assert counted_blocks(contexts, steps + 1, batch.block_tokens) > free


def test_a_full_block_needs_the_next_one() -> None:
    # 32 tokens fill two blocks: the next token opens a third, which lasts for 16 steps
    batch = DecodeBatch(block_tokens=16)
    batch.add(fresh(0, inputs=32, outputs=100))
    assert [batch.blocks_needed(steps) for steps in (1, 16, 17, 33)] == [1, 1, 2, 3]
    assert batch.steps_within(free_blocks=2, limit=99) == 32


@pytest.mark.parametrize("block_tokens", [1, 3, 16])
def test_blocks_of_windows_and_full_layers(block_tokens: int) -> None:
    """Steps that a number of free blocks suffice for, against sequences walked one by one."""
    rng = np.random.default_rng(9)
    blocks = SequenceBlocks(growing=2, windowed=3, fixed=4)
    batch = DecodeBatch(block_tokens, window_tokens=50, blocks=blocks)
    inputs = rng.integers(1, 90, 12).tolist()
    for number, length in enumerate(inputs):
        batch.add(fresh(number, inputs=length, outputs=500))
    limit = batch.steps_to_next_change()  # the first window to fill

    def needed(steps: int) -> int:
        return sum(
            blocks.held(length + steps, block_tokens, 50) - blocks.held(length, block_tokens, 50)
            for length in inputs
        )

    assert [batch.blocks_needed(steps) for steps in range(1, limit + 1)] == [
        needed(steps) for steps in range(1, limit + 1)
    ]
    for free in (needed(1), needed(limit) - 1, needed(limit), needed(limit) + 9):
        within = batch.steps_within(free, limit)
        assert needed(within) <= free
        assert within == limit or needed(within + 1) > free
