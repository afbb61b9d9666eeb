"""A whole scenario from its file to the tables of its report."""

import hashlib
import platform
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd

from sim.catalog import Catalog, Kind
from sim.checks import resolve
from sim.cost.work import StepShape
from sim.deployment import Deployment
from sim.economics import Terms, purchase, rental
from sim.figures import Figure
from sim.metrics import (
    Accounts,
    Activity,
    accounts,
    activity,
    measured_window,
    request_table,
    summary_row,
    timeline,
)
from sim.report.caveats import caveats
from sim.report.data import CURVE_COLUMNS, RunTables
from sim.scenario import Case, ClosedLoopWorkload, Scenario, TraceWorkload
from sim.simulate import CaseRun, Progress, Traffic, draw_traffic, serve, simulate
from sim.units import GB, GIB, KW

Tokens = npt.NDArray[np.int64]

WaysToPay = Mapping[str, Terms]
"""Terms by what people call them."""

Watcher = Callable[[str], Progress]
"""Gives a progress listener for each case or curve, by its name."""

FEW_REQUESTS = 500
"""With fewer requests than this the 99th percentile rests on less than five of them."""
LONG_WINDOW = 10.0
"""Only in a window of so many times what a request takes does arriving faster than leaving show
that a case falls behind, and not just that requests take time; or if most of it is waiting."""
FALLING_BEHIND = 0.95
"""A case that completes less than this share of the offered rate is called saturated."""


@dataclass(frozen=True)
class CaseTables:
    """The tables of one case."""

    summary: dict[str, object]
    requests: pd.DataFrame
    timeline: pd.DataFrame
    bill: pd.DataFrame
    curve: pd.DataFrame | None
    provenance: pd.DataFrame
    notes: tuple[str, ...]


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
        deployment, terms = resolved.deployment, resolved.terms
        ways = ways_to_pay(deployment, catalog, terms)
        progress = watch(deployment.case.name)
        run = simulate(deployment, catalog, seed, every_step=every_step, progress=progress)
        if keep is not None:
            keep(run)
        curve = _curve(deployment, catalog, terms, seed, watch)
        results.append(case_tables(run, ways, curve))
    curves = [result.curve for result in results if result.curve is not None]
    return RunTables(
        scenario=scenario.header.name,
        question=scenario.header.question.strip(),
        seed=seed,
        version=version("rackcast"),
        summary=pd.DataFrame([result.summary for result in results]),
        requests=_stacked([result.requests for result in results]),
        timeline=_stacked([result.timeline for result in results]),
        bill=_stacked([result.bill for result in results]),
        curve=_stacked(curves) if curves else None,
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

    requests: pd.DataFrame
    work: Activity
    books: Accounts
    summary: dict[str, object]


def measure(run: CaseRun, terms: Terms) -> Measured:
    """Measure a simulated case in its window."""
    deployment = run.deployment
    requests = request_table(run.record, deployment.timer.overhead)
    work = activity(deployment, run.record)
    warmup = deployment.case.measure.warmup_fraction
    window = measured_window(requests, warmup, run.clients)
    books = accounts(deployment, window, requests, work, terms)
    return Measured(requests, work, books, summary_row(deployment, requests, books))


def case_tables(run: CaseRun, ways: WaysToPay, curve: pd.DataFrame | None) -> CaseTables:
    """Turn one simulated case into its tables.

    Parameters
    ----------
    run : CaseRun
    ways : mapping
        Ways to pay by their names; the first one is what the case asks for.
    curve : DataFrame, optional
    """
    deployment, case = run.deployment, run.deployment.case
    measured = measure(run, next(iter(ways.values())))
    requests, books = measured.requests, measured.books
    slo = {"slo_ttft_s": case.slo.ttft_s, "slo_tpot_s": case.slo.tpot_s}
    said = {"caveats": caveats(deployment)}
    requests.insert(1, "tenant", "all")
    requests["measured"] = requests["arrival_s"].between(books.window.start_s, books.window.end_s)
    return CaseTables(
        summary=measured.summary | slo | said,
        requests=_named(requests, case),
        timeline=_named(timeline(deployment, requests, measured.work), case),
        bill=_named(pd.DataFrame(books.bill), case),
        curve=curve,
        provenance=_named(pd.DataFrame(_provenance(deployment, books)), case),
        notes=(*deployment.notes, *_case_notes(run, measured, ways)),
    )


def ways_to_pay(deployment: Deployment, catalog: Catalog, asked: Terms) -> dict[str, Terms]:
    """Give every way to pay that the price book has, the one that the case asks for first."""
    case, system = deployment.case, deployment.system
    book = catalog.prices(case.prices.book)
    ways: dict[str, Terms] = {}
    if case.system in book.purchase_usd_per_system:
        ways["owned"] = purchase(book, case.system, system)
    for kind in book.rent_usd_per_chip_hour.get(system.accelerator, {}):
        ways[f"rented ({kind.replace('_', ' ')})"] = rental(book, system.accelerator, kind)
    first = next(name for name, terms in ways.items() if terms == asked)
    return {first: asked, **{name: terms for name, terms in ways.items() if name != first}}


def _curve(
    deployment: Deployment,
    catalog: Catalog,
    terms: Terms,
    seed: int,
    watch: Watcher,
) -> pd.DataFrame | None:
    """Run the closed loops of a case's curve, each to the end."""
    case = deployment.case
    if case.curve is None:
        return None
    points = [clients * deployment.replicas for clients in case.curve.concurrency_per_replica]
    progress = watch(f"{case.name}, curve")
    rows = []
    for index, clients in enumerate(points):
        traffic = _closed_traffic(case, clients, catalog, seed)
        run = CaseRun(deployment, serve(deployment, traffic), clients=clients)
        rows.append({"concurrency": clients, **measure(run, terms).summary})
        progress(index + 1, len(points))
    return pd.DataFrame(rows)[list(CURVE_COLUMNS)]


def _closed_traffic(case: Case, clients: int, catalog: Catalog, seed: int) -> Traffic:
    """Draw the requests of a curve point: lengths of the case's traffic, arrivals on completion."""
    assert case.curve is not None  # noqa: S101 - the caller has looked
    requests = max(clients * case.curve.requests_per_client, case.curve.min_requests)
    workload = case.workload
    if isinstance(workload, TraceWorkload):
        trace = draw_traffic(case, workload, catalog, seed)
        return Traffic(
            _repeated(trace.input_tokens, requests),
            _repeated(trace.output_tokens, requests),
            None,
            clients,
        )
    closed = ClosedLoopWorkload(
        kind="closed_loop",
        traffic=None if workload.lengths is not None else workload.traffic,
        lengths=workload.lengths,
        requests=requests,
        concurrency=clients,
    )
    return draw_traffic(case, closed, catalog, seed)


def _repeated(values: Tokens, count: int) -> Tokens:
    """Take values in order, from the start again when they run out."""
    return np.resize(values, count)


def _named(frame: pd.DataFrame, case: Case) -> pd.DataFrame:
    frame.insert(0, "case", case.name)
    return frame


def _stacked(frames: Sequence[pd.DataFrame]) -> pd.DataFrame:
    return pd.concat(frames, ignore_index=True)


def _provenance(deployment: Deployment, books: Accounts) -> Iterator[dict[str, str]]:
    """Say what a forecast rests on: one row per fact, fit or assumption."""
    model, chip, memory = deployment.model, deployment.accelerator, deployment.memory
    yield _item("model", model.name, f"architecture: {model.source}")
    capacity, bandwidth = chip.local_memory.capacity_bytes, chip.local_memory.bandwidth_bytes_per_s
    yield _item("memory", f"{capacity.value / GIB:.1f} GiB", _cited(capacity))
    yield _item("memory bandwidth", f"{bandwidth.value / GB:,.0f} GB/s", _cited(bandwidth))
    dtype = deployment.compute_dtype
    peak = chip.peak_flop_per_s[dtype]
    yield _item(f"dense {dtype} peak", f"{peak.value:.3g} FLOP/s", _cited(peak))
    given = deployment.case.engine.reserved_bytes is not None
    reserved = "given" if given else "as vLLM logs it"
    yield _item(
        "KV cache",
        f"{deployment.kv_tokens:,} tokens per replica",
        f"memory less {memory.weights_bytes / GIB:.1f} GiB weights, "
        f"{memory.activations_bytes / GIB:.1f} GiB activations (computed) and "
        f"{memory.engine_bytes / GIB:.1f} GiB for the engine ({reserved}), per chip",
    )
    shape = StepShape(
        decode_sequences=1, decode_context_tokens=1, prefill_sequences=1, prefill_tokens=1
    )
    for row in deployment.explain(shape):
        yield _item(f"time of {row.name}", f"{row.calls} per step", row.source)
    power = deployment.power
    inherited = f", inherited from {power.inherited_from}" if power.inherited_from else ""
    yield _item(
        "power under load",
        f"median error {power.fit.median_ape:.1%}",
        f"fitted: {power.fit.source}{inherited}",
    )
    idle, host = chip.power.idle_w, deployment.system.host_power_w
    yield _item("idle power of a chip", f"{idle.value:.0f} W", _cited(idle))
    yield _item("power of the hosts", f"{host.value / KW:.2f} kW", _cited(host))
    for line in books.bill:
        yield _item(f"cost: {line.line}", f"{line.usd_per_hour:.2f} USD/h", line.source)


def _item(item: str, value: str, source: str) -> dict[str, str]:
    return {"item": item, "value": value, "source": source}


def _cited(figure: Figure[float]) -> str:
    return f"{figure.confidence}: {figure.source}"


def _case_notes(run: CaseRun, measured: Measured, ways: WaysToPay) -> Iterator[str]:
    case, window = run.deployment.case, measured.books.window
    counted = f"{case.name}: counted from {window.start_s:.0f} s to {window.end_s:.0f} s"
    if run.capacity_requests_per_s is not None:
        counted += (
            f"; with every place in the batch taken it serves "
            f"{run.capacity_requests_per_s:.2f} requests/s at most"
        )
    yield f"{counted}. {_prices(run.deployment, measured, ways)}"
    requests = measured.requests
    served = requests[requests["outcome"] == "completed"]
    arrive, leave = (
        served[time].between(window.start_s, window.end_s).sum() / window.duration_s
        for time in ("arrival_s", "done_s")
    )
    waits_s = float((served["admit_s"] - served["arrival_s"]).median())
    runs_s = float((served["done_s"] - served["admit_s"]).median())
    telling = window.duration_s > LONG_WINDOW * runs_s or waits_s > runs_s
    if case.workload.kind != "closed_loop" and telling and leave < FALLING_BEHIND * arrive:
        yield (
            f"{case.name}: falls behind: {leave:.2f} requests/s leave while {arrive:.2f} arrive; "
            "its latencies grow with the length of the run."
        )
    counted_requests = int(requests["measured"].sum())
    if counted_requests < FEW_REQUESTS:
        yield f"{case.name}: only {counted_requests} requests count; tails rest on a few of them."
    failed = int(str(measured.summary["failed_requests"]))
    if failed:
        yield f"{case.name}: {failed} requests are longer than the KV cache or the model allows."


def _prices(deployment: Deployment, measured: Measured, ways: WaysToPay) -> str:
    """Say what a million tokens of the same run, in and out, cost in every way to pay."""
    words = []
    for name, terms in ways.items():
        window, requests, work = measured.books.window, measured.requests, measured.work
        cost = accounts(deployment, window, requests, work, terms).token_cost
        if cost.usd_per_mtok_total is not None:
            words.append(f"{cost.usd_per_mtok_total:.3f} {name}")
    return f"USD per million tokens: {', '.join(words) or 'there were none'}."


def _notes(results: Sequence[CaseTables]) -> tuple[str, ...]:
    """Collect the notes of all cases, each once."""
    general = (
        "Forecasts carry no interval yet. The report lists each fitted law with how far it is off "
        "on the measurements that it was fitted to.",
        "Rates, energy and cost are counted from the end of the warm-up (a share of the arrivals) "
        "to the last arrival; latencies are those of the requests that arrive in that time, "
        "followed to their end.",
        "Boot, failures and maintenance are not in. All figures are of one seed: with another one, "
        "means move by some percent, tails by more, near saturation by much more.",
        "Time to first token is fitted to runs with free arrivals; published benchmarks with "
        "closed loops show several times as much, which is not explained yet.",
    )
    notes = dict.fromkeys(note for result in results for note in result.notes)
    return (*general, *notes)


def _inputs(
    scenario: Scenario, catalog: Catalog, manifest: Mapping[str, object]
) -> Iterator[tuple[str, str]]:
    """Hash every file that the result depends on."""
    files: dict[str, Path] = {}
    if "scenario_path" in manifest:
        files["scenario"] = Path(str(manifest["scenario_path"]))
    for case in scenario.cases:
        chip = catalog.system(case.system).accelerator
        named: tuple[tuple[Kind, str], ...] = (
            ("systems", case.system),
            ("accelerators", chip),
            *_laws(chip, catalog),
            ("overheads", case.engine.name),
            ("models", case.model),
            ("prices", case.prices.book),
        )
        files |= {f"{kind}/{entry}": catalog.path(kind, entry) for kind, entry in named}
        workload = case.workload
        if isinstance(workload, TraceWorkload):
            if workload.path is not None:
                files[f"trace/{workload.path.name}"] = workload.path
        elif workload.traffic is not None:
            files[f"lengths/{workload.traffic}"] = catalog.path("lengths", workload.traffic)
    for name in sorted(files):
        yield name, hashlib.sha256(files[name].read_bytes()).hexdigest()


def _laws(chip: str, catalog: Catalog) -> Iterator[tuple[Kind, str]]:
    """Name the files whose laws price a chip: its own, and those that stand in for missing ones."""
    if chip in catalog.names("calibrations"):
        yield "calibrations", chip
    prior = catalog.prior(catalog.accelerator(chip).family)
    if prior is not None:
        yield "priors", prior.rule.family
        yield "calibrations", prior.rule.donor
