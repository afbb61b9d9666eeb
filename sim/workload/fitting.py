r"""Fit a `TrafficLaw` to a recorded trace and write it as YAML with its fit quality.

::

    python -m sim.workload.fitting TRACE.csv --out workloads/lengths/NAME.yaml \
        --source "who published the trace" --licence CC-BY-4.0

Refitting a law that exists keeps its source and licence unless new ones are given.

Lengths
    Each margin becomes a `QuantileTable` whose knots are points of the empirical distribution
    function. They are added one at a time: two in three where the table is furthest from the
    trace (Kolmogorov-Smirnov distance), one in three where it misplaces most of the mean.
Dependence
    A checkerboard of counts. Its bands are cut at knots of the margins, one cut at a time, each
    where it adds most mutual information. Recorded prompts and answers depend on each other
    through a few templates with their own answer lengths, a pattern that no one-parameter copula
    has: the report sets the held-out likelihood of a Gaussian copula beside the checkerboard's.
Arrivals
    Gamma renewal arrivals under a rate profile of equal time bins. How many bins is decided by
    thinning: the profile of a random half of the arrivals must predict the other half best. The
    gaps, on the clock of that profile, give the shape of the Gamma law by maximum likelihood.
"""

import argparse
import datetime as dt
import json
import sys
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, get_args

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import special, stats

from sim.errors import InputError, RackcastError
from sim.schema import load_yaml, validate
from sim.seeds import stream
from sim.units import MINUTE_S
from sim.workload.arrivals import ModulatedArrivals
from sim.workload.lengths import JointQuantileLengths, QuantileTable, SampledTokens
from sim.workload.traces import TraceKind, read_trace
from sim.workload.traffic import TrafficLaw

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

KNOTS = 56
"""Knots of each quantile table: enough for Kolmogorov-Smirnov distances below 0.005."""
BANDS = 12
"""Rows and columns of the checkerboard: 16 would hold 5 % more of the dependence, 8 12 % less."""
PROFILE_BINS = (6, 12, 18, 24, 35, 58, 70, 117)
"""Numbers of time bins tried for the rate profile."""

_COMMENT_WIDTH = 96
_LANDMARKS = (0.5, 0.9, 0.95, 0.99, 0.999)
_SEED = 20231116
_SPLITS = 50
_SIMULATED_REQUESTS = 1_000_000
_SIMULATED_RUNS = 100
_SPREAD = 0.01
"""Weight of independence in a held-out likelihood, so that an empty cell does not make it zero."""


def fit_traffic(trace: pd.DataFrame, source: str, licence: str, fitted_on: str) -> TrafficLaw:
    """Fit lengths and arrivals to a trace.

    Parameters
    ----------
    trace : pandas.DataFrame
        As returned by `read_trace`.
    source, licence : str
        Provenance of the trace, kept with the law.
    fitted_on : str
        Date of the fit, YYYY-MM-DD.

    Returns
    -------
    TrafficLaw
        The law, with its fit quality.
    """
    lengths = fit_lengths(_tokens(trace))
    arrivals = fit_arrivals(_arrival_s(trace))
    quality = lengths_quality(_tokens(trace), lengths) | arrivals_quality(
        _arrival_s(trace), arrivals
    )
    return TrafficLaw(
        source=source,
        licence=licence,
        fitted_on=fitted_on,
        rows=len(trace),
        fit_quality=quality,
        lengths=lengths,
        arrivals=arrivals,
    )


# --- Lengths.


def fit_lengths(tokens: SampledTokens) -> JointQuantileLengths:
    """Fit both margins and their checkerboard."""
    margins = Margins(*(fit_margin(column, KNOTS) for column in tokens))
    counts = contingency(tokens, fit_bands(tokens, margins, BANDS))
    return JointQuantileLengths(
        input_tokens=margins.input_tokens,
        output_tokens=margins.output_tokens,
        rank_weights=tuple(tuple(row) for row in _without_empty_bands(counts).tolist()),
    )


def _without_empty_bands(counts: Integers) -> Integers:
    """Leave out rows and columns in which the trace has nothing."""
    return counts[counts.any(axis=1)][:, counts.any(axis=0)]


class Margins(NamedTuple):
    """Laws of the prompt and answer lengths."""

    input_tokens: QuantileTable
    output_tokens: QuantileTable


class Bands(NamedTuple):
    """Upper token bounds, included, of all bands but the last; rising."""

    input_tokens: Integers
    output_tokens: Integers


def fit_margin(tokens: Integers, knots: int) -> QuantileTable:
    """Return the quantile table of a column of lengths.

    Examples
    --------
    Nine of ten answers end at a cap of 100 tokens, the rest lie even below 100: two knots, one
    token apart, keep the atom.

    >>> tokens = np.concatenate([np.arange(0, 100, 1), np.full(900, 100)]) + 1
    >>> [knot for knot in fit_margin(tokens, 8).knots if knot[1] > 98]
    [(0.1, 100), (1.0, 101)]
    """
    points, fractions = _distribution_points(tokens)
    chosen = {0, len(points) - 1, *np.searchsorted(fractions, _LANDMARKS).tolist()}
    while len(chosen) < min(knots, len(points)):
        kept = np.array(sorted(chosen))
        error = fractions - np.interp(points, points[kept], fractions[kept])
        if len(chosen) % 3 == 0:
            error = np.where(_worst_stretch(points, error, kept), error, 0.0)
        error[kept] = 0.0
        if not error.any():
            break
        chosen.add(int(np.argmax(np.abs(error))))
    rounded = np.round(fractions, 6)
    return QuantileTable(knots=tuple((float(rounded[i]), int(points[i])) for i in sorted(chosen)))


def _distribution_points(tokens: Integers) -> tuple[Integers, Floats]:
    """Return the lengths at which knots may stand, and the fraction of requests at most as long.

    Every length that occurs, and the one below it: a pair of them brackets an atom.
    """
    values = np.unique(tokens)
    points = np.union1d(values, values - 1)
    return points, np.searchsorted(np.sort(tokens), points, side="right") / len(tokens)


def _worst_stretch(points: Integers, error: Floats, kept: Integers) -> NDArray[np.bool_]:
    """Return which points lie between the two kept ones that misplace most of the mean.

    The mean is the area above the distribution function, so a stretch misplaces the area of its
    error.
    """
    stretch = np.searchsorted(kept, np.arange(len(points)), side="right") - 1
    areas = np.bincount(stretch, error * np.append(np.diff(points), 0))
    inside: NDArray[np.bool_] = stretch == np.argmax(np.abs(areas))
    return inside


def fit_bands(tokens: SampledTokens, margins: Margins, bands: int) -> Bands:
    """Cut both margins into bands, at their knots, so that the cells tell most of the dependence.

    Greedy: starting from the two medians, each further cut is the one that adds most mutual
    information between the band of the prompt and the band of the answer.
    """
    edges = Bands(*(np.array([knot[1] for knot in margin.knots[1:-1]]) for margin in margins))
    fine = contingency(tokens, edges)
    free = [set(range(len(edge))) for edge in edges]
    cuts = [
        {int(np.searchsorted(edge, np.median(column)))} & inner
        for edge, column, inner in zip(edges, tokens, free, strict=True)
    ]
    while moves := [
        (_merged_information(fine, cuts, axis, cut), axis, cut)
        for axis in (0, 1)
        if len(cuts[axis]) < bands - 1
        for cut in free[axis] - cuts[axis]
    ]:
        _, axis, cut = max(moves)
        cuts[axis].add(cut)
    return Bands(*(edge[sorted(cut)] for edge, cut in zip(edges, cuts, strict=True)))


def contingency(tokens: SampledTokens, bands: Bands) -> Integers:
    """Count requests by band of their prompt (rows) and band of their answer (columns)."""
    counts = np.zeros([len(edges) + 1 for edges in bands], dtype=np.int64)
    np.add.at(counts, _cells(tokens, bands), 1)
    return counts


def _cells(tokens: SampledTokens, bands: Bands) -> tuple[Integers, Integers]:
    """Return the row and the column of each request."""
    return (
        np.searchsorted(bands.input_tokens, tokens.input_tokens, side="left"),
        np.searchsorted(bands.output_tokens, tokens.output_tokens, side="left"),
    )


def _merged_information(fine: Integers, cuts: Sequence[set[int]], axis: int, cut: int) -> float:
    """Return the mutual information of the fine cells merged between the cuts and one more cut.

    A cut is the number of the fine cell after which it comes.
    """
    wider = [{*taken, cut} if side == axis else taken for side, taken in enumerate(cuts)]
    starts = [[0, *(after + 1 for after in sorted(side))] for side in wider]
    merged = np.add.reduceat(np.add.reduceat(fine, starts[0], axis=0), starts[1], axis=1)
    return mutual_information(merged)


def mutual_information(counts: Integers) -> float:
    """Return the mutual information of the rows and columns of a table of counts, in nats.

    Examples
    --------
    Two equal classes that determine each other share ln 2 = 0.693 nats:

    >>> round(mutual_information(np.array([[5, 0], [0, 5]])), 3)
    0.693
    """
    occupied = counts > 0
    return float((counts[occupied] * np.log(_density(counts)[occupied])).sum() / counts.sum())


def _density(counts: Integers) -> Floats:
    """Return the copula density of a table of counts: each cell over what independence gives it.

    Cells of a band without requests have the density 0.
    """
    rows, columns = counts.sum(axis=1, keepdims=True), counts.sum(axis=0, keepdims=True)
    independent = rows * columns / counts.sum()
    density = np.zeros(counts.shape)
    np.divide(counts, independent, out=density, where=independent > 0)
    return density


# --- Arrivals.


def fit_arrivals(arrival_s: Floats) -> ModulatedArrivals:
    """Fit a rate profile and the burstiness around it.

    The trace's clock starts at its first arrival, which therefore counts as the start and not as
    an arrival.
    """
    span_s = float(arrival_s[-1])
    counts = _histogram(arrival_s[1:], span_s, best_profile_bins(arrival_s[1:], span_s))
    law = ModulatedArrivals(
        rate_requests_per_s=round((len(arrival_s) - 1) / span_s, 6),
        cv=1.0,
        period_s=span_s,
        relative_rates=tuple(np.round(counts / counts.mean(), 4).tolist()),
    )
    return law.model_copy(update={"cv": round(_gap_cv(law.expected_arrivals(arrival_s)), 4)})


def best_profile_bins(arrival_s: Floats, span_s: float) -> int:
    """Return the number of time bins whose profile, of half the arrivals, best predicts the rest.

    Poisson likelihood of a random half of the arrivals, given their number, under the profile of
    the other half; mean of several halvings.
    """
    rng = stream(_SEED, "profile")
    halves = [rng.random(len(arrival_s)) < 0.5 for _ in range(_SPLITS)]

    def mean_likelihood(bins: int) -> float:
        return float(np.mean([_likelihood(arrival_s, half, span_s, bins) for half in halves]))

    return max(PROFILE_BINS, key=mean_likelihood)


def _likelihood(arrival_s: Floats, half: NDArray[np.bool_], span_s: float, bins: int) -> float:
    """Return the log likelihood per arrival of the rest under the profile of a half, in nats."""
    # Half an arrival more in every bin, so that an empty one does not rule arrivals out.
    fitted = _histogram(arrival_s[half], span_s, bins) + 0.5
    rest = _histogram(arrival_s[~half], span_s, bins)
    return float((rest * np.log(fitted / fitted.mean())).sum() / rest.sum())


def _histogram(arrival_s: Floats, span_s: float, bins: int) -> Integers:
    """Count arrivals in equal bins of [0, span]."""
    return np.histogram(arrival_s, bins=bins, range=(0.0, span_s))[0].astype(np.int64)


def _gap_cv(clock: Floats) -> float:
    """Return the maximum-likelihood coefficient of variation of Gamma gaps."""
    gaps = np.diff(clock)
    # Equal timestamps are gaps below the trace's resolution; a Gamma law has no zero gaps.
    gaps = np.maximum(gaps, gaps[gaps > 0].min() / 2)
    shape = stats.gamma.fit(gaps, floc=0)[0]
    return float(shape**-0.5)


# --- Fit quality.


def lengths_quality(tokens: SampledTokens, law: JointQuantileLengths) -> dict[str, float]:
    """Compare the law with the trace it was fitted to.

    Returns
    -------
    dict of str to float
        ``*_ks``: Kolmogorov-Smirnov distance. ``*_error``: law over trace, minus 1.
        ``*_trace`` and ``*_law``: the same figure of both. ``*_held_out_nats``: log likelihood of
        a copula per request over independence, fitted to a random half, of the other half.
    """
    drawn = law.sample(stream(_SEED, "quality"), _SIMULATED_REQUESTS)
    columns = {
        "input": (tokens.input_tokens, drawn.input_tokens),
        "output": (tokens.output_tokens, drawn.output_tokens),
        "total": (_total(tokens), _total(drawn)),
    }
    quality: dict[str, float] = {}
    for name, (recorded, simulated) in columns.items():
        quality[f"{name}_ks"] = float(stats.ks_2samp(recorded, simulated).statistic)
        quality |= _location_errors(name, recorded, simulated)
    quality["product_mean_error"] = _product_mean(drawn) / _product_mean(tokens) - 1
    for which, sample in (("trace", tokens), ("law", drawn)):
        quality[f"spearman_{which}"] = _correlation([stats.rankdata(side) for side in sample])
        quality[f"correlation_{which}"] = _correlation(sample)
        quality[f"log_correlation_{which}"] = _correlation([np.log(side) for side in sample])
    return quality | _held_out(tokens)


def _location_errors(name: str, recorded: Integers, simulated: Integers) -> dict[str, float]:
    """Return the relative errors of the mean and of three quantiles."""
    errors = {f"{name}_mean_error": simulated.mean() / recorded.mean() - 1}
    for percent in (50, 95, 99):
        quantiles = [np.quantile(column, percent / 100) for column in (simulated, recorded)]
        errors[f"{name}_p{percent}_error"] = quantiles[0] / quantiles[1] - 1
    return {key: float(error) for key, error in errors.items()}


def _total(tokens: SampledTokens) -> Integers:
    return tokens.input_tokens + tokens.output_tokens


def _correlation(columns: Iterable[Integers | Floats]) -> float:
    """Return the correlation of two columns."""
    x, y = (column.astype(np.float64) for column in columns)
    return float(np.corrcoef(x, y)[0, 1])


def _product_mean(tokens: SampledTokens) -> float:
    """Return the mean of input times output tokens, which decoding's memory traffic grows with."""
    return float(np.mean(tokens.input_tokens * tokens.output_tokens.astype(np.float64)))


def _held_out(tokens: SampledTokens) -> dict[str, float]:
    """Return the held-out likelihoods of the checkerboard and of a Gaussian copula."""
    half = stream(_SEED, "halves").random(len(tokens.input_tokens)) < 0.5
    fitted = SampledTokens(*(column[half] for column in tokens))
    rest = SampledTokens(*(column[~half] for column in tokens))
    bands = fit_bands(fitted, Margins(*(fit_margin(column, KNOTS) for column in fitted)), BANDS)
    density = (1 - _SPREAD) * _density(contingency(fitted, bands)) + _SPREAD
    correlation = _correlation([_normal_scores(column) for column in fitted])
    return {
        "checkerboard_held_out_nats": float(np.log(density[_cells(rest, bands)]).mean()),
        "gaussian_held_out_nats": _gaussian_likelihood(rest, correlation),
    }


def _normal_scores(column: Integers) -> Floats:
    """Return the standard normal quantiles of the ranks; equal values share their mean rank."""
    scores: Floats = special.ndtri((stats.rankdata(column) - 0.5) / len(column))
    return scores


def _gaussian_likelihood(tokens: SampledTokens, correlation: float) -> float:
    """Return the mean log density of a Gaussian copula, in nats."""
    x, y = (_normal_scores(column) for column in tokens)
    rest = 1 - correlation**2
    exponent = (correlation**2 * (x**2 + y**2) - 2 * correlation * x * y) / (2 * rest)
    return float(-np.log(rest) / 2 - exponent.mean())


def arrivals_quality(arrival_s: Floats, law: ModulatedArrivals) -> dict[str, float]:
    """Compare the law's arrivals, over many runs of the trace's length, with the trace.

    Returns
    -------
    dict of str to float
        ``gap_ks``: Kolmogorov-Smirnov distance of the gaps. The rest comes as ``*_trace`` and
        ``*_law``: coefficient of variation of the gaps, index of dispersion of the counts in
        spans of 1, 10 and 60 s, busiest minute over mean minute.
    """
    runs = [
        law.sample_duration(stream(_SEED, "arrivals", run), law.period_s)
        for run in range(_SIMULATED_RUNS)
    ]
    gaps = np.concatenate([np.diff(run) for run in runs])
    recorded = _arrival_figures(arrival_s, law.period_s)
    simulated = pd.DataFrame([_arrival_figures(run, law.period_s) for run in runs]).mean()
    quality = {"gap_ks": float(stats.ks_2samp(np.diff(arrival_s), gaps).statistic)}
    for name, figure in recorded.items():
        quality |= {f"{name}_trace": figure, f"{name}_law": float(simulated[name])}
    return quality


def _arrival_figures(arrival_s: Floats, span_s: float) -> dict[str, float]:
    """Return the burstiness of arrivals on several scales of time."""
    gaps = np.diff(arrival_s)
    figures = {"gap_cv": float(gaps.std() / gaps.mean())}
    for window_s in (1.0, 10.0, MINUTE_S):
        counts = _counts(arrival_s, span_s, window_s)
        figures[f"dispersion_{window_s:.0f}s"] = float(counts.var(ddof=1) / counts.mean())
    minutes = _counts(arrival_s, span_s, MINUTE_S)
    return figures | {"busiest_minute": float(minutes.max() / minutes.mean())}


def _counts(arrival_s: Floats, span_s: float, window_s: float) -> Integers:
    """Count arrivals in each whole window of the span."""
    windows = int(span_s // window_s)
    return _histogram(arrival_s, windows * window_s, windows)


# --- The file.


def to_yaml(law: TrafficLaw, title: str) -> str:
    """Return a law as a YAML document that opens with a report of the fit in comments."""
    lengths, arrivals = law.lengths, law.arrivals
    if not isinstance(lengths, JointQuantileLengths):
        raise TypeError(f"no YAML form for lengths of kind {lengths.kind}")
    if not isinstance(arrivals, ModulatedArrivals):
        raise TypeError(f"no YAML form for arrivals of kind {arrivals.kind}")
    lines = [
        *(f"# {line}".rstrip() for line in _report(law, title)),
        f"source: {json.dumps(law.source)}",
        f"licence: {json.dumps(law.licence)}",
        f'fitted_on: "{law.fitted_on}"',
        f"rows: {law.rows}",
        "fit_quality:",
        *(f"  {name}: {figure:.5f}" for name, figure in law.fit_quality.items()),
        "lengths:",
        "  kind: joint_quantiles",
        *_knot_lines("input_tokens", lengths.input_tokens),
        *_knot_lines("output_tokens", lengths.output_tokens),
        "  rank_weights:",
        *(f"    - [{', '.join(f'{w:4d}' for w in row)}]" for row in lengths.rank_weights),
        "arrivals:",
        "  kind: modulated",
        f"  rate_requests_per_s: {arrivals.rate_requests_per_s}",
        f"  cv: {arrivals.cv}",
        f"  period_s: {arrivals.period_s}",
        "  relative_rates:",
        "    [",
        *_wrapped((f"{rate:.4f}" for rate in arrivals.relative_rates), "      ", 10),
        "    ]",
    ]
    return "\n".join(lines) + "\n"


def _knot_lines(name: str, table: QuantileTable) -> list[str]:
    knots = (f"[{fraction:.6f}, {tokens}]" for fraction, tokens in table.knots)
    return [f"  {name}:", "    knots:", "      [", *_wrapped(knots, "        ", 4), "      ]"]


def _wrapped(items: Iterable[str], indent: str, per_line: int) -> list[str]:
    """Return items of a YAML flow list, a few per line, each with a comma after it."""
    texts = list(items)
    starts = range(0, len(texts), per_line)
    return [f"{indent}{', '.join(texts[i : i + per_line])}," for i in starts]


def _report(law: TrafficLaw, title: str) -> list[str]:
    quality = law.fit_quality
    return [
        f"{title}: a law of traffic fitted to a trace. Coefficients, not a copy of it.",
        "",
        *textwrap.wrap(f"Trace: {law.source}", _COMMENT_WIDTH),
        f"Licence of the trace: {law.licence}. {law.rows:,} requests. Fitted on {law.fitted_on}.",
        "Made by python -m sim.workload.fitting, whose docstring says how; do not edit by hand.",
        "",
        "Lengths: law over trace, minus 1 (1,000,000 requests drawn); KS distance of the margins.",
        f"{'':8}{'mean':>9}{'p50':>9}{'p95':>9}{'p99':>9}{'KS':>9}",
        *(_error_row(name, quality) for name in ("input", "output", "total")),
        f"Mean of input x output tokens: {quality['product_mean_error']:+.2%}.",
        "",
        "Dependence of input and output tokens, and arrivals (mean of 100 drawn runs):",
        f"{'':32}{'trace':>9}{'law':>9}",
        *(_pair_row(label, name, quality) for name, label in _PAIRS.items()),
        f"KS distance of the gaps between arrivals: {quality['gap_ks']:.4f}.",
        "",
        "Held-out log likelihood of the dependence, nats per request over independence:",
        f"checkerboard {quality['checkerboard_held_out_nats']:.4f},"
        f" Gaussian copula {quality['gaussian_held_out_nats']:.4f}.",
        "Not kept: the drift of the mix of requests over the trace; lengths are independent draws.",
    ]


_PAIRS: Mapping[str, str] = {
    "spearman": "rank correlation (Spearman)",
    "correlation": "correlation",
    "log_correlation": "correlation of the logarithms",
    "gap_cv": "gaps, coefficient of variation",
    "dispersion_1s": "dispersion of counts, 1 s",
    "dispersion_10s": "dispersion of counts, 10 s",
    "dispersion_60s": "dispersion of counts, 60 s",
    "busiest_minute": "busiest minute over mean",
}


def _error_row(name: str, quality: Mapping[str, float]) -> str:
    errors = (quality[f"{name}_{what}_error"] for what in ("mean", "p50", "p95", "p99"))
    return f"{name:8}{''.join(f'{error:+9.2%}' for error in errors)}{quality[f'{name}_ks']:9.4f}"


def _pair_row(label: str, name: str, quality: Mapping[str, float]) -> str:
    return f"{label:32}{quality[f'{name}_trace']:9.3f}{quality[f'{name}_law']:9.3f}"


# --- The command.


def main(arguments: Sequence[str] | None = None) -> int:
    """Fit the trace named on the command line; return the exit code."""
    options = _parser().parse_args(arguments)
    try:
        source, licence = _provenance(options.out, options.source, options.licence)
        law = fit_traffic(
            read_trace(options.trace, options.kind), source, licence, options.fitted_on
        )
    except RackcastError as error:
        sys.stderr.write(f"{error}\n")
        return error.exit_code
    options.out.write_text(to_yaml(law, options.out.stem), encoding="utf-8")
    return 0


def _provenance(out: Path, source: str | None, licence: str | None) -> tuple[str, str]:
    """Return source and licence as given, or as the law that is refitted has them."""
    if source and licence:
        return source, licence
    if not out.exists():
        raise InputError(f"{out}: a new law needs --source and --licence, to be cited by")
    old = validate(TrafficLaw, load_yaml(out))
    return source or old.source, licence or old.licence


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m sim.workload.fitting", description="Fit a law of traffic to a trace."
    )
    today = dt.datetime.now(tz=dt.UTC).date().isoformat()
    parser.add_argument("trace", type=Path, help="CSV file, see sim.workload.traces")
    parser.add_argument("--out", type=Path, required=True, help="YAML file to write")
    parser.add_argument("--kind", choices=get_args(TraceKind), default="plain")
    parser.add_argument("--source", help="who published the trace, as to be cited")
    parser.add_argument("--licence", help="licence of the trace, such as CC-BY-4.0")
    parser.add_argument("--fitted-on", default=today, help="date of the fit, today by default")
    return parser


def _tokens(trace: pd.DataFrame) -> SampledTokens:
    columns = (trace[name].to_numpy(dtype=np.int64) for name in SampledTokens._fields)
    return SampledTokens(*columns)


def _arrival_s(trace: pd.DataFrame) -> Floats:
    return trace["arrival_s"].to_numpy(dtype=np.float64)


if __name__ == "__main__":
    sys.exit(main())
