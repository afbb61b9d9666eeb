"""An explained step on a terminal: a line for each operator, and where its time comes from."""

from collections.abc import Iterator, Sequence

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from sim.report.explanation import ExplainedOperator, ExplainedStep
from sim.report.formats import UNDEFINED, brief, duration, figure, whole_percent
from sim.units import GIGA, MILLISECOND_S

HEADINGS: tuple[tuple[str, str], ...] = (
    ("operator", "left"),
    ("calls", "right"),
    ("GFLOP", "right"),
    ("GB", "right"),
    ("GB/s", "right"),
    ("ms", "right"),
    ("ideal ms", "right"),
    ("share", "right"),
    ("MFU", "right"),
    ("MBU", "right"),
    ("bound by", "left"),
    ("from", "right"),
)
"""Columns and how they are justified; the foot of the table is the whole step."""


def operator_table(step: ExplainedStep) -> RenderableType:
    """Lay out one explained step: what it is, its operators, the sources, the notes."""
    sources = tuple(dict.fromkeys(row.source for row in step.operators))
    head = Text(f"{step.case}: {step.step}", style="bold")
    chip = f"{step.accelerator}; {step.caveats}" if step.caveats else step.accelerator
    about = (f"{step.model} on {step.system} ({chip})", f"split: {step.split}")
    return Group(
        head,
        *map(Text, about),
        _table(step, sources),
        *map(Text, _below(step, sources)),
        Text(""),
    )


def _table(step: ExplainedStep, sources: Sequence[str]) -> Table:
    table = Table(box=box.SIMPLE, show_footer=True, collapse_padding=True, pad_edge=False)
    foot = dict(zip((name for name, _ in HEADINGS), _foot(step), strict=True))
    for name, justify in HEADINGS:
        side = "left" if justify == "left" else "right"
        table.add_column(name, footer=foot[name], justify=side, no_wrap=True)  # type: ignore[arg-type]
    for row in step.operators:
        table.add_row(*_cells(row, sources.index(row.source) + 1))
    return table


def _cells(row: ExplainedOperator, source: int) -> Iterator[str]:
    yield row.name
    yield brief(row.calls)
    yield figure(row.flop / GIGA, 4)
    yield figure(row.bytes / GIGA, 4)
    moved = row.effective_bytes_per_s
    yield UNDEFINED if moved is None else figure(moved / GIGA)
    yield f"{row.seconds / MILLISECOND_S:,.3f}"
    yield f"{row.light_s / MILLISECOND_S:,.3f}" if row.light_s > 0 else UNDEFINED
    yield f"{row.share_fraction:.1%}"
    for fraction in (row.mfu_fraction, row.mbu_fraction):
        yield whole_percent(fraction) if row.light_s > 0 else UNDEFINED
    yield row.bound
    yield f"({source})"


def _foot(step: ExplainedStep) -> Iterator[str]:
    """Write the whole step; its bytes are those of the memory, messages are said below."""
    yield "step"
    yield ""
    yield figure(sum(row.flop for row in step.operators) / GIGA, 4)
    memory_bytes = sum(row.bytes for row in step.operators if row.bound != "network")
    yield figure(memory_bytes / GIGA, 4)
    yield figure(memory_bytes / step.seconds / GIGA)
    yield f"{step.seconds / MILLISECOND_S:,.3f}"
    yield f"{step.light_s / MILLISECOND_S:,.3f}"
    yield "100%"
    yield whole_percent(sum(row.compute_s for row in step.operators) / step.seconds)
    yield whole_percent(sum(row.memory_s for row in step.operators) / step.seconds)
    yield ""
    yield ""


def _below(step: ExplainedStep, sources: Sequence[str]) -> Iterator[str]:
    for number, source in enumerate(sources, 1):
        yield f"({number}) {source}"
    yield from step.notes
    yield (
        f"ideal: speed-of-light time, at the datasheet peaks. The step takes "
        f"{brief(step.seconds / step.light_s)} times as long: {duration(step.seconds)} instead of "
        f"{duration(step.light_s)}."
    )
    messages = [row for row in step.operators if row.bound == "network"]
    if messages:
        sent = sum(row.bytes for row in messages)
        yield (
            f"Between the chips: {brief(sent / GIGA)} GB a chip, not counted in the step's GB, in "
            f"{duration(sum(row.seconds for row in messages))}."
        )
