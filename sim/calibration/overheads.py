"""Fit the overheads of serving engines to measured serving runs.

Kernels are fitted first and stay as they are; what is left between the sum of the kernels and what
a run measured is the engine's own. Every engine, and every version of it that has a file of its
own, is fitted on all chip families that its runs show, each pulled to what the engine is like on
all of them.
"""

from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import get_args

import numpy as np
import yaml

from sim.calibration.overhead_fit import Fitted, Priors, figures, fit_families
from sim.calibration.responses import PARAMETERS, SCALES, Response, law_of, responses, vector
from sim.calibration.runs import MeasuredRun, Quantity, Skipped
from sim.catalog import Catalog
from sim.deployment import deploy
from sim.efficiency import Engine, Fit
from sim.errors import InfeasibleError, InputError
from sim.overhead import EngineOverheads, FamilyOverhead
from sim.simulate import Progress

ROUNDS = 2
"""Times that all runs are simulated anew with what was fitted: first-order answers of a forecast
hold near the law at which it was made."""
OF_2024 = frozenset({"vllm_0_6", "trtllm_0_14"})
"""Releases whose host code has little in common with that of today's: they have files of their
own."""
FITTED_QUALITIES = ("A", "B")
CANNOT_RUN = "cannot be simulated as described; `rackcast validate` says why"
_ENGINES: Mapping[str, Engine] = {name: name for name in get_args(Engine)}
_NAMES: Mapping[Quantity, str] = {"tpot": "TPOT", "ttft": "TTFT", "throughput": "throughput"}

Groups = dict[str, dict[str, list[Response]]]
"""Responses by file of ``hardware/overheads`` and by chip family."""


def usable(runs: Iterable[MeasuredRun | Skipped], catalog: Catalog) -> list[MeasuredRun]:
    """Keep the runs that overheads can be fitted to, see `why_unusable`."""
    return [
        run for run in runs if isinstance(run, MeasuredRun) and why_unusable(run, catalog) is None
    ]


def why_unusable(run: MeasuredRun | Skipped, catalog: Catalog) -> str | None:
    """Say why overheads cannot be fitted to a run; none: they can.

    Wanted are audited or fully described runs on chips whose kernels were measured: elsewhere an
    overhead would only mend the errors of the prior.
    """
    if isinstance(run, Skipped):
        return run.reason
    if run.quality not in FITTED_QUALITIES:
        return f"quality {run.quality or 'not given'}, and A or B is needed"
    if not run.measured:
        return "nothing measured: neither TPOT nor TTFT nor throughput"
    if run.case.engine.kernels == "native":
        return "the vendor's own engine, whose overhead is assumed"
    return _why_not_on_measured_chips(run, catalog)


def every(runs: Sequence[MeasuredRun], stride: int) -> list[MeasuredRun]:
    """Take every so many runs, evenly over engines, chips, models and loads."""

    def place(run: MeasuredRun) -> tuple[str, ...]:
        case = run.case
        split = f"{case.parallelism.tp:04d}"
        return (
            case.engine.kernels,
            case.system,
            case.model,
            case.precision.weights,
            split,
            run.row_id,
        )

    return sorted(runs, key=place)[::stride]


def _why_not_on_measured_chips(run: MeasuredRun, catalog: Catalog) -> str | None:
    try:
        calibration = deploy(run.case, catalog).calibration
    except (InputError, InfeasibleError):
        return CANNOT_RUN
    if calibration is not None:
        return None
    return f"kernels of {catalog.system(run.case.system).accelerator} were never measured"


def grouped(found: Iterable[Response], catalog: Catalog) -> Groups:
    """Sort responses by the file and the chip family that their law belongs to."""
    groups: Groups = {}
    for response in found:
        case = response.run.case
        name = case.engine.name if case.engine.name in OF_2024 else case.engine.kernels
        family = catalog.accelerator(catalog.system(case.system).accelerator).family
        groups.setdefault(name, {}).setdefault(family, []).append(response)
    return groups


def fit_overheads(
    groups: Groups, priors: Mapping[str, Priors] | None = None
) -> dict[str, dict[str, Fitted]]:
    """Fit every engine on every chip family, by file and family."""
    pulled = priors or {}
    return {
        name: fit_families(families, pulled.get(name)) for name, families in sorted(groups.items())
    }


def known_laws(catalog: Catalog) -> dict[str, Priors]:
    """Give the fitted laws of a catalogue, to pull new fits to."""
    return {
        name: {
            family: vector(each.law)
            for family, each in catalog.overheads_file(name).families.items()
            if each.fit is not None
        }
        for name in catalog.names("overheads")
    }


def with_laws(catalog: Catalog, laws: Mapping[str, Mapping[str, Fitted]], day: str) -> Catalog:
    """Give a catalogue in which engines have what was fitted, to try it out or to write it."""
    return catalog.with_overheads(
        {name: _file(name, fitted, {}, day, "on trial") for name, fitted in laws.items()}
    )


def _file(
    name: str,
    fitted: Mapping[str, Fitted],
    found: Mapping[str, Sequence[Response]],
    day: str,
    method: str,
) -> EngineOverheads:
    return EngineOverheads(
        engine=_ENGINES[name.split("_", maxsplit=1)[0]],
        about="What the engine adds to the kernels fitted in hardware/calibrations.",
        date=day,
        method=method,
        families={family: _family(each, found.get(family, ())) for family, each in fitted.items()},
    )


def _method(rounds: int, priors: Mapping[str, Priors] | None) -> str:
    pulled = "the engine's mean over families" if priors is None else "what the catalogue had"
    return (
        "soft-L1 fit of the logarithms of TPOT, TTFT and throughput to first-order answers of full "
        f"simulations, made anew {rounds} times; each chip family is pulled to {pulled}; kernels "
        "stay as they are; residuals are of the runs that were fitted, none held out"
    )


def _family(fitted: Fitted, found: Sequence[Response]) -> FamilyOverhead:
    errors = np.sqrt(np.clip(np.diag(fitted.covariance), 0.0, None)) * SCALES
    return FamilyOverhead(
        law=law_of(fitted.scaled),
        standard_errors={
            each.field: float(f"{error:.2g}")
            for each, error in zip(PARAMETERS, errors, strict=True)
        },
        models=tuple(sorted({response.run.case.model for response in found})),
        fit=quality(found, ("tpot", "throughput")),
        frontend_fit=quality(found, ("ttft",)),
        assumed=None
        if _rows(found, ("tpot", "throughput"))
        else "of its runs none tells the time per token",
    )


def quality(found: Sequence[Response], wanted: tuple[Quantity, ...]) -> Fit | None:
    """Sum up how well the fitted runs are met, by the first of some quantities that they have."""
    rows = _rows(found, wanted)
    if not rows:
        return None
    ratio = np.array([each.forecasts[q] / each.run.measured[q] for each, q in rows])
    ape = np.abs(ratio - 1)
    sources = sorted({each.run.source for each, _ in rows})
    names = sorted({_NAMES[q] for _, q in rows})
    return Fit(
        rows=len(rows),
        median_ape=round(float(np.median(ape)), 4),
        p90_ape=round(float(np.quantile(ape, 0.9)), 4),
        bias=round(float(np.mean(ratio)) - 1, 4),
        ranges=_ranges([each for each, _ in rows]),
        source=f"{' and '.join(names)} of {', '.join(sources)}",
    )


def _ranges(found: Sequence[Response]) -> dict[str, tuple[float, float]]:
    """Give the smallest and largest value of what runs differ by; lengths are means of a run."""
    lengths = [getattr(each.run.case.workload, "lengths", None) for each in found]
    means = [each.mean_tokens for each in lengths if each is not None]
    columns = {
        "sequences_per_replica": [each.sequences for each in found],
        "input_tokens": [each.input_tokens for each in means],
        "output_tokens": [each.output_tokens for each in means],
        "tp": [each.run.case.parallelism.tp for each in found],
    }
    return {
        name: (round(min(values), 1), round(max(values), 1))
        for name, values in columns.items()
        if values
    }


def _rows(
    found: Sequence[Response], wanted: tuple[Quantity, ...]
) -> list[tuple[Response, Quantity]]:
    """List the figures of some quantities, of each response the first that it has."""
    listed: dict[int, tuple[Response, Quantity]] = {}
    for response, quantity in figures(found):
        if quantity in wanted:
            listed.setdefault(id(response), (response, quantity))
    return list(listed.values())


def calibrated(
    runs: Sequence[MeasuredRun],
    catalog: Catalog,
    jobs: int,
    progress: Progress | None = None,
    rounds: int = ROUNDS,
    *,
    from_scratch: bool = False,
) -> tuple[dict[str, EngineOverheads], list[Response]]:
    """Fit, simulate anew with what was fitted, and fit again.

    Parameters
    ----------
    runs : sequence of MeasuredRun
    catalog : Catalog
    jobs : int
        Processes.
    progress : callable, optional
    rounds : int
    from_scratch : bool
        Do not pull to what the catalogue has, which a handful of runs cannot replace.

    Returns
    -------
    overheads : dict
        By file.
    responses : list of Response
        At the fitted laws.

    Raises
    ------
    InputError
        There is no run to fit to.
    """
    day, trial = datetime.now(UTC).strftime("%Y-%m-%d"), catalog
    laws: dict[str, dict[str, Fitted]] = {}
    found: list[Response] = []
    priors = None if from_scratch else known_laws(catalog)
    for done in range(rounds + 1):
        found = list(responses(runs, trial, jobs, progress))
        if not found:
            raise InputError(
                f"no run to fit to: of {len(runs)} none can be simulated as described; "
                "`rackcast validate` says why"
            )
        if done == rounds:
            break
        laws = fit_overheads(grouped(found, catalog), priors)
        trial = with_laws(catalog, laws, day)
    groups = grouped(found, catalog)
    files = {
        name: _file(name, laws[name], groups.get(name, {}), day, _method(rounds, priors))
        for name in laws
    }
    return files, found


def with_kept_families(
    refitted: EngineOverheads, known: EngineOverheads, runs: str
) -> EngineOverheads:
    """Keep the laws of the chip families that no run tells of, and say which ones they are.

    Parameters
    ----------
    refitted : EngineOverheads
    known : EngineOverheads
        What the catalogue has.
    runs : str
        What was fitted to, for people.
    """
    own = {family: law for family, law in refitted.families.items() if is_fitted(law)}
    kept = {family: law for family, law in known.families.items() if family not in own}
    about = f"{refitted.about} Refitted to {runs}: {', '.join(sorted(own))}."
    if kept:
        about += f" Kept as they were in the file of {known.date}: {', '.join(sorted(kept))}."
    families = dict(sorted({**kept, **own}.items()))
    return refitted.model_copy(update={"about": about, "families": families})


def is_fitted(family: FamilyOverhead) -> bool:
    """Tell whether any figure was fitted."""
    return family.fit is not None or family.frontend_fit is not None


def write_overheads(name: str, overheads: EngineOverheads, out: Path, made_by: str) -> Path:
    """Write the file of one engine, or of one of its versions.

    Parameters
    ----------
    name : str
        Its id in the catalogue.
    overheads : EngineOverheads
    out : Path
        Folder.
    made_by : str
        The command and the count of runs, for the first line of the file.

    Raises
    ------
    InputError
        The file cannot be written.
    """
    header = (
        f"# Overheads of {name}. Made by: {made_by}\n"
        "# Do not edit by hand: change the data or the fit and make it again.\n"
    )
    body = yaml.safe_dump(
        overheads.model_dump(mode="json", exclude_none=True), sort_keys=False, width=100
    )
    path = out / f"{name}.yaml"
    try:
        out.mkdir(parents=True, exist_ok=True)
        path.write_text(header + body, encoding="utf-8")
    except OSError as error:
        raise InputError(
            f"{path}: cannot be written: {error.strerror or error}; name another --out"
        ) from None
    return path
