"""Laws that every bill obeys, whatever the prices."""

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sim.economics import (
    Purchase,
    Rental,
    Terms,
    Usage,
    annuity_usd_per_month,
    bill,
    straight_line_usd_per_month,
    total_usd,
    usd_per_hour,
    usd_per_mtok,
)

fractions = st.floats(0, 1)
prices = st.floats(0, 1e8)
rates = st.floats(1e-4, 1)
whole_years = st.integers(1, 15)

purchases = st.builds(
    Purchase,
    usd_per_system=prices,
    chips_per_system=st.sampled_from([1, 8, 72]),
    provisioned_w=st.floats(0, 1e6),
    depreciation_years=st.floats(0.5, 15),
    residual_fraction=fractions,
    cost_of_capital_fraction=st.just(0.0) | rates,
    network_fraction=fractions,
    operations_fraction=fractions,
    pue=st.floats(1, 3),
    electricity_usd_per_kwh=fractions,
    colocation_usd_per_kw_month=st.floats(0, 1000),
    sources=st.just({}),
)
rentals = st.builds(Rental, usd_per_chip_hour=st.floats(0, 1000), source=st.just("a quote"))
terms = purchases | rentals
usages = st.builds(
    Usage,
    duration_s=st.floats(1, 1e8),
    chips=st.integers(1, 10_000),
    systems=st.integers(1, 10_000),
    energy_j=st.floats(0, 1e15),
)


@given(terms, usages)
def test_lines_are_not_negative_and_add_up(terms: Terms, usage: Usage) -> None:
    lines = bill(terms, usage, usage.chips)
    assert all(line.usd >= 0 for line in lines)
    assert usd_per_hour(lines) * usage.hours == pytest.approx(total_usd(lines), rel=1e-9, abs=1e-12)
    shares = math.fsum(line.share_fraction for line in lines)
    assert shares == pytest.approx(1 if total_usd(lines) > 0 else 0)


@given(terms, usages)
def test_twice_the_time_costs_twice_and_the_same_by_the_hour(terms: Terms, usage: Usage) -> None:
    doubled = replace(usage, duration_s=2 * usage.duration_s, energy_j=2 * usage.energy_j)
    once, twice = bill(terms, usage, usage.chips), bill(terms, doubled, usage.chips)
    assert total_usd(twice) == pytest.approx(2 * total_usd(once), rel=1e-12)
    assert usd_per_hour(twice) == pytest.approx(usd_per_hour(once), rel=1e-12)


@given(terms, usages)
def test_twice_the_fleet_costs_twice(terms: Terms, usage: Usage) -> None:
    doubled = replace(usage, chips=2 * usage.chips, energy_j=2 * usage.energy_j)
    one = total_usd(bill(terms, usage, usage.chips))
    two = total_usd(bill(terms, doubled, doubled.chips))
    assert two == pytest.approx(2 * one, rel=1e-12)


@given(
    purchases,
    usages,
    st.sampled_from(
        [
            "usd_per_system",
            "provisioned_w",
            "cost_of_capital_fraction",
            "network_fraction",
            "operations_fraction",
            "pue",
            "electricity_usd_per_kwh",
            "colocation_usd_per_kw_month",
        ]
    ),
    st.floats(1, 10),
)
def test_a_higher_price_never_makes_tokens_cheaper(
    terms: Purchase, usage: Usage, name: str, factor: float
) -> None:
    dearer = replace(terms, **{name: factor * getattr(terms, name)})
    before, after = (total_usd(bill(some, usage, usage.chips)) for some in (terms, dearer))
    low, high = (usd_per_mtok(usd, 0.3, 4e6, 1e6) for usd in (before, after))
    slack = 1 + 1e-9
    assert low.usd_per_mtok_input is not None
    assert high.usd_per_mtok_input is not None
    assert low.usd_per_mtok_input <= high.usd_per_mtok_input * slack
    assert low.usd_per_mtok_output is not None
    assert high.usd_per_mtok_output is not None
    assert low.usd_per_mtok_output <= high.usd_per_mtok_output * slack


@given(st.floats(0, 1000), st.floats(0, 1000), usages)
def test_a_higher_rent_is_a_higher_bill(one: float, other: float, usage: Usage) -> None:
    low, high = sorted((one, other))
    bills = [total_usd(bill(Rental(usd, ""), usage, usage.chips)) for usd in (low, high)]
    assert bills == sorted(bills)


@given(prices, fractions, st.floats(0.1, 20))
def test_annuity_without_interest_is_the_straight_line(
    price: float, residual: float, years: float
) -> None:
    paid = annuity_usd_per_month(price, residual * price, 0.0, years)
    assert paid == straight_line_usd_per_month(price, residual * price, years)


@given(prices, fractions, rates, whole_years)
def test_payments_are_worth_the_price_today(
    price: float, residual: float, rate: float, years: int
) -> None:
    """Discount every payment and the residual value one by one: they add up to the price."""
    payment = annuity_usd_per_month(price, residual * price, rate, years)
    month = 1 + rate / 12
    paid = math.fsum(payment / month**k for k in range(1, 12 * years + 1))
    assert paid + residual * price / month ** (12 * years) == pytest.approx(price, rel=1e-9)


@given(prices, fractions, rates, whole_years)
def test_interest_is_never_negative(price: float, residual: float, rate: float, years: int) -> None:
    paid = annuity_usd_per_month(price, residual * price, rate, years)
    assert paid >= straight_line_usd_per_month(price, residual * price, years) * (1 - 1e-12)


@given(st.floats(0, 1e12), fractions, st.floats(1, 1e12), st.floats(1, 1e12))
def test_token_costs_add_up_to_the_last_bit(
    usd: float, share: float, input_tokens: float, output_tokens: float
) -> None:
    cost = usd_per_mtok(usd, share, input_tokens, output_tokens)
    assert cost.input_usd + cost.output_usd == usd
    assert min(cost.input_usd, cost.output_usd) >= 0
    assert cost.input_usd == pytest.approx(share * usd, rel=1e-9, abs=1e-9 * usd)
    assert cost.usd_per_mtok_input is not None
    assert cost.usd_per_mtok_output is not None
    again = (
        cost.usd_per_mtok_input * input_tokens + cost.usd_per_mtok_output * output_tokens
    ) / 1e6
    assert again == pytest.approx(usd, rel=1e-9)
