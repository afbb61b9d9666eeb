"""The paged KV cache of one replica: a pool of equal blocks, counted, not named."""

from sim.errors import InternalError


def blocks_for(tokens: int, block_tokens: int) -> int:
    """Blocks that hold ``tokens``, the last one partly filled.

    >>> blocks_for(33, 16)
    3
    """
    return -(-tokens // block_tokens)


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
