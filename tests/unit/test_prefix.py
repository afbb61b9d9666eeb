"""The prefix cache, worked out on paper; blocks of four tokens.

A content is a tuple of runs: stream, first position, tokens. ``((1, 0, 10),)`` and
``((1, 0, 6), (2, 0, 6))`` begin with the same six tokens.
"""

import pytest
from small_clusters import scheduler_of, sharing

from sim.engine.kv import blocks_for
from sim.engine.prefix import STALE_ENTRIES, Holding, Match, PrefixCache
from sim.errors import InternalError
from sim.workload.content import Content, tokens_of

SIZE = 4
A: Content = ((1, 0, 8),)
B: Content = ((2, 0, 8),)
C: Content = ((3, 0, 8),)


def compute(cache: PrefixCache, content: Content) -> Holding:
    """Compute a prompt at once, as a scheduler does: what is found, then blocks for the rest."""
    tokens = tokens_of(content)
    match = cache.match(content, tokens - 1)
    holding = cache.hold(match)
    cache.take(blocks_for(tokens, SIZE) - match.tokens // SIZE)
    cache.extend(holding, content, tokens)
    return holding


def leave(cache: PrefixCache, holding: Holding, content: Content) -> None:
    """Let a sequence leave with all of its tokens in the cache."""
    tokens = tokens_of(content)
    cache.release(holding, content, tokens, blocks_for(tokens, SIZE) - holding.shared_blocks)
    cache.check()


def pass_through(cache: PrefixCache, *contents: Content) -> None:
    for content in contents:
        leave(cache, compute(cache, content), content)


def found(cache: PrefixCache, content: Content) -> int:
    return cache.match(content, tokens_of(content)).tokens


class TestMatch:
    @pytest.mark.parametrize(
        ("limit", "tokens"), [(0, 0), (3, 0), (4, 4), (7, 4), (8, 8), (9, 8), (10, 8)]
    )
    def test_whole_blocks_up_to_the_limit(self, limit: int, tokens: int) -> None:
        # ten tokens fill two blocks of four; the third is not full
        cache = PrefixCache(10, SIZE)
        pass_through(cache, ((1, 0, 10),))
        assert cache.match(((1, 0, 10),), limit).tokens == tokens

    @pytest.mark.parametrize(
        ("content", "tokens"),
        [
            (((1, 0, 3), (2, 0, 9)), 0),  # parts in the first block
            (((1, 0, 4), (2, 0, 9)), 4),
            (((1, 0, 5), (2, 0, 9)), 4),  # parts in the second
            (((1, 0, 30),), 8),  # goes on
            (((1, 0, 2), (1, 2, 2), (1, 4, 9)), 8),  # the same, cut otherwise
            (((1, 1, 9),), 0),  # the same stream from another place
            (((2, 0, 4), (1, 4, 4)), 0),  # the same second block after another first one
            ((), 0),
        ],
    )
    def test_all_tokens_from_the_start_must_agree(self, content: Content, tokens: int) -> None:
        cache = PrefixCache(10, SIZE)
        pass_through(cache, ((1, 0, 10),))
        assert found(cache, content) == tokens

    def test_blocks_are_found_while_they_are_read_and_not_before_they_are_given_out(self) -> None:
        cache = PrefixCache(10, SIZE)
        holding = cache.hold(cache.match(A, 7))
        cache.take(2)
        assert found(cache, A) == 0
        cache.extend(holding, A, 6)  # a chunk of six tokens: one full block
        assert found(cache, A) == 4
        cache.extend(holding, A, 8)
        match = cache.match(A, 8)
        assert (match.tokens, match.idle_blocks) == (8, 0)
        assert (holding.tokens, holding.shared_blocks) == (8, 2)

    def test_idle_blocks_are_those_that_nobody_reads(self) -> None:
        """A is idle from its first to its second block; then somebody reads the first alone."""
        cache = PrefixCache(10, SIZE)
        pass_through(cache, A)
        assert cache.match(A, 8)[:2] == (8, 2)
        cache.hold(cache.match(A, 4))
        assert cache.match(A, 8)[:2] == (8, 1)
        assert cache.match(A, 4)[:2] == (4, 0)

    @pytest.mark.parametrize(("inputs", "cached"), [(8, 4), (9, 8), (12, 8), (3, 0)])
    def test_the_last_token_of_a_prompt_is_always_computed(self, inputs: int, cached: int) -> None:
        """Somebody must give the first token: eight tokens find one block and not two."""
        scheduler = scheduler_of(blocks=20, block_tokens=SIZE, prefix_caching=True)
        prompt: Content = ((1, 0, inputs),)
        for number in range(2):
            request = sharing(number, prompt, 1)
            scheduler.add(request, number)
            stretch = scheduler.plan(number)
            assert stretch is not None
            scheduler.finish(stretch, 1, number + 1)
            hit = cached if number else 0
            assert request.cached_tokens == hit
            assert stretch.prefill_tokens == inputs - hit

    def test_the_last_token_of_an_answer_is_not_in_the_cache(self) -> None:
        """Eight tokens of prompt and five of answer: the fifth is told and never fed back.

        12 tokens are cached, three blocks. With an answer of four they would be 11, two blocks.
        """
        for outputs, cached in ((4, 8), (5, 12)):
            scheduler = scheduler_of(blocks=20, block_tokens=SIZE, prefix_caching=True)
            request = sharing(0, A, outputs)
            request.answer = (1, 8)
            scheduler.add(request, 0)
            for tick in range(outputs):
                stretch = scheduler.plan(tick)
                assert stretch is not None
                scheduler.finish(stretch, 1, tick + 1)
            assert request.outcome == "completed"
            assert scheduler.cached_tokens(((1, 0, 40),)) == cached


class TestReaders:
    def test_a_block_is_in_use_as_long_as_anybody_reads_it(self) -> None:
        """A takes two blocks; the other reads them and takes a third for its own four tokens."""
        cache = PrefixCache(10, SIZE)
        longer: Content = (*A, (5, 0, 4))
        first = compute(cache, A)
        assert cache.used_blocks == 2
        second = compute(cache, longer)
        assert (cache.used_blocks, second.shared_blocks) == (3, 3)
        leave(cache, first, A)
        assert cache.used_blocks == 3
        leave(cache, second, longer)
        assert cache.used_blocks == 0
        assert cache.match(longer, 12)[:2] == (12, 3)

    def test_reading_idle_blocks_takes_them_out_of_the_free_ones(self) -> None:
        cache = PrefixCache(10, SIZE)
        pass_through(cache, ((1, 0, 12),))
        holding = cache.hold(cache.match(((1, 0, 12),), 11))  # two of its three blocks
        assert (cache.free_blocks, holding.shared_blocks) == (8, 2)
        cache.check()

    def test_a_prompt_may_part_inside_a_block(self) -> None:
        """Six tokens in common: one block is shared, each has a second one of its own.

        A: 0-3, 4-7, two tokens in a third; the other: 0-3, (4, 5, and two of its own), four more.
        """
        cache = PrefixCache(10, SIZE)
        one: Content = ((1, 0, 10),)
        other: Content = ((1, 0, 6), (2, 0, 6))
        first, second = compute(cache, one), compute(cache, other)
        assert cache.used_blocks == 3 + 2
        assert (first.shared_blocks, second.shared_blocks) == (2, 3)
        leave(cache, first, one)
        assert cache.used_blocks == 3
        leave(cache, second, other)
        assert (cache.used_blocks, found(cache, one), found(cache, other)) == (0, 8, 12)

    def test_two_that_compute_the_same_at_once_have_a_copy_each(self) -> None:
        """Neither found anything when it came in, so four blocks are given out for two.

        What one of them leaves first is garbage; the other pair can be found.
        """
        cache = PrefixCache(10, SIZE)
        holdings = [cache.hold(cache.match(A, 7)) for _ in range(2)]
        for holding in holdings:
            cache.take(2)
            cache.extend(holding, A, 8)
        first, second = holdings
        assert (first.shared_blocks, first.duplicate_blocks) == (2, 0)
        assert (second.shared_blocks, second.duplicate_blocks) == (0, 2)
        assert cache.used_blocks == 4
        leave(cache, second, A)
        assert cache.used_blocks == 2
        leave(cache, first, A)
        assert (cache.used_blocks, found(cache, A)) == (0, 8)

    def test_own_copies_take_the_place_of_idle_ones(self) -> None:
        """Eight tokens sent again: the second block holds the last token and is computed anew.

        The old second block is garbage then: 2 blocks in use, 1 garbage, nothing lost.
        """
        cache = PrefixCache(3, SIZE)
        pass_through(cache, A)
        holding = compute(cache, A)
        assert (holding.shared_blocks, holding.duplicate_blocks) == (2, 0)
        assert (cache.used_blocks, found(cache, A)) == (2, 8)
        cache.check()
        cache.take(1)  # the garbage
        assert cache.evicted_blocks == 0

    def test_garbage_waits_its_turn_behind_what_has_been_idle_longer(self) -> None:
        """vLLM has one queue for all free blocks: A's go before the later garbage of C."""
        cache = PrefixCache(5, SIZE)
        pass_through(cache, A, C)  # one block left that holds nothing
        holding = compute(cache, C)  # takes that one; its old second block is garbage
        cache.take(1)
        assert (found(cache, A), cache.evicted_blocks) == (4, 1)
        leave(cache, holding, C)

    def test_what_nobody_computed_fully_is_not_kept(self) -> None:
        # broken off after six of eight tokens: one block can be found, one is garbage
        cache = PrefixCache(2, SIZE)
        holding = cache.hold(cache.match(A, 7))
        cache.take(2)
        cache.release(holding, A, 6, private_blocks=2)
        cache.check()
        assert (cache.free_blocks, found(cache, A)) == (2, 4)
        cache.take(1)
        assert (found(cache, A), cache.evicted_blocks) == (4, 0)


class TestEviction:
    def evictions(self, cache: PrefixCache, count: int, *contents: Content) -> list[list[int]]:
        """Take blocks one by one; after each, what is left of some contents."""
        left = []
        for _ in range(count):
            cache.take(1)
            left.append([found(cache, content) for content in contents])
        return left

    def test_blocks_that_hold_nothing_go_first(self) -> None:
        cache = PrefixCache(6, SIZE)
        pass_through(cache, A)
        assert self.evictions(cache, 4, A) == [[8]] * 4
        assert cache.evicted_blocks == 0

    def test_the_longest_idle_goes_first_and_its_tail_before_its_head(self) -> None:
        cache = PrefixCache(4, SIZE)
        pass_through(cache, A, B)
        assert self.evictions(cache, 4, A, B) == [[4, 8], [0, 8], [0, 4], [0, 0]]
        assert cache.evicted_blocks == 4

    def test_reading_makes_young_again(self) -> None:
        cache = PrefixCache(4, SIZE)
        pass_through(cache, A, B)
        cache.release(cache.hold(cache.match(A, 8)), A, 8, private_blocks=0)
        assert self.evictions(cache, 4, A, B) == [[8, 4], [8, 0], [4, 0], [0, 0]]

    def test_reading_the_head_alone_makes_the_head_young(self) -> None:
        # A's second block has been idle since before B
        cache = PrefixCache(4, SIZE)
        pass_through(cache, A, B)
        cache.release(cache.hold(cache.match(A, 4)), A, 4, private_blocks=0)
        assert self.evictions(cache, 4, A, B) == [[4, 8], [4, 4], [4, 0], [0, 0]]

    def test_a_shared_head_is_idle_when_its_last_reader_has_left(self) -> None:
        """Head H with tails X and Y, C in between: X leaves, C comes and goes, Y leaves.

        Idle in this order: X's tail; C's second and first block; Y's tail; H.
        """
        cache = PrefixCache(5, SIZE)
        x: Content = ((1, 0, 4), (8, 0, 4))
        y: Content = ((1, 0, 4), (9, 0, 4))
        of_x, of_y = compute(cache, x), compute(cache, y)
        leave(cache, of_x, x)
        pass_through(cache, C)
        leave(cache, of_y, y)
        assert self.evictions(cache, 5, x, C, y) == [
            [4, 8, 8],
            [4, 4, 8],
            [4, 0, 8],
            [4, 0, 4],
            [0, 0, 0],
        ]

    def test_a_block_that_is_read_is_never_evicted(self) -> None:
        cache = PrefixCache(4, SIZE)
        pass_through(cache, A, B)
        holding = cache.hold(cache.match(A, 8))
        assert cache.free_blocks == 2
        assert self.evictions(cache, 2, A, B) == [[8, 4], [8, 0]]
        with pytest.raises(InternalError, match="1 KV blocks wanted, 0 free"):
            cache.take(1)
        cache.release(holding, A, 8, private_blocks=0)
        assert cache.free_blocks == 2

    def test_several_blocks_of_a_run_go_at_once(self) -> None:
        """Twenty tokens in five blocks: two of them taken leave twelve tokens."""
        cache = PrefixCache(5, SIZE)
        seen: list[Content] = []
        cache.on_evict = seen.append
        pass_through(cache, ((1, 0, 20),))
        cache.take(2)
        assert (found(cache, ((1, 0, 20),)), cache.evicted_blocks) == (12, 2)
        assert seen == [((1, 0, 20),)]

    def test_the_order_survives_thousands_of_readings(self) -> None:
        """Entries of the queue that are out of date are cleared away, and no other."""
        cache = PrefixCache(6, SIZE)
        pass_through(cache, A, B, C)
        for _ in range(3000):
            cache.release(cache.hold(cache.match(C, 8)), C, 8, private_blocks=0)
        cache.check()
        cache.release(cache.hold(cache.match(A, 8)), A, 8, private_blocks=0)
        left = self.evictions(cache, 6, A, B, C)
        assert left == [[8, 4, 8], [8, 0, 8], [8, 0, 4], [8, 0, 0], [4, 0, 0], [0, 0, 0]]

    def test_the_queue_is_no_longer_than_what_is_in_it(self) -> None:
        """Whoever sends A again leaves one block of garbage between two idle ones.

        With nobody in need of the garbage there would be an entry for each of ten thousand; the
        two nodes have two, with three counts of garbage before, between and behind them.
        """
        cache = PrefixCache(50_000, SIZE)
        for _ in range(10_000):
            holding = compute(cache, A)
            cache.release(holding, A, 8, private_blocks=0)
        cache.check()
        assert cache.free_blocks == 50_000
        assert len(cache._queue) <= 5 + STALE_ENTRIES + 2 * 2
        assert cache.evicted_blocks == 0

    def test_no_more_comes_back_than_was_taken(self) -> None:
        cache = PrefixCache(2, SIZE)
        with pytest.raises(InternalError, match="3 of 2 KV blocks free"):
            cache.give_back(1)


class TestHooks:
    def test_what_a_sequence_leaves_is_told_in_whole_blocks(self) -> None:
        cache = PrefixCache(10, SIZE)
        seen: list[Content] = []
        cache.on_release = seen.append
        content: Content = ((1, 0, 6), (2, 0, 5))  # eleven tokens: two blocks
        pass_through(cache, content)
        assert seen == [((1, 0, 6), (2, 0, 2))]

    def test_what_is_forgotten_is_told_before_it_is_forgotten(self) -> None:
        """One block after the other: all tokens up to the end of the one that goes."""
        cache = PrefixCache(4, SIZE)
        seen: list[tuple[Content, int]] = []
        cache.on_evict = lambda content: seen.append((content, found(cache, content)))
        pass_through(cache, A, B)
        assert seen == []  # garbage is nothing to be forgotten
        for _ in range(3):
            cache.take(1)
        assert seen == [(A, 8), (((1, 0, 4),), 4), (B, 8)]


class TestSelfCheck:
    def test_a_lost_block_is_noticed(self) -> None:
        cache = PrefixCache(4, SIZE)
        pass_through(cache, A)
        cache.free_blocks -= 1
        with pytest.raises(InternalError, match="2 idle and 2 garbage blocks, 3 free"):
            cache.check()

    def test_an_empty_match_holds_nothing(self) -> None:
        cache = PrefixCache(4, SIZE)
        match = cache.match(A, 8)
        assert isinstance(match, Match)
        assert match[:2] == (0, 0)
        holding = cache.hold(match)
        assert (holding.tokens, holding.shared_blocks, cache.free_blocks) == (0, 0, 4)
        cache.release(holding, (), 0, private_blocks=0)
        cache.check()
