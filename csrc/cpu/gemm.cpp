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
                                      const S* ahead, Vec<S, L> (&sums)[M][V]) {
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
    unroll<kUnroll>(LIGHTKERNELS_LAMBDA(auto u) {
      if constexpr (kForm == Form::kRows) __builtin_prefetch(ahead + u * L);
      rank_one(u, b + u * b_step, a + u * a_step);
    });
    advance(kUnroll);
    ahead += kUnroll * L;
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
  if (!tile.bias) {
    unroll<M>(LIGHTKERNELS_LAMBDA(auto i) { unroll<V>(LIGHTKERNELS_LAMBDA(auto j) { sums[i][j] = Vector{}; }); });
  } else if (tile.bias_of_rows) {
    unroll<M>(LIGHTKERNELS_LAMBDA(auto i) {
      unroll<V>(LIGHTKERNELS_LAMBDA(auto j) { sums[i][j] = splat<L>(tile.bias[i]); });
    });
  } else {
    unroll<V>(LIGHTKERNELS_LAMBDA(auto j) {
      const S* at = tile.bias + j * L;
      const Vector bias = j == V - 1 && last < L ? load_first<L, S>(at, last) : load<L, S>(at);
      unroll<M>(LIGHTKERNELS_LAMBDA(auto i) { sums[i][j] = bias; });
    });
  }
  for (int64_t s = 0; s < tile.count; ++s) {
    add_products<M, V, kForm, S, L>(tile.segments[s], tile.a_step, tile.b_step, last,
                                    tile.ahead ? tile.ahead : tile.segments[s].b, sums);
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

// --- tiles whose rows share the last vector, two and two ---

#if defined(__AVX512F__)
using Floats = Vec<float, 16>;

LIGHTKERNELS_INLINE Floats low_and_high(Floats low, Floats high) {
  return (Floats)_mm512_mask_blend_ps(0xff00, (__m512)low, (__m512)high);
}
// The low half twice.
LIGHTKERNELS_INLINE Floats twice(Floats v) { return (Floats)_mm512_shuffle_f32x4((__m512)v, (__m512)v, 0x44); }
LIGHTKERNELS_INLINE Floats high_half(Floats v) { return (Floats)_mm512_shuffle_f32x4((__m512)v, (__m512)v, 0xee); }

template <int M, int V>
LIGHTKERNELS_INLINE void add_shared_products(const Segment<float>& segment, int64_t a_step, Floats (&sums)[M][V - 1],
                                             Floats (&halves)[(M + 1) / 2]) {
  constexpr int L = 16, kFull = V - 1, kBases = (M + 3) / 4, kUnroll = 2;
  const float *b = segment.b, *base[kBases];
  int64_t step3 = 3 * a_step;
  unroll<kBases>(LIGHTKERNELS_LAMBDA(auto i) { base[i] = segment.a + 4 * i * a_step; });
  hide(step3);
  auto rank_one = LIGHTKERNELS_LAMBDA(auto at) {
    Floats row[V], even;
    unroll<V>(LIGHTKERNELS_LAMBDA(auto j) { row[j] = load<L>(b + (at * V + j) * L); });
    unroll<M>(LIGHTKERNELS_LAMBDA(auto i) {
      constexpr int r = i % 4;
      const float* p = base[i / 4] + at;
      const Floats element = splat<L>(r == 0 ? p[0] : r == 1 ? p[a_step] : r == 2 ? p[2 * a_step] : p[step3]);
      unroll<kFull>(LIGHTKERNELS_LAMBDA(auto j) { sums[i][j] += element * row[j]; });
      if constexpr (i % 2) {
        halves[i / 2] += low_and_high(even, element) * row[kFull];
      } else if constexpr (i == M - 1) {
        halves[i / 2] += element * row[kFull];
      } else {
        even = element;
      }
    });
  };
  int64_t k = segment.k;
  for (; k >= kUnroll; k -= kUnroll) {
    unroll<kBases>(LIGHTKERNELS_LAMBDA(auto i) { hide(base[i]); });
    unroll<kUnroll>(LIGHTKERNELS_LAMBDA(auto u) { rank_one(u); });
    unroll<kBases>(LIGHTKERNELS_LAMBDA(auto i) { base[i] += kUnroll; });
    b += kUnroll * V * L;
  }
  if (k > 0) rank_one(std::integral_constant<int, 0>{});
}

template <int M, int V>
[[gnu::noinline]] void sharing_tile_of(const Tile<float>& tile) {
  constexpr int L = 16, kFull = V - 1, kPairs = (M + 1) / 2;
  Floats sums[M][kFull], halves[kPairs];
  const int64_t last = tile.columns - kFull * L;
  if (tile.bias) {
    const Floats shared = twice(load_first<L>(tile.bias + kFull * L, last));
    unroll<kFull>(LIGHTKERNELS_LAMBDA(auto j) {
      const Floats bias = load<L>(tile.bias + j * L);
      unroll<M>(LIGHTKERNELS_LAMBDA(auto i) { sums[i][j] = bias; });
    });
    unroll<kPairs>(LIGHTKERNELS_LAMBDA(auto i) { halves[i] = shared; });
  } else {
    unroll<M>(LIGHTKERNELS_LAMBDA(auto i) { unroll<kFull>(LIGHTKERNELS_LAMBDA(auto j) { sums[i][j] = Floats{}; }); });
    unroll<kPairs>(LIGHTKERNELS_LAMBDA(auto i) { halves[i] = Floats{}; });
  }
  for (int64_t s = 0; s < tile.count; ++s) {
    add_shared_products<M, V>(tile.segments[s], tile.a_step, sums, halves);
  }
  const Floats low = splat<L>(tile.low), high = splat<L>(tile.high);
  unroll<M>(LIGHTKERNELS_LAMBDA(auto i) {
    float* c = tile.c + i * tile.c_step;
    Floats half = i % 2 ? high_half(halves[i / 2]) : halves[i / 2];
    if (tile.accumulate) {
      unroll<kFull>(LIGHTKERNELS_LAMBDA(auto j) { sums[i][j] += load<L>(c + j * L); });
      half += load_first<L>(c + kFull * L, last);
    }
    unroll<kFull>(LIGHTKERNELS_LAMBDA(auto j) { store<L, float>(c + j * L, clamp(sums[i][j], low, high)); });
    store_first<L, float>(c + kFull * L, clamp(half, low, high), last);
  });
}

template <int V, int... M>
LIGHTKERNELS_INLINE void with_sharing_rows(const Tile<float>& tile, std::integer_sequence<int, M...>) {
  static constexpr void (*kTiles[])(const Tile<float>&) = {sharing_tile_of<M + 1, V>...};
  kTiles[tile.rows - 1](tile);
}
#endif

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

void multiply_tile(Form form, const Tile<float>& tile) {
#if defined(__AVX512F__)
  if (tile.shared && tile.vectors == 2) {
    return with_sharing_rows<2>(tile, std::make_integer_sequence<int, kSharingRows<2>>{});
  }
  if (tile.shared) return with_sharing_rows<3>(tile, std::make_integer_sequence<int, kSharingRows<3>>{});
#endif
  with_form<float>(form, tile);
}
void multiply_tile(Form form, const Tile<double>& tile) { with_form<double>(form, tile); }

}  // namespace lightkernels::cpu
