"""Channel shuffle: y[n, j * groups + i, ...] = x[n, i * (c / groups) + j, ...].

Its inverse, and derivative, is the shuffle of c / groups groups.
"""

from __future__ import annotations

from torch import Tensor

from .. import _move, _op

OP = "channel_shuffle"


def _fake(x, groups):
    """csrc/channel_shuffle.cpp asks the same."""
    if x.dim() < 2:
        raise RuntimeError(f"{OP}: x must have shape [n, c, ...], got {list(x.shape)}")
    if groups < 1 or x.shape[1] % groups:
        raise RuntimeError(f"{OP}: groups must divide the {x.shape[1]} channels, got {groups}")
    return _move.empty_as(x, x.shape)


def _reference(x, groups):
    y = _fake(x, groups)
    return y.copy_(x.unflatten(1, (groups, -1)).transpose(1, 2).flatten(1, 2)) if y.numel() else y


def _backward(ctx, dy):
    return forward(dy, dy.shape[1] // ctx.number), None


def _vmap(info, in_dims, x, groups):
    """The batch joins n."""
    x = x.movedim(in_dims[0], 0)
    return forward(x.flatten(0, 1), groups).unflatten(0, x.shape[:2]), 0


forward = _op.register(
    "channel_shuffle(Tensor x, SymInt groups) -> Tensor",
    reference=_reference,
    fake=_fake,
    setup_context=_move.setup_int,
    backward=_backward,
    vmap=_vmap,
    flops=_move.no_flops,
)


def channel_shuffle(x: Tensor, groups: int) -> Tensor:
    """Shuffles the channels of `groups` groups, so that the next grouped convolution sees some of each.

    ``y[n, j * groups + i, ...] = x[n, i * (c / groups) + j, ...]``, which is a transposition of channels seen as
    ``[groups, c / groups]`` (ShuffleNet, Zhang et al., 2017, arXiv 1707.01083, section 3.1). Any derivatives;
    ``channel_shuffle(y, c // groups)`` is the inverse.

    Args:
        x: ``[n, c, ...]``, of any dtype and strides.
        groups: divides c.

    Returns:
        x's shape, in x's memory format (contiguous, channels_last or channels_last_3d).

    Raises:
        TypeError: x is no tensor, groups is no int.
        RuntimeError: groups does not divide c, x has fewer than two dimensions.
    """
    return forward(x, _move.check(x, groups, "groups"))
