"""A grid of corrections on a closed form, fitted where measured kernels leave it.

Logarithms of the factors are found by least squares with a soft-L1 loss like that of the law
itself, and a prior of smoothness: a knot that no row shows takes what its neighbours say, and all
of them lean to 1. They may fall no faster than `sim.efficiency.Correction` allows. A grid is kept
only where it beats the closed form on rows that it has not seen.
"""

import numpy as np
from scipy.linalg import cho_solve, cholesky, solve_triangular
from scipy.optimize import nnls

from sim.calibration.regression import LOSS_SCALE, Array
from sim.efficiency import STEEPEST_SIZE, STEEPEST_TIME, Correction, hats
from sim.seeds import stream

TIME_KNOTS = 8
SIZE_KNOTS = 5
FEWEST_ROWS = 40
"""Fewer rows than knots get no grid."""
SMOOTHNESS = 0.5
"""Weight of a squared difference between neighbours, over that of a squared residual."""
LEANING = 0.05
"""The same of a squared logarithm of a factor."""
ROUNDS = 6
GAIN = 0.97
"""A grid is kept if it leaves this part or less of the mean error of rows held out."""
PARTS = 5
SEED = 2


def helpful_correction(
    floor_s: float, work_s: Array, sizes: Array, measured_s: Array
) -> Correction | None:
    """Correct a closed form where that helps on rows held out.

    Parameters
    ----------
    floor_s
        Of the closed form, seconds.
    work_s
        What the closed form says for each row without its floor, seconds.
    sizes
        By which it is corrected; positive.
    measured_s
        Of each row, seconds.

    Returns
    -------
    correction
        Of all rows; none where grids of four fifths of the rows do no better on the other fifth
        than the closed form, which has seen it.
    """
    if len(work_s) < FEWEST_ROWS:
        return None
    plain = np.abs(np.log((floor_s + work_s) / measured_s))
    corrected = np.empty(len(work_s))
    order = stream(SEED, "corrections").permutation(len(work_s))
    for part in np.array_split(order, PARTS):
        kept = np.setdiff1d(order, part)
        grid = fit_correction(floor_s, work_s[kept], sizes[kept], measured_s[kept])
        forecast_s = floor_s + work_s[part] * grid.of(work_s[part], sizes[part])
        corrected[part] = np.abs(np.log(forecast_s / measured_s[part]))
    if corrected.mean() > GAIN * plain.mean() or np.median(corrected) > np.median(plain):
        return None
    return fit_correction(floor_s, work_s, sizes, measured_s)


def fit_correction(floor_s: float, work_s: Array, sizes: Array, measured_s: Array) -> Correction:
    """Fit factors to rows; arguments as in `helpful_correction`.

    Examples
    --------
    Kernels that take 1.2 times the closed form at every size:

    >>> work_s = np.geomspace(1e-6, 1e-3, 2000)
    >>> grid = fit_correction(0.0, work_s, np.full(2000, 8.0), 1.2 * work_s)
    >>> grid.sizes, {round(factor, 2) for (factor,) in grid.factors}
    ((8.0,), {1.2})
    """
    times, marks = _knots(work_s, TIME_KNOTS), _knots(sizes, SIZE_KNOTS)
    basis = hats(work_s, times)[:, :, None] * hats(sizes, marks)[:, None, :]
    rows = basis.reshape(len(work_s), -1)
    steps, falls = _neighbours(times, marks)
    prior = SMOOTHNESS * steps.T @ steps + LEANING * np.eye(rows.shape[1])
    logs = np.zeros(rows.shape[1])
    for _ in range(ROUNDS):
        grown_s = work_s * np.exp(rows @ logs)
        forecast_s = floor_s + grown_s
        residuals = np.log(measured_s / forecast_s)
        weights = (1.0 + (residuals / LOSS_SCALE) ** 2) ** -0.25
        slopes = rows * (weights * grown_s / forecast_s)[:, None]
        wanted = weights * residuals + slopes @ logs
        # Not `slopes.T @ slopes`: the threads of a BLAS wait for each other a thousand times as
        # long as a product of this size takes, where other processes want their cores.
        normal = np.einsum("ri,rj->ij", slopes, slopes) + prior
        logs = _bounded(normal, slopes.T @ wanted, steps, falls)
    factors = np.exp(logs).reshape(len(times), len(marks))
    return Correction(
        work_s=times,
        sizes=marks,
        factors=tuple(tuple(float(f"{each:.4g}") for each in row) for row in factors.tolist()),
    )


def _knots(values: Array, most: int) -> tuple[float, ...]:
    """Spread knots evenly over the logarithms of values, no more than there are values."""
    apart = np.unique(values)
    if len(apart) <= most:
        return tuple(float(f"{each:.4g}") for each in apart.tolist())
    spread = np.geomspace(apart[0], apart[-1], most)
    return tuple(float(f"{each:.4g}") for each in spread.tolist())


def _neighbours(times: tuple[float, ...], sizes: tuple[float, ...]) -> tuple[Array, Array]:
    """Differences between neighbours of a grid, and the least that each may be."""
    index = np.arange(len(times) * len(sizes)).reshape(len(times), len(sizes))
    later = [*zip(index[1:].ravel(), index[:-1].ravel(), strict=True)]
    wider = [*zip(index[:, 1:].ravel(), index[:, :-1].ravel(), strict=True)]
    steps = np.zeros((len(later) + len(wider), index.size))
    for row, (upper, lower) in enumerate([*later, *wider]):
        steps[row, upper], steps[row, lower] = 1.0, -1.0
    by_time = np.repeat(-STEEPEST_TIME * np.diff(np.log(times)), len(sizes))
    by_size = np.tile(-STEEPEST_SIZE * np.diff(np.log(sizes)), len(times))
    return steps, np.concatenate([by_time, by_size])


def _bounded(normal: Array, right: Array, steps: Array, least: Array) -> Array:
    """Least squares of normal equations under ``steps @ x >= least``.

    The prior keeps the equations well conditioned, so that they lose no digit that counts. Where
    their solution falls too fast, the step from it to the nearest that does not is the shortest
    vector under like bounds. Lawson and Hanson, Solving Least Squares Problems, chapter 23:
    problems LSI and LDP.
    """
    triangle = cholesky(normal)
    free = cho_solve((triangle, False), right)
    short = least - steps @ free
    if np.all(short <= 0.0):
        return np.asarray(free)
    turned = solve_triangular(triangle, steps.T, trans="T").T
    system = np.vstack([turned.T, short])
    target = np.eye(len(free) + 1)[-1]
    shares, _ = nnls(system, target)
    rest = system @ shares - target
    return np.asarray(free + solve_triangular(triangle, -rest[:-1] / rest[-1]))
