"""What a simulated case did in the time that counts, and what that cost."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import pandas as pd

from sim.economics import Terms
from sim.engine.cluster import RunRecord
from sim.metrics.accounts import Accounts, Inventory, accounts, inventories
from sim.metrics.intervals import Seen, interval_columns, loop_of
from sim.metrics.programs import asked_in, measured_tasks, tasks_in
from sim.metrics.regimes import Outlook
from sim.metrics.requests import Window, measured_window, request_table
from sim.metrics.summary import summary_row
from sim.metrics.tenant_tasks import Askers, TaskRows
from sim.metrics.timeline import timeline_edges
from sim.simulate import CaseRun
from sim.tenancy import ONE_TENANT, tenancy_of
from sim.workload.kinds import programs_of


@dataclass(frozen=True)
class Measured:
    """What a simulated case did, and what that cost."""

    record: RunRecord
    requests: pd.DataFrame
    window: Window
    inventory: Inventory
    """Of the window."""
    over_time: Inventory
    """Of the bins of the timeline."""
    books: Accounts
    summary: dict[str, object]
    tasks: pd.DataFrame | None = None
    calls: pd.DataFrame | None = None
    of_tasks: TaskRows | None = None
    """What those tasks came to that count."""


def measure(run: CaseRun, terms: Sequence[Terms]) -> Measured:
    """Measure a simulated case in its window, and over time."""
    service, record = run.service, run.record
    requests = request_table(record.requests, service.frontend_s, run.tenants)
    asked = asked_in(record, requests)
    window = measured_window(asked, service.case.measure.warmup_fraction, run.clients)
    edges = timeline_edges(requests, record)
    inventory, over_time = inventories(service, record, window.edges, edges)
    books = accounts(service, window, requests, record, inventory, terms)
    summary = summary_row(service, requests, books)
    found = Measured(record, requests, window, inventory, over_time, books, summary)
    if asked is requests:  # nobody asked a question
        return found
    tasks, calls = measured_tasks(service, record, requests, books, inventory)
    rows = _askers(run).rows(tasks_in(tasks, window), calls, service.case.slo)
    return replace(found, tasks=tasks, calls=calls, of_tasks=rows, summary=summary | rows.together)


def _askers(run: CaseRun) -> Askers:
    """Tell which tenants of a case ask questions, and what of."""
    case = run.service.case
    asked = programs_of(case.workload).items()
    slos = dict(zip(run.tenants, tenancy_of(case, run.tenants).slos, strict=True))
    return Askers({key[-1] if key else ONE_TENANT: each for key, each in asked}, run.accuracy, slos)


def intervals(run: CaseRun, measured: Measured, outlook: Outlook | None) -> dict[str, object]:
    """Say how sure the numbers of a case are, if anything is known of that."""
    if outlook is None:
        return {}
    service, requests, window = run.service, measured.requests, measured.window
    tasks = measured.tasks is not None  # the pilot run then counted tasks, and not requests
    capacity_per_s = None if tasks else run.capacity_requests_per_s
    loop = loop_of(service, requests, window, run.clients, capacity_per_s)
    answered = None
    if measured.tasks is not None:
        asked = tasks_in(measured.tasks, window).sort_values("arrival_s", kind="stable")
        answered = asked[asked["outcome"] == "completed"]
    seen = Seen(requests, window, measured.summary, loop, answered)
    return interval_columns(outlook, service, seen)
