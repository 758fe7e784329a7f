// Depthwise convolution, channels innermost: what its passes share. Which layers have unrolled kernels, weights in the
// kernels' order, dilation as several convolutions without it.
#pragma once

#include "depthwise_conv2d_nhwc_fixed.h"

namespace lightkernels::cpu {

inline bool is_fixed_nhwc(const DepthwiseConv2dParams& p) {
  return is_fixed(p) && p.multiplier == 1 && p.c >= lanes<float>();
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

// A convolution of dilation (dh, dw) and stride 1 is dh * dw convolutions without dilation, each on every dh-th row and
// dw-th column. Grid (i, j) has the outputs i + dh * a, j + dw * b; without dilation there is one grid, p itself.
inline DepthwiseConv2dParams grid_of(const DepthwiseConv2dParams& p, int64_t i, int64_t j) {
  const GridAxis h(i, p.dilation_h, p.ih, p.oh, p.padding_t), w(j, p.dilation_w, p.iw, p.ow, p.padding_l);
  DepthwiseConv2dParams g = p;
  g.x = static_cast<float*>(p.x) + h.in_first * p.x_strides.h + w.in_first * p.x_strides.w;
  g.y = static_cast<float*>(p.y) + i * p.y_strides.h + j * p.y_strides.w;
  g.ih = h.in, g.iw = w.in, g.oh = h.out, g.ow = w.out, g.padding_t = h.padding, g.padding_l = w.padding;
  g.x_strides.h *= p.dilation_h, g.x_strides.w *= p.dilation_w;
  g.y_strides.h *= p.dilation_h, g.y_strides.w *= p.dilation_w;
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
