"""``rackcast calibrate``: refit kernels and engine overheads to one's own measurements."""

import shlex
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryFile

import pandas as pd

from sim.calibration.fit import fit_file
from sim.calibration.holdouts import held_out_forecasts, summary
from sim.calibration.overhead_fit import SPREAD, UNFIT, figures, fitted_count, unanswered
from sim.calibration.overheads import (
    CANNOT_RUN,
    calibrated,
    grouped,
    is_fitted,
    known_laws,
    why_unusable,
    with_kept_families,
    write_overheads,
)
from sim.calibration.responses import PARAMETERS, SCALES, Response, responses
from sim.calibration.runs import MeasuredRun, Skipped, read_runs, unread_columns
from sim.calibration.subjects import read_subjects, shipped_subjects
from sim.catalog import Catalog
from sim.efficiency import Calibration
from sim.errors import InputError
from sim.overhead import EngineOverheads
from sim.simulate import Progress

FEWEST = 5
"""Fewer runs leave nothing to hold out."""
UNRATED = "B"
"""Quality of one's own runs where their file gives none: their owner knows what was run."""
SHIPPED, HELD_OUT = "as shipped", "held out"
_SCHEMES = {"random": HELD_OUT}
_WRITTEN = ("overheads", "calibrations")
_SATURATED = "no figure but a time to first token so long that it tells of queues"
_LEAST_TOLD = 0.0005
"""Errors that differ by less are printed alike."""

SUBJECTS = "subjects.yaml"
"""What ``rackcast measure`` says of the chip that it measured, beside the rows."""


@dataclass(frozen=True)
class OwnRuns:
    """The runs of some files that a fit can use, and what became of the others."""

    files: tuple[Path, ...]
    runs: tuple[MeasuredRun, ...]
    left_out: Mapping[str, int]
    """How many runs were left out, by reason."""
    unrated: int
    """Runs whose quality is not given."""
    notes: tuple[str, ...] = ()
    """Columns that are not read though their names look like a known one's."""

    @property
    def count(self) -> int:
        """Runs in the files."""
        return len(self.runs) + sum(self.left_out.values())

    @property
    def names(self) -> str:
        """The files, without their folders."""
        return " ".join(path.name for path in self.files)


@dataclass(frozen=True)
class Refitted:
    """What a fit to own runs gave."""

    paths: tuple[Path, ...]
    errors: pd.DataFrame
    """As shipped, fitted, and of random fifths held out, by quantity."""
    fitted: int
    """Runs that were fitted to."""
    left_out: Mapping[str, int]
    """Others, by reason: of the file, and those that turned out to tell nothing."""
    refitted: Mapping[str, tuple[str, ...]]
    """Chip families by file of overheads."""
    kept: Mapping[str, tuple[str, ...]]
    """Families whose laws are those of the catalogue, likewise."""
    undetermined: Mapping[str, tuple[str, ...]]
    """Parameters that the runs do not tell, by engine and chip family."""


def refuse_idle(
    runs: Sequence[Path], kernels: Path | None, accelerator: str | None, system: str | None
) -> None:
    """Refuse options of ``rackcast calibrate`` that would do nothing.

    Raises
    ------
    InputError
        There is nothing to fit to, or an option is of the stage that is not asked for.
    """
    if not runs and kernels is None:
        raise InputError("calibrate needs measured runs (CSV), --kernels FOLDER, or both")
    if kernels is None and accelerator is not None:
        raise InputError(f"--accelerator {accelerator} is of no use without --kernels FOLDER")
    if not runs and system is not None:
        raise InputError(f"--system {system} is of no use without measured runs (CSV)")


def check_options(out: Path, system: str | None, catalog: Catalog) -> None:
    """Check what can be checked before hours of fits.

    Raises
    ------
    InputError
        The folder cannot be written, or there is no such system.
    """
    for kind in _WRITTEN:
        _refuse_unwritable(out, out / "hardware" / kind)
    if system is None or system in catalog.names("systems"):
        return
    its_own = [
        name for name in catalog.names("systems") if catalog.system(name).accelerator == system
    ]
    if its_own:
        raise InputError(
            f"--system {system}: unknown system; did you mean {' or '.join(its_own)}? "
            f"{system} is an accelerator"
        )
    try:
        catalog.path("systems", system)
    except InputError as error:
        raise InputError(f"--system {system}: {error}") from None


def _refuse_unwritable(out: Path, folder: Path) -> None:
    """Try to write where the folder is to be, without leaving anything there."""
    try:
        there = next(each for each in (folder, *folder.absolute().parents) if each.exists())
        with TemporaryFile(dir=there):
            pass
    except OSError as error:
        raise InputError(
            f"--out {out}: {folder} cannot be written: {error.strerror or error}; name another"
        ) from None


def refit_kernels(
    data_dir: Path, accelerator: str | None, catalog: Catalog, out: Path
) -> tuple[Path, Calibration]:
    """Fit the laws of a chip's kernels and collectives, and write them to a catalogue.

    Parameters
    ----------
    data_dir : Path
        Folder with ``comms.csv`` and ``kernels/*.csv``; the ``subjects.yaml`` that it may have says
        what the chip is called in them, else the shipped table does.
    accelerator : str, optional
        Id of the chip.
    catalog : Catalog
    out : Path
        Folder of a catalogue.

    Raises
    ------
    InputError
        No chip is named, or it has no measurements there.
    """
    own = data_dir / SUBJECTS
    table = read_subjects(own) if own.exists() else shipped_subjects()
    if accelerator is None:
        raise InputError(
            f"--kernels {data_dir}: which chip was measured? Say --accelerator ID: "
            f"{', '.join(sorted(table.subjects))}"
        )
    return fit_file(
        data_dir,
        accelerator,
        catalog,
        table,
        out / "hardware" / "calibrations",
        "rackcast calibrate --kernels FOLDER --accelerator {accelerator} --out CATALOGUE",
    )


def own_runs(files: Sequence[Path], catalog: Catalog, system: str | None) -> OwnRuns:
    """Read the runs of some files that a fit can use, of one system if asked.

    Raises
    ------
    InputError
        There are too few.
    """
    kept: list[MeasuredRun] = []
    left_out: Counter[str] = Counter()
    unrated = 0
    for path in files:
        for read in read_runs(path, catalog):
            run = read if isinstance(read, Skipped) else _as_own(read, path)
            unrated += isinstance(read, MeasuredRun) and not read.quality
            reason = _why_left_out(run, catalog, system)
            if reason is not None:
                left_out[reason] += 1
            elif isinstance(run, MeasuredRun):
                kept.append(run)
    notes = tuple(note for path in files for note in unread_columns(path))
    found = OwnRuns(tuple(files), tuple(kept), left_out, unrated, notes)
    if len(kept) < FEWEST:
        raise InputError(
            f"{found.names}: {len(kept)} of {found.count} runs can be fitted to, and at least "
            f"{FEWEST} are needed{''.join(_reasons(left_out))}"
        )
    return found


def _as_own(run: MeasuredRun, path: Path) -> MeasuredRun:
    """Fill in what the owner of a file need not say."""
    return replace(run, quality=run.quality or UNRATED, source=run.source or path.name)


def _why_left_out(run: MeasuredRun | Skipped, catalog: Catalog, system: str | None) -> str | None:
    """Say why a run is not fitted to; none: it is."""
    if isinstance(run, MeasuredRun):
        if system is not None and run.case.system != system:
            return f"on {run.case.system}, and --system is {system}"
        if run.source in UNFIT:
            return f"source {run.source}, which nothing is fitted to: {UNFIT[run.source]}"
    return why_unusable(run, catalog)


def refit(
    own: OwnRuns,
    catalog: Catalog,
    out: Path,
    jobs: int,
    progress: Progress | None = None,
) -> Refitted:
    """Fit, write the files, and forecast each run without having fitted to it.

    The laws of chip families that no run tells of stay as the catalogue has them.

    Raises
    ------
    InputError
        No run can be simulated, or none has a figure that tells of its engine.
    """
    shipped = pd.DataFrame(
        {
            "scheme": SHIPPED,
            "quantity": quantity,
            "measured": measured,
            "forecast": response.forecasts[quantity],
        }
        for response in responses(own.runs, catalog, jobs, progress)
        for quantity, measured in response.run.measured.items()
    )
    files, found = calibrated(own.runs, catalog, jobs, progress)
    fitted = fitted_count(found)
    if not fitted:
        raise InputError(f"{own.names}: none of {own.count} runs can be fitted to: {_SATURATED}")
    tried = held_out_forecasts(found, catalog, ("fitted", "random"), known_laws(catalog))
    told = f"{own.names}, {fitted} of {own.count} runs"
    families = {name: _families(each) for name, each in files.items()}
    written = {
        name: with_kept_families(each, catalog.overheads_file(name), told)
        for name, each in files.items()
        if families[name]
    }
    folder, made_by = out / "hardware" / "overheads", f"rackcast calibrate {told}"
    return Refitted(
        paths=tuple(write_overheads(name, each, folder, made_by) for name, each in written.items()),
        errors=summary(pd.concat([shipped, tried.replace({"scheme": _SCHEMES})])),
        fitted=fitted,
        left_out=_positive(
            {
                **own.left_out,
                CANNOT_RUN: own.left_out.get(CANNOT_RUN, 0) + len(own.runs) - len(found),
                _SATURATED: len(found) - fitted,
            }
        ),
        refitted={name: families[name] for name in written},
        kept={
            name: tuple(family for family in each.families if family not in families[name])
            for name, each in written.items()
        },
        undetermined=_undetermined(files, found, catalog),
    )


def _families(overheads: EngineOverheads) -> tuple[str, ...]:
    return tuple(sorted(name for name, each in overheads.families.items() if is_fitted(each)))


def _positive(counts: Mapping[str, int]) -> dict[str, int]:
    return {reason: count for reason, count in counts.items() if count}


def _undetermined(
    files: Mapping[str, EngineOverheads], found: Sequence[Response], catalog: Catalog
) -> dict[str, tuple[str, ...]]:
    """Name the parameters that no figure answers to, or whose error exceeds the prior's spread."""
    spreads = dict(zip((each.field for each in PARAMETERS), SPREAD * SCALES, strict=True))
    named: dict[str, tuple[str, ...]] = {}
    for name, families in grouped(found, catalog).items():
        for family, its_own in families.items():
            errors = files[name].families[family].standard_errors
            untold = unanswered(its_own)
            fields = tuple(
                field for field in spreads if field in untold or errors[field] > spreads[field]
            )
            if fields and figures(its_own):
                named[f"{name} on {family}"] = fields
    return named


def doubts(errors: pd.DataFrame) -> Iterator[str]:
    """Say of which figures runs that the fit did not know are forecast worse than as shipped."""
    medians = errors.set_index(["scheme", "quantity"])["median_ape"]
    worse = [
        f"{quantity} {medians[HELD_OUT, quantity]:.1%} (as shipped {shipped:.1%})"
        for quantity, shipped in medians[SHIPPED].items()
        if medians[HELD_OUT, quantity] > shipped + _LEAST_TOLD
    ]
    if worse:
        yield (
            "runs that the fit did not know are forecast worse than with the overheads as shipped, "
            f"by the median: {', '.join(worse)}. Keep the shipped overheads, or give more runs."
        )


def report(own: OwnRuns, found: Refitted, out: Path, catalogs: Sequence[Path] = ()) -> str:
    """Lay the result out for people."""
    table = found.errors.copy()
    for column, form in (("median_ape", "{:.1%}"), ("p90_ape", "{:.1%}"), ("bias", "{:+.1%}")):
        table[column] = table[column].map(form.format)
    lines = [f"fitted to {found.fitted} of {own.count} runs{''.join(_reasons(found.left_out))}"]
    if own.unrated:
        lines.append(f"quality is not given for {own.unrated} runs; taken as {UNRATED}")
    lines += [
        "errors as shipped, fitted, and of random fifths held out:",
        "",
        table.to_string(index=False),
        "",
        f"What counts is '{HELD_OUT}' against '{SHIPPED}': forecasts of runs that the fit did not "
        "know.",
        f"refitted: {_listed(found.refitted)}",
    ]
    if any(found.kept.values()):
        lines.append(f"kept as they were: {_listed(found.kept)}")
    if found.undetermined:
        lines.append(
            "not determined by these runs (error beyond the prior's spread, or no answer): "
            f"{_listed(found.undetermined, separator=': ')}"
        )
    lines += [f"wrote {path}" for path in found.paths]
    lines.append("use it with --catalog, and compare:")
    options = [word for folder in (*catalogs, out) for word in ("--catalog", str(folder))]
    lines += [
        f"  {shlex.join(['rackcast', 'validate', str(path), *options])}" for path in own.files
    ]
    return "\n".join(lines)


def _listed(named: Mapping[str, tuple[str, ...]], separator: str = " on ") -> str:
    """List what belongs to each name.

    >>> _listed({"vllm": ("ampere", "hopper"), "sglang": ()})
    'vllm on ampere, hopper'
    """
    return "; ".join(f"{name}{separator}{', '.join(each)}" for name, each in named.items() if each)


def _reasons(left_out: Mapping[str, int]) -> Iterator[str]:
    r"""Yield the reasons why runs were left out, the commonest first, for the end of a line.

    >>> "".join(_reasons({"quality C, and A or B is needed": 2}))
    '; left out:\n  2: quality C, and A or B is needed'
    """
    for index, (reason, count) in enumerate(Counter(left_out).most_common()):
        yield f"{'' if index else '; left out:'}\n  {count}: {reason}"
