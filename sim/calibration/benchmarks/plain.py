"""A benchmark that does what its rows tell, and nothing else."""

import re
from collections.abc import Mapping
from typing import Literal

from sim.calibration.machines import UNSTATED_KV, split_of, usual_kv_dtype
from sim.calibration.rows import Row, clients, count, figure, load_of
from sim.catalog import Catalog
from sim.efficiency import Engine
from sim.parallelism import Parallelism
from sim.scenario import Case
from sim.units import Dtype
from sim.workload.arrivals import BurstArrivals, PoissonArrivals, UniformArrivals
from sim.workload.kinds import ClosedLoopWorkload, OpenLoopWorkload
from sim.workload.lengths import FixedLengths, LengthLaw
from sim.workload.sharing import SharedPrefixes

ROUNDS = 5
"""Requests per client of a simulated closed loop, where the run does not say."""
OPEN_REQUESTS = 500
"""Requests of a simulated run with free arrivals."""
QUEUED_REQUESTS = 3_000
"""Requests that are there from the start, where an offline run does not say."""
MAX_NUM_SEQS = 1_024
"""Limit of runs that do not say: benchmarks set theirs at their concurrency or above."""
_TOLD_LIMIT = re.compile(r"(max_num_seqs|max_num_batched_tokens) (\d+)")
_TOLD_MEMORY = re.compile(r"gpu_mem_util (0\.\d+)")
_EVENLY_SPACED = "constant arrivals"
"""How the notes of a run tell settings of the engine, and of the arrivals."""
_TOLD_REQUESTS = re.compile(r"\b(\d+) (?:requests|prompts)\b")
"""How they tell how many were queued."""
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
        told = _TOLD_REQUESTS.search(row.get("notes", ""))
        return int(told[1]) if told else QUEUED_REQUESTS

    def open_loop(self, row: Row) -> OpenLoopWorkload:
        """Give the traffic of requests that arrive freely."""
        rate = figure(row, "request_rate_qps")
        return OpenLoopWorkload(
            kind="open_loop",
            lengths=self.lengths(row),
            sharing=self.sharing(row),
            arrivals=UniformArrivals(rate_requests_per_s=rate)
            if _EVENLY_SPACED in row.get("notes", "")
            else PoissonArrivals(rate_requests_per_s=rate),
            requests=OPEN_REQUESTS,
        )

    def closed_loop(self, row: Row) -> ClosedLoopWorkload:
        """Give the traffic of clients that wait for their answers."""
        waiting = clients(row)
        return ClosedLoopWorkload(
            kind="closed_loop",
            lengths=self.lengths(row),
            requests=max(self.rounds * waiting, 2 * self.rounds),
            concurrency=waiting,
        )

    def lengths(self, row: Row) -> LengthLaw:
        """Give the law of prompts and answers."""
        return FixedLengths(
            kind="fixed", input_tokens=count(row, "isl"), output_tokens=count(row, "osl")
        )

    def sharing(self, _row: Row) -> SharedPrefixes | None:
        """Tell which prompts recur; none: they have nothing in common."""
        return None
