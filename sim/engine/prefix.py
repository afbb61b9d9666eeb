"""A KV cache in which blocks of earlier requests are found again.

Interim: block by block.
"""

from collections import OrderedDict
from dataclasses import dataclass, field
from typing import NamedTuple

from sim.engine.kv import BlockPool
from sim.workload.content import Content

Key = int


class Match(NamedTuple):
    """The longest prefix of a content that is cached."""

    tokens: int
    idle_blocks: int
    """Of its blocks, those that nobody uses."""
    keys: tuple[Key, ...]


@dataclass
class Holding:
    """The shared blocks that a sequence uses."""

    keys: list[Key] = field(default_factory=list)
    done: int = 0

    @property
    def shared_blocks(self) -> int:
        """Blocks that others may find."""
        return len(self.keys)


class PrefixCache(BlockPool):
    """Free, used and idle KV blocks, of which the idle ones can be found again."""

    def __init__(self, total_blocks: int, block_tokens: int) -> None:
        super().__init__(total_blocks, block_tokens)
        self._ids: dict[object, Key] = {}
        self._readers: dict[Key, int] = {}
        self._queue: OrderedDict[Key, int] = OrderedDict({-1: total_blocks})
        self._garbage = -1

    def match(self, content: Content, limit_tokens: int) -> Match:
        """Find the longest cached prefix, at most so many tokens, in whole blocks."""
        keys = []
        for key in self._keys(content, limit_tokens):
            if key not in self._readers:
                break
            keys.append(key)
        idle = sum(self._readers[key] == 0 for key in keys)
        return Match(len(keys) * self.block_tokens, idle, tuple(keys))

    def hold(self, match: Match) -> Holding:
        """Use the blocks of a match."""
        for key in match.keys:
            if not self._readers[key]:
                del self._queue[key]
                self.free_blocks -= 1
            self._readers[key] += 1
        return Holding(list(match.keys), len(match.keys))

    def extend(self, holding: Holding, content: Content, tokens: int) -> None:
        """Let others find the full blocks among the first tokens of a content."""
        for index, key in enumerate(self._keys(content, tokens)):
            if index < holding.done:
                continue
            holding.done += 1
            if key not in self._readers:
                self._readers[key] = 1
                holding.keys.append(key)

    def release(self, holding: Holding, content: Content, tokens: int, private_blocks: int) -> None:
        """Use the blocks of a sequence no more; they stay until they are needed."""
        before = len(holding.keys)
        self.extend(holding, content, tokens)
        private_blocks -= len(holding.keys) - before
        if private_blocks:
            self.give_back(private_blocks)
        for key in reversed(holding.keys):
            self._readers[key] -= 1
            if not self._readers[key]:
                self._queue[key] = 1
                self.free_blocks += 1

    def take(self, blocks: int) -> None:
        """Give blocks to sequences, those that have been idle longest."""
        super().take(blocks)
        while blocks:
            key, count = next(iter(self._queue.items()))
            taken = min(count, blocks)
            blocks -= taken
            if taken < count:
                self._queue[key] = count - taken
                return
            del self._queue[key]
            self._readers.pop(key, None)

    def give_back(self, blocks: int) -> None:
        """Take blocks back that nobody can find again."""
        super().give_back(blocks)
        self._garbage -= 1
        self._queue[self._garbage] = blocks

    def _keys(self, content: Content, tokens: int) -> list[Key]:
        size = self.block_tokens
        keys, parent, part, room = [], -1, [], size
        left = tokens // size * size
        for stream, start, length in content:
            length = min(length, left)
            left -= length
            while length:
                piece = min(length, room)
                part.append((stream, start, piece))
                start, length, room = start + piece, length - piece, room - piece
                if not room:
                    parent = self._ids.setdefault((parent, tuple(part)), len(self._ids))
                    keys.append(parent)
                    part, room = [], size
        return keys
