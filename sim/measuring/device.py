"""What differs between a CPU and a GPU when PyTorch measures on it, and nothing else.

The CUDA side follows PyTorch's documentation (CUDA semantics: asynchronous execution, events,
graphs) and NVML's; it has not been run by the tests of this project, which need no GPU.
"""

import os
import platform
import time
from collections.abc import Callable, Sequence
from importlib import import_module
from itertools import cycle, islice
from pathlib import Path
from typing import Any, Literal, Protocol

from sim.errors import InfeasibleError, InputError
from sim.measuring.power import Sensor
from sim.measuring.timing import Block
from sim.units import KIB, KILO, MB, MEGA, MILLISECOND_S

Kind = Literal["cpu", "cuda"]
Call = Callable[[], object]

INSTALL = "pip install 'rackcast[measure]'"
GRAPH_CALLS = 64
"""Calls captured into one CUDA graph at most."""
SIDE_CALLS = 3
"""Calls on a side stream before a capture, as PyTorch asks for."""
UNTOLD_CACHE_BYTES = 64 * MB
"""Last-level cache of a processor that does not tell."""
FP8_CAPABILITY = (8, 9)
"""First CUDA compute capability with FP8 matrix products (Ada)."""


class Device(Protocol):
    """Where the calls run. Figures in SI units."""

    kind: Kind
    name: str
    """What the column ``hardware`` says."""
    cache_bytes: float
    """Last-level cache: operands that take turns through twice as much are never found in it."""
    graphs: bool
    """Whether calls are captured once and replayed, without their launches from Python."""
    sensor: Sensor | None

    def free_bytes(self) -> float:
        """Memory that can still be allocated, bytes."""

    def synchronize(self) -> None:
        """Wait until everything that was asked for is done."""

    def runner(self, calls: Sequence[Call]) -> Callable[[int], Block]:
        """Prepare calls that take turns, to be timed in blocks of at least so many."""

    def described(self) -> dict[str, Any]:
        """Tell of driver, clocks, memory and limits, for the record."""


def load_torch() -> Any:
    """Load PyTorch.

    Raises
    ------
    InputError
        It is not installed; the message says how to install it.
    """
    try:
        return import_module("torch")
    except ImportError as error:
        raise InputError(
            f"measuring needs PyTorch, which cannot be loaded here ({error}): {INSTALL}"
        ) from error


def open_device(kind: Kind | None = None) -> "CpuDevice | CudaDevice":
    """Open the machine's accelerator, or its processor.

    Parameters
    ----------
    kind
        None: a CUDA device where there is one, else the CPU.

    Raises
    ------
    InputError
        PyTorch is missing.
    InfeasibleError
        A CUDA device is asked for and PyTorch sees none.
    """
    torch = load_torch()
    if kind is None:
        kind = "cuda" if torch.cuda.is_available() else "cpu"
    if kind == "cpu":
        return CpuDevice(torch)
    if not torch.cuda.is_available():
        raise InfeasibleError(
            f"--device cuda: PyTorch {torch.__version__} sees no CUDA device here; "
            "install its build for your driver (pytorch.org), or take --device cpu"
        )
    return CudaDevice(torch)


class CpuDevice:
    """The processor, with as many threads as PyTorch takes.

    Parameters
    ----------
    torch
        The module.
    """

    kind: Kind = "cpu"
    graphs = False
    sensor: Sensor | None = None

    def __init__(self, torch: Any) -> None:
        self.torch = torch
        self.at = torch.device("cpu")
        self.name = cpu_name()
        self.cache_bytes = _last_cache_bytes()

    @property
    def dtypes(self) -> tuple[str, ...]:
        """Formats of matrix products to measure."""
        return ("float32", "bfloat16")

    @property
    def count(self) -> int:
        """Processes that collectives may join: one per core."""
        return os.cpu_count() or 1

    def free_bytes(self) -> float:
        """Memory that can still be allocated, bytes."""
        return _available_bytes()

    def synchronize(self) -> None:
        """Do nothing: calls on a CPU are done when they return."""

    def runner(self, calls: Sequence[Call]) -> Callable[[int], Block]:
        """Prepare calls that take turns; a block goes on where the last one ended."""
        turns = cycle(calls)

        def run(count: int) -> Block:
            chosen = list(islice(turns, count))
            started = time.perf_counter()
            for call in chosen:
                call()
            return Block(time.perf_counter() - started, count)

        return run

    def described(self) -> dict[str, Any]:
        """Tell of memory, cache and threads."""
        return {
            "memory_bytes": _physical_bytes(),
            "cache_bytes": self.cache_bytes,
            "threads": self.torch.get_num_threads(),
        }


class CudaDevice:
    """The current CUDA device, timed with events around replayed graphs.

    Parameters
    ----------
    torch
        The module.
    """

    kind: Kind = "cuda"
    graphs = True

    def __init__(self, torch: Any) -> None:
        self.torch = torch
        self.at = torch.device("cuda", torch.cuda.current_device())
        self.properties = torch.cuda.get_device_properties(self.at)
        self.name = str(self.properties.name)
        self.cache_bytes = float(getattr(self.properties, "L2_cache_size", UNTOLD_CACHE_BYTES))
        self.nvml = NvmlSensor.of(self.properties)
        self.sensor: Sensor | None = self.nvml

    @property
    def dtypes(self) -> tuple[str, ...]:
        """Formats of matrix products to measure; FP8 where the chip computes in it."""
        able = self.torch.cuda.get_device_capability(self.at) >= FP8_CAPABILITY
        return ("bfloat16", "float16", *(("fp8",) if able else ()))

    @property
    def count(self) -> int:
        """GPUs that collectives may join."""
        return int(self.torch.cuda.device_count())

    def free_bytes(self) -> float:
        """Memory that can still be allocated, what PyTorch keeps for itself included, bytes."""
        cuda = self.torch.cuda
        free, _ = cuda.mem_get_info(self.at)
        return float(free + cuda.memory_reserved(self.at) - cuda.memory_allocated(self.at))

    def synchronize(self) -> None:
        """Wait until the device is idle."""
        self.torch.cuda.synchronize(self.at)

    def runner(self, calls: Sequence[Call]) -> Callable[[int], Block]:
        """Capture calls that take turns into one graph, and time whole rounds of it."""
        cuda, chosen = self.torch.cuda, list(calls[:GRAPH_CALLS])
        graph = self.captured(chosen)

        def run(count: int) -> Block:
            rounds = -(-count // len(chosen))
            start, end = (cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            for _ in range(rounds):
                graph.replay()
            end.record()
            end.synchronize()
            return Block(start.elapsed_time(end) * MILLISECOND_S, rounds * len(chosen))

        return run

    def captured(self, calls: Sequence[Call]) -> Any:
        """Capture calls into a graph: first run on a side stream, as PyTorch asks for."""
        cuda = self.torch.cuda
        side = cuda.Stream()
        side.wait_stream(cuda.current_stream())
        with cuda.stream(side):
            for call in islice(cycle(calls), SIDE_CALLS):
                call()
        cuda.current_stream().wait_stream(side)
        graph = cuda.CUDAGraph()
        with cuda.graph(graph):
            for call in calls:
                call()
        return graph

    def described(self) -> dict[str, Any]:
        """Tell of driver, CUDA, clocks, memory, power limit and cache."""
        major, minor = self.torch.cuda.get_device_capability(self.at)
        return {
            "cuda": self.torch.version.cuda,
            "capability": f"{major}.{minor}",
            "multiprocessors": self.properties.multi_processor_count,
            "memory_bytes": float(self.properties.total_memory),
            "cache_bytes": self.cache_bytes,
        } | (self.nvml.described() if self.nvml is not None else {"nvml": "not readable"})


class NvmlSensor:
    """Power and clocks of one GPU, read through NVML (``nvidia-ml-py``).

    Parameters
    ----------
    nvml
        The module ``pynvml``, initialised.
    handle
        Of the GPU.
    """

    def __init__(self, nvml: Any, handle: Any) -> None:
        self.nvml, self.handle = nvml, handle

    @classmethod
    def of(cls, properties: Any) -> "NvmlSensor | None":
        """Find the GPU that CUDA calls by these properties; none where NVML is not there.

        By its UUID, because NVML numbers all GPUs and CUDA only those that it was shown.
        """
        try:
            nvml = import_module("pynvml")
        except ImportError:
            return None
        try:
            nvml.nvmlInit()
            handle = nvml.nvmlDeviceGetHandleByUUID(f"GPU-{properties.uuid}")
        except (nvml.NVMLError, AttributeError):
            return None
        return cls(nvml, handle)

    def _asked(self, name: str, *arguments: object) -> Any:
        """Ask NVML; none where this GPU does not answer."""
        try:
            return getattr(self.nvml, name)(self.handle, *arguments)
        except self.nvml.NVMLError:
            return None

    @property
    def limit_w(self) -> float | None:
        """Power limit that is enforced, watts."""
        limit_mw = self._asked("nvmlDeviceGetEnforcedPowerLimit")
        return None if limit_mw is None else limit_mw / KILO

    def energy_j(self) -> float | None:
        """Energy since the driver was loaded, joules; none before Volta."""
        energy_mj = self._asked("nvmlDeviceGetTotalEnergyConsumption")
        return None if energy_mj is None else energy_mj / KILO

    def power_w(self) -> float | None:
        """Power now, watts; none where the GPU does not tell."""
        power_mw = self._asked("nvmlDeviceGetPowerUsage")
        return None if power_mw is None else power_mw / KILO

    def described(self) -> dict[str, Any]:
        """Tell of driver, power limit, clocks and temperature."""
        clocks = {
            f"{name}_clock_hz": self._asked("nvmlDeviceGetClockInfo", getattr(self.nvml, which))
            for name, which in (("sm", "NVML_CLOCK_SM"), ("memory", "NVML_CLOCK_MEM"))
        }
        return {
            "driver": str(self.nvml.nvmlSystemGetDriverVersion()),
            "power_limit_w": self.limit_w,
            **{name: None if mhz is None else mhz * MEGA for name, mhz in clocks.items()},
            "temperature_c": self._asked(
                "nvmlDeviceGetTemperature", self.nvml.NVML_TEMPERATURE_GPU
            ),
        }


def cpu_name() -> str:
    """Name the processor as its maker does; no name of the host."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, "") or platform.processor() or platform.machine()


def _last_cache_bytes() -> float:
    """Size of the largest cache of the first core, bytes."""
    found = []
    for path in sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size")):
        text = path.read_text(encoding="utf-8").strip()
        if text.endswith("K") and text[:-1].isdecimal():
            found.append(float(text[:-1]) * KIB)
    return max(found, default=UNTOLD_CACHE_BYTES)


def _physical_bytes() -> float:
    return float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))


def _available_bytes() -> float:
    """Memory that Linux says is available; half of all where it does not say."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    for line in lines:
        if line.startswith("MemAvailable:"):
            return float(line.split()[1]) * KIB
    return _physical_bytes() / 2.0
