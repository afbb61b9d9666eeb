"""Jumps over stretches equal single steps, bit for bit, with any mix of the engine's features.

Each example draws a whole cluster: pools, scheduling rules, memory rules, routers, impatient
clients, failures. Ticks are small whole numbers, so that coincidences are the rule.
"""

from collections import Counter
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import pytest
import simpy
from engine_cases import LinearPace, whole_ticks

from sim.engine.admission import AnswerEstimate
from sim.engine.clients import ClosedLoop, OpenLoop, Source
from sim.engine.clock import TICKS_PER_S
from sim.engine.cluster import Cluster, Companion, LinkPlan, PoolPlan, RunRecord, TierPlan
from sim.engine.decode_steps import DecodeSteps
from sim.engine.door import Door, TenantDoor, TokenBucket
from sim.engine.patience import Patience, PatiencePlan, start_again
from sim.engine.plan import ReplicaPlan
from sim.engine.replica import Replica
from sim.engine.requests import Request
from sim.engine.router import Router
from sim.engine.router_choice import router_of
from sim.engine.rules import SchedulerRules
from sim.engine.speculative import SpeculativeBatch
from sim.engine.waiting import FairLine, FcfsLine, PriorityLine
from sim.routing_policy import (
    KvAwarePolicy,
    LeastOutstandingPolicy,
    PowerOfTwoPolicy,
    PredictedLengthPolicy,
    PrefixAwarePolicy,
    RandomPolicy,
    RoundRobinPolicy,
    SessionStickyPolicy,
)
from sim.speculation import AcceptanceLaw
from sim.workload.content import Content

EXAMPLES = 300
TICK_S = 1 / TICKS_PER_S


@dataclass(frozen=True)
class Trouble:
    """Breaks and mends one replica, again and again, and drains another for a while."""

    victim: int
    up_ticks: int
    down_ticks: int
    retry: bool
    drained: int | None = None

    def attach(self, cluster: Cluster) -> None:
        cluster.when_lost = lambda request: self.send_again(cluster, request)
        cluster.env.process(self.run(cluster))

    def send_again(self, cluster: Cluster, request: Request) -> bool:
        if self.retry:
            request.attempts += 1
            start_again(request)
            cluster.send(request)
        return self.retry

    def run(self, cluster: Cluster) -> Generator[simpy.Event, None, None]:
        replicas = cluster.replicas
        victim = replicas[self.victim % len(replicas)]
        other = None if self.drained is None else replicas[self.drained % len(replicas)]
        for _ in range(4):  # more would keep some requests from ever being done
            if not cluster.active:
                return
            yield cluster.env.timeout(self.up_ticks)
            if other is not None and other is not victim:
                other.drain()
            if victim.state == "up":
                victim.fail()
            yield cluster.env.timeout(self.down_ticks)
            for stopped in (victim, other):
                self.mend(cluster, stopped)

    def mend(self, cluster: Cluster, stopped: Replica | None) -> None:
        if stopped is not None and stopped.state in ("down", "off", "draining"):
            stopped.set_state("up")
            for pool in cluster.pools.values():
                pool.came_up()


@dataclass(frozen=True)
class Setup:
    plans: tuple[PoolPlan, ...]
    rows: tuple[tuple[int, ...], ...]
    """Arrival, input, output, longest answer, priority, tokens of images."""
    contents: tuple[Content | None, ...]
    clients: int | None
    companions: tuple[Companion, ...]

    def requests(self) -> Sequence[Request]:
        requests = []
        for number, (arrival, inputs, outputs, longest, priority, images) in enumerate(self.rows):
            request = Request(number, arrival, inputs, outputs)
            request.max_tokens, request.priority = longest, priority
            request.tenant, request.session = priority, number // 3
            request.encode_tokens = images
            request.content = self.contents[number]
            requests.append(request)
        return requests

    def source(self) -> Source:
        if self.clients is not None:
            return ClosedLoop(self.requests(), self.clients, answer_ticks=3)
        return OpenLoop(self.requests())

    def run(self, *, every_step: bool) -> RunRecord:
        return Cluster(self.plans, every_step=every_step).run(self.source(), self.companions)


def pace(rng: np.random.Generator) -> LinearPace:
    step = int(rng.choice([1, 7, 10, 100]))
    token, sequence, key, pair = (int(n) for n in rng.integers(0, 3, 4))
    return LinearPace(step, token, sequence, key, 0, pair, 0, int(rng.integers(0, 2)))


def batches(
    rng: np.random.Generator, rules: SchedulerRules, block_tokens: int
) -> Callable[[], SpeculativeBatch] | None:
    """Let several tokens come out of a step, where drafts are verified."""
    drafts = rules.tokens_per_sequence - 1
    if not drafts:
        return None
    law = AcceptanceLaw((float(rng.uniform(0.2, 0.9)),) * drafts, 1 + drafts)
    return lambda: SpeculativeBatch(block_tokens, DecodeSteps(law, 1), drafts)


def router(rng: np.random.Generator) -> Callable[[], Router]:
    """Draw any router, seeing the replicas as they are or as they were."""
    stale_s = int(rng.choice([0, 0, 100])) * TICK_S
    policies = (
        RoundRobinPolicy(),
        RandomPolicy(),
        LeastOutstandingPolicy(count=str(rng.choice(["requests", "tokens"])), stale_s=stale_s),
        PowerOfTwoPolicy(stale_s=stale_s),
        PrefixAwarePolicy(least_match_fraction=0.2, uneven_requests=3),
        KvAwarePolicy(stale_s=stale_s),
        SessionStickyPolicy(),
        PredictedLengthPolicy(error_sigma=0.5),
    )
    return partial(router_of, policies[int(rng.integers(len(policies)))], seed=1)


@dataclass(frozen=True)
class Limited:
    """A door that turns some away."""

    rate: float
    most: int

    def attach(self, cluster: Cluster) -> None:
        bucket = TokenBucket(self.rate * TICKS_PER_S, burst_requests=2)
        cluster.door = Door({1: TenantDoor(bucket, 3)}, self.most)


def replica_plan(rng: np.random.Generator, longest: int) -> ReplicaPlan:
    block_tokens = int(rng.choice([1, 2, 4, 16]))
    blocks = -(-longest // block_tokens)
    seqs = int(rng.integers(1, 9))
    drafts = int(rng.integers(1, 4)) if rng.random() < 0.25 else 0
    rules = SchedulerRules(
        max_num_seqs=seqs,
        max_num_batched_tokens=max(seqs * (1 + drafts), int(rng.integers(4, 60))),
        max_chunk_tokens=int(rng.integers(2, 20)) if rng.random() < 0.3 else None,
        max_prompts_per_step=int(rng.integers(1, 3)) if rng.random() < 0.3 else None,
        prefill_first=bool(rng.random() < 0.3),
        watermark_fraction=float(rng.choice([0.0, 0.0, 0.2])),
        whole_prompt_must_fit=bool(rng.random() < 0.4),
        steps_ahead=int(rng.random() < 0.4),
        tokens_per_sequence=1 + drafts,
        poll_interval_steps=int(rng.integers(2, 12)) if rng.random() < 0.2 else 1,
        batch_wait_steps=int(rng.integers(1, 12)) if rng.random() < 0.2 else 0,
        batch_wait_tokens=float(rng.integers(10, 80)),
    )
    memory = rng.choice(["as_needed", "as_needed", "no_evict", "estimated"])
    estimate = AnswerEstimate(float(rng.uniform(0.2, 1)), 0.1, int(rng.integers(3, 40)), 16, 2)
    by_priority = bool(rng.random() < 0.3)
    fair = partial(FairLine, (1.0, 2.0, 3.0))
    line = PriorityLine if by_priority else (fair if rng.random() < 0.2 else FcfsLine)
    return ReplicaPlan(
        rules=rules,
        kv_blocks=int(rng.integers(blocks, 4 * blocks + 1)),
        block_tokens=block_tokens,
        pace=pace(rng),
        max_model_len=10_000,
        by_priority=by_priority,
        new_line=line,
        new_batch=batches(rng, rules, block_tokens),
        whole_answers=memory == "no_evict",
        estimate=estimate if memory == "estimated" else None,
        prefix_caching=bool(rng.random() < 0.5),
        kv_bytes_per_token=1.0,
    )


def tiers(rng: np.random.Generator) -> tuple[TierPlan, ...]:
    link = LinkPlan(float(rng.choice([0.5, 5.0])) * TICKS_PER_S, latency_s=TICK_S)
    host = TierPlan("host", int(rng.integers(1, 30)), 4.0, link, link, through=rng.random() < 0.5)
    store = TierPlan("store", int(rng.integers(1, 90)), 4.0, link, link, shared=True)
    return ((), (host,), (store,), (host, store))[int(rng.choice(4, p=[0.6, 0.15, 0.1, 0.15]))]


def setup(seed: int) -> Setup:
    rng = np.random.default_rng(seed)
    count = int(rng.integers(2, 25))
    gaps = rng.choice([0, 5, 10, 60, 500], count)
    inputs, outputs = rng.integers(1, 40, count), rng.integers(1, 30, count)
    longest = outputs + rng.integers(0, 20, count) * (rng.random(count) < 0.5)
    priority, images = rng.integers(0, 3, count), rng.integers(0, 2, count) * 7
    most = int((inputs + longest).max())
    columns = (np.cumsum(gaps), inputs, outputs, longest, priority, images)
    rows = tuple(tuple(int(n) for n in row) for row in zip(*columns, strict=True))
    kind = rng.choice(["serve", "split", "encode"], p=[0.5, 0.35, 0.15])
    roles = {"serve": ["serve"], "split": ["prefill", "decode"]}.get(
        str(kind), ["encode", "prefill", "decode"]
    )
    bandwidth = float(rng.choice([0.1, 1.0, 10.0])) * TICKS_PER_S
    plans = tuple(
        PoolPlan(
            role,
            int(rng.integers(1, 4)),
            replica_plan(rng, most + 16),
            router(rng),
            LinkPlan(bandwidth, latency_s=int(rng.integers(0, 5)) * TICK_S),
            overlap_fraction=float(rng.choice([0.0, 0.5])),
            host_link=LinkPlan(bandwidth) if rng.random() < 0.6 else None,
            swap_tokens=int(rng.integers(20, 400)),
            tiers=tiers(rng),
        )
        for role in roles
    )
    companions: list[Companion] = []
    if rng.random() < 0.4:
        until = "first_token" if rng.random() < 0.5 else "completion"
        timeout_s = int(rng.integers(20, 2000)) * TICK_S
        backoff_s = int(rng.integers(0, 50)) * TICK_S
        plan = PatiencePlan(timeout_s, until, int(rng.integers(0, 3)), lambda _: backoff_s)
        companions.append(Patience([plan] * 3))
    if rng.random() < 0.2:
        companions.append(Limited(1 / int(rng.integers(10, 400)), int(rng.integers(2, 12))))
    if rng.random() < 0.3:
        drained = int(rng.integers(0, 6)) if rng.random() < 0.5 else None
        up, down = int(rng.integers(50, 3000)), int(rng.integers(0, 500))
        companions.append(Trouble(int(rng.integers(0, 6)), up, down, rng.random() < 0.7, drained))
    clients = int(rng.integers(1, 9)) if rng.random() < 0.3 else None
    contents = tuple(content(rng, int(tokens)) for tokens in inputs)
    return Setup(plans, rows, contents, clients, tuple(companions))


def content(rng: np.random.Generator, tokens: int) -> Content | None:
    """Begin with one of few shared prefixes, and go on with something that some others have."""
    if rng.random() < 0.3:
        return None
    shared = min(tokens, int(rng.choice([0, 5, 16, 33])))
    rest = int(rng.integers(0, 4))
    runs = ((-2 - int(rng.integers(0, 2)), 0, shared), (rest, 0, tokens - shared))
    return tuple(run for run in runs if run[2])


TIMES = ("arrival_s", "admit_s", "first_token_s", "done_s", "transfer_s", "preempted_s")
REST = (
    "input_tokens",
    "output_tokens",
    "cached_tokens",
    "prefill_replica",
    "replica",
    "preemptions",
    "attempts",
    "outcome",
)


def fates(record: RunRecord) -> dict[int, tuple[object, ...]]:
    columns = record.requests
    times = [whole_ticks(columns[name]) for name in TIMES]
    rest = [columns[name].tolist() for name in REST]
    rows = zip(*times, *rest, strict=True)
    return dict(zip(columns["request_id"].tolist(), rows, strict=True))


@pytest.mark.parametrize("seed", range(EXAMPLES))
def test_jumps_equal_single_steps(seed: int) -> None:
    case = setup(seed)
    jumped, walked = case.run(every_step=False), case.run(every_step=True)
    assert fates(jumped) == fates(walked)
    assert len(fates(jumped)) == len(case.rows)
    for name in ("kind", "request_id", "source", "replica"):
        assert jumped.transfers[name].tolist() == walked.transfers[name].tolist()
    for name in ("start_s", "end_s"):
        assert whole_ticks(jumped.transfers[name]) == whole_ticks(walked.transfers[name])


def test_the_examples_are_full_of_events() -> None:
    """A mix in which nothing happens would prove nothing."""
    seen: Counter[str] = Counter()
    for seed in range(EXAMPLES):
        record = setup(seed).run(every_step=False)
        requests, transfers = record.requests, record.transfers
        seen.update(requests["outcome"].tolist())
        seen.update(transfers["kind"].tolist())
        seen["hits"] += int((requests["cached_tokens"] > 0).sum())
        seen["preemptions"] += int(requests["preemptions"].sum())
        seen["retries"] += int((requests["attempts"] > 1).sum())
        seen["waits for a link"] += int((transfers["start_s"] > transfers["asked_s"]).sum())
        seen["lost work"] += len(record.losses["cause"])
        steps, alone = record.stretches["steps"], record.stretches["prefill_sequences"] == 0
        seen["jumps"] += int((steps > 1).sum())
        seen["steps of prompts alone"] += int(
            (~alone & (record.stretches["decode_sequences"] == 0)).sum()
        )
    wanted = (
        "completed",
        "timed_out",
        "lost",
        "handover",
        "swap",
        "swap out",
        "load",
        "hits",
        "preemptions",
        "retries",
        "shed",
        "waits for a link",
        "lost work",
        "jumps",
        "steps of prompts alone",
    )
    assert {name: seen[name] for name in wanted if seen[name] < 20} == {}
