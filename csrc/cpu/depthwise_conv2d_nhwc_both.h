// Both gradients of depthwise convolution in one sweep, channels innermost: dy is read once for the two.
//
// In rows that count from the padding's first, row S * g + q of x meets the output rows g - k by the kernel rows
// q + S * k. So group g of S rows of x and of dx needs D = ceil(K / S) rows of dy, and the same holds for columns: the
// D * D values of dy in registers give S * S values of dx and their share of all K * K sums of the weight's gradient.
#pragma once

#include <algorithm>

#include "depthwise_conv2d_nhwc_weight.h"

namespace lightkernels::cpu {

// Do the weights, their gradient and the window of dy fit the registers?
template <int K>
constexpr bool kSweepsBoth = kRegisters == 32 && K == 3;

// One group of rows of one image, L channels.
template <int K, int S, class E>
struct BothNhwc {
  static constexpr int kDepth = (K + S - 1) / S;

  const E* x;        // row S * g and column 0, counting from the padding's first; may lie outside the image
  E* dx;             // the same pixel
  int64_t x_h, x_w;  // strides
  int64_t dx_h, dx_w;
  const E* dy;  // row g, column 0
  int64_t dy_h, dy_w;
  int64_t dy_begin, dy_end;  // k whose row g - k exists
  int64_t row_begin, row_end;
  int64_t column_begin, column_end;  // columns of x that exist, counting from the padding's first
  int64_t group_begin, group_end;    // groups of columns
  int64_t ow;
  bool far;     // fetch the next group ahead
  bool stream;  // store dx past the caches
};

template <int K, int S, bool kRowsInside, int L, class E>
LIGHTKERNELS_INLINE void sweep_both_nhwc(const BothNhwc<K, S, E>& b, const Vec<Acc<E>, L> (&weight)[K * K],
                                         Vec<Acc<E>, L> (&total)[K * K], Vec<Acc<E>, L>& dbias) {
  using V = Vec<Acc<E>, L>;
  constexpr int D = BothNhwc<K, S, E>::kDepth;
  V dy[D * D];  // [k, l]: row g - k, column h - l
  unroll<D * D>(LIGHTKERNELS_LAMBDA(auto i) { dy[i] = V{}; });
  auto step = LIGHTKERNELS_LAMBDA(auto inside, int64_t h) {
    unroll<D*(D - 1)>(LIGHTKERNELS_LAMBDA(auto i) {
      constexpr int k = i / (D - 1), l = D - 1 - i % (D - 1);
      dy[k * D + l] = dy[k * D + l - 1];
    });
    unroll<D>(LIGHTKERNELS_LAMBDA(auto k) {
      dy[k * D] = V{};
      if (!kRowsInside && (k < b.dy_begin || k >= b.dy_end)) return;
      if (!inside && (h < 0 || h >= b.ow)) return;
      dy[k * D] = load<L>(b.dy - k * b.dy_h + h * b.dy_w);
      if (k == 0) dbias += dy[0];
    });
    if (inside && b.far) {
      fetch<false>(b.dy + b.dy_h + h * b.dy_w);
      unroll<S * S>(LIGHTKERNELS_LAMBDA(auto i) { fetch<false>(b.x + (S + i / S) * b.x_h + (S * h + i % S) * b.x_w); });
    }
    unroll<S * S>(LIGHTKERNELS_LAMBDA(auto i) {
      constexpr int q = i / S, r = i % S;
      if (!kRowsInside && (q < b.row_begin || q >= b.row_end)) return;
      if (!inside && (S * h + r < b.column_begin || S * h + r >= b.column_end)) return;
      V x = load<L>(b.x + q * b.x_h + (S * h + r) * b.x_w), sum{};
      keep_in_register(x);
      unroll<D * D>(LIGHTKERNELS_LAMBDA(auto j) {
        constexpr int k = j / D, l = j % D, u = q + S * k, v = r + S * l;
        if constexpr (u < K && v < K) {
          if (!kRowsInside && (k < b.dy_begin || k >= b.dy_end)) return;
          if (!inside && (h - l < 0 || h - l >= b.ow)) return;
          sum += dy[j] * weight[u * K + v];
          total[u * K + v] += dy[j] * x;
        }
      });
      E* dx = b.dx + q * b.dx_h + (S * h + r) * b.dx_w;
      b.stream ? stream<L>(dx, sum) : store<L>(dx, sum);
    });
  };
  const int64_t begin = std::max<int64_t>(D - 1, (b.column_begin + S - 1) / S);
  const int64_t end = std::max(begin, std::min(b.ow, b.column_end / S));
  int64_t h = b.group_begin;
  for (; h < std::min(begin, b.group_end); ++h) step(std::false_type{}, h);
  for (; h < end; ++h) step(std::true_type{}, h);
  for (; h < b.group_end; ++h) step(std::false_type{}, h);
}

// Groups [g, g_end) of image n, channels [c, c + L): writes dx, and adds to `sums` [K * K + 1, c] but for the first
// `lanes_done` lanes. `input` and `p` are the parameters of the two gradients, for dx and for the weight's.
template <int K, int S, class E>
[[gnu::noinline]] void groups_backward_nhwc(const DepthwiseConv2dParams& input, const DepthwiseConv2dParams& p,
                                            const Acc<E>* weight, int64_t n, int64_t g, int64_t g_end, int64_t c,
                                            int lanes_done, bool streams, Acc<E>* sums) {
  constexpr int L = lanes<E>(), D = BothNhwc<K, S, E>::kDepth;
  using V = Vec<Acc<E>, L>;
  V weights[K * K], total[K * K], dbias{};
  unroll<K * K>(LIGHTKERNELS_LAMBDA(auto tap) {
    weights[tap] = load<L>(weight + tap * p.c + c);
    total[tap] = V{};
  });
  BothNhwc<K, S, E> b;
  b.x_h = p.x_strides.h, b.x_w = p.x_strides.w, b.dx_h = input.x_strides.h, b.dx_w = input.x_strides.w;
  b.dy_h = p.y_strides.h, b.dy_w = p.y_strides.w, b.ow = p.ow;
  b.column_begin = p.padding_l, b.column_end = p.iw + p.padding_l;
  b.group_begin = std::min<int64_t>(0, floor_div(p.padding_l, S));
  b.group_end = std::max(p.ow, floor_div(p.iw + p.padding_l - 1, S) + 1);
  b.far = bytes_of(p) > kFarBytes, b.stream = streams;
  const E* x = static_cast<const E*>(p.x) + n * p.x_strides.n - p.padding_l * b.x_w + c;
  E* dx = static_cast<E*>(input.x) + n * input.x_strides.n - p.padding_l * b.dx_w + c;
  const E* dy = static_cast<const E*>(p.y) + n * p.y_strides.n + c;
  for (; g < g_end; ++g) {
    const int64_t ih = S * g - p.padding_t;
    b.x = x + ih * b.x_h, b.dx = dx + ih * b.dx_h, b.dy = dy + g * b.dy_h;
    b.row_begin = -ih, b.row_end = p.ih - ih, b.dy_begin = g - p.oh + 1, b.dy_end = g + 1;
    if (b.row_begin <= 0 && b.row_end >= S && b.dy_begin <= 0 && b.dy_end >= D) {
      sweep_both_nhwc<K, S, true, L>(b, weights, total, dbias);
    } else {
      sweep_both_nhwc<K, S, false, L>(b, weights, total, dbias);
    }
  }
  unroll<K * K>(LIGHTKERNELS_LAMBDA(auto tap) {
    Acc<E>* to = sums + tap * p.c + c;
    store_rest<L>(to, load<L>(to) + total[tap], lanes_done);
  });
  Acc<E>* to = sums + K * K * p.c + c;
  store_rest<L>(to, load<L>(to) + dbias, lanes_done);
}

}  // namespace lightkernels::cpu
