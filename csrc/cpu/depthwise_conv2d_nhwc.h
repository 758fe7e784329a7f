// Depthwise convolution, channels innermost: a vector is L channels of one pixel, so nothing is ever shuffled.
#pragma once

#include <algorithm>

#include "../depthwise_conv2d.h"
#include "depthwise_conv2d_geometry.h"
#include "vec.h"

namespace lightkernels::cpu {

// for_channels for kernels that add to memory: f(c, done), where the first `done` lanes at c were dealt with before.
template <int L, class F>
LIGHTKERNELS_INLINE void for_channels_once(int64_t begin, int64_t end, F&& f) {
  int64_t c = begin;
  for (; c + L <= end; c += L) f(c, 0);
  if (c < end) f(end - L, static_cast<int>(L - (end - c)));
}

// Stores v, but for its first `done` lanes.
template <int L, class S>
[[gnu::noinline, gnu::cold]] void store_tail(S* p, Vec<S, L> v, int done) {
  std::memcpy(p + done, reinterpret_cast<const S*>(&v) + done, (L - done) * sizeof(S));
}
template <int L, class S>
LIGHTKERNELS_INLINE void store_rest(S* p, Vec<S, L> v, int done) {
  if (done) return store_tail<L>(p, v, done);
  store<L>(p, v);
}

// --- a K x K kernel, stride S, no dilation: tiles of R x T outputs, everything in them unrolled
// ------------------------- Rows x columns of a tile, by what fits the registers (docs/measured.md has the other shapes
// that were tried).
template <int K, int S>
constexpr int kTileRows = kRegisters == 32 ? (K == 3 ? 4 : 2) : (K == 3 ? 2 : 1);
template <int K, int S>
constexpr int kTileColumns = kRegisters == 32 ? (K == 3 ? 4 : 7) : (K == 3 ? (S == 1 ? 4 : 3) : 7);

// Channels that a band is worked through at a time, so that the columns two tiles share are still in L1.
constexpr int64_t kChannelBlock = 64;

template <int L, class F>
LIGHTKERNELS_INLINE void for_channel_blocks(int64_t channels, F&& f) {
  for (int64_t begin = 0; begin < channels;) {
    const int64_t end = channels - begin < kChannelBlock + L ? channels : begin + kChannelBlock;
    f(begin, end);
    begin = end;
  }
}

// R output rows of one image: all columns, all channels.
template <class E>
struct BandNhwc {
  E* x;                  // input pixel of output (0, 0) and tap (0, 0); may lie outside the image
  int64_t x_h, x_w;      // strides
  const Acc<E>* weight;  // tap (0, 0) of channel 0
  int64_t w_h, w_w;      // strides of its taps
  const Acc<E>* bias;    // or null
  E* y;                  // output (0, 0)
  int64_t y_h, y_w;
  int64_t c, ow;
  int64_t row_begin, row_end;        // the band's input rows inside the image
  int64_t column_begin, column_end;  // the same for columns
  int64_t rows;                      // the band's output rows inside the image end here
  int64_t first_row, first_column;   // and start here (0 but for transposed convolutions)
  Activation activation;
  bool far;  // are the tensors too large for the caches to keep?
};

// Bytes of x and y from which the next band is fetched ahead: below, it costs more than it brings (docs/measured.md).
constexpr int64_t kFarBytes = 4 << 20;

inline bool is_far(const DepthwiseConv2dParams& p) {
  return p.n * p.c * (p.ih * p.iw + p.oh * p.ow) * size_of(p.dtype) > kFarBytes;
}

// The band that starts at output row oh, of a convolution that reads x and writes y.
template <int K, int S, int R, class E>
BandNhwc<E> band_of(const DepthwiseConv2dParams& p, int64_t n, int64_t oh) {
  const int64_t ih = oh * S - p.padding_t;
  BandNhwc<E> b{};
  b.x_h = p.x_strides.h, b.x_w = p.x_strides.w, b.y_h = p.y_strides.h, b.y_w = p.y_strides.w;
  b.x = static_cast<E*>(p.x) + n * p.x_strides.n + ih * b.x_h - p.padding_l * b.x_w;
  b.y = static_cast<E*>(p.y) + n * p.y_strides.n + oh * b.y_h;
  b.c = p.c, b.ow = p.ow, b.activation = p.activation;
  b.row_begin = std::max<int64_t>(0, -ih), b.row_end = std::min<int64_t>((R - 1) * S + K, p.ih - ih);
  b.column_begin = p.padding_l, b.column_end = p.iw + p.padding_l;
  b.rows = std::min<int64_t>(R, p.oh - oh);
  return b;
}

// Outputs of columns [ow, ow + T). kInside: all of them exist, and so do all their inputs.
template <int K, int S, int R, int T, bool kInside, class E>
LIGHTKERNELS_INLINE void tile_nhwc(const BandNhwc<E>& b, int64_t ow, int64_t c_begin, int64_t c_end,
                                   const Clip<Acc<E>>& clip) {
  constexpr int L = lanes<E>(), kRows = (R - 1) * S + K, kColumns = (T - 1) * S + K;
  using V = Vec<Acc<E>, L>;
  const int64_t column_begin = b.column_begin - ow * S, column_end = b.column_end - ow * S;
  const V low = splat<L>(clip.low), high = splat<L>(clip.high);
  for_channels<L>(
      c_begin, c_end, LIGHTKERNELS_LAMBDA(int64_t c) {
        V sums[R][T];
        const V bias = b.bias ? load<L>(b.bias + c) : V{};
        unroll<R * T>(LIGHTKERNELS_LAMBDA(auto i) { sums[i / T][i % T] = bias; });
        if (K > 3 && kInside && b.far) {
          unroll<R * S * T * S>(LIGHTKERNELS_LAMBDA(auto i) {
            fetch<false>(b.x + (kRows + i / (T * S)) * b.x_h + (ow * S + i % (T * S)) * b.x_w + c);
          });
          unroll<R * T>(
              LIGHTKERNELS_LAMBDA(auto i) { fetch<true>(b.y + (R + i / T) * b.y_h + (ow + i % T) * b.y_w + c); });
        }
        unroll<kRows>(LIGHTKERNELS_LAMBDA(auto r) {
          if (!kInside && (r < b.row_begin || r >= b.row_end)) return;
          // Input row r is kernel row r - S * i of output row i.
          V weights[R][K];
          unroll<R * K>(LIGHTKERNELS_LAMBDA(auto j) {
            constexpr int i = j / K, u = r - S * i;
            if constexpr (u >= 0 && u < K) weights[i][j % K] = load<L>(b.weight + u * b.w_h + (j % K) * b.w_w + c);
          });
          const E* x = b.x + r * b.x_h + ow * S * b.x_w + c;
          unroll<kColumns>(LIGHTKERNELS_LAMBDA(auto column) {
            if (!kInside && (column < column_begin || column >= column_end)) return;
            V v = load<L>(x + column * b.x_w);
            keep_in_register(v);
            unroll<R * K>(LIGHTKERNELS_LAMBDA(auto j) {
              constexpr int i = j / K, u = r - S * i, offset = column - j % K, o = offset / S;
              if constexpr (u >= 0 && u < K && offset >= 0 && offset % S == 0 && o < T)
                sums[i][o] += v * weights[i][j % K];
            });
          });
        });
        if (clip.smooth) {
          unroll<R * T>(LIGHTKERNELS_LAMBDA(auto j) {
            sums[j / T][j % T] = smooth<L, Acc<E>>(sums[j / T][j % T], b.activation);
          });
        }
        E* y = b.y + ow * b.y_w + c;
        unroll<R * T>(LIGHTKERNELS_LAMBDA(auto j) {
          constexpr int i = j / T, o = j % T;
          if (!kInside && (i >= b.rows || ow + o >= b.ow)) return;
          store<L>(y + i * b.y_h + o * b.y_w, clamp(sums[i][o], low, high));
        });
      });
}

template <int K, int S, int R, int T, class E>
[[gnu::noinline]] void band_nhwc(const BandNhwc<E>& band) {
  const BandNhwc<E> b = band;
  const Clip<Acc<E>> clip(b.activation);
  const bool rows_inside = b.row_begin == 0 && b.row_end == (R - 1) * S + K && b.rows == R;
  for_channel_blocks<lanes<E>()>(
      b.c, LIGHTKERNELS_LAMBDA(int64_t c_begin, int64_t c_end) {
        for (int64_t ow = 0; ow < b.ow; ow += T) {
          const bool inside = ow * S >= b.column_begin && ow * S + (T - 1) * S + K <= b.column_end && ow + T <= b.ow;
          if (rows_inside && inside) {
            tile_nhwc<K, S, R, T, true>(b, ow, c_begin, c_end, clip);
          } else {
            tile_nhwc<K, S, R, T, false>(b, ow, c_begin, c_end, clip);
          }
        }
      });
}

// The same R rows swept over their columns, L channels at a time: the outputs that an input column meets are all in
// registers, so every input is loaded once for the R rows. Wins where rows are long (docs/measured.md).
constexpr int kSweepBandRows = 5;
constexpr int64_t kSweepColumns = 16;  // least outputs of a row

template <int K, int S, int R, bool kRowsInside, class E>
LIGHTKERNELS_INLINE void sweep_forward_nhwc(const BandNhwc<E>& b, int64_t c, const Clip<Acc<E>>& clip) {
  constexpr int L = lanes<E>(), kRows = (R - 1) * S + K;
  constexpr int kDepth = (K + S - 1) / S;  // outputs of a row that one input column meets
  using V = Vec<Acc<E>, L>;
  const V low = splat<L>(clip.low), high = splat<L>(clip.high);
  const V bias = b.bias ? load<L>(b.bias + c) : V{};
  V weights[K][K];
  unroll<K * K>(LIGHTKERNELS_LAMBDA(auto tap) {
    weights[tap / K][tap % K] = load<L>(b.weight + (tap / K) * b.w_h + (tap % K) * b.w_w + c);
  });
  V sums[R][kDepth];  // of outputs o, o - 1, ...
  unroll<R * kDepth>(LIGHTKERNELS_LAMBDA(auto i) { sums[i / kDepth][i % kDepth] = bias; });
  const E* x = b.x + c;
  E* y = b.y + c;
  // Output o begins, the input columns S * o .. S * o + S - 1 are added, output o - kDepth + 1 is complete.
  auto step = LIGHTKERNELS_LAMBDA(auto inside, int64_t o) {
    unroll<R>(LIGHTKERNELS_LAMBDA(auto i) {
      unroll<kDepth - 1>(LIGHTKERNELS_LAMBDA(auto k) { sums[i][kDepth - 1 - k] = sums[i][kDepth - 2 - k]; });
      sums[i][0] = bias;
    });
    unroll<S>(LIGHTKERNELS_LAMBDA(auto q) {
      const int64_t column = S * o + q;
      if (!inside && (column < b.column_begin || column >= b.column_end)) return;
      unroll<kRows>(LIGHTKERNELS_LAMBDA(auto r) {
        if (!kRowsInside && (r < b.row_begin || r >= b.row_end)) return;
        V v = load<L>(x + r * b.x_h + column * b.x_w);
        keep_in_register(v);
        unroll<R * kDepth>(LIGHTKERNELS_LAMBDA(auto j) {
          constexpr int i = j / kDepth, k = j % kDepth, u = r - S * i, tap = q + S * k;
          if constexpr (u >= 0 && u < K && tap < K) sums[i][k] += v * weights[u][tap];
        });
      });
    });
    if (!inside && o < kDepth - 1) return;
    unroll<R>(LIGHTKERNELS_LAMBDA(auto i) {
      if (!kRowsInside && i >= b.rows) return;
      V z = sums[i][kDepth - 1];
      if (clip.smooth) z = smooth<L, Acc<E>>(z, b.activation);
      store<L>(y + i * b.y_h + (o - kDepth + 1) * b.y_w, clamp(z, low, high));
    });
  };
  const int64_t steps = b.ow + kDepth - 1;
  const int64_t begin = std::max<int64_t>(kDepth - 1, (b.column_begin + S - 1) / S);
  const int64_t end = std::min(steps, b.column_end / S);
  int64_t o = 0;
  for (; o < std::min(begin, steps); ++o) step(std::false_type{}, o);
  for (; o < end; ++o) step(std::true_type{}, o);
  for (; o < steps; ++o) step(std::false_type{}, o);
}

template <int K, int S, int R, class E>
[[gnu::noinline]] void band_sweep_nhwc(const BandNhwc<E>& band) {
  const BandNhwc<E> b = band;
  const Clip<Acc<E>> clip(b.activation);
  const bool rows_inside = b.row_begin == 0 && b.row_end == (R - 1) * S + K && b.rows == R;
  for_channels<lanes<E>()>(
      0, b.c, LIGHTKERNELS_LAMBDA(int64_t c) {
        if (rows_inside) {
          sweep_forward_nhwc<K, S, R, true>(b, c, clip);
        } else {
          sweep_forward_nhwc<K, S, R, false>(b, c, clip);
        }
      });
}

// The transposed convolution of stride S: outputs [o, o + T) of R rows (both multiples of S), in coordinates where
// input (a, b) reaches outputs (S * a + u, S * b + v). Here x, rows and columns are the inputs', y the outputs'.
template <int K, int S, int R, int T, bool kInside, class E>
LIGHTKERNELS_INLINE void tile_transposed_nhwc(const BandNhwc<E>& b, int64_t o, int64_t c_begin, int64_t c_end) {
  constexpr int L = lanes<E>(), kBefore = (K - 1) / S, kRows = R / S + kBefore, kColumns = T / S + kBefore;
  using V = Vec<Acc<E>, L>;
  const int64_t column_begin = b.column_begin - o / S, column_end = b.column_end - o / S;
  for_channels<L>(
      c_begin, c_end, LIGHTKERNELS_LAMBDA(int64_t c) {
        V sums[R][T];
        unroll<R * T>(LIGHTKERNELS_LAMBDA(auto i) { sums[i / T][i % T] = V{}; });
        const E* x = b.x + o / S * b.x_w + c;
        unroll<kRows>(LIGHTKERNELS_LAMBDA(auto row) {
          if (!kInside && (row < b.row_begin || row >= b.row_end)) return;
          V values[kColumns];
          unroll<kColumns>(LIGHTKERNELS_LAMBDA(auto column) {
            values[column] = V{};
            if (kInside || (column >= column_begin && column < column_end)) {
              values[column] = load<L>(x + row * b.x_h + column * b.x_w);
            }
          });
          unroll<K * K>(LIGHTKERNELS_LAMBDA(auto tap) {
            constexpr int u = tap / K, v = tap % K, r = S * (row - kBefore) + u;
            if constexpr (r >= 0 && r < R) {
              V weight = load<L>(b.weight + u * b.w_h + v * b.w_w + c);
              keep_in_register(weight);
              unroll<kColumns>(LIGHTKERNELS_LAMBDA(auto column) {
                constexpr int at = S * (column - kBefore) + v;
                if constexpr (at >= 0 && at < T) sums[r][at] += values[column] * weight;
              });
            }
          });
        });
        E* y = b.y + o * b.y_w + c;
        unroll<R * T>(LIGHTKERNELS_LAMBDA(auto j) {
          constexpr int i = j / T, at = j % T;
          if (!kInside && (i < b.first_row || i >= b.rows || o + at < b.first_column || o + at >= b.ow)) return;
          store<L>(y + i * b.y_h + at * b.y_w, sums[i][at]);
        });
      });
}

template <int K, int S, int R, int T, class E>
[[gnu::noinline]] void band_transposed_nhwc(const BandNhwc<E> b) {
  constexpr int kBefore = (K - 1) / S;
  const bool rows_inside = b.row_begin <= 0 && b.row_end >= R / S + kBefore && b.first_row <= 0 && b.rows >= R;
  for_channel_blocks<lanes<E>()>(
      b.c, LIGHTKERNELS_LAMBDA(int64_t c_begin, int64_t c_end) {
        for (int64_t o = 0; o < b.ow; o += T) {
          const bool inside = o / S >= b.column_begin && o / S + T / S + kBefore <= b.column_end &&
                              o >= b.first_column && o + T <= b.ow;
          if (rows_inside && inside) {
            tile_transposed_nhwc<K, S, R, T, true>(b, o, c_begin, c_end);
          } else {
            tile_transposed_nhwc<K, S, R, T, false>(b, o, c_begin, c_end);
          }
        }
      });
}

// --- gradient of a K x K kernel's weight, stride S
// ---------------------------------------------------------------------- Kernel rows that are summed together, by what
// fits the registers.
template <int K>
constexpr int kSweepRows = kRegisters == 32 ? (K == 7 ? 3 : K) : (K == 3 ? 3 : 1);

// One output row against U input rows, swept over its columns: the last outputs stay in registers, so that an input is
// loaded once and meets all of them.
template <class E>
struct SweepNhwc {
  const E* x;        // input pixel of output column 0 and tap column 0, in the row of the first kernel row
  int64_t x_h, x_w;  // strides
  const E* dy;       // output column 0
  int64_t dy_w, ow;
  int64_t row_begin, row_end;        // the U input rows that are inside the image
  int64_t column_begin, column_end;  // input columns inside the image
  int64_t x_ahead, dy_ahead;         // from the last input row, and the output row, to those to fetch; 0: do not
};

template <int K, int S, int U, bool kRowsInside, int L, class E>
LIGHTKERNELS_INLINE void sweep_nhwc(const SweepNhwc<E>& s, Vec<Acc<E>, L> (&total)[U][K], Vec<Acc<E>, L>& dbias) {
  using V = Vec<Acc<E>, L>;
  constexpr int kDepth = (K + S - 1) / S;  // outputs that one input column meets
  V dy[kDepth];
  unroll<kDepth>(LIGHTKERNELS_LAMBDA(auto k) { dy[k] = V{}; });
  // Output o enters, the input columns S * o .. S * o + S - 1 meet outputs o, o - 1, ...
  auto step = LIGHTKERNELS_LAMBDA(auto inside, int64_t o) {
    unroll<kDepth - 1>(LIGHTKERNELS_LAMBDA(auto k) { dy[kDepth - 1 - k] = dy[kDepth - 2 - k]; });
    if (inside || o < s.ow) {
      dy[0] = load<L>(s.dy + o * s.dy_w);
      dbias += dy[0];
    }
    if (inside && s.dy_ahead) {
      fetch<false>(s.dy + s.dy_ahead + o * s.dy_w);
      unroll<S>(LIGHTKERNELS_LAMBDA(auto q) { fetch<false>(s.x + s.x_ahead + (S * o + q) * s.x_w); });
    }
    unroll<S>(LIGHTKERNELS_LAMBDA(auto q) {
      const int64_t column = S * o + q;
      if (!inside && (column < s.column_begin || column >= s.column_end)) return;
      unroll<U>(LIGHTKERNELS_LAMBDA(auto u) {
        if (!kRowsInside && (u < s.row_begin || u >= s.row_end)) return;
        V x = load<L>(s.x + u * s.x_h + column * s.x_w);
        keep_in_register(x);
        unroll<kDepth>(LIGHTKERNELS_LAMBDA(auto k) {
          constexpr int v = q + S * k;
          if constexpr (v < K) {
            if (inside || (o - k >= 0 && o - k < s.ow)) total[u][v] += x * dy[k];
          }
        });
      });
    });
  };
  // Steps that need no test: all the outputs met exist, and so do the input columns.
  const int64_t begin = std::max<int64_t>({kDepth - 1, (s.column_begin + S - 1) / S});
  const int64_t end = std::max(begin, std::min(s.ow, s.column_end / S));
  int64_t o = 0;
  for (; o < std::min(begin, s.ow + kDepth - 1); ++o) step(std::false_type{}, o);
  for (; o < end; ++o) step(std::true_type{}, o);
  for (; o < s.ow + kDepth - 1; ++o) step(std::false_type{}, o);
}

// Adds to `sums` [K * K + 1, c] (the weight's gradient, then the bias's) what output rows [oh_begin, oh_end) of image n
// give for channels [c, c + L), but for the first `lanes_done` of them.
template <int K, int S, int U, class E>
[[gnu::noinline]] void rows_backward_weight_nhwc(const DepthwiseConv2dParams& p, int64_t n, int64_t oh_begin,
                                                 int64_t oh_end, int64_t u0, int64_t c, int lanes_done,
                                                 int64_t channels, Acc<E>* sums) {
  constexpr int L = lanes<E>();
  using V = Vec<Acc<E>, L>;
  V total[U][K], dbias{};
  unroll<U * K>(LIGHTKERNELS_LAMBDA(auto i) { total[i / K][i % K] = V{}; });
  SweepNhwc<E> s;
  s.x_h = p.x_strides.h, s.x_w = p.x_strides.w, s.dy_w = p.y_strides.w, s.ow = p.ow;
  s.column_begin = p.padding_l, s.column_end = p.iw + p.padding_l;
  s.dy_ahead = is_far(p) ? p.y_strides.h : 0, s.x_ahead = (U - 1 + S) * s.x_h;
  for (int64_t oh = oh_begin; oh < oh_end; ++oh) {
    const int64_t ih = oh * S + u0 - p.padding_t;
    s.x = static_cast<const E*>(p.x) + n * p.x_strides.n + ih * s.x_h - p.padding_l * s.x_w + c;
    s.dy = static_cast<const E*>(p.y) + n * p.y_strides.n + oh * p.y_strides.h + c;
    s.row_begin = -ih, s.row_end = p.ih - ih;
    if (s.row_begin <= 0 && s.row_end >= U) {
      sweep_nhwc<K, S, U, true, L>(s, total, dbias);
    } else {
      sweep_nhwc<K, S, U, false, L>(s, total, dbias);
    }
  }
  unroll<U * K>(LIGHTKERNELS_LAMBDA(auto i) {
    Acc<E>* to = sums + (u0 * K + i) * channels + c;
    store_rest<L>(to, load<L>(to) + total[i / K][i % K], lanes_done);
  });
  if (u0 == 0) {
    Acc<E>* to = sums + K * K * channels + c;
    store_rest<L>(to, load<L>(to) + dbias, lanes_done);
  }
}

// --- any kernel, stride, dilation, multiplier: one output row at a time
// ------------------------------------------------- L values for output channels [c, c + L).
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

// Adds one kernel row's products over one output row to `sums` [kw, c] for channels [c_begin, c_end).
template <int L, bool kGather, class E>
[[gnu::noinline]] void row_backward_weight_nhwc(const RowNhwc<E> row, int64_t c_begin, int64_t c_end, int64_t c_stride,
                                                Acc<E>* sums) {
  using V = Vec<Acc<E>, L>;
  constexpr int kTaps = 4, kParts = 3;  // kTaps * kParts independent sums hide the adder's latency
  auto block = LIGHTKERNELS_LAMBDA(auto taps, int64_t v, int64_t c, int lanes_done) {
    constexpr int N = taps;
    // Outputs whose inputs exist for every tap of the block.
    auto first_inside = [&](int64_t tap) {
      const int64_t a = row.first + tap * row.dilation;
      return a >= 0 ? int64_t{0} : (-a + row.step - 1) / row.step;
    };
    auto end_inside = [&](int64_t tap) {
      const int64_t a = row.iw - 1 - row.first - tap * row.dilation;
      return a < 0 ? int64_t{0} : std::min(row.ow, a / row.step + 1);
    };
    const int64_t begin = first_inside(v), end = end_inside(v + N - 1);
    const E* x = row.x + (row.first + v * row.dilation) * row.x_w;
    V total[kParts][N];
    unroll<kParts * N>(LIGHTKERNELS_LAMBDA(auto i) { total[i / N][i % N] = V{}; });
    int64_t o = begin;
    for (; o + kParts <= end; o += kParts) {
      unroll<kParts>(LIGHTKERNELS_LAMBDA(auto part) {
        const V dy = load<L>(row.y + (o + part) * row.y_w + c);
        unroll<N>(LIGHTKERNELS_LAMBDA(auto k) {
          total[part][k] +=
              dy * load_mapped<L, kGather>(x + ((o + part) * row.step + k * row.dilation) * row.x_w, c, row.map);
        });
      });
    }
    unroll<N>(LIGHTKERNELS_LAMBDA(auto k) {
      auto one = LIGHTKERNELS_LAMBDA(int64_t at) {
        total[0][k] += load<L>(row.y + at * row.y_w + c) *
                       load_mapped<L, kGather>(x + (at * row.step + k * row.dilation) * row.x_w, c, row.map);
      };
      const int64_t tap_begin = first_inside(v + k), tap_end = end_inside(v + k);
      for (int64_t at = tap_begin; at < std::min(begin, tap_end); ++at) one(at);
      for (int64_t at = std::max(o, tap_begin); at < tap_end; ++at) one(at);
      V sum = load<L>(sums + (v + k) * c_stride + c);
      unroll<kParts>(LIGHTKERNELS_LAMBDA(auto part) { sum += total[part][k]; });
      store_rest<L>(sums + (v + k) * c_stride + c, sum, lanes_done);
    });
  };
  for_channels_once<L>(
      c_begin, c_end, LIGHTKERNELS_LAMBDA(int64_t c, int lanes_done) {
        int64_t v = 0;
        for (; v + kTaps <= row.kw; v += kTaps) block(std::integral_constant<int, kTaps>{}, v, c, lanes_done);
        if (row.kw - v >= 3) block(std::integral_constant<int, 3>{}, v, c, lanes_done), v += 3;
        for (; v < row.kw; ++v) block(std::integral_constant<int, 1>{}, v, c, lanes_done);
      });
}

template <class E>
void row_backward_weight_any(const RowNhwc<E>& row, int64_t c_begin, int64_t c_end, int64_t c_stride, Acc<E>* sums) {
  constexpr int L = lanes<E>();
  if (c_end - c_begin < L) return row_backward_weight_nhwc<1, true>(row, c_begin, c_end, c_stride, sums);
  if (!row.map.is_identity()) return row_backward_weight_nhwc<L, true>(row, c_begin, c_end, c_stride, sums);
  row_backward_weight_nhwc<L, false>(row, c_begin, c_end, c_stride, sums);
}

// Adds a row of y over its columns to `sums` [c].
template <class E>
void sum_row_nhwc(const RowNhwc<E>& row, int64_t c_begin, int64_t c_end, Acc<E>* sums) {
  auto add = LIGHTKERNELS_LAMBDA(auto lanes) {
    constexpr int L = lanes;
    for_channels_once<L>(
        c_begin, c_end, LIGHTKERNELS_LAMBDA(int64_t c, int lanes_done) {
          auto total = load<L>(sums + c);
          for (int64_t o = 0; o < row.ow; ++o) total += load<L>(row.y + o * row.y_w + c);
          store_rest<L>(sums + c, total, lanes_done);
        });
  };
  if (c_end - c_begin < lanes<E>()) return add(std::integral_constant<int, 1>{});
  add(std::integral_constant<int, lanes<E>()>{});
}

}  // namespace lightkernels::cpu
