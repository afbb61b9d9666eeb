"""Mean power of a chip over a stretch of time, from whatever counter or sensor there is."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

SAMPLE_EVERY_S = 0.05
"""NVML refreshes its power reading 10 to 50 times a second, depending on the chip."""


class Sensor(Protocol):
    """What a chip says of its power."""

    @property
    def limit_w(self) -> float | None:
        """Power limit that is set, watts."""

    def energy_j(self) -> float | None:
        """Energy since some fixed moment, joules; none where no counter runs."""

    def power_w(self) -> float | None:
        """Power now (or over the last sample of the sensor), watts; none where it does not tell."""


class Reading:
    """Mean power of one stretch, once it has ended."""

    def __init__(self) -> None:
        self.mean_w: float | None = None


@contextmanager
def metering(
    sensor: Sensor | None, clock: Callable[[], float] = time.perf_counter
) -> Iterator[Reading]:
    """Take the mean power while the body runs: from the energy counter, else from samples.

    Parameters
    ----------
    sensor
        None: there is nothing to read, and the mean stays unknown.
    clock
        Seconds.
    """
    reading = Reading()
    if sensor is None:
        yield reading
        return
    before_j, started = sensor.energy_j(), clock()
    if before_j is not None:
        yield reading
        after_j, took_s = sensor.energy_j(), clock() - started
        if after_j is not None and took_s > 0.0:
            reading.mean_w = (after_j - before_j) / took_s
        return
    samples: list[float] = []
    ended = threading.Event()

    def sample() -> None:
        while True:
            power_w = sensor.power_w()
            if power_w is not None:
                samples.append(power_w)
            if ended.wait(SAMPLE_EVERY_S):
                return

    thread = threading.Thread(target=sample, daemon=True)
    thread.start()
    try:
        yield reading
    finally:
        ended.set()
        thread.join()
    reading.mean_w = sum(samples) / len(samples) if samples else None
