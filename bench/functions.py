"""A function of one tensor (activation, shuffle, upsampling) in every provider's form, and its cases."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from . import floors, peers
from .measure import Case, Options

Function = Callable[[Tensor], Tensor]


class Module(nn.Module):
    """A function as the module that peers want."""

    def __init__(self, function: Function):
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def onnx_of(make: Callable[[Any, Any], tuple[list, list]]) -> bytes:
    """A float32 ONNX graph x -> y; `make` gives its nodes and constants from onnx.helper and onnx.numpy_helper."""
    try:
        from onnx import TensorProto, helper, numpy_helper
    except ImportError as error:
        raise peers.Skipped("onnx is not installed (pip install onnx onnxruntime)") from error
    nodes, constants = make(helper, numpy_helper)
    ends = [[helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", "c", "h", "w"])] for name in "xy"]
    graph = helper.make_graph(nodes, "layer", *ends, initializer=constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9).SerializeToString()


@dataclass(frozen=True)
class Layer:
    """One layer in every provider's form, with the same numbers in each."""

    ours: Function
    torchs: Function
    size: tuple[int, ...]  # of x
    direction: str
    onnx: Callable[[Any, Any], tuple[list, list]]

    def numbers(self) -> tuple[Tensor, Tensor]:
        """x and dy."""
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(self.size, generator=generator)
        return x, torch.randn(self.torchs(x).shape, generator=generator)

    def run(self, function: Function, channels_last: bool) -> Callable[[], object]:
        """What is timed."""
        layout = torch.channels_last if channels_last else torch.contiguous_format
        x, dy = (t.clone(memory_format=layout) for t in self.numbers())
        if self.direction == "forward":
            return lambda: function(x)
        with torch.enable_grad():
            y = function(x.requires_grad_())
        return lambda: torch.autograd.grad(y, x, dy, retain_graph=True)

    def build(self, options: Options) -> dict:
        providers: dict = {
            "torch": self.run(self.torchs, False),
            "torch_cl": self.run(self.torchs, True),
            "ours": self.run(self.ours, False),
            "ours_cl": self.run(self.ours, True),
        }
        return providers | (self._engines(options) if self.direction == "forward" else {})

    def _engines(self, options: Options) -> dict:
        x, _ = self.numbers()
        try:
            model = onnx_of(self.onnx)
            engines: dict = {
                "ort": peers.Ort(model, x, options.threads),
                "ort_kernel": peers.OrtKernel(model, x, options.threads),
            }
        except peers.Skipped as reason:
            engines = {"ort": reason, "ort_kernel": reason}
        if options.full:
            last = x.to(memory_format=torch.channels_last)
            engines |= peers.inductor(
                {"inductor": (Module(self.torchs), x), "inductor_cl": (Module(self.torchs), last)}
            )
        return engines

    def reference(self) -> tuple[Tensor, ...]:
        """The same in float64, by torch."""
        x, dy = (t.double() for t in self.numbers())
        with torch.set_grad_enabled(self.direction != "forward"):
            y = self.torchs(x.requires_grad_(self.direction != "forward"))
            return (y,) if self.direction == "forward" else torch.autograd.grad(y, x, dy)


def moved(outputs: Callable[[dict], int]) -> Callable[[dict, int, str], floors.Work]:
    """The work of a row whose images have `outputs` elements of y."""
    return lambda row, batch, _: floors.moved(batch * row["c"] * row["h"] * row["w"], batch * outputs(row))


def cases(op: str, rows: list[dict], options: Options, layer: Callable[[dict, int, str], Layer],
          work: Callable[[dict, int, str], floors.Work], facts: tuple[str, ...]) -> Iterator[Case]:  # fmt: skip
    """`layer` and `work` are of a row, a batch and a direction."""
    for direction in ("forward", "backward"):
        for batch in (1, 8) if options.full else (1,):
            for row in rows:

                def make(row=row, batch=batch, direction=direction) -> Layer:
                    return layer(row, batch, direction)

                yield Case(
                    op=op,
                    set=row["set"],
                    name=row["name"],
                    batch=batch,
                    direction=direction,
                    work=work(row, batch, direction),
                    build=lambda options, make=make: make().build(options),
                    reference=lambda make=make: make().reference(),
                    facts={name: row[name] for name in (*facts, "c", "h", "w", "source")},
                )
