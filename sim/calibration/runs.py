"""Measured serving runs: one tidy row each, and the case that does the same in simulation."""

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import inf
from pathlib import Path
from typing import Literal, get_args

import pandas as pd

from sim.catalog import Catalog
from sim.efficiency import Engine
from sim.errors import InputError
from sim.measured import Statistic
from sim.parallelism import Parallelism
from sim.precision import Precision
from sim.routing_policy import Slo
from sim.scenario import Case, PriceChoice
from sim.schema import did_you_mean
from sim.serving import ServingEngine
from sim.units import DTYPE_BYTES, MILLISECOND_S, Dtype
from sim.workload.arrivals import PoissonArrivals, UniformArrivals
from sim.workload.kinds import ClosedLoopWorkload, OpenLoopWorkload
from sim.workload.lengths import FixedLengths, LengthLaw, UniformRangeLengths
from sim.workload.sharing import SharedPrefixes
from sim.workload.single import ConstantTokens

Quantity = Literal["tpot", "ttft", "throughput"]
QUANTITIES: tuple[Quantity, ...] = get_args(Quantity)

SYSTEMS: Mapping[str, str] = {
    "A100-SXM-80GB": "a100_sxm_x8",
    "H100-SXM-80GB": "h100_sxm_x8",
    "H800-SXM": "h800_sxm_x8",
    "H20": "h20_sxm_x8",
    "H200-SXM-141GB": "h200_sxm_x8",
    "GH200": "gh200_x1",
    "B200-SXM-180GB": "b200_sxm_x8",
    "B300-SXM": "b300_sxm_x8",
    "GB200": "gb200_nvl72",
    "GB300": "gb300_nvl72",
    "MI250": "mi250_x4",
    "MI300X-192GB": "mi300x_x8",
    "Intel Max 1550 (PVC)": "intel_max_1550_x4",
    "SN40L": "sn40l_x16",
    "Inferentia2": "inf2_48xl",
    "Trainium1": "trn1_32xl",
    "Trainium2": "trn2_48xl",
    "TPU v5e": "tpu_v5e_8",
    "TPU v6e": "tpu_v6e_8",
}
"""Catalogue system that stands for a measured machine."""

_SUFFIXES = ("-instruct", "-fp8", "-nvfp4", "-v0.1", "-0528")
"""Endings of model names that say nothing about the shape."""
_ATTENTION_DP = re.compile(r"attention DP=(\d+)")
"""How the notes of InferenceX runs tell of data-parallel attention."""
_ONE_PHASE = ("DECODE ONLY", "PREFILL ONLY")
"""How notes tell that a figure is of one phase, the other being computed elsewhere."""
_NATIVE = ("neuron", "jetstream", "vllm tpu")
"""Engines of chips that are not GPUs."""
_DTYPES: Mapping[str, Dtype] = {
    "bf16": "bf16",
    "fp16": "bf16",
    "bfloat16": "bf16",
    "fp8": "fp8",
    "fp4": "nvfp4",
    "nvfp4": "nvfp4",
    "mxfp4": "mxfp4",
    "int8": "int8",
    "int4": "int4",
}

MAX_NUM_SEQS = 1_024
"""Limit of runs that do not say: benchmarks set theirs at their concurrency or above."""
_VLLM_PRESETS: tuple[tuple[tuple[int, int], str], ...] = (
    ((0, 21), "vllm_0_21"),
    ((0, 14), "vllm"),
    ((0, 8), "vllm_0_11"),
    ((0, 0), "vllm_0_6"),
)
"""First release of vLLM that a preset stands for: steps of prompts and answers together (V1) came
with 0.8, scheduling ahead with 0.14, graphs that count as memory with 0.21."""
_VLLM_RELEASES: tuple[tuple[str, tuple[int, int]], ...] = (
    ("2026-01-20", (0, 14)),
    ("2025-03-18", (0, 8)),
    ("", (0, 0)),
)
"""Days on which those came out, for runs that tell their day and not their release."""
_VERSION = re.compile(r"(\d+)\.(\d+)")
_TOLD_LIMIT = re.compile(r"(max_num_seqs|max_num_batched_tokens) (\d+)")
_TOLD_MEMORY = re.compile(r"gpu_mem_util (0\.\d+)")
_EVENLY_SPACED = "constant arrivals"
"""How the notes of a run tell settings of the engine."""
UNSTATED_KV: Mapping[tuple[Engine, str], Dtype] = {("vllm", "H100-SXM-80GB"): "bf16"}
"""Cache format of runs that do not say, where the figures do: vLLM's InferenceX runs on H100 show
the time per token of a 16-bit cache, and run AIC02926 (tp 2, 64 clients, contexts to 9k) waits
30.8 s for its first token, as it does when 16-bit keys fill the memory, not when 8-bit ones do."""
ROUNDS = 5
"""Requests per client of a simulated closed loop, where the run does not say."""
INFERENCEX_ROUNDS = 10
"""Requests per client of InferenceX (``--num-prompts=$(( $CONC * 10 ))``). All clients start at
once, so a tenth of the requests wait for the prompts of all. Its published times are means and not
medians: times to first token grow by the same milliseconds per client on every engine and for
answers of any length, as the mean over such a start does; the median of it hardly grows."""
INFERENCEX = "origin IX"
"""How notes tell that a run is one of InferenceX, whose scripts say how its engines are started
(SemiAnalysisAI/InferenceX ``benchmarks/70b_fp8_h100_slurm.sh``, ``70b_fp8_h200_trt_slurm.sh``):
vLLM with asynchronous scheduling, whatever its release, and places for as many sequences as there
are clients; no prefix caching, which random prompts do not need either."""
_RECURRING = re.compile(r"shared[-_]prefix multi-turn")
_PROMPTS = re.compile(r"(\d+) system prompts x (\d+) users")
RECURRING_PROMPTS = 45
"""How notes tell that the prompts came from the generator of inference-perf for shared prefixes,
and how many there are where they do not tell that. It draws one question per user when it starts
and sends the same few prompts again and again (kubernetes-sigs/inference-perf
``inference_perf/datagen/shared_prefix_datagen.py``): after the first round all of a prompt but its
last block is in the prefix cache. As measured, the time to first token is then three steps."""
RANDOM_LOW_FRACTION = 0.8
"""InferenceX draws the lengths of its random requests from 80 to 100 % of the nominal ones."""
OUT_OF_STEP = "origin NV"
"""How notes tell that a run is one of NVIDIA's own in aiconfigurator. Their lengths are told to be
equal, and clients that start together would then stay in step for ever; but the first tokens came
in a third of the time that all prompts at once take. So their lengths are spread as those of
InferenceX, around the same means: an assumption."""


@dataclass(frozen=True)
class MeasuredRun:
    """One row of a file of measured runs; times in seconds, missing figures are left out."""

    row_id: str
    source: str
    quality: str
    hardware: str
    model: str
    engine: str
    case: Case
    measured: Mapping[Quantity, float]
    statistic: Mapping[Quantity, Statistic]
    """Which column of a summary the measured figure compares with."""

    @property
    def keys(self) -> dict[str, str]:
        """What runs are selected and grouped by."""
        case = self.case
        return {
            "source": self.source,
            "quality": self.quality,
            "hardware": self.hardware,
            "model": case.model,
            "engine": case.engine.kernels,
            "preset": case.engine.name,
            "tp": str(case.parallelism.tp),
            "weights": case.precision.weights,
        }

    def key(self, column: str) -> str:
        """Value of one of the `keys`."""
        keys = self.keys
        if column not in keys:
            hint = did_you_mean(column, tuple(keys))
            raise InputError(f"runs have no column {column!r}{hint}; use {', '.join(keys)}")
        return keys[column]


@dataclass(frozen=True)
class Skipped:
    """A row that cannot be forecast, and why."""

    row_id: str
    hardware: str
    reason: str


def read_runs(path: Path, catalog: Catalog) -> Iterator[MeasuredRun | Skipped]:
    """Read a file of measured serving runs.

    Parameters
    ----------
    path : Path
        A CSV with the columns of the project's format of measured runs.
    catalog : Catalog
        Knows the models by their names and aliases.

    Raises
    ------
    InputError
        The file cannot be read, a column is missing, or a figure in a row is none.
    """
    try:
        frame = pd.read_csv(path, dtype=str, keep_default_na=False)
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from error
    except (UnicodeDecodeError, pd.errors.ParserError, pd.errors.EmptyDataError) as error:
        raise InputError(f"{path}: cannot be read as CSV: {error}") from error
    needed = {"row_id", "hardware", "num_chips", "tp", "model", "engine", "isl", "osl"}
    missing = sorted(needed - set(frame.columns))
    if missing:
        raise InputError(f"{path}:1: columns are missing: {', '.join(missing)}")
    shapes = model_ids(catalog)
    for record in frame.to_dict("records"):
        row = {str(key): str(value) for key, value in record.items()}
        try:
            yield _read_row(row, shapes.get(_plain(row["model"])))
        except InputError as error:
            raise InputError(f"{path}: run {row['row_id']}: {error}") from error


def selected(
    runs: Iterable[MeasuredRun | Skipped], wanted: Sequence[tuple[str, str]]
) -> list[MeasuredRun | Skipped]:
    """Keep the runs that have these values; of those that cannot be forecast the hardware counts.

    Parameters
    ----------
    runs : iterable
    wanted : sequence of (str, str)
        Column of `MeasuredRun.key` and its value.

    Raises
    ------
    InputError
        There is no such column.
    """
    if not wanted:
        return list(runs)
    return [run for run in runs if _is_wanted(run, wanted)]


def _is_wanted(run: MeasuredRun | Skipped, wanted: Sequence[tuple[str, str]]) -> bool:
    if isinstance(run, Skipped):
        return all(pair == ("hardware", run.hardware) for pair in wanted)
    return all(run.key(column) == value for column, value in wanted)


def model_ids(catalog: Catalog) -> dict[str, str]:
    """Give the catalogue model of each name that measured runs may use, plainly written.

    >>> from sim.catalog import open_catalog
    >>> model_ids(open_catalog())["llama-3.3-70b"]
    'llama_3_1_70b'
    """
    found: dict[str, str] = {}
    for model_id in catalog.names("models"):
        model = catalog.model(model_id)
        for name in (model_id, model_id.replace("_", "-"), model.name, *model.aliases):
            found.setdefault(_plain(name), model_id)
    return found


def _plain(name: str) -> str:
    """Drop the owner, the case and the endings of a model's name that say nothing of its shape."""
    plain = name.rsplit("/", 1)[-1].lower().replace(" ", "-")
    while plain.endswith(_SUFFIXES):  # in any order: -Instruct-FP8, -Instruct-v0.1
        plain = plain.rsplit("-", 1)[0]
    return plain


def _read_row(row: Mapping[str, str], model_id: str | None) -> MeasuredRun | Skipped:
    reason = _reason_to_skip(row)
    if reason is None and model_id is None:
        reason = f"no model for {row['model']}"
    if reason is not None or model_id is None:
        return Skipped(row["row_id"], row["hardware"], reason or "")
    measured, statistic = _measured(row)
    return MeasuredRun(
        row_id=row["row_id"],
        source=row.get("source_key", ""),
        quality=row.get("quality", ""),
        hardware=row["hardware"],
        model=row["model"],
        engine=row["engine"],
        case=_case(row, model_id),
        measured=measured,
        statistic=statistic,
    )


def _reason_to_skip(row: Mapping[str, str]) -> str | None:
    checks: tuple[tuple[bool, str], ...] = (
        (row["hardware"] not in SYSTEMS, f"no system for {row['hardware']}"),
        (_engine(row) is None, f"no engine for {row['engine']}"),
        (not row["isl"] or not row["osl"], "lengths are not given"),
        (not row["tp"], "tp is not given"),
        (row.get("weight_dtype", "") not in _DTYPES, f"weights in {row.get('weight_dtype')}"),
        (
            any(words in row.get("notes", "") for words in _ONE_PHASE),
            "figures of one phase, prefill or decode, alone",
        ),
        (_load(row) is None, f"load of {row.get('scenario')} runs is not simulated yet"),
    )
    return next((reason for fails, reason in checks if fails), None)


def _engine(row: Mapping[str, str]) -> Engine | None:
    name = row["engine"].lower()
    if "tensorrt" in name or "trtllm" in name:
        return "trtllm"
    if any(vendor in name for vendor in _NATIVE):
        return "native"
    others: tuple[Engine, ...] = ("vllm", "sglang")
    return next((engine for engine in others if engine in name), None)


def _load(row: Mapping[str, str]) -> Literal["closed", "open"] | None:
    if row.get("scenario") == "concurrency" and row.get("concurrency"):
        return "closed"
    if row.get("scenario") == "server" and row.get("request_rate_qps"):
        return "open"
    return None


def _case(row: Mapping[str, str], model: str) -> Case:
    engine = _engine(row)
    assert engine is not None  # noqa: S101 - checked by _reason_to_skip
    weights = _DTYPES[row["weight_dtype"]]
    unstated = UNSTATED_KV.get((engine, row["hardware"]), _usual_kv_dtype(weights))
    kv_cache = _DTYPES.get(row.get("kv_dtype", ""), unstated)
    chips = _count(row, "num_chips")
    tp = _count(row, "tp")
    if engine == "native":
        tp = min(tp, chips)  # Neuron counts the cores of a chip
    parallelism = _split(row, tp, chips)
    return Case(
        name=row["row_id"],
        system=SYSTEMS[row["hardware"]],
        model=model,
        parallelism=parallelism,
        precision=Precision(weights=weights, kv_cache=kv_cache),
        replicas=max(1, chips // parallelism.chips),
        engine=_settings(row, engine, max(1, chips // parallelism.chips)),
        workload=_workload(row),
        slo=Slo(ttft_s=1.0, tpot_s=1.0),
        prices=PriceChoice(book="us_2026_11"),
    )


def _settings(row: Mapping[str, str], kernels: Engine, replicas: int) -> ServingEngine:
    """Choose the preset of a run's engine and release, with what is known to differ from it."""
    notes = row.get("notes", "")
    settings: dict[str, object] = {
        "name": preset_of(row["engine"], row.get("source_date", "")),
        "kernels": kernels,
    }
    limits = {"max_num_seqs": MAX_NUM_SEQS}
    if kernels == "vllm" and INFERENCEX in notes:
        limits["max_num_seqs"] = math.ceil(_count(row, "concurrency") / replicas)
        settings |= {"steps_ahead": 1, "host_overlapped": True}
    limits |= {key: int(value) for key, value in _TOLD_LIMIT.findall(notes)}
    memory = _TOLD_MEMORY.search(notes)
    if memory:
        settings["memory_fraction"] = float(memory[1])
    return ServingEngine.model_validate(settings | limits)


def preset_of(engine: str, day: str = "") -> str:
    """Name the preset of ``hardware/engines`` for an engine and release as a run tells them.

    Parameters
    ----------
    engine : str
        Such as ``vllm 0.11.2`` or ``TensorRT-LLM v0.14``.
    day : str
        When the run was made or published, such as ``2026-03``: of vLLM without a release, the
        one of that time is taken; the newest if that is not known either.

    >>> preset_of("vllm 0.11.2"), preset_of("vLLM (version not stated)", "2026-03")
    ('vllm_0_11', 'vllm')
    """
    kernels = _engine({"engine": engine})
    assert kernels is not None  # noqa: S101 - checked by _reason_to_skip
    if kernels != "vllm":
        return str(kernels)
    told = _VERSION.search(engine)
    if told:
        release = (int(told[1]), int(told[2]))
    else:
        release = next(first for since, first in _VLLM_RELEASES if (day or "9999") >= since)
    return next(name for first, name in _VLLM_PRESETS if release >= first)


def _split(row: Mapping[str, str], tp: int, chips: int) -> Parallelism:
    """Tell how a run was cut: data-parallel attention is told in the notes alone.

    Its ranks and the tensor ranks inside them are all chips, and the experts are dealt to them.
    """
    pp = _count(row, "pp") if row.get("pp") else 1
    ep = _count(row, "ep") if row.get("ep") not in (None, "", "0") else 1
    noted = _ATTENTION_DP.search(row.get("notes", ""))
    ranks = int(noted.group(1)) if noted else 1
    if ranks > 1 and chips % ranks == 0:
        return Parallelism(tp=chips // ranks, attention_dp=ranks, ep=chips if ep > 1 else 1)
    return Parallelism(tp=tp, pp=pp, ep=tp if tp % ep else ep)


def _usual_kv_dtype(weights: Dtype) -> Dtype:
    """Name the cache format of a run that does not say: 8 bits beside quantised weights."""
    return "fp8" if DTYPE_BYTES[weights] <= DTYPE_BYTES["fp8"] else "bf16"


def _workload(row: Mapping[str, str]) -> ClosedLoopWorkload | OpenLoopWorkload:
    lengths = _lengths(row)
    if _load(row) == "closed":
        clients = _count(row, "concurrency")
        rounds = INFERENCEX_ROUNDS if INFERENCEX in row.get("notes", "") else ROUNDS
        return ClosedLoopWorkload(
            kind="closed_loop",
            lengths=lengths,
            requests=max(rounds * clients, 2 * rounds),
            concurrency=clients,
        )
    rate = _figure(row, "request_rate_qps")
    return OpenLoopWorkload(
        kind="open_loop",
        lengths=lengths,
        sharing=_sharing(row),
        arrivals=UniformArrivals(rate_requests_per_s=rate)
        if _EVENLY_SPACED in row.get("notes", "")
        else PoissonArrivals(rate_requests_per_s=rate),
        requests=500,
    )


def _sharing(row: Mapping[str, str]) -> SharedPrefixes | None:
    """Tell which prompts recur."""
    notes = row.get("notes", "")
    if not _RECURRING.search(notes):
        return None
    told = _PROMPTS.search(notes)
    return SharedPrefixes(
        prefixes=int(told[1]) * int(told[2]) if told else RECURRING_PROMPTS,
        tokens=ConstantTokens(kind="constant", tokens=_count(row, "isl")),
        popularity=0.0,
    )


def _lengths(row: Mapping[str, str]) -> LengthLaw:
    isl, osl = _count(row, "isl"), _count(row, "osl")
    notes, low = row.get("notes", ""), RANDOM_LOW_FRACTION
    if INFERENCEX in notes:
        return UniformRangeLengths(
            kind="uniform_range", input_tokens=isl, output_tokens=osl, low_fraction=low
        )
    if OUT_OF_STEP in notes and _load(row) == "closed":
        longest = 2 / (1 + low)
        return UniformRangeLengths(
            kind="uniform_range",
            input_tokens=round(isl * longest),
            output_tokens=round(osl * longest),
            low_fraction=low,
        )
    return FixedLengths(kind="fixed", input_tokens=isl, output_tokens=osl)


_TIMES: tuple[tuple[Quantity, str, Statistic, Statistic], ...] = (
    ("tpot", "tpot_p50_ms", "tpot_s_p50", "tpot_s_mean"),
    ("tpot", "tpot_mean_ms", "tpot_s_mean", "tpot_s_mean"),
    ("ttft", "ttft_p50_ms", "ttft_s_p50", "ttft_s_mean"),
    ("ttft", "ttft_mean_ms", "ttft_s_mean", "ttft_s_mean"),
)
"""Columns of a run, the preferred one first, the statistic each is compared with, and the one
where the figures are means in whatever column: the source of the runs of InferenceX does not say
which they are, so the file has them as medians (see `INFERENCEX_ROUNDS`)."""


def _measured(row: Mapping[str, str]) -> tuple[dict[Quantity, float], dict[Quantity, Statistic]]:
    """Take the published median where there is one, else the mean."""
    measured: dict[Quantity, float] = {}
    statistic: dict[Quantity, Statistic] = {}
    means = INFERENCEX in row.get("notes", "")
    for quantity, column, compared, mean in _TIMES:
        if quantity not in measured and row.get(column):
            measured[quantity] = _figure(row, column) * MILLISECOND_S
            statistic[quantity] = mean if means else compared
    if row.get("output_tokens_per_s"):
        measured["throughput"] = _figure(row, "output_tokens_per_s")
        statistic["throughput"] = "output_tokens_per_s"
    return measured, statistic


def _figure(row: Mapping[str, str], column: str) -> float:
    """Read a positive number."""
    text = row[column]
    try:
        value = float(text)
    except ValueError:
        raise InputError(f"{column}: {text!r} is not a number") from None
    if not 0 < value < inf:
        raise InputError(f"{column}: {text} must be greater than 0; leave unknown figures empty")
    return value


def _count(row: Mapping[str, str], column: str) -> int:
    """Read a number of things, at least one; means of several are cut to whole ones."""
    value = _figure(row, column)
    if value < 1:
        raise InputError(f"{column}: {row[column]} must be at least 1")
    return int(value)
