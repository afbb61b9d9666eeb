"""Falling behind, on tables made by hand: queues that grow, systems that fill, and chance."""

import numpy as np
import numpy.typing as npt
import pandas as pd
import pytest

from sim.metrics.backlog import Backlog, backlog
from sim.metrics.requests import Window

Floats = npt.NDArray[np.float64]


def told(
    arrival_s: Floats, wait_s: Floats, run_s: Floats, calls: int = 1, start_s: float = 0.0
) -> Backlog | None:
    """Look at a run from some time on, in which each task has some equal calls side by side."""
    count = len(arrival_s)
    asked = pd.DataFrame(
        {
            "arrival_s": arrival_s,
            "done_s": arrival_s + wait_s + run_s,
            "outcome": "completed",
            "input_tokens": 10.0,
            "output_tokens": run_s,
            "measured": arrival_s >= start_s,
        }
    )
    sent = pd.DataFrame(
        {
            "asked": np.repeat(np.arange(count), calls),
            "arrival_s": np.repeat(arrival_s, calls),
            "admit_s": np.repeat(arrival_s + wait_s, calls),
            "done_s": np.repeat(arrival_s + wait_s + run_s, calls),
            "decode_s": np.repeat(run_s, calls),
            "handover_wait_s": 0.0,
        }
    )
    return backlog(asked, sent, Window(max(start_s, float(arrival_s[0])), float(arrival_s[-1])))


def one_server(arrival_s: Floats, run_s: Floats) -> Floats:
    """Waits of first come, first served (Lindley's recursion)."""
    waits = np.zeros(len(arrival_s))
    for n in range(1, len(arrival_s)):
        gap = arrival_s[n] - arrival_s[n - 1]
        waits[n] = max(0.0, waits[n - 1] + run_s[n - 1] - gap)
    return waits


def poisson(rng: np.random.Generator, count: int, rate: float) -> Floats:
    return np.cumsum(rng.exponential(1.0 / rate, count))


def test_a_queue_that_grows_is_told_with_its_rates() -> None:
    """Even arrivals, 2 a second, for a server that does 1: half of them wait at the end."""
    arrival_s = np.arange(400) / 2.0
    run_s = np.ones(400)
    found = told(arrival_s, one_server(arrival_s, run_s), run_s)
    assert found is not None
    assert found.arrive_per_s == pytest.approx(400 / 199.5)
    assert found.leave_per_s == pytest.approx(199 / 199.5, rel=0.01)
    assert found.waiting == pytest.approx(199, abs=2)


@pytest.mark.parametrize(("left_fraction", "falls_behind"), [(0.03, False), (0.07, True)])
def test_a_twentieth_of_what_arrives_must_be_left(left_fraction: float, falls_behind: bool) -> None:
    """Even arrivals of even work: chance moves nothing, and what is not served waits at the end."""
    arrival_s = np.arange(2000) / 2.0
    run_s = np.full(2000, 0.5 / (1 - left_fraction))
    found = told(arrival_s, one_server(arrival_s, run_s), run_s)
    assert (found is not None) == falls_behind
    if found is not None:
        assert found.waiting == pytest.approx(left_fraction * 2000, abs=2)


def test_what_waited_before_the_window_is_no_growth() -> None:
    """Two a second for a server that does one: 100 wait after 100 s, and 199 at the end."""
    arrival_s, run_s = np.arange(400) / 2.0, np.ones(400)
    found = told(arrival_s, one_server(arrival_s, run_s), run_s, start_s=100.0)
    assert found is not None
    assert found.waiting == pytest.approx(99, abs=2)
    assert found.arrive_per_s == pytest.approx(200 / 99.5)


def test_a_system_that_fills_does_not_fall_behind() -> None:
    """Nobody waits, but tasks take as long as the window: fewer leave than arrive."""
    arrival_s = np.arange(2000) / 27.3
    run_s = np.where(np.arange(2000) % 3 == 0, 25.0, 3.0)
    assert told(arrival_s, np.zeros(2000), run_s) is None


def test_long_tasks_that_wait_from_the_first_fall_behind() -> None:
    """None is done within the window of 267 s: all that come wait behind the first ones."""
    arrival_s = np.arange(400) / 1.5
    found = told(arrival_s, 20.0 + 5.0 * arrival_s, np.full(400, 20.0), calls=16)
    assert found is not None
    assert found.leave_per_s < 0.2 * found.arrive_per_s


@pytest.mark.parametrize("seed", range(12))
def test_chance_at_four_fifths_of_what_is_possible_is_none(seed: int) -> None:
    """About a hundred slow tasks, as of a small server with long votes."""
    rng = np.random.default_rng(seed)
    arrival_s, run_s = poisson(rng, 120, 0.008), rng.exponential(100.0, 120)
    assert told(arrival_s, one_server(arrival_s, run_s), run_s) is None


@pytest.mark.parametrize("seed", range(12))
def test_a_fifth_too_much_is_told_of_many(seed: int) -> None:
    rng = np.random.default_rng(100 + seed)
    arrival_s, run_s = poisson(rng, 2000, 1.2), rng.exponential(1.0, 2000)
    found = told(arrival_s, one_server(arrival_s, run_s), run_s)
    assert found is not None
    assert found.leave_per_s < 0.95 * found.arrive_per_s


def test_a_crowd_that_gets_smaller_is_none_that_falls_behind() -> None:
    arrival_s = np.concatenate([np.arange(150) / 100.0, 1.5 + np.arange(150) * 2.0])
    run_s = np.ones(300)
    assert told(arrival_s, one_server(arrival_s, run_s), run_s) is None


def test_fewer_than_a_hundred_are_too_few_to_tell() -> None:
    arrival_s, run_s = np.arange(99) / 2.0, np.ones(99)
    assert told(arrival_s, one_server(arrival_s, run_s), run_s) is None


def test_waiting_for_the_next_pool_is_waiting() -> None:
    """Prompts are computed at once, and answers of 30 s wait: the wait lies between the two."""
    arrival_s, decode_s = np.arange(400) / 2.0, 30.0
    wait_s = one_server(arrival_s, np.ones(400))
    done_s = arrival_s + wait_s + decode_s
    asked = pd.DataFrame(
        {
            "arrival_s": arrival_s,
            "done_s": done_s,
            "outcome": "completed",
            "input_tokens": 10,
            "output_tokens": 10,
            "measured": True,
        }
    )
    sent = asked.assign(asked=np.arange(400), admit_s=arrival_s, decode_s=decode_s)
    window = Window(0.0, float(arrival_s[-1]))
    found = backlog(asked, sent.assign(handover_wait_s=wait_s), window)
    assert found is not None
    assert found.waiting == pytest.approx(199, abs=2)  # of 400 that came, one a second goes on
    assert backlog(asked, sent.assign(handover_wait_s=0.0), window) is None
