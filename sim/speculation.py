"""Speculative decoding: what a scenario chooses, and how many tokens come out of a step.

A cheap drafter proposes ``draft_tokens`` tokens, the model reads them all in one step, keeps them
up to the first that it rejects, and adds one token of its own. So a step yields between one token
and ``draft_tokens + 1``, the same text as without (Leviathan et al. 2023, arXiv:2211.17192).

How many are kept is a matter of measurement. It depends on the pair and on the task, so it has no
default here: a scenario names a file of ``workloads/speculation`` and a task in it, or writes the
acceptance of each position itself.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, pairwise
from operator import mul
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from sim.errors import InputError
from sim.figures import Figure
from sim.parallelism import Parallelism
from sim.precision import Precision
from sim.schema import StrictModel, did_you_mean
from sim.units import Fraction, PositiveInt

SpeculationMethod = Literal["draft_model", "eagle", "mtp", "medusa", "ngram"]
"""Who drafts: a smaller model; a layer on top of the model's own hidden states (EAGLE 1 to 3, or
the multi-token-prediction layers that a model was trained with); heads that each guess one
position; or what followed the same words earlier in the text."""

TokensPerStep = Annotated[float, Field(ge=1, allow_inf_nan=False)]
"""Mean tokens per step of a sequence, the model's own one included."""


# --- What comes out of a step.


def tokens_per_step(acceptance: Sequence[float]) -> float:
    """Return the mean tokens that a sequence gains in a step.

    Parameters
    ----------
    acceptance
        Probability that each draft token is accepted, given that all before it were.

    Examples
    --------
    The first token is kept in 0.8 of the steps, the second in 0.8 x 0.7, the third in 0.8 x 0.7 x
    0.6; and there is always one more:

    >>> round(tokens_per_step([0.8, 0.7, 0.6]), 3)
    2.696
    """
    return float(1.0 + sum(accumulate(acceptance, mul)))


def step_distribution(acceptance: Sequence[float]) -> tuple[float, ...]:
    """Return the probabilities that a step yields 1, 2, ... tokens.

    >>> step_distribution([0.5, 0.5])
    (0.5, 0.25, 0.25)
    """
    kept = [1.0, *accumulate(acceptance, mul), 0.0]
    return tuple(kept[i] - kept[i + 1] for i in range(len(kept) - 1))


def constant_acceptance(mean_tokens: float, draft_tokens: int) -> float:
    """Return the acceptance, alike at all positions, that gives these mean tokens per step.

    It solves ``1 + a + a**2 + ... + a**draft_tokens = mean_tokens``.

    >>> round(constant_acceptance(1.75, 2), 6)  # 1 + 0.5 + 0.25
    0.5
    """
    low, high = 0.0, 1.0
    for _ in range(64):
        middle = (low + high) / 2
        if tokens_per_step([middle] * draft_tokens) < mean_tokens:
            low = middle
        else:
            high = middle
    return (low + high) / 2


def acceptance_of_lengths(lengths: Sequence[float]) -> tuple[float, ...]:
    """Return the acceptance of each position from the lengths of drafts of 1, 2, ... tokens.

    A length is the mean tokens per step. What one draft token more adds to it is the share of
    steps in which that token was kept. Measured lengths are rounded and noisy, and that share
    cannot rise from one position to the next: where it does, neighbours share their mean, which
    leaves their sum, so the longest length, as it is.

    Examples
    --------
    >>> acceptance_of_lengths([1.5, 1.75])
    (0.5, 0.5)

    The third position seems likelier than the second, so both get 0.2:

    >>> [round(p, 3) for p in acceptance_of_lengths([1.5, 1.6, 1.9])]
    [0.5, 0.4, 1.0]
    """
    gains = [after - before for before, after in zip([1.0, *lengths], lengths, strict=False)]
    pools: list[tuple[float, int]] = []
    for gain in gains:
        total, count = gain, 1
        while pools and pools[-1][0] * count < total * pools[-1][1]:
            before, others = pools.pop()
            total, count = total + before, count + others
        pools.append((total, count))
    kept = [total / count for total, count in pools for _ in range(count)]
    return _conditional(kept)


def _conditional(kept: Sequence[float]) -> tuple[float, ...]:
    """Turn shares of steps in which each position was kept into conditional probabilities."""
    return tuple(
        share / before if before else 0.0 for before, share in zip([1.0, *kept], kept, strict=False)
    )


# --- What was measured: a file of workloads/speculation.


class MeanLength(Figure[TokensPerStep]):
    """Mean tokens per step at one length of the draft."""

    draft_tokens: PositiveInt
    """Length of the draft; of a tree, its depth."""


class TaskAcceptance(StrictModel):
    """What was accepted on one task, in the terms of its source; exactly one of the three."""

    dataset: str
    """Prompts that it was measured with."""
    temperature: float | None = None
    """Of sampling, if the source says so; 0 is greedy."""
    accepted_fractions: Figure[tuple[Fraction, ...]] | None = None
    """Share of steps in which draft token 1, 2, ... was accepted, with all before it (what vLLM
    logs as the per-position acceptance rate)."""
    tokens_per_step: Figure[tuple[TokensPerStep, ...]] | None = None
    """Mean tokens per step with drafts of 1, 2, ... tokens; the shares follow from it."""
    tokens_per_step_at: MeanLength | None = None
    """Mean tokens per step at one length; all positions are then taken to be accepted alike."""

    @model_validator(mode="after")
    def _one_figure_that_can_be(self) -> Self:
        given = [self.accepted_fractions, self.tokens_per_step, self.tokens_per_step_at]
        if sum(figure is not None for figure in given) != 1:
            raise ValueError(
                "give exactly one of accepted_fractions, tokens_per_step, tokens_per_step_at"
            )
        if self.accepted_fractions is not None:
            shares = self.accepted_fractions.value
            if list(shares) != sorted(shares, reverse=True):
                raise ValueError("accepted_fractions rise: a token counts only with all before it")
        if self.tokens_per_step is not None:
            lengths = [1.0, *self.tokens_per_step.value]
            if any(after < before for before, after in pairwise(lengths)):
                raise ValueError("tokens_per_step fall: a longer draft cannot lose tokens")
        if self.tokens_per_step_at is not None:
            mean = self.tokens_per_step_at
            if mean.value > mean.draft_tokens + 1:
                raise ValueError(f"{mean.draft_tokens} draft tokens give at most one token more")
        return self

    @property
    def longest_draft(self) -> int:
        """Most draft tokens that the figures reach to."""
        if self.tokens_per_step_at is not None:
            return self.tokens_per_step_at.draft_tokens
        figure = self.accepted_fractions or self.tokens_per_step
        return len(figure.value) if figure else 0

    def acceptance(self, draft_tokens: int) -> tuple[float, ...]:
        """Return the acceptance of each position, given that all before it were accepted."""
        if self.accepted_fractions is not None:
            return _conditional(self.accepted_fractions.value[:draft_tokens])
        if self.tokens_per_step is not None:
            return acceptance_of_lengths(self.tokens_per_step.value[:draft_tokens])
        mean = self.tokens_per_step_at
        alike = constant_acceptance(mean.value, mean.draft_tokens) if mean else 0.0
        return (alike,) * draft_tokens


class MeasuredAcceptance(StrictModel):
    """What a drafter achieves with a model (one file of ``workloads/speculation``)."""

    method: SpeculationMethod
    target: str
    """The model that was measured."""
    models: tuple[str, ...]
    """Ids of the models of the catalogue that this is, or shares its architecture with; empty if
    none does."""
    drafter: str
    """What drafted."""
    verify_tokens: Figure[int] | None = None
    """Tokens that a step verifies per sequence where drafts branch into a tree; without, drafts
    are chains and a step verifies one token more than was drafted."""
    tasks: Mapping[str, TaskAcceptance]
    """By the kind of text; a thinking model's tasks say whether it thinks."""
    note: str | None = None


# --- What a scenario chooses.


class SpeculationChoice(StrictModel):
    """Speculative decoding of a deployment."""

    method: SpeculationMethod
    """Who drafts."""
    draft_tokens: PositiveInt
    """Tokens drafted per step and sequence, one after the other; of a tree, its depth."""
    acceptance: str | None = None
    """Id of a file in ``workloads/speculation``."""
    task: str | None = None
    """Which of its tasks the traffic is like."""
    acceptance_per_position: tuple[Fraction, ...] | None = None
    """In place of a file: the probability that draft token 1, 2, ... is accepted, given that all
    before it were."""
    verify_tokens: PositiveInt | None = None
    """Tokens that a step verifies per sequence, where ``acceptance_per_position`` is that of a
    tree; one more than ``draft_tokens`` unless given."""
    spread: Annotated[float, Field(ge=0, lt=0.5)] = 0.0
    """Standard deviation, between requests, of the acceptance of the first position; 0: all
    requests are alike. Hardly anybody publishes it."""
    draft_model: str | None = None
    """Id of the model that drafts, for ``method: draft_model``."""
    draft_parallelism: Parallelism | None = None
    """How that model is split over the chips; like the model it drafts for unless given."""
    draft_precision: Precision | None = None
    """Its number formats; those of the model it drafts for unless given."""

    @model_validator(mode="after")
    def _acceptance_is_stated(self) -> Self:
        written = self.acceptance_per_position
        if (self.acceptance is None) == (written is None):
            raise ValueError(
                "acceptance is never assumed: name a file of workloads/speculation as acceptance "
                "(with a task), or write acceptance_per_position; one of the two"
            )
        if written is not None and len(written) != self.draft_tokens:
            raise ValueError(
                f"acceptance_per_position has {len(written)} positions, draft_tokens is "
                f"{self.draft_tokens}; write one for each"
            )
        if self.verify_tokens is not None:
            if written is None:
                raise ValueError("verify_tokens goes with acceptance_per_position; files state it")
            if self.verify_tokens <= self.draft_tokens:
                raise ValueError(
                    f"verify_tokens must be above draft_tokens ({self.draft_tokens}): the model's "
                    "own token is verified with them"
                )
        return self

    @model_validator(mode="after")
    def _drafter_is_known(self) -> Self:
        if self.method == "draft_model" and self.draft_model is None:
            raise ValueError("method draft_model needs draft_model, the id of a model")
        given = (self.draft_model, self.draft_parallelism, self.draft_precision)
        if self.method != "draft_model" and any(value is not None for value in given):
            raise ValueError(
                f"method {self.method} drafts without a model of its own: leave out draft_model, "
                "draft_parallelism and draft_precision, or set method to draft_model"
            )
        return self


@dataclass(frozen=True)
class AcceptanceLaw:
    """How many tokens the steps of a deployment yield."""

    acceptance: tuple[float, ...]
    """Of each position, given that all before it were accepted."""
    verify_tokens: int
    """Tokens that a step verifies per sequence."""
    spread: float = 0.0
    """Standard deviation between requests of the first position's acceptance."""
    source: str = "the scenario"
    notes: tuple[str, ...] = field(default=())
    """What a reader must know of it."""

    @property
    def draft_tokens(self) -> int:
        """Tokens drafted per step and sequence."""
        return len(self.acceptance)

    @property
    def tokens_per_step(self) -> float:
        """Mean tokens per step of a sequence, over steps."""
        return tokens_per_step(self.acceptance)


def acceptance_law(
    choice: SpeculationChoice,
    measured: MeasuredAcceptance | None = None,
    model_id: str | None = None,
) -> AcceptanceLaw:
    """Return the law that a scenario chose.

    Parameters
    ----------
    choice
        Of the scenario.
    measured
        The file that it names, if it names one.
    model_id
        The model that is served, to say so if the figures are those of another one.

    Raises
    ------
    InputError
        The file has not the task, not so many positions, or another method.
    """
    notes = []
    if choice.spread == 0:
        notes.append("all requests are taken to have the same acceptance (spread: 0)")
    if choice.acceptance_per_position is not None or measured is None:
        acceptance = choice.acceptance_per_position or ()
        verify_tokens = choice.verify_tokens or choice.draft_tokens + 1
        source = "acceptance_per_position of the scenario"
    else:
        task = _task(choice, measured)
        acceptance = task.acceptance(choice.draft_tokens)
        verify_tokens = choice.draft_tokens + 1
        if measured.verify_tokens is not None:
            verify_tokens = measured.verify_tokens.value
        source = f"{choice.acceptance}, task {choice.task} ({task.dataset})"
        if task.tokens_per_step_at is not None:
            mean = task.tokens_per_step_at
            notes.append(
                f"all positions are taken to be accepted alike: only the mean of {mean.value:g} "
                f"tokens per step at {mean.draft_tokens} draft tokens is published"
            )
        if model_id is not None and model_id not in measured.models:
            notes.append(f"the acceptance was measured on {measured.target}, not on {model_id}")
    if choice.spread**2 >= acceptance[0] * (1 - acceptance[0]) > 0:
        raise InputError(
            f"speculation.spread is {choice.spread:g}, which no distribution between 0 and 1 with "
            f"a mean of {acceptance[0]:.3f} can have; lower it below "
            f"{(acceptance[0] * (1 - acceptance[0])) ** 0.5:.3f}",
            key="spread",
        )
    return AcceptanceLaw(acceptance, verify_tokens, choice.spread, source, tuple(notes))


def _task(choice: SpeculationChoice, measured: MeasuredAcceptance) -> TaskAcceptance:
    """Look the task up and check that its figures reach as far as the draft."""
    where, tasks = f"speculation.acceptance {choice.acceptance}", ", ".join(measured.tasks)
    if choice.method != measured.method:
        raise InputError(
            f"{where}: those figures are for method {measured.method}, not {choice.method}; "
            f"set speculation.method to {measured.method} or name another file",
            key=["method", "acceptance"],
        )
    if choice.task is None:
        raise InputError(
            f"{where}: acceptance depends on the task; set speculation.task: {tasks}", key="task"
        )
    if choice.task not in measured.tasks:
        raise InputError(
            f"{where}: nothing is known of task {choice.task!r}"
            f"{did_you_mean(choice.task, measured.tasks)}; there are: {tasks}; or write "
            "speculation.acceptance_per_position",
            key="task",
        )
    task = measured.tasks[choice.task]
    longest = task.longest_draft
    if choice.draft_tokens > longest:
        raise InputError(
            f"{where}: task {choice.task} is known up to {longest} draft tokens, not "
            f"{choice.draft_tokens}; draft fewer or write speculation.acceptance_per_position",
            key="draft_tokens",
        )
    if measured.verify_tokens is not None and choice.draft_tokens != longest:
        raise InputError(
            f"{where}: it was measured with a tree of depth {longest}, which says nothing of "
            f"other trees; set speculation.draft_tokens to {longest}, not {choice.draft_tokens}",
            key="draft_tokens",
        )
    return task
