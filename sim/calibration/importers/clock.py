"""Times of day in result files and power logs, as seconds since 1970."""

from dataclasses import dataclass
from datetime import UTC, datetime

from sim.errors import InputError
from sim.units import GIGA, KILO, MICROSECOND_S, MILLISECOND_S, NANOSECOND_S

UNIT_S = {"s": 1.0, "sec": 1.0, "ms": MILLISECOND_S, "us": MICROSECOND_S, "ns": NANOSECOND_S}
"""Seconds of one unit of time, by the names that tools write."""

_EARLIEST_S = 0.5 * GIGA
"""Nothing was measured before 1985: what is smaller is no time since 1970."""
_LATEST_S = 5 * GIGA
"""Nor after 2128: what is larger is in a smaller unit."""

_LAYOUTS = ("%Y/%m/%d %H:%M:%S.%f", "%Y/%m/%d %H:%M:%S", "%Y%m%d-%H%M%S")
"""Of nvidia-smi, and of the ``date`` of vLLM."""


@dataclass(frozen=True)
class Window:
    """The time during which a run was measured, in seconds since 1970."""

    start_s: float
    end_s: float


def since_1970_s(text: str, *, utc: bool = False) -> float:
    """Read a time of day.

    Parameters
    ----------
    text : str
        ``2026/03/18 10:00:00.250``, an ISO date and time, or seconds, milli-, micro- or
        nanoseconds since 1970: their size tells which.
    utc : bool
        What a time without a zone is in; else in the zone of this machine (``TZ``).

    Raises
    ------
    InputError
        It is no time.

    Examples
    --------
    >>> since_1970_s("1773828000250"), since_1970_s("2026-03-18T10:00:00.25Z")
    (1773828000.25, 1773828000.25)
    """
    value = text.strip()
    try:
        return _counted(float(value))
    except ValueError:
        pass
    moment = _parsed(value)
    if moment is None:
        raise InputError(
            f"{value!r} is no time; write 2026/03/18 10:00:00.250 or seconds since 1970"
        )
    if moment.tzinfo is None and utc:
        moment = moment.replace(tzinfo=UTC)
    return moment.timestamp()


def _counted(number: float) -> float:
    """Turn a count of seconds, or of a smaller unit, since 1970 into seconds."""
    for unit_s in (1.0, 1 / KILO, 1 / KILO**2, 1 / KILO**3):
        if _EARLIEST_S <= number * unit_s <= _LATEST_S:
            return number * unit_s
    raise InputError(f"{number:g} is no time since 1970, in whatever unit")


def _parsed(value: str) -> datetime | None:
    for layout in _LAYOUTS:
        try:
            return datetime.strptime(value, layout)
        except ValueError:
            continue
    try:
        return datetime.fromisoformat(value)
    except ValueError:
        return None
