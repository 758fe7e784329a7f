// Depthwise convolution, columns innermost: a vector is L neighbouring outputs of one row.
//
// Input rows are first copied ("staged") into a small buffer with zeros around them, split by column residue when the
// stride is not 1. That takes any strides and dtype in, and leaves the arithmetic without a single bounds test.
#pragma once

#include <algorithm>

#include "../depthwise_conv2d.h"
#include "depthwise_conv2d_geometry.h"
#include "vec.h"
#include "vec_lanes.h"

namespace lightkernels::cpu {

// --- staging ---

constexpr int64_t kStageFloats = 32768;  // hard limit of the buffer
constexpr int64_t kStageTarget = 6144;   // what it should hold, so that it stays in L1

// The staged form of some input rows: row r, column residue q, index j hold column (low + j) * step + q.
struct Stage {
  int64_t step, low, width, pitch;  // width: of one residue; pitch: of a row

  // For outputs [0, outputs) of the axis, read in vectors of at most `lanes` that may run past the end.
  Stage(const Axis& axis, int64_t outputs, int64_t lanes) {
    step = axis.step;
    low = floor_div(axis.first, step);
    const int64_t high = floor_div(axis.first + (axis.count - 1) * axis.dilation, step);
    width = (std::max(outputs, lanes) + high - low + lanes - 1) / lanes * lanes;
    pitch = width * step;
  }

  // Where output 0 finds its input of tap k in a staged row.
  int64_t offset(const Axis& axis, int64_t k) const {
    if (step == 1) return axis.first + k * axis.dilation - low;
    const int64_t column = axis.first + k * axis.dilation, whole = floor_div(column, step);
    return (column - whole * step) * width + whole - low;
  }
};

template <int L, class E>
LIGHTKERNELS_INLINE void copy_row(Acc<E>* to, const E* from, int64_t count, int64_t stride) {
  if (stride != 1) {
    for (int64_t i = 0; i < count; ++i) to[i] = load<1>(from + i * stride)[0];
  } else {
    for (int64_t i = 0; i < count; i += L) store_up_to<L>(to + i, load_up_to<L>(from + i, count - i), count - i);
  }
}

// Which columns of the input a staged row takes: per residue, `count` from input column `begin`, to index `skip`.
struct StageColumns {
  int64_t skip, begin, count;

  // Of residue q, for the piece of the output that starts at column `piece`, from an input of `size` columns.
  StageColumns(const Stage& stage, int64_t piece, int64_t q, int64_t size) {
    const int64_t low = stage.low + piece;
    skip = std::max<int64_t>(0, -low);
    begin = (low + skip) * stage.step + q;
    const int64_t rest = size - 1 - begin;
    count = rest < 0 ? 0 : std::min(stage.width - skip, (stage.step == 1 ? rest : rest / stage.step) + 1);
  }
};

// Fills staged rows [0, rows) from input rows first_row, first_row + 1, ...; those outside the image are zero. `clean`:
// everything that is zero here is zero already.
template <int L, class E>
LIGHTKERNELS_INLINE void stage_rows(const Stage& stage, int64_t piece, bool clean, Acc<E>* to, int64_t rows, const E* x,
                                    int64_t first_row, int64_t x_h, int64_t x_w, int64_t ih, int64_t iw) {
  const StageColumns even(stage, piece, 0, iw), odd(stage, piece, stage.step > 1, iw);
  const int64_t pitch = stage.pitch;
  for (int64_t r = 0; r < rows; ++r, to += pitch) {
    for (int64_t i = 0; i < pitch && !clean; i += L) store<L>(to + i, Vec<Acc<E>, L>{});
    if (first_row + r < 0 || first_row + r >= ih) continue;
    const E* from = x + (first_row + r) * x_h;
    if (stage.step == 1) {
      if (even.count > 0) copy_row<L>(to + even.skip, from + even.begin * x_w, even.count, x_w);
      continue;
    }
    if (stage.step == 2 && x_w == 1) {
      for (int64_t i = 0; i < std::max(even.count, odd.count); i += L) {
        const E* pair = from + even.begin + 2 * i;
        const int64_t left = iw - even.begin - 2 * i;
        const auto a = load_up_to<L>(pair, left), b = load_up_to<L>(pair + L, left - L);
        const auto evens = shuffle<EvenLanes, L, Acc<E>>(a, b), odds = shuffle<OddLanes, L, Acc<E>>(a, b);
        store_up_to<L>(to + even.skip + i, evens, even.count - i);
        store_up_to<L>(to + stage.width + odd.skip + i, odds, odd.count - i);
      }
      continue;
    }
    for (int64_t q = 0; q < stage.step; ++q) {
      const StageColumns columns(stage, piece, q, iw);
      copy_row<L>(to + q * stage.width + columns.skip, from + columns.begin * x_w, columns.count, stage.step * x_w);
    }
  }
}

// --- forward ---

// R output
// rows, each `row_step` apart, of a plane staged with the rows they need.
template <class A>
struct TileNchw {
  const A* x;              // staged row that tap row 0 of output row 0 reads
  int64_t x_row;           // elements between the input rows of neighbouring tap rows
  const int64_t* offsets;  // [kw] of taps in a staged row
  const A* weight;         // [kw][kh]
  int64_t kh, kw;
};

// sums[i][j] += weight * x over all taps, for R rows and C vectors. K > 0: kh is K, and rows are S tap rows apart;
// K = 0: any kh, and S is 1.
template <int K, int S, int R, int C, int L, class A>
LIGHTKERNELS_INLINE void accumulate_nchw(const TileNchw<A>& t, int64_t o, Vec<A, L> (&sums)[R][C]) {
  using V = Vec<A, L>;
  for (int64_t v = 0; v < t.kw; ++v) {
    const A* x = t.x + t.offsets[v] + o;
    if constexpr (K > 0) {
      const A* weight = t.weight + v * K;
      V weights[K];
      unroll<K>(LIGHTKERNELS_LAMBDA(auto u) { weights[u] = splat<L>(weight[u]); });
      unroll<(R - 1) * S + K>(LIGHTKERNELS_LAMBDA(auto r) {
        unroll<C>(LIGHTKERNELS_LAMBDA(auto j) {
          V value = load<L>(x + r * t.x_row + j * L);
          keep_in_register(value);
          unroll<R>(LIGHTKERNELS_LAMBDA(auto i) {
            constexpr int u = r - S * i;
            if constexpr (u >= 0 && u < K) sums[i][j] += value * weights[u];
          });
        });
      });
    } else {
      const A* weight = t.weight + v * t.kh;
      for (int64_t r = 0; r < t.kh + R - 1; ++r, x += t.x_row) {
        V values[C];
        unroll<C>(LIGHTKERNELS_LAMBDA(auto j) { values[j] = load<L>(x + j * L); });
        auto meet = LIGHTKERNELS_LAMBDA(auto i) {
          const V w = splat<L>(weight[r - i]);
          unroll<C>(LIGHTKERNELS_LAMBDA(auto j) { sums[i][j] += values[j] * w; });
        };
        if (r >= R - 1 && r < t.kh) {
          unroll<R>(meet);
        } else {
          unroll<R>(LIGHTKERNELS_LAMBDA(auto i) {
            if (r - i >= 0 && r - i < t.kh) meet(i);
          });
        }
      }
    }
  }
}

// Where outputs go: `rows` of the tile's R exist.
template <class E>
struct OutNchw {
  E* y;
  int64_t y_row, y_w, ow, rows;
  Acc<E> bias;
  Activation activation;
};

template <int K, int S, int R, int C, int L, class E>
LIGHTKERNELS_INLINE void block_nchw(const TileNchw<Acc<E>>& t, const OutNchw<E>& out, int64_t o,
                                    const Clip<Acc<E>>& clip) {
  using A = Acc<E>;
  using V = Vec<A, L>;
  V sums[R][C];
  unroll<R * C>(LIGHTKERNELS_LAMBDA(auto i) { sums[i / C][i % C] = splat<L>(out.bias); });
  accumulate_nchw<K, S, R, C, L>(t, o, sums);
  const V low = splat<L>(clip.low), high = splat<L>(clip.high);
  unroll<R>(LIGHTKERNELS_LAMBDA(auto i) {
    if (i >= out.rows) return;
    unroll<C>(LIGHTKERNELS_LAMBDA(auto j) {
      V z = sums[i][j];
      if (clip.smooth) z = smooth<L, A>(z, out.activation);
      z = clamp(z, low, high);
      E* y = out.y + i * out.y_row + (o + j * L) * out.y_w;
      const int64_t count = out.ow - (o + j * L);
      if (out.y_w == 1) {
        store_up_to<L>(y, z, count);
      } else {
        E values[L];
        store<L>(values, z);
        for (int64_t l = 0; l < std::min<int64_t>(L, count); ++l) y[l * out.y_w] = values[l];
      }
    });
  });
}

// All columns of R output rows. Vectors slide back at the end where the row is long enough.
template <int K, int S, int R, int C, int L, class E>
LIGHTKERNELS_INLINE void tile_nchw(const TileNchw<Acc<E>>& t, const OutNchw<E>& out, const Clip<Acc<E>>& clip) {
  int64_t o = 0;
  for (; o + C * L <= out.ow; o += C * L) block_nchw<K, S, R, C, L>(t, out, o, clip);
  if (o == out.ow) return;
  if (out.ow >= C * L) return block_nchw<K, S, R, C, L>(t, out, out.ow - C * L, clip);
  for (; o < out.ow; o += L) {
    block_nchw<K, S, R, 1, L>(t, out, out.ow >= L ? std::min(o, out.ow - L) : o, clip);
  }
}

// A convolution, forward or transposed, of planes: what the drivers below need to know of it.
template <class E>
struct PlanesNchw {
  const E* x;  // plane 0 of layer 0
  int64_t x_layer, x_h, x_w, ih, iw;
  const E* weight;  // tap (0, 0) of layer 0
  int64_t w_layer, w_h, w_w;
  int64_t layers;  // input planes that add to one output plane
  E* y;
  int64_t y_h, y_w, oh, ow;
  Acc<E> bias;
  Activation activation;
};

// Any geometry, one output after the other: for kernels that no buffer holds.
template <class E>
[[gnu::noinline]] void direct_nchw(const PlanesNchw<E>& p, const Axis& h, const Axis& w) {
  const Clip<Acc<E>> clip(p.activation);
  for (int64_t i = 0; i < p.oh; ++i) {
    const auto [u_begin, u_end] = h.inside(i, p.ih);
    for (int64_t j = 0; j < p.ow; ++j) {
      const auto [v_begin, v_end] = w.inside(j, p.iw);
      Vec<Acc<E>, 1> sum{p.bias};
      for (int64_t layer = 0; layer < p.layers; ++layer) {
        for (int64_t u = u_begin; u < u_end; ++u) {
          const E* x = p.x + layer * p.x_layer + (h.first + i * h.step + u * h.dilation) * p.x_h;
          const E* weight = p.weight + layer * p.w_layer + (h.tap + u * h.tap_step) * p.w_h;
          for (int64_t v = v_begin; v < v_end; ++v) {
            sum += load<1>(x + (w.first + j * w.step + v * w.dilation) * p.x_w) *
                   load<1>(weight + (w.tap + v * w.tap_step) * p.w_w);
          }
        }
      }
      if (clip.smooth) sum = smooth<1, Acc<E>>(sum, p.activation);
      store<1>(p.y + i * p.y_h + j * p.y_w, clamp(sum, splat<1>(clip.low), splat<1>(clip.high)));
    }
  }
}

// Buffers of one thread.
template <class A>
struct ScratchNchw {
  static constexpr int64_t kWeights = 4096;
  alignas(64) A stage[kStageFloats];
  alignas(64) A weight[kWeights];
  const void* staged_by = nullptr;  // the plan that `stage` has held a plane of, if one such plane is all it holds
};

// How planes of one geometry are worked through: computed once, used for every channel.
struct PlanNchw {
  Axis h, w;
  int64_t oh, ow;      // outputs of the phase
  bool fits = false;   // do the buffers hold it?
  int64_t group;       // rows `group` apart see neighbouring tap rows: dilation makes independent convolutions
  int64_t columns;     // outputs of a row that are worked on at a time
  int64_t band;        // output rows whose inputs are staged together
  int64_t layer_size;  // staged elements of a layer
  bool whole = false;  // is one plane staged at once, and nothing else until the next?
  Stage stage;
  static constexpr int64_t kTaps = 256;
  int64_t offsets[kTaps];  // [layers, kw] of taps in the staged rows

  template <int K, int S, int R, int L, class A>
  static PlanNchw make(const Axis& h, const Axis& w, int64_t oh, int64_t ow, int64_t layers) {
    PlanNchw p{h, w, oh, ow, false, R > 1 && S == 1 ? h.dilation : 1, ow, 0, 0, false, Stage(w, ow, L)};
    const int64_t taps = layers * w.count;
    const int64_t overrun = (R - 1) * p.group * h.step + (h.count - 1) * h.dilation + 1;
    while (p.columns > 4 * L && overrun * layers * p.stage.pitch > kStageFloats) {
      p.columns /= 2;
      p.stage = Stage(w, p.columns, L);
    }
    const int64_t fit = kStageFloats / (p.stage.pitch * layers) - overrun;
    p.fits = fit >= 0 && taps <= kTaps && taps * h.count <= ScratchNchw<A>::kWeights;
    if (!p.fits) return p;
    const int64_t want = std::max(kStageTarget / (p.stage.pitch * layers) - overrun, (R * p.group - 1) * h.step);
    p.band = std::min(oh, std::min(fit, want) / h.step + 1);
    p.layer_size = ((p.band - 1) * h.step + overrun) * p.stage.pitch;
    p.whole = layers == 1 && p.columns == ow && p.band == oh;
    for (int64_t i = 0; i < taps; ++i) {
      p.offsets[i] = i / w.count * p.layer_size + p.stage.offset(w, i % w.count);
    }
    return p;
  }
};

// The output planes of one channel.
template <int K, int S, int R, int C, int L, class E>
[[gnu::noinline]] void staged_nchw(const PlanesNchw<E>& p, const PlanNchw& plan, ScratchNchw<Acc<E>>& scratch) {
  using A = Acc<E>;
  const Axis &h = plan.h, &w = plan.w;
  const Stage stage = plan.stage;
  const Clip<A> clip(p.activation);
  const bool clean = plan.whole && scratch.staged_by == &plan;
  scratch.staged_by = &plan;
  A* weight = scratch.weight;
  for (int64_t layer = 0; layer < p.layers; ++layer) {
    for (int64_t v = 0; v < w.count; ++v) {
      const E* from = p.weight + layer * p.w_layer + (w.tap + v * w.tap_step) * p.w_w + h.tap * p.w_h;
      for (int64_t u = 0; u < h.count; ++u) *weight++ = load<1>(from + u * h.tap_step * p.w_h)[0];
    }
  }
  for (int64_t column = 0; column < p.ow; column += plan.columns) {
    const int64_t piece = std::min(plan.columns, p.ow - column);
    for (int64_t begin = 0; begin < p.oh; begin += plan.band) {
      const int64_t rows = std::min(plan.band, p.oh - begin), first_row = h.first + begin * h.step;
      const int64_t needed = (rows - 1) * h.step + (h.count - 1) * h.dilation + 1;
      for (int64_t layer = 0; layer < p.layers; ++layer) {
        stage_rows<L>(stage, column, clean, scratch.stage + layer * plan.layer_size, needed, p.x + layer * p.x_layer,
                      first_row, p.x_h, p.x_w, p.ih, p.iw);
      }
      const int64_t x_row = h.dilation * stage.pitch, taps = p.layers * w.count, y_row = plan.group * p.y_h;
      for (int64_t g = 0; g < std::min(plan.group, rows); ++g) {
        const int64_t members = plan.group == 1 ? rows : (rows - 1 - g) / plan.group + 1;
        for (int64_t m = 0; m < members; m += R) {
          const int64_t row = g + m * plan.group;
          const TileNchw<A> tile{
              scratch.stage + row * h.step * stage.pitch, x_row, plan.offsets, scratch.weight, h.count, taps};
          const OutNchw<E> out{p.y + (begin + row) * p.y_h + column * p.y_w,
                               y_row,
                               p.y_w,
                               piece,
                               std::min<int64_t>(R, members - m),
                               p.bias,
                               p.activation};
          tile_nchw<K, S, R, C, L>(tile, out, clip);
        }
      }
    }
  }
}

// Chooses the tile by kernel height, stride and width of the output, and calls f(K, S, R, C, L) with it.
template <class E, class F>
auto with_tile_nchw(const Axis& h, int64_t oh, int64_t ow, F&& f) {
  constexpr int L = lanes<E>();
  using std::integral_constant;
  using One = integral_constant<int, 1>;
  using Two = integral_constant<int, 2>;
  using Four = integral_constant<int, 4>;
  using Seven = integral_constant<int, 7>;  // the rows of the last stages of most networks
  using Wide = integral_constant<int, L>;
  using Narrow = integral_constant<int, (L > 8 ? 8 : L)>;
  using Any = integral_constant<int, 0>;
  if constexpr (std::is_same_v<E, float>) {
    auto by_width = [&](auto k, auto s) {
      if (ow >= 2 * L) return f(k, s, Four{}, Two{}, Wide{});
      if (ow > 8) return f(k, s, Seven{}, One{}, Wide{});
      if (oh > 4) return f(k, s, Seven{}, One{}, Narrow{});
      return f(k, s, Four{}, One{}, Narrow{});
    };
    auto by_stride = [&](auto k) { return h.step == 1 ? by_width(k, One{}) : by_width(k, Two{}); };
    if (h.step == 1 || (h.step == 2 && h.dilation == 1)) {
      if (h.count == 3) return by_stride(integral_constant<int, 3>{});
      if (h.count == 5) return by_stride(integral_constant<int, 5>{});
      if (h.count == 7) return by_stride(integral_constant<int, 7>{});
    }
    if (h.step == 1) return by_width(Any{}, One{});
  }
  return f(Any{}, One{}, One{}, One{}, Wide{});
}

template <class E>
PlanNchw plan_nchw(const Axis& h, const Axis& w, int64_t oh, int64_t ow, int64_t layers) {
  return with_tile_nchw<E>(h, oh, ow, [&](auto k, auto s, auto r, auto, auto l) {
    if (h.count == 0 || w.count == 0) return PlanNchw{h, w, oh, ow, false, 1, 0, 0, 0, false, Stage(w, ow, l)};
    return PlanNchw::make<k, s, r, l, Acc<E>>(h, w, oh, ow, layers);
  });
}

template <class E>
void planes_nchw(const PlanesNchw<E>& p, const PlanNchw& plan, ScratchNchw<Acc<E>>& scratch) {
  if (!plan.fits) return direct_nchw(p, plan.h, plan.w);
  with_tile_nchw<E>(plan.h, plan.oh, plan.ow,
                    [&](auto k, auto s, auto r, auto c, auto l) { staged_nchw<k, s, r, c, l>(p, plan, scratch); });
}

}  // namespace lightkernels::cpu
