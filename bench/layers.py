"""A convolution in every provider's form, its cases and its pytest-benchmark: what the scripts of the ops share."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from . import floors, peers
from .measure import Case, Options, checked
from .timing import keep_pages, settled

ACTIVATIONS = {
    "none": nn.Identity,
    "relu": lambda: nn.ReLU(inplace=True),
    "relu6": lambda: nn.ReLU6(inplace=True),
    "silu": lambda: nn.SiLU(inplace=True),
    "hardswish": lambda: nn.Hardswish(inplace=True),
    "sigmoid": nn.Sigmoid,
}
KINKS = {"relu": (0,), "relu6": (0, 6), "hardswish": (-3, 3)}
PROVIDERS = ["torch", "torch_cl", "ours", "ours_cl", "ort"]


def read(op: str, numbers: tuple[str, ...]) -> Iterator[dict]:
    """The rows of shapes/<op>.csv."""
    with (Path(__file__).parent / "shapes" / f"{op}.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            yield {**row, **{name: int(row[name]) for name in numbers}}


class Layer:
    """One layer in every provider's form, with the same numbers in each.

    `shape` has c, h, w and activation, and what may be left out: co, kernel (height, width), stride, dilation, padding
    (vertical, horizontal), groups, shuffle. `module` is this library's.
    """

    def __init__(self, module: type[nn.Conv2d], shape: dict, batch: int, direction: str):
        self.module, self.shape, self.batch, self.direction = module, shape, batch, direction
        self.activation = shape["activation"] if direction != "backward" else "none"  # the convolution's own gradients
        self.kernel, self.padding = shape.get("kernel", (1, 1)), shape.get("padding", (0, 0))
        self.stride, self.dilation = shape.get("stride", 1), shape.get("dilation", 1)
        self.groups, self.shuffle = shape.get("groups", 1), shape.get("shuffle", 1) if direction != "backward" else 1
        self.channels = shape["c"], shape.get("co", shape["c"])
        (c, co), size = self.channels, (shape["h"], shape["w"])
        generator = torch.Generator().manual_seed(0)
        self.x = torch.randn(batch, c, *size, generator=generator)
        products = c // self.groups * self.kernel[0] * self.kernel[1]
        self.weight = torch.randn(co, c // self.groups, *self.kernel, generator=generator)
        self.weight *= 3 / products**0.5  # sums reach beyond ReLU6's 6
        self.bias = torch.randn(co, generator=generator)
        axes = zip(size, self.kernel, self.padding, strict=True)
        size = tuple(floors.output_size(i, k, self.stride, self.dilation, p) for i, k, p in axes)
        self.dy = torch.randn(batch, co, *size, generator=generator)
        if direction == "step":
            self._spare_kinks()

    def work(self) -> floors.Work:
        geometry = self.kernel, self.stride, self.dilation, self.padding, self.groups
        return floors.dense_conv2d(self.batch, *self.channels, tuple(self.x.shape[2:]), *geometry, self.direction)

    def _conv(self, module: type[nn.Conv2d], **more) -> nn.Conv2d:
        geometry = {"dilation": self.dilation, "groups": self.groups, **more}
        conv = module(*self.channels, self.kernel, self.stride, self.padding, **geometry)
        conv.load_state_dict({"weight": self.weight, "bias": self.bias})
        return conv.train(self.direction != "forward")

    def _spare_kinks(self) -> None:
        """No gradient comes in where the activation bends: there, rounding decides which side's slope is right."""
        z = self._conv(nn.Conv2d).double()(self.x.double()).detach()
        for kink in KINKS.get(self.activation, ()):
            self.dy[nn.ChannelShuffle(self.shuffle)((z - kink).abs()) < 1e-4] = 0

    def plain(self) -> nn.Sequential:
        """As a user writes it."""
        after = [ACTIVATIONS[self.activation]()] if self.activation != "none" else []
        after += [nn.ChannelShuffle(self.shuffle)] if self.shuffle > 1 else []
        return nn.Sequential(self._conv(nn.Conv2d), *after)

    def ours(self) -> nn.Sequential:
        shuffle = {"shuffle": self.shuffle} if self.shuffle > 1 else {}
        return nn.Sequential(self._conv(self.module, activation=self.activation, **shuffle))

    def run(self, module: nn.Sequential, channels_last: bool) -> Callable[[], object]:
        """What is timed."""
        layout = torch.channels_last if channels_last else torch.contiguous_format
        module = module.to(memory_format=layout)
        call = module[0] if len(module) == 1 else module
        x, dy = self.x.clone(memory_format=layout), self.dy.to(self.weight.dtype).clone(memory_format=layout)
        if self.direction == "forward":
            return lambda: call(x)
        with torch.enable_grad():
            inputs = (x.requires_grad_(), module[0].weight, module[0].bias)
            if self.direction == "step":
                return lambda: torch.autograd.grad(call(x), inputs, dy)
            y = call(x)
            return lambda: torch.autograd.grad(y, inputs, dy, retain_graph=True)

    def build(self, options: Options) -> dict:
        providers = {
            "torch": self.run(self.plain(), False),
            "torch_cl": self.run(self.plain(), True),
            "ours": self.run(self.ours(), False),
            "ours_cl": self.run(self.ours(), True),
        }
        if self.direction == "forward":
            frozen = self.ours()
            frozen[0].frozen = True  # as engines hold theirs: nobody looks whether somebody has written to it
            providers["ours_frozen"] = self.run(frozen, True)
            providers |= self._engines(options)
        return providers

    def _engines(self, options: Options) -> dict:
        try:
            size = tuple(self.dy.shape[2:])
            model = peers.conv_onnx(self._conv(nn.Conv2d), self.activation, self.shuffle, size)
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


def case(op: str, make: Callable[[], Layer], work: floors.Work, shape: dict, batch: int, direction: str,
         facts: tuple[str, ...], tolerance: float = 1e-5) -> Case:  # fmt: skip
    """`tolerance` is of outputs and inputs' gradients."""
    return Case(
        op=op,
        set=shape["set"],
        name=shape["name"],
        batch=batch,
        direction=direction,
        work=work if shape["set"] != "overhead" else None,  # nothing to do there: no floor
        build=lambda options: make().build(options),
        reference=lambda: make().reference(),
        # A weight's gradient sums batch * oh * ow products, a hundred thousand where a pixel's sums a few.
        tolerances=(tolerance,) if direction == "forward" else (tolerance, 1e-4, 1e-4),
        facts={name: shape[name] for name in (*facts, "activation")},
    )


def run_benchmark(benchmark, subject: Case, provider: str) -> None:
    """One provider of a case, by pytest-benchmark."""
    keep_pages()
    if provider == "ort" and subject.direction != "forward":
        pytest.skip("onnxruntime has no gradients")
    good, skipped, wrong = checked(subject, Options())
    if provider in skipped:
        pytest.skip(skipped[provider])
    assert provider not in wrong, wrong[provider]
    benchmark.group = subject.id
    if subject.work:
        benchmark.extra_info.update(flops=subject.work.flops, bytes=subject.work.nbytes)
    with settled(1), subject.mode():
        benchmark(good[provider])
