// Depthwise convolution, columns innermost, K x K kernels of stride S: tiles of R rows by L columns that read the plane
// where it lies.
//
// Nothing is staged: where a tile meets the plane's edge, its loads are masked and its rows are tested, so that planes
// narrower than a vector cost one masked load for each tap and row.
#pragma once

#include <algorithm>

#include "../depthwise_conv2d.h"
#include "depthwise_conv2d_geometry.h"
#include "vec.h"

namespace lightkernels::cpu {

// --- loads of a strip: L outputs of a row, whose first is column o ---

// Which lanes of a strip's loads lie inside the plane. At stride 2 two vectors are loaded for each pair of taps.
template <int K, int S, int L>
struct Strip {
  static constexpr int kLoads = (K + S - 1) / S * S;
  int64_t o;
  bool inside;  // all lanes of all loads
  LaneRange<L> lanes[kLoads];

  // Only lanes [begin, end) count.
  void set(int64_t column, int64_t padding, int64_t dilation, int64_t iw, int64_t begin, int64_t end) {
    o = column;
    const int64_t first = o * S - padding;
    inside = begin <= 0 && end >= L && first >= 0 && first + (kLoads - S) * dilation + S * L <= iw;
    for (int load = 0; load < kLoads; ++load) {
      const int64_t at = first + load / S * S * dilation + load % S * L;
      const int64_t from = load % S * L;
      lanes[load] = LaneRange<L>(std::max(-at, S * begin - from), std::min(iw - at, S * end + 1 - from));
    }
  }
};

// --- forward ---

// R output rows of one plane.
template <class E>
struct BandNchw {
  const E* x;  // input of output (0, 0) and tap (0, 0); may lie outside the plane
  int64_t x_h;
  int64_t dilation;  // of columns; rows that a dilated kernel does not see are no rows here
  const E* weight;   // tap (0, 0)
  int64_t w_h, w_w;
  E* y;
  int64_t y_h, rows;           // of the R rows, those that exist
  int64_t row_begin, row_end;  // the band's input rows inside the plane
};

// sums[i] += weight * x over all taps.
template <int K, int S, int R, int L, bool kInside>
LIGHTKERNELS_INLINE void accumulate_fixed(const BandNchw<float>& b, const Strip<K, S, L>& strip,
                                          Vec<float, L> (&sums)[R]) {
  using V = Vec<float, L>;
  const float* x = b.x + strip.o * S;
  auto taps = LIGHTKERNELS_LAMBDA(auto count, int v) {
    constexpr int N = count;
    V weights[N][K];
    unroll<N * K>(LIGHTKERNELS_LAMBDA(auto j) {
      weights[j / K][j % K] = splat<L>(b.weight[j % K * b.w_h + (v + j / K) * b.w_w]);
    });
    unroll<(R - 1) * S + K>(LIGHTKERNELS_LAMBDA(auto r) {
      if (!kInside && (r < b.row_begin || r >= b.row_end)) return;
      V values[S];
      const float* from = x + r * b.x_h + v * b.dilation;
      unroll<S>(LIGHTKERNELS_LAMBDA(auto q) {
        values[q] = kInside ? load<L>(from + q * L) : strip.lanes[v + q].load(from + q * L);
      });
      if constexpr (S == 2) {
        const V even = shuffle<EvenLanes, L, float>(values[0], values[1]);
        if constexpr (N == 2) values[1] = shuffle<OddLanes, L, float>(values[0], values[1]);
        values[0] = even;
      } else {
        keep_in_register(values[0]);
      }
      unroll<R * N>(LIGHTKERNELS_LAMBDA(auto j) {
        constexpr int i = j / N, q = j % N, u = r - S * i;
        if constexpr (u >= 0 && u < K) sums[i] += values[q] * weights[q][u];
      });
    });
  };
  int v = 0;
  for (; v + S <= K; v += S) taps(std::integral_constant<int, S>{}, v);
  if constexpr (K % S != 0) taps(std::integral_constant<int, 1>{}, v);
}

// Out of line: an exponential in each of many kernels is much code for what takes its time anyway.
template <int L>
[[gnu::noinline]] void smooth_all(Vec<float, L>* z, int count, Activation activation) {
  for (int i = 0; i < count; ++i) z[i] = smooth<L, float>(z[i], activation);
}

template <int K, int S, int R, int L, bool kInside>
LIGHTKERNELS_INLINE void tile_fixed(const BandNchw<float>& b, const Strip<K, S, L>& strip, int64_t ow, float bias,
                                    Activation activation, const Clip<float>& clip) {
  using V = Vec<float, L>;
  V sums[R];
  unroll<R>(LIGHTKERNELS_LAMBDA(auto i) { sums[i] = splat<L>(bias); });
  accumulate_fixed<K, S, R, L, kInside>(b, strip, sums);
  const V low = splat<L>(clip.low), high = splat<L>(clip.high);
  if (clip.smooth) {
    V z[R];
    unroll<R>(LIGHTKERNELS_LAMBDA(auto i) { z[i] = sums[i]; });
    smooth_all<L>(z, R, activation);
    unroll<R>(LIGHTKERNELS_LAMBDA(auto i) { sums[i] = z[i]; });
  }
  float* y = b.y + strip.o;
  if (ow >= L) {
    unroll<R>(LIGHTKERNELS_LAMBDA(auto i) {
      if (kInside || i < b.rows) store<L>(y + i * b.y_h, clamp(sums[i], low, high));
    });
  } else {
    const LaneRange<L> exist(0, ow);
    unroll<R>(LIGHTKERNELS_LAMBDA(auto i) {
      if (i < b.rows) exist.store(y + i * b.y_h, clamp(sums[i], low, high));
    });
  }
}

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

// Output planes [begin, end) of n * c.
template <int K, int S, int R, int L>
[[gnu::noinline]] void planes_fixed(const DepthwiseConv2dParams& p, int64_t begin, int64_t end) {
  const Clip<float> clip(p.activation);
  Strip<K, S, L> first, strip;
  first.set(0, p.padding_l, p.dilation_w, p.iw, 0, L);
  const int64_t dilation = p.dilation_h;
  for (int64_t unit = begin; unit < end; ++unit) {
    const int64_t n = unit / p.c, c = unit % p.c;
    const float bias = p.bias ? static_cast<const float*>(p.bias)[c] : 0.0f;
    for (int64_t phase = 0; phase < std::min(dilation, p.oh); ++phase) {
      const GridAxis h(phase, dilation, p.ih, p.oh, p.padding_t);
      BandNchw<float> b;
      b.x_h = p.x_strides.h * dilation, b.y_h = p.y_strides.h * dilation, b.dilation = p.dilation_w;
      b.weight = static_cast<const float*>(p.weight) + c * p.weight_c, b.w_h = p.weight_h, b.w_w = p.weight_w;
      const float* x = static_cast<const float*>(p.x) + n * p.x_strides.n + c / p.multiplier * p.x_strides.c +
                       h.in_first * p.x_strides.h - p.padding_l;
      float* y = static_cast<float*>(p.y) + n * p.y_strides.n + c * p.y_strides.c + phase * p.y_strides.h;
      // The last band and the last strip slide back to the plane's end.
      for (int64_t row = 0;; row = std::min(row + R, h.out - R)) {
        const int64_t ih = row * S - h.padding;
        b.x = x + ih * b.x_h, b.y = y + row * b.y_h, b.rows = std::min<int64_t>(R, h.out - row);
        b.row_begin = -ih, b.row_end = h.in - ih;
        const bool rows_inside = b.row_begin <= 0 && b.row_end >= (R - 1) * S + K && b.rows == R;
        for (int64_t o = 0;; o = std::min(o + L, p.ow - L)) {
          if (o != 0) strip.set(o, p.padding_l, p.dilation_w, p.iw, 0, L);
          const Strip<K, S, L>& at = o ? strip : first;
          if (rows_inside && at.inside && p.ow >= L) {
            tile_fixed<K, S, R, L, true>(b, at, p.ow, bias, p.activation, clip);
          } else {
            tile_fixed<K, S, R, L, false>(b, at, p.ow, bias, p.activation, clip);
          }
          if (o + L >= p.ow) break;
        }
        if (row + R >= h.out) break;
      }
    }
  }
}

// --- which kernel ---

inline bool is_fixed_nchw(const DepthwiseConv2dParams& p) {
  return p.dtype == DType::kFloat32 && p.kh == p.kw && (p.kh == 3 || p.kh == 5 || p.kh == 7) &&
         p.stride_h == p.stride_w && p.x_strides.w == 1 && p.y_strides.w == 1 &&
         (p.stride_h == 1 || (p.stride_h == 2 && p.dilation_h == 1 && p.dilation_w == 1));
}

// Calls f(K, S) with the kernel size and stride of a fixed kernel as constants.
template <class F>
void with_fixed_nchw(const DepthwiseConv2dParams& p, F&& f) {
  using std::integral_constant;
  auto with_stride = [&](auto k) {
    if (p.stride_h == 1) return f(k, integral_constant<int, 1>{});
    f(k, integral_constant<int, 2>{});
  };
  if (p.kh == 3) return with_stride(integral_constant<int, 3>{});
  if (p.kh == 5) return with_stride(integral_constant<int, 5>{});
  with_stride(integral_constant<int, 7>{});
}

// Calls f(L) with as many lanes as a row of `columns` fills best.
template <class F>
void with_lanes(int64_t columns, F&& f) {
  constexpr int kMost = lanes<float>();
  if (columns <= 4 || kMost == 4) return f(std::integral_constant<int, 4>{});
  if (columns <= 8 || kMost == 8) return f(std::integral_constant<int, std::min(8, kMost)>{});
  f(std::integral_constant<int, kMost>{});
}

// y from x, weight, bias; p's weight may have any strides, negative ones included.
inline void forward_fixed_nchw(const DepthwiseConv2dParams& p, int64_t begin, int64_t end) {
  with_fixed_nchw(p, [&](auto k, auto s) {
    with_lanes(p.ow, [&](auto l) {
      constexpr int kTall = kRegisters == 32 ? 7 : 4;
      if (kTall > 4 && p.oh <= 4 * p.dilation_h) return planes_fixed<k, s, 4, l>(p, begin, end);
      planes_fixed<k, s, kTall, l>(p, begin, end);
    });
  });
}

}  // namespace lightkernels::cpu
