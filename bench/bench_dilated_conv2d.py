"""Dense convolution, dilated or not, against torch in both layouts, Inductor and onnxruntime.

`python -m bench --only dilated_conv2d` times the providers interleaved, which is what the results in git come from;
`pytest bench/bench_dilated_conv2d.py` gives each to pytest-benchmark on its own.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from pytorch_ext.nn import DilatedConv2d

from . import floors, layers
from .measure import Case, Options
from .timing import clock

OP = "dilated_conv2d"
NUMBERS = ("c", "co", "h", "w", "kh", "kw", "stride", "dilation", "padding", "groups")
# Layers whose backward pass belongs to a quick run; a full one has the peers', the stems and ResNet-50's.
QUICK_BACKWARD = ("stem 3x3 s2 3-32x224", "conv3x3 d2 256-256x32")
LONGEST = 60e9  # operations of a case: DeepLab's at batch 8 would take minutes, and say nothing else


def shapes() -> Iterator[dict]:
    return layers.read(OP, NUMBERS)


def case(shape: dict, batch: int, direction: str) -> Case:
    kernel = shape["kh"], shape["kw"]
    padding = tuple(shape["padding"] if k > 1 else 0 for k in kernel)  # of a 1-D one, only along the line

    def layer() -> layers.Layer:
        return layers.Layer(DilatedConv2d, {**shape, "kernel": kernel, "padding": padding}, batch, direction)

    sizes = shape["c"], shape["co"], (shape["h"], shape["w"])
    geometry = kernel, shape["stride"], shape["dilation"], padding, shape["groups"]
    work = floors.dense_conv2d(batch, *sizes, *geometry, direction)
    # Winograd's sums, and oneDNN's and onnxruntime's own, are off by up to 1e-4 of the largest.
    winograd = kernel == (3, 3) and shape["stride"] == 1
    return layers.case(OP, layer, work, shape, batch, direction, NUMBERS, 1e-4 if winograd else 1e-5)


def cases(options: Options) -> Iterator[Case]:
    rows = [shape for shape in shapes() if options.full or shape["set"] in ("peers", "stems")]
    if not options.full:
        rows = [shape for shape in rows if shape["set"] == "peers" or shape["name"] in QUICK_BACKWARD]
    found = [case(shape, 1, "forward") for shape in rows]
    found += [case(shape, 8, "forward") for shape in rows if options.full]
    for direction in ("backward", "step"):
        for shape in rows:
            if (options.full and shape["set"] in ("peers", "stems", "resnet50")) or shape["name"] in QUICK_BACKWARD:
                found.append(case(shape, 8 if options.full else 1, direction))
    for subject in found:
        if subject.work is not None and subject.work.flops <= LONGEST:
            yield subject


CASES = {c.id: c for c in cases(Options(full=True))}


@pytest.mark.benchmark(timer=clock)
@pytest.mark.parametrize("provider", layers.PROVIDERS)
@pytest.mark.parametrize("name", CASES)
def test_dilated_conv2d(benchmark, name, provider):
    layers.run_benchmark(benchmark, CASES[name], provider)
