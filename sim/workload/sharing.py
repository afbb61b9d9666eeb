"""Prompts that begin alike: system prompts, templates and documents that many requests share."""

from dataclasses import dataclass
from typing import Annotated, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from sim.schema import StrictModel
from sim.units import Fraction, PositiveInt
from sim.workload.content import PROMPT_STREAM, SYSTEM_STREAM, Content
from sim.workload.single import TokensLaw

Integers = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class SharedContents:
    """Contents of prompts that each begin with one of a few prefixes; made when they are asked for.

    Examples
    --------
    >>> contents = SharedContents(np.array([0, -1]), np.array([100]), np.array([120, 50]))
    >>> contents[0] == ((SYSTEM_STREAM, 0, 100), (PROMPT_STREAM, 0, 20))
    True
    """

    prefix: NDArray[np.int32] | Integers
    """Which prefix each prompt begins with; -1: none."""
    prefix_tokens: Integers
    """Tokens of each prefix."""
    input_tokens: NDArray[np.int32] | Integers
    """Whole prompts."""

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.prefix)

    def __getitem__(self, row: int, /) -> Content:
        """Return the content of a row."""
        tokens, prefix = int(self.input_tokens[row]), int(self.prefix[row])
        if prefix < 0:
            return ((PROMPT_STREAM - row, 0, tokens),)
        shared = min(int(self.prefix_tokens[prefix]), tokens)
        begin = (SYSTEM_STREAM - prefix, 0, shared)
        return (begin, (PROMPT_STREAM - row, 0, tokens - shared)) if tokens > shared else (begin,)


class SharedPrompts(NamedTuple):
    """Prompts with prefixes."""

    input_tokens: Integers
    """Whole prompts."""
    contents: SharedContents


class SharedPrefixes(StrictModel):
    """Each request begins with one of a few prefixes, some of them more popular than others.

    The prefix of rank r is drawn with a chance proportional to ``r ** -popularity`` (Zipf).

    Examples
    --------
    Two prefixes, the first twice as popular: two of three requests have it.

    >>> law = SharedPrefixes(prefixes=2, tokens={"kind": "constant", "tokens": 64})
    >>> law.chances.round(3).tolist()
    [0.667, 0.333]
    """

    kind: Literal["shared_prefix"] = "shared_prefix"
    prefixes: PositiveInt
    """How many there are."""
    tokens: TokensLaw
    """How long they are; each keeps its length."""
    popularity: Annotated[float, Field(ge=0)] = 1.0
    """Zipf exponent: 0 makes all equally popular."""
    fraction: Fraction = 1.0
    """Share of the requests that begin with one."""
    within_prompt: bool = True
    """Whether the prefix is the first part of the drawn prompt, whose length stays, and is cut
    where the prompt is shorter; or stands before it and makes it longer."""

    @property
    def chances(self) -> Floats:
        """Share of the requests with a prefix that have each, most popular first."""
        weights = np.arange(1, self.prefixes + 1, dtype=np.float64) ** -self.popularity
        return np.asarray(weights / weights.sum())

    def share(
        self,
        prefix_rng: np.random.Generator,
        request_rng: np.random.Generator,
        input_tokens: NDArray[np.int32] | Integers,
    ) -> SharedPrompts:
        """Give each prompt its prefix.

        Parameters
        ----------
        prefix_rng, request_rng : numpy.random.Generator
            For the lengths of the prefixes, and for which one each request has.
        input_tokens : numpy.ndarray
            Prompts as drawn.
        """
        lengths = self.tokens.sample(prefix_rng, self.prefixes)
        uniforms = request_rng.random((len(input_tokens), 2))
        edges = np.cumsum(self.chances)[:-1]
        prefix = np.searchsorted(edges, uniforms[:, 0], side="right").astype(np.int32)
        prefix[uniforms[:, 1] >= self.fraction] = -1
        whole = input_tokens.astype(np.int64)
        if not self.within_prompt:
            whole = whole + np.where(prefix >= 0, lengths[prefix], 0)
        return SharedPrompts(whole, SharedContents(prefix, lengths, whole))
