"""Upsampling against torch in both layouts, Inductor and onnxruntime.

`python -m bench --only upsample2d/` times the providers interleaved, which is what the results in git come from.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch.nn.functional as F

from pytorch_ext import upsample2d

from . import functions
from .layers import PROVIDERS, read, run_benchmark
from .measure import Case, Options
from .timing import clock

OP = "upsample2d"


def layer(row: dict, batch: int, direction: str) -> functions.Layer:
    size, out, mode = (batch, row["c"], row["h"], row["w"]), (row["oh"], row["ow"]), row["mode"]

    def onnx(helper, numpy_helper):
        how = {"mode": "linear", "coordinate_transformation_mode": "half_pixel"}
        if mode == "nearest":
            how = {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
        sizes = numpy_helper.from_array(np.array([*size[:2], *out]), "sizes")
        return [helper.make_node("Resize", ["x", "", "", "sizes"], ["y"], **how)], [sizes]

    ours, torchs = lambda x: upsample2d(x, out, mode=mode), lambda x: F.interpolate(x, out, mode=mode)
    return functions.Layer(ours, torchs, size, direction, onnx)


def cases(options: Options) -> Iterator[Case]:
    rows = list(read(OP, ("c", "h", "w", "oh", "ow")))
    return functions.cases(
        OP, rows, options, layer, functions.moved(lambda row: row["c"] * row["oh"] * row["ow"]), ("mode", "oh", "ow")
    )


CASES = {c.id: c for c in cases(Options(full=True))}


@pytest.mark.benchmark(timer=clock)
@pytest.mark.parametrize("provider", PROVIDERS)
@pytest.mark.parametrize("name", CASES)
def test_upsample2d(benchmark, name, provider):
    run_benchmark(benchmark, CASES[name], provider)
