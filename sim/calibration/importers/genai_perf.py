"""Exports of NVIDIA GenAI-Perf: ``profile_export_genai_perf.json`` and ``.csv``.

Source: triton-inference-server/perf_analyzer ``genai-perf/tests/test_exporters/
test_json_exporter.py`` and ``test_csv_exporter.py``, commit 120a6ede9592; since 0.0.13 the load
stands in ``input_config.perf_analyzer.stimulus``. Perf Analyzer paces requests evenly unless told
otherwise (``--request-distribution``, default ``constant``). The CSV has no ``input_config``, so it
tells neither model nor load.
"""

from typing import Any

from sim.calibration.importers.draft import Draft, Format, put_load
from sim.calibration.importers.perf_export import (
    put_metrics,
    recognises_metrics,
    table_record,
)
from sim.calibration.importers.result_file import Record, ResultFile

TITLE = "GenAI-Perf"
_LOADS = ("input_config", "input_config.perf_analyzer.stimulus")


def _recognises(file: ResultFile) -> bool:
    if file.is_json:
        return bool(file.records) and recognises_metrics(file.records[0])
    return file.header[:2] == ("Metric", "avg")


def _read(file: ResultFile) -> list[Draft]:
    return [_draft(record) for record in file.records or (table_record(file),)]


def _draft(record: Record) -> Draft:
    draft = Draft(record.where, "genai-perf", TITLE, record.identity)
    put_metrics(draft, record)
    draft.put("model", first(record.find("input_config.model")))
    draft.put("model", first(record.find("input_config.model_names")))
    rate = next((n for at in _LOADS if (n := _number(record, f"{at}.request_rate"))), None)
    clients = next((n for at in _LOADS if (n := _number(record, f"{at}.concurrency"))), None)
    if rate or clients:
        put_load(draft, rate=rate, clients=None if rate else clients, requests=None)
    if rate:
        draft.remarks.append("constant arrivals, the default of Perf Analyzer")
    _put_power(draft, record)
    return draft


def first(value: Any) -> str | None:
    """Return a name that may stand alone or in a list."""
    found = value[0] if isinstance(value, list) and value else value
    return found if isinstance(found, str) else None


def _number(record: Record, path: str) -> float | None:
    """Return a number that may stand in a list of one."""
    value = record.find(path)
    if isinstance(value, list) and len(value) == 1 and isinstance(value[0], int | float):
        return float(value[0])
    return record.number(path)


def _put_power(draft: Draft, record: Record) -> None:
    """Add up the mean power of the accelerators, where Triton's metrics were collected."""
    devices = record.find("telemetry_stats.gpu_power_usage")
    if not isinstance(devices, dict) or devices.get("unit") != "W":
        return
    means = [
        mean
        for key in devices
        if key.startswith("gpu")
        and (mean := record.number(f"telemetry_stats.gpu_power_usage.{key}.avg")) is not None
    ]
    if means:
        draft.put("power_w", sum(means), f"the telemetry of {len(means)} accelerators")


GENAI_PERF = Format("genai-perf", TITLE, _recognises, _read)
