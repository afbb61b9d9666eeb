"""A whole scenario from its file to the tables of its report."""

import hashlib
import platform
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from math import ceil
from pathlib import Path

import numpy as np
import pandas as pd

from sim.catalog import Catalog, Kind
from sim.checks import resolve
from sim.economics import Terms, purchase, rental
from sim.engine.cluster import RunRecord
from sim.metrics.accounts import Accounts, Inventory, accounts, inventories
from sim.metrics.backlog import backlog
from sim.metrics.baselines import against_baseline, claim_table, with_baselines
from sim.metrics.intervals import CHANCE_COLUMN, interval_columns, loop_of, notes_of
from sim.metrics.programs import (
    asked_in,
    measured_tasks,
    models_of,
    not_of_tasks,
    tasks_in,
)
from sim.metrics.regimes import Outlook, outlook_of
from sim.metrics.requests import Window, measured_window, request_table
from sim.metrics.summary import pool_rows, summary_row, tenant_rows
from sim.metrics.tenant_tasks import Askers, TaskRows
from sim.metrics.timeline import timeline, timeline_edges
from sim.report.caveats import caveats
from sim.report.data import CURVE_COLUMNS, CURVE_TASK_COLUMNS, INTERVAL_SUFFIXES, RunTables
from sim.report.formats import brief
from sim.report.provenance import provenance
from sim.report.quality_grounds import quality_grounds
from sim.scenario import Case, Scenario
from sim.service import Service
from sim.simulate import CaseRun, Progress, draw_traffic, probed, serve, simulate
from sim.tenancy import ONE_TENANT, tenancy_of
from sim.workload.kinds import (
    ClosedLoopWorkload,
    MixWorkload,
    OpenLoopWorkload,
    ProgramsWorkload,
    Workload,
    programs_of,
)
from sim.workload.requests import Traffic
from sim.workload.tasks import named_strategies

WaysToPay = Mapping[str, tuple[Terms, ...]]
"""Terms of each fleet, by what people call them."""

Watcher = Callable[[str], Progress]
"""Gives a progress listener for each case or curve, by its name."""

FEW_REQUESTS = 500
"""With fewer requests than this the 99th percentile rests on less than five of them."""
SHORT_WINDOW = 5.0
"""In a window of fewer times what a task takes on average, many tasks lie across its ends."""


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
    curves = [result.curve for result in results if result.curve is not None]
    tasks = [result.tasks for result in results if result.tasks is not None]
    calls = [result.calls for result in results if result.calls is not None]
    named = {case.name: case.baseline for case in scenario.cases if case.baseline is not None}
    rows = with_baselines(pd.DataFrame([result.summary for result in results]), named)
    summary = against_baseline(rows)
    claimed = {
        case.name: (case.claims.source, case.claims.by_column())
        for case in scenario.cases
        if case.claims is not None
    }
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
        curve=_stacked(curves) if curves else None,
        tasks=_stacked(tasks) if tasks else None,
        calls=_stacked(calls) if calls else None,
        claims=claim_table(summary, claimed),
        provenance=_stacked([result.provenance for result in results]),
        notes=_notes(results),
        manifest={
            **manifest,
            "seed": seed,
            "versions": {"rackcast": version("rackcast"), "python": platform.python_version()},
            "inputs": dict(_inputs(scenario, catalog, manifest)),
            "wall_time_s": round(time.monotonic() - started, 3),
        },
    )


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
    grounds : sequence of mappings
        What it rests on beside its machines and prices.
    outlook : Outlook, optional
        What is known of the errors of its forecast; without it there are no intervals.
    """
    service, case = run.service, run.service.case
    measured = measure(run, next(iter(ways.values())))
    sure = _intervals(run, measured, outlook)
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
        curve=curve,
        provenance=_named(pd.DataFrame([*provenance(service, books), *grounds]), case),
        notes=(
            *service.notes,
            *run.notes,
            *_case_notes(run, measured, ways),
            *notes_of(case.name, measured.summary | sure),
        ),
        always_up=tuple(pool.case.name for pool in service.pools if not pool.case.changes),
    )


def _intervals(run: CaseRun, measured: Measured, outlook: Outlook | None) -> dict[str, object]:
    """Say how sure the numbers of a case are, if anything is known of that."""
    if outlook is None:
        return {}
    service, requests, window = run.service, measured.requests, measured.window
    tasks = measured.tasks is not None  # the pilot run then counted tasks, and not requests
    capacity_per_s = None if tasks else run.capacity_requests_per_s
    loop = loop_of(service, requests, window, run.clients, capacity_per_s)
    return interval_columns(outlook, service, requests, window, measured.summary, loop)


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
    if case.curve is None:
        return None
    replicas = service.answer_pool.replicas
    points = [clients * replicas for clients in case.curve.concurrency_per_replica]
    progress = watch(f"{case.name}, curve")
    rows = []
    for index, clients in enumerate(points):
        traffic = _closed_traffic(case, clients, catalog, seed)
        record = serve(service, traffic, seed=seed)
        point = replace(run, record=record, clients=clients, tenants=traffic.tenant_names)
        measured = measure(point, terms)
        sure = _intervals(point, measured, outlook)
        rows.append({"concurrency": clients, **_tasks_per_s(measured), **measured.summary, **sure})
        progress(index + 1, len(points))
    table = pd.DataFrame(rows)
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


def _closed_traffic(case: Case, clients: int, catalog: Catalog, seed: int) -> Traffic:
    """Draw the requests of a curve point: lengths of the case's traffic, arrivals on completion."""
    assert case.curve is not None  # noqa: S101 - the caller has looked
    requests = max(clients * case.curve.requests_per_client, case.curve.min_requests)
    workload = case.workload
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
        enough = ceil(case.curve.min_requests / max(calls, 1.0))
        tasks = max(clients * case.curve.requests_per_client, enough)
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


def _case_notes(run: CaseRun, measured: Measured, ways: WaysToPay) -> Iterator[str]:
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
        "Time to first token is fitted to runs with free arrivals; published closed loops on "
        "Blackwell, and with SGLang, show two to four times as much, which is not explained yet.",
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


def _inputs(
    scenario: Scenario, catalog: Catalog, manifest: Mapping[str, object]
) -> Iterator[tuple[str, str]]:
    """Hash every file that the result depends on."""
    files: dict[str, Path] = {}
    if "scenario_path" in manifest:
        files["scenario"] = Path(str(manifest["scenario_path"]))
    for case in scenario.cases:
        for role in case.roles:
            named = _named_by(case.of_pool(role), catalog)
            files |= {f"{kind}/{entry}": catalog.path(kind, entry) for kind, entry in named}
        files |= dict(_traffic_files(case.workload, catalog))
    for name in sorted(files):
        yield name, hashlib.sha256(files[name].read_bytes()).hexdigest()


def _named_by(case: Case, catalog: Catalog) -> Iterator[tuple[Kind, str]]:
    """Name the catalogue entries that the case of one pool rests on."""
    chip = catalog.system(case.system).accelerator
    yield "systems", case.system
    yield "accelerators", chip
    yield from _laws(chip, catalog)
    yield from (("residuals", name) for name in catalog.names("residuals"))
    preset = catalog.engine(case.engine.name)
    yield "engines", case.engine.name
    given = "kernels" in case.engine.model_fields_set
    yield "overheads", str(case.engine.kernels if given else preset.settings["kernels"].value)
    yield "models", case.model
    yield "prices", case.prices.book
    for part in (case.faults, case.boot):
        if part is not None and part.rates is not None:
            yield "reliability", part.rates
    drafts = case.engine.speculation
    if drafts is not None and drafts.acceptance is not None:
        yield "speculation", drafts.acceptance


def _traffic_files(workload: Workload, catalog: Catalog) -> Iterator[tuple[str, Path]]:
    """Name the files that the requests come from."""
    if isinstance(workload, MixWorkload):
        for part in workload.parts.values():
            yield from _traffic_files(part, catalog)
        return
    if isinstance(workload, ProgramsWorkload):
        for name in named_strategies(workload.strategy, catalog):
            yield f"strategies/{name}", catalog.path("strategies", name)
        if workload.benchmark is not None:
            yield f"quality/{workload.benchmark}", catalog.path("quality", workload.benchmark)
        return
    path = getattr(workload, "path", None)
    if path is not None:
        yield f"trace/{path.name}", path
    kind: Kind = "sessions" if workload.kind == "sessions" else "lengths"
    traffic = getattr(workload, "traffic", None)
    if traffic is not None:
        yield f"{kind}/{traffic}", catalog.path(kind, traffic)


def _laws(chip: str, catalog: Catalog) -> Iterator[tuple[Kind, str]]:
    """Name the files whose laws price a chip: its own, and those that stand in for missing ones."""
    if chip in catalog.names("calibrations"):
        yield "calibrations", chip
    prior = catalog.prior(catalog.accelerator(chip).family)
    if prior is not None:
        yield "priors", prior.rule.family
        yield "calibrations", prior.rule.donor
