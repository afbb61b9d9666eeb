"""Step tables compiled to whole ticks."""

from fractions import Fraction

import numpy as np
import pytest

from sim.cost.timer import StepTable
from sim.engine.clock import TICKS_PER_S, to_seconds, to_ticks
from sim.engine.requests import Request
from sim.engine.scheduler import Stretch
from sim.engine.ticks import ConstantPace, TickTable

FS = 1e-15

TABLE = StepTable(
    by_tokens=FS * np.arange(0, 10_000, 1000),
    by_sequences=FS * np.array([0, 1, 2, 3, 4, 5]),
    by_decode=FS * np.array([0, 100, 200, 300]),
    per_context=FS * np.array([0, 10, 20, 30]),
    per_window_context=FS * np.array([0, 5, 6, 7]),
    by_prefill=FS * np.arange(0, 1000, 100),
    per_pair=7 * FS,
    per_window_pair=3 * FS,
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
