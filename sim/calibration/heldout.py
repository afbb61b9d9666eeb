"""How laws do on rows that they were not fitted to, and on chips that they were not fitted to."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from sim.calibration.kernel_laws import Group, Study, groups
from sim.calibration.regression import Array, Errors, relative_errors, times
from sim.seeds import stream

FOLDS = 5
"""Parts of a group; each is held out once, and forecast by a law fitted to the others."""
SEED = 1

LIMITS: Mapping[str, float] = {
    "gemm": 0.10,
    "decode_attention": 0.10,
    "mla_decode": 0.10,
    "grouped_gemm": 0.15,
    "prefill_attention": 0.15,
    "mla_prefill": 0.15,
}
"""Median error on rows held out that each family is meant to stay below."""


class Quality(NamedTuple):
    """How well one group of rows is described."""

    accelerator: str
    engine: str
    family: str
    name: str
    dtype: str
    """What it is pooled by, beside the chip and the family: number formats, whatever the engine,
    the head size and the window."""
    rows: int
    fitted: Errors
    """On all rows, of the law that was fitted to all of them."""
    held_out: Errors
    """On all rows, each held out once, of laws that were fitted to others."""
    errors: Array
    """Of the rows when held out: |forecast / measured - 1|."""
    law: Any
    """Fitted to all rows."""

    @property
    def reached(self) -> bool:
        """Whether the error on rows held out is below the limit of the family."""
        return self.held_out["median_ape"] < LIMITS[self.family]


class Pooled(NamedTuple):
    """How well all laws of one family and number format on one chip do, their rows together."""

    accelerator: str
    family: str
    dtype: str
    laws: int
    rows: int
    median_ape: float
    """Of rows held out."""
    p90_ape: float

    @property
    def limit(self) -> float:
        """Median error that the family is meant to stay below."""
        return LIMITS[self.family]

    @property
    def reached(self) -> bool:
        """Whether it does."""
        return self.median_ape < self.limit


def folds(rows: pd.DataFrame, *names: str) -> Iterator[tuple[pd.DataFrame, "pd.Series[bool]"]]:
    """Cut rows into random fifths of a fixed seed, which the names choose.

    Yields
    ------
    kept, held_out
        Four fifths of the rows, and a mask of the fifth that is none of them.

    Examples
    --------
    >>> rows = pd.DataFrame({"m": range(100)})
    >>> [(len(kept), int(out.sum())) for kept, out in folds(rows, "a chip", "gemm fp8")]
    [(80, 20), (80, 20), (80, 20), (80, 20), (80, 20)]
    """
    order = stream(SEED, "held out", *names).permutation(len(rows))
    for part in np.array_split(order, FOLDS):
        held_out = pd.Series(np.isin(np.arange(len(rows)), part), index=rows.index)
        yield rows[~held_out], held_out


def qualities(accelerator: str, study: Study) -> Iterator[Quality]:
    """Fit every group of a chip to all of its rows, and to each four fifths of them."""
    for group in groups(study):
        names = (accelerator, group.engine, group.family, group.name)
        measured_s = times(group.rows)
        forecast_s = np.empty(len(group.rows))
        for kept, held_out in folds(group.rows, *names):
            law = group.problem.fit(kept)
            forecast_s[held_out] = group.problem.forecast(law, group.rows[held_out])
        law = group.problem.fit(group.rows)
        fitted_s = group.problem.forecast(law, group.rows)
        yield Quality(
            *names,
            group.dtype,
            len(group.rows),
            relative_errors(fitted_s, measured_s),
            relative_errors(forecast_s, measured_s),
            np.abs(forecast_s / measured_s - 1.0),
            law,
        )


def pooled(found: Sequence[Quality]) -> Iterator[Pooled]:
    """Put the rows of all engines, head sizes and windows of a chip's number format together."""
    together: dict[tuple[str, str, str], list[Quality]] = {}
    for each in found:
        together.setdefault((each.accelerator, each.family, each.dtype), []).append(each)
    for names, laws in together.items():
        errors = np.concatenate([each.errors for each in laws])
        yield Pooled(
            *names,
            len(laws),
            len(errors),
            float(np.median(errors)),
            float(np.quantile(errors, 0.9)),
        )


Laws = Mapping[tuple[str, str, str], Any]
"""Fitted law of every group of a chip, by engine, family and name."""


def laws_of(found: Sequence[Quality]) -> Laws:
    """Take the laws that were fitted to all rows of a chip."""
    return {(each.engine, each.family, each.name): each.law for each in found}


def stand_ins(
    laws: Laws, rows: Sequence[Group[Any]], *, same_engine: bool
) -> Iterator[tuple[str, float]]:
    """Forecast a chip's rows with laws that were fitted to others.

    Parameters
    ----------
    laws
        Of this chip or of another one.
    rows
        Groups of the chip whose rows are forecast.
    same_engine
        Take the law of the engine that was measured; else those of all other engines.

    Yields
    ------
    family, median_ape
        Of one group of rows under one law.
    """
    for group in rows:
        for (engine, family, name), law in laws.items():
            if (family, name) != (group.family, group.name):
                continue
            if (engine == group.engine) == same_engine:
                forecast_s = group.problem.forecast(law, group.rows)
                yield family, relative_errors(forecast_s, times(group.rows))["median_ape"]


class Transfer(NamedTuple):
    """How the laws of one chip do on another, in units of the other's peaks."""

    donor: str
    accelerator: str
    family: str
    groups: int
    rows: int
    errors: Errors
    worst_group: float
    """Largest median error of a group."""


def transfers(
    donor: str, laws: Laws, accelerator: str, rows: Sequence[Group[Any]]
) -> Iterator[Transfer]:
    """Forecast the kernels of a chip with the laws of another: a prior whose ratios are all 1."""
    found: dict[str, list[tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]]] = {}
    for group in rows:
        law = laws.get((group.engine, group.family, group.name))
        if law is not None:
            pair = (group.problem.forecast(law, group.rows), times(group.rows))
            found.setdefault(group.family, []).append(pair)
    for family, pairs in found.items():
        forecast_s, measured_s = (np.concatenate(each) for each in zip(*pairs, strict=True))
        medians = [relative_errors(*pair)["median_ape"] for pair in pairs]
        errors = relative_errors(forecast_s, measured_s)
        yield Transfer(
            donor, accelerator, family, len(pairs), len(measured_s), errors, max(medians)
        )
