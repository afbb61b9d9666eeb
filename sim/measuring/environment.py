"""What a measurement was made on: enough to repeat it, and no name of a host or a user."""

import json
import os
import platform
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from sim.errors import InputError
from sim.measuring.device import CpuDevice, CudaDevice, cpu_name

BUSY_SHARE = 0.5
"""Load of the machine, over its cores, from which other programs disturb a measurement."""


def environment(device: CpuDevice | CudaDevice) -> dict[str, Any]:
    """Describe the machine.

    Returns
    -------
    record
        ``device``, ``kind``, ``torch`` (its release), driver, clocks, power limit and memory as
        far as the device tells them, ``cpu``, ``cores``, ``load_per_core`` before the measurement,
        ``system``, ``python``, ``rackcast`` and ``date``.
    """
    return {
        "device": device.name,
        "kind": device.kind,
        "torch": str(device.torch.__version__),
        **device.described(),
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        "load_per_core": load_per_core(),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "rackcast": version("rackcast"),
        "date": datetime.now(UTC).date().isoformat(),
    }


def load_per_core() -> float | None:
    """Mean load of the last minute over the number of cores; none where nothing tells."""
    if not hasattr(os, "getloadavg"):
        return None
    return round(os.getloadavg()[0] / (os.cpu_count() or 1), 2)


def keep(record: dict[str, Any], path: Path) -> None:
    """Write the record, or check that rows which are there are of the same machine.

    Raises
    ------
    InputError
        They are of another device or another PyTorch.
    """
    if path.is_file():
        before = json.loads(path.read_text(encoding="utf-8"))
        for name in ("device", "torch"):
            if before.get(name) != record[name]:
                raise InputError(
                    f"{path}: these rows are of {name} {before.get(name)!r}, this machine has "
                    f"{record[name]!r}; take another --out"
                )
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
