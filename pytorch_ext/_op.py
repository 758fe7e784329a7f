"""How an op enters torch: schema, fake, derivative, vmap, autocast, FLOPs, and which implementation answers where.

Every op family lives in `ops/<family>.py`. A compiled library (`_load.py`) registers itself with the dispatcher; what
is written here are the two others, Triton's `kernels/<family>.py` and the reference, and `use()`, which forces one.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.abc
import importlib.util
import operator
import os
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from . import _load

NAMESPACE = "pytorch_ext"
IMPLEMENTATIONS = ("reference", "cpp", "cuda", "triton")

_library = torch.library.Library(NAMESPACE, "FRAGMENT")


@dataclass(frozen=True)
class Op:
    """One registered operator."""

    name: str  # as in torch.ops.pytorch_ext.<name>
    family: str  # the module of pytorch_ext.ops, and of pytorch_ext.kernels, that holds it
    reference: Callable
    flops: Callable

    def triton(self, *args):
        """Triton's implementation, imported at the first call: importing the library never imports Triton."""
        return getattr(importlib.import_module(f"pytorch_ext.kernels.{self.family}"), self.name)(*args)


OPS: dict[str, Op] = {}


def register(
    schema: str,
    *,
    reference: Callable,
    fake: Callable,
    setup_context: Callable,
    backward: Callable,
    vmap: Callable,
    flops: Callable,
    autocast: bool = False,
):
    """Defines `schema` in torch.ops.pytorch_ext and returns a function that calls it.

    `flops` takes the op's arguments, shapes in place of tensors, and `out_shape`, as register_flop_formula says.
    """
    op = Op(schema.split("(")[0], reference.__module__.rsplit(".", 1)[-1], reference, flops)
    _define(op, schema, fake)
    qualified = f"{NAMESPACE}::{op.name}"
    torch.library.register_autograd(qualified, backward, setup_context=setup_context, lib=_library)
    torch.library.register_vmap(qualified, vmap, lib=_library)
    overload = getattr(getattr(torch.ops, NAMESPACE), op.name).default
    if autocast:
        for device in ("CPU", "CUDA"):
            _library.impl(op.name, _autocast(overload, device), f"Autocast{device}")
    transformable: Any = type(
        op.name,
        (torch.autograd.Function,),
        {
            "forward": staticmethod(lambda *args: overload(*args)),
            "setup_context": staticmethod(setup_context),
            "backward": staticmethod(backward),
            "vmap": staticmethod(vmap),
        },
    )

    def call(*args):
        # What register_autograd makes is refused by torch.func (grad, vjp, jacrev): those get the same derivative
        # as an autograd.Function. Not inside a batching rule that the dispatcher entered, where there is only the op.
        # Forward-mode derivatives are not there: the Function says so, where the op would drop the tangent unsaid.
        if torch.compiler.is_compiling():
            return overload(*args)
        if forward_ad._current_level >= 0 or (
            torch._C._are_functorch_transforms_active()
            and not torch._C._dispatch_tls_is_dispatch_key_included(torch._C.DispatchKey.FuncTorchVmapMode)
        ):
            return transformable.apply(*args)
        if torch.is_grad_enabled() or torch.is_inference_mode_enabled():
            return overload(*args)
        with torch._C._AutoDispatchBelowAutograd():  # what register_autograd would do after 6 us of Python
            return overload(*args)

    return call


def _define(op: Op, schema: str, fake: Callable) -> None:
    _library.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
    _library.impl(op.name, op.reference, "CompositeExplicitAutograd")
    if "cuda" not in _load.libraries and triton_missing() is None and torch.cuda.is_available():
        _library.impl(op.name, op.triton, "CUDA")
    torch.library.register_fake(f"{NAMESPACE}::{op.name}", fake, lib=_library)
    OPS[op.name] = op
    if counter := sys.modules.get(_FLOP_COUNTER):
        _count(op, counter)


def register_out(schema: str, *, reference: Callable, fake: Callable, flops: Callable):
    """Defines an op that writes its last argument, `out`, and has no derivative; returns a function that calls it."""
    op = Op(schema.split("(")[0], reference.__module__.rsplit(".", 1)[-1], reference, flops)
    _define(op, schema, fake)
    return getattr(getattr(torch.ops, NAMESPACE), op.name).default


def register_pack(schema: str):
    """Defines an op that brings a weight into the order that this machine's kernels read, as opaque bytes.

    Only a compiled library has such an order: everywhere else, there is nothing to pack, and no bytes come back.
    """
    name = schema.split("(")[0]
    _library.define(schema)
    _library.impl(name, lambda x, *_: x.new_empty(0, dtype=torch.uint8), "CompositeExplicitAutograd")
    return getattr(getattr(torch.ops, NAMESPACE), name).default


def _autocast(overload, device: str) -> Callable:
    """Casts floating tensors to the region's dtype (register_autocast knows one fixed dtype only)."""
    exclude = torch._C.DispatchKeySet(getattr(torch._C.DispatchKey, f"Autocast{device}"))

    def cast(value, dtype):
        eligible = isinstance(value, Tensor) and value.is_floating_point() and value.dtype != torch.float64
        return value.to(dtype) if eligible else value

    def call(*args):
        dtype = torch.get_autocast_dtype(device.lower())
        with torch._C._ExcludeDispatchKeyGuard(exclude):
            return overload(*[cast(a, dtype) for a in args])

    return call


# --- FLOPs ------------------------------------------------------------------------------------------------------------
_FLOP_COUNTER = "torch.utils.flop_counter"


def _count(op: Op, counter: Any) -> None:
    counter.register_flop_formula(getattr(getattr(torch.ops, NAMESPACE), op.name))(op.flops)


class _OnFlopCounter(importlib.abc.MetaPathFinder):
    """Tells torch's FLOP counter of our ops when somebody imports it: to import it here would be to import Triton."""

    def find_spec(self, name, path, target=None):
        if name != _FLOP_COUNTER:
            return None
        sys.meta_path.remove(self)  # once, and the search that follows must not end here again
        spec: Any = importlib.util.find_spec(name)
        execute = spec.loader.exec_module

        def execute_and_count(module):
            execute(module)
            for op in OPS.values():
                _count(op, module)

        spec.loader.exec_module = execute_and_count
        return spec


if _FLOP_COUNTER not in sys.modules:
    sys.meta_path.insert(0, _OnFlopCounter())


# --- choosing an implementation ---------------------------------------------------------------------------------------
def triton_missing() -> str | None:
    """Why Triton cannot be used, or None."""
    return None if importlib.util.find_spec("triton") else "triton is not installed"


_forced: list[list[str]] = []
_override: torch.library.Library | None = None
_lock = threading.RLock()


def _apply() -> None:
    """Makes the dispatcher hold what the innermost `use` asks for."""
    global _override
    if _override is not None:
        _override._destroy()
        _override = None
    if not _forced or _forced[-1][0] in ("cpp", "cuda"):  # the compiled libraries are what lies underneath
        return
    _override = torch.library.Library(NAMESPACE, "IMPL")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*Overriding a previously registered kernel.*")
        warnings.filterwarnings("ignore", message=".*Warning only once for all operators.*")
        for op in OPS.values():
            for key in ("CPU", "CUDA"):
                _override.impl(op.name, getattr(op, _forced[-1][0]), key, allow_override=True)


@contextlib.contextmanager
def use(implementation: str) -> Iterator[None]:
    """Forces one implementation of every op inside a ``with`` block, in the whole process.

    Args:
        implementation: ``"reference"`` (plain torch), ``"cpp"`` (compiled CPU library), ``"cuda"`` (compiled CUDA
            library) or ``"triton"``.

    Raises:
        ValueError: an unknown name.
        RuntimeError: that implementation is not available here; the text says why.
    """
    if implementation not in IMPLEMENTATIONS:
        raise ValueError(f"implementation must be one of {', '.join(IMPLEMENTATIONS)}, got {implementation!r}")
    reason = unavailable(implementation)
    if reason:
        raise RuntimeError(f"implementation {implementation!r} is not available: {reason}")
    entry = [implementation]  # an object of its own, found again by identity when blocks end in another order
    with _lock:
        _forced.append(entry)
        _apply()
    try:
        yield
    finally:
        with _lock:
            del _forced[next(i for i, other in enumerate(_forced) if other is entry)]
            _apply()


def unavailable(implementation: str) -> str | None:
    """Why an implementation cannot answer on this machine, or None where it can."""
    if implementation == "cpp":
        return None if "cpu" in _load.libraries else _load.reasons["cpu"]
    if implementation == "cuda":
        return no_gpu() if "cuda" in _load.libraries else _load.reasons["cuda"]
    if implementation == "triton":
        return triton_missing() or (None if os.environ.get("TRITON_INTERPRET") == "1" else no_gpu())
    return None


def no_gpu() -> str | None:
    """Why nothing can run on a GPU here, or None where it can."""
    if torch.cuda.is_available():
        return None
    return "no GPU is visible" if torch.backends.cuda.is_built() else f"torch {torch.__version__} is built without CUDA"


# --- arguments that every op takes ------------------------------------------------------------------------------------
def whole(value) -> Any:
    """An int from what stands for one (numpy's, a 0-d tensor's), a SymInt as it is; TypeError for anything else."""
    if type(value) is int or isinstance(value, torch.SymInt):
        return value
    if isinstance(value, bool):
        raise TypeError("a bool is no size")
    return operator.index(value)


def pair(value, name: str) -> tuple[int, int]:
    """(height, width) from a positive int or one or two of them, as torch's convolutions take it."""
    if type(value) is int:
        value = (value, value)
    elif isinstance(value, torch.SymInt):
        return value, value  # type: ignore[return-value]
    elif type(value) is not tuple or len(value) != 2 or type(value[0]) is not int or type(value[1]) is not int:
        try:
            sizes = tuple(whole(v) for v in (value if isinstance(value, (tuple, list)) else (value,)))
        except TypeError:
            raise TypeError(f"{name} must be an int or a pair of ints, got {value!r}") from None
        if len(sizes) not in (1, 2):
            raise ValueError(f"{name} must be an int or a pair of ints, got {value!r}")
        value = sizes * (3 - len(sizes))
    if value[0] < 1 or value[1] < 1:
        raise ValueError(f"{name} must be positive, got {value!r}")
    return value


def memory_format_of(x: Tensor) -> torch.memory_format:
    """channels_last where x's strides are ordered so (torch's rule, in csrc/boundary.h too), else contiguous."""
    return torch._prims_common.suggest_memory_format(x) if x.dim() == 4 else torch.contiguous_format
