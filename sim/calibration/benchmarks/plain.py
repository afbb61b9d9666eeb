"""A benchmark that does what its rows tell, and nothing else."""

import re

from sim.calibration.rows import Row, count, figure, load_of
from sim.efficiency import Engine
from sim.workload.arrivals import PoissonArrivals, UniformArrivals
from sim.workload.kinds import ClosedLoopWorkload, OpenLoopWorkload
from sim.workload.lengths import FixedLengths, LengthLaw
from sim.workload.sharing import SharedPrefixes

ROUNDS = 5
"""Requests per client of a simulated closed loop, where the run does not say."""
OPEN_REQUESTS = 500
"""Requests of a simulated run with free arrivals."""
MAX_NUM_SEQS = 1_024
"""Limit of runs that do not say: benchmarks set theirs at their concurrency or above."""
_TOLD_LIMIT = re.compile(r"(max_num_seqs|max_num_batched_tokens) (\d+)")
_TOLD_MEMORY = re.compile(r"gpu_mem_util (0\.\d+)")
_EVENLY_SPACED = "constant arrivals"
"""How the notes of a run tell settings of the engine, and of the arrivals."""


class Benchmark:
    """What a benchmark does; others differ from it in what they say of themselves."""

    means = False
    """Whether its published times are means, in whatever column they stand."""
    rounds = ROUNDS
    """Requests per client of a closed loop."""

    def made(self, _row: Row) -> bool:
        """Tell whether a run is of this benchmark."""
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

    def workload(self, row: Row) -> ClosedLoopWorkload | OpenLoopWorkload:
        """Give the traffic of a run."""
        if load_of(row) == "closed":
            return self.closed_loop(row)
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
        clients = count(row, "concurrency")
        return ClosedLoopWorkload(
            kind="closed_loop",
            lengths=self.lengths(row),
            requests=max(self.rounds * clients, 2 * self.rounds),
            concurrency=clients,
        )

    def lengths(self, row: Row) -> LengthLaw:
        """Give the law of prompts and answers."""
        return FixedLengths(
            kind="fixed", input_tokens=count(row, "isl"), output_tokens=count(row, "osl")
        )

    def sharing(self, _row: Row) -> SharedPrefixes | None:
        """Tell which prompts recur; none: they have nothing in common."""
        return None
