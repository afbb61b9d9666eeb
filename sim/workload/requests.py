"""The requests of a run, as columns: the one form that every workload takes in the end."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from sim.errors import InputError
from sim.workload.content import Content, answer_after
from sim.workload.programs import ProgramPlans
from sim.workload.sessions import SessionPlans

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]
ColumnT = TypeVar("ColumnT", bound=np.generic)

_ROWS = 8_192
"""Rows turned into Python numbers at once, so that a million requests need no lists."""
MOST_TENANTS = 32_767
MOST_TOKENS = 2**31 - 1


class Contents(Protocol):
    """What prompts consist of, by row."""

    def __len__(self) -> int: ...

    def __getitem__(self, row: int, /) -> Content | None: ...


class RequestRow(NamedTuple):
    """One request."""

    arrival_s: float
    """0 in a closed loop."""
    input_tokens: int
    output_tokens: int
    max_tokens: int
    """Longest answer that the client asks for; 0: just as long as the answer will be."""
    tenant: int
    priority: int
    session: int
    """-1: of none."""
    turn: int
    content: Content | None
    """None: nothing that any other prompt has."""
    answer: tuple[int, int] | None
    """Stream and position of the answer's first token; None: nobody sends it again."""
    encode_tokens: int


@dataclass(frozen=True)
class Traffic:
    """Requests of a run, in the order in which they arrive or are sent.

    Lengths are ``int32`` and a column that says the same of all requests is left out, so a
    million requests take some 20 MB.
    """

    input_tokens: NDArray[np.int32]
    """Prompt of each request."""
    output_tokens: NDArray[np.int32]
    """Answer of each request."""
    arrival_s: Floats | None = None
    """When each arrives, rising; none: clients send them (see ``clients``)."""
    clients: int = 0
    """Closed-loop clients, each of which waits for its answer before it sends the next request."""
    tenant_names: tuple[str, ...] = ("all",)
    tenant: NDArray[np.int16] | None = None
    """Index of the tenant; none: all are of the first."""
    priority: NDArray[np.int16] | None = None
    """Smaller ones are served first; none: all alike."""
    max_tokens: NDArray[np.int32] | None = None
    """Longest answer that the client asks for; none: just as long as the answer will be."""
    encode_tokens: NDArray[np.int32] | None = None
    """Tokens of images and the like; none: there are none."""
    session: NDArray[np.int32] | None = None
    """Number of the recorded session of each request; none: they belong to none."""
    turn: NDArray[np.int32] | None = None
    """Place in its session, from 0."""
    contents: Contents | None = None
    """What each prompt consists of; none: no prompt shares anything with another."""
    sessions: SessionPlans | None = None
    """Sessions that run beside the requests, each a closed loop of its own."""
    notes: tuple[str, ...] = ()
    """What a reader must know of where they come from."""
    programs: tuple[ProgramPlans, ...] = ()
    """Programs that run beside the requests, or instead of them."""

    def __post_init__(self) -> None:
        count = len(self.input_tokens)
        columns = (
            self.output_tokens,
            self.arrival_s,
            self.tenant,
            self.priority,
            self.max_tokens,
            self.encode_tokens,
            self.session,
            self.turn,
            self.contents,
        )
        if any(column is not None and len(column) != count for column in columns):
            raise InputError(f"the columns of {count} requests differ in length")
        if len(self.tenant_names) > MOST_TENANTS:
            raise InputError(
                f"{len(self.tenant_names)} tenants; at most {MOST_TENANTS} can be told apart"
            )

    def __len__(self) -> int:
        """Return the number of requests, without those of sessions."""
        return len(self.input_tokens)

    @property
    def total_requests(self) -> int:
        """Requests in all: those here and the turns of the sessions; of programs, the tasks."""
        others = 0 if self.sessions is None else self.sessions.turns
        return len(self) + others + sum(map(len, self.programs))

    @property
    def nbytes(self) -> int:
        """Bytes of the columns, without contents and sessions."""
        columns = (getattr(self, name) for name in ("input_tokens", *_OPTIONAL))
        return sum(column.nbytes for column in columns if column is not None)

    @property
    def is_plain(self) -> bool:
        """Whether nothing is known of the requests but their lengths and arrivals."""
        known = {"output_tokens", "arrival_s"}
        return self.contents is None and all(
            name in known or getattr(self, name) is None for name in _OPTIONAL
        )

    def plain_rows(self, ticks_per_s: int) -> Iterator[tuple[int, int, int, int]]:
        """Yield number, arrival in ticks, and tokens in and out of each request."""
        for start in range(0, len(self), _ROWS):
            end = min(start + _ROWS, len(self))
            arrival_s = _listed(self.arrival_s, start, end, [0] * (end - start))
            yield from zip(
                range(start, end),
                [round(seconds * ticks_per_s) for seconds in arrival_s],
                self.input_tokens[start:end].tolist(),
                self.output_tokens[start:end].tolist(),
                strict=True,
            )

    def rows(self) -> Iterator[RequestRow]:
        """Yield the requests one by one, some of them in memory at a time."""
        for start in range(0, len(self), _ROWS):
            yield from self._rows(start, min(start + _ROWS, len(self)))

    def _rows(self, start: int, end: int) -> Iterator[RequestRow]:
        count = end - start
        zeros = [0] * count
        contents = self.contents
        given: list[Content | None] = [None] * count
        if contents is not None:
            given = [contents[row] for row in range(start, end)]
        answers = [None if content is None else answer_after(content) for content in given]
        columns = zip(
            _listed(self.arrival_s, start, end, zeros),
            self.input_tokens[start:end].tolist(),
            self.output_tokens[start:end].tolist(),
            _listed(self.max_tokens, start, end, zeros),
            _listed(self.tenant, start, end, zeros),
            _listed(self.priority, start, end, zeros),
            _listed(self.session, start, end, [-1] * count),
            _listed(self.turn, start, end, zeros),
            given,
            answers,
            _listed(self.encode_tokens, start, end, zeros),
            strict=True,
        )
        yield from map(RequestRow._make, columns)

    def take(self, chosen: Integers) -> "Traffic":
        """Give some of the requests, in the order in which they are chosen."""
        columns = {
            name: column[chosen]
            for name in ("input_tokens", *_OPTIONAL)
            if (column := getattr(self, name)) is not None
        }
        contents = None if self.contents is None else ChosenContents(self.contents, chosen)
        return replace(self, **columns, contents=contents)


_OPTIONAL = (
    "output_tokens",
    "arrival_s",
    "tenant",
    "priority",
    "max_tokens",
    "encode_tokens",
    "session",
    "turn",
)


@dataclass(frozen=True)
class ChosenContents:
    """Some of the contents of others, in another order."""

    contents: Contents
    chosen: Integers

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.chosen)

    def __getitem__(self, row: int, /) -> Content | None:
        """Return the content of a row."""
        return self.contents[int(self.chosen[row])]


def as_tokens(numbers: NDArray[np.int64] | NDArray[np.int32]) -> NDArray[np.int32]:
    """Store numbers of tokens in four bytes each.

    Raises
    ------
    InputError
        One of them is beyond two billion.
    """
    if numbers.size and int(numbers.max()) > MOST_TOKENS:
        raise InputError(f"{int(numbers.max())} tokens in one request; at most {MOST_TOKENS} fit")
    return numbers.astype(np.int32)


def _listed(column: NDArray[ColumnT] | None, start: int, end: int, default: list[int]) -> list[Any]:
    return default if column is None else column[start:end].tolist()
