"""Builds the runtime with ninja, once, into build/ptx_on_cpu, and imports it."""

from __future__ import annotations

import fcntl
import hashlib
import importlib.machinery
import importlib.util
import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
# No fused multiply-add that the PTX does not ask for; signed overflow wraps. It is built where it runs.
FLAGS = "-std=c++20 -O2 -ftree-vectorize -march=native -fwrapv -ffp-contract=off -fPIC -fvisibility=hidden"


def folder(*parts: str) -> Path:
    """Where built things go; LIGHTKERNELS_TEST_BUILD names another place than the repository's build/."""
    path = Path(os.environ.get("LIGHTKERNELS_TEST_BUILD", ROOT / "build/ptx_on_cpu")).joinpath(*parts)
    path.mkdir(parents=True, exist_ok=True)
    return path


def ninja(what: str, text: str, where: Path, targets: Sequence[Path] = (), root: Path | None = None) -> None:
    """Makes the targets (all) of this ninja file, which is kept in `where`; its paths begin at `root` (`where`)."""
    program = Path(sys.executable).with_name("ninja")
    command = [program if program.exists() else shutil.which("ninja") or "ninja", "-f", where / "build.ninja"]
    with (where / "lock").open("w") as lock:  # two test runs may start together
        fcntl.flock(lock, fcntl.LOCK_EX)
        (where / "build.ninja").write_text(text)
        result = subprocess.run([*command, *targets], cwd=root or where, capture_output=True, text=True)
    if result.returncode:
        raise RuntimeError(f"{what} cannot be built:\n{result.stdout}{result.stderr}")


def runtime() -> ModuleType:
    import pybind11

    compiler = os.environ.get("CXX", "g++")
    sources = sorted((HERE / "runtime").glob("*.cpp"))
    includes = [pybind11.get_include(), sysconfig.get_paths()["include"]]
    flags = " ".join([FLAGS, *(f"-isystem {path}" for path in includes)])
    suffix = importlib.machinery.EXTENSION_SUFFIXES[0]
    key = hashlib.sha256(f"{compiler} {flags} {suffix}".encode()).hexdigest()[:12]
    where = folder("runtime", key)
    target = where / f"_runtime{suffix}"
    lines = [
        f"cxx = {compiler}",
        f"flags = {flags}",
        "rule compile\n  command = $cxx $flags -MMD -MF $out.d -c $in -o $out\n  depfile = $out.d\n  deps = gcc",
        "rule link\n  command = $cxx -shared -o $out.new $in && mv $out.new $out",
        *(f"build {path.stem}.o: compile {path}" for path in sources),
        f"build {target.name}: link {' '.join(path.stem + '.o' for path in sources)}",
    ]
    ninja("the PTX executor", "\n".join(lines) + "\n", where)
    name = f"{__package__}._runtime"
    spec = importlib.util.spec_from_file_location(name, target)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module
