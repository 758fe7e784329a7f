// Depthwise convolution, channels innermost: what its passes share. Which layers have unrolled kernels, weights in the
// kernels' order, dilation as several convolutions without it.
#pragma once

#include "depthwise_conv2d_nhwc_fixed.h"

namespace lightkernels::cpu {

inline bool is_fixed(const DepthwiseConv2dParams& p) {
  return p.dtype == DType::kFloat32 && p.kh == p.kw && (p.kh == 3 || p.kh == 5 || p.kh == 7) &&
         p.stride_h == p.stride_w && p.multiplier == 1 && p.c >= lanes<float>() &&
         (p.stride_h == 1 || (p.stride_h == 2 && p.dilation_h == 1 && p.dilation_w == 1));
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

// --- weights as the channels-innermost kernels want them: Acc<E>, channels side by side ---

inline bool needs_packing(const DepthwiseConv2dParams& p, int64_t layers) {
  return p.weight_c != 1 || size_of(p.dtype) == 2 || layers > 1;
}

inline int64_t packed_bytes(const DepthwiseConv2dParams& p) { return p.kh * p.kw * p.c * acc_size(p); }

template <class E>
struct Weight {
  const Acc<E>* data;   // tap (0, 0) of channel 0 of layer 0; channels are next to each other
  int64_t layer, h, w;  // strides of layers and taps
};

// [layers, kh, kw, c / layers] from channel `c * layers + layer`. Blocks of 16 move whole cache lines on both sides.
template <class E>
void pack(const DepthwiseConv2dParams& p, int64_t layers, Acc<E>* packed) {
  const E* weight = static_cast<const E*>(p.weight);
  const int64_t taps = p.kh * p.kw, channels = p.c / layers;
  for (int64_t layer = 0; layer < layers; ++layer, packed += taps * channels) {
    for (int64_t c0 = 0; c0 < channels; c0 += 16) {
      const int64_t count = std::min<int64_t>(16, channels - c0);
      for (int64_t u = 0; u < p.kh; ++u) {
        for (int64_t v = 0; v < p.kw; ++v) {
          const E* from = weight + (c0 * layers + layer) * p.weight_c + u * p.weight_h + v * p.weight_w;
          Acc<E>* to = packed + (u * p.kw + v) * channels + c0;
          for (int64_t c = 0; c < count; ++c) to[c] = load<1>(from + c * layers * p.weight_c)[0];
        }
      }
    }
  }
}

template <class E>
Weight<E> weight_of(const DepthwiseConv2dParams& p, int64_t layers, void* workspace) {
  if constexpr (std::is_same_v<E, Acc<E>>) {
    if (!needs_packing(p, layers)) return {static_cast<const E*>(p.weight), 0, p.weight_h, p.weight_w};
  }
  auto* packed = static_cast<Acc<E>*>(workspace);
  pack<E>(p, layers, packed);
  const int64_t channels = p.c / layers;
  return {packed, p.kh * p.kw * channels, p.kw * channels, channels};
}

// The bias in Acc<E>, or null.
template <class E>
const Acc<E>* bias_of(const DepthwiseConv2dParams& p, void* workspace) {
  if constexpr (std::is_same_v<E, Acc<E>>) {
    return static_cast<const E*>(p.bias);
  } else {
    if (!p.bias) return nullptr;
    auto* bias = static_cast<float*>(workspace);
    for (int64_t c = 0; c < p.c; ++c) bias[c] = load<1>(static_cast<const E*>(p.bias) + c)[0];
    return bias;
  }
}

// --- one convolution as others ---

// At stride 1 the transposed convolution is a forward one, of dy with the turned kernel.
inline DepthwiseConv2dParams turned(const DepthwiseConv2dParams& p) {
  DepthwiseConv2dParams t = p;
  t.x = p.y, t.x_strides = p.y_strides, t.ih = p.oh, t.iw = p.ow;
  t.y = p.x, t.y_strides = p.x_strides, t.oh = p.ih, t.ow = p.iw;
  t.padding_t = (p.kh - 1) * p.dilation_h - p.padding_t, t.padding_l = (p.kw - 1) * p.dilation_w - p.padding_l;
  t.bias = nullptr, t.activation = Activation::kNone;
  return t;
}

// A convolution of dilation (dh, dw) and stride 1 is dh * dw convolutions without dilation, each on every dh-th row and
// dw-th column. Grid (i, j) has the outputs i + dh * a, j + dw * b; without dilation there is one grid, p itself.
inline DepthwiseConv2dParams grid_of(const DepthwiseConv2dParams& p, int64_t i, int64_t j) {
  DepthwiseConv2dParams g = p;
  auto cut = [](int64_t phase, int64_t d, int64_t& in, int64_t& out, int64_t& padding, int64_t& in_stride,
                int64_t& out_stride) {
    const int64_t whole = floor_div(phase - padding, d), start = phase - padding - whole * d;
    in = (in - start + d - 1) / d, out = (out - phase + d - 1) / d;
    padding = -whole;
    in_stride *= d, out_stride *= d;
    return start;
  };
  const int64_t row = cut(i, p.dilation_h, g.ih, g.oh, g.padding_t, g.x_strides.h, g.y_strides.h);
  const int64_t column = cut(j, p.dilation_w, g.iw, g.ow, g.padding_l, g.x_strides.w, g.y_strides.w);
  g.x = static_cast<float*>(p.x) + row * p.x_strides.h + column * p.x_strides.w;
  g.y = static_cast<float*>(p.y) + i * p.y_strides.h + j * p.y_strides.w;
  g.dilation_h = g.dilation_w = 1;
  return g;
}

// f(grid, n, band) for all bands of R output rows of all grids; units count up to `bands_of(p, R)`.
inline int64_t grids_h(const DepthwiseConv2dParams& p) { return std::min(p.dilation_h, p.oh); }
inline int64_t grids_w(const DepthwiseConv2dParams& p) { return std::min(p.dilation_w, p.ow); }
inline int64_t bands_of(const DepthwiseConv2dParams& p, int64_t rows) {
  const int64_t per_grid = ((p.oh - 1) / p.dilation_h + rows) / rows;
  return p.n * grids_h(p) * grids_w(p) * per_grid;
}
template <class F>
void for_bands(const DepthwiseConv2dParams& p, int64_t rows, int64_t begin, int64_t end, F&& f) {
  const int64_t grids = grids_h(p) * grids_w(p), per_grid = bands_of(p, rows) / (p.n * grids);
  for (int64_t unit = begin; unit < end; ++unit) {
    const int64_t grid = unit / per_grid % grids, oh = unit % per_grid * rows;
    const DepthwiseConv2dParams g = grid_of(p, grid / grids_w(p), grid % grids_w(p));
    if (oh < g.oh && g.ow > 0) f(g, unit / per_grid / grids, oh);
  }
}

}  // namespace lightkernels::cpu
