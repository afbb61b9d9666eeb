"""Every shipped strategy on an idle cluster: its time and its prefill, found without the engine.

Where every call has a replica to itself, a call with an answer of n tokens takes n steps, and a
program as long as its slowest way through. What a prefix cache saves is found again by hashing
blocks of tokens, as the definition has it.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from itertools import takewhile
from typing import Any

import numpy as np
import pytest
from fake_question import FakeQuestion
from small_clusters import STEP, replica_plan
from timed_executor import timed

from sim.catalog import open_catalog
from sim.engine.clock import TICKS_PER_S, to_ticks
from sim.engine.cluster import Cluster, Companion, PoolPlan
from sim.engine.programs import Programs
from sim.engine.requests import Request
from sim.engine.router import LeastOutstanding
from sim.workload.content import Content
from sim.workload.programs import ProgramPlans, Strategy
from sim.workload.single import ConstantTokens
from sim.workload.tasks import strategy_of

CATALOG = open_catalog()
NAMES = sorted(set(CATALOG.names("strategies")) - {"dynamic_10000"})  # 10,000 calls say no more
BLOCK = 16
SEEDS = range(3)


@dataclass
class Anybody(FakeQuestion):
    """A question of whose answers something is known, whatever is done to them."""

    def revised(self, rng: np.random.Generator, answer: int, **_: Any) -> int:
        return answer if rng.random() < 0.8 else 0

    def searched(self, rng: np.random.Generator, **_: Any) -> int:
        return int(rng.integers(0, 2))


def plans(strategy: Strategy, seed: int) -> ProgramPlans:
    question = Anybody(chance=0.6)
    return ProgramPlans(
        strategy,
        [question],
        np.array([100]),
        ConstantTokens(tokens=20),
        seed,
        start_s=np.zeros(1),
    )


def served(
    strategy: Strategy, seed: int, replicas: int, watch: Companion | None = None, **plan: Any
) -> Programs:
    pool = partial(
        PoolPlan,
        replicas=replicas,
        plan=replica_plan(budget=10_000_000, blocks=10_000_000, max_model_len=10_000_000, **plan),
        new_router=LeastOutstanding,
    )
    others = [pool(model, other_model=True) for model in sorted(strategy.models)]
    source = Programs(plans(strategy, seed))
    Cluster([pool("serve"), *others]).run(source, [] if watch is None else [watch])
    return source


@pytest.mark.parametrize("name", NAMES)
def test_a_program_takes_as_long_as_its_slowest_way(name: str) -> None:
    strategy = strategy_of(name, CATALOG)
    for seed in SEEDS:
        source = served(strategy, seed, replicas=128)
        program = timed(
            plans(strategy, seed).control(0),
            lambda call: to_ticks(call.wait_s) + STEP * call.output_tokens,
        )
        done_s, answer, calls = (
            source.programs[column][0] for column in ("done_s", "answer", "calls")
        )
        assert done_s * TICKS_PER_S == pytest.approx(program.end, rel=1e-15)
        assert answer == (-1 if program.answer is None else program.answer)
        assert calls == len(program.calls)


def tokens_of(content: Content) -> Iterator[tuple[int, int]]:
    for stream, start, tokens in content:
        yield from ((stream, position) for position in range(start, start + tokens))


def blocks_of(content: Content) -> Iterator[int]:
    """Hash each full block with all that is before it."""
    before, block = 0, []
    for token in tokens_of(content):
        block.append(token)
        if len(block) == BLOCK:
            before = hash((before, tuple(block)))
            yield before
            block = []


@dataclass
class Watch:
    """Keeps the requests that are sent."""

    sent: list[Request]

    def attach(self, cluster: Cluster) -> None:
        cluster.when_sent = self.sent.append


@pytest.mark.parametrize("name", [name for name in NAMES if not name.startswith("agent")])
def test_prompts_are_computed_as_far_as_nobody_had_them(name: str) -> None:
    """One place in the batch of each model, so that calls are answered one after the other."""
    sent: list[Request] = []
    served(
        strategy_of(name, CATALOG),
        0,
        1,
        seqs=1,
        block_tokens=BLOCK,
        prefix_caching=True,
        watch=Watch(sent),
    )
    known: dict[str, set[int]] = {}
    for request in sorted(sent, key=lambda request: request.admit_tick):
        if request.admit_tick < 0:
            continue  # cancelled while it waited
        assert request.content is not None
        assert request.answer is not None
        cache = known.setdefault(request.model, set())
        hits = sum(1 for _ in takewhile(cache.__contains__, blocks_of(request.content)))
        assert request.cached_tokens == min(hits, (request.input_tokens - 1) // BLOCK) * BLOCK
        answer = (request.answer[0], 0, request.generated_tokens - 1)  # the last is not computed
        cache.update(blocks_of((*request.content, answer)))
