// Depthwise convolution, columns innermost: a vector is L neighbouring outputs of one row.
//
// Input rows are first copied ("staged") into a small buffer with zeros around them, split by column residue when the
// stride is not 1. That takes any strides and dtype in, and leaves the arithmetic without a single bounds test.
#pragma once

#include <algorithm>

#include "../depthwise_conv2d.h"
#include "depthwise_conv2d_geometry.h"
#include "vec.h"

namespace lightkernels::cpu {

// --- staging ----------------------------------------------------------------------------------------------------------
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
    const int64_t column = axis.first + k * axis.dilation, whole = floor_div(column, step);
    return (column - whole * step) * width + whole - low;
  }
};

template <int L, class E>
LIGHTKERNELS_INLINE void copy_row(Acc<E>* to, const E* from, int64_t count, int64_t stride) {
  if (stride == 1 && count >= L) {
    for_channels<L>(0, count, LIGHTKERNELS_LAMBDA(int64_t i) { store<L>(to + i, load<L>(from + i)); });
  } else if (stride == 1 && count >= 4) {
    for_channels<4>(0, count, LIGHTKERNELS_LAMBDA(int64_t i) { store<4>(to + i, load<4>(from + i)); });
  } else {
    for (int64_t i = 0; i < count; ++i) to[i] = load<1>(from + i * stride)[0];
  }
}

// Even and odd elements of 2 * L values.
template <int L, class S>
LIGHTKERNELS_INLINE std::pair<Vec<S, L>, Vec<S, L>> split(Vec<S, L> a, Vec<S, L> b) {
  using I = std::conditional_t<sizeof(S) == 8, int64_t, int32_t>;
  Vec<I, L> even{}, odd{};
  for (int i = 0; i < L; ++i) even[i] = 2 * i, odd[i] = 2 * i + 1;
  return {__builtin_shuffle(a, b, even), __builtin_shuffle(a, b, odd)};
}

// Copies one input row [size] into a staged row whose other elements are zero already.
template <int L, class E>
void stage_row(const Stage& stage, Acc<E>* to, const E* from, int64_t size, int64_t stride) {
  for (int64_t q = 0; q < stage.step; ++q) {
    const int64_t skip = std::max<int64_t>(0, -stage.low);  // index of the first column >= 0 of this residue
    const int64_t begin = (stage.low + skip) * stage.step + q;
    const int64_t count = std::min(stage.width - skip, begin < size ? (size - 1 - begin) / stage.step + 1 : 0);
    if (count <= 0) continue;
    Acc<E>* row = to + q * stage.width + skip;
    const E* source = from + begin * stride;
    if (stage.step == 2 && stride == 1 && q == 0 && count > L) {
      // Both residues at once. The odd one may be one column shorter; its last is copied alone.
      const int64_t odd_count = std::min(stage.width - skip, begin + 1 < size ? (size - 2 - begin) / 2 + 1 : 0);
      int64_t i = 0;
      for (; i + L <= std::min(count, odd_count); i += L) {
        const auto [even, odd] = split<L, Acc<E>>(load<L>(source + 2 * i), load<L>(source + 2 * i + L));
        store<L>(row + i, even);
        store<L>(row + stage.width + i, odd);
      }
      for (int64_t j = i; j < count; ++j) row[j] = load<1>(source + 2 * j)[0];
      for (int64_t j = i; j < odd_count; ++j) row[stage.width + j] = load<1>(source + 2 * j + 1)[0];
      return;
    }
    copy_row<L>(row, source, count, stage.step * stride);
  }
}

// --- forward ----------------------------------------------------------------------------------------------------------
// R output rows, each `row_step` apart, of a plane staged with the rows they need.
template <class A>
struct TileNchw {
  const A* x;                // staged row that tap row 0 of output row 0 reads
  int64_t x_row;             // elements between the input rows of neighbouring tap rows
  const int64_t* offsets;    // [kw] of taps in a staged row
  const A* weight;           // [kw][kh], or [kw][kh + 2 * (R - 1)] with zeros at both ends where kh is not fixed
  int64_t kh, kw;
};

// sums[i][j] += weight * x over all taps, for R rows and C vectors. K > 0: kh is K, and rows are `S` tap rows apart;
// K = 0: any kh, weights padded by R - 1 zeros on both sides so that each input row meets all R rows.
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
      const A* weight = t.weight + v * (t.kh + 2 * (R - 1));
      for (int64_t r = 0; r < t.kh + R - 1; ++r, x += t.x_row) {
        V values[C];
        unroll<C>(LIGHTKERNELS_LAMBDA(auto j) { values[j] = load<L>(x + j * L); });
        unroll<R>(LIGHTKERNELS_LAMBDA(auto i) {
          const V w = splat<L>(weight[r + R - 1 - i]);  // tap row r - i
          unroll<C>(LIGHTKERNELS_LAMBDA(auto j) { sums[i][j] += values[j] * w; });
        });
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
      if (out.y_w == 1 && count >= L) {
        store<L>(y, z);
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
[[gnu::noinline]] void tile_nchw(const TileNchw<Acc<E>> t, const OutNchw<E> out) {
  const Clip<Acc<E>> clip(out.activation);
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
  static constexpr int64_t kWeights = 4096, kTaps = 512;
  alignas(64) A stage[kStageFloats];
  alignas(64) A weight[kWeights];
  int64_t offsets[kTaps];
};

// The output planes of one channel whose rows and columns are given by the axes.
template <int K, int S, int R, int C, int L, class E>
bool staged_nchw(PlanesNchw<E> p, const Axis& h, Axis w, ScratchNchw<Acc<E>>& scratch) {
  using A = Acc<E>;
  // Rows `group` apart see neighbouring tap rows: with dilation they form `group` independent convolutions.
  const int64_t group = R > 1 && S == 1 ? h.dilation : 1;
  const int64_t weight_rows = K > 0 ? K : h.count + 2 * (R - 1);
  const int64_t overrun = (R - 1) * group * h.step + (h.count - 1) * h.dilation + 1;
  if (p.layers * w.count > scratch.kTaps || p.layers * w.count * weight_rows > scratch.kWeights) return false;

  int64_t columns = p.ow;  // of a piece
  while (columns > 4 * L && overrun * p.layers * Stage(w, columns, L).pitch > kStageFloats) columns = columns / 2;
  const Stage stage(w, columns, L);
  const int64_t fit = kStageFloats / (stage.pitch * p.layers) - overrun;
  if (fit < 0) return false;
  const int64_t want = std::max(kStageTarget / (stage.pitch * p.layers) - overrun, (R * group - 1) * h.step);
  const int64_t band = std::min(p.oh, std::min(fit, want) / h.step + 1);
  const int64_t staged_rows = (band - 1) * h.step + overrun, layer_size = staged_rows * stage.pitch;

  A* weight = scratch.weight;
  for (int64_t layer = 0; layer < p.layers; ++layer) {
    for (int64_t v = 0; v < w.count; ++v) {
      scratch.offsets[layer * w.count + v] = layer * layer_size + stage.offset(w, v);
      const E* from = p.weight + layer * p.w_layer + (w.tap + v * w.tap_step) * p.w_w;
      for (int64_t r = 0; r < weight_rows; ++r) {
        const int64_t u = K > 0 ? r : r - (R - 1);
        *weight++ = u >= 0 && u < h.count ? load<1>(from + (h.tap + u * h.tap_step) * p.w_h)[0] : A(0);
      }
    }
  }
  for (int64_t column = 0; column < p.ow; column += columns) {
    const int64_t piece = std::min(columns, p.ow - column);
    const int64_t low_column = stage.low + column;
    Stage here = stage;
    here.low = low_column;
    for (int64_t begin = 0; begin < p.oh; begin += band) {
      const int64_t rows = std::min(band, p.oh - begin), first_row = h.first + begin * h.step;
      const int64_t needed = (rows - 1) * h.step + (h.count - 1) * h.dilation + 1;
      for (int64_t layer = 0; layer < p.layers; ++layer) {
        for (int64_t r = 0; r < needed; ++r) {
          A* to = scratch.stage + layer * layer_size + r * stage.pitch;
          for (int64_t i = 0; i < stage.pitch; i += L) store<L>(to + i, Vec<A, L>{});
          if (first_row + r < 0 || first_row + r >= p.ih) continue;
          stage_row<L>(here, to, p.x + layer * p.x_layer + (first_row + r) * p.x_h, p.iw, p.x_w);
        }
      }
      TileNchw<A> tile{nullptr, h.dilation * stage.pitch, scratch.offsets, scratch.weight, h.count,
                       p.layers * w.count};
      OutNchw<E> out{nullptr, group * p.y_h, p.y_w, piece, 0, p.bias, p.activation};
      for (int64_t g = 0; g < std::min(group, rows); ++g) {
        const int64_t members = (rows - 1 - g) / group + 1;
        for (int64_t m = 0; m < members; m += R) {
          const int64_t row = g + m * group;
          tile.x = scratch.stage + row * h.step * stage.pitch;
          out.y = p.y + (begin + row) * p.y_h + column * p.y_w;
          out.rows = std::min<int64_t>(R, members - m);
          tile_nchw<K, S, R, C, L>(tile, out);
        }
      }
    }
  }
  return true;
}

// Chooses the tile by kernel height, stride, and width of the output.
template <class E>
void planes_nchw(const PlanesNchw<E>& p, const Axis& h, const Axis& w, ScratchNchw<Acc<E>>& scratch) {
  constexpr int L = lanes<E>();
  bool done = false;
  if (h.count > 0 && w.count > 0) {
    if constexpr (std::is_same_v<E, float>) {
      auto by_width = [&](auto k, auto s) {
        constexpr int K = k, S = s;
        if (p.ow >= 2 * L) return staged_nchw<K, S, 4, 2, L>(p, h, w, scratch);
        if (L > 8 && p.ow <= 8) return staged_nchw<K, S, 4, 1, 8>(p, h, w, scratch);
        return staged_nchw<K, S, 4, 1, L>(p, h, w, scratch);
      };
      using std::integral_constant;
      auto by_stride = [&](auto k) {
        if (h.step == 1) return by_width(k, integral_constant<int, 1>{});
        return by_width(k, integral_constant<int, 2>{});
      };
      if (h.step == 1 || (h.step == 2 && h.dilation == 1)) {
        if (h.count == 3) done = by_stride(integral_constant<int, 3>{});
        if (h.count == 5) done = by_stride(integral_constant<int, 5>{});
        if (h.count == 7) done = by_stride(integral_constant<int, 7>{});
      }
      if (!done && h.step == 1) {
        done = p.ow >= 2 * L ? staged_nchw<0, 1, 4, 2, L>(p, h, w, scratch)
                             : staged_nchw<0, 1, 4, 1, L>(p, h, w, scratch);
      }
    }
    if (!done) done = staged_nchw<0, 1, 1, 1, L>(p, h, w, scratch);
  }
  if (!done) direct_nchw(p, h, w);
}

// --- gradient of the weight -------------------------------------------------------------------------------------------
// sums[u] += dy . x for N tap rows over `rows` output rows: x and dy are staged, dy with zeros after its row's end.
template <int N, int L, class A>
[[gnu::noinline]] void correlate_nchw(const A* x, int64_t x_tap, int64_t x_row, const A* dy, int64_t dy_row,
                                      int64_t rows, int64_t columns, A* sums) {
  using V = Vec<A, L>;
  using I = std::conditional_t<sizeof(A) == 8, int64_t, int32_t>;
  constexpr int kParts = 2;
  V total[kParts][N];
  unroll<kParts * N>(LIGHTKERNELS_LAMBDA(auto i) { total[i / N][i % N] = V{}; });
  // Beyond the row's end dy is zero, but x may hold the image's values, infinities among them: mask it.
  Vec<I, L> lane;
  for (int l = 0; l < L; ++l) lane[l] = l;
  const int64_t whole = columns / L * L;
  const Vec<I, L> mask = lane < splat<L>(static_cast<I>(columns - whole));
  auto row = LIGHTKERNELS_LAMBDA(auto part, int64_t i) {
    const A *xs = x + i * x_row, *dys = dy + i * dy_row;
    for (int64_t j = 0; j < whole; j += L) {
      const V d = load<L>(dys + j);
      unroll<N>(LIGHTKERNELS_LAMBDA(auto u) { total[part][u] += d * load<L>(xs + u * x_tap + j); });
    }
    if (whole < columns) {
      const V d = load<L>(dys + whole);
      unroll<N>(LIGHTKERNELS_LAMBDA(auto u) {
        total[part][u] += d * (V)((Vec<I, L>)load<L>(xs + u * x_tap + whole) & mask);
      });
    }
  };
  int64_t i = 0;
  for (; i + kParts <= rows; i += kParts) {
    unroll<kParts>(LIGHTKERNELS_LAMBDA(auto part) { row(part, i + part); });
  }
  for (; i < rows; ++i) row(std::integral_constant<int, 0>{}, i);
  unroll<N>(LIGHTKERNELS_LAMBDA(auto u) {
    V all = total[0][u];
    unroll<kParts - 1>(LIGHTKERNELS_LAMBDA(auto part) { all += total[part + 1][u]; });
    sums[u] += sum(all);
  });
}

// Adds to sums [kw, kh] (and to *dbias) what one pair of planes gives. False where no buffer holds the rows.
template <int L, class E>
bool backward_weight_nchw(const PlanesNchw<E>& p, const Axis& h, Axis w, ScratchNchw<Acc<E>>& scratch, Acc<E>* sums,
                          Acc<E>* dbias) {
  using A = Acc<E>;
  const int64_t span = (h.count - 1) * h.dilation + 1;
  int64_t columns = p.ow;
  auto row_floats = [&](int64_t c) { return Stage(w, c, L).pitch + (c + L - 1) / L * L; };
  while (columns > 4 * L && span * row_floats(columns) > kStageFloats) columns /= 2;
  const Stage stage(w, columns, L);
  const int64_t dy_pitch = (columns + L - 1) / L * L;
  // `band` output rows need (band - 1) * step + span input rows.
  const int64_t left = kStageFloats - span * stage.pitch - dy_pitch;
  if (left < 0) return false;
  const int64_t band = std::min(p.oh, 1 + left / (h.step * stage.pitch + dy_pitch));
  for (int64_t column = 0; column < p.ow; column += columns) {
    const int64_t piece = std::min(columns, p.ow - column);
    Stage here = stage;
    here.low = stage.low + column;
    for (int64_t begin = 0; begin < p.oh; begin += band) {
      const int64_t rows = std::min(band, p.oh - begin), first_row = h.first + begin * h.step;
      const int64_t needed = (rows - 1) * h.step + span;
      for (int64_t r = 0; r < needed; ++r) {
        A* to = scratch.stage + r * stage.pitch;
        for (int64_t i = 0; i < stage.pitch; i += L) store<L>(to + i, Vec<A, L>{});
        if (first_row + r < 0 || first_row + r >= p.ih) continue;
        stage_row<L>(here, to, p.x + (first_row + r) * p.x_h, p.iw, p.x_w);
      }
      A* dy = scratch.stage + needed * stage.pitch;
      Vec<A, L> total{};
      for (int64_t r = 0; r < rows; ++r) {
        A* to = dy + r * dy_pitch;
        for (int64_t i = 0; i < dy_pitch; i += L) store<L>(to + i, Vec<A, L>{});
        copy_row<L>(to, p.y + (begin + r) * p.y_h + column * p.y_w, piece, p.y_w);
        for (int64_t i = 0; i < dy_pitch; i += L) total += load<L>(to + i);
      }
      *dbias += sum(total);
      for (int64_t v = 0; v < w.count; ++v) {
        const A* x = scratch.stage + stage.offset(w, v);
        const int64_t tap = h.dilation * stage.pitch, row = h.step * stage.pitch;
        int64_t u = 0;
        auto blocks = [&](auto n) {
          for (; u + n <= h.count; u += n) {
            correlate_nchw<n, L>(x + u * tap, tap, row, dy, dy_pitch, rows, piece, sums + v * h.count + u);
          }
        };
        if (h.count == 5) blocks(std::integral_constant<int, 5>{});
        blocks(std::integral_constant<int, 7>{});
        blocks(std::integral_constant<int, 3>{});
        blocks(std::integral_constant<int, 1>{});
      }
    }
  }
  return true;
}

// The same for one pair of planes of any geometry.
template <class E>
[[gnu::noinline]] void direct_backward_weight_nchw(const PlanesNchw<E>& p, const Axis& h, const Axis& w, Acc<E>* sums,
                                                   Acc<E>* dbias) {
  for (int64_t i = 0; i < p.oh; ++i) {
    const auto [u_begin, u_end] = h.inside(i, p.ih);
    for (int64_t j = 0; j < p.ow; ++j) {
      const auto [v_begin, v_end] = w.inside(j, p.iw);
      const Acc<E> dy = load<1>(p.y + i * p.y_h + j * p.y_w)[0];
      *dbias += dy;
      for (int64_t u = u_begin; u < u_end; ++u) {
        const E* x = p.x + (h.first + i * h.step + u * h.dilation) * p.x_h;
        for (int64_t v = v_begin; v < v_end; ++v) {
          sums[v * h.count + u] += dy * load<1>(x + (w.first + j * w.step + v * w.dilation) * p.x_w)[0];
        }
      }
    }
  }
}

}  // namespace lightkernels::cpu
