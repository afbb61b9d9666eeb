"""The rules in which engines differ, against an oracle that loops over lists: equal, to the tick.

One rule after the other, each with the plain ones, and then all of them together.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

from engine_cases import LinearPace, constant_paces, paces, random_examples, whole_ticks
from hypothesis import given
from hypothesis import strategies as st
from naive_pools import Failure, NaiveCluster, PatienceRule
from naive_rules import Arrival, Estimate, Job, Rules

from sim.engine.admission import AnswerEstimate
from sim.engine.clients import OpenLoop
from sim.engine.clock import TICKS_PER_S
from sim.engine.cluster import Cluster, Companion, LinkPlan, PoolPlan, RunRecord
from sim.engine.patience import Patience, PatiencePlan, start_again
from sim.engine.plan import ReplicaPlan
from sim.engine.replica import Replica
from sim.engine.requests import Request
from sim.engine.rules import SchedulerRules
from sim.engine.waiting import FairLine, FcfsLine, PriorityLine
from sim.pools import Role

TICK_S = 1 / TICKS_PER_S


@dataclass(frozen=True)
class Case:
    """A cluster and its traffic."""

    rules: Rules
    """Of the replicas that do everything, or compute prompts."""
    pace: LinearPace
    arrivals: tuple[Arrival, ...]
    replicas: int = 1
    decode: Rules | None = None
    """Of the replicas that compute answers, if they have a pool of their own."""
    decode_replicas: int = 1
    transfer_ticks: int = 1
    patience: PatienceRule | None = None
    failures: tuple[Failure, ...] = ()

    def naive(self) -> NaiveCluster:
        pools = [(self.rules, self.replicas)]
        if self.decode is not None:
            pools.append((self.decode, self.decode_replicas))
        run = NaiveCluster(
            pools, self.pace.ticks, self.transfer_ticks, self.patience, self.failures
        )
        return run.serve(self.arrivals)

    def simulated(self, *, every_step: bool = False) -> RunRecord:
        port = LinkPlan(TICKS_PER_S / self.transfer_ticks)
        if self.decode is None:
            pools = [pool_of("serve", self.rules, self)]
        else:
            pools = [pool_of("prefill", self.rules, self), pool_of("decode", self.decode, self)]
            pools = [replace(pool, port=port) for pool in pools]
        requests = (request_of(number, sent) for number, sent in enumerate(self.arrivals))
        companions: list[Companion] = [Breakdown(failure) for failure in self.failures]
        if self.patience is not None:
            companions.append(Patience([plan_of_clients(self.patience)] * 3))
        return Cluster(pools, every_step=every_step).run(OpenLoop(requests), companions)


def pool_of(role: Role, rules: Rules, case: Case) -> PoolPlan:
    return PoolPlan(
        role,
        case.decode_replicas if role == "decode" else case.replicas,
        plan_of(rules, case.pace),
        host_link=LinkPlan(TICKS_PER_S / rules.swap_ticks),
        swap_tokens=rules.swap_tokens,
    )


def plan_of_clients(rule: PatienceRule) -> PatiencePlan:
    until: Literal["first_token", "completion"] = "completion"
    if rule.until == "first_token":
        until = "first_token"
    backoff_s = rule.backoff * TICK_S
    return PatiencePlan(rule.ticks * TICK_S, until, rule.retries, lambda _: backoff_s)


@dataclass(frozen=True)
class Breakdown:
    """Has one replica fail, and come back."""

    failure: Failure

    def attach(self, cluster: Cluster) -> None:
        self.at(cluster, self.failure.tick, lambda: self.fail(cluster))

    def at(self, cluster: Cluster, ticks: int, action: Callable[[], None]) -> None:
        alarm = cluster.env.timeout(ticks)
        assert alarm.callbacks is not None
        alarm.callbacks.append(lambda _: action())

    def fail(self, cluster: Cluster) -> None:
        replica = cluster.replicas[self.failure.replica % len(cluster.replicas)]
        if not cluster.active or replica.state != "up":
            return
        cluster.when_lost = lambda request: self.send_again(cluster, request)
        replica.fail()
        self.at(cluster, self.failure.down_ticks, lambda: self.mend(cluster, replica))

    def send_again(self, cluster: Cluster, request: Request) -> bool:
        if not self.failure.retry:
            return False
        request.attempts += 1
        start_again(request)
        delay = self.failure.detection + request.request_id
        self.at(cluster, delay, lambda: cluster.send(request))
        return True

    def mend(self, cluster: Cluster, replica: Replica) -> None:
        replica.set_state("up")
        for pool in cluster.pools.values():
            pool.came_up()


def request_of(number: int, sent: Arrival) -> Request:
    request = Request(number, sent.tick, sent.inputs, sent.outputs)
    request.max_tokens, request.priority, request.tenant = sent.asked, sent.priority, sent.tenant
    if sent.text is not None:
        request.content = runs_of(sent.text)
    return request


def runs_of(text: Sequence[tuple[int, int]]) -> tuple[tuple[int, int, int], ...]:
    """Stream, first position and length of what follows each other."""
    runs: list[tuple[int, int, int]] = []
    for stream, place in text:
        if runs and runs[-1][0] == stream and runs[-1][1] + runs[-1][2] == place:
            runs[-1] = (stream, runs[-1][1], runs[-1][2] + 1)
        else:
            runs.append((stream, place, 1))
    return tuple(runs)


def plan_of(rules: Rules, pace: LinearPace) -> ReplicaPlan:
    lines: dict[str, Callable[[], Any]] = {
        "fcfs": FcfsLine,
        "priority": PriorityLine,
        "fair": partial(FairLine, rules.weights),
    }
    estimate = None
    if rules.estimate is not None:
        estimate = AnswerEstimate(
            rules.estimate.initial,
            rules.estimate.least,
            rules.estimate.decay_steps,
            rules.estimate.longest_counted,
            rules.estimate.spare_steps,
        )
    return ReplicaPlan(
        rules=SchedulerRules(
            max_num_seqs=rules.max_num_seqs,
            max_num_batched_tokens=rules.max_num_batched_tokens,
            max_chunk_tokens=rules.max_chunk_tokens,
            max_prompts_per_step=rules.max_prompts_per_step,
            chunked_prefill=rules.chunked_prefill,
            prefill_first=rules.prefill_first,
            watermark_fraction=rules.watermark_fraction,
            whole_prompt_must_fit=rules.whole_prompt_must_fit,
            steps_ahead=rules.steps_ahead,
            poll_interval_steps=rules.poll_interval,
            batch_wait_steps=rules.batch_wait,
            batch_wait_tokens=rules.batch_wait_tokens,
        ),
        kv_blocks=rules.kv_blocks,
        block_tokens=rules.block_tokens,
        pace=pace,
        max_model_len=rules.max_model_len,
        kv_bytes_per_token=1.0,
        prefix_caching=rules.prefix_caching,
        by_priority=rules.by_priority,
        whole_answers=rules.whole_answers,
        estimate=estimate,
        new_line=lines[rules.order],
    )


# -- what is compared -----------------------------------------------------------------------------

Fate = tuple[object, ...]


def fates(record: RunRecord) -> dict[int, Fate]:
    """What became of each request: ticks, replica, preemptions, hits, outcome."""
    columns = record.requests
    times = [whole_ticks(columns[f"{name}_s"]) for name in ("admit", "first_token", "done")]
    names = (
        "prefill_replica",
        "replica",
        "attempts",
        "preemptions",
        "cached_tokens",
        "outcome",
    )
    rows = zip(*times, *(columns[name].tolist() for name in names), strict=True)
    return dict(zip(columns["request_id"].tolist(), rows, strict=True))


def naive_fate(job: Job) -> Fate:
    times = (job.admitted, job.first_token, job.done)
    places = (job.prefill_replica, job.replica)
    return (*times, *places, job.attempts, job.preemptions, job.cached, job.outcome)


def assert_equals_naive(case: Case) -> Counter[str]:
    run = case.naive()
    assert fates(case.simulated()) == {job.number: naive_fate(job) for job in run.jobs}
    return run.seen


def assert_all_equal(cases: st.SearchStrategy[Case], events: Sequence[str], count: int) -> None:
    """Compare random cases, and make sure that all events of interest are among them."""
    examples_with: Counter[str] = Counter()

    @random_examples(count)
    @given(cases)
    def check(case: Case) -> None:
        seen = assert_equals_naive(case)
        examples_with.update(event for event, times in seen.items() if times)

    check()
    # few are enough: how many there are depends on the constants of all modules that are imported,
    # from which Hypothesis draws some of its numbers
    rare = {event: examples_with[event] for event in events if examples_with[event] < 3}
    assert not rare, f"the examples hardly ever exercise these rules: {examples_with}"


NOTHING: Mapping[str, st.SearchStrategy[Any]] = {}

# -- what is drawn --------------------------------------------------------------------------------

gaps = st.just(0) | st.integers(0, 20) | st.integers(0, 500)
lengths = st.tuples(gaps, st.integers(1, 40), st.integers(1, 30) | st.integers(10, 30))


@st.composite
def traffics(draw: st.DrawFn, /, **more: st.SearchStrategy[Any]) -> tuple[Arrival, ...]:
    """Requests by arrival; ``more`` draws further fields of each."""
    tick, found = 0, []
    for gap, inputs, outputs in draw(st.lists(lengths, min_size=5, max_size=16)):
        tick += gap
        extra = {name: draw(values) for name, values in more.items()}
        extra["asked"] = outputs + extra.get("asked", 0)
        if extra.get("text"):
            extra["text"] = text_of(inputs, *extra["text"])
        found.append(Arrival(tick, inputs, outputs, **extra))
    return tuple(found)


def text_of(tokens: int, shared: int, prefix: int, rest: int) -> tuple[tuple[int, int], ...]:
    """So many tokens of one of few prefixes, and then something that some others have too."""
    text = [(prefix, place) for place in range(shared)]
    text += [(10 + rest, place) for place in range(tokens)]
    return tuple(text[:tokens])


texts = st.tuples(st.sampled_from([0, 5, 16, 33]), st.integers(0, 1), st.integers(0, 3))


@st.composite
def rules_for(
    draw: st.DrawFn, /, arrivals: Sequence[Arrival], **more: st.SearchStrategy[Any]
) -> Rules:
    """A small crowded replica; ``more`` draws further fields of its rules."""
    block_tokens = draw(st.sampled_from([1, 2, 3, 4, 16]))
    max_num_seqs = draw(st.integers(1, 3) | st.integers(3, 8))
    rules = Rules(
        block_tokens=block_tokens,
        kv_blocks=1,
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=max_num_seqs + draw(st.integers(0, 40)),
        max_chunk_tokens=draw(st.none() | st.integers(1, 25)),
        **{name: draw(values) for name, values in more.items()},
    )
    if not rules.chunked_prefill:
        rules = replace(rules, max_chunk_tokens=None)
    longest = max(rules.blocks_of(sent.inputs + sent.asked - 1) for sent in arrivals)
    spare = draw(st.integers(-2, 4) | st.integers(-2, 60 // block_tokens))
    return replace(rules, kv_blocks=max(1, longest + spare))


@st.composite
def cases(
    draw: st.DrawFn,
    /,
    traffic: st.SearchStrategy[tuple[Arrival, ...]] | None = None,
    around: Mapping[str, st.SearchStrategy[Any]] = NOTHING,
    **more: st.SearchStrategy[Any],
) -> Case:
    """A small cluster; ``around`` draws further fields of the case, ``more`` of its rules."""
    arrivals = draw(traffic if traffic is not None else traffics())
    fields = {name: draw(values) for name, values in around.items()}
    if fields.get("decode"):
        fields["decode"] = draw(rules_for(arrivals, **more))
    rules, pace = draw(rules_for(arrivals, **more)), draw(constant_paces | paces)
    return Case(rules, pace, arrivals, draw(st.integers(1, 2)), **fields)


# -- the rules, one by one ------------------------------------------------------------------------


def test_plain_rules() -> None:
    assert_all_equal(
        cases(),
        ("preempted while decoding", "preempted while prefilling", "cut prompt"),
        100,
    )


def test_a_step_is_decided_while_the_last_one_runs() -> None:
    assert_all_equal(
        cases(steps_ahead=st.just(1)),
        (
            "went while the next step was decided",
            "held back as not known yet",
            "held back by places of the leaving",
            "preempted while decoding",
        ),
        180,
    )


def test_requests_are_looked_for_every_few_steps() -> None:
    assert_all_equal(
        cases(
            poll_interval=st.sampled_from([2, 3, 10]),
            prefill_first=st.booleans(),
            steps_ahead=st.integers(0, 1),
        ),
        ("not looked for yet", "preempted while decoding", "held back by places"),
        180,
    )


def test_prompts_wait_for_others() -> None:
    assert_all_equal(
        cases(
            batch_wait=st.integers(1, 12),
            batch_wait_tokens=st.sampled_from([10, 40, 100]),
            poll_interval=st.sampled_from([1, 1, 4]),
            prefill_first=st.booleans(),
            steps_ahead=st.integers(0, 1),
        ),
        ("waited long enough", "waited until there were enough", "preempted while decoding"),
        240,
    )


def test_a_whole_prompt_must_fit() -> None:
    assert_all_equal(
        cases(
            whole_prompt_must_fit=st.just(True),
            watermark_fraction=st.sampled_from([0.0, 0.1, 0.3]),
            steps_ahead=st.integers(0, 1),
        ),
        ("held back by the rest of its prompt", "held back by the watermark"),
        180,
    )


ahead = st.integers(0, 1)


def test_prompts_in_steps_of_their_own() -> None:
    assert_all_equal(
        cases(
            prefill_first=st.just(True),
            max_prompts_per_step=st.none() | st.integers(1, 3),
            whole_prompt_must_fit=st.booleans(),
            steps_ahead=ahead,
        ),
        ("answers waited for prompts", "held back by the number of prompts"),
        180,
    )


def test_prompts_that_may_not_be_cut() -> None:
    assert_all_equal(
        cases(chunked_prefill=st.just(False), prefill_first=st.booleans(), steps_ahead=ahead),
        ("held back as it may not be cut", "preempted while decoding", "rejected"),
        180,
    )


asking: dict[str, Any] = {"asked": st.just(0) | st.integers(0, 20)}


def test_whole_answers_are_set_aside() -> None:
    assert_all_equal(
        cases(
            traffics(**asking),
            whole_answers=st.just(True),
            prefill_first=st.booleans(),
            steps_ahead=ahead,
        ),
        ("held back by whole answers", "held back by blocks"),
        180,
    )


@st.composite
def estimates(draw: st.DrawFn) -> Estimate:
    initial = draw(st.sampled_from([0.25, 0.5, 0.75, 1.0]))
    spare_steps = draw(st.integers(1, 5))
    return Estimate(initial, 0.125, draw(st.sampled_from([2, 4, 16, 32])), 100, spare_steps)


def test_an_estimate_of_the_answers_is_set_aside() -> None:
    assert_all_equal(
        cases(
            traffics(**asking),
            estimate=estimates(),
            prefill_first=st.booleans(),
            steps_ahead=ahead,
        ),
        ("held back by the estimate", "retracted"),
        180,
    )


def test_the_line_goes_by_priority() -> None:
    assert_all_equal(
        cases(
            traffics(priority=st.integers(0, 2)),
            order=st.just("priority"),
            by_priority=st.booleans(),
            prefill_first=st.booleans(),
            steps_ahead=ahead,
        ),
        ("preempted the least important", "overtook an arrival not known yet"),
        300,
    )


def test_tenants_have_fair_shares() -> None:
    assert_all_equal(
        cases(
            traffics(tenant=st.integers(0, 2)),
            order=st.just("fair"),
            weights=st.permutations([1.0, 2.0, 4.0]).map(tuple),
            prefill_first=st.booleans(),
            steps_ahead=ahead,
        ),
        ("preempted while decoding", "overtook an arrival not known yet"),
        300,
    )


def test_prompts_share_prefixes() -> None:
    assert_all_equal(
        cases(
            traffics(text=st.none() | texts | texts | texts),
            prefix_caching=st.just(True),
            whole_prompt_must_fit=st.booleans(),
            prefill_first=st.booleans(),
            steps_ahead=ahead,
        ),
        ("hit", "hit after a preemption", "hit an idle block", "held back by blocks"),
        180,
    )


swapping: dict[str, Any] = {
    "swap_tokens": st.integers(20, 200),
    "swap_ticks": st.sampled_from([1, 3, 10]),
}


def test_preempted_sequences_move_to_the_host() -> None:
    assert_all_equal(
        cases(
            **swapping,
            whole_prompt_must_fit=st.booleans(),
            prefill_first=st.booleans(),
            steps_ahead=ahead,
        ),
        (
            "swapped out",
            "came back by the host",
            "waited for the host",
            "held back since it was preempted",
        ),
        200,
    )


def test_prefixes_are_found_beside_what_lies_on_the_host() -> None:
    assert_all_equal(
        cases(traffics(text=texts), **swapping, prefix_caching=st.just(True), steps_ahead=ahead),
        ("swapped out", "came back by the host", "fetched a part only"),
        200,
    )


in_two_pools: dict[str, Any] = {
    "decode": st.just(True),
    "decode_replicas": st.integers(1, 2),
    "transfer_ticks": st.sampled_from([1, 3, 10]),
}


def test_prompts_are_handed_over() -> None:
    assert_all_equal(
        cases(
            traffics(**asking),
            in_two_pools,
            whole_answers=st.booleans(),
            steps_ahead=ahead,
            prefill_first=st.booleans(),
        ),
        ("handed over", "waited for a link", "came by a link", "preempted while decoding"),
        200,
    )


clients = st.builds(
    PatienceRule,
    st.integers(1, 300),
    st.sampled_from(["first_token", "completion"]),
    st.integers(0, 2),
    st.integers(1, 50),
)


def test_clients_give_up() -> None:
    assert_all_equal(
        cases(around={"patience": clients}, steps_ahead=ahead),
        ("given up while waiting", "given up while running", "tried again", "timed_out"),
        200,
    )


breakdowns = st.lists(
    st.builds(
        Failure,
        st.integers(0, 3),
        st.integers(1, 400),
        st.integers(1, 200),
        st.booleans(),
        st.integers(1, 30),
    ),
    min_size=1,
    max_size=2,
).map(tuple)


def test_replicas_fail() -> None:
    assert_all_equal(
        cases(around={"failures": breakdowns}, steps_ahead=ahead),
        ("failed", "broken off", "lost", "waited at the door"),
        200,
    )


def test_all_of_it_with_two_pools() -> None:
    assert_all_equal(
        cases(
            traffics(text=texts, priority=st.integers(0, 2), **asking),
            {
                **in_two_pools,
                "patience": st.none() | clients,
                "failures": st.just(()) | breakdowns,
            },
            steps_ahead=ahead,
            prefill_first=st.booleans(),
            prefix_caching=st.booleans(),
            order=st.sampled_from(["fcfs", "priority"]),
        ),
        ("handed over", "timed_out", "hit", "tried again", "failed"),
        200,
    )
