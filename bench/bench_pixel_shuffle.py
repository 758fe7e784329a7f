"""PixelShuffle against torch in both layouts, Inductor and onnxruntime; its gradient is the inverse.

`python -m bench --only pixel_shuffle/` times the providers interleaved, which is what the results in git come from.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch.nn.functional as F

from pytorch_ext import pixel_shuffle

from . import functions
from .layers import PROVIDERS, read, run_benchmark
from .measure import Case, Options
from .timing import clock

OP = "pixel_shuffle"


def layer(row: dict, batch: int, direction: str) -> functions.Layer:
    r = row["r"]

    def onnx(helper, numpy_helper):
        return [helper.make_node("DepthToSpace", ["x"], ["y"], blocksize=r, mode="CRD")], []

    size = (batch, row["c"], row["h"], row["w"])
    return functions.Layer(lambda x: pixel_shuffle(x, r), lambda x: F.pixel_shuffle(x, r), size, direction, onnx)


def cases(options: Options) -> Iterator[Case]:
    rows = list(read(OP, ("c", "h", "w", "r")))
    return functions.cases(
        OP, rows, options, layer, functions.moved(lambda row: row["c"] * row["h"] * row["w"]), ("r",)
    )


CASES = {c.id: c for c in cases(Options(full=True))}


@pytest.mark.benchmark(timer=clock)
@pytest.mark.parametrize("provider", PROVIDERS)
@pytest.mark.parametrize("name", CASES)
def test_pixel_shuffle(benchmark, name, provider):
    run_benchmark(benchmark, CASES[name], provider)
