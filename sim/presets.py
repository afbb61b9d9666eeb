"""Presets of serving engines: what an engine of a given version does unless it is told otherwise.

One file of ``hardware/engines`` per engine and version. Every setting has a value, a source and a
confidence; where the engine itself decides by the chip, the setting says so (``where``).
"""

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal, NamedTuple, Self

from pydantic import Field, ValidationError, model_validator

from sim.errors import InfeasibleError, InputError, Problem, with_problems
from sim.figures import Confidence
from sim.hardware import Accelerator
from sim.parallelism import Parallelism
from sim.schema import StrictModel, did_you_mean
from sim.serving import ServingEngine, Sizes, starved
from sim.units import GIB, MIB, Bytes, PositiveInt

CHOSEN_BY_SCENARIO = frozenset(
    {
        "name",
        "speculation",
        "swap_bytes",
        "swap_bytes_per_s",
        "max_queue_requests",
        "kv_blocks",
        "offload_weights_bytes",
        "offload_kv_bytes",
        "kv_tiers",
        "max_model_len",
        "expert_imbalance",
        "host_step_s",
        "host_sequence_s",
        "poll_interval_steps",
        "batch_wait_steps",
        "batch_wait_fraction",
    }
)
"""Settings that no engine has a value of its own for."""
PRESET_SETTINGS = frozenset(ServingEngine.model_fields) - CHOSEN_BY_SCENARIO
"""Settings that every preset has to name."""

Rule = Literal["sglang_static_fraction"]
"""A value that an engine computes from others when it starts."""


class Place(NamedTuple):
    """What an engine looks at when it chooses its defaults."""

    accelerator_id: str
    family: str
    memory_bytes: float
    """Of one chip, the fastest tier."""
    tp: int
    chips: int
    """Of a replica."""


def place_of(accelerator_id: str, accelerator: Accelerator, parallelism: Parallelism) -> Place:
    """Describe where an engine runs."""
    memory = accelerator.local_memory.capacity_bytes.value
    split = parallelism
    return Place(accelerator_id, accelerator.family, memory, split.tp, split.tp * split.pp)


class Variant(StrictModel):
    """Another value where all that is named holds."""

    value: Any
    memory_below_bytes: Bytes | None = None
    """Chips with less memory."""
    families: tuple[str, ...] | None = None
    """Chips of these families."""
    accelerators: tuple[str, ...] | None = None
    """These chips."""
    tp_below: PositiveInt | None = None
    """Fewer tensor ranks."""

    @model_validator(mode="after")
    def _has_a_condition(self) -> Self:
        if not self.model_fields_set - {"value"}:
            raise ValueError("say where the value holds, or make it the value of the setting")
        return self

    def holds(self, place: Place) -> bool:
        """Tell whether every condition holds."""
        return (
            (self.memory_below_bytes is None or place.memory_bytes < self.memory_below_bytes)
            and (self.families is None or place.family in self.families)
            and (self.accelerators is None or place.accelerator_id in self.accelerators)
            and (self.tp_below is None or place.tp < self.tp_below)
        )


class Setting(StrictModel):
    """The value of one setting, and where it was read."""

    value: Any = None
    """As a scenario would write it."""
    rule: Rule | None = None
    """Computed when the engine starts; ``value`` is then not used."""
    where: tuple[Variant, ...] = ()
    """Other values by chip; the first whose conditions hold counts."""
    source: str
    """Repository, file and version, or the page of the documentation."""
    confidence: Confidence
    note: str | None = None
    """What a reader must know before relying on it."""

    @model_validator(mode="after")
    def _says_something(self) -> Self:
        if ("value" in self.model_fields_set) == (self.rule is not None):
            raise ValueError("give either value or rule")
        return self

    def on(self, place: Place) -> Any:
        """Return the value where an engine runs."""
        found = (other.value for other in self.where if other.holds(place))
        return next(found, self.value)


class EnginePreset(StrictModel):
    """What one version of an engine does unless it is told otherwise."""

    name: str
    """As people call it."""
    version: str
    """The release that the values were read from."""
    date: Annotated[str, Field(pattern=r"^\d{4}-\d{2}(-\d{2})?$")]
    """Of that release, or of the pages that were read."""
    about: str
    """How the engine works, in a sentence or two."""
    settings: Mapping[str, Setting]
    """By the key of a scenario's ``engine``."""
    graphs_per_sequence: PositiveInt | None = None
    """Graphs are captured up to so many times ``max_num_seqs``; no such limit unless given."""

    @model_validator(mode="after")
    def _settings_are_complete_and_legal(self) -> Self:
        problems = [*_named(self.settings), *_typed(self.settings)]
        if problems:
            raise ValueError("; ".join(problems))
        return self

    @property
    def weakest(self) -> Confidence:
        """The confidence of the least certain setting."""
        order: tuple[Confidence, ...] = ("estimate", "secondary", "measured", "datasheet")
        held = {setting.confidence for setting in self.settings.values()}
        return next(confidence for confidence in order if confidence in held)


def _named(settings: Mapping[str, Setting]) -> Iterator[str]:
    """Say which settings are missing, and which are none."""
    missing = sorted(PRESET_SETTINGS - set(settings))
    if missing:
        yield f"settings has no {', '.join(missing)}"
    for key in sorted(set(settings) - set(ServingEngine.model_fields)):
        yield f"{key} is no setting{did_you_mean(key, tuple(ServingEngine.model_fields))}"


def _typed(settings: Mapping[str, Setting]) -> Iterator[str]:
    """Say which values a scenario could not write."""
    for key in sorted(set(settings) & set(ServingEngine.model_fields)):
        setting = settings[key]
        values = [other.value for other in setting.where]
        for value in [*values, *([] if setting.rule else [setting.value])]:
            try:
                ServingEngine.model_validate({key: value})
            except ValidationError as error:
                yield f"{key}: {value!r}: {error.errors()[0]['msg']}"


# --- From a scenario's engine and its preset to all values.


def resolved(engine: ServingEngine, preset: EnginePreset, place: Place) -> ServingEngine:
    """Give a value to everything that a scenario left to the preset.

    Parameters
    ----------
    engine : ServingEngine
        As the scenario has it; what it sets wins.
    preset : EnginePreset
        Of that name.
    place : Place
        From `place_of`.

    Returns
    -------
    ServingEngine
        With every field set. Limits that depend on others, as an engine adjusts them when it
        starts, are adjusted; resolving again changes nothing.

    Raises
    ------
    InputError
        A combination that no engine could run, with a way out.

    Examples
    --------
    >>> from sim.catalog import open_catalog
    >>> vllm = open_catalog().engine("vllm")
    >>> a100 = Place("a100_sxm", "ampere", 80e9, tp=1, chips=1)
    >>> resolved(ServingEngine(), vllm, a100).max_num_seqs
    256
    """
    given = {key: getattr(engine, key) for key in engine.model_fields_set}
    values = {key: setting.on(place) for key, setting in preset.settings.items()}
    values = {key: value for key, value in values.items() if not preset.settings[key].rule}
    filled = ServingEngine.model_validate(values)
    filled = filled.model_copy(update={**given, "name": engine.name})
    filled = filled.model_copy(update=dict(_adjusted(filled, given, preset)))
    for key in sorted(set(preset.settings) - set(given)):
        if preset.settings[key].rule == "sglang_static_fraction":
            fraction = sglang_static_fraction(filled, place)
            filled = filled.model_copy(update={key: fraction})
    every = {key: getattr(filled, key) for key in ServingEngine.model_fields}
    filled = filled.model_copy(update=every)  # marks all as set
    problems = list(engine_problems(filled))
    if problems:
        raise with_problems(InputError, problems)
    return filled


def _adjusted(
    filled: ServingEngine, given: Mapping[str, Any], preset: EnginePreset
) -> Iterator[tuple[str, Any]]:
    """Lower the defaults that an engine fits to its other settings."""
    seqs, budget = filled.max_num_seqs, filled.max_num_batched_tokens
    if filled.composition == "mixed" and "max_num_seqs" not in given:
        seqs = min(seqs, budget)
        yield "max_num_seqs", seqs
    if "graph_sizes" not in given and preset.graphs_per_sequence is not None:
        longest = 1 if filled.speculation is None else filled.speculation.draft_tokens + 1
        most = min(seqs * longest * preset.graphs_per_sequence, budget)
        yield "graph_sizes", tuple(size for size in filled.graph_sizes if size <= most)
    if filled.prefill_buckets and "prefill_buckets" not in given:
        yield "prefill_buckets", _up_to(filled.prefill_buckets, budget)
    if filled.decode_buckets and "decode_buckets" not in given:
        yield "decode_buckets", _up_to(filled.decode_buckets, seqs)


def _up_to(sizes: Sizes, most: int) -> Sizes:
    """Keep the sizes below a limit, and the limit itself.

    >>> _up_to((16, 32, 64), 48)
    (16, 32, 48)
    """
    return (*(size for size in sizes if size < most), most)


def sglang_static_fraction(engine: ServingEngine, place: Place) -> float:
    """Return what SGLang takes for ``mem_fraction_static`` unless it is told.

    In MiB, of one chip: 512, 1.5 for each token of a chunk (of 2048 at least), 2 for each sequence
    of the largest graph, 128 for each chip of a replica; 10 GiB at least on chips of more than 60
    GiB. The rest is for weights and cache. Source: sgl-project/sglang v0.5.8
    ``python/sglang/srt/server_args.py``, ``_handle_gpu_memory_settings``.

    Examples
    --------
    8192 x 1.5 + 256 x 2 + 512 + 128 = 13,440 of 81,000 MiB:

    >>> engine = ServingEngine(max_num_batched_tokens=8192, graph_sizes=(1, 256))
    >>> sglang_static_fraction(engine, Place("h100_sxm", "hopper", 81_000 * MIB, tp=1, chips=1))
    0.834
    """
    memory_mib = place.memory_bytes / MIB
    reserved = 512 + max(engine.max_num_batched_tokens, 2048) * 1.5
    reserved += 2 * max(engine.graph_sizes, default=0) + 128 * place.chips
    if memory_mib > 60 * GIB / MIB:
        reserved = max(reserved, 10 * GIB / MIB)
    drafts = engine.speculation
    if drafts is not None and drafts.method != "ngram":
        reserved += (6 if drafts.method == "draft_model" else 2) * GIB / MIB
    fraction = round((memory_mib - reserved) / memory_mib, 3)
    if fraction <= 0:
        raise InfeasibleError(
            f"SGLang sets {reserved:,.0f} MiB aside, of {memory_mib:,.0f} that a chip has: "
            "lower max_num_batched_tokens or give memory_fraction",
            key=["max_num_batched_tokens", "name"],
        )
    return fraction


def engine_problems(engine: ServingEngine) -> Iterator[Problem]:
    """Say which settings contradict each other, each with a way out."""
    hungry = starved(engine)
    if hungry is not None:
        yield Problem.of(
            f"{hungry}; lower max_num_seqs or raise max_num_batched_tokens",
            ["max_num_batched_tokens", "max_num_seqs"],
        )
    if engine.admission == "no_evict" and engine.preemption == "swap":
        yield Problem.of(
            "admission: no_evict never preempts, so there is nothing to swap; set preemption: "
            "recompute, or admission: as_needed",
            ["preemption", "admission"],
        )
    if engine.admission == "estimated" and engine.answer_estimate is None:
        yield Problem.of(
            "admission: estimated needs answer_estimate, the share of the answers that is "
            "expected; the preset sglang has one, or take admission: as_needed",
            "admission",
        )
    if engine.preemption == "swap" and not engine.swap_bytes:
        yield Problem.of(
            "preemption: swap needs swap_bytes > 0, or set preemption: recompute",
            ["swap_bytes", "preemption"],
        )
    yield from _chunk_problems(engine)
    yield from _bucket_problems(engine)
    yield from _cache_problems(engine)


def _cache_problems(engine: ServingEngine) -> Iterator[Problem]:
    names = [tier.name for tier in engine.kv_tiers]
    if len(set(names)) < len(names):
        yield Problem.of(
            f"two of kv_tiers have the same name ({', '.join(names)}): give each its own",
            "kv_tiers",
        )
    if engine.kv_tiers and not engine.prefix_caching:
        yield Problem.of(
            "kv_tiers keep blocks for later requests, which prefix_caching: false never finds; "
            "set it to true, or leave kv_tiers out",
            ["prefix_caching", "kv_tiers"],
        )
    if engine.kv_blocks is not None and not engine.usable_kv_blocks:
        yield Problem.of(
            f"kv_blocks is {engine.kv_blocks}, of which {engine.null_blocks} are never given out: "
            "raise it",
            "kv_blocks",
        )


def _chunk_problems(engine: ServingEngine) -> Iterator[Problem]:
    if engine.max_chunk_tokens is not None and not engine.chunked_prefill:
        yield Problem.of(
            f"max_chunk_tokens ({engine.max_chunk_tokens}) cuts prompts, which chunked_prefill: "
            "false forbids; drop one",
            ["max_chunk_tokens", "chunked_prefill"],
        )
    shared = engine.composition == "mixed"
    if shared and not engine.chunked_prefill and engine.max_num_batched_tokens < 2:
        yield Problem.of(
            f"max_num_batched_tokens ({engine.max_num_batched_tokens}) leaves no room for prompts "
            "that may not be cut: raise it",
            "max_num_batched_tokens",
        )


def _bucket_problems(engine: ServingEngine) -> Iterator[Problem]:
    needed = (
        ("decode_buckets", engine.decode_buckets, "max_num_seqs", engine.max_num_seqs),
        (
            "prefill_buckets",
            engine.prefill_buckets,
            "max_num_batched_tokens",
            engine.max_num_batched_tokens,
        ),
    )
    for key, sizes, limit_key, limit in needed:
        if sizes and sizes[-1] < limit:
            yield Problem.of(
                f"{key} end at {sizes[-1]}, below {limit_key} ({limit}): add {limit} to them or "
                f"set {limit_key}: {sizes[-1]}",
                [key, limit_key],
            )
    if engine.graph_sizes and engine.decode_buckets:
        yield Problem.of(
            "give graph_sizes or decode_buckets, not both; set the other to []",
            ["decode_buckets", "graph_sizes"],
        )
