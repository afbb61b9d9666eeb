"""Fit the laws of benchmarks to the published points of their files, and write them there.

    python -m sim.calibration.quality_fit [FILE ...] [--check]

Without files all of ``workloads/quality`` of the checkout. Everything from the line ``laws:`` on is
written anew; what stands above it is not touched. With ``--check`` nothing is written.
"""

import argparse
import json
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray
from scipy import optimize, special

from sim.calibration.quality_gate import fitted_gate
from sim.calibration.regression import rounded
from sim.errors import InputError
from sim.quality.benchmark import AccuracyStrategy, Assumed, Benchmark, Laws, Point
from sim.quality.expected import predicted, vote
from sim.quality.laws import (
    Difficulty,
    EffortLaw,
    LawFit,
    LogitEffort,
    PowerCoverage,
    PowerEffort,
    RevisionLaw,
    SearchLaw,
    VerifierLaw,
    WrongAnswers,
)
from sim.quality.selection import best_of
from sim.schema import load_yaml, validate

DATE = "2026-11-21"
"""Of the fits: change it with the points."""
STRENGTH = 1.0
"""a + b of a Beta law where no point determines it: a guess. Fitted ones go from 0.1 (votes of
Qwen2.5-7B on MMLU) by 0.5 (gpt-oss-20b on AIME 2024) to 6 (GPT-4 on the Game of 24)."""
LIMIT = 4.0
"""Fitted log-odds of mean and top share, and logarithm of the strength, stay within this: 0.018 to
0.982, and 0.018 to 55. Votes that want more than that say that they do not care."""
FEWEST_VOTES = 3
"""Votes of different size that tell the strength and the top share apart."""
FEWEST_SELECTIONS = 3
"""Numbers of samples, of which a verifier chose, that tell its separation and its shared noise
apart."""
SHARED = 0.7
"""Shared fraction of a verifier that was measured at fewer: fitted ones go from 0.2 to 1."""
TOP_SHARE = 0.3
"""Mean share of the top wrong answer where no vote was published."""
FILES = Path(__file__).resolve().parents[2] / "workloads" / "quality"
NO_LAWS = {
    "difficulty": {"a": 1.0, "b": 1.0},
    "wrong_answers": {"mean_top_share": TOP_SHARE, "strength": 2.0},
}

Floats = NDArray[np.float64]


def fitted_laws(benchmark: Benchmark) -> Laws:
    """Fit all laws that the points of a benchmark determine.

    Least squares of accuracy: first difficulty and agreement of wrong answers to single answers,
    coverage and votes, together with the verifiers that were measured at `FEWEST_SELECTIONS`
    numbers of samples; then with those each other law alone.
    """
    assumed = benchmark.assumed or Assumed(why="")
    laws = _sampling_laws(benchmark, assumed)
    found: dict[str, Any] = {
        "effort": _effort(_points(benchmark, "effort"), assumed),
        "coverage_power": _power(_points(benchmark, "coverage")),
        "verifiers": _verifiers(benchmark, laws, assumed),
        "revision": _revision(_points(benchmark, "revision"), laws.difficulty, assumed),
        "search": _search(_points(benchmark, "search"), laws.difficulty),
        "models": _models(benchmark, laws),
    }
    laws = laws.model_copy(update=found)
    return laws.model_copy(update={"gate": fitted_gate(benchmark, laws, assumed)})


def _points(benchmark: Benchmark, *strategies: AccuracyStrategy) -> list[Point]:
    return [
        one
        for one in benchmark.points
        if one.fitted and one.model is None and one.strategy in strategies
    ]


def _models(benchmark: Benchmark, laws: Laws) -> dict[str, Difficulty]:
    """Fit the difficulty for other models: their mean, spread over questions as for one's own."""
    found = {}
    own, wrong = laws.difficulty, laws.wrong_answers
    for point in benchmark.points:
        if point.model is None or not point.fitted:
            continue
        strength = own.a + own.b
        law = Difficulty(
            a=round(strength * point.accuracy, 4), b=round(strength * (1 - point.accuracy), 4)
        )
        text = "not from points: strength of the Beta law, which is that of the main model"
        told = Laws(difficulty=own, wrong_answers=wrong, models={point.model: law})
        fit = _fit([point], partial(predicted, told), 1, text)
        found[point.model] = law.model_copy(update={"fit": fit})
    return found


def _solved(
    guess: Sequence[float],
    errors: Callable[[Floats], Sequence[float]],
    low: float,
    high: float,
    steps: Sequence[float] = (0.0, 0.7, -0.7),
    xtol: float = 1e-12,
) -> Floats:
    """Find the numbers that make errors least, from a few guesses some steps from the given one.

    Where points are fewer than numbers they were too few to fit, which `LawFit` shows; a weak pull
    to the guess keeps the answer one.
    """
    start = np.asarray(guess, dtype=float)

    def pulled(x: Floats) -> Floats:
        return np.append(np.asarray(errors(x)), 1e-5 * (x - start))

    found = [
        optimize.least_squares(
            pulled, np.clip(start + step, low, high), bounds=(low, high), xtol=xtol
        )
        for step in steps
    ]
    return np.asarray(min(found, key=lambda one: one.cost).x)


def _fit(
    points: Sequence[Point],
    forecast: Callable[[Point], float],
    parameters: int,
    assumed: str | None,
) -> LawFit:
    """Say how well a law holds."""
    errors = np.array([forecast(one) - one.accuracy for one in points] or [0.0])
    x = [one.x for one in points] or [0.0]
    return LawFit(
        points=len(points),
        parameters=parameters,
        # Rounded up: no error is larger than what is stated.
        max_error_fraction=float(np.ceil(np.abs(errors).max() * 1e4) / 1e4),
        rms_error_fraction=float(np.ceil(np.sqrt(np.mean(errors**2)) * 1e4) / 1e4),
        range=(min(x), max(x)),
        date=DATE,
        assumed=assumed or None,
    )


# --- Difficulty and wrong answers.


def _sampling_laws(benchmark: Benchmark, assumed: Assumed) -> Laws:
    """Fit difficulty and agreement: those of mean, strength and top share that nobody gives.

    The strength is fitted where there is coverage at two numbers of samples or more, or how many
    questions are how hard; the mean where there is no single answer to read it from; the top share
    where there are votes. Verifiers that were measured well are fitted with them, for what they
    find bounds coverage from below.
    """
    points = _points(benchmark, "answer", "coverage", "below", "vote")
    several = [one for one in points if one.x > 1 or one.strategy == "below"]
    spread = [one for one in several if one.strategy in ("coverage", "below")]
    voted = [one for one in several if one.strategy == "vote"]
    told_apart = _told_apart(benchmark)
    fixed: dict[str, float | None] = {
        "mean": assumed.difficulty_mean,
        "strength": assumed.difficulty_strength,
        "top_share": assumed.mean_top_share,
    }
    if not points and fixed["mean"] is None:
        fixed["mean"] = _reference_accuracy(benchmark)
    if not spread and len(voted) < FEWEST_VOTES and fixed["strength"] is None:
        fixed["strength"] = STRENGTH
    if not voted and fixed["top_share"] is None:
        fixed["top_share"] = TOP_SHARE
    guess = {"mean": 0.0, "strength": 0.0, "top_share": -0.85}
    free = [name for name, value in fixed.items() if value is None]
    start = [guess[name] for name in free] + [1.7, 0.8] * len(told_apart)

    def laws(x: Floats) -> Laws:
        chosen = dict(zip(free, x.tolist(), strict=False))
        mean = fixed["mean"] or float(special.expit(chosen.get("mean", 0.0)))
        strength = fixed["strength"] or float(np.exp(chosen.get("strength", 0.0)))
        share = fixed["top_share"] or float(special.expit(chosen.get("top_share", 0.0)))
        wrong = WrongAnswers(mean_top_share=share, strength=assumed.top_share_strength)
        beta = Difficulty(a=mean * strength, b=(1 - mean) * strength)
        return Laws(
            difficulty=beta, wrong_answers=wrong, verifiers=_judges(told_apart, x[len(free) :])
        )

    def errors(x: Floats) -> list[float]:
        trial = laws(x)
        return [predicted(trial, one) - one.accuracy for one in wanted]

    wanted = [*points, *(one for own in told_apart.values() for one in own)]
    if not start:
        return _sampling_fits(laws(np.zeros(0)), points, fixed, assumed)
    if told_apart:  # They take long; from one guess will do.
        best = _solved(start, errors, -LIMIT, LIMIT, steps=(0.0,), xtol=1e-7)
    else:
        best = _solved(start, errors, -LIMIT, LIMIT)
    return _sampling_fits(laws(best), points, fixed, assumed)


def _told_apart(benchmark: Benchmark) -> dict[str, list[Point]]:
    """Return the points of verifiers that tell separation and shared noise apart."""
    by_name: dict[str, list[Point]] = {}
    for one in _points(benchmark, "best_of"):
        by_name.setdefault(one.verifier or "", []).append(one)
    return {
        name: own
        for name, own in sorted(by_name.items())
        if len({one.x for one in own if one.x > 1}) >= FEWEST_SELECTIONS
    }


def _judges(names: Iterable[str], x: Floats) -> dict[str, VerifierLaw]:
    """Return verifiers of two numbers each: separation, and log-odds of the shared fraction."""
    return {
        name: VerifierLaw(separation=separation, shared_fraction=float(special.expit(odds)))
        for name, (separation, odds) in zip(names, x.reshape(-1, 2).tolist(), strict=True)
    }


def _sampling_fits(
    found: Laws, points: Sequence[Point], fixed: Mapping[str, float | None], assumed: Assumed
) -> Laws:
    """Round what was found, and say how good it is."""
    beta, wrong = found.difficulty, found.wrong_answers
    beta = Difficulty(a=rounded(beta.a), b=rounded(beta.b))
    wrong = WrongAnswers(
        mean_top_share=rounded(wrong.mean_top_share), strength=assumed.top_share_strength
    )
    laws = Laws(difficulty=beta, wrong_answers=wrong)
    told = {name: [k for k in keys if fixed[k] is not None] for name, keys in _KEYS.items()}
    alone = [one for one in points if one.strategy != "vote" or one.x == 1]
    votes = [one for one in points if one.strategy == "vote" and one.x > 1]
    return Laws(
        verifiers={
            name: VerifierLaw(
                separation=rounded(one.separation), shared_fraction=rounded(one.shared_fraction)
            )
            for name, one in found.verifiers.items()
        },
        difficulty=beta.model_copy(
            update={"fit": _difficulty_fit(laws, alone, told["difficulty"], assumed)}
        ),
        wrong_answers=wrong.model_copy(
            update={"fit": _wrong_fit(laws, votes, told["wrong_answers"], assumed)}
        ),
    )


_KEYS = {"difficulty": ("mean", "strength"), "wrong_answers": ("top_share",)}


def _difficulty_fit(
    laws: Laws, points: Sequence[Point], told: Sequence[str], assumed: Assumed
) -> LawFit:
    text = f"not from points: {', '.join(told)} of the Beta law. {assumed.why}" if told else None
    return _fit(points, lambda one: predicted(laws, one), 2 - len(told), text)


def _wrong_fit(
    laws: Laws, points: Sequence[Point], told: Sequence[str], assumed: Assumed
) -> LawFit:
    text = f"strength {assumed.top_share_strength:g} is a guess"
    if told:
        text += f", and so is mean_top_share. {assumed.why}"

    def forecast(point: Point) -> float:
        return vote(laws.difficulty, laws.wrong_answers, round(point.x))

    return _fit(points, forecast, 1 - len(told), text.strip())


def _reference_accuracy(benchmark: Benchmark) -> float:
    """Return the accuracy that stands for the benchmark where only efforts were measured."""
    known = _points(benchmark, "effort", "search", "revision")
    if not known:
        raise InputError(f"{benchmark.title}: no point says how hard the questions are")
    return float(np.median([one.accuracy for one in known]))


# --- The other laws.


def _power(points: Sequence[Point]) -> PowerCoverage | None:
    """Fit the exponentiated power law; none where fewer than three points would be retold."""
    if len(points) < 3:
        return None

    def law(x: Floats) -> PowerCoverage:
        return PowerCoverage(a=-rounded(float(np.exp(x[0]))), b=-rounded(float(np.exp(x[1]))))

    def errors(x: Floats) -> list[float]:
        a, b = -np.exp(x)
        return [float(np.exp(a * one.x**b)) - one.accuracy for one in points]

    found = law(_solved([1.0, -1.0], errors, -5.0, 4.0))
    fit = _fit(points, lambda one: found.coverage(one.x), 2, None)
    return found.model_copy(update={"fit": fit})


def _effort(points: Sequence[Point], assumed: Assumed) -> EffortLaw | None:
    """Fit accuracy against length."""
    if not points:
        return None
    low, high = min(one.x for one in points), max(one.x for one in points)
    law: Callable[[Floats], EffortLaw]
    if assumed.effort_kind == "logit":
        start, count = [0.0, 0.3], 2

        def law(x: Floats) -> EffortLaw:
            return LogitEffort(
                x_min_tokens=low, x_max_tokens=high, intercept=float(x[0]), slope=float(x[1])
            )
    else:
        start, count = [2.0, 0.0, -0.5], 3

        def law(x: Floats) -> EffortLaw:
            top, rate = float(special.expit(x[0])), float(np.exp(min(x[2], 2.0)))
            return PowerEffort(
                x_min_tokens=low, x_max_tokens=high, top=top, span=float(x[1]), rate=rate
            )

    def errors(x: Floats) -> list[float]:
        trial = law(x)
        return [trial.accuracy(one.x) - one.accuracy for one in points]

    found = law(_solved(start, errors, -12.0, 12.0))
    numbers = found.model_dump(exclude={"kind", "fit"})
    found = found.model_copy(update={name: rounded(value) for name, value in numbers.items()})
    fit = _fit(points, lambda one: found.accuracy(one.x), count, None)
    return found.model_copy(update={"fit": fit})


def _verifiers(benchmark: Benchmark, laws: Laws, assumed: Assumed) -> dict[str, VerifierLaw]:
    """Say how good the verifiers are that are known, and fit the separation of the others."""
    points = _points(benchmark, "best_of")
    shared = SHARED if assumed.shared_fraction is None else assumed.shared_fraction
    found = {}
    for name in sorted({one.verifier or "" for one in points}):
        own = [one for one in points if one.verifier == name]

        def forecast(law: VerifierLaw, point: Point) -> float:
            return best_of(laws.difficulty, laws.wrong_answers, law, round(point.x))

        def errors(x: Floats, own: Sequence[Point] = own) -> list[float]:
            law = VerifierLaw(separation=float(x[0]), shared_fraction=shared)
            return [forecast(law, one) - one.accuracy for one in own]

        law = laws.verifiers.get(name)
        count, text = 2, None
        if law is None:
            separation = rounded(float(_solved([1.0], errors, -3.0, 9.0)[0]))
            law = VerifierLaw(separation=separation, shared_fraction=shared)
            count, text = 1, f"shared_fraction {shared:g} is that of other verifiers, a guess"
        fit = _fit(own, partial(forecast, law), count, text)
        found[name] = law.model_copy(update={"fit": fit})
    return found


def _revision(
    points: Sequence[Point], difficulty: Difficulty, assumed: Assumed
) -> RevisionLaw | None:
    """Fit the chances to turn right and wrong; one of them where the other is given."""
    if not points:
        return None
    rounds = max(round(one.x) for one in points)

    def law(x: Floats) -> RevisionLaw:
        chances = special.expit(x).tolist()
        broken = assumed.revision_broken if assumed.revision_broken is not None else chances[1]
        return RevisionLaw(
            fixed=chances[0], broken=broken, decay=assumed.revision_decay, max_rounds=rounds
        )

    def forecast(of: RevisionLaw, point: Point) -> float:
        return of.accuracy(difficulty.mean, round(point.x))

    def errors(x: Floats) -> list[float]:
        trial = law(x)
        return [forecast(trial, one) - one.accuracy for one in points]

    free = 2 if assumed.revision_broken is None else 1
    best = law(_solved([-2.0, -2.0][:free], errors, -12.0, 6.0))
    found = best.model_copy(update={k: rounded(getattr(best, k)) for k in ("fixed", "broken")})
    told = [] if free == 2 else [f"broken {found.broken:g}"]
    told += [] if found.decay == 1 else [f"decay {found.decay:g}"]
    text = f"{' and '.join(told)}: {assumed.why}" if told else None
    fit = _fit(points, lambda one: forecast(found, one), free, text)
    return found.model_copy(update={"fit": fit})


def _search(points: Sequence[Point], difficulty: Difficulty) -> SearchLaw | None:
    """Fit a line of log-odds; with one point, from a direct answer to it."""
    if not points:
        return None
    x = np.log([one.x for one in points])
    y = special.logit([one.accuracy for one in points])
    if len(set(x.tolist())) > 1:
        slope, intercept = np.polyfit(x, y, 1)
        count, text = 2, None
    else:
        intercept = float(special.logit(difficulty.mean))
        slope, count = (float(y.mean()) - intercept) / float(x[0]), 1
        text = "the line goes through the accuracy of a direct answer"
    nodes = [round(one.x) for one in points]
    found = SearchLaw(
        intercept=rounded(float(intercept)),
        slope=rounded(float(slope)),
        min_nodes=min(nodes),
        max_nodes=max(nodes),
    )
    fit = _fit(points, lambda one: found.accuracy(round(one.x), 1), count, text)
    return found.model_copy(update={"fit": fit})


# --- Files.


def read_unfitted(path: Path) -> Benchmark:
    """Read a benchmark's file whether or not it has laws yet."""
    located = load_yaml(path)
    if "laws" not in located.data:
        located = load_yaml(f"{path.read_text()}\nlaws: {json.dumps(NO_LAWS)}", str(path))
    return validate(Benchmark, located)


def text_with(path: Path, laws: Laws) -> str:
    """Return the text of a file with other laws."""
    above = path.read_text().split("\nlaws:\n")[0].rstrip()
    found = laws.model_dump(mode="json", exclude_none=True)
    data = {"laws": {name: law for name, law in found.items() if law}}
    return f"{above}\n\n{yaml.safe_dump(data, sort_keys=False, width=100)}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Fit files; returns 1 if one of them would change and ``--check`` was given."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("files", nargs="*", type=Path)
    parser.add_argument("--check", action="store_true", help="write nothing; fail on a change")
    chosen = parser.parse_args(arguments)
    changed = []
    for path in chosen.files or sorted(FILES.glob("*.yaml")):
        text = text_with(path, fitted_laws(read_unfitted(path)))
        if text == path.read_text():
            continue
        changed.append(path)
        if not chosen.check:
            path.write_text(text)
    for path in changed:
        sys.stdout.write(f"{path}: {'would change' if chosen.check else 'fitted anew'}\n")
    return int(chosen.check and bool(changed))


if __name__ == "__main__":
    sys.exit(main())
