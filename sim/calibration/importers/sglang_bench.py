"""Result files of SGLang's ``python -m sglang.bench_serving`` (``--output-file``), JSON by lines.

Source: sgl-project/sglang ``python/sglang/bench_serving.py``, function ``benchmark``, commit
0033168f0f58; later versions add ``server_info``, what the server answers about itself
(``/get_server_info``: its arguments ``model_path``, ``tp_size``, ``quantization``... and
``version``). Without that the file does not tell the model.
"""

from sim.calibration.importers.bench_serving import (
    engine_of,
    put_e2e,
    put_rates,
    put_times,
    rate_of,
)
from sim.calibration.importers.draft import Draft, Format, put_load
from sim.calibration.importers.result_file import Record, ResultFile
from sim.errors import InputError

_KEYS = ("backend", "completed", "total_output_tokens_retokenized", "output_throughput")
TITLE = "SGLang serving benchmark"

_WEIGHTS = {
    "fp8": "fp8",
    "w8a8_fp8": "fp8",
    "w8a8_int8": "int8",
    "modelopt": "fp8",
    "modelopt_fp8": "fp8",
    "modelopt_fp4": "nvfp4",
    "awq": "int4",
    "awq_marlin": "int4",
    "gptq": "int4",
    "gptq_marlin": "int4",
    "mxfp4": "mxfp4",
}
"""Formats of weights by ``--quantization``; a checkpoint may be quantised without it."""
_KV = {"fp8_e4m3": "fp8", "fp8_e5m2": "fp8", "bfloat16": "bf16", "bf16": "bf16"}
"""Formats of the cache by ``--kv-cache-dtype``; ``auto`` tells none."""


def _recognises(file: ResultFile) -> bool:
    return bool(file.records) and file.records[0].has(*_KEYS)


def _read(file: ResultFile) -> list[Draft]:
    return [_draft(record) for record in file.records]


def _draft(record: Record) -> Draft:
    if not record.has(*_KEYS[:3]):
        raise InputError(
            f"{record.where}: is no result of SGLang's benchmark (no {', '.join(_KEYS[:3])}); "
            "import files of different tools apart"
        )
    draft = Draft(record.where, "sglang", TITLE, record.identity)
    backend = record.text("backend")
    release = record.text("server_info.version")
    draft.put("engine", engine_of(backend, release), f"the client's backend {backend}")
    total = record.number("total_throughput")
    if total is None:
        total = (record.number("input_throughput") or 0.0) + record.needed("output_throughput")
    put_rates(draft, record, total=total)
    put_times(draft, record)
    put_e2e(draft, record, "mean_e2e_latency_ms")
    rate, clients = rate_of(record), record.number("max_concurrency")
    if record.find("request_rate") == "trace":
        draft.flaws.append("arrivals at the times of a trace")
    else:
        put_load(draft, rate=rate, clients=clients, requests=record.number("completed"))
    dataset = record.text("dataset_name")
    if dataset:
        draft.remarks.append(f"dataset {dataset}")
    accepted = record.number("accept_length")
    if accepted and accepted > 1:
        draft.flaws.append(f"speculative decoding, {accepted:.2f} tokens accepted per step")
    _put_server(draft, record)
    return draft


def _put_server(draft: Draft, record: Record) -> None:
    """Take what the server says of itself."""
    info = "server_info"
    if record.find(f"{info}.decode") or record.find(f"{info}.prefill"):
        draft.flaws.append("prefill and decode on servers of their own")
        return
    told = "the server's own arguments"
    draft.put("model", record.text(f"{info}.model_path"), told)
    for name in ("tp", "pp", "ep", "dp"):
        draft.put(name, record.number(f"{info}.{name}_size"), told)
    draft.put("weight_dtype", _WEIGHTS.get(record.text(f"{info}.quantization") or ""), told)
    draft.put("kv_dtype", _KV.get(record.text(f"{info}.kv_cache_dtype") or ""), told)
    tp, pp = draft.figure("tp"), draft.figure("pp") or 1.0
    if tp is None:
        return
    dp = draft.figure("dp") or 1.0
    if record.find(f"{info}.enable_dp_attention"):
        draft.remarks.append(f"attention DP={dp:.0f}")
        dp = 1.0  # its ranks are among those of tp
    draft.put("num_chips", tp * pp * dp, "tp x pp x dp of the server")


SGLANG = Format("sglang", TITLE, _recognises, _read)
