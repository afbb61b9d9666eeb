"""A whole scenario from its file to the tables of its report."""

import platform
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from math import ceil

import numpy as np
import pandas as pd

from sim.case_notes import WaysToPay, case_notes
from sim.catalog import Catalog
from sim.checks import resolve
from sim.economics import Terms, purchase, rental
from sim.input_files import hashes
from sim.metrics.baselines import against_baseline, claim_table, with_baselines
from sim.metrics.intervals import CHANCE_COLUMN, curve_notes, notes_of
from sim.metrics.programs import models_of, tasks_in
from sim.metrics.regimes import Outlook, outlook_of
from sim.metrics.summary import pool_rows, tenant_rows
from sim.metrics.timeline import timeline
from sim.report.caveats import caveats
from sim.report.data import CURVE_COLUMNS, CURVE_TASK_COLUMNS, INTERVAL_SUFFIXES, RunTables
from sim.report.provenance import provenance
from sim.report.quality_grounds import quality_grounds
from sim.results import Measured, intervals, measure
from sim.scenario import Case, Curve, Scenario
from sim.service import Service
from sim.simulate import CaseRun, Progress, draw_traffic, probed, serve, simulate
from sim.tenancy import tenancy_of
from sim.workload.kinds import ClosedLoopWorkload, OpenLoopWorkload, ProgramsWorkload, Workload
from sim.workload.requests import Traffic

Watcher = Callable[[str], Progress]
"""Gives a progress listener for each case or curve, by its name."""


@dataclass(frozen=True)
class CaseTables:
    """The tables of one case."""

    summary: dict[str, object]
    requests: pd.DataFrame
    timeline: pd.DataFrame
    bill: pd.DataFrame
    pools: pd.DataFrame
    tenants: pd.DataFrame
    tasks: pd.DataFrame | None
    calls: pd.DataFrame | None
    curve: pd.DataFrame | None
    provenance: pd.DataFrame
    notes: tuple[str, ...]
    always_up: tuple[str, ...]
    """Pools in which replicas neither fail nor come and go."""


def forecast(
    scenario: Scenario,
    catalog: Catalog,
    watch: Watcher,
    *,
    every_step: bool = False,
    manifest: Mapping[str, object],
    keep: Callable[[CaseRun], None] | None = None,
) -> RunTables:
    """Simulate every case of a scenario and put the results side by side.

    All cases are resolved before the first one runs, so that a mistake in the last one shows at
    once.

    Parameters
    ----------
    scenario : Scenario
    catalog : Catalog
    watch : callable
        Gives a progress listener for each part of the work.
    every_step : bool
        Walk every step instead of jumping over stretches.
    manifest : mapping
        What to record about the call beside the seed, versions and inputs.
    keep : callable, optional
        Gets each simulated case with its raw columns, which are dropped otherwise.
    """
    started = time.monotonic()
    seed = scenario.header.seed
    results = []
    for resolved in resolve(scenario, catalog):
        service, terms = resolved.service, resolved.terms
        ways = ways_to_pay(service, catalog, terms)
        progress = watch(service.case.name)
        with scenario.locating(service.case):
            run = simulate(service, catalog, seed, every_step=every_step, progress=progress)
            outlook = outlook_of(service, catalog)
            curve = _curve(run, catalog, terms, seed, watch, outlook)
        if keep is not None:
            keep(run)
        grounds = tuple(quality_grounds(service.case.workload, catalog))
        results.append(case_tables(run, ways, curve, grounds, outlook))
    summary, claims = _compared(scenario, pd.DataFrame([result.summary for result in results]))
    return RunTables(
        scenario=scenario.header.name,
        question=scenario.header.question.strip(),
        seed=seed,
        version=version("rackcast"),
        summary=summary,
        requests=_stacked([result.requests for result in results]),
        timeline=_stacked([result.timeline for result in results]),
        bill=_stacked([result.bill for result in results]),
        pools=_stacked([result.pools for result in results]),
        tenants=_stacked([result.tenants for result in results]),
        curve=_stacked_if_any([result.curve for result in results]),
        tasks=_stacked_if_any([result.tasks for result in results]),
        calls=_stacked_if_any([result.calls for result in results]),
        claims=claims,
        provenance=_stacked([result.provenance for result in results]),
        notes=_notes(results),
        manifest={
            **manifest,
            "seed": seed,
            "versions": {"rackcast": version("rackcast"), "python": platform.python_version()},
            "inputs": dict(hashes(scenario, catalog, manifest)),
            "wall_time_s": round(time.monotonic() - started, 3),
        },
    )


def _compared(scenario: Scenario, rows: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame | None]:
    """Put the rows of the cases beside their baselines, and beside what others claim."""
    named = {case.name: case.baseline for case in scenario.cases if case.baseline is not None}
    summary = against_baseline(with_baselines(rows, named))
    claimed = {
        case.name: (case.claims.source, case.claims.by_column())
        for case in scenario.cases
        if case.claims is not None
    }
    return summary, claim_table(summary, claimed)


def case_tables(
    run: CaseRun,
    ways: WaysToPay,
    curve: pd.DataFrame | None,
    grounds: Sequence[Mapping[str, str]] = (),
    outlook: Outlook | None = None,
) -> CaseTables:
    """Turn one simulated case into its tables.

    Parameters
    ----------
    run : CaseRun
    ways : mapping
        Ways to pay by their names; the first one is what the case asks for.
    curve : DataFrame, optional
        All columns of its points.
    grounds : sequence of mappings
        What it rests on beside its machines and prices.
    outlook : Outlook, optional
        What is known of the errors of its forecast; without it there are no intervals.
    """
    service, case = run.service, run.service.case
    measured = measure(run, next(iter(ways.values())))
    sure = intervals(run, measured, outlook)
    requests, books = measured.requests, measured.books
    slo = {"slo_ttft_s": case.slo.ttft_s, "slo_tpot_s": case.slo.tpot_s}
    said = {"caveats": caveats(service)}
    requests["measured"] = requests["arrival_s"].between(books.window.start_s, books.window.end_s)
    rows = {} if measured.of_tasks is None else measured.of_tasks.by_tenant
    models = models_of(measured.record, requests) if case.other_models else None
    tenants = [
        tenant | rows.get(str(tenant["tenant"]), {})
        for tenant in tenant_rows(requests, books, tenancy_of(case, run.tenants).slos, models)
    ]
    bins = timeline(service, requests, measured.record, measured.over_time)
    return CaseTables(
        summary=measured.summary | slo | said | sure,
        requests=_named(requests, case),
        timeline=_named(bins, case),
        bill=_named(pd.DataFrame(books.bill), case),
        pools=_named(pd.DataFrame(pool_rows(service, books)), case),
        tenants=_named(pd.DataFrame(tenants), case),
        tasks=None if measured.tasks is None else _named(measured.tasks, case),
        calls=None if measured.calls is None else _named(measured.calls, case),
        curve=None if curve is None else _of_curve(curve),
        provenance=_named(pd.DataFrame([*provenance(service, books), *grounds]), case),
        notes=(
            *service.notes,
            *run.notes,
            *case_notes(run, measured, ways),
            *notes_of(case.name, measured.summary | sure),
            *(() if curve is None else curve_notes(case.name, sure, curve)),
        ),
        always_up=tuple(pool.case.name for pool in service.pools if not pool.case.changes),
    )


def ways_to_pay(
    service: Service, catalog: Catalog, asked: tuple[Terms, ...]
) -> dict[str, tuple[Terms, ...]]:
    """Give every way to pay for all fleets, the one that the case asks for first."""
    book = catalog.prices(service.case.prices.book)
    each: list[dict[str, Terms]] = []
    for fleet in service.fleets:
        ways: dict[str, Terms] = {}
        if fleet.system_id in book.purchase_usd_per_system:
            ways["owned"] = purchase(book, fleet.system_id, fleet.system)
        for kind in book.rent_usd_per_chip_hour.get(fleet.system.accelerator, {}):
            name = f"rented ({kind.replace('_', ' ')})"
            ways[name] = rental(book, fleet.system.accelerator, kind)
        each.append(ways)
    known = [name for name in each[0] if all(name in ways for ways in each)]
    found = {name: tuple(ways[name] for ways in each) for name in known}
    first = next(name for name, terms in found.items() if terms == asked)
    return {first: asked, **{name: terms for name, terms in found.items() if name != first}}


def _curve(
    run: CaseRun,
    catalog: Catalog,
    terms: tuple[Terms, ...],
    seed: int,
    watch: Watcher,
    outlook: Outlook | None,
) -> pd.DataFrame | None:
    """Run the closed loops of a case's curve, each to the end."""
    service, case = run.service, run.service.case
    curve = case.curve
    if curve is None:
        return None
    replicas = service.answer_pool.replicas
    points = [clients * replicas for clients in curve.concurrency_per_replica]
    progress = watch(f"{case.name}, curve")
    rows = []
    for index, clients in enumerate(points):
        traffic = _closed_traffic(case.workload, curve, clients, catalog, seed)
        record = serve(service, traffic, seed=seed)
        point = replace(run, record=record, clients=clients, tenants=traffic.tenant_names)
        measured = measure(point, terms)
        sure = intervals(point, measured, outlook)
        rows.append({"concurrency": clients, **_tasks_per_s(measured), **measured.summary, **sure})
        progress(index + 1, len(points))
    return pd.DataFrame(rows)


def _of_curve(table: pd.DataFrame) -> pd.DataFrame:
    """Take the columns of the table of curves."""
    columns = [*CURVE_COLUMNS, *(name for name in CURVE_TASK_COLUMNS if name in table)]
    bounds = (f"{name}{suffix}" for name in columns for suffix in INTERVAL_SUFFIXES)
    return table[[*columns, *(name for name in bounds if name in table)]]


def _tasks_per_s(measured: Measured) -> dict[str, float]:
    """Give the rate at which tasks are completed, where there are any."""
    if measured.tasks is None:
        return {}
    counted = tasks_in(measured.tasks, measured.window)
    done = int((counted["outcome"] == "completed").sum())
    return {"tasks_per_s": done / measured.window.duration_s}


def _closed_traffic(
    workload: Workload, curve: Curve, clients: int, catalog: Catalog, seed: int
) -> Traffic:
    """Draw the requests of a curve point: lengths of the case's traffic, arrivals on completion."""
    requests = max(clients * curve.requests_per_client, curve.min_requests)
    if isinstance(workload, OpenLoopWorkload | ClosedLoopWorkload):
        closed = ClosedLoopWorkload(
            kind="closed_loop",
            traffic=None if workload.lengths is not None else workload.traffic,
            lengths=workload.lengths,
            sharing=workload.sharing,
            images=workload.images,
            max_tokens=workload.max_tokens,
            requests=requests,
            concurrency=clients,
        )
        return draw_traffic(closed, catalog, seed)
    if isinstance(workload, ProgramsWorkload):
        tried = probed(workload, catalog, seed)
        calls = sum(len(ledger.calls) for ledger in tried) / len(tried)
        enough = ceil(curve.min_requests / max(calls, 1.0))
        tasks = max(clients * curve.requests_per_client, enough)
        return draw_traffic(workload.asked_by(clients, tasks), catalog, seed)
    recorded = draw_traffic(workload, catalog, seed)
    again = recorded.take(np.resize(np.arange(len(recorded)), requests))
    return replace(again, arrival_s=None, clients=clients, sessions=None)


def _named(frame: pd.DataFrame, case: Case) -> pd.DataFrame:
    frame.insert(0, "case", case.name)
    return frame


def _stacked(frames: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """Put tables below each other; one alone is not copied, it may be large."""
    return frames[0] if len(frames) == 1 else pd.concat(frames, ignore_index=True)


def _stacked_if_any(frames: Sequence[pd.DataFrame | None]) -> pd.DataFrame | None:
    there = [frame for frame in frames if frame is not None]
    return _stacked(there) if there else None


def _notes(results: Sequence[CaseTables]) -> tuple[str, ...]:
    """Collect the notes of all cases, each once."""
    general = (
        *_sureness(results),
        "Rates, energy and cost are counted from the end of the warm-up (a share of the arrivals) "
        "to the last arrival; latencies are those of the requests that arrive in that time, "
        "followed to their end.",
        *_steady(results),
        "All figures are of one seed: with another one, means move by some percent, tails by more, "
        "near saturation by much more.",
        "Time to first token is less certain than time per token: measured runs that no fit had "
        "seen are off by a fifth in the median, those of SGLang by more.",
    )
    notes = dict.fromkeys(note for result in results for note in result.notes)
    return (*general, *notes)


def _sureness(results: Sequence[CaseTables]) -> Iterator[str]:
    """Say what the intervals are, or that there are none."""
    if any(CHANCE_COLUMN in result.summary for result in results):
        yield (
            "Intervals hold four fifths of the measured runs that no fit had seen. Power, prices "
            "and the traffic are taken as known; the chance of the SLO is that of the same errors."
        )
    else:
        yield (
            "Forecasts carry no interval: no residuals of measured runs are in the catalogue. The "
            "report lists each fitted law with how far it is off on the measurements that it was "
            "fitted to."
        )


def _steady(results: Sequence[CaseTables]) -> Iterator[str]:
    """Say where boot, failures and maintenance are left out."""
    steady = [name for result in results for name in result.always_up]
    if steady:
        all_of_them = len(steady) == sum(len(result.pools) for result in results)
        where = "" if all_of_them else f" of {', '.join(steady)}"
        yield f"Boot, failures and maintenance{where} are not in."
