"""The layouts in which results of InferenceX come, brought to one: that of ``agg_*.json``.

* a list of them (SemiAnalysisAI/InferenceX ``utils/collect_results.py``, commit 1bdd46599ccf), or
  an object with the list as ``benchmarks`` (InferenceX-app ``packages/db/src/etl/fixtures``,
  commit dd58073759b2);
* figures below ``metrics``, as in InferenceX-app ``packages/db/data/supplemental-bmk.json``, commit
  806f0013f91b, and in what the site's API answers, which says ``hardware``, ``spec_method`` and
  ``decode_tp`` for ``hw``, ``spec_decoding`` and ``tp``;
* runs of agentic sessions, with figures below ``request_metrics`` (``__fixtures__/h100-retry``,
  commit 43307969f983), or flat with ``users`` in place of ``conc`` (InferenceX
  ``experimental/multiturn/vllm_benchmark/results``, commit e872f86ccd35).
"""

from collections.abc import Iterator, Mapping
from typing import Any

from sim.calibration.importers.result_file import Record

_OTHER_NAMES = {
    "hardware": "hw",
    "spec_method": "spec_decoding",
    "decode_tp": "tp",
    "decode_ep": "ep",
    "decode_dp_attention": "dp_attention",
}
_SESSIONS = {
    "output_tput_tps": "throughput.output.tokens_per_second",
    "total_tput_tps": "throughput.total.tokens_per_second",
    "mean_input_tokens": "tokens.input.mean",
    "mean_output_tokens_actual": "tokens.output_actual.mean",
    "mean_ttft": "latency.ttft.mean",
    "median_ttft": "latency.ttft.p50",
    "mean_tpot": "latency.tpot.mean",
    "median_tpot": "latency.tpot.p50",
    "mean_ttlt": "latency.e2el.mean",
}


def results_in(record: Record) -> Iterator[Record]:
    """Yield the results that a JSON object holds, each in the layout of ``agg_*.json``."""
    listed = record.find("benchmarks")
    if not isinstance(listed, list):
        yield _flat(record)
        return
    for index, each in enumerate(listed):
        if isinstance(each, dict):
            yield _flat(Record(f"{record.where}: benchmarks[{index}]", each))


def _flat(record: Record) -> Record:
    values: dict[str, Any] = dict(record.values)
    metrics = values.pop("metrics", None)
    if isinstance(metrics, Mapping):
        values |= metrics
    for other, name in _OTHER_NAMES.items():
        if other in values and name not in values and not _is_split(values, name):
            values[name] = values[other]
    sessions = values.pop("request_metrics", None)
    if isinstance(sessions, Mapping):
        figures = Record(record.where, sessions)
        values |= {name: figures.find(path) for name, path in _SESSIONS.items()}
        values["users"] = values.pop("conc", None)
        hits = Record(record.where, values).find("server_metrics.cache.gpu_cache_hit_rate")
        values["server_gpu_cache_hit_rate"] = hits
    return Record(record.where, values)


def _is_split(values: Mapping[str, Any], name: str) -> bool:
    """Tell whether decoding replicas, being of their own, tell nothing of the whole run."""
    apart = values.get("disagg") is True or values.get("is_multinode") is True
    return apart and name in ("tp", "ep", "dp_attention")
