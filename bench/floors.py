"""The least time that a shape can take on this machine: its arithmetic at the FMA peak, or its bytes at copy speed."""

from __future__ import annotations

from dataclasses import dataclass

FLOAT_BYTES = 4


@dataclass(frozen=True)
class Work:
    """What has to be done, whatever the implementation."""

    flops: int  # 2 for each multiply-add on pixels of the image
    flops_padded: int  # counting the padding's zeros too, as papers do
    nbytes: int  # inputs, weights and outputs, each once

    def floor(self, gflops: float, gbps: float) -> tuple[float, str]:
        """(seconds, which of "flops" and "bytes" binds)."""
        arithmetic, traffic = self.flops / (gflops * 1e9), self.nbytes / (gbps * 1e9)
        return (arithmetic, "flops") if arithmetic >= traffic else (traffic, "bytes")


def output_size(size: int, kernel: int, stride: int, dilation: int, padding: int) -> int:
    return (size + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1


def taps_inside(size: int, kernel: int, stride: int, dilation: int, padding: int) -> int:
    """Pairs (output, tap) along one axis whose input lies inside the image."""
    return sum(
        0 <= i * stride + u * dilation - padding < size
        for i in range(output_size(size, kernel, stride, dilation, padding))
        for u in range(kernel)
    )


def dense_conv2d(
    n: int,
    c: int,
    co: int,
    size: tuple[int, int],
    kernel: tuple[int, int],
    stride: int = 1,
    dilation: int = 1,
    padding: tuple[int, int] = (0, 0),
    groups: int = 1,
    direction: str = "forward",
) -> Work:
    """Work of a convolution in float32 with bias, of c channels of `size` (height, width) to co.

    `direction`: "forward"; "backward" (gradients of input, weight and bias: twice the multiply-adds; x and dy are read,
    dx and dweight written); "step", both one after the other.
    """
    axes = [(*pair[:2], stride, dilation, pair[2]) for pair in zip(size, kernel, padding, strict=True)]
    (oh, ow), (rows, columns) = ([f(*axis) for axis in axes] for f in (output_size, taps_inside))
    products = 2 * n * co * (c // groups)
    inside, padded = products * rows * columns, products * oh * ow * kernel[0] * kernel[1]
    x, y, weights = n * c * size[0] * size[1], n * co * oh * ow, co * (c // groups * kernel[0] * kernel[1] + 1)
    floats = {"forward": x + weights + y, "backward": x + y + x + 2 * weights}
    passes = {"forward": 1, "backward": 2, "step": 3}[direction]
    numbers = floats["forward"] + floats["backward"] if direction == "step" else floats[direction]
    return Work(passes * inside, passes * padded, FLOAT_BYTES * numbers)


def depthwise_conv2d(
    n: int, c: int, h: int, w: int, k: int, stride: int, dilation: int, padding: int, direction: str = "forward"
) -> Work:
    """Work of a depthwise convolution."""
    return dense_conv2d(n, c, c, (h, w), (k, k), stride, dilation, (padding, padding), c, direction)


def activation(elements: int, direction: str = "forward") -> Work:
    """Work of an activation in float32, taken as one operation an element: what binds are the bytes."""
    tensors = {"forward": 2, "backward": 3}[direction]  # x and y; x, dy and dx
    return Work(elements, elements, FLOAT_BYTES * tensors * elements)


def moved(read: int, written: int) -> Work:
    """Work of an op that moves or blends float32 elements, taken as one operation for each that is written."""
    return Work(written, written, FLOAT_BYTES * (read + written))
