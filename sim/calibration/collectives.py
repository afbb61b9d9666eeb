"""Laws of collectives: the lower envelope of a few straight lines for each group of chips."""

import math
from collections.abc import Iterator, Mapping
from itertools import combinations, pairwise
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
import pandas as pd

from sim.calibration.regression import Array, Knob, regress, residual_report, rounded, times
from sim.efficiency import Collective, CollectiveLaw, CollectiveLine, Exchange, Fit, Operation
from sim.schema import StrictModel

MOST_LINES = 3
"""One-shot, two-shot and ring: no library has been seen to need more."""


class Series(NamedTuple):
    """Which measured rows belong to one law family."""

    operation: str
    """``op`` in the data."""
    library: str
    """Regular expression on ``implementation`` in the data."""


_NCCL = r"^nccl "
OPERATIONS: Mapping[Operation, Mapping[str, Series]] = MappingProxyType(
    {
        "all_reduce": {
            "trtllm": Series("all_reduce", r"^trtllm "),
            "vllm": Series("all_reduce", r"^vllm .*_graph\)$"),
            "sglang": Series("all_reduce", r"^sglang .*_graph\)$"),
            "nccl": Series("all_reduce", _NCCL),
        },
        "all_gather": {"nccl": Series("all_gather", _NCCL)},
        "reduce_scatter": {"nccl": Series("reduce_scatter", _NCCL)},
        "all_to_all": {"nccl": Series("alltoall", _NCCL)},
    }
)
"""Engines time their own all-reduce inside a CUDA graph; eager ones are launch-bound, left out."""

_DEEPEP = {"low_latency": r"^DeepEP low-latency", "normal": r"^DeepEP normal .* sms=24$"}
EXCHANGES: Mapping[Exchange, Mapping[str, Series]] = MappingProxyType(
    {
        "dispatch": {
            "deepep_low_latency": Series("moe_dispatch_low_latency", _DEEPEP["low_latency"]),
            "deepep_normal": Series("moe_dispatch_normal", _DEEPEP["normal"]),
            "trtllm_nvlink": Series("moe_alltoall_dispatch", r"NVLinkTwoSided$"),
        },
        "combine": {
            "deepep_low_latency": Series("moe_combine_low_latency", _DEEPEP["low_latency"]),
            "deepep_normal": Series("moe_combine_normal", _DEEPEP["normal"]),
            "trtllm_nvlink": Series("moe_alltoall_combine", r"NVLinkTwoSided$"),
        },
    }
)


def fit_series(frame: pd.DataFrame, series: Series) -> dict[int, Collective]:
    """Fit one law per number of chips.

    Parameters
    ----------
    frame
        As `sim.calibration.kernels.collectives` returns it, of one chip.
    series
        Which rows to take. Where several versions of a library were measured on a number of
        chips, the one with most rows; int8 is left out (NCCL reduces it slower than bf16).

    Returns
    -------
    laws
        By number of chips; empty if nothing was measured.
    """
    rows = frame[frame["op"] == series.operation]
    rows = rows[rows["library"].str.contains(series.library) & (rows["dtype"] != "int8")]
    return {
        int(str(chips)): _fit_group(group[group["library"] == group["library"].mode()[0]])
        for chips, group in rows.groupby("chips")
    }


def _fit_group(rows: pd.DataFrame) -> Collective:
    size = rows["bytes"].to_numpy(dtype=float)
    law = fit_lines(size, times(rows))
    named = rows.assign(origin=rows["source"] + ", " + rows["library"])
    return Collective(law=law, fit=residual_report(named, law.seconds(size), ["bytes"], note=None))


def fit_lines(size: Array, time_s: Array) -> CollectiveLaw:
    """Fit the lower envelope of at most three lines.

    Parameters
    ----------
    size
        Bytes.
    time_s
        Measured times, seconds.

    Examples
    --------
    >>> size = np.geomspace(256, 1e9, 40)
    >>> law = fit_lines(size, np.minimum(3e-6 + 4e-11 * size, 2e-5 + 4e-12 * size))
    >>> bool(abs(law.seconds(1e9) / (2e-5 + 4e-3) - 1) < 0.02)
    True
    """
    order = np.argsort(size)
    fitted = [_fit_from(chords, size, time_s) for chords in _starts(size[order], time_s[order])]
    best = min(fitted, key=lambda law: float(np.abs(np.log(law.seconds(size) / time_s)).mean()))
    return _without_idle_lines(best, size)


def _fit_from(chords: list[CollectiveLine], size: Array, time_s: Array) -> CollectiveLaw:
    knobs: dict[str, Knob] = {}
    for index, chord in enumerate(chords):
        knobs[f"start_{index}"] = Knob(chord.start_s, 1e-7, 1e-2)
        knobs[f"slope_{index}"] = Knob(chord.seconds_per_byte, 1e-14, 1e-7)
    rows = pd.DataFrame({"bytes": size, "time_s": time_s})
    return regress(_Lines, knobs, _lines_s, rows).law()


def _lines_s(lines: "_Lines", rows: pd.DataFrame) -> Array:
    return lines.law().seconds(rows["bytes"].to_numpy(dtype=float))


class _Lines(StrictModel):
    """The flat form of a `CollectiveLaw` while it is being fitted."""

    start_0: float
    slope_0: float
    start_1: float
    slope_1: float
    start_2: float
    slope_2: float

    def law(self) -> CollectiveLaw:
        lines = (
            CollectiveLine.model_construct(start_s=start, seconds_per_byte=slope)
            for start, slope in (
                (self.start_0, self.slope_0),
                (self.start_1, self.slope_1),
                (self.start_2, self.slope_2),
            )
        )
        return CollectiveLaw.model_construct(lines=tuple(lines))


def _starts(size: Array, time_s: Array) -> Iterator[list[CollectiveLine]]:
    """Propose starting points: chords over three pieces of the sorted sizes, cut in many ways.

    The envelope of lines has local optima, so one starting point is not enough.
    """
    cuts = np.unique(np.linspace(0, len(size) - 1, 7).astype(int))
    for first, second in combinations(cuts[1:-1].tolist(), 2):
        edges = (0, first, second, len(size) - 1)
        yield [_chord(size[[low, high]], time_s[[low, high]]) for low, high in pairwise(edges)]


def _chord(size: Array, time_s: Array) -> CollectiveLine:
    run = max(float(size[1] - size[0]), 1.0)
    slope = float(np.clip((time_s[1] - time_s[0]) / run, 1e-13, 1e-8))
    start = float(np.clip(time_s[1] - slope * size[1], 1e-6, 1e-3))
    return CollectiveLine(start_s=start, seconds_per_byte=slope)


def _without_idle_lines(law: CollectiveLaw, size: Array) -> CollectiveLaw:
    """Keep the lines that are lowest somewhere in the measured range, cheapest start first."""
    times = np.array([line.start_s + line.seconds_per_byte * size for line in law.lines])
    used = sorted(set(np.argmin(times, axis=0).tolist()), key=lambda i: law.lines[i].start_s)
    return CollectiveLaw(lines=tuple(CollectiveLine(**dict(law.lines[i])) for i in used))


def scale_up(
    four: Collective, sister_four: Collective, sister_eight: Collective, size: Array
) -> Collective:
    """Forecast eight chips from four by what a sister chip shows.

    Parameters
    ----------
    four
        Measured over four chips.
    sister_four, sister_eight
        Measured on the sister chip over four and over eight.
    size
        Bytes at which the ratio is taken.
    """
    ratio = sister_eight.law.seconds(size) / sister_four.law.seconds(size)
    rule = (
        "not measured: law of 4 chips times what 8 chips take over 4 on the sister chip "
        "b200_sxm, size by size"
    )
    return Collective(law=fit_lines(size, four.law.seconds(size) * ratio), extrapolated=rule)


def widen(eight: Collective, start_step_s: float, chips: int) -> Collective:
    """Forecast more than eight chips of one switched domain.

    Parameters
    ----------
    eight
        Law of eight chips.
    start_step_s
        What doubling from four to eight chips adds to an empty call, seconds.
    chips
        Number of chips, more than eight.

    Returns
    -------
    collective
        Every doubling adds ``start_step_s``; time per byte grows with the bytes on a chip's
        link, ``(chips - 1) / chips`` (https://github.com/NVIDIA/nccl-tests, PERFORMANCE.md).

    Examples
    --------
    >>> line = CollectiveLine(start_s=5e-6, seconds_per_byte=7e-12)
    >>> eight = Collective(law=CollectiveLaw(lines=(line,)), extrapolated="by hand")
    >>> widen(eight, 1e-6, 16).law.lines
    (CollectiveLine(start_s=6e-06, seconds_per_byte=7.5e-12),)
    """
    doublings = math.log2(chips / 8)
    wire = ((chips - 1) / chips) / (7 / 8)
    lines = tuple(
        CollectiveLine(
            start_s=rounded(line.start_s + doublings * max(start_step_s, 0.0)),
            seconds_per_byte=rounded(line.seconds_per_byte * wire),
        )
        for line in eight.law.lines
    )
    rule = (
        "not measured: law of 8 chips; each doubling adds to the start what 8 chips need over 4, "
        "time per byte grows as (chips - 1) / chips"
    )
    return Collective(law=CollectiveLaw(lines=lines), extrapolated=rule)


def with_prepare(frame: pd.DataFrame) -> pd.DataFrame:
    """Add the time of ``moe_alltoall_prepare`` to the dispatch of as many tokens.

    TensorRT-LLM counts and plans an exchange in a call of its own, once per layer.
    """
    prepare = frame[frame["op"] == "moe_alltoall_prepare"]
    planned = prepare.groupby(["chips", "tokens"])["time_s"].median()
    dispatch = frame["op"] == "moe_alltoall_dispatch"
    keys = pd.MultiIndex.from_frame(frame.loc[dispatch, ["chips", "tokens"]])
    whole = frame.copy()
    whole.loc[dispatch, "time_s"] += planned.reindex(keys).to_numpy()
    return whole


def note(collective: Collective, text: str) -> Collective:
    """Attach a note to the fit of a collective that was measured."""
    fit = collective.fit
    noted: Fit | None = None if fit is None else fit.model_copy(update={"note": text})
    return collective.model_copy(update={"fit": noted})
