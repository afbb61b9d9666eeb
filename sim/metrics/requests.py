"""The table of requests, the window of a run that counts, and statistics of latencies."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd

from sim.engine.records import Columns

Floats = npt.NDArray[np.float64]

WARMUP_ROUNDS = 2
"""Requests of each closed-loop client until the clients are out of step."""
TOGETHER_FRACTION = 0.01
"""Arrivals within a smaller part of the run than this are a batch that comes all at once."""

OUTCOMES: tuple[str, ...] = (
    "completed",
    "rejected",
    "timed_out",
    "shed",
    "lost",
    "cancelled",
    "unfinished",
)
"""How a request can leave."""
ONE_TENANT = ("all",)


@dataclass(frozen=True)
class Window:
    """The part of a run that counts."""

    start_s: float
    end_s: float

    @property
    def duration_s(self) -> float:
        """Its length."""
        return self.end_s - self.start_s

    @property
    def edges(self) -> Floats:
        """Both ends."""
        return np.array([self.start_s, self.end_s])


def request_table(
    columns: Columns, frontend_s: float, tenants: Sequence[str] = ONE_TENANT
) -> pd.DataFrame:
    """One row per request, in order of number, with its latencies; NaN where there is none.

    Requests are numbered in order of arrival, those of sessions session by session.

    Times are those that a client sees: every token of a request comes later than it leaves the
    engine by the time outside the engine. ``queue_s``, ``encode_s``, ``prefill_s`` and ``decode_s``
    are the engine's part of it and add up to ``e2e_s`` less that time.

    Parameters
    ----------
    columns : Columns
        Of `sim.engine.records.REQUEST_COLUMNS`.
    frontend_s : float
        How long requests spend outside the engine.
    tenants : sequence of str
        Names, by the index that the column ``tenant`` has.
    """
    order = _order(columns["request_id"])
    data: dict[str, object] = {name: values[order] for name, values in columns.items()}
    named: npt.NDArray[np.int16] = columns["tenant"][order]
    data["tenant"] = pd.Categorical.from_codes(named, categories=pd.Index(list(tenants)))
    data["outcome"] = pd.Categorical(columns["outcome"][order], categories=list(OUTCOMES))
    arrival_s, admit_s, first_token_s, done_s = (
        columns[name][order] for name in ("arrival_s", "admit_s", "first_token_s", "done_s")
    )
    completed = columns["outcome"][order] == "completed"
    data["recomputed_tokens"] = np.where(completed, columns["recomputed_tokens"][order], 0)
    waited_s = admit_s - arrival_s - columns["encode_s"][order]
    data["queue_s"] = np.maximum(waited_s, 0.0)  # not below it by rounding
    data["prefill_s"] = first_token_s - admit_s
    data["decode_s"] = done_s - first_token_s
    data["first_token_s"] = first_seen_s = first_token_s + frontend_s
    data["done_s"] = done_seen_s = done_s + frontend_s
    data["ttft_s"] = first_seen_s - arrival_s
    data["e2e_s"] = done_seen_s - arrival_s
    later = columns["output_tokens"][order] - 1
    tpot_s = np.full(later.size, np.nan)
    data["tpot_s"] = np.divide(done_seen_s - first_seen_s, later, out=tpot_s, where=later > 0)
    return pd.DataFrame(data, copy=False)


def _order(request_ids: npt.NDArray[np.int64]) -> npt.NDArray[np.int64] | slice:
    """Order of the requests by their number: as they are, if they left in that order."""
    if np.all(request_ids[1:] > request_ids[:-1]):
        return slice(None)
    return np.argsort(request_ids, kind="stable")


def measured_window(requests: pd.DataFrame, warmup_fraction: float, clients: int = 0) -> Window:
    """Find the part of the run that counts; all of it when everything arrives at once.

    Parameters
    ----------
    requests : DataFrame
        In any order.
    warmup_fraction : float
        Leading share of the arrivals that does not count.
    clients : int
        Of a closed loop: they all start at once, so at least `WARMUP_ROUNDS` requests of each are
        left out too, if the run is long enough for that.
    """
    arrivals = np.sort(requests["arrival_s"].to_numpy())
    end = last_completion_s(requests)
    if end <= 0.0:  # nothing completed: any length will do, as long as rates are defined
        return Window(0.0, float(arrivals.max(initial=0.0)) + 1.0)
    warmup = int(warmup_fraction * arrivals.size)
    if WARMUP_ROUNDS * clients < arrivals.size // 2:
        warmup = max(warmup, WARMUP_ROUNDS * clients)
    start = float(arrivals[warmup])
    last = float(arrivals[-1])
    together = last - start < TOGETHER_FRACTION * (end - start)
    return Window(float(arrivals[0]), end) if together else Window(start, last)


def last_completion_s(requests: pd.DataFrame) -> float:
    """Time of the last completion; 0 if there is none."""
    return float(np.nanmax(requests["done_s"].fillna(0.0).to_numpy(), initial=0.0))


def statistics(name: str, values: "pd.Series[float]", which: tuple[str, ...]) -> dict[str, float]:
    """Mean and percentiles (``p95``) of a quantity, by the names of their columns."""
    found = {"mean": float(values.mean()) if len(values) else np.nan}
    for label in which:
        if label.startswith("p"):
            found[label] = float(np.percentile(values, float(label[1:]))) if len(values) else np.nan
    return {f"{name}_{label}": found[label] for label in which}


def meets_slo(completed: pd.DataFrame, ttft_s: float, tpot_s: float) -> "pd.Series[bool]":
    """Tell which requests met both targets; an answer of one token has no TPOT to miss."""
    return (completed["ttft_s"] <= ttft_s) & ~(completed["tpot_s"] > tpot_s)


def answers_inside(requests: pd.DataFrame, window: Window) -> Floats:
    """Output tokens of each request that fall into the window; none unless it was completed.

    An answer is spread evenly from its first token to its last.
    """
    first_s, done_s = (requests[name].to_numpy() for name in ("first_token_s", "done_s"))
    lasts_s = done_s - first_s
    at_once = (first_s > window.start_s) & (first_s <= window.end_s)
    inside_s = np.minimum(done_s, window.end_s) - np.maximum(first_s, window.start_s)
    share = np.divide(inside_s, lasts_s, out=at_once.astype(float), where=lasts_s > 0)
    completed = (requests["outcome"] == "completed").to_numpy()
    share = np.where(completed, np.clip(np.nan_to_num(share), 0.0, 1.0), 0.0)
    return np.asarray(requests["output_tokens"].to_numpy() * share)


def count_outcome(requests: pd.DataFrame, outcome: str) -> int:
    """Count the requests that left in one way."""
    return int((requests["outcome"] == outcome).sum())


def request_seconds(requests: pd.DataFrame, begin: str, end: str, edges: Floats) -> Floats:
    """Add up the time that admitted requests spend between two events, from edge to edge."""
    admitted = requests[requests["admit_s"].notna()]
    begun, ended = (_seconds_since(admitted[name].to_numpy(float), edges) for name in (begin, end))
    return np.maximum(np.diff(begun - ended), 0.0)


def _seconds_since(events_s: Floats, edges: Floats) -> Floats:
    """Seconds that have passed since each event, added up over all events before each edge."""
    events_s = np.sort(events_s)
    before = np.searchsorted(events_s, edges, side="right")
    sums = np.concatenate([[0.0], np.cumsum(events_s)])
    return np.asarray(before * edges - sums[before])
