"""Write the folder of a run.

Everything is written to a new folder beside the target and moved into place when it is complete:
a run that is interrupted leaves what was there before. Files that are not ours stay. But for
``manifest.json``, which may carry wall time, equal tables give equal bytes.
"""

import hashlib
import json
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from sim.errors import InputError
from sim.report.charts import CHART_NAMES, draw_charts, draw_steps
from sim.report.data import (
    BILL_COLUMNS,
    CALL_COLUMNS,
    COUNT_COLUMNS,
    CURVE_COLUMNS,
    CURVE_TASK_COLUMNS,
    POOL_COLUMNS,
    REQUEST_COLUMNS,
    TASK_COLUMNS,
    TENANT_COLUMNS,
    TENANT_TASK_COLUMNS,
    TIMELINE_COLUMNS,
    RunTables,
    ordered,
    ordered_summary,
)
from sim.report.document import summary_document
from sim.report.explanation import ExplainedStep
from sim.report.html import report_page

MANIFEST = "manifest.json"
REPORT = "report.html"
OUR_FILES: tuple[str, ...] = (
    "summary.json",
    "summary.csv",
    "requests.parquet",
    "timeline.csv",
    "bill.csv",
    "pools.csv",
    "tenants.csv",
    "curve.csv",
    "tasks.csv",
    "calls.parquet",
    *(f"charts/{name}.{kind}" for name in CHART_NAMES for kind in ("svg", "png")),
    "trace.json",
    REPORT,
    MANIFEST,
)
"""All files a run may write, in the order they are moved into place."""
ZSTD_LEVEL = 3
ROWS_PER_GROUP = 131_072

_COUNTS = frozenset(
    {
        "request_id",
        "session",
        "turn",
        "attempts",
        "input_tokens",
        "output_tokens",
        "cached_tokens",
        "recomputed_tokens",
        "prefill_replica",
        "replica",
        "preemptions",
        "task",
        "call",
        "after",
    }
)


def write_run(tables: RunTables, out: Path) -> Path:
    """Write all files of a run, and return the path of its ``report.html``.

    Parameters
    ----------
    tables : RunTables
    out : Path
        The folder; made if it is not there. Files of an earlier run in it are replaced, all
        others stay.

    Raises
    ------
    InputError
        The folder cannot be written.
    """
    out = out.resolve()
    if out.exists() and not out.is_dir():
        raise InputError(f"cannot write the run to {out}: it is a file and not a folder")
    try:
        with _staging(out) as staging:
            _write_files(tables, staging)
            _write_manifest(tables, staging)
            _move_into_place(staging, out)
    except OSError as error:
        raise InputError(f"cannot write the run to {out}: {error.strerror or error}") from error
    return out / REPORT


def write_steps(steps: Sequence[ExplainedStep], version: str, out: Path) -> tuple[Path, ...]:
    """Write a chart of each explained step, as PNG and SVG, and return the paths of the PNGs.

    Parameters
    ----------
    steps : sequence of ExplainedStep
    version : str
        Of Rackcast, for the source line.
    out : Path
        The folder; made if it is not there.

    Raises
    ------
    InputError
        The folder cannot be written.
    """
    pictures = []
    try:
        out.mkdir(parents=True, exist_ok=True)
        for chart in draw_steps(steps, version):
            (out / f"{chart.name}.svg").write_bytes(chart.svg)
            pictures.append(out / f"{chart.name}.png")
            pictures[-1].write_bytes(chart.png)
    except OSError as error:
        raise InputError(f"cannot write the charts to {out}: {error.strerror or error}") from error
    return tuple(pictures)


def _write_files(tables: RunTables, folder: Path) -> None:
    charts = draw_charts(tables)
    (folder / "charts").mkdir()
    for chart in charts:
        (folder / "charts" / f"{chart.name}.svg").write_bytes(chart.svg)
        (folder / "charts" / f"{chart.name}.png").write_bytes(chart.png)
    (folder / "summary.json").write_text(_json(summary_document(tables)), "utf-8", newline="\n")
    _write_csv(ordered_summary(tables.summary), folder / "summary.csv")
    _write_csv(ordered(tables.timeline, TIMELINE_COLUMNS), folder / "timeline.csv")
    _write_csv(ordered(tables.bill, BILL_COLUMNS), folder / "bill.csv")
    _write_csv(ordered(tables.pools, POOL_COLUMNS), folder / "pools.csv")
    tenants = ordered(tables.tenants, (*TENANT_COLUMNS, *TENANT_TASK_COLUMNS))
    tenants = tenants.astype(dict.fromkeys(COUNT_COLUMNS & {*tenants}, "Int64"))
    _write_csv(tenants, folder / "tenants.csv")
    if tables.curve is not None:
        _write_csv(
            ordered(tables.curve, (*CURVE_COLUMNS, *CURVE_TASK_COLUMNS)), folder / "curve.csv"
        )
    if tables.tasks is not None:
        _write_csv(ordered(tables.tasks, TASK_COLUMNS), folder / "tasks.csv")
    if tables.calls is not None:
        _write_requests(ordered(tables.calls, CALL_COLUMNS), folder / "calls.parquet")
    _write_requests(ordered(tables.requests, REQUEST_COLUMNS), folder / "requests.parquet")
    (folder / REPORT).write_text(report_page(tables, charts), "utf-8", newline="\n")


def _json(document: object) -> str:
    return json.dumps(document, ensure_ascii=False, allow_nan=False, indent=2) + "\n"


def _write_csv(frame: pd.DataFrame, path: Path) -> None:
    """Write a table: a point in decimals, the shortest digits that read back, empty if missing."""
    frame.to_csv(path, index=False, lineterminator="\n", encoding="utf-8")


def _write_requests(requests: pd.DataFrame, path: Path) -> None:
    """Write the requests, a group of rows at a time: a long run has many.

    The schema leaves out the versions that pandas adds.
    """
    first = pa.Table.from_pandas(requests.iloc[:ROWS_PER_GROUP], preserve_index=False)
    schema = pa.schema([pa.field(field.name, _request_type(field)) for field in first.schema])
    form = {"compression": "zstd", "compression_level": ZSTD_LEVEL}
    with pq.ParquetWriter(path, schema, version="2.6", data_page_version="1.0", **form) as writer:
        for start in range(0, max(len(requests), 1), ROWS_PER_GROUP):
            rows = requests.iloc[start : start + ROWS_PER_GROUP]
            writer.write_table(pa.Table.from_pandas(rows, preserve_index=False).cast(schema))


def _request_type(field: pa.Field) -> pa.DataType:
    """One type a column, whatever pandas made of a column that happens to be empty or missing."""
    if field.name.endswith("_s"):
        return pa.float64()
    if field.name in _COUNTS and pa.types.is_integer(field.type):
        return pa.int64()
    if field.name in {"case", "tenant", "outcome"} or pa.types.is_large_string(field.type):
        return pa.string()
    return field.type


def _write_manifest(tables: RunTables, folder: Path) -> None:
    """Write the manifest last: it has the hash of every other file, and so tells a mixture."""
    written = sorted(path for path in folder.rglob("*") if path.is_file())
    files = {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in written
    }
    document = {
        "scenario": tables.scenario,
        "seed": int(tables.seed),
        "version": tables.version,
        **tables.manifest,
        "files": files,
    }
    text = json.dumps(document, ensure_ascii=False, allow_nan=False, indent=2) + "\n"
    (folder / MANIFEST).write_text(text, "utf-8", newline="\n")


@contextmanager
def _staging(out: Path) -> Iterator[Path]:
    """Make an empty folder on the file system of the target, and clear away what is left of it."""
    out.parent.mkdir(parents=True, exist_ok=True)
    outer = Path(tempfile.mkdtemp(prefix=f".{out.name}.", suffix=".partial", dir=out.parent))
    # mkdtemp makes a folder for its owner only; the one within has the permissions of any other.
    inner = outer / "run"
    try:
        inner.mkdir()
        yield inner
    finally:
        shutil.rmtree(outer, ignore_errors=True)


def _move_into_place(staging: Path, out: Path) -> None:
    """Rename the whole folder if there is none yet, or else replace our files one by one."""
    if not out.exists():
        staging.rename(out)
        return
    (out / "charts").mkdir(exist_ok=True)
    for name in OUR_FILES:
        if (staging / name).exists():
            (staging / name).replace(out / name)
        else:
            (out / name).unlink(missing_ok=True)
