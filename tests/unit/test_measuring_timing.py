"""When a measurement stops, what it reports, and power over a stretch of time."""

import math

import numpy as np
import pytest
from measuring_fakes import FakeClock, FakeDevice

from sim.measuring.power import metering
from sim.measuring.timing import FEWEST_BLOCKS, Block, Patience, measured, summary


def timed(noise: float, patience: Patience, call_s: float = 1e-4):
    device = FakeDevice(noise=noise)
    return measured(device.runner([lambda: call_s]), patience, device.clock)


def test_a_steady_call_is_told_exactly_and_stops_at_once():
    found = timed(0.0, Patience(limit_s=10.0))
    assert found.median_s == pytest.approx(1e-4)
    assert found.spread_fraction == pytest.approx(0.0)
    assert found.blocks == FEWEST_BLOCKS
    # Blocks of 5 ms at least hold 50 calls of 0.1 ms at least.
    assert found.calls >= 50 * found.blocks


def test_more_noise_takes_more_blocks_until_the_median_is_known():
    """The median of n blocks of noise s is known to 1.2533 s / sqrt(n): of 20 %, 2 % needs 157.

    Over 60 machines the blocks are about as many, and the true time lies within two spreads of
    the median about as often as a normal distribution says (95 %), less what stopping early
    costs.
    """
    found = []
    for seed in range(60):
        device = FakeDevice(noise=0.2, rng=np.random.default_rng(seed))
        found.append(measured(device.runner([lambda: 1e-4]), Patience(1e3), device.clock))
    assert all(each.spread_fraction < 0.02 for each in found)
    assert 100 < np.median([each.blocks for each in found]) < 200
    within = [abs(each.median_s / 1e-4 - 1.0) < 2.0 * each.spread_fraction for each in found]
    assert sum(within) >= 48


def test_a_noisy_call_ends_with_its_time():
    patience = Patience(limit_s=0.1, spread_fraction=0.0)
    device = FakeDevice(noise=0.1)
    run = device.runner([lambda: 1e-4])
    started_s = device.clock.now_s
    found = measured(run, patience, device.clock)
    # The last block began before 0.1 s; warm-up takes some blocks' time on top.
    assert found.calls * 1e-4 == pytest.approx(0.1, rel=0.3)
    assert device.clock.now_s - started_s < 0.2


def test_a_slow_call_is_made_a_few_times():
    found = timed(0.0, Patience(limit_s=0.1), call_s=2.0)
    assert (found.blocks, found.calls) == (3, 3)
    assert found.median_s == pytest.approx(2.0)


def test_a_hiccup_does_not_move_the_median():
    blocks = [Block(1.0, 10)] * 8 + [Block(50.0, 10)]
    assert summary(blocks).median_s == pytest.approx(0.1)
    assert summary(blocks).spread_fraction == 0.0


def test_the_spread_is_the_standard_error_of_a_median():
    """|t - 3| of 1..5 has the median 1: 1.2533 * 1.4826 / sqrt(5) / 3."""
    found = summary([Block(t, 1) for t in (1.0, 2.0, 3.0, 4.0, 5.0)])
    assert found.spread_fraction == pytest.approx(1.2533 * 1.4826 / math.sqrt(5) / 3)


class Counter:
    """An energy counter of a chip that draws 200 W."""

    limit_w = 700.0

    def __init__(self, clock: FakeClock) -> None:
        self.clock = clock

    def energy_j(self) -> float | None:
        return 1e6 + 200.0 * self.clock()

    def power_w(self) -> float:
        raise AssertionError("the counter is better")


class Gauge:
    """A sensor without a counter."""

    limit_w = None

    def __init__(self) -> None:
        self.readings = iter([100.0] + [300.0] * 10**6)

    def energy_j(self) -> float | None:
        return None

    def power_w(self) -> float:
        return next(self.readings)


def test_mean_power_of_an_energy_counter():
    clock = FakeClock()
    with metering(Counter(clock), clock) as reading:
        clock.now_s += 3.0
    assert reading.mean_w == pytest.approx(200.0)


def test_mean_power_of_samples():
    with metering(Gauge()) as reading:
        pass
    assert reading.mean_w is not None
    assert 100.0 <= reading.mean_w < 300.0


def test_no_sensor_tells_no_power():
    with metering(None) as reading:
        pass
    assert reading.mean_w is None
