"""Tasks of test-time compute as Chrome trace events: a few of them, call by call.

Each task has a track that shows it from question to answer, with its calls below; calls that run
side by side have tracks of their own next to it. Arrows lead from each call to those that waited
for its answer. So barriers and the chain of calls that the time of the task rests on can be seen.
"""

import heapq
from collections.abc import Iterator, Mapping

import pandas as pd

from sim.engine.cluster import RunRecord
from sim.units import MICROSECOND_S

Event = dict[str, object]

TASK_TRACKS = 5_000_000
"""Numbers of the tracks of tasks start here."""
MOST_TASKS = 12
"""Tasks that are shown, the first ones."""
MOST_CALLS = 1_500
"""Calls after which no further task is shown."""


def task_events(process: int, requests: pd.DataFrame, record: RunRecord) -> Iterator[Event]:
    """Yield the events of the first tasks of one case; none where it has none.

    Parameters
    ----------
    process : int
        Its number.
    requests : DataFrame
        Its requests, with ``arrival_s`` and ``done_s``.
    record : RunRecord
    """
    if not len(record.programs["task"]):
        return
    calls = _timed(requests, record)
    tasks = pd.DataFrame(record.programs).sort_values("arrival_s", kind="stable")
    track, shown = TASK_TRACKS, 0
    for _, task in tasks.head(MOST_TASKS).iterrows():
        mine = calls[calls["task"] == task["task"]]
        shown += len(mine)
        if shown > MOST_CALLS:
            return
        lanes = _lanes(mine)
        yield from _named(process, track, int(task["task"]), max(lanes.values(), default=0) + 1)
        yield _whole(process, track, task)
        yield from _calls(process, track, mine, lanes, _critical(mine))
        track += max(lanes.values(), default=0) + 1


def _timed(requests: pd.DataFrame, record: RunRecord) -> pd.DataFrame:
    """Give the calls with their begin and end, in order of begin.

    One that was cancelled ends when the work on it is thrown away. Without any work it has left no
    mark, and is left out.
    """
    times = requests[["request_id", "arrival_s", "done_s", "outcome"]]
    calls = pd.DataFrame(record.calls).merge(times, on="request_id", how="inner")
    dropped = pd.DataFrame({name: record.losses[name] for name in ("request_id", "time_s")})
    dropped_s = dropped.groupby("request_id")["time_s"].max().reindex(calls["request_id"])
    calls["done_s"] = calls["done_s"].fillna(pd.Series(dropped_s.to_numpy(), index=calls.index))
    return calls[calls["done_s"].notna()].sort_values(["arrival_s", "call"], kind="stable")


def _lanes(calls: pd.DataFrame) -> dict[int, int]:
    """Give each call the first track on which no other one runs at the time; by request."""
    free: list[int] = []
    busy: list[tuple[float, int]] = []
    lanes: dict[int, int] = {}
    columns = (calls[name].tolist() for name in ("request_id", "arrival_s", "done_s"))
    for request, begin_s, end_s in zip(*columns, strict=True):
        while busy and busy[0][0] <= begin_s + MICROSECOND_S:  # times are rounded
            heapq.heappush(free, heapq.heappop(busy)[1])
        lane = heapq.heappop(free) if free else len(busy)
        heapq.heappush(busy, (end_s, lane))
        lanes[request] = lane
    return lanes


def _critical(calls: pd.DataFrame) -> frozenset[int]:
    """Name the calls that the end of the task waited for, one after the other."""
    answered = calls[calls["outcome"] == "completed"]
    if answered.empty:
        return frozenset()
    after = dict(zip(calls["request_id"].tolist(), calls["after"].tolist(), strict=True))
    found: list[int] = []
    call = int(answered["request_id"].to_numpy()[answered["done_s"].to_numpy().argmax()])
    while call in after:
        found.append(call)
        call = after[call]
    return frozenset(found)


def _named(process: int, track: int, task: int, lanes: int) -> Iterator[Event]:
    for lane in range(lanes):
        common: Event = {"ph": "M", "pid": process, "tid": track + lane}
        name = f"task {task}" + f", beside {lane}" * (lane > 0)
        yield {**common, "name": "thread_name", "args": {"name": name}}
        yield {**common, "name": "thread_sort_index", "args": {"sort_index": track + lane}}


def _whole(process: int, track: int, task: "pd.Series[float]") -> Event:
    return {
        "ph": "X",
        "name": f"task {int(task['task'])}",
        "cat": "task",
        "pid": process,
        "tid": track,
        "ts": _us(task["arrival_s"]),
        "dur": _us(task["done_s"] - task["arrival_s"]),
        "args": {
            "outcome": str(task["outcome"]),
            "calls": int(task["calls"]),
            "cancelled_calls": int(task["cancelled_calls"]),
            "critical_calls": int(task["critical_calls"]),
        },
    }


def _calls(
    process: int,
    track: int,
    calls: pd.DataFrame,
    lanes: Mapping[int, int],
    critical: frozenset[int],
) -> Iterator[Event]:
    ends = dict(zip(calls["request_id"].tolist(), calls["done_s"].tolist(), strict=True))
    for row in calls.to_dict("records"):
        request, after = int(row["request_id"]), int(row["after"])
        model = {"model": str(row["model"])} if row["model"] else {}
        yield {
            "ph": "X",
            "name": str(row["label"]),
            "cat": "call",
            "pid": process,
            "tid": track + lanes[request],
            "ts": _us(row["arrival_s"]),
            "dur": _us(row["done_s"] - row["arrival_s"]),
            "args": {
                "request": request,
                "outcome": str(row["outcome"]),
                "critical": request in critical,
                **model,
            },
        }
        if after in ends:
            begin, end = (
                (track + lanes[after], ends[after]),
                (track + lanes[request], row["arrival_s"]),
            )
            yield from _arrow(process, request, begin, end)


def _arrow(
    process: int, request: int, begin: tuple[int, float], end: tuple[int, float]
) -> Iterator[Event]:
    """Lead from the end of a call to one that waited for it; track and time of both."""
    common: Event = {"name": "then", "cat": "then", "id": request, "pid": process}
    yield {**common, "ph": "s", "tid": begin[0], "ts": _us(begin[1])}
    yield {**common, "ph": "f", "bp": "e", "tid": end[0], "ts": _us(end[1])}


def _us(seconds: float) -> float:
    return round(float(seconds) / MICROSECOND_S, 3)
