"""The bill against hand arithmetic and against the figures of others."""

import math

import pytest

from sim.catalog import open_catalog
from sim.economics import (
    BillLine,
    Purchase,
    Rental,
    Usage,
    annuity_usd_per_month,
    bill,
    chips_charged,
    hosting_usd_per_hour,
    power_usd,
    purchase,
    rental,
    straight_line_usd_per_month,
    total_usd,
    usd_per_hour,
    usd_per_mtok,
)
from sim.errors import InputError
from sim.units import DAY_S, HOUR_S, KWH_J, YEAR_S

CATALOG = open_catalog()
BOOK = CATALOG.prices("us_2026_11")
OWNED_LINES = ["capital", "financing", "network", "operations", "hosting", "power"]

TERMS = Purchase(
    usd_per_system=300_000,
    chips_per_system=8,
    provisioned_w=10_000,
    depreciation_years=5,
    residual_fraction=0.2,
    cost_of_capital_fraction=0.12,
    network_fraction=0.1,
    operations_fraction=0.05,
    pue=1.25,
    electricity_usd_per_kwh=0.08,
    colocation_usd_per_kw_month=150,
    sources={"capital": "a quote"},
)


def by_line(lines: tuple[BillLine, ...]) -> dict[str, float]:
    return {line.line: line.usd for line in lines}


def owned(system_id: str) -> Purchase:
    return purchase(BOOK, system_id, CATALOG.system(system_id))


# --- The formulas.


def test_straight_line_by_hand() -> None:
    assert straight_line_usd_per_month(300_000, 60_000, years=4) == 5000


def test_annuity_pays_off_a_loan_month_by_month() -> None:
    """Run the loan by hand: interest is added, the payment is taken off, nothing is left."""
    payment = annuity_usd_per_month(325_000, 0, rate_per_year=0.10, years=5)
    debt = 325_000.0
    for _ in range(60):
        debt += debt * 0.10 / 12 - payment
    assert debt == pytest.approx(0, abs=1e-6)


def test_annuity_leaves_the_residual_value_as_the_last_debt() -> None:
    payment = annuity_usd_per_month(100_000, 25_000, rate_per_year=0.06, years=3)
    debt = 100_000.0
    for _ in range(36):
        debt += debt * 0.06 / 12 - payment
    assert debt == pytest.approx(25_000, rel=1e-9)


def test_tiny_interest_is_the_straight_line_and_half_the_interest_on_the_price() -> None:
    """To first order a loan that shrinks to nothing owes half its amount on average."""
    rate = 1e-6
    payment = annuity_usd_per_month(120_000, 0, rate, years=10)
    interest = rate * 120_000 / 2 * (1 + 1 / 120) / 12
    assert payment - 1000 == pytest.approx(interest, rel=1e-3)


def test_hosting_and_power_by_hand() -> None:
    # 10.2 kW at 150 USD a month over 730.5 hours.
    assert hosting_usd_per_hour(10_200, 150) == pytest.approx(1530 / 730.5)
    # 100 kWh, 125 at the meter, at 8 cents.
    assert power_usd(100 * KWH_J, 1.25, 0.08) == pytest.approx(10.0)


# --- The bill.


def test_owned_bill_by_hand_over_a_year() -> None:
    usage = Usage(duration_s=YEAR_S, chips=16, systems=2, energy_j=1e5 * KWH_J)
    lines = by_line(bill(TERMS, usage, chips_charged=16))
    assert list(lines) == OWNED_LINES
    assert lines["capital"] == pytest.approx(2 * 0.8 * 300_000 / 5)
    factor = (1 - 1.01**-60) / 0.01
    payments = 2 * 12 * (300_000 - 60_000 * 1.01**-60) / factor
    assert lines["capital"] + lines["financing"] == pytest.approx(payments)
    assert lines["network"] == pytest.approx(0.1 * payments)
    assert lines["operations"] == pytest.approx(0.05 * 1.1 * payments)
    assert lines["hosting"] == pytest.approx(2 * 10 * 150 * 12)
    assert lines["power"] == pytest.approx(1e5 * 1.25 * 0.08)


def test_rented_bill_is_one_line() -> None:
    usage = Usage(duration_s=DAY_S, chips=8, systems=1, energy_j=1e12)
    (line,) = bill(Rental(3.0, "a quote"), usage, chips_charged=8)
    assert (line.line, line.usd, line.usd_per_hour, line.source) == ("rent", 576, 24, "a quote")
    assert line.share_fraction == 1


def test_whole_systems_or_chips_in_use() -> None:
    usage = Usage(duration_s=HOUR_S, chips=12, systems=2, energy_j=0)
    assert chips_charged("systems", usage, chips_per_system=8) == 16
    assert chips_charged("chips", usage, chips_per_system=8) == 12
    whole = by_line(bill(TERMS, usage, chips_charged=16))
    part = by_line(bill(TERMS, usage, chips_charged=12))
    assert part["capital"] == pytest.approx(0.75 * whole["capital"])
    assert part["hosting"] == pytest.approx(0.75 * whole["hosting"])


def test_a_line_says_where_it_comes_from() -> None:
    usage = Usage(duration_s=HOUR_S, chips=8, systems=1, energy_j=0)
    sources = {line.line: line.source for line in bill(TERMS, usage, chips_charged=8)}
    assert sources["capital"] == "a quote"
    for line in bill(owned("h100_sxm_x8"), usage, chips_charged=8):
        assert "[" in line.source, line.line


def test_a_bill_of_nothing_has_no_shares() -> None:
    usage = Usage(duration_s=HOUR_S, chips=0, systems=0, energy_j=0)
    (line,) = bill(Rental(3.0, "a quote"), usage, chips_charged=0)
    assert (line.usd, line.share_fraction) == (0, 0)


@pytest.mark.parametrize(
    ("field", "value"),
    [("duration_s", 0.0), ("duration_s", math.nan), ("chips", -1), ("energy_j", -1.0)],
)
def test_impossible_usage_is_refused(field: str, value: float) -> None:
    usage = {"duration_s": 1.0, "chips": 8, "systems": 1, "energy_j": 0.0}
    with pytest.raises(ValueError, match=field):
        Usage(**(usage | {field: value}))  # type: ignore[arg-type]


def test_chips_stand_in_a_system() -> None:
    with pytest.raises(ValueError, match="no system"):
        Usage(duration_s=1.0, chips=8, systems=0, energy_j=0.0)


# --- Cost per token.


def test_tokens_by_hand() -> None:
    cost = usd_per_mtok(10.0, 0.3, input_tokens=6e6, output_tokens=2e6)
    assert cost.input_usd == pytest.approx(3)
    assert cost.usd_per_mtok_input == pytest.approx(0.5)
    assert cost.usd_per_mtok_output == pytest.approx(3.5)
    assert cost.usd_per_mtok_total == pytest.approx(1.25)


def test_no_tokens_have_no_price() -> None:
    cost = usd_per_mtok(10.0, 1.0, input_tokens=5e6, output_tokens=0)
    assert cost.usd_per_mtok_output is None
    assert cost.usd_per_mtok_input == cost.usd_per_mtok_total == 2
    assert usd_per_mtok(10.0, 0.5, input_tokens=0, output_tokens=0).usd_per_mtok_total is None


@pytest.mark.parametrize("share", [-0.1, 1.1, math.nan])
def test_a_share_is_a_fraction(share: float) -> None:
    with pytest.raises(ValueError, match="chip_time_share_input"):
        usd_per_mtok(1.0, share, 1e6, 1e6)


# --- The shipped price book.


def test_rent_comes_from_the_book_with_its_source() -> None:
    terms = rental(BOOK, "h100_sxm", "on_demand")
    assert terms.usd_per_chip_hour == 3.2
    assert "Hyperstack" in terms.source


def test_terms_of_ownership_come_from_the_book_and_the_system() -> None:
    terms = owned("gb300_nvl72")
    assert terms.usd_per_system == 72 * 55_000
    assert (terms.chips_per_system, terms.provisioned_w) == (72, 135e3)
    assert (terms.depreciation_years, terms.pue) == (5, 1.25)
    assert set(terms.sources) == set(OWNED_LINES)


def test_a_price_the_book_lacks_is_named() -> None:
    with pytest.raises(InputError, match=r"for 'wse3': write a price book that has one"):
        rental(BOOK, "wse3", "on_demand")
    with pytest.raises(InputError, match=r"called 'spot': set .* there are: contract, on_demand"):
        rental(BOOK, "h100_sxm", "spot")


def test_a_price_the_book_lacks_may_be_known_in_the_other_mode() -> None:
    """Wafers are sold and not let by the chip, TPUs let and not sold."""
    with pytest.raises(InputError, match=r"for 'wse3': set prices\.mode: own"):
        rental(BOOK, "wse3", "on_demand", "cs3_x1")
    with pytest.raises(InputError, match=r"owning 'h100': set prices\.mode: rent, which"):
        purchase(BOOK, "h100", CATALOG.system("h100_sxm_x8"))


def test_every_system_can_be_rented_or_bought() -> None:
    """TPU and Trainium are not sold, wafers not let by the chip; but each has some price."""
    for system_id in CATALOG.names("systems"):
        rents = BOOK.rent_usd_per_chip_hour.get(CATALOG.system(system_id).accelerator, {})
        assert set(rents) <= {"on_demand", "commitment", "contract"}
        assert rents or owned(system_id).usd_per_system > 0


@pytest.mark.parametrize(
    ("system_id", "usd_per_chip_hour"),
    # SemiAnalysis, InferenceX-app constants.ts (2026-04): total cost of ownership of a GPU cloud.
    [("h100_sxm_x8", 1.69), ("h200_sxm_x8", 1.74), ("b200_sxm_x8", 2.34)],
)
def test_owning_costs_about_what_an_independent_model_says(
    system_id: str, usd_per_chip_hour: float
) -> None:
    """Both are estimates from public prices; a wrong month, PUE or factor 8 would show."""
    system = CATALOG.system(system_id)
    chip_w = CATALOG.accelerator(system.accelerator).power.tdp_w.value
    running_w = 0.7 * chip_w * system.chips + system.host_power_w.value
    usage = Usage(HOUR_S, chips=system.chips, systems=1, energy_j=running_w * HOUR_S)
    hourly = usd_per_hour(bill(owned(system_id), usage, chips_charged=system.chips))
    assert hourly / system.chips == pytest.approx(usd_per_chip_hour, rel=0.2)


def test_total_is_the_sum_of_the_lines() -> None:
    usage = Usage(duration_s=DAY_S, chips=8, systems=1, energy_j=100 * KWH_J)
    lines = bill(TERMS, usage, chips_charged=8)
    assert total_usd(lines) == pytest.approx(sum(line.usd for line in lines))
    assert total_usd(lines) / 24 == pytest.approx(usd_per_hour(lines))
    assert sum(line.share_fraction for line in lines) == pytest.approx(1)
