"""Forecasts of machines that no fit has seen stay near what their users published."""

from pathlib import Path
from statistics import median

import pytest

from sim.calibration.published import Comparison, compare
from sim.catalog import open_catalog
from sim.measured import Published
from sim.schema import load_yaml, validate

FILE = Path(__file__).parents[2] / "hardware" / "measured" / "published.yaml"
PUBLISHED = validate(Published, load_yaml(FILE))

WITHIN = 3.0
"""Largest ratio either way. Nothing was fitted to these figures, and several are a hosted service's
own words about an unknown batch, so this holds the order of magnitude; the table shows the rest."""
MISSED = {"8B on 1 wafer", "70B on 4 wafers"}
"""Forecast 3.2 and 3.3 times as fast as published: the prior of wafers is too kind."""
LATER = "exchange hidden"
"""Said of cases that were added when the forecasts without an overlap had been seen."""


@pytest.fixture(scope="module")
def comparisons() -> list[Comparison]:
    return list(compare(PUBLISHED, open_catalog()))


def speed(item: Comparison) -> float:
    """Speed forecast over speed published: above 1 the forecast flatters the machine."""
    return 1 / item.ratio if item.statistic.startswith(("tpot_s", "ttft_s")) else item.ratio


def test_every_published_figure_is_forecast_within_its_order_of_magnitude(
    comparisons: list[Comparison],
) -> None:
    off = {item.case.name for item in comparisons if not 1 / WITHIN < item.ratio < WITHIN}
    assert off == MISSED


def test_forecasts_are_on_the_fast_side_by_half(comparisons: list[Comparison]) -> None:
    """A prior that drifts further from what was published has to show; so has one that nears it."""
    speeds = [speed(item) for item in comparisons if LATER not in item.case.name]
    assert 1.2 < median(speeds) < 1.8
