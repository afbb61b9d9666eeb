"""What benchmarks do that the rows of their runs do not tell: one module each.

A row says which lengths, clients and rates a benchmark was asked for. How lengths are drawn, how
often clients ask, which settings the engine was started with and whether published times are
means or medians is the benchmark's own, the same for all of its runs.
"""

from sim.calibration.benchmarks.inference_perf import InferencePerf
from sim.calibration.benchmarks.inferencex import InferenceX, InferenceXResult
from sim.calibration.benchmarks.mlperf import MlPerf
from sim.calibration.benchmarks.nvidia import NvidiaInternal
from sim.calibration.benchmarks.plain import Benchmark
from sim.calibration.benchmarks.static_batch import StaticBatch
from sim.calibration.benchmarks.trtllm_bench import TrtllmBench
from sim.calibration.rows import Row

BENCHMARKS: tuple[Benchmark, ...] = (
    InferenceX(),
    InferenceXResult(),
    NvidiaInternal(),
    InferencePerf(),
    StaticBatch(),
    TrtllmBench(),
    MlPerf(),
)
"""Those that are known by name."""
PLAIN = Benchmark()


def benchmark_of(row: Row) -> Benchmark:
    """Find the benchmark that made a run; one that does as its rows tell, if none is known."""
    return next((known for known in BENCHMARKS if known.made(row)), PLAIN)
