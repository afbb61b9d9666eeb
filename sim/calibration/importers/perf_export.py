"""What the exports of NVIDIA's GenAI-Perf and AIPerf have in common: metrics with their unit.

Each metric is an object ``{"unit": "ms", "avg": ..., "p50": ..., "p99": ...}``; the unit is what
counts (AIPerf's documentation: "Do not infer units from the metric tag"). In both tools
``inter_token_latency`` of a request is (request latency - time to first token) / (output tokens
- 1), which is the time per output token here.

Sources: triton-inference-server/perf_analyzer ``genai-perf/tests/test_exporters/
test_json_exporter.py``, commit 120a6ede9592; ai-dynamo/aiperf ``docs/reference/
json-export-schema.md`` (schema 1.5), commit 1554b478d4ee, and ``src/aiperf/exporters/
metrics_csv_exporter.py``, commit 309c4e8c41e9.
"""

import csv
import io
import re
from collections.abc import Mapping
from typing import Any

from sim.calibration.importers.clock import UNIT_S
from sim.calibration.importers.draft import Draft, put_requests
from sim.calibration.importers.result_file import Record, ResultFile
from sim.errors import InputError

_TIMES = (
    ("time_to_first_token", "ttft", ("p50", "p99", "mean")),
    ("inter_token_latency", "tpot", ("p50", "p99", "mean")),
    ("request_latency", "e2e", ("mean",)),
)
_PER_S = frozenset({"sec", "s", "second"})
_LABEL = re.compile(r"(?P<name>[^(]+?)\s*(?:\((?P<unit>[^)]*)\))?")
MARKS = ("request_latency", "request_throughput")
"""Metrics that every export has."""


def recognises_metrics(record: Record) -> bool:
    """Tell whether a record has metrics with statistics."""
    return any(isinstance(record.find(f"{mark}.avg"), int | float) for mark in MARKS)


def put_metrics(draft: Draft, record: Record) -> None:
    """Fill lengths, throughput and times."""
    if not recognises_metrics(record):
        raise InputError(
            f"{record.where}: has neither {MARKS[0]} nor {MARKS[1]} with an avg: it is no export "
            f"of {draft.title}, or no request was completed"
        )
    for metric, quantity, statistics in _TIMES:
        for statistic in statistics:
            key = "avg" if statistic == "mean" else statistic
            draft.put_seconds(f"{quantity}_{statistic}_ms", _seconds(record, metric, key))
    draft.put("isl", _value(record, "input_sequence_length"))
    osl = "output_sequence_length"
    draft.put("osl", _value(record, osl if record.find(osl) else "output_token_count"))
    output = _per_s(record, "output_token_throughput")
    requests = _per_s(record, "request_throughput")
    draft.put("output_tokens_per_s", output)
    draft.put("requests_per_s", requests)
    total = _per_s(record, "total_token_throughput")
    isl = draft.figure("isl")
    if total is not None:
        draft.put("total_tokens_per_s", total)
    elif output is not None and requests is not None and isl is not None:
        draft.put("total_tokens_per_s", output + requests * isl, "output + requests x isl")
    completed, failed = (_value(record, f"{kind}request_count") for kind in ("", "error_"))
    draft.failed(failed, completed or 0.0)
    put_requests(draft, (completed or 0.0) + (failed or 0.0))


def _value(record: Record, metric: str, key: str = "avg") -> float | None:
    found = record.find(metric)
    if isinstance(found, int | float):
        return float(found)
    return record.number(f"{metric}.{key}")


def _seconds(record: Record, metric: str, key: str) -> float | None:
    """Return a time in seconds, by the unit that the file states."""
    value = _value(record, metric, key)
    if value is None:
        return None
    unit = record.text(f"{metric}.unit")
    if unit is None:
        raise InputError(f"{record.where}: {metric} has no unit; add one of {', '.join(UNIT_S)}")
    if unit not in UNIT_S:
        raise InputError(
            f"{record.where}: {metric}.unit: {unit!r} is no unit of time; use {', '.join(UNIT_S)}"
        )
    return value * UNIT_S[unit]


def _per_s(record: Record, metric: str) -> float | None:
    """Return a rate per second; one per anything else is refused."""
    value = _value(record, metric)
    unit = record.text(f"{metric}.unit")
    if value is None or unit is None:
        return value
    if unit.replace("per ", "/").rpartition("/")[2].strip() not in _PER_S:
        raise InputError(f"{record.where}: {metric}.unit: {unit!r} is not per second; convert it")
    return value


def table_record(file: ResultFile) -> Record:
    """Read the CSV of either tool into a record like that of its JSON.

    It has sections, each with a header that starts with ``Metric``; names hold the unit in
    brackets, such as ``Time to First Token (ms)``.
    """
    metrics: dict[str, Mapping[str, Any]] = {}
    header: list[str] = []
    for number, cells in enumerate(csv.reader(io.StringIO(file.text)), start=1):
        if not cells or not cells[0].strip():
            continue
        if cells[0] == "Metric":
            header = [cell.strip() for cell in cells[1:]]
        elif cells[0] == "Endpoint":
            break  # the table of the accelerators' own readings
        elif header:
            name, metric = _metric(cells, header, f"{file.path}:{number}")
            metrics[name] = metric
    return Record(str(file.path), metrics)


def _metric(cells: list[str], header: list[str], where: str) -> tuple[str, Mapping[str, Any]]:
    match = _LABEL.fullmatch(cells[0].strip())
    if match is None:
        raise InputError(f"{where}: {cells[0]!r} is no name of a metric such as Name (unit)")
    metric: dict[str, Any] = {}
    for key, text in zip(header, cells[1:], strict=False):
        if not text.strip():
            continue
        try:
            metric["avg" if key == "Value" else key] = float(text.replace(",", ""))
        except ValueError:
            raise InputError(f"{where}: {key}: {text!r} is not a number") from None
    if match["unit"]:
        metric["unit"] = match["unit"]
    return re.sub(r"\W+", "_", match["name"].strip().lower()), metric
