"""Validate any YAML file of the project: what it is follows from its folder or its keys."""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from sim.catalog import Catalog
from sim.deployment import deploy
from sim.economics import PriceBook
from sim.efficiency import Calibration
from sim.errors import InputError, RackcastError
from sim.hardware import Accelerator, System
from sim.model import Model
from sim.overhead import EngineOverheads
from sim.scenario import load_scenario, scenario_json_schema
from sim.schema import StrictModel, did_you_mean, json_schema, load_yaml, validate
from sim.workload.traffic import TrafficLaw

MODELS: Mapping[str, type[StrictModel]] = {
    "accelerator": Accelerator,
    "system": System,
    "calibration": Calibration,
    "overhead": EngineOverheads,
    "prices": PriceBook,
    "model": Model,
    "lengths": TrafficLaw,
}
"""Kinds of files beside scenarios."""

_TELLING_KEYS: tuple[tuple[str, str], ...] = (
    ("question", "scenario"),
    ("peak_flop_per_s", "accelerator"),
    ("kernels", "calibration"),
    ("scale_up", "system"),
    ("families", "overhead"),
    ("ownership", "prices"),
    ("layers", "model"),
    ("lengths", "lengths"),
)
"""A key that only one kind of file has; a calibration names peaks too, so order matters."""

_FOLDERS: Mapping[str, str] = {
    "accelerators": "accelerator",
    "systems": "system",
    "calibrations": "calibration",
    "overheads": "overhead",
    "prices": "prices",
    "models": "model",
    "lengths": "lengths",
    "scenarios": "scenario",
}


def check_file(path: Path, catalog: Catalog) -> str:
    """Validate one file and return what kind it is.

    Raises
    ------
    InputError, InfeasibleError
        With all problems of the file.
    """
    kind = _kind_of(path)
    if kind == "scenario":
        for case in load_scenario(path).cases:
            deploy(case, catalog)
            catalog.prices(case.prices.book)
    else:
        validate(MODELS[kind], load_yaml(path))
    return kind


def check_catalog(catalog: Catalog) -> int:
    """Validate every file of the catalogue and return how many there are.

    Raises
    ------
    InputError
        With all problems of all files.
    """
    problems: list[str] = []

    scenarios, lengths = catalog.files["scenarios"].values(), catalog.files["lengths"].values()
    checks: list[Callable[[], object]] = [
        catalog.validate_all,
        *(partial(check_file, path, catalog) for path in (*lengths, *scenarios)),
    ]
    for check in checks:
        try:
            check()
        except RackcastError as error:
            problems.append(str(error))
    if problems:
        raise InputError("\n".join(problems))
    return sum(len(files) for files in catalog.files.values())


def schema_of(name: str) -> dict[str, Any]:
    """JSON Schema of a kind of file.

    Raises
    ------
    InputError
        There is no such kind.
    """
    if name == "scenario":
        return scenario_json_schema()
    if name not in MODELS:
        known = ("scenario", *MODELS)
        hint = did_you_mean(name, known)
        raise InputError(f"there is no schema {name!r}{hint}; there are: {', '.join(known)}")
    return json_schema(MODELS[name])


def _kind_of(path: Path) -> str:
    """Tell a file's kind by the folder it lies in, else by a key that only one kind has."""
    for parent in path.absolute().parents:
        if parent.name in _FOLDERS:
            return _FOLDERS[parent.name]
    keys = load_yaml(path).data
    for key, kind in _TELLING_KEYS:
        if key in keys and not (kind == "accelerator" and "kernels" in keys):
            return kind
    known = ", ".join(("scenario", *MODELS))
    raise InputError(f"{path}: not a file of a known kind ({known})")
