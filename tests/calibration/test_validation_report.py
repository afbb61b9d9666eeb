"""From a file of measured runs to fitted overheads, residuals and the report, by the commands.

A dozen published runs are few, so nothing is asked of the errors: that they are what the report
says, and that what is written can be read and used.
"""

import json
from pathlib import Path
from typing import NamedTuple

import pandas as pd
import pytest
import typer
from typer.testing import CliRunner

from sim.calibration import serving_fit
from sim.calibration.holdouts import SCHEMES
from sim.calibration.overheads import every, usable
from sim.calibration.runs import read_runs
from sim.catalog import open_catalog
from sim.cli import app
from sim.overhead import EngineOverheads
from sim.report import validation
from sim.report.validation_text import TARGETS
from sim.schema import load_yaml, validate
from sim.uncertainty import Residuals

PUBLISHED = Path(__file__).parent / "published_runs.csv"
ROWS = (
    *("AIC03034", "AIC03254", "MSC00423", "AIC01317", "AIC03684", "AIC02907", "AIC02973"),
    *("AIC03145", "AIC00321", "ARG00782", "ARG01061", "ARG01141"),
)
"""Small runs on three systems, of three engines and seven models."""


class Made(NamedTuple):
    runs: Path
    catalogue: Path
    forecasts: Path
    report: Path


def run(command: typer.Typer, *words: object) -> str:
    result = CliRunner().invoke(command, [str(word) for word in words])
    assert result.exit_code == 0, result.output
    return result.output


def program(main: object) -> typer.Typer:
    made = typer.Typer()
    made.command()(main)  # type: ignore[type-var]
    return made


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    folder = tmp_path_factory.mktemp("validation")
    found = Made(
        folder / "runs.csv", folder / "hardware", folder / "held_out.parquet", folder / "reports"
    )
    published = pd.read_csv(PUBLISHED, dtype=str, keep_default_na=False)
    published[published["row_id"].isin(ROWS)].to_csv(found.runs, index=False)
    options = ("--forecasts", found.forecasts)
    fit = program(serving_fit.main)
    run(fit, found.runs, *options, "--out", found.catalogue, "--rounds", 1)
    report = program(validation.main)
    run(report, found.runs, *options, "--out", found.report, "--source", "a dozen runs")
    return found


def test_overheads_and_residuals_are_files_of_a_catalogue(made: Made) -> None:
    for path in sorted((made.catalogue / "overheads").iterdir()):
        overheads = validate(EngineOverheads, load_yaml(path))
        assert all(each.fit is not None for each in overheads.families.values()), path
    path = made.catalogue / "residuals" / "serving.yaml"
    assert set(validate(Residuals, load_yaml(path)).quantities) >= {"tpot", "ttft"}
    engines = {path.stem for path in (made.catalogue / "overheads").iterdir()}
    assert engines == {"vllm", "vllm_0_6", "trtllm", "trtllm_0_14"}


def test_overheads_say_what_they_were_made_of(made: Made) -> None:
    said = "Made by: python -m sim.calibration.serving_fit runs.csv --every 1, 12 runs\n"
    for path in sorted((made.catalogue / "overheads").iterdir()):
        assert path.read_text(encoding="utf-8").startswith(f"# Overheads of {path.stem}. {said}")


def test_every_run_is_held_out_in_every_way(made: Made) -> None:
    table = pd.read_parquet(made.forecasts)
    assert set(table["row_id"]) == set(ROWS)
    for scheme in SCHEMES:
        figures = table[table["scheme"] == scheme]
        assert not figures.duplicated(["row_id", "quantity"]).any()
        assert set(figures["row_id"]) == set(ROWS)
    known, unknown = (
        table[table["scheme"] == scheme].set_index(["row_id", "quantity"])["forecast"]
        for scheme in ("fitted", "leave_system_out")
    )
    assert (known - unknown.reindex(known.index)).abs().gt(0).mean() > 0.9


def test_the_report_says_what_the_forecasts_are_off_by(made: Made) -> None:
    text = (made.report / "validation.md").read_text(encoding="utf-8")
    table = pd.read_parquet(made.forecasts)
    ours = table[(table["scheme"] == "leave_model_out") & (table["quantity"] == "tpot")]
    median = float((ours["forecast"] / ours["measured"] - 1).abs().median())
    line = next(
        each for each in text.splitlines() if each.startswith("| one model at a time | tpot")
    )
    cells = [cell.strip() for cell in line.split("|")]
    assert cells[3:5] == [str(len(ours)), f"{median:.1%}"]
    assert cells[-2] == ("yes" if median <= TARGETS["leave_model_out"].tpot else "no")
    assert "12 runs are of quality A or B; 100.0% of them can be forecast" in text
    assert "## What measurements differ by among themselves" in text


def test_runs_that_are_not_taken_are_forecast_with_what_is_shipped(made: Made) -> None:
    catalog = open_catalog()
    found = validation.unseen_of(made.runs, catalog, None, 1, 2)
    assert found is not None
    taken = {each.row_id for each in every(usable(read_runs(made.runs, catalog), catalog), 2)}
    assert set(found["row_id"]) == set(ROWS) - taken
    assert found["low"].notna().all()
    assert validation.unseen_of(made.runs, catalog, None, 1, 1) is None


def test_every_chart_of_the_report_is_there(made: Made) -> None:
    text = (made.report / "validation.md").read_text(encoding="utf-8")
    shown = {line.split("(")[1].rstrip(")") for line in text.splitlines() if line.startswith("![")}
    assert len(shown) == 3
    for name in shown:
        assert (made.report / name).read_bytes().startswith(b"\x89PNG")


def test_calibrate_makes_a_catalogue_that_meets_its_runs(made: Made, tmp_path: Path) -> None:
    """Runs whose tokens all take 5 ms longer than published, as on a slower host."""
    rows = pd.read_csv(made.runs, dtype=str, keep_default_na=False)
    slower = rows[rows["tpot_p50_ms"] != ""].copy()
    slower["tpot_p50_ms"] = (slower["tpot_p50_ms"].astype(float) + 5).astype(str)
    ours, catalogue = tmp_path / "ours.csv", tmp_path / "my-catalogue"
    slower.to_csv(ours, index=False)
    told = run(app, "calibrate", ours, "--out", catalogue, "--quiet")
    assert f"fitted to {len(slower)} of {len(slower)} runs" in told
    assert "errors as shipped, fitted, and of random fifths held out:" in told

    def error(*options: object) -> float:
        found = json.loads(run(app, "validate", ours, "--json", "--quiet", *options))
        assert found["covered"] == len(slower)
        return float(found["tpot"]["median_ape"])

    assert error("--catalog", catalogue) < 0.5 * error()


def test_a_handful_of_runs_is_too_few(made: Made, tmp_path: Path) -> None:
    ours = tmp_path / "ours.csv"
    pd.read_csv(made.runs, dtype=str, keep_default_na=False)[:4].to_csv(ours, index=False)
    result = CliRunner().invoke(app, ["calibrate", str(ours), "--out", str(tmp_path / "out")])
    assert result.exit_code != 0
    assert not (tmp_path / "out").exists()
