import json
import math
import subprocess
import sys
from decimal import Decimal
from fractions import Fraction as ExactFraction
from typing import Annotated, Any, get_args

import pytest
from annotated_types import Gt
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from sim import units
from sim.units import DTYPE_BYTES, Dimension, Dtype, parse_quantity

DIMENSIONS = get_args(Dimension)


@pytest.mark.parametrize(
    ("text", "dimension", "expected"),
    [
        ("3.35 TB/s", "bytes_per_s", 3.35e12),
        ("400 Gb/s", "bytes_per_s", 400e9 / 8),
        ("80 GiB", "bytes", 80 * 1024**3),
        ("180 GB", "bytes", 180e9),
        ("180GB", "bytes", 180e9),
        ("1 Kib", "bytes", 128),
        ("989 TFLOP/s", "flop_per_s", 989e12),
        ("2250 TFLOP/s", "flop_per_s", 2.25e15),
        ("4.5 PFLOP/s", "flop_per_s", 4.5e15),
        ("2 GFLOP", "flop", 2e9),
        ("700 W", "w", 700),
        ("14.3 kW", "w", 14_300),
        ("1 kWh", "j", 1000 * 3600),
        ("350 mJ", "j", 0.35),
        ("5 us", "s", 5e-6),
        ("5 µs", "s", 5e-6),  # micro sign
        ("5 μs", "s", 5e-6),  # Greek mu
        ("7 ns", "s", 7e-9),
        ("500 ms", "s", 0.5),
        ("2 min", "s", 120),
        ("1.5 h", "s", 5400),
        ("1 day", "s", 86_400),
        ("5 years", "s", 5 * 365.25 * 86_400),
        ("12 months", "s", 365.25 * 86_400),
        ("30 kUSD", "usd", 30_000),
        ("3.99 USD/h", "usd_per_hour", 3.99),
        ("1 USD/s", "usd_per_hour", 3600),
        ("87.66 USD/day", "usd_per_hour", 87.66 / 24),
        ("0.075 USD/kWh", "usd_per_kwh", 0.075),
        ("75 USD/MWh", "usd_per_kwh", 0.075),
        ("150 USD/kW/month", "usd_per_kw_month", 150),
        ("1800 USD/kW/year", "usd_per_kw_month", 150),
        ("150000 USD/MW/month", "usd_per_kw_month", 150),
        ("0.60 USD/Mtok", "usd_per_mtok", 0.6),
        ("8 ktok", "tokens", 8000),
        ("10 %", "fraction", 0.1),
        ("10%", "fraction", 0.1),
        ("125 %", "multiplier", 1.25),
        (" 1e3 B ", "bytes", 1000),
        (".5 s", "s", 0.5),
        ("2. s", "s", 2),
        ("-3 s", "s", -3),
        ("0.25", "s", 0.25),
        (7, "w", 7),
        (0.1, "fraction", 0.1),
    ],
)
def test_datasheet_text_becomes_the_unit_of_the_field(
    text: str | float, dimension: str, expected: float
) -> None:
    assert parse_quantity(text, dimension) == expected


@pytest.mark.parametrize(
    ("text", "dimension", "message"),
    [
        (
            "700 W",
            "bytes_per_s",
            "'700 W' is a power, not a data rate; write e.g. '3.35 TB/s' or 3.35e12",
        ),
        ("fast", "s", "'fast' is not a duration; write e.g. '500 ms' or 0.5"),
        ("400 Gb", "bytes_per_s", "'400 Gb' is an amount of data, not a data rate; "),
        ("989 TFLOPS", "flop_per_s", "(unknown unit 'TFLOPS'); write e.g. '989 TFLOP/s'"),
        ("700 w", "w", "(unknown unit 'w'); write e.g. '700 W'"),
        ("80 mB", "bytes", "(unknown unit 'mB')"),
        ("1 mtok", "tokens", "(unknown unit 'mtok')"),
        ("5 s", "fraction", "'5 s' is a duration, not a fraction; write e.g. '10 %' or 0.1"),
        ("5 %", "s", "'5 %' is a fraction, not a duration"),
        ("3 USD/W", "usd", "'3 USD/W' is in USD / watt, not an amount of money"),
        ("1e400 s", "s", "'1e400 s' is too large for a duration"),
        ("1e9999 s", "s", "'1e9999 s' is not a duration"),
        ("1,000 s", "s", "'1,000 s' is not a duration"),
        ("2 * 3 s", "s", "'2 * 3 s' is not a duration"),
        ("٣ s", "s", "is not a duration"),
        ("__import__('os') s", "s", "is not a duration"),
        ("", "s", "'' is not a duration"),
        ("nan", "s", "'nan' is not a duration"),
        (math.nan, "s", "nan is not a duration"),
        (math.inf, "s", "inf is not a duration"),
        (10**400, "s", "is too large for a duration"),
        (True, "s", "True is not a duration"),
        (None, "s", "None is not a duration"),
        ([1], "s", "[1] is not a duration"),
    ],
)
def test_a_refusal_says_what_was_expected(text: Any, dimension: str, message: str) -> None:
    with pytest.raises(ValueError, match=r"; write e\.g\. ") as caught:
        parse_quantity(text, dimension)
    assert message in str(caught.value)


@pytest.mark.parametrize("dimension", DIMENSIONS)
def test_the_two_examples_of_a_dimension_are_equal(dimension: str) -> None:
    with pytest.raises(ValueError, match=r"write e\.g\.") as caught:
        parse_quantity("?", dimension)
    text, _, number = str(caught.value).rpartition("write e.g. ")[2].partition(" or ")
    assert parse_quantity(text.strip("'"), dimension) == float(number)


@given(
    st.decimals(allow_nan=False, allow_infinity=False, min_value=0, max_value=10**9, places=6),
    st.sampled_from(
        [
            ("GB", "bytes", ExactFraction(10**9)),
            ("GiB", "bytes", ExactFraction(2**30)),
            ("Gb/s", "bytes_per_s", ExactFraction(10**9, 8)),
            ("PFLOP/s", "flop_per_s", ExactFraction(10**15)),
            ("us", "s", ExactFraction(1, 10**6)),
            ("kWh", "j", ExactFraction(3_600_000)),
            ("%", "fraction", ExactFraction(1, 100)),
            ("USD/year", "usd_per_hour", ExactFraction(1, 8766)),  # 365.25 x 24 hours
        ]
    ),
)
def test_a_quantity_is_the_float_nearest_to_its_exact_value(
    number: Decimal, unit: tuple[str, str, ExactFraction]
) -> None:
    name, dimension, factor = unit
    expected = float(ExactFraction(number) * factor)
    assert parse_quantity(f"{number} {name}", dimension) == expected


@given(st.floats(allow_nan=False, allow_infinity=False), st.sampled_from(DIMENSIONS))
def test_a_bare_number_passes_unchanged(number: float, dimension: str) -> None:
    assert parse_quantity(number, dimension) == number
    assert parse_quantity(repr(number), dimension) == number


@given(st.text(), st.sampled_from(DIMENSIONS))
def test_any_text_is_read_or_refused(text: str, dimension: str) -> None:
    try:
        value = parse_quantity(text, dimension)
    except ValueError as error:
        assert "; write e.g. " in str(error)
    else:
        assert math.isfinite(value)


QUANTITY_TYPES = [
    (units.Bytes, "1 GB", 1e9, "-1 B"),
    (units.BytesPerSecond, "1 GB/s", 1e9, "0 B/s"),
    (units.Flop, "1 TFLOP", 1e12, "-1 FLOP"),
    (units.FlopPerSecond, "1 TFLOP/s", 1e12, 0),
    (units.Watts, "1 kW", 1e3, -0.5),
    (units.Joules, "1 kWh", 3.6e6, "-1 J"),
    (units.Seconds, "1 h", 3600.0, "-1 s"),
    (units.Usd, "1 kUSD", 1e3, -1),
    (units.UsdPerHour, "2 USD/h", 2.0, -1),
    (units.UsdPerKwh, "50 USD/MWh", 0.05, -1),
    (units.UsdPerKwMonth, "150 USD/kW/month", 150.0, -1),
    (units.UsdPerMtok, "3 USD/Mtok", 3.0, -1),
    (units.Fraction, "10 %", 0.1, "101 %"),
    (units.Fraction, 1, 1.0, -0.001),
    (units.Multiplier, "130 %", 1.3, 0.99),
    (units.Tokens, "8 ktok", 8000, 0),
    (units.PositiveInt, 1, 1, 0),
    (units.NonNegativeInt, 0, 0, -1),
]


@pytest.mark.parametrize(("kind", "text", "value", "outside"), QUANTITY_TYPES)
def test_a_field_type_reads_text_and_checks_its_range(
    kind: Any, text: str, value: float, outside: Any
) -> None:
    adapter = TypeAdapter(kind)
    read = adapter.validate_python(text, strict=True)
    assert read == value
    assert type(read) is type(value)
    with pytest.raises(ValidationError):
        adapter.validate_python(outside, strict=True)


@pytest.mark.parametrize("value", [8000.5, "8.0005 ktok", "8 GB", True])
def test_tokens_are_whole(value: Any) -> None:
    with pytest.raises(ValidationError, match=r"write e\.g\."):
        TypeAdapter(units.Tokens).validate_python(value)


def test_whole_tokens_may_be_written_as_a_float() -> None:
    tokens = TypeAdapter(units.Tokens).validate_python(1e6)
    assert tokens == 1_000_000
    assert isinstance(tokens, int)


@pytest.mark.parametrize("value", [1.0, "1", True])
def test_plain_counts_coerce_nothing(value: Any) -> None:
    with pytest.raises(ValidationError):
        TypeAdapter(units.PositiveInt).validate_python(value, strict=True)


@pytest.mark.parametrize("kind", [kind for kind, *_ in QUANTITY_TYPES[:-2]])
def test_the_json_schema_takes_a_number_or_text_and_shows_both(kind: Any) -> None:
    schema = TypeAdapter(kind).json_schema()
    number, text = schema["anyOf"]
    assert number["type"] in {"number", "integer"}
    assert {"minimum", "exclusiveMinimum"} & set(number)
    assert text["type"] == "string"
    example_text, example_number = schema["examples"]
    adapter = TypeAdapter(kind)
    assert adapter.validate_python(example_text) == adapter.validate_python(example_number)
    assert repr(example_text) in schema["description"]
    json.dumps(schema)


def test_a_bound_of_the_field_reaches_the_json_schema() -> None:
    positive = TypeAdapter(Annotated[units.Seconds, Gt(0)])
    assert positive.json_schema()["anyOf"][0]["exclusiveMinimum"] == 0
    with pytest.raises(ValidationError):
        positive.validate_python("0 ms")


def test_constants_agree_with_the_units_of_the_same_name() -> None:
    pairs = {
        "GB": ("1 GB", "bytes"),
        "TB": ("1 TB", "bytes"),
        "KIB": ("1 KiB", "bytes"),
        "MIB": ("1 MiB", "bytes"),
        "GIB": ("1 GiB", "bytes"),
        "TIB": ("1 TiB", "bytes"),
        "TFLOP": ("1 TFLOP", "flop"),
        "PFLOP": ("1 PFLOP", "flop"),
        "MTOK": ("1 Mtok", "tokens"),
        "NANOSECOND_S": ("1 ns", "s"),
        "MICROSECOND_S": ("1 us", "s"),
        "MILLISECOND_S": ("1 ms", "s"),
        "MINUTE_S": ("1 min", "s"),
        "HOUR_S": ("1 h", "s"),
        "DAY_S": ("1 day", "s"),
        "MONTH_S": ("1 month", "s"),
        "YEAR_S": ("1 year", "s"),
        "KW": ("1 kW", "w"),
        "KWH_J": ("1 kWh", "j"),
    }
    read = {name: parse_quantity(*quantity) for name, quantity in pairs.items()}
    assert read == {name: getattr(units, name) for name in pairs}
    assert units.HOURS_PER_MONTH == 730.5  # 365.25 x 24 / 12


def test_weight_bytes_count_the_bits_of_values_and_scales() -> None:
    assert set(DTYPE_BYTES) == set(get_args(Dtype))
    # (bits of one weight, bits of one scale, weights that share it)
    by_hand = {
        "fp32": (32, 0, 1),
        "bf16": (16, 0, 1),
        "fp16": (16, 0, 1),
        "fp8": (8, 0, 1),
        "int8": (8, 0, 1),
        "int4": (4, 16, 128),
        "nvfp4": (4, 8, 16),
        "mxfp4": (4, 8, 32),
    }
    assert dict(DTYPE_BYTES) == {
        dtype: (bits + scale / block) / 8 for dtype, (bits, scale, block) in by_hand.items()
    }


def test_importing_units_imports_neither_pint_nor_pydantic() -> None:
    code = "import sys, sim.units; print(sorted({'pint', 'pydantic'} & set(sys.modules)))"
    run = subprocess.run(
        [sys.executable, "-c", code],
        env={"PYTHONPATH": ":".join(sys.path)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert run.stdout.strip() == "[]"
