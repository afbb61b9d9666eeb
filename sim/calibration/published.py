"""Put forecasts beside published results that no fit has seen.

``python -m sim.calibration.published hardware/measured/published.yaml --out FILE`` simulates the
scenarios that the file names and writes one table: forecast, measured, ratio, source.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from sim.calibration.replay import replay
from sim.catalog import Catalog, open_catalog
from sim.errors import InputError, exit_on_error
from sim.figures import Figure
from sim.measured import Published, Statistic
from sim.scenario import Case, load_scenario
from sim.schema import load_yaml, validate
from sim.units import MILLISECOND_S


@dataclass(frozen=True)
class Comparison:
    """A forecast beside a published figure."""

    case: Case
    statistic: Statistic
    forecast: float
    measured: Figure[float]

    @property
    def ratio(self) -> float:
        """Forecast over measured."""
        return self.forecast / self.measured.value


def compare(published: Published, catalog: Catalog) -> Iterator[Comparison]:
    """Simulate every case that has a published figure.

    Raises
    ------
    InputError
        A scenario has no such case.
    """
    for entry in published.comparisons:
        path = catalog.path("scenarios", entry.scenario)
        scenario = load_scenario(path)
        cases = {case.name: case for case in scenario.cases}
        found: dict[str, dict[Statistic, float]] = {}
        for figure in entry.figures:
            if figure.case not in cases:
                raise InputError(f"{path}: there is no case {figure.case!r}")
            case = cases[figure.case]
            if case.name not in found:
                found[case.name] = replay(case, catalog, scenario.header.seed)
            yield Comparison(
                case, figure.statistic, found[case.name][figure.statistic], figure.measured
            )


def table(comparisons: list[Comparison]) -> str:
    """Lay the comparisons out as Markdown, one row each, with their sources below."""
    lines = [
        "| case | quantity | forecast | measured | ratio | source |",
        "|---|---|---:|---:|---:|---|",
    ]
    sources: dict[str, int] = {}
    for item in comparisons:
        text = item.measured.source
        if item.measured.note is not None:
            text += f". {item.measured.note}"
        number = sources.setdefault(text, len(sources) + 1)
        unit, scale = _unit(item.statistic)
        lines.append(
            f"| {item.case.name} | {item.statistic} ({unit}) | {item.forecast / scale:,.4g} "
            f"| {item.measured.value / scale:,.4g} | {item.ratio:.2f} | [{number}] |"
        )
    lines += ["", *(f"{number}. {text}" for text, number in sources.items())]
    return "\n".join(lines)


def _unit(statistic: str) -> tuple[str, float]:
    """Give the unit that people read a statistic in, and its size."""
    return ("ms", MILLISECOND_S) if statistic.endswith(("_s_p50", "_s_mean")) else ("tokens/s", 1.0)


def main(
    results: Annotated[Path, typer.Argument(help="File of published results.")],
    out: Annotated[Path | None, typer.Option(help="Where to write the table.")] = None,
) -> None:
    """Simulate what was published and write forecast, measured and ratio."""
    published = validate(Published, load_yaml(results))
    command = f"python -m sim.calibration.published {results}"
    text = (
        "# Forecasts beside published results\n\n"
        f"{published.about}. Nothing was fitted to these figures. Made by `{command}`.\n\n"
        f"{table(list(compare(published, open_catalog())))}\n"
    )
    if out is None:
        typer.echo(text)
    else:
        out.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    with exit_on_error():
        typer.run(main)
