"""Token lengths of requests: how long prompts and answers are, and how one depends on the other.

Every law is one class: its fields are its configuration, `sample` draws requests from it and
`mean_tokens` says what to expect. `LengthLaw` is the union of them all, told apart by ``kind``.

Samples are prefixes of each other: the first 100 requests of a sample of 1,000 are the requests
of a sample of 100 from an equal generator, so that a longer run only adds requests.
"""

import math
from functools import cached_property
from itertools import pairwise
from statistics import NormalDist
from typing import Annotated, Literal, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from sim.schema import StrictModel
from sim.units import Fraction, NonNegativeInt, Tokens

Integers = NDArray[np.int64]
Floats = NDArray[np.float64]


class SampledTokens(NamedTuple):
    """Lengths of drawn requests: two ``int64`` arrays with one element per request, all >= 1."""

    input_tokens: Integers
    output_tokens: Integers


class MeanTokens(NamedTuple):
    """Expected tokens of one request."""

    input_tokens: float
    output_tokens: float


class FixedLengths(StrictModel):
    """Every request has the same lengths.

    Examples
    --------
    >>> law = FixedLengths(input_tokens=1024, output_tokens=128)
    >>> law.sample(np.random.default_rng(0), 2).output_tokens
    array([128, 128])
    """

    kind: Literal["fixed"] = "fixed"
    input_tokens: Tokens
    """Tokens of every prompt."""
    output_tokens: Tokens
    """Tokens of every answer."""

    @property
    def mean_tokens(self) -> MeanTokens:
        """Expected tokens of one request."""
        return MeanTokens(float(self.input_tokens), float(self.output_tokens))

    def sample(self, rng: np.random.Generator, n: int) -> SampledTokens:
        """Return the lengths of ``n`` requests; draws nothing from ``rng``."""
        del rng
        return SampledTokens(
            np.full(n, self.input_tokens, dtype=np.int64),
            np.full(n, self.output_tokens, dtype=np.int64),
        )


class UniformRangeLengths(StrictModel):
    """Lengths drawn evenly from a fraction of the nominal length up to the nominal length.

    This is the "random" data set of serving benchmarks that read ``--random-range-ratio`` as a
    lower bound: integers from ``floor(nominal * low_fraction)`` to ``nominal``, both included,
    prompts and answers independent. Newer versions of some of them read it as a half width,
    ``nominal * (1 +- ratio)``: there the longest length, not the nominal one, goes in here, and
    ``low_fraction`` is ``(1 - ratio) / (1 + ratio)``.

    Examples
    --------
    Prompts run from 80 to 100 tokens, answers from 8 to 10, so the means are their midpoints:

    >>> law = UniformRangeLengths(input_tokens=100, output_tokens=10, low_fraction=0.8)
    >>> law.mean_tokens
    MeanTokens(input_tokens=90.0, output_tokens=9.0)
    """

    kind: Literal["uniform_range"] = "uniform_range"
    input_tokens: Tokens
    """Nominal, and longest, prompt."""
    output_tokens: Tokens
    """Nominal, and longest, answer."""
    low_fraction: Fraction
    """Shortest length as a fraction of the nominal length; 1 makes every request nominal."""

    def _shortest(self, nominal_tokens: int) -> int:
        return max(1, int(nominal_tokens * self.low_fraction))

    @property
    def mean_tokens(self) -> MeanTokens:
        """Expected tokens of one request: the midpoints of the two ranges."""
        return MeanTokens(
            (self._shortest(self.input_tokens) + self.input_tokens) / 2,
            (self._shortest(self.output_tokens) + self.output_tokens) / 2,
        )

    def sample(self, rng: np.random.Generator, n: int) -> SampledTokens:
        """Return the lengths of ``n`` requests drawn from ``rng``."""
        uniforms = rng.random((n, 2))
        return SampledTokens(
            _evenly(uniforms[:, 0], self._shortest(self.input_tokens), self.input_tokens),
            _evenly(uniforms[:, 1], self._shortest(self.output_tokens), self.output_tokens),
        )


def _evenly(uniforms: Floats, lowest: int, highest: int) -> Integers:
    """Spread numbers of [0, 1) evenly over the integers ``lowest..highest``."""
    return lowest + np.floor(uniforms * (highest - lowest + 1)).astype(np.int64)


class ClippedLognormal(StrictModel):
    """One length whose logarithm is normal, rounded and clipped to a range.

    Clipping gathers the tails on the two ends, as a context limit or ``max_tokens`` does.

    Examples
    --------
    Where clipping does nothing the mean is median * exp(sigma^2 / 2) = 1000 * 1.1331:

    >>> law = ClippedLognormal(median_tokens=1000, sigma=0.5, min_tokens=1, max_tokens=1_000_000)
    >>> round(law.mean_tokens, 1)
    1133.1
    """

    median_tokens: Annotated[float, Field(gt=0)]
    """Median before clipping."""
    sigma: Annotated[float, Field(gt=0)]
    """Standard deviation of the natural logarithm of the length."""
    min_tokens: Tokens
    """Shortest length; shorter draws become this long."""
    max_tokens: Tokens
    """Longest length; longer draws become this long."""

    @model_validator(mode="after")
    def _range_is_not_empty(self) -> Self:
        if self.min_tokens > self.max_tokens:
            msg = f"min_tokens {self.min_tokens} is above max_tokens {self.max_tokens}"
            raise ValueError(msg)
        return self

    @cached_property
    def mean_tokens(self) -> float:
        """Expected length before rounding, which moves it by less than half a token.

        The mean of a lognormal clipped to [a, b] is ``a F(a) + m (G(b) - G(a)) + b (1 - F(b))``:
        F is its distribution function, m = median exp(sigma^2 / 2) its mean, and G the distribution
        function of the lognormal whose log is sigma^2 larger (the first-moment distribution;
        Aitchison and Brown, The Lognormal Distribution, 1957, section 2.2).
        """
        standard = NormalDist()
        low, high = (
            math.log(bound / self.median_tokens) / self.sigma
            for bound in (self.min_tokens, self.max_tokens)
        )
        unclipped_mean = self.median_tokens * math.exp(self.sigma**2 / 2)
        inside = standard.cdf(high - self.sigma) - standard.cdf(low - self.sigma)
        return (
            self.min_tokens * standard.cdf(low)
            + unclipped_mean * inside
            + self.max_tokens * (1 - standard.cdf(high))
        )

    def tokens(self, normals: Floats) -> Integers:
        """Return the lengths at the given standard normal scores."""
        lengths = np.rint(self.median_tokens * np.exp(self.sigma * normals))
        # what np.clip does, at half its cost for a single length
        return np.minimum(np.maximum(lengths, self.min_tokens), self.max_tokens).astype(np.int64)


class LognormalLengths(StrictModel):
    """Prompts and answers lognormal, clipped, and independent of each other."""

    kind: Literal["lognormal"] = "lognormal"
    input_tokens: ClippedLognormal
    """Law of the prompt lengths."""
    output_tokens: ClippedLognormal
    """Law of the answer lengths."""

    @property
    def mean_tokens(self) -> MeanTokens:
        """Expected tokens of one request, see `ClippedLognormal.mean_tokens`."""
        return MeanTokens(self.input_tokens.mean_tokens, self.output_tokens.mean_tokens)

    def sample(self, rng: np.random.Generator, n: int) -> SampledTokens:
        """Return the lengths of ``n`` requests drawn from ``rng``."""
        normals = rng.standard_normal((n, 2))
        return SampledTokens(
            self.input_tokens.tokens(normals[:, 0]), self.output_tokens.tokens(normals[:, 1])
        )


class QuantileTable(StrictModel):
    """A law of one length, given by knots ``[cumulative fraction, tokens]``.

    A knot ``[p, t]`` says: a fraction p of requests has at most t tokens. Between two knots
    ``[p0, t0]`` and ``[p1, t1]`` the fraction p1 - p0 is spread evenly over the whole numbers
    t0 + 1 ... t1. Two knots one token apart are therefore an atom: lengths that pile up on one
    value, such as a context limit, stay piled up.

    Examples
    --------
    Half of the requests even on 1..4, the other half all on 5:

    >>> table = QuantileTable(knots=((0.0, 0), (0.5, 4), (1.0, 5)))
    >>> table.tokens(np.array([0.0, 0.1, 0.2, 0.49, 0.6, 0.99])).tolist()
    [1, 1, 2, 4, 5, 5]
    >>> table.mean_tokens  # (1 + 2 + 3 + 4) / 4 * 0.5 + 5 * 0.5
    3.75
    """

    knots: Annotated[tuple[tuple[float, int], ...], Field(min_length=2)]
    """Pairs of cumulative fraction and tokens. Tokens rise; fractions never fall, from 0 to 1."""

    @model_validator(mode="after")
    def _knots_rise_from_zero_to_one(self) -> Self:
        if self.knots[0][0] != 0 or self.knots[-1][0] != 1:
            ends = f"{self.knots[0][0]} to {self.knots[-1][0]}"
            msg = f"knots must run from cumulative fraction 0 to 1; these run from {ends}"
            raise ValueError(msg)
        if self.knots[0][1] < 0:
            msg = f"the first knot has {self.knots[0][1]} tokens; at least 0 is needed"
            raise ValueError(msg)
        for (p0, t0), (p1, t1) in pairwise(self.knots):
            if p0 > p1 or t0 >= t1:
                msg = f"knots must rise; [{p0}, {t0}] is followed by [{p1}, {t1}]"
                raise ValueError(msg)
        return self

    @cached_property
    def _columns(self) -> tuple[Floats, Floats]:
        fractions, tokens = zip(*self.knots, strict=True)
        return np.array(fractions, dtype=np.float64), np.array(tokens, dtype=np.float64)

    @property
    def mean_tokens(self) -> float:
        """Expected length: each stretch t0 + 1 ... t1 has the mean (t0 + 1 + t1) / 2."""
        return sum((p1 - p0) * (t0 + 1 + t1) / 2 for (p0, t0), (p1, t1) in pairwise(self.knots))

    def tokens(self, rank: Floats) -> Integers:
        """Return the lengths at the given ranks (quantile levels) in [0, 1]."""
        fractions, tokens = self._columns
        lengths = np.ceil(np.interp(rank, fractions, tokens))
        # Rank 0 itself, and a product rounded up past a knot, would fall one token outside.
        return np.clip(lengths, tokens[0] + 1, tokens[-1]).astype(np.int64)

    def cumulative_fraction(self, tokens: Integers) -> Floats:
        """Return the fraction of requests that have at most the given numbers of tokens."""
        fractions, knot_tokens = self._columns
        return np.interp(tokens, knot_tokens, fractions)


class JointQuantileLengths(StrictModel):
    """Two quantile tables tied by a checkerboard copula: a compact joint law fitted to a trace.

    Requests are sorted into bands by the rank of their prompt (rows) and of their answer
    (columns). ``rank_weights[i][j]`` is the relative weight of requests in row i and column j;
    inside a cell the two ranks are even and independent. The row sums set how wide the rows are in
    rank, the column sums how wide the columns are. The margins are thus uniform for every table of
    weights, and the two quantile tables hold exactly whatever the weights say.

    References
    ----------
    Checkerboard copulas: Durante and Sempi, Principles of Copula Theory, 2015, chapter 4.

    Examples
    --------
    Lengths 1..100 on both sides, short prompts always with long answers and the reverse:

    >>> table = QuantileTable(knots=((0.0, 0), (1.0, 100)))
    >>> law = JointQuantileLengths(
    ...     input_tokens=table, output_tokens=table, rank_weights=((0, 1), (1, 0))
    ... )
    >>> drawn = law.sample(np.random.default_rng(1), 1000)
    >>> bool(np.all((drawn.input_tokens <= 50) == (drawn.output_tokens > 50)))
    True
    >>> law.mean_tokens
    MeanTokens(input_tokens=50.5, output_tokens=50.5)
    """

    kind: Literal["joint_quantiles"] = "joint_quantiles"
    input_tokens: QuantileTable
    """Law of the prompt lengths."""
    output_tokens: QuantileTable
    """Law of the answer lengths."""
    rank_weights: Annotated[tuple[tuple[NonNegativeInt, ...], ...], Field(min_length=1)]
    """Weights of the cells: rows are bands of prompt rank, columns bands of answer rank, rising."""

    @model_validator(mode="after")
    def _every_band_has_weight(self) -> Self:
        widths = {len(row) for row in self.rank_weights}
        if len(widths) != 1:
            msg = f"rows of rank_weights differ in length: {sorted(widths)}"
            raise ValueError(msg)
        if not all(any(row) for row in self.rank_weights):
            msg = "a row of rank_weights is all zero; leave the row out"
            raise ValueError(msg)
        if not all(any(column) for column in zip(*self.rank_weights, strict=True)):
            msg = "a column of rank_weights is all zero; leave the column out"
            raise ValueError(msg)
        return self

    @property
    def mean_tokens(self) -> MeanTokens:
        """Expected tokens of one request; the dependence does not move them."""
        return MeanTokens(self.input_tokens.mean_tokens, self.output_tokens.mean_tokens)

    def sample(self, rng: np.random.Generator, n: int) -> SampledTokens:
        """Return the lengths of ``n`` requests drawn from ``rng``."""
        uniforms = rng.random((n, 2))
        input_rank = uniforms[:, 0]
        output_rank = self._output_rank(input_rank, uniforms[:, 1])
        return SampledTokens(
            self.input_tokens.tokens(input_rank), self.output_tokens.tokens(output_rank)
        )

    @cached_property
    def _bands(self) -> tuple[Floats, Floats, Floats]:
        """Inner edges of the rows, and the conditional law of the answer's rank, row after row.

        The last two arrays are knots of one rising function: at ``row + q`` it gives the answer's
        rank at level q of its law conditional on the row, so one interpolation serves all rows.
        """
        weights = np.array(self.rank_weights, dtype=np.float64)
        row_edges = np.cumsum(weights.sum(axis=1)) / weights.sum()
        column_edges = np.append(0.0, np.cumsum(weights.sum(axis=0)) / weights.sum())
        conditional = np.cumsum(weights, axis=1) / weights.sum(axis=1, keepdims=True)
        rows = np.arange(len(weights))[:, np.newaxis]
        levels = np.hstack([rows, rows + conditional])
        return row_edges[:-1], levels.ravel(), np.tile(column_edges, len(weights))

    def _output_rank(self, input_rank: Floats, level: Floats) -> Floats:
        """Return the answer's rank at a level of its law conditional on the prompt's rank."""
        inner_row_edges, levels, ranks = self._bands
        row = np.searchsorted(inner_row_edges, input_rank, side="right")
        return np.interp(row + level, levels, ranks)


LengthLaw = Annotated[
    FixedLengths | UniformRangeLengths | LognormalLengths | JointQuantileLengths,
    Field(discriminator="kind"),
]
"""Any law of token lengths, told apart by ``kind``."""
