"""Tiers equal a list of single blocks: what is found, what is dropped, when it is there."""

from collections import Counter
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from naive_prefix import NaivePrefixCache
from naive_tiers import NaiveLink, NaiveTier, NaiveTiers

from sim.catalog import open_catalog
from sim.engine.clock import TICKS_PER_S
from sim.engine.links import Link
from sim.engine.prefix import PrefixCache
from sim.engine.tiers import Tier, Tiers
from sim.scenario import load_scenario
from sim.service import service_of
from sim.simulate import draw_traffic, serve
from sim.workload.content import PRIVATE_STREAM, Content, first_tokens, tokens_of

BLOCK_BYTES = 8.0
SIZE = 4
HISTORIES = 200
STEPS = 60


@dataclass
class Clock:
    tick: int = 0


def content(rng: np.random.Generator) -> Content:
    """Draw runs of few streams, so that prefixes and branches, also inside blocks, are common."""
    runs = [(int(rng.integers(0, 2)), 0, int(rng.integers(1, 14)))]
    runs += [
        (int(rng.integers(0, 3 + depth)), 40, int(rng.integers(1, 14)))
        for depth in range(int(rng.integers(0, 3)))
    ]
    return tuple(runs)


def tokens(runs: Content) -> list[tuple[int, int]]:
    return [(stream, start + i) for stream, start, count in runs for i in range(count)]


def link(ticks_per_block: int, latency: int) -> Link:
    return Link(BLOCK_BYTES / ticks_per_block * TICKS_PER_S, latency / TICKS_PER_S)


class Histories:
    """Does the same to both and compares what comes out."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.rng, self.clock = rng, Clock()
        rows = [
            (
                int(rng.integers(1, 14)),
                bool(rng.random() < 0.5),
                [int(n) for n in rng.integers(1, 20, 2)],
                [int(n) for n in rng.integers(0, 9, 2)],
            )
            for _ in range(int(rng.integers(1, 4)))
        ]
        self.tiers = [
            Tier(
                str(number),
                PrefixCache(blocks, SIZE),
                link(ticks[0], latency[0]),
                link(ticks[1], latency[1]),
                BLOCK_BYTES,
                through,
            )
            for number, (blocks, through, ticks, latency) in enumerate(rows)
        ]
        self.tree = Tiers(lambda: self.clock.tick, self.tiers)
        naive = [
            NaiveTier(
                blocks,
                SIZE,
                through,
                NaiveLink(ticks[0], latency[0]),
                NaiveLink(ticks[1], latency[1]),
            )
            for blocks, through, ticks, latency in rows
        ]
        for upper, lower in pairwise(naive):
            upper.lower = lower
        self.naive = NaiveTiers(naive)
        self.seen: Counter[str] = Counter()

    def step(self) -> None:
        rng, now = self.rng, self.clock.tick
        runs = content(rng)
        action = rng.random()
        if action < 0.35:
            self.tree.computed(runs)
            self.naive.computed(tokens(runs), now)
        elif action < 0.55:
            self.tree.dropped(runs)
            self.naive.dropped(tokens(runs), now)
        else:
            self.look_up(runs)
        for one, other in zip(self.tiers, self.naive.tiers, strict=True):
            one.cache.check()
            assert one.cache.free_blocks == other.capacity  # nobody reads between two steps
            assert one.cache.total_blocks - other.garbage == len(other.there)
        self.clock.tick += int(rng.choice([0, 0, 3, 30]))

    def look_up(self, runs: Content) -> None:
        now, limit = self.clock.tick, tokens_of(runs) - 1
        prompt = tokens(runs)[:limit]
        found = self.tree.tokens(runs, limit)
        assert found == self.naive.tokens(prompt)
        start = int(self.rng.integers(0, 3)) * SIZE
        if found <= start:
            self.seen["misses"] += 1
            return
        loads = self.tree.load(first_tokens(runs, limit), start, found)
        expected = self.naive.load(prompt, start, now)
        assert [
            (int(load.tier), load.start_tick, load.end_tick, load.size_bytes) for load in loads
        ] == [(number, begin, end, blocks * BLOCK_BYTES) for number, begin, end, blocks in expected]
        assert sum(load.size_bytes for load in loads) == (found - start) / SIZE * BLOCK_BYTES
        self.seen["loads"] += 1
        self.seen["from several"] += len(loads) > 1
        self.seen["waits"] += any(load.start_tick > now for load in loads)
        self.seen["drops"] += any(tier.cache.evicted_blocks > 0 for tier in self.tiers)


def test_tiers_equal_single_blocks() -> None:
    seen: Counter[str] = Counter()
    for seed in range(HISTORIES):
        histories = Histories(np.random.default_rng(seed))
        for _ in range(STEPS):
            histories.step()
        seen += histories.seen
    assert min(seen[name] for name in ("misses", "loads", "from several", "waits", "drops")) > 50


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(1, 60)), min_size=1, max_size=20))
def test_whoever_asks_twice_at_once_is_told_the_same(prompts: list[tuple[int, int]]) -> None:
    """Looking changes nothing, and what was written last is there as far as it fits."""
    blocks = 10
    cache = PrefixCache(blocks, SIZE)
    tiers = Tiers(lambda: 0, [Tier("0", cache, link(1, 0), link(1, 0), BLOCK_BYTES)])
    for stream, length in prompts:
        runs: Content = ((stream, 0, length),)
        tiers.computed(runs)
        kept = min(length // SIZE, blocks) * SIZE
        assert tiers.tokens(runs, length) == tiers.tokens(runs, length) == kept


SCENARIO = """
name: one client
question: Where are its prompts found again?
model: llama_3_1_8b
system: h100_sxm_x8
precision: {weights: bf16, kv_cache: bf16, attention: bf16}
parallelism: {tp: 1}
engine:
  name: vllm
  kv_blocks: 150
  null_blocks: 1
  block_tokens: 16
  kv_tiers:
    - name: store
      capacity_bytes: 64 GiB
      read_bytes_per_s: 5 GB/s
      write_bytes_per_s: 50 GB/s
      shared: true
workload:
  kind: closed_loop
  concurrency: 1
  requests: 80
  lengths: {kind: uniform_range, input_tokens: 300, output_tokens: 20, low_fraction: 0.2}
  sharing: {prefixes: 6, tokens: {kind: constant, tokens: 1000}, within_prompt: false}
slo: {ttft_s: 1 s, tpot_s: 100 ms}
prices: {book: us_2026_11}
"""
KV_BYTES_PER_TOKEN = 2 * 32 * 8 * 128 * 2
"""Of Llama 3.1 8B: keys and values, 32 layers, 8 heads of 128 values, 2 bytes each."""


def test_what_a_run_finds_is_on_its_chips_or_moved(tmp_path: Path) -> None:
    """One client, one request after the other, followed block by block.

    The store keeps all. A request that fetches holds a block more until its keys and values have
    come, which is then free again and holds nothing; all but the last token of an answer is cached.
    """
    path = tmp_path / "one_client.yaml"
    path.write_text(SCENARIO, encoding="utf-8")
    (case,) = load_scenario(path).cases
    catalog = open_catalog()
    service = service_of(case, catalog)
    traffic = draw_traffic(case.workload, catalog, 1)
    record = serve(service, traffic, seed=1)
    chips, store, size = NaivePrefixCache(149, 16), set[int](), 16
    expected, seen = [], Counter[str]()
    for number, row in enumerate(traffic.rows()):
        assert row.content is not None
        prompt = tokens(row.content)
        answer = [(PRIVATE_STREAM - number, i) for i in range(row.output_tokens - 1)]
        whole = prompt + answer
        limit = len(prompt) - 1
        known = chips.hashes(whole)
        here = chips.found(prompt[:limit])
        there = next((i for i, one in enumerate(known) if one not in store), len(known))
        fetched = max(here, min(there, limit // size))
        sequence = chips.start(whole, limit)
        if fetched > here:
            chips.take(sequence, fetched + 1 - here)
            chips.register(sequence, fetched * size)
            sequence.private -= 1
            chips.queue.append(None)
        chips.take(sequence, -(-len(whole) // size) - fetched)
        chips.finish(sequence, len(whole))
        store.update(known)
        expected.append((fetched * size, (fetched - here) * size * KV_BYTES_PER_TOKEN))
        seen.update({"chips": here > 0, "store": fetched > here, "both": 0 < here < fetched})
    moved = Counter[int]()
    columns = record.transfers
    for number, size_bytes in zip(columns["request_id"], columns["bytes"], strict=True):
        moved[int(number)] += size_bytes
    cached = dict(zip(record.requests["request_id"], record.requests["cached_tokens"], strict=True))
    assert [(cached[number], moved[number]) for number in range(len(expected))] == expected
    assert set(columns["kind"]) == {"load"}
    assert min(seen.values()) > 5
