"""A benchmark that does what its rows tell, and nothing else."""

import re
from collections.abc import Mapping
from typing import Literal

from sim.calibration.machines import UNSTATED_KV, split_of, usual_kv_dtype
from sim.calibration.rows import Row, clients, count, figure, load_of
from sim.catalog import Catalog
from sim.efficiency import Engine
from sim.parallelism import Parallelism
from sim.scenario import Case, Measure
from sim.units import Dtype
from sim.workload.arrivals import BurstArrivals, PoissonArrivals, UniformArrivals
from sim.workload.kinds import ClosedLoopWorkload, OpenLoopWorkload
from sim.workload.lengths import FixedLengths, LengthLaw
from sim.workload.sharing import SharedPrefixes

ROUNDS = 5
"""Requests per client of a simulated closed loop, where the run does not say."""
OPEN_REQUESTS = 500
"""Requests of a simulated run with free arrivals, where the run does not say."""
MOST_TOLD_REQUESTS = 20_000
"""Of runs that tell more, so many are simulated, and they stand for the steady part."""
QUEUED_REQUESTS = 3_000
"""Requests that are there from the start, where an offline run does not say."""
MAX_NUM_SEQS = 1_024
"""Limit of runs that do not say: benchmarks set theirs at their concurrency or above."""
_TOLD_LIMIT = re.compile(r"(max_num_seqs|max_num_batched_tokens) (\d+)")
_TOLD_MEMORY = re.compile(r"gpu_mem_util (0\.\d+)")
_EVENLY_SPACED = "constant arrivals"
"""How the notes of a run tell settings of the engine, and of the arrivals."""
_TOLD_REQUESTS = re.compile(
    r"(?<![\d.,])(?<!beyond )(\d+) (?:requests|prompts)\b(?!/| per | failed)"
)
"""How they tell how many were sent: no rate, and neither those that failed nor a limit."""
_DEALT_EXPERTS = re.compile(r"\bDEP(\d+)\b")
"""How they tell of data-parallel attention on so many chips, which the experts are dealt to."""

UnstatedTp = Literal["all_chips", "fewest_that_hold_it"]
"""Which tensor-parallel degree stands for one that is not given."""


class Benchmark:
    """What a benchmark does; others differ from it in what they say of themselves."""

    means = False
    """Whether its published times are means, in whatever column they stand."""
    rounds = ROUNDS
    """Requests per client of a closed loop."""
    unstated_tp: UnstatedTp | None = None
    """What it does where tp is not given; none: it cannot be told."""
    own_lengths = False
    """Whether it knows the lengths of its requests where they are not given."""

    def made(self, _row: Row) -> bool:
        """Tell whether a run is of this benchmark."""
        return False

    def client_s(self, _row: Row) -> float:
        """Tell what its client adds to the published time to first token, seconds."""
        return 0.0

    def is_divided(self, _row: Row) -> bool:
        """Tell whether replicas work apart, each on an equal share.

        One of them is then all there is to simulate, and rates are compared per chip.
        """
        return False

    def settings(self, row: Row, _engine: Engine, _replicas: int) -> dict[str, object]:
        """Give the settings that the engine was started with, beside those of its preset.

        Parameters
        ----------
        row : mapping
        engine : str
            Whose kernels ran.
        replicas : int
        """
        notes = row.get("notes", "")
        found: dict[str, object] = {"max_num_seqs": MAX_NUM_SEQS}
        found |= {key: int(value) for key, value in _TOLD_LIMIT.findall(notes)}
        memory = _TOLD_MEMORY.search(notes)
        if memory:
            found["memory_fraction"] = float(memory[1])
        return found

    def tuned(self, _row: Row, _case: Case, _catalog: Catalog) -> Mapping[str, object]:
        """Give the settings that the engine's own tools derive from model, chips and lengths."""
        return {}

    def split(self, row: Row, tp: int, chips: int) -> Parallelism:
        """Tell how the model was cut over the chips."""
        noted = _DEALT_EXPERTS.search(row.get("notes", ""))
        if noted and int(noted[1]) == chips > 1:
            return Parallelism(tp=1, attention_dp=chips, ep=chips)
        return split_of(row, tp, chips)

    def kv_cache(self, row: Row, engine: Engine, weights: Dtype) -> Dtype:
        """Give the format of the cache of a run whose file does not tell it."""
        return UNSTATED_KV.get((engine, row["hardware"]), usual_kv_dtype(weights))

    def workload(self, row: Row) -> ClosedLoopWorkload | OpenLoopWorkload:
        """Give the traffic of a run."""
        load = load_of(row)
        if load == "closed":
            return self.closed_loop(row)
        return self.queue(row) if load == "at_once" else self.open_loop(row)

    def queue(self, row: Row) -> OpenLoopWorkload:
        """Give the traffic of a run whose requests are all there from the start."""
        return OpenLoopWorkload(
            kind="open_loop",
            lengths=self.lengths(row),
            sharing=self.sharing(row),
            arrivals=BurstArrivals(),
            requests=self.queued(row),
        )

    def queued(self, row: Row) -> int:
        """Count the requests that are there from the start."""
        if row.get("concurrency"):
            return count(row, "concurrency")
        return told_requests(row) or QUEUED_REQUESTS

    def open_loop(self, row: Row) -> OpenLoopWorkload:
        """Give the traffic of requests that arrive freely, as many as the run tells.

        At most `MOST_TOLD_REQUESTS`: of a run of hours the steady part counts
        (`sim.calibration.replay.LONG_RUN_REQUESTS`).
        """
        rate = figure(row, "request_rate_qps")
        return OpenLoopWorkload(
            kind="open_loop",
            lengths=self.lengths(row),
            sharing=self.sharing(row),
            arrivals=UniformArrivals(rate_requests_per_s=rate)
            if _EVENLY_SPACED in row.get("notes", "")
            else PoissonArrivals(rate_requests_per_s=rate),
            requests=min(told_requests(row) or OPEN_REQUESTS, MOST_TOLD_REQUESTS),
        )

    def closed_loop(self, row: Row) -> ClosedLoopWorkload:
        """Give the traffic of clients that wait for their answers."""
        return ClosedLoopWorkload(
            kind="closed_loop",
            lengths=self.lengths(row),
            requests=self.asked(row),
            concurrency=clients(row),
        )

    def asked(self, row: Row) -> int:
        """Count the requests of all clients of a closed loop.

        As many as the run tells, at most `MOST_TOLD_REQUESTS`; else `rounds` of each client.
        """
        told = told_requests(row)
        if told is not None:
            return min(told, MOST_TOLD_REQUESTS)
        return max(self.rounds * clients(row), 2 * self.rounds)

    def measure(self, row: Row) -> Measure:
        """Tell which part of a run its rates count.

        A closed loop that tells its requests is simulated with its start and its end, which the
        rates of benchmark tools count too; of the others the steady part stands for any number.
        """
        told = told_requests(row)
        if load_of(row) != "closed" or told is None or told > MOST_TOLD_REQUESTS:
            return Measure()
        return Measure(warmup_fraction=0.0)

    def lengths(self, row: Row) -> LengthLaw:
        """Give the law of prompts and answers."""
        return FixedLengths(
            kind="fixed", input_tokens=count(row, "isl"), output_tokens=count(row, "osl")
        )

    def sharing(self, _row: Row) -> SharedPrefixes | None:
        """Tell which prompts recur; none: they have nothing in common."""
        return None


def told_requests(row: Row) -> int | None:
    """Read off the notes how many requests were sent; none: they do not tell.

    >>> told_requests({"notes": "1 of 80 requests failed; 80 requests; in the mean 4 requests/s"})
    80
    """
    told = _TOLD_REQUESTS.search(row.get("notes", ""))
    return int(told[1]) or None if told else None
