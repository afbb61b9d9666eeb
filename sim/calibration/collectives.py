"""Laws of collectives: the lower envelope of a few straight lines for each group of chips."""

import math
from collections.abc import Collection, Iterator, Mapping
from itertools import combinations, pairwise
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
import pandas as pd

from sim.calibration.collective_rows import HOST_RANKS, read_rows
from sim.calibration.regression import (
    Array,
    Knob,
    regress,
    relative_errors,
    residual_report,
    rounded,
    times,
)
from sim.efficiency import Collective, CollectiveLaw, CollectiveLine, Exchange, Fit, Operation
from sim.schema import StrictModel
from sim.units import KB, MB

WIDE_GROUPS = (16, 32, 64, 72)
"""Chips of one domain beyond eight, for racks whose collectives were measured on four."""
SISTER = "B200-SXM"
"""The fabric that shows what eight chips take over four, where only four were measured."""
HELD_OUT = 0.2
"""Fraction of the sizes that `held_out` keeps from the fit."""
FEWEST_ROWS = 8
"""Rows of a group of chips below which a law would only retell them."""


class Series(NamedTuple):
    """Which measured rows belong to one law family."""

    operation: str
    """``op`` in the data."""
    library: str
    """Regular expression on ``implementation`` in the data."""
    ranks_per_host: int = 0
    """Chips in each of several hosts, joined by network cards; 0: all sat in one host."""


_NCCL, _ONECCL = r"^nccl ", r"^oneccl "
_TORCH = r"^NCCL via torch"
OPERATIONS: Mapping[Operation, Mapping[str, Series]] = MappingProxyType(
    {
        "all_reduce": {
            "trtllm": Series("all_reduce", r"^trtllm "),
            "vllm": Series("all_reduce", r"^vllm .*_graph\)$"),
            "sglang": Series("all_reduce", r"^sglang .*_graph\)$"),
            "nccl": Series("all_reduce", _NCCL),
            "nccl_hosts": Series("all_reduce", _TORCH, ranks_per_host=HOST_RANKS),
            "oneccl": Series("all_reduce", _ONECCL),
        },
        "all_gather": {
            "nccl": Series("all_gather", _NCCL),
            "oneccl": Series("all_gather", _ONECCL),
        },
        "reduce_scatter": {
            "nccl": Series("reduce_scatter", _NCCL),
            "oneccl": Series("reduce_scatter", _ONECCL),
        },
        "all_to_all": {"nccl": Series("alltoall", _NCCL)},
        "send": {
            "nccl": Series("send_recv", _TORCH),
            "nccl_hosts": Series("send_recv", _TORCH, ranks_per_host=1),
        },
    }
)
"""Engines time their own all-reduce inside a CUDA graph; eager ones are launch-bound, left out.
Libraries whose name ends in ``_hosts`` were measured across hosts."""

_LOW_LATENCY, _NORMAL = r"^DeepEP low-latency \(", r"^DeepEP normal .* sms=24$"
_TWO_SIDED, _ONE_SIDED = r"NVLinkTwoSided$", r"NVLinkOneSided$"
EXCHANGES: Mapping[Exchange, Mapping[str, Series]] = MappingProxyType(
    {
        "dispatch": {
            "deepep_low_latency": Series("moe_dispatch_low_latency", _LOW_LATENCY),
            "deepep_low_latency_hosts": Series(
                "moe_dispatch_low_latency", _LOW_LATENCY, ranks_per_host=HOST_RANKS
            ),
            "deepep_normal": Series("moe_dispatch_normal", _NORMAL),
            "deepep_normal_hosts": Series(
                "moe_dispatch_normal", _NORMAL, ranks_per_host=HOST_RANKS
            ),
            "trtllm_nvlink": Series("moe_alltoall_dispatch", _TWO_SIDED),
            "trtllm_nvlink_one_sided": Series("moe_alltoall_dispatch", _ONE_SIDED),
        },
        "combine": {
            "deepep_low_latency": Series("moe_combine_low_latency", _LOW_LATENCY),
            "deepep_low_latency_hosts": Series(
                "moe_combine_low_latency", _LOW_LATENCY, ranks_per_host=HOST_RANKS
            ),
            "deepep_normal": Series("moe_combine_normal", _NORMAL),
            "deepep_normal_hosts": Series("moe_combine_normal", _NORMAL, ranks_per_host=HOST_RANKS),
            "trtllm_nvlink": Series("moe_alltoall_combine", _TWO_SIDED),
            "trtllm_nvlink_one_sided": Series("moe_alltoall_combine", _ONE_SIDED),
        },
    }
)

_PURE_RDMA = r"^DeepEP V1 low-latency pure RDMA$"


def fit_collectives(
    data_dir: Path, fabric: str
) -> dict[Operation, dict[str, dict[int, Collective]]]:
    """Fit all collectives of one network.

    Parameters
    ----------
    data_dir
        Folder with ``comms.csv``.
    fabric
        Name of the chip in the data. Where a switched rack of it was measured on four chips only,
        eight and more are forecast by what `SISTER` needs.

    Returns
    -------
    laws
        By operation, library and number of chips; operations and libraries that were not measured
        are left out.
    """
    frame = read_rows(data_dir)
    own, sister = (frame[frame["fabric"] == name] for name in (fabric, SISTER))
    found: dict[Operation, dict[str, dict[int, Collective]]] = {}
    for operation, libraries in OPERATIONS.items():
        laws = {library: fit_series(own, series) for library, series in libraries.items()}
        if fabric.startswith("GB"):
            for library, by_chips in list(laws.items()):
                if 4 in by_chips and 8 not in by_chips:
                    wider = fit_series(sister, libraries[library])
                    if {4, 8} <= wider.keys():
                        laws[library] = {**by_chips, **_widened(by_chips[4], wider)}
        measured = {library: by_chips for library, by_chips in laws.items() if by_chips}
        if measured:
            found[operation] = measured
    return found


def _widened(four: Collective, sister: Mapping[int, Collective]) -> dict[int, Collective]:
    """Forecast eight chips and more of a domain whose collectives were measured on four."""
    size = np.geomspace(KB, 1000 * MB, 40)
    eight = scale_up(four, sister[4], sister[8], size)
    start_step_s = min(float(sister[8].law.seconds(0.0) - sister[4].law.seconds(0.0)), 1e-3)
    return {8: eight} | {chips: widen(eight, start_step_s, chips) for chips in WIDE_GROUPS}


def fit_exchanges(
    data_dir: Path, fabric: str, rack: str | None = None
) -> dict[Exchange, dict[str, dict[int, Collective]]]:
    """Fit the expert exchanges of one network.

    Parameters
    ----------
    data_dir
        Folder with ``comms.csv``.
    fabric
        Name of the chip in the data.
    rack
        Chip with the same NVLink, whose exchange over many chips stands in.

    Returns
    -------
    laws
        By half, library and number of chips; libraries that were not measured are left out.
    """
    everything = read_rows(data_dir)
    frame = with_prepare(everything[everything["fabric"] == fabric])
    if rack is not None:
        other = with_prepare(everything[everything["fabric"] == rack])
        frame = pd.concat([frame, other[other["op"].str.startswith("moe_alltoall")]])
    rdma = everything[everything["library"].str.contains(_PURE_RDMA)]
    found: dict[Exchange, dict[str, dict[int, Collective]]] = {}
    for half, libraries in EXCHANGES.items():
        laws = {library: fit_series(frame, series) for library, series in libraries.items()}
        low = laws["deepep_low_latency_hosts"]
        if low:
            low |= more_hosts(low, rdma[rdma["op"] == f"moe_{half}_low_latency"])
        if rack is not None:
            text = f"measured on {rack}, same NVLink"
            for library in ("trtllm_nvlink", "trtllm_nvlink_one_sided"):
                laws[library] = {n: note(law, text) for n, law in laws[library].items()}
        found[half] = {library: by_chips for library, by_chips in laws.items() if by_chips}
    return {half: libraries for half, libraries in found.items() if libraries}


def more_hosts(laws: Mapping[int, Collective], rdma: pd.DataFrame) -> dict[int, Collective]:
    """Forecast an exchange over more hosts than were swept.

    Parameters
    ----------
    laws
        By number of chips.
    rdma
        One size of the same exchange on another chip, over as many chips and over more of them.

    Returns
    -------
    laws
        Of the larger groups: the largest measured law, slower by as much as the other chip is.
    """
    widest = max(laws)
    seconds = {int(n): float(s) for n, s in zip(rdma["chips"], rdma["time_s"], strict=True)}
    wider = [n for n in seconds if n > widest and widest in seconds]
    slower = {n: seconds[n] / seconds[widest] for n in wider}
    base = laws[widest]
    return {
        chips: base.model_copy(
            update={
                "law": CollectiveLaw(lines=tuple(_scaled(line, ratio) for line in base.law.lines)),
                "fit": None,
                "extrapolated": (
                    f"not measured: law of {widest} chips times {ratio:.3g}, what {chips} H800 "
                    f"take over {widest} for 128 tokens a rank (deepseek-ai/DeepEP, docs/legacy.md)"
                ),
            }
        )
        for chips, ratio in ((n, max(ratio, 1.0)) for n, ratio in slower.items())
    }


def _scaled(line: CollectiveLine, ratio: float) -> CollectiveLine:
    return CollectiveLine(
        start_s=rounded(line.start_s * ratio),
        seconds_per_byte=rounded(line.seconds_per_byte * ratio),
    )


def fit_series(frame: pd.DataFrame, series: Series) -> dict[int, Collective]:
    """Fit one law per number of chips.

    Parameters
    ----------
    frame
        As `sim.calibration.collective_rows.read_rows` returns it, of one network.
    series
        Which rows to take. Where several versions of a library were measured on a number of
        chips, the one with most rows; int8 is left out (NCCL reduces it slower than bf16).

    Returns
    -------
    laws
        By number of chips; empty if nothing was measured.
    """
    return {chips: _fit_group(group) for chips, group in _groups(frame, series)}


def _groups(frame: pd.DataFrame, series: Series) -> Iterator[tuple[int, pd.DataFrame]]:
    """Go through the rows of a series, by number of chips."""
    rows = frame[frame["op"] == series.operation]
    rows = rows[rows["library"].str.contains(series.library) & (rows["dtype"] != "int8")]
    rows = rows[rows["ranks_per_host"] == series.ranks_per_host]
    for chips, group in rows.groupby("chips"):
        version = group[group["library"] == group["library"].mode()[0]]
        if len(version) >= FEWEST_ROWS:
            yield int(str(chips)), version


def _fit_group(rows: pd.DataFrame) -> Collective:
    law, message_bytes = _fit_rows(rows)
    named = rows.assign(origin=rows["source"] + ", " + rows["library"])
    report = residual_report(named, law.seconds(_loads(rows, message_bytes)), ["bytes"], note=None)
    return Collective(law=law, fit=report, message_bytes=message_bytes)


def _loads(rows: pd.DataFrame, message_bytes: float) -> Array:
    """Payload and what the messages of an exchange add to it, bytes."""
    size = rows["bytes"].to_numpy(dtype=float)
    if message_bytes == 0.0:
        return size
    loads: Array = size + message_bytes * rows["picks"].to_numpy(dtype=float)
    return loads


def _fit_rows(rows: pd.DataFrame) -> tuple[CollectiveLaw, float]:
    """Fit lines, and the cost of a message where rows have messages of different sizes."""
    size, time_s = rows["bytes"].to_numpy(dtype=float), times(rows)
    message = rows["bytes"] / rows["picks"]
    if message.isna().any() or message.max() < 2.0 * message.min():
        return fit_lines(size, time_s), 0.0
    return _fit_best(size, time_s, rows["picks"].to_numpy(dtype=float))


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
    return _fit_best(size, time_s, np.zeros_like(size))[0]


def _fit_best(size: Array, time_s: Array, picks: Array) -> tuple[CollectiveLaw, float]:
    start = _FIRST_MESSAGE_BYTES * picks
    order = np.argsort(size + start)
    loads = (size + start)[order]
    fitted = [_fit_from(chords, size, time_s, picks) for chords in _starts(loads, time_s[order])]

    def miss(lines: "_Lines") -> float:
        law = lines.law()
        loads = size + lines.message_bytes * picks
        return float(np.abs(np.log(law.seconds(loads) / time_s)).mean())

    best = min(fitted, key=miss)
    law = _without_idle_lines(best.law(), size + best.message_bytes * picks)
    return law, best.message_bytes


_FIRST_MESSAGE_BYTES = 3000.0
"""Where the search for the cost of a message starts."""


def _fit_from(chords: list[CollectiveLine], size: Array, time_s: Array, picks: Array) -> "_Lines":
    knobs: dict[str, Knob] = {}
    for index, chord in enumerate(chords):
        knobs[f"start_{index}"] = Knob(chord.start_s, 1e-7, 1e-2)
        knobs[f"slope_{index}"] = Knob(chord.seconds_per_byte, 1e-14, 1e-7)
    fixed = {} if picks.any() else {"message_bytes": 0.0}
    if picks.any():
        knobs["message_bytes"] = Knob(_FIRST_MESSAGE_BYTES, 1.0, 1e5, zero_at_low=True)

    def lines_s(lines: "_Lines", _: pd.DataFrame) -> Array:
        return lines.law().seconds(size + lines.message_bytes * picks)

    return regress(_Lines, knobs, lines_s, pd.DataFrame({"time_s": time_s}), fixed=fixed)


class _Lines(StrictModel):
    """The flat form of a `CollectiveLaw` while it is being fitted."""

    start_0: float
    slope_0: float
    start_1: float
    slope_1: float
    start_2: float
    slope_2: float
    message_bytes: float
    """What a message adds to the payload."""

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

    TensorRT-LLM's two-sided kernels count and plan an exchange in a call of its own, once per
    layer; the one-sided ones have no such call. A dispatch whose plan was not timed is left out.
    """
    prepare = frame[frame["op"] == "moe_alltoall_prepare"]
    planned = prepare.groupby(["library", "chips", "tokens"])["time_s"].median()
    dispatch = frame["op"] == "moe_alltoall_dispatch"
    dispatch &= frame["library"].isin(prepare["library"])
    keys = pd.MultiIndex.from_frame(frame.loc[dispatch, ["library", "chips", "tokens"]])
    whole = frame.copy()
    whole.loc[dispatch, "time_s"] += planned.reindex(keys).to_numpy()
    return whole[whole["time_s"].notna()]


def note(collective: Collective, text: str) -> Collective:
    """Attach a note to the fit of a collective that was measured."""
    fit = collective.fit
    noted: Fit | None = None if fit is None else fit.model_copy(update={"note": text})
    return collective.model_copy(update={"fit": noted})


def held_out(data_dir: Path, seed: int = 0, fabrics: Collection[str] | None = None) -> pd.DataFrame:
    """Forecast sizes that the fit has not seen.

    For each network, library, operation and number of chips a random fifth of the sizes is kept
    back, the law is fitted to the rest and asked for those sizes.

    Parameters
    ----------
    data_dir
        Folder with ``comms.csv``.
    seed
        Of the choice of sizes.
    fabrics
        Names in the data; all unless given.

    Returns
    -------
    errors
        One row per law: ``fabric, operation, library, chips, rows, held_rows``, the
        ``median_ape, p90_ape, bias`` of the rows held out, and their ``errors``, an array of
        |forecast / measured - 1|.
    """
    frame = read_rows(data_dir)
    if fabrics is not None:
        frame = frame[frame["fabric"].isin(list(fabrics))]
    chooser = np.random.default_rng(seed)
    families: list[tuple[str, Mapping[str, Series]]] = [*OPERATIONS.items(), *EXCHANGES.items()]
    found = []
    for fabric, own in frame.groupby("fabric"):
        rows = with_prepare(own)
        for operation, libraries in families:
            for library, series in libraries.items():
                for chips, group in _groups(rows, series):
                    errors = _held_out_errors(group, chooser)
                    names = {"fabric": fabric, "operation": operation, "library": library}
                    found.append({**names, "chips": chips, **errors})
    return pd.DataFrame(found)


def _held_out_errors(group: pd.DataFrame, chooser: np.random.Generator) -> dict[str, object]:
    sizes = np.sort(group["bytes"].unique())
    kept_back = chooser.choice(sizes, max(1, round(HELD_OUT * len(sizes))), replace=False)
    unseen = group["bytes"].isin(kept_back)
    law, message_bytes = _fit_rows(group[~unseen])
    asked = group[unseen]
    forecast_s = law.seconds(_loads(asked, message_bytes))
    figures = relative_errors(forecast_s, times(asked))
    errors = np.abs(forecast_s / times(asked) - 1.0)
    return {"rows": len(group), "held_rows": len(asked), **figures, "errors": errors}
