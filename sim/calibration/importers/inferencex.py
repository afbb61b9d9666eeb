"""Results of SemiAnalysis InferenceX: ``agg_*.json`` of one run, and the other layouts of them.

Source: SemiAnalysisAI/InferenceX ``utils/process_result.py``, commit 77f3e680728b; the layouts are
those of `sim.calibration.importers.inferencex_layouts`. Times are in seconds there, throughput is
per accelerator, and on one node the accelerators are ``tp`` unless ``num_gpus`` says otherwise. The
raw file of a run, before that script, is one of vLLM's benchmark and is read as such.

The scripts draw lengths between 80 and 100 % of ``isl`` and ``osl`` and send ten requests per
client, all clients at once (``benchmarks/*.sh``: ``--random-range-ratio 0.8``,
``--num-prompts $((CONC * 10))``).
"""

import re

from sim.calibration.benchmarks.inferencex import DRAWN
from sim.calibration.importers.draft import UNTOLD, Draft, Format, put_load
from sim.calibration.importers.inferencex_layouts import results_in
from sim.calibration.importers.result_file import Record, ResultFile
from sim.errors import InputError

TITLE = "InferenceX"

HARDWARE = {
    "h100": "H100-SXM-80GB",
    "h200": "H200-SXM-141GB",
    "b200": "B200-SXM-180GB",
    "b300": "B300-SXM",
    "gb200": "GB200",
    "gb300": "GB300",
    "mi300x": "MI300X-192GB",
    "mi325x": "mi325x",
    "mi355x": "mi355x",
    "gaudi3": "gaudi3",
    "tpuv7": "tpu_v7",
}
"""Names of accelerators by the first word of a runner's name, such as ``h200-nb_1`` or
``cluster:h100-dgxc``; ids of the catalogue where no run was published under another name."""

_FRAMEWORKS = {
    "vllm": "vLLM",
    "sglang": "SGLang",
    "trt": "TensorRT-LLM",
    "trtllm": "TensorRT-LLM",
    "dynamo-trt": "TensorRT-LLM (Dynamo)",
    "dynamo-trtllm": "TensorRT-LLM (Dynamo)",
    "dynamo-sglang": "SGLang (Dynamo)",
    "dynamo-vllm": "vLLM (Dynamo)",
    "atom": "ATOM",
}
_RELEASE = re.compile(r":v?(\d+\.\d+(?:\.\d+)*(?:rc\d+|\.post\d+)?)")
"""Release in the name of a container image."""
_STATISTICS = (("p50", "median"), ("p99", "p99"), ("mean", "mean"))


def _recognises(file: ResultFile) -> bool:
    return any(_is_result(result) for record in file.records[:1] for result in results_in(record))


def _is_result(record: Record) -> bool:
    return record.has("hw", "framework", "precision") and (
        record.has("conc", "output_tput_per_gpu") or record.has("users", "output_tput_tps")
    )


def _read(file: ResultFile) -> list[Draft]:
    results = [result for record in file.records for result in results_in(record)]
    for record in results:
        if not _is_result(record):
            raise InputError(
                f"{record.where}: is no InferenceX result (hw, framework, precision, and conc with "
                "output_tput_per_gpu); import files of different tools apart"
            )
    return [_draft(record) for record in results]


def _draft(record: Record) -> Draft:
    draft = Draft(record.where, "inferencex", TITLE, record.identity)
    hw = (record.text("hw") or "").lower()
    name = HARDWARE.get(re.split(r"[-_]", hw.removeprefix("cluster:"))[0])
    draft.put("hardware", name, f"the runner {hw}")
    draft.put("model", record.text("model"))
    draft.put("weight_dtype", record.text("precision"))
    draft.put("engine", _engine(record))
    draft.put("source_date", record.text("date"))
    chips = _put_chips(draft, record)
    if record.has("users"):
        _put_agentic(draft, record)
    else:
        _put_plain(draft, record, chips)
    for quantity in ("ttft", "tpot"):
        key = "itl" if quantity == "tpot" and record.number("mean_tpot") is None else quantity
        for column, statistic in _STATISTICS:
            draft.put_seconds(f"{quantity}_{column}_ms", record.number(f"{statistic}_{key}"))
    draft.put_seconds("e2e_mean_ms", record.number("mean_e2el"))
    _put_power(draft, record, chips)
    speculation = record.text("spec_decoding") or record.text("mtp")
    if speculation and speculation.lower() not in ("none", "off", "false"):
        draft.flaws.append(f"speculative decoding: {speculation}")
    return draft


def _engine(record: Record) -> str | None:
    framework = record.text("framework")
    if framework is None:
        return None
    name = _FRAMEWORKS.get(framework, framework)
    release = _RELEASE.search(record.text("image") or "")
    return f"{name} {release[1] if release else UNTOLD}"


def _put_chips(draft: Draft, record: Record) -> float:
    """Fill how the model is cut over how many accelerators, and return those."""
    if record.find("is_multinode") is True or record.find("disagg") is True:
        prefill, decode = record.needed("num_prefill_gpu"), record.needed("num_decode_gpu")
        draft.put("num_chips", prefill + decode, "num_prefill_gpu + num_decode_gpu")
        layout = ", ".join(
            f"{role} {record.find(f'{role}_num_workers')} x tp {record.find(f'{role}_tp')} "
            f"ep {record.find(f'{role}_ep')}"
            for role in ("prefill", "decode")
        )
        draft.flaws.append(f"prefill and decode on replicas of their own: {layout}")
        return prefill + decode
    tp = record.needed("tp")
    draft.put("tp", tp)
    pp = record.number("pp") or 1.0
    chips = record.number("num_gpus") or tp * pp
    draft.put("num_chips", chips, "tp x pp, on one node" if chips == tp * pp else "num_gpus")
    draft.put("pp", record.number("pp"))
    draft.put("ep", record.number("ep"))
    if str(record.find("dp_attention")).lower() == "true":
        draft.remarks.append(f"attention DP={tp:.0f}, taken to be as wide as tp")
    return chips


def _put_plain(draft: Draft, record: Record, chips: float) -> None:
    """Fill a run of random prompts in a closed loop."""
    put_load(draft, rate=None, clients=record.needed("conc"), requests=None)
    draft.put("isl", record.number("isl"))
    draft.put("osl", record.number("osl"))
    draft.remarks += [DRAWN, "ten requests per client"]
    decode = record.number("num_decode_gpu") or chips  # the script divides by these alone
    draft.put(
        "output_tokens_per_s",
        record.needed("output_tput_per_gpu") * decode,
        "output_tput_per_gpu x accelerators",
    )
    per_chip = record.number("tput_per_gpu")
    total = None if per_chip is None else per_chip * chips
    draft.put("total_tokens_per_s", total, "tput_per_gpu x accelerators")


def _put_agentic(draft: Draft, record: Record) -> None:
    """Fill a run of many-turn sessions, of which most prompts come from the prefix cache."""
    put_load(draft, rate=None, clients=record.needed("users"), requests=None)
    draft.put("isl", record.number("mean_input_tokens"))
    draft.put("osl", record.number("mean_output_tokens_actual"))
    draft.put("output_tokens_per_s", record.needed("output_tput_tps"))
    draft.put("total_tokens_per_s", record.number("total_tput_tps"))
    draft.put_seconds("e2e_mean_ms", record.number("mean_ttlt"))
    hits = record.number("server_gpu_cache_hit_rate")
    told = "" if hits is None else f", {hits:.0%} of prompt tokens from the prefix cache"
    draft.flaws.append(f"sessions of many turns{told}")


def _put_power(draft: Draft, record: Record, chips: float) -> None:
    if record.number("power_valid") == 0:
        draft.remarks.append("its readings of power are not valid")
        return
    total, each = record.number("avg_total_gpu_power_w"), record.number("avg_power_w")
    if total is not None:
        draft.put("power_w", total)
    elif each is not None:
        draft.put("power_w", each * chips, "avg_power_w x accelerators")


INFERENCEX = Format("inferencex", TITLE, _recognises, _read)
