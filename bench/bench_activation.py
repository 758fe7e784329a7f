"""Activations on their own against torch in both layouts, Inductor and onnxruntime.

`python -m bench --only activation/` times the providers interleaved, which is what the results in git come from.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch.nn.functional as F
from torch import Tensor

from pytorch_ext import activation

from . import floors, functions
from .layers import PROVIDERS, read, run_benchmark
from .measure import Case, Options
from .timing import clock

OP = "activation"
TORCHS = {"silu": F.silu, "hardswish": F.hardswish}


class Layer(functions.Layer):
    """With x on all pieces of hardswish."""

    def numbers(self) -> tuple[Tensor, Tensor]:
        x, dy = super().numbers()
        x = 3 * x
        dy[((x.abs() - 3).abs() < 1e-4)] = 0  # rounding decides which side of hardswish's kinks is right
        return x, dy


def layer(row: dict, batch: int, direction: str) -> Layer:
    kind = row["kind"]

    def onnx(helper, _):
        nodes = {
            "silu": [helper.make_node("Sigmoid", ["x"], ["gate"]), helper.make_node("Mul", ["x", "gate"], ["y"])],
            "hardswish": [helper.make_node("HardSwish", ["x"], ["y"])],
        }
        return nodes[kind], []

    size = (batch, row["c"], row["h"], row["w"])
    return Layer(lambda x: activation(x, kind), TORCHS[kind], size, direction, onnx)


def work(row: dict, batch: int, direction: str) -> floors.Work:
    return floors.activation(batch * row["c"] * row["h"] * row["w"], direction)


def cases(options: Options) -> Iterator[Case]:
    return functions.cases(OP, list(read(OP, ("c", "h", "w"))), options, layer, work, ("kind",))


CASES = {c.id: c for c in cases(Options(full=True))}


@pytest.mark.benchmark(timer=clock)
@pytest.mark.parametrize("provider", PROVIDERS)
@pytest.mark.parametrize("name", CASES)
def test_activation(benchmark, name, provider):
    run_benchmark(benchmark, CASES[name], provider)
