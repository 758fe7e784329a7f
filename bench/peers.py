"""Other engines that run the same layer: Inductor and onnxruntime. Each says why where it cannot."""

from __future__ import annotations

import collections
import json
import os
import shutil
import statistics
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn


class Skipped(RuntimeError):
    """This engine does not take part here; the text says why."""


# --- Inductor ---------------------------------------------------------------------------------------------------------
def inductor(layers: Mapping[str, tuple[nn.Module, Tensor]]) -> dict[str, Callable[[], Tensor] | Skipped]:
    """Each (module, input) compiled with frozen weights, its compilation done; what is compiled before is forgotten."""
    compiler = os.environ.get("CXX", "g++")
    if shutil.which(compiler) is None:
        return dict.fromkeys(layers, Skipped(f"Inductor needs a C++ compiler, and {compiler} is not there"))
    import torch._inductor.config as config

    torch._dynamo.reset()
    config.freezing = True
    return {name: _compiled(module, x) for name, (module, x) in layers.items()}


def _compiled(module: nn.Module, x: Tensor) -> Callable[[], Tensor] | Skipped:
    compiled = torch.compile(module, dynamic=False)
    try:
        with torch.inference_mode():
            compiled(x)
    except Exception as error:  # whatever goes wrong in there is a reason to go on without it
        return Skipped(f"Inductor failed: {type(error).__name__}: {str(error).splitlines()[0]}")
    return lambda: compiled(x)


# --- onnxruntime ------------------------------------------------------------------------------------------------------
def conv_onnx(conv: nn.Conv2d, activation: str, shuffle: int = 1, size: tuple[int, ...] = ()) -> bytes:
    """A float32 ONNX graph x -> conv (with bias) -> activation -> channel shuffle, of y's `size` -> y."""
    try:
        import onnx
        from onnx import TensorProto, helper, numpy_helper
    except ImportError as error:
        raise Skipped("onnx is not installed (pip install onnx onnxruntime)") from error

    (ph, pw), out = conv.padding, "y" if shuffle == 1 else "a"
    last = out if activation == "none" else "z"
    attributes = {
        "kernel_shape": conv.kernel_size,
        "strides": conv.stride,
        "dilations": conv.dilation,
        "pads": (ph, pw, ph, pw),
        "group": conv.groups,
    }
    nodes = [helper.make_node("Conv", ["x", "weight", "bias"], [last], **attributes)]
    constants = {"weight": conv.weight.detach().contiguous().numpy(), "bias": conv.bias.detach().numpy()}
    if activation == "relu":
        nodes.append(helper.make_node("Relu", ["z"], [out]))
    elif activation == "relu6":
        zero = constants["bias"].dtype.type
        constants |= {"low": zero(0), "high": zero(6)}
        nodes.append(helper.make_node("Clip", ["z", "low", "high"], [out]))
    elif activation == "silu":
        nodes.append(helper.make_node("Sigmoid", ["z"], ["gate"]))
        nodes.append(helper.make_node("Mul", ["z", "gate"], [out]))
    elif activation == "hardswish":
        nodes.append(helper.make_node("HardSwish", ["z"], [out]))
    elif activation == "sigmoid":
        nodes.append(helper.make_node("Sigmoid", ["z"], [out]))
    if shuffle > 1:
        channels = conv.out_channels
        constants |= {"apart": [0, shuffle, channels // shuffle, -1], "together": [0, channels, *size]}
        nodes.append(helper.make_node("Reshape", ["a", "apart"], ["b"]))
        nodes.append(helper.make_node("Transpose", ["b"], ["c"], perm=(0, 2, 1, 3)))
        nodes.append(helper.make_node("Reshape", ["c", "together"], ["y"]))
    graph = helper.make_graph(
        nodes,
        "layer",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", conv.in_channels, "h", "w"])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", conv.out_channels, "oh", "ow"])],
        [numpy_helper.from_array(_array(value), name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(model)
    return model.SerializeToString()


def _array(value):
    import numpy

    return numpy.asarray(value)


class Ort:
    """One whole call of an onnxruntime session on the CPU, its intra-op threads as many as torch's."""

    def __init__(self, model: bytes, x: Tensor, threads: int, profile: Path | None = None):
        try:
            import onnxruntime
        except ImportError as error:
            raise Skipped("onnxruntime is not installed (pip install onnx onnxruntime)") from error
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        options.log_severity_level = 3
        if profile is not None:
            options.enable_profiling, options.profile_file_prefix = True, str(profile)
        self.session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        self.feed = {"x": x.contiguous().numpy()}

    def __call__(self) -> Tensor:
        return torch.from_numpy(self.session.run(None, self.feed)[0])


class OrtKernel:
    """Only the time inside the convolution's kernel, by onnxruntime's own profiler: no call, no layout conversion.

    The profile is readable only when the session ends: `seconds` returns the whole call, `finish` the kernel's times.
    """

    def __init__(self, model: bytes, x: Tensor, threads: int):
        self.folder = tempfile.TemporaryDirectory(prefix="ort-profile-")
        self.ort = Ort(model, x, threads, Path(self.folder.name) / "profile")
        self.calls: list[int] = []

    def __call__(self) -> Tensor:
        self.calls.append(1)
        return self.ort()

    def seconds(self, calls: int) -> float:
        from .timing import clock

        start = clock()
        for _ in range(calls):
            self.ort()
        self.calls.append(calls)
        return clock() - start

    def finish(self, calls: int, rounds: int) -> list[float]:
        """Seconds of one call in each of the last `rounds` samples of `calls` calls."""
        path = self.ort.session.end_profiling()
        events = json.loads(Path(path).read_text())
        self.folder.cleanup()
        return kernel_seconds(events, self.calls, calls, rounds)


def kernel_seconds(events: list[dict], made: list[int], calls: int, rounds: int) -> list[float]:
    """Means within the samples of `calls` calls (`made` holds warm-ups too); an event lasts whole microseconds."""
    per_name = collections.defaultdict(list)
    for event in events:
        kernel = event.get("cat") == "Node" and event["name"].endswith("_kernel_time")
        if kernel and "Reorder" not in event["args"]["op_name"]:
            per_name[event["name"]].append(event["dur"] * 1e-6)
    totals = [sum(parts) for parts in zip(*per_name.values(), strict=True)]
    if len(totals) != sum(made):
        raise Skipped(f"onnxruntime's profile holds {len(totals)} of {sum(made)} calls")
    samples, at = [], 0
    for count in made:
        samples.append((count, statistics.fmean(totals[at : at + count])))
        at += count
    return [mean for count, mean in samples if count == calls][-rounds:]
