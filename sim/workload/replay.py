"""Recorded traces as traffic: the columns of a trace in the form of every other workload."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from sim.errors import InputError
from sim.workload.requests import MOST_TENANTS, Traffic, as_tokens
from sim.workload.traces import READ_COLUMNS, WHOLE_TRACE, TraceKind, TraceOptions, read_trace

_LARGEST_PRIORITY = 32_767


def replayed(
    path: Path, kind: TraceKind, options: TraceOptions = WHOLE_TRACE, seed: int = 0
) -> Traffic:
    """Read a trace to replay it.

    Parameters
    ----------
    path, kind, options, seed
        See `sim.workload.traces.read_trace`.

    Raises
    ------
    InputError
        The trace cannot be read, or has more tenants or larger numbers than can be held.
    """
    trace = read_trace(path, kind, options, seed)
    unread = [str(name) for name in trace.columns if name not in READ_COLUMNS]
    traffic = traffic_of(trace, str(path))
    if kind != "plain" or not unread:  # other formats are known to have more than is read
        return traffic
    what = f"columns of {path.name} that are not read: {', '.join(unread)}."
    return replace(traffic, notes=(what,))


def traffic_of(trace: pd.DataFrame, where: str) -> Traffic:
    """Turn a table as returned by `read_trace` into traffic.

    Parameters
    ----------
    trace : pandas.DataFrame
    where : str
        What messages call the trace.
    """
    tenant: NDArray[np.int16] | None = None
    names: tuple[str, ...] = ("all",)
    if "tenant" in trace:
        codes, found = pd.factorize(trace["tenant"], sort=True)
        if len(found) > MOST_TENANTS:
            raise InputError(f"{where}: {len(found)} tenants; at most {MOST_TENANTS} can be held")
        tenant, names = codes.astype(np.int16), tuple(str(name) for name in found)
    return Traffic(
        input_tokens=as_tokens(trace["input_tokens"].to_numpy(np.int64)),
        output_tokens=as_tokens(trace["output_tokens"].to_numpy(np.int64)),
        arrival_s=trace["arrival_s"].to_numpy(np.float64),
        tenant_names=names,
        tenant=tenant,
        priority=_priorities(trace, where),
        max_tokens=_tokens(trace, "max_tokens"),
        encode_tokens=_tokens(trace, "encode_tokens"),
        session=_sessions(trace),
        turn=_turns(trace),
        contents=trace["content"].tolist() if "content" in trace else None,
    )


def _tokens(trace: pd.DataFrame, name: str) -> NDArray[np.int32] | None:
    return as_tokens(trace[name].to_numpy(np.int64)) if name in trace else None


def _priorities(trace: pd.DataFrame, where: str) -> NDArray[np.int16] | None:
    if "priority" not in trace:
        return None
    priorities = trace["priority"].to_numpy(np.int64)
    if np.abs(priorities).max() > _LARGEST_PRIORITY:
        raise InputError(f"{where}: a priority beyond {_LARGEST_PRIORITY}; use smaller numbers")
    return priorities.astype(np.int16)


def _sessions(trace: pd.DataFrame) -> NDArray[np.int32] | None:
    """Give the sessions numbers by first appearance; rows without one get -1."""
    if "session" not in trace:
        return None
    named = trace["session"].replace("", None)
    return pd.factorize(named)[0].astype(np.int32)


def _turns(trace: pd.DataFrame) -> NDArray[np.int32] | None:
    """Give the place of each request in its session: as recorded, or by arrival."""
    if "turn" in trace:
        return trace["turn"].to_numpy(np.int64).astype(np.int32)
    if "session" not in trace:
        return None
    place = trace.groupby("session", sort=False).cumcount().to_numpy()
    return np.where(trace["session"] == "", 0, place).astype(np.int32)
