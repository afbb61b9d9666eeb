"""Measured runs as test items, in sessions of pytest of their own.

The measured figures are forecasts of the same runs times known factors: what is tested is what the
plugin makes of an error, and the error is known by construction.
"""

import json
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import entry_points
from pathlib import Path

import pytest
import yaml

from sim.calibration import verdicts
from sim.calibration.error_baseline import load_baseline
from sim.calibration.replay import replay
from sim.calibration.runs import MeasuredRun, read_runs
from sim.calibration.tolerances import USUAL, load_rules, parse_tolerances
from sim.catalog import Catalog, open_catalog
from sim.errors import InputError
from sim.measured import Statistic
from sim.scenario import Case

pytest_plugins = ["pytester"]

MODULE = "sim.calibration.pytest_plugin"
INSTALLED = any(entry.value == MODULE for entry in entry_points(group="pytest11"))
PLUGIN = () if INSTALLED else ("-p", MODULE)
"""An environment that was made before the plugin has no entry point for it."""

COLUMNS = (
    "row_id,hardware,num_chips,tp,model,engine,weight_dtype,scenario,concurrency,isl,osl,"
    "ttft_p50_ms,tpot_p50_ms,output_tokens_per_s"
)
RUNS = {
    "h100-vllm": "H100-SXM-80GB,1,1,llama-3.1-8b,vllm,bf16,concurrency,2,100,20",
    "h100-trtllm": "H100-SXM-80GB,1,1,llama-3.1-8b,trtllm,bf16,concurrency,2,100,20",
    "mi300x-vllm": "MI300X-192GB,1,1,llama-3.1-8b,vllm,bf16,concurrency,2,100,20",
}
UNKNOWN = "unknown,H100-SXM-80GB,1,1,no-such-model,vllm,bf16,concurrency,2,100,20,1,1,1"
FACTORS = {"h100-vllm": 1.0, "h100-trtllm": 1.1, "mi300x-vllm": 1.5}
"""Measured over forecast, of every quantity: errors of 0, 1 / 1.1 - 1 = -9.1 % and -33.3 %."""

Session = Callable[..., pytest.RunResult]


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> list[MeasuredRun]:
    """Read the runs, with other figures than they will have."""
    path = tmp_path_factory.mktemp("runs") / "runs.csv"
    rows = [f"{name},{cells},1,1,1" for name, cells in RUNS.items()]
    path.write_text("\n".join([COLUMNS, *rows]))
    return [run for run in read_runs(path, open_catalog()) if isinstance(run, MeasuredRun)]


KNOWN: dict[str, dict[Statistic, float]] = {}


def replay_once(case: Case, catalog: Catalog, seed: int) -> dict[Statistic, float]:
    """Simulate each run once for all sessions in this process; the forecasts are the real ones."""
    assert seed == 1
    if case.name not in KNOWN:
        KNOWN[case.name] = replay(case, catalog, seed)
    return KNOWN[case.name]


@pytest.fixture(autouse=True)
def simulated_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verdicts, "replay", replay_once)


@pytest.fixture(scope="module")
def forecasts(measured: list[MeasuredRun]) -> dict[str, dict[str, float]]:
    """Figures of the runs as they are simulated: ms, ms and tokens/s."""
    catalog = open_catalog()
    found = {}
    for run in measured:
        figures = replay_once(run.case, catalog, seed=1)
        found[run.row_id] = {
            "ttft_p50_ms": figures["ttft_s_p50"] * 1000,
            "tpot_p50_ms": figures["tpot_s_p50"] * 1000,
            "output_tokens_per_s": figures["output_tokens_per_s"],
        }
    return found


@pytest.fixture
def write(pytester: pytest.Pytester, forecasts: dict[str, dict[str, float]]) -> Callable[..., Path]:
    """Write a file of runs, each figure a factor times its forecast."""

    def write_runs(
        name: str = "runs.csv", runs: Sequence[str] = tuple(RUNS), unknown: bool = True
    ) -> Path:
        rows = [
            ",".join([run, RUNS[run], *(str(x * FACTORS[run]) for x in forecasts[run].values())])
            for run in runs
        ]
        path = pytester.path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("\n".join([COLUMNS, *rows, *([UNKNOWN] if unknown else [])]) + "\n")
        return path

    return write_runs


@pytest.fixture
def session(pytester: pytest.Pytester) -> Session:
    """Run pytest as a user does, with one file of runs unless others are named."""

    def run(*arguments: str | Path, runs: Sequence[str] = ("runs.csv",)) -> pytest.RunResult:
        named = [part for path in runs for part in ("--measured-runs", path)]
        return pytester.runpytest_inprocess(*PLUGIN, *named, *arguments)

    return run


def lines_of(result: pytest.RunResult) -> str:
    return "\n".join([*result.outlines, *result.errlines])


def row_of(result: pytest.RunResult, *cells: str) -> list[str]:
    """Find the one line of the table that begins with these cells."""
    split = [line.split() for line in result.outlines]
    found = [line for line in split if tuple(line[: len(cells)]) == cells]
    assert len(found) == 1, result.outlines
    return found[0]


class TestItems:
    def test_each_run_is_judged_by_its_error(
        self, write: Callable[..., Path], session: Session
    ) -> None:
        write()
        result = session("-v")
        result.assert_outcomes(passed=2, failed=1, skipped=1)
        result.stdout.fnmatch_lines_random(
            [
                "runs.csv::h100-vllm PASSED*",
                "runs.csv::h100-trtllm PASSED*",
                "runs.csv::mi300x-vllm FAILED*",
                "runs.csv::unknown SKIPPED*no model for no-such-model*",
            ]
        )
        assert result.ret == pytest.ExitCode.TESTS_FAILED

    def test_the_failure_says_what_is_off_and_where_to_look(
        self, write: Callable[..., Path], session: Session
    ) -> None:
        write()
        text = lines_of(session())
        assert "tpot -33.3% (tolerance 15.0%), ttft -33.3% (tolerance 30.0%)" in text
        assert "mi300x-vllm in runs.csv" in text
        assert "1 x MI300X-192GB (as mi300x_x8), tp 1" in text
        assert "2 clients, 10 requests, 100 tokens in and 20 out" in text
        assert "calibration: none; nothing was measured on AMD Instinct MI300X" in text
        assert "rackcast validate runs.csv --select row_id=mi300x-vllm" in text
        assert "FAILED runs.csv::mi300x-vllm - Failed: tpot -33.3%" in text

    def test_the_command_of_the_failure_works(self, write: Callable[..., Path]) -> None:
        path = write()
        shown = subprocess.run(
            [sys.executable, "-m", "sim.cli", "validate", path, "--select", "row_id=mi300x-vllm"],
            capture_output=True,
            text=True,
            check=False,
        )
        assert shown.returncode == 0, shown.stderr
        assert "1 runs forecast, 0 skipped" in shown.stdout

    @pytest.mark.parametrize(
        ("tolerance", "failed"),
        [
            ("tpot=0.34,ttft=0.34,throughput=0.34", 0),
            ("tpot=none,ttft=none,throughput=none", 0),
            ("tpot=0.05,ttft=none,throughput=none", 2),
            ("throughput=0.05", 2),
        ],
    )
    def test_tolerances(
        self, write: Callable[..., Path], session: Session, tolerance: str, failed: int
    ) -> None:
        write()
        result = session("--measured-tolerance", tolerance)
        result.assert_outcomes(passed=3 - failed, failed=failed, skipped=1)

    @pytest.mark.parametrize(
        ("arguments", "passed", "failed"),
        [
            (("runs.csv::h100-vllm",), 1, 0),
            (("-k", "h100-vllm"), 1, 0),
            (("-k", "llama_3_1_8b and MI300X"), 0, 1),
            (("-k", "trtllm"), 1, 0),
            (("-m", "measured_run", "--strict-markers", "-k", "h100"), 2, 0),
        ],
    )
    def test_selection(
        self,
        write: Callable[..., Path],
        session: Session,
        arguments: tuple[str, ...],
        passed: int,
        failed: int,
    ) -> None:
        write(unknown=False)
        result = session(*arguments)
        outcomes = result.parseoutcomes()
        assert (outcomes.get("passed", 0), outcomes.get("failed", 0)) == (passed, failed)

    def test_stop_at_the_first_failure(self, write: Callable[..., Path], session: Session) -> None:
        write(runs=("mi300x-vllm", "h100-vllm"))
        session("-x").assert_outcomes(failed=1)

    def test_collecting_only_forecasts_nothing(
        self, write: Callable[..., Path], session: Session, pytester: pytest.Pytester
    ) -> None:
        write()
        result = session("--collect-only", "-q", "--measured-write-baseline", "b.yaml")
        assert result.ret == 0
        ids = [f"runs.csv::{name}" for name in (*RUNS, "unknown")]
        assert [line for line in result.outlines if "::" in line] == ids
        assert "coverage" not in lines_of(result)
        assert not (pytester.path / "b.yaml").exists()


class TestFiles:
    def test_other_tests_run_only_if_named(
        self, write: Callable[..., Path], session: Session, pytester: pytest.Pytester
    ) -> None:
        write(runs=("h100-vllm",), unknown=False)
        pytester.makepyfile(test_mine="def test_mine(): pass")
        session().assert_outcomes(passed=1)
        session("test_mine.py").assert_outcomes(passed=2)
        session(".").assert_outcomes(passed=2)

    def test_a_folder(
        self, write: Callable[..., Path], session: Session, pytester: pytest.Pytester
    ) -> None:
        write("measured/a.csv", runs=("h100-vllm",), unknown=False)
        write("measured/b.csv", runs=("h100-vllm",), unknown=False)
        (pytester.path / "measured" / "kernels.csv").write_text("op,time_us\ngemm,3\n")
        result = session("-v", runs=("measured",))
        result.assert_outcomes(passed=2)
        assert "no measured runs (no column row_id): kernels.csv" in lines_of(result)
        result.stdout.fnmatch_lines(["measured/a.csv::h100-vllm*", "measured/b.csv::h100-vllm*"])

    def test_nothing_happens_without_the_option(
        self, write: Callable[..., Path], pytester: pytest.Pytester
    ) -> None:
        write()
        pytester.makepyfile(
            """
            import sys

            def test_that_nothing_is_loaded():
                loaded = {name.split(".")[0] for name in sys.modules}
                assert not loaded & {"numpy", "pandas", "simpy", "pydantic"}
                assert {name for name in sys.modules if name.startswith("sim.")} == {
                    "sim.calibration", "sim.calibration.pytest_plugin"
                }
            """
        )
        plain = ("-p", "no:hypothesispytest", "-p", "no:benchmark")
        result = pytester.runpytest_subprocess(*PLUGIN, *plain)
        result.assert_outcomes(passed=1)
        assert "measured" not in "\n".join(result.outlines[2:])

    def test_the_entry_point(self) -> None:
        root = Path(__file__).parents[2]
        project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
        assert project["entry-points"]["pytest11"] == {"rackcast": MODULE}

    @pytest.mark.parametrize(
        ("text", "complaint"),
        [
            ("row_id,hardware\n", "columns are missing: engine"),
            (f"{COLUMNS}\n{UNKNOWN}\n{UNKNOWN}\n", "row_id 'unknown' stands twice"),
        ],
    )
    def test_bad_files(
        self, session: Session, pytester: pytest.Pytester, text: str, complaint: str
    ) -> None:
        (pytester.path / "runs.csv").write_text(text)
        result = session()
        assert result.ret == pytest.ExitCode.USAGE_ERROR
        assert complaint in lines_of(result)

    def test_a_file_that_is_not_there(self, session: Session) -> None:
        result = session(runs=("nowhere.csv",))
        assert result.ret == pytest.ExitCode.USAGE_ERROR
        assert "nowhere.csv: there is no such file or folder" in lines_of(result)

    @pytest.mark.parametrize(
        ("arguments", "complaint"),
        [
            (("--measured-tolerance", "tpto=0.1"), "no quantity 'tpto'; did you mean tpot?"),
            (("--measured-by", "hardwear"), "no column 'hardwear'; did you mean hardware?"),
        ],
    )
    def test_bad_options(
        self,
        write: Callable[..., Path],
        session: Session,
        arguments: tuple[str, ...],
        complaint: str,
    ) -> None:
        write()
        result = session(*arguments)
        assert result.ret == pytest.ExitCode.USAGE_ERROR
        assert complaint in lines_of(result)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("tpot=-1", "a tolerance is a fraction above 0"),
        ("tpot=nan", "a tolerance is a fraction above 0"),
        ("tpot=much", "a tolerance is a fraction above 0"),
        ("tpot", "'tpot' is no tolerance"),
        ("tpot=1,tpot=2", "given twice"),
    ],
)
def test_what_is_no_tolerance(text: str, complaint: str) -> None:
    with pytest.raises(InputError, match=complaint):
        parse_tolerances(text)


def expectations(folder: Path, *entries: str) -> Path:
    path = folder / "expect.yaml"
    path.write_text("expectations:\n" + "".join(f"  - {entry}\n" for entry in entries))
    return path


class TestExpectations:
    def test_a_group_and_a_run(
        self, write: Callable[..., Path], session: Session, pytester: pytest.Pytester
    ) -> None:
        """The last of several entries counts: the run is judged harder than its group."""
        write(unknown=False)
        wide = "tolerance: {tpot: 0.4, ttft: 0.4, throughput: null}"
        group = f"{{select: {{hardware: MI300X-192GB}}, {wide}, reason: Nothing was measured.}}"
        option = "--measured-expectations"
        session(option, expectations(pytester.path, group)).assert_outcomes(passed=3)
        one = "{select: {row_id: h100-trtllm, tp: 1}, tolerance: {tpot: 0.01}, reason: Ours.}"
        expectations(pytester.path, group, one)
        result = session(option, "expect.yaml")
        result.assert_outcomes(passed=2, failed=1)
        assert "tpot -9.1% (tolerance 1.0%)" in lines_of(result)
        assert "tolerance by expect.yaml:3: Ours." in lines_of(result)

    @pytest.mark.parametrize(
        ("entry", "complaint"),
        [
            (
                "{select: {hardware: H200}, tolerance: {tpot: 1}, reason: r}",
                "expect.yaml:2: expectations.0.select.hardware: no run has hardware 'H200'",
            ),
            (
                "{select: {hardwear: H200}, tolerance: {tpot: 1}, reason: r}",
                "no key 'hardwear'; did you mean hardware?",
            ),
            (
                "{select: {hardware: MI300X-192GB, engine: trtllm}, tolerance: {tpot: 1},"
                " reason: r}",
                "matches no run",
            ),
            ("{select: {engine: vllm}, tolerance: {tpot: 1}}", "expect.yaml:2"),
            ("{select: {engine: vllm}, tolerance: {tpot: 1}, reason: ''}", "expect.yaml:2"),
            ("{select: {engine: vllm}, tolerance: {tpot: 0}, reason: r}", "greater than 0"),
            ("{select: {engine: vllm}, tolerance: {e2e: 1}, reason: r}", "expect.yaml:2"),
            ("{select: {engine: vllm}, tolerance: {}, reason: r}", "expect.yaml:2"),
            ("{select: {}, tolerance: {tpot: 1}, reason: r}", "expect.yaml:2"),
            ("{select: {engine: vllm}, tolerances: {tpot: 1}, reason: r}", "unknown key"),
        ],
    )
    def test_what_is_wrong_is_said_with_its_line(
        self, tmp_path: Path, measured: list[MeasuredRun], entry: str, complaint: str
    ) -> None:
        with pytest.raises(InputError) as error:
            load_rules(expectations(tmp_path, entry), USUAL, measured)
        assert complaint in str(error.value)
        assert "expect.yaml:2: " in str(error.value)

    def test_a_session_ends_with_it(
        self, write: Callable[..., Path], session: Session, pytester: pytest.Pytester
    ) -> None:
        write()
        entry = "{select: {engine: vlm}, tolerance: {tpot: 1}, reason: r}"
        result = session("--measured-expectations", expectations(pytester.path, entry))
        assert result.ret == pytest.ExitCode.USAGE_ERROR
        assert "no run has engine 'vlm'; did you mean vllm?" in lines_of(result)


class TestTable:
    def test_errors_by_quantity_and_column(
        self, write: Callable[..., Path], session: Session
    ) -> None:
        """Errors of 0, 1 / 1.1 - 1 and 1 / 1.5 - 1: their median is the second.

        The 90th percentile lies 0.8 of the way from the second to the third: 9.09 + 0.8 x 24.24.
        """
        write()
        result = session("--measured-by", "hardware", "--measured-by", "engine")
        text = lines_of(result)
        assert "coverage: 3 of 4 runs forecast (75%)" in text
        assert "1 skipped: no model for no-such-model" in text
        for quantity in ("tpot", "ttft", "throughput"):
            rows = [line.split() for line in result.outlines if line.split()[:2] == [quantity, "3"]]
            assert rows == [[quantity, "3", "9.1%", "28.5%", "-9.1%", "67%"]]
        by_chip = row_of(result, "tpot", "MI300X-192GB")
        assert by_chip[2:] == ["1", "33.3%", "33.3%", "-33.3%", "0%"]
        assert row_of(result, "tpot", "vllm")[2:4] == ["2", "16.7%"]

    def test_processes_change_nothing(self, write: Callable[..., Path], session: Session) -> None:
        write()
        options = ("--measured-by", "hardware", "--measured-write-baseline")

        def table(result: pytest.RunResult) -> Iterator[str]:
            cells = {"tpot", "ttft", "throughput", "coverage:"}
            return (line for line in result.outlines if line.strip().split(" ")[0] in cells)

        alone = session(*options, "one.yaml", "-p", "no:xdist")
        spread = session(*options, "two.yaml", "-n", "2")
        spread.assert_outcomes(passed=2, failed=1, skipped=1)
        assert sorted(table(alone)) == sorted(table(spread)) != []
        folder = Path.cwd()
        assert (folder / "one.yaml").read_bytes() == (folder / "two.yaml").read_bytes()


class TestBaseline:
    NEAR = ("--measured-tolerance", "tpot=1,ttft=1,throughput=1")

    def written(self, session: Session, pytester: pytest.Pytester) -> Path:
        path = pytester.path / "b.yaml"
        result = session(*self.NEAR, "--measured-write-baseline", path.name, "--measured-by", "tp")
        assert result.ret == 0
        return path

    def test_what_is_written_holds(
        self, write: Callable[..., Path], session: Session, pytester: pytest.Pytester
    ) -> None:
        write()
        path = self.written(session, pytester)
        found = yaml.safe_load(path.read_text())
        assert found["slack"] == 0.02
        medians = {(each["quantity"], each.get("column")): each for each in found["medians"]}
        assert medians["tpot", None]["median_ape"] == pytest.approx(1 - 1 / 1.1, abs=1e-4)
        assert medians["tpot", "tp"]["value"] == "1"
        result = session(*self.NEAR, "--measured-baseline", path.name, "--measured-slack", "0")
        assert result.ret == 0

    @pytest.mark.parametrize(
        ("earlier", "slack", "fails"), [(0.08, 0.02, 0), (0.07, 0.02, 1), (0.07, 0.03, 0)]
    )
    def test_a_median_that_got_worse_fails_the_session(
        self,
        write: Callable[..., Path],
        session: Session,
        pytester: pytest.Pytester,
        earlier: float,
        slack: float,
        fails: int,
    ) -> None:
        """The median is now 9.09 %."""
        write()
        path = self.written(session, pytester)
        found = yaml.safe_load(path.read_text())
        found["medians"] = [{"quantity": "tpot", "runs": 3, "median_ape": earlier}]
        path.write_text(yaml.safe_dump(found | {"slack": slack}))
        result = session(*self.NEAR, "--measured-baseline", path.name)
        result.assert_outcomes(passed=3, skipped=1)
        assert result.ret == fails
        said = "FAILED tpot: median error 9.1%, 7.0% in the baseline, worse by more than 2.0%"
        assert (said in lines_of(result)) == bool(fails)

    def test_runs_that_are_no_longer_forecast_fail_it(
        self, write: Callable[..., Path], session: Session, pytester: pytest.Pytester
    ) -> None:
        write()
        path = self.written(session, pytester)
        write(runs=("h100-vllm", "h100-trtllm"))
        result = session(*self.NEAR, "--measured-baseline", path.name)
        assert result.ret == 1
        assert "tpot: 2 runs are forecast, 3 in the baseline" in lines_of(result)

    def test_a_part_of_the_runs_is_not_compared(
        self, write: Callable[..., Path], session: Session, pytester: pytest.Pytester
    ) -> None:
        write(unknown=False)
        path = self.written(session, pytester)
        result = session("runs.csv::h100-vllm", "--measured-baseline", path.name)
        assert result.ret == 1
        assert "not compared with the baseline: 1 of 3 runs were tested" in lines_of(result)
        result = session("-k", "vllm", "--measured-write-baseline", "c.yaml")
        assert result.ret == 1
        assert not (pytester.path / "c.yaml").exists()

    @pytest.mark.parametrize(
        ("change", "complaint"),
        [
            ({"slak": 1}, "unknown key; did you mean slack?"),
            ({"medians": []}, "medians"),
            (
                {"medians": [{"quantity": "tpot", "runs": 1, "median_ape": 0.1, "column": "tp"}]},
                "give column and value",
            ),
            (
                {
                    "medians": [
                        {
                            "quantity": "tpot",
                            "runs": 1,
                            "median_ape": 0.1,
                            "column": "chip",
                            "value": "x",
                        }
                    ]
                },
                "runs have no column 'chip'",
            ),
        ],
    )
    def test_a_wrong_baseline(
        self, tmp_path: Path, change: dict[str, object], complaint: str
    ) -> None:
        good = {
            "about": "Errors.",
            "version": "0.1.0",
            "date": "2026-11-21",
            "slack": 0.02,
            "medians": [{"quantity": "tpot", "runs": 1, "median_ape": 0.1}],
        }
        path = tmp_path / "b.yaml"
        path.write_text(json.dumps(good))
        assert load_baseline(path, ["tp"]).slack == 0.02
        path.write_text(json.dumps(good | change))
        with pytest.raises(InputError) as error:
            load_baseline(path, ["tp"])
        assert complaint in str(error.value)
        assert "b.yaml:1: " in str(error.value)
