"""Fit the laws of one accelerator to its measured kernels and write the calibration file.

What is left out of a fit, and why, is written into the file beside what is kept. No row is held
out here: the residuals say how well simple laws describe the measured kernels, and forecasts of
whole serving runs are checked elsewhere. To redo it, with your own rows in the same columns::

    python -m sim.calibration.fit DATA_DIR --accelerator h100_sxm --out hardware/calibrations
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, NamedTuple

import numpy as np
import pandas as pd
import typer
import yaml
from rich.console import Console
from rich.table import Table

from sim.calibration import collectives, kernels
from sim.calibration.kernel_laws import fit_kernels
from sim.calibration.kernels import FORMATS, Peaks
from sim.calibration.regression import Array, Knob, columns, regress, residual_report
from sim.efficiency import (
    Calibration,
    Collective,
    Engine,
    EngineKernels,
    Exchange,
    Fit,
    Operation,
    PowerFit,
    PowerLaw,
)
from sim.errors import InputError, exit_on_error
from sim.units import KB, MB

DATE = "2026-11-20"
"""Day on which the measurements were collected."""
METHOD = (
    "soft-L1 fit of log time; coefficients to 4 digits; residuals are of the rounded law on the "
    "rows it was fitted to, none held out"
)

WIDE_GROUPS = (16, 32, 64, 72)
"""Chips of one domain beyond eight, for racks whose collectives were measured on four."""


class Subject(NamedTuple):
    """What an accelerator is called in the data, and what stands in where it was not measured."""

    chip: str
    power: str
    """The accelerator whose power was measured."""
    sister: str | None
    """The accelerator whose collectives show what eight chips cost over four."""
    exchange_chip: str | None
    """Name in the data of the chip whose NVLink expert exchange was measured over many chips."""


SUBJECTS: Mapping[str, Subject] = MappingProxyType(
    {
        "h100_sxm": Subject("H100-SXM", power="h200_sxm", sister=None, exchange_chip=None),
        "h200_sxm": Subject("H200-SXM", power="h200_sxm", sister=None, exchange_chip=None),
        "b200_sxm": Subject("B200-SXM", power="b200_sxm", sister=None, exchange_chip=None),
        "gb300": Subject("GB300", power="b200_sxm", sister="b200_sxm", exchange_chip="GB200"),
    }
)

PREFERENCE: Mapping[Engine, tuple[Engine, ...]] = MappingProxyType(
    {
        "trtllm": ("trtllm", "sglang", "vllm"),
        "vllm": ("vllm", "trtllm", "sglang"),
        "sglang": ("sglang", "vllm", "trtllm"),
    }
)


def fit_accelerator(data_dir: Path, accelerator: str, peaks: Mapping[str, Peaks]) -> Calibration:
    """Fit all laws of one accelerator.

    Parameters
    ----------
    data_dir
        Folder with ``comms.csv`` and ``kernels/aic_*.csv``.
    accelerator
        Id of the accelerator: a key of `SUBJECTS`.
    peaks
        Datasheet figures of the accelerator and of those that stand in for it, by id.

    Returns
    -------
    calibration
        What ``hardware/calibrations/<accelerator>.yaml`` holds.

    Raises
    ------
    InputError
        If the accelerator has no measurements or a file is missing.
    """
    if accelerator not in SUBJECTS:
        raise InputError(f"no measurements of {accelerator}; there are {', '.join(SUBJECTS)}")
    subject = SUBJECTS[accelerator]
    own = peaks[accelerator]
    found = fit_kernels(data_dir, subject.chip, own)
    used = {dtypes.compute for dtypes in FORMATS.values()} & set(own.flop_per_s)
    eager = {"all_reduce *_eager": "launch-bound: timed with its launch from Python"}
    return Calibration(
        accelerator=accelerator,
        about=(
            f"Kernels and collectives measured on {subject.chip} by NVIDIA AIConfigurator "
            "(Apache-2.0, commit 095f58a51c4c) in CUDA graphs through each engine's own kernels"
        ),
        date=DATE,
        method=METHOD,
        peak_flop_per_s={name: own.flop_per_s[name] for name in sorted(used)},
        bandwidth_bytes_per_s=own.bandwidth_bytes_per_s,
        kernels=found.engines,
        preference=PREFERENCE,
        collectives=_fit_collectives(data_dir, subject),
        expert_exchange=_fit_exchanges(data_dir, subject),
        power=_fit_power(data_dir, accelerator, subject, peaks[subject.power]),
        excluded=eager | dict(found.excluded),
    )


def _fit_collectives(
    data_dir: Path, subject: Subject
) -> dict[Operation, dict[str, dict[int, Collective]]]:
    frame = kernels.collectives(data_dir, subject.chip)
    sister = None
    if subject.sister is not None:
        sister = kernels.collectives(data_dir, SUBJECTS[subject.sister].chip)
    found: dict[Operation, dict[str, dict[int, Collective]]] = {}
    for operation, libraries in collectives.OPERATIONS.items():
        found[operation] = {}
        for library, series in libraries.items():
            laws = collectives.fit_series(frame, series)
            if sister is not None:
                laws |= _widened(laws[4], collectives.fit_series(sister, series))
            found[operation][library] = laws
    return found


def _widened(four: Collective, sister: Mapping[int, Collective]) -> dict[int, Collective]:
    """Forecast eight chips and more of a domain whose collectives were measured on four."""
    size = np.geomspace(KB, 1000 * MB, 40)
    eight = collectives.scale_up(four, sister[4], sister[8], size)
    start_step_s = min(float(sister[8].law.seconds(0.0) - sister[4].law.seconds(0.0)), 1e-3)
    wide = {n: collectives.widen(eight, start_step_s, n) for n in WIDE_GROUPS}
    return {8: eight} | wide


def _fit_exchanges(
    data_dir: Path, subject: Subject
) -> dict[Exchange, dict[str, dict[int, Collective]]]:
    frame = collectives.with_prepare(kernels.collectives(data_dir, subject.chip))
    if subject.exchange_chip is not None:
        stand_in = collectives.with_prepare(kernels.collectives(data_dir, subject.exchange_chip))
        frame = pd.concat([frame, stand_in[stand_in["op"].str.startswith("moe_alltoall")]])
    found: dict[Exchange, dict[str, dict[int, Collective]]] = {}
    for half, libraries in collectives.EXCHANGES.items():
        laws = {name: collectives.fit_series(frame, each) for name, each in libraries.items()}
        if subject.exchange_chip is not None:
            text = f"measured on {subject.exchange_chip}, same NVLink; dispatch with its planning"
            nvlink = laws["trtllm_nvlink"]
            laws["trtllm_nvlink"] = {n: collectives.note(law, text) for n, law in nvlink.items()}
        found[half] = {name: law for name, law in laws.items() if law}
    return found


def _fit_power(data_dir: Path, accelerator: str, subject: Subject, peaks: Peaks) -> PowerFit:
    rows = kernels.power(data_dir, SUBJECTS[subject.power].chip, peaks)
    rows = _steady(rows[rows["memory_utilization"] <= 1.0])
    rows = rows.assign(time_s=rows["load_fraction"])
    knobs = {
        "active_fraction": Knob(0.2, 0.01, 0.9),
        "compute_weight": Knob(0.8, 1e-3, 5.0, zero_at_low=True),
        "memory_weight": Knob(0.8, 1e-3, 5.0, zero_at_low=True),
    }
    law = regress(PowerLaw, knobs, _power_fraction, rows)
    inherited = None if subject.power == accelerator else subject.power
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


def catalogue_peaks(accelerator: str) -> Peaks:
    """Read the datasheet peaks of an accelerator from the catalogue."""
    from sim.catalog import open_catalog  # noqa: PLC0415  (peaks given by hand need no catalogue)

    entry = open_catalog().accelerator(accelerator)
    return Peaks(
        flop_per_s={name: figure.value for name, figure in entry.peak_flop_per_s.items()},
        bandwidth_bytes_per_s=entry.local_memory.bandwidth_bytes_per_s.value,
        tdp_w=entry.power.tdp_w.value,
    )


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
    for family in ("gemm", "grouped_gemm", "decode_attention", "mla_decode", "mla_prefill"):
        for name, kernel in getattr(blocks, family).items():
            yield f"{family} {name}", kernel.fit
    for prefill in blocks.prefill_attention:
        dtypes = f"{prefill.attention_dtype}/kv {prefill.kv_dtype}"
        yield f"prefill_attention {dtypes} d={prefill.head_dim}", prefill.fit


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


def main(
    data_dir: Annotated[Path, typer.Argument(help="Folder with comms.csv and kernels/.")],
    accelerator: Annotated[str, typer.Option(help="Id in hardware/accelerators.")],
    out: Annotated[Path, typer.Option(help="Folder to write <accelerator>.yaml to.")],
) -> None:
    """Fit the laws of one accelerator to measured kernels."""
    subject = SUBJECTS.get(accelerator)
    needed = {accelerator} if subject is None else {accelerator, subject.power}
    peaks = {name: catalogue_peaks(name) for name in sorted(needed)}
    calibration = fit_accelerator(data_dir, accelerator, peaks)
    command = (
        f"python -m sim.calibration.fit DATA_DIR --accelerator {accelerator} "
        "--out hardware/calibrations"
    )
    (out / f"{accelerator}.yaml").write_text(to_yaml(calibration, command), encoding="utf-8")
    Console(stderr=True).print(residual_table(calibration))


if __name__ == "__main__":
    with exit_on_error():
        typer.run(main)
