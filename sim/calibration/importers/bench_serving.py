"""What the serving benchmarks of vLLM and SGLang have in common: names of figures and details.

Both descend from the ``benchmark_serving.py`` of vLLM; times are ``mean_ttft_ms`` and the like, in
milliseconds, and the lists of ``--save-detailed`` (vLLM) and ``--output-details`` (SGLang), one
entry per request, in seconds.
"""

from math import inf

import numpy as np

from sim.calibration.importers.draft import UNTOLD, Draft
from sim.calibration.importers.result_file import Record
from sim.errors import InputError
from sim.units import MILLISECOND_S

ENGINES = {
    "vllm": "vLLM",
    "openai": "",
    "sglang": "SGLang",
    "tensorrt-llm": "TensorRT-LLM",
    "trt": "TensorRT-LLM",
    "lmdeploy": "LMDeploy",
    "tgi": "TGI",
    "deepspeed-mii": "DeepSpeed-MII",
}
"""Engines by the client's ``backend``, of which endings such as ``-chat`` say how it is asked. The
one called ``openai`` speaks to any engine, so it tells none."""

_STATISTICS = (("p50", "median"), ("p99", "p99"), ("mean", "mean"))


def put_times(draft: Draft, record: Record) -> None:
    """Fill times to first token and per token, from the figures or else from the details."""
    for quantity in ("ttft", "tpot"):
        for column, key in _STATISTICS:
            value = record.number(f"{key}_{quantity}_ms")
            draft.put(f"{quantity}_{column}_ms", value)
    for name, seconds in _detailed(record).items():
        if name not in draft.values and seconds:
            draft.put_seconds(name, seconds, "the lists per request")


def put_rates(draft: Draft, record: Record, *, total: float | None) -> None:
    """Fill lengths and throughput from the tokens and requests that were counted."""
    completed = record.needed("completed")
    output = record.needed("total_output_tokens")
    draft.put(
        "isl", record.needed("total_input_tokens") / completed, "total_input_tokens/completed"
    )
    draft.put("osl", output / completed, "total_output_tokens/completed")
    draft.put("output_tokens_per_s", record.needed("output_throughput"))
    draft.put("total_tokens_per_s", total)
    draft.put("requests_per_s", record.number("request_throughput"))
    _check_duration(record, output)


def rate_of(record: Record) -> float | None:
    """Return the request rate; infinite where requests are not paced, none where not told.

    Raises
    ------
    InputError
        It is neither a number nor ``inf`` nor ``trace``.
    """
    value = record.find("request_rate")
    if value is None or value == "trace":
        return None
    if isinstance(value, str) and value.lower() in ("inf", "infinity"):
        return inf
    return record.number("request_rate")


def _check_duration(record: Record, output: float) -> None:
    """Refuse a file whose throughput is not its tokens over its duration: units are mixed up."""
    duration_s = record.number("duration")
    throughput = record.needed("output_throughput")
    if duration_s and not 0.5 < throughput * duration_s / output < 2:
        raise InputError(
            f"{record.where}: output_throughput is {throughput:g} tokens/s, but "
            f"total_output_tokens / duration is {output / duration_s:g}: is the duration "
            f"({duration_s:g}) in seconds? Correct the file"
        )


def _detailed(record: Record) -> dict[str, float]:
    """Take the statistics of times from the lists per request, of those that got an answer."""
    ttfts = np.array(record.numbers("ttfts"))
    lengths = np.array(record.numbers("output_lens"))
    found = _statistics("ttft", ttfts[ttfts > 0])
    gaps = record.find("itls")
    if not isinstance(gaps, list) or len(gaps) != len(lengths):
        return found
    decode_s = np.array([sum(each) if isinstance(each, list) else 0.0 for each in gaps])
    several = lengths > 1
    return found | _statistics("tpot", decode_s[several] / (lengths[several] - 1))


def _statistics(
    quantity: str, seconds: "np.ndarray[tuple[int], np.dtype[np.float64]]"
) -> dict[str, float]:
    if not len(seconds):
        return {}
    return {
        f"{quantity}_p50_ms": float(np.median(seconds)),
        f"{quantity}_p99_ms": float(np.percentile(seconds, 99)),
        f"{quantity}_mean_ms": float(seconds.mean()),
    }


def put_e2e(draft: Draft, record: Record, key: str) -> None:
    """Fill the mean time of a whole request."""
    value_ms = record.number(key)
    draft.put_seconds("e2e_mean_ms", None if value_ms is None else value_ms * MILLISECOND_S)


def engine_of(backend: str | None, release: str | None) -> str | None:
    """Name an engine by the client's backend, with its release if that is told.

    >>> engine_of("sglang-oai-chat", None), engine_of("openai", None)
    ('SGLang (release not told)', None)
    """
    if backend is None:
        return None
    name = next((ENGINES[key] for key in ENGINES if backend.startswith(key)), "")
    return f"{name} {release or UNTOLD}" if name else None
