"""Steps and served loads of a transformer of random weights, as rows of measurements."""

import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import product
from typing import Any

from sim.calibration.run_format import COLUMNS
from sim.errors import InputError, InternalError
from sim.measuring.bench import Bench, Point, Written, told
from sim.measuring.device import CpuDevice, CudaDevice
from sim.measuring.power import metering
from sim.measuring.serving_loop import Load, Request, Served, mean, percentile, serve
from sim.measuring.tables import Cell
from sim.measuring.timing import Block, measured
from sim.measuring.transformer import Shape, Transformer
from sim.units import MICROSECOND_S, MILLISECOND_S

DTYPE = "bf16"
ENGINE = "rackcast measuring loop"
"""What the column ``engine`` says, with the release of PyTorch behind it."""


@dataclass(frozen=True)
class Loads:
    """Steps and loads to measure."""

    batches: tuple[int, ...]
    contexts: tuple[int, ...]
    served: tuple[Load, ...]

    @property
    def kv_tokens(self) -> int:
        """Most tokens that the cache of a served load has to hold at once."""
        return max(load.clients * (load.input_tokens + load.output_tokens) for load in self.served)


QUICK_ROUNDS, ROUNDS = 2, 4
"""Requests of each client."""
QUICK = Loads((1, 8), (128, 512), tuple(Load(n, QUICK_ROUNDS * n, 128, 16) for n in (1, 4)))
FULL = Loads(
    (1, 2, 4, 8, 16, 32, 64),
    (128, 512, 2048, 8192),
    tuple(Load(n, ROUNDS * n, 512, 128) for n in (1, 4, 16, 64)),
)
_LOAD = re.compile(r"(\d+)x(\d+)\+(\d+)(?:c(\d+))?")


def load_of(text: str, rounds: int = ROUNDS) -> Load:
    """Read a load as users write it: clients, input and output tokens, and tokens of a chunk.

    Raises
    ------
    InputError
        It is none.

    Examples
    --------
    >>> load_of("16x1000+250c256")
    Load(clients=16, requests=64, input_tokens=1000, output_tokens=250, chunk_tokens=256)
    """
    found = _LOAD.fullmatch(text.strip())
    numbers = [int(part) for part in found.groups() if part] if found else [0]
    if min(numbers) < 1:
        raise InputError(
            f"--load {text}: write clients, input and output tokens as 16x1000+250, "
            "and behind them c256 for prompts in chunks of 256 tokens"
        )
    clients, inputs, outputs, *chunk = numbers
    return Load(clients, clients * rounds, inputs, outputs, chunk[0] if chunk else None)


@dataclass(frozen=True)
class Built:
    """What is built of a model, and what the rows call it."""

    model: str
    """Id in the catalogue, of the entry that has as many layers."""
    shape: Shape
    note: str
    """What a reader of a row must know."""
    accelerator: str
    """Id in the catalogue of the chip that it runs on."""


def steps(built: Built, loads: Loads, memory_bytes: float) -> Iterator[Point]:
    """List the steps to time: decode by batch and context as far as memory goes, and prefill."""
    for batch, context in product(loads.batches, loads.contexts):
        kv_bytes = batch * context * built.shape.kv_bytes_per_token
        if built.shape.weight_bytes + kv_bytes <= memory_bytes:
            yield _step(built, "decode", batch, context)
    for tokens in loads.contexts:
        yield _step(built, "prefill", 1, tokens)


def _step(built: Built, phase: str, batch: int, context: int) -> Point:
    key: dict[str, Cell] = {
        "model": built.model,
        "layers": built.shape.layers,
        "phase": phase,
        "batch_size": batch,
        "context_tokens": context,
    }

    def run(bench: Bench) -> list[Written]:
        model = _opened(bench, built.shape)
        model.reserve(batch, context)
        looped = _loop_of(model, phase, context)
        with metering(bench.device.sensor) as reading:
            with_host = measured(looped, bench.patience)
        row: dict[str, Cell] = {
            **key,
            **bench.labels(),
            "dtype": DTYPE,
            **told(with_host),
            "power_w": reading.mean_w,
        }
        if phase == "decode":
            alone = measured(bench.device.runner([model.eager_step(context)]), bench.patience)
            row["device_us"] = alone.median_s / MICROSECOND_S
        return [Written("steps", row)]

    return Point("steps", key, run)


def _loop_of(model: Transformer, phase: str, context: int) -> Callable[[int], Block]:
    """Make steps as an engine does: with the tokens read back after each."""
    slots = range(model.slots)

    def run(count: int) -> Block:
        started = time.perf_counter()
        for _ in range(count):
            if phase == "decode":
                model.rewind(context)
                model.decode(slots)
            else:
                model.prefill(0, 0, context, last=True)
        return Block(time.perf_counter() - started, count)

    return run


def _opened(bench: Bench, shape: Shape) -> Transformer:
    device: Any = bench.device
    if not isinstance(device, CpuDevice | CudaDevice):
        raise InternalError(f"a transformer needs a device of PyTorch, not {device!r}")
    found: Transformer = bench.resource(f"model {shape}", lambda: Transformer(device, shape))
    return found


def served_loads(built: Built, loads: Loads) -> Iterator[Point]:
    """List the closed loops to serve."""
    for load in loads.served:
        yield _served(built, load)


def _served(built: Built, load: Load) -> Point:
    chunk = "" if load.chunk_tokens is None else f" c{load.chunk_tokens}"
    row_id = f"{built.model} {load.clients}x{load.input_tokens}+{load.output_tokens}{chunk}"

    def run(bench: Bench) -> list[Written]:
        model = _opened(bench, built.shape)
        contexts = range(load.input_tokens, load.input_tokens + load.output_tokens + 1)
        model.reserve(load.clients, contexts[-1])
        model.warm(contexts)
        model.prefill(0, 0, load.input_tokens, last=True)
        with metering(bench.device.sensor) as reading:
            served = serve(model, load, time.perf_counter)
        row = {"row_id": row_id} | run_row(built, served, reading.mean_w, bench.version)
        return [*_requests(row_id, served), Written("serving", row)]

    return Point("serving", {"row_id": row_id}, run)


def _requests(row_id: str, served: Served) -> Iterator[Written]:
    def since_start(request: Request) -> dict[str, Cell]:
        times = ("arrival_s", "admit_s", "first_token_s", "done_s")
        return {name: getattr(request, name) - served.started_s for name in times}

    for request in served.requests:
        yield Written(
            "requests",
            {
                "row_id": row_id,
                "request": request.number,
                **since_start(request),
                "input_tokens": served.load.input_tokens,
                "output_tokens": request.generated_tokens,
            },
        )


def run_row(built: Built, served: Served, power_w: float | None, version: str) -> dict[str, Cell]:
    """Tell a served load in the columns of measured runs.

    Parameters
    ----------
    built
        What was served.
    served
        What happened; rates are over the whole run, its ends included.
    power_w
        Mean of the run; none where nothing tells.
    version
        Of PyTorch.
    """
    load = served.load
    rate = served.output_tokens_per_s
    row: dict[str, Cell] = {
        "source": "rackcast measure",
        "source_date": datetime.now(UTC).date().isoformat(),
        "hardware": built.accelerator,
        "num_chips": 1,
        "tp": 1,
        "pp": 1,
        "dp": 1,
        "model": built.model,
        "weight_dtype": DTYPE,
        "kv_dtype": DTYPE,
        "engine": f"{ENGINE}, {version}",
        "scenario": "concurrency",
        "isl": load.input_tokens,
        "osl": load.output_tokens,
        "concurrency": load.clients,
        "output_tokens_per_s": rate,
        "total_tokens_per_s": rate * (load.input_tokens + load.output_tokens) / load.output_tokens,
        "requests_per_s": len(served.requests) / served.duration_s,
        **_times("ttft", served.ttft_s),
        **_times("tpot", served.tpot_s),
        "e2e_mean_ms": mean(served.e2e_s) / MILLISECOND_S,
        "power_w": power_w,
        "notes": f"{len(served.requests)} requests, all clients start at once; {built.note}",
        "source_key": "own",
        "split": "calibration",
        "quality": "B",
    }
    unknown = sorted(set(row) - set(COLUMNS))
    if unknown:
        raise InternalError(f"measured runs have no columns {', '.join(unknown)}")
    return row


def _times(quantity: str, values_s: list[float]) -> dict[str, Cell]:
    if not values_s:
        return {}
    return {
        f"{quantity}_p50_ms": percentile(values_s, 0.5) / MILLISECOND_S,
        f"{quantity}_p99_ms": percentile(values_s, 0.99) / MILLISECOND_S,
        f"{quantity}_mean_ms": mean(values_s) / MILLISECOND_S,
    }
