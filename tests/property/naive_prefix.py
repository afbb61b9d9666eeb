"""The oracle of the prefix cache: one hash and one queue entry for every single block.

Written from the rules of vLLM's ``block_pool.py`` and shares no code with `sim`: a block is known
by the hash of all its tokens and those before it; free blocks stand in one queue, in the order in
which they became free, those of one sequence from its tail to its head.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

Tokens = Sequence[tuple[int, int]]
"""(stream, position) of each token."""


@dataclass
class NaiveSequence:
    """One sequence and its blocks, in order."""

    tokens: list[tuple[int, int]]
    hashed: list[int] = field(default_factory=list)
    """Hashes of its full blocks that it has registered or found."""
    copies: int = 0
    """Of those, blocks that it has to itself, as another sequence uses the registered one."""
    private: int = 0
    """Blocks that are not registered."""


@dataclass
class NaivePrefixCache:
    total: int
    size: int
    queue: list[int | None] = field(default_factory=list)
    """Free blocks: the hash of what is in them, or none."""
    readers: dict[int, int] = field(default_factory=dict)
    """Readers of every registered block."""
    evicted: int = 0

    def __post_init__(self) -> None:
        self.queue = [None] * self.total

    def hashes(self, tokens: Tokens) -> list[int]:
        size = self.size
        full = len(tokens) // size
        return [hash(tuple(tokens[: (number + 1) * size])) for number in range(full)]

    def found(self, tokens: Tokens) -> int:
        """Blocks from the start that are registered."""
        count = 0
        for known in self.hashes(tokens):
            if known not in self.readers:
                break
            count += 1
        return count

    def start(self, tokens: Tokens, limit: int) -> NaiveSequence:
        sequence = NaiveSequence(list(tokens))
        for known in self.hashes(tokens[:limit])[: self.found(tokens[:limit])]:
            if not self.readers[known]:
                self.queue.remove(known)
            self.readers[known] += 1
            sequence.hashed.append(known)
        return sequence

    def take(self, sequence: NaiveSequence | None, count: int) -> None:
        for _ in range(count):
            known = self.queue.pop(0)
            if known is not None:
                del self.readers[known]
                self.evicted += 1
        if sequence is not None:
            sequence.private += count

    def register(self, sequence: NaiveSequence, computed: int) -> None:
        known = self.hashes(sequence.tokens[:computed])
        for one in known[len(sequence.hashed) :]:
            sequence.private -= 1
            if one not in self.readers:
                self.readers[one] = 1
            elif self.readers[one]:
                self.readers[one] += 1
                sequence.copies += 1
            else:  # its own takes the place of the idle one
                self.queue.remove(one)
                self.queue.append(None)
                self.readers[one] = 1
            sequence.hashed.append(one)

    def finish(self, sequence: NaiveSequence, computed: int) -> None:
        self.register(sequence, computed)
        self.queue += [None] * (sequence.private + sequence.copies)
        for known in reversed(sequence.hashed):
            self.readers[known] -= 1
            if not self.readers[known]:
                self.queue.append(known)
