"""What a fit needs beside the rows: who measured what, and entries of the catalogue."""

import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, get_args

import yaml

from sim.efficiency import Engine
from sim.measuring.bench import FRAMEWORK
from sim.measuring.device import Device
from sim.model import Model

LAUNCHED = "1 s"
"""Launch bound of a processor: what calls cost there is a part of serving too."""
LENDER = "h200_sxm"
"""Accelerator whose power law stands in on a machine that does not tell its power."""


def identifier(name: str) -> str:
    """Turn a device's name into an id of the catalogue.

    >>> identifier("NVIDIA H100 80GB HBM3"), identifier("Intel(R) Xeon(R) Gold 6430")
    ('nvidia_h100_80gb_hbm3', 'intel_xeon_gold_6430')
    """
    plain = re.sub(r"\((?:r|tm|c)\)", " ", name.lower())
    return "_".join(re.findall(r"[a-z0-9]+", plain)) or "this_machine"


def subjects_text(device: Device, accelerator: str, version: str, *, powered: bool) -> str:
    """Write the table that ``rackcast calibrate --kernels`` reads.

    Parameters
    ----------
    device
        What was measured.
    accelerator
        Its id in ``hardware/accelerators``.
    version
        Of PyTorch.
    powered
        Whether its power was measured too.
    """
    how = "CUDA graphs of" if device.graphs else "eager calls of"
    subject: dict[str, Any] = {
        "chip": device.name,
        "sources": ["own"],
        "power" if powered else "power_lent_by": accelerator if powered else LENDER,
    }
    if not device.graphs:
        subject["launch_bound_s"] = LAUNCHED
    table = {
        "sources": {
            "own": {
                "about": f"rackcast measure: {how} {version}, operands cold from memory",
                "collected": datetime.now(UTC).date().isoformat(),
            }
        },
        "preference": {
            engine: list(dict.fromkeys((engine, FRAMEWORK))) for engine in get_args(Engine)
        },
        "subjects": {accelerator: subject},
    }
    header = (
        "# Written by rackcast measure, for rackcast calibrate --kernels. The kernels\n"
        f"# of PyTorch are filed as engine {FRAMEWORK}; they stand in for those of every engine.\n"
    )
    return header + yaml.safe_dump(table, sort_keys=False, width=100)


def cut_id(model_id: str, layers: int) -> str:
    """Name a model that was cut to fewer layers."""
    return f"{model_id}_{layers}_layers"


def write_cut_model(model: Model, model_id: str, layers: int, catalog: Path) -> None:
    """Write the catalogue entry of a model with fewer layers, so that its runs can be forecast.

    Parameters
    ----------
    model, model_id
        Of the whole model, whose layers are all alike.
    layers
        That are left.
    catalog
        Folder of a catalogue.
    """
    entry = model.model_dump(mode="json", exclude_defaults=True)
    for left_out in ("published", "aliases"):
        entry.pop(left_out, None)
    entry["attention"] = [
        {"kind": group.kind, **group.model_dump(mode="json", exclude_defaults=True)}
        | {"layers": layers}
        for group in model.attention
    ]
    if "mlp_layers" in entry:
        entry["mlp_layers"] = layers
    name = f"{model.name}, cut to {layers} layers"
    entry |= {"name": name, "layers": layers, "source": f"{model.source}; cut to {layers} layers"}
    path = catalog / "workloads" / "models" / f"{cut_id(model_id, layers)}.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    header = f"# {name} by rackcast measure, for its own runs alone: no such model exists.\n"
    path.write_text(header + yaml.safe_dump(entry, sort_keys=False), encoding="utf-8")
