"""What the validation report says of tables whose errors are plain to see."""

from itertools import product

import pandas as pd
import pytest

from sim.calibration.overhead_fit import UNFIT
from sim.report.validation_text import Described, text_of

SCHEMES = ("fitted", "random", "leave_model_out", "leave_system_out")
NO_NOISE = pd.DataFrame(columns=["quantity", "engine", "kind", "difference"])
TOLD = Described("All can be forecast.", NO_NOISE, "make it", "2026-11-22")
SEEN = pd.DataFrame(columns=["quantity", "scheme", "system", "inside"])


def forecasts(errors: list[float], **columns: str) -> pd.DataFrame:
    """Give the same errors of times per token and first tokens under every scheme."""
    about = {
        "arrivals": "closed",
        "load_ratio": 1.0,
        "source": "a",
        "assumed": "nothing",
        "preset": "vllm",
        "model": "m",
        "system": "s",
    }
    rows = [
        {
            "row_id": f"{columns}{place}",
            "scheme": scheme,
            "quantity": quantity,
            "measured": 2.0,
            "forecast": 2.0 * (1 + error),
            **about,
            **columns,
        }
        for scheme, quantity in product(SCHEMES, ("tpot", "ttft"))
        for place, error in enumerate(errors)
    ]
    return pd.DataFrame(rows)


def cells(text: str, *start: str) -> list[list[str]]:
    """Find the lines of tables that start with some cells, and cut them up."""
    begin = "| " + " | ".join(start) + " |"
    lines = [line for line in text.splitlines() if line.startswith(begin)]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


@pytest.mark.parametrize(
    ("errors", "median", "p90", "met"),
    [
        ([0.01] * 10, "1.0%", "1.0%", "yes, p90 yes"),
        ([0.01] * 8 + [-0.6] * 2, "1.0%", "60.0%", "yes, p90 no"),
        ([0.08] * 10, "8.0%", "8.0%", "no, p90 yes"),
    ],
)
def test_the_median_and_the_tail_are_judged_apart(
    errors: list[float], median: str, p90: str, met: str
) -> None:
    text = text_of(forecasts(errors), SEEN, "made up", TOLD)
    row = cells(text, "random fifths of the rows", "tpot")[0]
    assert row[2:5] == ["10", median, p90]
    assert row[-2:] == ["7.0%, p90 25.0%", met]


def test_what_nothing_is_fitted_to_counts_in_the_first_table_alone() -> None:
    strange = forecasts([3.0] * 3, source=next(iter(UNFIT)))
    guessed = forecasts([3.0] * 2, assumed="lengths of requests")
    table = pd.concat([forecasts([0.01] * 10), strange, guessed])
    text = text_of(table, SEEN, "made up", TOLD)
    for scheme in ("one model at a time", "one system at a time"):
        assert [row[2] for row in cells(text, scheme, "ttft")] == ["15", "10"]


def test_the_tail_is_counted_by_where_it_lies() -> None:
    parts = (
        forecasts([0.3, -0.3, 0.26, 0.1]),
        forecasts([0.9, 0.0], model="n"),
        forecasts([0.25], preset="sglang"),
    )
    text = text_of(pd.concat(parts), SEEN, "made up", TOLD)
    assert "4 of 7 figures" in text
    assert cells(text, "a", "vllm", "m") == [["a", "vllm", "m", "3", "4"]]
    assert cells(text, "others") == [["others", "", "", "1", "3"]]


def test_runs_left_out_of_all_fits_have_a_section_of_their_own() -> None:
    assert "left out of it all" not in text_of(forecasts([0.01]), SEEN, "made up", TOLD)
    rows = pd.DataFrame(
        {
            "row_id": ["a", "b", "c", "d"],
            "quantity": "ttft",
            "measured": 1.0,
            "forecast": [1.1, 0.8, 1.3, 1.4],
            "ape": [0.1, 0.2, 0.3, 0.4],
            "low": [0.9, 0.7, 1.2, float("nan")],
            "high": [1.2, 1.0, 1.4, float("nan")],
            "source": "a",
            "preset": "vllm",
            "model": ["m", "m", "m", "new"],
        }
    )
    text = text_of(forecasts([0.01]), SEEN, "made up", TOLD, rows)
    assert "4 more runs" in text
    assert "Not among those fitted: model new." in text
    section = text.split("## Runs that were left out of it all")[1]
    assert not cells(section, "power")
    # of three intervals that there are, two hold one; the median ratio lies between 1.1 and 1.3
    assert cells(section, "ttft")[0] == ["ttft", "4", "25.0%", "37.0%", "+20.0%", "66.7%"]
