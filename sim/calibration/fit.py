"""Fit the laws of one accelerator to its measured kernels and write the calibration file.

What is left out of a fit, and why, is written into the file beside what is kept. No row is held
out here: ``reports/kernels.md`` (`sim.calibration.report`) says how laws fitted to a part of the
rows do on the others, and forecasts of whole serving runs are checked elsewhere. To redo it, with
your own rows in the same columns::

    python -m sim.calibration.fit DATA_DIR --accelerator h100_sxm --out hardware/calibrations

A chip of your own needs an entry in a table like ``sim/calibration/subjects.yaml`` (``--subjects``)
and a file in ``hardware/accelerators`` of a folder that ``--catalog`` names.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pandas as pd
import typer
import yaml
from rich.console import Console
from rich.table import Table

from sim.calibration import collectives, kernels, sources
from sim.calibration.collective_rows import read_rows
from sim.calibration.kernel_laws import FEWEST_ROWS, KernelLaws, fit_kernels
from sim.calibration.kernels import Peaks
from sim.calibration.regression import Array, Knob, columns, regress, residual_report
from sim.calibration.subjects import (
    Subjects,
    catalogue_peaks,
    lent_power,
    read_subjects,
    shipped_subjects,
    study_of,
)
from sim.catalog import Catalog, open_catalog
from sim.efficiency import (
    Calibration,
    Collective,
    EngineKernels,
    Fit,
    PowerFit,
    PowerLaw,
)
from sim.errors import InputError, InternalError, exit_on_error
from sim.schema import did_you_mean, load_yaml, validate
from sim.units import Dtype

METHOD = (
    "soft-L1 fit of log time; coefficients to 4 digits; products corrected on a grid where that "
    "does better on rows held out; residuals are of the rounded law on the rows it was fitted to, "
    "none held out"
)

COMMAND = (
    "python -m sim.calibration.fit DATA_DIR --accelerator {accelerator} --out hardware/calibrations"
)
"""What makes a shipped file again."""


def fit_accelerator(
    data_dir: Path,
    accelerator: str,
    peaks: Mapping[str, Peaks],
    table: Subjects,
    power: PowerFit | None = None,
) -> Calibration:
    """Fit all laws of one accelerator.

    Parameters
    ----------
    data_dir
        Folder with ``comms.csv`` and ``kernels/*.csv``.
    accelerator
        Id of the accelerator: a subject of the table.
    peaks
        Datasheet figures of the accelerator and of those that stand in for it, by id.
    table
        What the data call the accelerator, and what stands in.
    power
        The power law of another accelerator; none: fitted to the data.

    Returns
    -------
    calibration
        What ``hardware/calibrations/<accelerator>.yaml`` holds.

    Raises
    ------
    InputError
        If the accelerator has no measured kernels, a file is missing or a cell of one is wrong.
    """
    subject = table.of(accelerator)
    own = peaks[accelerator]
    found = fit_kernels(study_of(data_dir, subject, own))
    if not found.engines:
        raise InputError(_nothing_found(data_dir, subject.chip, found.excluded))
    eager = {"all_reduce *_eager": "launch-bound: timed with its launch from Python"}
    found_collectives = collectives.fit_collectives(data_dir, subject.chip)
    return Calibration(
        accelerator=accelerator,
        about=table.about(subject),
        date=table.collected(subject),
        method=METHOD,
        peak_flop_per_s={name: own.flop_per_s[name] for name in _computed(found)},
        bandwidth_bytes_per_s=own.bandwidth_bytes_per_s,
        kernels=found.engines,
        preference=table.preference,
        same_die_as=subject.same_die_as,
        collectives=found_collectives,
        expert_exchange=collectives.fit_exchanges(data_dir, subject.chip, subject.rack),
        power=power or _fit_power(data_dir, accelerator, table, peaks),
        excluded=(eager if found_collectives else {}) | dict(found.excluded),
    )


def _nothing_found(data_dir: Path, chip: str, excluded: Mapping[str, str]) -> str:
    """Say why no kernel got a law: of which chips there are rows, or what is wrong with these."""
    folder = data_dir / "kernels"
    seen = sources.chips_seen(folder)
    if chip in seen:
        families = EngineKernels.model_fields  # of these there are no rows at all
        reasons = (f"{name}: {why}" for name, why in excluded.items() if name not in families)
        return (
            f"{folder}: what was measured on {chip!r} gives no law: "
            f"{'; '.join(reasons) or 'none of it is in a number format that is fitted'}; a law "
            f"needs {FEWEST_ROWS} rows of an engine and a format such as bfloat16 or fp8"
        )
    others = ", ".join(map(repr, seen))
    found = f"there are rows of {others}{did_you_mean(chip, seen)}" if seen else "there are no rows"
    return (
        f"{folder}: nothing that was measured on {chip!r} was found; {found}"
        f"{_collectives_of(data_dir, chip)}. Give files as rackcast measure writes them "
        f"(measured_gemm.csv...) with {chip!r} in the column hardware, or say with chip in "
        "subjects.yaml what that column calls it"
    )


def _collectives_of(data_dir: Path, chip: str) -> str:
    """Point out that collectives alone are no calibration."""
    path = data_dir / "comms.csv"
    if not path.is_file():
        return ""
    count = int((read_rows(data_dir)["fabric"] == chip).sum())
    return f"; {path.name} has {count} rows of it, which alone are no calibration" if count else ""


def _computed(found: KernelLaws) -> list[Dtype]:
    """Dtypes whose peaks the laws count from, sorted."""
    seen: set[Dtype] = set()
    for blocks in found.engines.values():
        for family in type(blocks).model_fields:
            seen |= {kernel.compute_dtype for _, kernel in _kernels(blocks, family)}
    return sorted(seen)


def _kernels(blocks: EngineKernels, family: str) -> list[tuple[str, Any]]:
    """List the kernels of one family, each with what tells it from the others."""
    found = getattr(blocks, family)
    if isinstance(found, Mapping):
        return list(found.items())
    return [(_attention_name(kernel), kernel) for kernel in found]


def _attention_name(kernel: Any) -> str:
    asked = getattr(kernel, "attention_dtype", None)
    window = " window" if kernel.windowed else ""
    return f"{f'{asked}/' if asked else ''}kv {kernel.kv_dtype} d={kernel.head_dim}{window}"


def _fit_power(
    data_dir: Path, accelerator: str, table: Subjects, peaks: Mapping[str, Peaks]
) -> PowerFit:
    measured = table.of(accelerator).power
    if measured is None:
        raise InputError(
            f"{accelerator}: whose power was measured? Say so with power, or whose law to take "
            "with power_lent_by, in the table of subjects"
        )
    rows = kernels.power(data_dir, table.of(measured).chip, peaks[measured])
    rows = _steady(rows[rows["memory_utilization"] <= 1.0])
    if rows.empty:
        raise InputError(
            f"{sources.power_file(data_dir / 'kernels')}: no product on {measured} is in a number "
            "format that is fitted, such as bfloat16 or fp8, and no faster than memory can be. "
            f"{kernels.POWER_INSTEAD}"
        )
    rows = rows.assign(time_s=rows["load_fraction"])
    knobs = {
        "active_fraction": Knob(0.2, 0.01, 0.9),
        "compute_weight": Knob(0.8, 1e-3, 5.0, zero_at_low=True),
        "memory_weight": Knob(0.8, 1e-3, 5.0, zero_at_low=True),
    }
    law = regress(PowerLaw, knobs, _power_fraction, rows)
    inherited = None if measured == accelerator else measured
    return PowerFit(
        law=law,
        fit=residual_report(
            rows,
            _power_fraction(law, rows),
            ["compute_utilization", "memory_utilization", "power_w"],
            "residuals of power / board limit; dense products; of rows with like utilization the "
            "half with more power: many others looped too briefly for the sensor and read low",
        ),
        inherited_from=inherited,
    )


def _power_fraction(law: PowerLaw, rows: pd.DataFrame) -> Array:
    load = columns(rows, "compute_utilization", "memory_utilization")
    return law.watts(tdp_w=1.0, idle_w=0.0, busy=np.ones(len(rows)), **load)


def _steady(rows: pd.DataFrame) -> pd.DataFrame:
    """Keep the rows that the sensor saw in full: the upper half among rows of like load."""
    cell = [(rows[name] * 5.0).round() for name in ("compute_utilization", "memory_utilization")]
    reached = rows.groupby(cell)["load_fraction"].transform(lambda each: each.median())
    return rows[rows["load_fraction"] >= reached]


def to_yaml(calibration: Calibration, command: str) -> str:
    """Write a calibration as the text of its file.

    Parameters
    ----------
    calibration
        What was fitted.
    command
        The command that made it, for the header.
    """
    header = (
        f"# Fitted laws of {calibration.accelerator}: how far measured kernels stay from the "
        "datasheet.\n"
        "# Fitted numbers only; sourced facts are in hardware/accelerators. Laws: "
        "sim/efficiency.py.\n"
        f"# Made by: {command}\n"
        "# Do not edit by hand: change the data or the fit and make it again.\n"
    )
    data = calibration.model_dump(mode="json", exclude_none=True)
    body = yaml.dump(_without_empty(data), sort_keys=False, width=100, default_flow_style=None)
    return header + body


def _without_empty(node: Any) -> Any:
    """Drop mappings and lists that hold nothing."""
    if not isinstance(node, dict):
        return node
    kept = {key: _without_empty(value) for key, value in node.items()}
    return {key: value for key, value in kept.items() if value not in ({}, [])}


def fits(calibration: Calibration) -> Iterator[tuple[str, Fit]]:
    """Go through everything that was fitted to measurements of this accelerator.

    Parameters
    ----------
    calibration
        What was fitted.

    Yields
    ------
    name, fit
        A name such as ``trtllm gemm fp8``, and its residuals.
    """
    for engine, blocks in calibration.kernels.items():
        for name, fit in _kernel_fits(blocks):
            yield f"{engine} {name}", fit
    yield from _collective_fits(calibration.collectives)
    yield from _collective_fits(calibration.expert_exchange)
    yield "power", calibration.power.fit


def _kernel_fits(blocks: EngineKernels) -> Iterator[tuple[str, Fit]]:
    for family in type(blocks).model_fields:
        for name, kernel in _kernels(blocks, family):
            yield f"{family} {name}", kernel.fit


def _collective_fits(
    group: Mapping[Any, Mapping[str, Mapping[int, Collective]]],
) -> Iterator[tuple[str, Fit]]:
    for operation, libraries in group.items():
        for library, laws in libraries.items():
            for chips, law in laws.items():
                if law.fit is not None:
                    yield f"{library} {operation} x{chips}", law.fit


def residual_table(calibration: Calibration) -> Table:
    """Show the residuals of every fitted law."""
    table = Table(title=calibration.accelerator)
    for heading in ("law", "rows", "median APE", "p90 APE", "bias"):
        table.add_column(heading)
    for name, fit in fits(calibration):
        figures = (f"{fit.median_ape:.3f}", f"{fit.p90_ape:.3f}", f"{fit.bias:+.3f}")
        table.add_row(name, str(fit.rows), *figures)
    return table


def fit_file(
    data_dir: Path,
    accelerator: str,
    catalog: Catalog,
    table: Subjects,
    out: Path,
    command: str = COMMAND,
) -> tuple[Path, Calibration]:
    """Fit one accelerator and write its file.

    Parameters
    ----------
    data_dir, accelerator, table
        As for `fit_accelerator`.
    catalog
        Knows the accelerator and those that it borrows from.
    out
        Folder for ``<accelerator>.yaml``.
    command
        What makes the file again, for its header; ``{accelerator}`` in it becomes the id.

    Raises
    ------
    InputError
        As for `fit_accelerator`. No file is written then.
    """
    if not data_dir.is_dir():
        raise InputError(f"{data_dir}: no such folder; it has comms.csv and kernels/*.csv")
    subject = table.of(accelerator)
    needed = {accelerator, subject.power or accelerator}
    peaks = {name: catalogue_peaks(name, catalog) for name in sorted(needed)}
    power = lent_power(subject, catalog)
    calibration = fit_accelerator(data_dir, accelerator, peaks, table, power)
    path = out / f"{accelerator}.yaml"
    text = to_yaml(calibration, command.format(accelerator=accelerator))
    _check(text, path)
    out.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path, calibration


def _check(text: str, path: Path) -> None:
    """Make sure that a catalogue can read what is about to be written."""
    try:
        validate(Calibration, load_yaml(text, str(path)))
    except InputError as error:
        raise InternalError(
            f"what was fitted is no calibration, so {error} (not written)"
        ) from error


def main(
    data_dir: Annotated[Path, typer.Argument(help="Folder with comms.csv and kernels/.")],
    accelerator: Annotated[str, typer.Option(help="Id in hardware/accelerators.")],
    out: Annotated[Path, typer.Option(help="Folder to write <accelerator>.yaml to.")],
    subjects: Annotated[
        Path | None, typer.Option(help="Table of measured accelerators instead of the shipped one.")
    ] = None,
    catalog: Annotated[
        list[Path] | None, typer.Option(help="Folder with hardware/accelerators of your own.")
    ] = None,
) -> None:
    """Fit the laws of one accelerator to measured kernels."""
    table = shipped_subjects() if subjects is None else read_subjects(subjects)
    _, calibration = fit_file(data_dir, accelerator, open_catalog(catalog or ()), table, out)
    Console(stderr=True).print(residual_table(calibration))


if __name__ == "__main__":
    with exit_on_error():
        typer.run(main)
