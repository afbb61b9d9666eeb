"""The engine jumps; the same engine walks every step; a naive engine loops over lists: all equal.

Equal means equal: ticks are whole numbers, and there is no tolerance anywhere.
"""

from collections import Counter

import numpy as np
import pytest
from engine_cases import (
    Config,
    LinearPace,
    configs,
    configs_in_lockstep,
    naive,
    random_examples,
    simulated,
    whole_ticks,
)
from hypothesis import given
from naive_engine import Limits, NaiveRun

from sim.engine.cluster import RunRecord


def fates(record: RunRecord) -> dict[int, tuple[object, ...]]:
    """What became of each request."""
    columns = record.requests
    times = (whole_ticks(columns[f"{name}_s"]) for name in ("arrival", "admit"))
    later = (whole_ticks(columns[f"{name}_s"]) for name in ("first_token", "done"))
    rest = (columns[name].tolist() for name in ("replica", "preemptions", "outcome"))
    rows = zip(*times, *later, *rest, strict=True)
    return dict(zip(columns["request_id"].tolist(), rows, strict=True))


def naive_fates(run: NaiveRun) -> dict[int, tuple[object, ...]]:
    return {
        sequence.number: (
            sequence.arrival,
            sequence.admitted,
            sequence.first_token,
            sequence.done,
            sequence.replica,
            sequence.preemptions,
            "rejected" if sequence.rejected else "completed",
        )
        for sequence in run.sequences
    }


SUMS = (
    "decode_context_tokens",
    "decode_window_tokens",
    "prefill_sequences",
    "prefill_tokens",
    "prefill_pairs",
    "prefill_window_pairs",
    "first_tokens",
)


def totals(record: RunRecord, replicas: int) -> list[dict[str, int]]:
    """Work of each replica, summed over its stretches."""
    columns = record.stretches
    found = []
    for index in range(replicas):
        mine = columns["replica"] == index
        sums = {name: int(columns[name][mine].sum()) for name in SUMS}
        steps = columns["steps"][mine]
        starts, ends = (whole_ticks(columns[name][mine]) for name in ("start_s", "end_s"))
        sums["steps"] = int(steps.sum())
        sums["decode_sequences"] = int((steps * columns["decode_sequences"][mine]).sum())
        sums["busy"] = sum(ends) - sum(starts)
        found.append(sums)
    return found


def naive_totals(run: NaiveRun) -> list[dict[str, int]]:
    windowed = run.limits.window_tokens is not None
    found = []
    for index in range(run.limits.replicas):
        steps = [step for step in run.steps if step.replica == index]
        sums = [step.sums for step in steps]
        decoded = sum(s.decode_sequences for s in sums)
        found.append(
            {
                "decode_context_tokens": sum(s.decode_keys for s in sums),
                "decode_window_tokens": windowed * sum(s.decode_window_keys for s in sums),
                "prefill_sequences": sum(s.prefill_sequences for s in sums),
                "prefill_tokens": sum(s.prefill_tokens for s in sums),
                "prefill_pairs": sum(s.prefill_pairs for s in sums),
                "prefill_window_pairs": windowed * sum(s.prefill_window_pairs for s in sums),
                "first_tokens": sum(step.tokens for step in steps) - decoded,
                "steps": len(steps),
                "decode_sequences": decoded,
                "busy": sum(step.end - step.start for step in steps),
            }
        )
    return found


def assert_jumps_equal_steps(config: Config) -> None:
    replicas = config.limits.replicas
    fast = simulated(config)
    slow = simulated(config, every_step=True)
    assert fates(fast) == fates(slow)
    assert totals(fast, replicas) == totals(slow, replicas)


def assert_equals_naive(config: Config) -> NaiveRun:
    fast = simulated(config)
    run = naive(config)
    assert fates(fast) == naive_fates(run)
    assert totals(fast, config.limits.replicas) == naive_totals(run)
    return run


@random_examples(500)
@given(configs())
def test_jumping_over_stretches_equals_walking_every_step(config: Config) -> None:
    assert_jumps_equal_steps(config)


@random_examples(200)
@given(configs_in_lockstep())
def test_jumps_equal_steps_where_all_replicas_tick_together(config: Config) -> None:
    assert_jumps_equal_steps(config)


def test_the_engine_equals_the_naive_engine() -> None:
    examples_with: Counter[str] = Counter()

    @random_examples(800)
    @given(configs() | configs() | configs_in_lockstep())
    def check(config: Config) -> None:
        run = assert_equals_naive(config)
        examples_with.update(event for event, times in run.seen.items() if times)

    check()
    rare = {event: examples_with[event] for event in EVENTS if examples_with[event] < 25}
    assert not rare, "the examples hardly ever exercise these rules"


EVENTS = (
    "cut prompt",
    "filled the window",
    "held back by blocks",
    "held back by places",
    "preempted while decoding",
    "preempted while prefilling",
    "prompt overtook a cut one",
    "rejected",
)


@pytest.mark.parametrize("seed", range(6))
def test_a_busy_replica_equals_the_naive_engine(seed: int) -> None:
    """Realistic blocks and batches, overloaded, with little room for KV cache."""
    rng = np.random.default_rng(seed)
    count = 120
    arrivals = np.cumsum(rng.exponential(400.0, count)).astype(int)
    inputs, outputs = rng.integers(1, 300, count), rng.integers(1, 120, count)
    requests = tuple(zip(arrivals.tolist(), inputs.tolist(), outputs.tolist(), strict=True))
    window = 64 if seed % 2 else None
    limits = Limits(16, 60, 24, 128, 4096, window, replicas=1 + seed % 3, router=ROUTERS[seed % 2])
    clients = 40 if seed >= 4 else None
    pace = LinearPace(100, token=1, sequence=2, key=0, window_key=1, pair=0, crowd=1)
    config = Config(limits, pace, requests, clients)
    run = assert_equals_naive(config)
    assert_jumps_equal_steps(config)
    assert run.seen["preempted while decoding"] > 20
    assert run.seen["cut prompt"] > 20


ROUTERS = ("round_robin", "least_outstanding")


def times(config: Config, *, every_step: bool) -> dict[int, tuple[object, ...]]:
    """Admission, first token, completion and preemptions of each request."""
    record = simulated(config, every_step=every_step)
    return {number: (*fate[1:4], fate[5]) for number, fate in fates(record).items()}


both_ways = pytest.mark.parametrize("every_step", [False, True])


@both_ways
def test_a_preempted_sequence_may_come_back_to_an_empty_batch(every_step: bool) -> None:
    # Blocks of one token, six of them; two tokens a step. Steps 1 to 3 give A and B a token each
    # and fill the pool. Step 4: B is preempted, A gets its last token. Steps 5 and 6 compute B's
    # prompt and three tokens of answer (two and two) and give token 4, step 7 token 5.
    limits = Limits(1, 6, max_num_seqs=2, max_num_batched_tokens=2, max_model_len=50)
    config = Config(limits, LinearPace(1), ((0, 1, 4), (0, 1, 5)))
    assert times(config, every_step=every_step) == {0: (0, 1, 4, 0), 1: (0, 1, 7, 1)}


@both_ways
def test_a_preempted_prompt_is_taken_up_again_in_the_next_step(every_step: bool) -> None:
    # Blocks of one token, five of them; three tokens a step. Step 1: A's prompt and two tokens of
    # B's. Step 2: A takes a block, one is left for B's two tokens: B is preempted, three are free.
    # Step 3: A takes one, the two left hold two of B's tokens; A is done. Step 4: the rest of B.
    limits = Limits(1, 5, max_num_seqs=2, max_num_batched_tokens=3, max_model_len=50)
    config = Config(limits, LinearPace(1), ((0, 1, 3), (0, 4, 1)))
    assert times(config, every_step=every_step) == {0: (0, 1, 3, 0), 1: (0, 4, 4, 1)}


@both_ways
def test_a_request_sent_at_a_boundary_waits_for_the_replicas_before(every_step: bool) -> None:
    # Steps of 10 ticks. Request 1 is done on replica 1 at 20; its client sends request 2 to
    # replica 0, whose boundary of tick 20 comes first and is over: it is admitted at 30.
    limits = Limits(16, 9, max_num_seqs=3, max_num_batched_tokens=64, max_model_len=50, replicas=2)
    config = Config(limits, LinearPace(10), ((0, 2, 4), (0, 2, 2), (0, 3, 1)), clients=2)
    assert times(config, every_step=every_step) == {
        0: (0, 10, 40, 0),
        1: (0, 10, 20, 0),
        2: (30, 40, 40, 0),
    }


@both_ways
def test_an_arrival_at_a_boundary_takes_part_in_the_next_step(every_step: bool) -> None:
    # Steps of 10 ticks: what arrives at 20 is admitted at 20, what arrives at 21 at 30.
    limits = Limits(16, 9, max_num_seqs=3, max_num_batched_tokens=64, max_model_len=50)
    config = Config(limits, LinearPace(10), ((0, 2, 9), (20, 2, 1), (21, 2, 1)))
    assert times(config, every_step=every_step) == {
        0: (0, 10, 90, 0),
        1: (20, 30, 30, 0),
        2: (30, 40, 40, 0),
    }
