"""Sequences that are swapped out and in again get on: no two push each other out for ever."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from unittest.mock import patch

from hypothesis import example, given, settings
from hypothesis import strategies as st
from small_clusters import port_of, replica_plan, requests_of, run_open

from sim.engine.cluster import Cluster, PoolPlan
from sim.engine.requests import Request
from sim.engine.rules import SchedulerRules
from sim.engine.scheduler import Scheduler

MOST_PREEMPTIONS = 2_000
"""Far more than seven requests ever need: beyond, a run does not end."""

Row = tuple[int, int, int]


@contextmanager
def an_end() -> Iterator[None]:
    """Fail where sequences are preempted without end."""
    preempt, count = Scheduler._preempt_last, 0

    def counted(scheduler: Scheduler) -> Request:
        nonlocal count
        count += 1
        assert count < MOST_PREEMPTIONS, "sequences push each other out for ever"
        return preempt(scheduler)

    with patch.object(Scheduler, "_preempt_last", counted):
        yield


rules = st.builds(
    SchedulerRules,
    max_num_seqs=st.integers(1, 6),
    max_num_batched_tokens=st.integers(6, 60),
    max_chunk_tokens=st.none() | st.integers(1, 20),
    prefill_first=st.booleans(),
    watermark_fraction=st.sampled_from([0.0, 0.1]),
    whole_prompt_must_fit=st.booleans(),
    steps_ahead=st.integers(0, 1),
)
rows = st.lists(
    st.tuples(st.integers(0, 150), st.integers(1, 60), st.integers(1, 60)), min_size=2, max_size=7
)


@settings(max_examples=400, deadline=None)
@given(
    rules=rules,
    rows=rows,
    blocks=st.integers(4, 40),
    block_tokens=st.sampled_from([1, 2, 4]),
    swap_tokens=st.sampled_from([5, 20, 1000]),
    bytes_per_tick=st.sampled_from([0.05, 0.2, 1.0, 5.0]),
)
# two answers, prompts first: each was fetched into what the other one needed for its next token
@example(
    SchedulerRules(6, 56, prefill_first=True, watermark_fraction=0.05, steps_ahead=1),
    [(5, 5, 5), (5, 7, 3), (22, 5, 4)],
    8,
    2,
    20,
    0.05,
)
# prompts in chunks: each held a part of its prompt, and none had room for the next one
@example(
    SchedulerRules(4, 53, max_chunk_tokens=4, steps_ahead=1),
    [(17, 15, 3), (22, 4, 5), (62, 7, 14), (79, 8, 7), (79, 17, 3), (84, 13, 8), (84, 3, 2)],
    22,
    1,
    20,
    0.05,
)
def test_every_request_that_fits_is_answered(
    rules: SchedulerRules,
    rows: list[Row],
    blocks: int,
    block_tokens: int,
    swap_tokens: int,
    bytes_per_tick: float,
) -> None:
    plain = replica_plan(blocks=blocks, block_tokens=block_tokens, kv_bytes_per_token=1.0)
    plan = replace(plain, rules=rules)
    pool = PoolPlan("serve", 1, plan, host_link=port_of(bytes_per_tick), swap_tokens=swap_tokens)
    with an_end():
        record = run_open(Cluster([pool]), requests_of(*sorted(rows)))
    done = record.requests["done_s"] >= 0
    # the last token of an answer is never in the cache
    fits = [-(-(inputs + outputs - 1) // block_tokens) <= blocks for _, inputs, outputs in rows]
    assert sum(done) == sum(fits)
