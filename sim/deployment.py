"""A case resolved against the catalogue: the chips, the model on them, and how long steps take."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property

from sim.catalog import Catalog
from sim.cost.comms import Network
from sim.cost.kernels import KernelShelf
from sim.cost.layers import operators
from sim.cost.memory import EngineShare, MemoryUse, engine_bytes, memory_use
from sim.cost.timer import OperatorTime, StepTable, StepTimer
from sim.cost.work import Number, Rows, StepShape
from sim.efficiency import Calibration
from sim.engine.clock import to_ticks
from sim.engine.cluster import ReplicaPlan
from sim.engine.scheduler import BatchLimits
from sim.engine.ticks import TickTable
from sim.errors import InfeasibleError, InputError
from sim.hardware import Accelerator, System
from sim.model import Model
from sim.parallelism import Parallelism, problems
from sim.precision import WEIGHT_ONLY, Precision
from sim.scenario import Case, ServingEngine
from sim.units import DTYPE_BYTES, GIB, Dtype

Quantity = Callable[[OperatorTime], Number]
"""What to tabulate of a priced operator."""


@dataclass(frozen=True)
class Deployment:
    """What a case puts into service."""

    case: Case
    system: System
    accelerator: Accelerator
    calibration: Calibration
    model: Model
    memory: MemoryUse
    timer: StepTimer
    replicas: int
    kv_blocks: int
    """Per replica."""
    max_model_len: int
    notes: tuple[str, ...]
    """What a reader of any forecast must know about it."""

    @property
    def chips_per_replica(self) -> int:
        """Chips of one engine instance."""
        return self.case.parallelism.chips

    @property
    def chips(self) -> int:
        """Chips that belong to a replica."""
        return self.replicas * self.chips_per_replica

    @property
    def window_tokens(self) -> int | None:
        """Sliding window of the model's windowed layers, if it has any."""
        return self.model.window_tokens

    @property
    def peak_flop_per_s(self) -> float:
        """Dense peak of one chip in the format that the weights are computed in."""
        return self.timer.kernels.peak_flop_per_s(self.compute_dtype)

    @property
    def compute_dtype(self) -> Dtype:
        """Format that the weights are computed in: 16 bits for formats of weights alone."""
        weights = self.case.precision.weights
        return "bf16" if weights in WEIGHT_ONLY else weights

    @cached_property
    def seconds(self) -> StepTable:
        """Time of any step."""
        return self._table(lambda timed: timed.seconds, overhead_per_s=1.0)

    @cached_property
    def joules(self) -> StepTable:
        """Energy of one chip in any step, idle power included."""
        law = self.calibration.power.law
        tdp_w = self.accelerator.power.tdp_w.value
        awake_w = tdp_w * law.active_fraction
        return self._table(lambda timed: self.timer.joules(timed, law), overhead_per_s=awake_w)

    @cached_property
    def flop(self) -> StepTable:
        """Arithmetic of one chip in any step."""
        return self._table(lambda timed: timed.flop, overhead_per_s=0.0)

    @cached_property
    def memory_seconds(self) -> StepTable:
        """Memory traffic of one chip in any step, as seconds at peak bandwidth."""
        return self._table(lambda timed: timed.memory_s, overhead_per_s=0.0)

    @cached_property
    def plan(self) -> ReplicaPlan:
        """What the engine needs to know."""
        engine = self.case.engine
        return ReplicaPlan(
            limits=BatchLimits(engine.max_num_seqs, engine.max_num_batched_tokens),
            kv_blocks=self.kv_blocks,
            block_tokens=engine.block_tokens,
            window_tokens=self.window_tokens,
            pace=TickTable(self.seconds),
            max_model_len=self.max_model_len,
            answer_ticks=to_ticks(self.timer.overhead.frontend_s),
        )

    def explain(self, shape: StepShape) -> list[OperatorTime]:
        """List the operators of one step with their work, time, bound and source."""
        return self.timer.explain(shape)

    def _table(self, quantity: Quantity, *, overhead_per_s: float) -> StepTable:
        engine = self.case.engine
        limits: dict[Rows, int] = {
            "tokens": engine.max_num_batched_tokens,
            "sequences": engine.max_num_seqs + 1,
            "decode_sequences": engine.max_num_seqs,
            "prefill_tokens": engine.max_num_batched_tokens,
        }
        return StepTable.compile(
            self.timer, quantity, lambda seconds: overhead_per_s * seconds, limits
        )


def deploy(case: Case, catalog: Catalog) -> Deployment:
    """Resolve a case: look everything up, check that it fits, and build its timer.

    Raises
    ------
    InputError
        A name that no catalogue knows, or a precision that the chip does not have.
    InfeasibleError
        A split that is not legal on this system, or a model that does not fit into its memory;
        with the numbers and a way out.
    """
    system = catalog.system(case.system)
    accelerator = catalog.accelerator(system.accelerator)
    model = catalog.model(case.model)
    calibration = catalog.calibration(system.accelerator)
    if calibration is None:
        raise InputError(
            f"case {case.name!r}: {system.accelerator} has no calibration yet; "
            f"calibrated are {', '.join(catalog.names('calibrations'))}"
        )
    _check_split(case, model, system)
    engine = case.engine
    memory = _memory(case, model, accelerator)
    kv_blocks = memory.kv_blocks(engine.block_tokens)
    if kv_blocks == 0:
        raise _does_not_fit(case, system, model, accelerator)
    overhead = catalog.overheads(engine.name).of_family(accelerator.family)
    timer = StepTimer(
        operators(model, case.parallelism, case.precision),
        accelerator,
        KernelShelf(
            accelerator,
            system.accelerator,
            calibration,
            engine.name,
            overhead.source,
        ),
        Network(system.accelerator, calibration, engine.name),
        overhead.law,
    )
    return Deployment(
        case=case,
        system=system,
        accelerator=accelerator,
        calibration=calibration,
        model=model,
        memory=memory,
        timer=timer,
        replicas=_replicas(case, system),
        kv_blocks=kv_blocks,
        max_model_len=min(
            model.max_positions,
            engine.max_model_len or model.max_positions,
            kv_blocks * engine.block_tokens,
        ),
        notes=(
            *_notes(case, model, timer),
            *overhead.limits(case.name, case.model, engine.max_num_seqs),
        ),
    )


def _check_split(case: Case, model: Model, system: System) -> None:
    domain = system.domain_chips
    broken = problems(case.parallelism, model, domain)
    if broken:
        splits = (Parallelism(tp=tp) for tp in _POWERS_OF_TWO)
        legal = [str(split.tp) for split in splits if not problems(split, model, domain)]
        way_out = f"; legal are tp = {', '.join(legal)}"
        raise InfeasibleError(f"case {case.name!r}: " + "; ".join(broken) + way_out)


def _replicas(case: Case, system: System) -> int:
    chips = system.chips * case.systems
    fitting = chips // case.parallelism.chips
    wanted = fitting if case.replicas is None else case.replicas
    if wanted > fitting or fitting == 0:
        raise InfeasibleError(
            f"case {case.name!r}: {wanted or 1} replicas of {case.parallelism.chips} chips need "
            f"{(wanted or 1) * case.parallelism.chips} chips, {case.systems} x {case.system} has "
            f"{chips}: systems >= {-(-wanted * case.parallelism.chips // system.chips) or 1}"
        )
    return wanted


def _memory(case: Case, model: Model, accelerator: Accelerator) -> MemoryUse:
    engine, reserved = case.engine, case.engine.reserved_bytes
    share = EngineShare(
        engine.memory_fraction,
        engine_bytes(case.parallelism) if reserved is None else reserved,
        engine.max_num_batched_tokens,
        engine.max_num_seqs,
    )
    return memory_use(model, case.parallelism, case.precision, accelerator, share)


def _does_not_fit(
    case: Case, system: System, model: Model, accelerator: Accelerator
) -> InfeasibleError:
    """Say by how much a model misses the memory, and which changes would make it fit."""
    memory, chips = _memory(case, model, accelerator), case.parallelism.chips
    usable = memory.budget_bytes - memory.activations_bytes - memory.engine_bytes
    weights_gib, usable_gib = memory.weights_bytes * chips / GIB, chips * usable / GIB
    return InfeasibleError(
        f"case {case.name!r}: {model.name} needs {weights_gib:.0f} GiB of weights per replica and "
        f"room for KV cache, {chips} x {system.accelerator} has {usable_gib:.0f} GiB usable: "
        + " or ".join(_ways_to_fit(case, system, model, accelerator))
    )


def _ways_to_fit(
    case: Case, system: System, model: Model, accelerator: Accelerator
) -> Iterator[str]:
    """Try wider splits and narrower weights, and name the first of each that leaves KV blocks."""
    block = case.engine.block_tokens

    def fits(parallelism: Parallelism, precision: Precision) -> bool:
        if problems(parallelism, model, system.domain_chips):
            return False
        changed = case.model_copy(update={"parallelism": parallelism, "precision": precision})
        return _memory(changed, model, accelerator).kv_blocks(block) > 0

    wider = (Parallelism(tp=tp) for tp in _POWERS_OF_TWO if tp > case.parallelism.tp)
    tp = next((split.tp for split in wider if fits(split, case.precision)), None)
    if tp is not None:
        yield f"tp >= {tp}"
    narrower: tuple[Dtype, ...] = ("fp8", "nvfp4")
    for weights in narrower:
        known = weights in accelerator.peak_flop_per_s
        smaller = DTYPE_BYTES[weights] < DTYPE_BYTES[case.precision.weights]
        precision = case.precision.model_copy(update={"weights": weights})
        if known and smaller and fits(case.parallelism, precision):
            yield f"{weights} weights"
            break
    usual = case.model_copy(update={"engine": ServingEngine()})
    if _memory(usual, model, accelerator).kv_blocks(block) > 0:
        yield "the default engine.memory_fraction, reserved_bytes and token budget"
    else:
        yield "a system with more memory per scale-up domain"


_POWERS_OF_TWO = (1, 2, 4, 8, 16, 32, 64)


def _notes(case: Case, model: Model, timer: StepTimer) -> list[str]:
    """Say aloud what was extrapolated, assumed or estimated."""
    notes = []
    if model.estimate:
        notes.append(f"{case.name}: the shape of {model.name} is an estimate, not published.")
    if model.window_tokens is not None:
        notes.append(
            f"{case.name}: layers with a sliding window are charged KV memory for the whole "
            "context, so long contexts fit better than forecast."
        )
    shape = StepShape(decode_sequences=1, decode_context_tokens=1, prefill_tokens=1)
    notes += [
        f"{case.name}: {row.name}: {row.source}."
        for row in timer.explain(shape)
        if row.source.startswith(("extrapolated", "assumed: mean"))
    ]
    return notes
