"""What no run may lose or invent: requests, tokens, blocks, time; and what must not matter."""

from collections.abc import Iterable
from dataclasses import fields, replace
from itertools import pairwise

import numpy as np
from engine_cases import (
    Config,
    LinearPace,
    cluster_of,
    configs,
    random_examples,
    serve,
    simulated,
    whole_ticks,
)
from hypothesis import assume, given
from hypothesis import strategies as st

from sim.engine.cluster import RunRecord
from sim.engine.records import Columns

Ticks = dict[int, tuple[int, ...]]

MILESTONES = ("arrival_s", "admit_s", "first_token_s", "done_s")


def with_outcome(record: RunRecord, outcome: str) -> Columns:
    chosen = record.requests["outcome"] == outcome
    return {name: column[chosen] for name, column in record.requests.items()}


def milestones(record: RunRecord) -> Ticks:
    """Ticks of arrival, admission, first token and completion of each completed request."""
    done = with_outcome(record, "completed")
    rows = zip(*(whole_ticks(done[name]) for name in MILESTONES), strict=True)
    return dict(zip(done["request_id"].tolist(), rows, strict=True))


def of_replica(columns: Columns, index: int) -> Columns:
    mine = columns["replica"] == index
    return {name: column[mine] for name, column in columns.items()}


@random_examples(120)
@given(configs())
def test_every_request_completes_or_is_rejected_once(config: Config) -> None:
    record = simulated(config)
    assert sorted(record.requests["request_id"].tolist()) == list(range(len(config.requests)))
    outcomes = set(record.requests["outcome"].tolist())
    assert outcomes <= {"completed", "rejected"}
    limits = config.limits
    for number, outcome in zip(
        record.requests["request_id"].tolist(), record.requests["outcome"].tolist(), strict=True
    ):
        _, inputs, outputs = config.requests[number]
        too_long = inputs + outputs > limits.max_model_len
        # the last token of an answer is never put into the cache
        too_big = limits.blocks_of(inputs + outputs - 1) > limits.kv_blocks
        assert outcome == ("rejected" if too_long or too_big else "completed")


@random_examples(120)
@given(configs())
def test_a_request_arrives_is_admitted_answers_and_is_done(config: Config) -> None:
    record = simulated(config)
    for number, (arrival, admit, first_token, done) in milestones(record).items():
        assert arrival <= admit < first_token <= done
        assert (first_token == done) == (config.requests[number][2] == 1)
    rejected = with_outcome(record, "rejected")
    for name in MILESTONES[1:]:
        assert np.isnan(rejected[name]).all()


@random_examples(120)
@given(configs())
def test_requests_of_a_replica_are_admitted_in_the_order_of_arrival(config: Config) -> None:
    record = simulated(config)
    for index in range(config.limits.replicas):
        mine = of_replica(with_outcome(record, "completed"), index)
        in_order = np.argsort(mine["request_id"])
        assert (np.diff(mine["admit_s"][in_order]) >= 0).all()


@random_examples(120)
@given(configs())
def test_tokens_are_conserved(config: Config) -> None:
    record = simulated(config)
    completed, stretches = with_outcome(record, "completed"), record.stretches
    decoded = int((stretches["steps"] * stretches["decode_sequences"]).sum())
    by_prefill = int(stretches["first_tokens"].sum())
    preemptions = int(completed["preemptions"].sum())
    # what a preemption throws away is computed again as a prompt, never sampled again
    assert decoded + by_prefill == completed["output_tokens"].sum()
    assert len(completed["request_id"]) <= by_prefill
    assert by_prefill <= len(completed["request_id"]) + preemptions
    prompts = int(completed["input_tokens"].sum())
    computed = int(stretches["prefill_tokens"].sum())
    assert computed == prompts if preemptions == 0 else computed >= prompts


@random_examples(120)
@given(configs())
def test_attention_work_does_not_depend_on_chunks_and_batches(config: Config) -> None:
    """Without preemption each request attends to what it would attend to alone."""
    record = simulated(config)
    completed, stretches = with_outcome(record, "completed"), record.stretches
    assume(not completed["preemptions"].any())
    window = config.limits.window_tokens or 0
    prompt_keys, answer_keys = [], []
    for inputs, outputs in zip(
        completed["input_tokens"].tolist(), completed["output_tokens"].tolist(), strict=True
    ):
        prompt_keys += range(1, inputs + 1)
        answer_keys += range(inputs + 1, inputs + outputs)
    assert stretches["prefill_pairs"].sum() == sum(prompt_keys)
    assert stretches["decode_context_tokens"].sum() == sum(answer_keys)
    seen = sum(min(key, window) for key in answer_keys)
    assert stretches["decode_window_tokens"].sum() == seen
    seen = sum(min(key, window) for key in prompt_keys)
    assert stretches["prefill_window_pairs"].sum() == seen


@random_examples(120)
@given(configs())
def test_all_blocks_come_back(config: Config) -> None:
    cluster = cluster_of(config, every_step=False)
    record = serve(cluster, config)
    used = record.stretches["kv_used_blocks"]
    assert (used > 0).all()  # whatever runs has blocks, also in the step in which it ends
    assert (used <= config.limits.kv_blocks).all()  # beyond it the pool raises an InternalError
    for replica in cluster.replicas:
        scheduler = replica.scheduler
        assert scheduler.pool.used_blocks == 0
        assert scheduler.outstanding_requests == scheduler.running_requests == 0
        batch = scheduler.batch
        left = (batch.size, batch.context_tokens, batch.window_tokens, batch.window_growing)
        assert left == (0, 0, 0, 0)
        assert batch.blocks_needed(config.limits.block_tokens) == 0


@random_examples(120)
@given(configs())
def test_steps_keep_to_their_limits(config: Config) -> None:
    record = simulated(config)
    stretches, limits = record.stretches, config.limits
    sequences = stretches["decode_sequences"] + stretches["prefill_sequences"]
    tokens = stretches["decode_sequences"] + stretches["prefill_tokens"]
    assert ((sequences > 0) & (sequences <= limits.max_num_seqs)).all()
    assert ((tokens > 0) & (tokens <= limits.max_num_batched_tokens)).all()
    assert (stretches["prefill_tokens"] >= stretches["prefill_sequences"]).all()
    assert (stretches["first_tokens"] <= stretches["prefill_sequences"]).all()
    assert (stretches["steps"][stretches["prefill_tokens"] > 0] == 1).all()


@random_examples(150)
@given(configs())
def test_busy_time_is_exactly_when_requests_are_there(config: Config) -> None:
    """Stretches go forward without overlap, and no replica idles with work or works without."""
    record = simulated(config)
    for index in range(config.limits.replicas):
        mine = of_replica(record.stretches, index)
        stretches = list(zip(whole_ticks(mine["start_s"]), whole_ticks(mine["end_s"]), strict=True))
        assert all(start < end for start, end in stretches)
        assert all(before[1] <= after[0] for before, after in pairwise(stretches))
        completed = of_replica(with_outcome(record, "completed"), index)
        residences = zip(
            whole_ticks(completed["arrival_s"]), whole_ticks(completed["done_s"]), strict=True
        )
        assert merged(stretches) == merged(residences)


def merged(intervals: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """Union of intervals; those that touch are one."""
    union: list[tuple[int, int]] = []
    for start, end in sorted(intervals):
        if union and start <= union[-1][1]:
            union[-1] = (union[-1][0], max(end, union[-1][1]))
        else:
            union.append((start, end))
    return union


@random_examples(100)
@given(configs(), st.permutations(range(3)))
def test_relabelled_replicas_permute_results_only(config: Config, order: list[int]) -> None:
    config = replace(config, clients=None, limits=replace(config.limits, replicas=3))
    plain = simulated(config)
    cluster = cluster_of(config, every_step=False)
    # other labels stand in the places that the router sees
    pool = cluster.pools["serve"]
    pool._accepting[:] = [pool.replicas[label] for label in order]
    relabelled = serve(cluster, config)
    assert milestones(relabelled) == milestones(plain)
    names = dict(enumerate(order)) | {-1: -1}
    expected = {
        number: names[replica] for number, replica in replica_of_each(plain.requests).items()
    }
    assert replica_of_each(relabelled.requests) == expected


def replica_of_each(columns: Columns) -> dict[int, int]:
    return dict(zip(columns["request_id"].tolist(), columns["replica"].tolist(), strict=True))


@random_examples(80)
@given(configs(), st.integers(2, 5))
def test_a_slower_clock_stretches_all_times(config: Config, factor: int) -> None:
    coefficients = (getattr(config.pace, field.name) for field in fields(LinearPace))
    slower = replace(
        config,
        pace=LinearPace(*(factor * number for number in coefficients)),
        requests=tuple((factor * at, *lengths) for at, *lengths in config.requests),
    )
    record = simulated(config)
    slow_record = simulated(slower)
    assert milestones(slow_record) == {
        number: tuple(factor * tick for tick in ticks)
        for number, ticks in milestones(record).items()
    }


@random_examples(100)
@given(configs(), st.data())
def test_the_future_does_not_change_the_past(config: Config, data: st.DataObject) -> None:
    """Neither a later arrival nor the length of an answer is known before its time."""
    config = replace(config, clients=None)
    record = simulated(config)
    plain = milestones(record)
    assume(len(plain) == len(config.requests))  # what is rejected depends on whole lengths
    number = data.draw(st.sampled_from(range(len(config.requests))))
    arrival, inputs, outputs = config.requests[number]
    shorter = data.draw(st.integers(1, outputs))
    changed = (
        *config.requests[:number],
        (arrival, inputs, shorter),
        *config.requests[number + 1 :],
    )
    record = simulated(replace(config, requests=changed))
    other = milestones(record)
    assert known_before(other[number][3], plain) == known_before(other[number][3], other)
    record = simulated(replace(config, requests=config.requests[:number]))
    without = milestones(record)
    arrived = {earlier: plain[earlier] for earlier in range(number)}
    assert known_before(arrival, arrived) == known_before(arrival, without)


def known_before(moment: int, ticks: Ticks) -> Ticks:
    return {number: tuple(tick for tick in row if tick < moment) for number, row in ticks.items()}
