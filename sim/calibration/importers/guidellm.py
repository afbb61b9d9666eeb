"""Reports of GuideLLM: ``benchmarks.json``, with one benchmark per strategy of a sweep.

Source: vllm-project/guidellm ``src/guidellm/benchmark/schemas/generative/metrics.py``, commit
06cef2910dc1; ``.../generative/report.py`` and ``src/guidellm/scheduler/strategies.py``, commit
03820eba155d (``config.strategy`` with ``type_``, ``streams``, ``rate``, ``max_concurrency``); to
0.3 the strategy stood in ``args.strategy``. ``request_latency`` is in seconds, times ending in
``_ms`` in milliseconds. ``time_per_output_token_ms`` includes the time to first token, so the time
per output token here is ``inter_token_latency_ms``; its statistics weigh each request by its
tokens.
"""

from datetime import UTC, datetime

from sim.calibration.importers.clock import Window
from sim.calibration.importers.draft import Draft, Format, put_load
from sim.calibration.importers.result_file import Record, ResultFile
from sim.errors import InputError
from sim.units import MILLISECOND_S

TITLE = "GuideLLM"
_STRATEGIES = ("config.strategy", "args.strategy", "scheduler.strategy")
_MODELS = ("config.backend.model", "worker.backend_model", "benchmarker.backend.model")


def _recognises(file: ResultFile) -> bool:
    if not file.records:
        return False
    benchmarks = file.records[0].find("benchmarks")
    return isinstance(benchmarks, list) and (
        not benchmarks or (isinstance(benchmarks[0], dict) and "metrics" in benchmarks[0])
    )


def _read(file: ResultFile) -> list[Draft]:
    return [draft for report in file.records for draft in _drafts(report)]


def _drafts(report: Record) -> list[Draft]:
    benchmarks = report.find("benchmarks")
    if not isinstance(benchmarks, list) or not benchmarks:
        raise InputError(f"{report.where}: benchmarks is empty or no list: no strategy was run")
    model = report.text("args.model")
    found = []
    for index, each in enumerate(benchmarks):
        where = f"{report.where}: benchmarks[{index}]"
        if not isinstance(each, dict) or not isinstance(each.get("metrics"), dict):
            raise InputError(f"{where}: has no metrics: is the file cut off? Write it again")
        found.append(_draft(Record(where, each), model))
    return found


def _draft(benchmark: Record, model: str | None) -> Draft:
    draft = Draft(benchmark.where, "guidellm", TITLE, benchmark.identity)
    told = next((name for at in _MODELS if (name := benchmark.text(at))), None)
    draft.put("model", told or model)
    _put_strategy(draft, benchmark)
    _put_metrics(draft, benchmark)
    start_s, end_s = benchmark.number("start_time"), benchmark.number("end_time")
    if start_s and end_s:
        draft.window = Window(start_s, end_s)
        draft.put("source_date", datetime.fromtimestamp(start_s, UTC).strftime("%Y-%m-%d"))
    return draft


def _put_metrics(draft: Draft, benchmark: Record) -> None:
    """Fill the figures of the requests that were answered."""

    def mean(metric: str) -> float | None:
        return benchmark.number(f"metrics.{metric}.successful.mean")

    completed = benchmark.number("metrics.request_totals.successful")
    if completed is not None:
        benchmark.needed("metrics.request_totals.successful")
    draft.failed(benchmark.number("metrics.request_totals.errored"), completed or 0.0)
    draft.put("isl", mean("prompt_token_count"))
    draft.put("osl", mean("output_token_count"))
    draft.put("output_tokens_per_s", mean("output_tokens_per_second"))
    draft.put("total_tokens_per_s", mean("tokens_per_second"))
    draft.put("requests_per_s", mean("requests_per_second"))
    for metric, quantity in (
        ("time_to_first_token_ms", "ttft"),
        ("inter_token_latency_ms", "tpot"),
    ):
        at = f"metrics.{metric}.successful"
        draft.put(f"{quantity}_mean_ms", benchmark.number(f"{at}.mean"))
        for percentile in ("p50", "p99"):
            value_ms = benchmark.number(f"{at}.percentiles.{percentile}")
            draft.put(f"{quantity}_{percentile}_ms", value_ms)
        if f"{quantity}_p50_ms" not in draft.values:
            draft.put(f"{quantity}_p50_ms", benchmark.number(f"{at}.median"))
    draft.put_seconds("e2e_mean_ms", mean("request_latency"))
    _check_units(draft)


def _check_units(draft: Draft) -> None:
    """Refuse a whole request that is shorter than its first token: the units are mixed up."""
    e2e_ms, ttft_ms = draft.figure("e2e_mean_ms"), draft.figure("ttft_mean_ms")
    if e2e_ms and ttft_ms and e2e_ms < ttft_ms:
        raise InputError(
            f"{draft.where}: request_latency is {e2e_ms * MILLISECOND_S:g} s, less than the "
            f"{ttft_ms:g} ms of time_to_first_token_ms: one of them is in another unit; correct it"
        )


def _put_strategy(draft: Draft, benchmark: Record) -> None:
    """Fill the load by the strategy that paced the requests."""
    at = next((at for at in _STRATEGIES if benchmark.find(at)), None)
    if at is None:
        return
    kind = next(
        (name for key in ("type_", "kind", "type") if (name := benchmark.text(f"{at}.{key}"))), ""
    )
    sent = _sent(benchmark)
    rate = benchmark.number(f"{at}.rate")
    limit = benchmark.number(f"{at}.max_concurrency")
    if kind == "synchronous":
        put_load(draft, rate=None, clients=1, requests=sent)
    elif kind == "concurrent":
        put_load(draft, rate=None, clients=benchmark.needed(f"{at}.streams"), requests=sent)
    elif kind == "throughput":
        put_load(draft, rate=None, clients=limit, requests=sent)
    elif kind in ("constant", "poisson"):
        put_load(draft, rate=rate, clients=limit, requests=sent)
        if kind == "constant":
            draft.remarks.append("constant arrivals")
    else:
        draft.flaws.append(f"the load strategy {kind or 'is not told'} is not known")


def _sent(benchmark: Record) -> float | None:
    """Count the requests that were sent, without those that the end of the time cut off."""
    totals = "metrics.request_totals"
    sent = benchmark.number(f"{totals}.total")
    return None if sent is None else sent - (benchmark.number(f"{totals}.incomplete") or 0.0)


GUIDELLM = Format("guidellm", TITLE, _recognises, _read)
