"""A run as Chrome trace events, for Perfetto (ui.perfetto.dev) and chrome://tracing.

One process per case. In it one track per replica shows its stretches, a counter per replica its
KV blocks and queue, and each request is a slice from arrival to completion with its first token
marked. Times are microseconds, as the format wants (Trace Event Format, Google, 2016).
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd

from sim.simulate import CaseRun
from sim.units import MICROSECOND_S

Columns = Mapping[str, npt.NDArray[np.generic]]
Event = dict[str, object]


def trace_events(
    case: str, process: int, requests: pd.DataFrame, stretches: Columns
) -> Iterator[Event]:
    """Yield the events of one case.

    Parameters
    ----------
    case : str
        Name of the process in the viewer.
    process : int
        Its number.
    requests : DataFrame
        The requests table.
    stretches : mapping
        The columns of `sim.engine.records.STRETCH_COLUMNS`.
    """
    yield {"ph": "M", "name": "process_name", "pid": process, "args": {"name": case}}
    for replica in np.unique(stretches["replica"]).tolist():
        name = {"name": f"replica {replica}"}
        yield {"ph": "M", "name": "thread_name", "pid": process, "tid": replica, "args": name}
    frame = pd.DataFrame(dict(stretches))
    for row in frame.to_dict("records"):
        yield from _stretch(process, {str(key): value for key, value in row.items()})
    for row in requests.to_dict("records"):
        yield from _request(process, {str(key): value for key, value in row.items()})


def run_events(runs: Sequence[CaseRun], requests: pd.DataFrame) -> Iterator[Event]:
    """Yield the events of all cases of a scenario.

    Parameters
    ----------
    runs : sequence of CaseRun
    requests : DataFrame
        The requests of all cases, with the column ``case``.
    """
    for process, run in enumerate(runs):
        case = run.deployment.case.name
        mine = requests[requests["case"] == case]
        yield from trace_events(case, process, mine, run.record.stretches)


def write_trace(events: Iterator[Event], path: Path) -> None:
    """Write events as one JSON document, an event a line."""
    with path.open("w", encoding="utf-8") as file:
        file.write('{"displayTimeUnit": "ms", "traceEvents": [\n')
        for index, event in enumerate(events):
            file.write((",\n" if index else "") + json.dumps(event))
        file.write("\n]}\n")


def _stretch(process: int, row: Mapping[str, float]) -> Iterator[Event]:
    """Yield a slice of a replica's track, and its counters at the end of it."""
    replica = int(row["replica"])
    decoding, prompts = int(row["decode_sequences"]), int(row["prefill_sequences"])
    parts = [f"decode {decoding}"] * (decoding > 0) + [f"prefill {prompts}"] * (prompts > 0)
    yield {
        "ph": "X",
        "name": " + ".join(parts),
        "cat": "stretch",
        "pid": process,
        "tid": replica,
        "ts": _us(row["start_s"]),
        "dur": _us(row["end_s"] - row["start_s"]),
        "args": {"steps": int(row["steps"]), "prefill_tokens": int(row["prefill_tokens"])},
    }
    yield {
        "ph": "C",
        "name": f"replica {replica}",
        "pid": process,
        "ts": _us(row["end_s"]),
        "args": {
            "kv_used_blocks": int(row["kv_used_blocks"]),
            "waiting_requests": int(row["waiting_requests"]),
        },
    }


def _request(process: int, row: Mapping[str, float]) -> Iterator[Event]:
    """Yield the begin, first token and end of a request; nothing of one that was rejected."""
    if np.isnan(row["done_s"]):
        return
    common: Event = {
        "cat": "request",
        "name": f"request {int(row['request_id'])}",
        "id": int(row["request_id"]),
        "pid": process,
    }
    tokens = {"input": int(row["input_tokens"]), "output": int(row["output_tokens"])}
    yield {**common, "ph": "b", "ts": _us(row["arrival_s"]), "args": tokens}
    yield {**common, "ph": "n", "ts": _us(row["first_token_s"]), "args": {"first": "token"}}
    yield {**common, "ph": "e", "ts": _us(row["done_s"])}


def _us(seconds: float) -> float:
    return round(seconds / MICROSECOND_S, 3)
