// One axis of a convolution, forward or transposed: which inputs an output reads, and where all of them are there.
#pragma once

#include <algorithm>
#include <cstdint>
#include <numeric>
#include <utility>

namespace lightkernels::cpu {

// Output o (of a phase) reads inputs first + o * step + k * dilation for k = 0 .. count - 1, through taps tap + k *
// tap_step. A forward convolution has one phase; a transposed one has `stride`, interleaved in the output.
struct Axis {
  int64_t count, tap, tap_step, first, step, dilation;

  // k range whose input for output o lies in [0, size).
  std::pair<int64_t, int64_t> inside(int64_t o, int64_t size) const {
    const int64_t a = first + o * step;
    const int64_t begin = a >= 0 ? 0 : (-a + dilation - 1) / dilation;
    const int64_t end = a >= size ? 0 : (size - 1 - a) / dilation + 1;
    return {std::min(begin, count), std::max(std::min(begin, count), std::min(end, count))};
  }
};

inline Axis forward_axis(int64_t k, int64_t stride, int64_t padding, int64_t dilation) {
  return {k, 0, 1, -padding, stride, dilation};
}

// dx[phase + t * stride] gathers dy[(phase + t * stride + padding - v * dilation) / stride] over the taps v where that
// is whole: every (stride / gcd)-th. Taps are listed backwards, so that the input index grows with k.
inline Axis transposed_axis(int64_t phase, int64_t k, int64_t stride, int64_t padding, int64_t dilation) {
  const int64_t gcd = std::gcd(stride, dilation), tap_step = stride / gcd;
  for (int64_t v = 0; v < std::min(tap_step, k); ++v) {
    if ((phase + padding - v * dilation) % stride) continue;
    const int64_t count = (k - 1 - v) / tap_step + 1, last = v + (count - 1) * tap_step;
    return {count, last, -tap_step, (phase + padding - last * dilation) / stride, 1, dilation / gcd};
  }
  return {0, 0, 1, 0, 1, 1};
}

inline int64_t floor_div(int64_t a, int64_t b) { return a >= 0 ? a / b : -((-a + b - 1) / b); }

// One axis of a dilated convolution of stride 1 is `dilation` convolutions without: grid `phase` has the outputs phase,
// phase + dilation, ... and every dilation-th input.
struct GridAxis {
  int64_t in_first, in, out, padding;

  GridAxis(int64_t phase, int64_t dilation, int64_t in_, int64_t out_, int64_t padding_) {
    const int64_t whole = floor_div(phase - padding_, dilation);
    in_first = phase - padding_ - whole * dilation;
    in = std::max<int64_t>(0, (in_ - in_first + dilation - 1) / dilation);
    out = (out_ - phase + dilation - 1) / dilation;
    padding = -whole;
  }
};

// Outputs [begin, end) as runs that read the same taps: f(first output, behind the last, first tap, behind the last).
template <class F>
void for_same_taps(const Axis& axis, int64_t size, int64_t begin, int64_t end, F&& f) {
  auto up = [](int64_t a, int64_t b) { return -floor_div(-a, b); };
  while (begin < end) {
    const auto [k_begin, k_end] = axis.inside(begin, size);
    int64_t next = end;  // where a first tap comes in, or the last one leaves
    if (k_begin < k_end) {
      if (k_begin > 0) next = std::min(next, up(-(k_begin - 1) * axis.dilation - axis.first, axis.step));
      next = std::min(next, up(size - (k_end - 1) * axis.dilation - axis.first, axis.step));
    } else {
      next = begin + 1;
      while (next < end && axis.inside(next, size) == std::pair<int64_t, int64_t>{k_begin, k_end}) ++next;
    }
    next = std::max(begin + 1, std::min(next, end));
    f(begin, next, k_begin, k_end);
    begin = next;
  }
}

}  // namespace lightkernels::cpu
