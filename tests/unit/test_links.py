"""Links: one thing after the other, at full bandwidth."""

import pytest

from sim.engine.clock import TICKS_PER_S
from sim.engine.links import Link, reserve_path


def link(bytes_per_tick: float, latency_ticks: int = 0) -> Link:
    return Link(bytes_per_tick * TICKS_PER_S, latency_ticks / TICKS_PER_S)


def test_messages_wait_for_those_before_them() -> None:
    wire = link(2)
    assert wire.reserve(5, 20) == (5, 15)
    assert wire.reserve(7, 6) == (15, 18)
    assert wire.reserve(100, 6) == (100, 103)  # it was free since 18


def test_latency_delays_the_message_and_not_the_next_one() -> None:
    wire = link(1, latency_ticks=50)
    assert wire.reserve(0, 10) == (0, 60)
    assert wire.reserve(0, 10) == (10, 70)


def test_nothing_takes_no_time_but_the_latency() -> None:
    assert link(1, latency_ticks=3).reserve(4, 0) == (4, 7)


def test_a_path_is_as_fast_as_its_slowest_link() -> None:
    slow, fast = link(1, latency_ticks=2), link(5, latency_ticks=9)
    assert reserve_path([fast, slow], 10, 30) == (10, 40 + 9)
    assert slow.free_tick == fast.free_tick == 40


def test_a_path_waits_until_all_of_it_is_free() -> None:
    first, second, third = link(1), link(1), link(1)
    first.reserve(0, 30)
    assert reserve_path([first, second], 10, 5) == (30, 35)
    # the second was held up with it; the third never was
    assert reserve_path([second, third], 10, 5) == (35, 40)
    assert third.reserve(0, 1) == (40, 41)


@pytest.mark.parametrize("count", [1, 3])
def test_ticks_are_rounded_once_per_message(count: int) -> None:
    # 10 bytes at 3 per tick take 3.33 ticks: 3
    wire = link(3)
    for number in range(count):
        assert wire.reserve(0, 10) == (3 * number, 3 * number + 3)
