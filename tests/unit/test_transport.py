"""Keys and values on their way to the host's memory and back, by hand.

Steps take ten ticks, blocks hold a token, a token of context is a byte.
"""

import pytest
from small_clusters import (
    At,
    events,
    outcomes,
    port_of,
    replica_plan,
    requests_of,
    run_open,
    ticks_of,
)

from sim.engine.clock import TICKS_PER_S
from sim.engine.cluster import Cluster, PoolPlan, RunRecord
from sim.engine.links import Link
from sim.engine.requests import Request
from sim.engine.transport import StoredKv, Swapped, SwapSpace, release


def swapping(
    bytes_per_tick: float, *, blocks: int = 8, tokens: int = 100, every_step: bool = False
) -> Cluster:
    plan = replica_plan(blocks=blocks, block_tokens=1, kv_bytes_per_token=1.0)
    link = port_of(bytes_per_tick)
    pool = PoolPlan("serve", 1, plan, host_link=link, swap_tokens=tokens)
    return Cluster([pool], every_step=every_step)


def transfers(record: RunRecord) -> list[tuple[object, ...]]:
    """Kind and request; ticks asked for, begun, there; bytes."""
    columns = {name: column.tolist() for name, column in record.transfers.items()}
    ticks = [
        [ticks_of(second) for second in columns[name]] for name in ("asked_s", "start_s", "end_s")
    ]
    return list(zip(columns["kind"], columns["request_id"], *ticks, columns["bytes"], strict=True))


ROWS = [(0, 2, 4), (0, 2, 7)]
"""At 30 both have 4 tokens in eight blocks; the first is done at 40."""


class TestSwapping:
    @pytest.mark.parametrize("every_step", [False, True])
    def test_out_and_in_again(self, every_step: bool) -> None:
        """A byte takes four ticks: 4 tokens go out from 30 to 46, and come in from 46 to 62.

        The second has 3 of 7 tokens then, and needs 4 more steps.
        """
        record = run_open(swapping(0.25, every_step=every_step), requests_of(*ROWS))
        assert transfers(record) == [
            ("swap out", 1, 30, 30, 46, 4.0),
            ("swap", 1, 40, 46, 62, 4.0),
        ]
        assert events(record, "done_s") == {0: 40, 1: 102}
        assert events(record, "preempted_s") == {0: 0, 1: 32}
        assert record.stretches["prefill_tokens"].sum() == 4  # nothing is computed again

    def test_a_fast_link_is_no_limit(self) -> None:
        # out from 30 to 34; the first is done at 40; in from 40 to 44
        record = run_open(swapping(1), requests_of(*ROWS))
        assert [row[2:5] for row in transfers(record)] == [(30, 30, 34), (40, 40, 44)]
        assert events(record, "done_s") == {0: 40, 1: 84}

    def test_without_room_it_is_computed_again(self) -> None:
        for tokens, count in ((3, 0), (4, 2)):
            record = run_open(swapping(1, tokens=tokens), requests_of(*ROWS))
            assert len(transfers(record)) == count
            assert record.stretches["prefill_tokens"].sum() == (4 if count else 4 + 5)
        # at 40 its 2 + 3 tokens are one step, and three more follow
        record = run_open(swapping(1, tokens=3), requests_of(*ROWS))
        assert events(record, "done_s") == {0: 40, 1: 80}

    def test_time_in_the_memory_of_the_host_is_not_on_the_way(self) -> None:
        """The first decodes on for 310 ticks while the second lies in the host's memory.

        After twelve steps, at 130, they have 14 + 32 tokens. The first is done at 440.
        """
        record = run_open(swapping(1, blocks=46), requests_of((0, 2, 44), (0, 20, 25)))
        assert transfers(record) == [
            ("swap out", 1, 130, 130, 162, 32.0),
            ("swap", 1, 440, 440, 472, 32.0),
        ]
        assert events(record, "preempted_s")[1] == 472 - 130
        assert events(record, "transfer_s")[1] == 0  # moving out and in is part of that time

    def test_room_comes_back_with_the_sequence(self) -> None:
        space = SwapSpace(10, Link(TICKS_PER_S))
        assert space.take(7)
        assert not space.take(4)
        swapped = Swapped(7, space, 0)
        release(swapped)
        release(swapped)  # once
        assert space.used_tokens == 0
        assert space.take(10)

    def test_room_comes_back_when_its_client_gives_up(self) -> None:
        # room for one of 4 tokens: the sequence that is preempted after the first may use it
        cluster = swapping(1, tokens=4)
        requests = requests_of(*ROWS, (50, 2, 4), (50, 2, 7))
        actions = {35: lambda c: c.abort(requests[1], "timed_out")}
        record = run_open(cluster, requests, [At(actions)])
        assert outcomes(record) == ["completed", "timed_out", "completed", "completed"]
        assert [row[:2] for row in transfers(record)] == [
            ("swap out", 1),
            ("swap out", 3),
            ("swap", 3),
        ]


class TestStores:
    @pytest.mark.parametrize(("stored", "computed", "done"), [(15, 5, 30 + 15), (0, 20, 30)])
    def test_a_prompt_may_come_from_a_store(self, stored: int, computed: int, done: int) -> None:
        """15 of 20 tokens are 15 bytes at one a tick; the rest is computed from 15 to 25."""
        plan = replica_plan(block_tokens=1, kv_bytes_per_token=1.0)
        cluster = Cluster([PoolPlan("serve", 1, plan, fetches=True)])
        (request,) = requests_of((0, 20, 3))
        if stored:
            request.remote = StoredKv(stored, Link(TICKS_PER_S), since_tick=0)
        record = run_open(cluster, [request])
        assert record.stretches["prefill_tokens"].sum() == computed
        assert record.requests["cached_tokens"].tolist() == [stored]
        assert events(record, "done_s") == {0: done}
        if stored:
            columns = record.transfers
            assert (columns["kind"][0], columns["source"][0]) == ("kv store", "store")

    def test_what_is_cached_here_is_not_fetched(self) -> None:
        plan = replica_plan(kv_bytes_per_token=1.0, prefix_caching=True)
        cluster = Cluster([PoolPlan("serve", 1, plan, fetches=True)])
        requests = [Request(0, 0, 64, 1), Request(1, 100, 80, 1)]
        for request in requests:
            request.content = ((-2, 0, request.input_tokens),)
        requests[1].remote = StoredKv(72, Link(TICKS_PER_S), since_tick=100)
        record = run_open(cluster, requests)
        # 64 of the 72 tokens are here: 8 bytes to 108, and 8 tokens in a step
        assert [row[2:] for row in transfers(record)] == [(100, 100, 108, 8.0)]
        assert events(record, "done_s") == {0: 10, 1: 118}
        assert record.requests["cached_tokens"].tolist() == [0, 72]
