"""Channel shuffle against torch in both layouts, Inductor and onnxruntime.

`python -m bench --only channel_shuffle/` times the providers interleaved, which is what the results in git come from.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch.nn.functional as F

from pytorch_ext import channel_shuffle

from . import functions
from .layers import PROVIDERS, read, run_benchmark
from .measure import Case, Options
from .timing import clock

OP = "channel_shuffle"


def layer(row: dict, batch: int, direction: str) -> functions.Layer:
    groups, size = row["groups"], (batch, row["c"], row["h"], row["w"])

    def onnx(helper, numpy_helper):
        apart = numpy_helper.from_array(np.array([batch, groups, -1, *size[2:]]), "apart")
        whole = numpy_helper.from_array(np.array(size), "whole")
        nodes = [
            helper.make_node("Reshape", ["x", "apart"], ["grouped"]),
            helper.make_node("Transpose", ["grouped"], ["turned"], perm=[0, 2, 1, 3, 4]),
            helper.make_node("Reshape", ["turned", "whole"], ["y"]),
        ]
        return nodes, [apart, whole]

    ours, torchs = lambda x: channel_shuffle(x, groups), lambda x: F.channel_shuffle(x, groups)
    return functions.Layer(ours, torchs, size, direction, onnx)


def cases(options: Options) -> Iterator[Case]:
    rows = list(read(OP, ("c", "h", "w", "groups")))
    return functions.cases(
        OP, rows, options, layer, functions.moved(lambda row: row["c"] * row["h"] * row["w"]), ("groups",)
    )


CASES = {c.id: c for c in cases(Options(full=True))}


@pytest.mark.benchmark(timer=clock)
@pytest.mark.parametrize("provider", PROVIDERS)
@pytest.mark.parametrize("name", CASES)
def test_channel_shuffle(benchmark, name, provider):
    run_benchmark(benchmark, CASES[name], provider)
