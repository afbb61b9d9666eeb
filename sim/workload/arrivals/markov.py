"""Arrivals whose rate jumps at random moments between a few levels."""

from collections.abc import Callable
from typing import Annotated, Literal, Self

import numpy as np
from pydantic import Field, model_validator

from sim.schema import StrictModel
from sim.units import Seconds
from sim.workload.arrivals.rated import Floats, RatedArrivals, require_at_least_zero

_STAYS = 1000
"""Stays in a state drawn at once."""
_GAPS = 65_536
"""Gaps drawn at once."""


class ArrivalState(StrictModel):
    """One level of load."""

    relative_rate: Annotated[float, Field(ge=0)]
    """Rate while it lasts, relative to the other states."""
    mean_duration_s: Annotated[Seconds, Field(gt=0)]
    """Mean time that it lasts; exponential."""


class MarkovModulatedArrivals(RatedArrivals):
    """A Markov-modulated Poisson process: Poisson arrivals whose rate is that of a random state.

    Each state lasts an exponential time, then any other one follows with equal chance, so the
    share of time that a state takes is proportional to its mean duration. Two states, one quiet
    and one busy, are the usual model of bursts that last longer than a gap.

    References
    ----------
    Fischer and Meier-Hellstern, The Markov-modulated Poisson process (MMPP) cookbook,
    Performance Evaluation 18 (1993).

    Examples
    --------
    A quarter of the time at three times the rate of the rest: the mean rate of 6/s is 4/s in the
    quiet state and 12/s in the busy one.

    >>> law = MarkovModulatedArrivals(
    ...     rate_requests_per_s=6.0,
    ...     states=(
    ...         ArrivalState(relative_rate=1.0, mean_duration_s=30.0),
    ...         ArrivalState(relative_rate=3.0, mean_duration_s=10.0),
    ...     ),
    ... )
    >>> law.state_rates_requests_per_s.tolist()
    [4.0, 12.0]
    """

    kind: Literal["markov_modulated"] = "markov_modulated"
    states: Annotated[tuple[ArrivalState, ...], Field(min_length=2)]
    """The levels of load."""

    @model_validator(mode="after")
    def _some_rate_is_positive(self) -> Self:
        if not any(state.relative_rate for state in self.states):
            msg = "the relative rates are all zero; at least one must be positive"
            raise ValueError(msg)
        return self

    @property
    def time_fractions(self) -> Floats:
        """Share of time that each state takes."""
        durations = np.array([state.mean_duration_s for state in self.states])
        return np.asarray(durations / durations.sum())

    @property
    def state_rates_requests_per_s(self) -> Floats:
        """Arrival rate of each state, in requests per second."""
        relative = np.array([state.relative_rate for state in self.states])
        mean = float(relative @ self.time_fractions)
        return np.asarray(relative * (self.rate_requests_per_s / mean))

    def sample_count(self, rng: np.random.Generator, count: int) -> Floats:
        """Return the first ``count`` arrival times in seconds, rising."""
        require_at_least_zero(count, "a number of requests")
        path_rng, gap_rng = rng.spawn(2)
        moments = np.cumsum(gap_rng.standard_exponential(count))
        if not count:
            return moments
        times, expected = self._path(path_rng, lambda _, arrivals: arrivals > moments[-1])
        return np.interp(moments, expected, times)

    def sample_duration(self, rng: np.random.Generator, duration_s: float) -> Floats:
        """Return the arrival times in [0, ``duration_s``), in seconds, rising."""
        require_at_least_zero(duration_s, "a duration in seconds")
        path_rng, gap_rng = rng.spawn(2)
        times, expected = self._path(path_rng, lambda time_s, _: time_s > duration_s)
        horizon = np.interp(duration_s, times, expected)
        moments, batches = 0.0, []
        while moments <= horizon:
            gaps = gap_rng.standard_exponential(_GAPS)
            gaps[0] += moments
            batch = np.cumsum(gaps)
            batches.append(batch)
            moments = float(batch[-1])
        arrival_s = np.interp(np.concatenate(batches), expected, times)
        return arrival_s[: np.searchsorted(arrival_s, duration_s, side="left")]

    def _path(
        self, rng: np.random.Generator, enough: Callable[[float, float], bool]
    ) -> tuple[Floats, Floats]:
        """Walk the states until it is enough.

        Returns
        -------
        tuple of numpy.ndarray
            Moments of change from 0 on, and the arrivals expected before each.
        """
        durations = np.array([state.mean_duration_s for state in self.states])
        rates, count = self.state_rates_requests_per_s, len(self.states)
        # The state at a random moment; what is left of its stay is exponential again.
        state = int(np.searchsorted(np.cumsum(self.time_fractions)[:-1], rng.random(), "right"))
        times, expected = [np.zeros(1)], [np.zeros(1)]
        while True:
            steps = rng.integers(1, count, _STAYS)
            visited = (state + np.append(0, np.cumsum(steps))) % count
            stays = rng.standard_exponential(_STAYS) * durations[visited[:-1]]
            times.append(times[-1][-1] + np.cumsum(stays))
            expected.append(expected[-1][-1] + np.cumsum(stays * rates[visited[:-1]]))
            state = int(visited[-1])
            if enough(float(times[-1][-1]), float(expected[-1][-1])):
                return np.concatenate(times), np.concatenate(expected)
