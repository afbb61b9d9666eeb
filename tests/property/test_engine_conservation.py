"""What no run may lose or invent: requests, tokens, blocks, time; and what must not matter."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, fields, replace
from itertools import pairwise
from typing import Literal

import numpy as np
import pytest
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
from test_engine_features import TICK_S, Setup, Trouble, setup
from test_upkeep_equality import run as run_with_upkeep

from sim.engine.cluster import Cluster, PoolPlan, RunRecord
from sim.engine.faults import Recovery
from sim.engine.links import Link
from sim.engine.records import Columns
from sim.engine.speculative import SpeculativeBatch
from sim.reliability import Faults, PartFaults

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


# --- Every token that was computed was of use, computed again, or lost.


@dataclass(frozen=True)
class Repaired:
    """Trouble after which requests keep some of their work, as the rules for faults say."""

    trouble: Trouble
    keeps: Literal["nothing", "answer", "kv"]

    def attach(self, cluster: Cluster) -> None:
        self.trouble.attach(cluster)
        rules = Faults(
            chip=PartFaults(mtbf_s=1.0, repair_s=1.0),
            retry_keeps=self.keeps,
            max_attempts=3,
            detection_s=2 * TICK_S,
        )
        store = Link(1 / TICK_S)
        recovery = Recovery(
            cluster.env, rules, resubmit=cluster.send, block_tokens=4, kv_store=store
        )
        cluster.when_lost = recovery.lost


class Observed:
    """A run whose speculative batches can be asked what they have not been asked for yet.

    A step of several tokens a sequence is counted by its mean; the rest follows with later steps,
    or never, if there is none.
    """

    def __init__(self, case: Setup) -> None:
        self.batches: list[SpeculativeBatch] = []
        self.cluster = Cluster([self._watched(plan) for plan in case.plans])
        self.record = self.cluster.run(case.source(), case.companions)

    def _watched(self, plan: PoolPlan) -> PoolPlan:
        new_batch = plan.plan.new_batch
        if new_batch is None:
            return plan

        def make() -> SpeculativeBatch:
            batch = new_batch()
            assert isinstance(batch, SpeculativeBatch)
            self.batches.append(batch)
            return batch

        return replace(plan, plan=replace(plan.plan, new_batch=make))

    def unsettled_tokens(self) -> float:
        return sum(batch.unsettled_tokens for batch in self.batches)

    def encodes(self) -> list[bool]:
        """Of each stretch, whether it is one of encoders."""
        pool = self.cluster.pools.get("encode")
        encoders = set() if pool is None else {replica.index for replica in pool.replicas}
        return [index in encoders for index in self.record.stretches["replica"].tolist()]


def assert_tokens_add_up(
    record: RunRecord, encodes: list[bool], unsettled_tokens: float = 0.0
) -> Counter[str]:
    """Check the law of a run, and count its tokens by what became of them.

    A prompt that is computed gives the first token, and every later step puts the last token into
    the cache and gives another. So an answered request has taken its prompt, less what was found
    in a cache, and its answer, less the last token, through the model, and what it had to compute
    again. Whatever else went through the model is lost.
    """
    answers = np.logical_not(np.array(encodes, dtype=bool))
    stretches = {name: column[answers] for name, column in record.stretches.items()}
    done, losses = with_outcome(record, "completed"), record.losses
    produced = stretches["output_tokens"].sum() + unsettled_tokens
    assert produced == done["output_tokens"].sum() + losses["generated_tokens"].sum()
    computed = stretches["prefill_tokens"].sum() + produced - stretches["first_tokens"].sum()
    of_use = done["input_tokens"] - done["cached_tokens"] + done["output_tokens"] - 1
    lost = losses["prefilled_tokens"] + losses["generated_tokens"] - losses["first_tokens"]
    assert computed == of_use.sum() + done["recomputed_tokens"].sum() + lost.sum()

    assert (done["recomputed_tokens"] >= 0).all()
    assert (done["cached_tokens"] < done["input_tokens"]).all()
    undisturbed = (done["preemptions"] == 0) & (done["attempts"] == 1)
    assert not done["recomputed_tokens"][undisturbed].any()
    assert (lost >= 0).all()
    found = Counter(of_use=int(of_use.sum()), recomputed=int(done["recomputed_tokens"].sum()))
    for cause, tokens in zip(losses["cause"].tolist(), lost.tolist(), strict=True):
        found[cause] += tokens
    return found


CLUSTERS = range(100)


def test_every_token_computed_was_of_use_or_is_accounted_for() -> None:
    found: Counter[str] = Counter()
    for seed in CLUSTERS:
        case = setup(seed)
        run = Observed(case)
        found += assert_tokens_add_up(run.record, run.encodes(), run.unsettled_tokens())
        images = {number: row[5] for number, row in enumerate(case.rows)}
        done = with_outcome(run.record, "completed")["request_id"].tolist()
        encoded = run.record.stretches["prefill_tokens"][np.array(run.encodes(), dtype=bool)]
        if any(plan.role == "encode" for plan in case.plans):
            of_use = sum(images[number] for number in done)
            assert encoded.sum() == of_use + run.record.losses["encoded_tokens"].sum()
    # a mix in which nothing is lost would prove nothing
    assert all(found[what] > 100 for what in ("of_use", "recomputed", "timed_out", "failure"))


@pytest.mark.parametrize("keeps", ["nothing", "answer", "kv"])
def test_tokens_add_up_where_retries_keep_some(keeps: Literal["nothing", "answer", "kv"]) -> None:
    found: Counter[str] = Counter()
    for seed in CLUSTERS:
        case = setup(seed)
        trouble = Trouble(seed, up_ticks=40 + 7 * seed, down_ticks=20, retry=True)
        others = [each for each in case.companions if not isinstance(each, Trouble)]
        run = Observed(
            replace(
                case,
                plans=tuple(replace(plan, fetches=True) for plan in case.plans),
                companions=(*others, Repaired(trouble, keeps)),
            )
        )
        found += assert_tokens_add_up(run.record, run.encodes(), run.unsettled_tokens())
    assert found["failure"] > 100
    assert found["recomputed"] > 100


def test_tokens_add_up_in_fleets_that_break_and_scale() -> None:
    found: Counter[str] = Counter()
    for seed in CLUSTERS:
        _, record, _ = run_with_upkeep(seed, every_step=False)
        encodes = [False] * len(record.stretches["replica"])
        found += assert_tokens_add_up(record, encodes)
    assert min(found["recomputed"], found["failure"]) > 100


def test_the_parts_of_a_request_fit_into_its_time() -> None:
    """Encoding comes before admission; waits and ways between pools before the last token."""
    found: Counter[str] = Counter()
    for seed in CLUSTERS:
        done = with_outcome(setup(seed).run(every_step=False), "completed")
        ticks = {name: np.array(whole_ticks(done[name]), dtype=object) for name in PARTS}
        queued = ticks["admit_s"] - ticks["arrival_s"]
        assert (ticks["encode_s"] <= queued).all()
        parts = ticks["handover_wait_s"] + ticks["transfer_s"] + ticks["encode_s"]
        assert (parts <= ticks["done_s"] - ticks["arrival_s"]).all()
        found.update({name: int(np.count_nonzero(ticks[name])) for name in PARTS})
    assert all(found[name] for name in PARTS)


PARTS = (*MILESTONES, "encode_s", "handover_wait_s", "transfer_s")


def test_every_absence_from_a_batch_is_recorded() -> None:
    """Absences of a request that was answered add up to the time for which it was preempted."""
    found = 0
    for seed in CLUSTERS:
        record = setup(seed).run(every_step=False)
        done, away = with_outcome(record, "completed"), record.preemptions
        spent: Counter[int] = Counter()
        absences = Counter(away["request_id"].tolist())
        ends = zip(whole_ticks(away["start_s"]), whole_ticks(away["end_s"]), strict=True)
        for number, (start, end) in zip(away["request_id"].tolist(), ends, strict=True):
            spent[number] += end - start
        preempted = whole_ticks(done["preempted_s"])
        for number, ticks in zip(done["request_id"].tolist(), preempted, strict=True):
            assert spent[number] == ticks
        preemptions = zip(done["request_id"].tolist(), done["preemptions"].tolist(), strict=True)
        for number, times in preemptions:
            assert absences[number] == times  # who is answered has come back each time
            found += times
    assert found > 10
