"""How close is close enough: the three bounds that every op's tests use.

1. Moves data: exact.  2. Linear: the dot-product bound, element by element.  3. Nonlinear: twice torch's own error.
The expected value is always float64. NaN, which unwritten memory holds (conftest.py), is outside every bound.
"""

from __future__ import annotations

import torch
from torch import Tensor


def eps_out(dtype: torch.dtype) -> float:
    return torch.finfo(dtype).eps


def eps_sum(dtype: torch.dtype) -> float:
    """Of the sums: 16-bit types are summed in float32."""
    return min(torch.finfo(dtype).eps, torch.finfo(torch.float32).eps)


def assert_exact(y: Tensor, expected: Tensor) -> None:
    """Bound 1: every bit, strides aside."""
    assert y.shape == expected.shape, f"shape is {list(y.shape)}, expected {list(expected.shape)}"
    assert y.dtype == expected.dtype, f"dtype is {y.dtype}, expected {expected.dtype}"
    bits = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[y.element_size()]
    wrong = y.contiguous().view(bits) != expected.contiguous().view(bits)
    if wrong.any():
        at = tuple(int(i[0]) for i in torch.nonzero(wrong, as_tuple=True))
        raise AssertionError(f"{int(wrong.sum())} of {y.numel()} differ, first at {at}: {y[at]} for {expected[at]}")


def assert_linear(
    y: Tensor, y64: Tensor, magnitude: Tensor, terms: int, lipschitz: float = 1.0, besides: Tensor | float = 0.0
) -> None:
    """Bound 2: |y - y64| <= (eps_out + terms * eps_sum) * magnitude.

    Args:
        y64: the op on the same (already rounded) inputs in float64.
        magnitude: the op on their absolute values in float64.
        terms: products in the longest sum.
        lipschitz: of a function applied to the sum; not 1 also grants that function 4 units in the last place.
        besides: what each element may be off besides, where the sums are no plain sums of products (Winograd).

    machine eps is twice the unit roundoff: the other half is for the float64 reference, when y is float64 too.
    """
    info = torch.finfo(y.dtype)
    allowed = lipschitz * (info.eps + terms * eps_sum(y.dtype)) * magnitude
    if lipschitz != 1.0:
        allowed = allowed + 4 * info.eps * y64.abs()
    _within(y, y64, allowed + besides + info.smallest_normal * info.eps)  # the last: half the spacing of subnormals


def assert_nonlinear(y: Tensor, y64: Tensor, torchs: Tensor, ulps: float = 4.0, besides: float = 0.0) -> None:
    """Bound 3: the largest error is at most twice that of torch in the same dtype, plus `ulps` of each element, and
    `besides` where one says why."""
    info = torch.finfo(y.dtype)
    assert torchs.dtype == y.dtype, f"torch's result is {torchs.dtype}, ours {y.dtype}"
    torch_error = (torchs.double() - y64).abs().max() if y64.numel() else 0.0
    _within(y, y64, 2 * torch_error + ulps * info.eps * y64.abs() + besides + info.smallest_normal * info.eps)


def _within(y: Tensor, y64: Tensor, allowed: Tensor) -> None:
    assert y.shape == y64.shape, f"shape is {list(y.shape)}, expected {list(y64.shape)}"
    assert y64.dtype == torch.float64, f"the reference must be float64, got {y64.dtype}"
    assert torch.isfinite(y64).all(), "the reference is not finite"
    error = (y.double() - y64).abs()
    wrong = ~(error <= allowed)  # catches NaN
    if wrong.any():
        ratio = torch.where(torch.isnan(error), torch.inf, error / allowed)
        at = tuple(int(i) for i in torch.unravel_index(ratio.argmax(), ratio.shape))
        raise AssertionError(
            f"{int(wrong.sum())} of {y.numel()} outside the bound; worst at {at}: {y[at].item()!r} for "
            f"{y64[at].item()!r}, {ratio[at].item():.3g} times the allowed {allowed[at].item():.3g}"
        )
