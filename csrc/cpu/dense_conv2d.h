// Dense convolution on the CPU as matrix products: one description for forward and backward, and its drivers.
#pragma once

#include "../dense_conv2d.h"
#include "axis.h"
#include "epilogue.h"
#include "gemm.h"

namespace lightkernels::cpu {

// out[n, g*co + o, i, j] = epilogue(sum over k, u, v of w[o, k, u, v] * in[n, g*ci + k, h(i, u), w(j, v)]).
struct DenseConv {
  const void* in;
  Strides4 in_strides;
  int64_t ih, iw;
  void* out;
  Strides4 out_strides;
  int64_t oh, ow;
  const void* weight;  // strides may be negative
  int64_t w_group, w_o, w_k, w_u, w_v;
  int64_t n, groups, ci, co;
  Axis h, w;
  DType dtype;
  Epilogue epilogue;
  Activation input_activation;
  const void* input_gate;
  int64_t input_gate_n, input_gate_c;
  int64_t shuffle;
  Algorithm algorithm;
  const void* packed;  // what pack_dense made of it, or null

  int64_t taps() const { return h.count * w.count; }
  int64_t k() const { return ci * taps(); }
  bool channels_innermost() const;
};

// Any DenseConv. Workspace and packed weights are in bytes.
int64_t dense_workspace(const DenseConv& d);
void dense_convolve(const DenseConv& d, const Launch& launch);
int64_t dense_packed_bytes(const DenseConv& d);
void pack_dense(const DenseConv& d, void* packed, const Launch& launch);

// dweight and dbias.
int64_t dense_weight_workspace(const DenseConv2dParams& p);
void dense_backward_weight(const DenseConv2dParams& p, const Launch& launch);

// --- what follows is shared by the drivers ---

constexpr int kMostSegments = 32;   // of a tile: more taps than these are added in turns
constexpr int64_t kMostSlots = 64;  // chunks of units that have memory of their own
constexpr int64_t kAlign = 64;

inline int64_t aligned(int64_t bytes) { return (bytes + kAlign - 1) / kAlign * kAlign; }

// Units that a thread should be given at least, when all of them are `work` multiply-adds.
inline int64_t grain_of(int64_t units, int64_t work) {
  return 1 + units * (1 << 18) / std::max<int64_t>(work, 1 << 18);
}

// One clamp for the clipped activations.
template <class S>
struct Limits {
  S low, high;

  static constexpr S infinity() { return __builtin_inf(); }
  explicit Limits(Activation a) {
    const S inf = __builtin_inf();
    low = a == Activation::kRelu || a == Activation::kRelu6 ? S(0) : -inf;
    high = a == Activation::kRelu6 ? S(6) : inf;
  }
};

// A tile of any number of segments, which segments_of(from, to) lists; bias, low and high hold for the whole.
template <class S, class F>
LIGHTKERNELS_INLINE void multiply_in_turns(Tile<S> tile, int64_t count, F&& segments_of, Form form = Form::kRows) {
  const S low = tile.low, high = tile.high, inf = __builtin_inf();
  for (int64_t at = 0;; at += kMostSegments) {
    const int64_t to = std::min(count, at + kMostSegments);
    const bool last = to == count;
    tile.segments = segments_of(at, to), tile.count = to - at;
    tile.low = last ? low : -inf, tile.high = last ? high : inf;
    multiply_tile(form, tile);
    if (last) return;
    tile.accumulate = true, tile.bias = nullptr;
  }
}

// Where the outputs from (i, j) of image n on are finished, along a row or `down` a column; the caller adds the tile
// and the first channel.
template <class E>
Finish<Acc<E>> finish_from(const DenseConv& d, int64_t n, int64_t i, int64_t j, bool down = false) {
  const Strides4 &y = d.out_strides, &r = d.epilogue.residual_strides;
  Finish<Acc<E>> f{};
  f.epilogue = &d.epilogue, f.n = n;
  f.y = static_cast<E*>(d.out) + n * y.n + i * y.h + j * y.w;
  f.y_pixel = down ? y.h : y.w, f.y_channel = y.c;
  if (d.epilogue.residual) {
    f.residual = static_cast<const E*>(d.epilogue.residual) + n * r.n + i * r.h + j * r.w;
    f.residual_pixel = down ? r.h : r.w, f.residual_channel = r.c;
  }
  f.channels = d.groups * d.co, f.shuffle = d.shuffle;
  return f;
}

// The forward convolution.
inline DenseConv forward_of(const DenseConv2dParams& p) {
  DenseConv d{};
  d.in = p.x, d.in_strides = p.x_strides, d.ih = p.ih, d.iw = p.iw;
  d.out = p.y, d.out_strides = p.y_strides, d.oh = p.oh, d.ow = p.ow;
  const Strides4& w = p.weight_strides;
  d.weight = p.weight, d.w_group = p.co * w.n, d.w_o = w.n, d.w_k = w.c, d.w_u = w.h, d.w_v = w.w;
  d.n = p.n, d.groups = p.groups, d.ci = p.ci, d.co = p.co;
  d.h = forward_axis(p.kh, p.stride_h, p.padding_t, p.dilation_h);
  d.w = forward_axis(p.kw, p.stride_w, p.padding_l, p.dilation_w);
  d.dtype = p.dtype, d.epilogue = p.epilogue, d.shuffle = p.shuffle;
  d.input_activation = p.input_activation;
  d.input_gate = p.input_gate, d.input_gate_n = p.input_gate_n, d.input_gate_c = p.input_gate_c;
  d.algorithm = p.algorithm, d.packed = p.packed;
  return d;
}

// f(DenseConv) for each of those that make dx of dy.
template <class F>
void for_backward_input(const DenseConv2dParams& p, F&& f) {
  const int64_t size = size_of(p.dtype);
  for (int64_t phase_h = 0; phase_h < std::min(p.stride_h, p.ih); ++phase_h) {
    for (int64_t phase_w = 0; phase_w < std::min(p.stride_w, p.iw); ++phase_w) {
      DenseConv d{};
      d.in = p.y, d.in_strides = p.y_strides, d.ih = p.oh, d.iw = p.ow;
      d.h = transposed_axis(phase_h, p.kh, p.stride_h, p.padding_t, p.dilation_h);
      d.w = transposed_axis(phase_w, p.kw, p.stride_w, p.padding_l, p.dilation_w);
      const Strides4& x = p.x_strides;
      d.out = static_cast<char*>(p.x) + (phase_h * x.h + phase_w * x.w) * size;
      d.out_strides = {x.n, x.c, x.h * p.stride_h, x.w * p.stride_w};
      d.oh = (p.ih - phase_h + p.stride_h - 1) / p.stride_h, d.ow = (p.iw - phase_w + p.stride_w - 1) / p.stride_w;
      const Strides4& w = p.weight_strides;
      d.weight = static_cast<char*>(p.weight) + (d.h.tap * w.h + d.w.tap * w.w) * size;
      d.w_group = p.co * w.n, d.w_o = w.c, d.w_k = w.n, d.w_u = d.h.tap_step * w.h, d.w_v = d.w.tap_step * w.w;
      d.n = p.n, d.groups = p.groups, d.ci = p.co, d.co = p.ci;
      d.dtype = p.dtype, d.shuffle = 1;
      f(d);
    }
  }
}

}  // namespace lightkernels::cpu
