"""A Triton driver that has a target but no GPU: `kernel[grid](cpu tensors)` compiles for it, and the PTX runs here.

    with triton_driver.active(arch=80) as driver:
        kernel[grid](x, y, n, BLOCK=128)
    driver.report.check()

Everything up to the launch is Triton's own: specialisation, compilation, caches, autotuning. What tensors hold, and who
wrote it, is known: a launch tracks its arguments, and what torch allocates without filling is NaN, not initialised.
"""

from __future__ import annotations

import contextlib
import functools
import operator
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import triton
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from triton.backends import nvidia
from triton.backends.compiler import GPUTarget
from triton.backends.driver import DriverBase
from triton.runtime import _allocation
from triton.runtime.autotuner import Autotuner, Config

from . import MAX_SHARED, Memory, Module, Report, span

WARP = 32
MULTIPROCESSORS = {80: 108, 90: 132, 100: 148, 120: 170}  # of an A100, H100, B200, RTX 5090
aten = torch.ops.aten
UNFILLED = {
    aten.empty.memory_format,
    aten.empty_strided.default,
    aten.empty_like.default,
    aten.new_empty.default,
    aten.new_empty_strided.default,
}


def load(ptx: str, name: str, source: str):
    """What executes: the kernel of that name, whose launch(grid, block, args, shared, memory, backwards) reports."""
    return Module(ptx, source=source)[name]


@dataclass
class Launch:
    kernel: str
    grid: tuple[int, int, int]
    block: tuple[int, int, int]
    shared: int  # dynamic, in bytes
    config: Config | None  # which the autotuner chose, if one did
    constants: dict[str, Any]  # constexprs and arguments that became one, by name
    report: Report


# --- memory -----------------------------------------------------------------------------------------------------------
class Tensors(TorchDispatchMode):
    """Tells memory of the tensors that kernels get: what torch did not fill is not initialised, all else is."""

    def __init__(self, memory: Memory):
        super().__init__()
        self.memory = memory
        self.unfilled: dict[int, StorageWeakRef] = {}  # by address, until a launch or torch writes to it
        self.tracked: list[tuple[int, int, int, str]] = []  # begin, end, item size, name
        self.kept: list = []  # nothing else may come to lie where a tensor is tracked

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if func in UNFILLED:
            if result.device.type == "cpu" and result.numel():
                storage = result.untyped_storage()
                self.unfilled[storage.data_ptr()] = StorageWeakRef(storage)
                result.fill_(_junk(result.dtype))
        elif func._schema.is_mutable:
            named = zip((argument.name for argument in func._schema.arguments), args)
            values = {**dict(named), **kwargs}
            for argument in func._schema.arguments:
                if argument.alias_info is not None and argument.alias_info.is_write:
                    self.fill(values.get(argument.name))
        return result

    def fill(self, value) -> None:
        """torch wrote to it: all of its memory counts as initialised, though it may have been a part only."""
        for tensor in value if isinstance(value, (list, tuple)) else [value]:
            if isinstance(tensor, Tensor) and tensor.device.type == "cpu" and tensor.numel():
                begin, end = _reach(tensor)
                self.unfilled.pop(tensor.untyped_storage().data_ptr(), None)
                for first, last, itemsize, name in self.tracked:
                    if first < end and begin < last:
                        self.memory.track(first, last - first, itemsize, name, initialised=True)

    def use(self, tensor: Tensor, name: str) -> None:
        """A kernel gets it. Of what torch filled only the elements of this view, and what lies between, are tracked."""
        if not tensor.numel():
            return
        storage = tensor.untyped_storage()
        unfilled = self.unfilled.pop(storage.data_ptr(), None)
        fresh = unfilled is not None and not unfilled.expired()  # else another tensor came to lie there
        begin, end = (storage.data_ptr(), storage.data_ptr() + storage.nbytes()) if fresh else _reach(tensor)
        self.kept.append(storage)
        for first, last in self._apart(begin, end):
            self.tracked.append((first, last, tensor.element_size(), name))
            self.memory.track(first, last - first, tensor.element_size(), name, initialised=not fresh)

    def _apart(self, begin: int, end: int) -> Iterator[tuple[int, int]]:
        """The parts of a range that are not tracked yet."""
        for first, last, *_ in sorted(self.tracked):
            if last <= begin or first >= end:
                continue
            if begin < first:
                yield begin, first
            begin = max(begin, last)
        if begin < end:
            yield begin, end


def _reach(tensor: Tensor) -> tuple[int, int]:
    """Addresses from a view's first byte to behind its last."""
    address, nbytes, _ = span(tensor)
    return address, address + nbytes


def _junk(dtype: torch.dtype):
    if dtype.is_floating_point or dtype.is_complex:
        return float("nan")
    return True if dtype == torch.bool else torch.iinfo(dtype).max


# --- launches ---------------------------------------------------------------------------------------------------------
@dataclass
class _Program:
    """A compiled kernel, as Triton holds on to it: longer than a driver lives."""

    ptx: str
    name: str
    source: str
    loaded: dict = field(default_factory=dict)

    def kernel(self, loader):
        if loader not in self.loaded:
            self.loaded[loader] = loader(self.ptx, self.name, self.source)
        return self.loaded[loader]


class _Launcher:
    """The counterpart of CudaLauncher in triton/backends/nvidia/driver.py and launchKernel in driver.c."""

    def __init__(self, source, metadata):
        self.names, self.signature = list(source.signature), list(source.signature.values())
        self.metadata = metadata
        self.constants = {}
        for path, value in source.constants.items():
            index, *within = path
            name = source.fn.arg_names[index] if hasattr(source, "fn") else self.names[index]
            self.constants[".".join([name, *map(str, within)])] = value
        for what, there in (
            ("clusters of blocks", metadata.num_ctas > 1),
            ("TMA descriptors as arguments", bool(getattr(metadata, "tensordesc_meta", None))),
            ("cooperative grids", metadata.launch_cooperative_grid),
        ):
            if there:
                raise NotImplementedError(f"{metadata.name} needs {what}, which PTX on the CPU does not execute")

    def __call__(self, x, y, z, stream, program, packed, launch_metadata, enter, leave, *values):
        grid = (x, y, z)
        if enter is not None:
            enter(launch_metadata)
        if x * y * z > 0:  # as driver.c: an empty grid is no launch
            triton.runtime.driver.active.launch(self, program, grid, list(self._arguments(values, x * y * z)))
        if leave is not None:
            leave(launch_metadata)

    def _arguments(self, values, blocks: int) -> Iterator[tuple[str, str, Any]]:
        """(type, name, value) for each of the PTX's parameters."""
        names, expanded = [], []
        for name, kind, value in zip(self.names, self.signature, values, strict=True):
            parts = [value]
            if isinstance(kind, str) and kind.startswith("tensordesc"):  # before sm_90, a pointer and sizes
                parts = nvidia.driver.make_tensordesc_arg(value, None)
            expanded += parts
            names += [name] * len(parts)
        yield from _flat(nvidia.driver.expand_signature(self.signature, None), names, expanded)
        for space, allocator in (("global", _allocation._allocator), ("profile", _allocation._profile_allocator)):
            size, align = (getattr(self.metadata, f"{space}_scratch_{what}") for what in ("size", "align"))
            scratch = allocator.get()(blocks * size, align, 0) if size > 0 else None
            yield "*i8", f"{space}_scratch", scratch


def _flat(kinds, names, values) -> Iterator[tuple[str, str, Any]]:
    """Tuples opened, what became a constant left out."""
    for kind, name, value in zip(kinds, names, values, strict=True):
        if isinstance(kind, tuple):
            yield from _flat(kind, [f"{name}.{i}" for i in range(len(kind))], value)
        elif kind != "constexpr":
            yield kind, name, value


def _encoded(kind: str, name: str, value) -> int | float | None:
    """As driver.c extracts it, 16-bit floats as their bits."""
    if kind[0] == "*":
        if value is None or isinstance(value, int):
            return value or None
        if isinstance(value, Tensor) and value.device.type != "cpu":
            raise ValueError(f"{name} is on {value.device}: this driver launches on CPU tensors")
        return value.data_ptr() or None
    if kind == "fp16":
        return struct.unpack("<H", struct.pack("<e", value))[0]
    if kind == "bf16":
        return struct.unpack("<I", struct.pack("<f", value))[0] >> 16
    if kind in ("fp32", "f32", "fp64"):
        return float(value)
    return int(value) & (2 ** max(int(kind[1:]), 8) - 1)


# --- autotuning -------------------------------------------------------------------------------------------------------
@dataclass
class Turn:
    """The index-th of the configs that the autotuner did not prune."""

    index: int
    config: Config | None = None  # known once a launch took it
    configs: int = 0

    def __str__(self):
        return f"config {self.index} of {self.configs}: {self.config}"

    def take(self, configs: list[Config]) -> Config:
        self.configs = max(self.configs, len(configs))
        self.config = configs[self.index % len(configs)]
        return self.config


# --- the driver -------------------------------------------------------------------------------------------------------
class Driver(DriverBase):
    def __init__(self, arch: int, memory: Memory, loader, backwards: bool):
        super().__init__()
        if arch not in MAX_SHARED:
            raise ValueError(f"arch must be one of {list(MAX_SHARED)}, got {arch!r}")
        self.arch = arch
        self.memory = memory
        self.tensors = Tensors(memory)
        self.launches: list[Launch] = []
        self._loader = loader
        self._backwards = backwards
        self._files: dict = {}  # of the compiled kernel that is being loaded
        self._winners: dict[Autotuner, dict] = {}
        self._turns: dict[Autotuner, Turn] = {}
        self._tuner: Autotuner | None = None
        self._measured: Config | None = None

    @property
    def report(self) -> Report:
        """Of all launches."""
        if not self.launches:
            raise RuntimeError("nothing was launched, so there is nothing to report")
        return functools.reduce(operator.add, (launch.report for launch in self.launches))

    @contextlib.contextmanager
    def turn(self, tuner: Autotuner, index: int) -> Iterator[Turn]:
        """All launches of an autotuned kernel take the index-th config, counted again from the first after the last.

        Those that the kernel prunes for its arguments are not counted. What a GPU of that arch has no resources for
        raises OutOfResources.
        """
        if tuner in self._turns:
            raise RuntimeError("the kernel's config is chosen already")
        turn = self._turns[tuner] = Turn(index)
        try:
            yield turn
        finally:
            del self._turns[tuner]
        if turn.config is None:
            raise RuntimeError("the kernel whose config was chosen was not launched")

    def each_config(self, tuner: Autotuner) -> Iterator[Turn]:
        """`for turn in driver.each_config(kernel):` runs the loop's body with one config after the other."""
        index, configs = 0, 1
        while index < configs:
            with self.turn(tuner, index) as turn:
                yield turn
            index, configs = index + 1, turn.configs

    def launch(self, launcher: _Launcher, program: _Program, grid, arguments) -> None:
        metadata = launcher.metadata
        for kind, name, value in arguments:
            value = getattr(value, "base", value) if not isinstance(value, Tensor) else value  # a TensorWrapper's
            if kind[0] == "*" and isinstance(value, Tensor):
                self.tensors.use(value, name)
        block = (WARP * metadata.num_warps, 1, 1)
        encoded = [_encoded(*argument) for argument in arguments]
        report = program.kernel(self._loader).launch(
            grid, block, encoded, shared=metadata.shared, memory=self.memory, backwards=self._backwards
        )
        tuner = self._tuner
        config = self._measured or (tuner.best_config if tuner else None)
        constants = launcher.constants
        self.launches.append(Launch(metadata.name, grid, block, metadata.shared, config, constants, report))

    # What Triton asks of a driver.
    launcher_cls = _Launcher

    @classmethod
    def is_active(cls) -> bool:
        return False  # never by itself

    @property
    def utils(self):
        return self

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.arch, WARP)

    def get_current_device(self) -> int:
        return self.arch  # kernels cache what they compiled by device: no target finds another's

    def set_current_device(self, device) -> None:
        pass

    def get_current_stream(self, device) -> int:
        return 0

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cpu")

    def get_device_capability(self, device=None) -> tuple[int, int]:
        return divmod(self.arch, 10)

    def get_device_properties(self, device) -> dict[str, int]:
        return {
            "max_shared_mem": MAX_SHARED[self.arch],
            "max_num_regs": 65536,
            "multiprocessor_count": MULTIPROCESSORS[self.arch],
            "warpSize": WARP,
        }

    def map_python_to_cpp_type(self, ty: str) -> str:
        return nvidia.driver.ty_to_cpp(ty)

    def get_benchmarker(self):
        return self._benchmark

    def load_binary(self, name: str, binary: bytes, shared: int, device: int):
        """(module, function, registers, spills, most threads), of which Triton passes the function to the launcher."""
        ptx = next(Path(path) for file, path in self._files.items() if file.endswith(".ptx"))
        program = _Program(ptx.read_text(), name, f"{name} for sm_{self.arch}")
        return program, program, 0, 0, 1024

    # What it takes part in.
    def _loads(self, module, function, name, files, key) -> None:
        self._files = files

    def _benchmark(self, call, quantiles=None, **_):
        """Executes a config once. Nothing is measured: the first config wins."""
        call()
        return [1.0] * len(quantiles) if quantiles else 1.0

    def _measure(self, original, tuner: Autotuner, *args, config: Config, **kwargs):
        self._measured = config
        try:
            return original(tuner, *args, config=config, **kwargs)
        finally:
            self._measured = None

    def _tune(self, original, tuner: Autotuner, *args, **kwargs):
        """Autotuner.run with this driver's benchmarker and winners, or with the config whose turn it is."""
        ours = {
            "do_bench": self._benchmark,
            "cache": self._winners.setdefault(tuner, {}),
            "cache_results": False,  # on disk
        }
        if tuner in self._turns:
            tuner.nargs = dict(zip(tuner.arg_names, args))
            ours["configs"] = [self._turns[tuner].take(tuner.prune_configs(kwargs))]
        before = {name: tuner.__dict__[name] for name in ours if name in tuner.__dict__}
        tuner.__dict__.update(ours)
        outer, self._tuner = self._tuner, tuner
        try:
            return original(tuner, *args, **kwargs)
        finally:
            self._tuner = outer
            for name in ours:
                del tuner.__dict__[name]
            tuner.__dict__.update(before)


@contextlib.contextmanager
def active(arch: int = 80, memory: Memory | None = None, loader=load, backwards: bool = False) -> Iterator[Driver]:
    """Within it, Triton's launches go to a GPU of that arch which is not there.

    Args:
        arch: 80, 90, 100 or 120: the target that kernels are compiled for. (PTX of 100 and 120 may hold instructions
            that the executor does not know.)
        memory: to track what is more than tensors; a new one where None.
        loader: see `load`.
        backwards: programs run from the last to the first.
    """
    if triton.knobs.runtime.interpret:
        raise RuntimeError("TRITON_INTERPRET is set: kernels are interpreted, there is nothing to compile")
    driver = Driver(arch, Memory() if memory is None else memory, loader, backwards)
    config = triton.runtime.driver
    run, bench = Autotuner.run, Autotuner._bench
    before = config._active  # config.active would look for a GPU
    hooks = triton.knobs.runtime.kernel_load_start_hook
    with (
        mock.patch.object(Autotuner, "run", lambda tuner, *a, **k: driver._tune(run, tuner, *a, **k)),
        mock.patch.object(Autotuner, "_bench", lambda tuner, *a, **k: driver._measure(bench, tuner, *a, **k)),
        driver.tensors,
    ):
        config.set_active(driver)
        hooks.add(driver._loads)
        try:
            yield driver
        finally:
            hooks.remove(driver._loads)
            config.set_active(before)
