"""A case resolved against the catalogue: the chips, the model on them, and how long steps take."""

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property, partial, reduce
from typing import Any, NamedTuple

from sim.catalog import Catalog
from sim.cost.comms import Network
from sim.cost.context import window_cap
from sim.cost.execution import NO_PADDING, Speculation
from sim.cost.kernels import KernelShelf
from sim.cost.layers import operators
from sim.cost.memory import MemoryUse, detour, doubt_about_blocks, slower_tiers
from sim.cost.operators import DenseGemm, ExpertGemm, Operator
from sim.cost.shares import Shares
from sim.cost.table import Extent, StepTable
from sim.cost.timer import OperatorTime, Placement, StepTimer
from sim.cost.work import Number, StepShape
from sim.drafter import Drafter, drafter_of
from sim.efficiency import Calibration, PowerFit
from sim.engine.encoding import EncodingPace
from sim.engine.kv import WHOLE_CONTEXT, SequenceBlocks, blocks_for
from sim.engine.lockstep import RankedPace
from sim.engine.plan import ReplicaPlan
from sim.engine.rules import SchedulerRules
from sim.engine.speculative import GRAIN
from sim.engine.ticks import LockstepPace, Pace, SteadyPace, pace, steady_pace, varied
from sim.errors import InputError, under
from sim.feasibility import check_split, count_replicas, fitted_memory
from sim.hardware import Accelerator, System
from sim.image_encoding import ImageEncoding, encoding_of, encoding_of_pool
from sim.model import Model
from sim.overhead import EngineOverhead
from sim.parallelism import Parallelism
from sim.pools import Role
from sim.presets import place_of, resolved
from sim.priors import Prior
from sim.replica_plan import (
    answer_estimate,
    execution,
    new_batch,
    own_schedulers,
    scheduler_rules,
    with_host,
)
from sim.routing import ExpertLayout, Imbalance
from sim.scenario import Case
from sim.serving import ServingEngine
from sim.speculation import AcceptanceLaw
from sim.units import Dtype

Quantity = Callable[[OperatorTime], Number]
"""What to tabulate of a priced operator."""


IMBALANCE_PERIOD_STEPS = 128
"""Steps for which a load of the experts lasts.

DeepSeek-R1 on 32 GB200: the imbalance of ranks is "relatively stable across tens to hundreds of
iterations" and differs by layer, data set and request (NVIDIA, Scaling Expert Parallelism in
TensorRT-LLM, part 1, nvidia.github.io/TensorRT-LLM). The number within that range is assumed.
"""


@dataclass(frozen=True)
class Deployment:
    """One pool of equal replicas; all there is where one pool does everything."""

    case: Case
    """Of this pool alone, see `sim.scenario.Case.of_pool`."""
    system: System
    accelerator: Accelerator
    power: PowerFit
    """From the chip's calibration, else of the chip that stands in for it."""
    model: Model
    memory: MemoryUse
    timer: StepTimer
    replicas: int
    max_model_len: int
    notes: tuple[str, ...]
    """What a reader of any forecast must know about it."""
    calibration: Calibration | None
    """What was measured of the chip; none: all laws are those of a prior."""
    role: Role = "serve"
    """What its replicas do in a service of several pools."""
    law: AcceptanceLaw | None = None
    """What speculative decoding yields; none without it."""
    encoder: StepTimer | None = None
    """Prices the images that its replicas encode themselves; none: they encode none, or nothing
    else (``timer`` is then that of the encoder)."""

    @cached_property
    def images(self) -> "Deployment | None":
        """The same replicas as encoders of the images beside their prompts; none: they are not.

        Its steps are those parts of the replicas' steps: prompts of image tokens.
        """
        if self.encoder is None:
            return None
        return replace(self, timer=self.encoder, encoder=None, law=None, role="encode")

    @property
    def chips_per_replica(self) -> int:
        """Chips of one engine instance."""
        return self.case.parallelism.chips

    @property
    def chips(self) -> int:
        """Chips that belong to a replica."""
        return self.replicas * self.chips_per_replica

    @property
    def kv_blocks(self) -> int:
        """KV blocks of a replica: those of its attention ranks together."""
        return self.case.parallelism.attention_dp * _rank_blocks(self.case, self.memory)[0]

    @property
    def kv_tokens(self) -> int:
        """Tokens of context that a replica's cache holds, of one long sequence on each rank."""
        ranks = self.case.parallelism.attention_dp
        total, held = _rank_blocks(self.case, self.memory)
        return ranks * _longest_context(total, held, self.case.engine.block_tokens, self.memory)

    @property
    def window_tokens(self) -> int | None:
        """Keys that some layers see at most: of a sliding window, or of sparse attention."""
        return None if self.role == "encode" else window_cap(self.model)

    @property
    def peak_flop_per_s(self) -> float:
        """Dense peak of one chip in the format that most of the arithmetic is done in."""
        return self.timer.kernels.peak_flop_per_s(self.compute_dtype)

    @cached_property
    def compute_dtype(self) -> Dtype:
        """Format that most of the arithmetic of the weights is done in."""
        flop: dict[Dtype, float] = {}
        one_token = StepShape(prefill_tokens=1)
        kernels = self.timer.kernels
        for op in self.timer.operators:
            if isinstance(op, DenseGemm) and op.scope != "head":
                dtype = kernels.gemm(op)[0].compute_dtype
            elif isinstance(op, ExpertGemm):
                dtype = kernels.grouped_gemm(op)[0].compute_dtype
            else:
                continue
            done = op.calls * float(op.work(one_token).flop)
            flop[dtype] = flop.get(dtype, 0.0) + done
        return max(flop, key=lambda dtype: flop[dtype])

    @cached_property
    def seconds(self) -> StepTable:
        """Time of any step; where there is an encoder, without its part."""
        return self._table(lambda timed: timed.seconds, overhead_per_s=1.0)

    @cached_property
    def joules(self) -> StepTable:
        """Energy of the busiest chip in any step, idle power included."""
        law = self.power.law
        return self._table(lambda timed: self.timer.joules(timed, law), overhead_per_s=self.awake_w)

    @property
    def awake_w(self) -> float:
        """Power of a chip between two kernels of a step, and while it waits for others."""
        return self.accelerator.power.tdp_w.value * self.power.law.active_fraction

    @cached_property
    def flop(self) -> StepTable:
        """Arithmetic of the mean chip in any step."""
        return self._table(lambda timed: timed.flop, overhead_per_s=0.0, extent="work")

    @cached_property
    def memory_seconds(self) -> StepTable:
        """Memory traffic of the mean chip in any step, as seconds at peak bandwidth."""
        return self._table(lambda timed: timed.memory_s, overhead_per_s=0.0, extent="work")

    @cached_property
    def plan(self) -> ReplicaPlan:
        """What the engine needs to know."""
        engine, held = self.case.engine, _rank_blocks(self.case, self.memory)[1]
        return ReplicaPlan(
            rules=self.rules,
            kv_blocks=self.kv_blocks // self.schedulers,
            block_tokens=engine.block_tokens,
            pace=self.pace_for(0),
            max_model_len=self.max_model_len,
            sequence_blocks=held,
            prefix_caching=self.finds_prefixes,
            by_priority=engine.order == "priority",
            whole_answers=engine.admission == "no_evict",
            estimate=answer_estimate(engine),
            kv_bytes_per_token=self.kv_bytes_per_token,
            ranks=self.schedulers,
            rank_choice="fewest_waiting" if engine.rank_choice == "even" else engine.rank_choice,
        )

    @property
    def schedulers(self) -> int:
        """Attention ranks of a replica that have batches of their own; 1: they share one."""
        return own_schedulers(self.case.engine, self.case.parallelism)

    @cached_property
    def _steady(self) -> SteadyPace | LockstepPace:
        """Compile how long the steps of a replica take with the load that experts should have."""
        grain = 1 if self.law is None else GRAIN
        if self.schedulers > 1:
            return LockstepPace(self.seconds, grain=grain)
        return steady_pace(self.seconds, grain)

    def _pace(self, imbalance: Imbalance | None = None) -> Pace:
        """Give how long the steps of a replica take whose experts' load varies."""
        steady = self._steady
        found: Pace
        if isinstance(steady, LockstepPace):
            found = RankedPace(steady if imbalance is None else steady.varied(imbalance))
        else:
            found = varied(steady, self.seconds, imbalance)
        return found if self.images is None else EncodingPace(found, pace(self.images.seconds))

    def pace_for(self, seed: int, replica: int = 0) -> Pace:
        """Give how long the steps of a replica take in a run with a seed."""
        return self._pace(self.imbalance(seed, replica))

    def plan_for(self, seed: int) -> ReplicaPlan:
        """Give what the engine needs to know in a run with a seed."""
        changed: dict[str, Any] = {}
        if self.imbalance(seed) is not None:
            changed["pace"] = self.pace_for(seed)
            changed["pace_of"] = partial(self.pace_for, seed)
        if self.law is not None:
            held = _rank_blocks(self.case, self.memory)[1]
            engine, window = self.case.engine, self.window_tokens
            changed["new_batch"] = new_batch(engine, self.law, held, window, seed)
        return replace(self.plan, **changed)

    @property
    def finds_prefixes(self) -> bool:
        """Whether blocks of earlier requests are found again."""
        whole = _rank_blocks(self.case, self.memory)[1] == WHOLE_CONTEXT
        return self.case.engine.prefix_caching and whole

    def imbalance(self, seed: int, replica: int = 0) -> Imbalance | None:
        """How the load of a replica's experts varies in a run with a seed; none: it does not."""
        layers = [each for each in self.timer.operators if isinstance(each, ExpertGemm)]
        cv = self.case.engine.expert_imbalance
        if not cv or not layers or self.role == "encode":
            return None
        first = layers[0]
        calls = math.ceil(sum(each.calls for each in layers))
        layout = ExpertLayout(first.experts, first.experts_per_token, first.ranks, calls)
        names = (self.role, replica)
        period = IMBALANCE_PERIOD_STEPS
        return Imbalance.of_experts(cv, layout, first.routing, period, seed, names)

    @property
    def kv_bytes_per_token(self) -> float:
        """Keys and values of one token of context on all chips that keep a sequence."""
        split, cache = self.case.parallelism, self.memory.cache
        return (cache.growing_bytes + cache.windowed_bytes) * split.tp * split.pp

    @property
    def rules(self) -> SchedulerRules:
        """What each scheduler of a replica takes in, micro-batches together."""
        return scheduler_rules(self.case.engine, self.timer.shares, self.window_tokens, self.law)

    def explain(self, shape: StepShape) -> list[OperatorTime]:
        """List the operators of one step with their work, time, bound and source.

        Experts whose load varies have that of a mean period.
        """
        return self.timer.explain(shape, self.mean_expert_load)

    @property
    def mean_expert_load(self) -> float:
        """Load of the fullest expert rank over what the law of routing expects, in the mean."""
        imbalance = self.imbalance(seed=0)
        return 1.0 if imbalance is None else imbalance.mean

    def _table(
        self, quantity: Quantity, *, overhead_per_s: float, extent: Extent = "elapsed"
    ) -> StepTable:
        return StepTable.compile(
            self.timer if extent == "elapsed" else self.timer.of_mean_chip(),
            quantity,
            lambda seconds: overhead_per_s * seconds,
            self.case.engine.max_num_seqs,
            extent,
        )


TimerOf = Callable[[Iterable[Operator], EngineOverhead, Placement], StepTimer]
"""Prices operators on the chips of a case, under an overhead of the engine."""


class _Work(NamedTuple):
    """What the replicas of a pool do, and what it takes of the memory of a chip."""

    memory: MemoryUse
    drafter: Drafter | None = None
    beside: ImageEncoding | None = None
    """The encoder of images beside the language model."""
    alone: ImageEncoding | None = None
    """The encoder in place of the language model."""


def deploy(
    case: Case, catalog: Catalog, role: Role = "serve", *, encodes: bool = True
) -> Deployment:
    """Resolve a case of one pool: look everything up, check that it fits, build its timer.

    Parameters
    ----------
    case : Case
        Of this pool alone.
    catalog : Catalog
    role : str
    encodes : bool
        Whether replicas that take in prompts encode their images: no other pool does.

    Raises
    ------
    InputError
        A name that no catalogue knows.
    InfeasibleError
        A split that is not legal on this system, or a model that does not fit into its memory;
        with the numbers and a way out.
    """
    system = catalog.system(case.system)
    accelerator = catalog.accelerator(system.accelerator)
    model = catalog.model(case.model)
    case = _with_preset(case, catalog, system, accelerator)
    work = _work(case, model, catalog, role, encodes=encodes)
    memory, drafter = work.memory, work.drafter
    calibration = catalog.calibration(system.accelerator)
    prior = catalog.prior(accelerator.family)
    engine = case.engine
    overhead = catalog.overheads(engine.kernels, engine.name).of_family(accelerator.family)
    shelf = KernelShelf(
        accelerator, system.accelerator, calibration, prior, engine.kernels, overhead.source
    )
    network = Network(system, system.accelerator, calibration, engine.kernels)
    placement = Placement(
        Shares(case.parallelism, engine.max_num_batched_tokens),
        detour(memory, accelerator, slower_tiers(accelerator, system)),
    )

    def timer_of(listed: Iterable[Operator], law: EngineOverhead, placed: Placement) -> StepTimer:
        return StepTimer(listed, accelerator, shelf, network, law, placed)

    timer = _timer(case, model, work, overhead.law, placement, timer_of)
    encoder = None if work.beside is None else _encoder_timer(work.beside, overhead.law, timer_of)
    return Deployment(
        case=case,
        system=system,
        accelerator=accelerator,
        power=_power(accelerator, system.accelerator, calibration, prior),
        model=model,
        memory=memory,
        timer=timer,
        replicas=count_replicas(case, system),
        max_model_len=_max_model_len(case, model, memory),
        notes=(
            *_notes(case, model, accelerator, calibration, timer),
            *overhead.limits(case.name, case.model),
            *_better_engine(case, accelerator, catalog),
            *_engine_notes(case, memory, drafter),
            *_encoder_notes(case, work),
        ),
        calibration=calibration,
        role=role,
        law=None if drafter is None else drafter.law,
        encoder=encoder,
    )


def _work(case: Case, model: Model, catalog: Catalog, role: Role, *, encodes: bool) -> _Work:
    """Check that what the replicas of a pool do can be split so and fits."""
    system = catalog.system(case.system)
    accelerator = catalog.accelerator(system.accelerator)
    if role == "encode":
        alone = encoding_of_pool(case, model, system)
        return _Work(alone.alone(accelerator), alone=alone)
    check_split(case, model, system)
    drafter = drafter_of(case, model, catalog)
    encoding = encoding_of(case, model) if encodes else None
    others = [each.beside for each in (drafter, encoding) if each is not None]

    def beside(memory: MemoryUse) -> MemoryUse:
        return reduce(lambda use, put: put(use), others, memory)

    memory = fitted_memory(case, model, accelerator, system, beside)
    return _Work(memory, drafter, beside=encoding)


def _timer(
    case: Case,
    model: Model,
    work: _Work,
    law: EngineOverhead,
    placement: Placement,
    timer_of: TimerOf,
) -> StepTimer:
    """Price the steps of a pool; those of an encoder alone are run through no graph."""
    engine, drafter = case.engine, work.drafter
    if work.alone is not None:
        plain = replace(execution(engine, None), padding=NO_PADDING)
        placed = placement._replace(execution=plain)
        return timer_of(work.alone.operators, with_host(law, engine), placed)
    speculation = None if drafter is None else _speculation(drafter, engine, law, timer_of)
    return timer_of(
        operators(model, case.parallelism, case.precision, case.routing),
        with_host(law, engine),
        placement._replace(execution=execution(engine, speculation)),
    )


def _encoder_timer(encoding: ImageEncoding, law: EngineOverhead, timer_of: TimerOf) -> StepTimer:
    """Price the images of a step; the engine's own time is spent once, on the whole step.

    Attention ranks that share a batch share its images; the first of several stages encodes for
    all micro-batches.
    """
    engine, split = encoding.case.engine, encoding.case.parallelism
    ranks = split.attention_dp // own_schedulers(engine, split)
    batches = Shares(split, engine.max_num_batched_tokens).micro_batches
    shares = Shares(
        Parallelism(tp=split.tp, attention_dp=ranks), batches * engine.max_num_batched_tokens
    )
    free = law.model_copy(update={"step_s": 0.0, "sequence_s": 0.0})
    return timer_of(encoding.operators, free, Placement(shares))


def _with_preset(case: Case, catalog: Catalog, system: System, accelerator: Accelerator) -> Case:
    """Fill in what the scenario does not say about its engine."""
    place = place_of(system.accelerator, accelerator, case.parallelism)
    preset = catalog.engine(case.engine.name)
    with under("engine"):
        engine = resolved(case.engine, preset, place)
    return case.model_copy(update={"engine": engine})


def _speculation(
    drafter: Drafter,
    engine: ServingEngine,
    law: EngineOverhead,
    timer_of: TimerOf,
) -> Speculation:
    """Price the passes of a drafter; the engine's own time is spent once, on the whole step."""
    timer = None
    if drafter.operators:
        shares = Shares(drafter.parallelism, engine.max_num_batched_tokens)
        free = law.model_copy(update={"step_s": 0.0, "sequence_s": 0.0})
        timer = timer_of(drafter.operators, free, Placement(shares))
    accepted = drafter.law
    tree = accepted.verify_tokens if accepted.verify_tokens > accepted.draft_tokens + 1 else None
    return Speculation(accepted.draft_tokens, timer, drafter.reads_verified, tree)


def _engine_notes(case: Case, memory: MemoryUse, drafter: Drafter | None) -> Iterator[str]:
    """Say aloud what the engine's settings leave open."""
    engine = case.engine
    split = case.parallelism
    if (
        split.attention_dp > 1
        and engine.rank_choice != "even"
        and own_schedulers(engine, split) == 1
    ):
        yield (
            f"{case.name}: attention ranks beside stages or context ranks are taken to be evenly "
            "filled; with pp = cp = 1 each has a batch of its own."
        )
    if engine.usable_kv_blocks is not None:
        doubt = doubt_about_blocks(memory, engine.block_tokens, engine.usable_kv_blocks)
        if doubt is not None:
            yield f"{case.name}: {doubt}."
    if drafter is not None:
        law = drafter.law
        yield (
            f"{case.name}: speculative decoding yields {law.tokens_per_step:.2f} tokens a step "
            f"({law.source})."
        )
        yield from (f"{case.name}: {note}." for note in law.notes)


def _encoder_notes(case: Case, work: _Work) -> Iterator[str]:
    """Say aloud what the times of images rest on."""
    if work.alone is not None or work.beside is not None:
        yield (
            f"{case.name}: no image encoder was measured: its times follow laws that were fitted "
            "to language models, and leave out what the host does with images."
        )


def _power(
    accelerator: Accelerator,
    accelerator_id: str,
    calibration: Calibration | None,
    prior: Prior | None,
) -> PowerFit:
    """Find the power law of a chip, or that of the chip which stands in for it."""
    if calibration is not None:
        return calibration.power
    if prior is None:
        raise InputError(
            f"{accelerator_id} has no calibration, and hardware/priors nothing for the family "
            f"{accelerator.family!r}: add a file for either",
            key="system",
        )
    return prior.stand_in(accelerator, accelerator_id).power


def _rank_blocks(case: Case, memory: MemoryUse) -> tuple[int, SequenceBlocks]:
    """Count the KV blocks of one attention rank, and those that each of its sequences holds.

    Context ranks share a sequence's keys and values, and each has the whole of its states.
    """
    engine, cp = case.engine, case.parallelism.cp
    blocks = memory.blocks(engine.block_tokens, engine.usable_kv_blocks)
    held = SequenceBlocks(blocks.growing, blocks.windowed, blocks.fixed * cp)
    return blocks.total * cp, held


def _max_model_len(case: Case, model: Model, memory: MemoryUse) -> int:
    """Longest prompt plus answer: what the model, the settings and one rank's cache allow."""
    longest = min(model.max_positions, case.engine.max_model_len or model.max_positions)
    total, held = _rank_blocks(case, memory)
    if held.held(longest, case.engine.block_tokens, memory.cache.window_tokens) <= total:
        return longest
    return _longest_context(total, held, case.engine.block_tokens, memory)


def _longest_context(total: int, held: SequenceBlocks, size: int, memory: MemoryUse) -> int:
    """Count the tokens of the longest sequence that some blocks hold.

    Without layers that keep the whole context it is the longest that has not filled the window.
    """
    window = memory.cache.window_tokens
    seen = 0 if window is None else blocks_for(window, size)
    beyond_window = total - held.fixed - held.windowed * seen
    if held.growing and beyond_window >= held.growing * seen:
        return beyond_window // held.growing * size
    return (total - held.fixed) // max(held.growing + held.windowed, 1) * size


def _better_engine(case: Case, accelerator: Accelerator, catalog: Catalog) -> Iterator[str]:
    """Name the vendor's own engine where the chosen one was never seen on the chip's family."""
    native, family = catalog.overheads("native").families, accelerator.family
    chosen = catalog.overheads(case.engine.kernels, case.engine.name).families
    if family in native and family not in chosen:
        yield (
            f"{case.name}: the overhead of {case.engine.kernels} on {family} is that of other "
            "chips; engine.name: native has one for it."
        )


def _notes(
    case: Case,
    model: Model,
    accelerator: Accelerator,
    calibration: Calibration | None,
    timer: StepTimer,
) -> list[str]:
    """Say aloud, each once, what was extrapolated, assumed or estimated."""
    notes = []
    if calibration is None:
        notes.append(
            f"{case.name}: calibration: none; nothing was measured on {accelerator.name}, times "
            f"follow laws of other chips ({accelerator.family})."
        )
    if accelerator.speculative:
        notes.append(f"{case.name}: the figures of {accelerator.name} are not the vendor's.")
    if model.estimate:
        notes.append(f"{case.name}: the shape of {model.name} is an estimate, not published.")
    shape = StepShape(
        decode_sequences=1, decode_context_tokens=1, prefill_sequences=1, prefill_tokens=1
    )
    rows = timer.explain(shape)
    notes += [
        f"{case.name}: {row.name}: {row.source}."
        for row in rows
        if row.source.startswith(("extrapolated", "assumed: mean"))
    ]
    networks = [row for row in rows if row.bound == "network" and row.source.startswith("assumed")]
    if networks:
        names = ", ".join(row.name for row in networks)
        notes.append(f"{case.name}: {names}: {networks[0].source}.")
    return notes
