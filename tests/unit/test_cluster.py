"""The way of a request through the pools of a cluster, worked out by hand.

Steps take ten ticks. A token of context is a byte, and links are given in bytes per tick.
"""

from typing import Literal

import pytest
from small_clusters import (
    STEP,
    At,
    chain_of,
    cluster_of,
    come_back,
    events,
    outcomes,
    port_of,
    replica_plan,
    requests_of,
    run_open,
    ticks_of,
)

from sim.engine.cluster import Cluster, PoolPlan, RunRecord
from sim.engine.faults import Recovery
from sim.engine.patience import start_again
from sim.engine.requests import Request
from sim.pools import Role
from sim.reliability import Faults, PartFaults


def small_cluster(*, kv_blocks: int = 100, max_model_len: int = 50) -> Cluster:
    """One replica with two places, blocks of 16 tokens and steps of ten ticks."""
    return cluster_of(seqs=2, budget=64, blocks=kv_blocks, max_model_len=max_model_len)


def test_progress_is_told_by_the_thousand() -> None:
    cluster = small_cluster()
    told: list[tuple[int, int]] = []
    cluster.report_progress(lambda left, total: told.append((left, total)), total=2500)
    run_open(cluster, [Request(number, number, 1, 1) for number in range(2500)])
    assert told == [(1000, 2500), (2000, 2500), (2500, 2500)]


def test_nothing_comes_of_nothing() -> None:
    record = run_open(small_cluster(), iter(()))
    assert {len(column) for column in record.requests.values()} == {0}
    assert {len(column) for column in record.stretches.values()} == {0}


def test_a_rejected_request_leaves_at_once_and_disturbs_nobody() -> None:
    lengths = [(20, 3), (49, 2), (20, 3)]
    requests = [Request(number, 5, *pair) for number, pair in enumerate(lengths)]
    record = run_open(small_cluster(), iter(requests))
    assert outcomes(record) == ["completed", "rejected", "completed"]
    assert events(record, "done_s") == {0: 35, 2: 35}
    assert record.requests["preemptions"].tolist() == [0, 0, 0]


def test_what_the_cache_can_never_hold_is_rejected() -> None:
    # two blocks of 16: 32 cached tokens, which leaves out the last of the answer
    cluster = small_cluster(kv_blocks=2)
    rows = [(30, 3), (30, 4), (33, 1), (1, 32)]
    record = run_open(cluster, [Request(number, 0, *row) for number, row in enumerate(rows)])
    assert outcomes(record) == ["completed", "rejected", "rejected", "completed"]


def test_companions_of_nothing() -> None:
    record = run_open(cluster_of(), [], [At({5: lambda c: c.replicas[0].fail()})])
    assert {len(column) for column in record.requests.values()} == {0}


def transfers(record: RunRecord) -> list[tuple[object, ...]]:
    """Kind, request, source and target of each transfer; ticks asked for, begun, there; bytes."""
    columns = {name: column.tolist() for name, column in record.transfers.items()}
    ticks = [
        [ticks_of(second) for second in columns[name]] for name in ("asked_s", "start_s", "end_s")
    ]
    plain = [columns[name] for name in ("kind", "request_id", "source", "replica")]
    return list(zip(*plain, *ticks, columns["bytes"], strict=True))


class TestHandOver:
    """A prefill and a decode pool; the prompt's step gives the first token."""

    @pytest.mark.parametrize("latency", [0, 5])
    def test_one_prompt(self, latency: int) -> None:
        # prompt to 10; 20 bytes to 30; two tokens in two steps
        cluster = chain_of(("prefill", 1), ("decode", 1), port=port_of(1, latency))
        record = run_open(cluster, requests_of((0, 20, 3)))
        there = 10 + 20 + latency
        assert events(record, "admit_s") == {0: 0}
        assert events(record, "first_token_s") == {0: 10}
        assert events(record, "done_s") == {0: there + 20}
        assert events(record, "transfer_s") == {0: there - 10}
        assert transfers(record) == [("handover", 0, "0", 1, 10, 10, there, 20.0)]
        assert record.requests["prefill_replica"].tolist() == [0]
        assert record.requests["replica"].tolist() == [1]
        # the decode pool computes no prompt, and each token comes from one of the two
        assert record.stretches["prefill_tokens"].tolist() == [20, 0]
        assert record.stretches["output_tokens"].sum() == 3

    def test_an_answer_of_one_token_stays(self) -> None:
        cluster = chain_of(("prefill", 1), ("decode", 1), port=port_of(1))
        record = run_open(cluster, requests_of((0, 20, 1)))
        assert events(record, "done_s") == {0: 10}
        assert transfers(record) == []
        assert record.requests["prefill_replica"].tolist() == [0]
        assert cluster.replicas[0].scheduler.pool.used_blocks == 0

    @pytest.mark.parametrize(
        ("senders", "receivers", "begun"),
        [
            (1, 1, [10, 30]),  # both links carry one after the other
            (2, 1, [10, 30]),  # what leaves in parallel comes in one after the other
            (1, 2, [10, 30]),  # and the other way round
            (2, 2, [10, 10]),
        ],
    )
    def test_links_carry_one_after_the_other(
        self, senders: int, receivers: int, begun: list[int]
    ) -> None:
        cluster = chain_of(("prefill", senders), ("decode", receivers), port=port_of(1))
        record = run_open(cluster, requests_of((0, 20, 3), (0, 20, 3)))
        found = transfers(record)
        assert [row[1] for row in found] == [0, 1]
        assert [row[4:7] for row in found] == [(10, at, at + 20) for at in begun]
        # the wait for the link is part of the way
        assert events(record, "transfer_s") == {n: at + 10 for n, at in enumerate(begun)}
        # two steps each; the second comes when the first is just done, or both go on together
        assert events(record, "done_s") == {0: 50, 1: begun[1] + 40}

    @pytest.mark.parametrize(
        ("bytes_per_tick", "overlap", "there"),
        [
            (1, 0.0, 30),
            (1, 0.5, 25),  # half of the last step's ten ticks have carried five bytes
            (5, 0.0, 14),
            (5, 0.5, 12),  # they could have carried 25, but only ten bytes were there
            (5, 1.0, 10),  # all of it
            (1, 1.0, 20),  # ten bytes in ten ticks, the rest afterwards
        ],
    )
    def test_layers_are_sent_while_the_rest_is_computed(
        self, bytes_per_tick: int, overlap: float, there: int
    ) -> None:
        cluster = chain_of(
            ("prefill", 1), ("decode", 1), port=port_of(bytes_per_tick), overlap=overlap
        )
        record = run_open(cluster, requests_of((0, 20, 3)))
        assert transfers(record)[0][6] == there
        assert events(record, "done_s") == {0: there + 20}

    def test_blocks_are_in_use_on_both_sides_until_it_is_there(self) -> None:
        cluster = chain_of(("prefill", 1), ("decode", 1), port=port_of(1))
        used: dict[int, tuple[int, ...]] = {}

        def look(cluster: Cluster) -> None:
            used[int(cluster.env.now)] = tuple(
                replica.scheduler.pool.used_blocks for replica in cluster.replicas
            )

        actions = dict.fromkeys((5, 20, 29, 31, 51), look)
        run_open(cluster, requests_of((0, 20, 3), (60, 1, 1)), [At(actions)])
        assert used == {5: (2, 0), 20: (2, 2), 29: (2, 2), 31: (0, 2), 51: (0, 0)}

    def test_prompts_wait_for_blocks_that_others_have_not_fetched(self) -> None:
        # Two blocks for prompts: the second prompt comes in when the first has gone, at 30.
        plan = replica_plan(blocks=2, kv_bytes_per_token=1.0)
        roomy = replica_plan(kv_bytes_per_token=1.0)
        port = port_of(1)
        cluster = Cluster(
            [PoolPlan("prefill", 1, plan, port=port), PoolPlan("decode", 1, roomy, port=port)]
        )
        record = run_open(cluster, requests_of((0, 20, 3), (0, 20, 3)))
        assert events(record, "admit_s") == {0: 0, 1: 30}
        assert events(record, "done_s") == {0: 50, 1: 40 + 20 + 20}

    def test_a_preempted_sequence_is_computed_again_where_it_decodes(self) -> None:
        """Ten blocks of a token for two prompts of 4 and answers of 4: 7 tokens each in the end.

        Both are there at 10 (links of 1000 bytes a tick take no time), with room for a token more
        each. The step of 20 wants two blocks that are not there, so the second goes back and
        waits. The first is done at 40; the second then computes its 4 + 2 tokens, which gives its
        third token at 50, and has one more to come at 60.
        """
        plan = replica_plan(block_tokens=1, blocks=10, kv_bytes_per_token=1.0)
        port = port_of(1000)
        cluster = Cluster(
            [PoolPlan("prefill", 1, plan, port=port), PoolPlan("decode", 1, plan, port=port)]
        )
        requests = requests_of((0, 4, 4), (0, 4, 4))
        record = run_open(cluster, requests)
        assert [request.preemptions for request in requests] == [0, 1]
        # four of the prompt and one of the answer; the sixth is the token that comes next
        assert dict(zip(*column(record, "recomputed_tokens"), strict=True)) == {0: 0, 1: 5}
        assert events(record, "done_s") == {0: 40, 1: 60}
        prompts = record.stretches["prefill_tokens"]
        assert prompts[prompts > 0].tolist() == [8, 6]

    def test_who_gives_up_in_the_step_of_its_prompt_goes_no_further(self) -> None:
        cluster = chain_of(("prefill", 1), ("decode", 1), port=port_of(1))
        (request,) = requests_of((0, 20, 3))
        record = run_open(cluster, [request], [At({5: lambda c: c.abort(request, "timed_out")})])
        assert outcomes(record) == ["timed_out"]
        assert transfers(record) == []
        assert [each.scheduler.pool.used_blocks for each in cluster.replicas] == [0, 0]
        assert cluster.in_system == 0


def column(record: RunRecord, name: str) -> tuple[list[int], list[int]]:
    """Numbers of the requests, and what is recorded of them."""
    return record.requests["request_id"].tolist(), record.requests[name].tolist()


def losses(record: RunRecord) -> list[tuple[object, ...]]:
    names = ("cause", "prefilled_tokens", "generated_tokens")
    return list(zip(*(record.losses[name].tolist() for name in names), strict=True))


def recover(cluster: Cluster, keeps: Literal["nothing", "answer", "kv"]) -> Recovery:
    """Send what failures break off again, with what is kept."""
    chip = PartFaults(mtbf_s=1.0, repair_s=1.0)
    recovery = Recovery(
        cluster.env,
        Faults(chip=chip, retry_keeps=keeps, detection_s=0.0),
        resubmit=cluster.send,
        block_tokens=16,
        kv_store=port_of(1).build(),
    )
    cluster.when_lost = recovery.lost
    return recovery


class TestLosses:
    @pytest.mark.parametrize("failing", [0, 1])
    def test_what_was_on_its_way_is_lost_work(self, failing: int) -> None:
        # on its way from 10 to 30
        cluster = chain_of(("prefill", 1), ("decode", 1), port=port_of(1))
        actions = {15: lambda c: c.replicas[failing].fail()}
        record = run_open(cluster, requests_of((0, 20, 3)), [At(actions)])
        assert losses(record) == [("failure", 20, 1)]

    @pytest.mark.parametrize("failing", [0, 1])
    @pytest.mark.parametrize(
        ("keeps", "gone", "again", "lost"),
        [
            ("nothing", 20, 0, [("failure", 20, 1)]),
            # 21 tokens the second time; the last one is that which a decode step would compute
            ("answer", 20, 20, []),
            ("kv", 4, 4, []),  # a block of sixteen is in the store
        ],
    )
    def test_what_was_on_its_way_is_computed_again(
        self,
        failing: int,
        keeps: Literal["nothing", "answer", "kv"],
        gone: int,
        again: int,
        lost: list[tuple[object, ...]],
    ) -> None:
        plan = replica_plan(kv_bytes_per_token=1.0)
        roles: tuple[Role, ...] = ("prefill", "decode")
        cluster = Cluster(
            [PoolPlan(role, 1, plan, port=port_of(1), fetches=True) for role in roles]
        )
        recovery = recover(cluster, keeps)
        actions = {15: lambda c: c.replicas[failing].fail(), 40: lambda c: come_back(c, failing)}
        record = run_open(cluster, requests_of((0, 20, 3)), [At(actions)])
        assert outcomes(record) == ["completed"]
        assert [loss.context_tokens for loss in recovery.losses] == [gone]
        assert record.requests["recomputed_tokens"].tolist() == [again]
        assert losses(record) == lost

    def test_a_source_that_fails_takes_what_it_kept_along(self) -> None:
        # on its way from 10 to 30; the source fails at 15
        cluster = chain_of(("prefill", 1), ("decode", 1), port=port_of(1))
        record = run_open(
            cluster, requests_of((0, 20, 3)), [At({15: lambda c: c.replicas[0].fail()})]
        )
        assert outcomes(record) == ["lost"]
        assert cluster.replicas[1].scheduler.pool.used_blocks == 0

    def test_it_may_be_sent_again_then(self) -> None:
        # the source is up again at 40: prompt to 50, 20 bytes to 70, two steps
        cluster = chain_of(("prefill", 1), ("decode", 1), port=port_of(1))
        cluster.when_lost = lambda request: send_again(cluster, request)
        actions = {15: lambda c: c.replicas[0].fail(), 40: lambda c: come_back(c, 0)}
        record = run_open(cluster, requests_of((0, 20, 3)), [At(actions)])
        assert outcomes(record) == ["completed"]
        assert events(record, "done_s") == {0: 90}
        assert record.requests["attempts"].tolist() == [2]

    def test_a_source_that_fails_later_does_no_harm(self) -> None:
        cluster = chain_of(("prefill", 1), ("decode", 1), port=port_of(1))
        record = run_open(
            cluster, requests_of((0, 20, 3)), [At({35: lambda c: c.replicas[0].fail()})]
        )
        assert outcomes(record) == ["completed"]
        assert len(record.losses["cause"]) == 0

    def test_a_target_that_fails_frees_the_source(self) -> None:
        cluster = chain_of(("prefill", 1), ("decode", 1), port=port_of(1))
        record = run_open(
            cluster, requests_of((0, 20, 3)), [At({15: lambda c: c.replicas[1].fail()})]
        )
        assert outcomes(record) == ["lost"]
        assert cluster.replicas[0].scheduler.pool.used_blocks == 0

    def test_a_prompt_that_is_lost_is_begun_again_from_the_start(self) -> None:
        # broken at 5, again from 20: 30, 50, 70
        cluster = chain_of(("prefill", 1), ("decode", 1), port=port_of(1))
        cluster.when_lost = lambda request: send_again(cluster, request)
        actions = {5: lambda c: c.replicas[0].fail(), 20: lambda c: come_back(c, 0)}
        record = run_open(cluster, requests_of((0, 20, 3)), [At(actions)])
        assert outcomes(record) == ["completed"]
        assert events(record, "first_token_s") == {0: 30}
        assert events(record, "done_s") == {0: 70}
        assert cluster.in_system == 0


def send_again(cluster: Cluster, request: Request) -> bool:
    request.attempts += 1
    start_again(request)
    cluster.send(request)
    return True


class TestEncoding:
    def test_images_are_encoded_first(self) -> None:
        # 7 tokens of images to 10, the prompt to 20, 20 bytes to 40, two steps
        cluster = chain_of(("encode", 1), ("prefill", 1), ("decode", 1), port=port_of(1))
        requests = requests_of((0, 20, 3), (100, 20, 3))
        requests[0].encode_tokens = 7
        record = run_open(cluster, requests)
        assert events(record, "first_token_s") == {0: 20, 1: 110}
        assert events(record, "encode_s") == {0: 10, 1: 0}
        assert events(record, "done_s") == {0: 60, 1: 150}
        columns = record.stretches
        steps = zip(columns["replica"].tolist(), columns["prefill_tokens"].tolist(), strict=True)
        # who has no images goes straight to its prompt
        assert list(steps) == [(0, 7), (1, 20), (2, 0), (1, 20), (2, 0)]
        assert record.requests["prefill_replica"].tolist() == [1, 1]

    def test_before_whoever_does_the_rest(self) -> None:
        # 7 tokens of images to 10, the prompt to 20, two steps
        cluster = chain_of(("encode", 1), ("serve", 1), port=port_of(1))
        requests = requests_of((0, 20, 3), (100, 20, 3))
        requests[0].encode_tokens = 7
        record = run_open(cluster, requests)
        assert events(record, "first_token_s") == {0: 20, 1: 110}
        assert events(record, "done_s") == {0: 40, 1: 130}
        assert record.requests["replica"].tolist() == [1, 1]
        assert record.transfers["kind"].tolist() == []
        assert cluster.in_system == 0

    def test_a_failure_of_what_follows_begins_with_the_images_again(self) -> None:
        cluster = chain_of(("encode", 1), ("serve", 1), port=port_of(1))
        cluster.when_lost = lambda request: send_again(cluster, request)
        (request,) = requests_of((0, 20, 3))
        request.encode_tokens = 7
        actions = {15: lambda c: c.replicas[1].fail(), 20: lambda c: come_back(c, 1)}
        record = run_open(cluster, [request], [At(actions)])
        # encoded to 10, again from 15 to 25, the prompt to 35, two steps
        assert events(record, "encode_s") == {0: 20}
        assert events(record, "first_token_s") == {0: 35}
        assert events(record, "done_s") == {0: 55}
        assert cluster.in_system == 0

    def test_who_gives_up_there_is_gone(self) -> None:
        cluster = chain_of(("encode", 1), ("prefill", 1), ("decode", 1), port=port_of(1))
        (request,) = requests_of((0, 20, 3))
        request.encode_tokens = 7
        record = run_open(cluster, [request], [At({5: lambda c: c.abort(request, "timed_out")})])
        # the step that is in progress still ends, and nothing comes after it
        assert outcomes(record) == ["timed_out"]
        assert record.stretches["replica"].tolist() == [0]
        assert cluster.in_system == 0


@pytest.mark.parametrize("role", ["serve", "prefill"])
def test_longer_than_the_model_allows_is_rejected_at_the_door(role: str) -> None:
    port = port_of(1)
    if role == "serve":
        cluster = cluster_of(max_model_len=50)
    else:
        cluster = chain_of(("prefill", 1), ("decode", 1), port=port, max_model_len=50)
    record = run_open(cluster, requests_of((0, 40, 11), (0, 40, 10)))
    assert outcomes(record) == ["rejected", "completed"]
    assert record.requests["replica"].tolist()[0] == -1
    assert len(record.stretches["steps"]) >= 2


def test_what_the_decode_pool_cannot_hold_is_rejected_without_a_trace() -> None:
    # two blocks of 16 there: 33 tokens are too many, though the prompt is done by then
    port, small = port_of(1), replica_plan(blocks=2, kv_bytes_per_token=1.0)
    roomy = replica_plan(kv_bytes_per_token=1.0)
    cluster = Cluster(
        [PoolPlan("prefill", 1, roomy, port=port), PoolPlan("decode", 1, small, port=port)]
    )
    record = run_open(cluster, requests_of((0, 20, 15), (0, 20, 13)))
    assert outcomes(record) == ["rejected", "completed"]
    assert cluster.replicas[0].scheduler.pool.used_blocks == 0
    assert cluster.in_system == 0


def test_listeners_hear_of_every_attempt_and_every_leave() -> None:
    cluster = cluster_of(seqs=1)
    sent: list[int] = []
    left: list[int] = []
    cluster.when_sent = lambda request: sent.append(request.request_id)
    cluster.when_left = lambda request: left.append(request.request_id)
    tries: list[int] = []

    def once_more(request: Request) -> bool:
        tries.append(request.attempts)
        if request.attempts > 1:
            return False
        request.attempts += 1
        start_again(request)
        cluster.send(request)
        return True

    cluster.second_chance = once_more
    requests = requests_of((0, 5, 4), (0, 5, 1))
    actions = {5: lambda c: c.abort(requests[1], "shed"), 7: lambda c: c.abort(requests[1], "shed")}
    record = run_open(cluster, requests, [At(actions)])
    assert (sent, left, tries) == ([0, 1, 1], [1, 0], [1, 2])
    assert outcomes(record) == ["completed", "shed"]
    assert events(record, "done_s") == {0: 4 * STEP}
