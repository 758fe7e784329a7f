// Gradient of the input of a K x K kernel of stride 2, columns innermost: a vector of dy's columns gives the even and
// the odd columns of dx apart, which are interleaved as they are stored.
#include "depthwise_conv2d_nchw_fixed.h"

namespace lightkernels::cpu {
namespace {

// Pairs of dx's rows that are worked on together, by what fits the registers.
template <int K>
constexpr int kRowPairs = kRegisters == 32 ? (K == 3 ? 2 : 4) : (K == 3 ? 1 : 2);

// L even and L odd columns of dx, the first of them 2 * t. Load k is of dy's columns `column - k` and on: that of tap v
// for columns of parity a is (kOdd + v - a) / 2, where kOdd says whether the padding is odd.
template <int K, int L>
struct PairStrip {
  static constexpr int kLoads = (K + 1) / 2;
  int64_t t, column;
  bool inside;             // all lanes of all loads, and all of dx's columns
  bool whole = false;      // are the ranges below those of such a strip?
  LaneRange<L> low, high;  // of the interleaved outputs
  LaneRange<L> lanes[kLoads];

  void set(const DepthwiseConv2dParams& p, int64_t t_) {
    t = t_, column = t + floor_div(p.padding_l + 1, 2);
    inside = column - (kLoads - 1) >= 0 && column + L <= p.ow && 2 * (t + L) <= p.iw;
    if (inside && whole) return;
    whole = inside;
    low = LaneRange<L>(0, p.iw - 2 * t), high = LaneRange<L>(0, p.iw - 2 * t - L);
    for (int k = 0; k < kLoads; ++k) lanes[k] = LaneRange<L>(k - column, p.ow + k - column);
  }
};

// Rows of dx, counted from an even distance to the padding: row 2 * i + u meets row i of dy by tap row u.
struct PairBand {
  const float* dy;  // the first row of dy that is met; may lie outside the plane
  int64_t dy_h;
  int64_t dy_begin, dy_end;  // the rows of dy inside the plane
  const float* weight;
  int64_t w_h, w_w;
  float* dx;
  int64_t dx_h;
  int64_t begin, end;          // the rows of dx inside the plane
  int64_t dy_ahead, dx_ahead;  // from the band to what to fetch; 0: nothing
};

template <int K, int kOdd, int P, int L, bool kRows, bool kColumns>
LIGHTKERNELS_INLINE void tile_pairs(const PairBand& b, const PairStrip<K, L>& strip) {
  using V = Vec<float, L>;
  constexpr int kBefore = (K - 1) / 2, kLoads = PairStrip<K, L>::kLoads;
  V sums[2 * P][2];  // even and odd columns
  unroll<4 * P>(LIGHTKERNELS_LAMBDA(auto i) { sums[i / 2][i % 2] = V{}; });
  if (b.dy_ahead) {
    fetch_rows<false, P, 1, L>(b.dy + b.dy_ahead + strip.column, b.dy_h);
    fetch_rows<true, 2 * P, 2, L>(b.dx + b.dx_ahead + 2 * strip.t, b.dx_h);
  }
  unroll<P + kBefore>(LIGHTKERNELS_LAMBDA(auto r) {
    if (!kRows && (r < b.dy_begin || r >= b.dy_end)) return;
    V values[kLoads];
    const float* from = b.dy + r * b.dy_h + strip.column;
    unroll<kLoads>(LIGHTKERNELS_LAMBDA(auto k) {
      values[k] = kColumns ? load<L>(from - k) : strip.lanes[k].load(from - k);
      keep_in_register(values[k]);
    });
    unroll<2 * P * K>(LIGHTKERNELS_LAMBDA(auto j) {
      constexpr int i = j / K, v = j % K, u = i - 2 * (r - kBefore), a = (kOdd + v) % 2;
      if constexpr (u >= 0 && u < K) {
        sums[i][a] += values[(kOdd + v - a) / 2] * splat<L>(b.weight[u * b.w_h + v * b.w_w]);
      }
    });
  });
  unroll<2 * P>(LIGHTKERNELS_LAMBDA(auto i) {
    if (!kRows && (i < b.begin || i >= b.end)) return;
    float* to = b.dx + i * b.dx_h + 2 * strip.t;
    const V low = shuffle<InterleavedLow, L, float>(sums[i][0], sums[i][1]);
    const V high = shuffle<InterleavedHigh, L, float>(sums[i][0], sums[i][1]);
    if (kColumns) {
      store<L>(to, low), store<L>(to + L, high);
    } else {
      strip.low.store(to, low), strip.high.store(to + L, high);
    }
  });
}

template <int K, int kOdd, int P, int L>
[[gnu::noinline]] void planes_pairs(const DepthwiseConv2dParams& p, int64_t begin, int64_t end) {
  constexpr int kBefore = (K - 1) / 2;
  const int64_t pairs = (p.iw + 1) / 2, last_t = std::max<int64_t>(0, pairs - L);
  const int64_t top = floor_div(p.padding_t, 2), bottom = p.ih + p.padding_t;
  PairStrip<K, L> first, middle, last;
  first.set(p, 0), last.set(p, last_t);
  PairBand b;
  b.dy_h = p.y_strides.h, b.dx_h = p.x_strides.h, b.w_h = p.weight_h, b.w_w = p.weight_w;
  b.dy_ahead = fetch_ahead(p, P, p.y_strides.h);
  b.dx_ahead = b.dy_ahead ? fetch_ahead(p, 2 * P, p.x_strides.h) : 0;
  for (PlaneIndex at(begin, p.c, 1); at.unit < end; ++at) {
    const float* dy = static_cast<const float*>(p.y) + at.n * p.y_strides.n + at.c * p.y_strides.c;
    float* dx = static_cast<float*>(p.x) + at.n * p.x_strides.n + at.c * p.x_strides.c;
    b.weight = static_cast<const float*>(p.weight) + at.c * p.weight_c;
    for (int64_t m = top; 2 * m < bottom; m += P) {
      const int64_t oh = m - kBefore, row = 2 * m - p.padding_t;
      b.dy = dy + oh * b.dy_h, b.dy_begin = -oh, b.dy_end = p.oh - oh;
      b.dx = dx + row * b.dx_h, b.begin = -row, b.end = p.ih - row;
      const bool rows_inside = b.dy_begin <= 0 && b.dy_end >= P + kBefore && b.begin <= 0 && b.end >= 2 * P;
      for (int64_t t = 0;; t = std::min(t + L, last_t)) {
        if (t > 0 && t < last_t) middle.set(p, t);
        const PairStrip<K, L>& strip = t == 0 ? first : t < last_t ? middle : last;
        if (rows_inside && strip.inside) {
          tile_pairs<K, kOdd, P, L, true, true>(b, strip);
        } else if (rows_inside) {
          tile_pairs<K, kOdd, P, L, true, false>(b, strip);
        } else {
          tile_pairs<K, kOdd, P, L, false, false>(b, strip);
        }
        if (t >= last_t) break;
      }
    }
  }
}

}  // namespace

void backward_input_fixed_nchw(const DepthwiseConv2dParams& p, const Launch& launch) {
  launch.parallel(p.n * p.c, grain_of(p, p.n * p.c), [&](int64_t begin, int64_t end) {
    with_fixed(p, [&](auto k, auto) {
      with_lanes<k>((p.iw + 1) / 2, [&](auto l) {
        if (p.padding_l % 2) return planes_pairs<k, 1, kRowPairs<k>, l>(p, begin, end);
        planes_pairs<k, 0, kRowPairs<k>, l>(p, begin, end);
      });
    });
  });
}

}  // namespace lightkernels::cpu
