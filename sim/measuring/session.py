"""``rackcast measure``: what to measure with these options, on this machine, into this folder."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import get_args

from sim.catalog import Catalog
from sim.errors import InputError
from sim.measuring import families, serving
from sim.measuring.bench import Bench, Point
from sim.measuring.campaign import Family, Outcome, Progress, in_random_order, run_campaign, tables
from sim.measuring.collectives import collectives
from sim.measuring.device import CpuDevice, CudaDevice, Kind, open_device
from sim.measuring.environment import BUSY_SHARE, environment, keep, load_per_core
from sim.measuring.operators import TorchOperators
from sim.measuring.serving import Built, Loads, load_of
from sim.measuring.subject import cut_id, identifier, subjects_text, write_cut_model
from sim.measuring.timing import Patience
from sim.measuring.transformer import cut_to, shape_of
from sim.schema import did_you_mean

FAMILIES: tuple[Family, ...] = get_args(Family)
QUICK_BUDGET_S = 120.0
QUICK_PATIENCE = Patience(limit_s=0.25, block_s=0.002)
FULL_PATIENCE = Patience(limit_s=2.0)
MODEL_SHARE = 0.5
"""Of the free memory that a model and its cache may take."""
STEPS_SHARE = 0.8
"""Of the free memory that the steps of the longest contexts may take with it."""
QUICK_LAYERS = 2
QUICK_STEADY_S = 1.0


@dataclass(frozen=True)
class Wanted:
    """The options of the command."""

    out: Path
    device: Kind | None = None
    """None: CUDA where there is a device, else the CPU."""
    quick: bool = False
    only: tuple[str, ...] = ()
    """Families to measure; all of them without any."""
    model: str = "mistral_7b_v0_3"
    layers: int | None = None
    """Of the model; none: as many as fit, or two if quick."""
    accelerator: str | None = None
    """Id of the machine's chip in the catalogue; none: its name in small letters."""
    loads: tuple[str, ...] = ()
    """To serve, such as ``16x1000+250``; none: those of the grid."""
    budget_s: float | None = None
    resume: bool = False


@dataclass(frozen=True)
class Report:
    """What was done, and what to do next."""

    outcome: Outcome
    device: str
    accelerator: str
    notes: tuple[str, ...]
    """What limits the figures."""

    def text(self, out: Path) -> str:
        """Say what was done, and the command that fits it."""
        done = self.outcome
        lines = [f"{out}: {done.measured} points measured on {self.device}"]
        if done.there:
            lines.append(f"{done.there} were there already")
        if done.left:
            lines.append(f"{done.left} left for want of time: --resume, with a larger --budget-s")
        if done.skipped:
            lines.append(f"{len(done.skipped)} skipped:")
            lines += [f"  {reason}" for reason in done.skipped]
        lines.append(
            f"fit: rackcast calibrate --kernels {out} --accelerator {self.accelerator} "
            "--catalog FOLDER --out FOLDER"
        )
        return "\n".join(lines)


def kind_of(name: str | None) -> Kind | None:
    """Check the name of a kind of device.

    Raises
    ------
    InputError
        There is no such kind.
    """
    if name is None:
        return None
    kinds: tuple[Kind, ...] = get_args(Kind)
    for kind in kinds:
        if name == kind:
            return kind
    raise InputError(f"--device {name}: there are {', '.join(get_args(Kind))}")


def chosen_families(names: Sequence[str]) -> tuple[Family, ...]:
    """Check names of families, and keep the order in which they are measured.

    Raises
    ------
    InputError
        There is no such family.

    Examples
    --------
    >>> chosen_families(["serving", "gemm"])
    ('gemm', 'serving')
    """
    for name in names:
        if name not in FAMILIES:
            hint = did_you_mean(name, FAMILIES)
            raise InputError(f"--only {name}{hint}; there are: {', '.join(FAMILIES)}")
    return tuple(name for name in FAMILIES if not names or name in names)


def measure(
    wanted: Wanted, catalog: Catalog, watch: Callable[[str], Progress] | None = None
) -> Report:
    """Measure this machine and write the rows.

    Parameters
    ----------
    wanted
        What to measure, and where to.
    catalog
        Knows the model.
    watch
        Gives out progress bars.

    Raises
    ------
    InputError
        PyTorch is missing, an option is wrong, or the folder holds rows of something else.
    InfeasibleError
        There is no such device.
    MeasurementInterruptedError
        Interrupted; what was measured is kept.
    """
    names = chosen_families(wanted.only)
    model = catalog.model(wanted.model)
    shape_of(model, wanted.layers)  # wrong options are told before anything is loaded
    for text in wanted.loads:
        load_of(text)
    device = open_device(wanted.device)
    into = tables(wanted.out)
    keep(environment(device), wanted.out / "environment.json")
    for table in into.values():
        table.open(resume=wanted.resume)
    notes = [_load_note()] if device.kind == "cpu" else []
    points: dict[Family, list[Point]] = {
        name: _points(name, device, wanted) for name in names if name not in _MODELS
    }
    accelerator = wanted.accelerator or identifier(device.name)
    if any(name in _MODELS for name in names):
        built, loads = _built(device, catalog, wanted, accelerator)
        if "decode" in names:
            memory_bytes = STEPS_SHARE * device.free_bytes()
            points["decode"] = list(serving.steps(built, loads, memory_bytes))
        if "serving" in names:
            points["serving"] = list(serving.served_loads(built, loads))
        notes.append(built.note)
    version = f"torch {device.torch.__version__}"
    patience = QUICK_PATIENCE if wanted.quick else FULL_PATIENCE
    bench = Bench(device, TorchOperators(device), patience, version)
    budget_s = wanted.budget_s
    if budget_s is None and wanted.quick:
        budget_s = QUICK_BUDGET_S
    ordered = {name: in_random_order(each, name) for name, each in points.items()}
    notes += [f"{name}: {_NOTHING[name]}" for name, each in ordered.items() if not each]
    try:
        outcome = run_campaign(ordered, bench, into, budget_s, watch)
    finally:
        text = subjects_text(device, accelerator, version, powered=len(into["power"]) > 0)
        (wanted.out / "subjects.yaml").write_text(text, encoding="utf-8")
    return Report(outcome, device.name, accelerator, tuple(note for note in notes if note))


_MODELS: tuple[Family, ...] = ("decode", "serving")
"""Families that need a model."""
_NOTHING: Mapping[str, str] = {
    "power": "nothing here tells its power (NVML of an NVIDIA GPU does)",
    "collectives": "there is one device only",
}


def _points(name: str, device: CpuDevice | CudaDevice, wanted: Wanted) -> list[Point]:
    """List the points of a family of kernels."""
    grid = families.grid_of(device.kind, quick=wanted.quick)
    dtypes = device.dtypes
    match name:
        case "gemm":
            return list(families.products(grid, dtypes))
        case "attention":
            return list(families.attention(grid, dtypes))
        case "memory":
            return list(families.traffic(grid))
        case "elementwise":
            return list(families.elementwise(grid, dtypes))
        case "power":
            steady_s = QUICK_STEADY_S if wanted.quick else families.STEADY_S
            return list(families.power(grid, dtypes, steady_s)) if device.sensor else []
        case _:
            return list(collectives(grid, device.count))


def _built(
    device: CpuDevice | CudaDevice, catalog: Catalog, wanted: Wanted, accelerator: str
) -> tuple[Built, Loads]:
    """Choose the layers to build, and write an entry for a model with fewer than it has."""
    model = catalog.model(wanted.model)
    loads = serving.QUICK if wanted.quick else serving.FULL
    if wanted.loads:
        loads = replace(loads, served=tuple(load_of(text) for text in wanted.loads))
    layers = wanted.layers or (min(QUICK_LAYERS, model.layers) if wanted.quick else None)
    whole = shape_of(model, layers)
    shape = cut_to(whole, loads.kv_tokens, MODEL_SHARE * device.free_bytes())
    if shape.layers == model.layers:
        return Built(wanted.model, shape, f"{model.name} with random weights", accelerator), loads
    write_cut_model(model, wanted.model, shape.layers, wanted.out / "catalog")
    note = f"{model.name} with random weights and {shape.layers} of its {model.layers} layers"
    return Built(cut_id(wanted.model, shape.layers), shape, note, accelerator), loads


def _load_note() -> str:
    """Warn of other programs."""
    load = load_per_core()
    if load is None or load < BUSY_SHARE:
        return ""
    return (
        f"other programs use this processor ({load:.0%} of its cores in the last minute): "
        "times are of the contention too; measure again when it is idle"
    )
