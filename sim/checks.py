"""Find what is wrong before anything runs: with a scenario, or with any file of the project."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from sim.catalog import Catalog, Kind
from sim.economics import PriceBook, Terms, purchase, rental
from sim.efficiency import Calibration
from sim.errors import Findings, InfeasibleError, InputError, RackcastError, under
from sim.hardware import Accelerator, System
from sim.kv_places import host_link, tiers_of
from sim.measured import Published
from sim.model import Model
from sim.overhead import EngineOverheads
from sim.presets import EnginePreset
from sim.priors import FamilyPrior
from sim.quality import Benchmark
from sim.reliability import Reliability
from sim.scenario import (
    Case,
    Recorded,
    Scenario,
    load_scenario,
    scenario_json_schema,
)
from sim.schema import KeyPath, StrictModel, did_you_mean, json_schema, load_yaml, validate
from sim.service import Fleet, Service, service_of
from sim.speculation import MeasuredAcceptance
from sim.tenancy import check_tenants
from sim.uncertainty import Residuals
from sim.upkeep_plans import upkeep_plans
from sim.workload.kinds import (
    MixWorkload,
    ProgramsWorkload,
    SessionsWorkload,
    Workload,
    programs_of,
)
from sim.workload.sessions import SessionTraffic
from sim.workload.strategies.entry import StrategyEntry, read_entry
from sim.workload.tasks import (
    benchmark_of,
    check_lengths,
    needs_answers,
    strategy_name,
    strategy_of,
    try_out,
)
from sim.workload.traffic import TrafficLaw

MODELS: Mapping[str, type[StrictModel]] = {
    "accelerator": Accelerator,
    "system": System,
    "calibration": Calibration,
    "prior": FamilyPrior,
    "overhead": EngineOverheads,
    "residuals": Residuals,
    "engine": EnginePreset,
    "prices": PriceBook,
    "model": Model,
    "lengths": TrafficLaw,
    "sessions": SessionTraffic,
    "speculation": MeasuredAcceptance,
    "strategy": StrategyEntry,
    "quality": Benchmark,
    "reliability": Reliability,
    "measured": Published,
}
"""Kinds of files beside scenarios."""

_TELLING_KEYS: tuple[tuple[str, str], ...] = (
    ("question", "scenario"),
    ("peak_flop_per_s", "accelerator"),
    ("kernels", "calibration"),
    ("scale_up", "system"),
    ("donor", "prior"),
    ("families", "overhead"),
    ("quantities", "residuals"),
    ("settings", "engine"),
    ("ownership", "prices"),
    ("layers", "model"),
    ("lengths", "lengths"),
    ("law", "sessions"),
    ("tasks", "speculation"),
    ("strategy", "strategy"),
    ("benchmark", "quality"),
    ("host", "reliability"),
    ("boot", "reliability"),
    ("comparisons", "measured"),
)
"""A key that only one kind of file has; a calibration names peaks too, so order matters."""

_FOLDERS: Mapping[str, str] = {
    "accelerators": "accelerator",
    "systems": "system",
    "calibrations": "calibration",
    "priors": "prior",
    "overheads": "overhead",
    "residuals": "residuals",
    "engines": "engine",
    "prices": "prices",
    "models": "model",
    "lengths": "lengths",
    "sessions": "sessions",
    "speculation": "speculation",
    "strategies": "strategy",
    "quality": "quality",
    "reliability": "reliability",
    "measured": "measured",
    "scenarios": "scenario",
}


@dataclass(frozen=True)
class ResolvedCase:
    """A case with all that it names."""

    service: Service
    terms: tuple[Terms, ...]
    """How each of its fleets is paid for."""


def check_file(path: Path, catalog: Catalog) -> str:
    """Validate one file and return what kind it is.

    Raises
    ------
    InputError, InfeasibleError
        With all problems of the file.
    """
    kind = _kind_of(path)
    if kind == "scenario":
        resolve(load_scenario(path), catalog)
    elif kind == "strategy":
        read_entry(load_yaml(path), partial(catalog.located, "strategies"))
    else:
        validate(MODELS[kind], load_yaml(path))
    return kind


def resolve(scenario: Scenario, catalog: Catalog) -> list[ResolvedCase]:
    """Look up all that the cases of a scenario name, and check that each of them fits.

    Raises
    ------
    InputError, InfeasibleError
        With the problems of all cases, each with its file, line and key; a wrong name outranks
        what does not fit.
    """
    found: list[ResolvedCase] = []
    problems: list[tuple[Case, InputError | InfeasibleError]] = []
    for case in scenario.cases:
        try:
            found.append(_resolved(case, catalog))
        except (InputError, InfeasibleError) as error:
            problems.append((case, error))
    if problems:
        raise scenario.error_of(problems)
    return found


def _resolved(case: Case, catalog: Catalog) -> ResolvedCase:
    """Look up what a case names, then check that it can be served so, then all that rests on it."""
    names = Findings()
    for key, look_up in _names(case, catalog):
        with names.noting(), under(*key):
            look_up()
    with names.noting():
        check_tenants(case)
    names.complain()
    service = service_of(case, catalog)
    rest = Findings()
    for place, asked in programs_of(case.workload).items():
        with rest.noting(), under("workload", *place):
            check_lengths(asked, catalog, service.longest_tokens)
    with rest.noting():
        upkeep_plans(service, catalog)
    for pool in service.pools:
        with rest.noting(), under(*case.place_of(pool.role)):
            host_link(pool)
            tiers_of(pool)
    terms: list[Terms] = []
    for fleet in service.fleets:
        with rest.noting():
            terms.append(_terms(case, fleet, catalog))
    rest.complain()
    return ResolvedCase(service, tuple(terms))


_LookUp = Callable[[], object]


def _names(case: Case, catalog: Catalog) -> Iterator[tuple[KeyPath, _LookUp]]:
    """List the names in a case, each with its key and what finds out whether it leads somewhere."""
    yield ("prices", "book"), partial(catalog.prices, case.prices.book)
    for place, asked in programs_of(case.workload).items():
        if asked.benchmark is not None:
            known = partial(benchmark_of, asked.benchmark, catalog)
            yield ("workload", *place, "benchmark"), known
        yield ("workload", *place), partial(_check_strategy, case, asked, catalog)
    if case.curve is not None:
        yield ("curve",), partial(_check_curve, case.workload)
    for key, look_up in _names_of_traffic(case.workload, catalog):
        yield ("workload", *key), look_up
    for role in case.roles:
        for key, look_up in _names_of_pool(case.of_pool(role), catalog):
            yield (*case.place_of(role), *key), look_up


def _check_strategy(case: Case, workload: ProgramsWorkload, catalog: Catalog) -> None:
    """Find out whether a strategy is known, and whether all models that it calls are there."""
    strategy = strategy_of(workload.strategy, catalog)
    missing = sorted(strategy.models - set(case.other_models))
    if missing:
        has = ", ".join(case.other_models) or "none"
        raise InputError(
            f"strategy {strategy_name(workload.strategy)!r} calls the model {missing[0]!r}, which "
            f"the case does not have (other_models: {has}): give it a pool, such as "
            f"'other_models: {{{missing[0]}: {{model: llama_3_1_8b, replicas: 1}}}}'",
            key="strategy",
        )
    if workload.benchmark is None and needs_answers(strategy):
        raise InputError(
            f"strategy {strategy_name(workload.strategy)!r} goes by how good answers are, of which "
            "nothing is known here: name a benchmark beside it",
            key="strategy",
        )
    if workload.benchmark is not None:
        try_out(workload, catalog)


def _check_curve(workload: Workload) -> None:
    """Find out whether closed loops can send what a workload consists of."""
    way_out = "leave curve out"
    if isinstance(workload, MixWorkload):
        loops = [
            name
            for name, part in workload.parts.items()
            if isinstance(part, SessionsWorkload | ProgramsWorkload)
        ]
        if loops:
            raise InputError(
                f"a curve sends the requests of a mix from closed loops, and part {loops[0]!r} is "
                f"of kind {workload.parts[loops[0]].kind}, whose requests wait for each other: "
                f"{way_out}, or give each part a case of its own"
            )
    if isinstance(workload, SessionsWorkload):
        raise InputError(
            "a curve runs closed loops, and sessions start at times of their own: give several "
            f"cases with different rates of arrivals, and {way_out}"
        )


def _names_of_pool(pool: Case, catalog: Catalog) -> Iterator[tuple[KeyPath, _LookUp]]:
    yield ("system",), partial(_chip_of, pool.system, catalog)
    yield ("model",), partial(catalog.model, pool.model)
    yield ("engine", "name"), partial(catalog.engine, pool.engine.name)
    for key, part in (("faults", pool.faults), ("boot", pool.boot)):
        if part is not None and part.rates is not None:
            yield (key, "rates"), partial(catalog.reliability, part.rates)
    drafts = pool.engine.speculation
    if drafts is not None and drafts.acceptance is not None:
        at: KeyPath = ("engine", "speculation", "acceptance")
        yield at, partial(catalog.speculation, drafts.acceptance)
    if drafts is not None and drafts.draft_model is not None:
        at = ("engine", "speculation", "draft_model")
        yield at, partial(catalog.model, drafts.draft_model)


def _chip_of(system_id: str, catalog: Catalog) -> Accelerator:
    return catalog.accelerator(catalog.system(system_id).accelerator)


def _names_of_traffic(workload: Workload, catalog: Catalog) -> Iterator[tuple[KeyPath, _LookUp]]:
    """List the fitted laws and the files that a workload names."""
    if isinstance(workload, MixWorkload):
        for name, part in workload.parts.items():
            for key, look_up in _names_of_traffic(part, catalog):
                yield ("parts", name, *key), look_up
        return
    if isinstance(workload, Recorded) and workload.path is not None:
        yield ("path",), partial(_check_trace, workload.path)
    traffic = getattr(workload, "traffic", None)
    if traffic is not None:
        kind: Kind = "sessions" if workload.kind == "sessions" else "lengths"
        yield ("traffic",), partial(catalog.path, kind, traffic)


def _check_trace(path: Path) -> None:
    """Find out whether a trace is there; what it holds is read when it is replayed."""
    if not path.is_file():
        what = "it is a folder, not a file" if path.is_dir() else "no such file"
        raise InputError(
            f"{path}: {what}; paths in a scenario start from its folder, those of --set from the "
            "working directory"
        )


def _terms(case: Case, fleet: Fleet, catalog: Catalog) -> Terms:
    """Look up what the systems of a fleet cost."""
    book = catalog.prices(case.prices.book)
    with under("prices"):
        if case.prices.mode == "rent":
            return rental(book, fleet.system.accelerator, case.prices.rent, fleet.system_id)
        return purchase(book, fleet.system_id, fleet.system)


def check_catalog(catalog: Catalog) -> int:
    """Validate every file of the catalogue and return how many there are.

    Raises
    ------
    InputError
        With all problems of all files.
    """
    problems: list[str] = []

    scenarios, lengths = catalog.files["scenarios"].values(), catalog.files["lengths"].values()
    checks: list[Callable[[], object]] = [
        catalog.validate_all,
        *(partial(check_file, path, catalog) for path in (*lengths, *scenarios)),
    ]
    for check in checks:
        try:
            check()
        except RackcastError as error:
            problems.append(str(error))
    if problems:
        raise InputError("\n".join(problems))
    return sum(len(files) for files in catalog.files.values())


def schema_of(name: str) -> dict[str, Any]:
    """JSON Schema of a kind of file.

    Raises
    ------
    InputError
        There is no such kind.
    """
    if name == "scenario":
        return scenario_json_schema()
    if name not in MODELS:
        known = ("scenario", *MODELS)
        hint = did_you_mean(name, known) or "."
        raise InputError(f"there is no schema {name!r}{hint} There are: {', '.join(known)}")
    return json_schema(MODELS[name])


def _kind_of(path: Path) -> str:
    """Tell a file's kind by the folder it lies in, else by a key that only one kind has."""
    for parent in path.absolute().parents:
        if parent.name in _FOLDERS:
            return _FOLDERS[parent.name]
    keys = load_yaml(path).data
    for key, kind in _TELLING_KEYS:
        if key in keys and not (kind == "accelerator" and "kernels" in keys):
            return kind
    known = ", ".join(("scenario", *MODELS))
    raise InputError(f"{path}: not a file of a known kind ({known})")
