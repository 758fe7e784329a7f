// Depthwise convolution, channels innermost, K x K kernels of stride S: a vector is L channels of one pixel, so nothing
// is ever shuffled, and everything in a tile is unrolled.
#pragma once

#include <algorithm>

#include "../depthwise_conv2d.h"
#include "depthwise_conv2d_geometry.h"
#include "vec.h"

namespace lightkernels::cpu {

// --- a K x K kernel, stride S, no dilation: tiles of R x T outputs, everything in them unrolled ---

// Rows x columns of a tile, by what fits the registers (docs/measured.md has the other shapes that were tried).
template <int K, int S>
constexpr int kTileRows = kRegisters == 32 ? (K == 3 ? 4 : 2) : (K == 3 ? 2 : 1);
template <int K, int S>
constexpr int kTileColumns = kRegisters == 32 ? (K == 3 ? 4 : 7) : (K == 3 ? (S == 1 ? 4 : 3) : 7);

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
  bool far;     // fetch the next band ahead: the tensors are too large for L2
  bool stream;  // store past the caches: they are too large for L3, and y's lines are whole
};

// Bytes of x and y from which y goes past the caches: below, it costs more than it brings (docs/measured.md).
constexpr int64_t kStreamBytes = 16 << 20;

inline bool streams_output(const DepthwiseConv2dParams& p) {
  const Strides4& s = p.y_strides;
  const uint64_t bits = reinterpret_cast<uintptr_t>(p.y) | (s.n | s.h | s.w | p.c) * size_of(p.dtype);
  return kStreams && bytes_of(p) > kStreamBytes && bits % kVectorBytes == 0;
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
          if (!b.stream) {
            unroll<R * T>(
                LIGHTKERNELS_LAMBDA(auto i) { fetch<true>(b.y + (R + i / T) * b.y_h + (ow + i % T) * b.y_w + c); });
          }
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
          const V z = clamp(sums[i][o], low, high);
          E* to = y + i * b.y_h + o * b.y_w;
          b.stream ? stream<L>(to, z) : store<L>(to, z);
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
    if (inside && b.stream) {
      unroll<R * S * S>(
          LIGHTKERNELS_LAMBDA(auto i) { fetch<false>(x + (kRows + i / S) * b.x_h + (S * o + i % S) * b.x_w); });
    }
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
      z = clamp(z, low, high);
      E* to = y + i * b.y_h + (o - kDepth + 1) * b.y_w;
      b.stream ? stream<L>(to, z) : store<L>(to, z);
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
        if (kInside && b.stream) {
          unroll<R / S * T / S>(
              LIGHTKERNELS_LAMBDA(auto i) { fetch<false>(x + (kRows + i / (T / S)) * b.x_h + (i % (T / S)) * b.x_w); });
        }
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
          E* to = y + i * b.y_h + at * b.y_w;
          b.stream ? stream<L>(to, sums[i][at]) : store<L>(to, sums[i][at]);
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

}  // namespace lightkernels::cpu
