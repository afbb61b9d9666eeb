"""Repeated sampling: several answers to one prompt, and a choice among them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal, Self

import numpy as np
from pydantic import Field, model_validator

from sim.quality import RIGHT, Selection
from sim.schema import KeyedValueError, StrictModel
from sim.units import PositiveInt
from sim.workload.content import Reuse
from sim.workload.programs import MAIN, Call, Control, Parallel, Task, Unanswered
from sim.workload.single import Floats, Integers
from sim.workload.strategies.direct import Answering, Outcome
from sim.workload.strategies.verifier import Verifier
from sim.workload.strategies.voting import Tally, heaviest, lead_chance, majority


class BetaStop(StrictModel):
    """Stop once the majority is believed to be one.

    Adaptive-Consistency (Aggarwal et al., arXiv:2305.11860): the chance that the most frequent
    answer so far beats the second has reached a threshold, see `lead_chance`.
    """

    kind: Literal["beta"] = "beta"
    threshold: Annotated[float, Field(gt=0.5, lt=1)] = 0.95
    """Chance that is enough; without any sample it is one half."""

    def is_met(self, tally: Tally) -> bool:
        """Tell whether the votes are enough."""
        return lead_chance(*tally.leaders()) >= self.threshold


@dataclass(frozen=True, slots=True)
class _Draws:
    """All that is random about the samples of one task."""

    tokens: Integers
    verdict_tokens: Integers
    classes: Integers | None
    """None where nothing is known of answers."""
    scores: Floats | None


MOST_SAMPLES = 100_000
"""Ten times what anybody has published; a task of more would fill the memory."""


class Samples(Answering):
    """Independent samples of one prompt, side by side, and one of them as the answer.

    They share the prompt: a prefix cache computes it once. ``majority`` is self-consistency (Wang
    et al., arXiv:2203.11171); ``verifier`` is best-of-N by score (Cobbe et al.,
    arXiv:2110.14168); ``weighted`` adds up the scores of equal answers, which makes sense of
    scores that are chances of being right (Li et al., arXiv:2206.02336); ``oracle`` is a perfect
    check, such as unit tests or a proof checker, so that the share of right answers is the
    coverage, pass@k (Brown et al., arXiv:2407.21787).

    A sample that gets no answer has no vote; where none gets one, the question has none.
    """

    kind: Literal["samples"] = "samples"
    samples: Annotated[int, Field(gt=0, le=MOST_SAMPLES)]
    """Most samples."""
    steps: PositiveInt = 1
    """Length of the chain of thought of each, in direct answers."""
    select: Literal["majority", "verifier", "weighted", "oracle"] = "majority"
    """What makes one of them the answer."""
    verifier: Verifier | None = None
    """What scores each sample as soon as it is there, for ``verifier`` and ``weighted``."""
    batch: PositiveInt | None = None
    """Samples side by side; the next batch begins when all of one are over. All at once unless
    given."""
    stop: BetaStop | None = None
    """When a majority is enough, asked after each batch; never unless given."""
    cancel: bool = False
    """Whether running samples are cancelled, and no more begun, as soon as those that are over
    decide: the majority cannot be overtaken, it is enough for ``stop``, or the perfect check has
    found the right answer."""

    @model_validator(mode="after")
    def _choice_is_consistent(self) -> Self:
        scored = self.select in ("verifier", "weighted")
        if scored != (self.verifier is not None):
            what = (
                f"select {self.select} needs a verifier, such as {{kind: outcome, model: verifier}}"
            )
            if not scored:
                what = f"select {self.select} has no use for a verifier: leave it out"
            raise KeyedValueError(what, "select" if scored else "verifier")
        if self.stop is not None and self.select != "majority":
            msg = f"stop looks at the majority, and select is {self.select}: leave one of them out"
            raise KeyedValueError(msg, "stop")
        if self.cancel and scored:
            msg = (
                "cancel needs select majority or oracle: a later sample may score more than all "
                "others"
            )
            raise KeyedValueError(msg, "cancel")
        return self

    @property
    def models(self) -> frozenset[str]:
        """Names of the models that it calls beside the main one."""
        verifiers = {self.verifier.model} if self.verifier else set()
        return super().models | (verifiers - {MAIN})

    def control(self, task: Task) -> Control:
        """Work on a question; the generator returns the answer's class."""
        reuse: Reuse = "all" if self.verifier is not None else "prompt"
        outcome: Outcome = yield from self.outcome(task, reuse)
        if outcome.unanswered is not None:
            raise Unanswered(outcome.unanswered)
        return outcome.answer

    def outcome(self, task: Task, reuse: Reuse = "all") -> Control:
        """Work on a question; the generator returns the `Outcome`."""
        draws = self._draws(task)
        poll = _Poll(self, draws)
        calls: list[Call] = []
        over: list[int] = []
        size = self.batch or self.samples
        for start in range(0, self.samples, size):
            batch = range(start, min(start + size, self.samples))
            calls += self._calls(task, draws, batch, reuse)
            branches = [
                _branch(each, calls[each], self._check(task, draws, calls, each), poll)
                for each in batch
            ]
            results = yield Parallel(branches, poll.ask if self.cancel else None)
            poll.end_batch(results)
            over += [each for each in results if each is not None]
            if poll.is_enough():
                break
        if not over:
            return Outcome(None, None, 0.0, poll.unanswered)
        return self._chosen(draws, calls, over)

    def _draws(self, task: Task) -> _Draws:
        """Draw all samples, each quantity from a stream of its own.

        The first samples of many are therefore those of few.
        """
        lengths, verdicts, answers, beliefs = task.rng.spawn(4)
        verdict_tokens = np.zeros(self.samples, dtype=np.int64)
        if self.verifier is not None:
            verdict_tokens = self.verifier.output_tokens.sample(verdicts, self.samples)
        classes = scores = None
        if task.question.known or self.stop is not None or self.cancel:
            classes = task.question.answers(
                answers, self.samples, effort=self.effort(task, self.steps), model=self.model
            )
        if classes is not None and self.verifier is not None:
            scores = self.verifier.scores(task, beliefs, classes)
        elif classes is not None:
            by: Selection = "coverage" if self.select == "oracle" else "vote"
            task.question.choose(self.samples, by=by, model=self.model)
        tokens = self.output_tokens(task, lengths, self.samples, self.steps)
        return _Draws(tokens, verdict_tokens, classes, scores)

    def _calls(self, task: Task, draws: _Draws, batch: range, reuse: Reuse) -> list[Call]:
        prompt, model = self.prompt(task), self.model
        return [
            task.call("sample", prompt, tokens, model=model, reuse=reuse)
            for tokens in draws.tokens[batch.start : batch.stop].tolist()
        ]

    def _check(self, task: Task, draws: _Draws, calls: Sequence[Call], each: int) -> Call | None:
        if self.verifier is None:
            return None
        return self.verifier.call(task, calls[each], int(draws.verdict_tokens[each]))

    def _chosen(self, draws: _Draws, calls: Sequence[Call], over: Sequence[int]) -> Outcome:
        """Choose among the samples that are over, of which the numbers rise."""
        if draws.classes is None:
            return Outcome(None, calls[over[0]])
        classes = draws.classes[over].tolist()
        place = self._place(classes, None if draws.scores is None else draws.scores[over])
        answer = classes[place]
        return Outcome(answer, calls[over[place]], classes.count(answer) / len(classes))

    def _place(self, classes: list[int], scores: Floats | None) -> int:
        """Say which of some samples is the answer."""
        if self.select == "oracle":
            return classes.index(RIGHT) if RIGHT in classes else 0
        if scores is None:
            return classes.index(majority(classes))
        if self.select == "verifier":
            return int(np.argmax(scores))
        return classes.index(heaviest(classes, scores))


class _Poll:
    """Votes of the samples that are over, and whether they are enough."""

    def __init__(self, strategy: Samples, draws: _Draws) -> None:
        self.strategy = strategy
        self.classes = draws.classes
        self.tally = Tally()
        self.counted: set[int] = set()
        self.over_before = 0
        """Samples of earlier batches."""
        self.over = 0
        """Samples that are over, with those that are lost."""
        self.unanswered: str | None = None
        """What became of the last sample that was lost."""

    def ask(self, came: Sequence[int | None]) -> bool:
        """Tell whether the samples of a batch that are over so far are enough.

        Parameters
        ----------
        came : sequence of int or None
            Their numbers, in the order in which they came; none for one that is lost.
        """
        self._count(came[self.over - self.over_before :])
        self.over = self.over_before + len(came)
        return self.is_enough()

    def end_batch(self, results: Sequence[int | None]) -> None:
        """Count what has not been counted of a batch that is over."""
        self._count(results)
        self.over_before += len(results)
        self.over = self.over_before

    def _count(self, numbers: Sequence[int | None]) -> None:
        if self.classes is None:
            return
        for number in numbers:
            if number is not None and number not in self.counted:
                self.counted.add(number)
                self.tally.votes[int(self.classes[number])] += 1

    def is_enough(self) -> bool:
        """Tell whether no further samples are needed."""
        strategy = self.strategy
        if strategy.stop is not None and strategy.stop.is_met(self.tally):
            return True
        if not strategy.cancel:
            return False
        if strategy.select == "oracle":
            return self.tally.votes[RIGHT] > 0
        return self.tally.is_decided(strategy.samples - self.over)


def _branch(number: int, sample: Call, check: Call | None, poll: _Poll) -> Control:
    """Sample, then verify; the generator returns the sample's number, none if it is lost."""
    try:
        yield sample
        if check is not None:
            yield check
    except Unanswered as unanswered:
        poll.unanswered = unanswered.args[0]
        return None
    return number
