// What both layouts of depthwise convolution share: activations, vectors over a range, and one axis of the geometry.
#pragma once

#include <algorithm>
#include <numeric>
#include <utility>

#include "../depthwise_conv2d.h"
#include "vec.h"

namespace lightkernels::cpu {

// The clipped activations are one clamp; none clips nothing.
template <class S>
struct Clip {
  bool smooth;  // not a clamp at all
  S low, high;

  explicit Clip(Activation a) {
    const S inf = __builtin_inf();
    smooth = a == Activation::kSilu || a == Activation::kHardswish;
    low = a == Activation::kRelu || a == Activation::kRelu6 ? S(0) : -inf;
    high = a == Activation::kRelu6 ? S(6) : inf;
  }
};

template <int L, class S>
LIGHTKERNELS_INLINE Vec<S, L> smooth(Vec<S, L> z, Activation activation) {
  if (activation == Activation::kSilu) return z / (exp<S, L>(-z) + S(1));
  return z * clamp(z + S(3), splat<L>(S(0)), splat<L>(S(6))) * S(1.0 / 6);
}

// Calls f(c) for c = 0, L, 2L, ... so that [c, c + L) covers [begin, end): the last vector slides back to end there.
template <int L, class F>
LIGHTKERNELS_INLINE void for_channels(int64_t begin, int64_t end, F&& f) {
  for (int64_t c = begin;;) {
    f(c);
    if (c + L >= end) return;
    c = std::min(c + L, end - L);
  }
}

// --- one axis of a convolution, forward or transposed ---

// Output o (of a phase) reads inputs first + o * step
// + k * dilation for k = 0 .. count - 1, through taps tap + k * tap_step. A forward convolution has one phase; a
// transposed one has `stride`, interleaved in the output.
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

// How the channel of an input follows from the channel c of an output: c * times / over.
struct ChannelMap {
  int64_t times, over;
  bool is_identity() const { return times == 1 && over == 1; }
};

// --- one convolution for both directions ---

// `in` is convolved into `out`: forward
// x into y, transposed y into x.
struct Convolution {
  const void* in;
  Strides4 in_strides;
  int64_t ih, iw;
  void* out;
  Strides4 out_strides;
  int64_t c, oh, ow;  // of out
  bool transposed;
  int64_t layers;  // channels of `in` that add to one of `out`
  ChannelMap map;

  Convolution(const DepthwiseConv2dParams& p, bool transposed_) : transposed(transposed_) {
    if (transposed) {
      in = p.y, in_strides = p.y_strides, ih = p.oh, iw = p.ow;
      out = p.x, out_strides = p.x_strides, c = p.c / p.multiplier, oh = p.ih, ow = p.iw;
      layers = p.multiplier, map = {p.multiplier, 1};
    } else {
      in = p.x, in_strides = p.x_strides, ih = p.ih, iw = p.iw;
      out = p.y, out_strides = p.y_strides, c = p.c, oh = p.oh, ow = p.ow;
      layers = 1, map = {1, p.multiplier};
    }
  }

  int64_t phases_h(const DepthwiseConv2dParams& p) const { return transposed ? p.stride_h : 1; }
  int64_t phases_w(const DepthwiseConv2dParams& p) const { return transposed ? p.stride_w : 1; }
  Axis axis_h(const DepthwiseConv2dParams& p, int64_t phase) const {
    return transposed ? transposed_axis(phase, p.kh, p.stride_h, p.padding_t, p.dilation_h)
                      : forward_axis(p.kh, p.stride_h, p.padding_t, p.dilation_h);
  }
  Axis axis_w(const DepthwiseConv2dParams& p, int64_t phase) const {
    return transposed ? transposed_axis(phase, p.kw, p.stride_w, p.padding_l, p.dilation_w)
                      : forward_axis(p.kw, p.stride_w, p.padding_l, p.dilation_w);
  }
};

// Units that a thread should be given at least: waking one for less than about 64 k multiply-adds costs more than it
// saves.
inline int64_t grain_of(const DepthwiseConv2dParams& p, int64_t units) {
  const int64_t work = p.n * p.c * p.oh * p.ow * p.kh * p.kw;
  return 1 + units * 65536 / std::max<int64_t>(work, 65536);
}

inline int64_t acc_size(const DepthwiseConv2dParams& p) { return p.dtype == DType::kFloat64 ? 8 : 4; }

// --- the two layouts, each in a file of its own: depthwise_conv2d_nhwc.cpp, depthwise_conv2d_nchw.cpp ---

void convolve_nhwc(const DepthwiseConv2dParams& p, bool transposed, const Launch& launch);
void backward_weight_nhwc(const DepthwiseConv2dParams& p, const Launch& launch);
int64_t convolve_nhwc_workspace(const DepthwiseConv2dParams& p, bool transposed);
int64_t backward_weight_nhwc_workspace(const DepthwiseConv2dParams& p);

// Both gradients in one sweep, where `sweeps_both_nhwc`.
bool sweeps_both_nhwc(const DepthwiseConv2dParams& p);
void backward_nhwc(const DepthwiseConv2dParams& input, const DepthwiseConv2dParams& weight, const Launch& launch);
int64_t backward_nhwc_workspace(const DepthwiseConv2dParams& p);

void convolve_nchw(const DepthwiseConv2dParams& p, bool transposed, const Launch& launch);
void backward_weight_nchw(const DepthwiseConv2dParams& p, const Launch& launch);
int64_t backward_weight_nchw_workspace(const DepthwiseConv2dParams& p);

}  // namespace lightkernels::cpu
