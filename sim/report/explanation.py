"""What a step is made of: the operators behind its time, each beside its speed-of-light time."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Literal

from sim.cost.timer import BUBBLE, Bound, OperatorTime
from sim.cost.work import StepShape, prefill_pairs
from sim.deployment import Deployment
from sim.engine.clock import to_seconds
from sim.engine.links import Link
from sim.errors import InputError, InternalError
from sim.kv_places import tiers_of
from sim.parallelism import Parallelism
from sim.report.caveats import caveats
from sim.report.formats import brief, duration
from sim.service import Service
from sim.units import GB
from sim.workload.programs import MAIN, Call

PREFIX_TOKENS = 1000
"""Prefix whose way back from a slower tier is told."""


@dataclass(frozen=True)
class ExplainedOperator:
    """One row of the table; FLOP and bytes are per step and chip."""

    name: str
    calls: float
    """Per step; not whole where the layers of a pipeline stage are not."""
    flop: float
    bytes: float
    """Memory traffic; of an operator that is bound by the network, its messages."""
    seconds: float
    share_fraction: float
    """Of the step's time."""
    light_s: float
    """Speed-of-light time: the larger of its arithmetic and its memory traffic at the datasheet
    peaks. Messages and overhead have none; a bubble has that of the stages it waits for."""
    compute_s: float
    memory_s: float
    mfu_fraction: float
    """Share of the peak of its number format that it reaches while it runs."""
    mbu_fraction: float
    """Share of the peak memory bandwidth that it reaches while it runs."""
    effective_bytes_per_s: float | None
    """Its bytes over its time; none where it moves nothing."""
    bound: Bound
    source: str


@dataclass(frozen=True)
class ExplainedStep:
    """One step of one replica and the operators that it is made of."""

    case: str
    step: str
    """What is in the step, in words."""
    kind: str
    """``prefill``, ``decode`` or ``encode``."""
    pool: str
    """Role of the pool."""
    model: str
    system: str
    accelerator: str
    caveats: str
    """What is neither measured nor published, in a few words; empty if nothing."""
    split: str
    """How the replica is cut: every axis."""
    cut: str
    """The same in short: the axes that cut anything."""
    notes: tuple[str, ...]
    """What a reader of the table must know."""
    seconds: float
    light_s: float
    """Sum of the speed-of-light times: what the step would take if every operator ran at the
    peaks, messages cost nothing and the engine did neither."""
    operators: tuple[ExplainedOperator, ...]


USUAL_PROMPT_TOKENS = 8192
"""Prompt of the explained prefill step, where neither the user nor a strategy says."""
USUAL_CONTEXT_TOKENS = 1024
"""Keys of each sequence of the explained decode step, likewise."""


def explanation(
    service: Service,
    batch: int,
    context: int | None = None,
    prompt: int | None = None,
    calls: Mapping[str, Call] | None = None,
) -> tuple[ExplainedStep, ...]:
    """Explain a prefill step and a decode step, each of the pool that runs it.

    Parameters
    ----------
    service : Service
    batch : int
        Sequences of the decode step.
    context : int, optional
        Keys that each of them attends to, its new token included; where a call of the pool's model
        is known, those in the middle of its answer.
    prompt : int, optional
        Tokens of the prefill step, one prompt without a cached prefix; where a call is known, those
        of its prompt that one step takes.
    calls : mapping, optional
        A call to each model, as `sim.workload.tasks.first_calls` gives them.

    Returns
    -------
    steps : tuple of ExplainedStep
        In the order of the pools. An encode pool explains the step of a prompt of its own; where
        replicas encode beside the language model, that part of their step comes first.
    """
    steps = []
    for pool in service.pools:
        call = (calls or {}).get(pool.role if pool.role in service.case.other_models else MAIN)
        taken, keys = _prompt_of(pool, prompt, call), _context_of(context, call)
        if pool.images is not None:
            steps.append(_encode_part(pool, pool.images, taken))
        if pool.role != "decode":
            step = _prefill_step(pool, taken)
            if pool.role == "prefill":
                step = replace(step, notes=(*step.notes, _handover(service, taken, step.seconds)))
            steps.append(step)
        if pool.role not in ("encode", "prefill"):
            steps.append(_decode_step(pool, batch, keys))
    return tuple(steps)


def _prompt_of(pool: Deployment, asked: int | None, call: Call | None) -> int:
    """Choose the tokens of a prefill step."""
    if asked is not None or call is None:
        return USUAL_PROMPT_TOKENS if asked is None else asked
    limit = pool.case.engine.max_num_batched_tokens * pool.timer.shares.micro_batches
    return min(call.input_tokens, limit)


def _context_of(asked: int | None, call: Call | None) -> int:
    """Choose the keys of each sequence of a decode step."""
    if asked is not None or call is None:
        return USUAL_CONTEXT_TOKENS if asked is None else asked
    return call.input_tokens + -(-call.output_tokens // 2)


def _encode_part(pool: Deployment, encoder: Deployment, prompt: int) -> ExplainedStep:
    """Explain what the images of a prompt add to a step of replicas that encode them."""
    _check_limit(pool, prompt, "max_num_batched_tokens")
    shape = _one_prompt(prompt, None)
    step = _step(encoder, "encode", f"encode of {prompt:,} tokens, beside the prompt", shape)
    return replace(step, notes=(*_of_chip(encoder), *_beside(pool)))


def _beside(pool: Deployment) -> Iterator[str]:
    """Say how the work of an encoder adds to that of the language model on the same chips."""
    split = pool.case.parallelism
    yield (
        "images: all tokens of this step are of images; it runs before the language model in the "
        "step that takes them into the prompt, and its time adds to that of the prefill. What the "
        "engine spends once a step is in the prefill."
    )
    if split.pp > 1:
        yield f"pp: the first of {split.pp} stages encodes, for all micro-batches."
    if pool.schedulers > 1:
        yield (
            f"attention_dp: each of {split.attention_dp} ranks encodes the images of its own "
            "prompts, and all wait for the one with most; these are the figures of one rank."
        )


def _one_prompt(tokens: int, window: int | None) -> StepShape:
    """Give the step of one prompt without a cached prefix."""
    return StepShape(
        prefill_sequences=1,
        prefill_tokens=tokens,
        prefill_pairs=prefill_pairs(0, tokens),
        prefill_window_pairs=0 if window is None else prefill_pairs(0, tokens, window),
    )


def _prefill_step(pool: Deployment, prompt: int) -> ExplainedStep:
    _check_limit(pool, prompt, "max_num_batched_tokens")
    shape = _one_prompt(prompt, pool.window_tokens)
    kind = "encode" if pool.role == "encode" else "prefill"
    step = _step(pool, kind, f"{kind} of {prompt:,} tokens", shape)
    return step if kind == "encode" else replace(step, notes=(*step.notes, *_tiers(pool)))


def _decode_step(pool: Deployment, batch: int, context: int) -> ExplainedStep:
    _check_limit(pool, batch, "max_num_seqs")
    window = pool.window_tokens
    shape = StepShape(
        decode_sequences=batch,
        decode_context_tokens=batch * context,
        decode_window_tokens=0 if window is None else batch * min(context, window),
    )
    words = f"decode of {batch:,} sequence{'' if batch == 1 else 's'}, {context:,} keys each"
    return _step(pool, "decode", words, shape)


def split_in_words(parallelism: Parallelism) -> str:
    """Say how a replica is cut.

    >>> split_in_words(Parallelism(tp=4, attention_dp=2, ep=8))
    'tp 4 x pp 1 x attention_dp 2 x cp 1 = 8 chips, experts over ep 8'
    """
    cut = parallelism
    chips = "1 chip" if cut.chips == 1 else f"{cut.chips} chips"
    return (
        f"tp {cut.tp} x pp {cut.pp} x attention_dp {cut.attention_dp} x cp {cut.cp} = {chips}, "
        f"experts over ep {cut.ep}"
    )


def cut_in_words(parallelism: Parallelism) -> str:
    """Name the axes along which a replica is cut.

    >>> cut_in_words(Parallelism(tp=4, attention_dp=2, ep=8)), cut_in_words(Parallelism(tp=1))
    ('tp 4 x attention_dp 2, ep 8', 'one chip')
    """
    cut = parallelism
    axes = (("tp", cut.tp), ("pp", cut.pp), ("attention_dp", cut.attention_dp), ("cp", cut.cp))
    chips = " x ".join(f"{axis} {ranks}" for axis, ranks in axes if ranks > 1) or "one chip"
    return chips if cut.ep == 1 else f"{chips}, ep {cut.ep}"


def _check_limit(
    pool: Deployment, asked: int, what: Literal["max_num_seqs", "max_num_batched_tokens"]
) -> None:
    """Refuse a step that the engine would never run.

    Raises
    ------
    InputError
        Naming the setting that limits it.
    """
    limit = getattr(pool.case.engine, what)
    times = pool.case.parallelism.attention_dp
    each = "attention ranks"
    if what == "max_num_batched_tokens":
        times, each = pool.timer.shares.micro_batches, "micro-batches"
    if asked > limit * times:
        many = "" if times == 1 else f" in each of {times} {each}"
        raise InputError(
            f"a step of {asked} is beyond engine.{what} = {limit}{many} of case "
            f"{pool.case.name!r}; ask for less, or raise it with --set engine.{what}=...",
            key=f"engine.{what}",
        )


def _step(deployment: Deployment, kind: str, words: str, shape: StepShape) -> ExplainedStep:
    rows = deployment.explain(shape)
    total_s = sum(float(row.seconds) for row in rows)
    operators = _with_waiting(deployment, shape, [_operator(row, total_s) for row in rows])
    return ExplainedStep(
        case=deployment.case.name,
        step=words,
        kind=kind,
        pool=deployment.role,
        model=deployment.model.name,
        system=deployment.case.system,
        accelerator=deployment.accelerator.name,
        caveats=caveats(deployment),
        split=split_in_words(deployment.case.parallelism),
        cut=cut_in_words(deployment.case.parallelism),
        notes=(*_padding(deployment, shape), *_notes(deployment), *_varying(deployment)),
        seconds=total_s,
        light_s=sum(row.light_s for row in operators),
        operators=operators,
    )


def _with_waiting(
    deployment: Deployment, shape: StepShape, rows: list[ExplainedOperator]
) -> tuple[ExplainedOperator, ...]:
    """Give a bubble its ideal time: that of the stages which a perfect chip would wait for too."""
    timer = deployment.timer
    dealt = timer.shares.counts(
        shape.decode_sequences, shape.prefill_sequences, shape.prefill_tokens
    )
    in_stage = {operator.name for operator in timer.operators if operator.scope != "head"}
    stage_s = sum(row.light_s for row in rows if row.name in in_stage)
    waiting_s = stage_s * float(dealt.runs - dealt.micro_batches) / float(dealt.micro_batches)
    return tuple(replace(row, light_s=waiting_s) if row.source == BUBBLE else row for row in rows)


def _notes(deployment: Deployment) -> list[str]:
    """Say what the figures of the table rest on and whose they are."""
    notes, split = _of_chip(deployment), deployment.case.parallelism
    if split.pp > 1:
        notes.append(
            f"pp: the figures are those of one chip of the slowest of {split.pp} stages, over all "
            "micro-batches; pipeline_bubble is the time in which it waits for the others, and "
            "its ideal that of perfect stages."
        )
    if split.attention_dp > 1:
        notes.append(
            "attention_dp: the batch is dealt evenly, and the figures are those of the fullest of "
            f"{split.attention_dp} ranks.{_waiting(deployment)}"
        )
    return notes


def _of_chip(deployment: Deployment) -> list[str]:
    """Say what nobody measured or published."""
    notes = []
    if deployment.calibration is None:
        notes.append(
            f"{deployment.accelerator.name} has no calibration: nothing was measured on it, and "
            f"times follow laws of other chips ({deployment.accelerator.family})."
        )
    if deployment.accelerator.speculative:
        notes.append(f"The figures of {deployment.accelerator.name} are not the vendor's.")
    if deployment.model.estimate:
        notes.append(f"The shape of {deployment.model.name} is an estimate, not published.")
    return notes


def _padding(deployment: Deployment, shape: StepShape) -> Iterator[str]:
    """Say which size a step is priced as, where that is not its own."""
    timer = deployment.timer
    padding, queries = timer.execution.padding, timer.shares.queries
    dealt = timer.shares.counts(
        shape.decode_sequences, shape.prefill_sequences, shape.prefill_tokens
    )
    tokens = int(queries * dealt.decode + dealt.prefill)
    filling = int(padding.filling(queries * dealt.decode, dealt.prefill))
    if filling:
        whose = "" if timer.shares.whole else " on the fullest chip"
        size = "compiled size" if padding.static else "captured graph"
        skipped = "" if padding.static else "; attention skips the padding"
        yield (
            f"padding: {_tokens(tokens)}{whose} are priced as {tokens + filling:,}, the next "
            f"{size}{skipped}."
        )


def _tokens(count: int) -> str:
    return f"{count:,} token{'' if count == 1 else 's'}"


def _handover(service: Service, prompt: int, step_s: float) -> str:
    """Say what it takes to get the keys and values of a prompt to where it is answered.

    As `sim.engine.transport` does: at the rate of the slower port, and layer by layer, where that
    is chosen, while the prompt is being computed.
    """
    path = service.kv_path
    if path is None:
        raise InternalError("a prefill pool has no way to a decode pool")
    sent_bytes = prompt * service.answer_pool.kv_bytes_per_token
    slower = min(path.out_port, path.in_port, key=lambda port: port.bytes_per_s)
    sent_s = sent_bytes / slower.bytes_per_s
    hidden_s = min(sent_s, step_s) * path.overlap_fraction
    after_s = sent_s - hidden_s + max(path.out_port.latency_s, path.in_port.latency_s)
    hidden = f" {duration(hidden_s)} more pass while the prompt is computed." if hidden_s else ""
    return (
        f"kv_transfer: keys and values of {_tokens(prompt)}, {brief(sent_bytes / GB)} GB, go to "
        f"the decode pool at {brief(slower.bytes_per_s / GB)} GB/s a replica ({slower.source}): "
        f"{duration(after_s)} after the step, before the second token, if nothing else is on its "
        f"way.{hidden}"
    )


def _tiers(deployment: Deployment) -> Iterator[str]:
    """Say how long a prefix takes from the places outside the chips where it may lie."""
    tiers, size = tiers_of(deployment), deployment.case.engine.block_tokens
    blocks = max(PREFIX_TOKENS // size, 1)
    if tiers:
        times = ", ".join(
            f"from {tier.name} {duration(_there_s(tier.read.build(), blocks * tier.block_bytes))}"
            for tier in tiers
        )
        moved = brief(blocks * tiers[0].block_bytes / GB)
        yield (
            f"kv_tiers: a prefix of {_tokens(blocks * size)} ({moved} GB) that the chips no longer "
            f"hold comes {times}, if nothing else is on its way."
        )


def _there_s(link: Link, size_bytes: float) -> float:
    """Time until a message is there, over a link that is free."""
    return to_seconds(link.reserve(0, size_bytes)[1])


def _varying(deployment: Deployment) -> Iterator[str]:
    """Say what the varying load of experts adds."""
    cv, load = deployment.case.engine.expert_imbalance, deployment.mean_expert_load
    imbalance = deployment.imbalance(seed=0)
    if imbalance is not None:
        split = deployment.case.parallelism
        fullest = (
            f"the fullest of {split.ep} expert ranks has {load:.2f} times the load that routing "
            "expects in a mean period; the row expert_imbalance is what that adds to the experts"
            if split.ep > 1
            else "with one expert rank there is none that others wait for"
        )
        yield (
            f"expert_imbalance {brief(cv)}: {fullest}. A run draws a load for every "
            f"{imbalance.period_steps} steps."
        )


def _waiting(deployment: Deployment) -> str:
    """Say what a run adds where attention ranks have batches of their own."""
    if deployment.schedulers == 1:
        return ""
    return (
        " In a run each has a batch of its own: a step lasts as long as on the slowest rank, and "
        "the others wait."
    )


def _operator(row: OperatorTime, total_s: float) -> ExplainedOperator:
    seconds, moved = float(row.seconds), float(row.bytes)
    compute_s, memory_s = float(row.compute_s), float(row.memory_s)
    return ExplainedOperator(
        name=row.name,
        calls=float(row.calls),
        flop=float(row.flop),
        bytes=moved,
        seconds=seconds,
        share_fraction=seconds / total_s,
        light_s=max(compute_s, memory_s),
        compute_s=compute_s,
        memory_s=memory_s,
        mfu_fraction=compute_s / seconds if seconds > 0 else 0.0,
        mbu_fraction=memory_s / seconds if seconds > 0 else 0.0,
        effective_bytes_per_s=moved / seconds if moved > 0 and seconds > 0 else None,
        bound=row.bound,
        source=row.source,
    )
