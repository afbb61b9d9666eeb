"""Step tables compiled to whole ticks."""

from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest

from sim.cost.execution import Padding
from sim.cost.shares import Shares
from sim.cost.table import Array, StepTable
from sim.engine.clock import TICKS_PER_S, to_seconds, to_ticks
from sim.engine.requests import Request
from sim.engine.stretch import Stretch
from sim.engine.ticks import ConstantPace, LockstepPace, TickTable, pace
from sim.errors import InputError, InternalError
from sim.parallelism import Parallelism
from sim.routing import LOAD_UNIT, Imbalance

FS = 1e-15


def ticks(*count_from_to: int) -> Array:
    """Seconds of so many ticks, as `range` counts."""
    return FS * np.array(range(*count_from_to), dtype=np.float64)


TABLE = StepTable(
    by_tokens=ticks(0, 10_000, 1000),
    by_group_tokens=np.zeros(10),
    by_sequences=FS * np.array([0, 1, 2, 3, 4, 5]),
    by_decode=FS * np.array([0, 100, 200, 300]),
    per_context=FS * np.array([0, 10, 20, 30]),
    per_window_context=FS * np.array([0, 5, 6, 7]),
    by_prefill=ticks(0, 1000, 100),
    per_pair=7 * FS,
    per_window_pair=3 * FS,
    shares=Shares(Parallelism(tp=8), chunk_tokens=9),
)


def decoding(
    sequences: int, context_tokens: int, window_tokens: int = 0, filling: int = 0
) -> Stretch:
    """A stretch without prompts; contexts grow by a token per sequence."""
    return Stretch(sequences, context_tokens, sequences, window_tokens, filling, 0)


def test_a_step_that_decodes_and_computes_a_prompt() -> None:
    stretch = decoding(2, 50, window_tokens=40, filling=1)
    stretch.chunks = [(Request(0, 0, 4, 1), 4)]
    stretch.prefill_tokens, stretch.prefill_pairs, stretch.prefill_window_pairs = 4, 10, 9
    start, growth, holds = TickTable(TABLE).line(stretch)
    # 6 tokens, 3 sequences, 2 that decode, their contexts; 4 prompt tokens and their pairs
    assert start == 6000 + 3 + 200 + 20 * 50 + 6 * 40 + 400 + 7 * 10 + 3 * 9
    # per step 2 keys more for full attention, 1 for windowed
    assert growth == 20 * 2 + 6 * 1
    assert holds is None


def test_a_step_that_only_decodes() -> None:
    assert TickTable(TABLE).line(decoding(3, 50)) == (3000 + 3 + 300 + 30 * 50, 30 * 3, None)


def test_contexts_in_parts_of_a_token() -> None:
    """In tenths: three sequences of 5 tokens that get 1.5 tokens in each step."""
    tenths = Stretch(3, 150, 45, 0, 0, 0)
    tenths.grain = 10
    assert TickTable(TABLE, grain=10).line(tenths) == (3000 + 3 + 300 + 3 * 150, 3 * 45, None)


def test_a_cached_prefix_is_read_at_the_price_of_short_chunks() -> None:
    stretch = decoding(0, 0)
    stretch.chunks = [(Request(i, 0, 3, 1), 2) for i in range(2)]
    stretch.prefill_tokens, stretch.prefill_context_tokens = 4, 100
    prefix = FS * np.array([0.0, 90.0, 50.0, 10.0, 0.0])
    start, _, _ = TickTable(replace(TABLE, per_prefix=prefix)).line(stretch)
    # four tokens, two rows of logits, no pairs; two tokens per prompt: 50 ticks for each key
    assert start == 4000 + 2 + 400 + 50 * 100


def test_padding_and_the_launch_of_a_large_step_are_inside_the_tables() -> None:
    padding = Padding(decode_sizes=(2,), prefill_sizes=(4, 8))
    found = TickTable(replace(TABLE, padding=padding, eager=11 * FS))
    assert found.line(decoding(1, 0))[0] == 2000 + 1 + 100
    assert found.line(decoding(3, 0))[0] == 3000 + 3 + 300 + 11
    mixed = decoding(1, 0)
    mixed.chunks, mixed.prefill_tokens = [(Request(0, 0, 4, 1), 4)], 4
    assert found.line(mixed)[0] == 8000 + 2 + 100 + 400


def test_compiled_shapes_are_paid_for_in_full() -> None:
    padding = Padding(decode_sizes=(3,), prefill_sizes=(8,), static=True, strict=True)
    found = pace(replace(TABLE, padding=padding))
    # two sequences become three, with contexts as long as theirs: 50 keys become 75
    assert found.line(decoding(2, 50)) == (3000 + 3 + 300 + 30 * 75, 30 * 3, None)
    prompt = decoding(0, 0)
    prompt.chunks, prompt.prefill_tokens = [(Request(0, 0, 6, 1), 6)], 6
    prompt.prefill_pairs = 21
    # a prompt of six becomes one of eight, with 36 pairs
    assert found.line(prompt)[0] == 8000 + 1 + 800 + 7 * 36


def test_a_host_that_the_chip_waits_for() -> None:
    found = pace(replace(TABLE, host_step=500 * FS, host_sequence=7 * FS))
    assert found.line(decoding(3, 50)) == (3303 + 30 * 50 + 500 + 3 * 7, 90, None)


def test_a_host_beside_the_chip() -> None:
    beside = replace(TABLE, host_step=5300 * FS, host_sequence=1 * FS, host_overlapped=True)
    # the chip takes 4803 and 90 more in every step: 4893, 4983, 5073, 5163, 5253; then 5343
    assert pace(beside).line(decoding(3, 50)) == (5303, 0, 5)
    assert pace(beside).line(decoding(3, 65)) == (5253, 90, None)
    assert pace(beside).line(decoding(2, 0)) == (5302, 0, 77)  # 2202 + 40 a step


def test_drafts_take_a_pass_with_all_tokens_and_others_with_one_each() -> None:
    """Two drafts: three tokens of each sequence, in the first pass of the drafter too."""
    first = replace(
        TABLE,
        by_tokens=ticks(0, 20_000, 1000),
        by_sequences=ticks(20),
        shares=replace(TABLE.shares, queries=3),
    )
    table = replace(first, drafts=(first, TABLE.repeated(1)))
    both = 6000 + 6 + 200 + 20 * 50
    assert pace(table).line(decoding(2, 50)) == (2 * both + 2000 + 2 + 200 + 20 * 50, 3 * 40, None)
    mixed = decoding(2, 50)
    mixed.chunks, mixed.prefill_tokens = [(Request(0, 0, 4, 1), 4)], 4
    with_prompt = 10_000 + 7 + 200 + 20 * 50 + 400
    start, growth, _ = pace(table).line(mixed)
    assert (start, growth) == (2 * with_prompt + 2000 + 2 + 200 + 20 * 50, 3 * 40)


def test_chips_that_share_the_batch() -> None:
    """Two stages of two attention ranks: twelve sequences are three in each of four places."""
    split = Parallelism(tp=1, pp=2, attention_dp=2)
    group = ticks(0, 100_000, 10_000)
    shared = replace(TABLE, by_group_tokens=group, shares=Shares(split, 9, context_spread=0.0))
    # a stage: 3 tokens of the rank, 6 of both ranks, 3 sequences; two stages, two heads; a key
    # costs 30 of which the rank and micro-batch has a quarter, twice
    start = 2 * (3000 + 60_000 + 300) + 2 * 3 + 600 * 2 * 30 // 4
    assert pace(shared).line(decoding(12, 600)) == (start, 12 * 2 * 30 // 4, None)


def test_a_load_of_the_experts_lasts_for_a_period() -> None:
    loaded = replace(TABLE, by_load=LOAD_UNIT * ticks(0, 50, 5))
    found = pace(loaded, Imbalance(np.array([1.2]), period_steps=10, seed=0))
    # three tokens: 15 ticks for each thousandth of load beyond 1, of which there are 200
    even = 3000 + 3 + 300 + 30 * 50
    assert found.line(decoding(3, 50), 34) == (even + 15 * 200, 90, 6)


class TestLockstep:
    RANKS = replace(
        TABLE,
        by_group_tokens=ticks(0, 100_000, 10_000),
        shares=Shares(Parallelism(tp=1, attention_dp=2), 9),
    )

    def test_the_slowest_rank_and_what_all_do_together(self) -> None:
        """2 x 1000 + 2 + 200 and 40 keys of 20, against 1000 + 1 + 100 and 50 keys of 10."""
        ranks = LockstepPace(self.RANKS, pad_to_fullest=False)
        assert ranks.line([decoding(2, 40), decoding(1, 50)]) == (30_000 + 2202 + 800, 40, None)

    def test_ranks_fill_up_to_the_fullest(self) -> None:
        ranks = LockstepPace(self.RANKS)
        # four tokens for the experts; the second rank has two tokens, one sequence and more keys
        line = ranks.line([decoding(2, 40), decoding(1, 200)])
        # 40_000 + 2202 + 800 + 40 i against 40_000 + 2101 + 2000 + 10 i: ahead for 36 steps,
        # 4101 + 360 = 4461 against 3002 + 1440 = 4442
        assert line == (40_000 + 2101 + 2000, 10, 36)
        after = ranks.line([decoding(2, 40 + 2 * 36), decoding(1, 200 + 36)])
        assert after == (40_000 + 2202 + 20 * 112, 40, None)

    def test_an_idle_rank_takes_part(self) -> None:
        ranks = LockstepPace(self.RANKS)
        assert ranks.line([decoding(2, 40), decoding(0, 0)]) == (43_002, 40, None)

    def test_a_load_of_the_experts_ends_the_line_too(self) -> None:
        loaded = replace(self.RANKS, by_load=LOAD_UNIT * ticks(0, 50, 5))
        ranks = LockstepPace(loaded, Imbalance(np.array([1.2]), period_steps=10, seed=0))
        # four tokens of the group: 20 ticks for each of 200 thousandths
        line = ranks.line([decoding(2, 40), decoding(0, 0)], 4)
        assert line == (43_002 + 20 * 200, 40, 6)

    def test_drafts_and_hosts_keep_step(self) -> None:
        """One pass of a drafter, with experts of its own; the fullest rank's host beside it."""
        table = replace(self.RANKS, drafts=(self.RANKS,), host_step=7 * FS, host_sequence=1 * FS)
        ranks = LockstepPace(table)
        batches = [decoding(2, 40), decoding(0, 0)]
        assert ranks.line(batches) == (2 * 43_002 + 7 + 2, 80, None)
        beside = replace(table, host_step=90_000 * FS, host_overlapped=True)
        # 86_004 + 80 i against 90_002: less for 49 steps
        assert LockstepPace(beside).line(batches) == (90_002, 0, 49)

    def test_a_prompt_of_any_rank_is_launched_by_all(self) -> None:
        ranks = LockstepPace(replace(self.RANKS, launch=90_000 * FS, host_step=7 * FS))
        prompt = decoding(0, 0)
        prompt.chunks, prompt.prefill_tokens = [(Request(0, 0, 2, 1), 2)], 2
        assert ranks.line([decoding(2, 40), prompt])[0] == 90_000 + 7
        assert ranks.line([decoding(2, 40), decoding(0, 0)])[0] == 43_002 + 7

    def test_stages_do_not_keep_step(self) -> None:
        with pytest.raises(InputError, match="pp = 2 and cp = 1"):
            LockstepPace(replace(TABLE, shares=Shares(Parallelism(tp=1, pp=2), 9)))


def test_a_simple_table_is_asked_for() -> None:
    with pytest.raises(InternalError, match="pace"):
        TickTable(replace(TABLE, shares=Shares(Parallelism(tp=1, pp=2), 9)))


def test_all_steps_are_equal_at_a_constant_pace() -> None:
    assert ConstantPace.of_seconds(0.25).line(decoding(3, 50)) == (TICKS_PER_S // 4, 0, None)


@pytest.mark.parametrize("seconds", [0.0, 1e-15, 3.3e-11, 0.1, 123.456, 1e6])
def test_ticks_are_the_nearest_whole_ones(seconds: float) -> None:
    ticks = to_ticks(seconds)
    # a float of seconds has 53 binary digits, so its product with 10**15 is off by as much
    allowed = Fraction(1, 2) + abs(Fraction(seconds) * TICKS_PER_S) / 2**53
    assert abs(ticks - Fraction(seconds) * TICKS_PER_S) <= allowed
    assert to_seconds(ticks) == pytest.approx(seconds, rel=1e-15, abs=0)
