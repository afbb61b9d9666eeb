"""Measured expert layers that say something else than what their columns say."""

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from sim.calibration import kernels
from sim.calibration.kernels import NotMeasuredError

SHAPE = ["hidden_size", "inter_size", "topk", "num_experts"]
SERIES = [*SHAPE, "moe_tp_size", "moe_ep_size"]

BEATS_LIGHT = 0.95
"""A kernel that takes this part of its speed-of-light time or less did less than was counted."""
UNTUNED = 1.35
"""A series that takes this many times what the same kernel takes on a like chip was not tuned.
Series are tuned or not: ratios lie near 1 or between 1.5 and 2.5."""


def without_narrow_routers(rows: pd.DataFrame) -> tuple[pd.DataFrame, int]:
    """Leave out the layers whose router does not reach all experts.

    A router that picks groups of experts first (DeepSeek-V3: 4 of 8) reads half of the weights and
    loads some ranks twice, though the data call it balanced. It shows where a layer is read faster
    than memory can be.

    Returns
    -------
    kept, dropped
        Rows of the other layers, and how many were left out.
    """
    light_s = rows[["compute_s", "memory_s"]].max(axis="columns")
    beaten = rows.loc[rows["time_s"] < BEATS_LIGHT * light_s, SHAPE]
    wrong = _keys(rows, SHAPE).isin(_keys(beaten, SHAPE))
    return rows[~wrong], int(wrong.sum())


def without_untuned_series(rows: pd.DataFrame, siblings: pd.DataFrame) -> tuple[pd.DataFrame, int]:
    """Leave out series that ran much longer than on a chip of like multiprocessors and memory.

    A series is one shape, cut in one way, at all numbers of tokens. Where the tuning of an engine
    picked another kernel for it, all of it is slow. Compared are memory-bound rows of the same
    version of the same kernel, with the fastest sibling.

    Parameters
    ----------
    rows
        Of one kernel on one chip.
    siblings
        Of the same kernel on like chips; may be empty.

    Returns
    -------
    kept, dropped
        Rows of the other series, and how many were left out.
    """
    if siblings.empty:
        return rows, 0
    same = ["kernel_source", "version", "distribution", "num_tokens", *SERIES]
    fastest = siblings.groupby(same, as_index=False)["time_s"].min()
    bound = rows[rows["memory_s"] > rows["compute_s"]]
    compared = bound.merge(fastest, on=same, suffixes=("", "_fastest"))
    if compared.empty:
        return rows, 0
    ratio = (compared["time_s"] / compared["time_s_fastest"]).groupby(
        [compared[name] for name in SERIES]
    )
    slow = ratio.median()
    untuned = _keys(rows, SERIES).isin(slow[slow > UNTUNED].index)
    return rows[~untuned], int(untuned.sum())


def sibling_layers(data_dir: Path, chips: Sequence[str]) -> pd.DataFrame:
    """Read the expert layers of other chips, of all engines and formats."""
    found = []
    for chip in chips:
        try:
            found.append(kernels.expert_times(data_dir, chip))
        except NotMeasuredError:
            continue
    none = pd.DataFrame(columns=["engine", "format"])
    return pd.concat(found, ignore_index=True) if found else none


def _keys(rows: pd.DataFrame, names: list[str]) -> pd.MultiIndex:
    return pd.MultiIndex.from_frame(rows[names])
