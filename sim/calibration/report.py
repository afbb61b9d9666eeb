"""How good the laws are: one page of tables from the measurements.

::

    python -m sim.calibration.report DATA_DIR --out reports/kernels.md

Kernels: every group of rows fitted twice, to all of it and to four fifths of it, with the error on
the fifth that the law did not see. Collectives: the same by size. Chips: the laws of one read on
another, which is what a prior does for a chip that nobody measured.
"""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Annotated

import pandas as pd
import typer

from sim.calibration import collectives
from sim.calibration.heldout import HELD_OUT, LIMITS, Quality, Transfer, qualities, transfers
from sim.calibration.kernel_laws import Study
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

_BENDS = (
    "The kernel bends: time follows the total context, steep up to about 50 us and straight "
    "beyond, whatever the number of rows. The law is straight in the context at a fixed number of "
    "rows, since the engine sums its steps in closed form. Two more coefficients (a cost of rows "
    "that levels off, a power of the idle rows) gained two to four points on H200 and none "
    "elsewhere."
)
MISSES = (
    ("trtllm decode_attention kv bf16", _BENDS),
    ("trtllm decode_attention kv fp8", _BENDS),
    (
        "trtllm decode_attention kv bf16 d=64 window",
        "Takes longer the longer the context is, though the window is always 128: two to "
        "three times between 128 and 16,384 tokens. No law of the window's work shows that; its "
        "fp8 twin does not do it.",
    ),
    (
        "trtllm grouped_gemm nvfp4",
        "Tuned shape by shape: of two layers that differ by a factor of two in one dimension, one "
        "runs at 0.6 and the other at 1.3 of the law at all numbers of tokens.",
    ),
    (
        "trtllm grouped_gemm mxfp4_fp8",
        "Badly tuned between 256 and 4,096 tokens: 1,024 tokens take longer than 8,192.",
    ),
    (
        "l40s trtllm prefill_attention bf16/kv",
        "Window of 128: three times the time for twice the tokens where a batch spills out of the "
        "96 MB cache.",
    ),
    (
        "arc_pro_b60 vllm prefill_attention bf16/kv",
        "The window is masked, not skipped: times follow the whole triangle and are 15 % longer "
        "than without a window.",
    ),
    (
        "arc_pro_b60 vllm decode_attention kv",
        "Changes kernels by length: contexts of 8,192 can take half the time of 4,096.",
    ),
    (
        "a100_sxm sglang decode_attention kv bf16",
        "Reads 0.6 TB/s at 30 MB of keys and values and 1.25 TB/s at 2 GB: slower than straight "
        "over the whole range.",
    ),
    (
        "mla_decode",
        "Heads are padded to a tile, so 64 take as long as 128, and the cost of a row grows with "
        "the heads; the law counts the heads that there are.",
    ),
)
"""What is known of groups whose error is above the limit of their family. The text of the longest
key in the name of the chip and the law is taken."""


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


def kernel_section(found: Sequence[Quality]) -> Iterator[str]:
    """Write what every law reaches, and why some miss their limit."""
    reached = sum(each.reached for each in found)
    yield "## Kernels"
    yield (
        f"{len(found)} laws on {len({each.accelerator for each in found})} chips. Held out: a "
        f"random {HELD_OUT:.0%} of the shapes of each group, chosen by a fixed seed; the law is "
        "fitted to the others. Errors are |forecast / measured - 1|. Limits of the median: "
        + ", ".join(f"{name} {limit:.0%}" for name, limit in LIMITS.items())
        + f". {reached} of {len(found)} laws are below their limit."
    )
    yield markdown_table(
        ["family", "laws", "below limit", "median of medians", "worst median"],
        _by_family(found),
    )
    missed = [each for each in found if not each.reached]
    yield "### Above the limit"
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
        ["chip", "law", "rows", "median", "p90", "median held out", "p90 held out", "bias"],
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
    if quality.rows < FEW_ROWS:
        return f"few rows: {round(HELD_OUT * quality.rows)} held out"
    name = f"{quality.accelerator} {_law(quality)}"
    known = [(key, text) for key, text in MISSES if key in name]
    if not known:
        return "scatter of this split; see the error of the fit"
    return max(known, key=lambda each: len(each[0]))[1]


FEW_ROWS = 50
"""Of fewer rows than this, ten or fewer are held out."""


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


def write_report(data_dir: Path, catalog: Catalog, table: Subjects) -> str:
    """Fit everything anew and return the page."""

    def study(accelerator: str) -> Study:
        peaks = catalogue_peaks(accelerator, catalog)
        return study_of(data_dir, table.of(accelerator), peaks)

    found = [quality for name in table.subjects for quality in qualities(name, study(name))]
    carried = [
        transfer
        for donor, accelerator in PAIRS
        for transfer in transfers(donor, study(donor), accelerator, study(accelerator))
    ]
    sections = (
        "# Fitted kernels and collectives",
        "Made by `python -m sim.calibration.report DATA_DIR --out reports/kernels.md`.",
        *kernel_section(found),
        *collective_section(collectives.held_out(data_dir)),
        *transfer_section(carried),
        *prior_section(catalog),
    )
    return "\n\n".join(sections) + "\n"


def main(
    data_dir: Annotated[Path, typer.Argument(help="Folder with comms.csv and kernels/.")],
    out: Annotated[Path, typer.Option(help="File to write.")],
) -> None:
    """Write how good the fitted laws are."""
    out.write_text(write_report(data_dir, open_catalog(), shipped_subjects()), encoding="utf-8")


if __name__ == "__main__":
    with exit_on_error():
        typer.run(main)
