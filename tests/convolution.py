"""What the tests of every convolution share: geometry, tensors in every layout, and where memory ends."""

from __future__ import annotations

import ctypes
import itertools
import mmap
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import pytorch_ext
from pytorch_ext import _load

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
compiled = pytest.mark.skipif("cpu" not in _load.libraries, reason=f"compiled CPU library {_load.reasons.get('cpu')}")


@dataclass(frozen=True)
class Geometry:
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int, int, int] = (0, 0, 0, 0)  # top, bottom, left, right
    dilation: tuple[int, int] = (1, 1)

    def __iter__(self):
        return iter((self.stride, self.padding, self.dilation))

    def output(self, ih, iw, kh, kw):
        (sh, sw), (t, b, left, r), (dh, dw) = self
        return (ih + t + b - dh * (kh - 1) - 1) // sh + 1, (iw + left + r - dw * (kw - 1) - 1) // sw + 1

    def taps(self, xp: Tensor, kh, kw, oh, ow):
        """(u, v, the part of the padded input that tap (u, v) reads)."""
        (sh, sw), _, (dh, dw) = self
        for u, v in itertools.product(range(kh), range(kw)):
            yield u, v, xp[:, :, u * dh : u * dh + (oh - 1) * sh + 1 : sh, v * dw : v * dw + (ow - 1) * sw + 1 : sw]


def pad(x: Tensor, padding) -> Tensor:
    top, bottom, left, right = padding
    return F.pad(x, (left, right, top, bottom))


def lay(shape, dtype: torch.dtype, layout: str) -> Tensor:
    """Random numbers of that shape, stored as the layout says."""
    n, c, h, w = shape
    if layout == "channels_last":
        return torch.randn(n, h, w, c).to(dtype).permute(0, 3, 1, 2)
    if layout == "sliced":  # no dense dimension, storage offset
        return torch.randn(n + 1, 2 * c + 1, h + 2, 3 * w).to(dtype)[1:, 1::2, 1:-1, 1::3]
    if layout == "channels_last_sliced":  # channels dense, rows padded, as a slice of a channels_last image
        return torch.randn(n, h + 1, w + 2, c + 3).to(dtype)[:, 1:, 1:-1, 2:-1].permute(0, 3, 1, 2)
    if layout == "transposed":
        return torch.randn(n, c, w, h).to(dtype).transpose(2, 3)
    if layout == "reversed":  # n is the fastest dimension
        return torch.randn(w, h, c, n).to(dtype).permute(3, 2, 1, 0)
    if layout == "expanded":  # stride 0 in n, and in h
        return torch.randn(1, c, 1, w).to(dtype).expand(n, c, h, w)
    if layout == "expanded_channels":
        return torch.randn(n, 1, h, w).to(dtype).expand(n, c, h, w)
    assert layout == "contiguous"
    return torch.randn(shape).to(dtype)


LAYOUTS = (
    "contiguous", "channels_last", "sliced", "channels_last_sliced", "transposed", "reversed", "expanded",
    "expanded_channels",
)  # fmt: skip


def assert_format(y: Tensor, x: Tensor) -> None:
    """y is dense in the memory format of x; torch's rule, as its own upsampling applies it."""
    if x.numel() and F.interpolate(x.detach(), size=(2, 2)).stride(1) == 1:
        assert y.is_contiguous(memory_format=torch.channels_last), (x.stride(), y.stride())
    else:
        assert y.is_contiguous(), (x.stride(), y.stride())


def at_an_end(t: Tensor, first: bool) -> Tensor:
    """A copy that begins, or ends, where memory does: the page before it, and that after it, cannot be read."""
    page, used = mmap.PAGESIZE, -(-t.numel() * t.element_size() // mmap.PAGESIZE) * mmap.PAGESIZE
    memory = mmap.mmap(-1, used + 2 * page)
    start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    for guard in (start, start + page + used):
        assert ctypes.CDLL(None).mprotect(ctypes.c_void_p(guard), ctypes.c_size_t(page), 0) == 0
    offset = page if first else page + used - t.numel() * t.element_size()
    return torch.frombuffer(memory, dtype=t.dtype, count=t.numel(), offset=offset).view(t.shape).copy_(t)


def assert_names(error: BaseException, words) -> None:
    for word in words:
        assert word in str(error), f"{word!r} is not in: {error}"


# --- every instruction set, and which implementation answers ----------------------------------------------------------
OWN = torch.backends.cpu.get_cpu_capability().lower()


def assert_library_is_of(capability: str) -> None:
    """In a process of `on_capability`: torch has it, and so has our library."""
    assert OWN.startswith(capability), OWN
    isa = {"default": "base", "avx2": "avx2", "avx512": "avx512"}.get(capability, "base")
    if (_load.FOLDER / f"_cpu_{isa}.so").exists():
        assert _load.libraries["cpu"].name == f"_cpu_{isa}.so"


def needs_capability(capability: str) -> None:
    """Skips where this machine lacks the instruction set that ATEN_CPU_CAPABILITY calls so."""
    if {"default": "base"}.get(capability, capability) not in _load.instruction_sets():
        pytest.skip(f"this machine has no {capability}")


def on_capability(module: str, capability: str | None, expected: str) -> str:
    """What `representative(expected)` of a test module prints in a process whose torch is told of `capability`."""
    environment = {name: value for name, value in os.environ.items() if name != "ATEN_CPU_CAPABILITY"}
    if capability is not None:
        environment["ATEN_CPU_CAPABILITY"] = capability
    paths = [str(Path(__file__).parent), str(Path(pytorch_ext.__file__).parent.parent)]
    environment["PYTHONPATH"] = os.pathsep.join([*paths, environment.get("PYTHONPATH", "")])
    code = (
        f"import {module} as t, conftest, torch; conftest.poison(True); torch.manual_seed(0); "
        f"torch.set_num_threads(1); t.representative({expected!r})"
    )
    run = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stdout + run.stderr
    return run.stdout


def assert_op_answers(name: str, call) -> None:
    """It is not the reference that a call runs: the reference's convolution would show."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU]) as trace:
        call()
    names = {event.name for event in trace.events()}
    assert f"pytorch_ext::{name}" in names
    assert not any("convolution" in event for event in names), names
