"""Pointwise convolution, grouped and shuffled too, against torch in both layouts, Inductor and onnxruntime.

`python -m bench --only pointwise_conv2d` times the providers interleaved, which is what the results in git come from;
`pytest bench/bench_pointwise_conv2d.py` gives each to pytest-benchmark on its own.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from pytorch_ext.nn import PointwiseConv2d

from . import floors, layers
from .measure import Case, Options
from .timing import clock

OP = "pointwise_conv2d"
NUMBERS = ("c", "co", "h", "w", "stride", "groups", "shuffle")
# Layers whose backward pass belongs to a quick run; a full one has the whole list of peers.
QUICK_BACKWARD = ("pw 144-24x56", "pw 192-64x28", "pw 576-96x14", "pw 320-1280x7")


def shapes() -> Iterator[dict]:
    return layers.read(OP, NUMBERS)


def case(shape: dict, batch: int, direction: str) -> Case:
    def layer() -> layers.Layer:
        return layers.Layer(PointwiseConv2d, shape, batch, direction)

    sizes = shape["c"], shape["co"], (shape["h"], shape["w"])
    more = {"stride": shape["stride"], "groups": shape["groups"], "direction": direction}
    work = floors.dense_conv2d(batch, *sizes, (1, 1), **more)
    return layers.case(OP, layer, work, shape, batch, direction, NUMBERS)


def cases(options: Options) -> Iterator[Case]:
    rows = [shape for shape in shapes() if options.full or shape["set"] in ("peers", "overhead")]
    for shape in rows:
        yield case(shape, 1, "forward")
    for shape in rows:
        if options.full and shape["set"] != "overhead":
            yield case(shape, 8, "forward")
    for direction in ("backward", "step"):
        for shape in rows:
            if shape["set"] == "peers" and (options.full or shape["name"] in QUICK_BACKWARD):
                yield case(shape, 8, direction)


CASES = {c.id: c for c in cases(Options(full=True))}


@pytest.mark.benchmark(timer=clock)
@pytest.mark.parametrize("provider", layers.PROVIDERS)
@pytest.mark.parametrize("name", CASES)
def test_pointwise_conv2d(benchmark, name, provider):
    layers.run_benchmark(benchmark, CASES[name], provider)
