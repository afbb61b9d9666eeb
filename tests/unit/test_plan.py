"""A replica's scheduler is made as its plan says, anew every time."""

import pytest
from small_clusters import replica_plan

from sim.engine.admission import AnswerEstimate, EstimatedAnswer, WholeAnswer
from sim.engine.batch import DecodeBatch
from sim.engine.kv import BlockPool, SequenceBlocks
from sim.engine.prefix import PrefixCache
from sim.engine.requests import Request
from sim.engine.waiting import FcfsLine, PriorityLine


def test_the_plain_one() -> None:
    scheduler = replica_plan(blocks=30, block_tokens=4).new_scheduler()
    assert type(scheduler.pool) is BlockPool
    assert (scheduler.pool.total_blocks, scheduler.pool.block_tokens) == (30, 4)
    assert type(scheduler.batch) is DecodeBatch
    assert isinstance(scheduler.line, FcfsLine)
    assert scheduler.reservation is None
    assert scheduler.transport is None


def test_what_may_be_chosen() -> None:
    estimate = AnswerEstimate(0.7, 0.1, 600, 4096)
    assert isinstance(replica_plan(prefix_caching=True).new_scheduler().pool, PrefixCache)
    assert isinstance(replica_plan(new_line=PriorityLine).new_scheduler().line, PriorityLine)
    assert replica_plan(by_priority=True).new_scheduler().batch.by_priority
    assert isinstance(replica_plan(whole_answers=True).new_scheduler().reservation, WholeAnswer)
    assert isinstance(replica_plan(estimate=estimate).new_scheduler().reservation, EstimatedAnswer)
    made: list[DecodeBatch] = []

    def new_batch() -> DecodeBatch:
        made.append(DecodeBatch(16))
        return made[-1]

    scheduler = replica_plan(new_batch=new_batch).new_scheduler()
    assert made == [scheduler.batch]


@pytest.mark.parametrize("caching", [False, True])
def test_no_two_replicas_have_anything_in_common(caching: bool) -> None:
    plan = replica_plan(prefix_caching=caching, whole_answers=True)
    first, second = plan.new_scheduler(), plan.new_scheduler()
    first.add(Request(0, 0, 40, 5), 0)
    first.plan(0)
    assert first.pool.used_blocks == 3
    assert second.pool.used_blocks == second.outstanding_requests == len(second.line) == 0
    assert isinstance(second.reservation, WholeAnswer)
    assert second.reservation.reserved_blocks == 0


def test_window_and_blocks_reach_all_parts() -> None:
    # a window of 20 tokens: two blocks of 16, for one growing, two windowed and three fixed
    plan = replica_plan(
        sequence_blocks=SequenceBlocks(1, 2, 3), rules={"window_tokens": 20}, whole_answers=True
    )
    scheduler = plan.new_scheduler()
    request = Request(0, 0, 40, 9)
    scheduler.add(request, 0)
    stretch = scheduler.plan(0)
    assert stretch is not None
    assert scheduler.pool.used_blocks == 3 + 3 + 2 * 2
    scheduler.finish(stretch, 1, 1)
    assert scheduler.batch.blocks_of(request) == 10
    assert scheduler.batch.window_tokens == 20
    assert isinstance(scheduler.reservation, WholeAnswer)
    assert scheduler.reservation.reserved_blocks == 3 + 3 + 2 * 2  # 48 tokens in the end
