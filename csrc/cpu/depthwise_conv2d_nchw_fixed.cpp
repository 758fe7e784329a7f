// Depthwise convolution, columns innermost, K x K kernels of stride S, forward: tiles of R rows by L columns.
#include "depthwise_conv2d_nchw_fixed.h"

namespace lightkernels::cpu {
namespace {

// R output rows of one plane.
struct BandNchw {
  const float* x;  // input of output (0, 0) and tap (0, 0); may lie outside the plane
  int64_t x_h;
  int64_t dilation;     // of columns; rows that a dilated kernel does not see are no rows here
  const float* weight;  // tap (0, 0)
  int64_t w_h, w_w;
  float* y;
  int64_t y_h, rows;           // of the R rows, those that exist
  int64_t row_begin, row_end;  // the band's input rows inside the plane
  int64_t x_ahead, y_ahead;    // from the band to what to fetch; 0: nothing
};

// The weights of a 3 x 3 kernel stay in registers for a whole plane; larger ones are read from memory.
template <int K, int L>
struct WeightsNchw {
  Vec<float, L> taps[K == 3 ? 9 : 1];

  LIGHTKERNELS_INLINE explicit WeightsNchw(const BandNchw& b) {
    if constexpr (K == 3) {
      unroll<9>(LIGHTKERNELS_LAMBDA(auto j) { taps[j] = splat<L>(b.weight[j / 3 * b.w_h + j % 3 * b.w_w]); });
    }
  }
};

// sums[i] += weight * x over all taps: row by row, with all weights in registers.
template <int K, int S, int R, int L, bool kRows, bool kColumns>
LIGHTKERNELS_INLINE void accumulate_rows(const BandNchw& b, const WeightsNchw<K, L>& weights,
                                         const Strip<K, S, L>& strip, Vec<float, L> (&sums)[R]) {
  using V = Vec<float, L>;
  LaneRange<L> lanes[Strip<K, S, L>::kLoads];
  unroll<Strip<K, S, L>::kLoads>(LIGHTKERNELS_LAMBDA(auto j) { lanes[j] = strip.lanes[j]; });
  unroll<(R - 1) * S + K>(LIGHTKERNELS_LAMBDA(auto r) {
    if (!kRows && (r < b.row_begin || r >= b.row_end)) return;
    const float* from = b.x + strip.o * S + r * b.x_h;
    unroll<(K + S - 1) / S>(LIGHTKERNELS_LAMBDA(auto pair) {
      constexpr int v = pair * S, N = std::min(S, K - v);
      V values[S];
      load_taps<K, S, N, L, kColumns>(from + v * b.dilation, lanes + v, values);
      unroll<R * N>(LIGHTKERNELS_LAMBDA(auto j) {
        constexpr int i = j / N, q = j % N, u = r - S * i;
        if constexpr (u >= 0 && u < K) sums[i] += values[q] * weights.taps[u * K + v + q];
      });
    });
  });
}

// The same column by column: K * S weights are enough.
template <int K, int S, int R, int L, bool kRows, bool kColumns>
LIGHTKERNELS_INLINE void accumulate_columns(const BandNchw& b, const Strip<K, S, L>& strip, Vec<float, L> (&sums)[R]) {
  using V = Vec<float, L>;
  const float* x = b.x + strip.o * S;
  auto taps = LIGHTKERNELS_LAMBDA(auto count, int v) {
    constexpr int N = count;
    V weights[N][K];
    unroll<N * K>(LIGHTKERNELS_LAMBDA(auto j) {
      weights[j / K][j % K] = splat<L>(b.weight[j % K * b.w_h + (v + j / K) * b.w_w]);
    });
    unroll<(R - 1) * S + K>(LIGHTKERNELS_LAMBDA(auto r) {
      if (!kRows && (r < b.row_begin || r >= b.row_end)) return;
      V values[S];
      load_taps<K, S, N, L, kColumns>(x + r * b.x_h + v * b.dilation, strip.lanes + v, values);
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

template <int K, int S, int R, int L, bool kRows, bool kColumns>
LIGHTKERNELS_INLINE void tile_fixed(const BandNchw& b, const WeightsNchw<K, L>& weights, const Strip<K, S, L>& strip,
                                    int64_t ow, float bias, Activation activation, const Clip<float>& clip) {
  using V = Vec<float, L>;
  V sums[R];
  unroll<R>(LIGHTKERNELS_LAMBDA(auto i) { sums[i] = splat<L>(bias); });
  if constexpr (K == 3) {
    accumulate_rows<K, S, R, L, kRows, kColumns>(b, weights, strip, sums);
  } else {
    accumulate_columns<K, S, R, L, kRows, kColumns>(b, strip, sums);
  }
  if (b.x_ahead) {
    fetch_rows<false, R * S, S, L>(b.x + b.x_ahead + strip.o * S, b.x_h);
    fetch_rows<true, R, 1, L>(b.y + b.y_ahead + strip.o, b.y_h);
  }
  const V low = splat<L>(clip.low), high = splat<L>(clip.high);
  if (clip.smooth) {
    V z[R];
    unroll<R>(LIGHTKERNELS_LAMBDA(auto i) { z[i] = sums[i]; });
    smooth_all<L>(z, R, activation);
    unroll<R>(LIGHTKERNELS_LAMBDA(auto i) { sums[i] = z[i]; });
  }
  float* y = b.y + strip.o;
  if (kColumns || ow >= L) {
    unroll<R>(LIGHTKERNELS_LAMBDA(auto i) {
      if (kRows || i < b.rows) store<L>(y + i * b.y_h, clamp(sums[i], low, high));
    });
  } else {
    unroll<R>(LIGHTKERNELS_LAMBDA(auto i) {
      if (i < b.rows) strip.outputs.store(y + i * b.y_h, clamp(sums[i], low, high));
    });
  }
}

// One grid (all there is without dilation) of one plane.
template <int K, int S, int R, int L>
LIGHTKERNELS_INLINE void plane_fixed(const DepthwiseConv2dParams& p, const GridAxis& h, const float* x, float* y,
                                     Strips<K, S, L, false>& strips, float bias, const Clip<float>& clip, BandNchw& b) {
  const WeightsNchw<K, L> weights(b);
  // The last band and the last strip slide back to the plane's end.
  for (int64_t row = 0;; row = std::min(row + R, h.out - R)) {
    const int64_t ih = row * S - h.padding;
    b.x = x + ih * b.x_h, b.y = y + row * b.y_h, b.rows = std::min<int64_t>(R, h.out - row);
    b.row_begin = -ih, b.row_end = h.in - ih;
    const bool rows_inside = b.row_begin <= 0 && b.row_end >= (R - 1) * S + K && b.rows == R;
    strips.each(LIGHTKERNELS_LAMBDA(const Strip<K, S, L>& strip) {
      if (rows_inside && strip.inside) {
        tile_fixed<K, S, R, L, true, true>(b, weights, strip, p.ow, bias, p.activation, clip);
      } else if (rows_inside) {
        tile_fixed<K, S, R, L, true, false>(b, weights, strip, p.ow, bias, p.activation, clip);
      } else {
        tile_fixed<K, S, R, L, false, false>(b, weights, strip, p.ow, bias, p.activation, clip);
      }
    });
    if (row + R >= h.out) break;
  }
}

// Output planes [begin, end) of n * c. Small planes take some thirty cycles each: no division is among them.
template <int K, int S, int R, int L>
[[gnu::noinline]] void planes_fixed(const DepthwiseConv2dParams& p, int64_t begin, int64_t end) {
  const Clip<float> clip(p.activation);
  Strips<K, S, L, false> strips(p);
  BandNchw b;
  b.x_h = p.x_strides.h * p.dilation_h, b.y_h = p.y_strides.h * p.dilation_h, b.dilation = p.dilation_w;
  b.w_h = p.weight_h, b.w_w = p.weight_w;
  b.x_ahead = fetch_ahead(p, R * S, p.x_strides.h), b.y_ahead = b.x_ahead ? fetch_ahead(p, R, p.y_strides.h) : 0;
  for (int64_t phase = 0; phase < std::min(p.dilation_h, p.oh); ++phase) {
    const GridAxis h(phase, p.dilation_h, p.ih, p.oh, p.padding_t);
    for (PlaneIndex at(begin, p.c, p.multiplier); at.unit < end; ++at) {
      b.weight = static_cast<const float*>(p.weight) + at.c * p.weight_c;
      const float* x = static_cast<const float*>(p.x) + at.n * p.x_strides.n + at.in_c * p.x_strides.c +
                       h.in_first * p.x_strides.h - p.padding_l;
      float* y = static_cast<float*>(p.y) + at.n * p.y_strides.n + at.c * p.y_strides.c + phase * p.y_strides.h;
      const float bias = p.bias ? static_cast<const float*>(p.bias)[at.c] : 0.0f;
      plane_fixed<K, S, R, L>(p, h, x, y, strips, bias, clip, b);
    }
  }
}

}  // namespace

void forward_fixed_nchw(const DepthwiseConv2dParams& p, const Launch& launch) {
  launch.parallel(p.n * p.c, grain_of(p, p.n * p.c), [&](int64_t begin, int64_t end) {
    with_fixed(p, [&](auto k, auto s) {
      with_lanes<k>(p.ow, [&](auto l) {
        // All grids of a plane before the next plane; a loop over grids among the planes would cost small ones a fifth.
        const int64_t step = p.dilation_h > 1 ? 1 : end - begin;
        constexpr int kTall = kRegisters == 32 || k > 3 ? 7 : 4;
        const bool low = kTall > 4 && p.oh <= 4 * p.dilation_h;
        for (int64_t unit = begin; unit < end; unit += step) {
          low ? planes_fixed<k, s, 4, l>(p, unit, unit + step) : planes_fixed<k, s, kTall, l>(p, unit, unit + step);
        }
      });
    });
  });
}

}  // namespace lightkernels::cpu
