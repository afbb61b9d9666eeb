"""The oracle of the tiers: one entry for every block, in the order in which they would be dropped.

A block is known by all tokens up to its end, as in `naive_prefix`; times are whole ticks. It shares
no code with `sim`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

Chain = tuple[tuple[int, int], ...]
"""(stream, position) of all tokens from the start to the end of a block."""


@dataclass
class NaiveLink:
    ticks_per_block: int
    latency: int
    free: int = 0

    def send(self, now: int, blocks: int) -> tuple[int, int]:
        start = max(now, self.free)
        self.free = start + blocks * self.ticks_per_block
        return start, self.free + self.latency


@dataclass
class NaiveTier:
    capacity: int
    size: int
    through: bool
    read: NaiveLink
    write: NaiveLink
    lower: "NaiveTier | None" = None
    """Who is told of what it drops."""
    there: dict[Chain, int] = field(default_factory=dict)
    """When each block has been written; the first is dropped first."""
    garbage: int = 0
    """Room that holds nothing, which is used before anything is dropped."""

    def __post_init__(self) -> None:
        self.garbage = self.capacity

    def chains(self, tokens: Sequence[tuple[int, int]]) -> list[Chain]:
        full = len(tokens) // self.size
        return [tuple(tokens[: (number + 1) * self.size]) for number in range(full)]

    def found(self, tokens: Sequence[tuple[int, int]]) -> list[Chain]:
        known = []
        for chain in self.chains(tokens):
            if chain not in self.there:
                break
            known.append(chain)
        return known

    def make_young(self, chains: Sequence[Chain]) -> None:
        for chain in reversed(chains):
            self.there[chain] = self.there.pop(chain)

    def keep(self, tokens: Sequence[tuple[int, int]], now: int) -> None:
        wanted = self.chains(tokens)[: self.capacity]
        known = self.found(tokens)[: self.capacity]
        new = wanted[len(known) :]
        written = 0
        if new:
            _, end = self.write.send(now, len(new))
            written = end if self.through else 0
        for _ in new:
            if self.garbage:
                self.garbage -= 1
                continue
            oldest = next(chain for chain in self.there if chain not in known)
            if self.lower is not None and not self.lower.through:
                self.lower.keep(oldest, now)
            del self.there[oldest]
        self.there.update(dict.fromkeys(new, written))
        self.make_young(wanted)


@dataclass
class NaiveTiers:
    tiers: list[NaiveTier]

    def tokens(self, prompt: Sequence[tuple[int, int]]) -> int:
        return max(len(tier.found(prompt)) * tier.size for tier in self.tiers)

    def load(
        self, prompt: Sequence[tuple[int, int]], start: int, now: int
    ) -> list[tuple[int, int, int, int]]:
        """Give tier, start, end and blocks of each transfer."""
        loads = []
        for number, tier in enumerate(self.tiers):
            known = tier.found(prompt)
            blocks = len(known) - start // tier.size
            if blocks > 0:
                begin, end = tier.read.send(now, blocks)
                late = max(0, max(tier.there[chain] for chain in known[-blocks:]) - begin)
                loads.append((number, begin + late, end + late, blocks))
                tier.make_young(known)
                start = len(known) * tier.size
        return loads

    def computed(self, tokens: Sequence[tuple[int, int]], now: int) -> None:
        for tier in self.tiers:
            if tier.through:
                tier.keep(tokens, now)

    def dropped(self, tokens: Sequence[tuple[int, int]], now: int) -> None:
        if not self.tiers[0].through:
            self.tiers[0].keep(tokens, now)
