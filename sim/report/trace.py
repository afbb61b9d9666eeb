"""A run as Chrome trace events, for Perfetto (ui.perfetto.dev) and chrome://tracing.

One process per case. In it one track per replica shows its stretches, a track beside it what state
it was in where it was not always up, a track for each replica that keys and values come to shows
their transfers, one for each encoder the embeddings that it sends, another the requests that a
replica preempted, from then until they were back, a counter per replica its KV blocks and queue,
and each request is a slice from arrival to completion with its first token marked. The first tasks
of test-time compute have tracks of their own (`sim.report.task_trace`). Times are microseconds, as
the format wants (Trace Event Format, Google, 2016).
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd

from sim.engine.cluster import RunRecord
from sim.metrics.activity import blocks_of
from sim.metrics.embeddings import embedding_transfers
from sim.report.task_trace import task_events
from sim.service import Service
from sim.simulate import CaseRun
from sim.units import MICROSECOND_S

Columns = Mapping[str, npt.NDArray[np.generic]]
Event = dict[str, object]

STATE_TRACKS = 1_000_000
"""Numbers of the tracks of states start here, above those of all replicas."""
TRANSFER_TRACKS = 2_000_000
"""Numbers of the tracks of transfers start here."""
PREEMPTION_TRACKS = 3_000_000
"""Numbers of the tracks of preempted requests start here."""
EMBEDDING_TRACKS = 4_000_000
"""Numbers of the tracks of what encoders send start here."""


def trace_events(
    service: Service, process: int, requests: pd.DataFrame, record: RunRecord
) -> Iterator[Event]:
    """Yield the events of one case.

    Parameters
    ----------
    service : Service
        Names the process and the replicas in the viewer.
    process : int
        Its number.
    requests : DataFrame
        The requests table.
    record : RunRecord
    """
    name = {"name": service.case.name}
    yield {"ph": "M", "name": "process_name", "pid": process, "args": name}
    embeddings = embedding_transfers(service, record.stretches)
    yield from _tracks(service, process, record, embeddings)
    for block in blocks_of(record.stretches):
        for row in _rows(block):
            encodes = _role(service, int(row["replica"])) == "encode"
            yield from _stretch(process, row, encodes=encodes)
    for row in _rows(_out_of_service(record)):
        yield _state(process, row)
    for row in _rows(record.transfers):
        yield from _transfer(process, row)
    for row in _rows(embeddings):
        yield from _embeddings(process, row)
    for row in _rows(record.preemptions):
        yield from _preemption(process, row)
    yield from task_events(process, requests, record)
    for request in requests.to_dict("records"):
        yield from _request(process, {str(key): value for key, value in request.items()})


def run_events(runs: Sequence[CaseRun], requests: pd.DataFrame) -> Iterator[Event]:
    """Yield the events of all cases of a scenario.

    Parameters
    ----------
    runs : sequence of CaseRun
    requests : DataFrame
        The requests of all cases, with the column ``case``.
    """
    for process, run in enumerate(runs):
        mine = requests[requests["case"] == run.service.case.name]
        yield from trace_events(run.service, process, mine, run.record)


def write_trace(events: Iterator[Event], path: Path) -> None:
    """Write events as one JSON document, an event a line."""
    with path.open("w", encoding="utf-8") as file:
        file.write('{"displayTimeUnit": "ms", "traceEvents": [\n')
        for index, event in enumerate(events):
            file.write((",\n" if index else "") + json.dumps(event))
        file.write("\n]}\n")


def _rows(columns: Columns) -> Iterator[Mapping[str, float]]:
    frame = pd.DataFrame(dict(columns))
    for row in frame.to_dict("records"):
        yield {str(key): value for key, value in row.items()}


def _out_of_service(record: RunRecord) -> Columns:
    """Keep the times in which replicas were anything but up."""
    other = record.states["state"].astype(str) != "up"
    return {name: values[other] for name, values in record.states.items()}


def _tracks(
    service: Service, process: int, record: RunRecord, embeddings: Columns
) -> Iterator[Event]:
    """Name the tracks that have something on them."""
    tables = (
        ("", 0, record.stretches["replica"]),
        (", state", STATE_TRACKS, _out_of_service(record)["replica"]),
        (", keys and values", TRANSFER_TRACKS, record.transfers["replica"]),
        (", embeddings", EMBEDDING_TRACKS, embeddings["replica"]),
        (", preempted", PREEMPTION_TRACKS, record.preemptions["replica"]),
    )
    for what, first, replicas in tables:
        for replica in np.unique(replicas).tolist():
            yield {
                "ph": "M",
                "name": "thread_name",
                "pid": process,
                "tid": first + replica,
                "args": {"name": f"{_called(service, replica)}{what}"},
            }


def _called(service: Service, replica: int) -> str:
    """Name a replica: by its pool too, where there are several."""
    if len(service.pools) == 1:
        return f"replica {replica}"
    return f"{_role(service, replica)} replica {replica}"


def _role(service: Service, replica: int) -> str:
    """Tell what the pool of a replica does."""
    place = int(np.searchsorted(service.first_replicas, replica, side="right")) - 1
    return service.pools[place].role


def _stretch(process: int, row: Mapping[str, float], *, encodes: bool) -> Iterator[Event]:
    """Yield a slice of a replica's track, and its counters at the end of it.

    What a pool of encoders takes in are images; elsewhere they are encoded in steps of prompts.
    """
    replica = int(row["replica"])
    decoding, prompts = int(row["decode_sequences"]), int(row["prefill_sequences"])
    tokens, image_tokens = int(row["prefill_tokens"]), int(row["encode_tokens"])
    work = "encode" if encodes else "prefill"
    parts = [f"decode {decoding}"] * (decoding > 0) + [f"{work} {prompts}"] * (prompts > 0)
    args = {"steps": int(row["steps"]), "prefill_tokens": tokens}
    if encodes:
        args = {"steps": int(row["steps"]), "image_tokens": tokens}
    elif image_tokens:
        args["image_tokens"] = image_tokens
    yield {
        "ph": "X",
        "name": " + ".join(parts),
        "cat": "stretch",
        "pid": process,
        "tid": replica,
        "ts": _us(row["start_s"]),
        "dur": _us(row["end_s"] - row["start_s"]),
        "args": args,
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


def _state(process: int, row: Mapping[str, object]) -> Event:
    """Give the slice of a time in which a replica booted, was down, or the like."""
    start_s, end_s = float(str(row["start_s"])), float(str(row["end_s"]))
    return {
        "ph": "X",
        "name": str(row["state"]),
        "cat": "state",
        "pid": process,
        "tid": STATE_TRACKS + int(str(row["replica"])),
        "ts": _us(start_s),
        "dur": _us(end_s - start_s),
    }


def _transfer(process: int, row: Mapping[str, float]) -> Iterator[Event]:
    """Yield the slice of a transfer; those that share a link may overlap in their latency."""
    common: Event = {
        "cat": "transfer",
        "name": f"{row['kind']} from {row['source']}",
        "id": f"{row['kind']} {int(row['request_id'])} {_us(row['start_s'])}",
        "pid": process,
        "tid": TRANSFER_TRACKS + int(row["replica"]),
    }
    asked = {"request": int(row["request_id"]), "bytes": float(row["bytes"])}
    waited_us = _us(row["start_s"] - row["asked_s"])
    args = {**asked, "waited_us": waited_us}
    yield {**common, "ph": "b", "ts": _us(row["start_s"]), "args": args}
    yield {**common, "ph": "e", "ts": _us(row["end_s"])}


def _embeddings(process: int, row: Mapping[str, float]) -> Iterator[Event]:
    """Yield the slice in which an encoder sends what a step of it has computed."""
    common: Event = {
        "cat": "transfer",
        "name": "embeddings",
        "id": f"embeddings {int(row['replica'])} {_us(row['start_s'])}",
        "pid": process,
        "tid": EMBEDDING_TRACKS + int(row["replica"]),
    }
    args = {"image_tokens": int(row["image_tokens"]), "bytes": float(row["bytes"])}
    yield {**common, "ph": "b", "ts": _us(row["start_s"]), "args": args}
    yield {**common, "ph": "e", "ts": _us(row["end_s"])}


def _preemption(process: int, row: Mapping[str, float]) -> Iterator[Event]:
    """Yield the slice of a request's absence from the batch; several are away at a time."""
    common: Event = {
        "cat": "preemption",
        "name": f"request {int(row['request_id'])} preempted",
        "id": f"preempted {int(row['request_id'])} {_us(row['start_s'])}",
        "pid": process,
        "tid": PREEMPTION_TRACKS + int(row["replica"]),
    }
    args = {"request": int(row["request_id"]), "cause": "no free KV block"}
    yield {**common, "ph": "b", "ts": _us(row["start_s"]), "args": args}
    yield {**common, "ph": "e", "ts": _us(row["end_s"])}


def _request(process: int, row: Mapping[str, float]) -> Iterator[Event]:
    """Yield the begin, first token and end of a request; nothing of one without an answer."""
    if np.isnan(row["done_s"]):
        return
    common: Event = {
        "cat": "request",
        "name": f"request {int(row['request_id'])}",
        "id": int(row["request_id"]),
        "pid": process,
    }
    tokens = {
        "input": int(row["input_tokens"]),
        "cached": int(row["cached_tokens"]),
        "output": int(row["output_tokens"]),
    }
    yield {**common, "ph": "b", "ts": _us(row["arrival_s"]), "args": tokens}
    yield {**common, "ph": "n", "ts": _us(row["first_token_s"]), "args": {"first": "token"}}
    yield {**common, "ph": "e", "ts": _us(row["done_s"])}


def _us(seconds: float) -> float:
    return round(seconds / MICROSECOND_S, 3)
