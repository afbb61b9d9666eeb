"""The pool of KV blocks."""

import pytest

from sim.engine.kv import BlockPool, blocks_for
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
