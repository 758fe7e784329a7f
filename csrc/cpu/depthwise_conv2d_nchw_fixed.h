// Depthwise convolution, columns innermost, K x K kernels of stride S: what its three kernels share, strips of L
// columns that are read where the plane lies.
//
// Nothing is staged: where a strip meets the plane's edge, its loads are masked, so that planes narrower than a vector
// cost one masked load for each tap and row.
#pragma once

#include <algorithm>

#include "../depthwise_conv2d.h"
#include "depthwise_conv2d_geometry.h"
#include "vec.h"
#include "vec_lanes.h"

namespace lightkernels::cpu {

// --- loads of a strip: L outputs of a row, whose first is column o ---

// Which lanes of a strip's loads lie inside the plane. At stride 2 two vectors are loaded for each pair of taps.
template <int K, int S, int L>
struct Strip {
  static constexpr int kLoads = (K + S - 1) / S * S;
  int64_t o;
  bool inside;                 // all lanes of all loads, and all outputs
  bool whole = false;          // are the ranges below those of such a strip, as neighbours mostly are?
  LaneRange<L> outputs;        // that exist and are not another strip's
  LaneRange<L> lanes[kLoads];  // of inputs of these outputs

  // Outputs begin .. end - 1 of the L count.
  void set(int64_t column, int64_t padding, int64_t dilation, int64_t iw, int64_t begin, int64_t end) {
    o = column;
    const int64_t first = o * S - padding;
    inside = begin <= 0 && end >= L && first >= 0 && first + (kLoads - S) * dilation + S * L <= iw;
    if (inside && whole) return;
    whole = inside;
    outputs = LaneRange<L>(begin, end);
    for (int load = 0; load < kLoads; ++load) {
      const int64_t from = load % S * L, at = first + load / S * S * dilation + from;
      lanes[load] = LaneRange<L>(std::max(-at, S * begin - from), std::min(iw - at, S * end - from));
    }
  }
};

// The strips of a plane. The last one slides back to the row's end; kOnce: without the outputs of the one before it.
template <int K, int S, int L, bool kOnce>
class Strips {
 public:
  explicit Strips(const DepthwiseConv2dParams& p)
      : padding_(p.padding_l), dilation_(p.dilation_w), iw_(p.iw), ow_(p.ow), last_column_(p.ow - L) {
    first_.set(0, padding_, dilation_, iw_, 0, ow_);
    if (ow_ > L) last_.set(last_column_, padding_, dilation_, iw_, kOnce ? (L - ow_ % L) % L : 0, L);
  }

  // f(strip) for every strip.
  template <class F>
  LIGHTKERNELS_INLINE void each(F&& f) {
    for (int64_t o = 0;; o = std::min(o + L, last_column_)) {
      if (o > 0 && o < last_column_) middle_.set(o, padding_, dilation_, iw_, 0, L);
      f(o == 0 ? first_ : o < last_column_ ? middle_ : last_);
      if (o + L >= ow_) return;
    }
  }

 private:
  int64_t padding_, dilation_, iw_, ow_, last_column_;
  Strip<K, S, L> first_, middle_, last_;
};

// The vectors that taps v .. v + N - 1 (N <= S) meet in row r of a band.
template <int K, int S, int N, int L, bool kInside>
LIGHTKERNELS_INLINE void load_taps(const float* from, const LaneRange<L>* lanes, Vec<float, L> (&values)[S]) {
  unroll<S>(LIGHTKERNELS_LAMBDA(auto q) { values[q] = kInside ? load<L>(from + q * L) : lanes[q].load(from + q * L); });
  if constexpr (S == 2) {
    const Vec<float, L> even = shuffle<EvenLanes, L, float>(values[0], values[1]);
    if constexpr (N == 2) values[1] = shuffle<OddLanes, L, float>(values[0], values[1]);
    values[0] = even;
  } else {
    keep_in_register(values[0]);
  }
}

// How many elements ahead of a band of `rows` rows memory is fetched: strips take a line here and there, which the
// prefetchers of large tensors do not follow. 0: not at all, where tensors are small enough that it would only cost.
inline int64_t fetch_ahead(const DepthwiseConv2dParams& p, int64_t rows, int64_t row_stride) {
  constexpr int64_t kAheadBytes = 4096;
  if (bytes_of(p) < kFarBytes) return 0;
  const int64_t band = std::max<int64_t>(1, rows * row_stride);
  return (kAheadBytes / 4 + band - 1) / band * band;
}

// Fetches R rows of M vectors: to be read, or written.
template <bool kWrite, int R, int M, int L>
LIGHTKERNELS_INLINE void fetch_rows(const float* from, int64_t row_stride) {
  unroll<R * M>(LIGHTKERNELS_LAMBDA(auto i) { fetch<kWrite>(from + i / M * row_stride + i % M * L); });
}

// Which plane of n * c: counted on, not divided.
struct PlaneIndex {
  int64_t unit, channels, multiplier, n, c, in_c, rest;

  PlaneIndex(int64_t unit_, int64_t channels_, int64_t multiplier_)
      : unit(unit_), channels(channels_), multiplier(multiplier_) {
    n = unit / channels, c = unit % channels, in_c = c / multiplier, rest = c % multiplier;
  }
  void operator++() {
    ++unit, ++c;
    if (++rest == multiplier) rest = 0, ++in_c;
    if (c == channels) c = 0, in_c = 0, ++n;
  }
};

// --- which kernel ---

inline bool is_fixed_nchw(const DepthwiseConv2dParams& p) {
  return is_fixed(p) && p.x_strides.w == 1 && p.y_strides.w == 1;
}

// Calls f(L) with as many lanes as a row of `columns` fills best. Large kernels on tiny planes are not worth code of
// their own.
template <int K, class F>
void with_lanes(int64_t columns, F&& f) {
  constexpr int kMost = lanes<float>(), kHalf = std::min(8, kMost), kLeast = K == 3 ? 4 : kHalf;
  if (columns <= kLeast) return f(std::integral_constant<int, kLeast>{});
  if (columns <= kHalf) return f(std::integral_constant<int, kHalf>{});
  f(std::integral_constant<int, kMost>{});
}

// --- the kernels, each in a file of its own ---

// y from x, weight, bias. The weight may have any strides, negative ones included.
void forward_fixed_nchw(const DepthwiseConv2dParams& p, const Launch& launch);
// x from y and weight, at stride 2 and multiplier 1 (at stride 1 it is a forward convolution).
void backward_input_fixed_nchw(const DepthwiseConv2dParams& p, const Launch& launch);
// weight and, if not null, bias from x and y.
void backward_weight_fixed_nchw(const DepthwiseConv2dParams& p, const Launch& launch);

}  // namespace lightkernels::cpu
