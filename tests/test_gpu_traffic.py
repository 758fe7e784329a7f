"""How much memory traffic the GPU kernels cause, against the budget that stands above each of them.

`traffic: l2 1.22, loads 1.00, stores 1.00, shared 1.05` says, of a 3 x 3 layer of 64 channels of 64 x 64 pixels:
bytes of the sectors that differ within a block over the bytes that must be moved; sectors of a warp's loads, and of its
stores, over the fewest that hold them; wavefronts of shared memory over the fewest. What is measured is counted, not
timed: it is the same on every machine.
"""

import re
from collections import defaultdict
from pathlib import Path

import ptx_on_cpu
import pytest
import torch
from ptx_on_cpu import cuda

ROOT = Path(__file__).resolve().parent.parent
SLACK = 1.02  # a budget may be this much above what is measured, not more
NEEDED = {"l2", "loads", "stores", "shared"}


def budgets(text: str, kernel: str, comment: str) -> dict[str, dict[str, float]]:
    """The budget in the comment above each kernel; `kernel` matches what begins one, its name in group 1."""
    found = {}
    for match in re.finditer(kernel, text, re.MULTILINE):
        above = []
        for line in reversed(text[: match.start()].splitlines()):
            if not re.match(rf"\s*({comment}|template\b|@)", line):
                break
            above.append(line)
        line = re.search(r"traffic: ([^\n]*)", "\n".join(above))
        found[match[1]] = {n: float(v) for n, v in re.findall(r"(\w+) ([\d.]+)", line[1])} if line else {}
    return found


def cuda_budgets() -> dict[str, dict[str, float]]:
    found = {}
    for path in sorted((ROOT / "csrc/cuda").glob("*.cu*")):
        found |= budgets(path.read_text(), r"^__global__\s+void\s+(?:__launch_bounds__\([^\n]*?\)\s+)?(\w+)\(", "//")
    return found


def triton_budgets() -> dict[str, dict[str, float]]:
    found = {}
    for path in sorted((ROOT / "kernels").glob("*.py")):
        found |= budgets(path.read_text(), r"^def (\w+_kernel)\(", "#")
    return found


def ratios(counts: dict) -> dict[str, float]:
    loads, stores = counts["global_loads"], counts["global_stores"]
    shared = [counts["shared_loads"], counts["shared_stores"]]
    over = lambda a, b: a / b if b else 1.0
    return {
        "l2": over(loads["l2_bytes"] + stores["l2_bytes"], loads["unique_bytes"] + stores["unique_bytes"]),
        "loads": over(loads["sectors"], loads["ideal_sectors"]),
        "stores": over(stores["sectors"], stores["ideal_sectors"]),
        "shared": over(sum(s["wavefronts"] for s in shared), sum(s["ideal_wavefronts"] for s in shared)),
    }


def layer(last: bool, dtype: torch.dtype, stride: int, dilation: int) -> tuple:
    generator = torch.Generator().manual_seed(0)
    form = torch.channels_last if last else torch.contiguous_format
    x = torch.randn(1, 64, 64, 64, generator=generator).to(dtype).contiguous(memory_format=form)
    dy = torch.randn(1, 64, 64 // stride, 64 // stride, generator=generator).to(dtype).contiguous(memory_format=form)
    w = torch.randn(64, 1, 3, 3, generator=generator).to(dtype)
    return x, w, dy, ([stride] * 2, [dilation] * 4, [dilation] * 2)


def run(op, x, w, dy, geometry) -> None:
    """Every pass, through `op(name)`."""
    op("depthwise_conv2d")(x, w, None, *geometry, "none")
    ones = torch.ones(1, x.shape[1], dtype=x.dtype)
    op("depthwise_conv2d_fused")(x, w, None, *geometry, "silu", 0.0, None, ones[0], dy, False, ones)
    op("depthwise_conv2d_backward_input")(dy, w, *x.shape[2:], x.shape[1], *geometry)
    op("depthwise_conv2d_backward_weight")(dy, x, 3, 3, *geometry)


def run_dense(op, x, w, dy, geometry) -> None:
    """The same of dense convolution, 64 channels to 64, and of a pointwise one."""
    stride, *_ = geometry
    w = w.repeat(1, 64, 1, 1)
    rest = ("none", 0.0, None, None, None, False, None)
    op("dilated_conv2d")(x, w, None, *geometry, 1, *rest, "auto", None)
    op("dilated_conv2d_backward_input")(dy, w, *x.shape[2:], *geometry, 1)
    op("dilated_conv2d_backward_weight")(dy, x, 3, 3, *geometry, 1)
    op("pointwise_conv2d")(x, w[..., :1, :1].contiguous(), None, stride, 1, *rest, "none", None, 1, None)


def run_activation(op, x, dy) -> None:
    op("activation")(x, "silu", 0.0, None)
    op("activation_backward")(dy, x, "silu", 0.0, None)
    op("activation_backward")(dy, x, "prelu", 0.0, torch.ones(x.shape[1], dtype=x.dtype))


def run_moves(op, x, dy) -> None:
    """Of planes and of pixels, runs and streams; and upsampling."""
    for groups in (2, 4):
        op("channel_shuffle")(x, groups)
    for r in (2, 4):
        op("pixel_shuffle")(x, r)
        op("pixel_unshuffle")(x, r)
    for mode in ("nearest-exact", "bilinear"):
        op("upsample2d")(x, (96, 96), None, None, mode, False, None)
        op("upsample2d_backward")(x, (32, 32), None, None, mode, False)


# Strides and dilations take other kernels; so do the layouts.
LAYERS = [(last, stride, dilation) for last in (False, True) for stride, dilation in ((1, 1), (2, 1), (1, 2), (2, 2))]


def judge(measured: dict[str, dict[str, float]], budget: dict[str, dict[str, float]]) -> None:
    assert set(measured) == set(budget), "kernels that no layer of this test runs, or that it does not know"
    wrong = []
    for kernel, worst in measured.items():
        line = "traffic: " + ", ".join(f"{name} {worst[name]:.2f}" for name in ("l2", "loads", "stores", "shared"))
        missing = NEEDED - set(budget[kernel])
        over = [n for n in NEEDED - missing if worst[n] > budget[kernel][n] + 0.005]
        loose = [n for n in NEEDED - missing if budget[kernel][n] > worst[n] * SLACK + 0.005]
        if missing or over or loose:
            what = f"has no {missing}" if missing else f"is exceeded in {over}" if over else f"is too wide in {loose}"
            wrong.append(f"{kernel}: the budget {what}; measured `{line}`")
    assert not wrong, "\n".join(wrong)


@pytest.mark.skipif(cuda.unavailable() is not None, reason=str(cuda.unavailable()))
def test_cuda_kernels_keep_their_budgets():
    names = cuda_budgets()
    assert names
    measured: dict[str, dict[str, float]] = defaultdict(lambda: dict.fromkeys(NEEDED, 0.0))
    for last, stride, dilation in LAYERS:
        for dtype in (torch.float32, torch.float16):
            x, w, dy, geometry = layer(last, dtype, stride, dilation)
            with cuda.device(arch=80) as session:
                run(session.op, x, w, dy, geometry)
                if stride == dilation == 1:
                    run_activation(session.op, x, dy)
                    run_moves(session.op, x, dy)
                run_dense(session.op, x, w, dy, geometry)
            session.report.check()
            for launch in session.launches:
                name = next(n for n in names if re.search(rf"(?<!\d){len(n)}{n}I", launch.kernel))
                for key, value in ratios(launch.report.counts).items():
                    measured[name][key] = max(measured[name][key], value)
    judge(measured, names)


def test_triton_kernels_keep_their_budgets():
    """Of an autotuned kernel's configs, that which moves least: a tuner that measures takes none that is much worse."""
    pytest.importorskip("triton", reason="triton is not installed")
    from ptx_on_cpu import triton_driver
    from pytorch_ext.kernels import (
        activation,
        channel_shuffle,
        dilated_conv2d,
        pixel_shuffle,
        pointwise_conv2d,
        upsample2d,
    )  # fmt: skip
    from pytorch_ext.kernels import depthwise_conv2d as kernels

    if kernels.INTERPRETED:
        pytest.skip("TRITON_INTERPRET is set: nothing is compiled")
    names = triton_budgets()
    assert names
    measured: dict[str, dict[str, float]] = defaultdict(lambda: dict.fromkeys(NEEDED, 0.0))

    def note(launches) -> None:
        best = {}
        for launch in launches:
            now = ratios(launch.report.counts)
            if launch.kernel not in best or now["l2"] < best[launch.kernel]["l2"]:
                best[launch.kernel] = now
        for kernel, now in best.items():
            for key, value in now.items():
                measured[kernel][key] = max(measured[kernel][key], value)

    def dense(name):
        return getattr(pointwise_conv2d if name.startswith("pointwise") else dilated_conv2d, name)

    for last, stride, dilation in LAYERS:
        x, w, dy, geometry = layer(last, torch.float32, stride, dilation)
        tuned = (
            (kernels._forward, kernels.depthwise_conv2d, (x, w, None, *geometry, "none")),
            (kernels._backward_input, kernels.depthwise_conv2d_backward_input, (dy, w, 64, 64, 64, *geometry)),
        )
        for tuner, op, args in tuned:
            with triton_driver.active(arch=80) as driver:
                for _ in driver.each_config(tuner):
                    op(*args)
            driver.report.check()
            note(driver.launches)
        with triton_driver.active(arch=80) as driver:
            kernels.depthwise_conv2d_backward_weight(dy, x, 3, 3, *geometry)
        driver.report.check()
        note(driver.launches)
        with (
            triton_driver.active(arch=80) as driver,
            driver.turn(dilated_conv2d._forward, -1),  # the largest of the tiles: float16's, by tensor cores
            driver.turn(dilated_conv2d._backward_input, -1),
        ):
            run_dense(dense, *(t.half() for t in (x, w, dy)), geometry)
        driver.report.check()
        note(driver.launches)
    moves = (channel_shuffle, pixel_shuffle, upsample2d)
    for last in (False, True):
        x, _, dy, _ = layer(last, torch.float32, 1, 1)
        with triton_driver.active(arch=80) as driver:
            run_activation(lambda name: getattr(activation, name), x, dy)
            run_moves(lambda name: next(getattr(m, name) for m in moves if hasattr(m, name)), x, dy)
        driver.report.check()
        note(driver.launches)
    judge(measured, names)


def test_the_ratios_can_be_wrong():
    """A kernel of stride 32 moves eight times what it must, and its budget is missed."""
    ptx = """
.version 7.0
.target sm_80
.address_size 64
.visible .entry strided(.param .u64 x)
{
  .reg .b32 %r<3>;
  .reg .b64 %rd<4>;
  ld.param.u64 %rd1, [x];
  mov.u32 %r1, %tid.x;
  mul.wide.u32 %rd2, %r1, 128;
  add.s64 %rd3, %rd1, %rd2;
  st.global.u32 [%rd3], %r1;
  ret;
}
"""
    report = ptx_on_cpu.Module(ptx)["strided"].launch(1, 32, [torch.zeros(1024, dtype=torch.int32)])
    assert ratios(report.counts) == {"l2": 8.0, "loads": 1.0, "stores": 8.0, "shared": 1.0}
    with pytest.raises(AssertionError, match="exceeded"):
        judge({"strided": ratios(report.counts)}, {"strided": dict.fromkeys(NEEDED, 1.0)})
    with pytest.raises(AssertionError, match="too wide"):
        judge({"strided": ratios(report.counts)}, {"strided": dict.fromkeys(NEEDED, 9.0)})
    with pytest.raises(AssertionError, match="has no"):
        judge({"strided": ratios(report.counts)}, {"strided": {}})
