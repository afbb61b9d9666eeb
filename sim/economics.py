"""Economics: what a fleet costs by the hour and by the million tokens.

A fleet is rented or owned. Rent is one line of the bill, with power and hosting in it. Owning is
six lines:

============ ==================================================================================
capital      price less residual value, written off in equal parts over the depreciation time
financing    what the lender gets: the annuity on the same price, less the capital line
network      cluster network and storage around the systems, a fraction of the two lines above
operations   staff, spares and software, a fraction of the three lines above
hosting      colocation rent on the power that is reserved, used or not
power        electricity that was really drawn, times PUE
============ ==================================================================================

All functions are pure. Prices come from a `PriceBook`, one dated file of ``hardware/prices``;
`rental` and `purchase` pick from it the `Terms` of one fleet, and `bill` applies them to a `Usage`.
Months and years are those of `sim.units`: a year has 8766 hours, a month 730.5.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Annotated, Literal, TypeVar

from pydantic import Field

from sim.errors import InputError
from sim.figures import Figure
from sim.hardware import System
from sim.schema import StrictModel
from sim.units import (
    HOUR_S,
    HOURS_PER_MONTH,
    KW,
    KWH_J,
    MONTH_S,
    MTOK,
    YEAR_S,
    Fraction,
    Multiplier,
    Usd,
    UsdPerHour,
    UsdPerKwh,
    UsdPerKwMonth,
)

T = TypeVar("T")

Years = Annotated[float, Field(gt=0.0, allow_inf_nan=False)]
Line = Literal["rent", "capital", "financing", "network", "operations", "hosting", "power"]
"""A line of the bill."""
Charge = Literal["systems", "chips"]
"""Who pays for the idle chips of a system that is partly used: the case, or nobody."""


class Ownership(StrictModel):
    """What turns a purchase price into a cost per hour."""

    depreciation_years: Figure[Years]
    """Time over which the price is written off and the loan is paid back."""
    residual_fraction: Figure[Fraction]
    """What the system still fetches at the end, as a fraction of its price."""
    cost_of_capital_fraction: Figure[Fraction]
    """Nominal interest a year, paid by the month."""
    network_fraction: Figure[Fraction]
    """Cluster network and storage around the systems, over the price of the systems."""
    operations_fraction: Figure[Fraction]
    """Staff, spares and software, over capital, financing and network together."""
    pue: Figure[Multiplier]
    """Power of the whole site over power of its computers (power usage effectiveness)."""
    electricity_usd_per_kwh: Figure[UsdPerKwh]
    colocation_usd_per_kw_month: Figure[UsdPerKwMonth]
    """Rent of space, cooling and power capacity, without the electricity."""


class PriceBook(StrictModel):
    """Prices of one market at one date (one file of ``hardware/prices``)."""

    name: str
    as_of: str
    """Date of the book, year-month-day; figures that are older carry their own."""
    rent_usd_per_chip_hour: Mapping[str, Mapping[str, Figure[UsdPerHour]]]
    """By accelerator id, then by kind of rent (``on_demand``, ``commitment``, ``contract``); host,
    hosting and power are included."""
    purchase_usd_per_system: Mapping[str, Figure[Usd]]
    """By system id: accelerators, hosts and what stands in the same box or rack."""
    ownership: Ownership


@dataclass(frozen=True, slots=True)
class Usage:
    """What a fleet was used for: how long, how many chips, how much energy.

    Raises ValueError if a field is negative, the duration is not above zero, or there are chips
    and no system to hold them.
    """

    duration_s: float
    """Length of the period that is paid for."""
    chips: int
    """Chips that belong to a replica."""
    systems: int
    """Whole systems that hold these chips."""
    energy_j: float
    """Drawn in the period by everything that is charged, hosts included, before PUE."""

    def __post_init__(self) -> None:
        if not self.duration_s > 0:
            raise ValueError(f"duration_s is {self.duration_s} but must be above zero")
        if min(self.chips, self.systems, self.energy_j) < 0:
            raise ValueError(f"chips, systems and energy_j must not be negative: {self}")
        if self.chips > 0 and self.systems == 0:
            raise ValueError(f"{self.chips} chips stand in no system")

    @property
    def hours(self) -> float:
        """Length of the period in hours."""
        return self.duration_s / HOUR_S


@dataclass(frozen=True, slots=True)
class Rental:
    """Terms of a rented fleet: one price, everything included."""

    usd_per_chip_hour: float
    source: str


@dataclass(frozen=True, slots=True)
class Purchase:
    """Terms of an owned fleet, per system."""

    usd_per_system: float
    chips_per_system: int
    provisioned_w: float
    """Power reserved for one system in the data centre."""
    depreciation_years: float
    residual_fraction: float
    cost_of_capital_fraction: float
    network_fraction: float
    operations_fraction: float
    pue: float
    electricity_usd_per_kwh: float
    colocation_usd_per_kw_month: float
    sources: Mapping[Line, str]
    """Where each line of the bill comes from, in words."""


Terms = Rental | Purchase


@dataclass(frozen=True, slots=True)
class BillLine:
    """One line of a bill."""

    line: Line
    usd: float
    """Cost of the whole period."""
    usd_per_hour: float
    share_fraction: float
    """Of the whole bill; 0 on every line of a bill that comes to nothing."""
    source: str
    """The prices behind the line, and who published them."""


@dataclass(frozen=True, slots=True)
class TokenCost:
    """A sum of money dealt out over the tokens it bought; none where there was no token."""

    input_usd: float
    output_usd: float
    usd_per_mtok_input: float | None
    usd_per_mtok_output: float | None
    usd_per_mtok_total: float | None
    """Over input and output tokens together."""


_OWN_BOOK = "write a price book that has one, and name its folder with --catalog"


def rental(book: PriceBook, accelerator_id: str, kind: str, system_id: str | None = None) -> Rental:
    """Terms of renting an accelerator, as a price book has them.

    Parameters
    ----------
    book : PriceBook
    accelerator_id : str
        File stem under ``hardware/accelerators``.
    kind : str
        Which of the book's rents, such as ``on_demand``.
    system_id : str, optional
        The system that is rented, to say whether it could be owned instead.

    Raises
    ------
    InputError
        The book has no such rent; the message says which it has, or whether it can be owned. Its
        keys are those of ``prices``.
    """
    kinds = book.rent_usd_per_chip_hour.get(accelerator_id, {})
    if not kinds:
        sold = system_id in book.purchase_usd_per_system
        instead = "set prices.mode: own, which it has a price for" if sold else _OWN_BOOK
        raise InputError(
            f"there is no rent in {book.name!r} for {accelerator_id!r}: {instead}",
            key=["mode", "book"],
        )
    if kind not in kinds:
        raise InputError(
            f"there is no rent of {accelerator_id} in {book.name!r} called {kind!r}: set "
            f"prices.rent to one of those that there are: {', '.join(sorted(kinds))}",
            key=["rent", "mode", "book"],
        )
    figure = kinds[kind]
    return Rental(
        usd_per_chip_hour=figure.value,
        source=_cite(f"{figure.value:g} USD per chip and hour, {kind}, power included", figure),
    )


def purchase(book: PriceBook, system_id: str, system: System) -> Purchase:
    """Terms of owning a system, as a price book and the system's own file have them.

    Parameters
    ----------
    book : PriceBook
    system_id : str
        File stem under ``hardware/systems``.
    system : System
        The system of that id: its chips and provisioned power.

    Raises
    ------
    InputError
        The book has no price for the system; the message says whether it can be rented. Its keys
        are those of ``prices``.
    """
    price = book.purchase_usd_per_system.get(system_id)
    if price is None:
        kinds = sorted(book.rent_usd_per_chip_hour.get(system.accelerator, {}))
        rent = f", rent: {kinds[0]}" if kinds and "on_demand" not in kinds else ""
        known = f"set prices.mode: rent{rent}, which it has a price for"
        raise InputError(
            f"there is no price in {book.name!r} for owning {system_id!r}: "
            f"{known if kinds else _OWN_BOOK}",
            key=["mode", "book"],
        )
    own = book.ownership
    return Purchase(
        usd_per_system=price.value,
        chips_per_system=system.chips,
        provisioned_w=system.provisioned_power_w.value,
        depreciation_years=own.depreciation_years.value,
        residual_fraction=own.residual_fraction.value,
        cost_of_capital_fraction=own.cost_of_capital_fraction.value,
        network_fraction=own.network_fraction.value,
        operations_fraction=own.operations_fraction.value,
        pue=own.pue.value,
        electricity_usd_per_kwh=own.electricity_usd_per_kwh.value,
        colocation_usd_per_kw_month=own.colocation_usd_per_kw_month.value,
        sources=_purchase_sources(price, system, own),
    )


def _purchase_sources(price: Figure[Usd], system: System, own: Ownership) -> dict[Line, str]:
    """Say in words what stands behind each line of an owner's bill."""
    years, rate = own.depreciation_years, own.cost_of_capital_fraction
    provisioned, site = system.provisioned_power_w, own.colocation_usd_per_kw_month
    return {
        "capital": "; ".join(
            (
                _cite(f"{price.value:,.0f} USD per system", price),
                _cite(f"written off over {years.value:g} years", years),
                _cite(f"residual value {own.residual_fraction.value:.1%}", own.residual_fraction),
            )
        ),
        "financing": _cite(f"annuity at {rate.value:.1%} a year less capital", rate),
        "network": _cite(
            f"{own.network_fraction.value:.1%} of capital and financing", own.network_fraction
        ),
        "operations": _cite(
            f"{own.operations_fraction.value:.1%} of capital, financing and network",
            own.operations_fraction,
        ),
        "hosting": "; ".join(
            (
                _cite(f"{site.value:g} USD per kW and month", site),
                _cite(f"{provisioned.value / KW:g} kW reserved per system", provisioned),
            )
        ),
        "power": "; ".join(
            (
                _cite(
                    f"{own.electricity_usd_per_kwh.value:g} USD per kWh",
                    own.electricity_usd_per_kwh,
                ),
                _cite(f"PUE {own.pue.value:g}", own.pue),
            )
        ),
    }


def chips_charged(charge: Charge, usage: Usage, chips_per_system: int) -> int:
    """How many chips a case pays for.

    Parameters
    ----------
    charge : {'systems', 'chips'}
        ``systems``: whole systems, idle chips included. ``chips``: only those in use, pro rata.
    usage : Usage
    chips_per_system : int

    Examples
    --------
    Three replicas of two chips on one host of eight:

    >>> usage = Usage(duration_s=3600, chips=6, systems=1, energy_j=0)
    >>> chips_charged("systems", usage, 8), chips_charged("chips", usage, 8)
    (8, 6)
    """
    return usage.systems * chips_per_system if charge == "systems" else usage.chips


def bill(terms: Terms, usage: Usage, chips_charged: float) -> tuple[BillLine, ...]:
    """Itemised cost of a fleet over the period of its usage.

    Parameters
    ----------
    terms : Rental or Purchase
    usage : Usage
        Its energy is paid as it stands: the caller counts the energy of the chips charged.
    chips_charged : float
        Chips that are paid for: see the function of that name, or their mean number where it
        changes. Part of a system costs that part of its price.

    Examples
    --------
    A system of 87,660 USD, written off in the 8766 hours of a year, without interest: 10 USD an
    hour. A tenth of it for the network, a tenth of both for operations, 7.305 kW at 100 USD a
    month (730.5 hours), and 8 kWh x 1.25 at 0.10 USD:

    >>> terms = Purchase(
    ...     usd_per_system=87_660, chips_per_system=8, provisioned_w=7305, depreciation_years=1,
    ...     residual_fraction=0, cost_of_capital_fraction=0, network_fraction=0.1,
    ...     operations_fraction=0.1, pue=1.25, electricity_usd_per_kwh=0.1,
    ...     colocation_usd_per_kw_month=100, sources={})
    >>> hour = Usage(duration_s=3600, chips=8, systems=1, energy_j=8 * 3.6e6)
    >>> for line in bill(terms, hour, chips_charged=8):
    ...     print(f"{line.line:10} {line.usd:5.2f}")
    capital    10.00
    financing   0.00
    network     1.00
    operations  1.10
    hosting     1.00
    power       1.00

    The same hour at a rent of 2 USD per chip:

    >>> bill(Rental(2.0, "a quote"), hour, chips_charged=8)[0].usd
    16.0
    """
    if isinstance(terms, Rental):
        rent_usd = terms.usd_per_chip_hour * chips_charged * usage.hours
        return _lines({"rent": rent_usd}, {"rent": terms.source}, usage.hours)
    systems = chips_charged / terms.chips_per_system
    hourly = _usd_per_system_hour(terms)
    usd = {line: rate * systems * usage.hours for line, rate in hourly.items()}
    usd["power"] = power_usd(usage.energy_j, terms.pue, terms.electricity_usd_per_kwh)
    return _lines(usd, terms.sources, usage.hours)


def _usd_per_system_hour(terms: Purchase) -> dict[Line, float]:
    """Hourly cost of one owned system, line by line, but for the power it draws."""
    price, years = terms.usd_per_system, terms.depreciation_years
    residual = terms.residual_fraction * price
    capital = straight_line_usd_per_month(price, residual, years) / HOURS_PER_MONTH
    paid = annuity_usd_per_month(price, residual, terms.cost_of_capital_fraction, years)
    # Rounding may put an annuity without interest a hair below the straight line.
    financing = max(0.0, paid / HOURS_PER_MONTH - capital)
    network = terms.network_fraction * (capital + financing)
    operations = terms.operations_fraction * (capital + financing + network)
    hosting = hosting_usd_per_hour(terms.provisioned_w, terms.colocation_usd_per_kw_month)
    return {
        "capital": capital,
        "financing": financing,
        "network": network,
        "operations": operations,
        "hosting": hosting,
    }


def straight_line_usd_per_month(price_usd: float, residual_usd: float, years: float) -> float:
    """Depreciation by the month: what the value falls by, in equal parts.

    >>> straight_line_usd_per_month(300_000, 60_000, years=5)  # 240,000 over 60 months
    4000.0
    """
    return (price_usd - residual_usd) / _months(years)


def annuity_usd_per_month(
    price_usd: float, residual_usd: float, rate_per_year: float, years: float
) -> float:
    """Equal payment at the end of every month that pays a loan back with interest.

    With ``i = rate / 12`` and ``n`` months, the payments ``a`` and the residual value, discounted
    to today, are worth the price: ``price = a (1 - (1 + i)^-n) / i + residual (1 + i)^-n``.
    (Brealey, Myers, Allen: Principles of Corporate Finance, chapter 2.)

    Parameters
    ----------
    price_usd : float
        Paid at the start.
    residual_usd : float
        What the system fetches at the end, and the lender gets.
    rate_per_year : float
        Nominal interest a year; 0 gives the straight line.
    years : float
        Time over which the loan is paid back.

    Examples
    --------
    201 USD at 1 % a month, paid back in two months: 102.01 / 1.01 + 102.01 / 1.0201 = 101 + 100.

    >>> round(annuity_usd_per_month(201, 0, rate_per_year=0.12, years=2 / 12), 9)
    102.01
    """
    months = _months(years)
    if rate_per_year == 0:
        return straight_line_usd_per_month(price_usd, residual_usd, years)
    monthly = rate_per_year / 12
    discount = math.exp(-months * math.log1p(monthly))
    # expm1 keeps 1 - discount exact to the last digit when the interest is small.
    annuity_factor = -math.expm1(-months * math.log1p(monthly)) / monthly
    return (price_usd - residual_usd * discount) / annuity_factor


def hosting_usd_per_hour(provisioned_w: float, colocation_usd_per_kw_month: float) -> float:
    """Colocation rent by the hour on reserved power.

    >>> hosting_usd_per_hour(7305, colocation_usd_per_kw_month=100)  # 730.50 USD in 730.5 hours
    1.0
    """
    return provisioned_w / KW * colocation_usd_per_kw_month / HOURS_PER_MONTH


def power_usd(energy_j: float, pue: float, electricity_usd_per_kwh: float) -> float:
    """Price of the electricity behind some energy drawn by computers.

    >>> power_usd(36e6, pue=1.5, electricity_usd_per_kwh=0.1)  # 10 kWh, 15 at the meter
    1.5
    """
    return energy_j / KWH_J * pue * electricity_usd_per_kwh


def usd_per_hour(lines: Iterable[BillLine]) -> float:
    """Cost of a bill by the hour."""
    return math.fsum(line.usd_per_hour for line in lines)


def total_usd(lines: Iterable[BillLine]) -> float:
    """Cost of a bill over its whole period."""
    return math.fsum(line.usd for line in lines)


def usd_per_mtok(
    total_usd: float, chip_time_share_input: float, input_tokens: float, output_tokens: float
) -> TokenCost:
    """Deal a sum of money out over input and output tokens by the chip time each kind took.

    Idle time is dealt out in the same proportion as busy time, so that the two parts add up to
    the whole, to the last bit.

    Parameters
    ----------
    total_usd : float
        Everything that was paid.
    chip_time_share_input : float
        Busy chip time spent on input tokens (prefill) over all busy chip time, 0 to 1.
    input_tokens, output_tokens : float
        Tokens that were read and produced in the period that is paid for.

    Raises
    ------
    ValueError
        The share is not in 0 to 1.

    Examples
    --------
    8 USD, a quarter of the time on four million input tokens, the rest on one million of output:

    >>> cost = usd_per_mtok(8.0, 0.25, input_tokens=4e6, output_tokens=1e6)
    >>> cost.usd_per_mtok_input, cost.usd_per_mtok_output, cost.usd_per_mtok_total
    (0.5, 6.0, 1.6)
    """
    if not 0 <= chip_time_share_input <= 1:
        raise ValueError(f"chip_time_share_input is {chip_time_share_input}, not in 0 to 1")
    # Taking the larger part first makes the subtraction exact (Sterbenz), and so the sum.
    if chip_time_share_input >= 0.5:
        input_usd = total_usd * chip_time_share_input
        output_usd = total_usd - input_usd
    else:
        output_usd = total_usd * (1 - chip_time_share_input)
        input_usd = total_usd - output_usd
    return TokenCost(
        input_usd=input_usd,
        output_usd=output_usd,
        usd_per_mtok_input=_per_mtok(input_usd, input_tokens),
        usd_per_mtok_output=_per_mtok(output_usd, output_tokens),
        usd_per_mtok_total=_per_mtok(total_usd, input_tokens + output_tokens),
    )


def _months(years: float) -> float:
    return years * (YEAR_S / MONTH_S)


def _per_mtok(usd: float, tokens: float) -> float | None:
    return usd / (tokens / MTOK) if tokens > 0 else None


def _lines(
    usd: Mapping[Line, float], sources: Mapping[Line, str], hours: float
) -> tuple[BillLine, ...]:
    """Bill lines with their shares, in the order given."""
    total = math.fsum(usd.values())
    return tuple(
        BillLine(
            line=line,
            usd=amount,
            usd_per_hour=amount / hours,
            share_fraction=amount / total if total > 0 else 0.0,
            source=sources.get(line, ""),
        )
        for line, amount in usd.items()
    )


def _cite(text: str, figure: Figure[float]) -> str:
    return f"{text} [{figure.confidence}: {figure.source}]"
