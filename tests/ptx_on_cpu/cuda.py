"""A CUDA device without a GPU: the CUDA library's ops on CPU tensors, with the PTX that nvcc makes of its kernels.

    with ptx_on_cpu.cuda.device(arch=80) as session:
        y = session.op("depthwise_conv2d")(x, weight, bias, stride, padding, dilation, "none")
    session.report.check()

csrc/*.cpp and csrc/cuda/*.cu are compiled into a library like _cuda.so, but for launch_kernel and what the boundary
asks of CUDA through torch (cuda_on_cpu.h). Its ops are registered for PrivateUse1, a dispatch key that torch leaves to
others and no tensor here has: so they disturb nobody, and are called by sending the dispatcher there.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import importlib.util
import re
import shutil
import subprocess
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import nvcc
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from pytorch_ext import _op

from . import Memory, Module, span
from .build import folder, ninja

ROOT = Path(__file__).resolve().parents[2]
BUILD = folder("cuda")
KEY = "PrivateUse1"


# --- building ---------------------------------------------------------------------------------------------------------
def unavailable() -> str | None:
    """Why this does not work here, or None."""
    if nvcc.path() is None:
        return nvcc.MISSING
    if shutil.which("g++") is None or importlib.util.find_spec("ninja") is None:
        return "g++ and the Python package ninja are needed to build the CUDA library's host code"
    return None


def sources() -> list[Path]:
    return sorted(path.relative_to(ROOT) for path in (ROOT / "csrc/cuda").glob("*.cu"))


def _ptx_path(source: Path, arch: int) -> Path:
    return BUILD / f"{source.stem}.sm_{arch}.ptx"


def _ninja_file(archs: set[int]) -> str:
    """How to make the library, and PTX for every arch: ninja makes anew what other sources, flags or nvcc made."""
    compiler = nvcc.path()
    version = subprocess.run([compiler, "--version"], check=True, capture_output=True, text=True).stdout
    release = re.search(r"V([\d.]+)", version)[1]
    torch_folder = Path(torch.__file__).parent
    target = re.search(r"-DTORCH_TARGET_VERSION=\w+", (ROOT / "setup.py").read_text())[0]
    cuda = f"{compiler} -std=c++17 -Icsrc -MD -MF $out.d $in -o $out"
    host, of_nvcc = "-fPIC -fvisibility=hidden", "-Xcompiler -fPIC,-fvisibility=hidden"
    wrap = "-Xlinker --wrap=aoti_torch_empty_strided -Xlinker -z -Xlinker defs"
    here = Path(__file__).resolve().parent.relative_to(ROOT)
    lines = [
        f"builddir = {BUILD}",
        "rule boundary",
        f"  command = g++ -std=c++17 -O1 -g1 {host} {target} -DLIGHTKERNELS_CUDA -DLIGHTKERNELS_DISPATCH_KEY={KEY} "
        f"-Wno-psabi -Icsrc -isystem {torch_folder}/include -MMD -MF $out.d -c $in -o $out # {torch.__version__}",
        "rule host",  # kernels are stubs here, whatever architecture they are for
        f"  command = {cuda} -c -arch=compute_80 -DLIGHTKERNELS_CUDA_ON_CPU -I{here} {of_nvcc} "
        f"# {release}",  # so that another release has another command
        "rule ptx",
        f"  command = {cuda} -O3 -arch=sm_$arch -ptx -lineinfo # {release}",
        "rule library",
        f"  command = {compiler} -shared -cudart static --no-device-link {wrap} $in -L{torch_folder}/lib -ltorch_cpu "
        "-ltorch -lc10 -o $out",
    ]
    for rule in ("boundary", "host", "ptx"):
        at = lines.index(f"rule {rule}") + 2
        lines[at:at] = ["  depfile = $out.d", "  deps = gcc", "  description = $out"]
    objects = []
    boundaries = sorted(path.relative_to(ROOT) for path in (ROOT / "csrc").glob("*.cpp") if path.stem != "build_info")
    for rule, path in [("boundary", path) for path in boundaries] + [("host", path) for path in sources()]:
        objects.append(f"{BUILD}/{path.stem}.{rule}.o")
        lines.append(f"build {objects[-1]}: {rule} {path}")
    lines.append(f"build {BUILD}/library.so: library {' '.join(objects)}")
    for arch in sorted(archs):
        for path in sources():
            lines += [f"build {_ptx_path(path, arch)}: ptx {path}", f"  arch = {arch}"]
    return "\n".join(lines) + "\n"


@functools.cache
def build(arch: int) -> None:
    """Makes the library and every kernel's PTX for this architecture, where they are not up to date."""
    if reason := unavailable():
        raise RuntimeError(reason)
    targets = [BUILD / "library.so", *(_ptx_path(source, arch) for source in sources())]
    ninja("the CUDA library for the CPU", _ninja_file({80, 90, arch}), BUILD, targets, ROOT)


def plain_name(symbol: str) -> str:
    """A mangled name without what host and device disagree on: the hash that nvcc gives to unnamed namespaces, and the
    mark of internal linkage, which PTX lacks."""
    while found := re.search(r"(\d+)_GLOBAL__N__", symbol):
        symbol = f"{symbol[: found.start()]}12_GLOBAL__N_1{symbol[found.end(1) + int(found[1]) :]}"
    return re.sub(r"L(?=\d)", "", symbol)


def symbols(library: Path) -> dict[int, list[str]]:
    """Address -> names, of a library's functions, local ones too."""
    lines = subprocess.run(["nm", "-p", "--defined-only", library], check=True, capture_output=True, text=True).stdout
    found: dict[int, list[str]] = {}
    for address, kind, name in re.findall(r"^([0-9a-f]+) (\w) (\S+)$", lines, re.MULTILINE):
        if kind in "tTwW":
            found.setdefault(int(address, 16), []).append(plain_name(name))
    return found


@functools.cache
def kernels(arch: int) -> dict[str, Any]:
    """Every kernel of the library, by its plain name."""
    build(arch)
    found = {}
    for source in sources():
        module = Module(_ptx_path(source, arch).read_text(), source=source.name)
        for name, kernel in module.kernels.items():
            if plain_name(name) in found:
                raise RuntimeError(f"two kernels are called {plain_name(name)}, of which the host would not tell which")
            found[plain_name(name)] = kernel
    return found


# --- the library ------------------------------------------------------------------------------------------------------
class _Launch(ctypes.Structure):  # Launch in cuda_on_cpu.h
    _fields_ = [
        ("kernel", ctypes.c_uint64),
        ("grid", ctypes.c_uint32 * 3),
        ("block", ctypes.c_uint32 * 3),
        ("shared", ctypes.c_uint64),
        ("count", ctypes.c_uint64),
        ("args", ctypes.POINTER(ctypes.c_void_p)),
        ("sizes", ctypes.POINTER(ctypes.c_uint64)),
    ]


_ON_LAUNCH = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(_Launch))
_ON_ALLOCATION = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64)

_sessions: list[Session] = []  # the last is the device


class _Library:
    """The library in this process; calls of it go to the session that is active."""

    def __init__(self):
        path = BUILD / "library.so"
        self.symbols = symbols(path)
        torch.ops.load_library(path)
        self.c = ctypes.CDLL(str(path))
        self.c.cuda_on_cpu_error.argtypes = [ctypes.c_char_p]
        self.callbacks = (  # ctypes keeps none alive
            _ON_LAUNCH(lambda launch: self.guarded(lambda session: session._launch(launch.contents))),
            _ON_ALLOCATION(lambda *block: self.guarded(lambda session: session._allocated(*block))),
        )
        self.c.cuda_on_cpu_set(*self.callbacks)

    def guarded(self, call: Callable[[Session], None]) -> int:
        """An exception must not leave a callback, where ctypes would print and forget it: C++ throws its text."""
        try:
            if not _sessions:
                raise RuntimeError(f"{KEY} ops of the CUDA library run inside of ptx_on_cpu.cuda.device() only")
            call(_sessions[-1])
        except BaseException as error:
            if _sessions:
                _sessions[-1]._error = error
            self.c.cuda_on_cpu_error(f"{type(error).__name__}: {error}".encode())
            return 1
        return 0


@functools.cache
def _library() -> _Library:
    return _Library()


# --- sessions ---------------------------------------------------------------------------------------------------------
class Launch(NamedTuple):
    kernel: str
    grid: tuple[int, int, int]
    block: tuple[int, int, int]
    shared: int  # dynamic, in bytes
    report: Any  # the executor's, of this launch


class _Span(NamedTuple):  # of memory that holds values
    begin: int
    end: int
    itemsize: int
    name: str


class _TrackWritten(TorchDispatchMode):
    """What torch itself computes while the boundary runs (a compacted bias, zeros) is memory that holds values."""

    def __init__(self, session: Session):
        super().__init__()
        self.session = session

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        self.session._track(result, f"torch's {func}")
        return result


class Session:
    """One CUDA device. What ran on it is in `launches` and `report`."""

    def __init__(self, arch: int, memory: Any):
        self.arch = arch
        self.launches: list[Launch] = []
        self.kernels = kernels(arch)
        self.memory = Memory() if memory is None else memory
        self._owns_memory = memory is None
        self._report: Any = None
        self._spans: list[_Span] = []
        self._error: BaseException | None = None

    @property
    def report(self) -> Any:
        """The executor's report of all launches so far."""
        if self._report is None:
            raise RuntimeError("nothing was launched")
        return self._report

    def op(self, name: str) -> Callable:
        """torch.ops.pytorch_ext.<name> as the CUDA library answers it, for CPU tensors."""
        if name not in _op.OPS:
            raise ValueError(f"op must be one of {', '.join(_op.OPS)}, got {name!r}")
        overload = getattr(torch.ops.pytorch_ext, name).default
        keys = torch._C.DispatchKeySet(getattr(torch._C.DispatchKey, KEY))
        argument_names = [argument.name for argument in overload._schema.arguments]

        def call(*args, **kwargs):
            if not _sessions or _sessions[-1] is not self:
                raise RuntimeError(f"{name} is called outside of its `with ptx_on_cpu.cuda.device()` block")
            if self._owns_memory:
                self.memory.clear()  # the last call's tensors may be gone, and others where they were
            self._spans = []
            for argument, value in [*zip(argument_names, args), *kwargs.items()]:
                self._track(value, argument)
            self._error = None
            try:
                with _TrackWritten(self):
                    return overload.redispatch(keys, *args, **kwargs)
            except RuntimeError as error:
                if self._error is None or isinstance(self._error, Exception):
                    raise error from self._error
                raise self._error from None  # an interrupt stays one

        return call

    @contextlib.contextmanager
    def as_cpu(self) -> Iterator[None]:
        """Makes this the device of CPU tensors: all that calls pytorch_ext's ops on them, derivatives included."""
        library = torch.library.Library(_op.NAMESPACE, "IMPL")
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message=".*Overriding a previously registered kernel.*")
                warnings.filterwarnings("ignore", message=".*Warning only once for all operators.*")
                for name in _op.OPS:
                    library.impl(name, self.op(name), "CPU", allow_override=True)
            yield
        finally:
            library._destroy()

    def _track(self, values: Any, name: str) -> None:
        """Memory that holds values: all that a view spans, and as one where tensors overlap (dy may be a part of x)."""
        for tensor in tree_iter(values):
            if isinstance(tensor, Tensor) and tensor.device.type == "cpu" and tensor.numel():
                begin, nbytes, itemsize = span(tensor)
                end, label = begin + nbytes, name
                for other in [o for o in self._spans if o.begin < end and begin < o.end]:
                    self._spans.remove(other)
                    begin, end, itemsize = min(begin, other.begin), max(end, other.end), min(itemsize, other.itemsize)
                    label = other.name if other.name == label else f"{other.name} and {label}"
                self._spans.append(_Span(begin, end, itemsize, label))
                self.memory.track(begin, end - begin, itemsize, name=label, initialised=True)

    def _allocated(self, data: int | None, nbytes: int, itemsize: int) -> None:
        if data and nbytes:
            self._spans = [o for o in self._spans if o.end <= data or data + nbytes <= o.begin]
            self.memory.track(data, nbytes, itemsize, name="memory of the boundary", initialised=False)

    def _launch(self, launch: _Launch) -> None:
        names = _library().symbols.get(launch.kernel, [])
        name = next((name for name in names if name in self.kernels), None)
        if name is None:
            raise RuntimeError(
                f"the kernel {' or '.join(names) or hex(launch.kernel)} is not in the PTX that nvcc makes of "
                f"{', '.join(path.name for path in sources())} for sm_{self.arch}"
            )
        grid, block = tuple(launch.grid), tuple(launch.block)
        args = [ctypes.string_at(launch.args[i], launch.sizes[i]) for i in range(launch.count)]
        report = self.kernels[name].launch(grid, block, args, shared=launch.shared, memory=self.memory)
        self.launches.append(Launch(name, grid, block, launch.shared, report))
        self._report = report if self._report is None else self._report + report


@contextlib.contextmanager
def device(arch: int = 80, memory: Any = None) -> Iterator[Session]:
    """A CUDA device of compute capability `arch`, in the whole process.

    Args:
        arch: 80, 90, ...: what nvcc compiles for.
        memory: a ptx_on_cpu.Memory that says what kernels may access, to which the arguments of ops and what their
            boundaries allocate are added. Default: one for each call, that holds nothing else.

    Raises:
        RuntimeError: nvcc, g++ or ninja is missing, or the library does not compile; the text says which.
    """
    build(arch)
    session = Session(arch, memory)
    _library()
    _sessions.append(session)
    try:
        yield session
    finally:
        _sessions.remove(session)
