// Gradient of a K x K kernel's weight, columns innermost: the sums of all taps stay in registers over all planes of a
// channel, and are added up across their lanes once.
#include "depthwise_conv2d_nchw_fixed.h"

namespace lightkernels::cpu {
namespace {

// Columns of taps that are summed together, by what fits the registers beside the R rows of dy; larger kernels are gone
// through several times. Even but for the last at stride 2, where taps come in pairs.
template <int K, int S>
constexpr int kTapColumns = K == 3   ? 3
                            : K == 5 ? (kRegisters == 32 ? 5 : 2)
                                     : (kRegisters == 32 ? 2 : S);
// Rows of dy that are in registers: most often, and for what is left.
template <int K>
constexpr int kTallBand = kRegisters == 32 ? (K == 5 ? 4 : 7) : (K == 7 ? 7 : 4);
template <int K>
constexpr int kLowBand = K > 3               ? 1
                         : kTallBand<K> == 7 ? 4
                                             : 2;

struct WeightBand {
  const float* x;  // input of output (0, 0) and the first tap column; may lie outside the plane
  int64_t x_h, dilation;
  const float* dy;
  int64_t dy_h;
  int64_t row_begin, row_end;  // the band's input rows inside the plane
  int64_t x_ahead, dy_ahead;   // from the band to what to fetch; 0: nothing
};

// total[u * N + v] += x * dy over R rows of dy and one strip, for N columns of taps.
template <int K, int S, int R, int N, int L, bool kRows, bool kColumns>
LIGHTKERNELS_INLINE void correlate_fixed(const WeightBand& b, const Strip<K, S, L>& strip, int v0,
                                         Vec<float, L> (&total)[N * K], Vec<float, L>& dbias) {
  using V = Vec<float, L>;
  if (b.x_ahead) {  // not by fetch_rows: GCC then takes a fifth longer for 7 x 7 planes at stride 2
    unroll<R * S * S>(
        LIGHTKERNELS_LAMBDA(auto i) { fetch<false>(b.x + b.x_ahead + i / S * b.x_h + strip.o * S + i % S * L); });
    unroll<R>(LIGHTKERNELS_LAMBDA(auto i) { fetch<false>(b.dy + b.dy_ahead + i * b.dy_h + strip.o); });
  }
  V dy[R];
  unroll<R>(LIGHTKERNELS_LAMBDA(auto i) {
    const float* from = b.dy + i * b.dy_h + strip.o;
    dy[i] = kColumns ? load<L>(from) : strip.outputs.load(from);
    keep_in_register(dy[i]);
    dbias += dy[i];
  });
  unroll<(R - 1) * S + K>(LIGHTKERNELS_LAMBDA(auto r) {
    if (!kRows && (r < b.row_begin || r >= b.row_end)) return;
    const float* from = b.x + strip.o * S + r * b.x_h;
    unroll<(N + S - 1) / S>(LIGHTKERNELS_LAMBDA(auto pair) {
      constexpr int v = pair * S, kTaps = std::min(S, N - v);
      V values[S];
      load_taps<K, S, kTaps, L, kColumns>(from + v * b.dilation, strip.lanes + v0 + v, values);
      unroll<R * kTaps>(LIGHTKERNELS_LAMBDA(auto j) {
        constexpr int i = j / kTaps, q = j % kTaps, u = r - S * i;
        if constexpr (u >= 0 && u < K) total[u * N + v + q] += values[q] * dy[i];
      });
    });
  });
}

// Adds what one grid (all there is without dilation) of one pair of planes gives.
template <int K, int S, int N, int L>
LIGHTKERNELS_INLINE void plane_weight(const GridAxis& h, WeightBand b, Strips<K, S, L, true>& strips, int v0,
                                      Vec<float, L> (&total)[N * K], Vec<float, L>& dbias) {
  const float *x = b.x, *dy = b.dy;
  int64_t row = 0;
  auto bands = LIGHTKERNELS_LAMBDA(auto height) {
    constexpr int R = height;
    for (; row + R <= h.out; row += R) {
      const int64_t ih = row * S - h.padding;
      b.x = x + ih * b.x_h, b.dy = dy + row * b.dy_h, b.row_begin = -ih, b.row_end = h.in - ih;
      const bool rows_inside = b.row_begin <= 0 && b.row_end >= (R - 1) * S + K;
      strips.each(LIGHTKERNELS_LAMBDA(const Strip<K, S, L>& strip) {
        if (rows_inside && strip.inside) {
          correlate_fixed<K, S, R, N, L, true, true>(b, strip, v0, total, dbias);
        } else if (rows_inside) {
          correlate_fixed<K, S, R, N, L, true, false>(b, strip, v0, total, dbias);
        } else {
          correlate_fixed<K, S, R, N, L, false, false>(b, strip, v0, total, dbias);
        }
      });
    }
  };
  bands(std::integral_constant<int, kTallBand<K>>{});
  bands(std::integral_constant<int, kLowBand<K>>{});
  if constexpr (kLowBand<K> > 1) bands(std::integral_constant<int, 1>{});
}

// N columns of taps from v0 on, for channels [begin, end); images [n_begin, n_end) are added to those before.
template <int K, int S, int N, int L>
[[gnu::noinline]] void channels_weight(const DepthwiseConv2dParams& p, int v0, int64_t begin, int64_t end,
                                       int64_t n_begin, int64_t n_end) {
  using V = Vec<float, L>;
  constexpr int kSums = N * K + 1;  // dbias is the last
  Strips<K, S, L, true> strips(p);
  WeightBand b;
  b.x_h = p.x_strides.h * p.dilation_h, b.dy_h = p.y_strides.h * p.dilation_h, b.dilation = p.dilation_w;
  b.x_ahead = v0 ? 0 : fetch_ahead(p, kTallBand<K> * S, p.x_strides.h);
  b.dy_ahead = b.x_ahead ? fetch_ahead(p, kTallBand<K>, p.y_strides.h) : 0;
  const GridAxis first(0, p.dilation_h, p.ih, p.oh, p.padding_t);  // all there is without dilation
  const int64_t phases = std::min(p.dilation_h, p.oh);
  for (PlaneIndex at(begin, p.c, p.multiplier); at.unit < end; ++at) {
    V total[N * K], dbias{};
    unroll<N * K>(LIGHTKERNELS_LAMBDA(auto i) { total[i] = V{}; });
    for (int64_t n = n_begin; n < n_end; ++n) {
      const float* x = static_cast<const float*>(p.x) + n * p.x_strides.n + at.in_c * p.x_strides.c - p.padding_l +
                       v0 * p.dilation_w;
      const float* dy = static_cast<const float*>(p.y) + n * p.y_strides.n + at.unit * p.y_strides.c;
      for (int64_t phase = 0; phase < phases; ++phase) {
        const GridAxis h = phase ? GridAxis(phase, p.dilation_h, p.ih, p.oh, p.padding_t) : first;
        b.x = x + h.in_first * p.x_strides.h, b.dy = dy + phase * p.y_strides.h;
        plane_weight<K, S, N, L>(h, b, strips, v0, total, dbias);
      }
    }
    constexpr int kGroups = (kSums + L - 1) / L;
    float sums[kGroups * L];
    unroll<kGroups>(LIGHTKERNELS_LAMBDA(auto group) {
      V parts[L];
      unroll<L>(LIGHTKERNELS_LAMBDA(auto i) {
        constexpr int k = group * L + i;
        parts[i] = V{};
        if constexpr (k < N * K) parts[i] = total[k];
        if constexpr (k == N * K) parts[i] = dbias;
      });
      store<L>(sums + group * L, sum_each<L>(parts));
    });
    float* dweight = static_cast<float*>(p.weight) + at.unit * K * K + v0;
    auto put = [&](float& to, float sum) { to = n_begin ? to + sum : sum; };
    for (int i = 0; i < N * K; ++i) put(dweight[i / N * K + i % N], sums[i]);
    if (p.bias && v0 == 0) put(static_cast<float*>(p.bias)[at.unit], sums[N * K]);
  }
}

// Outputs whose products one sum holds, unless an image has more: long sums of floats lose what is small beside them.
constexpr int64_t kLongSum = 1 << 16;

template <int K, int S, int L>
void all_taps(const DepthwiseConv2dParams& p, int64_t begin, int64_t end) {
  constexpr int N = kTapColumns<K, S>;
  static_assert(S == 1 || N % 2 == 0 || N == K);
  const int64_t images = std::max<int64_t>(1, kLongSum / (p.oh * p.ow));
  for (int64_t n = 0; n < p.n; n += images) {
    const int64_t n_end = std::min(p.n, n + images);
    int v = 0;
    for (; v + N <= K; v += N) channels_weight<K, S, N, L>(p, v, begin, end, n, n_end);
    if constexpr (K % N != 0) channels_weight<K, S, K % N, L>(p, v, begin, end, n, n_end);
  }
}

}  // namespace

void backward_weight_fixed_nchw(const DepthwiseConv2dParams& p, const Launch& launch) {
  launch.parallel(p.c, grain_of(p, p.c), [&](int64_t begin, int64_t end) {
    with_fixed(p, [&](auto k, auto s) {
      with_lanes<k>(p.ow, [&](auto l) {
        if (kTapColumns<k, s> == k) return all_taps<k, s, l>(p, begin, end);
        for (int64_t c = begin; c < end; ++c) all_taps<k, s, l>(p, c, c + 1);  // its planes stay cached
      });
    });
  });
}

}  // namespace lightkernels::cpu
