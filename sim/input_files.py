"""The files that the results of a scenario depend on."""

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path

from sim.catalog import Catalog, Kind
from sim.scenario import Case, Scenario
from sim.workload.kinds import MixWorkload, ProgramsWorkload, Workload
from sim.workload.tasks import named_strategies


def hashes(
    scenario: Scenario, catalog: Catalog, manifest: Mapping[str, object]
) -> Iterator[tuple[str, str]]:
    """Yield the name and the SHA-256 of every file that the results depend on."""
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
