"""Result files of ``vllm bench serve --save-result`` and of the older ``benchmark_serving.py``.

One JSON object per run; ``--append-result`` puts one on each line; ``--save-detailed`` adds lists
with an entry per request; ``--metadata KEY=VALUE`` adds keys, of which ``tp``,
``tensor_parallel_size`` and ``version`` are read. InferenceX writes the same format.

Source: vllm-project/vllm ``vllm/benchmarks/serve.py``, functions ``benchmark`` and ``main_async``,
commit 009e6d4a1cd6; older files lack ``backend`` or have it in place of ``endpoint_type``. The
``date`` is the local time when the run had ended.
"""

from sim.calibration.importers.bench_serving import (
    engine_of,
    put_e2e,
    put_rates,
    put_times,
    rate_of,
)
from sim.calibration.importers.clock import Window, since_1970_s
from sim.calibration.importers.draft import Draft, Format, put_load
from sim.calibration.importers.result_file import Record, ResultFile
from sim.errors import InputError

_KEYS = ("model_id", "completed", "output_throughput", "total_output_tokens")
TITLE = "vLLM serving benchmark"


def _recognises(file: ResultFile) -> bool:
    return bool(file.records) and file.records[0].has(*_KEYS)


def _read(file: ResultFile) -> list[Draft]:
    return [_draft(record) for record in file.records]


def _draft(record: Record) -> Draft:
    if not record.has("model_id", "completed"):
        raise InputError(
            f"{record.where}: is no result of a vLLM benchmark (no {_KEYS[0]}, {_KEYS[1]}); import "
            "files of different tools apart"
        )
    draft = Draft(record.where, "vllm", TITLE, record.identity)
    draft.put("model", record.text("model_id"))
    backend = record.text("backend") or record.text("endpoint_type")
    draft.put(
        "engine", engine_of(backend, record.text("version")), f"the client's backend {backend}"
    )
    for key in ("tp", "tensor_parallel_size"):
        told = record.find(key)
        draft.put("tp", str(told) if told else None, "the file's metadata")
    put_rates(draft, record, total=record.number("total_token_throughput"))
    put_times(draft, record)
    put_e2e(draft, record, "mean_e2el_ms")
    put_load(
        draft,
        rate=rate_of(record),
        clients=record.number("max_concurrency"),
        requests=record.number("num_prompts") or _sent(record),
    )
    _put_particulars(draft, record)
    _put_date(draft, record)
    return draft


def _sent(record: Record) -> float:
    """Count the requests of a file that does not say how many it was asked for."""
    return record.needed("completed") + (record.number("failed") or 0.0)


def _put_particulars(draft: Draft, record: Record) -> None:
    """Note what makes a run unlike the plain one."""
    draft.failed(record.number("failed"), record.needed("completed"))
    burstiness = record.number("burstiness")
    if draft.values["scenario"] == "server" and burstiness not in (None, 1.0):
        draft.flaws.append(f"gamma arrivals with burstiness {burstiness:g}, not Poisson")
    if record.find("ramp_up_strategy"):
        draft.flaws.append(f"the rate is ramped up: {record.find('ramp_up_strategy')}")
    accepted = record.number("spec_decode_acceptance_length")
    if accepted:
        draft.flaws.append(f"speculative decoding, {accepted:.2f} tokens accepted per step")


def _put_date(draft: Draft, record: Record) -> None:
    """Take the day of the run, and when it was measured: until its date, for its duration."""
    date = record.text("date")
    if date is None:
        return
    try:
        end_s = since_1970_s(date)
    except InputError as error:
        raise InputError(f"{record.where}: date: {error}") from None
    draft.put("source_date", f"{date[:4]}-{date[4:6]}-{date[6:8]}" if date[8:9] == "-" else date)
    duration_s = record.number("duration")
    if duration_s:
        draft.window = Window(end_s - duration_s, end_s)


VLLM = Format("vllm", TITLE, _recognises, _read)
