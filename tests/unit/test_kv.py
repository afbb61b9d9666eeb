"""The pool of KV blocks."""

import numpy as np
import pytest

from sim.engine.kv import WHOLE_CONTEXT, BlockPhases, BlockPool, SequenceBlocks, blocks_for
from sim.errors import InternalError


@pytest.mark.parametrize(
    ("tokens", "blocks"), [(0, 0), (1, 1), (15, 1), (16, 1), (17, 2), (32, 2), (33, 3)]
)
def test_blocks_are_rounded_up(tokens: int, blocks: int) -> None:
    assert blocks_for(tokens, 16) == blocks


def test_a_block_of_one_token_is_a_token() -> None:
    assert [blocks_for(tokens, 1) for tokens in range(5)] == [0, 1, 2, 3, 4]


def test_blocks_change_hands() -> None:
    pool = BlockPool(total_blocks=10, block_tokens=16)
    assert (pool.free_blocks, pool.used_blocks) == (10, 0)
    pool.take(7)
    assert (pool.free_blocks, pool.used_blocks) == (3, 7)
    pool.give_back(2)
    assert (pool.free_blocks, pool.used_blocks) == (5, 5)
    pool.take(5)
    assert (pool.free_blocks, pool.used_blocks) == (0, 10)


def test_more_than_is_free_cannot_be_taken() -> None:
    pool = BlockPool(total_blocks=4, block_tokens=16)
    pool.take(3)
    with pytest.raises(InternalError, match="2 KV blocks wanted, 1 free"):
        pool.take(2)
    assert pool.free_blocks == 1  # and nothing was


def test_more_than_was_taken_cannot_come_back() -> None:
    pool = BlockPool(total_blocks=4, block_tokens=16)
    pool.take(1)
    with pytest.raises(InternalError, match="5 of 4 KV blocks free"):
        pool.give_back(2)


class TestBlocksOfASequence:
    @pytest.mark.parametrize("tokens", [0, 1, 16, 17, 1000])
    def test_layers_that_keep_everything(self, tokens: int) -> None:
        assert WHOLE_CONTEXT.held(tokens, 16) == blocks_for(tokens, 16)

    def test_windows_stop_and_states_stay(self) -> None:
        blocks = SequenceBlocks(growing=2, windowed=3, fixed=5)
        # blocks of 16, a window of 40 tokens: three blocks of it at most
        held = [blocks.held(tokens, 16, 40) for tokens in (1, 16, 17, 40, 48, 49, 1000)]
        assert held == [10, 10, 15, 20, 20, 22, 5 + 3 * 3 + 2 * 63]

    def test_no_tokens_hold_nothing(self) -> None:
        assert SequenceBlocks(1, 1, 100).held(0, 16, 40) == 0

    def test_phases_are_those_of_a_list(self) -> None:
        """Blocks taken over any steps, against sequences walked one by one."""
        rng = np.random.default_rng(3)
        contexts = rng.integers(0, 200, 30).tolist()
        for step in (0, 5, 16, 33):
            phases = BlockPhases(16)
            for context in contexts:
                phases.count(context - step, 1)
            for steps in (1, 2, 15, 16, 17, 100):
                walked = sum(
                    blocks_for(context + steps, 16) - blocks_for(context, 16)
                    for context in contexts
                )
                assert phases.taken(step, steps) == walked
            assert sum(phases.cycle(step)) == phases.size == 30
