"""Exports of NVIDIA AIPerf: ``profile_export_aiperf.json`` and ``.csv``.

Source: ai-dynamo/aiperf ``docs/reference/json-export-schema.md`` (schema 1.5), commit 1554b478d4ee;
``src/aiperf/exporters/metrics_csv_exporter.py``, commit 309c4e8c41e9. The load stands in
``input_config.loadgen`` (to 0.6) or in the phase called ``profiling`` of ``input_config.phases``
(``concurrency`` or ``rate``; its ``type`` is the arrival pattern). ``start_time`` and ``end_time``
are UTC. The CSV has no ``input_config``, so it tells neither model nor load.
"""

from sim.calibration.importers.clock import Window, since_1970_s
from sim.calibration.importers.draft import Draft, Format, put_load
from sim.calibration.importers.genai_perf import first
from sim.calibration.importers.perf_export import (
    put_metrics,
    recognises_metrics,
    table_record,
)
from sim.calibration.importers.result_file import Record, ResultFile
from sim.errors import InputError

TITLE = "AIPerf"
_CONFIG = "input_config"
_EVEN = "constant"
_CSV_ONLY = frozenset({"sum", "p1"})
"""Statistics in the fifth column of its CSV; that of GenAI-Perf has the 99th percentile there."""


def _recognises(file: ResultFile) -> bool:
    if not file.is_json:
        names = file.header
        return names[:2] == ("Metric", "avg") and bool(set(names[4:5]) & _CSV_ONLY)
    if not file.records or not recognises_metrics(file.records[0]):
        return False
    record = file.records[0]
    marks = ("aiperf_version", "schema_version", f"{_CONFIG}.loadgen", f"{_CONFIG}.phases")
    return any(record.find(mark) is not None for mark in marks)


def _read(file: ResultFile) -> list[Draft]:
    return [_draft(record) for record in file.records or (table_record(file),)]


def _draft(record: Record) -> Draft:
    draft = Draft(record.where, "aiperf", TITLE, record.identity)
    put_metrics(draft, record)
    _put_model(draft, record)
    _put_load(draft, record)
    _put_window(draft, record)
    _put_power(draft, record)
    if record.find("was_cancelled") is True:
        draft.flaws.append("the run was cancelled before its end")
    return draft


def _put_model(draft: Draft, record: Record) -> None:
    draft.put("model", first(record.find(f"{_CONFIG}.endpoint.model_names")))
    models = record.find(f"{_CONFIG}.models")
    items = models.get("items") if isinstance(models, dict) else models
    if isinstance(items, list) and items:
        draft.put("model", items[0].get("name") if isinstance(items[0], dict) else first(items))


def _put_load(draft: Draft, record: Record) -> None:
    """Take the load of the phase that was measured."""
    loads = [record.find(f"{_CONFIG}.loadgen")]
    phases = record.find(f"{_CONFIG}.phases")
    if isinstance(phases, list):
        loads += [each for each in phases if isinstance(each, dict)][-1:]  # warm-up comes first
    for found in loads:
        if isinstance(found, dict):
            _put_phase(draft, Record(f"{record.where}: {_CONFIG}", found))


def _put_phase(draft: Draft, load: Record) -> None:
    rate = load.number("request_rate") or load.number("rate")
    clients = load.number("concurrency")
    if rate or clients:
        put_load(draft, rate=rate, clients=clients, requests=None)
    pattern = load.find("arrival_pattern") or load.find("request_rate_mode") or load.find("type")
    if rate and pattern == _EVEN:
        draft.remarks.append("constant arrivals")
    elif rate and pattern == "gamma":
        draft.flaws.append("gamma arrivals, not Poisson")


def _put_window(draft: Draft, record: Record) -> None:
    start, end = record.text("start_time"), record.text("end_time")
    if start is None or end is None:
        return
    try:
        draft.window = Window(since_1970_s(start, utc=True), since_1970_s(end, utc=True))
    except InputError as error:
        raise InputError(f"{record.where}: start_time, end_time: {error}") from None
    draft.put("source_date", start[:10])


def _put_power(draft: Draft, record: Record) -> None:
    """Add up the mean power of the accelerators, where telemetry was collected."""
    endpoints = record.find("telemetry_data.endpoints")
    means: list[float] = []
    for host in endpoints.values() if isinstance(endpoints, dict) else ():
        for device in (host.get("gpus") or {}).values():
            reading = Record(f"{record.where}: telemetry_data", device.get("metrics") or {})
            for name in ("gpu_power_usage", "nvidia_power_usage", "amd_power_usage"):
                mean = reading.number(f"{name}.avg")
                if mean is not None and reading.text(f"{name}.unit") == "W":
                    means.append(mean)
    if means:
        draft.put("power_w", sum(means), f"the telemetry of {len(means)} accelerators")


AIPERF = Format("aiperf", TITLE, _recognises, _read)
