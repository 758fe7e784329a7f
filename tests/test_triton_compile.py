"""What Triton makes of our kernels, beyond what test_gpu_budget.py measures of every one: 64-bit indices."""

import re

import gpu_budget as budget
import pytest
import torch

triton = pytest.importorskip("triton", reason="triton is not installed")

pytestmark = pytest.mark.skipif(triton.knobs.runtime.interpret, reason="TRITON_INTERPRET is set: nothing is compiled")
OPS = torch.ops.pytorch_ext
GEOMETRY = ([1, 1], [1, 1, 1, 1], [1, 1])


def ttir(height: int) -> list[str]:
    """Of all kernels that a convolution of 64 channels and its gradients launch, without one being run."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from pytorch_ext import _op

    x, weight = torch.empty(1, 64, height, 1024, device="meta"), torch.empty(64, 1, 3, 3, device="meta")
    with budget.recording(90, "depthwise_conv2d") as recorded:
        _op.OPS["depthwise_conv2d"].triton(x, weight, None, *GEOMETRY, "none")
        _op.OPS["depthwise_conv2d_backward_input"].triton(x, weight, height, 1024, 64, *GEOMETRY)
        _op.OPS["depthwise_conv2d_backward_weight"].triton(x, x, 3, 3, *GEOMETRY)
    texts, seen = [], set()
    for spec in recorded:
        if spec.kernel not in seen and not spec.kernel.endswith("_finish_kernel"):  # which sees no image
            seen.add(spec.kernel)
            source = ASTSource(spec.function(), *spec.source())
            texts.append(triton.compile(source, target=GPUTarget("cuda", 90, 32)).asm["ttir"])
    return texts


@pytest.mark.parametrize(("height", "wide"), [(1024, False), (64 * 1024, True)])
def test_tensors_beyond_2_31_elements_are_indexed_in_64_bits(height, wide):
    texts = ttir(height)
    assert len(texts) == 3
    for text in texts:
        assert bool(re.search(r"arith\.muli .*xi64>", text)) == wide
