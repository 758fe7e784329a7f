"""Triton kernels executed without a GPU: the driver itself, and the library's kernels, as PTX for sm_80 and sm_90.

Values against float64 under bounds.py, for every autotune config, dtype and layout; nothing out of bounds, no race, no
read of memory that nobody wrote.
"""

from functools import cached_property
from unittest import mock

import pytest
import torch
from bounds import assert_exact, assert_linear, assert_nonlinear
from torch import Tensor

triton = pytest.importorskip("triton", reason="triton is not installed")
import dense  # noqa: E402
import ptx_on_cpu  # noqa: E402
import triton.language as tl  # noqa: E402
from ptx_on_cpu import triton_driver  # noqa: E402
from pytorch_ext.kernels import depthwise_conv2d as kernels  # noqa: E402
from test_depthwise_conv2d import (  # noqa: E402
    ACTIVATIONS,
    LIPSCHITZ,
    Geometry,
    assert_format,
    backward_input64,
    backward_weight64,
    forward64,
    lay,
)
from test_depthwise_conv2d_fused import MANY  # noqa: E402
from triton.runtime.errors import OutOfResources  # noqa: E402
from triton.tools.tensor_descriptor import TensorDescriptor  # noqa: E402

pytestmark = pytest.mark.skipif(kernels.INTERPRETED, reason="TRITON_INTERPRET is set: nothing is compiled")
TARGETS = pytest.mark.parametrize("arch", [80, 90], ids=lambda arch: f"sm_{arch}")
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64], ids=str)


@pytest.fixture(params=[80, 90], ids=lambda arch: f"sm_{arch}")
def driver(request):
    with triton_driver.active(request.param) as driver:
        yield driver


def kinds(driver) -> set[str]:
    return {finding.kind for finding in driver.report.findings}


# --- kernels of these tests -------------------------------------------------------------------------------------------
@triton.jit
def twice_kernel(x, y, n, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(y + i, tl.load(x + i, i < n) * 2, i < n)


@triton.jit
def twice_unmasked_kernel(x, y, n, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(y + i, tl.load(x + i, i < n) * 2)


@triton.jit
def reads_unmasked_kernel(x, y, n, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(y + i, tl.load(x + i) * 2, i < n)


@triton.jit
def sum_kernel(x, total, n, BLOCK: tl.constexpr, ATOMIC: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    part = tl.sum(tl.load(x + i, i < n, 0), 0)
    if ATOMIC:
        tl.atomic_add(total, part)
    else:
        tl.store(total, tl.load(total) + part)


@triton.jit
def scalars_kernel(
    y, flag, small, wide, huge, one, nothing, pair,
    half: tl.float16, brain: tl.bfloat16, double: tl.float64, real, WORD: tl.constexpr,
):  # fmt: skip
    tl.store(y, flag.to(tl.float64))
    tl.store(y + 1, small.to(tl.float64))
    tl.store(y + 2, wide.to(tl.float64))
    tl.store(y + 3, huge.to(tl.float64))
    tl.store(y + 4, one * 1.0)
    if nothing is not None:
        tl.store(y + 5, tl.load(nothing))
    tl.store(y + 6, tl.load(pair[0]).to(tl.float64))
    tl.store(y + 7, pair[1].to(tl.float64))
    tl.store(y + 8, half.to(tl.float64))
    tl.store(y + 9, brain.to(tl.float64))
    tl.store(y + 10, double)
    tl.store(y + 11, real.to(tl.float64))
    tl.store(y + 12, WORD * 1.0)


@triton.jit
def matmul_kernel(
    a, b, c, m, n, k, M: tl.constexpr, N: tl.constexpr, K: tl.constexpr, PRECISION: tl.constexpr
):  # fmt: skip
    i = tl.program_id(0) * M + tl.arange(0, M)[:, None]
    j = tl.program_id(1) * N + tl.arange(0, N)[None]
    total = tl.zeros([M, N], tl.float32)
    for first in range(0, k, K):
        rows, columns = first + tl.arange(0, K)[:, None], first + tl.arange(0, K)[None]
        left = tl.load(a + i * k + columns, (i < m) & (columns < k), 0)
        right = tl.load(b + rows * n + j, (rows < k) & (j < n), 0)
        total = tl.dot(left, right, total, input_precision=PRECISION)
    tl.store(c + i * n + j, total, (i < m) & (j < n))


@triton.jit
def rows_kernel(x, softmax, first, running, columns_sum, n, c, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    i = tl.program_id(0) * ROWS + tl.arange(0, ROWS)[:, None]
    j = tl.arange(0, COLUMNS)[None]
    inside = (i < n) & (j < c)
    value = tl.load(x + i * c + j, inside, -float("inf")).to(tl.float32)
    power = tl.exp(value - tl.max(value, 1)[:, None])
    tl.store(softmax + i * c + j, (power / tl.sum(power, 1)[:, None]).to(softmax.dtype.element_ty), inside)
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    tl.store(first + row, tl.argmax(value, 1), row < n)
    finite = tl.where(inside, value, 0.0)
    tl.store(running + i * c + j, tl.cumsum(finite, 1), inside)
    column = tl.arange(0, COLUMNS)
    tl.atomic_add(columns_sum + column, tl.sum(finite, 0), column < c)


@triton.jit
def descriptor_kernel(source, y, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    tile = source.load([0, 0])
    i, j = tl.arange(0, ROWS)[:, None], tl.arange(0, COLUMNS)[None]
    tl.store(y + i * COLUMNS + j, tile * 2)


CONFIGS = [triton.Config({"BLOCK": block}, num_warps=warps) for block, warps in ((32, 1), (64, 2), (128, 4), (256, 8))]


def tuned(kernel, **how):
    return triton.autotune(CONFIGS, ["n"], **how)(kernel)


# --- the driver -------------------------------------------------------------------------------------------------------
def test_the_driver_before_is_back_afterwards():
    config = triton.runtime.driver
    run, hooks, before = triton.runtime.autotuner.Autotuner.run, list(config_hooks()), config._active
    with triton_driver.active(80) as outer:
        assert config.active is outer
        with pytest.raises(KeyError), triton_driver.active(90) as inner:
            assert config.active is inner
            raise KeyError
        assert config.active is outer
        assert outer.get_current_target().arch == 80
    assert config._active is before
    assert triton.runtime.autotuner.Autotuner.run is run
    assert config_hooks() == hooks
    assert not torch.utils._python_dispatch._get_current_dispatch_mode_stack()


def config_hooks():
    return triton.knobs.runtime.kernel_load_start_hook.calls


def test_bad_targets_are_refused(monkeypatch):
    with pytest.raises(ValueError, match=r"arch must be one of \[80, 90, 100, 120\], got 75"), triton_driver.active(75):
        pass
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    with pytest.raises(RuntimeError, match="TRITON_INTERPRET"), triton_driver.active(80):
        pass


def test_shared_memory_is_what_the_executor_grants():
    for arch, most in ptx_on_cpu.MAX_SHARED.items():
        with triton_driver.active(arch) as driver:
            assert driver.get_device_properties(0)["max_shared_mem"] == most


def test_a_launch(driver):
    x, y = torch.randn(1000), torch.empty(1000)
    assert y.isnan().all()
    kernel = twice_kernel[lambda meta: (triton.cdiv(1000, meta["BLOCK"]),)](x, y, 1000, BLOCK=256, num_warps=8)
    assert_exact(y, 2 * x)
    driver.report.check()
    (launch,) = driver.launches
    assert (launch.kernel, launch.grid, launch.block) == ("twice_kernel", (4, 1, 1), (256, 1, 1))
    assert launch.shared == kernel.metadata.shared == 0
    assert launch.config is None
    assert launch.constants == {"BLOCK": 256}
    assert launch.report.counts["blocks"] == 4
    kernel[(4, 1, 1)](y, x, 1000, 256)  # a compiled kernel, launched by itself
    assert_exact(x, 2 * y)
    assert driver.report.counts["blocks"] == 8
    driver.report.check()


def test_every_kind_of_argument(driver):
    y, x = torch.empty(13, dtype=torch.float64), torch.tensor([2.5])
    scalars_kernel[(1,)](
        y, True, -7, -(2**40), 2**63 + 2**62, 1, None, (x, -3), 1.0009765625, 1.01171875, 1e300, 0.1, 42
    )
    expected = [1, -7, -(2.0**40), 2.0**63 + 2.0**62, 1, 2.5, -3, 1.0009765625, 1.0078125, 1e300, 0.1, 42]
    expected[10] = torch.tensor(0.1).double().item()
    assert y[5].isnan()  # None: not written
    assert y[[*range(5), *range(6, 13)]].tolist() == expected
    driver.report.check()
    assert driver.launches[0].constants == {"one": 1, "nothing": None, "WORD": 42}


def test_an_argument_of_one_is_a_constant(driver):
    x, y = torch.randn(1), torch.empty(1)
    twice_kernel[(1,)](x, y, 1, BLOCK=32)
    assert_exact(y, 2 * x)
    driver.report.check()
    assert driver.launches[0].constants == {"n": 1, "BLOCK": 32}


def test_a_kernel_is_loaded_once():
    loads = []

    def loader(ptx, name, source):
        loads.append(name)
        return triton_driver.load(ptx, name, source)

    x, y = torch.randn(100), torch.empty(100)
    for arch in (80, 80, 90):
        with triton_driver.active(arch, loader=loader):
            for _ in range(2):
                twice_kernel[(1,)](x, y, 100, BLOCK=128)
            assert_exact(y, 2 * x)
    assert loads == ["twice_kernel"] * 2  # one for each target


def test_a_grid_of_nothing_is_no_launch_and_too_large_a_one_is_refused(driver):
    x, y = torch.randn(32), torch.empty(32)
    twice_kernel[(0,)](x, y, 32, BLOCK=32)
    assert not driver.launches
    with pytest.raises(RuntimeError, match="nothing was launched"):
        driver.report  # noqa: B018
    with pytest.raises(ValueError, match=r"grid must not exceed .* got .1, 65536, 1."):
        twice_kernel[(1, 65536)](x, y, 32, BLOCK=32)


def test_a_tensor_elsewhere_is_refused(driver):
    x = torch.empty(32, device="meta")
    with pytest.raises(ValueError, match="x is on meta"):
        twice_kernel[(1,)](x, torch.empty(32), 32, BLOCK=32)


def test_hooks_of_launches_are_called(driver):
    calls = []
    hooks = triton.knobs.runtime.launch_enter_hook
    hook = lambda metadata: calls.append(metadata.get()["name"])
    hooks.add(hook)
    try:
        twice_kernel[(1,)](torch.randn(32), torch.empty(32), 32, BLOCK=32)
    finally:
        hooks.remove(hook)
    assert calls == ["twice_kernel"]


def test_what_is_not_executed_says_so():
    x, y = torch.randn(16, 32), torch.empty(16, 32)
    with triton_driver.active(90):
        with pytest.raises(NotImplementedError, match=r"twice_kernel needs clusters of blocks"):
            twice_kernel[(1,)](x, y, 512, BLOCK=512, num_ctas=2)
        with pytest.raises(NotImplementedError, match=r"descriptor_kernel needs TMA descriptors"):
            descriptor_kernel[(1,)](TensorDescriptor.from_tensor(x, [16, 32]), y, ROWS=16, COLUMNS=32)
    with triton_driver.active(80) as driver:  # where a descriptor is a pointer and sizes
        descriptor_kernel[(1,)](TensorDescriptor.from_tensor(x, [16, 32]), y, ROWS=16, COLUMNS=32)
        assert_exact(y, 2 * x)
        driver.report.check()


@pytest.mark.parametrize(("arch", "limit"), [(80, 166912), (120, 101376)])
def test_shared_memory_beyond_the_targets_is_out_of_resources(arch, limit):
    a = torch.randn(512, 512).half()
    fitting = triton.Config({"M": 32, "N": 32, "K": 32})
    large = triton.Config({"M": 128, "N": 128, "K": 64}, num_stages=8)
    kernel = triton.autotune([large, fitting], ["m"])(matmul_kernel)
    with triton_driver.active(arch) as driver:
        arguments = (a, a, torch.empty(512, 512), 512, 512, 512)
        with pytest.raises(OutOfResources, match=rf"shared memory, Required: \d+, Hardware limit: {limit}"):
            matmul_kernel[(1, 1)](*arguments, M=128, N=128, K=64, PRECISION="tf32", num_stages=8)
        assert not driver.launches
        kernel[(1, 1)](*arguments, PRECISION="tf32")
        assert kernel.best_config is fitting
        assert [launch.config for launch in driver.launches] == [fitting] * 2
        assert driver.launches[0].shared > 0


# --- memory -----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("kernel", [twice_unmasked_kernel, reads_unmasked_kernel], ids=lambda kernel: kernel.__name__)
def test_a_missing_mask_is_found(driver, kernel):
    x, y = torch.randn(100), torch.empty(100)
    kernel[(1,)](x, y, 100, BLOCK=128)
    assert kinds(driver) == {"out-of-bounds"}
    name = "y" if kernel is twice_unmasked_kernel else "x"
    with pytest.raises(AssertionError, match=rf"out-of-bounds: {kernel.__name__}, block .* end of {name}\b"):
        driver.report.check()


def test_reading_beside_a_view_is_found(driver):
    """Though the memory there belongs to the same tensor."""
    x, y = torch.randn(2, 100), torch.empty(128)
    reads_unmasked_kernel[(1,)](x[0], y, 100, BLOCK=128)
    assert kinds(driver) == {"out-of-bounds"}


def test_reading_what_nobody_wrote_is_found(driver):
    x, y, z = torch.empty(128), torch.empty(128), torch.empty(128)
    twice_kernel[(1,)](x, y, 100, BLOCK=128)
    assert kinds(driver) == {"uninitialised"}
    del driver.launches[:]
    x.fill_(1)  # torch's writes count, those of kernels too
    twice_kernel[(1,)](x, y, 100, BLOCK=128)
    twice_kernel[(1,)](y, z, 100, BLOCK=128)
    driver.report.check()
    twice_kernel[(1,)](y, z, 101, BLOCK=128)
    assert kinds(driver) == {"uninitialised"}


def test_memory_that_another_tensor_had_is_not_taken_for_its():
    with triton_driver.active(80) as driver:
        address = torch.empty(128).data_ptr()  # and freed
        for _ in range(100):
            x = torch.randn(128)
            if x.data_ptr() == address:
                break
        twice_kernel[(1,)](x, torch.empty(128), 128, BLOCK=128)
        driver.report.check()


def test_programs_that_write_to_one_place_are_found(driver):
    x, total = torch.randn(512), torch.zeros(1)
    sum_kernel[(4,)](x, total, 512, BLOCK=128, ATOMIC=False)
    assert "race" in kinds(driver)


def test_atomics(driver):
    x, total = torch.randn(1000), torch.zeros(1)
    sum_kernel[(8,)](x, total, 1000, BLOCK=128, ATOMIC=True)
    assert_linear(total[0], x.double().sum(), x.double().abs().sum(), 1000)
    driver.report.check()
    assert driver.report.counts["atomics"] > 0


# --- autotuning -------------------------------------------------------------------------------------------------------
def test_tuning_executes_every_config_and_one_once_more(driver):
    kernel = tuned(twice_kernel)
    for n, launches in ((300, 5), (300, 1), (301, 5)):
        x, y = torch.randn(n), torch.empty(n)
        del driver.launches[:]
        kernel[lambda meta, n=n: (triton.cdiv(n, meta["BLOCK"]),)](x, y, n)
        assert_exact(y, 2 * x)
        driver.report.check()
        assert len(driver.launches) == launches
        assert {launch.config for launch in driver.launches} == set(CONFIGS if launches > 1 else CONFIGS[:1])
        assert {launch.block[0] for launch in driver.launches} == {32 * c.num_warps for c in CONFIGS[:launches]}
    assert not torch.cuda.is_initialized()


def test_nothing_of_tuning_outlives_the_driver():
    kernel = tuned(twice_kernel)
    x, y = torch.randn(300), torch.empty(300)
    for arch in (80, 90):
        with triton_driver.active(arch) as driver:
            kernel[(10,)](x, y, 300)
            assert len(driver.launches) == 5
    assert not kernel.cache
    assert "do_bench" not in kernel.__dict__
    assert kernel.configs == CONFIGS


@pytest.mark.filterwarnings("ignore:warmup, rep")
def test_tuning_needs_no_cuda_whatever_measures(driver):
    kernel = tuned(twice_kernel, warmup=1, rep=1)
    x, y = torch.randn(300), torch.empty(300)
    kernel[(10,)](x, y, 300)
    assert_exact(y, 2 * x)


def test_tuning_resets_as_the_kernel_asks(driver):
    x, total = torch.randn(1000), torch.zeros(1)
    kernel = tuned(sum_kernel, reset_to_zero=["total"])
    kernel[lambda meta: (triton.cdiv(1000, meta["BLOCK"]),)](x, total, 1000, ATOMIC=True)
    assert_linear(total[0], x.double().sum(), x.double().abs().sum(), 1000)
    driver.report.check()


def test_each_config(driver):
    kernel = tuned(twice_kernel)
    x, seen = torch.randn(300), []
    for turn in driver.each_config(kernel):
        y = torch.empty(300)
        for _ in range(2):
            kernel[lambda meta: (triton.cdiv(300, meta["BLOCK"]),)](x, y, 300)
        assert_exact(y, 2 * x)
        assert driver.launches[-1].config is turn.config
        seen.append(turn.config)
    assert seen == CONFIGS
    assert len(driver.launches) == 8
    assert str(turn).startswith("config 3 of 4: BLOCK: 256, num_warps: 8")
    driver.report.check()


def test_each_config_tells_a_wrong_one_from_the_others(driver):
    """The kernel leaves out the rest of a block that is too large for its grid."""
    kernel = tuned(twice_kernel)
    x, wrong = torch.randn(300), []
    for turn in driver.each_config(kernel):
        y = torch.empty(300)
        kernel[(4,)](x, y, 300)
        if not torch.equal(y, 2 * x):
            wrong.append(turn.config)
    assert wrong == CONFIGS[:2]


def test_each_config_leaves_out_what_the_kernel_prunes(driver):
    prune = lambda configs, arguments, **_: [config for config in configs if config.kwargs["BLOCK"] <= arguments["n"]]
    kernel = tuned(twice_kernel, prune_configs_by={"early_config_prune": prune})
    x, y = torch.randn(100), torch.empty(100)
    turns = [kernel[(4,)](x, y, 100) and turn.config for turn in driver.each_config(kernel)]
    assert turns == CONFIGS[:2]
    with driver.turn(kernel, 3) as turn:  # counted round
        kernel[(4,)](x, y, 100)
    assert turn.config is CONFIGS[1]


def test_a_turn_that_nobody_takes_is_an_error(driver):
    with pytest.raises(RuntimeError, match="was not launched"):
        for _ in driver.each_config(tuned(twice_kernel)):
            pass


# --- what compiled code is made of ------------------------------------------------------------------------------------
@pytest.mark.parametrize("kind", ["float16", "bfloat16", "tf32", "ieee"])
@pytest.mark.parametrize("block", [(16, 16, 16), (32, 64, 32), (64, 32, 64)], ids=str)
def test_matrix_products(driver, kind, block):
    """By mma.sync with its ldmatrix and cp.async; for sm_90, 64 rows take wgmma, which is not executed."""
    dtype = getattr(torch, kind, torch.float32)
    a, b, c = torch.randn(70, 90).to(dtype), torch.randn(90, 75).to(dtype), torch.empty(70, 75)
    m, n, k = block

    def launch():
        grid = (triton.cdiv(70, m), triton.cdiv(75, n))
        precision = "ieee" if kind == "ieee" else "tf32"
        return matmul_kernel[grid](a, b, c, 70, 75, 90, M=m, N=n, K=k, PRECISION=precision)

    if driver.arch == 90 and m == 64 and kind != "ieee":
        with pytest.raises(NotImplementedError, match="wgmma"):
            launch()
        return
    assert ("mma.sync" in launch().asm["ptx"]) == (kind != "ieee")
    driver.report.check()
    exact, magnitude = a.double() @ b.double(), a.double().abs() @ b.double().abs()
    if kind != "tf32":
        assert_linear(c, exact, magnitude, 96)
        return
    error = (c.double() - exact).abs()  # of 23 bits of each factor 10 are kept
    assert (error <= 2 * 2**-10 * 1.01 * magnitude).all()
    assert error.max() > 1e-4


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_reductions_through_shared_memory(driver, dtype):
    n, c = 10, 200
    x = torch.randn(n, c).to(dtype)
    softmax, first = torch.empty(n, c, dtype=dtype), torch.empty(n, dtype=torch.int32)
    running, columns = torch.empty(n, c), torch.zeros(c)
    rows_kernel[(3,)](x, softmax, first, running, columns, n, c, ROWS=4, COLUMNS=256, num_warps=4)
    assert driver.launches[0].shared > 0
    driver.report.check()
    x64 = x.double()
    assert_nonlinear(softmax, x64.softmax(1), x.softmax(1))
    assert first.tolist() == x64.argmax(1).tolist()
    assert_linear(running, x64.cumsum(1), x64.abs().cumsum(1), c)
    assert_linear(columns, x64.sum(0), x64.abs().sum(0), n)
    assert driver.report.counts["barriers"] > 0


# --- depthwise_conv2d -------------------------------------------------------------------------------------------------
class Problem:
    """Tensors and what is expected of them in float64."""

    def __init__(
        self, shape, co, k, geometry, *, dtype=torch.float32, layout="contiguous", activation="none", bias=True
    ):
        self.shape, self.k, self.geometry, self.activation = shape, k, geometry, activation
        self.x, self.weight = lay(shape, dtype, layout), torch.randn(co, 1, *k).to(dtype)
        self.bias = torch.randn(co).to(dtype) if bias else None
        self.dy = lay((shape[0], co, *geometry.output(*shape[2:], *k)), dtype, layout)

    def both(self, formula, *tensors):
        """A formula of the tensors in float64, and of their absolute values."""
        wide = [t.double() if isinstance(t, Tensor) else t for t in tensors]
        return formula(*wide, self.geometry), formula(
            *(t.abs() if isinstance(t, Tensor) else t for t in wide), self.geometry
        )

    @cached_property
    def forward64(self):
        return self.both(forward64, self.x, self.weight, self.bias)

    @cached_property
    def backward_input64(self):
        return self.both(backward_input64, self.dy, self.weight, *self.shape[2:], self.shape[1])

    @cached_property
    def backward_weight64(self):
        return self.both(backward_weight64, self.dy, self.x, *self.k)

    def forward(self) -> Tensor:
        y = kernels.depthwise_conv2d(self.x, self.weight, self.bias, *self.geometry, self.activation)
        z64, magnitude = self.forward64
        terms = self.k[0] * self.k[1] + 1
        assert_linear(y, ACTIVATIONS[self.activation](z64), magnitude, terms, LIPSCHITZ[self.activation])
        assert_format(y, self.x)
        return y

    def check_dx(self, dx) -> None:
        assert_linear(dx, *self.backward_input64, self.k[0] * self.k[1] * self.weight.shape[0] // self.shape[1])
        assert_format(dx, self.dy)

    def check_sums(self, dweight, dbias) -> None:
        terms = self.dy.shape[0] * self.dy.shape[2] * self.dy.shape[3]
        for got, want, magnitude in zip((dweight, dbias), *self.backward_weight64):
            assert_linear(got, want, magnitude, terms)
            assert got.is_contiguous()

    def backward_input(self) -> Tensor:
        dx = kernels.depthwise_conv2d_backward_input(
            self.dy, self.weight, *self.shape[2:], self.shape[1], *self.geometry
        )
        self.check_dx(dx)
        return dx

    def backward_weight(self):
        sums = kernels.depthwise_conv2d_backward_weight(self.dy, self.x, *self.k, *self.geometry)
        self.check_sums(*sums)
        return sums

    def backward(self):
        dx, *sums = kernels.depthwise_conv2d_backward(self.dy, self.x, self.weight, *self.geometry)
        self.check_dx(dx)
        self.check_sums(*sums)
        return dx, *sums


LAYOUTS = pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
WIDE_SHAPES = {
    "contiguous": (1, 3, 7, 35),
    "channels_last": (1, 66, 5, 6),
}  # for which no config of the layout is pruned


@TARGETS
@LAYOUTS
@DTYPES
def test_every_config_of_depthwise_conv2d(dtype, layout, arch):
    shape = WIDE_SHAPES[layout]
    problem = Problem(shape, shape[1], (3, 3), Geometry((1, 1), (1,) * 4), dtype=dtype, layout=layout)
    with triton_driver.active(arch) as driver:
        for kernel, run in ((kernels._forward, problem.forward), (kernels._backward_input, problem.backward_input)):
            for _ in driver.each_config(kernel):
                run()
        driver.report.check()
        fitting = [c for c in kernels.CONFIGS if (c.kwargs["BLOCK_C"] >= 16) == (layout == "channels_last")]
        assert [launch.config for launch in driver.launches] == 2 * fitting


def test_every_config_of_depthwise_conv2d_is_executed_above():
    assert all((config.kwargs["BLOCK_C"] >= 16) != (config.kwargs["BLOCK_C"] <= 8) for config in kernels.CONFIGS)


CASES = [  # shape, out channels, kernel, geometry
    ((2, 16, 9, 11), 16, (3, 3), Geometry((1, 1), (1, 1, 1, 1))),
    ((1, 33, 12, 12), 33, (3, 3), Geometry((2, 2), (0, 1, 0, 1))),
    ((1, 19, 14, 13), 19, (3, 3), Geometry((1, 1), (2, 2, 2, 2), (2, 2))),
    ((2, 17, 11, 14), 17, (5, 5), Geometry((2, 2), (1, 2, 1, 2))),
    ((1, 24, 15, 13), 24, (7, 7), Geometry((1, 1), (3, 3, 3, 3))),
    ((1, 16, 9, 9), 16, (3, 5), Geometry((3, 1), (1, 0, 2, 3), (1, 2))),
    ((2, 6, 8, 9), 18, (3, 3), Geometry((2, 1), (1, 1, 1, 1))),
    ((1, 8, 9, 10), 8, (3, 3), Geometry((2, 3), (3, 3, 2, 2), (3, 2))),
    ((3, 8, 1, 1), 8, (3, 3), Geometry((1, 1), (1, 1, 1, 1))),
    ((1, 3, 2, 3), 3, (7, 5), Geometry((1, 1), (4, 4, 3, 3))),
    ((2, 1, 1, 40), 1, (1, 9), Geometry((1, 3), (0, 0, 2, 1))),
    ((1, 5, 8, 9), 5, (5, 1), Geometry((3, 2), (-1, 2, 0, -2), (1, 2))),
    ((2, 12, 6, 7), 12, (1, 1), Geometry((2, 3))),
]
CASE = pytest.mark.parametrize(
    "index", range(len(CASES)), ids=lambda i: " ".join(map(str, CASES[i])).replace("Geometry", "")
)


@LAYOUTS
@CASE
def test_depthwise_conv2d(index, layout):
    """Dtypes, targets, configs and activations take turns: all of them times all of these would take minutes."""
    turn = 2 * index + (layout == "channels_last")
    dtypes = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
    problem = Problem(*CASES[index], dtype=dtypes[(index + index // 4) % 4], layout=layout,
                      activation=list(ACTIVATIONS)[turn % 5], bias=turn % 3 > 0)  # fmt: skip
    with triton_driver.active((80, 90)[turn // 2 % 2]) as driver:
        with driver.turn(kernels._forward, turn):
            problem.forward()
        with driver.turn(kernels._backward_input, turn + 1):
            problem.backward()
        driver.report.check()
        assert {launch.kernel for launch in driver.launches} == {
            "forward_kernel",
            "backward_input_kernel",
            "backward_weight_kernel",
            "backward_weight_finish_kernel",
        }


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activations_of_depthwise_conv2d(driver, activation):
    problem = Problem((1, 4, 6, 9), 4, (3, 3), Geometry(), activation=activation)
    with driver.turn(kernels._forward, 0):
        problem.forward()
    driver.report.check()


@LAYOUTS
@pytest.mark.parametrize("index", range(len(MANY)), ids=lambda i: MANY[i].activation)
def test_epilogues_of_depthwise_conv2d(index, layout):
    dtype = (torch.float32, torch.float16, torch.bfloat16, torch.float64)[index % 4]
    layer = dense.make_layer((2, 6, 8, 9), 18, (3, 3), Geometry((2, 1), (1, 1, 1, 1)), 6, MANY[index], dtype=dtype,
                             layout=layout)  # fmt: skip
    with triton_driver.active(80) as driver, driver.turn(kernels._forward, index):
        y = kernels.depthwise_conv2d_fused(
            layer.x, layer.w, layer.options.get("bias"), *layer.geometry, *layer.epilogue()
        )
        driver.report.check()
    dense.judge(y, layer, dense.expected(layer))


@pytest.mark.parametrize("layout", ["sliced", "channels_last_sliced", "transposed", "reversed", "expanded"])
def test_depthwise_conv2d_of_any_strides(layout):
    problem = Problem((2, 5, 8, 9), 10, (3, 3), Geometry((2, 1), (1, 1, 1, 1)), layout=layout)
    with triton_driver.active(80) as driver:
        with driver.turn(kernels._forward, 1):
            problem.forward()
        with driver.turn(kernels._backward_input, 0):
            problem.backward()
        driver.report.check()


def test_depthwise_conv2d_with_indices_of_64_bits():
    problem = Problem((2, 5, 8, 9), 10, (3, 3), Geometry((2, 1), (1, 1, 1, 1)))
    with triton_driver.active(80) as driver, mock.patch.object(kernels, "_wide", return_value=True):
        with driver.turn(kernels._forward, 1):
            problem.forward()
        with driver.turn(kernels._backward_input, 0):
            problem.backward()
        driver.report.check()
        assert [launch.constants["WIDE"] for launch in driver.launches[:3]] == [True] * 3


def test_depthwise_conv2d_tunes_itself():
    """As on a GPU: whoever calls the op knows nothing of configs."""
    problem = Problem((1, 3, 6, 9), 3, (3, 3), Geometry())
    with triton_driver.active(80) as driver:
        first, again = problem.forward(), problem.forward()
        assert_exact(again, first)
        driver.report.check()
        assert len(driver.launches) == len({launch.config for launch in driver.launches}) + 2


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("(k < c) & (i < oh) & (j < ow))", "(k < c) & (i < oh))"),
        ("(k < c) & (i < oh) & (j < ow))", "(k < c) & (j < ow))"),
        ("(k < c) & row_inside & (column >= 0) & (column < iw)", "(k < c) & row_inside & (column >= 0)"),
        ("(k < c) & row_inside & (column >= 0) & (column < iw)", "row_inside & (column >= 0) & (column < iw)"),
        ("y += n * y_n + k * y_c", "y += n * y_n + k // 2 * y_c"),
        ("u * DILATION_H - padding_t", "u * DILATION_H - padding_l"),
    ],
)
def test_mistakes_in_the_librarys_kernel_are_found(right, wrong):
    """The tests above would see them."""
    kernel = triton.JITFunction(kernels.forward_kernel.fn)
    assert kernel.src.count(right) == 1
    kernel._unsafe_update_src(kernel.src.replace(right, wrong))
    problem = Problem((1, 3, 7, 9), 3, (3, 3), Geometry((1, 1), (1, 1, 2, 2)))
    tuner = triton.autotune(kernels.CONFIGS[3:4], [])(kernel)
    with triton_driver.active(80) as driver, mock.patch.object(kernels, "_forward", tuner):
        with pytest.raises(AssertionError):
            problem.forward()
            driver.report.check()
        assert len(driver.launches) == 1


def test_the_gradient_of_the_weight_is_the_same_every_time(driver):
    problem = Problem((2, 9, 30, 31), 9, (3, 3), Geometry())
    first = problem.backward_weight()
    assert driver.launches[0].constants["KH"] == 3
    assert driver.launches[0].grid[0] > 9 * 3  # more than one program adds to each sum
    with triton_driver.active(driver.arch, backwards=True) as other:
        again = problem.backward_weight()
        other.report.check()
    for a, b in zip(first, again):
        assert_exact(a, b)
    driver.report.check()


def test_an_empty_batch_launches_nothing(driver):
    x, weight = torch.randn(0, 4, 5, 5), torch.randn(4, 1, 3, 3)
    y = kernels.depthwise_conv2d(x, weight, None, (1, 1), (1,) * 4, (1, 1), "none")
    dx, dweight, dbias = kernels.depthwise_conv2d_backward(y, x, weight, (1, 1), (1,) * 4, (1, 1))
    assert y.shape == dx.shape == x.shape
    assert dweight.count_nonzero() == dbias.count_nonzero() == 0
    assert not driver.launches
