"""``rackcast calibrate`` on runs of one's own: what it fits to, keeps, writes and says."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import pandas as pd
import pytest
from typer.testing import CliRunner

from sim.calibration.overhead_fit import UNFIT
from sim.calibration.overheads import usable, with_kept_families, write_overheads
from sim.calibration.refit import OwnRuns, check_options, doubts, own_runs, refit
from sim.calibration.runs import read_runs
from sim.catalog import open_catalog
from sim.cli import app
from sim.efficiency import Fit
from sim.errors import InputError
from sim.overhead import NO_OVERHEAD, EngineOverheads, FamilyOverhead
from sim.schema import load_yaml, validate

CATALOG = open_catalog()
(NOT_FITTED,) = UNFIT
PLAIN = {
    "source_key": "ours",
    "quality": "A",
    "hardware": "H100-SXM-80GB",
    "num_chips": "1",
    "tp": "1",
    "model": "Llama-3.1-8B",
    "weight_dtype": "fp8",
    "engine": "vllm",
    "scenario": "concurrency",
    "isl": "200",
    "osl": "20",
    "concurrency": "4",
    "tpot_p50_ms": "9",
    "ttft_p50_ms": "40",
}
COLUMNS = ("row_id", *PLAIN)


def csv(path: Path, rows: Sequence[dict[str, str]], columns: Sequence[str] = COLUMNS) -> Path:
    lines = [",".join(columns)]
    for index, row in enumerate(rows):
        cells = {**PLAIN, "row_id": f"r{index}", **row}
        lines.append(",".join(cells[column] for column in columns))
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


def own(path: Path, system: str | None = None) -> OwnRuns:
    return own_runs([path], CATALOG, system)


class Made(NamedTuple):
    runs: Path
    out: Path
    said: str
    warned: str


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """Five runs, without the columns of sources and quality: less than these cannot be fitted."""
    folder = tmp_path_factory.mktemp("refit")
    columns = [each for each in COLUMNS if each not in ("source_key", "quality")]
    rows = [
        {"concurrency": clients, "num_chips": tp, "tp": tp, "isl": isl}
        for clients, tp, isl in (
            ("1", "1", "100"),
            ("8", "1", "200"),
            ("16", "1", "200"),
            ("1", "4", "300"),
            ("16", "4", "400"),
        )
    ]
    runs, out = csv(folder / "my runs.csv", rows, columns), folder / "mine"
    found = CliRunner().invoke(app, ["calibrate", str(runs), "--out", str(out), "--quiet"])
    assert found.exit_code == 0, found.output
    return Made(runs, out, found.stdout, found.stderr)


def fitted_file(made: Made) -> EngineOverheads:
    return validate(EngineOverheads, load_yaml(made.out / "hardware" / "overheads" / "vllm.yaml"))


class TestOwnRuns:
    def test_quality_that_is_not_given_is_b_and_said_to_be(self, made: Made) -> None:
        assert "fitted to 5 of 5 runs\n" in made.said
        assert "quality is not given for 5 runs; taken as B" in made.said

    def test_every_run_that_is_left_out_has_a_reason(self, tmp_path: Path) -> None:
        others = [
            {"quality": "C"},
            {"quality": "C"},
            {"quality": "D"},
            {"hardware": "MI300X-192GB"},
            {"hardware": "Inferentia2", "engine": "neuron", "weight_dtype": "bf16"},
            {"source_key": NOT_FITTED},
            {"tpot_p50_ms": "", "ttft_p50_ms": ""},
            {"model": "Llama-3.1-405B"},
            {"model": "no such model"},
        ]
        found = own(csv(tmp_path / "runs.csv", [{}] * 5 + others))
        assert [run.row_id for run in found.runs] == [f"r{index}" for index in range(5)]
        assert (found.count, found.unrated) == (14, 0)
        reasons = dict(found.left_out)
        assert reasons.pop("quality C, and A or B is needed") == 2
        assert set(reasons.values()) == {1}
        for words in (
            "quality D",
            "kernels of mi300x were never measured",
            "vendor's own engine",
            f"source {NOT_FITTED}, which nothing is fitted to: {UNFIT[NOT_FITTED]}",
            "nothing measured",
            "cannot be simulated as described",
            "no model for no such model",
        ):
            assert sum(words in reason for reason in reasons) == 1, (words, reasons)

    def test_a_fit_of_what_is_shipped_takes_no_quality_for_granted(self, tmp_path: Path) -> None:
        path = csv(tmp_path / "runs.csv", [{"quality": ""}] * 5)
        assert own(path).unrated == 5
        assert {run.quality for run in own(path).runs} == {"B"}
        assert usable(read_runs(path, CATALOG), CATALOG) == []

    def test_a_column_that_is_misspelt_is_said_to_be(self, tmp_path: Path) -> None:
        path = tmp_path / "runs.csv"
        csv(path, [{}] * 5)
        path.write_text(path.read_text().replace("quality", "qualty", 1))
        (note,) = own(path).notes
        assert "qualty is not read; did you mean quality?" in note

    def test_too_few_are_refused_with_the_reasons(self, tmp_path: Path) -> None:
        path = csv(tmp_path / "runs.csv", [{}] * 4 + [{"quality": "C"}] * 3)
        with pytest.raises(InputError) as caught:
            own(path)
        assert str(caught.value) == (
            "runs.csv: 4 of 7 runs can be fitted to, and at least 5 are needed; left out:\n"
            "  3: quality C, and A or B is needed"
        )

    def test_runs_on_other_systems_are_counted(self, tmp_path: Path) -> None:
        path = csv(tmp_path / "runs.csv", [{}] * 5 + [{"hardware": "H200-SXM-141GB"}] * 2)
        found = own(path, "h100_sxm_x8")
        assert len(found.runs) == 5
        assert found.left_out == {"on h200_sxm_x8, and --system is h100_sxm_x8": 2}

    def test_times_of_queues_alone_are_refused(self, tmp_path: Path) -> None:
        path = csv(tmp_path / "runs.csv", [{"tpot_p50_ms": "", "ttft_p50_ms": "5000"}] * 5)
        with pytest.raises(InputError, match="none of 5 runs can be fitted to: no figure but"):
            refit(own(path), CATALOG, tmp_path / "out", 1)
        assert not (tmp_path / "out").exists()


class TestFile:
    def test_the_laws_of_other_families_are_kept_and_named(self, made: Made) -> None:
        shipped, ours = CATALOG.overheads_file("vllm"), fitted_file(made)
        others = [family for family in shipped.families if family != "hopper"]
        assert others
        for family in others:
            assert ours.families[family] == shipped.families[family]
        assert ours.families["hopper"] != shipped.families["hopper"]
        assert f"refitted: vllm on hopper\nkept as they were: vllm on {', '.join(others)}" in (
            made.said
        )
        assert ours.about.endswith(
            "Refitted to my runs.csv, 5 of 5 runs: hopper. Kept as they were in the file of "
            f"{shipped.date}: {', '.join(others)}."
        )
        (family,) = others[:1]
        source = open_catalog([made.out]).overheads("vllm").of_family(family).source
        assert source.startswith(f"fitted: vllm on {family}")

    def test_it_says_what_it_was_made_of(self, made: Made) -> None:
        path = made.out / "hardware" / "overheads" / "vllm.yaml"
        first = path.read_text(encoding="utf-8").splitlines()[0]
        assert first == (
            "# Overheads of vllm. Made by: rackcast calibrate my runs.csv, 5 of 5 runs"
        )
        fit = fitted_file(made).families["hopper"].fit
        assert fit is not None
        assert fit.source == "TPOT of my runs.csv"

    def test_ranges_are_those_of_the_runs(self, made: Made) -> None:
        fit = fitted_file(made).families["hopper"].fit
        assert fit is not None
        ranges = dict(fit.ranges)
        low, high = ranges.pop("sequences_per_replica")
        assert 1 <= low < high <= 16
        assert ranges == {"input_tokens": (100, 400), "output_tokens": (20, 20), "tp": (1, 4)}

    def test_the_way_to_compare_can_be_copied(self, made: Made) -> None:
        last = made.said.splitlines()[-1].strip()
        assert last == f"rackcast validate '{made.runs}' --catalog {made.out}"

    def test_what_the_runs_do_not_tell_is_named(self, made: Made) -> None:
        """No experts are dealt, and prompts have graphs: nothing answers to these two."""
        (line,) = [line for line in made.said.splitlines() if line.startswith("not determined")]
        fields = line.rpartition(": ")[2].split(", ")
        assert {"dealt_layer_s", "launch_s"} <= set(fields)

    def test_it_cannot_be_written_into_a_file(self, tmp_path: Path) -> None:
        (tmp_path / "taken").write_text("")
        with pytest.raises(InputError, match=r"vllm\.yaml: cannot be written"):
            write_overheads("vllm", CATALOG.overheads_file("vllm"), tmp_path / "taken", "a test")


def test_a_family_without_a_figure_keeps_its_law() -> None:
    """A law is on trial there, which no run has told anything of."""
    fit = Fit(rows=1, median_ape=0.1, p90_ape=0.1, bias=0.1, ranges={}, source="TPOT of ours")
    other = NO_OVERHEAD.model_copy(update={"step_s": 1e-3})
    families = {
        "hopper": FamilyOverhead(law=other, fit=fit),
        "blackwell": FamilyOverhead(law=other, assumed="no run tells of it"),
    }
    known = CATALOG.overheads_file("vllm")
    refitted = known.model_copy(update={"families": families})
    found = with_kept_families(refitted, known, "ours").families
    assert found["hopper"] == families["hopper"]
    assert found["blackwell"] == known.families["blackwell"]


class TestWarning:
    def errors(self, tpot: float, ttft: float) -> pd.DataFrame:
        rows = [
            ("as shipped", "tpot", 0.088),
            ("as shipped", "ttft", 0.2),
            ("fitted", "tpot", 0.01),
            ("fitted", "ttft", 0.01),
            ("held out", "tpot", tpot),
            ("held out", "ttft", ttft),
        ]
        return pd.DataFrame(rows, columns=["scheme", "quantity", "median_ape"])

    def test_a_fit_that_makes_forecasts_worse_is_said_to(self) -> None:
        (said,) = doubts(self.errors(0.114, 0.1))
        assert "tpot 11.4% (as shipped 8.8%)." in said
        assert "ttft" not in said
        assert "Keep the shipped overheads, or give more runs." in said

    def test_one_that_makes_them_better_or_no_worse_is_not(self) -> None:
        assert list(doubts(self.errors(0.05, 0.1))) == []
        assert list(doubts(self.errors(0.0883, 0.2))) == []

    def test_it_goes_to_stderr_and_the_number_that_counts_is_named(self, made: Made) -> None:
        assert "What counts is 'held out' against 'as shipped'" in made.said
        assert "warning:" not in made.said
        assert all(line.startswith("warning: ") for line in made.warned.splitlines())


class TestOptions:
    @pytest.mark.parametrize(
        ("system", "said"),
        [
            ("h100_sxm", "unknown system; did you mean h100_sxm_x8? h100_sxm is an accelerator"),
            ("h100_smx_x8", "unknown system 'h100_smx_x8'; did you mean h100_sxm_x8"),
            ("nope", "unknown system 'nope'. 'rackcast list systems' shows all"),
        ],
    )
    def test_a_system_has_to_be_known(self, tmp_path: Path, system: str, said: str) -> None:
        with pytest.raises(InputError) as caught:
            check_options(tmp_path / "out", system, CATALOG)
        assert str(caught.value).startswith(f"--system {system}: {said}")

    def test_a_place_to_write_to_is_found_and_left_as_it_is(self, tmp_path: Path) -> None:
        check_options(tmp_path / "new" / "folder", "h100_sxm_x8", CATALOG)
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize("out", ["taken", "taken/below", "blocked"])
    def test_one_that_cannot_be_written_is_refused_before_anything_is_read(
        self, tmp_path: Path, out: str
    ) -> None:
        (tmp_path / "taken").write_text("")
        (tmp_path / "blocked").mkdir()
        (tmp_path / "blocked" / "hardware").write_text("")
        found = CliRunner().invoke(
            app, ["calibrate", str(tmp_path / "no.csv"), "--out", str(tmp_path / out)]
        )
        assert isinstance(found.exception, InputError)
        assert str(found.exception).startswith(f"--out {tmp_path / out}: ")
        assert str(found.exception).endswith("name another")

    def test_a_folder_that_nobody_may_write_to_is_refused(self) -> None:
        with pytest.raises(InputError, match=r"--out /proc/none: .*cannot be written"):
            check_options(Path("/proc/none"), None, CATALOG)
