"""What the tasks of test-time compute say, in words that do not claim more than they do.

Accuracies are shares of a sample of questions: two of them are called level unless they differ by
more than twice the standard error of their difference.
"""

import math
from collections.abc import Iterable, Iterator

import pandas as pd

from sim.metrics.baselines import AS_COMPUTE, FASTER, LEAST_MULTIPLE, SLOWER
from sim.report.findings import TIE_FRACTION, Measure, rank
from sim.report.formats import brief, duration, percent, usd

LEVEL_ERRORS = 2.0
"""Standard errors by which accuracies must differ."""
BUDGET_QUANTILES = (0.25, 0.5, 0.75)
"""Of what the cases offer: budgets and deadlines, where the scenario gives none."""
FEWEST_TO_CHOOSE = 3
"""Cases from which on budgets and deadlines are worth a sentence."""
MOST_NAMED = 6
"""Cases that a sentence names at most."""


def usd_of_task(cost_usd: float) -> str:
    """Write what a task costs: three digits, however little it is.

    >>> usd_of_task(0.00022361), usd_of_task(2.5)
    ('$0.000224', '$2.50')
    """
    return usd(cost_usd)


PER_TASK = Measure(
    "usd_per_task", "low", "cost per task", "has the cheapest tasks", usd_of_task, usd_of_task
)
PER_SOLVED_TASK = Measure(
    "usd_per_solved_task",
    "low",
    "cost per solved task",
    "has the cheapest solved tasks",
    usd_of_task,
    usd_of_task,
)


def tasks_of(summary: pd.DataFrame) -> pd.DataFrame:
    """Give the cases that worked on tasks and completed some; none if there are none."""
    if "task_s_p50" not in summary:
        return summary.iloc[:0]
    return summary[summary["task_s_p50"].notna()]


def answered(summary: pd.DataFrame) -> pd.DataFrame:
    """Give those of them whose accuracy is known."""
    tasks = tasks_of(summary)
    return tasks[tasks["accuracy_fraction"].notna()] if len(tasks) else tasks


def by_benchmark(summary: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Give the cases whose accuracy is known by their benchmark: accuracies of two do not compare.

    Where there is one benchmark its name is left empty: there is nothing to tell apart.
    """
    known = answered(summary)
    if known.empty:
        return {}
    names = known["benchmark"].fillna("").astype(str)
    found = {name: known[names == name] for name in dict.fromkeys(names)}
    return found if len(found) > 1 else {"": known}


def comparable(summary: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Give the cases whose accuracy is known by what may be compared: one benchmark, one load.

    Cases of a load of their own are taken together, as where each has the rate that it can bear.
    The names say what cases have in common, as far as it tells them apart: " of MATH at 2 tasks/s".
    """
    groups = {}
    for benchmark, cases in by_benchmark(summary).items():
        loads = _loads(cases)
        for load in dict.fromkeys(loads):
            several = len(set(loads)) > 1
            at = f" at {load}" if several and load else " at other loads" if several else ""
            groups[f"{f' of {benchmark}' if benchmark else ''}{at}"] = cases[loads == load]
    return groups


def _loads(cases: pd.DataFrame) -> "pd.Series[str]":
    """Give the load of each case; none where no other case has it."""
    loads = cases["load"].fillna("").astype(str)
    return loads.where(loads.duplicated(keep=False), "")


def front(summary: pd.DataFrame, column: str) -> tuple[str, ...]:
    """Name the cases that no other one beats, by rising cost.

    A case is beaten by one that costs no more and solves more, or costs less and solves as many.

    Parameters
    ----------
    summary : DataFrame
        With ``accuracy_fraction``.
    column : str
        What is to be low: money or time.

    Examples
    --------
    >>> summary = pd.DataFrame({"case": ["a", "b", "c"], "accuracy_fraction": [0.3, 0.5, 0.4],
    ...                         "usd_per_task": [1.0, 2.0, 3.0]})
    >>> front(summary, "usd_per_task")
    ('a', 'b')
    """
    ordered = summary.sort_values(
        [column, "accuracy_fraction"], ascending=[True, False], kind="stable"
    )
    before = ordered["accuracy_fraction"].cummax().shift(fill_value=-math.inf)
    best = ordered[ordered["accuracy_fraction"] > before]
    return tuple(str(case) for case in best["case"])


def dominated(summary: pd.DataFrame) -> dict[str, str]:
    """Name the cases that nobody should choose, each with the one to choose instead.

    That one solves no fewer tasks of the same benchmark at the same load, in no more time, for
    clearly less money.
    """
    found = {}
    for cases in comparable(summary).values():
        rows = cases.sort_values("accuracy_fraction", ascending=False, kind="stable")
        for _, case in rows.iterrows():
            better = rows[
                (rows["accuracy_fraction"] >= case["accuracy_fraction"])
                & (rows["task_s_p50"] <= case["task_s_p50"])
                & (rows["usd_per_task"] * (1.0 + TIE_FRACTION) < case["usd_per_task"])
            ]
            if len(better):
                found[str(case["case"])] = str(better.iloc[0]["case"])
    return found


def task_sentences(summary: pd.DataFrame) -> tuple[str, ...]:
    """Say what tasks cost, what they buy and what was in vain, a sentence each."""
    tasks = tasks_of(summary)
    parts = (
        _cost,
        _other_models,
        _targets,
        _budgets,
        _deadlines,
        _dominated,
        _tail,
        _latency,
        _discarded,
        _cached,
    )
    said = () if tasks.empty else tuple(sentence for part in parts for sentence in part(tasks))
    return (*said, *_failed(summary))


def _cost(tasks: pd.DataFrame) -> Iterator[str]:
    groups = comparable(tasks)
    if not groups:
        yield _cheapest(tasks, PER_TASK, "")
    for of, cases in groups.items():
        yield _cheapest(cases, PER_SOLVED_TASK, of)


def opening(summary: pd.DataFrame) -> str:
    """Say in a sentence which tasks are cheapest and which dearest, and where the others stand.

    Of cases that cannot be compared, the first ones.
    """
    tasks = tasks_of(summary)
    if tasks.empty:
        return ""
    first = next(_cost(tasks))
    groups = comparable(tasks)
    cases = next(iter(groups.values()), tasks)
    column = (PER_SOLVED_TASK if groups else PER_TASK).column
    known = cases[cases[column].notna()]
    more = ""
    if len(known) >= FEWEST_TO_CHOOSE:
        worst = known.iloc[int(known[column].to_numpy(float).argmax())]
        more = f" The dearest are those of {worst['case']}: {usd_of_task(float(worst[column]))}."
    others = len(tasks) - len(cases)
    rest = f" {others} more cases stand under Tasks." if others > 1 else ""
    return f"{first}{more}{rest}"


def _other_models(tasks: pd.DataFrame) -> Iterator[str]:
    """Say whether another model does as well as the best one, for less."""
    for of, cases in comparable(tasks).items():
        best = cases.sort_values("accuracy_fraction", ascending=False, kind="stable").iloc[0]
        first = cases.drop_duplicates("model")
        large = first.iloc[int(first["accuracy_fraction"].to_numpy(float).argmax())]["model"]
        if len(first) < 2:
            continue
        pairs = [
            _instead(row, cases[cases["model"] != large])
            for _, row in cases[cases["model"] == large].iterrows()
        ]
        yield (
            f"Cheapest per solved task{of} with another model than {large}, at equal or better "
            f"accuracy (level within two standard errors counts as equal): {'; '.join(pairs)}. "
            f"Most accurate of all: {best['case']} ({percent(float(best['accuracy_fraction']))})."
        )


def _instead(row: "pd.Series[float]", others: pd.DataFrame) -> str:
    """Name the cheapest of other cases that solve as much as one does."""
    as_good = others[
        [
            other["accuracy_fraction"] >= row["accuracy_fraction"] or _level(other, row)
            for _, other in others.iterrows()
        ]
    ]
    own = f"{percent(float(row['accuracy_fraction']))}, {_solved_usd(row)}"
    known = as_good[as_good["usd_per_solved_task"].notna()]
    if known.empty:
        return f"for {row['case']} ({own}) there is none"
    found = known.iloc[int(known["usd_per_solved_task"].to_numpy(float).argmin())]
    ratio = float(found["usd_per_solved_task"] / row["usd_per_solved_task"])
    told = "level in cost" if abs(ratio - 1.0) <= TIE_FRACTION else f"{brief(ratio)} times the cost"
    share = percent(float(found["accuracy_fraction"]))
    return f"for {row['case']} ({own}) {found['case']} ({share}, {_solved_usd(found)}), {told}"


def _solved_usd(row: "pd.Series[float]") -> str:
    return usd_of_task(float(row["usd_per_solved_task"]))


def _cheapest(cases: pd.DataFrame, measure: Measure, of: str) -> str:
    ranking = rank(cases, measure)
    if ranking is None:
        return f"No task{of} was solved: what a solved task costs is not defined."
    best = measure.write(ranking.best_value)
    if ranking.second is None:
        return f"{ranking.best}: {measure.what}{of} {best}."
    second = f"{measure.write(ranking.second_value)} for {ranking.second}"
    if ranking.separated:
        return f"{ranking.best} {measure.lead}{of}: {best}, against {second}."
    return f"{ranking.best} ({best}) is level with {second} on {measure.what}{of}."


def _targets(tasks: pd.DataFrame) -> Iterator[str]:
    """Say how many tasks met what the scenario asks of them."""
    known = tasks[tasks["task_slo_attainment_fraction"].notna()]
    limits = list(
        dict.fromkeys(
            _limits(float(row["slo_task_s"]), float(row["slo_usd_per_task"]))
            for _, row in known.iterrows()
        )
    )
    if limits:
        shares = _listed(
            f"{row['case']} {percent(float(row['task_slo_attainment_fraction']))}"
            for _, row in known.iterrows()
        )
        within = limits[0] if len(limits) == 1 else "deadline and budget of their cases"
        yield f"Tasks completed within {within}: {shares}."


def _limits(deadline_s: float, budget_usd: float) -> str:
    parts = [duration(deadline_s)] * math.isfinite(deadline_s)
    parts += [usd_of_task(budget_usd)] * math.isfinite(budget_usd)
    return " and ".join(parts)


def _budgets(tasks: pd.DataFrame) -> Iterator[str]:
    """Say which strategy solves most for some money, by the mean cost of its tasks."""
    for budget, best in _best_under(tasks, "usd_per_task", "slo_usd_per_task"):
        yield f"For {usd_of_task(budget)} per task on average or less, {best}."


def _deadlines(tasks: pd.DataFrame) -> Iterator[str]:
    """Say which strategy solves most in some time, in 95 of 100 cases."""
    for deadline_s, best in _best_under(tasks, "task_s_p95", "slo_task_s"):
        yield f"With 95 % of the tasks done in {duration(deadline_s)} or less, {best}."


def _best_under(tasks: pd.DataFrame, column: str, given: str) -> Iterator[tuple[float, str]]:
    """Give limits with the case that solves most within them, and those that are level with it."""
    groups = comparable(tasks)
    # of many groups one limit each: a list of all of them nobody reads
    quantiles = BUDGET_QUANTILES if len(groups) == 1 else BUDGET_QUANTILES[1:2]
    for of, known in groups.items():
        asked = sorted(set(known[given].dropna()))
        if not asked and len(known) < FEWEST_TO_CHOOSE:
            continue
        # a limit that some case just meets says more than one between two cases
        offers = known[column].quantile(list(quantiles), interpolation="lower")
        said = ""
        for limit in asked or sorted(set(offers)):
            words = _most_solved(known[known[column] <= limit], of)
            if words != said:
                yield float(limit), words
            said = words


def _most_solved(cases: pd.DataFrame, of: str) -> str:
    if cases.empty:
        return f"there is no strategy{of and f' for tasks{of}'}"
    best = cases.sort_values("accuracy_fraction", ascending=False, kind="stable").iloc[0]
    level = [
        str(row["case"])
        for _, row in cases.iterrows()
        if row["case"] != best["case"] and _level(row, best)
    ]
    share = percent(float(best["accuracy_fraction"]))
    words = f"{best['case']} solves most{of} ({share})"
    return f"{words}; level with it: {_listed(level)}" if level else words


def _level(one: "pd.Series[float]", other: "pd.Series[float]") -> bool:
    """Whether two accuracies may be equal, as far as the number of tasks tells."""
    apart = abs(float(one["accuracy_fraction"]) - float(other["accuracy_fraction"]))
    errors = (float(row["accuracy_standard_error"]) for row in (one, other))
    return apart <= LEVEL_ERRORS * math.hypot(*errors)


def _dominated(tasks: pd.DataFrame) -> Iterator[str]:
    pairs = [f"{case} (better: {better})" for case, better in dominated(tasks).items()]
    if pairs:
        yield (
            f"Dominated, since another solves no fewer tasks in no more time for less: "
            f"{_listed(pairs)}."
        )


def _tail(tasks: pd.DataFrame) -> Iterator[str]:
    """Say where costs differ most from task to task."""
    known = tasks[tasks["usd_per_task"] > 0]
    if known.empty:
        return
    times = (known["usd_per_task_cvar95"] / known["usd_per_task"]).to_numpy(float)
    case = known.iloc[int(times.argmax())]
    yield (
        f"The dearest 5 % of the tasks of {case['case']} cost {brief(float(times.max()))} times "
        f"its mean, {usd_of_task(float(case['usd_per_task_cvar95']))} each"
        f"{', the longest tail of all cases' if len(known) > 1 else ''}."
    )


def _latency(tasks: pd.DataFrame) -> Iterator[str]:
    """Say of each baseline whether tasks take as many times longer as they generate tokens."""
    loads = dict(zip(tasks["case"], tasks["load"], strict=True))
    several = len(set(loads.values())) > 1
    for base in dict.fromkeys(tasks["baseline"]):
        mine = tasks[tasks["baseline"] == base]
        load = str(loads.get(base, ""))
        at = f" ({load})" if several and load else ""
        for growth, words in (
            (SLOWER, "grows more slowly than compute"),
            (AS_COMPUTE, "grows as compute does"),
            (FASTER, "grows faster than compute"),
        ):
            named = [
                f"{row['case']} ({brief(float(row['latency_multiplier']))} times the time, "
                f"{brief(float(row['compute_multiplier']))} times the tokens)"
                for _, row in mine[mine["latency_growth"] == growth].iterrows()
            ]
            if named:
                yield f"Against {base}{at}, latency {words}: {_listed(named)}."
        busier = mine[(mine["load"] != load) & (mine["compute_multiplier"] >= LEAST_MULTIPLE)]
        if len(busier):
            yield (
                f"How latency grows with compute is not said of {_listed(busier['case'])}: their "
                f"baseline, {base}, has another load."
            )


def _discarded(tasks: pd.DataFrame) -> Iterator[str]:
    wasted = tasks[tasks["discarded_tokens_per_task"] > 0]
    shares = [
        f"{percent(float(row['discarded_tokens_per_task'] / row['output_tokens_per_task']))} "
        f"of {row['case']}"
        for _, row in wasted.iterrows()
    ]
    if shares:
        yield (
            "Of the generated tokens, some were thrown away with calls that were cancelled or "
            f"not answered: {_listed(shares)}."
        )


def _cached(tasks: pd.DataFrame) -> Iterator[str]:
    """Say how much of the prompts was not computed, as another call had done so."""
    prompts = tasks[tasks["input_tokens_per_task"] > 0]
    shares = (prompts["cached_tokens_per_task"] / prompts["input_tokens_per_task"]).to_numpy(float)
    if not shares.any():
        yield "Prefix caching saved nothing: no prompt began like one that was cached."
        return
    ends = [int(shares.argmin()), int(shares.argmax())] if len(shares) > 1 else [0]
    words = " to ".join(f"{percent(float(shares[i]))} in {prompts.iloc[i]['case']}" for i in ends)
    yield f"Prefix caching spared the computing of prompt tokens: {words}."


def _failed(summary: pd.DataFrame) -> Iterator[str]:
    if "failed_tasks" not in summary:
        return
    for _, row in summary[summary["failed_tasks"] > 0].iterrows():
        yield (
            f"{row['case']} failed in {row['failed_tasks']:,.0f} of {row['tasks']:,.0f} tasks; its "
            "accuracy, times and mean costs are those of the others."
        )


def _listed(names: Iterable[str]) -> str:
    """Join names, with a count in place of those beyond the most that a sentence bears.

    >>> _listed(["a", "b"]), _listed(["a, busy", "b"]), _listed([*"abcdefgh"])
    ('a, b', 'a, busy; b', 'a, b, c, d, e, f and 2 more')
    """
    found = list(names)
    rest = len(found) - MOST_NAMED
    head = ("; " if any("," in name for name in found) else ", ").join(found[:MOST_NAMED])
    return f"{head} and {rest} more" if rest > 0 else head
