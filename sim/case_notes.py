"""What a reader of a case's results has to be told beside the numbers."""

from collections.abc import Iterator, Mapping

import numpy as np
import pandas as pd

from sim.economics import Terms
from sim.metrics.accounts import accounts
from sim.metrics.backlog import backlog
from sim.metrics.programs import not_of_tasks, tasks_in
from sim.report.formats import brief
from sim.results import Measured
from sim.scenario import Case
from sim.service import Service
from sim.simulate import CaseRun

WaysToPay = Mapping[str, tuple[Terms, ...]]
"""Terms of each fleet, by what people call them."""

FEW_REQUESTS = 500
"""With fewer requests than this the 99th percentile rests on less than five of them."""
SHORT_WINDOW = 5.0
"""In a window of fewer times what a task takes on average, many tasks lie across its ends."""


def case_notes(run: CaseRun, measured: Measured, ways: WaysToPay) -> Iterator[str]:
    """Say what was counted, what it costs in every way to pay, and where figures mislead."""
    case, window = run.service.case, measured.window
    counted = f"{case.name}: counted from {window.start_s:.0f} s to {window.end_s:.0f} s"
    if run.capacity_requests_per_s is not None:
        full = "every place in the batch taken" if measured.tasks is None else "the batch kept full"
        counted += (
            f"; with {full} it serves "
            f"{brief(run.capacity_requests_per_s)} "
            f"{'requests' if measured.tasks is None else 'tasks'}/s at most"
        )
    yield f"{counted}. {_prices(run.service, measured, ways)}"
    if not run.clients:
        yield from _falling_behind(case, measured)
        yield from _short_window(case, measured)
    unanswered = {} if measured.of_tasks is None else measured.of_tasks.unanswered
    if calls := sum(unanswered.get(tenant, 0) for tenant in run.accuracy):
        yield (
            f"{case.name}: {calls} calls of the tasks that count got no "
            "answer; accuracy is that of these tasks alone, not of thousands of questions."
        )
    yield from _few(case, measured)
    yield from _failures(case, measured.summary)


def _few(case: Case, measured: Measured) -> Iterator[str]:
    """Say where tails rest on a few tasks, or requests where those are all that is asked."""
    requests = measured.requests
    counts = {"request": int(requests["measured"].sum())}
    if measured.tasks is not None:
        others = requests[not_of_tasks(measured.record, requests)]
        counts = {"task": int(measured.tasks["measured"].sum())}
        counts |= {"request": int(others["measured"].sum())} if len(others) else {}
    for what, count in counts.items():
        if count < FEW_REQUESTS:
            few = f"1 {what} counts" if count == 1 else f"{count:,} {what}s count"
            yield f"{case.name}: only {few}; tails rest on a few of them."


def _falling_behind(case: Case, measured: Measured) -> Iterator[str]:
    """Say where more and more of what is asked waits; of tasks, it is tasks that are counted."""
    requests = measured.requests
    own = np.arange(len(requests))
    kinds = {"requests": (requests, requests.assign(asked=own))}
    if measured.tasks is not None and measured.calls is not None:
        others = requests[not_of_tasks(measured.record, requests)]
        places = pd.Series(np.arange(len(measured.tasks)), index=measured.tasks["task"])
        called = requests.merge(measured.calls[["request_id", "task"]], on="request_id")
        calls = called.assign(asked=called["task"].map(places))
        known = calls[calls["asked"].notna()].astype({"asked": np.int64})
        kinds = {
            "tasks": (measured.tasks, known),
            "requests": (others, others.assign(asked=np.arange(len(others)))),
        }
    for name, (asked, calls) in kinds.items():
        found = backlog(asked, calls, measured.window)
        if found is not None:
            yield (
                f"{case.name}: falls behind: {brief(found.leave_per_s)} {name}/s leave while "
                f"{brief(found.arrive_per_s)} arrive, and {brief(found.waiting)} more wait at the "
                "end than at the start; its latencies grow with the length of the run."
            )


def _short_window(case: Case, measured: Measured) -> Iterator[str]:
    """Say where tasks take so long that few of them lie in the window as a whole."""
    if measured.tasks is None:
        return
    done = tasks_in(measured.tasks, measured.window)
    takes_s = float(done.loc[done["outcome"] == "completed", "task_s"].mean())
    length_s = measured.window.duration_s
    if takes_s > 0 and length_s < SHORT_WINDOW * takes_s:
        yield (
            f"{case.name}: the window of {brief(length_s)} s is {brief(length_s / takes_s)} times "
            "what a task takes on average: the work in it is not that of the tasks that count, "
            "and costs and rates are biased; give more tasks, and a longer warm-up."
        )


def _failures(case: Case, summary: Mapping[str, object]) -> Iterator[str]:
    """Say how many requests failed, and of what."""
    said = {
        "rejected": ("is", "are", "longer than the KV cache or the model allows"),
        "timed_out": ("was", "were", "given up by their clients"),
        "shed": ("was", "were", "turned away at the door"),
        "lost": ("was", "were", "broken off by failures"),
        "unfinished": ("was", "were", "not finished when the run ended"),
    }
    for outcome, (one, several, words) in said.items():
        count = int(str(summary[f"{outcome}_requests"]))
        if count:
            what = f"1 request {one}" if count == 1 else f"{count} requests {several}"
            yield f"{case.name}: {what} {words}."


def _prices(service: Service, measured: Measured, ways: WaysToPay) -> str:
    """Say what a million tokens of the same run, in and out, cost in every way to pay."""
    words = []
    for name, terms in ways.items():
        books = accounts(
            service,
            measured.window,
            measured.requests,
            measured.record,
            measured.inventory,
            terms,
        )
        usd = books.token_cost.usd_per_mtok_total
        if usd is not None:
            words.append(f"{usd:.3f} {name}")
    return f"USD per million tokens: {', '.join(words) or 'there were none'}."
