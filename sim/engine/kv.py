"""The paged KV cache of one replica: a pool of equal blocks, counted, not named."""

from collections.abc import Callable
from typing import NamedTuple

from sim.errors import InternalError

BlockCounter = Callable[[int], int]
"""Blocks of a sequence by its tokens in the cache."""


def blocks_for(tokens: int, block_tokens: int) -> int:
    """Blocks that hold ``tokens``, the last one partly filled.

    >>> blocks_for(33, 16)
    3
    """
    return -(-tokens // block_tokens)


class SequenceBlocks(NamedTuple):
    """Blocks that one sequence holds, by what the layers of its model keep of the context.

    A block has one size in bytes; layers that keep more bytes per token hold more blocks.
    """

    growing: int = 1
    """For every ``block_tokens`` of context: layers that keep all of it."""
    windowed: int = 0
    """The same for layers with a sliding window, which hold no more once it is full."""
    fixed: int = 0
    """From the first token on: states, which do not grow."""

    def held(self, tokens: int, block_tokens: int, window_tokens: int | None = None) -> int:
        """Count the blocks of a sequence with so many tokens in the cache; none without tokens.

        40 tokens are three blocks of 16; a window of 20 tokens, two:

        >>> SequenceBlocks(growing=1, windowed=5, fixed=7).held(40, 16, window_tokens=20)
        20
        """
        if not tokens:
            return 0
        seen = tokens if window_tokens is None else min(tokens, window_tokens)
        return (
            self.fixed
            + self.growing * blocks_for(tokens, block_tokens)
            + self.windowed * blocks_for(seen, block_tokens)
        )

    def counter(self, block_tokens: int, window_tokens: int | None = None) -> BlockCounter:
        """Give the function that counts the blocks of a sequence by its tokens in the cache.

        >>> SequenceBlocks().counter(16)(40)
        3
        """
        if self == WHOLE_CONTEXT:
            return lambda tokens: -(-tokens // block_tokens)
        return lambda tokens: self.held(tokens, block_tokens, window_tokens)


WHOLE_CONTEXT = SequenceBlocks()
"""Every layer keeps the whole context."""


class BlockPhases:
    """Decoding sequences, counted by the fill of their last block.

    A sequence takes a new block whenever its cached tokens fill their blocks exactly: every
    ``block_tokens`` steps, at a phase of its own.

    Parameters
    ----------
    block_tokens : int
        Tokens that one block holds.
    """

    def __init__(self, block_tokens: int) -> None:
        self.block_tokens = block_tokens
        self.size = 0
        """Sequences counted."""
        self._counts = [0] * (2 * block_tokens)  # twice over, so that slices wrap around

    def count(self, base_tokens: int, change: int) -> None:
        """Add sequences, or remove them where ``change`` is negative.

        Parameters
        ----------
        base_tokens : int
            Their context less the batch's step count.
        change : int
            How many more there are.
        """
        counts, size = self._counts, self.block_tokens
        phase = -base_tokens % size
        self.size += change
        counts[phase] += change
        counts[phase + size] += change

    def taken_next(self, step: int) -> int:
        """Count the blocks that all sequences together take in the next step."""
        return self._counts[step % self.block_tokens]

    def cycle(self, step: int) -> list[int]:
        """Count the sequences that take a block in each step of a whole cycle from now on."""
        start = step % self.block_tokens
        return self._counts[start : start + self.block_tokens]

    def taken(self, step: int, steps: int) -> int:
        """Count the blocks that all sequences together take in the next steps."""
        start = step % self.block_tokens
        cycles, rest = divmod(steps, self.block_tokens)
        return cycles * self.size + sum(self._counts[start : start + rest])


class BlockPool:
    """Free and used KV blocks.

    Parameters
    ----------
    total_blocks : int
        What fits beside weights, activations and the engine's own share.
    block_tokens : int
        Tokens that one block holds.
    """

    def __init__(self, total_blocks: int, block_tokens: int) -> None:
        self.total_blocks = total_blocks
        self.block_tokens = block_tokens
        self.free_blocks = total_blocks

    @property
    def used_blocks(self) -> int:
        """Blocks that belong to sequences."""
        return self.total_blocks - self.free_blocks

    def take(self, blocks: int) -> None:
        """Give blocks to sequences.

        Raises
        ------
        InternalError
            When there are not so many: the scheduler must look first.
        """
        if blocks > self.free_blocks:
            raise InternalError(f"{blocks} KV blocks wanted, {self.free_blocks} free")
        self.free_blocks -= blocks

    def give_back(self, blocks: int) -> None:
        """Take blocks back from sequences.

        Raises
        ------
        InternalError
            When more come back than were given.
        """
        self.free_blocks += blocks
        if self.free_blocks > self.total_blocks:
            raise InternalError(f"{self.free_blocks} of {self.total_blocks} KV blocks free")
