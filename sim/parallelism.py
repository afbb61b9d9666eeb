"""How one replica of a model is split over the chips of a system."""

from typing import Literal, NamedTuple, Self

from pydantic import model_validator

from sim.errors import Problem
from sim.hardware import System
from sim.model import (
    Attention,
    CompressedAttention,
    GroupedQueryAttention,
    LinearAttention,
    Model,
)
from sim.schema import StrictModel
from sim.units import Fraction, PositiveInt

Axis = Literal["tp", "attention_dp", "experts", "cp", "pp"]
"""A way in which the chips of a replica work together."""


class ChipGroup(NamedTuple):
    """Chips of a replica that exchange data: ``ranks`` chips, each ``stride`` after the last."""

    ranks: int
    stride: int


class Parallelism(StrictModel):
    """The split of one replica over its chips, and where the routed experts live.

    A replica has ``pp`` stages; a stage has ``cp * attention_dp * tp`` chips. The experts of a
    layer live on the ``attention_dp * tp`` chips of one context-parallel rank together.
    """

    tp: PositiveInt
    """Tensor-parallel ranks: attention and dense layers are cut over them."""
    pp: PositiveInt = 1
    """Pipeline stages: each has its share of the layers."""
    attention_dp: PositiveInt = 1
    """Data-parallel attention ranks: each has sequences of its own, and all share the experts."""
    cp: PositiveInt = 1
    """Context-parallel ranks: each has its share of every prompt and of its KV cache."""
    ep: PositiveInt = 1
    """Expert-parallel ranks, a divisor of ``attention_dp * tp``: whole experts are dealt to so
    many ranks; what is left of the chips cuts each expert."""
    sequence_parallel: bool = False
    """Whether norms and residuals are cut over the tensor ranks by tokens (the all-reduce then
    becomes a reduce-scatter and an all-gather)."""
    micro_batches: PositiveInt | None = None
    """Batches that a pipeline works on at the same time; one per stage unless given."""
    expert_exchange: Literal["all_reduce", "all_to_all"] = "all_reduce"
    """How tokens meet experts that were dealt out. ``all_reduce``: every rank has all tokens and
    computes its own experts' part, which is summed up (vLLM, SGLang and TensorRT-LLM with tensor
    parallel attention; with data-parallel attention the tokens are gathered and the results
    scattered); ``all_to_all``: the ranks send their tokens to their experts and back (DeepEP)."""
    exchange_mode: Literal["auto", "low_latency", "high_throughput"] = "auto"
    """Kernels of the all-to-all, as DeepEP calls its two kinds: ``low_latency`` for the few tokens
    of decode steps, ``high_throughput`` for prompts; ``auto`` takes the faster one."""
    exchange_overlap_fraction: Fraction = 0.0
    """Share of the all-to-all that is hidden behind arithmetic, as where two halves of a batch take
    turns (two-batch overlap). Stated, not modelled: 0 unless the engine is known to do it."""

    @model_validator(mode="after")
    def _experts_are_dealt_evenly(self) -> Self:
        if self.expert_ranks % self.ep:
            msg = (
                f"ep is {self.ep} but must divide the attention_dp * tp = {self.expert_ranks} "
                "chips that share the experts"
            )
            raise ValueError(msg)
        return self

    @property
    def expert_ranks(self) -> int:
        """Chips that share the experts of a layer."""
        return self.attention_dp * self.tp

    @property
    def expert_cut(self) -> int:
        """Chips over which each expert is cut."""
        return self.expert_ranks // self.ep

    @property
    def exchanges_tokens(self) -> bool:
        """Whether tokens travel to the ranks of their experts."""
        return self.ep > 1 and self.expert_exchange == "all_to_all"

    @property
    def stage_chips(self) -> int:
        """Chips of one pipeline stage."""
        return self.cp * self.attention_dp * self.tp

    @property
    def chips(self) -> int:
        """Chips of one replica."""
        return self.pp * self.stage_chips

    def group(self, axis: Axis) -> ChipGroup:
        """Give the chips that work together along an axis.

        Chips are numbered with the tensor ranks innermost, then attention ranks, context ranks
        and stages. ``experts`` are the tensor and the attention ranks together.

        >>> split = Parallelism(tp=4, attention_dp=2, pp=3)
        >>> split.group("tp"), split.group("attention_dp"), split.group("pp")
        (ChipGroup(ranks=4, stride=1), ChipGroup(ranks=2, stride=4), ChipGroup(ranks=3, stride=8))
        """
        groups: dict[Axis, ChipGroup] = {
            "tp": ChipGroup(self.tp, 1),
            "attention_dp": ChipGroup(self.attention_dp, self.tp),
            "experts": ChipGroup(self.expert_ranks, 1),
            "cp": ChipGroup(self.cp, self.expert_ranks),
            "pp": ChipGroup(self.pp, self.stage_chips),
        }
        return groups[axis]


def problems(
    parallelism: Parallelism, model: Model, system: System, redundant_experts: int = 0
) -> list[str]:
    """Say which rules a split breaks, in words; an empty list means that it is legal.

    A split is illegal where something could not be cut as asked, or where an axis would do
    nothing; that it is slow is no reason.

    Parameters
    ----------
    parallelism : Parallelism
    model : Model
    system : System
        Whose domains and whose network between them the replica is laid over.
    redundant_experts : int
        Second copies of experts in each layer, which are dealt out too.

    >>> from sim.catalog import open_catalog
    >>> catalog = open_catalog()
    >>> llama, host = catalog.model("llama_3_1_70b"), catalog.system("h100_sxm_x8")
    >>> problems(Parallelism(tp=8), llama, host)
    []
    >>> problems(Parallelism(tp=3), llama, host)[0]
    '64 query heads cannot be cut over tp = 3 ranks'
    """
    return [
        problem.message for problem in broken_rules(parallelism, model, system, redundant_experts)
    ]


def broken_rules(
    parallelism: Parallelism, model: Model, system: System, redundant_experts: int = 0
) -> list[Problem]:
    """Say which rules a split breaks, as `problems` does, each with the key that breaks it."""
    uneven = (rule for group in model.attention for rule in _uneven_heads(group, parallelism.tp))
    return [
        *_unjoined_chips(parallelism, system),
        *dict.fromkeys(uneven),  # groups of layers often have the same heads
        *_uneven_experts(parallelism, model, redundant_experts),
        *_broken_pipeline(parallelism, model),
        *_idle_ranks(parallelism, model),
    ]


def _unjoined_chips(parallelism: Parallelism, system: System) -> list[Problem]:
    """Say where chips would have to work together that no network joins."""
    chips, domain = parallelism.chips, system.domain_chips
    if chips <= domain or system.scale_out is not None:
        return []
    what = f"tp is {chips}" if parallelism.tp == chips else f"a replica has {chips} chips"
    joined = f"the scale-up domain joins {domain} chip{'s' if domain > 1 else ''}"
    said = f"{what} but {joined} and {system.name} has no scale-out network"
    return [Problem.of(said, "tp" if parallelism.tp == chips else ())]


def _uneven_heads(group: Attention, tp: int) -> list[Problem]:
    """Say which heads of a group of layers cannot be cut over the tensor ranks."""
    heads = group.value_heads if isinstance(group, LinearAttention) else group.heads
    found = []
    if heads % tp:
        found.append(f"{heads} query heads cannot be cut over tp = {tp} ranks")
    if isinstance(group, CompressedAttention) and group.output_groups % tp:
        found.append(f"{group.output_groups} output groups cannot be cut over tp = {tp} ranks")
    if isinstance(group, GroupedQueryAttention):
        kv_heads = group.kv_heads
        if max(kv_heads, tp) % min(kv_heads, tp):
            found.append(f"{kv_heads} KV heads and tp = {tp}: one must divide the other")
    return [Problem.of(said, "tp") for said in found]


def _uneven_experts(
    parallelism: Parallelism, model: Model, redundant_experts: int
) -> list[Problem]:
    """Say why experts cannot be dealt out as asked."""
    ep, found = parallelism.ep, []
    if ep > 1 and model.moe is None:
        found.append(Problem.of(f"ep is {ep} but the model has no experts", "ep"))
    if model.moe is not None and (model.moe.experts + redundant_experts) % ep:
        copies = f" and {redundant_experts} redundant ones" if redundant_experts else ""
        said = f"{model.moe.experts} experts{copies} cannot be dealt to ep = {ep} ranks"
        found.append(Problem.of(said, "ep"))
    if parallelism.expert_exchange == "all_to_all" and ep == 1:
        said = "expert_exchange is all_to_all but ep is 1: no expert is dealt out"
        found.append(Problem.of(said, "expert_exchange"))
    if not parallelism.exchanges_tokens:
        found += [
            Problem.of(
                f"{name} is given but expert_exchange is {parallelism.expert_exchange}: there is "
                "no all-to-all",
                name,
            )
            for name in ("exchange_mode", "exchange_overlap_fraction")
            if getattr(parallelism, name) != Parallelism.model_fields[name].default
        ]
    return found


def _broken_pipeline(parallelism: Parallelism, model: Model) -> list[Problem]:
    """Say why layers cannot be cut into the stages asked for."""
    found = []
    if parallelism.pp > model.layers:
        said = f"pp is {parallelism.pp} but the model has {model.layers} layers"
        found.append(Problem.of(said, "pp"))
    if parallelism.micro_batches is not None and parallelism.pp == 1:
        said = f"micro_batches is {parallelism.micro_batches} but pp is 1: there is no pipeline"
        found.append(Problem.of(said, "micro_batches"))
    return found


def _idle_ranks(parallelism: Parallelism, model: Model) -> list[Problem]:
    """Say which axes have nothing to cut, or cannot cut what there is."""
    found = []
    if parallelism.attention_dp > 1 and model.moe is None:
        said = (
            f"attention_dp is {parallelism.attention_dp} but the model has no experts to share: "
            "these ranks are replicas of their own, so leave it at 1 and run more replicas"
        )
        found.append(Problem.of(said, "attention_dp"))
    if parallelism.cp > 1 and any(isinstance(g, LinearAttention) for g in model.attention):
        said = f"cp is {parallelism.cp} but the states of linear attention are not cut by tokens"
        found.append(Problem.of(said, "cp"))
    if parallelism.sequence_parallel and parallelism.tp == 1:
        said = "sequence_parallel cuts tokens over the tensor ranks, but tp is 1"
        found.append(Problem.of(said, "sequence_parallel"))
    return found


def kv_heads_per_chip(group: Attention, tp: int) -> int:
    """KV heads that each tensor rank stores: at least one, so heads are copied when tp is larger.

    The latent of MLA is shared by all heads, so every rank keeps all of it.
    """
    return max(1, group.kv_heads // tp) if isinstance(group, GroupedQueryAttention) else 1


def kv_elements_per_token_per_layer(group: Attention, tp: int) -> int:
    """Return the elements cached per token and layer on one chip.

    Llama 3.1 70B has 8 KV heads of 128: at tp = 8 each chip keeps one key and one value head.

    >>> from sim.catalog import open_catalog
    >>> group = open_catalog().model("llama_3_1_70b").attention[0]
    >>> kv_elements_per_token_per_layer(group, tp=8)
    256
    """
    if not isinstance(group, GroupedQueryAttention):
        return group.kv_elements_per_token()
    if group.reuses_kv:
        return 0
    index = 0 if group.indexer is None else group.indexer.head_dim  # not cut over ranks
    return 2 * kv_heads_per_chip(group, tp) * group.head_dim + index


class CachedElements(NamedTuple):
    """Elements that one chip caches of one sequence, all layers together."""

    growing: int
    """Per token of the whole context."""
    windowed: int
    """Per token inside a window."""


def cached_elements(model: Model, tp: int, window_tokens: int | None) -> CachedElements:
    """Count what one chip caches of a sequence, over the layers of all stages.

    Layers with another window than ``window_tokens`` count as what they hold once theirs is full,
    spread over that one. States of linear attention are not counted here.

    Parameters
    ----------
    model : Model
    tp : int
        Tensor ranks.
    window_tokens : int, optional
        Tokens at which the cache of layers with a window stops growing; none: it does not.

    Half of the layers of gpt-oss-120b (36 layers, 8 KV heads of 64) slide over 128 tokens:

    >>> from sim.catalog import open_catalog
    >>> cached_elements(open_catalog().model("gpt_oss_120b"), tp=1, window_tokens=128)
    CachedElements(growing=18432, windowed=18432)
    """
    growing = windowed = 0
    for group in model.attention:
        window, elements = _window(group)
        whole = kv_elements_per_token_per_layer(group, tp)
        if window_tokens is not None and window:
            slides = isinstance(group, GroupedQueryAttention)
            held = group.layers * window * (whole if slides else elements)
            windowed += -(-held // window_tokens)
            whole = 0 if slides else whole
        growing += group.layers * whole
    return CachedElements(growing, windowed)


def index_elements_per_token(model: Model) -> float:
    """Count the elements of index keys among those that every chip caches per token.

    They have a format of their own, whatever the rest of the cache has.

    >>> from sim.catalog import open_catalog
    >>> index_elements_per_token(open_catalog().model("deepseek_v3_2"))  # 61 layers, keys of 128
    7808.0
    """
    found = 0.0
    for group in model.attention:
        if isinstance(group, LinearAttention) or group.indexer is None:
            continue
        tokens_per_key = 1
        if isinstance(group, CompressedAttention):
            tokens_per_key = group.compressed_tokens or 1
        found += group.layers * group.indexer.head_dim / tokens_per_key
    return found


def _window(group: Attention) -> tuple[int, int]:
    """Tokens of a group's sliding window, and elements per token in it where not per head."""
    if isinstance(group, CompressedAttention):
        return group.window_tokens, group.head_dim
    if isinstance(group, GroupedQueryAttention):
        return group.window_tokens or 0, 0
    return 0, 0
