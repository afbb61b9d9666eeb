"""Prefix hits of recorded traffic against an independent count.

The expected shares were computed from the published block ids by another program: hits from the
start of each prompt, blocks of 512 tokens, least recently used blocks dropped. A test skips where
the traces are absent.
"""

from pathlib import Path

import pytest

from sim.engine.prefix import PrefixCache
from sim.workload.traces import TraceOptions, read_trace

TRACES = Path(__file__).resolve().parents[3] / "shared" / "traces"
BLOCK_TOKENS = 512
INFINITE = 10**9
EXPECTED = [
    ("conversation", INFINITE, 0.374),
    ("conversation", 100_000, 0.371),
    ("conversation", 50_000, 0.362),
    ("conversation", 30_000, 0.332),
    ("conversation", 10_000, 0.215),
    ("conversation", 5_000, 0.113),
    ("conversation", 1_000, 0.045),
    ("synthetic", INFINITE, 0.651),
    ("synthetic", 30_000, 0.636),
    ("synthetic", 10_000, 0.431),
    ("synthetic", 5_000, 0.284),
    ("synthetic", 1_000, 0.084),
]


@pytest.mark.shared_data
@pytest.mark.parametrize(("trace", "blocks", "share"), EXPECTED)
def test_share_of_input_tokens_that_is_cached(trace: str, blocks: int, share: float) -> None:
    path = TRACES / f"mooncake_{trace}.csv"
    if not path.exists():
        pytest.skip(f"{path.name} is not there: it is no part of the project")
    frame = read_trace(path, "mooncake", TraceOptions())
    cache = PrefixCache(blocks, BLOCK_TOKENS)
    hits = 0
    for content, tokens in zip(frame["content"], frame["input_tokens"], strict=True):
        # one after the other, each with all of its blocks, the last one as if it were full
        whole = -(-tokens // BLOCK_TOKENS) * BLOCK_TOKENS
        stream, start, length = content[-1]
        full = (*content[:-1], (stream, start, length + whole - tokens))
        match = cache.match(full, whole)
        holding = cache.hold(match)
        needed = (whole - match.tokens) // BLOCK_TOKENS
        cache.take(needed)
        cache.extend(holding, full, whole)
        cache.release(holding, full, whole, private_blocks=0)
        hits += min(match.tokens, tokens)
    assert hits / frame["input_tokens"].sum() == pytest.approx(share, abs=0.005)
