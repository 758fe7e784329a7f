"""What Triton makes of our kernels, beyond what test_gpu_budget.py measures of every one: 64-bit indices."""

import re

import gpu_budget as budget
import pytest
import torch

triton = pytest.importorskip("triton", reason="triton is not installed")

pytestmark = pytest.mark.skipif(triton.knobs.runtime.interpret, reason="TRITON_INTERPRET is set: nothing is compiled")
OPS = torch.ops.pytorch_ext
GEOMETRY = ([1, 1], [1, 1, 1, 1], [1, 1])


DENSE = ("none", 0.0, None, None, None, False, None)  # no epilogue


def record(family: str, arch: int, height: int, dtype=torch.float32, form=torch.contiguous_format) -> list:
    """What a 3x3 convolution of 64 channels and its gradients launch, without one being run."""
    from pytorch_ext import _op

    x = torch.empty(1, 64, height, 1024, device="meta", dtype=dtype).contiguous(memory_format=form)
    weight = torch.empty(64, 64 if family == "dilated_conv2d" else 1, 3, 3, device="meta", dtype=dtype)
    op = lambda suffix="": _op.OPS[family + suffix].triton
    with budget.recording(arch) as recorded:
        if family == "dilated_conv2d":
            op()(x, weight, None, *GEOMETRY, 1, *DENSE, "auto", None)
            op("_backward_input")(x, weight, height, 1024, *GEOMETRY, 1)
            op("_backward_weight")(x, x, 3, 3, *GEOMETRY, 1)
        else:
            op()(x, weight, None, *GEOMETRY, "none")
            op("_backward_input")(x, weight, height, 1024, 64, *GEOMETRY)
            op("_backward_weight")(x, x, 3, 3, *GEOMETRY)
    return [spec for spec in recorded if not spec.kernel.endswith("_finish_kernel")]  # which sees no image


def ttir(family: str, height: int) -> list[str]:
    """Of each kernel that `record` finds."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    first = {spec.kernel: spec for spec in reversed(record(family, 90, height))}
    sources = [ASTSource(spec.function(), *spec.source()) for spec in first.values()]
    return [triton.compile(source, target=GPUTarget("cuda", 90, 32)).asm["ttir"] for source in sources]


@pytest.mark.parametrize("family", ["depthwise_conv2d", "dilated_conv2d"])
@pytest.mark.parametrize(("height", "wide"), [(1024, False), (64 * 1024, True)])
def test_tensors_beyond_2_31_elements_are_indexed_in_64_bits(height, wide, family):
    texts = ttir(family, height)
    assert len(texts) == 3
    for text in texts:
        assert bool(re.search(r"arith\.muli .*xi64>", text)) == wide
