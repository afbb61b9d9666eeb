"""The page of a run: one file that needs nothing else, not even a network.

The page has no script. Its content policy forbids a browser to load anything, so that a report can
be opened from a mail as safely as a picture.
"""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from sim.metrics.cells import number
from sim.report.caveats import caveats_of
from sim.report.charts import TASK_PAINTERS, Chart
from sim.report.data import RunTables, ordered_summary, rows_of
from sim.report.findings import answer
from sim.report.formats import UNDEFINED, percent, usd
from sim.report.notes import ALL_CASES, remarks
from sim.report.parts import claim_parts, parts_tables, task_parts
from sim.report.style import CASE_COLOURS, css_variables, themed
from sim.report.tables import Cell, Row, groups_of, summary_cell
from sim.report.task_findings import opening, task_sentences

UNBROKEN_LETTERS = 16
"""Names up to this long are not broken into two lines within a sentence."""


@dataclass(frozen=True, slots=True)
class Figure:
    """A chart as the page shows it."""

    name: str
    title: str
    alt: str
    svg: Markup


@dataclass(frozen=True, slots=True)
class SummaryLine:
    """A quantity and its number for each case."""

    row: Row
    cells: tuple[Cell, ...]


@dataclass(frozen=True, slots=True)
class BillRow:
    """A line of a bill, written."""

    line: str
    usd_per_hour: str
    usd: str
    share: str
    source: str


@dataclass(frozen=True, slots=True)
class Bill:
    """The bill of one case."""

    case: str
    hue: int
    rows: tuple[BillRow, ...]
    total_usd_per_hour: str
    total_usd: str


@dataclass(frozen=True, slots=True)
class Ground:
    """One thing the forecast rests on, and the cases it holds for."""

    cases: str
    item: str
    value: str
    source: str


def report_page(tables: RunTables, charts: Sequence[Chart]) -> str:
    """Return the whole page as text.

    Parameters
    ----------
    tables : RunTables
    charts : sequence of Chart
        Shown in this order.
    """
    environment = Environment(
        loader=PackageLoader("sim", "report/templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    said = task_sentences(tables.summary)
    return environment.get_template("report.html.j2").render(
        tables=tables,
        light=Markup(css_variables(0)),  # noqa: S704 - our own colours
        dark=Markup(css_variables(1)),  # noqa: S704 - our own colours
        answer=_unbroken(
            f"{opening(tables.summary)} {answer(tables.summary)}".strip(), tables.cases
        ),
        cases=[(case, index % CASE_COLOURS) for index, case in enumerate(tables.cases)],
        systems=[_system(case) for _, case in tables.summary.iterrows()],
        caveats=[caveats_of(case) for _, case in tables.summary.iterrows()],
        groups=list(_groups(tables.summary)),
        parts=list(parts_tables(tables)),
        figures=[_figure(chart) for chart in charts if chart.name not in TASK_PAINTERS],
        tasks=task_parts(tables),
        claims=claim_parts(tables),
        claimed_by=_claimed_by(tables),
        said_of_tasks=[_unbroken(sentence, tables.cases) for sentence in said],
        task_figures=[_figure(chart) for chart in charts if chart.name in TASK_PAINTERS],
        bills=list(_bills(tables)),
        grounds=list(_grounds(tables)),
        notes=list(remarks(tables)),
        command=str(tables.manifest.get("command", "")),
        inputs=_inputs(tables.manifest),
    )


def _unbroken(text: str, names: Sequence[str]) -> str:
    r"""Keep numbers and their units on one line, and short names.

    >>> _unbroken("20 ms on 8x B200", ["8x B200"]) == "20\xa0ms on 8x\xa0B200"
    True
    """
    glue = "\N{NO-BREAK SPACE}"
    for name in names:
        if len(name) <= UNBROKEN_LETTERS:
            text = text.replace(name, name.replace(" ", glue))
    return re.sub(r"(?<=\d) (?=%|(?:µs|ms|s|J)\b)", glue, text)


def _system(case: "pd.Series[str]") -> str:
    """Say what runs on what, for the head of a column."""
    return f"{case['model']} on {case['system']}"


def _groups(summary: pd.DataFrame) -> Iterator[tuple[str, list[SummaryLine]]]:
    """Lines of the summary table under their headings; a line that no case defines is left out."""
    cases = [case for _, case in ordered_summary(summary).iterrows()]
    for group in groups_of(summary):
        lines = [
            SummaryLine(row, tuple(summary_cell(case, row) for case in cases)) for row in group.rows
        ]
        yield group.title, [line for line in lines if _says_something(line)]


def _says_something(line: SummaryLine) -> bool:
    """Leave out what no case defines, and counts of mishaps where there was none."""
    silent = {UNDEFINED, line.row.write(0.0)} if line.row.only_if_any else {UNDEFINED}
    return any(cell.text not in silent for cell in line.cells)


_PROLOGUE = re.compile(r"\A.*?(?=<svg\b)", re.DOTALL)
_COMMENT = re.compile(r"<!--.*?-->", re.DOTALL)
_METADATA = re.compile(r"<metadata>.*?</metadata>", re.DOTALL)
_STYLE = re.compile(r"<style\b.*?</style>", re.DOTALL)
_SIZE = re.compile(r'(<svg\b[^>]*?)\s+width="[^"]*"')
_HEIGHT = re.compile(r'(<svg\b[^>]*?)\s+height="[^"]*"')


def _figure(chart: Chart) -> Figure:
    return Figure(chart.name, chart.title, chart.alt, Markup(inline_svg(chart)))  # noqa: S704


def inline_svg(chart: Chart) -> str:
    """Return a drawing fit to stand in a page beside others.

    What belongs to a file goes (prologue, comments, style sheet, fixed size), ids get the name of
    the chart in front so that no two are equal, and colours become variables of the page.
    """
    svg = chart.svg.decode("utf-8")
    for pattern in (_PROLOGUE, _COMMENT, _METADATA, _STYLE):
        svg = pattern.sub("", svg)
    svg = _HEIGHT.sub(r"\1", _SIZE.sub(r"\1", svg, count=1), count=1)
    svg = re.sub(r'\bid="', f'id="{chart.name}-', svg)
    svg = re.sub(r'(href="#|url\(#)', rf"\g<1>{chart.name}-", svg)
    head = f'<svg role="img" aria-labelledby="alt-{chart.name}"'
    return themed(svg.replace("<svg", head, 1))


def _bills(tables: RunTables) -> Iterator[Bill]:
    for index, case in enumerate(tables.cases):
        rows = rows_of(tables.bill, case)
        if not rows.empty:
            yield Bill(
                case=case,
                hue=index % CASE_COLOURS,
                rows=tuple(_bill_row(row) for row in rows.to_dict("records")),
                total_usd_per_hour=usd(math.fsum(rows["usd_per_hour"])),
                total_usd=usd(math.fsum(rows["usd"])),
            )


def _bill_row(row: Mapping[object, object]) -> BillRow:
    line = str(row["line"])
    return BillRow(
        line=line,
        usd_per_hour=usd(number(row["usd_per_hour"])),
        usd=usd(number(row["usd"])),
        share=percent(number(row["share_fraction"])),
        source=str(row["source"]),
    )


def _grounds(tables: RunTables) -> Iterator[Ground]:
    """List what the forecast rests on, item by item, equal entries of several cases as one."""
    entries: dict[tuple[str, str, str], list[str]] = {}
    for row in tables.provenance.to_dict("records"):
        key = (str(row["item"]), _written(row["value"]), str(row["source"]))
        entries.setdefault(key, []).append(str(row["case"]))
    items = list(dict.fromkeys(item for item, _, _ in entries))
    for (item, value, source), cases in sorted(
        entries.items(), key=lambda entry: items.index(entry[0][0])
    ):
        everywhere = len(tables.cases) > 1 and set(cases) == set(tables.cases)
        yield Ground(ALL_CASES if everywhere else ", ".join(cases), item, value, source)


def _written(value: object) -> str:
    """Write a value of the provenance table: numbers as they read back, text as it is."""
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _claimed_by(tables: RunTables) -> list[str]:
    """Name whoever claims something, each once."""
    return [] if tables.claims is None else [*dict.fromkeys(map(str, tables.claims["source"]))]


def _inputs(manifest: Mapping[str, object]) -> list[tuple[str, str]]:
    """Return each input file with its hash; none if the manifest does not say."""
    inputs = manifest.get("inputs", {})
    if not isinstance(inputs, Mapping):
        return []
    return [(str(name), str(digest)) for name, digest in inputs.items()]
