"""The engine's clock: whole femtoseconds.

A step time is rounded to a whole number of ticks once, when the timer is compiled. Every sum of
step times is then exact, so that jumping over a thousand steps in closed form gives the same
clock reading as walking them one by one, bit for bit and on any machine.
"""

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
