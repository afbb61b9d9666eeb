"""Collectives of ``torch.distributed``: NCCL between GPUs, gloo between processes on a CPU.

Every rank is a process. The processes are started once and are asked for one size after the
other; a call lasts until the slowest rank is done.
"""

import multiprocessing
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import product
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from sim.measuring.bench import Bench, Point, Written
from sim.measuring.device import Kind, load_torch
from sim.measuring.families import Grid
from sim.measuring.tables import Cell
from sim.measuring.timing import FEWEST_BLOCKS, Block, Patience, Timing, summary
from sim.units import MICROSECOND_S

OPERATIONS = ("all_reduce", "all_gather", "reduce_scatter", "alltoall")
"""As the files of measured collectives call them."""
DTYPE = "bfloat16"
ELEMENT_BYTES = 2
START_LIMIT_S = 120.0
"""Starting a process, loading PyTorch and meeting the others takes no longer."""
CALL_LIMIT_S = 60.0
MOST_CALLS = 2000


class CollectiveError(RuntimeError):
    """A collective that this machine cannot do."""


class RankGroup:
    """Processes that make collectives together.

    Parameters
    ----------
    kind
        Where they keep their tensors.
    ranks
        How many; on GPUs each takes one.

    Raises
    ------
    CollectiveError
        They did not come up.
    """

    def __init__(self, kind: Kind, ranks: int) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="rackcast-ranks-")
        store = str(Path(self._folder.name) / "store")
        context = multiprocessing.get_context("spawn")
        self.broken = False
        """A rank is gone: no answer is to be had any more."""
        self._ends: list[Connection] = []
        self._processes: list[Any] = []
        for rank in range(ranks):
            ours, theirs = context.Pipe()
            process = context.Process(
                target=serve_rank, args=(theirs, kind, rank, ranks, store), daemon=True
            )
            process.start()
            theirs.close()
            self._ends.append(ours)
            self._processes.append(process)
        self.library = str(self._answers(START_LIMIT_S)[0])

    def timed(self, operation: str, size_bytes: int, patience: Patience) -> Timing:
        """Time one collective of one size.

        Raises
        ------
        CollectiveError
            The library does not have it.
        """
        try:
            for end in self._ends:
                end.send((operation, size_bytes, patience))
        except OSError as error:
            self.broken = True
            raise CollectiveError("a rank ended") from error
        blocks = self._answers(CALL_LIMIT_S + patience.limit_s)
        slowest = [max(each, key=lambda block: block.seconds) for each in zip(*blocks, strict=True)]
        return summary(slowest)

    def _answers(self, limit_s: float) -> list[Any]:
        """Take an answer from every rank."""
        found, until = [], time.monotonic() + limit_s
        self.broken = True
        for end in self._ends:
            try:
                if not end.poll(max(0.0, until - time.monotonic())):
                    raise CollectiveError(f"a rank did not answer within {limit_s:.0f} s")
                found.append(end.recv())
            except (EOFError, OSError) as error:
                raise CollectiveError("a rank ended") from error
        self.broken = False
        failed = [answer for answer in found if isinstance(answer, Exception)]
        if failed:
            raise CollectiveError(str(failed[0]).partition("\n")[0])
        return found

    def close(self) -> None:
        """End the processes."""
        for end in self._ends:
            try:
                end.send(None)
            except OSError:
                continue
        for process in self._processes:
            process.join(timeout=5.0)
            if process.is_alive():
                process.terminate()
        self._folder.cleanup()


def serve_rank(end: Connection, kind: Kind, rank: int, ranks: int, store: str) -> None:
    """Answer requests for timings until there are no more; runs in a process of its own."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends it
    torch = load_torch()
    distributed = torch.distributed
    try:
        at = torch.device("cpu") if kind == "cpu" else torch.device("cuda", rank)
        if kind == "cpu":
            torch.set_num_threads(1)
        else:
            torch.cuda.set_device(at)
        backend = "gloo" if kind == "cpu" else "nccl"
        distributed.init_process_group(
            backend, init_method=f"file://{store}", rank=rank, world_size=ranks
        )
        end.send(_library(torch, kind))
        while (asked := end.recv()) is not None:
            try:
                end.send(_rank_blocks(torch, at, *asked))
            except (RuntimeError, NotImplementedError, ValueError) as error:
                end.send(RuntimeError(str(error)))
    except EOFError:
        return
    except RuntimeError as error:
        end.send(RuntimeError(str(error)))
    finally:
        if distributed.is_initialized():
            distributed.destroy_process_group()


def _library(torch: Any, kind: Kind) -> str:
    if kind == "cpu":
        return f"gloo (torch {torch.__version__})"
    return "nccl " + ".".join(str(part) for part in torch.cuda.nccl.version())


def _rank_blocks(
    torch: Any, at: Any, operation: str, size_bytes: int, patience: Patience
) -> list[Block]:
    """Time a collective on this rank; every rank makes the same calls."""
    distributed = torch.distributed
    call = _collective(torch, at, operation, size_bytes)

    def wait() -> None:
        if at.type == "cuda":
            torch.cuda.synchronize(at)

    def block(calls: int) -> Block:
        distributed.barrier()
        wait()
        started = time.perf_counter()
        for _ in range(calls):
            call()
        wait()
        return Block(time.perf_counter() - started, calls)

    block(2)
    one_s = torch.tensor([block(3).seconds / 3.0], device=at)
    distributed.all_reduce(one_s, op=distributed.ReduceOp.MAX)
    calls = max(1, min(MOST_CALLS, int(2.0 * patience.block_s / one_s.item())))
    blocks = int(patience.limit_s / (calls * one_s.item()))
    return [block(calls) for _ in range(max(FEWEST_BLOCKS, min(blocks, 25)))]


def _collective(torch: Any, at: Any, operation: str, size_bytes: int) -> Callable[[], object]:
    """Prepare a collective whose full buffer has so many bytes, as nccl-tests count them."""
    distributed = torch.distributed
    ranks = distributed.get_world_size()
    part = max(1, size_bytes // ELEMENT_BYTES // ranks)
    whole = torch.zeros(part * ranks, dtype=getattr(torch, DTYPE), device=at)
    share = torch.zeros(part, dtype=whole.dtype, device=at)
    if operation == "all_reduce":
        return lambda: distributed.all_reduce(whole)
    if operation == "all_gather":
        return lambda: distributed.all_gather_into_tensor(whole, share)
    if operation == "reduce_scatter":
        return lambda: distributed.reduce_scatter_tensor(share, whole)
    other = torch.empty_like(whole)
    return lambda: distributed.all_to_all_single(other, whole)


def collectives(grid: Grid, devices: int) -> Iterator[Point]:
    """List the collectives of a grid, over 2, 4, 8... ranks up to all of them.

    Parameters
    ----------
    grid
    devices
        GPUs, or processor cores.
    """
    counts = [ranks for ranks in (2, 4, 8, 16) if ranks <= devices]
    for ranks, operation, size in product(counts, OPERATIONS, grid.messages_bytes):
        key: dict[str, Cell] = {"op": operation, "n_chips": ranks, "bytes": size}
        yield Point("comms", key, _measuring(operation, ranks, size), 2.0 * size, f"{ranks}")


def _measuring(operation: str, ranks: int, size: int) -> Callable[[Bench], list[Written]]:
    def run(bench: Bench) -> list[Written]:
        group = bench.resource(f"ranks {ranks}", lambda: RankGroup(bench.device.kind, ranks))
        try:
            found = group.timed(operation, size, bench.patience)
        finally:
            if group.broken:
                bench.release()
        row = {
            "op": operation,
            "hardware": bench.device.name,
            "n_chips": ranks,
            "bytes": size,
            "dtype": DTYPE,
            "time_us": found.median_s / MICROSECOND_S,
            "implementation": group.library,
            "notes": f"{found.blocks} blocks, spread {found.spread_fraction:.1%}",
            "source": "rackcast measure",
        }
        return [Written("comms", row)]

    return run
