"""Activations on their own against torch in both layouts, Inductor and onnxruntime.

`python -m bench --only activation/` times the providers interleaved, which is what the results in git come from.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pytorch_ext import activation

from . import floors, peers
from .measure import Case, Options, checked
from .timing import clock, keep_pages, settled

OP = "activation"
SHAPES = Path(__file__).parent / "shapes" / f"{OP}.csv"
TORCHS = {"silu": F.silu, "hardswish": F.hardswish}


def shapes() -> Iterator[dict]:
    with SHAPES.open(newline="") as file:
        for row in csv.DictReader(file):
            yield {**row, **{name: int(row[name]) for name in "chw"}}


class Function(nn.Module):
    """A function as the module that peers want."""

    def __init__(self, kind: str):
        super().__init__()
        self.kind = kind

    def forward(self, x: Tensor) -> Tensor:
        return TORCHS[self.kind](x)


def onnx_of(kind: str) -> bytes:
    """A float32 ONNX graph x -> y."""
    try:
        from onnx import TensorProto, helper
    except ImportError as error:
        raise peers.Skipped("onnx is not installed (pip install onnx onnxruntime)") from error
    nodes = {
        "silu": [helper.make_node("Sigmoid", ["x"], ["gate"]), helper.make_node("Mul", ["x", "gate"], ["y"])],
        "hardswish": [helper.make_node("HardSwish", ["x"], ["y"])],
    }
    ends = [[helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", "c", "h", "w"])] for name in "xy"]
    graph = helper.make_graph(nodes[kind], "layer", *ends)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9).SerializeToString()


class Layer:
    """One layer in every provider's form, with the same numbers in each."""

    def __init__(self, shape: dict, batch: int, direction: str):
        self.kind, self.direction = shape["kind"], direction
        generator = torch.Generator().manual_seed(0)
        size = (batch, shape["c"], shape["h"], shape["w"])
        self.x = 3 * torch.randn(size, generator=generator)
        self.dy = torch.randn(size, generator=generator)
        self.dy[((self.x.abs() - 3).abs() < 1e-4)] = 0  # rounding decides which side of hardswish's kinks is right

    def run(self, function: Callable[[Tensor], Tensor], channels_last: bool) -> Callable[[], object]:
        """What is timed."""
        layout = torch.channels_last if channels_last else torch.contiguous_format
        x, dy = self.x.clone(memory_format=layout), self.dy.clone(memory_format=layout)
        if self.direction == "forward":
            return lambda: function(x)
        with torch.enable_grad():
            y = function(x.requires_grad_())
        return lambda: torch.autograd.grad(y, x, dy, retain_graph=True)

    def build(self, options: Options) -> dict:
        torchs, ours = TORCHS[self.kind], lambda x: activation(x, self.kind)
        providers: dict = {
            "torch": self.run(torchs, False),
            "torch_cl": self.run(torchs, True),
            "ours": self.run(ours, False),
            "ours_cl": self.run(ours, True),
        }
        if self.direction == "forward":
            providers |= self._engines(options)
        return providers

    def _engines(self, options: Options) -> dict:
        try:
            model = onnx_of(self.kind)
            engines: dict = {
                "ort": peers.Ort(model, self.x, options.threads),
                "ort_kernel": peers.OrtKernel(model, self.x, options.threads),
            }
        except peers.Skipped as reason:
            engines = {"ort": reason, "ort_kernel": reason}
        if options.full:
            x = self.x.to(memory_format=torch.channels_last)
            engines |= peers.inductor(
                {"inductor": (Function(self.kind), self.x), "inductor_cl": (Function(self.kind), x)}
            )
        return engines

    def reference(self) -> tuple[Tensor, ...]:
        """The same in float64, by torch."""
        x = self.x.double().requires_grad_(self.direction != "forward")
        with torch.set_grad_enabled(self.direction != "forward"):
            y = TORCHS[self.kind](x)
            return (y,) if self.direction == "forward" else torch.autograd.grad(y, x, self.dy.double())


def case(shape: dict, batch: int, direction: str) -> Case:
    def layer() -> Layer:
        return Layer(shape, batch, direction)

    return Case(
        op=OP,
        set=shape["set"],
        name=shape["name"],
        batch=batch,
        direction=direction,
        work=floors.activation(batch * shape["c"] * shape["h"] * shape["w"], direction),
        build=lambda options: layer().build(options),
        reference=lambda: layer().reference(),
        facts={key: shape[key] for key in ("kind", "c", "h", "w", "source")},
    )


def cases(options: Options) -> Iterator[Case]:
    for direction in ("forward", "backward"):
        for batch in (1, 8) if options.full else (1,):
            for shape in shapes():
                yield case(shape, batch, direction)


CASES = {c.id: c for c in cases(Options(full=True))}


@pytest.mark.benchmark(timer=clock)
@pytest.mark.parametrize("provider", ["torch", "torch_cl", "ours", "ours_cl", "ort"])
@pytest.mark.parametrize("name", CASES)
def test_activation(benchmark, name, provider):
    subject = CASES[name]
    keep_pages()
    if provider == "ort" and subject.direction != "forward":
        pytest.skip("onnxruntime has no gradients")
    good, skipped, wrong = checked(subject, Options())
    if provider in skipped:
        pytest.skip(skipped[provider])
    assert provider not in wrong, wrong[provider]
    benchmark.group = name
    benchmark.extra_info.update(bytes=subject.work.nbytes)
    with settled(1), subject.mode():
        benchmark(good[provider])
