"""Graphs: a user's own calls, what each of them reads, and which loops they go through."""

from collections.abc import Iterator, Mapping
from functools import cached_property
from graphlib import CycleError, TopologicalSorter
from typing import Annotated, Literal, NamedTuple, Self

from pydantic import Field, model_validator

from sim.errors import KeyPath
from sim.schema import KeyedValueError, StrictModel, did_you_mean
from sim.units import NonNegativeInt, PositiveInt
from sim.workload.content import Content
from sim.workload.programs import MAIN, Call, Control, Parallel, Task
from sim.workload.single import TimeLaw, TokensLaw
from sim.workload.strategies.voting import majority

Name = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")]

GRAPH_HEAD = 300
"""First of the shared beginnings of prompts, one for each node (`Task.head`)."""

MAX_NODES = 500
"""Nodes that one graph may have."""

MAX_CALLS = 10_000
"""Calls that one graph may have, with copies and repetitions."""

MAX_DEPTH = 200
"""Calls one after the other: each may run inside of the one before it."""


class Context(StrictModel):
    """What a node reads of another."""

    node: Name
    """The other one."""
    take: Literal["answer", "transcript"] = "answer"
    """``answer``: its completion; ``transcript``: its prompt too, at the start of this prompt, so
    that this call continues that one."""
    copies: Literal["all", "same"] = "all"
    """Of all copies of the other one, or of the copy with the same number."""


class Prompt(StrictModel):
    """Parts of a prompt, in their order: head or transcript, question, answers, new tokens."""

    head_tokens: NonNegativeInt = 0
    """Beginning that the prompts of this node share in all tasks."""
    question: bool = True
    """Whether the question is in it; a transcript already has what it has."""
    context: tuple[Context, ...] = ()
    """What it reads of others."""
    new_tokens: TokensLaw | None = None
    """At its end, tokens of its own: an instruction, the result of a tool."""

    @property
    def continues(self) -> bool:
        """Whether it begins with the transcript of another call."""
        return any(context.take == "transcript" for context in self.context)

    @model_validator(mode="after")
    def _transcript_comes_first(self) -> Self:
        takes = [context.take for context in self.context]
        if "transcript" in takes[1:] or (self.continues and self.head_tokens):
            raise ValueError(
                "a transcript stands at the start of a prompt: put it first in context, give one "
                "only, and no head_tokens"
            )
        return self

    @model_validator(mode="after")
    def _prompt_is_something(self) -> Self:
        if not (self.question or self.head_tokens or self.context or self.new_tokens):
            raise ValueError("the prompt is empty: give question: true, context or new_tokens")
        return self


class Vote(StrictModel):
    """The most frequent of the answers of another node's copies, whatever the call costs."""

    kind: Literal["vote"]
    of: Name
    """Whose answers."""


class Revision(StrictModel):
    """An answer of another node after one round of critique and rewriting.

    How good it is says the benchmark's ``laws.revision``, which knows nothing of who criticises.
    """

    kind: Literal["revision"]
    of: Name
    """Whose answer: that of the copy with the same number, or of the only one. In a loop it is read
    as ``context`` is, so that ``feeds`` leads to the time before."""


class Node(StrictModel):
    """One kind of call."""

    prompt: Prompt = Prompt()
    """What it reads."""
    output_tokens: TokensLaw | None = None
    """Its completion; the workload's own answers unless given."""
    count: PositiveInt = 1
    """Copies side by side, with the same prompt but for new tokens and ``copies: same``."""
    model: str = MAIN
    """Which model computes it."""
    after: tuple[Name, ...] = ()
    """Nodes that it waits for without reading them."""
    wait: TimeLaw | None = None
    """From when it could be sent until it is: a tool runs."""
    quality: Annotated[Vote | Revision, Field(discriminator="kind")] | None = None
    """How its answers come about, where it is asked for answers; each is one more answer of its
    length unless given, as good as if the call had read the question alone."""

    @property
    def parents(self) -> frozenset[str]:
        """Names of the nodes that it waits for."""
        return frozenset(self.after) | {context.node for context in self.prompt.context}


class Loop(StrictModel):
    """Nodes that run several times.

    From the second time on they read the time before instead of what came before the loop, as
    ``feeds`` says; those that wait for nothing of their loop wait for all of the time before.
    Nodes outside of the loop read its last time.
    """

    nodes: Annotated[tuple[Name, ...], Field(min_length=1)]
    """What runs again."""
    times: PositiveInt
    """How often, the first time included."""
    feeds: dict[Name, Name] = Field(default_factory=dict)
    """For a node outside of the loop, the node inside whose time before takes its place."""


class _Turn(NamedTuple):
    """One time of a node: the only one, or one of those of its loop."""

    name: str
    time: int


_Copy = tuple[_Turn, int]
"""One call: a turn of a node, and which copy."""


def _context_key(name: str, place: int) -> KeyPath:
    """Say where something stands that a node reads."""
    return ("nodes", name, "prompt", "context", place)


def _names_in(name: str, node: Node) -> Iterator[tuple[str, str, KeyPath]]:
    """List the names of others in a node: what says so, the name, and its key."""
    for place, other in enumerate(node.after):
        yield f"node {name} waits for", other, ("nodes", name, "after", place)
    for place, context in enumerate(node.prompt.context):
        yield f"node {name} waits for", context.node, (*_context_key(name, place), "node")
    if node.quality is not None:
        gives = f"node {name} gives a {node.quality.kind} of"
        yield gives, node.quality.of, ("nodes", name, "quality", "of")


class Graph(StrictModel):
    """Calls that depend on each other; each begins as soon as all that it waits for is over."""

    kind: Literal["graph"] = "graph"
    nodes: Annotated[dict[Name, Node], Field(min_length=1, max_length=MAX_NODES)]
    """By their names."""
    repeat: tuple[Loop, ...] = ()
    """Loops; no node is in two."""
    answer: Name | None = None
    """Node whose copies are answers, of which the most frequent is given; none unless given."""

    @model_validator(mode="after")
    def _names_are_known(self) -> Self:
        for what, name, key in self._names():
            if name not in self.nodes:
                near = did_you_mean(name, self.nodes)
                msg = f"{what} {name}, which is no node{near or ': ' + ', '.join(self.nodes)}"
                raise KeyedValueError(msg, *key)
        return self

    @model_validator(mode="after")
    def _loops_feed_themselves(self) -> Self:
        before: set[str] = set()
        for number, loop in enumerate(self.repeat):
            for place, name in enumerate(loop.nodes):
                if name in before:
                    msg = f"node {name} is in two loops, or twice in one"
                    raise KeyedValueError(msg, "repeat", number, "nodes", place)
                before.add(name)
            read = frozenset().union(*(self.nodes[name].parents for name in loop.nodes))
            for outside, inside in loop.feeds.items():
                if outside in loop.nodes or inside not in loop.nodes or outside not in read:
                    msg = (
                        f"feeds {outside}: {inside} must lead from a node outside of the loop that "
                        "a node of the loop waits for to a node inside of it"
                    )
                    raise KeyedValueError(msg, "repeat", number, "feeds", outside)
        return self

    @model_validator(mode="after")
    def _copies_pair(self) -> Self:
        for turn, node in self._turns().items():
            for place, context in enumerate(node.prompt.context):
                other = self.nodes[self._parent(turn, context.node).name]
                key = _context_key(turn.name, place)
                if context.copies == "same" and other.count != node.count:
                    msg = (
                        f"node {turn.name} has {node.count} copies and reads the same copy of "
                        f"{context.node}, which has {other.count}"
                    )
                    raise KeyedValueError(msg, *key, "copies")
                if context.take == "transcript" and context.copies == "all" and other.count > 1:
                    msg = (
                        f"node {turn.name} cannot continue all {other.count} transcripts of "
                        f"{context.node}; set copies: same"
                    )
                    raise KeyedValueError(msg, *key, "take")
        return self

    @model_validator(mode="after")
    def _ends(self) -> Self:
        calls = sum(node.count for node in self._turns().values())
        if calls > MAX_CALLS:
            msg = f"{calls} calls are more than {MAX_CALLS}; give smaller count or times"
            raise ValueError(msg)
        try:
            order = self._order
        except CycleError as error:
            names = [turn.name for turn in reversed(error.args[1])]
            msg = f"nodes wait for each other: {' -> '.join(names)}; one of them must not"
            raise KeyedValueError(msg, "nodes", names[0]) from None
        depth: dict[_Turn, int] = {}
        for turn in order:
            depth[turn] = 1 + max((depth[other] for other in self._waits_for(turn)), default=0)
        if max(depth.values()) > MAX_DEPTH:
            msg = f"{max(depth.values())} calls one after the other are more than {MAX_DEPTH}"
            raise ValueError(msg)
        return self

    @model_validator(mode="after")
    def _qualities_follow(self) -> Self:
        for turn, node in self._turns().items():
            if node.quality is None:
                continue
            other = self._parent(turn, node.quality.of)
            key = ("nodes", turn.name, "quality", "of")
            if other not in self._before(turn):
                msg = (
                    f"node {turn.name} gives a {node.quality.kind} of {other.name} without waiting "
                    "for it: have it read that in context, or something that follows from it"
                )
                raise KeyedValueError(msg, *key)
            count = self.nodes[other.name].count
            if node.quality.kind == "revision" and count not in (1, node.count):
                msg = (
                    f"node {turn.name} has {node.count} copies and revises those of {other.name}, "
                    f"which has {count}: give both as many, or take a vote"
                )
                raise KeyedValueError(msg, *key)
        return self

    @property
    def models(self) -> frozenset[str]:
        """Names of the models that it calls beside the main one."""
        return frozenset(node.model for node in self.nodes.values()) - {MAIN}

    def control(self, task: Task) -> Control:
        """Work on a question; the generator returns the answer's class."""
        calls, parents = self._calls(task)
        children: dict[_Copy, list[_Copy]] = {copy: [] for copy in calls}
        for copy, others in parents.items():
            for other in others:
                children[other].append(copy)
        classes = self._classes(task)
        open_parents = {copy: len(others) for copy, others in parents.items()}

        def run(copy: _Copy) -> Control:
            """Have a call answered; whichever parent is the last one goes on with its children."""
            yield calls[copy]
            for child in children[copy]:
                open_parents[child] -= 1
            ready = [child for child in children[copy] if not open_parents[child]]
            if ready:
                yield Parallel([run(child) for child in ready])

        yield Parallel([run(copy) for copy, others in parents.items() if not others])
        return majority(classes) if classes else None

    def _names(self) -> Iterator[tuple[str, str, KeyPath]]:
        """List the names of nodes that stand anywhere: what says so, the name, and its key."""
        for name, node in self.nodes.items():
            yield from _names_in(name, node)
        for number, loop in enumerate(self.repeat):
            for place, name in enumerate(loop.nodes):
                yield "a loop names", name, ("repeat", number, "nodes", place)
            for outside, inside in loop.feeds.items():
                yield "a loop names", outside, ("repeat", number, "feeds", outside)
                yield "a loop names", inside, ("repeat", number, "feeds", outside)
        if self.answer is not None:
            yield "answer is", self.answer, ("answer",)

    def _loop(self, name: str) -> Loop | None:
        return next((loop for loop in self.repeat if name in loop.nodes), None)

    def _last(self, name: str) -> _Turn:
        """Give the last time of a node."""
        loop = self._loop(name)
        return _Turn(name, loop.times - 1 if loop is not None else 0)

    def _turns(self) -> dict[_Turn, Node]:
        """Unroll the loops."""
        turns = {}
        for name, node in self.nodes.items():
            for time in range(self._last(name).time + 1):
                turns[_Turn(name, time)] = node
        return turns

    def _parent(self, turn: _Turn, name: str) -> _Turn:
        """Say which time of a node another one means by its name."""
        loop = self._loop(turn.name)
        if loop is not None and name in loop.nodes:
            return _Turn(name, turn.time)
        if loop is not None and turn.time and name in loop.feeds:
            return _Turn(loop.feeds[name], turn.time - 1)
        return self._last(name)

    def _waits_for(self, turn: _Turn) -> list[_Turn]:
        """Give all that a turn waits for: what it names, or the time before of its loop."""
        waits = [self._parent(turn, name) for name in sorted(self.nodes[turn.name].parents)]
        loop = self._loop(turn.name)
        if loop is not None and turn.time and not any(each.name in loop.nodes for each in waits):
            waits += [_Turn(name, turn.time - 1) for name in loop.nodes]
        return list(dict.fromkeys(waits))

    @cached_property
    def _order(self) -> list[_Turn]:
        """The turns, each after all that it waits for."""
        return list(
            TopologicalSorter(
                {turn: self._waits_for(turn) for turn in self._turns()}
            ).static_order()
        )

    def _calls(self, task: Task) -> tuple[dict[_Copy, Call], dict[_Copy, list[_Copy]]]:
        """Prepare all calls, and say which others each waits for."""
        heads = {name: GRAPH_HEAD + number for number, name in enumerate(self.nodes)}
        calls: dict[_Copy, Call] = {}
        parents: dict[_Copy, list[_Copy]] = {}
        for turn in self._order:
            node = self.nodes[turn.name]
            lengths = (node.output_tokens or task.answer_tokens).sample(task.rng, node.count)
            waits_s = [0.0] * node.count
            if node.wait is not None:
                waits_s = node.wait.sample(task.rng, node.count).tolist()
            new_tokens = [0] * node.count
            if node.prompt.new_tokens is not None:
                new_tokens = node.prompt.new_tokens.sample(task.rng, node.count).tolist()
            for copy in range(node.count):
                prompt = self._read(task, turn, copy, calls, heads[turn.name])
                calls[turn, copy] = task.call(
                    turn.name,
                    prompt + task.text(new_tokens[copy]),
                    int(lengths[copy]),
                    model=node.model,
                    wait_s=waits_s[copy],
                )
                parents[turn, copy] = self._copies_before(turn, copy)
        return calls, parents

    def _copies_before(self, turn: _Turn, copy: int) -> list[_Copy]:
        """Say which calls a call waits for."""
        node = self.nodes[turn.name]
        reads = [each for each in node.prompt.context if each.copies == "same"]
        paired = {self._parent(turn, each.node) for each in reads}
        paired -= {self._parent(turn, name) for name in node.after}
        reads = [each for each in node.prompt.context if each.copies == "all"]
        paired -= {self._parent(turn, each.node) for each in reads}
        before: list[_Copy] = []
        for other in self._waits_for(turn):
            copies = [copy] if other in paired else range(self.nodes[other.name].count)
            before += [(other, each) for each in copies]
        return before

    def _read(
        self, task: Task, turn: _Turn, copy: int, calls: Mapping[_Copy, Call], head: int
    ) -> Content:
        """Give what a call reads, but for its new tokens."""
        law = self.nodes[turn.name].prompt
        prompt = task.head(law.head_tokens, head)
        if law.question and not law.continues:
            prompt += task.asked
        for context in law.context:
            other = self._parent(turn, context.node)
            copies = [copy] if context.copies == "same" else range(self.nodes[other.name].count)
            for each in copies:
                call = calls[other, each]
                answer = (call.answer_stream, 0, call.output_tokens)
                prompt += call.transcript if context.take == "transcript" else (answer,)
        return prompt

    def _before(self, turn: _Turn) -> set[_Turn]:
        """Give all that has to be over when a turn begins."""
        found: set[_Turn] = set()
        ahead = [turn]
        while ahead:
            new = [each for each in self._waits_for(ahead.pop()) if each not in found]
            found.update(new)
            ahead += new
        return found

    @cached_property
    def _answering(self) -> list[_Turn]:
        """The turns whose answers the given one comes of, each after those that it rests on."""
        if self.answer is None:
            return []
        turns = [self._last(self.answer)]
        for turn in turns:
            quality = self.nodes[turn.name].quality
            other = None if quality is None else self._parent(turn, quality.of)
            if other is not None and other not in turns:
                turns.append(other)
        return turns[::-1]

    @cached_property
    def _notes(self) -> list[str]:
        """Say where an answer counts as one of its length though more than the question is read."""
        found = []
        for turn in self._answering:
            before = self._before(turn)
            if self.nodes[turn.name].quality is None and before:
                calls = sum(self.nodes[each.name].count for each in before)
                names = ", ".join(sorted({each.name for each in before}))
                found.append(
                    f"graph: answers of node {turn.name!r} are taken to be as good as single "
                    f"answers of their length: what {calls} calls before them ({names}) do for it "
                    "is not counted, and no law knows it; quality of a node names those of votes "
                    "and revisions"
                )
        return found

    def _classes(self, task: Task) -> list[int]:
        """Draw the classes of the answers; none where nothing is known of them."""
        if not task.question.known:
            return []
        classes: dict[_Turn, list[int]] = {}
        rounds: dict[_Turn, int] = {}
        for turn in self._answering:
            quality = self.nodes[turn.name].quality
            other = turn if quality is None else self._parent(turn, quality.of)
            rounds[turn] = rounds.get(other, 0) + isinstance(quality, Revision)
            classes[turn] = self._drawn(task, turn, classes.get(other, []), rounds[turn])
        for note in self._notes:
            task.question.note(note)
        if not classes:
            return []
        last, node = classes[turn], self.nodes[turn.name]
        if not isinstance(node.quality, Vote):
            task.question.choose(len(last), by="vote", model=node.model)
        return last

    def _drawn(self, task: Task, turn: _Turn, others: list[int], round_: int) -> list[int]:
        """Draw what the answers of a turn are, after those that they rest on."""
        node, question = self.nodes[turn.name], task.question
        effort = (node.output_tokens or task.answer_tokens).mean_tokens
        effort /= task.answer_tokens.mean_tokens
        if node.quality is None:
            drawn = question.answers(task.rng, node.count, effort=effort, model=node.model)
            return [int(each) for each in drawn]
        if isinstance(node.quality, Vote):
            voters = self.nodes[self._parent(turn, node.quality.of).name]
            question.choose(len(others), by="vote", model=voters.model)
            return [majority(others)] * node.count
        before = others if len(others) > 1 else others * node.count
        return [
            question.revised(
                task.rng, each, rounds_before=round_ - 1, effort=effort, model=node.model
            )
            for each in before
        ]
