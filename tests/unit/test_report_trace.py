"""Trace events: what Perfetto reads."""

import json
from pathlib import Path

import numpy as np
import pandas as pd

from sim.report.trace import trace_events, write_trace

STRETCHES = {
    "replica": np.array([0, 0]),
    "start_s": np.array([1.0, 1.5]),
    "end_s": np.array([1.5, 3.5]),
    "steps": np.array([1, 4]),
    "decode_sequences": np.array([0, 2]),
    "prefill_sequences": np.array([2, 0]),
    "prefill_tokens": np.array([30, 0]),
    "kv_used_blocks": np.array([4, 4]),
    "waiting_requests": np.array([1, 0]),
}
REQUESTS = pd.DataFrame(
    {
        "request_id": [0, 1],
        "arrival_s": [1.0, 1.2],
        "first_token_s": [1.5, np.nan],
        "done_s": [3.5, np.nan],
        "input_tokens": [10, 20],
        "output_tokens": [5, 6],
    }
)


def events() -> list[dict[str, object]]:
    return list(trace_events("case", 3, REQUESTS, STRETCHES))


def test_stretches_are_slices_in_microseconds() -> None:
    slices = [event for event in events() if event["ph"] == "X"]
    assert [event["name"] for event in slices] == ["prefill 2", "decode 2"]
    assert [(event["ts"], event["dur"]) for event in slices] == [(1e6, 0.5e6), (1.5e6, 2e6)]
    assert {event["pid"] for event in slices} == {3}


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
