"""Files of measured runs as users write them: what is refused, what is counted, what is told."""

import json
from pathlib import Path

import pytest

from sim.calibration.runs import MeasuredRun, Skipped, read_runs, selected, unread_columns
from sim.calibration.validate import USUAL_GROUPS, document, error_table, validate_runs
from sim.catalog import open_catalog
from sim.errors import InputError

CATALOG = open_catalog()
SAMPLES = Path(__file__).resolve().parents[1] / "data" / "result_files"

ROW = {
    "row_id": "r1",
    "source_key": "us",
    "quality": "A",
    "split": "calibration",
    "hardware": "H100-SXM-80GB",
    "num_chips": "4",
    "tp": "4",
    "model": "llama-3.1-8b",
    "weight_dtype": "bf16",
    "kv_dtype": "bf16",
    "engine": "vllm 0.11.0",
    "scenario": "concurrency",
    "isl": "100",
    "osl": "4",
    "concurrency": "2",
    "request_rate_qps": "",
    "tpot_p50_ms": "5",
}


def written(folder: Path, *changes: dict[str, str]) -> Path:
    """Write a file with a row for each set of changes, called r1, r2 and so on."""
    rows = [ROW | {"row_id": f"r{row}"} | change for row, change in enumerate(changes, start=1)]
    path = folder / "runs.csv"
    lines = [",".join(rows[0]), *(",".join(f'"{cell}"' for cell in row.values()) for row in rows)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def read(folder: Path, *changes: dict[str, str]) -> list[MeasuredRun | Skipped]:
    return list(read_runs(written(folder, *changes), CATALOG))


class TestNames:
    def test_two_rows_of_one_name_are_refused_with_both_lines(self, tmp_path: Path) -> None:
        """The text of the first row goes over two lines, so the second begins in line 4."""
        path = written(tmp_path, {"source_key": "a\nb"}, {"row_id": "r1"})
        with pytest.raises(InputError) as caught:
            list(read_runs(path, CATALOG))
        assert str(caught.value) == (
            f"{path}:4: row_id 'r1' stands twice, first in line 2: give each run a name of its "
            "own, or remove one"
        )

    def test_a_row_without_a_name(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match=r"runs\.csv:2: a run has no row_id: give each"):
            read(tmp_path, {"row_id": " "})


class TestCells:
    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"tp": "2.5"}, "tp: 2.5 is not whole; write a whole number such as 8"),
            ({"pp": "1.5"}, "pp: 1.5 is not whole"),
            ({"concurrency": "2.5"}, "concurrency: 2.5 is not whole"),
            ({"kv_dtype": "fp9"}, "kv_dtype: 'fp9' is no known number format; did you mean fp8?;"),
            ({"quality": "Z"}, "quality: 'Z'; use A, B, C, D"),
            ({"split": "train"}, "split: 'train'; use calibration, context"),
            ({"scenario": "closed-loop"}, "scenario: 'closed-loop'; use offline, server, "),
            ({"scenario": "Concurrency"}, "scenario: 'Concurrency'; did you mean concurrency?; "),
        ],
    )
    def test_what_a_column_cannot_hold(
        self, tmp_path: Path, change: dict[str, str], message: str
    ) -> None:
        with pytest.raises(InputError) as caught:
            read(tmp_path, change)
        assert str(caught.value).startswith(f"{tmp_path / 'runs.csv'}: run r1: {message}")

    def test_blanks_and_no_cut_of_experts_are_fine(self, tmp_path: Path) -> None:
        (run,) = read(tmp_path, {"tp": " 4 ", "scenario": "concurrency ", "ep": "0", "dp": "0"})
        assert isinstance(run, MeasuredRun)
        assert (run.case.parallelism.tp, run.case.parallelism.ep) == (4, 1)

    def test_cores_of_a_chip_may_be_more_than_chips(self, tmp_path: Path) -> None:
        neuron = {"hardware": "Trainium1", "num_chips": "16", "tp": "32", "engine": "neuron"}
        (run,) = read(tmp_path, neuron)
        assert isinstance(run, MeasuredRun)
        assert run.case.parallelism.tp == 16

    def test_a_column_that_is_nearly_known_is_told(self, tmp_path: Path) -> None:
        path = written(tmp_path, {"tpot_ms": "5", "operator": "me", "Quality": "B"})
        assert unread_columns(path) == [
            f"{path}:1: column tpot_ms is not read; did you mean tpot_mean_ms?"
        ]

    def test_a_row_with_too_many_cells(self, tmp_path: Path) -> None:
        path = written(tmp_path, {})
        path.write_text(path.read_text(encoding="utf-8").rstrip() + ",more\n", encoding="utf-8")
        with pytest.raises(InputError, match=r"runs\.csv:2: has 18 cells for 17 columns; put a"):
            list(read_runs(path, CATALOG))

    def test_cells_left_out_at_the_end_are_empty(self, tmp_path: Path) -> None:
        path = written(tmp_path, {})
        path.write_text(path.read_text(encoding="utf-8").rpartition(",")[0], encoding="utf-8")
        (run,) = read_runs(path, CATALOG)
        assert isinstance(run, Skipped)
        assert run.reason.startswith("nothing measured: none of tpot_p50_ms, tpot_mean_ms, ")

    def test_two_columns_of_one_name(self, tmp_path: Path) -> None:
        path = tmp_path / "runs.csv"
        names = ",".join([*ROW, "tp"])
        path.write_text(f"{names}\n", encoding="utf-8")
        with pytest.raises(InputError, match=r"runs\.csv:1: column tp stands twice; remove"):
            list(read_runs(path, CATALOG))


class TestOtherKindsOfFile:
    @pytest.mark.parametrize(
        ("name", "content", "message"),
        [
            ("x.json", json.dumps({"ours": 1}), "is a result of a benchmark tool (JSON), not a"),
            (
                "profile.csv",
                "Metric,avg,min,max,p50,p90,p99,std\nTime to First Token (ms),1,1,1,1,1,1,0\n",
                "'rackcast import-runs {} --out runs.csv'",
            ),
            ("empty.csv", "", "is empty; docs/reference/measured-runs.md tells what"),
            ("blank.csv", "\n\n", "is empty; docs/reference/measured-runs.md tells what"),
            (
                "short.csv",
                ",".join(name for name in ROW if name not in ("tp", "osl")),
                "columns are missing: osl, tp; docs/reference/measured-runs.md describes them",
            ),
            ("cut.csv", ";".join(ROW), "row_id, tp (cells have to be separated by commas); docs"),
            ("open.csv", f'{",".join(ROW)}\n"r1,2', "is a double quote left open?"),
        ],
    )
    def test_says_what_it_is_and_what_to_do(
        self, tmp_path: Path, name: str, content: str, message: str
    ) -> None:
        path = tmp_path / name
        path.write_text(content, encoding="utf-8")
        with pytest.raises(InputError) as caught:
            list(read_runs(path, CATALOG))
        assert str(caught.value).startswith(f"{path}:")
        assert message.format(path) in str(caught.value)

    @pytest.mark.parametrize(
        ("name", "title"),
        [("vllm_closed_loop.json", "vLLM serving benchmark"), ("aiperf.csv", "AIPerf")],
    )
    def test_a_tool_that_is_known_is_named(self, name: str, title: str) -> None:
        with pytest.raises(InputError) as caught:
            list(read_runs(SAMPLES / name, CATALOG))
        assert f"is a result of a benchmark tool ({title}" in str(caught.value)
        assert f"'rackcast import-runs {SAMPLES / name} --out runs.csv'" in str(caught.value)


LOADS = (
    ({"concurrency": "8"}, "closed, 1 to 8 clients"),
    ({"concurrency": "9"}, "closed, 9 to 64 clients"),
    ({"concurrency": "65"}, "closed, more than 64 clients"),
    ({"scenario": "server", "request_rate_qps": "1"}, "open"),
    ({"scenario": "offline"}, "at once"),
)


class TestSelect:
    @pytest.mark.parametrize(("change", "load"), LOADS)
    def test_load(self, tmp_path: Path, change: dict[str, str], load: str) -> None:
        """A run that is skipped tells its load as one that is forecast does."""
        runs = read(tmp_path, change, change | {"hardware": "Abacus"})
        assert [run.keys["load"] for run in runs] == [load, load]
        assert selected(runs, [("load", load)]) == runs

    def test_skipped_runs_count_by_what_is_known_of_them(self, tmp_path: Path) -> None:
        runs = read(
            tmp_path,
            {},
            {"model": "acme/Foo-99B"},
            {"tp": ""},
            {"engine": "ollama 1.0", "quality": "B"},
        )

        def ids(*wanted: tuple[str, str]) -> list[str]:
            return [run.row_id for run in selected(runs, wanted)]

        assert ids(("source", "us")) == ["r1", "r2", "r3", "r4"]
        assert ids(("quality", "A")) == ["r1", "r2", "r3"]
        assert ids(("model", "llama_3_1_8b")) == ["r1", "r3", "r4"]
        assert ids(("model", "acme/Foo-99B")) == ["r2"]
        assert ids(("engine", "vllm")) == ["r1", "r2", "r3"]
        assert ids(("tp", "4")) == ["r1", "r2", "r3", "r4"]  # r3 does not tell its own
        assert ids(("system", "h100_sxm_x8"), ("quality", "B")) == ["r4"]

    def test_a_list(self, tmp_path: Path) -> None:
        runs = read(tmp_path, {}, {"quality": "B"}, {"quality": "C"})
        assert selected(runs, [("quality", "A,C")]) == [runs[0], runs[2]]

    def test_a_value_that_no_run_has(self, tmp_path: Path) -> None:
        runs = read(tmp_path, {}, {"quality": "B"})
        with pytest.raises(InputError, match=r"none is there with quality=E; there are A; B$"):
            selected(runs, [("quality", "A,E")])

    def test_a_column_that_is_not_there(self, tmp_path: Path) -> None:
        names = "source, quality, hardware, system, model, engine, preset, tp, weights, load, "
        with pytest.raises(InputError, match=f"no column 'scenario'; use {names}assumed, row_id"):
            selected(read(tmp_path, {}), [("scenario", "offline")])


class TestTables:
    @pytest.fixture
    def runs(self, tmp_path: Path) -> list[MeasuredRun | Skipped]:
        """Two loads and two sources of one system, model and engine, and two runs skipped."""
        more = {"concurrency": "12", "source_key": "them"}
        return read(tmp_path, {}, more, {"model": "Foo-99B"}, {"tpot_p50_ms": ""})

    def test_errors_by_what_tells_runs_apart(self, runs: list[MeasuredRun | Skipped]) -> None:
        found = validate_runs(runs, CATALOG)
        assert found.groups(()) == ["source", "load"]
        assert found.groups(["model"]) == ["model"]
        text = error_table(found)
        assert "tpot closed, 9 to 64 clients" in " ".join(text.split())
        assert "coverage: 2 of 4 runs forecast (50.0%)" in text
        assert USUAL_GROUPS == ("source", "system", "model", "engine", "load")

    def test_only_the_bias_has_a_sign(self, runs: list[MeasuredRun | Skipped]) -> None:
        table = error_table(validate_runs(runs, CATALOG), ["model"]).split("\n\n")[1]
        header, figures = (line.split() for line in table.splitlines())
        assert header == ["quantity", "runs", "median_ape", "mean_ape", "p90_ape", "bias"]
        assert [cell[0] in "+-" for cell in figures[2:]] == [False, False, False, True]

    def test_skipped_runs_are_named_in_the_document(
        self, runs: list[MeasuredRun | Skipped]
    ) -> None:
        told = document(validate_runs(runs, CATALOG))
        assert (told["runs"], told["covered"], told["covered_fraction"]) == (4, 2, 0.5)
        names = told["skipped_row_ids"]
        assert isinstance(names, dict)
        assert {reason.split(":")[0].split(" (")[0]: ids for reason, ids in names.items()} == {
            "no model for Foo-99B": ["r3"],
            "nothing measured": ["r4"],
        }
        by = told["by"]
        assert isinstance(by, dict)
        assert list(by) == ["source", "load"]

    def test_nothing_but_rows_without_a_figure(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match="no run could be forecast: 1 x nothing measured: "):
            validate_runs(read(tmp_path, {"tpot_p50_ms": ""}), CATALOG)

    def test_a_file_without_rows(self) -> None:
        with pytest.raises(InputError, match="none is there: the file has no row below"):
            validate_runs([], CATALOG)
