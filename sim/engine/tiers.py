"""Places outside the chips where keys and values are kept for later requests.

Host memory, an SSD, a store that all replicas share: each keeps what the one before it drops, or
whatever is computed, and drops what nobody has asked for longest. What a prompt finds there need
not be computed, but it has to come over a link, and to have been written before.

A tier is searched like a prefix cache, so it holds a block only together with all blocks before
it: what is dropped is written with whatever of its prefix is not there yet.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import NamedTuple

from sim.engine.links import Link
from sim.engine.prefix import AT_ONCE, PrefixCache, Written
from sim.workload.content import Content, tokens_of


@dataclass
class Tier:
    """One such place.

    Parameters
    ----------
    name : str
    cache : PrefixCache
        What it holds; its blocks are those of the chips.
    read, write : Link
        From and to it.
    block_bytes : float
        Keys and values of one block.
    through : bool
        Whether it keeps all that is computed, and not only what the place before it drops.
    """

    name: str
    cache: PrefixCache
    read: Link
    write: Link
    block_bytes: float
    through: bool = True

    def tokens(self, content: Content, limit_tokens: int) -> int:
        """Count the tokens from the start that it holds."""
        return self.cache.match(content, limit_tokens).tokens

    def keep(self, content: Content, tick: int) -> None:
        """Write the full blocks of a content that it does not hold yet, as many as it can hold.

        They are found from now on; what is written through is there when the link has carried it.
        The tick of a drop is not known that well: it happens within a jump over steps, which looks
        at the blocks when somebody asks. So nobody waits for what is written on eviction.
        """
        cache = self.cache
        size = cache.block_tokens
        tokens = min(tokens_of(content) // size, cache.total_blocks) * size
        match = cache.match(content, tokens)
        new_blocks = (tokens - match.tokens) // size
        if not new_blocks and cache.is_youngest(match):
            return  # the place above drops one run block by block: it stays one run here
        holding = cache.hold(match)
        if new_blocks:
            _, there_tick = self.write.reserve(tick, new_blocks * self.block_bytes)
            cache.take(new_blocks)
            written = Written(tick, there_tick) if self.through else AT_ONCE
            cache.extend(holding, content, tokens, written)
        cache.release(holding, content, tokens, private_blocks=0)

    def touch(self, content: Content, tokens: int) -> None:
        """Let what has been asked for be dropped last."""
        holding = self.cache.hold(self.cache.match(content, tokens))
        self.cache.release(holding, content, holding.tokens, private_blocks=0)


class Load(NamedTuple):
    """Something on its way from a tier."""

    tier: str
    start_tick: int
    end_tick: int
    size_bytes: float


class Tiers:
    """The places of one replica, the nearest first.

    Parameters
    ----------
    now : callable
        Gives the tick.
    tiers : sequence of Tier
    """

    def __init__(self, now: Callable[[], int], tiers: Sequence[Tier]) -> None:
        self._now = now
        self._tiers = tuple(tiers)
        for upper, lower in pairwise(self._tiers):
            if not lower.through:
                upper.cache.on_evict = partial(self._pass_on, lower)

    def tokens(self, content: Content, limit_tokens: int) -> int:
        """Count the tokens from the start that any of them holds."""
        return max(tier.tokens(content, limit_tokens) for tier in self._tiers)

    def load(self, content: Content, start: int, end: int) -> list[Load]:
        """Read the tokens between two places, each from the nearest tier that holds it."""
        found, tick = [], self._now()
        for tier in self._tiers:
            match = tier.cache.match(content, end)
            if match.tokens > start:
                size = (match.tokens - start) / tier.cache.block_tokens * tier.block_bytes
                begin, there = tier.read.reserve(tick, size)
                # what is still being written is waited for; others are sent meanwhile
                late = max(0, match.ready_tick - begin)
                found.append(Load(tier.name, begin + late, there + late, size))
                tier.touch(content, match.tokens)
                start = match.tokens
        return found

    def computed(self, content: Content) -> None:
        """Take note of what a sequence leaves in the chips' cache."""
        for tier in self._tiers:
            if tier.through:
                tier.keep(content, self._now())

    def dropped(self, content: Content) -> None:
        """Take note of what the chips are about to forget, and of the way to it."""
        if not self._tiers[0].through:
            self._tiers[0].keep(content, self._now())

    def _pass_on(self, lower: Tier, content: Content) -> None:
        lower.keep(content, self._now())
