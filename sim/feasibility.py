"""Whether a case can run at all: legal splits, enough chips, enough memory, and the ways out."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import groupby

from pydantic import ValidationError

from sim.cost.memory import MemoryUse, engine_share, memory_use, slower_tiers
from sim.errors import InfeasibleError, Problem, with_problems
from sim.hardware import Accelerator, System
from sim.model import Model
from sim.parallelism import Parallelism, broken_rules, problems
from sim.precision import Precision
from sim.scenario import Case
from sim.serving import ServingEngine
from sim.units import DTYPE_BYTES, GIB, Dtype

_POWERS_OF_TWO = (1, 2, 4, 8, 16, 32, 64)

Fits = Callable[[Case], bool]
"""Whether a changed case would be legal and fit."""


def check_split(case: Case, model: Model, system: System) -> None:
    """Refuse a split that breaks a rule.

    Raises
    ------
    InfeasibleError
        With every rule that is broken, and the changes of one key that make the split legal.
    """
    broken = broken_rules(case.parallelism, model, system, case.routing.redundant_experts)
    if broken:
        legal = " or ".join(_legal_changes(case, model, system))
        way_out = f"; legal: {legal}" if legal else ""
        said = [Problem(f"{message}{way_out}", keys) for message, keys in broken]
        raise with_problems(InfeasibleError, [each.under(("parallelism",)) for each in said])


def _legal_changes(case: Case, model: Model, system: System) -> Iterator[str]:
    """Change one key of a split at a time; without a single way out, leave only tensor ranks.

    >>> from sim.catalog import open_catalog
    >>> from sim.scenario import load_scenario
    >>> catalog = open_catalog()
    >>> case = load_scenario(catalog.path("scenarios", "quickstart")).cases[0]
    >>> wrong = case.model_copy(update={"parallelism": Parallelism(tp=4, cp=2, pp=99)})
    >>> model, system = catalog.model("llama_3_1_70b"), catalog.system("h100_sxm_x8")
    >>> list(_legal_changes(wrong, model, system))
    ['pp = 1 to 80']
    """
    asked, copies = case.parallelism, case.routing.redundant_experts

    def legal(changed: Mapping[str, object]) -> bool:
        try:  # what `model_copy` would not check: that ep divides the chips that share experts
            split = Parallelism.model_validate(changed)
        except ValidationError:
            return False
        return not problems(split, model, system, copies)

    given = asked.model_dump(exclude_unset=True)
    ranks = tuple(n for n in _POWERS_OF_TWO if n <= system.domain_chips)
    stages = range(1, model.layers + 1)  # their numbers of layers may differ
    changes = {"tp": ranks, "pp": stages, "attention_dp": ranks, "cp": ranks, "ep": ranks}
    found = {
        key: _runs([n for n in values if n != getattr(asked, key) and legal({**given, key: n})])
        for key, values in changes.items()
    }
    if not any(found.values()):
        alone = _runs([tp for tp in ranks if legal({"tp": tp})])
        found = {"nothing but tp": alone}
    yield from (f"{key} = {', '.join(ways)}" for key, ways in found.items() if ways)


def _runs(numbers: Sequence[int]) -> list[str]:
    """Write rising numbers, four and more that follow each other in short.

    >>> _runs([1, 2, 4, 8]), _runs([1, 2, 3, 4, 5, 8])
    (['1', '2', '4', '8'], ['1 to 5', '8'])
    """
    # numbers that follow each other are equally far from their places
    places = groupby(enumerate(numbers), lambda each: each[1] - each[0])
    runs = [[number for _, number in run] for _, run in places]
    words = [[f"{run[0]} to {run[-1]}"] if len(run) > 3 else map(str, run) for run in runs]
    return [word for run in words for word in run]


def count_replicas(case: Case, system: System) -> int:
    """Count the replicas that run: those asked for, or as many as the chips allow.

    A replica may span systems.

    Raises
    ------
    InfeasibleError
        There are too few chips.
    """
    chips = system.chips * case.systems
    fitting = chips // case.parallelism.chips
    wanted = fitting if case.built_replicas is None else case.built_replicas
    if wanted > fitting or fitting == 0:
        raise _too_few_chips(case, system, fitting)
    return wanted


def _too_few_chips(case: Case, system: System, fitting: int) -> InfeasibleError:
    """Say how many chips the replicas need, and how to do with those that there are."""
    asked, each = case.built_replicas or 1, case.parallelism.chips
    spares = case.spares if case.built_replicas else 0
    serving = asked - spares
    who = f"{serving} replica{'s' if serving > 1 else ''}"
    who += f" and {spares} spare{'s' if spares > 1 else ''}" if spares else ""
    who += f" of {each} chip{'s' if each > 1 else ''} need{'s' if asked == 1 else ''}"
    most = max(case.replicas or 0, 0)
    scales = case.autoscaling is not None and case.autoscaling.max_replicas >= most
    count = "autoscaling.max_replicas" if scales else "replicas"
    ways = [f"systems >= {-(-asked * each // system.chips)}"]
    split = case.parallelism
    widest = max(("tp", "pp", "attention_dp", "cp"), key=lambda axis: int(getattr(split, axis)))
    key = [f"parallelism.{widest}"]
    if fitting:
        key = [count, "faults.spares", "systems"]
        if spares and fitting >= serving:
            ways.append(f"faults.spares <= {fitting - serving}")
            key.insert(0, "faults.spares")
        if fitting > spares:
            ways.append(f"{count} <= {fitting - spares}")
    else:
        ways.append("fewer chips per replica")
    return InfeasibleError(
        f"{who} {asked * each} chips, {case.systems} x {case.system} has "
        f"{system.chips * case.systems}: {' or '.join(ways)}",
        key=key,
    )


Beside = Callable[[MemoryUse], MemoryUse]
"""Puts something else into the memory of a chip: a drafter."""


def fitted_memory(
    case: Case,
    model: Model,
    accelerator: Accelerator,
    system: System,
    beside: Beside | None = None,
) -> MemoryUse:
    """Divide the memory of one chip of a case.

    ``beside`` takes what else lies there.

    Raises
    ------
    InfeasibleError
        The weights leave no room for KV cache, or more is to be offloaded than slower memory
        holds; with the numbers and a way out.
    """
    memory = _memory(case, model, accelerator)
    if beside is not None:
        memory = beside(memory)
    offloaded = memory.offloaded_weights_bytes + memory.offloaded_kv_bytes
    room = sum(tier.capacity_bytes.value for tier in slower_tiers(accelerator, system))
    if offloaded > room:
        known = f"{int(room / GIB)} GiB" if room else "no slower memory that is known"
        raise InfeasibleError(
            f"{offloaded / GIB:.0f} GiB are to be offloaded "
            f"(engine.offload_weights_bytes, offload_kv_bytes) but each {system.accelerator} of "
            f"{case.system} has {known} beside its fastest; "
            + (f"offload at most {known}, together" if room else "offload nothing"),
            key=["engine.offload_weights_bytes", "engine.offload_kv_bytes"],
        )
    if not _holds_a_sequence(case, memory):
        raise _does_not_fit(case, system, model, accelerator)
    return memory


def _memory(case: Case, model: Model, accelerator: Accelerator) -> MemoryUse:
    share = engine_share(case.engine, case.parallelism)
    return memory_use(model, case.parallelism, case.precision, accelerator, share, case.routing)


def _holds_a_sequence(case: Case, memory: MemoryUse) -> bool:
    """Tell whether the cache of an attention rank holds the shortest sequence."""
    engine = case.engine
    cp, blocks = case.parallelism.cp, memory.blocks(engine.block_tokens, engine.usable_kv_blocks)
    least = blocks.growing + blocks.windowed + blocks.fixed * cp
    return 0 < least <= blocks.total * cp


def _does_not_fit(
    case: Case, system: System, model: Model, accelerator: Accelerator
) -> InfeasibleError:
    """Say by how much a model misses the memory, and which changes would make it fit."""
    memory, chips = _memory(case, model, accelerator), case.parallelism.chips
    usable = memory.usable_bytes
    weights = memory.weights_bytes - memory.offloaded_weights_bytes
    weights_gib, usable_gib = weights * chips / GIB, max(0.0, chips * usable / GIB)
    return InfeasibleError(
        f"{model.name} needs {weights_gib:.0f} GiB of weights per replica and "
        f"room for KV cache, {chips} x {system.accelerator} has {usable_gib:.0f} GiB usable: "
        + " or ".join(_ways_to_fit(case, system, model, accelerator)),
        key="model",
    )


def _ways_to_fit(
    case: Case, system: System, model: Model, accelerator: Accelerator
) -> Iterator[str]:
    """Try wider splits, narrower weights and slower memory; name the first of each that fits."""

    def fits(changed: Case) -> bool:
        if problems(changed.parallelism, model, system, case.routing.redundant_experts):
            return False
        return _holds_a_sequence(changed, _memory(changed, model, accelerator))

    yield from _wider_splits(case, system, model, fits)
    narrower: tuple[Dtype, ...] = ("fp8", "nvfp4")
    for weights in narrower:
        known = weights in accelerator.peak_flop_per_s
        smaller = DTYPE_BYTES[weights] < DTYPE_BYTES[case.precision.weights]
        if known and smaller and fits(_with_weights(case, weights)):
            yield f"{weights} weights"
            break
    yield from _offloads(case, system, model, accelerator)
    usual = case.model_copy(update={"engine": ServingEngine()})
    if fits(usual):
        yield "the default engine.memory_fraction, reserved_bytes and token budget"
    else:
        yield "a system with more memory per scale-up domain"


def _wider_splits(case: Case, system: System, model: Model, fits: Fits) -> Iterator[str]:
    """Find more tensor ranks inside a domain, else more pipeline stages."""
    inside = (tp for tp in _POWERS_OF_TWO if case.parallelism.tp < tp <= system.domain_chips)
    tp = next((tp for tp in inside if fits(_with_split(case, Parallelism(tp=tp)))), None)
    if tp is not None:
        yield f"tp >= {tp}"
        return
    for pp in range(case.parallelism.pp + 1, model.layers + 1):
        wider = case.parallelism.model_copy(update={"pp": pp})
        if fits(_with_split(case, wider)):
            yield f"pp >= {pp} with systems >= {-(-wider.chips // system.chips)}"
            return


def _offloads(case: Case, system: System, model: Model, accelerator: Accelerator) -> Iterator[str]:
    """Find how much of the weights has to lie in slower memory, where there is any."""
    tiers = slower_tiers(accelerator, system)
    memory = _memory(case, model, accelerator)
    missing = memory.offloaded_weights_bytes - memory.local_kv_bytes
    wanted = (int(missing / GIB) + 1) * GIB
    if wanted <= min(sum(tier.capacity_bytes.value for tier in tiers), memory.weights_bytes):
        yield f"engine.offload_weights_bytes >= {wanted / GIB:.0f} GiB ({tiers[0].kind})"


def _with_split(case: Case, parallelism: Parallelism) -> Case:
    return case.model_copy(update={"parallelism": parallelism})


def _with_weights(case: Case, weights: Dtype) -> Case:
    precision: Precision = case.precision.model_copy(update={"weights": weights})
    return case.model_copy(update={"precision": precision})
