// Gradient of the weight, channels innermost: sums stay in registers while an image's rows are swept.
#pragma once

#include <algorithm>

#include "../depthwise_conv2d.h"
#include "depthwise_conv2d_nhwc_fixed.h"
#include "depthwise_conv2d_nhwc_rows.h"

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

// --- gradient of a K x K kernel's weight, stride S ---

// Kernel rows that are summed together, by what fits the registers.
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
  s.dy_ahead = bytes_of(p) > kFarBytes ? p.y_strides.h : 0, s.x_ahead = (U - 1 + S) * s.x_h;
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

// --- any kernel ---

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
