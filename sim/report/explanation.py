"""The operator table behind a step time."""

from dataclasses import dataclass

from rich.table import Table

from sim.cost.timer import OperatorTime
from sim.cost.work import StepShape, prefill_pairs
from sim.deployment import Deployment
from sim.errors import InputError
from sim.units import GIGA, MICROSECOND_S, MILLISECOND_S


@dataclass(frozen=True)
class ExplainedOperator:
    """One row of the table; FLOP and bytes are per step and chip."""

    name: str
    calls: int
    flop: float
    bytes: float
    seconds: float
    share_fraction: float
    bound: str
    source: str


@dataclass(frozen=True)
class ExplainedStep:
    """One step of one replica and the operators that it is made of."""

    case: str
    step: str
    """What is in the step, in words."""
    seconds: float
    operators: tuple[ExplainedOperator, ...]


def explanation(
    deployment: Deployment, batch: int, context: int, prompt: int
) -> tuple[ExplainedStep, ExplainedStep]:
    """Explain a prefill step and a decode step.

    Parameters
    ----------
    deployment : Deployment
    batch : int
        Sequences of the decode step.
    context : int
        Keys that each of them attends to, its new token included.
    prompt : int
        Tokens of the prefill step, one prompt without a cached prefix.
    """
    _check_limits(deployment, batch, prompt)
    window = deployment.window_tokens
    prefill = StepShape(
        prefill_sequences=1,
        prefill_tokens=prompt,
        prefill_pairs=prefill_pairs(0, prompt),
        prefill_window_pairs=0 if window is None else prefill_pairs(0, prompt, window),
    )
    decode = StepShape(
        decode_sequences=batch,
        decode_context_tokens=batch * context,
        decode_window_tokens=0 if window is None else batch * min(context, window),
    )
    return (
        _step(deployment, f"prefill of {prompt:,} tokens", prefill),
        _step(deployment, f"decode of {batch} sequences, {context:,} keys each", decode),
    )


def _check_limits(deployment: Deployment, batch: int, prompt: int) -> None:
    """Refuse a step that the engine would never run.

    Raises
    ------
    InputError
        Naming the setting that limits it.
    """
    engine = deployment.case.engine
    for asked, limit, name in (
        (batch, engine.max_num_seqs, "max_num_seqs"),
        (prompt, engine.max_num_batched_tokens, "max_num_batched_tokens"),
    ):
        if asked > limit:
            raise InputError(
                f"a step of {asked} is beyond engine.{name} = {limit} of case "
                f"{deployment.case.name!r}; ask for less, or raise it with --set engine.{name}=..."
            )


def operator_table(step: ExplainedStep) -> Table:
    """Lay out one explained step for the terminal."""
    table = Table(title=f"{step.case}: {step.step}", title_justify="left", show_footer=True)
    table.add_column("operator", footer="step")
    table.add_column("calls", justify="right")
    table.add_column("GFLOP", justify="right", footer=_total(step, "flop"))
    table.add_column("GB", justify="right", footer=_total(step, "bytes"))
    table.add_column("us/call", justify="right")
    table.add_column("ms", justify="right", footer=f"{step.seconds / MILLISECOND_S:.3f}")
    table.add_column("share", justify="right", footer="100%")
    table.add_column("bound by")
    table.add_column("efficiency from", overflow="fold")
    for row in step.operators:
        table.add_row(
            row.name,
            str(row.calls),
            f"{row.flop / GIGA:,.2f}",
            f"{row.bytes / GIGA:,.4f}",
            f"{row.seconds / row.calls / MICROSECOND_S:,.1f}",
            f"{row.seconds / MILLISECOND_S:,.3f}",
            f"{row.share_fraction:.1%}",
            row.bound,
            row.source,
        )
    return table


def _step(deployment: Deployment, words: str, shape: StepShape) -> ExplainedStep:
    rows = deployment.explain(shape)
    total = sum(float(row.seconds) for row in rows)
    return ExplainedStep(
        deployment.case.name, words, total, tuple(_operator(row, total) for row in rows)
    )


def _operator(row: OperatorTime, total_s: float) -> ExplainedOperator:
    return ExplainedOperator(
        name=row.name,
        calls=row.calls,
        flop=float(row.flop),
        bytes=float(row.bytes),
        seconds=float(row.seconds),
        share_fraction=float(row.seconds) / total_s,
        bound=row.bound,
        source=row.source,
    )


def _total(step: ExplainedStep, what: str) -> str:
    return f"{sum(getattr(row, what) for row in step.operators) / GIGA:,.2f}"
