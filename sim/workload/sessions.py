"""Sessions of several turns: what is sent next, how long after the answer, on top of what.

A session is a closed loop of its own: each turn waits for the answer before it, then for its user
to think or its tool to run. `SessionLaw` draws sessions, `SessionPlans` holds them as columns,
whether drawn or recorded.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from sim.errors import InputError
from sim.schema import StrictModel
from sim.seeds import stream
from sim.units import Fraction, NonNegativeInt, Tokens
from sim.workload.content import SYSTEM_STREAM, Content, answer_after, in_part
from sim.workload.single import TimeLaw, TokensLaw, TurnsLaw

Integers = NDArray[np.int64]
Floats = NDArray[np.float64]


class ToolUse(StrictModel):
    """Turns that answer a tool call instead of a user."""

    fraction: Fraction
    """Share of the follow-up turns that a tool sends; independent from turn to turn."""
    wait: TimeLaw
    """How long a tool runs."""
    new_tokens: TokensLaw | None = None
    """Tokens of its result; those of a follow-up prompt unless given."""
    answer_tokens: TokensLaw | None = None
    """Answers that end in a call of it; those of other turns unless given."""


class ContextResets(StrictModel):
    """Turns at which the context so far is replaced by a summary of it, or by something new."""

    fraction: Fraction
    """Share of the follow-up turns; independent from turn to turn."""
    prompt_tokens: TokensLaw
    """The whole new prompt, without the system prompt."""


class SessionLaw(StrictModel):
    """Multi-turn sessions: each prompt is all that was said before, and something new.

    Sessions are independent of each other and of their start. Within a session the turns, tokens
    and waits are independent draws.
    """

    turns: TurnsLaw
    """Number of turns of a session."""
    first_tokens: TokensLaw
    """New tokens of the first prompt, without the system prompt."""
    new_tokens: TokensLaw
    """New tokens of each later prompt: what the user says, not what was said before."""
    answer_tokens: TokensLaw
    """Tokens of each answer."""
    think: TimeLaw
    """From the end of an answer until the user sends the next prompt."""
    tools: ToolUse | None = None
    """What tools send, in agentic sessions."""
    resets: ContextResets | None = None
    """When the context starts anew; never unless given."""
    system_tokens: NonNegativeInt = 0
    """Tokens at the start of every prompt that all sessions share."""
    max_context_tokens: Tokens
    """Longest prompt and answer; a session ends before the turn that would exceed it."""

    @model_validator(mode="after")
    def _system_prompt_fits(self) -> Self:
        if self.system_tokens >= self.max_context_tokens:
            msg = (
                f"system_tokens {self.system_tokens} leaves nothing of max_context_tokens "
                f"{self.max_context_tokens}"
            )
            raise ValueError(msg)
        return self

    def sample(self, seed: int, start_s: Floats, *names: str | int) -> "SessionPlans":
        """Draw one session for each start.

        Parameters
        ----------
        seed : int
        start_s : numpy.ndarray
            When each session sends its first prompt, in seconds.
        *names : str or int
            Of the random streams, see `sim.seeds.stream`.

        Returns
        -------
        SessionPlans
            The first turn of a session always takes place, with its tokens cut to the context.
        """
        sessions = len(start_s)
        turns = self.turns.sample(stream(seed, *names, "turns"), sessions)
        first = np.append(0, np.cumsum(turns))
        total = int(first[-1])
        opens = np.zeros(total, dtype=bool)
        opens[first[:-1]] = True
        new, answers, waits = self._columns(seed, opens, names)
        anew = opens | self._reset(seed, new, opens, names)
        # A prompt is all that came before since its context began; sums over all, less those then.
        sent = np.cumsum(new + answers)
        before = sent - new - answers
        began = np.maximum.accumulate(np.where(anew, np.arange(total), 0))
        context = before - before[began] + new + self.system_tokens
        fits = context + answers <= self.max_context_tokens
        context[opens & ~fits], answers[opens & ~fits] = self._cut(
            context[opens & ~fits], answers[opens & ~fits]
        )
        # The first turn after the opening one that does not fit ends its session.
        late = np.cumsum(~fits & ~opens)
        kept = late == np.repeat(late[first[:-1]], turns)
        counts = np.bincount(np.repeat(np.arange(sessions), turns)[kept], minlength=sessions)
        position = before[began] - np.repeat(before[first[:-1]], turns)
        return SessionPlans(
            start_s=start_s,
            first_turn=np.append(0, np.cumsum(counts)).astype(np.int64),
            input_tokens=context[kept].astype(np.int32),
            output_tokens=answers[kept].astype(np.int32),
            wait_s=waits[kept],
            system_tokens=self.system_tokens,
            position=position[kept] if self.resets is not None else None,
        )

    def _reset(
        self,
        seed: int,
        new: Integers,
        opens: NDArray[np.bool_],
        names: Sequence[str | int],
    ) -> NDArray[np.bool_]:
        """Choose the turns at which the context starts anew, and give them their whole prompts."""
        if self.resets is None:
            return np.zeros(len(opens), dtype=bool)
        anew = ~opens & (stream(seed, *names, "resets").random(len(opens)) < self.resets.fraction)
        law = self.resets.prompt_tokens
        new[anew] = law.sample(stream(seed, *names, "reset prompts"), int(anew.sum()))
        return np.asarray(anew)

    def _columns(
        self, seed: int, opens: NDArray[np.bool_], names: Sequence[str | int]
    ) -> tuple[Integers, Integers, Floats]:
        """Draw new tokens, answers and waits of all turns."""
        total = len(opens)
        new = self.new_tokens.sample(stream(seed, *names, "new"), total)
        answers = self.answer_tokens.sample(stream(seed, *names, "answers"), total)
        waits = self.think.sample(stream(seed, *names, "think"), total)
        if self.tools is not None:
            by_tool = stream(seed, *names, "tool").random(total) < self.tools.fraction
            by_tool &= ~opens
            waits = np.where(
                by_tool, self.tools.wait.sample(stream(seed, *names, "tool wait"), total), waits
            )
            if self.tools.new_tokens is not None:
                drawn = self.tools.new_tokens.sample(stream(seed, *names, "tool new"), total)
                new = np.where(by_tool, drawn, new)
            if self.tools.answer_tokens is not None:
                drawn = self.tools.answer_tokens.sample(stream(seed, *names, "calls"), total)
                # The answer before a tool's result is the one that calls it.
                answers = np.where(np.append(by_tool[1:], False), drawn, answers)
        firsts = self.first_tokens.sample(stream(seed, *names, "first"), int(opens.sum()))
        new[opens], waits[opens] = firsts, 0.0
        return new, answers, waits

    def _cut(self, context: Integers, answers: Integers) -> tuple[Integers, Integers]:
        """Cut first turns that are too long by themselves."""
        context = np.minimum(context, self.max_context_tokens - 1)
        return context, np.minimum(answers, self.max_context_tokens - context)


class Turn(NamedTuple):
    """One request of a session."""

    input_tokens: int
    """Tokens of the whole prompt."""
    new_tokens: int
    """Of them neither in the prompt before nor in its answer."""
    output_tokens: int
    wait_s: float
    """From the end of the answer before, or from the session's start, until it is sent."""
    content: Content
    answer: tuple[int, int] | None
    """Stream and position where its answer continues the session."""


@dataclass(frozen=True)
class SessionPlans:
    """Sessions as columns; turns of session ``i`` are ``first_turn[i]:first_turn[i + 1]``.

    Sessions are in order of their start.
    """

    start_s: Floats
    """When each session starts, in seconds."""
    first_turn: Integers
    """Index of the first turn of each session, and the number of all turns."""
    input_tokens: NDArray[np.int32]
    """Whole prompt of each turn."""
    output_tokens: NDArray[np.int32]
    """Answer of each turn."""
    wait_s: Floats
    """Time before each turn: after the answer before it, or after the start of the session."""
    system_tokens: int = 0
    """Tokens at the start of every prompt that all sessions share."""
    position: Integers | None = None
    """Where in the stream of its session the context of each turn begins; none: at 0."""
    contents: Sequence[Content] | None = None
    """What each prompt consists of; none: the system prompt, then the session's own stream."""
    tenant: NDArray[np.int16] | None = None
    """Index of the tenant of each session; none: all are of the first."""
    part: NDArray[np.int16] | None = None
    """Part of a mix that each session comes from; parts share no token."""
    number_in_part: Integers | None = None
    """Number of each session in its part."""
    system_tokens_of_part: tuple[int, ...] = ()
    """System tokens by part of a mix."""

    def __len__(self) -> int:
        """Return the number of sessions."""
        return len(self.start_s)

    @property
    def turns(self) -> int:
        """Number of turns of all sessions."""
        return len(self.input_tokens)

    def tenant_of(self, session: int) -> int:
        """Index of the tenant of a session."""
        return 0 if self.tenant is None else int(self.tenant[session])

    def content(self, session: int, turn: int) -> Content:
        """Say what the prompt of a turn, counted from 0 in its session, consists of."""
        index = int(self.first_turn[session]) + turn
        part = 0 if self.part is None else int(self.part[session])
        if self.contents is not None and self.contents[index]:
            return in_part(self.contents[index], part)
        number = session if self.number_in_part is None else int(self.number_in_part[session])
        system_tokens = (
            self.system_tokens_of_part[part] if self.system_tokens_of_part else self.system_tokens
        )
        tokens = int(self.input_tokens[index])
        shared = min(system_tokens, tokens - 1)
        position = 0 if self.position is None else int(self.position[index])
        own = ((number, position, tokens - shared),)
        return in_part(((SYSTEM_STREAM, 0, shared), *own) if shared else own, part)

    def turn(self, session: int, turn: int) -> Turn:
        """Give one turn of a session, both counted from 0."""
        index = int(self.first_turn[session]) + turn
        before = 0
        if turn:
            before = int(self.input_tokens[index - 1]) + int(self.output_tokens[index - 1])
        tokens = int(self.input_tokens[index])
        if self.position is not None and turn and self.position[index] > self.position[index - 1]:
            before = self.system_tokens
        content = self.content(session, turn)
        return Turn(
            input_tokens=tokens,
            new_tokens=max(0, tokens - before),
            output_tokens=int(self.output_tokens[index]),
            wait_s=float(self.wait_s[index]),
            content=content,
            answer=answer_after(content),
        )

    def turns_of(self, session: int) -> Iterator[Turn]:
        """Yield the turns of a session in order."""
        for turn in range(int(self.first_turn[session + 1] - self.first_turn[session])):
            yield self.turn(session, turn)

    def starting_at(self, start_s: Floats) -> "SessionPlans":
        """Give the first sessions other starts, one for each, rising."""
        count = len(start_s)
        if count > len(self):
            raise InputError(f"{count} starts for {len(self)} sessions")
        chosen = np.arange(count)
        return self.take(chosen, np.asarray(start_s, dtype=np.float64))

    def take(self, chosen: Integers, start_s: Floats) -> "SessionPlans":
        """Give some sessions, each as often as it is chosen, with their starts."""
        lengths = np.diff(self.first_turn)[chosen]
        first = np.append(0, np.cumsum(lengths)).astype(np.int64)
        within = np.arange(int(first[-1])) - np.repeat(first[:-1], lengths)
        rows = np.repeat(self.first_turn[chosen], lengths) + within
        contents = self.contents
        return SessionPlans(
            start_s=start_s,
            first_turn=first,
            input_tokens=self.input_tokens[rows],
            output_tokens=self.output_tokens[rows],
            wait_s=self.wait_s[rows],
            system_tokens=self.system_tokens,
            position=None if self.position is None else self.position[rows],
            contents=None if contents is None else [contents[row] for row in rows.tolist()],
            tenant=None if self.tenant is None else self.tenant[chosen],
        )


class SessionTraffic(StrictModel):
    """What ``workloads/sessions/*.yaml`` hold: a fitted law of sessions with its provenance."""

    source: Annotated[str, Field(min_length=1)]
    """Where the sessions come from, as they ask to be cited."""
    licence: Annotated[str, Field(min_length=1)]
    """Licence of the recorded sessions."""
    fitted_on: Annotated[str, Field(pattern=r"^\d{4}-\d{2}-\d{2}$")]
    """Date of the fit, as YYYY-MM-DD."""
    sessions: Annotated[int, Field(gt=0)]
    """Sessions that the law was fitted to."""
    fit_quality: dict[str, float]
    """How well the law reproduces them: names and figures, as the file explains them."""
    law: SessionLaw
    """The law."""
