// Gradient of the weight, columns innermost: staged planes of x and dy are correlated tap by tap.
#pragma once

#include <algorithm>

#include "../depthwise_conv2d.h"
#include "depthwise_conv2d_nchw.h"

namespace lightkernels::cpu {

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
bool add_backward_weight(const PlanesNchw<E>& p, const Axis& h, Axis w, ScratchNchw<Acc<E>>& scratch, Acc<E>* sums,
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
    for (int64_t begin = 0; begin < p.oh; begin += band) {
      const int64_t rows = std::min(band, p.oh - begin), first_row = h.first + begin * h.step;
      const int64_t needed = (rows - 1) * h.step + span;
      stage_rows<L>(stage, column, false, scratch.stage, needed, p.x, first_row, p.x_h, p.x_w, p.ih, p.iw);
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
[[gnu::noinline]] void direct_backward_weight(const PlanesNchw<E>& p, const Axis& h, const Axis& w, Acc<E>* sums,
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
