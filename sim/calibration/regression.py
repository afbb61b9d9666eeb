"""Fitting one law to measured times, and saying how well it holds.

Laws are fitted on the logarithm of the time, so that a row of 5 us and a row of 5 ms count alike,
with a soft-L1 loss: a row that is off by more than about `LOSS_SCALE` (a kernel badly chosen, a
hiccup of the machine) pulls in proportion to its distance, not to its square. Coefficients are
kept to four digits, and residuals are those of the rounded law.
"""

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple, TypedDict, TypeVar, cast

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.optimize import least_squares

from sim.efficiency import Fit
from sim.schema import StrictModel

LOSS_SCALE = 0.1
DIGITS = 4

Array = NDArray[np.float64]
LawT = TypeVar("LawT", bound=StrictModel)


class Knob(NamedTuple):
    """A positive coefficient to fit: where to start, where to stay, what its low bound means."""

    start: float
    low: float
    high: float
    zero_at_low: bool = False
    """The law allows 0, and a coefficient pushed to its low bound is 0."""


def regress(
    law_type: type[LawT],
    knobs: Mapping[str, Knob],
    forecast: Callable[[LawT, pd.DataFrame], Array],
    rows: pd.DataFrame,
    fixed: Mapping[str, float] = MappingProxyType({}),
    weights: Array | float = 1.0,
) -> LawT:
    """Fit a law to measurements.

    Parameters
    ----------
    law_type
        The law; its fields are the keys of ``knobs`` and ``fixed``.
    knobs
        Coefficients to fit, searched on a logarithmic scale.
    forecast
        What a candidate law says for every row.
    rows
        Measurements; ``time_s`` is what was measured, all positive.
    fixed
        Coefficients that the measurements do not show, and their values.
    weights
        Of the rows' residuals before the loss.

    Returns
    -------
    law
        With coefficients of four digits.

    Examples
    --------
    Times of 2 us + 3 * size give back the line that made them:

    >>> from sim.efficiency import CollectiveLine
    >>> rows = pd.DataFrame({"size": [0.0, 1e3, 1e6, 1e9]})
    >>> rows["time_s"] = 2e-6 + 3e-12 * rows["size"]
    >>> knobs = {"start_s": Knob(1e-6, 1e-8, 1e-3), "seconds_per_byte": Knob(1e-9, 1e-13, 1e-8)}
    >>> regress(CollectiveLine, knobs,
    ...         lambda line, rows: line.start_s + line.seconds_per_byte * rows["size"].to_numpy(),
    ...         rows)
    CollectiveLine(start_s=2e-06, seconds_per_byte=3e-12)
    """
    measured = times(rows)

    def residuals(logs: Array) -> Array:
        values = dict(zip(knobs, np.exp(logs).tolist(), strict=True)) | dict(fixed)
        candidate = law_type.model_construct(None, **values)
        return weights * np.log(forecast(cast("LawT", candidate), rows) / measured)

    found = least_squares(
        residuals,
        np.log([knob.start for knob in knobs.values()]),
        bounds=(
            np.log([knob.low for knob in knobs.values()]),
            np.log([knob.high for knob in knobs.values()]),
        ),
        loss="soft_l1",
        f_scale=LOSS_SCALE,
    )
    values = zip(knobs, np.exp(found.x).tolist(), strict=True)
    return law_type(**{name: _settled(value, knobs[name]) for name, value in values}, **fixed)


def times(rows: pd.DataFrame) -> Array:
    """Take the measured times out of a frame, seconds."""
    return rows["time_s"].to_numpy(dtype=float)


def columns(rows: pd.DataFrame, *names: str) -> dict[str, Any]:
    """Take columns out of a frame, as the arguments of a law that has their names."""
    return {name: rows[name].to_numpy(dtype=float) for name in names}


def residual_report(
    rows: pd.DataFrame, forecast_s: Array, ranges: Sequence[str], note: str | None
) -> Fit:
    """Say how well a law holds on the rows it was fitted to.

    Parameters
    ----------
    rows
        Measured rows with ``time_s`` and ``origin`` (file, engine and version).
    forecast_s
        What the law says for each row, seconds.
    ranges
        Columns whose range bounds the validity of the law.
    note
        What the numbers do not say.
    """
    errors = relative_errors(forecast_s, times(rows))
    limits = {name: (float(rows[name].min()), float(rows[name].max())) for name in ranges}
    origin = "; ".join(str(name) for name in rows["origin"].unique())
    return Fit(rows=len(rows), **errors, ranges=limits, source=origin, note=note)


class Errors(TypedDict):
    """Three figures of a set of relative errors."""

    median_ape: float
    p90_ape: float
    bias: float


def relative_errors(forecast: Array, measured: Array) -> Errors:
    """Median and 90th percentile of |f/m - 1|, and the mean of f/m - 1.

    >>> relative_errors(np.array([9.0, 10.0, 13.0]), np.array([10.0, 10.0, 10.0]))["median_ape"]
    0.1
    """
    relative = forecast / measured - 1.0
    return Errors(
        median_ape=rounded(float(np.median(np.abs(relative)))),
        p90_ape=rounded(float(np.quantile(np.abs(relative), 0.9))),
        bias=rounded(float(np.mean(relative))),
    )


def rounded(value: float) -> float:
    """Keep four significant digits.

    >>> rounded(1 / 3)
    0.3333
    """
    return float(f"{value:.{DIGITS}g}")


def _settled(value: float, knob: Knob) -> float:
    at_low = value < 1.5 * knob.low
    return 0.0 if knob.zero_at_low and at_low else rounded(value)
