"""Continuous batching, in scenarios small enough to work out by hand."""

from collections.abc import Iterable
from typing import Any

import pytest
from small_clusters import chunks, pass_step, planned, scheduler_of, with_requests

from sim.engine.kv import SequenceBlocks
from sim.engine.prefix import PrefixCache
from sim.engine.requests import Request
from sim.engine.scheduler import Scheduler
from sim.engine.stretch import Stretch


def test_prompts_share_a_step_in_the_order_of_arrival() -> None:
    scheduler = scheduler_of(budget=100)
    first, second, third = with_requests(scheduler, (30, 5), (50, 5), (40, 5))
    stretch = planned(scheduler, 7)
    # 30 + 50 leave 20 of the budget for the third prompt
    assert chunks(stretch) == [(0, 30), (1, 50), (2, 20)]
    assert (stretch.decode_sequences, stretch.prefill_tokens, stretch.max_steps) == (0, 100, 1)
    # every token attends to those before it and itself: n (n + 1) / 2
    assert stretch.prefill_pairs == 30 * 31 // 2 + 50 * 51 // 2 + 20 * 21 // 2
    assert [request.admit_tick for request in (first, second, third)] == [7, 7, 7]
    assert scheduler.pool.used_blocks == 2 + 4 + 2
    scheduler.finish(stretch, 1, 9)
    assert stretch.first_tokens == 2
    assert [request.first_token_tick for request in (first, second, third)] == [9, 9, -1]
    assert scheduler.prefilling == [third]
    assert (scheduler.running_requests, scheduler.outstanding_requests) == (3, 3)


def test_a_request_whose_prompt_is_in_the_step_runs() -> None:
    scheduler = scheduler_of(seqs=2)
    with_requests(scheduler, (30, 5), (50, 1), (40, 5))
    assert (scheduler.running_requests, scheduler.outstanding_requests) == (0, 3)
    stretch = planned(scheduler, 0)
    assert (scheduler.running_requests, scheduler.outstanding_requests) == (2, 3)
    scheduler.finish(stretch, 1, 1)  # the second has its only token
    assert (scheduler.running_requests, scheduler.outstanding_requests) == (1, 2)


def test_decoding_sequences_come_before_the_rest_of_a_prompt() -> None:
    scheduler = scheduler_of(budget=50)
    with_requests(scheduler, (20, 5), (90, 5), (10, 5))
    assert chunks(pass_step(scheduler, 0)) == [(0, 20), (1, 30)]
    stretch = pass_step(scheduler, 1)
    assert (stretch.decode_sequences, stretch.context_tokens) == (1, 20)
    assert chunks(stretch) == [(1, 49)]  # one token of fifty belongs to the first sequence
    # tokens 31 to 79 of the prompt attend to that many keys
    assert stretch.prefill_pairs == sum(range(31, 80))
    stretch = pass_step(scheduler, 2)
    assert chunks(stretch) == [(1, 11), (2, 10)]  # 30 + 49 + 11 = 90
    stretch = planned(scheduler, 3)
    assert (stretch.decode_sequences, stretch.chunks) == (3, [])
    # 20 + 2 decoded tokens, 90, 10: the token just sampled is not in the cache
    assert stretch.context_tokens == 22 + 90 + 10


def test_places_limit_admission() -> None:
    scheduler = scheduler_of(seqs=2)
    requests = with_requests(scheduler, (10, 2), (10, 3), (10, 1))
    assert chunks(pass_step(scheduler, 0)) == [(0, 10), (1, 10)]
    assert (scheduler.running_requests, len(scheduler.line)) == (2, 1)
    stretch = planned(scheduler, 1)
    assert (stretch.decode_sequences, stretch.max_steps) == (2, 1)
    assert scheduler.finish(stretch, 1, 2) == [requests[0]]
    # the place that became free is taken in the next step, beside the sequence that decodes
    stretch = planned(scheduler, 2)
    assert (stretch.decode_sequences, chunks(stretch)) == (1, [(2, 10)])
    # one ends with its third token, the other with the token of its prompt
    assert scheduler.finish(stretch, 1, 3) == [requests[1], requests[2]]
    assert [request.done_tick for request in requests] == [2, 3, 3]
    assert scheduler.pool.used_blocks == scheduler.outstanding_requests == 0


def test_blocks_limit_admission_and_nobody_overtakes() -> None:
    scheduler = scheduler_of(blocks=5, block_tokens=16)
    with_requests(scheduler, (40, 9), (33, 9), (1, 9))
    # 3 of 5 blocks are taken, the second prompt wants 3 more; the third would fit but waits
    assert chunks(pass_step(scheduler, 0)) == [(0, 40)]
    assert len(scheduler.line) == 2


def test_a_stretch_lasts_to_the_next_completion() -> None:
    scheduler = scheduler_of()
    requests = with_requests(scheduler, (10, 8), (10, 5))
    pass_step(scheduler, 0)
    stretch = planned(scheduler, 1)
    assert stretch.max_steps == 4  # the second has one of five tokens
    assert scheduler.finish(stretch, 4, 5) == [requests[1]]
    assert planned(scheduler, 5).max_steps == 3


def test_a_stretch_lasts_while_there_are_blocks() -> None:
    # Blocks of 4 tokens. Prompts of 4 and 6 take 1 + 2; two of five are free. In the first step
    # the first sequence takes one (5 tokens), in the third the second (9 tokens); the fifth step
    # would want one more (9 tokens).
    scheduler = scheduler_of(blocks=5, block_tokens=4)
    with_requests(scheduler, (4, 14), (6, 14))
    pass_step(scheduler, 0)
    stretch = planned(scheduler, 1)
    assert (stretch.taken_blocks, stretch.max_steps) == (1, 4)
    scheduler.finish(stretch, 4, 5)
    assert scheduler.pool.free_blocks == 0
    # it preempts the second sequence: 10 tokens in three blocks
    stretch = planned(scheduler, 5)
    assert (stretch.decode_sequences, stretch.context_tokens) == (1, 8)
    assert scheduler.pool.free_blocks == 2
    assert [request.request_id for request in scheduler.line] == [1]
    assert [request.preemptions for request in scheduler.line] == [1]


def test_a_stretch_lasts_to_the_next_window_that_fills() -> None:
    scheduler = scheduler_of(rules={"window_tokens": 14})
    with_requests(scheduler, (10, 50), (40, 50))
    stretch = pass_step(scheduler, 0)
    # 14 * 15 / 2 keys until the window is full, then 14 each
    assert stretch.prefill_window_pairs == 10 * 11 // 2 + (14 * 15 // 2 + 26 * 14)
    stretch = planned(scheduler, 1)
    assert (stretch.window_tokens, stretch.window_growing, stretch.max_steps) == (10 + 14, 1, 4)
    scheduler.finish(stretch, 4, 5)
    stretch = planned(scheduler, 5)
    assert (stretch.window_tokens, stretch.window_growing, stretch.max_steps) == (28, 0, 45)


def test_an_unfinished_prompt_is_preempted_when_its_chunk_finds_no_blocks() -> None:
    # Blocks of one token, five of them, three tokens a step: see the step by step account in
    # tests/property/test_engine_equality.py
    scheduler = scheduler_of(seqs=2, budget=3, blocks=5, block_tokens=1)
    _, second = with_requests(scheduler, (1, 3), (4, 1))
    assert chunks(pass_step(scheduler, 0)) == [(0, 1), (1, 2)]
    stretch = planned(scheduler, 1)
    assert (stretch.decode_sequences, stretch.chunks) == (1, [])
    assert (second.computed_tokens, second.preemptions) == (0, 1)
    assert list(scheduler.line) == [second]
    assert stretch.max_steps == 1  # the next step may admit again


def test_several_victims_wait_in_the_order_of_their_admission() -> None:
    # Blocks of one token, nine of them: three sequences of 1 + 2 tokens fill them. The next step
    # wants three blocks: the third sequence gives back three, which serve the first two.
    scheduler = scheduler_of(blocks=9, block_tokens=1)
    requests = with_requests(scheduler, (1, 9), (1, 9), (1, 9))
    for tick in range(3):
        pass_step(scheduler, tick)
    assert scheduler.pool.free_blocks == 0
    scheduler.add(Request(3, 0, 1, 1), 3)
    pass_step(scheduler, 3)
    assert [request.request_id for request in scheduler.line] == [2, 3]
    # 4 + 4 of 9 are taken, one is free: the next step wants two, and the second is preempted too
    pass_step(scheduler, 4)
    assert [request.request_id for request in scheduler.line] == [1, 2, 3]
    assert [request.preemptions for request in requests] == [0, 1, 1]
    # what is computed again is the prompt and all four tokens sampled so far
    assert requests[1].prefill_tokens == 1 + 4


def test_the_first_admission_and_the_first_token_stand() -> None:
    scheduler = scheduler_of(seqs=2, budget=2, blocks=6, block_tokens=1)
    requests = with_requests(scheduler, (1, 4), (1, 5))
    for tick in range(7):
        pass_step(scheduler, tick)
    second = requests[1]
    assert second.preemptions == 1
    assert (second.admit_tick, second.first_token_tick, second.done_tick) == (0, 1, 7)


@pytest.mark.parametrize(
    ("inputs", "outputs", "possible"),
    [(64, 1, True), (65, 1, False), (60, 5, True), (60, 6, False), (1, 64, True)],
)
def test_what_the_whole_pool_can_hold(inputs: int, outputs: int, possible: bool) -> None:
    # four blocks of 16; the last token of the answer needs no room
    scheduler = scheduler_of(blocks=4)
    assert scheduler.can_ever_run(Request(0, 0, inputs, outputs)) is possible


def test_a_newcomer_is_admitted_at_once_only_at_the_head_of_the_line() -> None:
    scheduler = scheduler_of(seqs=2)
    with_requests(scheduler, (10, 9))
    pass_step(scheduler, 0)
    first, second, third = (Request(number, 0, 10, 9) for number in (5, 6, 7))
    scheduler.add(first, 1)
    assert scheduler.admits_at_once(first)
    scheduler.add(second, 1)
    assert not scheduler.admits_at_once(second)  # somebody was there before
    pass_step(scheduler, 1)
    scheduler.drop_waiting(second)
    scheduler.add(third, 2)
    assert not scheduler.admits_at_once(third)  # at the head, but all places are taken


def test_without_requests_there_is_nothing_to_run() -> None:
    assert scheduler_of().plan(0) is None


def test_sums_over_the_steps_of_a_stretch() -> None:
    # Two sequences with 10 tokens together attend to 12, 14 and 16 keys in three steps; windowed
    # layers see 8, 9 and 10, for only one of the two still grows.
    stretch = Stretch(2, 10, 2, window_tokens=7, window_growing=1, taken_blocks=0)
    assert [stretch.context_sum(steps) for steps in (1, 2, 3)] == [12, 26, 42]
    assert [stretch.window_sum(steps) for steps in (1, 2, 3)] == [8, 17, 27]


def test_a_limit_of_its_own_leaves_room_for_other_prompts() -> None:
    """As with ``long_prefill_token_threshold``: long prompts advance side by side."""
    scheduler = scheduler_of(rules={"max_chunk_tokens": 40})
    with_requests(scheduler, (90, 5), (30, 5), (70, 5))
    assert chunks(pass_step(scheduler, 0)) == [(0, 40), (1, 30), (2, 30)]
    # the second decodes; 99 are left for the two that are unfinished, 40 for each
    stretch = pass_step(scheduler, 1)
    assert stretch.decode_sequences == 1
    assert chunks(stretch) == [(0, 40), (2, 40)]
    assert chunks(pass_step(scheduler, 2)) == [(0, 10)]
    assert scheduler.prefilling == []


def test_states_are_taken_at_admission_and_come_back() -> None:
    blocks = SequenceBlocks(growing=1, windowed=0, fixed=7)
    scheduler = scheduler_of(blocks=18, sequence_blocks=blocks)
    with_requests(scheduler, (16, 2), (17, 1), (1, 1))
    stretch = planned(scheduler, 0)
    # 7 + 1 and 7 + 2 blocks are in use, one is free: the third has to wait for a state's eight
    assert chunks(stretch) == [(0, 16), (1, 17)]
    assert scheduler.pool.used_blocks == 17
    scheduler.finish(stretch, 1, 1)
    assert scheduler.pool.used_blocks == 8


def test_a_window_takes_no_more_blocks_once_it_is_full() -> None:
    blocks = SequenceBlocks(growing=0, windowed=1, fixed=0)
    scheduler = scheduler_of(blocks=3, sequence_blocks=blocks, rules={"window_tokens": 40})
    (request,) = with_requests(scheduler, (80, 900))
    assert scheduler.can_ever_run(request)
    pass_step(scheduler, 0)
    stretch = planned(scheduler, 1)
    assert stretch.max_steps == 899
    scheduler.finish(stretch, 899, 2)
    assert scheduler.pool.free_blocks == 3


class Elsewhere:
    """Keys and values that lie somewhere else, of so many tokens of a request."""

    def __init__(self, tokens: int) -> None:
        self.tokens = tokens


class NotedTransport:
    """Notes what it is asked to fetch."""

    changes_by_itself = False

    def __init__(self) -> None:
        self.fetched: list[tuple[int, int, int]] = []

    def remote_tokens(self, request: Request, cached_tokens: int) -> int:
        return cached_tokens if request.remote is None else request.remote.tokens

    def fetch(self, request: Request, cached_tokens: int, tokens: int) -> None:
        self.fetched.append((request.request_id, cached_tokens, tokens))

    def swap_out(self, request: Request, tokens: int) -> bool:
        del request, tokens
        return False

    def follow(self, cache: PrefixCache) -> None:
        """Nothing that a cache forgets is kept."""


def scheduler_that_fetches(**plan: Any) -> tuple[Scheduler, NotedTransport]:
    scheduler, transport = scheduler_of(**plan), NotedTransport()
    scheduler.transport = transport
    return scheduler, transport


def handed_over(request_id: int, inputs: int, outputs: int) -> Request:
    """A request whose prompt and first token come from elsewhere."""
    request = Request(request_id, 0, inputs, outputs)
    request.remote, request.generated_tokens = Elsewhere(inputs), 1
    return request


def assert_empty(scheduler: Scheduler) -> None:
    """Demand that nothing is left of anybody."""
    assert scheduler.pool.used_blocks == 0
    assert scheduler.running_requests == scheduler.outstanding_requests == 0
    assert scheduler.outstanding_tokens == scheduler.batch.size == len(scheduler.line) == 0
    assert not (scheduler.prefilling or scheduler.fetching or scheduler.ready)


def test_what_comes_from_elsewhere_holds_its_blocks_on_the_way() -> None:
    scheduler, transport = scheduler_that_fetches(seqs=1)
    request = handed_over(0, 40, 3)
    scheduler.add(request, 0)
    assert scheduler.plan(0) is None  # nothing to compute until it has come
    assert transport.fetched == [(0, 0, 40)]
    assert (scheduler.pool.used_blocks, scheduler.running_requests) == (3, 0)
    scheduler.fetched(request)
    request.remote = None
    stretch = planned(scheduler, 5)
    # the token of its prompt is there: it decodes, and has two tokens to come
    assert (stretch.decode_sequences, stretch.context_tokens, stretch.max_steps) == (1, 40, 2)
    assert (request.admit_tick, scheduler.running_requests) == (5, 1)
    assert scheduler.finish(stretch, 2, 7) == [request]
    assert_empty(scheduler)


def test_places_go_to_those_who_have_come_before_those_who_wait() -> None:
    scheduler, _ = scheduler_that_fetches(seqs=1)
    first, second = handed_over(0, 40, 2), handed_over(1, 40, 2)
    for request in (first, second):
        scheduler.add(request, 0)
    assert scheduler.plan(0) is None
    for request in (second, first):
        scheduler.fetched(request)
        request.remote = None
    scheduler.add(Request(2, 1, 5, 1), 1)
    assert scheduler.finish(planned(scheduler, 1), 1, 2) == [second]  # it came first
    assert scheduler.finish(planned(scheduler, 2), 1, 3) == [first]
    assert chunks(planned(scheduler, 3)) == [(2, 5)]


def test_the_rest_of_a_prompt_is_computed_here() -> None:
    scheduler, _ = scheduler_that_fetches()
    request = Request(0, 0, 40, 2)
    request.remote = Elsewhere(32)
    scheduler.add(request, 0)
    assert scheduler.plan(0) is None
    scheduler.fetched(request)
    request.remote = None
    stretch = planned(scheduler, 1)
    assert (chunks(stretch), stretch.prefill_context_tokens) == ([(0, 8)], 32)
    assert request.cached_tokens == 32
    assert scheduler.pool.used_blocks == 3


@pytest.mark.parametrize("caching", [False, True])
@pytest.mark.parametrize("state", ["waiting", "prefilling", "decoding", "fetching", "ready"])
def test_a_request_may_be_dropped_wherever_it_is(state: str, caching: bool) -> None:
    scheduler, _ = scheduler_that_fetches(
        budget=30, blocks=9, prefix_caching=caching, whole_answers=True
    )
    comes_over = state in ("fetching", "ready")
    request = handed_over(0, 70, 9) if comes_over else Request(0, 0, 70, 9)
    if caching:
        request.content = ((3, 0, 70),)
    scheduler.add(request, 0)
    assert scheduler.outstanding_tokens == 79
    tick = 0
    while state not in whereabouts(scheduler, request):
        stretch = scheduler.plan(tick)
        if stretch is not None:
            scheduler.finish(stretch, 1, tick + 1)
        elif state == "ready":
            scheduler.fetched(request)
        tick += 1
        assert tick < 9
    scheduler.drop(request)
    assert_empty(scheduler)
    scheduler.add(Request(1, 0, 128, 17), 9)  # the whole pool, also what was set aside
    assert chunks(planned(scheduler, 9)) == [(1, 30)]


def whereabouts(scheduler: Scheduler, request: Request) -> set[str]:
    places: dict[str, Iterable[Request]] = {
        "waiting": scheduler.line,
        "prefilling": scheduler.prefilling,
        "decoding": scheduler.batch,
        "fetching": scheduler.fetching,
        "ready": scheduler.ready,
    }
    return {name for name, place in places.items() if request in list(place)}


def test_a_preempted_request_may_be_dropped() -> None:
    scheduler = scheduler_of(blocks=8, block_tokens=1)
    first, second = with_requests(scheduler, (2, 9), (2, 9))
    for tick in range(4):
        pass_step(scheduler, tick)
    assert second.preemptions == 1
    scheduler.drop(second)
    assert (list(scheduler.line), scheduler.outstanding_requests) == ([], 1)
    assert scheduler.pool.used_blocks == 5  # those of the first
    scheduler.drop(first)
    assert_empty(scheduler)


def test_a_window_is_given_back_as_far_as_it_was_held() -> None:
    blocks = SequenceBlocks(growing=1, windowed=2, fixed=3)
    scheduler = scheduler_of(sequence_blocks=blocks, rules={"window_tokens": 20})
    (request,) = with_requests(scheduler, (40, 9))
    pass_step(scheduler, 0)
    assert scheduler.pool.used_blocks == 3 + 3 + 2 * 2
    scheduler.finish(planned(scheduler, 1), 1, 2)
    scheduler.drop(request)
    assert_empty(scheduler)


def test_blocks_are_kept_until_they_are_fetched() -> None:
    scheduler = scheduler_of(blocks=5)
    first, second = Request(0, 0, 40, 1), Request(1, 0, 40, 1)
    for request in (first, second):
        request.keeps_blocks = True
        scheduler.add(request, 0)
    stretch = planned(scheduler, 0)
    assert chunks(stretch) == [(0, 40)]
    assert scheduler.finish(stretch, 1, 1) == [first]
    assert scheduler.kept == {first: (40, 3)}
    # done, but its three blocks are still in use: the second has to wait
    assert (scheduler.outstanding_requests, scheduler.pool.used_blocks) == (1, 3)
    assert scheduler.plan(1) is None
    scheduler.free_kept(first)
    assert (scheduler.kept, scheduler.pool.used_blocks) == ({}, 0)
    assert chunks(planned(scheduler, 2)) == [(1, 40)]


def test_a_dropped_request_keeps_nothing() -> None:
    scheduler = scheduler_of(budget=30)
    request = Request(0, 0, 40, 1)
    request.keeps_blocks = True
    scheduler.add(request, 0)
    pass_step(scheduler, 0)
    scheduler.drop(request)
    assert scheduler.kept == {}
    assert_empty(scheduler)


def test_a_crash_gives_all_who_were_there() -> None:
    scheduler, _ = scheduler_that_fetches(budget=30, seqs=2)
    requests = with_requests(scheduler, (10, 9), (50, 9), (5, 9))
    for tick in range(2):
        pass_step(scheduler, tick)
    # one decodes with a token more in the cache, one has 20 + 29 of its prompt, one waits
    lost = scheduler.clear()
    assert lost == requests
    assert [request.computed_tokens for request in lost] == [11, 49, 0]
    assert [request.generated_tokens for request in lost] == [2, 0, 0]
