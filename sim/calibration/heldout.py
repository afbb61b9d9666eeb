"""How laws do on rows that they were not fitted to, and on chips that they were not fitted to."""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from sim.calibration.kernel_laws import Group, Study, groups
from sim.calibration.regression import Errors, relative_errors, times
from sim.seeds import stream

HELD_OUT = 0.2
"""Fraction of the rows of a group that a law does not see."""
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
    rows: int
    fitted: Errors
    """On all rows, of the law that was fitted to all of them."""
    held_out: Errors
    """On rows held out, of a law that was fitted to the others."""

    @property
    def reached(self) -> bool:
        """Whether the error on rows held out is below the limit of the family."""
        return self.held_out["median_ape"] < LIMITS[self.family]


def split(rows: pd.DataFrame, *names: str) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Hold out a fixed random fifth of some rows; the names choose which.

    Examples
    --------
    >>> kept, held_out = split(pd.DataFrame({"m": range(100)}), "a chip", "gemm fp8")
    >>> len(kept), len(held_out)
    (80, 20)
    """
    order = stream(SEED, "held out", *names).permutation(len(rows))
    held_out = np.zeros(len(rows), dtype=bool)
    held_out[order[: round(HELD_OUT * len(rows))]] = True
    return rows[~held_out], rows[held_out]


def qualities(accelerator: str, study: Study) -> Iterator[Quality]:
    """Fit every group of a chip twice: to all rows, and to four fifths of them."""
    for group in groups(study):
        kept, held_out = split(group.rows, accelerator, group.engine, group.family, group.name)
        yield Quality(
            accelerator,
            group.engine,
            group.family,
            group.name,
            len(group.rows),
            _errors(group, group.problem.fit(group.rows), group.rows),
            _errors(group, group.problem.fit(kept), held_out),
        )


def _errors(group: Group[Any], law: Any, rows: pd.DataFrame) -> Errors:
    return relative_errors(group.problem.forecast(law, rows), times(rows))


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


def transfers(donor: str, of_donor: Study, accelerator: str, study: Study) -> Iterator[Transfer]:
    """Forecast the kernels of a chip with the laws of another: a prior whose ratios are all 1."""
    laws = {
        (group.engine, group.family, group.name): group.problem.fit(group.rows)
        for group in groups(of_donor)
    }
    found: dict[str, list[tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]]] = {}
    for group in groups(study):
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
