"""How numbers are written for people: significant digits, units, and nothing where undefined."""

import math

from sim.units import MICROSECOND_S, MILLISECOND_S

UNDEFINED = "\N{EN DASH}"
"""Stands where a number is not defined."""

ROUNDING = 1e-9
"""What a sum of fractions may miss a whole by, and still be the whole."""


def figure(value: float, digits: int = 3) -> str:
    """Write a number to some significant digits, whole above them, with thousands commas.

    >>> [figure(x) for x in (0.02134, 2.5, 21.44, 999.96, 12345.6, 0.0, math.nan)]
    ['0.0213', '2.50', '21.4', '1,000', '12,346', '0', '–']
    """
    if not math.isfinite(value):
        return UNDEFINED
    if value == 0:
        return "0"
    exponent = math.floor(math.log10(abs(value)))
    decimals = max(0, digits - 1 - exponent)
    # Rounding may carry into a new digit: 9.996 is 10.0 and not 10.00.
    if round(abs(value), decimals) >= 10.0 ** (exponent + 1):
        decimals = max(0, decimals - 1)
    return f"{value:,.{decimals}f}"


def brief(value: float) -> str:
    """Write a number of a sentence: three significant digits, no zeros at the end.

    >>> [brief(x) for x in (4.0, 0.5204, 12345.6, math.nan)]
    ['4', '0.52', '12,346', '–']
    """
    text = figure(value)
    return text.rstrip("0").rstrip(".") if "." in text else text


def plain(value: float) -> str:
    """Write a number of an axis without trailing zeros.

    >>> [plain(x) for x in (0.05, 2.0, 1500.0)]
    ['0.05', '2', '1,500']
    """
    text = f"{value:,.10f}".rstrip("0").rstrip(".")
    return text if text not in {"-0", ""} else "0"


def tick_usd(value: float) -> str:
    """Write dollars of an axis without trailing zeros.

    >>> [tick_usd(x) for x in (0.05, 2.0)]
    ['$0.05', '$2']
    """
    return f"${plain(value)}"


def usd(value: float) -> str:
    """Write dollars: cents above one dollar, three significant digits below.

    >>> [usd(x) for x in (0.21342, 2.5, 98.3, 1234.5, math.nan)]
    ['$0.213', '$2.50', '$98.30', '$1,234', '–']
    """
    if not math.isfinite(value):
        return UNDEFINED
    if abs(value) < 0.9995:
        return f"${figure(value)}"
    return f"${value:,.2f}" if abs(value) < 999.995 else f"${value:,.0f}"


def duration(value_s: float) -> str:
    """Write a time in the unit that suits it.

    >>> [duration(x) for x in (0.00002, 0.0213, 0.99996, 1.5, 250.0)]
    ['20.0 µs', '21.3 ms', '1.00 s', '1.50 s', '250 s']
    """
    if not math.isfinite(value_s):
        return UNDEFINED
    if 0 < value_s < MILLISECOND_S:
        return f"{figure(value_s / MICROSECOND_S)} µs"
    if value_s < 0.9995:
        return f"{figure(value_s / MILLISECOND_S)} ms"
    return f"{figure(value_s)} s"


def chance(probability: float) -> str:
    """Write a chance in percent; none that rests on measurements is quite sure.

    >>> [chance(x) for x in (1.0, 0.624, 0.0)]
    ['>99 %', '62 %', '<1 %']
    """
    if not math.isfinite(probability):
        return UNDEFINED
    if probability > 0.99:
        return ">99 %"
    return "<1 %" if probability < 0.01 else f"{100 * probability:.0f} %"


def percent(fraction: float) -> str:
    """Write a fraction in percent; what is not quite all, or not quite nothing, says so.

    >>> [percent(x) for x in (0.7134, 1.0, 0.9999, 0.0, 0.0002)]
    ['71.3 %', '100 %', '>99.9 %', '0 %', '<0.1 %']
    """
    if not math.isfinite(fraction):
        return UNDEFINED
    if abs(fraction) < ROUNDING or abs(fraction - 1) < ROUNDING:
        return "0 %" if fraction < 0.5 else "100 %"
    if 0.9995 <= fraction < 1:
        return ">99.9 %"
    if 0 < fraction < 0.0005:
        return "<0.1 %"
    return f"{fraction * 100:.1f} %"


def whole_percent(fraction: float) -> str:
    """Write a fraction in whole percent, for narrow columns.

    >>> [whole_percent(x) for x in (0.7134, 0.0034, 0.0, 1.0, math.nan)]
    ['71%', '<1%', '0%', '100%', '–']
    """
    if not math.isfinite(fraction):
        return UNDEFINED
    return "<1%" if 0 < fraction < 0.005 else f"{fraction * 100:.0f}%"
