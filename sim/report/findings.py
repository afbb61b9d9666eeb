"""What the numbers of a run say, in words that do not claim more than they do.

A case is called ahead only where its forecast, and its interval if it has one, is clear of the
next; where they overlap, the sentence says that the two are too close to call.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import pandas as pd

from sim.report.caveats import UNCALIBRATED, caveats_in_words, caveats_of
from sim.report.formats import brief, chance, duration, figure, percent, usd

Better = Literal["low", "high"]

HEADLINE_NAME_LETTERS = 48
"""A case with a longer name is not named in a title, where it would hide what is said of it."""

SAME_LOAD_FRACTION = 0.01
"""Arrivals drawn at random never have quite the rate that was asked for."""

TIE_FRACTION = 0.05
"""Forecasts closer than this are called level: few simulators are right to five percent, though
what they are wrong about is partly the same in two cases of one run."""

LOW_SLO_FRACTION = 0.9
"""Tokens of a case in which fewer requests met the SLO are cheap since they come late: whoever
names their cost names the share too."""

MOST_NAMED = 8
"""Cases up to which each is named with a number of its own."""

UNCALIBRATED_TIE_FRACTION = 0.5
"""The same for times of which one rests on the laws of another chip: what such a forecast is worth
stands in docs/explanation/uncalibrated-chips.md."""


@dataclass(frozen=True, slots=True)
class Measure:
    """One column that cases are compared by, and the words for it."""

    column: str
    better: Better
    what: str
    """Names the quantity: ``energy per output token``."""
    lead: str
    """Follows the name of the case that is ahead."""
    write: Callable[[float], str]
    """With its unit, in full."""
    write_briefly: Callable[[float], str]
    """Where the unit has just been said."""
    is_time: bool = False
    """Whether it follows from the times of kernels alone, and from no load or price."""


@dataclass(frozen=True, slots=True)
class Ranking:
    """The case that is ahead by one measure, and the one behind it."""

    best: str
    best_value: float
    second: str | None
    """None if no other case has a number."""
    second_value: float
    separated: bool
    """Whether the two differ by more than `TIE_FRACTION` (times of chips that are not calibrated:
    `UNCALIBRATED_TIE_FRACTION`) and their intervals, if there are any, do not overlap."""


def _joules(energy_j: float) -> str:
    return f"{figure(energy_j)} J"


def _usd_per_mtok(usd_per_mtok: float) -> str:
    return f"{usd(usd_per_mtok)} per million"


def _rate(tokens_per_s: float) -> str:
    return f"{figure(tokens_per_s)} output tokens per second"


COST = Measure(
    "usd_per_mtok_total",
    "low",
    "cost of tokens",
    "has the cheapest tokens",
    _usd_per_mtok,
    usd,
)
ENERGY = Measure(
    "energy_j_per_output_token",
    "low",
    "energy per output token",
    "uses the least energy per output token",
    _joules,
    _joules,
)
TTFT = Measure(
    "ttft_s_p50",
    "low",
    "median time to first token",
    "has the shortest median time to first token",
    duration,
    duration,
    is_time=True,
)
TPOT = Measure(
    "tpot_s_p50",
    "low",
    "median time per output token",
    "has the shortest median time per output token",
    duration,
    duration,
    is_time=True,
)
THROUGHPUT = Measure(
    "output_tokens_per_s_per_chip",
    "high",
    "throughput per chip",
    "does most per chip",
    _rate,
    figure,
)


def rank(summary: pd.DataFrame, measure: Measure) -> Ranking | None:
    """Say which case is ahead by a measure; None if no case has a number.

    Examples
    --------
    >>> summary = pd.DataFrame({"case": ["a", "b"], "usd_per_mtok_total": [3.0, 2.0]})
    >>> ranking = rank(summary, COST)
    >>> ranking.best, ranking.second, ranking.separated
    ('b', 'a', True)
    """
    known = summary[summary[measure.column].notna()].sort_values(
        measure.column, ascending=measure.better == "low", kind="stable"
    )
    if known.empty:
        return None
    first = known.iloc[0]
    best, best_value = str(first["case"]), float(first[measure.column])
    if len(known) == 1:
        return Ranking(best, best_value, None, math.nan, separated=False)
    second = known.iloc[1]
    second_value = float(second[measure.column])
    guessed = any(UNCALIBRATED in caveats_of(row) for row in (first, second))
    tie_fraction = UNCALIBRATED_TIE_FRACTION if measure.is_time and guessed else TIE_FRACTION
    differ = abs(best_value - second_value) > tie_fraction * min(best_value, second_value)
    return Ranking(
        best,
        best_value,
        str(second["case"]),
        second_value,
        separated=differ and not _overlap(first, second, measure.column),
    )


def interval(row: "pd.Series[float]", column: str) -> tuple[float, float] | None:
    """Interval of a forecast; None if it has none.

    >>> interval(pd.Series({"x": 2.0, "x_lo": 1.0, "x_hi": 4.0}), "x")
    (1.0, 4.0)
    """
    low, high = (float(row.get(f"{column}_{bound}", math.nan)) for bound in ("lo", "hi"))
    return (low, high) if math.isfinite(low) and math.isfinite(high) else None


def _overlap(first: "pd.Series[float]", second: "pd.Series[float]", column: str) -> bool:
    """Whether two forecasts may be equal, as far as their intervals say.

    Of two cases of one model and engine on one system a part of the error is the same: it moves
    both and does not count.
    """
    low, high = sorted((first, second), key=lambda row: float(row[column]))
    low_interval, high_interval = interval(low, column), interval(high, column)
    own = _own_error(first, second)
    low_value, high_value = float(low[column]), float(high[column])
    top = low_value * (low_interval[1] / low_value) ** own if low_interval else low_value
    bottom = high_value * (high_interval[0] / high_value) ** own if high_interval else high_value
    return top >= bottom


def _own_error(first: "pd.Series[float]", second: "pd.Series[float]") -> float:
    """Part of the width of an interval, in logs, that is not shared by two cases."""
    groups = [row.get("error_group", "") for row in (first, second)]
    if not groups[0] or groups[0] != groups[1]:
        return 1.0
    shared = float(first.get("shared_error_fraction", 0.0))
    return math.sqrt(1.0 - shared) if math.isfinite(shared) else 1.0


def headline(summary: pd.DataFrame, measure: Measure) -> str:
    """Title of a chart that compares cases by one measure.

    >>> summary = pd.DataFrame({"case": ["a", "b"], "usd_per_mtok_total": [3.0, 2.0]})
    >>> headline(summary, COST)
    'b has the cheapest tokens: $2.00 per million, against $3.00 for a'
    """
    ranking = rank(summary, measure)
    if ranking is None:
        return f"No case has a defined {measure.what}"
    if max(len(ranking.best), len(ranking.second or "")) > HEADLINE_NAME_LETTERS:
        return f"{measure.what.capitalize()} by case"
    lead = _lead(ranking, measure, measure.write(ranking.best_value))
    return lead + _late(summary, ranking) if measure is COST else lead


def low_slo(case: "pd.Series[float]") -> float | None:
    """Share of requests that met the SLO, if it is too low for a cost to stand alone.

    >>> low_slo(pd.Series({"slo_attainment_fraction": 0.23}))
    0.23
    """
    share = float(case.get("slo_attainment_fraction", math.nan))
    return share if share < LOW_SLO_FRACTION else None


def _late(summary: pd.DataFrame, ranking: Ranking) -> str:
    """Say of the cases that a ranking names how many of their requests met the SLO, if few."""
    low = {str(row["case"]): low_slo(row) for _, row in summary.iterrows()}
    shares = [
        f"{percent(share)} of {case}"
        for case in (ranking.best, ranking.second)
        if case is not None and (share := low[case]) is not None
    ]
    return f"; the SLO is met by {' and '.join(shares)}" if shares else ""


def answer(summary: pd.DataFrame) -> str:
    """Answer of a run in one paragraph, from its numbers alone."""
    return " ".join(
        (
            *_load(summary),
            *_cost(summary),
            *_slo(summary),
            *_leads(summary, (TTFT, TPOT, THROUGHPUT, ENERGY)),
            *_unserved(summary),
            *filter(None, [caveats_in_words(summary)]),
        )
    )


def _lead(ranking: Ranking, measure: Measure, value: str) -> str:
    """Say who is ahead and by how much, or that nobody is; ``value`` is the first one's."""
    if ranking.second is None:
        return f"{ranking.best}: {measure.what} {value}"
    if not ranking.separated:
        first, second = (
            measure.write(ranking.best_value),
            measure.write_briefly(ranking.second_value),
        )
        return (
            f"{ranking.best} ({first}) and {ranking.second} ({second}) are too close to call "
            f"on {measure.what}"
        )
    second = f"{measure.write_briefly(ranking.second_value)} for {ranking.second}"
    return f"{ranking.best} {measure.lead}: {value}, against {second}"


def _load(summary: pd.DataFrame) -> Iterator[str]:
    loads = summary["offered_requests_per_s"].dropna()
    if loads.empty:
        return
    low, high = float(loads.min()), float(loads.max())
    subject = "The case was" if len(summary) == 1 else f"All {len(summary)} cases were"
    if high - low <= SAME_LOAD_FRACTION * high:
        yield f"{subject} offered {brief(low)} requests per second."
    else:
        yield (
            f"The {len(summary)} cases were offered different loads, from {brief(low)} to "
            f"{brief(high)} requests per second."
        )


def _cost(summary: pd.DataFrame) -> Iterator[str]:
    ranking = rank(summary, COST)
    if ranking is None:
        return
    row = summary.loc[summary["case"] == ranking.best].iloc[0]
    bounds = interval(row, COST.column)
    ends = [usd(bound) for bound in bounds or ()]
    within = f" (interval {' to '.join(ends)})" if len(set(ends)) > 1 else ""
    yield _lead(ranking, COST, f"{_usd_per_mtok(ranking.best_value)}{within}") + "."


_ENDS = ("min", "max")


def _slo(summary: pd.DataFrame) -> Iterator[str]:
    known = summary[summary["slo_attainment_fraction"].notna()]
    shares = [
        f"{case} {percent(float(share))}"
        for case, share in zip(known["case"], known["slo_attainment_fraction"], strict=True)
    ]
    if len(shares) > MOST_NAMED:
        ordered = known.sort_values("slo_attainment_fraction", kind="stable")
        worst, best = (
            f"{percent(float(row['slo_attainment_fraction']))} in {row['case']}"
            for _, row in ordered.iloc[[0, -1]].iterrows()
        )
        least, most = (percent(float(known["slo_attainment_fraction"].agg(f))) for f in _ENDS)
        told = f"{least} in all cases" if least == most else f"from {worst} to {best}"
        yield f"Requests that met the SLO: {told}."
    elif shares:
        yield f"Requests that met the SLO: {', '.join(shares)}."
    yield from _chances(summary)


def _chances(summary: pd.DataFrame) -> Iterator[str]:
    """Say how likely it is that enough requests meet the SLO, where that is known."""
    if "slo_probability" not in summary:
        return
    known = summary[summary["slo_probability"].notna()]
    if 0 < len(known) <= MOST_NAMED:
        chances = (
            f"{case} {chance(float(value))}"
            for case, value in zip(known["case"], known["slo_probability"], strict=True)
        )
        yield f"Chance that enough of them do: {', '.join(chances)}."


def _leads(summary: pd.DataFrame, measures: tuple[Measure, ...]) -> Iterator[str]:
    for measure in measures:
        ranking = rank(summary, measure)
        if ranking is not None:
            yield _lead(ranking, measure, measure.write(ranking.best_value)) + "."


def _unserved(summary: pd.DataFrame) -> Iterator[str]:
    """Say where the figures are those of the lucky requests only."""
    columns = ("case", "completed_requests", "failed_requests")
    for case, completed, failed in zip(*(summary[name] for name in columns), strict=True):
        if completed == 0:
            yield f"{case} completed no request: its cost, times and energy are not defined."
        elif failed > 0:
            yield (
                f"{case} failed or did not finish {failed:,.0f} of {completed + failed:,.0f} "
                "requests; its times are those of the others."
            )
