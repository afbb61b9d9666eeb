"""The engine's clock: whole femtoseconds.

A step time is rounded to a whole number of ticks once, when the timer is compiled. Every sum of
step times is then exact, so that jumping over a thousand steps in closed form gives the same
clock reading as walking them one by one, bit for bit and on any machine.
"""

from collections.abc import Callable
from heapq import heappop, heappush

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


class Clock(simpy.Environment):
    """The environment of simpy, whose time is a whole number of ticks."""

    def __init__(self) -> None:
        super().__init__(0)
        self.tick = 0
        """The time; the same as ``now``, without the call of a property."""

    def step(self) -> None:
        """Let the next event happen."""
        if self._queue:
            self.tick = int(self._queue[0][0])
        super().step()

    def skip_to(self, tick: int) -> bool:
        """Move on to a tick, if nothing is to happen before it or at it.

        Whoever would set an alarm for that tick may then go on at once: it would be the next to
        ring.
        """
        queue = self._queue
        if queue and queue[0][0] <= tick:
            return False
        self.tick = self._now = tick
        return True

    def run_to_the_end(self) -> None:
        """Let everything happen that is to happen.

        The same as ``run()``; most events are alarms, which cannot fail, and are seen to here.
        """
        queue = self._queue
        try:
            while queue:
                tick, _, _, event = queue[0]
                if type(event) is not Alarm:
                    self.step()
                    continue
                heappop(queue)
                self.tick = self._now = int(tick)
                event.ring(event)
        except simpy.core.StopSimulation:
            return


class Alarm(simpy.Event):
    """Rings at a tick; once it has rung it can be set again, which spares a new event each time.

    Parameters
    ----------
    env : Clock
    priority : int
        Of the events of one tick, smaller ones come first.
    ring : callable
        Called with the alarm.
    """

    def __init__(self, env: Clock, priority: int, ring: Callable[[simpy.Event], None]) -> None:
        # like simpy.Timeout, it is triggered at birth; the base class would set it pending
        self.env = env
        self._clock = env
        self.ring = ring
        self.callbacks = self._rings = [ring]
        self._value = None
        self._ok = True
        self._priority = priority

    def set(self, delay: int) -> None:
        """Let it ring after so many ticks."""
        self.callbacks = self._rings
        clock = self._clock  # what simpy's schedule() does, without the call
        entry = (clock.tick + delay, self._priority, next(clock._eid), self)  # noqa: SLF001
        heappush(clock._queue, entry)  # type: ignore[misc]  # noqa: SLF001
