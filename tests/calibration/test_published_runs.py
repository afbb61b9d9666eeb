"""Forecasts beside 181 published runs of many chips, models and engines, each with its source.

``published_runs.csv`` holds single figures as their sources give them. They were not chosen by how
well we do: of each chip, engine and model of which somebody published runs, the one a quarter of
the way up when they are sorted by load, then by length, if it takes less than 0.6 s to simulate;
runs with speculative decoding and those that `published_points.csv` has were left out. How far
each may be off, and why, stands in ``published_expectations.yaml``; how far the median of each chip
was off when it was last written, in ``published_baseline.yaml``. The same from the command line:

    pytest --measured-runs tests/calibration/published_runs.csv \
        --measured-expectations tests/calibration/published_expectations.yaml \
        --measured-baseline tests/calibration/published_baseline.yaml

and with ``--measured-by hardware --measured-slack 0.05`` and ``--measured-write-baseline`` in place
of ``--measured-baseline``, the baseline is written anew.
"""

import os
from pathlib import Path

import pandas as pd
import pytest

from sim.calibration.error_baseline import Errors, load_baseline
from sim.calibration.runs import MeasuredRun, read_runs
from sim.calibration.tolerances import USUAL, keys_of, load_rules
from sim.calibration.verdicts import compared, record_of
from sim.catalog import open_catalog

ROOT = Path(__file__).parents[2]
RUNS = Path(__file__).with_name("published_runs.csv")
POINTS = RUNS.with_name("published_points.csv")
EXPECTATIONS = RUNS.with_name("published_expectations.yaml")
BASELINE = RUNS.with_name("published_baseline.yaml")
SHARED = Path(os.environ.get("RACKCAST_SHARED", ROOT.parent / "shared"))
SERVING = SHARED / "measured" / "serving.csv"

CHIPS = sorted(set(pd.read_csv(RUNS, dtype=str)["hardware"]))
EXCUSED = 0.25
"""Largest share of the runs of which some figure is not judged."""


@pytest.fixture(scope="module")
def runs() -> list[MeasuredRun]:
    found = list(read_runs(RUNS, open_catalog()))
    assert all(isinstance(run, MeasuredRun) for run in found)
    return [run for run in found if isinstance(run, MeasuredRun)]


class TestCoverage:
    def test_each_has_its_source(self) -> None:
        frame = pd.read_csv(RUNS, dtype=str, keep_default_na=False)
        assert frame["row_id"].is_unique
        assert (frame[["source", "source_key"]] != "").all().all()
        assert not frame["source"].str.contains("shared/").any()
        figures = ["tpot_p50_ms", "tpot_mean_ms", "ttft_p50_ms", "ttft_mean_ms"]
        assert (frame[[*figures, "output_tokens_per_s"]] != "").any(axis="columns").all()

    def test_chips_models_and_engines(self, runs: list[MeasuredRun]) -> None:
        catalog = open_catalog()
        points = [run for run in read_runs(POINTS, catalog) if isinstance(run, MeasuredRun)]
        assert not {run.row_id for run in runs} & {run.row_id for run in points}
        every = [*runs, *points]
        assert len(every) >= 150
        assert len({catalog.system(run.case.system).accelerator for run in every}) >= 12
        assert len({run.case.model for run in every}) >= 10
        products = {run.engine.split()[0].lower() for run in every}
        assert products >= {"vllm", "sglang", "tensorrt-llm", "deepspeed-mii", "sambaflow", "nxd"}

    def test_few_are_excused(self, runs: list[MeasuredRun]) -> None:
        rules = load_rules(EXPECTATIONS, USUAL, runs)
        excused = [run for run in runs if None in rules.limits(run).tolerances.values()]
        assert len(excused) <= EXCUSED * len(runs)

    @pytest.mark.shared_data
    @pytest.mark.skipif(
        not SERVING.is_file(),
        reason=f"measured runs are not part of the project; none at {SERVING} (RACKCAST_SHARED)",
    )
    def test_they_are_what_was_published(self) -> None:
        every = pd.read_csv(SERVING, dtype=str, keep_default_na=False).set_index("row_id")
        cited = pd.read_csv(RUNS, dtype=str, keep_default_na=False).set_index("row_id")
        pd.testing.assert_frame_equal(cited, every.loc[cited.index, cited.columns])


@pytest.mark.parametrize("chip", CHIPS)
def test_a_chip_is_forecast_as_well_as_is_expected(chip: str, runs: list[MeasuredRun]) -> None:
    """Each run within its tolerance, and the medians no worse than they were."""
    catalog = open_catalog()
    rules = load_rules(EXPECTATIONS, USUAL, runs)
    mine = {run.row_id: run for run in runs if run.hardware == chip}
    found = {name: compared(run, rules.limits(run), catalog, seed=1) for name, run in mine.items()}
    off = [
        f"{name}: {each.quantity} {each.error:+.1%}, {each.tolerance:.1%} allowed"
        for name, figures in found.items()
        for each in figures
        if not each.is_near
    ]
    errors = Errors(record_of(run, found[name]) for name, run in mine.items())
    baseline = load_baseline(BASELINE, tuple(keys_of(runs[0])))
    medians = tuple(each for each in baseline.medians if each.group == ("hardware", chip))
    assert medians
    worse = baseline.model_copy(update={"medians": medians}).worse(errors)
    assert not off + worse, "\n".join(off + worse)
