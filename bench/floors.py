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


def depthwise_conv2d(
    n: int, c: int, h: int, w: int, k: int, stride: int, dilation: int, padding: int, direction: str = "forward"
) -> Work:
    """Work of a depthwise convolution in float32 with bias.

    `direction`: "forward"; "backward" (gradients of input, weight and bias: twice the multiply-adds; x and dy are read,
    dx and dweight written); "step", both one after the other.
    """
    geometry = (k, stride, dilation, padding)
    oh, ow = output_size(h, *geometry), output_size(w, *geometry)
    inside = 2 * n * c * taps_inside(h, *geometry) * taps_inside(w, *geometry)
    padded = 2 * n * c * oh * ow * k * k
    x, y, weights = n * c * h * w, n * c * oh * ow, c * (k * k + 1)
    floats = {"forward": x + weights + y, "backward": x + y + x + 2 * weights}
    passes = {"forward": 1, "backward": 2, "step": 3}[direction]
    numbers = floats["forward"] + floats["backward"] if direction == "step" else floats[direction]
    return Work(passes * inside, passes * padded, FLOAT_BYTES * numbers)


def activation(elements: int, direction: str = "forward") -> Work:
    """Work of an activation in float32, taken as one operation an element: what binds are the bytes."""
    tensors = {"forward": 2, "backward": 3}[direction]  # x and y; x, dy and dx
    return Work(elements, elements, FLOAT_BYTES * tensors * elements)
