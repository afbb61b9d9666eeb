"""Draw the questions of a workload of programs: when they are asked, how long and hard they are."""

from collections.abc import Mapping, Sequence
from math import exp

import numpy as np
from numpy.typing import NDArray

from sim.catalog import Catalog
from sim.errors import InfeasibleError, InputError, under
from sim.quality import Benchmark, MissingLawError, Question, Unknown
from sim.quality.benchmark import TokensSpread
from sim.schema import Located, unplaced, validate
from sim.seeds import stream
from sim.workload.arrivals import BurstArrivals
from sim.workload.kinds import ProgramsWorkload, StrategyChoice
from sim.workload.programs import (
    Call,
    ProgramPlans,
    Strategy,
    Task,
    Unanswered,
    answered_at_once,
)
from sim.workload.requests import Traffic
from sim.workload.single import ConstantTokens, LognormalTokens, TokensLaw
from sim.workload.strategies.entry import StrategyHolder, resolved

Floats = NDArray[np.float64]

FARTHEST_SIGMAS = 6.0
"""Lengths beyond so many standard deviations of their logarithm, one in a billion, are cut off."""

TRIED_TASKS = 8
"""Questions on which a strategy is tried before a run; a branch that few take is met in the run."""

FITTED_TASKS = 25
"""Questions of which one at least has to fit into the models: where one in ten does, chances are
93 % that one of so many is among them."""


def programs(
    workload: ProgramsWorkload, catalog: Catalog, seed: int, names: tuple[str | int, ...] = ()
) -> ProgramPlans:
    """Draw the programs of a workload.

    Parameters
    ----------
    workload : ProgramsWorkload
        With its rate known: without ``load_fraction``.
    catalog : Catalog
        For strategies and benchmarks.
    seed : int
    names : tuple
        In front of the names of all random streams, see `sim.seeds.stream`.

    Raises
    ------
    InputError
        No question is asked at all, or a name that no catalogue knows.
    """
    start_s = None if workload.arrivals is None else _starts(workload, seed, names)
    count = (workload.tasks or 0) if start_s is None else len(start_s)
    named = workload.benchmark
    with under("benchmark"):
        benchmark = None if named is None else benchmark_of(named, catalog)
    question_tokens, answer_tokens = _lengths(workload, benchmark)
    questions: Sequence[Question] = [Unknown()] * count
    if benchmark is not None:
        questions = benchmark.questions(stream(seed, *names, "difficulty"), count)
    return ProgramPlans(
        strategy=strategy_of(workload.strategy, catalog),
        questions=questions,
        question_tokens=question_tokens.sample(stream(seed, *names, "questions"), count),
        answer_tokens=answer_tokens,
        seed=seed,
        names=names,
        start_s=start_s,
        clients=workload.concurrency or 0,
    )


def strategy_of(choice: StrategyChoice, catalog: Catalog) -> Strategy:
    """Give the strategy that a workload names or writes, with all that it names.

    Raises
    ------
    InputError
        A name that leads nowhere, or fields that its kind does not have; with their keys, of which
        the first is ``strategy``.
    """
    written = unplaced({"strategy": choice})
    found = resolved(written, lambda name: catalog.located("strategies", name))
    return validate(StrategyHolder, found).strategy


def named_strategies(choice: StrategyChoice, catalog: Catalog) -> tuple[str, ...]:
    """Give the ids of all strategies that one is made of, itself among them, in order."""
    found: dict[str, None] = {}

    def lookup(name: str) -> Located:
        found[name] = None
        return catalog.located("strategies", name)

    resolved(unplaced({"strategy": choice}), lookup)
    return tuple(found)


def strategy_name(choice: StrategyChoice) -> str:
    """Name the strategy of a workload in tables.

    >>> strategy_name("direct"), strategy_name({"name": "chain_8", "steps": 4})
    ('direct', 'chain_8')
    """
    return choice if isinstance(choice, str) else str(choice.get("name") or choice.get("kind"))


def needs_answers(strategy: Strategy) -> bool:
    """Tell whether a strategy cannot do without knowing how good answers are.

    Those that stop, choose a branch or skip work by them ask for them whatever else happens, so
    that one question of which nothing is known tells.
    """
    tokens = ConstantTokens(tokens=1)
    task = Task(0, np.random.default_rng(0), Unknown(), 1, tokens)
    try:
        answered_at_once(strategy.control(task))
    except InputError:
        return True
    return False


def try_out(workload: ProgramsWorkload, catalog: Catalog) -> None:
    """Let a strategy work on a few questions of its benchmark, all calls answered at once.

    Raises
    ------
    InputError
        It has to know something that the benchmark does not say.
    """
    plans = programs(workload.asked_by(1, TRIED_TASKS), catalog, seed=0)
    with under("benchmark"):
        for number in range(len(plans)):
            try:
                answered_at_once(plans.control(number))
            except MissingLawError as error:
                raise InputError(_with_way_out(error, workload.benchmark or "", catalog)) from None


def _with_way_out(error: MissingLawError, name: str, catalog: Catalog) -> str:
    """Name the file that does not say what a strategy has to know, and benchmarks that do."""
    having = []
    for other in catalog.names("quality"):
        found = getattr(benchmark_of(other, catalog).laws, error.law)
        if found and (not error.entry or error.entry in found):
            having.append(other)
    others = f"name a benchmark that has it: {', '.join(having)}"
    return (
        f"{error} of {catalog.path('quality', name)}, or of a copy in a folder of --catalog; or "
        f"{others if having else 'take another strategy, for no benchmark of the catalogue has it'}"
    )


def check_lengths(
    workload: ProgramsWorkload, catalog: Catalog, longest_tokens: Mapping[str, int]
) -> None:
    """Find out whether the calls of a strategy fit into the models.

    Parameters
    ----------
    workload : ProgramsWorkload
    catalog : Catalog
    longest_tokens : mapping
        Prompt and completion together that each model takes, by its name.

    Raises
    ------
    InfeasibleError
        None of `FITTED_TASKS` questions can be worked on to the end, for calls that are too long.
    """
    plans = programs(workload.asked_by(1, FITTED_TASKS), catalog, seed=0)
    refused: list[Call] = []

    def refuses(call: Call) -> bool:
        if call.input_tokens + call.output_tokens > longest_tokens[call.model]:
            refused.append(call)
            return True
        return False

    for number in range(len(plans)):
        try:
            answered_at_once(plans.control(number), refuses)
        except Unanswered:
            continue
        return
    least = min(refused, key=lambda call: call.input_tokens + call.output_tokens)
    most = longest_tokens[least.model]
    model = f"the model {least.model!r}" if least.model else "the model"
    raise InfeasibleError(
        f"strategy {strategy_name(workload.strategy)!r} has calls that are too long: of "
        f"{len(plans)} questions that were tried none can be worked on to the end. The shortest "
        f"such call, {least.label!r}, has {least.input_tokens:,} tokens of prompt and "
        f"{least.output_tokens:,} of completion, and {model} takes {most:,} together: let it write "
        "less in one transcript (fewer steps or rounds, shorter answers or thinking), or raise "
        "engine.max_model_len or the memory for its KV cache, or take a model of longer contexts",
        key="strategy",
    )


def first_calls(workload: ProgramsWorkload, catalog: Catalog, seed: int) -> dict[str, Call]:
    """Give the first call to each model that the first of a few questions leads to, by its name."""
    plans = programs(workload.asked_by(1, TRIED_TASKS), catalog, seed)
    found: dict[str, Call] = {}
    for number in range(len(plans)):
        for call in answered_at_once(plans.control(number)).calls:
            found.setdefault(call.model, call)
    return found


def traffic_of(plans: ProgramPlans) -> Traffic:
    """Let programs be all there is."""
    none = np.zeros(0, dtype=np.int32)
    arrivals = np.zeros(0)
    return Traffic(none, none, arrivals, clients=plans.clients, programs=(plans,))


def _starts(workload: ProgramsWorkload, seed: int, names: tuple[str | int, ...]) -> Floats:
    """Draw when questions are asked."""
    law, rng = workload.arrivals, stream(seed, *names, "arrivals")
    if law is None:
        raise InputError("the workload gives no arrivals", key="arrivals")
    if workload.duration_s is None or isinstance(law, BurstArrivals):
        return law.sample_count(rng, workload.tasks or 0)
    start_s = law.sample_duration(rng, workload.duration_s)[: workload.tasks]
    if not start_s.size:
        raise InputError(
            f"no question is asked in {workload.duration_s} s; give a longer duration_s or a "
            "higher rate",
            key="duration_s",
        )
    return start_s


def benchmark_of(name: str, catalog: Catalog) -> Benchmark:
    """Give a benchmark by its id."""
    return validate(Benchmark, catalog.located("quality", name))


def _lengths(
    workload: ProgramsWorkload, benchmark: Benchmark | None
) -> tuple[TokensLaw, TokensLaw]:
    """Give the laws of questions and direct answers: the workload's own, or the benchmark's."""
    question, answer = workload.question_tokens, workload.answer_tokens
    if benchmark is not None:
        question = question or _law(benchmark.question_tokens)
        answer = answer or _law(benchmark.answer_tokens)
    if question is None or answer is None:
        raise InputError("name a benchmark, or give both question_tokens and answer_tokens")
    return question, answer


def _law(spread: TokensSpread) -> TokensLaw:
    """Give the law of lengths that a benchmark states, with its farthest tail cut off."""
    longest = spread.median * exp(FARTHEST_SIGMAS * spread.sigma)
    most = max(round(longest), 1)
    if spread.sigma == 0:
        return ConstantTokens(tokens=most)
    return LognormalTokens(
        median_tokens=spread.median, sigma=spread.sigma, min_tokens=1, max_tokens=most
    )
