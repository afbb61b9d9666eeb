"""Logs of MLPerf LoadGen: ``mlperf_log_summary.txt`` of a language-model run.

The detailed log beside it, ``mlperf_log_detail.txt``, is read for the time of the run
(``power_begin`` and ``power_end``, in UTC), if it is there. Lines tell their unit in brackets.

Source: mlcommons/inference ``loadgen/results.cc``, function ``LogSummary``, commit 05a9cec3596d
(``use_token_latencies``); ``loadgen/loadgen.cc`` and ``loadgen/utils.cc``, function
``DateTimeStringForPower``. The log knows neither model, machine nor prompts: the user tells them.
"""

import json
import re
from datetime import UTC, datetime
from pathlib import Path

from sim.calibration.importers.clock import UNIT_S, Window
from sim.calibration.importers.draft import Draft, Format, put_requests
from sim.calibration.importers.result_file import ResultFile
from sim.errors import InputError

TITLE = "MLPerf LoadGen"
HEADING = "MLPerf Results Summary"
DETAIL = "mlperf_log_detail.txt"
_DETAIL_MARK = ":::MLLOG"
_LINE = re.compile(r"\s*(?P<key>[^:]+?)\s*:\s*(?P<value>.+?)\s*")
_UNIT = re.compile(r"\((\w+)\)$")
_POWER_LAYOUT = "%m-%d-%Y %H:%M:%S.%f"

_SCENARIOS = {
    "Offline": "offline",
    "Server": "server",
    "SingleStream": "concurrency",
    "Single Stream": "concurrency",
}
_TIMES = {
    "Mean First Token latency": "ttft_mean_ms",
    "50.00 percentile first token latency": "ttft_p50_ms",
    "99.00 percentile first token latency": "ttft_p99_ms",
    "Mean Time to Output Token": "tpot_mean_ms",
    "Mean Time per Output Token": "tpot_mean_ms",
    "50.00 percentile time to output token": "tpot_p50_ms",
    "99.00 percentile time to output token": "tpot_p99_ms",
    "Mean latency": "e2e_mean_ms",
}
_REQUESTS = ("Completed samples per second", "Samples per second", "QPS w/o loadgen overhead")
_TOKENS = (
    "Completed tokens per second",
    "Tokens per second",
    "Tokens per second (inferred)",
    "Completed tokens per second (inferred)",
    "TPS w/o loadgen overhead",
)


def _recognises(file: ResultFile) -> bool:
    return not file.is_parquet and (HEADING in file.text or file.text.startswith(_DETAIL_MARK))


def _read(file: ResultFile) -> list[Draft]:
    if file.text.startswith(_DETAIL_MARK):
        raise InputError(
            f"{file.path}: is LoadGen's detailed log; give the mlperf_log_summary.txt beside it: "
            "the detailed log is found from there"
        )
    lines = _lines(file)
    draft = Draft(str(file.path), "mlperf", TITLE, "\n".join(sorted(map(str, lines.items()))))
    _check(draft, lines)
    _put_load(draft, lines)
    _put_rates(draft, lines)
    for key, value in lines.items():
        name = _UNIT.sub("", key).strip()
        if name in _TIMES and draft.values["scenario"] != "offline":
            draft.put_seconds(_TIMES[name], _seconds(draft.where, key, value))
    _put_window(draft, file.path.with_name(DETAIL))
    return [draft]


def _lines(file: ResultFile) -> dict[str, str]:
    """Return the values by their keys; of a key that comes twice, the first."""
    found: dict[str, str] = {}
    for line in file.text.partition(HEADING)[2].splitlines():
        match = _LINE.fullmatch(line)
        if match:
            found.setdefault(match["key"], match["value"])
    return found


def _check(draft: Draft, lines: dict[str, str]) -> None:
    """Refuse what is no measurement of speed, and note what LoadGen found wrong."""
    for key in ("Scenario", "Mode", "Result is"):
        if key not in lines:
            raise InputError(
                f"{draft.where}: '{key} :' is missing: the log is cut off; copy it again"
            )
    if lines["Mode"] not in ("PerformanceOnly", "Performance"):
        raise InputError(
            f"{draft.where}: Mode : {lines['Mode']}: measures accuracy; give the log of the "
            "performance run"
        )
    if lines["Scenario"] not in _SCENARIOS:
        known = ", ".join(_SCENARIOS)
        raise InputError(f"{draft.where}: Scenario : {lines['Scenario']}: not one of {known}")
    if lines["Result is"] != "VALID":
        draft.flaws.append(f"LoadGen calls the result {lines['Result is']}")
    draft.remarks.append(f"SUT {lines.get('SUT name', 'without a name')}")


def _put_load(draft: Draft, lines: dict[str, str]) -> None:
    scenario = lines["Scenario"]
    draft.put("scenario", _SCENARIOS[scenario])
    if scenario == "Server":
        draft.put("request_rate_qps", _number(draft, lines, ("Scheduled samples per second",)))
    elif _SCENARIOS[scenario] == "concurrency":
        draft.put("concurrency", 1.0)
        draft.remarks.append("LoadGen's single stream: one request after the other")
    else:  # one query has all the samples
        put_requests(draft, _number(draft, lines, ("samples_per_query",)))


def _put_rates(draft: Draft, lines: dict[str, str]) -> None:
    tokens = _number(draft, lines, _TOKENS)
    if tokens is None:
        raise InputError(
            f"{draft.where}: counts no tokens: it is no run of a language model with "
            "use_token_latencies=1; set that in user.conf and run it again"
        )
    requests = _number(draft, lines, _REQUESTS)
    draft.put("output_tokens_per_s", tokens)
    draft.put("requests_per_s", requests)
    if requests:
        draft.put("osl", tokens / requests, "tokens per second / samples per second")


def _number(draft: Draft, lines: dict[str, str], keys: tuple[str, ...]) -> float | None:
    key = next((key for key in keys if key in lines), None)
    if key is None:
        return None
    try:
        return float(lines[key])
    except ValueError:
        raise InputError(f"{draft.where}: {key} : {lines[key]!r} is not a number") from None


def _seconds(where: str, key: str, value: str) -> float:
    """Return a time in seconds, by the unit in brackets behind its name."""
    unit = _UNIT.search(key)
    if unit is None or unit[1] not in UNIT_S:
        raise InputError(f"{where}: {key}: tells no unit of time such as (ns); correct it")
    try:
        return float(value) * UNIT_S[unit[1]]
    except ValueError:
        raise InputError(f"{where}: {key} : {value!r} is not a number") from None


def _put_window(draft: Draft, detail: Path) -> None:
    """Take the time of the run from the detailed log."""
    try:
        text = detail.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return
    times: dict[str, float] = {}
    for line in text.splitlines():
        mark, _, found = line.partition(_DETAIL_MARK)
        if mark == line or '"power_' not in found:
            continue
        try:
            entry = json.loads(found)
            moment = datetime.strptime(entry["value"], _POWER_LAYOUT).replace(tzinfo=UTC)
        except (ValueError, KeyError, TypeError):
            continue  # a broken line costs the time of the run, which the log of power asks for
        times[entry["key"]] = moment.timestamp()
        draft.values.setdefault("source_date", moment.strftime("%Y-%m-%d"))
    if {"power_begin", "power_end"} <= set(times):
        draft.window = Window(times["power_begin"], times["power_end"])
        draft.origins["source_date"] = DETAIL


MLPERF = Format("mlperf", TITLE, _recognises, _read)
