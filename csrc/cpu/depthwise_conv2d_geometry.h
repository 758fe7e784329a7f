// What both layouts of depthwise convolution share: activations, vectors over a range, and one axis of the geometry.
#pragma once

#include <algorithm>
#include <utility>

#include "../depthwise_conv2d.h"
#include "activations.h"
#include "axis.h"

namespace lightkernels::cpu {

// The clipped activations are one clamp; none clips nothing.
template <class S>
struct Clip {
  bool smooth;  // not a clamp at all
  S low, high;

  explicit Clip(Activation a) {
    const S inf = __builtin_inf();
    smooth = a != Activation::kNone && a != Activation::kRelu && a != Activation::kRelu6;
    low = a == Activation::kRelu || a == Activation::kRelu6 ? S(0) : -inf;
    high = a == Activation::kRelu6 ? S(6) : inf;
  }
};

// Those that are not networks' everyday ones: a function of its own, or every kernel would hold all of them.
template <int L, class S>
[[gnu::noinline]] Vec<S, L> rarely_smooth(Vec<S, L> z, Activation activation) {
  return activate<L, S>(z, activation, S(0), Vec<S, L>{});
}

template <int L, class S>
LIGHTKERNELS_INLINE Vec<S, L> smooth(Vec<S, L> z, Activation activation) {
  if (activation == Activation::kSilu) return activate<Activation::kSilu, L, S>(z, z);
  if (activation == Activation::kHardswish) return activate<Activation::kHardswish, L, S>(z, z);
  return rarely_smooth<L, S>(z, activation);
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

// How the channel of an input follows from the channel c of an output: c * times / over.
struct ChannelMap {
  int64_t times, over;
  bool is_identity() const { return times == 1 && over == 1; }
};

// --- one convolution for both directions ---

// `in` is convolved into `out`: forward x into y, transposed y into x.
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

// --- layers with unrolled kernels: K x K of stride S, in float32 ---

inline bool is_fixed(const DepthwiseConv2dParams& p) {
  return p.dtype == DType::kFloat32 && p.kh == p.kw && (p.kh == 3 || p.kh == 5 || p.kh == 7) &&
         p.stride_h == p.stride_w && (p.stride_h == 1 || (p.stride_h == 2 && p.dilation_h == 1 && p.dilation_w == 1));
}

// Calls f(K, S) with the kernel size and stride of a fixed kernel as constants.
template <class F>
void with_fixed(const DepthwiseConv2dParams& p, F&& f) {
  using std::integral_constant;
  auto with_stride = [&](auto k) {
    if (p.stride_h == 1) return f(k, integral_constant<int, 1>{});
    f(k, integral_constant<int, 2>{});
  };
  if (p.kh == 3) return with_stride(integral_constant<int, 3>{});
  if (p.kh == 5) return with_stride(integral_constant<int, 5>{});
  with_stride(integral_constant<int, 7>{});
}

// At stride 1 the transposed convolution is a forward one, of dy with the turned kernel.
inline DepthwiseConv2dParams turned(const DepthwiseConv2dParams& p) {
  DepthwiseConv2dParams t = p;
  t.x = p.y, t.x_strides = p.y_strides, t.ih = p.oh, t.iw = p.ow;
  t.y = p.x, t.y_strides = p.x_strides, t.oh = p.ih, t.ow = p.iw;
  t.padding_t = (p.kh - 1) * p.dilation_h - p.padding_t, t.padding_l = (p.kw - 1) * p.dilation_w - p.padding_l;
  t.weight = static_cast<float*>(p.weight) + (p.kh - 1) * p.weight_h + (p.kw - 1) * p.weight_w;
  t.weight_h = -p.weight_h, t.weight_w = -p.weight_w;
  t.bias = nullptr, t.activation = Activation::kNone;
  return t;
}

// Bytes of x and y from which what comes next is fetched ahead: below, it costs more than it brings
// (docs/measured.md).
constexpr int64_t kFarBytes = 4 << 20;

inline int64_t bytes_of(const DepthwiseConv2dParams& p) {
  return p.n * p.c * (p.ih * p.iw + p.oh * p.ow) * size_of(p.dtype);
}

// Channels that innermost ones are worked through at a time, so that the columns two tiles share are still in L1.
constexpr int64_t kChannelBlock = 64;

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
