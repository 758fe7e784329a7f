"""The static budget of every GPU kernel: what compilers make of it for GPUs that are not here.

    python tests/gpu_budget.py                   # measure every architecture, compare with the table in git
    python tests/gpu_budget.py --write           # ... and write it (make gpu-budget)
    python tests/gpu_budget.py forward_nhwc      # every variant of the kernels of that name

Kernels are found, not listed: every `__global__` function that a csrc/cuda/*.cu instantiates, and every Triton kernel
that the ops of kernels/*.py launch for the layers of bench/shapes/<op>.csv, with every configuration of its autotuner.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import csv
import functools
import hashlib
import importlib
import io
import multiprocessing
import os
import re
import struct
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest import mock

import nvcc
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

ROOT = Path(__file__).resolve().parent.parent
TABLE = ROOT / "tests/gpu_budget.csv"
CUBINS = ROOT / "build/gpu_budget"
ARCHS = (80, 90, 100, 120)
RESERVED = 1024  # bytes of shared memory that CUDA takes for each block
LAYERS = 4  # of bench/shapes/<op>.csv: the first that differ in more than their size
DTYPES = (torch.float32, torch.float16)  # of Triton's kernels; bfloat16 differs from float16 in its conversions only
MATRIX = re.compile(r"\b(?:[HIDQOB]MMA|[HIQBO]GMMA|UTC\w*MMA)\b")  # tensor cores, of any generation
MATRIX_SOURCE = re.compile(r"\b(?:wmma|mma_sync|mma\.sync|wgmma|tcgen05)\b")
# But bits set and cleared in shared memory for nobody to read: tcgen05 keeps account of tensor memory by them.
ATOMIC = re.compile(r"\b(?:ATOM[GS]?|REDG?)\b(?!\.(?:OR|AND) RZ)")
ATOMIC_PTX = re.compile(r"\b(?:atom|red)\.")
SPILL = re.compile(r"\b(?:LDL|STL)\b")
ACCESS = re.compile(r"\b(LDG|STG)(?:STS)?((?:\.\w+)*)")  # LDGSTS: straight into shared memory


# --- occupancy --------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Multiprocessor:
    """Limits of one multiprocessor: CUDA C++ Programming Guide, "Technical Specifications per Compute Capability"."""

    warps: int
    blocks: int
    shared: int  # bytes
    registers: int = 65536
    reserved: int = RESERVED


MULTIPROCESSORS = {
    80: Multiprocessor(64, 32, 164 * 1024),
    90: Multiprocessor(64, 32, 228 * 1024),
    100: Multiprocessor(64, 32, 228 * 1024),
    120: Multiprocessor(48, 24, 100 * 1024),
}


def occupancy(arch: int, threads: int, registers: int, shared: int) -> int:
    """Threads that a multiprocessor holds at once; the rules are those of CUDA's cuda_occupancy.h."""
    limits = MULTIPROCESSORS[arch]
    warps = -(-threads // 32)
    of_warp = -(-registers * 32 // 256) * 256
    quarter = limits.registers // 4 // of_warp if of_warp else limits.warps // 4  # four schedulers, each its registers
    of_block = -(-(shared + limits.reserved) // 128) * 128
    blocks = min(limits.warps // warps, limits.blocks, quarter * 4 // warps, limits.shared // of_block)
    return blocks * warps * 32


# --- reading cubins ---------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Variant:
    """One compiled kernel: a template instance, or a specialisation."""

    language: str  # cuda, triton
    kernel: str
    name: str  # of the variant
    arch: int
    registers: int
    stack: int  # bytes of local memory: spilled registers and indexed arrays
    spills: int  # instructions that read or write it
    shared: int
    threads: int  # of the largest block
    loads: frozenset[int]  # bytes that one access of global memory moves
    stores: frozenset[int]
    atomics: int
    matrix: int  # tensor-core instructions
    wants_matrix: bool = False

    @property
    def occupancy(self) -> int:
        return occupancy(self.arch, self.threads, self.registers, self.shared)


def tools() -> Path:
    """Of the CUDA toolkit, where the Triton wheel brings them."""
    import triton

    return Path(triton.__file__).parent / "backends/nvidia/bin"


def run(*command: Any) -> str:
    result = subprocess.run([str(word) for word in command], cwd=ROOT, capture_output=True, text=True)
    if result.returncode:
        raise RuntimeError(f"{' '.join(map(str, command))} failed:\n{result.stdout}{result.stderr}")
    return result.stdout


def largest_blocks(cubin: bytes) -> dict[str, int]:
    """Symbol -> threads of its largest block: what __launch_bounds__ or .reqntid left in the section .nv.info.<symbol>.

    ELF64; an attribute is a format, a number, 16 bits, and where the format is 4 as many bytes as these say.
    """
    (table,), (count, names) = struct.unpack_from("<Q", cubin, 40), struct.unpack_from("<HH", cubin, 60)
    sections = [struct.unpack_from("<IIQQQQ", cubin, table + 64 * i) for i in range(count)]
    found = {}
    for name, _, _, _, begin, size in sections:
        start = sections[names][4] + name
        label = cubin[start : cubin.index(b"\0", start)].decode()
        at, end = begin, begin + size
        while label.startswith(".nv.info.") and at < end:
            form, attribute, value = struct.unpack_from("<BBH", cubin, at)
            at += 4
            if form == 4:
                if attribute in (0x05, 0x10):  # EIATTR_MAX_THREADS, EIATTR_REQNTID
                    x, y, z = struct.unpack_from("<3I", cubin, at)
                    found[label.removeprefix(".nv.info.")] = x * y * z
                at += value
    return found


def access_bytes(suffixes: str) -> int:
    """Of LDG.E.128.CONSTANT and the like; 4 where nothing else is said."""
    sizes = {"U8": 1, "S8": 1, "U16": 2, "S16": 2, "64": 8, "128": 16, "256": 32}
    return next((sizes[word] for word in suffixes.split(".") if word in sizes), 4)


def accesses_of(ptx: str) -> set[tuple[str, int]]:
    """("LDG" or "STG", bytes) of each access of global memory."""
    found = re.findall(r"\b(ld|st)\.global(?:\.[a-z]\w*(?:::\w+)*)*?(?:\.v(\d))?\.[bfsu](\d+)\b", ptx)
    return {({"ld": "LDG", "st": "STG"}[kind], int(count or 1) * int(bits) // 8) for kind, count, bits in found}


def read(cubin: bytes, language: str, arch: int, ptx: str = "") -> dict[str, Variant]:
    """Every kernel of a cubin, by its symbol.

    ptx: where it says what there is to know, the cubin is not disassembled, which takes nvdisasm 0.2 s to begin with.
    """
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        usage = run(tools() / "cuobjdump", "-res-usage", file.name)
        threads, found = largest_blocks(cubin), {}
        for symbol, text in re.findall(r"^ Function (\S+):\s+(.*)", usage, re.MULTILINE):
            used = {name: int(value) for name, value in re.findall(r"\b(REG|STACK|SHARED|LOCAL):(\d+)", text)}
            if b".nv.shared.reserved.0" in cubin and used["SHARED"]:
                used["SHARED"] -= RESERVED  # since sm_90 it is a part of the section
            if symbol in threads:  # else a function that kernels call
                found[symbol] = used
        if ptx and not any(used["STACK"] + used["LOCAL"] for used in found.values()):
            bodies = dict.fromkeys(found, ptx)
        else:
            code, ptx = run(tools() / "nvdisasm", "-c", file.name), ""
            bodies = dict(re.findall(r"^\.text\.(\S+):\n(.*?)(?=^\.text\.|\Z)", code, re.MULTILINE | re.DOTALL))
    if not found or found.keys() - bodies.keys():
        raise RuntimeError(f"cuobjdump and nvdisasm report in another form now: {sorted(found)}, {sorted(bodies)}")
    result = {}
    for symbol, used in found.items():
        body = bodies[symbol]
        sizes = accesses_of(ptx) if ptx else {(kind, access_bytes(suffixes)) for kind, suffixes in ACCESS.findall(body)}
        result[symbol] = Variant(
            language=language,
            kernel=symbol,
            name=symbol,
            arch=arch,
            registers=used["REG"],
            stack=used["STACK"] + used["LOCAL"],
            spills=0 if ptx else len(SPILL.findall(body)),
            shared=used["SHARED"],
            threads=threads[symbol],
            loads=frozenset(size for kind, size in sizes if kind == "LDG"),
            stores=frozenset(size for kind, size in sizes if kind == "STG"),
            atomics=len((ATOMIC_PTX if ptx else ATOMIC).findall(body)),
            matrix=0 if ptx else len(MATRIX.findall(body)),
        )
    return result


# --- CUDA C++ ---------------------------------------------------------------------------------------------------------
def cuda_sources() -> list[Path]:
    return sorted((ROOT / "csrc/cuda").glob("*.cu"))


def code_of(path: Path) -> str:
    """Without comments."""
    return re.sub(r"//.*|/\*.*?\*/", "", path.read_text())


def included(source: Path) -> list[Path]:
    """The source and all of ours that it includes, directly or not."""
    found, waiting = [], [source]
    while waiting:
        path = waiting.pop()
        if path not in found:
            found.append(path)
            for name in re.findall(r'^\s*#\s*include\s*"([^"]+)"', path.read_text(), re.MULTILINE):
                waiting += [p for p in (path.parent / name, ROOT / "csrc" / name) if p.exists()][:1]
    return sorted(found)


@dataclass(frozen=True)
class Written:
    """A kernel as its source has it."""

    path: Path
    parameters: tuple[str, ...]  # of the template


def cuda_kernels() -> dict[str, Written]:
    """Name -> where it is written."""
    pattern = r"(?:template\s*<([^>]*)>\s*)?__global__\s+void\s+(?:__launch_bounds__\([^{;]*?\)\s+)?(\w+)\s*\((?!\()"
    return {
        name: Written(path, tuple(re.findall(r"(\w+)\s*(?:,|$)", parameters)))
        for source in cuda_sources()
        for path in included(source)
        for parameters, name in re.findall(pattern, code_of(path))
    }


def architectures(built: Path) -> set[int]:
    return {int(arch) for arch in re.findall(r"\.sm_(\d+)\.cubin", run(tools() / "cuobjdump", "-lelf", built))}


def up_to_date(source: Path) -> Path | None:
    """The object file that setup.py's build made of it, where ninja has nothing to do for it."""
    ninja_file = ROOT / "build/ninja/build.ninja"
    target = Path("build/ninja/cuda") / f"{source.stem}.o"
    if not ninja_file.exists() or not (ROOT / target).exists() or "-G" in (text := ninja_file.read_text()):
        return None
    import ninja

    said = subprocess.run(
        [os.path.join(ninja.BIN_DIR, "ninja"), "-f", ninja_file, "-n", target], cwd=ROOT, capture_output=True, text=True
    )
    return ROOT / target if "no work to do" in said.stdout and "-std=c++17 -O3" in text else None


def cubins(source: Path, archs: Iterable[int]) -> dict[int, bytes]:
    """Of each architecture: out of the build where it is current, else compiled here, once for each state of it."""
    found, built = {}, up_to_date(source)
    if built:
        with tempfile.TemporaryDirectory() as folder:
            subprocess.run([tools() / "cuobjdump", "-xelf", "all", built], cwd=folder, check=True, capture_output=True)
            for path in Path(folder).glob("*.cubin"):
                found[int(re.search(r"\.sm_(\d+)\.cubin$", path.name)[1])] = path.read_bytes()
    CUBINS.mkdir(parents=True, exist_ok=True)

    def compiled(arch: int) -> bytes:
        target = CUBINS / f"{source.stem}.{cuda_fingerprint(source)}.sm_{arch}.cubin"
        if not target.exists():
            run(nvcc.path(), "-std=c++17", "-O3", "-Icsrc", f"-arch=sm_{arch}", "-cubin", "-o", f"{target}.new", source)
            os.replace(f"{target}.new", target)
        return target.read_bytes()

    missing = [arch for arch in archs if arch not in found]
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        found |= dict(zip(missing, pool.map(compiled, missing)))
    return {arch: found[arch] for arch in archs}


def shortened(demangled: str) -> tuple[str, tuple[str, ...]]:
    """`void a::b::name<float, 3>(Params, ...)` -> name, its template arguments."""
    without_casts = re.sub(r"\((?:int|bool|[\w:]+::\w+)\)(?=-?\d)", "", demangled)
    match = re.match(r"(?:void )?(?:[\w() ]+::)*(\w+)(?:<([^(]*)>)?\(", without_casts)
    words = re.sub(r"[\w:]+::", "", match[2] or "").split(",")
    return match[1], tuple(word.strip() for word in words if word)


def measure_cuda(archs: Sequence[int], sources: Iterable[Path] | None = None) -> list[Variant]:
    written, found = cuda_kernels(), []
    places = {kernel.path for kernel in written.values()}
    for source in cuda_sources() if sources is None else sources:
        if not places & set(included(source)):  # an op that is a move of csrc/cuda/move.cu
            continue
        for arch, cubin in cubins(source, archs).items():
            variants = read(cubin, "cuda", arch)
            names = run("c++filt", *variants).splitlines()
            for variant, (kernel, arguments) in zip(variants.values(), map(shortened, names)):
                wants = kernel in written and bool(MATRIX_SOURCE.search(code_of(written[kernel].path)))
                name = f"{kernel}<{', '.join(arguments)}>" if arguments else kernel
                found.append(replace(variant, kernel=kernel, name=name, wants_matrix=wants))
    return found


# --- Triton -----------------------------------------------------------------------------------------------------------
class Calls(TorchDispatchMode):
    """Every call of our ops, with its arguments."""

    def __init__(self):
        super().__init__()
        self.made: list[tuple[str, tuple]] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "pytorch_ext":
            self.made.append((func._schema.name.split("::")[1], args))
        return func(*args, **(kwargs or {}))


def families() -> list[str]:
    """Kernels without an op of their name, such as epilogue.py, are what the ops' share."""
    ops = {path.stem for path in (ROOT / "pytorch_ext/ops").glob("*.py")} - {"__init__"}
    return sorted(path.stem for path in (ROOT / "kernels").glob("*.py") if path.stem in ops)


def layers(rows: Sequence[dict[str, str]]) -> list[dict[str, str]]:
    """The first rows that differ in more than their size, which kernels get at run time."""
    first: dict[tuple, dict[str, str]] = {}
    for row in rows:
        numbers = {name: value for name, value in row.items() if re.fullmatch(r"\d+", value) and "peer" not in name}
        first.setdefault(tuple(numbers[name] for name in sorted(numbers.keys() - set("nchw"))), row)
    return list(first.values())[:LAYERS]


def calls(family: str) -> list[tuple[str, tuple]]:
    """The ops that the family's test of real layers calls, on tensors without memory: nothing is computed."""
    module = importlib.import_module(f"test_{family}")
    checks = {
        name: lambda *args, **kwargs: None for name in dir(module) if re.match(r"assert_(exact|linear|non)", name)
    }
    with mock.patch.multiple(module, **checks), torch.device("meta"), Calls() as recorded:
        for row in layers(module.BENCH):
            for layout in ("contiguous", "channels_last"):
                module.test_bench_set(row, layout)
        if hasattr(module, "beside_bench"):
            module.beside_bench()
    return recorded.made


class NoDriver:
    """Of a GPU that is not here: enough for Triton to specialise a kernel."""

    def __init__(self, arch: int):
        from triton.backends.compiler import GPUTarget

        self.target = GPUTarget("cuda", arch, 32)

    def get_current_target(self):
        return self.target

    def get_current_device(self):
        return self.target.arch

    def get_current_stream(self, device):
        return 0


@dataclass(frozen=True)
class Specialisation:
    """A kernel as a launch specialises it."""

    module: str  # of pytorch_ext.kernels: an op's own, or one that several share
    kernel: str
    signature: tuple  # of (name, type)
    constants: tuple  # of (path, value)
    attributes: tuple
    options: tuple

    def function(self):
        return getattr(importlib.import_module(f"pytorch_ext.kernels.{self.module}"), self.kernel)

    def source(self) -> tuple[dict, dict, dict]:
        """Triton's signature, constexprs and attrs."""
        attributes = {path: [list(pair) for pair in value] for path, value in self.attributes}
        return dict(self.signature), dict(self.constants), attributes

    @property
    def name(self) -> str:
        names = [name for name, _ in self.signature]
        pointer = next(kind for _, kind in self.signature if kind.startswith("*"))
        constants = [f"{names[path[0]]}={value}" for path, value in self.constants if names[path[0]].isupper()]
        return f"{self.kernel}({pointer[1:]}, {', '.join(constants)})"


@contextlib.contextmanager
def recording(arch: int) -> Iterator[list[Specialisation]]:
    """Launches inside are not made but kept: autotuned kernels once for each config."""
    from triton.runtime import driver
    from triton.runtime.autotuner import Autotuner
    from triton.runtime.jit import JITFunction

    found: dict[Specialisation, None] = {}
    result: list[Specialisation] = []

    def compile(kernel, key, signature, device, constants, options, attributes, warmup):
        def frozen(items):
            return tuple((path, tuple(map(tuple, v)) if isinstance(v, list) else v) for path, v in items.items())

        plain = {name: v for name, v in options.__dict__.items() if isinstance(v, (int, str, bool, float, type(None)))}
        del plain["arch"]
        found[
            Specialisation(
                kernel.__module__.rsplit(".", 1)[-1],
                kernel.__name__,
                *map(frozen, (signature, constants, attributes)),
                tuple(plain.items()),
            )
        ] = None

    def tune(tuner, *args, **kwargs):
        tuner.nargs = dict(zip(tuner.arg_names, args))
        for config in tuner.prune_configs(kwargs):
            tuner.fn.run(*args, **{**kwargs, **config.all_kwargs()})

    active = driver.active if driver._active is not None else None
    driver.set_active(NoDriver(arch))
    try:
        with mock.patch.object(JITFunction, "_do_compile", compile), mock.patch.object(Autotuner, "run", tune):
            yield result
    finally:
        result += found
        driver._active = active


def specialisations(arch: int) -> list[Specialisation]:
    from pytorch_ext import _op

    found = []
    for family in families():
        with recording(arch) as recorded:
            for name, args in calls(family):
                for dtype in DTYPES:
                    _op.OPS[name].triton(*tree_map_only(torch.Tensor, lambda t, dtype=dtype: t.to(dtype), args))
        found += recorded
    return found


def compile_triton(spec: Specialisation, arch: int) -> Variant:
    return compiled(spec.function(), *spec.source(), dict(spec.options), arch, spec.name)


def compiled(kernel, signature, constants, attributes, options, arch: int, name: str = "") -> Variant:
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    source = ASTSource(kernel, signature=signature, constexprs=constants, attrs=attributes)
    result = triton.compile(source, target=GPUTarget("cuda", arch, 32), options=options)
    dot = "tt.dot" in result.asm["ttir"]
    (variant,) = read(result.asm["cubin"], "triton", arch, "" if dot else result.asm["ptx"]).values()
    return replace(
        variant,
        kernel=kernel.__name__,
        name=name,
        shared=variant.shared + result.metadata.shared,
        wants_matrix=dot,
    )


def measure_triton(archs: Sequence[int]) -> list[Variant]:
    work = [(spec, arch) for arch in archs for spec in specialisations(arch)]
    # fork: a process that starts anew imports torch and Triton first
    with ProcessPoolExecutor(len(os.sched_getaffinity(0)), multiprocessing.get_context("fork")) as pool:
        return list(pool.map(compile_triton, *zip(*work), chunksize=4))


# --- what a table was made of -----------------------------------------------------------------------------------------
def _hash(texts: Iterable[str]) -> str:
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()[:16]


@functools.cache
def nvcc_release() -> str:
    return re.search(r"V([\d.]+)", run(nvcc.path(), "--version"))[1]


@functools.cache
def cuda_fingerprint(source: Path | None = None) -> str:
    """Of everything that decides what nvcc makes of the source, or of all of them."""
    paths = sorted({path for s in ([source] if source else cuda_sources()) for path in included(s)})
    return _hash([nvcc_release(), *(code_of(path) for path in paths)])


def triton_fingerprint() -> str:
    texts = [path.read_text() for path in sorted((ROOT / "kernels").glob("*.py"))]
    tests = [(ROOT / f"bench/shapes/{family}.csv").read_text() for family in families()]
    return _hash([triton_release(), *texts, *tests, str((LAYERS, DTYPES))])


def triton_release() -> str:
    import triton

    return triton.__version__


def compilers() -> dict[str, str]:
    return {"cuda": f"nvcc {nvcc_release()}", "triton": f"triton {triton_release()}"}


def fingerprints() -> dict[str, str]:
    return {"cuda": cuda_fingerprint(), "triton": triton_fingerprint()}


# --- the table --------------------------------------------------------------------------------------------------------
LESS = ("registers", "registers_sum", "stack", "spills", "shared", "atomics")  # is better; maxima, but the sum
MORE = ("occupancy", "loads16", "stores16", "matrix")  # is better: threads, least of all; variants that have it
COLUMNS = ("language", "kernel", "arch", "variants", "threads", *LESS, *MORE)
Row = dict[str, int]
Key = tuple[str, str, int]  # language, kernel, arch


def rows(variants: Iterable[Variant]) -> dict[Key, Row]:
    groups: dict[Key, list[Variant]] = collections.defaultdict(list)
    for variant in variants:
        groups[variant.language, variant.kernel, variant.arch].append(variant)
    return {
        key: {
            "variants": len(group),
            "threads": max(v.threads for v in group),
            "registers": max(v.registers for v in group),
            "registers_sum": sum(v.registers for v in group),
            "stack": max(v.stack for v in group),
            "spills": max(v.spills for v in group),
            "shared": max(v.shared for v in group),
            "atomics": max(v.atomics for v in group),
            "occupancy": min(v.occupancy for v in group),
            "loads16": sum(max(v.loads, default=0) >= 16 for v in group),
            "stores16": sum(max(v.stores, default=0) >= 16 for v in group),
            "matrix": sum(v.matrix > 0 for v in group),
        }
        for key, group in sorted(groups.items())
    }


@dataclass(frozen=True)
class Table:
    compilers: dict[str, str]  # language -> its compiler's name and version
    fingerprints: dict[str, str]  # language -> of sources and compiler
    rows: dict[Key, Row]

    def text(self) -> str:
        file = io.StringIO()
        file.write("# Written by `make gpu-budget`, which measures anew; docs/gpu.md says what the columns mean.\n")
        for language, compiler in self.compilers.items():
            file.write(f"# {language}: {compiler}, sources {self.fingerprints[language]}\n")
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        for key, row in self.rows.items():
            writer.writerow([*key, *row.values()])
        return file.getvalue()


def parse(text: str) -> Table:
    heads = re.findall(r"^# (\w+): (\w+ \S+), sources (\w+)$", text, re.MULTILINE)
    lines = csv.DictReader(line for line in text.splitlines() if not line.startswith("#"))
    parsed: dict[Key, Row] = {}
    for line in lines:
        key = line.pop("language"), line.pop("kernel"), int(line.pop("arch"))
        parsed[key] = {name: int(value) for name, value in line.items()}
    return Table({h[0]: h[1] for h in heads}, {h[0]: h[2] for h in heads}, parsed)


def compare(old: dict[Key, Row], new: dict[Key, Row]) -> tuple[list[str], list[str]]:
    """(what is worse, what else is different), a line for each kernel and architecture of both that differs."""
    worse, different = [], []
    for key in sorted(old.keys() | new.keys()):
        label = f"{key[0]} {key[1]} sm_{key[2]}"
        if key not in old or key not in new:
            different.append(f"{label}: {'is new' if key in new else 'is gone'}")
            continue
        before, after = old[key], new[key]
        changed = [name for name in after if before[name] != after[name]]
        # of another set of variants, sums and counts say nothing
        same = before["variants"] == after["variants"]
        bad = [
            name for name in changed if name in LESS and after[name] > before[name] and (same or name[-4:] != "_sum")
        ]
        bad += [
            name for name in changed if name in MORE and after[name] < before[name] and (same or name == "occupancy")
        ]
        if changed:
            text = ", ".join(f"{name} {before[name]} -> {after[name]}{' (worse)' * (name in bad)}" for name in changed)
            (worse if bad else different).append(f"{label}: {text}")
    return worse, different


def measure(archs: Sequence[int] = ARCHS) -> list[Variant]:
    return measure_cuda(archs) + measure_triton(archs)


def main() -> int:
    parser = argparse.ArgumentParser(description="the static budget of every GPU kernel")
    parser.add_argument("kernel", nargs="*", help="print every variant of these")
    parser.add_argument("--write", action="store_true", help=f"write {TABLE.relative_to(ROOT)}")
    options = parser.parse_args()
    if nvcc.path() is None:
        sys.exit("nvcc is needed to measure: it is neither in CUDA_HOME nor on PATH")
    try:
        tools()
    except ImportError:
        sys.exit("triton is needed to measure: its wheel brings cuobjdump and nvdisasm too. pip install triton")
    variants = measure()
    for v in sorted(variants, key=lambda v: (v.language, v.kernel, v.arch, -v.registers, v.name)):
        if v.kernel in options.kernel:
            memory = f"{v.shared:6} B shared {v.stack:4} B stack {v.spills:3} spills"
            print(f"sm_{v.arch} {v.registers:4} registers {v.occupancy:5} threads {memory}  {v.name}")
    table = Table(compilers(), fingerprints(), rows(variants))
    old = parse(TABLE.read_text()).rows if TABLE.exists() else {}
    worse, different = compare(old, table.rows)
    print("\n".join([*(f"WORSE  {line}" for line in worse), *different]) or "as in the table")
    if options.write:
        TABLE.write_text(table.text())
        print(f"{len(variants)} kernels in {len(table.rows)} rows: {TABLE.relative_to(ROOT)}")
        return 0
    return bool(worse)


if __name__ == "__main__":
    sys.exit(main())
