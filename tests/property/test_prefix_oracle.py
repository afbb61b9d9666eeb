"""The prefix cache as a tree of runs equals one with a hash for every block."""

from collections import Counter
from dataclasses import dataclass

import numpy as np
import pytest
from naive_prefix import NaivePrefixCache, NaiveSequence

from sim.engine.prefix import Holding, PrefixCache
from sim.workload.content import Content

HISTORIES = 400
STEPS = 60


@dataclass
class Running:
    """One sequence in both caches."""

    content: Content
    length: int
    holding: Holding
    naive: NaiveSequence
    computed: int
    blocks: int


def content(rng: np.random.Generator, size: int) -> Content:
    """Draw runs of few streams, so that prefixes and branches, also inside blocks, are common."""
    runs, lengths = [], rng.integers(1, 4)
    for depth in range(int(lengths)):
        stream = int(rng.integers(0, 2 + depth))
        position = int(rng.choice([0, 0, 0, size]))
        runs.append((stream, position, int(rng.integers(1, 5 * size + 1))))
    return tuple(runs)


def tokens_of(runs: Content) -> list[tuple[int, int]]:
    return [(stream, start + i) for stream, start, count in runs for i in range(count)]


class Histories:
    """Does the same to both caches and compares them."""

    def __init__(self, seed: int) -> None:
        self.rng = rng = np.random.default_rng(seed)
        self.size = int(rng.choice([1, 2, 4, 16]))
        total = int(rng.integers(6, 60))
        self.tree = PrefixCache(total, self.size)
        self.naive = NaivePrefixCache(total, self.size)
        self.running: list[Running] = []
        self.seen: Counter[str] = Counter()

    def held(self, tokens: int) -> int:
        return -(-tokens // self.size)

    def admit(self) -> None:
        runs = content(self.rng, self.size)
        tokens = tokens_of(runs)
        limit = len(tokens) - int(self.rng.integers(0, 2))
        match = self.tree.match(runs, limit)
        found = self.naive.found(tokens[:limit])
        assert match.tokens == found * self.size
        computed = min(len(tokens), match.tokens + int(self.rng.integers(1, 4 * self.size + 2)))
        needed = self.held(computed) - found
        if needed + match.idle_blocks > self.tree.free_blocks:
            self.seen["no room"] += 1
            return
        self.seen["hits"] += bool(found)
        holding = self.tree.hold(match)
        naive = self.naive.start(tokens, limit)
        row = Running(runs, len(tokens), holding, naive, match.tokens, found)
        self.running.append(row)
        self.compute(row, computed)

    def compute(self, row: Running, computed: int) -> None:
        needed = self.held(computed) - row.blocks
        if needed > self.tree.free_blocks:
            return
        self.tree.take(needed)
        self.naive.take(row.naive, needed)
        self.tree.extend(row.holding, row.content, computed)
        self.naive.register(row.naive, computed)
        row.computed, row.blocks = computed, row.blocks + needed

    def proceed(self) -> None:
        row = self.running[int(self.rng.integers(len(self.running)))]
        more = int(self.rng.integers(1, 2 * self.size + 2))
        self.compute(row, min(row.length, row.computed + more))

    def finish(self) -> None:
        row = self.running.pop(int(self.rng.integers(len(self.running))))
        self.seen["copies"] += bool(row.holding.duplicate_blocks)
        private = row.blocks - row.holding.shared_blocks
        self.tree.release(row.holding, row.content, row.computed, private)
        self.naive.finish(row.naive, row.computed)

    def step(self) -> None:
        action = self.rng.random()
        if not self.running or action < 0.45:
            self.admit()
        elif action < 0.75:
            self.proceed()
        else:
            self.finish()
        self.tree.check()
        assert self.tree.free_blocks == len(self.naive.queue)
        assert self.tree.evicted_blocks == self.naive.evicted


def test_the_tree_equals_single_blocks() -> None:
    seen: Counter[str] = Counter()
    for seed in range(HISTORIES):
        histories = Histories(seed)
        for _ in range(STEPS):
            histories.step()
        histories.seen["evictions"] += histories.tree.evicted_blocks > 0
        seen += histories.seen
    assert min(seen[name] for name in ("hits", "copies", "evictions", "no room")) > 100


@pytest.mark.parametrize("size", [1, 16])
def test_samples_of_one_prompt_read_the_same_blocks(size: int) -> None:
    cache = PrefixCache(100, size)
    prompt = ((3, 0, 40),)
    cache.take(-(-40 // size))
    holding = cache.hold(cache.match(prompt, 39))
    cache.extend(holding, prompt, 40)
    used = cache.used_blocks
    full = 40 // size
    found = cache.match(prompt, 40)
    assert found.tokens == full * size
    other = cache.hold(found)
    assert cache.used_blocks == used
    cache.release(holding, prompt, 40, private_blocks=-(-40 // size) - full)
    assert cache.used_blocks == full  # the other sample still reads them
    cache.release(other, prompt, 40, private_blocks=0)
    assert cache.used_blocks == 0
    cache.check()
