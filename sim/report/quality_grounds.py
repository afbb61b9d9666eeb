"""Where the accuracy of a strategy comes from: files, sources, laws, and how well they hold."""

from collections.abc import Iterable, Iterator, Mapping

from sim.catalog import Catalog
from sim.quality.benchmark import Benchmark, Laws
from sim.quality.laws import LawFit
from sim.report.formats import brief
from sim.schema import StrictModel
from sim.workload.kinds import Workload, programs_of
from sim.workload.tasks import benchmark_of

POINTS = 100
"""Of accuracy in one."""
UNITS: Mapping[str, str] = {
    "difficulty": "samples",
    "wrong_answers": "samples",
    "coverage_power": "samples",
    "effort": "tokens",
    "revision": "rounds",
    "search": "nodes",
    "gate": "direct answers",
}
"""What the range of the points of a law is in; of verifiers and further models it is samples."""


def quality_grounds(workload: Workload, catalog: Catalog) -> Iterator[dict[str, str]]:
    """Say what the accuracies of a case rest on: rows as `sim.report.provenance` has them.

    Parameters
    ----------
    workload : Workload
        Of the case; without a benchmark there is nothing to say.
    catalog : Catalog
    """
    named = (each.benchmark for each in programs_of(workload).values())
    for name in dict.fromkeys(filter(None, named)):
        yield from _of_benchmark(name, benchmark_of(name, catalog))


def _of_benchmark(name: str, benchmark: Benchmark) -> Iterator[dict[str, str]]:
    published = [f"{one.confidence}: {one.source}" for one in benchmark.points]
    yield {
        "item": f"accuracy: workloads/quality/{name}",
        "value": f"{benchmark.title}, {_count(len(published), 'published point')}",
        "source": _each_once(published) or "no published points: the laws were written by hand",
    }
    for which in ("question", "answer"):
        spread = benchmark.question_tokens if which == "question" else benchmark.answer_tokens
        yield {
            "item": f"accuracy: length of {which}s in {name}",
            "value": f"median {brief(spread.median)} tokens, sigma {brief(spread.sigma)}",
            "source": f"{spread.confidence}: {spread.source}; a workload's own law comes before it",
        }
    for what, law, unit in _laws(benchmark.laws):
        fit: LawFit | None = getattr(law, "fit", None)
        told = [] if fit is None else [*_how_it_fits(fit, unit)]
        said = getattr(law, "source", "")
        own = f"{getattr(law, 'confidence', '')}: {said}" if said else ""
        yield {
            "item": f"accuracy: {what} in {name}",
            "value": _numbers(law),
            "source": "; ".join(filter(None, (*told, own))) or "written by hand, not fitted",
        }


def _laws(laws: Laws) -> Iterator[tuple[str, StrictModel, str]]:
    """Give the laws that a file has, with what they are called and the unit of their points."""
    for name, unit in UNITS.items():
        law = getattr(laws, name)
        if law is not None:
            yield f"law of {name.replace('_', ' ')}", law, unit
    for name, verifier in laws.verifiers.items():
        yield f"law of the verifier {name}", verifier, "samples"
    for name, difficulty in laws.models.items():
        yield f"law of difficulty for the model {name}", difficulty, "samples"


def _numbers(law: StrictModel) -> str:
    """Write the numbers of a law with their names."""
    numbers = {
        name: value
        for name, value in law.model_dump().items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    }
    kind = getattr(law, "kind", "")
    listed = ", ".join(f"{name} {brief(value)}" for name, value in numbers.items())
    return f"{kind}: {listed}" if kind else listed


def _how_it_fits(fit: LawFit, unit: str) -> Iterator[str]:
    if not fit.points:
        yield "fitted to no point: all numbers are assumed"
    else:
        yield (
            f"fitted: {_count(fit.parameters, 'number')} to {_count(fit.points, 'point')}"
            f"{', which it retells' if fit.parameters >= fit.points else ''}; off by "
            f"{brief(POINTS * fit.max_error_fraction)} points at most, "
            f"{brief(POINTS * fit.rms_error_fraction)} rms; measured {_range(fit, unit)}"
        )
    if fit.assumed:
        yield f"assumed: {fit.assumed.strip().removesuffix('.')}"


def _range(fit: LawFit, unit: str) -> str:
    low, high = fit.range
    if low == high:
        return f"at {brief(low)} {unit}"
    return f"from {brief(low)} to {brief(high)} {unit}"


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def _each_once(words: Iterable[str]) -> str:
    return "; ".join(dict.fromkeys(words))
