"""Depthwise convolution against torch in both layouts, Inductor and onnxruntime.

`python -m bench --only depthwise_conv2d` times the providers interleaved, which is what the results in git come from;
`pytest bench/bench_depthwise_conv2d.py` gives each to pytest-benchmark on its own.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from pytorch_ext.nn import DepthwiseConv2d

from . import floors, layers
from .layers import ACTIVATIONS as ACTIVATIONS
from .measure import Case, Options
from .timing import clock

OP = "depthwise_conv2d"
NUMBERS = ("c", "h", "w", "k", "stride", "dilation", "padding")
# Layers whose backward pass belongs to a quick run; a full one has the whole list of peers.
QUICK_BACKWARD = ("dw3x3 s1 144x56", "dw3x3 s2 144x56", "dw5x5 240x28", "dw7x7 384x14", "dw3x3 d2 256x32")


def shapes() -> Iterator[dict]:
    return layers.read(OP, NUMBERS)


def case(shape: dict, batch: int, direction: str) -> Case:
    def layer() -> layers.Layer:
        square = {"kernel": (shape["k"],) * 2, "padding": (shape["padding"],) * 2, "groups": shape["c"]}
        return layers.Layer(DepthwiseConv2d, {**shape, **square}, batch, direction)

    work = floors.depthwise_conv2d(batch, *(shape[name] for name in NUMBERS), direction)
    return layers.case(OP, layer, work, shape, batch, direction, NUMBERS)


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
@pytest.mark.parametrize("provider", layers.PROVIDERS)
@pytest.mark.parametrize("name", CASES)
def test_depthwise_conv2d(benchmark, name, provider):
    layers.run_benchmark(benchmark, CASES[name], provider)
