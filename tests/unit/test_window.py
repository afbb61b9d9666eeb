"""Sliding windows kept as sums, against a list of sequences."""

import numpy as np
import pytest

from sim.engine.requests import Request
from sim.engine.window import WindowSums


def sequence(number: int, context: int, step: int = 0) -> Request:
    """A sequence with ``context`` cached tokens at a step count of the batch."""
    request = Request(number, 0, input_tokens=context, output_tokens=1000)
    request.base_tokens = context - step
    return request


def test_a_window_caps_the_context() -> None:
    sums = WindowSums(window_tokens=10)
    sums.add(sequence(0, context=4), step=0)
    sums.add(sequence(1, context=25), step=0)
    assert sums.tokens(0) == 4 + 10
    assert sums.growing == 1  # only the first sees a key more in the next step
    assert sums.steps_to_next_fill(0) == 6
    sums.advance(5)
    assert (sums.tokens(5), sums.growing, sums.steps_to_next_fill(5)) == (9 + 10, 1, 1)
    sums.advance(6)
    assert (sums.tokens(6), sums.growing, sums.steps_to_next_fill(6)) == (10 + 10, 0, None)


def test_a_context_as_long_as_the_window_has_filled_it() -> None:
    sums = WindowSums(window_tokens=10)
    sums.add(sequence(0, context=10), step=0)
    assert (sums.tokens(0), sums.growing, sums.steps_to_next_fill(0)) == (10, 0, None)
    sums = WindowSums(window_tokens=10)
    sums.add(sequence(0, context=9), step=0)
    assert (sums.tokens(0), sums.growing, sums.steps_to_next_fill(0)) == (9, 1, 1)


def test_a_sequence_that_leaves_takes_its_fill_along() -> None:
    sums = WindowSums(window_tokens=10)
    early, late = sequence(0, context=8), sequence(1, context=3)
    sums.add(early, step=0)
    sums.add(late, step=0)
    assert sums.steps_to_next_fill(0) == 2
    sums.remove(early)
    assert (sums.tokens(0), sums.steps_to_next_fill(0)) == (3, 7)
    sums.advance(7)
    sums.remove(late)
    assert (sums.tokens(7), sums.growing, sums.steps_to_next_fill(7)) == (0, 0, None)


def test_a_sequence_may_leave_and_come_back_with_one_token_more() -> None:
    """Preempted at 6 tokens, computed again while nothing else decoded, back with 7."""
    sums = WindowSums(window_tokens=10)
    request = sequence(0, context=6, step=100)
    sums.add(request, step=100)
    sums.remove(request)
    request.base_tokens = 7 - 101
    sums.add(request, step=101)
    assert (sums.tokens(101), sums.steps_to_next_fill(101)) == (7, 3)
    sums.advance(104)
    assert (sums.tokens(104), sums.growing, sums.steps_to_next_fill(104)) == (10, 0, None)
    sums.remove(request)
    assert sums.tokens(104) == 0


@pytest.mark.parametrize("seed", range(20))
def test_sums_equal_a_list(seed: int) -> None:
    rng = np.random.default_rng(seed)
    window = int(rng.integers(1, 30))
    sums, members, step = WindowSums(window), {}, int(rng.integers(0, 50))
    for number in range(60):
        action = rng.integers(3)
        if action == 0:
            members[number] = sequence(number, int(rng.integers(1, 40)), step)
            sums.add(members[number], step)
        elif action == 1 and members:
            sums.remove(members.pop(int(rng.choice(list(members)))))
        else:
            step += int(rng.integers(1, 5))
            sums.advance(step)
        contexts = [request.base_tokens + step for request in members.values()]
        assert sums.tokens(step) == sum(min(context, window) for context in contexts)
        assert sums.growing == sum(context < window for context in contexts)
        missing = [window - context for context in contexts if context < window]
        assert sums.steps_to_next_fill(step) == min(missing, default=None)
