"""Prefix caching as the scheduler uses it, in scenarios worked out by hand."""

from small_clusters import chunks, pass_step, planned, scheduler_of, sharing, with_requests

from sim.engine.requests import Request

SYSTEM = (-2, 0, 64)
"""Four blocks of 16 that all prompts begin with."""


def own(number: int, tokens: int = 16) -> tuple[int, int, int]:
    return (number, 0, tokens)


def test_a_shared_prompt_is_computed_once() -> None:
    scheduler = scheduler_of(budget=200, prefix_caching=True)
    requests = [sharing(number, (SYSTEM, own(number)), 2) for number in range(3)]
    scheduler.add(requests[0], 0)
    stretch = pass_step(scheduler, 0)
    assert (chunks(stretch), scheduler.pool.used_blocks) == ([(0, 80)], 5)
    for request in requests[1:]:
        scheduler.add(request, 1)
    # the first is done in this step; the others use its first four blocks, and one of their own
    stretch = planned(scheduler, 1)
    assert chunks(stretch) == [(1, 16), (2, 16)]
    assert stretch.prefill_context_tokens == 2 * 64
    # tokens 65 to 80 attend to all before them
    assert stretch.prefill_pairs == 2 * sum(range(65, 81))
    # five blocks and one for the first's answer, and two
    assert scheduler.pool.used_blocks == 5 + 1 + 2
    scheduler.finish(stretch, 1, 2)
    assert [request.cached_tokens for request in requests] == [0, 64, 64]
    assert scheduler.pool.used_blocks == 4 + 2
    scheduler.finish(planned(scheduler, 2), 1, 3)
    assert scheduler.pool.used_blocks == 0
    assert scheduler.cached_tokens((SYSTEM, own(2), (99, 0, 16))) == 80


def test_prompts_of_one_step_share_what_it_computes() -> None:
    scheduler = scheduler_of(budget=200, prefix_caching=True)
    for number in range(2):
        scheduler.add(sharing(number, (SYSTEM, own(number)), 2), 0)
    assert chunks(planned(scheduler, 0)) == [(0, 80), (1, 16)]
    assert scheduler.pool.used_blocks == 4 + 2


def test_what_a_chunk_has_not_reached_is_not_found() -> None:
    # The first computes 40 of its 80 tokens: two full blocks. The second finds those.
    scheduler = scheduler_of(budget=80, prefix_caching=True, rules={"max_chunk_tokens": 40})
    for number in range(2):
        scheduler.add(sharing(number, (SYSTEM, own(number)), 2), 0)
    stretch = planned(scheduler, 0)
    assert chunks(stretch) == [(0, 40), (1, 40)]
    assert stretch.prefill_context_tokens == 32


def test_the_last_token_is_always_computed() -> None:
    # 63 of 64 tokens may be found: three full blocks of 16
    scheduler = scheduler_of(prefix_caching=True)
    for number in range(2):
        scheduler.add(sharing(number, (SYSTEM,), 1), 0)
        pass_step(scheduler, number)
        if not number:
            assert scheduler.cached_tokens((SYSTEM,)) == 64
    scheduler = scheduler_of(prefix_caching=True)
    for number in range(2):
        scheduler.add(sharing(number, (SYSTEM,), 1), 0)
    assert chunks(planned(scheduler, 0)) == [(0, 64), (1, 16)]


def test_found_blocks_that_nobody_uses_count_as_taken() -> None:
    """Seven blocks, five of them idle: a prompt that finds four of them wants those and one more.

    A sequence of three blocks runs, so that of four free ones, which are among the idle, five are
    wanted. With one block less in use there is room.
    """
    for others, expected in ((3, []), (2, [(2, 16)])):
        scheduler = scheduler_of(budget=200, blocks=7, prefix_caching=True)
        scheduler.add(sharing(0, (SYSTEM,), 1), 0)
        pass_step(scheduler, 0)
        assert scheduler.pool.used_blocks == 0
        scheduler.add(Request(1, 0, others * 16 - 8, 5), 1)
        pass_step(scheduler, 1)
        assert scheduler.pool.free_blocks == 7 - others
        scheduler.add(sharing(2, (SYSTEM, own(2)), 2), 2)
        assert chunks(planned(scheduler, 2)) == expected


def test_a_whole_prompt_that_must_fit_is_what_is_not_cached() -> None:
    # Five blocks free of nine, prompt of eight blocks, four of them found and in use.
    rules = {"whole_prompt_must_fit": True}
    scheduler = scheduler_of(budget=200, blocks=9, prefix_caching=True, rules=rules)
    scheduler.add(sharing(0, (SYSTEM,), 9), 0)
    pass_step(scheduler, 0)
    scheduler.add(sharing(1, (SYSTEM, own(1, 64)), 1), 1)
    assert chunks(pass_step(scheduler, 1)) == [(1, 64)]


def test_a_preempted_sequence_finds_its_own_blocks() -> None:
    """Eight blocks of a token. Two prompts of 2 have 4 tokens each when the second is preempted.

    The first takes the block that was given back last in order: the second's fourth token. In the
    next step the second wants 2 + 3 tokens, finds three, and computes two. Without a cache it
    computes five.
    """
    for caching, computed, found in ((True, 2, 3), (False, 5, 0)):
        scheduler = scheduler_of(blocks=8, block_tokens=1, prefix_caching=caching)
        _, second = with_requests(scheduler, (2, 4), (2, 5))
        for tick in range(4):
            pass_step(scheduler, tick)
        assert (second.preemptions, list(scheduler.line)) == (1, [second])
        stretch = planned(scheduler, 4)
        assert chunks(stretch) == [(1, computed)]
        assert stretch.prefill_context_tokens == found
        assert second.cached_tokens == 0  # of its prompt, at first, nothing was found
        scheduler.finish(stretch, 1, 5)
        assert second.generated_tokens == 4


def test_the_next_turn_finds_prompt_and_answer() -> None:
    # 20 tokens and an answer of 13: 32 are in the cache, for the last one never is
    scheduler = scheduler_of(prefix_caching=True)
    first = sharing(0, ((7, 0, 20),), 13)
    first.answer = (7, 20)
    scheduler.add(first, 0)
    pass_step(scheduler, 0)
    scheduler.finish(planned(scheduler, 1), 12, 2)
    assert first.outcome == "completed"
    scheduler.add(sharing(1, ((7, 0, 50),), 1), 2)
    assert chunks(pass_step(scheduler, 2)) == [(1, 50 - 32)]


def test_an_answer_that_nobody_sends_again_is_not_found() -> None:
    scheduler = scheduler_of(prefix_caching=True)
    scheduler.add(sharing(0, ((7, 0, 20),), 13), 0)
    pass_step(scheduler, 0)
    scheduler.finish(planned(scheduler, 1), 12, 2)
    assert scheduler.cached_tokens(((7, 0, 50),)) == 16


def test_equal_contents_need_an_equal_beginning() -> None:
    scheduler = scheduler_of(prefix_caching=True)
    scheduler.add(sharing(0, (SYSTEM,), 1), 0)
    pass_step(scheduler, 0)
    assert scheduler.cached_tokens((SYSTEM,)) == 64
    assert scheduler.cached_tokens(((-2, 16, 48),)) == 0
    assert scheduler.cached_tokens(((-3, 0, 1), SYSTEM)) == 0
    assert scheduler_of().cached_tokens((SYSTEM,)) == 0
