"""Step tables compiled to whole ticks."""

from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest

from sim.cost.shares import Shares
from sim.cost.table import StepTable
from sim.engine.clock import TICKS_PER_S, to_seconds, to_ticks
from sim.engine.requests import Request
from sim.engine.scheduler import Stretch
from sim.engine.ticks import ConstantPace, TickTable
from sim.parallelism import Parallelism

FS = 1e-15

TABLE = StepTable(
    by_tokens=FS * np.arange(0, 10_000, 1000),
    by_group_tokens=np.zeros(10),
    by_sequences=FS * np.array([0, 1, 2, 3, 4, 5]),
    by_decode=FS * np.array([0, 100, 200, 300]),
    per_context=FS * np.array([0, 10, 20, 30]),
    per_window_context=FS * np.array([0, 5, 6, 7]),
    by_prefill=FS * np.arange(0, 1000, 100),
    per_pair=7 * FS,
    per_window_pair=3 * FS,
    shares=Shares(Parallelism(tp=8), chunk_tokens=9),
)


def test_a_step_that_decodes_and_computes_a_prompt() -> None:
    stretch = Stretch(2, context_tokens=50, window_tokens=40, window_growing=1, first_step_blocks=0)
    stretch.chunks = [(Request(0, 0, 4, 1), 4)]
    stretch.prefill_tokens, stretch.prefill_pairs, stretch.prefill_window_pairs = 4, 10, 9
    start, growth = TickTable(TABLE).line(stretch)
    # 6 tokens, 3 sequences, 2 that decode, their contexts; 4 prompt tokens and their pairs
    assert start == 6000 + 3 + 200 + 20 * 50 + 6 * 40 + 400 + 7 * 10 + 3 * 9
    # per step 2 keys more for full attention, 1 for windowed
    assert growth == 20 * 2 + 6 * 1


def test_a_step_that_only_decodes() -> None:
    stretch = Stretch(3, context_tokens=50, window_tokens=0, window_growing=0, first_step_blocks=0)
    assert TickTable(TABLE).line(stretch) == (3000 + 3 + 300 + 30 * 50, 30 * 3)


def test_chips_that_share_the_batch() -> None:
    """Two stages of two attention ranks: twelve sequences are three in each of four places."""
    split = Parallelism(tp=1, pp=2, attention_dp=2)
    group = FS * np.arange(0, 100_000, 10_000)
    shared = replace(TABLE, by_group_tokens=group, shares=Shares(split, 9, context_spread=0.0))
    stretch = Stretch(
        12, context_tokens=600, window_tokens=0, window_growing=0, first_step_blocks=0
    )
    # a stage: 3 tokens of the rank, 6 of both ranks, 3 sequences; two stages, two heads; a key
    # costs 30 of which the rank and micro-batch has a quarter, twice
    start = 2 * (3000 + 60_000 + 300) + 2 * 3 + 600 * 2 * 30 // 4
    assert TickTable(shared).line(stretch) == (start, 12 * 2 * 30 // 4)


def test_all_steps_are_equal_at_a_constant_pace() -> None:
    stretch = Stretch(3, context_tokens=50, window_tokens=0, window_growing=0, first_step_blocks=0)
    assert ConstantPace.of_seconds(0.25).line(stretch) == (TICKS_PER_S // 4, 0)


@pytest.mark.parametrize("seconds", [0.0, 1e-15, 3.3e-11, 0.1, 123.456, 1e6])
def test_ticks_are_the_nearest_whole_ones(seconds: float) -> None:
    ticks = to_ticks(seconds)
    # a float of seconds has 53 binary digits, so its product with 10**15 is off by as much
    allowed = Fraction(1, 2) + abs(Fraction(seconds) * TICKS_PER_S) / 2**53
    assert abs(ticks - Fraction(seconds) * TICKS_PER_S) <= allowed
    assert to_seconds(ticks) == pytest.approx(seconds, rel=1e-15, abs=0)
