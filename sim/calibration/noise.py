"""What measurements differ by among themselves: no forecast can be closer to all of them.

Two kinds of pairs tell. Runs of one configuration and one release of the engine differ by chance.
Runs of one configuration and two releases differ by what engines got better or worse at, which a
forecaster with one law per engine does not know: its best answer lies between them, half of their
difference from either.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from itertools import combinations

import numpy as np
import pandas as pd

from sim.calibration.runs import MeasuredRun

REPEATED = "same release"
OTHER_RELEASE = "another release"


def pairs(runs: Iterable[MeasuredRun]) -> pd.DataFrame:
    """List the pairs of runs that differ in nothing but chance or the engine's release.

    Returns
    -------
    pairs : DataFrame
        ``quantity, kind, engine, difference``, one row per pair and figure that both have; the
        difference is ``|log(a / b)|``.
    """
    alike: dict[str, list[MeasuredRun]] = defaultdict(list)
    for run in runs:
        alike[_configuration(run)].append(run)
    return pd.DataFrame(
        (row for group in alike.values() for row in _differences(group)),
        columns=["quantity", "kind", "engine", "difference"],
    )


def _configuration(run: MeasuredRun) -> str:
    """Write down all of a run but its figures and what comes with the engine's release."""
    case = run.case
    fields = {"system", "systems", "model", "parallelism", "precision", "replicas", "workload"}
    told = case.model_dump_json(include=fields)
    return f"{run.source} {case.engine.kernels} {case.engine.speculation} {run.statistic} {told}"


def _differences(group: Sequence[MeasuredRun]) -> Iterator[tuple[str, str, str, float]]:
    for one, other in combinations(group, 2):
        kind = REPEATED if one.engine == other.engine else OTHER_RELEASE
        if kind == REPEATED and one.case.engine != other.case.engine:
            continue  # one release started with other settings
        for quantity in one.measured.keys() & other.measured.keys():
            ratio = one.measured[quantity] / other.measured[quantity]
            yield quantity, kind, one.case.engine.kernels, abs(float(np.log(ratio)))


def floors(found: pd.DataFrame, by: Sequence[str] = ()) -> pd.DataFrame:
    """Sum pairs up by figure and kind.

    Parameters
    ----------
    found : DataFrame
        From `pairs`.
    by : sequence of str
        Other columns to sum up by.

    Returns
    -------
    floors : DataFrame
        ``pairs``, the median and the 90th percentile of their differences as fractions, and
        ``floor_fraction``, the median error of the best single answer to both of a pair.
    """
    groups = found.groupby(["quantity", "kind", *by])["difference"]
    table = groups.agg(
        pairs="size",
        median_fraction=lambda d: float(np.expm1(d.median())),
        p90_fraction=lambda d: float(np.expm1(d.quantile(0.9))),
        floor_fraction=lambda d: float(np.expm1(d.median() / 2)),
    )
    return table.reset_index()
