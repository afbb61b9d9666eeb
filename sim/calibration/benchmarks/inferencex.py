"""InferenceX, the public benchmark of SemiAnalysis (formerly InferenceMAX).

Its scripts (SemiAnalysisAI/InferenceX ``benchmarks/*.sh``) say how engines are started
(`sim.calibration.benchmarks.inferencex_launches`) and what is asked of them:
``--request-rate=inf --max-concurrency=$CONC --num-prompts=$(( $CONC * 10 ))``, lengths drawn from
80 to 100 % of the nominal ones, nothing in common between prompts.
"""

import math

from sim.calibration.benchmarks.inferencex_launches import (
    Launch,
    Setup,
    Start,
    shipped_launches,
)
from sim.calibration.benchmarks.plain import Benchmark
from sim.calibration.machines import engine_of, split_of
from sim.calibration.rows import Row, clients, count, load_of
from sim.efficiency import Engine
from sim.parallelism import Parallelism
from sim.units import Dtype
from sim.workload.lengths import LengthLaw, UniformRangeLengths

RANDOM_LOW_FRACTION = 0.8
"""Lengths of random requests are drawn from 80 to 100 % of the nominal ones."""
_ORIGIN = "origin IX"
_CLIENT_REQUEST_S = 0.006
_CLIENT_TOKEN_S = 4.9e-6
"""What its client, one Python process that starts all requests at once, adds per request and per
prompt token. Two figures for all engines, chips and models, fitted 2026-11-21 to the times to first
token of 901 runs, beside the engines' own: held-out median errors were 18.9 % at random and 23.1 %
by model with 20 ms per request whatever the clients; 16.5 % and 20.2 % with these; 16.6 % and
21.9 % with 10 ms per request and nothing per token; 21.9 % and 27.9 % without any."""
DRAWN = "lengths drawn from 80 to 100 % of isl and osl, which are nominal"
"""How the notes of imported result files tell it."""


class InferenceX(Benchmark):
    """All clients start at once, so a tenth of the requests wait for the prompts of all.

    Its published times are means and not medians: times to first token grow by the same
    milliseconds per client on every engine and for answers of any length, as the mean over such a
    start does; the median of it hardly grows.
    """

    means = True
    rounds = 10

    def made(self, row: Row) -> bool:
        """Tell it by the notes."""
        return _ORIGIN in row.get("notes", "")

    def client_s(self, row: Row) -> float:
        """Tell what its client adds: a request, and of those sent at the start all before it."""
        each_s = _CLIENT_REQUEST_S + _CLIENT_TOKEN_S * count(row, "isl")
        if not self.means or load_of(row) != "closed":  # the median request finds it idle
            return each_s
        before = (clients(row) - 1) / 2
        rounds = max(1.0, self.asked(row) / clients(row))
        return each_s * (1 + before / rounds)

    def settings(self, row: Row, engine: Engine, replicas: int) -> dict[str, object]:
        """Give what the launch script set.

        Of a vLLM run without a known script, what those of all the others have in common: a place
        per client and asynchronous scheduling, whatever the release.
        """
        found = super().settings(row, engine, replicas)
        setup = setup_of(row)
        if setup is not None:
            drafts = setup.draft_tokens
            choice = shipped_launches().speculation(drafts) if drafts else None
            return found | setup.settings | {"speculation": choice}
        if engine != "vllm":
            return found
        places = math.ceil(count(row, "concurrency") / replicas)
        return found | {"max_num_seqs": places, "steps_ahead": 1, "host_overlapped": True}

    def split(self, row: Row, tp: int, chips: int) -> Parallelism:
        """Cut the model as the launch script did, which results of early runs do not tell."""
        told = split_of(row, tp, chips)
        setup = setup_of(row)
        if setup is None:
            return told
        ranks = told.expert_ranks
        attention_dp = ranks if setup.attention_dp else 1
        return Parallelism(
            tp=ranks // attention_dp,
            pp=told.pp,
            attention_dp=attention_dp,
            ep=ranks if setup.experts_dealt else 1,
        )

    def kv_cache(self, row: Row, engine: Engine, weights: Dtype) -> Dtype:
        """Give the format that the launch script asked for."""
        launch = launch_of(row)
        known = launch.kv_cache if launch is not None else None
        return known or super().kv_cache(row, engine, weights)

    def lengths(self, row: Row) -> LengthLaw:
        """Draw them from a range below the nominal ones."""
        return UniformRangeLengths(
            kind="uniform_range",
            input_tokens=count(row, "isl"),
            output_tokens=count(row, "osl"),
            low_fraction=RANDOM_LOW_FRACTION,
        )


class InferenceXResult(InferenceX):
    """A run imported from a result file of InferenceX, which has medians and means apart."""

    means = False

    def made(self, row: Row) -> bool:
        """Tell it by the notes."""
        return DRAWN in row.get("notes", "")


def launch_of(row: Row) -> Launch | None:
    """Find the script that started the engine of a run, if it is known."""
    start = _start(row)
    return shipped_launches().of(start) if start else None


def setup_of(row: Row) -> Setup | None:
    """Give what the script of a run set, if it is known."""
    start = _start(row)
    launch = shipped_launches().of(start) if start else None
    return launch.setup(start) if launch and start else None


def _start(row: Row) -> Start | None:
    """Tell what a run's script was told; none: no script of one node has so many chips."""
    engine = engine_of(row)
    if engine is None or not row.get("concurrency"):
        return None
    told = split_of(row, count(row, "tp"), count(row, "num_chips"))
    return Start(
        engine=engine,
        model=row["model"],
        hardware=row["hardware"],
        weights=row["weight_dtype"],
        day=row.get("source_date", ""),
        chips=told.expert_ranks,
        experts_dealt=told.ep > 1,
        attention_dp=told.attention_dp > 1,
        clients=count(row, "concurrency"),
        input_tokens=count(row, "isl"),
        output_tokens=count(row, "osl"),
    )
