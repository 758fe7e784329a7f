// Depthwise convolution, channels innermost, any kernel, stride, dilation and multiplier: one output row at a time.
#pragma once

#include <algorithm>

#include "../depthwise_conv2d.h"
#include "depthwise_conv2d_geometry.h"
#include "vec.h"

namespace lightkernels::cpu {

// Channels that a row is worked through at a time: few where the kernel is large, so that its weights stay cached.
inline int64_t channel_block(const DepthwiseConv2dParams& p) { return p.kh * p.kw > 64 ? 16 : kChannelBlock; }

// L values for output channels [c, c + L).
template <int L, class E>
[[gnu::noinline]] Vec<Acc<E>, L> gather(const E* x, int64_t c, ChannelMap map) {
  Vec<Acc<E>, L> v;
  for (int l = 0; l < L; ++l) v[l] = load<1>(x + (c + l) * map.times / map.over)[0];
  return v;
}
template <int L, bool kGather, class E>
LIGHTKERNELS_INLINE Vec<Acc<E>, L> load_mapped(const E* x, int64_t c, ChannelMap map) {
  if constexpr (kGather) return gather<L>(x, c, map);
  return load<L>(x + c);
}

// Output o of a row reads input columns first + o * step + v * dilation, v = 0 .. kw - 1, of every row of taps.
template <class E>
struct RowNhwc {
  const E* x;                   // column 0 of the first input row
  int64_t x_layer, x_row, x_w;  // strides: between layers, rows of taps, pixels
  int64_t iw, first, step, dilation;
  const Acc<E>* weight;  // first tap of channel 0
  int64_t w_layer, w_row, w_w;
  int64_t layers, kh, kw;  // layers: input channels that add to one output channel
  const Acc<E>* bias;      // or null
  E* y;
  int64_t y_w, ow;
  ChannelMap map;
  Activation activation;

  // Taps [begin, end) whose inputs are inside the image for all of outputs [o, o + count).
  std::pair<int64_t, int64_t> whole_taps(int64_t o, int64_t count) const {
    const int64_t a = first + o * step, last = iw - 1 - a - (count - 1) * step;
    const int64_t begin = a >= 0 ? 0 : (-a + dilation - 1) / dilation, end = last < 0 ? 0 : last / dilation + 1;
    return {std::min(begin, kw), std::max(std::min(begin, kw), std::min(end, kw))};
  }
};

// Outputs [o, o + T), channels [c, c + L). kDense: step and dilation are 1, so neighbouring taps share inputs.
template <int L, int T, bool kDense, bool kGather, class E>
LIGHTKERNELS_INLINE void segment_nhwc(const RowNhwc<E>& row, int64_t o, int64_t c, const Clip<Acc<E>>& clip) {
  using V = Vec<Acc<E>, L>;
  V sums[T];
  const V bias = row.bias ? load<L>(row.bias + c) : V{};
  unroll<T>(LIGHTKERNELS_LAMBDA(auto t) { sums[t] = bias; });
  // Taps whose inputs exist for all T outputs; the others are tested output by output.
  const auto [whole_begin, whole_end] = row.whole_taps(o, T);
  for (int64_t i = 0; i < row.layers * row.kh; ++i) {
    const int64_t layer = i / row.kh, u = i % row.kh;
    const E* x = row.x + layer * row.x_layer + u * row.x_row + (row.first + o * row.step) * row.x_w;
    const Acc<E>* weight = row.weight + layer * row.w_layer + u * row.w_row + c;
    auto partial = LIGHTKERNELS_LAMBDA(int64_t v) {
      const V w = load<L>(weight + v * row.w_w);
      const int64_t column = row.first + o * row.step + v * row.dilation;
      unroll<T>(LIGHTKERNELS_LAMBDA(auto t) {
        if (static_cast<uint64_t>(column + t * row.step) >= static_cast<uint64_t>(row.iw)) return;
        sums[t] += w * load_mapped<L, kGather>(x + (v * row.dilation + t * row.step) * row.x_w, c, row.map);
      });
    };
    auto whole = LIGHTKERNELS_LAMBDA(auto taps, int64_t v) {
      constexpr int N = taps;
      const E* from = x + v * row.dilation * row.x_w;
      if constexpr (N == 1) {
        const V w = load<L>(weight + v * row.w_w);
        unroll<T>(LIGHTKERNELS_LAMBDA(auto t) {
          sums[t] += w * load_mapped<L, kGather>(from + t * row.step * row.x_w, c, row.map);
        });
      } else {
        V weights[N];
        unroll<N>(LIGHTKERNELS_LAMBDA(auto k) { weights[k] = load<L>(weight + (v + k) * row.w_w); });
        unroll<T + N - 1>(LIGHTKERNELS_LAMBDA(auto column) {
          V value = load<L>(from + column * row.x_w + c);
          keep_in_register(value);
          unroll<N>(LIGHTKERNELS_LAMBDA(auto k) {
            constexpr int t = column - k;
            if constexpr (t >= 0 && t < T) sums[t] += value * weights[k];
          });
        });
      }
    };
    for (int64_t v = 0; v < whole_begin; ++v) partial(v);
    int64_t v = whole_begin;
    if constexpr (kDense) {
      for (; v + 4 <= whole_end; v += 4) whole(std::integral_constant<int, 4>{}, v);
    }
    for (; v < whole_end; ++v) whole(std::integral_constant<int, 1>{}, v);
    for (; v < row.kw; ++v) partial(v);
  }
  const V low = splat<L>(clip.low), high = splat<L>(clip.high);
  unroll<T>(LIGHTKERNELS_LAMBDA(auto t) {
    V z = sums[t];
    if (clip.smooth) z = smooth<L, Acc<E>>(z, row.activation);
    store<L>(row.y + (o + t) * row.y_w + c, clamp(z, low, high));
  });
}

template <int L, bool kDense, bool kGather, class E>
[[gnu::noinline]] void row_nhwc(const RowNhwc<E> row, int64_t c_begin, int64_t c_end) {
  const Clip<Acc<E>> clip(row.activation);
  int64_t o = 0;
  auto segments = LIGHTKERNELS_LAMBDA(auto T) {
    for (; o + T <= row.ow; o += T) {
      for_channels<L>(
          c_begin, c_end, LIGHTKERNELS_LAMBDA(int64_t c) { segment_nhwc<L, T, kDense, kGather>(row, o, c, clip); });
    }
  };
  if constexpr (kRegisters == 32) segments(std::integral_constant<int, 14>{});
  segments(std::integral_constant<int, 8>{});
  segments(std::integral_constant<int, 4>{});
  segments(std::integral_constant<int, 1>{});
}

template <class E>
void row_nhwc_any(const RowNhwc<E>& row, int64_t c_begin, int64_t c_end) {
  constexpr int L = lanes<E>();
  if constexpr (std::is_same_v<E, float> && L > 4) {
    if (c_end - c_begin >= 4 && c_end - c_begin < L && row.map.is_identity()) {
      return row_nhwc<4, false, false>(row, c_begin, c_end);
    }
  }
  if (c_end - c_begin < L) return row_nhwc<1, false, true>(row, c_begin, c_end);
  if (!row.map.is_identity()) return row_nhwc<L, false, true>(row, c_begin, c_end);
  if constexpr (std::is_same_v<E, float>) {
    if (row.step == 1 && row.dilation == 1) return row_nhwc<L, true, false>(row, c_begin, c_end);
  }
  row_nhwc<L, false, false>(row, c_begin, c_end);
}

}  // namespace lightkernels::cpu
