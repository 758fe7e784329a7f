"""Depthwise convolution against torch in both layouts, Inductor and onnxruntime.

`python -m bench --only depthwise_conv2d` times the providers interleaved, which is what the results in git come from;
`pytest bench/bench_depthwise_conv2d.py` gives each to pytest-benchmark on its own.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from pytorch_ext.nn import DepthwiseConv2d

from . import floors, peers
from .measure import Case, Options, checked
from .timing import clock, keep_pages, settled

OP = "depthwise_conv2d"
SHAPES = Path(__file__).parent / "shapes" / f"{OP}.csv"
NUMBERS = ("c", "h", "w", "k", "stride", "dilation", "padding")
ACTIVATIONS = {
    "none": nn.Identity,
    "relu": lambda: nn.ReLU(inplace=True),
    "relu6": lambda: nn.ReLU6(inplace=True),
    "silu": lambda: nn.SiLU(inplace=True),
    "hardswish": lambda: nn.Hardswish(inplace=True),
}
KINKS = {"relu": (0,), "relu6": (0, 6), "hardswish": (-3, 3)}
# Layers whose backward pass belongs to a quick run; a full one has the whole list of peers.
QUICK_BACKWARD = ("dw3x3 s1 144x56", "dw3x3 s2 144x56", "dw5x5 240x28", "dw7x7 384x14", "dw3x3 d2 256x32")


def shapes() -> Iterator[dict]:
    with SHAPES.open(newline="") as file:
        for row in csv.DictReader(file):
            yield {**row, **{name: int(row[name]) for name in NUMBERS}}


class Layer:
    """One layer in every provider's form, with the same numbers in each."""

    def __init__(self, shape: dict, batch: int, direction: str):
        self.shape, self.batch, self.direction = shape, batch, direction
        self.activation = shape["activation"] if direction != "backward" else "none"  # the convolution's own gradients
        c, k = shape["c"], shape["k"]
        generator = torch.Generator().manual_seed(0)
        self.x = torch.randn(batch, c, shape["h"], shape["w"], generator=generator)
        self.weight = torch.randn(c, 1, k, k, generator=generator) * (3 / k)  # sums reach beyond ReLU6's 6
        self.bias = torch.randn(c, generator=generator)
        size = [floors.output_size(shape[s], *(shape[g] for g in ("k", "stride", "dilation", "padding"))) for s in "hw"]
        self.dy = torch.randn(batch, c, *size, generator=generator)
        if direction == "step":
            self._spare_kinks()

    def _conv(self, module: type[nn.Conv2d], **more) -> nn.Conv2d:
        s = self.shape
        conv = module(s["c"], s["c"], s["k"], s["stride"], s["padding"], dilation=s["dilation"], groups=s["c"], **more)
        conv.load_state_dict({"weight": self.weight, "bias": self.bias})
        return conv.train(self.direction != "forward")

    def _spare_kinks(self) -> None:
        """No gradient comes in where the activation bends: there, rounding decides which side's slope is right."""
        z = self._conv(nn.Conv2d).double()(self.x.double()).detach()
        for kink in KINKS.get(self.activation, ()):
            self.dy[(z - kink).abs() < 1e-4] = 0

    def plain(self) -> nn.Sequential:
        """As a user writes it."""
        return nn.Sequential(self._conv(nn.Conv2d), ACTIVATIONS[self.activation]())

    def ours(self) -> nn.Sequential:
        return nn.Sequential(self._conv(DepthwiseConv2d, activation=self.activation))

    def run(self, module: nn.Sequential, channels_last: bool) -> Callable[[], object]:
        """What is timed."""
        layout = torch.channels_last if channels_last else torch.contiguous_format
        module = module.to(memory_format=layout)
        conv = module[0] if self.activation == "none" or len(module) == 1 else module
        x, dy = self.x.clone(memory_format=layout), self.dy.to(self.weight.dtype).clone(memory_format=layout)
        if self.direction == "forward":
            return lambda: conv(x)
        with torch.enable_grad():
            inputs = (x.requires_grad_(), module[0].weight, module[0].bias)
            if self.direction == "step":
                return lambda: torch.autograd.grad(conv(x), inputs, dy)
            y = conv(x)
            return lambda: torch.autograd.grad(y, inputs, dy, retain_graph=True)

    def build(self, options: Options) -> dict:
        providers = {
            "torch": self.run(self.plain(), False),
            "torch_cl": self.run(self.plain(), True),
            "ours": self.run(self.ours(), False),
            "ours_cl": self.run(self.ours(), True),
        }
        if self.direction == "forward":
            providers |= self._engines(options)
        return providers

    def _engines(self, options: Options) -> dict:
        try:
            model = peers.conv_onnx(self._conv(nn.Conv2d), self.activation)
            engines = {
                "ort": peers.Ort(model, self.x, options.threads),
                "ort_kernel": peers.OrtKernel(model, self.x, options.threads),
            }
        except peers.Skipped as reason:
            engines = {"ort": reason, "ort_kernel": reason}
        if options.full:
            last = {"memory_format": torch.channels_last}
            layers = {"inductor": (self.plain(), self.x), "inductor_cl": (self.plain().to(**last), self.x.to(**last))}
            engines |= peers.inductor(layers)
        return engines

    def reference(self) -> tuple[Tensor, ...]:
        """The same in float64, by torch."""
        module = self.plain().double()
        x, dy = self.x.double().requires_grad_(self.direction != "forward"), self.dy.double()
        with torch.set_grad_enabled(self.direction != "forward"):
            y = module(x)
            if self.direction == "forward":
                return (y,)
            return torch.autograd.grad(y, (x, module[0].weight, module[0].bias), dy)


def case(shape: dict, batch: int, direction: str) -> Case:
    def layer() -> Layer:
        return Layer(shape, batch, direction)

    work = floors.depthwise_conv2d(batch, *(shape[name] for name in NUMBERS), direction)
    return Case(
        op=OP,
        set=shape["set"],
        name=shape["name"],
        batch=batch,
        direction=direction,
        work=work if shape["set"] != "overhead" else None,  # nothing to do there: no floor
        build=lambda options: layer().build(options),
        reference=lambda: layer().reference(),
        # A weight's gradient sums batch * oh * ow products, a hundred thousand where a pixel's sums a few.
        tolerances=(1e-5,) if direction == "forward" else (1e-5, 1e-4, 1e-4),
        facts={name: shape[name] for name in (*NUMBERS, "activation")},
    )


def cases(options: Options) -> Iterator[Case]:
    rows = list(shapes())
    for shape in rows:
        yield case(shape, 1, "forward")
    for shape in rows:
        if shape["set"] == "peers" or (options.full and shape["set"] != "overhead"):
            yield case(shape, 8, "forward")
    for direction in ("backward", "step"):
        for shape in rows:
            if direction == "step" and shape["k"] > 15:
                continue  # torch's own step of 31 x 31 at batch 8 takes more memory than a machine of 24 GB has
            if shape["set"] == "peers" and (options.full or shape["name"] in QUICK_BACKWARD):
                yield case(shape, 8, direction)


CASES = {c.id: c for c in cases(Options(full=True))}


@pytest.mark.benchmark(timer=clock)
@pytest.mark.parametrize("provider", ["torch", "torch_cl", "ours", "ours_cl", "ort"])
@pytest.mark.parametrize("name", CASES)
def test_depthwise_conv2d(benchmark, name, provider):
    subject = CASES[name]
    keep_pages()
    if provider == "ort" and subject.direction != "forward":
        pytest.skip("onnxruntime has no gradients")
    good, skipped, wrong = checked(subject, Options())
    if provider in skipped:
        pytest.skip(skipped[provider])
    assert provider not in wrong, wrong[provider]
    benchmark.group = name
    if subject.work:
        benchmark.extra_info.update(flops=subject.work.flops, bytes=subject.work.nbytes)
    with settled(1), subject.mode():
        benchmark(good[provider])
