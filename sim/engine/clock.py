"""The engine's clock: whole femtoseconds.

A step time is rounded to a whole number of ticks once, when the timer is compiled. Every sum of
step times is then exact, so that jumping over a thousand steps in closed form gives the same
clock reading as walking them one by one, bit for bit and on any machine.
"""

from collections.abc import Callable

import simpy

TICKS_PER_S = 10**15


def to_ticks(seconds: float) -> int:
    """Round a duration to whole ticks.

    >>> to_ticks(1.5e-6)
    1500000000
    """
    return round(seconds * TICKS_PER_S)


def to_seconds(ticks: int) -> float:
    """Convert ticks to the nearest float of seconds.

    >>> to_seconds(1_500_000_000)
    1.5e-06
    """
    return ticks / TICKS_PER_S


class Alarm(simpy.Event):
    """Rings at a tick; once it has rung it can be set again, which spares a new event each time.

    Parameters
    ----------
    env : simpy.Environment
    priority : int
        Of the events of one tick, smaller ones come first.
    ring : callable
        Called with the alarm.
    """

    def __init__(
        self, env: simpy.Environment, priority: int, ring: Callable[[simpy.Event], None]
    ) -> None:
        # like simpy.Timeout, it is triggered at birth; the base class would set it pending
        self.env = env
        self._rings = [ring]
        self.callbacks = self._rings
        self._value = None
        self._ok = True
        self._priority = priority

    def set(self, delay: int) -> None:
        """Let it ring after so many ticks."""
        self.callbacks = self._rings
        self.env.schedule(self, self._priority, delay)  # type: ignore[arg-type]
