"""Trace events of tasks: who waited for whom."""

from typing import Any

import numpy as np
import pandas as pd
from hand_made_run import no_rows, table

from sim.engine.cluster import RunRecord
from sim.engine.records import (
    CALL_COLUMNS,
    LOSS_COLUMNS,
    PROGRAM_COLUMNS,
    REQUEST_COLUMNS,
    STATE_COLUMNS,
    STRETCH_COLUMNS,
    TRANSFER_COLUMNS,
)
from sim.report.task_trace import MOST_CALLS, MOST_TASKS, TASK_TRACKS, task_events

# Task 5: samples 0, 1 and 2 side by side from 1 s. 0 is answered at 2 s, 1 at 4 s, whereupon 2 is
# cancelled, and the vote 3 runs until 6 s. 4 was cancelled before anything was done for it.
CALLS = table(
    CALL_COLUMNS,
    request_id=[0, 1, 2, 3, 4],
    task=[5] * 5,
    call=[0, 1, 2, 4, 3],
    label=["sample", "sample", "sample", "vote", "sample"],
    model=["", "", "", "judge", ""],
    after=[-1, -1, -1, 1, -1],
)
REQUESTS = pd.DataFrame(
    {
        "request_id": [0, 1, 2, 3, 4],
        "arrival_s": [1.0, 1.0, 1.0, 4.0, 1.0],
        "done_s": [2.0, 4.0, np.nan, 6.0, np.nan],
        "outcome": ["completed", "completed", "cancelled", "completed", "cancelled"],
    }
)
PROGRAMS = table(
    PROGRAM_COLUMNS,
    task=[5],
    arrival_s=[1.0],
    done_s=[6.0],
    outcome=["completed"],
    calls=[5],
    cancelled_calls=[2],
    critical_calls=[2],
)


def record(calls: Any = CALLS, programs: Any = PROGRAMS) -> RunRecord:
    return RunRecord(
        no_rows(REQUEST_COLUMNS),
        no_rows(STRETCH_COLUMNS),
        no_rows(STATE_COLUMNS),
        no_rows(TRANSFER_COLUMNS),
        table(LOSS_COLUMNS, request_id=[2], time_s=[4.5], generated_tokens=[3]),
        programs=programs,
        calls=calls,
    )


def events() -> list[dict[str, Any]]:
    return list(task_events(2, REQUESTS, record()))


def slices(category: str) -> list[tuple[object, ...]]:
    return [
        (event["name"], event["tid"] - TASK_TRACKS, event["ts"] / 1e6, event["dur"] / 1e6)
        for event in events()
        if event.get("cat") == category
    ]


def test_a_task_is_a_slice_from_question_to_answer() -> None:
    assert slices("task") == [("task 5", 0, 1.0, 5.0)]


def test_calls_are_slices_by_what_they_are_for_side_by_side_where_they_were() -> None:
    """The vote begins when the second sample ends, on the first track that is free: the first."""
    assert slices("call") == [
        ("sample", 0, 1.0, 1.0),
        ("sample", 1, 1.0, 3.0),
        ("sample", 2, 1.0, 3.5),
        ("vote", 0, 4.0, 2.0),
    ]


def test_the_calls_that_the_end_waited_for_are_marked() -> None:
    args = {
        event["args"]["request"]: event["args"]
        for event in events()
        if "dur" in event and "request" in event["args"]
    }
    assert [request for request, each in args.items() if each["critical"]] == [1, 3]
    assert args[2]["outcome"] == "cancelled"
    assert args[3]["model"] == "judge"
    assert "model" not in args[0]


def test_an_arrow_leads_from_a_call_to_the_one_that_waited_for_it() -> None:
    begin, end = [event for event in events() if event.get("cat") == "then"]
    assert (begin["ph"], begin["tid"] - TASK_TRACKS, begin["ts"]) == ("s", 1, 4e6)
    assert (end["ph"], end["tid"] - TASK_TRACKS, end["ts"]) == ("f", 0, 4e6)
    assert begin["id"] == end["id"]


def test_every_track_has_a_name() -> None:
    named = {
        event["tid"]: event["args"]["name"] for event in events() if event["name"] == "thread_name"
    }
    assert list(named.values()) == ["task 5", "task 5, beside 1", "task 5, beside 2"]
    assert {event["tid"] for event in events() if "dur" in event} == set(named)


def test_a_run_without_tasks_has_no_events() -> None:
    bare = record(no_rows(CALL_COLUMNS), no_rows(PROGRAM_COLUMNS))
    assert not list(task_events(0, REQUESTS, bare))


def many(tasks: int, calls: int) -> list[dict[str, Any]]:
    """Tasks one after the other, each of so many calls at once."""
    number = np.arange(tasks * calls)
    requests = pd.DataFrame(
        {
            "request_id": number,
            "arrival_s": (number // calls).astype(float),
            "done_s": number // calls + 0.5,
            "outcome": "completed",
        }
    )
    sent = table(
        CALL_COLUMNS,
        request_id=number.tolist(),
        task=(number // calls).tolist(),
        after=[-1] * number.size,
    )
    programs = table(
        PROGRAM_COLUMNS,
        task=list(range(tasks)),
        arrival_s=[float(task) for task in range(tasks)],
        done_s=[task + 0.5 for task in range(tasks)],
    )
    return list(task_events(0, requests, record(sent, programs)))


def test_no_more_tasks_are_shown_than_can_be_looked_at() -> None:
    shown = [event for event in many(MOST_TASKS + 5, 2) if event.get("cat") == "task"]
    assert len(shown) == MOST_TASKS
    tracks = [event["tid"] for event in shown]
    assert tracks == [TASK_TRACKS + 2 * place for place in range(MOST_TASKS)]


def test_tasks_of_many_calls_are_shown_as_long_as_there_are_not_too_many() -> None:
    each = MOST_CALLS // 3 + 1
    assert sum(event.get("cat") == "task" for event in many(4, each)) == 2
