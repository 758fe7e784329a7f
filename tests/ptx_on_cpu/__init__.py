"""Compiled GPU kernels, run on the CPU: PTX from nvcc or Triton, its values, its traffic, its mistakes.

    module = Module(ptx_text)
    report = module["kernel"].launch(grid, block, [x, y, 3, 0.5], memory=memory)
    report.check()                # no access out of bounds, no race, no barrier that somebody misses, ...
    report.counts["global_loads"]

Warps run in lock step, lanes that part at branches meet again, blocks run one after another. docs/gpu.md says what that
proves and what it does not.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from .build import runtime

_runtime = runtime()

from . import ptx  # noqa: E402
from .decode import Program, Unknown  # noqa: E402
from .ptx import Malformed  # noqa: E402

__all__ = ["MAX_SHARED", "Finding", "Kernel", "Malformed", "Memory", "Module", "Param", "Report", "Unknown", "span"]


@dataclass(frozen=True)
class Param:
    """A parameter of a kernel: `type` as PTX names it, `offset`, `size` and `align` in bytes."""

    name: str
    type: str
    offset: int
    size: int
    align: int


@dataclass(frozen=True)
class Finding:
    """A mistake: where it happened first, and how often."""

    kind: str  # out-of-bounds, misaligned, uninitialised, race, barrier, warp-sync, trap
    text: str
    kernel: str
    block: tuple[int, int, int]
    thread: tuple[int, int, int]
    line: int  # of the PTX
    source: str  # file:line where the PTX says so, else ""; "file:line in file:line" where a function was inlined
    times: int

    def __str__(self) -> str:
        place = f"PTX line {self.line}" + (f" ({self.source})" if self.source else "")
        times = f" [{self.times} times]" if self.times > 1 else ""
        return f"{self.kind}: {self.kernel}, block {self.block}, thread {self.thread}, {place}: {self.text}{times}"


@dataclass
class Report:
    """What one launch, or several, did."""

    findings: list[Finding] = field(default_factory=list)
    counts: dict[str, Any] = field(default_factory=dict)

    def __add__(self, other: Report) -> Report:
        return Report(self.findings + other.findings, _added(self.counts, other.counts))

    def check(self) -> None:
        """Raises AssertionError with what was found."""
        if self.findings:
            raise AssertionError("\n".join(str(finding) for finding in self.findings))


def _added(a: dict, b: dict) -> dict:
    result = dict(a)
    for key, value in b.items():
        result[key] = _added(result.get(key, {}), value) if isinstance(value, dict) else result.get(key, 0) + value
    return result


def span(value) -> tuple[int, int, int]:
    """Address, bytes and itemsize of what a tensor's or array's elements span."""
    if isinstance(value, np.ndarray):
        if not value.size:
            return value.ctypes.data, 0, value.itemsize
        ends = [(size - 1) * stride for size, stride in zip(value.shape, value.strides)]
        low = value.ctypes.data + sum(end for end in ends if end < 0)
        return low, value.ctypes.data + sum(end for end in ends if end > 0) + value.itemsize - low, value.itemsize
    if not value.numel():
        return value.data_ptr(), 0, value.element_size()
    last = sum((size - 1) * stride for size, stride in zip(value.shape, value.stride()))
    return value.data_ptr(), (last + 1) * value.element_size(), value.element_size()


def _is_array(value) -> bool:
    return isinstance(value, np.ndarray) or (hasattr(value, "data_ptr") and hasattr(value, "stride"))


def _span_on_cpu(value) -> tuple[int, int, int]:
    if not isinstance(value, np.ndarray) and value.device.type != "cpu":
        raise TypeError(f"tensors must be on the CPU, got one on {value.device}")
    return span(value)


def _is_writable(value) -> bool:
    return not isinstance(value, np.ndarray) or value.flags.writeable


class Memory:
    """What kernels may access. Lives as long as its tensors do; what one launch wrote, the next may read."""

    def __init__(self) -> None:
        self._memory = _runtime.Memory()
        self._kept: list = []

    def track(
        self, what, nbytes: int | None = None, itemsize: int = 4, name: str = "", initialised: bool = True
    ) -> None:
        """Allows accesses to a CPU tensor, an array, or `nbytes` at an address.

        Not initialised: a read of what no kernel has written is a finding."""
        if itemsize < 1 or (nbytes is not None and nbytes < 0):
            raise ValueError(f"nbytes and itemsize must not be negative, nor itemsize 0, got {nbytes} and {itemsize}")
        if _is_array(what):
            address, nbytes, itemsize = _span_on_cpu(what)
            self._kept.append(what)
        elif isinstance(what, int) and nbytes is not None:
            address = what
        else:
            raise TypeError(f"track takes a tensor, an array, or an address and nbytes, got {type(what).__name__}")
        name = name or f"{nbytes} bytes at {address:#x}"
        self._memory.track(address, nbytes, itemsize, name, initialised, _is_writable(what))

    def _use(self, what, name: str) -> None:
        """Tracks an argument that has values, as far as it is not held yet."""
        address, nbytes, itemsize = _span_on_cpu(what)
        if nbytes and not self._memory.holds(address, nbytes):
            self._memory.grow(address, nbytes, itemsize, name, _is_writable(what))
            self._kept.append(what)

    def holds(self, address: int, nbytes: int = 1) -> bool:
        return self._memory.holds(address, nbytes)

    def clear(self) -> None:
        self._memory.clear()
        self._kept.clear()


class Module:
    """A PTX file. `source` names it in errors. Kernels are read when they are first launched."""

    def __init__(self, ptx_text: str, source: str = ""):
        try:
            self._text = ptx.Text(ptx_text)
        except Malformed as error:
            raise Malformed(f"{source}: {error}" if source else str(error)) from None
        self.source, self.target = source, self._text.target
        self._arrays: list[np.ndarray] = []
        self._variables = {}
        for name, variable in self._text.variables.items():
            address = 0
            if variable.space in ("global", "const"):
                array = np.zeros(variable.size + variable.align, np.uint8)
                shift = -array.ctypes.data % variable.align
                values = np.frombuffer(variable.values, np.uint8)
                array[shift : shift + len(values)] = values
                self._arrays.append(array[shift : shift + variable.size])
                address = array.ctypes.data + shift
            self._variables[name] = (variable, address)
        self.kernels = {name: Kernel(self, entry) for name, entry in self._text.entries.items()}

    def __getitem__(self, name: str) -> Kernel:
        if name not in self.kernels:
            raise ValueError(f"there is no kernel {name!r}; there are {', '.join(self.kernels) or 'none'}")
        return self.kernels[name]


def _dim3(name: str, value) -> tuple[int, int, int]:
    sizes = (value,) if isinstance(value, int) else tuple(value) if isinstance(value, Sequence) else None
    if (
        sizes is None
        or not 1 <= len(sizes) <= 3
        or any(not isinstance(size, int) or isinstance(size, bool) for size in sizes)
    ):
        raise TypeError(f"{name} must be 1 to 3 ints, got {value!r}")
    if min(sizes) < 1:
        raise ValueError(f"{name} must be positive in every dimension, got {sizes}")
    return (*sizes, *(1,) * (3 - len(sizes)))


LIMITS = {"grid": (2**31 - 1, 65535, 65535), "block": (1024, 1024, 64)}
MAX_SHARED = {80: 163 * 1024, 90: 227 * 1024, 100: 227 * 1024, 120: 99 * 1024}  # bytes of a block, by architecture


class Kernel:
    """An entry of a module."""

    def __init__(self, module: Module, entry: ptx.Entry):
        self.module, self.name, self._entry = module, entry.name, entry
        self.params = [Param(p.name, p.type, p.offset, p.size, p.align) for p in entry.params]
        directives = entry.directives
        self.block: tuple[int, int, int] | None = None
        if "reqntid" in directives:
            self.block = (*directives["reqntid"], 1, 1, 1)[:3]
        limits = directives.get("reqntid") or directives.get("maxntid")
        self.max_threads = int(np.prod(limits)) if limits else None
        self._program: Program | None = None

    @property
    def program(self) -> Program:
        if self._program is None:
            ptx.read_body(self._entry)
            self._program = Program(self._entry, self.module._variables)
            self._sources = {
                statement.line: statement.source for statement in self._entry.statements if statement.source
            }
        return self._program

    @property
    def shared(self) -> int:
        """Bytes of static shared memory."""
        return self.program.kernel.static_shared

    def _packed(self, args: Sequence, memory: Memory) -> bytes:
        if len(args) != len(self.params):
            raise TypeError(f"{self.name} takes {len(self.params)} arguments, got {len(args)}")
        last = self.params[-1] if self.params else None
        packed = bytearray(last.offset + last.size if last else 0)
        for number, (param, value) in enumerate(zip(self.params, args)):
            try:
                data = self._bytes_of(param, value, memory)
            except (TypeError, ValueError, OverflowError, struct.error) as error:
                raise type(error if isinstance(error, TypeError) else ValueError())(
                    f"{self.name}, argument {number} ({param.name}, .{param.type}, {param.size} bytes): {error}"
                ) from None
            packed[param.offset : param.offset + param.size] = data
        return bytes(packed)

    def _bytes_of(self, param: Param, value, memory: Memory) -> bytes:
        if isinstance(value, bytes):
            if len(value) != param.size:
                raise ValueError(f"got {len(value)} bytes")
            return value
        if value is None or _is_array(value):
            if param.size != 8 or param.type == "f64":
                raise TypeError("a pointer does not fit")
            if value is None:
                return bytes(8)
            memory._use(value, param.name)
            pointer = value.ctypes.data if isinstance(value, np.ndarray) else value.data_ptr()
            return pointer.to_bytes(8, "little")
        if isinstance(value, (bool, np.bool_)):
            value = int(value)
        if isinstance(value, (float, np.floating)):
            if param.type in ("f32", "f64") or (param.type in ("b32", "b64") and param.size in (4, 8)):
                return struct.pack("<f" if param.size == 4 else "<d", float(value))
            raise TypeError(f"got the float {value}")
        if isinstance(value, (int, np.integer)):
            if param.type in ("f32", "f64"):
                return struct.pack("<f" if param.size == 4 else "<d", float(value))
            if param.size not in (1, 2, 4, 8):
                raise TypeError("an int does not fit a struct")
            value, bits = int(value), 8 * param.size
            if not -(1 << bits - 1) <= value < 1 << bits:
                raise ValueError(f"{value} does not fit")
            return (value & (1 << bits) - 1).to_bytes(param.size, "little")
        raise TypeError(f"got {type(value).__name__}; int, float, bytes, tensor, array or None are allowed")

    def launch(self, grid, block, args: Sequence, *, shared: int = 0, memory: Memory | None = None,
               backwards: bool = False, longest: int = 2**30) -> Report:  # fmt: skip
        """Runs the kernel.

        `shared` is dynamic shared memory in bytes. `backwards`: blocks in the other order. `longest`: warp instructions
        after which a block that still loops is given up (RuntimeError): one that waits for another never ends here.
        """
        if block is None:
            if self.block is None:
                raise ValueError(f"{self.name} does not say its block (.reqntid): block must be given")
            block = self.block
        grid, block = _dim3("grid", grid), _dim3("block", block)
        for name, sizes in (("grid", grid), ("block", block)):
            if any(size > limit for size, limit in zip(sizes, LIMITS[name])):
                raise ValueError(f"{name} must not exceed {LIMITS[name]}, got {sizes}")
        threads = block[0] * block[1] * block[2]
        if threads > (self.max_threads or 1024) or (self.block and block != self.block):
            allowed = f"exactly {self.block}" if self.block else f"at most {self.max_threads or 1024} threads"
            raise ValueError(f"{self.name} takes a block of {allowed}, got {block}")
        if not isinstance(shared, int) or shared < 0:
            raise ValueError(f"shared must be a number of bytes, got {shared!r}")
        program, memory = self.program, memory or Memory()
        architecture = re.fullmatch(r"sm_(\d+)[af]?", self.module.target)
        most = MAX_SHARED.get(int(architecture[1]) if architecture else 0, max(MAX_SHARED.values()))
        if program.kernel.static_shared + shared > most:
            raise ValueError(
                f"{self.name} would take {program.kernel.static_shared + shared} bytes of shared memory, "
                f"{self.module.target} has {most}"
            )
        packed = self._packed(args, memory)
        for array in self.module._arrays:
            if not memory.holds(array.ctypes.data):
                memory.track(array, name="a variable of the module")
        found, counts = _runtime.launch(program.kernel, grid, block, shared, packed, memory._memory, backwards, longest)
        findings = [
            Finding(kind, text, kernel, tuple(at), tuple(thread), line, self._source(line), times)
            for kind, text, kernel, at, thread, line, times in found
        ]
        return Report(findings, counts)

    def _source(self, line: int) -> str:
        if line not in self._sources:
            return ""
        files = self.module._text.files
        return " in ".join(f"{Path(files.get(number, '?')).name}:{row}" for number, row in self._sources[line])
