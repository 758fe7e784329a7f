"""Loads the compiled libraries: `_cpu_<isa>.so` for this CPU's instruction set and `_cuda.so`.

A library that is absent is a reason to report (`python -m pytorch_ext doctor`); one that is there and fails to load
is an ImportError.
"""

from __future__ import annotations

import os
import platform
from pathlib import Path

import torch

FOLDER = Path(__file__).parent
DISABLE = "LIGHTKERNELS_DISABLE"  # environment: comma-separated "cpu", "cuda"

libraries: dict[str, Path] = {}  # device -> the library that is loaded
reasons: dict[str, str] = {}  # device -> why none is


def instruction_sets() -> list[str]:
    """This CPU's instruction sets that we build for, best first; torch's ATEN_CPU_CAPABILITY steers both."""
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return ["base"]
    capability = torch.backends.cpu.get_cpu_capability()
    order = ["base", "avx2", "avx512"]
    best = 2 if capability.startswith(("AVX512", "AMX")) else 1 if capability.startswith("AVX2") else 0
    return order[best::-1]


def _disabled() -> set[str]:
    devices = {device.strip() for device in os.environ.get(DISABLE, "").split(",")} - {""}
    if unknown := devices - {"cpu", "cuda"}:
        raise ImportError(f"pytorch_ext: {DISABLE} may name cpu and cuda, got {', '.join(sorted(unknown))}")
    return devices


def _load(device: str, candidates: list[str]) -> None:
    if device in _disabled():
        reasons[device] = f"disabled by {DISABLE}"
        return
    for name in candidates:
        path = FOLDER / name
        if path.exists():
            try:
                torch.ops.load_library(path)
            except (OSError, RuntimeError) as error:
                raise ImportError(
                    f"pytorch_ext: {path} exists but cannot be loaded: {error}. Build it again for this torch "
                    f"({torch.__version__}), or set {DISABLE}={device} to do without it."
                ) from error
            libraries[device] = path
            return
    reasons[device] = f"not built: none of {', '.join(candidates)} is in {FOLDER}"


_load("cpu", [f"_cpu_{isa}.so" for isa in instruction_sets()])
_load("cuda", ["_cuda.so"])
