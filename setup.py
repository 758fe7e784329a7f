"""Builds the compiled part: one library per CPU instruction set, one for CUDA, and a small module of build facts.

This file decides what is built and writes it to build/ninja/build.ninja; ninja does the work. The environment switches
are in README.md, "Building". Nothing here imports torch: a build needs its headers and libraries only.
"""

from __future__ import annotations

import fcntl
import filecmp
import importlib.util
import json
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import NoReturn

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
os.chdir(ROOT)  # every path below is relative to the repository, so none of this machine gets into a binary
NINJA = Path("build/ninja")

OLDEST_TORCH = (2, 10)
ISA_FLAGS = {
    "base": "",
    "avx2": "-mavx2 -mfma -mf16c",
    "avx512": "-mavx512f -mavx512dq -mavx512bw -mavx512vl -mfma -mf16c -mprefer-vector-width=512",
}
CUDA_ARCHS = ["80", "90", "100"]


def fail(message: str) -> NoReturn:
    sys.exit(f"lightkernels: {message}")


def switch(name: str) -> bool | None:
    """An on/off environment variable; None where it is not set."""
    value = os.environ.get(f"LIGHTKERNELS_{name}", "")
    if value not in ("", "0", "1"):
        fail(f"LIGHTKERNELS_{name} must be 0 or 1, got {value!r}")
    return value == "1" if value else None


def words(name: str) -> list[str]:
    """A list in an environment variable, separated by spaces, commas or semicolons."""
    return re.split(r"[\s,;]+", value) if (value := os.environ.get(f"LIGHTKERNELS_{name}", "").strip()) else []


def run(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def sources(pattern: str) -> list[Path]:
    return sorted(path for path in Path("csrc").glob(pattern) if path.name != "build_info.cpp")


# --- what to build (no compiler is needed to decide it: an sdist passes here too) -------------------------------------
def instruction_sets() -> list[str]:
    if switch("CPU") is False:
        return []
    known = list(ISA_FLAGS) if platform.machine().lower() in ("x86_64", "amd64") else ["base"]
    wanted = words("ISAS") or known
    if unknown := set(wanted) - set(known):
        fail(f"LIGHTKERNELS_ISAS must be among {', '.join(known)} on {platform.machine()}, got {', '.join(unknown)}")
    return [isa for isa in known if isa in wanted]


def nvcc_path() -> str | None:
    home = os.environ.get("CUDA_HOME")
    return (home and shutil.which("nvcc", path=os.path.join(home, "bin"))) or shutil.which("nvcc")


def no_cuda() -> str | None:
    """Why the CUDA library is not built, or None where it is."""
    wanted = switch("CUDA")
    if wanted is False:
        return "LIGHTKERNELS_CUDA=0"
    if wanted is None and switch("CPU") is False:
        return "LIGHTKERNELS_CPU=0"
    reason = None
    if not sources("cuda/*.cu"):
        reason = "there are no kernels in csrc/cuda"
    elif not nvcc_path():
        reason = "nvcc was found neither in CUDA_HOME nor on PATH"
    if wanted and reason:
        fail(f"LIGHTKERNELS_CUDA=1, but {reason}")
    return reason


def no_build_info() -> str | None:
    header = Path(sysconfig.get_path("include")) / "Python.h"
    return None if header.exists() else f"{header} is missing (Debian: apt-get install python3-dev)"


ISAS = instruction_sets()
NO_CUDA = no_cuda()
LIBRARIES = [f"_cpu_{isa}" for isa in ISAS] + ([] if NO_CUDA else ["_cuda"])
MODULES = ["_build"] if LIBRARIES and not no_build_info() else []


# --- how to build it --------------------------------------------------------------------------------------------------
def compiler() -> str:
    names = [os.environ["CXX"]] if os.environ.get("CXX") else ["g++", "c++", "clang++"]
    for name in names:
        if shutil.which(shlex.split(name)[0]):
            return name
    fail(
        f"no C++ compiler: {', '.join(names)} not found. Install one (Debian: apt-get install g++), name it in CXX, or "
        "set LIGHTKERNELS_CPU=0 to install the pure-Python library, which answers with plain torch."
    )


def torch_folder() -> tuple[Path, str]:
    spec = importlib.util.find_spec("torch")
    if spec is None or not spec.submodule_search_locations:
        fail(
            "torch is needed to build (its headers and libraries), and this Python has none. Install torch first and "
            "build with `pip install --no-build-isolation` (and `pip install 'setuptools>=77' ninja pybind11`), or set "
            "LIGHTKERNELS_CPU=0 to install the pure-Python library."
        )
    folder = Path(next(iter(spec.submodule_search_locations)))
    version = re.search(r"__version__ = ['\"](.*?)['\"]", (folder / "version.py").read_text())[1]
    if tuple(int(v) for v in version.split(".")[:2]) < OLDEST_TORCH:
        fail(f"torch >= {'.'.join(map(str, OLDEST_TORCH))} is needed, found {version} in {folder}")
    return folder, version


def tool(name: str):
    """A build requirement that is a Python package."""
    try:
        return importlib.import_module(name)
    except ImportError:
        fail(
            f"{name} is needed to build, and this Python has none: `pip install 'setuptools>=77' ninja pybind11`, or "
            "set LIGHTKERNELS_CPU=0 to install the pure-Python library."
        )


def commit() -> str | None:
    try:
        return run("git", "describe", "--always", "--dirty", "--abbrev=12") if Path(".git").exists() else None
    except (OSError, subprocess.CalledProcessError):
        return None


def write(path: Path, text: str) -> None:
    """Writes only what changed, so that ninja rebuilds only what changed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists() or path.read_text() != text:
        path.write_text(text)


class Ninja:
    """build.ninja as text: rules, and one build statement for each object file and library."""

    def __init__(self, **variables: str):
        self.lines = [f"builddir = {NINJA}", *(f"{name} = {value}" for name, value in variables.items())]

    def rule(self, name: str, command: str, depfile: bool = True) -> None:
        self.lines += [f"rule {name}", f"  command = {command}", "  description = $out"]
        if depfile:
            self.lines += ["  depfile = $out.d", "  deps = gcc"]

    def objects(self, rule: str, folder: str, files: list[Path], flags: str) -> list[str]:
        result = []
        for file in files:
            result.append(f"{NINJA}/{folder}/{file.stem}.o")
            self.lines += [f"build {result[-1]}: {rule} {file}", f"  flags = {flags}"]
        return result

    def link(self, rule: str, name: str, objects: list[str]) -> None:
        self.lines.append(f"build {NINJA}/{name}: {rule} {' '.join(objects)}")


def cuda_archs(nvcc: str) -> list[str]:
    if wanted := words("CUDA_ARCHS"):
        return [arch.removeprefix("sm_").replace(".", "") for arch in wanted]
    known = run(nvcc, "--list-gpu-arch").split()
    return [arch for arch in CUDA_ARCHS if f"compute_{arch}" in known]


def write_ninja(module_name: str) -> None:
    """Writes build.ninja and the build's facts."""
    cxx = compiler()
    torch, torch_version = torch_folder()
    optimise = "-O0 -g" if switch("DEBUG") else "-O3"
    common = f"-std=c++17 {optimise} -fPIC -fvisibility=hidden -DTORCH_TARGET_VERSION=0x020a000000000000ULL"
    user = os.environ.get("CXXFLAGS", "")
    ninja = Ninja(cxx=cxx, common=common, torch=str(torch))
    ninja.rule("cpp", f"$cxx {user} $common -Wall -Wno-psabi -Icsrc $flags -MMD -MF $out.d -c $in -o $out")
    libraries = "-L$torch/lib -ltorch_cpu -ltorch -lc10"
    ninja.rule("so", f"$cxx -shared -Wl,-z,defs -Wl,--as-needed $in {libraries} -o $out", depfile=False)
    facts: dict = {
        "compiler": run(*shlex.split(cxx), "--version").splitlines()[0],
        "flags": f"{user} {common}".strip(),
        "debug": bool(switch("DEBUG")),
        "torch": torch_version,
        "commit": commit(),
        "cpu": {isa: ISA_FLAGS[isa] for isa in ISAS},
        "cuda": None,
        "no_cuda": NO_CUDA,
    }
    boundary = "-isystem $torch/include -ffile-prefix-map=$torch=torch"
    if ISAS:
        shared = ninja.objects("cpp", "boundary", sources("*.cpp"), boundary)
    for isa in ISAS:
        objects = ninja.objects("cpp", isa, sources("cpu/*.cpp"), ISA_FLAGS[isa])
        ninja.link("so", f"_cpu_{isa}.so", shared + objects)
    if not NO_CUDA:
        nvcc = nvcc_path()
        archs = cuda_archs(nvcc)
        gencode = " ".join(f"-gencode arch=compute_{a},code=sm_{a}" for a in archs)
        gencode += f" -gencode arch=compute_{archs[-1]},code=compute_{archs[-1]}"
        flags = f"-std=c++17 {optimise} -Xcompiler -fPIC,-fvisibility=hidden {gencode}"
        ninja.rule("cu", f"{nvcc} {flags} -Icsrc -MD -MF $out.d -c $in -o $out")
        hide = "-Xlinker -z -Xlinker defs -Xlinker --as-needed -Xlinker --exclude-libs -Xlinker ALL"
        ninja.rule(
            "cu_so", f"{nvcc} -shared -cudart static --no-device-link {hide} $in {libraries} -o $out", depfile=False
        )
        objects = ninja.objects("cpp", "cuda_boundary", sources("*.cpp"), f"-DLIGHTKERNELS_CUDA {boundary}")
        ninja.link("cu_so", "_cuda.so", objects + ninja.objects("cu", "cuda", sources("cuda/*.cu"), ""))
        version = re.search(r"release (\S+),", run(nvcc, "--version"))[1]
        facts["cuda"] = {"nvcc": version, "archs": archs, "flags": flags}
    if MODULES:
        pybind = tool("pybind11").get_include()
        includes = f"-isystem {sysconfig.get_path('include')} -isystem {pybind} -ffile-prefix-map={pybind}=pybind11"
        text = f'extern const char* const build_facts = R"json({json.dumps(facts)})json";\n'
        write(NINJA / "facts.cpp", text)
        ninja.rule("module", "$cxx -shared $in -o $out", depfile=False)
        objects = ninja.objects("cpp", "module", [Path("csrc/build_info.cpp")], includes)
        ninja.link("module", module_name, objects + ninja.objects("cpp", "module", [NINJA / "facts.cpp"], ""))
    elif LIBRARIES:
        print(f"lightkernels: the module of build facts is not built: {no_build_info()}")
    write(NINJA / "build.ninja", "\n".join(ninja.lines) + "\n")


def run_ninja() -> None:
    jobs = os.environ.get("MAX_JOBS") or str(len(os.sched_getaffinity(0)))
    ninja = os.path.join(tool("ninja").BIN_DIR, "ninja")
    if subprocess.run([ninja, "-f", str(NINJA / "build.ninja"), "-j", jobs]).returncode:
        fail(
            "the build failed; the compiler's message is above. LIGHTKERNELS_CUDA=0 builds without the CUDA library, "
            "LIGHTKERNELS_CPU=0 installs the pure-Python library."
        )


def remove_stale(folder: Path) -> None:
    """Removes libraries that an earlier build left in `folder` and this one does not make."""
    for path in folder.glob("_*.so"):
        if path.name.split(".")[0] not in LIBRARIES + MODULES:
            path.unlink()


class BuildLibraries(build_ext):
    """Runs ninja once and copies what it made."""

    def get_ext_filename(self, fullname: str) -> str:
        folder, _, name = fullname.rpartition(".")
        if name in LIBRARIES:  # not Python modules: torch.ops.load_library opens them, under any Python
            return os.path.join(*folder.split("."), f"{name}.so")
        return super().get_ext_filename(fullname)

    def build_extensions(self) -> None:
        if sys.platform != "linux":
            fail(f"compiled libraries are built on Linux only, this is {sys.platform}; set LIGHTKERNELS_CPU=0")
        NINJA.mkdir(parents=True, exist_ok=True)
        with open(NINJA / "lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            write_ninja(os.path.basename(self.get_ext_filename("pytorch_ext._build")))
            run_ninja()
            for extension in self.extensions:
                target = self.get_ext_fullpath(extension.name)
                os.makedirs(os.path.dirname(target), exist_ok=True)
                self.copy_file(str(NINJA / os.path.basename(target)), target)

    def copy_file(self, infile, outfile, *args, **kwargs):
        """Replaces a library as a whole: one that a running program has open must not change under it."""
        if not os.path.exists(outfile) or not filecmp.cmp(infile, outfile, shallow=False):
            shutil.copy2(infile, f"{outfile}.new")
            os.replace(f"{outfile}.new", outfile)
        return outfile, True

    def copy_extensions_to_source(self) -> None:
        super().copy_extensions_to_source()
        remove_stale(Path("pytorch_ext"))


class BuildPython(build_py):
    """Runs in a pure-Python build too, where BuildLibraries does not."""

    def run(self) -> None:
        super().run()
        remove_stale(Path("pytorch_ext") if self.editable_mode else Path(self.build_lib) / "pytorch_ext")


setup(
    packages=[*find_packages(include=["pytorch_ext", "pytorch_ext.*"]), "pytorch_ext.kernels"],
    package_dir={"pytorch_ext.kernels": "kernels"},
    # the libraries are not package data: build_ext puts them there, so a pure-Python wheel never picks up old ones
    package_data={"pytorch_ext": ["py.typed", "*.pyi"], "pytorch_ext.models": ["*.txt", "*.json", "*.csv"]},
    ext_modules=[Extension(f"pytorch_ext.{name}", []) for name in LIBRARIES + MODULES],
    cmdclass={"build_ext": BuildLibraries, "build_py": BuildPython},
)
