"""How good the laws are: one page of tables from the measurements.

::

    python -m sim.calibration.report DATA_DIR --out reports/kernels.md --jobs 2

First what is asked of the laws: errors on rows held out by chip, operator and number format, and by
network and collective. Then every law by itself. Then the laws of one chip read on another, which
is what a prior does for a chip that nobody measured, and those of one engine on another.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import Annotated, NamedTuple, TypeVar

import numpy as np
import pandas as pd
import typer

from sim.calibration import collectives
from sim.calibration.heldout import (
    FOLDS,
    LIMITS,
    Laws,
    Pooled,
    Quality,
    Transfer,
    laws_of,
    pooled,
    qualities,
    stand_ins,
    transfers,
)
from sim.calibration.kernel_laws import Study, groups
from sim.calibration.subjects import Subjects, catalogue_peaks, shipped_subjects, study_of
from sim.catalog import Catalog, open_catalog
from sim.errors import exit_on_error

PAIRS = (
    ("h100_sxm", "h200_sxm"),
    ("b200_sxm", "b300_sxm"),
    ("b200_sxm", "gb200"),
    ("l40s", "rtx_4090"),
    ("h100_sxm", "a100_sxm"),
    ("h100_sxm", "b200_sxm"),
    ("h100_sxm", "l40s"),
    ("h100_sxm", "rtx_pro_6000"),
    ("h100_sxm", "arc_pro_b60"),
)
"""Siblings, neighbouring generations, other architectures: donor and chip."""
SIBLINGS = (("h100_sxm", "h200_sxm"), ("b200_sxm", "gb200"))
"""Chips of one die, measured with the same engines."""
DISTANT = (("h100_sxm", "h800_sxm"), ("h100_sxm", "h20_sxm"))
"""Chips that were measured with other engines than the donor."""
COLLECTIVE_LIMIT = 0.15
"""Median error on sizes held out that a collective is meant to stay below."""

NOT_KNOWN = "not known"
"""Why a law misses its limit, where nobody has found out."""
_BENDS = (
    "The kernel bends: time follows the total context, steep up to about 50 us and straight "
    "beyond, whatever the number of rows. The law is straight in the context at a fixed number of "
    "rows, since the engine sums its steps in closed form. Two more coefficients (a cost of rows "
    "that levels off, a power of the idle rows) gained two to four points on H200 and none "
    "elsewhere."
)
_SPLITS = (
    "Small batches go up in steps, about 10, 12 and 19 us, as the context is split over more "
    "blocks, then down again, and 32 heads take longer than 64: no line in the context does that."
)
_WAVES = (
    "A cached token takes 2.4 ns with one sequence, 3.1 with 16 and 2.3 with 256: in the law it "
    "may fall with the batch, not rise first. 41 rows."
)
_LENGTHS = "Changes kernels by length: contexts of 8,192 can take half the time of 4,096."
_SLOW_LINK = (
    "Between hosts a byte takes 0.15 ns in messages of 1 MB and 0.5 ns in those of 50 MB; the law "
    "bends the other way only, as algorithms do that get better with size."
)
POOLED_MISSES: Mapping[tuple[str, str, str], str] = {
    ("b200_sxm", "mla_decode", "fp8"): _SPLITS,
    ("b300_sxm", "mla_decode", "fp8"): _SPLITS,
    ("arc_pro_b60", "decode_attention", "kv fp8"): _LENGTHS,
    ("h20_sxm", "mla_decode", "bf16"): _WAVES,
}
"""What is known of rows that miss the limit, by chip, operator and number format."""
COLLECTIVE_MISSES: Mapping[tuple[str, str], str] = {
    ("A100 (pairwise NVLink)", "send"): _SLOW_LINK,
    ("H100 (pairwise NVLink)", "send"): _SLOW_LINK,
}
"""The same of collectives, by network and operation."""
MISSES = (
    ("trtllm decode_attention kv bf16", _BENDS),
    ("trtllm decode_attention kv fp8", _BENDS),
    (
        "trtllm decode_attention kv bf16 d=64 window",
        "Takes longer the longer the context is, though the window is always 128: from 9 us to 23 "
        "us (GDDR chips) or 32 us (Hopper) at a million keys of all rows, and hardly longer "
        "beyond, so that neither a cost of the window nor one of the whole context, which would "
        "grow without end, tells it. Its fp8 twin does it little or not at all.",
    ),
    (
        "l40s trtllm prefill_attention bf16/kv",
        "Window of 128: three times the time for twice the tokens where a batch spills out of the "
        "96 MB cache.",
    ),
    ("arc_pro_b60 vllm decode_attention kv fp8", _LENGTHS),
    (
        "a100_sxm sglang decode_attention kv bf16",
        "Reads 0.6 TB/s at 30 MB of keys and values and 1.25 TB/s at 2 GB: slower than straight "
        "over the whole range.",
    ),
    ("trtllm mla_decode fp8", _SPLITS),
)
"""What is known of single laws above the limit of their family. The text of the longest key in the
name of the chip and the law is taken."""


def markdown_table(heading: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Write a table in Markdown.

    Examples
    --------
    >>> print(markdown_table(["law", "rows"], [["gemm", 7]]))
    | law | rows |
    | --- | --- |
    | gemm | 7 |
    """
    lines = [heading, ["---"] * len(heading), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def _percent(value: float) -> str:
    return f"{value:.1%}"


def acceptance_section(found: Sequence[Pooled], exchanges: pd.DataFrame) -> Iterator[str]:
    """Write what every operator and number format of a chip reaches, and every collective."""
    missed = [each for each in found if not each.reached]
    late = exchanges[exchanges["median_ape"] >= COLLECTIVE_LIMIT]
    yield "## What the laws reach on rows that they did not see"
    yield (
        f"{len(found) - len(missed)} of {len(found)} combinations of chip, operator and number "
        f"format are below the limit of their operator, and {len(exchanges) - len(late)} of "
        f"{len(exchanges)} combinations of network and collective. Rows of all engines, head sizes "
        "and windows are put together. Errors are |forecast / measured - 1|. Kernels: every row is "
        f"held out once, in {FOLDS} random parts of a fixed seed, and forecast by the law of its "
        "own group fitted to the other parts. Collectives: a random fifth of the sizes of each "
        "library and number of chips is held out."
    )
    yield markdown_table(
        ["above the limit", "operator", "format", "median", "limit", "what is known"],
        [*_missed_kernels(missed), *_missed_collectives(late)],
    )
    yield "### By chip, operator and number format"
    yield markdown_table(
        ["chip", "operator", "format", "laws", "rows", "median", "p90", "limit", "holds"],
        [
            (
                *each[:5],
                _percent(each.median_ape),
                _percent(each.p90_ape),
                f"{each.limit:.0%}",
                "yes" if each.reached else "no",
            )
            for each in found
        ],
    )
    yield "### By network and collective"
    yield markdown_table(
        ["network", "operation", "laws", "rows held out", "median", "p90", "limit", "holds"],
        [
            (
                row["fabric"],
                row["operation"],
                row["laws"],
                row["rows"],
                _percent(row["median_ape"]),
                _percent(row["p90_ape"]),
                f"{COLLECTIVE_LIMIT:.0%}",
                "yes" if row["median_ape"] < COLLECTIVE_LIMIT else "no",
            )
            for _, row in exchanges.iterrows()
        ],
    )


def _missed_kernels(missed: Sequence[Pooled]) -> Iterator[Sequence[object]]:
    for each in missed:
        known = POOLED_MISSES.get(each[:3], NOT_KNOWN)
        yield *each[:3], _percent(each.median_ape), f"{each.limit:.0%}", known


def _missed_collectives(missed: pd.DataFrame) -> Iterator[Sequence[object]]:
    for _, row in missed.iterrows():
        names = (str(row["fabric"]), str(row["operation"]))
        known = COLLECTIVE_MISSES.get(names, NOT_KNOWN)
        yield *names, "", _percent(row["median_ape"]), f"{COLLECTIVE_LIMIT:.0%}", known


def kernel_section(found: Sequence[Quality]) -> Iterator[str]:
    """Write what every law reaches, and why some miss the limit of their operator."""
    reached = sum(each.reached for each in found)
    yield "## Kernels"
    yield (
        f"{len(found)} laws on {len({each.accelerator for each in found})} chips, one for each "
        "engine, number format, head size and window. Limits of the median error on rows held "
        "out: "
        + ", ".join(f"{name} {limit:.0%}" for name, limit in LIMITS.items())
        + f". {reached} of {len(found)} single laws are below the limit of their operator."
    )
    yield markdown_table(
        ["family", "laws", "below limit", "median of medians", "worst median"],
        _by_family(found),
    )
    missed = [each for each in found if not each.reached]
    yield "### Single laws above the limit"
    yield markdown_table(
        ["chip", "law", "rows", "median held out", "what is known"],
        [
            (
                each.accelerator,
                _law(each),
                each.rows,
                _percent(each.held_out["median_ape"]),
                _reason(each),
            )
            for each in missed
        ],
    )
    yield "### All laws"
    yield markdown_table(
        LAW_COLUMNS,
        [
            (
                each.accelerator,
                _law(each),
                each.rows,
                _percent(each.fitted["median_ape"]),
                _percent(each.fitted["p90_ape"]),
                _percent(each.held_out["median_ape"]) + ("" if each.reached else " (above)"),
                _percent(each.held_out["p90_ape"]),
                f"{each.held_out['bias']:+.1%}",
            )
            for each in found
        ],
    )


LAW_COLUMNS = (
    "chip",
    "law",
    "rows",
    "median",
    "p90",
    "median held out",
    "p90 held out",
    "bias",
)
"""Columns of the table of all laws; ``median`` and ``p90`` are those of hardware/calibrations."""


def _by_family(found: Sequence[Quality]) -> Iterator[Sequence[object]]:
    for family in LIMITS:
        mine = [each for each in found if each.family == family]
        medians = pd.Series([each.held_out["median_ape"] for each in mine], dtype=float)
        if not mine:
            continue
        yield (
            family,
            len(mine),
            sum(each.reached for each in mine),
            _percent(float(medians.median())),
            _percent(float(medians.max())),
        )


def _law(quality: Quality) -> str:
    return f"{quality.engine} {quality.family} {quality.name}"


def _reason(quality: Quality) -> str:
    """Say what is known of a law that misses its limit."""
    pooled_key = (quality.accelerator, quality.family, quality.dtype)
    name = f"{quality.accelerator} {_law(quality)}"
    known = [(key, text) for key, text in MISSES if key in name]
    if known:
        return max(known, key=lambda each: len(each[0]))[1]
    return POOLED_MISSES.get(pooled_key, NOT_KNOWN)


def pooled_collectives(found: pd.DataFrame) -> pd.DataFrame:
    """Put the held-out rows of all libraries and numbers of chips together.

    Parameters
    ----------
    found
        What `sim.calibration.collectives.held_out` returns.

    Returns
    -------
    pooled
        Columns ``fabric, operation, laws, rows, median_ape, p90_ape``.
    """
    together = []
    for (fabric, operation), laws in found.groupby(["fabric", "operation"], sort=True):
        errors = np.concatenate(list(laws["errors"]))
        together.append(
            {
                "fabric": fabric,
                "operation": operation,
                "laws": len(laws),
                "rows": len(errors),
                "median_ape": float(np.median(errors)),
                "p90_ape": float(np.quantile(errors, 0.9)),
            }
        )
    return pd.DataFrame(together)


def collective_section(found: pd.DataFrame) -> Iterator[str]:
    """Write what the laws of collectives reach on sizes that they did not see."""
    yield "## Collectives and expert exchanges"
    medians = found["median_ape"]
    yield (
        f"{len(found)} laws; a fifth of the sizes held out of each. Median error of half of them "
        f"below {_percent(float(medians.median()))}, of nine in ten below "
        f"{_percent(float(medians.quantile(0.9)))}."
    )
    typical = found.groupby(["fabric", "operation", "library"], sort=True)
    yield markdown_table(
        ["network", "operation", "library", "chips", "rows", "median held out", "worst group"],
        [
            (
                *names,
                ", ".join(str(chips) for chips in sorted(laws["chips"])),
                int(laws["rows"].sum()),
                _percent(float(laws["median_ape"].median())),
                _percent(float(laws["median_ape"].max())),
            )
            for names, laws in typical
        ],
    )


def transfer_section(found: Sequence[Transfer]) -> Iterator[str]:
    """Write how the laws of one chip do on another."""
    yield "## Laws of one chip read on another"
    yield (
        "The laws of the donor in units of the other chip's datasheet peaks, every ratio 1: what "
        "a prior does without any knowledge of the other chip. This is the base of "
        "`spread_fraction` in hardware/priors."
    )
    yield markdown_table(
        ["donor", "chip", "family", "groups", "rows", "median", "p90", "bias", "worst group"],
        [
            (
                each.donor,
                each.accelerator,
                each.family,
                each.groups,
                each.rows,
                _percent(each.errors["median_ape"]),
                _percent(each.errors["p90_ape"]),
                f"{each.errors['bias']:+.1%}",
                _percent(each.worst_group),
            )
            for each in found
        ],
    )


class Reading(NamedTuple):
    """How the rows of one chip read under laws that were not fitted to them."""

    transfers: list[Transfer]
    """Laws of another chip, in units of this chip's peaks."""
    stand_ins: dict[str, list[tuple[str, float]]]
    """Family and median error of a group, by what stands in."""


def read_chip(accelerator: str, study: Study, laws: Mapping[str, Laws]) -> Reading:
    """Forecast the rows of a chip with laws of other chips and of its own other engines.

    Parameters
    ----------
    accelerator
    study
        Of that chip.
    laws
        Of every chip that `PAIRS`, `SIBLINGS` and `DISTANT` name, by its id.
    """
    rows = list(groups(study))
    carried = [
        transfer
        for donor, chip in PAIRS
        if chip == accelerator
        for transfer in transfers(donor, laws[donor], accelerator, rows)
    ]
    own = stand_ins(laws[accelerator], rows, same_engine=False)
    stood_in = {"another engine, same chip": list(own)}
    for pairs, same in ((SIBLINGS, True), (DISTANT, False)):
        for donor, chip in pairs:
            if chip == accelerator:
                title = f"{'same' if same else 'another'} engine, {donor} on {chip}"
                stood_in[title] = list(stand_ins(laws[donor], rows, same_engine=same))
    return Reading(carried, stood_in)


def stand_in_section(found: Sequence[Reading]) -> Iterator[str]:
    """Write what stands in better for kernels that were not measured: engine or chip."""
    columns: dict[str, list[tuple[str, float]]] = {}
    for each in found:
        for title, medians in each.stand_ins.items():
            columns.setdefault(title, []).extend(medians)
    yield "## Stand-ins: another engine or another chip"
    yield (
        "Median error of a group of rows under a law that was fitted to others, median of the "
        "groups; in brackets how many. Kernels differ more from engine to engine than between "
        "chips of one die: where a chip names one of the same die (`same_die_as` in "
        "sim/calibration/subjects.yaml), that chip's kernels of the engine are asked before its "
        "own kernels of another engine. H800 does, all of whose rows are SGLang's. H20 does not: "
        "laws of H100 are half off there."
    )
    yield markdown_table(
        ["family", *columns],
        [
            (
                family,
                *(_typical([e for name, e in each if name == family]) for each in columns.values()),
            )
            for family in LIMITS
        ],
    )


def _typical(medians: Sequence[float]) -> str:
    return f"{_percent(float(np.median(medians)))} ({len(medians)})" if medians else ""


def prior_section(catalog: Catalog) -> Iterator[str]:
    """Write the priors as they come out for every chip without measurements."""
    yield "## Priors of chips that nobody measured"
    yield (
        "Ratios to the donor's efficiencies and fixed times. A rate of the chip in "
        "hardware/accelerators (`achieved`) wins over the ratio of its family; reasons and sources "
        "are in hardware/priors."
    )
    yield markdown_table(
        ["chip", "family", "donor", "arithmetic (bf16)", "memory", "fixed times", "spread"],
        _prior_rows(catalog),
    )


def _prior_rows(catalog: Catalog) -> Iterator[Sequence[object]]:
    for name in catalog.names("accelerators"):
        accelerator = catalog.accelerator(name)
        prior = catalog.prior(accelerator.family)
        if prior is None or catalog.calibration(name) is not None:
            continue
        ratios = prior.ratios(accelerator)
        yield (
            name,
            accelerator.family,
            prior.rule.donor,
            f"{ratios.of('bf16'):.2f}",
            f"{ratios.memory:.2f}",
            f"{ratios.fixed:.2f}",
            f"{prior.rule.spread_fraction.value:.0%}",
        )


class _Findings(NamedTuple):
    qualities: list[Quality]
    exchanges: pd.DataFrame
    readings: list[Reading]


def _examine(
    studies: Mapping[str, Study], data_dir: Path, jobs: int, progress: Callable[[str], None]
) -> _Findings:
    """Fit everything anew, chip by chip in processes of their own."""
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        exchanges = pool.submit(collectives.held_out, data_dir)
        fitting = {name: pool.submit(_qualities, name, study) for name, study in studies.items()}
        found = _in_order(fitting, "fitted, rows held out", progress)
        laws = {name: laws_of(each) for name, each in found.items()}
        reading = {
            name: pool.submit(read_chip, name, study, laws) for name, study in studies.items()
        }
        read = _in_order(reading, "read with laws of others", progress)
        progress("collectives")
        return _Findings(
            [quality for each in found.values() for quality in each],
            exchanges.result(),
            list(read.values()),
        )


def _qualities(accelerator: str, study: Study) -> list[Quality]:
    return list(qualities(accelerator, study))


ResultT = TypeVar("ResultT")


def _in_order(
    futures: Mapping[str, Future[ResultT]], what: str, progress: Callable[[str], None]
) -> dict[str, ResultT]:
    """Wait for the results of all chips, and say when each is there."""
    names = {future: name for name, future in futures.items()}
    for done, future in enumerate(as_completed(names), start=1):
        progress(f"{names[future]} {what} ({done} of {len(names)})")
    return {name: future.result() for name, future in futures.items()}


def write_report(
    data_dir: Path,
    catalog: Catalog,
    table: Subjects,
    jobs: int = 1,
    progress: Callable[[str], None] = lambda _: None,
) -> str:
    """Fit everything anew and return the page.

    Parameters
    ----------
    data_dir
        Folder with ``comms.csv`` and ``kernels/*.csv``.
    catalog
        Whose peaks and priors count.
    table
        The measured chips.
    jobs
        Processes; each takes a chip at a time.
    progress
        Told of each chip that is done.
    """
    studies = {
        name: study_of(data_dir, table.of(name), catalogue_peaks(name, catalog))
        for name in table.subjects
    }
    found, exchanges, readings = _examine(studies, data_dir, jobs, progress)
    carried = [transfer for each in readings for transfer in each.transfers]
    carried.sort(key=lambda each: PAIRS.index((each.donor, each.accelerator)))
    sections = (
        "# Fitted kernels and collectives",
        "Made by `python -m sim.calibration.report DATA_DIR --out reports/kernels.md`.",
        *acceptance_section(list(pooled(found)), pooled_collectives(exchanges)),
        *kernel_section(found),
        *collective_section(exchanges),
        *transfer_section(carried),
        *stand_in_section(readings),
        *prior_section(catalog),
    )
    return "\n\n".join(sections) + "\n"


def main(
    data_dir: Annotated[Path, typer.Argument(help="Folder with comms.csv and kernels/.")],
    out: Annotated[Path, typer.Option(help="File to write.")],
    jobs: Annotated[int, typer.Option(min=1, help="Processes.")] = 1,
) -> None:
    """Write how good the fitted laws are."""
    start_s = time.monotonic()

    def progress(what: str) -> None:
        typer.echo(f"{time.monotonic() - start_s:4.0f} s  {what}", err=True)

    page = write_report(data_dir, open_catalog(), shipped_subjects(), jobs, progress)
    out.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    with exit_on_error():
        typer.run(main)
