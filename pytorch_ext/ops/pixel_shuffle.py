"""PixelShuffle and its inverse: y[.., c, h * r + i, w * r + j] = x[.., (c * r + i) * r + j, h, w], and back.

Each is the other's derivative.
"""

from __future__ import annotations

from torch import Tensor

from .. import _move, _op


# --- shapes and checks (also the fake kernels); csrc/pixel_shuffle.cpp asks the same ----------------------------------
def _check(op: str, x: Tensor, r) -> None:
    if x.dim() < 3:
        raise RuntimeError(f"{op}: x must have shape [..., c, h, w], got {list(x.shape)}")
    if r < 1 or r > 2**15:
        raise RuntimeError(f"{op}: the factor must be in 1 .. {2**15}, got {r}")


def _shuffle_fake(x, r):
    _check("pixel_shuffle", x, r)
    *outside, c, h, w = x.shape
    if c % (r * r):
        raise RuntimeError(f"pixel_shuffle: the {c} channels must be a multiple of {r * r}")
    return _move.empty_as(x, (*outside, c // (r * r), h * r, w * r))


def _unshuffle_fake(x, r):
    _check("pixel_unshuffle", x, r)
    *outside, c, h, w = x.shape
    if h % r or w % r:
        raise RuntimeError(f"pixel_unshuffle: height and width must be multiples of {r}, got {list(x.shape)}")
    return _move.empty_as(x, (*outside, c * r * r, h // r, w // r))


# --- reference --------------------------------------------------------------------------------------------------------
def _shuffle_reference(x, r):
    y = _shuffle_fake(x, r)
    if not y.numel():
        return y
    apart = x.unflatten(-3, (-1, r, r)).movedim((-4, -3), (-3, -1))  # [.., c, h, r, w, r]
    return y.copy_(apart.flatten(-2).flatten(-3, -2))


def _unshuffle_reference(x, r):
    y = _unshuffle_fake(x, r)
    if not y.numel():
        return y
    apart = x.unflatten(-1, (-1, r)).unflatten(-3, (-1, r))  # [.., c, h, r, w, r]
    return y.copy_(apart.movedim((-3, -1), (-4, -3)).flatten(-5, -3))


# --- derivatives, vmap ------------------------------------------------------------------------------------------------
def _shuffle_backward(ctx, dy):
    return unshuffle(dy, ctx.number), None


def _unshuffle_backward(ctx, dy):
    return shuffle(dy, ctx.number), None


def _shuffle_vmap(info, in_dims, x, r):
    return shuffle(x.movedim(in_dims[0], 0), r), 0


def _unshuffle_vmap(info, in_dims, x, r):
    return unshuffle(x.movedim(in_dims[0], 0), r), 0


shuffle = _op.register(
    "pixel_shuffle(Tensor x, SymInt upscale_factor) -> Tensor",
    reference=_shuffle_reference,
    fake=_shuffle_fake,
    setup_context=_move.setup_int,
    backward=_shuffle_backward,
    vmap=_shuffle_vmap,
    flops=_move.no_flops,
)
unshuffle = _op.register(
    "pixel_unshuffle(Tensor x, SymInt downscale_factor) -> Tensor",
    reference=_unshuffle_reference,
    fake=_unshuffle_fake,
    setup_context=_move.setup_int,
    backward=_unshuffle_backward,
    vmap=_unshuffle_vmap,
    flops=_move.no_flops,
)


# --- public functions -------------------------------------------------------------------------------------------------
def pixel_shuffle(x: Tensor, upscale_factor: int) -> Tensor:
    """Turns channels into pixels: r * r of them into a square of r by r.

    ``y[.., c, h * r + i, w * r + j] = x[.., (c * r + i) * r + j, h, w]`` (ESPCN, Shi et al., CVPR 2016, arXiv
    1609.05158, equation 4, in torch's order of channels). Any derivatives; :func:`pixel_unshuffle` is the inverse.

    Args:
        x: ``[..., c * r * r, h, w]``, of any dtype, strides and number of leading dimensions.
        upscale_factor: r, at least 1.

    Returns:
        ``[..., c, h * r, w * r]``, in x's memory format (contiguous, channels_last or channels_last_3d).

    Raises:
        TypeError: x is no tensor, upscale_factor is no int.
        RuntimeError: sizes that do not fit.
    """
    return shuffle(x, _move.check(x, upscale_factor, "upscale_factor"))


def pixel_unshuffle(x: Tensor, downscale_factor: int) -> Tensor:
    """Turns pixels into channels, a square of r by r into r * r of them: the inverse of :func:`pixel_shuffle`.

    Args:
        x: ``[..., c, h * r, w * r]``, of any dtype, strides and number of leading dimensions.
        downscale_factor: r, at least 1.

    Returns:
        ``[..., c * r * r, h, w]``, in x's memory format (contiguous, channels_last or channels_last_3d).

    Raises:
        TypeError: x is no tensor, downscale_factor is no int.
        RuntimeError: sizes that do not fit.
    """
    return unshuffle(x, _move.check(x, downscale_factor, "downscale_factor"))
