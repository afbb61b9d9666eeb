"""Logs with one row per request, as CSV, JSON by lines or Parquet: summed up into one run.

A column's name ends with its unit: ``arrival_s``, ``first_token_ms``, ``done_us``... One without
is refused, since milliseconds read as seconds would look like a slow run and not like a mistake.
AIPerf's ``profile_export.jsonl`` is read too (ai-dynamo/aiperf ``docs/tutorials/
working-with-profile-exports.md``, commit 13992dbd9687): there each metric has its unit beside it.
"""

import hashlib
import io
import re
from collections.abc import Mapping

import numpy as np
import pandas as pd
import pyarrow as pa

from sim.calibration.importers.clock import UNIT_S, Window
from sim.calibration.importers.draft import Draft, Format
from sim.calibration.importers.result_file import Record, ResultFile
from sim.errors import InputError
from sim.units import GIGA

TITLE = "log of single requests"
LEAST_CLOCK_S = GIGA
"""Times after this one, of September 2001, are of a clock; others count from the run's start."""

_TIMES: Mapping[str, tuple[str, ...]] = {
    "arrival": ("arrival", "arrival_time", "start", "start_time", "request_start", "sent"),
    "first_token": ("first_token", "first_token_time"),
    "ttft": ("ttft", "time_to_first_token"),
    "done": ("done", "done_time", "end", "end_time", "request_end", "finished"),
    "e2e": ("e2e", "latency", "e2e_latency", "request_latency"),
}
"""Names of columns without their unit, by what they mean."""
_COUNTS: Mapping[str, tuple[str, ...]] = {
    "input_tokens": ("input_tokens", "prompt_tokens", "input_length", "isl"),
    "output_tokens": ("output_tokens", "completion_tokens", "output_length", "osl"),
}
_WITH_UNIT = re.compile(r"(?P<name>\w+?)_(?P<unit>s|ms|us|ns)")
_NEEDED = "arrival, ttft or first_token, done or e2e, input_tokens and output_tokens"


def _recognises(file: ResultFile) -> bool:
    if file.is_parquet:
        return True
    if file.is_json:
        return len(file.records) > 0 and (_is_aiperf(file.records[0]) or _fits(file.records[0]))
    return _has_all(file.header)


def _fits(record: Record) -> bool:
    return _has_all(tuple(record.values))


def _has_all(columns: tuple[str, ...]) -> bool:
    """Tell whether there are columns for arrivals and both kinds of tokens."""
    bare = {_bare(name) for name in columns}
    return bool(bare & set(_TIMES["arrival"])) and all(
        bare & set(names) for names in _COUNTS.values()
    )


def _bare(column: str) -> str:
    match = _WITH_UNIT.fullmatch(column)
    return match["name"] if match else column


def _is_aiperf(record: Record) -> bool:
    return record.find("metadata.request_start_ns") is not None and record.has("metrics")


def _read(file: ResultFile) -> list[Draft]:
    draft = Draft(str(file.path), "requests", TITLE, hashlib.sha256(file.data).hexdigest())
    table = _table(file)
    times = _times(table, draft.where)
    answered = times[times["output_tokens"] > 0]
    if answered.empty:
        raise InputError(f"{draft.where}: no request was answered: output_tokens is 0 throughout")
    draft.failed(len(table) - len(answered), len(answered))
    _sum_up(draft, answered)
    return [draft]


def _sum_up(draft: Draft, requests: pd.DataFrame) -> None:
    """Fill a row from its requests; times are in seconds."""
    start_s, end_s = requests["arrival"].min(), requests["done"].max()
    duration_s = float(end_s - start_s)
    if duration_s <= 0:
        raise InputError(
            f"{draft.where}: all requests arrive and end at one time; check the columns"
        )
    total = len(requests)
    output = float(requests["output_tokens"].sum())
    draft.put("isl", float(requests["input_tokens"].mean()))
    draft.put("osl", output / total)
    draft.put("output_tokens_per_s", output / duration_s)
    tokens = output + float(requests["input_tokens"].sum())
    draft.put("total_tokens_per_s", tokens / duration_s)
    draft.put("requests_per_s", total / duration_s)
    _put_load(draft, requests, duration_s)
    several = requests[requests["output_tokens"] > 1]
    tpot = (several["done"] - several["first_token"]) / (several["output_tokens"] - 1)
    for quantity, seconds in (
        ("ttft", requests["first_token"] - requests["arrival"]),
        ("tpot", tpot),
    ):
        if len(seconds):
            draft.put_seconds(f"{quantity}_p50_ms", float(seconds.median()))
            draft.put_seconds(f"{quantity}_p99_ms", float(seconds.quantile(0.99)))
            draft.put_seconds(f"{quantity}_mean_ms", float(seconds.mean()))
    draft.put_seconds("e2e_mean_ms", float((requests["done"] - requests["arrival"]).mean()))
    if start_s > LEAST_CLOCK_S:
        draft.window = Window(float(start_s), float(end_s))
    draft.remarks.append(f"{total} requests in {duration_s:.4g} s")


def _put_load(draft: Draft, requests: pd.DataFrame, duration_s: float) -> None:
    """Fill rate and concurrency; which of them was held is for the user to say.

    By Little's law the mean number in the system is the time spent in it by all requests, over the
    duration.
    """
    arrivals = requests["arrival"].to_numpy()
    inside = float((requests["done"] - requests["arrival"]).sum()) / duration_s
    changes = np.concatenate([arrivals, requests["done"].to_numpy()])
    steps = np.concatenate([np.ones(len(arrivals)), -np.ones(len(arrivals))])
    most = int(np.cumsum(steps[np.lexsort((steps, changes))]).max())  # ends before starts
    draft.put("concurrency", inside, "Little's law")
    draft.remarks.append(f"in the system at once: {inside:.4g} on average, {most} at most")
    span_s = float(arrivals.max() - arrivals.min())
    if span_s > 0:
        draft.put("request_rate_qps", (len(arrivals) - 1) / span_s, "the arrivals")


def _times(table: pd.DataFrame, where: str) -> pd.DataFrame:
    """Bring a log to arrival, first token and done, in seconds, and tokens.

    Raises
    ------
    InputError
        A column is missing, tells no unit, holds no numbers, or times go backwards.
    """
    found = {name: _seconds(table, name, where) for name in _TIMES}
    arrival = found["arrival"]
    first = _either(found["first_token"], found["ttft"], arrival)
    done = _either(found["done"], found["e2e"], arrival)
    tokens = {name: _tokens(table, name, where) for name in _COUNTS}
    if arrival is None or first is None or done is None:
        told = ", ".join(str(name) for name in table.columns)
        raise InputError(f"{where}: needs columns for {_NEEDED}, with units; it has {told}")
    times = pd.DataFrame({"arrival": arrival, "first_token": first, "done": done, **tokens})
    answered = times["output_tokens"] > 0
    wrong = answered & ~(
        (times["arrival"] <= times["first_token"]) & (times["first_token"] <= times["done"])
    )
    if wrong.any():
        row = int(np.argmax(wrong.to_numpy()))
        at = times.iloc[row]
        raise InputError(
            f"{where}: request {row}: arrival {at['arrival']:.9g} s, first token "
            f"{at['first_token']:.9g} s, done {at['done']:.9g} s: out of order or not a number; "
            "are all units as the columns say?"
        )
    return times


def _either(
    absolute: pd.Series | None, since: pd.Series | None, arrival: pd.Series | None
) -> pd.Series | None:
    """Return a time of day, or the one that is counted from the arrival."""
    if absolute is not None or since is None or arrival is None:
        return absolute
    return arrival + since


def _seconds(table: pd.DataFrame, meaning: str, where: str) -> pd.Series | None:
    names = _TIMES[meaning]
    for column in table.columns:
        match = _WITH_UNIT.fullmatch(str(column))
        if match and match["name"] in names:
            return _numbers(table, str(column), where) * UNIT_S[match["unit"]]
    bare = next((name for name in table.columns if name in names), None)
    if bare is None:
        return None
    raise InputError(f"{where}: column {bare!r} tells no unit; rename it {bare}_s, {bare}_ms...")


def _tokens(table: pd.DataFrame, meaning: str, where: str) -> pd.Series:
    names = _COUNTS[meaning]
    column = next((name for name in table.columns if name in names), None)
    if column is None:
        raise InputError(f"{where}: needs a column {' or '.join(names)}")
    return _numbers(table, str(column), where).fillna(0.0)


def _numbers(table: pd.DataFrame, column: str, where: str) -> pd.Series:
    if pd.api.types.is_datetime64_any_dtype(table[column]):
        raise InputError(
            f"{where}: column {column!r} holds dates; write seconds since 1970 or since the start"
        )
    try:
        return pd.to_numeric(table[column]).astype(float)
    except (ValueError, TypeError) as error:
        raise InputError(f"{where}: column {column!r}: {error}; correct it in the file") from None


def _table(file: ResultFile) -> pd.DataFrame:
    if file.is_parquet:
        try:
            return pd.read_parquet(io.BytesIO(file.data))
        except (pa.ArrowInvalid, OSError) as error:
            raise InputError(
                f"{file.path}: is no whole Parquet file: {error}; write it again"
            ) from None
    if file.is_json:
        if _is_aiperf(file.records[0]):
            return pd.DataFrame([_flat(each) for each in file.records])
        return pd.DataFrame([dict(each.values) for each in file.records])
    try:
        return pd.read_csv(io.StringIO(file.text), skipinitialspace=True)
    except (pd.errors.ParserError, pd.errors.EmptyDataError) as error:
        raise InputError(f"{file.path}: cannot be read as CSV: {error}; write it again") from None


def _flat(record: Record) -> dict[str, float | None]:
    """Turn a record of AIPerf into columns; a request that failed has no output tokens."""
    if not _is_aiperf(record):
        raise InputError(f"{record.where}: is no record of AIPerf; import files of one tool apart")
    row = {
        "arrival_ns": record.number("metadata.request_start_ns"),
        "done_ns": record.number("metadata.request_end_ns"),
        "input_tokens": record.number("metrics.input_sequence_length.value"),
        "output_tokens": record.number("metrics.output_sequence_length.value"),
    }
    if record.find("error"):
        row["output_tokens"] = 0.0
    ttft = record.number("metrics.time_to_first_token.value")
    unit = record.text("metrics.time_to_first_token.unit") or ""
    if ttft is not None and unit not in UNIT_S:
        raise InputError(f"{record.where}: time_to_first_token: {unit!r} is no unit of time")
    row["ttft_s"] = None if ttft is None else ttft * UNIT_S[unit]
    return row


REQUESTS = Format("requests", TITLE, _recognises, _read)
