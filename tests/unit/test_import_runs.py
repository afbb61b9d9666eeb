"""``rackcast import-runs``: power logs, and adding rows to a file without losing any."""

import csv
import io
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sim.calibration.importers.clock import Window, since_1970_s
from sim.calibration.importers.command import import_runs
from sim.calibration.importers.power_log import read_power_log
from sim.calibration.importers.table import add_rows, as_csv
from sim.calibration.run_format import COLUMNS
from sim.catalog import open_catalog
from sim.errors import InputError

ROOT = Path(__file__).resolve().parents[2]
SAMPLES = ROOT / "tests" / "data" / "result_files"
POWER = SAMPLES / "nvidia_smi.csv"
TEN_O_CLOCK_S = 1_773_828_000.0
"""2026-03-18 10:00:00 UTC, when the log of power begins."""
CATALOG = open_catalog()


@pytest.fixture(autouse=True)
def _in_utc(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()


# --- Power. The two devices of the sample draw 400 + 2 t and 300 + 2 t watts, t seconds after ten.


def log(folder: Path, text: str) -> Path:
    path = folder / "power.csv"
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("start", "end", "mean_w"),
    [
        (0.0, 60.0, 700 + 4 * 30),
        (37.0, 60.0, 700 + 4 * 48.5),
        (12.5, 13.5, 700 + 4 * 13),  # between two readings
        (20.0, 20.0, 700 + 4 * 30),  # no time at all: the readings as they are
    ],
)
def test_power_is_the_sum_of_the_means_over_the_window(
    start: float, end: float, mean_w: float
) -> None:
    power = read_power_log(POWER)
    assert power.devices == 2
    if start == end:
        assert power.mean_w(None) == pytest.approx(mean_w)
    else:
        window = Window(TEN_O_CLOCK_S + start, TEN_O_CLOCK_S + end)
        assert power.mean_w(window) == pytest.approx(mean_w)


def test_readings_count_by_their_time_and_not_by_their_number(tmp_path: Path) -> None:
    """100 W for 8 s, and 200 W for 2 s that were sampled ten times as often."""
    times = [0.0, 4.0, 8.0, *(8.001 + n / 10 for n in range(20)), 10.0]
    rows = [f"{TEN_O_CLOCK_S + t:.3f},0,{100 if t <= 8 else 200}" for t in times]
    power = read_power_log(log(tmp_path, "timestamp,gpu,power_w\n" + "\n".join(rows)))
    assert power.mean_w(None) == pytest.approx((8 * 100 + 2 * 200) / 10, rel=1e-3)


@pytest.mark.parametrize(
    ("header", "line"),
    [
        ("timestamp, index, power.draw [W]", "2026/03/18 10:00:{:02d}.000, 0, 250.00 W"),
        ("timestamp, index, power.draw [W]", "2026/03/18 10:00:{:02d}.000, 0, 250.00"),
        ("time,gpu,power_mw", "2026-03-18T10:00:{:02d}Z,0,250000"),
        ("timestamp_ms,device,power [mW]", "17738280{:02d}000,0,250000"),
        ("Time,GPU_ID,DCGM_FI_DEV_POWER_USAGE", "2026-03-18 10:00:{:02d},0,250"),
        ("epoch,power_kw", "17738280{:02d},0.25"),
        ("timestamp, index, power.limit [W], power.draw [W]", "17738280{:02d}, 0, 700 W, 250 W"),
    ],
)
def test_tools_write_power_and_time_in_their_own_ways(
    header: str, line: str, tmp_path: Path
) -> None:
    text = "\n".join([header, *(line.format(second) for second in (0, 5, 10))])
    power = read_power_log(log(tmp_path, text))
    assert power.mean_w(Window(TEN_O_CLOCK_S + 1, TEN_O_CLOCK_S + 9)) == pytest.approx(250)


def test_devices_of_several_hosts_are_not_one(tmp_path: Path) -> None:
    rows = [f"{1773828000 + t},{host},0,{watts}" for t in (0, 5) for host, watts in
            (("a", 100), ("b", 300))]  # fmt: skip
    power = read_power_log(log(tmp_path, "\n".join(["timestamp,hostname,gpu,power_w", *rows])))
    assert (power.devices, power.mean_w(None)) == (2, 400)


def test_a_reading_that_is_not_available_is_left_out(tmp_path: Path) -> None:
    rows = ["2026/03/18 10:00:00, 0, 100 W", "2026/03/18 10:00:05, 0, [N/A]"]
    text = "\n".join(["timestamp, index, power.draw [W]", *rows, "2026/03/18 10:00:10, 0, 300 W"])
    assert read_power_log(log(tmp_path, text)).mean_w(None) == pytest.approx(200)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "is empty"),
        ("a,b\n1,2\n", "needs a line of names with a time and a power"),
        ("timestamp, power.draw [W]\n", "has no reading of power"),
        ("timestamp,power_w\n1773828000,250\n1773828001\n", "power.csv:3: has 1 cells"),
        ("timestamp,power_w\nnoon,250\n", "power.csv:2: timestamp: 'noon' is no time"),
        ("timestamp,power_w\n1773828000,high\n", "power.csv:2: 'high' is no power"),
        ("timestamp,power_w\n1773828000,250000\n", "milliwatts? Rename the column power_mw"),
        ("timestamp,power_w\n12,250\n", "12 is no time since 1970"),
    ],
)
def test_a_wrong_log_of_power_is_refused(text: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        read_power_log(log(tmp_path, text))
    assert words in str(caught.value)


def test_a_log_that_does_not_cover_the_run_is_refused() -> None:
    with pytest.raises(InputError, match=r"1\.0 h from the run.*set TZ"):
        read_power_log(POWER).mean_w(Window(TEN_O_CLOCK_S - 3600, TEN_O_CLOCK_S - 3560))


def test_a_gap_in_the_log_is_refused(tmp_path: Path) -> None:
    text = "timestamp,power_w\n1773828000,250\n1773828030,250\n"
    with pytest.raises(InputError, match="no reading for 30 s"):
        read_power_log(log(tmp_path, text)).mean_w(None)


def test_times_without_a_zone_are_those_of_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "XYZ-2")  # two hours east
    time.tzset()
    assert since_1970_s("2026/03/18 12:00:00.000") == TEN_O_CLOCK_S
    assert since_1970_s("2026-03-18T10:00:00", utc=True) == TEN_O_CLOCK_S


def test_the_power_of_a_run_is_that_of_its_time() -> None:
    """The run ends at 10:01:00 and takes 23 s: 894 W in the middle of them."""
    settings = [("num_chips", "2")]
    (row,) = import_runs(
        [SAMPLES / "vllm_closed_loop.json"], CATALOG, settings=settings, power_log=POWER
    ).rows
    assert row["power_w"] == "894"
    assert "power_w from the power log nvidia_smi.csv" in row["notes"]
    assert "its mean over the time of the run" in row["notes"]


def test_a_file_that_does_not_tell_its_time_takes_the_whole_log_and_says_so() -> None:
    (row,) = import_runs([SAMPLES / "inferencex_agg.json"], CATALOG, settings=[("num_chips", "2")],
                         power_log=POWER).rows  # fmt: skip
    assert row["power_w"] == "820"
    assert "the whole log: the file does not tell when" in row["notes"]


@pytest.mark.parametrize(
    ("name", "settings", "words"),
    [
        ("inferencex_list.json", [], "import it alone, with the log of its time"),
        ("inferencex_agg.json", [], "has 2 devices, and the run 4 accelerators"),
        ("mlperf_server_summary.txt", [("num_chips", "2")], "the run is not covered, 540 s"),
    ],
)
def test_a_log_of_another_run_is_refused(
    name: str, settings: list[tuple[str, str]], words: str
) -> None:
    with pytest.raises(InputError) as caught:
        import_runs([SAMPLES / name], CATALOG, settings=settings, power_log=POWER)
    assert words in str(caught.value)


# --- The file that rows are added to.


def row(name: str, **cells: str) -> dict[str, str]:
    return dict.fromkeys(COLUMNS, "") | {"row_id": name, "engine": "vLLM 0.11.0"} | cells


def held(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(path.read_text(encoding="utf-8-sig"), newline="")))


def test_a_file_is_begun_with_all_columns_and_then_added_to(tmp_path: Path) -> None:
    path = tmp_path / "runs.csv"
    assert add_rows(path, [row("a")]).new == ("a",)
    begun = path.read_bytes()
    assert begun.splitlines()[0].decode() == ",".join(COLUMNS)
    added = add_rows(path, [row("a"), row("b", notes='says "so", twice\nover')])
    assert (added.new, added.present, added.replaced) == (("b",), ("a",), ())
    assert path.read_bytes().startswith(begun)
    assert [each["row_id"] for each in held(path)] == ["a", "b"]
    assert held(path)[1]["notes"] == 'says "so", twice\nover'


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("closed", [True, False])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_what_people_wrote_stays_byte_by_byte(
    end: str, closed: bool, mark: str, tmp_path: Path
) -> None:
    path = tmp_path / "runs.csv"
    names = ["row_id", "my_column", *(name for name in COLUMNS if name != "row_id")]
    mine = f'{mark}{",".join(names)}{end}x,"a ""quoted"" cell"' + "," * (len(names) - 2)
    path.write_text(mine + (end if closed else ""), encoding="utf-8", newline="")
    add_rows(path, [row("b", tp="8")])
    assert path.read_bytes().startswith(mine.encode())
    assert [each["row_id"] for each in held(path)] == ["x", "b"]
    assert held(path)[0]["my_column"] == 'a "quoted" cell'
    assert held(path)[1]["tp"] == "8"
    assert path.read_bytes().count(b"\r\n") == (3 if end == "\r\n" else 0)


def test_columns_that_are_not_there_are_added(tmp_path: Path) -> None:
    path = tmp_path / "runs.csv"
    path.write_text("row_id,engine,mine\nx,SGLang,1\n", encoding="utf-8")
    add_rows(path, [row("b", tp="8", power_w="700")])
    first, second = held(path)
    assert (first["engine"], first["mine"], first["tp"]) == ("SGLang", "1", "")
    assert (second["engine"], second["mine"], second["power_w"]) == ("vLLM 0.11.0", "", "700")


def test_a_row_that_differs_is_refused_and_replaced_on_demand(tmp_path: Path) -> None:
    path = tmp_path / "runs.csv"
    add_rows(path, [row("a"), row("b", tp="4"), row("c")])
    before = path.read_bytes()
    with pytest.raises(InputError) as caught:
        add_rows(path, [row("d"), row("b", tp="8")])
    assert "differs in tp (4 there, 8 now)" in str(caught.value)
    assert "--replace" in str(caught.value)
    assert path.read_bytes() == before
    added = add_rows(path, [row("d"), row("b", tp="8")], replace=True)
    assert (added.new, added.replaced) == (("d",), ("b",))
    assert [each["row_id"] for each in held(path)] == ["a", "b", "c", "d"]
    assert held(path)[1]["tp"] == "8"


def test_where_a_run_was_imported_from_is_no_difference(tmp_path: Path) -> None:
    path = tmp_path / "runs.csv"
    add_rows(path, [row("a", source="one.json")])
    assert add_rows(path, [row("a", source="copy.json")]).present == ("a",)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("name,tp\nx,8\n", "runs.csv:1: has no column row_id"),
        ("row_id,tp\nx,8,9\n", "runs.csv:2: has 3 cells, the first line 2"),
    ],
)
def test_a_file_of_something_else_is_refused_and_stays(
    text: str, words: str, tmp_path: Path
) -> None:
    path = tmp_path / "runs.csv"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(InputError) as caught:
        add_rows(path, [row("a")])
    assert words in str(caught.value)
    assert path.read_text(encoding="utf-8") == text


def test_a_folder_that_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"--out .*runs\.csv: cannot be written: No such file"):
        add_rows(tmp_path / "none" / "runs.csv", [row("a")])


def test_nothing_is_lost_when_writing_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "runs.csv"
    add_rows(path, [row("a")])
    before = path.read_bytes()

    def full(_file: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(InputError, match="No space left on device"):
        add_rows(path, [row("b")])
    assert path.read_bytes() == before
    assert [each.name for each in tmp_path.iterdir()] == ["runs.csv"]


def test_what_somebody_else_wrote_meanwhile_is_not_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "runs.csv"
    add_rows(path, [row("a")])

    def meanwhile(_file: int) -> None:
        path.write_text(as_csv([row("a"), row("z")]), encoding="utf-8")

    monkeypatch.setattr("os.fsync", meanwhile)
    with pytest.raises(InputError, match="changed by somebody else"):
        add_rows(path, [row("b")])
    assert [each["row_id"] for each in held(path)] == ["a", "z"]


# --- The command.


def run(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    script = "from sim.cli import main; main()"
    command = [sys.executable, "-c", script, "import-runs", *words]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


def test_the_command_adds_rows_and_says_what_is_missing(tmp_path: Path) -> None:
    results = [str(SAMPLES / "guidellm.json"), str(SAMPLES / "vllm_closed_loop.json")]
    words = [*results, "--set", "hardware=H200-SXM-141GB", "--out", "runs.csv"]
    done = run(tmp_path, *words)
    assert (done.returncode, done.stdout) == (
        0,
        "runs.csv: 5 runs added, 0 replaced, 0 there already\n",
    )
    assert done.stderr.count("missing: num_chips (--set num_chips=8), tp (--set tp=8)") == 5
    assert len(held(tmp_path / "runs.csv")) == 5
    again = run(tmp_path, *words, "--quiet")
    assert again.stdout == "runs.csv: 0 runs added, 0 replaced, 5 there already\n"
    assert again.stderr == ""


def test_without_a_file_the_rows_go_to_stdout(tmp_path: Path) -> None:
    done = run(tmp_path, str(SAMPLES / "sglang.jsonl"))
    assert done.returncode == 0
    rows = list(csv.DictReader(io.StringIO(done.stdout)))
    assert [each["request_rate_qps"] for each in rows] == ["", "6"]
    assert not list(tmp_path.iterdir())


def test_one_broken_file_of_several_leaves_everything_as_it_was(tmp_path: Path) -> None:
    (tmp_path / "broken.json").write_text('{"model_id": "m", ', encoding="utf-8")
    done = run(tmp_path, str(SAMPLES / "guidellm.json"), "broken.json", "--out", "runs.csv")
    assert done.returncode == 2
    assert done.stderr.startswith("rackcast: broken.json:1: is not JSON")
    assert not (tmp_path / "runs.csv").exists()
