"""From the settings of a serving engine to what the scheduler and the cost model need of them."""

from collections.abc import Callable

from sim.cost.execution import Execution, HostTime, Padding, Speculation
from sim.cost.shares import Shares
from sim.engine.admission import AnswerEstimate
from sim.engine.batch import DecodeBatch
from sim.engine.cluster import LinkPlan, TierPlan
from sim.engine.decode_steps import DecodeSteps
from sim.engine.kv import SequenceBlocks
from sim.engine.rules import SchedulerRules
from sim.engine.speculative import SpeculativeBatch
from sim.overhead import EngineOverhead
from sim.parallelism import Parallelism
from sim.serving import ServingEngine
from sim.speculation import AcceptanceLaw


def scheduler_rules(
    engine: ServingEngine,
    shares: Shares,
    window_tokens: int | None,
    law: AcceptanceLaw | None = None,
) -> SchedulerRules:
    """Give what each scheduler of a replica takes in: limits of its micro-batches together.

    Where attention ranks share one batch the limits are those of all ranks, and a prompt, which
    stays on one rank, gets the tokens of that rank alone.

    Parameters
    ----------
    engine : ServingEngine
        With every setting resolved.
    shares : Shares
        How the chips share a batch.
    window_tokens : int, optional
        Keys that windowed layers see at most.
    law : AcceptanceLaw, optional
        Of speculative decoding.
    """
    ranks = shares.parallelism.attention_dp // own_schedulers(engine, shares.parallelism)
    tokens = engine.max_num_batched_tokens * shares.micro_batches
    own = [tokens] if ranks > 1 else []
    if engine.max_chunk_tokens is not None:
        own.append(engine.max_chunk_tokens)
    return SchedulerRules(
        max_num_seqs=engine.max_num_seqs * ranks,
        max_num_batched_tokens=tokens * ranks,
        max_chunk_tokens=min(own, default=None),
        max_prompts_per_step=engine.max_prompts_per_step,
        chunked_prefill=engine.chunked_prefill,
        prefill_first=engine.composition == "prefill_first",
        watermark_fraction=engine.watermark_fraction,
        whole_prompt_must_fit=engine.whole_prompt_must_fit,
        steps_ahead=engine.steps_ahead,
        poll_interval_steps=engine.poll_interval_steps,
        batch_wait_steps=engine.batch_wait_steps,
        batch_wait_tokens=engine.batch_wait_fraction * tokens * ranks,
        tokens_per_sequence=1 if law is None else law.verify_tokens,
        window_tokens=window_tokens,
    )


def own_schedulers(engine: ServingEngine, split: Parallelism) -> int:
    """Count the schedulers of a replica: one for each attention rank, unless they share a batch.

    >>> own_schedulers(ServingEngine(), Parallelism(tp=1, attention_dp=8))
    8
    >>> own_schedulers(ServingEngine(rank_choice="even"), Parallelism(tp=1, attention_dp=8))
    1
    """
    apart = engine.rank_choice != "even" and split.pp == split.cp == 1
    return split.attention_dp if apart else 1


def answer_estimate(engine: ServingEngine) -> AnswerEstimate | None:
    """Give the share of the answers that an engine sets aside, where it estimates one."""
    if engine.admission != "estimated" or engine.answer_estimate is None:
        return None
    return AnswerEstimate(**engine.answer_estimate.model_dump())


def execution(engine: ServingEngine, speculation: Speculation | None) -> Execution:
    """Give how steps run beside their kernels: padded sizes, time of the host, drafts."""
    return Execution(
        _padding(engine, speculation), _host_time(engine), speculation, engine.eager_prompts
    )


def new_batch(
    engine: ServingEngine,
    law: AcceptanceLaw | None,
    blocks: SequenceBlocks,
    window_tokens: int | None,
    seed: int,
) -> Callable[[], DecodeBatch] | None:
    """Give what makes the batch of decoding sequences where several tokens come out of a step."""
    if law is None:
        return None
    return lambda: SpeculativeBatch(
        engine.block_tokens,
        DecodeSteps(law, seed),
        law.draft_tokens,
        window_tokens,
        blocks,
        by_priority=engine.order == "priority",
    )


def _padding(engine: ServingEngine, speculation: Speculation | None) -> Padding:
    queries = 1 if speculation is None else speculation.queries
    strict = bool(engine.decode_buckets)
    sizes = engine.decode_buckets or engine.graph_sizes
    decode_sizes = tuple(size * queries for size in sizes)
    prefill_sizes = engine.prefill_buckets
    if engine.kernels == "vllm" and not prefill_sizes and not strict:
        prefill_sizes = decode_sizes  # steps with prompts run through graphs too, piece by piece
    return Padding(decode_sizes, prefill_sizes, static=strict, strict=strict)


def with_host(law: EngineOverhead, engine: ServingEngine) -> EngineOverhead:
    """Leave what is stated of the host out of the fitted overhead, which contains it."""
    stated = {"step_s": engine.host_step_s, "sequence_s": engine.host_sequence_s}
    return law.model_copy(update={key: 0.0 for key, s in stated.items() if s is not None})


def _host_time(engine: ServingEngine) -> HostTime:
    """Give the time of the host, where it is stated apart from the fitted overhead."""
    return HostTime(
        engine.host_step_s or 0.0, engine.host_sequence_s or 0.0, engine.host_overlapped
    )


def tier_plans(engine: ServingEngine, bytes_per_token: float) -> tuple[TierPlan, ...]:
    """Give the places outside the chips where an engine keeps prefixes.

    Parameters
    ----------
    engine : ServingEngine
    bytes_per_token : float
        Keys and values of one token on all chips of a replica.
    """
    block_bytes = bytes_per_token * engine.block_tokens
    return tuple(
        TierPlan(
            name=tier.name,
            capacity_blocks=int(tier.capacity_bytes // block_bytes),
            block_bytes=block_bytes,
            read=LinkPlan(tier.read_bytes_per_s, tier.latency_s),
            write=LinkPlan(tier.write_bytes_per_s, tier.latency_s),
            shared=tier.shared,
            through=tier.write == "through",
        )
        for tier in engine.kv_tiers
    )
