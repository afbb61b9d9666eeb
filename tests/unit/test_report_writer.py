"""The folder of a run: complete, exact, the same each time, and never half written."""

import dataclasses
import hashlib
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from report_fixtures import four_cases, hostile, nothing_completed, one_case

from sim.errors import InputError
from sim.report import document as summaries
from sim.report import writer
from sim.report.charts import TASK_PAINTERS
from sim.report.data import (
    BILL_COLUMNS,
    CURVE_COLUMNS,
    REQUEST_COLUMNS,
    SUMMARY_COLUMNS,
    TIMELINE_COLUMNS,
)
from sim.report.writer import OUR_FILES, write_run

WITHOUT_CURVE = {"curve.csv"} | {
    f"charts/{name}_interactivity.{kind}"
    for name in ("throughput", "cost")
    for kind in ("svg", "png")
}
OF_TASKS = {"tasks.csv", "calls.parquet"} | {
    f"charts/{name}.{kind}" for name in TASK_PAINTERS for kind in ("svg", "png")
}


def files(folder: Path) -> set[str]:
    return {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}


def digests(folder: Path) -> dict[str, str]:
    return {
        name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in files(folder)
    }


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "deep" / "four"
    assert write_run(four_cases(), out) == out / "report.html"
    return out


def test_all_files_are_there_and_nothing_else(run: Path) -> None:
    assert files(run) == set(OUR_FILES) - OF_TASKS - {"trace.json"}
    assert [path.name for path in run.parent.iterdir()] == ["four"]
    assert all((run / name).stat().st_size > 0 for name in files(run))


def test_summary_json_is_as_promised(run: Path) -> None:
    document = json.loads((run / "summary.json").read_text("utf-8"))
    assert document["schema_version"] == 1
    assert document["scenario"] == "llama_70b_chat"
    assert document["seed"] == 7
    assert document["version"] == "0.1.0"
    assert len(document["rows"]) == 4
    columns = list(document["rows"][0])
    assert [c for c in columns if c in SUMMARY_COLUMNS] == list(SUMMARY_COLUMNS)
    assert document["rows"][0]["chips"] == 8
    assert isinstance(document["rows"][0]["chips"], int)
    assert document["provenance"][0] == {
        "case": "8x H100",
        "item": "system",
        "value": "h100_sxm_x8",
        "source": "datasheet: vendor",
    }


def test_every_number_of_the_summary_reads_back_exactly(run: Path) -> None:
    tables = four_cases()
    rows = json.loads((run / "summary.json").read_text("utf-8"))["rows"]
    csv = pd.read_csv(run / "summary.csv")
    for column in tables.summary.columns:
        assert [row[column] for row in rows] == tables.summary[column].tolist(), column
        assert csv[column].tolist() == tables.summary[column].tolist(), column


def test_what_is_not_defined_is_null_and_an_empty_cell(tmp_path: Path) -> None:
    out = tmp_path / "run"
    write_run(nothing_completed(), out)
    text = (out / "summary.json").read_text("utf-8")
    assert "NaN" not in text
    row = json.loads(text)["rows"][0]
    assert row["case"] == "8x H100"
    assert row["usd_per_mtok_output"] is None
    assert row["completed_requests"] == 0
    csv = pd.read_csv(out / "summary.csv")
    assert math.isnan(csv.loc[0, "usd_per_mtok_output"])
    assert "nan" not in (out / "summary.csv").read_text("utf-8").lower()
    requests = pq.read_table(out / "requests.parquet").to_pandas()
    starved = requests[requests["case"] == "8x H100"]
    assert starved["ttft_s"].isna().all()
    assert (starved["outcome"] == "unfinished").all()


def test_infinity_is_not_written_as_json() -> None:
    tables = one_case()
    summary = tables.summary.assign(interactivity_tokens_per_s=math.inf)
    document = summaries.summary_document(dataclasses.replace(tables, summary=summary))
    rows = document["rows"]
    assert isinstance(rows, list)
    assert rows[0]["interactivity_tokens_per_s"] is None


@pytest.mark.parametrize(
    ("name", "columns"),
    [
        ("summary.csv", SUMMARY_COLUMNS),
        ("timeline.csv", TIMELINE_COLUMNS),
        ("bill.csv", BILL_COLUMNS),
        ("curve.csv", CURVE_COLUMNS),
    ],
)
def test_csv_columns_and_order(run: Path, name: str, columns: tuple[str, ...]) -> None:
    header = (run / name).read_bytes().split(b"\n", 1)[0].decode().split(",")
    assert [column for column in header if column in columns] == list(columns)
    assert b"\r" not in (run / name).read_bytes()


def test_requests_are_typed_and_carry_no_versions_of_tools(run: Path) -> None:
    table = pq.read_table(run / "requests.parquet")
    assert tuple(table.column_names) == REQUEST_COLUMNS
    assert table.schema.metadata is None
    kinds = dict(zip(table.column_names, table.schema.types, strict=True))
    assert kinds["ttft_s"] == pa.float64()
    assert kinds["input_tokens"] == pa.int64()
    assert kinds["case"] == pa.string()
    expected = four_cases().requests
    assert table.num_rows == len(expected)
    assert table["done_s"].to_pylist() == expected["done_s"].tolist()


def test_types_of_requests_do_not_depend_on_what_is_missing(tmp_path: Path) -> None:
    tables = one_case()
    empty = dataclasses.replace(tables, requests=tables.requests.iloc[:0])
    write_run(empty, tmp_path / "empty")
    write_run(tables, tmp_path / "full")
    left, right = (
        pq.read_schema(tmp_path / name / "requests.parquet") for name in ("empty", "full")
    )
    assert left == right


def test_equal_tables_give_equal_bytes(run: Path, tmp_path: Path) -> None:
    tables = four_cases()
    later = dataclasses.replace(tables, manifest={**tables.manifest, "wall_s": 99.0})
    write_run(later, tmp_path / "elsewhere")
    first, second = digests(run), digests(tmp_path / "elsewhere")
    assert first.pop("manifest.json") != second.pop("manifest.json")
    assert first == second


def test_another_process_gives_the_same_bytes(run: Path, tmp_path: Path) -> None:
    (tmp_path / "matplotlibrc").write_text("font.size: 33\nsavefig.dpi: 50\n", "utf-8")
    code = (
        "import sys; from pathlib import Path; from report_fixtures import four_cases;"
        "from sim.report.writer import write_run; write_run(four_cases(), Path(sys.argv[1]))"
    )
    environment = {
        **os.environ,
        "PYTHONHASHSEED": "12345",
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path]),
        "MATPLOTLIBRC": str(tmp_path / "matplotlibrc"),
        "TZ": "Asia/Tokyo",
        "LC_ALL": "C",
    }
    subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "other")], check=True, env=environment
    )
    assert digests(tmp_path / "other") == digests(run)


def test_other_numbers_give_other_bytes(run: Path, tmp_path: Path) -> None:
    tables = four_cases()
    dearer = tables.summary.assign(usd_per_mtok_total=tables.summary["usd_per_mtok_total"] * 2)
    write_run(dataclasses.replace(tables, summary=dearer), tmp_path / "run")
    first, second = digests(run), digests(tmp_path / "run")
    changed = {name for name in first if first[name] != second[name]}
    assert changed == {
        "summary.json",
        "summary.csv",
        "charts/cost.svg",
        "charts/cost.png",
        "report.html",
        "manifest.json",
    }


def test_wall_time_is_in_the_manifest_alone(tmp_path: Path) -> None:
    tables = one_case()
    marked = dataclasses.replace(tables, manifest={**tables.manifest, "wall_s": 8765.4321})
    write_run(marked, tmp_path / "run")
    found = [
        name
        for name in files(tmp_path / "run")
        if b"8765.4321" in (tmp_path / "run" / name).read_bytes()
    ]
    assert found == ["manifest.json"]


def test_the_manifest_has_the_hash_of_every_other_file(run: Path) -> None:
    document = json.loads((run / "manifest.json").read_text("utf-8"))
    expected = digests(run)
    expected.pop("manifest.json")
    assert document["files"] == expected
    assert document["inputs"] == dict(four_cases().manifest["inputs"])  # type: ignore[call-overload]
    assert document["seed"] == 7


def test_a_second_run_replaces_ours_and_keeps_what_is_not(tmp_path: Path) -> None:
    out = tmp_path / "run"
    write_run(four_cases(), out)
    (out / "notes.txt").write_text("mine", "utf-8")
    (out / "charts" / "own.png").write_bytes(b"mine")
    write_run(one_case(), out)
    assert files(out) == (set(OUR_FILES) - WITHOUT_CURVE - OF_TASKS - {"trace.json"}) | {
        "notes.txt",
        "charts/own.png",
    }
    assert (out / "notes.txt").read_text("utf-8") == "mine"
    rows = json.loads((out / "summary.json").read_text("utf-8"))["rows"]
    assert [row["case"] for row in rows] == ["8x H200"]
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


@pytest.mark.parametrize("stop", [KeyboardInterrupt, ZeroDivisionError])
def test_an_interrupted_run_leaves_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop: type[BaseException]
) -> None:
    out = tmp_path / "run"
    write_run(one_case(), out)
    before = digests(out)
    other = dataclasses.replace(one_case(), seed=8)

    def interrupted(*_: object) -> str:
        raise stop

    monkeypatch.setattr(writer, "report_page", interrupted)
    with pytest.raises(stop):
        write_run(other, out)
    assert digests(out) == before
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    with pytest.raises(stop):
        write_run(other, tmp_path / "new")
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_a_file_in_the_way_is_the_users_to_move(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("text", "utf-8")
    with pytest.raises(InputError, match="it is a file and not a folder"):
        write_run(one_case(), tmp_path / "run")
    with pytest.raises(InputError, match="cannot write the run to"):
        write_run(one_case(), tmp_path / "run" / "below")
    assert (tmp_path / "run").read_text("utf-8") == "text"


def test_names_with_commas_and_quotes_read_back(tmp_path: Path) -> None:
    tables = hostile()
    write_run(tables, tmp_path / "run")
    assert tuple(pd.read_csv(tmp_path / "run" / "summary.csv")["case"]) == tables.cases
    rows = json.loads((tmp_path / "run" / "summary.json").read_text("utf-8"))["rows"]
    assert tuple(row["case"] for row in rows) == tables.cases
