"""What is live on this machine: implementations of each op, versions, CPU, GPU, build."""

from __future__ import annotations

import functools
import importlib
import importlib.metadata
import json
import os
import platform
from pathlib import Path
from typing import Any

import torch

from .. import __version__, _load, _op


# --- facts ------------------------------------------------------------------------------------------------------------
@functools.cache
def _build() -> dict[str, Any]:
    """Facts of the build and of this CPU, from the module that setup.py compiles beside the libraries."""
    if not any(_load.FOLDER.glob("_build.*.so")):
        return {"facts": None, "why": "pytorch_ext._build is not built"}
    module = importlib.import_module("pytorch_ext._build")
    return {"facts": json.loads(module.facts()), "cpu_features": module.cpu_features()}


def _registered(op: _op.Op, key: str) -> bool:
    return torch._C._dispatch_has_kernel_for_dispatch_key(f"{_op.NAMESPACE}::{op.name}", key)


def _why_no_library(device: str) -> str | None:
    """Why a compiled library is not loaded, or None where it is; the build knows more than the empty place tells."""
    reason = _load.reasons.get(device)
    facts = _build()["facts"]
    if device == "cuda" and reason and reason.startswith("not built") and facts and facts["no_cuda"]:
        return f"not built: {facts['no_cuda']}"
    return reason


def _why_not_compiled(op: _op.Op, device: str) -> str | None:
    if device not in _load.libraries:
        return _why_no_library(device)
    if not _registered(op, device.upper()):
        return f"{_load.libraries[device].name} has no kernel for it"
    return _op.no_gpu() if device == "cuda" else None


def _why_not_triton(op: _op.Op) -> str | None:
    if reason := _op.triton_missing():
        return reason
    module = f"{_op.NAMESPACE}.kernels.{op.family}"
    try:
        if not hasattr(importlib.import_module(module), op.name):
            return f"{module} has no {op.name}"
    except Exception as error:  # to be told, whatever it is
        return f"{module} cannot be imported: {type(error).__name__}: {error}"
    return _op.no_gpu()


def instruction_set() -> str | None:
    """The instruction set of the CPU library that is loaded."""
    path = _load.libraries.get("cpu")
    return path.stem.removeprefix("_cpu_") if path else None


def _implementations(op: _op.Op) -> dict[str, dict[str, Any]]:
    def row(device: str, why: str | None, **more) -> dict[str, Any]:
        return {"live": why is None, "device": device, **more, "why_not": why}

    return {
        "cpp": row("cpu", _why_not_compiled(op, "cpu"), instruction_set=instruction_set()),
        "cuda": row("cuda", _why_not_compiled(op, "cuda")),
        "triton": row("cuda", _why_not_triton(op)),
        "reference": row("any", None),
    }


def _answers(op: _op.Op) -> dict[str, str]:
    """Who answers a call on each device; for a GPU that is not here, who would."""
    on_cpu = "cpp" if "cpu" in _load.libraries and _registered(op, "CPU") else "reference"
    if "cuda" in _load.libraries:
        on_cuda = "cuda" if _registered(op, "CUDA") else "reference"
    else:
        on_cuda = "reference" if _op.triton_missing() else "triton"
    return {"cpu": on_cpu, "cuda": on_cuda}


def _cpu_model() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def report() -> dict[str, Any]:
    """Everything the doctor knows, ready for JSON."""
    return {
        "version": __version__,
        "folder": str(_load.FOLDER),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "triton": _version("triton"),
        "cpu": {
            "model": _cpu_model(),
            "capability": torch.backends.cpu.get_cpu_capability(),
            "ATEN_CPU_CAPABILITY": os.environ.get("ATEN_CPU_CAPABILITY"),
            "instruction_sets": _load.instruction_sets(),
            "threads": torch.get_num_threads(),
        },
        "gpu": {"name": None if _op.no_gpu() else torch.cuda.get_device_name(), "why_not": _op.no_gpu()},
        "libraries": {
            device: {
                "path": str(_load.libraries[device]) if device in _load.libraries else None,
                "why_not": _why_no_library(device),
            }
            for device in ("cpu", "cuda")
        },
        "build": _build(),
        "ops": {op.name: {"answers": _answers(op), "implementations": _implementations(op)} for op in _op.OPS.values()},
    }


# --- the same, to read ------------------------------------------------------------------------------------------------
def _build_lines(build: dict[str, Any]) -> list[str]:
    facts = build["facts"]
    if facts is None:
        return [f"build         unknown: {build['why']}"]
    cuda = facts["cuda"]
    features = [name for name, present in build["cpu_features"].items() if present]
    return [
        f"build         commit {facts['commit'] or 'unknown'}, against torch {facts['torch']}"
        + (", DEBUG (-O0)" if facts["debug"] else ""),
        f"  compiler    {facts['compiler']}",
        f"  flags       {facts['flags']}",
        *(f"  {isa:<11} {flags or '(no more flags)'}" for isa, flags in facts["cpu"].items()),
        f"  cuda        nvcc {cuda['nvcc']} for sm_{', sm_'.join(cuda['archs'])}"
        if cuda
        else f"  cuda        not built: {facts['no_cuda']}",
        f"  this CPU    {', '.join(features)}",
    ]


def _ops_lines(ops: dict[str, Any]) -> list[str]:
    """One row an op; a reason that several share is written once, under the table."""
    reasons: list[str] = []
    rows = [["op", *_op.IMPLEMENTATIONS, "answers on CPU", "answers on CUDA"]]
    for name, op in ops.items():
        cells = []
        for implementation in _op.IMPLEMENTATIONS:
            state = op["implementations"][implementation]
            if not state["live"] and state["why_not"] not in reasons:
                reasons.append(state["why_not"])
            cells.append(
                f"live ({state.get('instruction_set') or state['device']})"
                if state["live"]
                else f"no [{reasons.index(state['why_not']) + 1}]"
            )
        rows.append([name, *cells, op["answers"]["cpu"], op["answers"]["cuda"]])
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    table = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows]
    return [*table, *(f"[{i}] {reason}" for i, reason in enumerate(reasons, 1))]


def text(report: dict[str, Any]) -> str:
    cpu, gpu, libraries = report["cpu"], report["gpu"], report["libraries"]
    steered = cpu["ATEN_CPU_CAPABILITY"]
    return "\n".join(
        [
            f"lightkernels  {report['version']} in {report['folder']}",
            f"versions      Python {report['python']}, torch {report['torch']}, "
            f"triton {report['triton'] or 'not installed'}",
            f"CPU           {cpu['model']}, {cpu['threads']} threads, torch's capability {cpu['capability']} "
            f"(ATEN_CPU_CAPABILITY {'=' + steered if steered else 'not set'})",
            f"              instruction sets we can use, best first: {', '.join(cpu['instruction_sets'])}",
            f"GPU           {gpu['name'] or 'none: ' + gpu['why_not']}",
            f"CPU library   {libraries['cpu']['path'] or 'none: ' + libraries['cpu']['why_not']}",
            f"CUDA library  {libraries['cuda']['path'] or 'none: ' + libraries['cuda']['why_not']}",
            *_build_lines(report["build"]),
            "",
            *_ops_lines(report["ops"]),
        ]
    )
