"""Trace events: what Perfetto reads."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
from hand_made_run import pool, service, table

from sim.cost.operators import Handover
from sim.engine.cluster import RunRecord
from sim.engine.records import (
    LOSS_COLUMNS,
    PREEMPTION_COLUMNS,
    REQUEST_COLUMNS,
    STATE_COLUMNS,
    STRETCH_COLUMNS,
    TRANSFER_COLUMNS,
)
from sim.report.trace import trace_events, write_trace
from sim.service import Service

RECORD = RunRecord(
    requests=table(REQUEST_COLUMNS),
    stretches=table(
        STRETCH_COLUMNS,
        replica=[0, 0],
        start_s=[1.0, 1.5],
        end_s=[1.5, 3.5],
        steps=[1, 4],
        decode_sequences=[0, 2],
        prefill_sequences=[2, 0],
        prefill_tokens=[30, 0],
        kv_used_blocks=[4, 4],
        waiting_requests=[1, 0],
    ),
    states=table(
        STATE_COLUMNS,
        replica=[1, 1],
        state=["booting", "up"],
        start_s=[0.0, 2.0],
        end_s=[2.0, 4.0],
    ),
    transfers=table(
        TRANSFER_COLUMNS,
        kind=["handover"],
        request_id=[0],
        source=["0"],
        replica=[2],
        asked_s=[1.5],
        start_s=[1.75],
        end_s=[2.0],
        bytes=[1000.0],
    ),
    losses=table(LOSS_COLUMNS),
    preemptions=table(PREEMPTION_COLUMNS, replica=[2], request_id=[0], start_s=[2.0], end_s=[3.0]),
)
REQUESTS = pd.DataFrame(
    {
        "request_id": [0, 1],
        "arrival_s": [1.0, 1.2],
        "first_token_s": [1.5, np.nan],
        "done_s": [3.5, np.nan],
        "input_tokens": [10, 20],
        "cached_tokens": [4, 0],
        "output_tokens": [5, 6],
    }
)
SERVICE = service(pool("prefill"), pool("decode", replicas=1))


SENT = Handover("embedding_handover", 1000.0, bytes_per_s=1e6, latency_s=0.01, source="given")
ENCODERS = service(
    pool("encode", timer=SimpleNamespace(operators=(SENT,))), pool("serve", replicas=1)
)


def events(of: Service = SERVICE) -> list[dict[str, Any]]:
    return list(trace_events(of, 3, REQUESTS, RECORD))


def of_kind(category: str) -> list[dict[str, Any]]:
    return [event for event in events() if event.get("cat") == category]


def test_stretches_are_slices_in_microseconds() -> None:
    slices = of_kind("stretch")
    assert [event["name"] for event in slices] == ["prefill 2", "decode 2"]
    assert [(event["ts"], event["dur"]) for event in slices] == [(1e6, 0.5e6), (1.5e6, 2e6)]
    assert {event["pid"] for event in slices} == {3}


def test_boots_and_failures_are_slices_on_a_track_of_their_own() -> None:
    (boot,) = of_kind("state")
    assert (boot["name"], boot["ts"], boot["dur"]) == ("booting", 0.0, 2e6)
    assert boot["tid"] not in {event["tid"] for event in of_kind("stretch")}


def test_transfers_say_how_long_they_waited_for_the_link() -> None:
    begin, end = of_kind("transfer")
    assert (begin["ts"], end["ts"]) == (1.75e6, 2e6)
    assert begin["args"] == {"request": 0, "bytes": 1000.0, "waited_us": 0.25e6}


def test_preempted_requests_are_away_until_they_are_back() -> None:
    begin, end = of_kind("preemption")
    assert (begin["ph"], begin["ts"], end["ph"], end["ts"]) == ("b", 2e6, "e", 3e6)
    assert begin["id"] == end["id"]
    assert begin["args"] == {"request": 0, "cause": "no free KV block"}


def test_steps_of_encoders_are_named_so() -> None:
    slices = [event for event in events(ENCODERS) if event.get("cat") == "stretch"]
    assert slices[0]["name"] == "encode 2"
    assert slices[0]["args"] == {"steps": 1, "image_tokens": 30}


def test_embeddings_are_sent_at_the_end_of_the_steps_of_encoders() -> None:
    """30 tokens of 1,000 bytes at 1 MB/s, and 10 ms for the way: they leave 40 ms before 1.5 s."""
    found = [event for event in events(ENCODERS) if event["name"] == "embeddings"]
    begin, end = found
    assert (begin["ph"], begin["ts"], end["ph"], end["ts"]) == ("b", 1.46e6, "e", 1.5e6)
    assert begin["id"] == end["id"]
    assert begin["args"] == {"image_tokens": 30, "bytes": 30_000.0}
    tracks = [event for event in events(ENCODERS) if event["name"] == "thread_name"]
    names = {event["tid"]: event["args"]["name"] for event in tracks}
    assert names[begin["tid"]] == "encode replica 0, embeddings"
    assert not any(event["name"] == "embeddings" for event in events())


def test_tracks_are_named_after_replicas_and_their_pools() -> None:
    names = [event["args"] for event in events() if event["name"] == "thread_name"]
    assert names == [
        {"name": "prefill replica 0"},
        {"name": "prefill replica 1, state"},
        {"name": "decode replica 2, keys and values"},
        {"name": "decode replica 2, preempted"},
    ]


def test_a_request_begins_marks_its_first_token_and_ends() -> None:
    marks = [(event["ph"], event["ts"]) for event in events() if event.get("cat") == "request"]
    assert marks == [("b", 1e6), ("n", 1.5e6), ("e", 3.5e6)]  # the rejected one is left out


def test_the_file_is_one_json_document(tmp_path: Path) -> None:
    path = tmp_path / "trace.json"
    write_trace(iter(events()), path)
    assert json.loads(path.read_text("utf-8"))["traceEvents"] == events()


def test_no_events_are_a_valid_document(tmp_path: Path) -> None:
    path = tmp_path / "trace.json"
    write_trace(iter(()), path)
    assert json.loads(path.read_text("utf-8"))["traceEvents"] == []
