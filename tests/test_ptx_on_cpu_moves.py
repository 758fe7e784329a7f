"""Channel shuffle, PixelShuffle and upsampling of the CUDA library and of Triton without a GPU: as
tests/test_ptx_on_cpu_cuda.py, with the judges and the cases of the ops' own tests."""

import itertools

import pytest
import test_channel_shuffle
import test_pixel_shuffle
import test_upsample2d
import torch
from convolution import DTYPES, assert_names
from moves import EVERY_DTYPE, layouts, numbers
from ptx_on_cpu import cuda

needs_cuda = pytest.mark.skipif(cuda.unavailable() is not None, reason=str(cuda.unavailable()))
OWN = {"channel_shuffle": test_channel_shuffle, "pixel_shuffle": test_pixel_shuffle, "upsample2d": test_upsample2d}
LAYOUTS = ["contiguous", "channels_last", "sliced"]
FAMILIES = pytest.mark.parametrize("family", OWN)
LARGE = [  # several tiles, of rows and along them
    (test_channel_shuffle, ((1, 12, 70, 71), 3)),
    (test_channel_shuffle, ((1, 640, 9, 8), 2)),
    (test_pixel_shuffle, ((1, 12, 40, 72), 2)),
    (test_pixel_shuffle, ((1, 27, 33, 40), 3)),
    (test_pixel_shuffle, ((1, 16, 2, 700), 4)),
]


@pytest.fixture
def session():
    with cuda.device(80) as session:
        yield session


# --- CUDA: what is run ------------------------------------------------------------------------------------------------
def values(family, layout, dtype) -> None:
    for case in OWN[family].REPRESENTATIVE:
        OWN[family].check_all(*case, layout=layout, dtype=dtype)


def large(layout) -> None:
    for module, case in LARGE:
        module.check_all(*case, layout=layout)


def every_layout_of(dtype) -> None:
    for shape in ((1, 12, 2, 3), (2, 36, 8), (1, 72, 2, 1, 4), (1, 128, 2, 2)):
        for x in layouts(numbers(shape, dtype)):
            test_channel_shuffle.check(x, 4)
    for shape in ((4, 3, 5), (1, 16, 4, 8), (1, 2, 8, 3, 4)):
        for x in layouts(numbers(shape, dtype)):
            test_pixel_shuffle.check(x, 2)


def bytes_of_images() -> None:
    for mode in ("nearest", "nearest-exact"):
        for size in ((14, 18), (10, 20), (3, 5)):
            test_upsample2d.test_bytes(mode, size)


def not_aligned() -> None:
    """Views that begin within 16 bytes."""
    for dtype in (torch.uint8, torch.float16, torch.float32):
        x = numbers((8 * 32 * 3 + 1,), dtype)[1:]
        test_channel_shuffle.check(x.view(1, 8, 3, 32), 2)
        test_channel_shuffle.check(x.view(1, 3, 32, 8).permute(0, 3, 1, 2), 2)
        test_pixel_shuffle.check(x.view(1, 8, 3, 32), 2)


def run_every_case() -> None:
    for family, layout, dtype in itertools.product(OWN, LAYOUTS, DTYPES):
        values(family, layout, dtype)
    for layout in LAYOUTS[:2]:
        large(layout)
    for dtype in EVERY_DTYPE:
        every_layout_of(dtype)
    bytes_of_images()
    not_aligned()


# --- CUDA -------------------------------------------------------------------------------------------------------------
@needs_cuda
@FAMILIES
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_values(family, layout, dtype, session):
    with session.as_cpu():
        values(family, layout, dtype)
    session.report.check()


@needs_cuda
@pytest.mark.parametrize("layout", LAYOUTS[:2])
def test_large(layout, session):
    with session.as_cpu():
        large(layout)
    session.report.check()


@needs_cuda
@pytest.mark.parametrize("dtype", EVERY_DTYPE, ids=str)
def test_every_dtype_and_layout(dtype, session):
    with session.as_cpu():
        every_layout_of(dtype)
    session.report.check()


@needs_cuda
@pytest.mark.parametrize("run", [bytes_of_images, not_aligned], ids=lambda run: run.__name__)
def test_bytes_and_memory_that_is_not_aligned(run, session):
    with session.as_cpu():
        run()
    session.report.check()


@needs_cuda
def test_values_on_sm_90():
    with cuda.device(90) as session, session.as_cpu():
        for module in OWN.values():
            module.check_all(*module.REPRESENTATIVE[0], layout="channels_last")
            module.check_all(*module.REPRESENTATIVE[1])
    session.report.check()


@needs_cuda
@pytest.mark.parametrize("name", test_upsample2d.BAD_RAW)
def test_bad_input(name, session):
    op, args, words = test_upsample2d.BAD_RAW[name]
    with pytest.raises(RuntimeError) as caught:
        session.op(op._schema.name.split("::")[1])(*args)
    assert_names(caught.value, words)
    assert not session.launches


@needs_cuda
def test_16_bytes_at_once_where_memory_is_whole(session):
    session.op("channel_shuffle")(torch.zeros(1, 8, 4, 4), 2)
    session.op("channel_shuffle")(torch.zeros(1, 4, 4, 32).half().permute(0, 3, 1, 2), 2)
    session.op("pixel_shuffle")(torch.zeros(1, 8, 3, 16), 2)
    session.op("pixel_shuffle")(torch.zeros(1, 3, 3, 32).permute(0, 3, 1, 2), 2)
    kernels = [launch.kernel for launch in session.launches]
    for kernel, name in zip(
        kernels, ("runsILi16E", "streamsILi2ELi8ELb0", "streamsILi4ELi4ELb0", "streamsILi4ELi4ELb1")
    ):
        assert name in kernel


# --- Triton -----------------------------------------------------------------------------------------------------------
@pytest.fixture
def driver():
    triton = pytest.importorskip("triton", reason="triton is not installed")
    if triton.knobs.runtime.interpret:
        pytest.skip("TRITON_INTERPRET is set: nothing is compiled")
    from ptx_on_cpu import triton_driver

    with triton_driver.active(arch=80) as driver:
        yield driver


def to_triton(family: str, monkeypatch) -> None:
    from pytorch_ext.kernels import channel_shuffle, pixel_shuffle, upsample2d

    kernels = {"channel_shuffle": channel_shuffle, "pixel_shuffle": pixel_shuffle, "upsample2d": upsample2d}[family]
    monkeypatch.setattr(OWN[family], "FORWARD", getattr(kernels, family))
    if family == "pixel_shuffle":
        monkeypatch.setattr(test_pixel_shuffle, "UNSHUFFLE", kernels.pixel_unshuffle)
    if family == "upsample2d":
        monkeypatch.setattr(test_upsample2d, "BACKWARD", kernels.upsample2d_backward)


@pytest.mark.parametrize(
    ("family", "layout", "dtype"),
    [
        *[(family, layout, torch.float32) for family in OWN for layout in LAYOUTS],
        *[(family, "channels_last", torch.float16) for family in OWN],
        ("upsample2d", "contiguous", torch.float64),
    ],
    ids=str,
)
def test_triton_values(family, layout, dtype, driver, monkeypatch):
    to_triton(family, monkeypatch)
    for case in OWN[family].REPRESENTATIVE:
        OWN[family].check_all(*case, layout=layout, dtype=dtype)
    driver.report.check()


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_triton_large(layout, driver, monkeypatch):
    for family in ("channel_shuffle", "pixel_shuffle"):
        to_triton(family, monkeypatch)
    for module, case in LARGE:
        module.check_all(*case, layout=layout)
    driver.report.check()


@pytest.mark.parametrize("dtype", [torch.bool, torch.complex64, torch.complex128], ids=str)
def test_triton_moves_any_dtype(dtype, driver, monkeypatch):
    for family in ("channel_shuffle", "pixel_shuffle"):
        to_triton(family, monkeypatch)
    for x in layouts(numbers((1, 8, 2, 6), dtype)):
        test_channel_shuffle.check(x, 2)
        test_pixel_shuffle.check(x, 2)
    driver.report.check()
