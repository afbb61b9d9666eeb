"""Units: the one place where datasheet text becomes SI numbers, and where conversions are named.

Inside Rackcast every number is a plain float in the unit its name ends with. Text such as
``3.35 TB/s`` exists only at the YAML edge, where `parse_quantity` checks its dimension:

=================== =========================================== ========================
field suffix        type                                        reads, for example
=================== =========================================== ========================
`_bytes`            `Bytes`                                     ``80 GiB``, ``8 Gb``
`_bytes_per_s`      `BytesPerSecond`                            ``400 Gb/s``
`_flop`             `Flop`                                      ``2 TFLOP``
`_flop_per_s`       `FlopPerSecond`                             ``989 TFLOP/s``
`_w`                `Watts`                                     ``14.3 kW``
`_j`                `Joules`                                    ``5 kWh``
`_s`                `Seconds`                                   ``500 ms``, ``5 years``
`_usd`              `Usd`                                       ``30 kUSD``
`_usd_per_hour`     `UsdPerHour`                                ``3.99 USD/h``
`_usd_per_kwh`      `UsdPerKwh`                                 ``0.075 USD/kWh``
`_usd_per_kw_month` `UsdPerKwMonth`                             ``150 USD/kW/month``
`_usd_per_mtok`     `UsdPerMtok`                                ``0.60 USD/Mtok``
`_fraction`         `Fraction` (0 to 1)                         ``10 %``
(any)               `Multiplier` (1 or more), such as a PUE     ``125 %``
`_tokens`           `Tokens` (whole, 1 or more)                 ``8 ktok``
=================== =========================================== ========================

A bare number is already in the unit of the field. Prices keep the unit of the trade (an hour, a
kWh, a kW and month, a million tokens); the constants below convert them. Letters mean what the
datasheet means: GB is 1e9 bytes, GiB is 2**30 bytes, Gb is 1e9 bits. Case counts, and there are
no milli-bytes: ``80 mB`` is refused. A month is a twelfth of a year of 365.25 days.

pint is imported with the first quantity that is written as text: importing it takes longer than
everything else here.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction as ExactFraction
from functools import lru_cache
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple

from annotated_types import Ge, Gt, Le

if TYPE_CHECKING:
    import pint
    from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler
    from pydantic.json_schema import JsonSchemaValue
    from pydantic_core import CoreSchema

# --- Conversions. 1 GB is `GB` bytes, one hour is `HOUR_S` seconds, one kWh is `KWH_J` joules.

KILO = 1e3
MEGA = 1e6
GIGA = 1e9
TERA = 1e12
PETA = 1e15

KB = KILO
MB = MEGA
GB = GIGA
TB = TERA
KIB = 2.0**10
MIB = 2.0**20
GIB = 2.0**30
TIB = 2.0**40
BITS_PER_BYTE = 8

GFLOP = GIGA
TFLOP = TERA
PFLOP = PETA

MTOK = MEGA

NANOSECOND_S = 1e-9
MICROSECOND_S = 1e-6
MILLISECOND_S = 1e-3
MINUTE_S = 60.0
HOUR_S = 3600.0
DAY_S = 86_400.0
YEAR_S = 365.25 * DAY_S
MONTH_S = YEAR_S / 12
HOURS_PER_MONTH = MONTH_S / HOUR_S

KW = KILO
KWH_J = KILO * HOUR_S

# --- Number formats.

Dtype = Literal["fp32", "bf16", "fp16", "fp8", "int8", "int4", "nvfp4", "mxfp4"]
"""A number format of weights, activations or KV cache."""

DTYPE_BYTES: Mapping[Dtype, float] = MappingProxyType(
    {
        "fp32": 4.0,
        "bf16": 2.0,
        "fp16": 2.0,
        "fp8": 1.0,
        "int8": 1.0,
        "int4": 0.5 + 2 / 128,
        "nvfp4": 0.5 + 1 / 16,
        "mxfp4": 0.5 + 1 / 32,
    }
)
"""Bytes per weight, block scales included.

nvfp4: one fp8 scale per 16 weights (https://docs.nvidia.com/cuda/cublas/#d-block-quantization).
mxfp4: one e8m0 scale per 32 weights (OCP Microscaling Formats 1.0, table 1).
int4: one fp16 scale per group of 128 weights, the usual GPTQ export (arXiv:2210.17323).
fp8 and int8 scales (per tensor, per channel or per 128 x 128 block) are below 0.1 % and left out.
"""

# --- Dimensions.

Dimension = Literal[
    "bytes",
    "bytes_per_s",
    "flop",
    "flop_per_s",
    "w",
    "j",
    "s",
    "usd",
    "usd_per_hour",
    "usd_per_kwh",
    "usd_per_kw_month",
    "usd_per_mtok",
    "tokens",
    "fraction",
    "multiplier",
]
"""The units a field can be in, each written as the suffix of the field's name."""


class _Kind(NamedTuple):
    """What a dimension is called, the unit its numbers are in, and how to write one."""

    noun: str
    unit: str
    example: str
    example_number: str


_KINDS: Mapping[str, _Kind] = MappingProxyType(
    {
        "bytes": _Kind("an amount of data", "B", "80 GB", "80e9"),
        "bytes_per_s": _Kind("a data rate", "B/s", "3.35 TB/s", "3.35e12"),
        "flop": _Kind("an amount of arithmetic", "FLOP", "2 TFLOP", "2e12"),
        "flop_per_s": _Kind("a rate of arithmetic", "FLOP/s", "989 TFLOP/s", "989e12"),
        "w": _Kind("a power", "W", "700 W", "700"),
        "j": _Kind("an energy", "J", "2 kWh", "7.2e6"),
        "s": _Kind("a duration", "s", "500 ms", "0.5"),
        "usd": _Kind("an amount of money", "USD", "30 kUSD", "30000"),
        "usd_per_hour": _Kind("a price per hour", "USD/h", "3.99 USD/h", "3.99"),
        "usd_per_kwh": _Kind("a price of energy", "USD/kWh", "0.075 USD/kWh", "0.075"),
        "usd_per_kw_month": _Kind(
            "a price of power capacity", "USD/kW/month", "150 USD/kW/month", "150"
        ),
        "usd_per_mtok": _Kind("a price of tokens", "USD/Mtok", "0.60 USD/Mtok", "0.60"),
        "tokens": _Kind("a number of tokens", "tok", "8 ktok", "8000"),
        "fraction": _Kind("a fraction", "%", "10 %", "0.1"),
        "multiplier": _Kind("a multiplier", "%", "125 %", "1.25"),
    }
)

# The bare numbers of fractions and multipliers are not percentages, so their unit is 1, not %.
_DIMENSIONLESS = frozenset({"fraction", "multiplier"})

# Small prefixes are spelled out as units, not defined as prefixes: with a milli prefix, '80 mB' and
# '1 mtok' would be read as thousandths of a byte and of a token.
_DEFINITIONS = (
    "k- = 1000",
    "M- = 1000000",
    "G- = 1000000000",
    "T- = 1000000000000",
    "P- = 1000000000000000",
    "Ki- = 1024",
    "Mi- = 1048576",
    "Gi- = 1073741824",
    "Ti- = 1099511627776",
    "byte = [information] = B",
    "bit = byte / 8 = b",
    "FLOP = [arithmetic]",
    "tok = [tokens] = _ = token",
    "USD = [currency]",
    "second = [time] = s",
    "millisecond = second / 1000 = ms",
    "microsecond = second / 1000000 = us = µs = μs",  # both Unicode micro signs
    "nanosecond = second / 1000000000 = ns",
    "minute = 60 second = min",
    "hour = 3600 second = h = hr",
    "day = 24 hour = d",
    "year = 365.25 day",
    "month = year / 12",
    "joule = [energy] = J",
    "millijoule = joule / 1000 = mJ",
    "watt = joule / second = W",
    "watt_hour = watt * hour = Wh",
    "percent = 1 / 100",
)

_NUMBER = r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]{1,3})?"
_UNIT = r"(?:[A-Za-zµμ]+|%)(?:\s*[/*]\s*[A-Za-zµμ]+)*"
_QUANTITY = re.compile(rf"\s*({_NUMBER})\s*({_UNIT})?\s*")


@lru_cache(maxsize=1)
def _registry() -> pint.UnitRegistry[Any]:
    """Return our own pint registry; exact fractions keep '5 us' equal to the literal 5e-6."""
    import pint  # noqa: PLC0415 - a quarter of a second, and only text quantities need it

    registry: pint.UnitRegistry[Any] = pint.UnitRegistry(None, non_int_type=ExactFraction)
    registry.load_definitions(list(_DEFINITIONS))
    return registry


@lru_cache(maxsize=1024)
def _factor(unit: str, dimension: str) -> ExactFraction:
    """Return how many units of `dimension` one `unit` is; ValueError says why it is none."""
    import pint  # noqa: PLC0415 - see _registry

    noun = _KINDS[dimension].noun
    registry = _registry()
    try:
        given = registry.Quantity(ExactFraction(1), _pint_unit(unit))
    except pint.UndefinedUnitError:
        raise ValueError(f"is not {noun} (unknown unit {unit!r})") from None
    target = registry.Quantity(ExactFraction(1), _target_unit(dimension))
    if given.dimensionality != target.dimensionality:
        raise ValueError(f"is {_noun_of(given)}, not {noun}")
    ratio: ExactFraction = given.to_root_units().magnitude / target.to_root_units().magnitude
    return ratio


def _pint_unit(unit: str) -> Any:
    """Return the pint unit written `unit`; pint defines no % sign unless asked to."""
    return _registry().parse_units(unit.replace("%", "percent"))


def _target_unit(dimension: str) -> Any:
    """Return the pint unit in which the numbers of `dimension` are."""
    return _pint_unit("" if dimension in _DIMENSIONLESS else _KINDS[dimension].unit)


def _noun_of(quantity: Any) -> str:
    """Return what a pint quantity is, in words: 'a power'."""
    for kind in _KINDS.values():
        if _pint_unit(kind.unit).dimensionality == quantity.dimensionality:
            return kind.noun
    return f"in {quantity.units}"


def parse_quantity(text: str | float, dimension: str) -> float:
    """Read one quantity: a number in the field's own unit, or datasheet text with a unit.

    Arithmetic is exact (rational) up to one final rounding, so ``5 us`` is the float 5e-6 itself.

    Parameters
    ----------
    text : str, int or float
        ``'3.35 TB/s'``, or a bare number, already in the unit that `dimension` names. Units are
        joined by ``/`` and ``*``; ``USD/kW/month`` is dollars per kW and month.
    dimension : Dimension
        Suffix of the field, such as ``bytes_per_s``: see the table at the top of `sim.units`.

    Returns
    -------
    float
        The number in the unit that `dimension` names: SI, except the prices.

    Raises
    ------
    ValueError
        Not a finite number, an unknown unit, or a unit of another dimension; the message says
        what was expected and shows how to write it.

    Notes
    -----
    A price per kW and month and a price per kWh have the same dimension, money over energy, and
    each is accepted in the other's unit: 730.5 kWh make one kW and month.

    Examples
    --------
    >>> parse_quantity("3.35 TB/s", "bytes_per_s")
    3350000000000.0
    >>> parse_quantity("400 Gb/s", "bytes_per_s")  # 400e9 bits / 8
    50000000000.0
    >>> parse_quantity("80 GiB", "bytes") == 80 * 2**30
    True
    >>> parse_quantity("10 %", "fraction")
    0.1
    >>> parse_quantity("700 W", "bytes_per_s")
    Traceback (most recent call last):
    ValueError: '700 W' is a power, not a data rate; write e.g. '3.35 TB/s' or 3.35e12
    """
    kind = _KINDS[dimension]
    try:
        number = _read_text(text, dimension) if isinstance(text, str) else text
        return _finite(number, dimension)
    except ValueError as error:
        way_out = f"write e.g. {kind.example!r} or {kind.example_number}"
        raise ValueError(f"{text!r} {error}; {way_out}") from None


def _read_text(text: str, dimension: str) -> float | ExactFraction:
    """Return the exact number that `text` stands for; ValueError says why it stands for none."""
    match = _QUANTITY.fullmatch(text)
    if match is None:
        raise ValueError(f"is not {_KINDS[dimension].noun}")
    number, unit = match.groups()
    return ExactFraction(number) * (1 if unit is None else _factor(unit, dimension))


def _finite(number: float | ExactFraction, dimension: str) -> float:
    """Return `number` as a finite float; ValueError if it is none, or no number at all."""
    noun = _KINDS[dimension].noun
    # A YAML value can be of any type, and True is an int to Python.
    if isinstance(number, bool) or not isinstance(number, int | float | ExactFraction):
        raise ValueError(f"is not {noun}")
    try:
        value = float(number)
    except OverflowError:
        raise ValueError(f"is too large for {noun}") from None
    if not math.isfinite(value):
        raise ValueError(f"is not {noun}")
    return value


# --- Field types.


@dataclass(frozen=True, slots=True)
class Quantity:
    """Marks a pydantic field as a quantity: numbers pass, text is read by `parse_quantity`.

    Attributes
    ----------
    dimension : Dimension
        The unit of the field's numbers, as the suffix of its name.
    whole : bool
        The field is an integer: 8000 and ``8 ktok`` pass, 0.5 does not.

    Examples
    --------
    >>> from pydantic import TypeAdapter
    >>> TypeAdapter(Annotated[float, Quantity("s")]).validate_python("500 ms")
    0.5
    """

    dimension: Dimension
    whole: bool = False

    def read(self, value: Any) -> float:
        """Return `value` as a number in the field's unit; ValueError says how to write one."""
        number = parse_quantity(value, self.dimension)
        if not self.whole:
            return number
        if not number.is_integer():
            raise ValueError(f"{value!r} is not whole; write e.g. {self._kind.example_number}")
        return int(number)

    @property
    def _kind(self) -> _Kind:
        return _KINDS[self.dimension]

    def __get_pydantic_core_schema__(
        self, source: type[Any], handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        """Read the value before the checks that stand to the left of the marker."""
        from pydantic_core.core_schema import (  # noqa: PLC0415 - units alone need no pydantic
            no_info_before_validator_function,
        )

        return no_info_before_validator_function(self.read, handler(source))

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        """Tell editors that the field takes a number or text with a unit, and show one of each."""
        kind = self._kind
        unit = "" if self.dimension in _DIMENSIONLESS else f" in {kind.unit}"
        example = float(kind.example_number)
        number = {_JSON_BOUNDS.get(key, key): value for key, value in handler(schema).items()}
        return {
            "anyOf": [
                number | {"description": f"{kind.noun}{unit}"},
                {
                    "type": "string",
                    "pattern": _JSON_PATTERN,
                    "description": f"{kind.noun} with its unit, such as {kind.example!r}",
                },
            ],
            "description": f"{kind.noun}{unit}, or text with a unit such as {kind.example!r}",
            "examples": [kind.example, int(example) if self.whole else example],
        }


# pydantic leaves a bound to the right of the marker, as in Annotated[Seconds, Gt(0)], untranslated.
_JSON_BOUNDS = {
    "gt": "exclusiveMinimum",
    "ge": "minimum",
    "lt": "exclusiveMaximum",
    "le": "maximum",
}

# Not anchored to the unit names: editors need a hint, parse_quantity does the checking.
_JSON_PATTERN = rf"^\s*{_NUMBER}\s*[^0-9]*$"

Bytes = Annotated[float, Ge(0), Quantity("bytes")]
BytesPerSecond = Annotated[float, Gt(0), Quantity("bytes_per_s")]
Flop = Annotated[float, Ge(0), Quantity("flop")]
FlopPerSecond = Annotated[float, Gt(0), Quantity("flop_per_s")]
Watts = Annotated[float, Ge(0), Quantity("w")]
Joules = Annotated[float, Ge(0), Quantity("j")]
Seconds = Annotated[float, Ge(0), Quantity("s")]
Usd = Annotated[float, Ge(0), Quantity("usd")]
UsdPerHour = Annotated[float, Ge(0), Quantity("usd_per_hour")]
UsdPerKwh = Annotated[float, Ge(0), Quantity("usd_per_kwh")]
UsdPerKwMonth = Annotated[float, Ge(0), Quantity("usd_per_kw_month")]
UsdPerMtok = Annotated[float, Ge(0), Quantity("usd_per_mtok")]
Fraction = Annotated[float, Ge(0), Le(1), Quantity("fraction")]
Multiplier = Annotated[float, Ge(1), Quantity("multiplier")]
Tokens = Annotated[int, Gt(0), Quantity("tokens", whole=True)]
PositiveInt = Annotated[int, Gt(0)]
NonNegativeInt = Annotated[int, Ge(0)]
