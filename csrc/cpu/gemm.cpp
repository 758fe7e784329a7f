// The tiles of gemm.h: every number of rows and vectors, compiled once.
#include "gemm.h"

#include <utility>

namespace lightkernels::cpu {
namespace {

constexpr bool in_rows(Form form) { return form == Form::kRows || form == Form::kRowsMasked; }
constexpr bool masked(Form form) { return form == Form::kRowsMasked || form == Form::kColumnsMasked; }

// Keeps the compiler from deriving one pointer from another: fourteen rows are then addressed by four pointers and two
// steps, which all stay in registers.
template <class P>
LIGHTKERNELS_INLINE void hide(P& p) {
  asm volatile("" : "+r"(p));
}

template <int M, int V, Form kForm, class S, int L>
LIGHTKERNELS_INLINE void add_products(const Segment<S>& segment, int64_t a_step, int64_t b_step, int64_t last,
                                      Vec<S, L> (&sums)[M][V]) {
  constexpr int kBases = (M + 3) / 4, kUnroll = 4;
  const S *a = segment.a, *b = segment.b, *base[kBases];
  int64_t step3 = 3 * a_step;
  if constexpr (in_rows(kForm)) {
    unroll<kBases>(LIGHTKERNELS_LAMBDA(auto i) { base[i] = a + 4 * i * a_step; });
    hide(step3);
  }
  auto rank_one = LIGHTKERNELS_LAMBDA(auto at, const S* b_k, const S* a_k) {
    Vec<S, L> row[V];
    unroll<V>(LIGHTKERNELS_LAMBDA(auto j) {
      constexpr bool kLast = masked(kForm) && j == V - 1;
      if constexpr (kLast) {
        row[j] = load_first<L, S>(b_k + j * L, last);
      } else {
        row[j] = load<L, S>(b_k + j * L);
      }
    });
    unroll<M>(LIGHTKERNELS_LAMBDA(auto i) {
      S element;
      if constexpr (in_rows(kForm)) {
        constexpr int r = i % 4;
        const S* p = base[i / 4] + at;
        element = r == 0 ? p[0] : r == 1 ? p[a_step] : r == 2 ? p[2 * a_step] : p[step3];
      } else {
        element = a_k[i];
      }
      unroll<V>(LIGHTKERNELS_LAMBDA(auto j) { sums[i][j] += splat<L>(element) * row[j]; });
    });
  };
  auto hide_bases = LIGHTKERNELS_LAMBDA() {
    if constexpr (in_rows(kForm)) unroll<kBases>(LIGHTKERNELS_LAMBDA(auto i) { hide(base[i]); });
  };
  auto advance = LIGHTKERNELS_LAMBDA(int steps) {
    b += steps * b_step;
    if constexpr (in_rows(kForm)) {
      unroll<kBases>(LIGHTKERNELS_LAMBDA(auto i) { base[i] += steps; });
    } else {
      a += steps * a_step;
    }
  };
  int64_t k = segment.k;
  for (; k >= kUnroll; k -= kUnroll) {
    hide_bases();
    unroll<kUnroll>(LIGHTKERNELS_LAMBDA(auto u) { rank_one(u, b + u * b_step, a + u * a_step); });
    advance(kUnroll);
  }
  for (; k > 0; --k) {
    hide_bases();
    rank_one(std::integral_constant<int, 0>{}, b, a);
    advance(1);
  }
}

template <int M, int V, Form kForm, class S>
[[gnu::noinline]] void tile_of(const Tile<S>& tile) {
  constexpr int L = lanes<S>();
  using Vector = Vec<S, L>;
  Vector sums[M][V];
  const int64_t last = tile.columns - (V - 1) * L;
  S* const c = tile.c;
  const int64_t c_step = tile.c_step;
  unroll<M>(LIGHTKERNELS_LAMBDA(auto i) { unroll<V>(LIGHTKERNELS_LAMBDA(auto j) { sums[i][j] = Vector{}; }); });
  if (tile.bias && tile.bias_of_rows) {
    unroll<M>(LIGHTKERNELS_LAMBDA(auto i) {
      unroll<V>(LIGHTKERNELS_LAMBDA(auto j) { sums[i][j] += splat<L>(tile.bias[i]); });
    });
  } else if (tile.bias) {
    unroll<V>(LIGHTKERNELS_LAMBDA(auto j) {
      const S* at = tile.bias + j * L;
      const Vector bias = j == V - 1 && last < L ? load_first<L, S>(at, last) : load<L, S>(at);
      unroll<M>(LIGHTKERNELS_LAMBDA(auto i) { sums[i][j] += bias; });
    });
  }
  for (int64_t s = 0; s < tile.count; ++s) {
    add_products<M, V, kForm, S, L>(tile.segments[s], tile.a_step, tile.b_step, last, sums);
  }
  if (tile.accumulate) {  // at last, so that a long sum is one of shorter ones
    unroll<M>(LIGHTKERNELS_LAMBDA(auto i) {
      unroll<V>(LIGHTKERNELS_LAMBDA(auto j) {
        const S* at = c + i * c_step + j * L;
        sums[i][j] += j == V - 1 && last < L ? load_first<L, S>(at, last) : load<L, S>(at);
      });
    });
  }
  const Vector low = splat<L>(tile.low), high = splat<L>(tile.high);
  unroll<M>(LIGHTKERNELS_LAMBDA(auto i) {
    unroll<V>(LIGHTKERNELS_LAMBDA(auto j) { sums[i][j] = clamp(sums[i][j], low, high); });
  });
  unroll<M>(LIGHTKERNELS_LAMBDA(auto i) {
    unroll<V - 1>(LIGHTKERNELS_LAMBDA(auto j) { store<L, S>(c + i * c_step + j * L, sums[i][j]); });
  });
  if (last == L) {
    unroll<M>(LIGHTKERNELS_LAMBDA(auto i) { store<L, S>(c + i * c_step + (V - 1) * L, sums[i][V - 1]); });
  } else {
    unroll<M>(LIGHTKERNELS_LAMBDA(auto i) { store_first<L, S>(c + i * c_step + (V - 1) * L, sums[i][V - 1], last); });
  }
}

template <class S, int V, Form kForm, int... M>
LIGHTKERNELS_INLINE void with_rows(const Tile<S>& tile, std::integer_sequence<int, M...>) {
  static constexpr void (*kTiles[])(const Tile<S>&) = {tile_of<M + 1, V, kForm, S>...};
  kTiles[tile.rows - 1](tile);
}

template <class S, Form kForm>
void with_vectors(const Tile<S>& tile) {
  if (tile.vectors == 1) return with_rows<S, 1, kForm>(tile, std::make_integer_sequence<int, kTileRows<S, 1>>{});
  if (tile.vectors == 2) return with_rows<S, 2, kForm>(tile, std::make_integer_sequence<int, kTileRows<S, 2>>{});
  with_rows<S, 3, kForm>(tile, std::make_integer_sequence<int, kTileRows<S, 3>>{});
}

template <class S>
void with_form(Form form, const Tile<S>& tile) {
  const bool whole = tile.columns == tile.vectors * lanes<S>();
  if (form == Form::kRows || (form == Form::kRowsMasked && whole)) return with_vectors<S, Form::kRows>(tile);
  if (form == Form::kColumns || (form == Form::kColumnsMasked && whole)) return with_vectors<S, Form::kColumns>(tile);
  if (form == Form::kRowsMasked) return with_vectors<S, Form::kRowsMasked>(tile);
  with_vectors<S, Form::kColumnsMasked>(tile);
}

}  // namespace

void multiply_tile(Form form, const Tile<float>& tile) { with_form<float>(form, tile); }
void multiply_tile(Form form, const Tile<double>& tile) { with_form<double>(form, tile); }

}  // namespace lightkernels::cpu
