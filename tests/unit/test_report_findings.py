"""Sentences about a run, against small tables whose answer is plain to see."""

import math

import pandas as pd
import pytest
from report_fixtures import four_cases, nothing_completed, one_case

from sim.report.findings import COST, ENERGY, THROUGHPUT, TPOT, answer, headline, rank
from sim.report.formats import brief, duration, figure, percent, usd


def costs(**values: float) -> pd.DataFrame:
    return pd.DataFrame({"case": list(values), "usd_per_mtok_total": list(values.values())})


def test_the_lowest_cost_is_first_whatever_the_order() -> None:
    for names in (("a", "b", "c"), ("c", "b", "a"), ("b", "c", "a")):
        values = {"a": 3.0, "b": 1.0, "c": 2.0}
        ranking = rank(costs(**{name: values[name] for name in names}), COST)
        assert ranking is not None
        assert (ranking.best, ranking.second) == ("b", "c")


def test_the_highest_throughput_is_first() -> None:
    summary = pd.DataFrame({"case": ["a", "b"], "output_tokens_per_s_per_chip": [10.0, 30.0]})
    ranking = rank(summary, THROUGHPUT)
    assert ranking is not None
    assert ranking.best == "b"


def test_a_case_without_a_number_neither_leads_nor_follows() -> None:
    ranking = rank(costs(a=math.nan, b=2.0), COST)
    assert ranking is not None
    assert (ranking.best, ranking.second) == ("b", None)
    assert rank(costs(a=math.nan), COST) is None


@pytest.mark.parametrize(("second", "separated"), [(1.04, False), (1.06, True)])
def test_forecasts_within_five_percent_are_level(second: float, separated: bool) -> None:
    ranking = rank(costs(a=1.0, b=second), COST)
    assert ranking is not None
    assert ranking.separated is separated


@pytest.mark.parametrize(("top", "separated"), [(1.4, True), (1.6, False)])
def test_overlapping_intervals_are_too_close_to_call(top: float, separated: bool) -> None:
    summary = costs(a=1.0, b=2.0).assign(
        usd_per_mtok_total_lo=[0.9, 1.5], usd_per_mtok_total_hi=[top, 2.5]
    )
    ranking = rank(summary, COST)
    assert ranking is not None
    assert ranking.separated is separated
    assert ("too close to call" in headline(summary, COST)) is not separated


def test_one_interval_is_held_against_a_bare_forecast() -> None:
    summary = costs(a=1.0, b=2.0).assign(
        usd_per_mtok_total_lo=[0.9, math.nan], usd_per_mtok_total_hi=[2.1, math.nan]
    )
    ranking = rank(summary, COST)
    assert ranking is not None
    assert not ranking.separated


def test_headlines() -> None:
    assert headline(costs(a=2.0, b=3.0), COST) == (
        "a has the cheapest tokens: $2.00 per million, against $3.00 for b"
    )
    assert headline(costs(a=2.0), COST) == "a: cost of tokens $2.00 per million"
    assert headline(costs(a=math.nan), COST) == "No case has a defined cost of tokens"
    assert headline(costs(a=2.0, b=2.0), COST) == (
        "a ($2.00 per million) and b ($2.00) are too close to call on cost of tokens"
    )


def test_a_long_name_does_not_go_into_a_title() -> None:
    name = "x" * 60
    summary = pd.DataFrame({"case": [name, "b"], "energy_j_per_output_token": [1.0, 2.0]})
    assert headline(summary, ENERGY) == "Energy per output token by case"


def test_a_title_says_who_is_cheap_since_he_is_late() -> None:
    late = costs(a=2.0, b=2.0, c=3.0).assign(slo_attainment_fraction=[0.233, 0.58, 0.1])
    assert headline(late, COST) == (
        "a ($2.00 per million) and b ($2.00) are too close to call on cost of tokens; "
        "the SLO is met by 23.3 % of a and 58.0 % of b"
    )
    half = late.assign(slo_attainment_fraction=[0.9, 0.899, math.nan])
    assert headline(half, COST).endswith("; the SLO is met by 89.9 % of b")
    fine = late.assign(slo_attainment_fraction=[0.9, 1.0, 0.1])
    assert "SLO" not in headline(fine, COST)
    # energy is not saved by coming late
    assert "SLO" not in headline(late.assign(energy_j_per_output_token=[1.0, 2.0, 3.0]), ENERGY)


def test_the_answer_names_leader_cost_interval_and_slo() -> None:
    text = answer(four_cases().summary)
    assert text.startswith("All 4 cases were offered 4 requests per second.")
    # 0.52 x 0.91 = 0.4732 and 0.52 x 1.126 = 0.58552, the interval of the fixture.
    assert (
        "GB300 NVL72 has the cheapest tokens: $0.520 per million "
        "(interval $0.473 to $0.586), against $0.660 for 8x B200." in text
    )
    assert "Requests that met the SLO: 8x H100 " in text
    assert "nan" not in text


def test_the_answer_says_what_was_not_served() -> None:
    text = answer(nothing_completed().summary)
    assert "8x H100 completed no request: its cost, times and energy are not defined." in text
    assert "8x B200 (" not in text
    assert "nan" not in text
    partial = four_cases().summary.assign(failed_requests=[600, 0, 0, 0])
    assert "8x H100 failed or did not finish 600 of 3,000 requests" in answer(partial)


def test_the_answer_of_a_single_case_compares_nothing() -> None:
    text = answer(one_case().summary)
    assert text.startswith("The case was offered 4 requests per second.")
    assert "against" not in text
    assert "SLO" not in text


def test_different_loads_are_said() -> None:
    summary = four_cases().summary.assign(offered_requests_per_s=[2.0, 4.0, 8.0, 16.0])
    assert "offered different loads, from 2 to 16 requests per second" in answer(summary)


@pytest.mark.parametrize("write", [figure, usd, duration, percent, brief])
def test_what_is_not_defined_is_a_dash(write: object) -> None:
    assert callable(write)
    assert write(math.nan) == "\N{EN DASH}"


@pytest.mark.parametrize(
    ("value", "text"), [(9.996, "10.0"), (0.09996, "0.100"), (99.96, "100"), (-2.5, "-2.50")]
)
def test_rounding_into_a_new_digit_keeps_three(value: float, text: str) -> None:
    assert figure(value) == text


def test_almost_all_is_not_all() -> None:
    assert percent(1 - 1e-6) == ">99.9 %"
    assert percent(1e-6) == "<0.1 %"
    assert percent(0.9994) == "99.9 %"


def test_a_whole_is_a_whole_in_spite_of_rounding() -> None:
    assert [percent(x) for x in (1.0, 1 + 2e-16, 1 - 1e-12, 0.0, -1e-17)] == [
        *["100 %"] * 3,
        *["0 %"] * 2,
    ]
    assert percent(1.02) == "102.0 %"


@pytest.mark.parametrize(("second", "separated"), [(1.4, False), (1.6, True)])
@pytest.mark.parametrize(
    "caveats", [["not calibrated", ""], ["", "not calibrated, estimated model"]]
)
def test_times_of_uncalibrated_chips_need_a_factor_to_be_apart(
    caveats: list[str], second: float, separated: bool
) -> None:
    times = pd.DataFrame({"case": ["a", "b"], "tpot_s_p50": [1.0, second]})
    ranking = rank(times.assign(caveats=caveats), TPOT)
    assert ranking is not None
    assert ranking.separated is separated
    measured = rank(times.assign(caveats=["", "estimated model"]), TPOT)
    assert measured is not None
    assert measured.separated
    priced = rank(costs(a=1.0, b=second).assign(caveats=caveats), COST)
    assert priced is not None
    assert priced.separated


def test_the_answer_says_what_nobody_measured() -> None:
    summary = four_cases().summary
    assert "alibrated" not in answer(summary)
    said = answer(summary.assign(caveats=["not calibrated", "", "estimated model", ""]))
    assert said.endswith("Not calibrated: 8x H100. Estimated model: 8x B200.")


def test_what_two_cases_share_of_their_error_does_not_blur_them() -> None:
    """Of 1.0 to 1.3 and 1.2 to 1.6 about 1.15 and 1.4; without the shared 3/4 half as wide.

    1.15 x sqrt(1.3 / 1.15) = 1.22 and 1.4 x sqrt(1.2 / 1.4) = 1.30: clear of each other.
    """
    summary = pd.DataFrame(
        {
            "case": ["a", "b"],
            "usd_per_mtok_total": [1.15, 1.4],
            "usd_per_mtok_total_lo": [1.0, 1.2],
            "usd_per_mtok_total_hi": [1.3, 1.6],
            "shared_error_fraction": [0.75, 0.75],
            "error_group": ["box/model/engine", "other box/model/engine"],
        }
    )
    apart, alike = rank(summary, COST), rank(summary.assign(error_group="same"), COST)
    assert apart is not None
    assert alike is not None
    assert not apart.separated
    assert alike.separated


def test_the_answer_says_how_likely_the_slo_is() -> None:
    summary = four_cases().summary.assign(slo_probability=[0.9999, 0.62, 0.001, 0.5])
    names = list(summary["case"])
    expected = f"Chance that enough of them do: {names[0]} >99 %, {names[1]} 62 %, {names[2]} <1 %"
    assert expected in answer(summary)
    assert "Chance" not in answer(four_cases().summary)
