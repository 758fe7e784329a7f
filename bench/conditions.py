"""What a figure was measured under. A result without its conditions is no result."""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import platform
import re
import subprocess
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent


def conditions(**chosen) -> dict:
    """The facts of this machine, this software and this moment, and what the caller chose (threads, rounds, ...)."""
    import pytorch_ext
    from pytorch_ext import _load

    library = _load.libraries.get("cpu")
    return {
        "date": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
        "cpu": cpu_model(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "caches": caches(),
        "memory_gib": memory_gib(),
        "system": f"{platform.system()} {platform.machine()}",
        "load_average": [round(load, 2) for load in os.getloadavg()] if hasattr(os, "getloadavg") else None,
        "implementation": "compiled" if library else "reference",
        "isa": re.sub(r"^_cpu_|\.so$", "", library.name) if library else None,
        "why_not_compiled": None if library else _load.reasons["cpu"].replace(str(_load.FOLDER), "pytorch_ext"),
        "torch_capability": torch.backends.cpu.get_cpu_capability(),
        "versions": {
            "lightkernels": pytorch_ext.__version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "onnxruntime": version("onnxruntime"),
            "numpy": version("numpy"),
        },
        "compiler": compiler_of(library) if library else None,
        "git": git(),
        **chosen,
    }


def version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def cpu_model() -> str:
    """The CPU's name; where a cloud hides the model behind a family name, family and model numbers follow it."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.processor() or platform.machine()
    fact = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in text.splitlines())}
    name = fact.get("model name") or fact.get("CPU implementer") or platform.machine()
    if not re.search(r"\d", name) and "cpu family" in fact:
        name += f" (family {fact['cpu family']}, model {fact['model']})"
    return name


def caches() -> dict[str, str]:
    """Sizes as the kernel gives them, e.g. {"L1d": "48K", "L2": "1024K", "L3": "32768K"}."""
    found = {}
    for folder in sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*")):
        level, kind, size = ((folder / name).read_text().strip() for name in ("level", "type", "size"))
        if kind != "Instruction":
            found[f"L{level}{'d' if kind == 'Data' else ''}"] = size
    return found


def memory_gib() -> float | None:
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    except (ValueError, OSError, AttributeError):
        return None


def compiler_of(library: Path) -> str | None:
    """What the compiler wrote into the library about itself."""
    found = re.search(rb"(GCC: \([^)\0]*\) [\d.]+|clang version [\d.]+)", library.read_bytes())
    return found.group().decode() if found else None


def git() -> dict | None:
    """Commit, and whether tracked files differ from it; None outside a clone."""

    def ask(*command: str) -> str:
        return subprocess.run(["git", "-C", ROOT, *command], capture_output=True, text=True, check=True).stdout.strip()

    try:
        return {
            "commit": ask("rev-parse", "--short=12", "HEAD"),
            "dirty": bool(ask("status", "--porcelain", "--untracked-files=no")),
        }
    except (OSError, subprocess.CalledProcessError):
        return None


def slug(text: str) -> str:
    """Letters, digits and dashes, fit for a file name."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
