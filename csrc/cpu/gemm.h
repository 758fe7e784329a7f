// The one micro-kernel of all dense work: C[m, n] = sum over k of A[m, k] B[k, n], a tile of rows x vectors in
// registers.
//
// Per k, a tile loads V vectors of B, and multiplies each by one element of A for every row: with 14 x 2 (or 9 x 3)
// vectors there are twice as many multiply-adds as loads, so that they alone bind.
#pragma once

#include <cstdint>
#include <utility>

#include "vec.h"

namespace lightkernels::cpu {

// Rows of the largest tile of V vectors: sums, vectors of B and one element of A fill the registers. Those of doubles,
// which nobody waits for, are kept few: each is compiled for every instruction set.
template <class S, int V>
constexpr int kTileRows = sizeof(S) == 8     ? 4
                          : kRegisters == 32 ? (V == 3 ? 9 : 14)
                                             : (V == 3 ? 4 : 6);

// Where no more than half of the last vector's columns exist, two rows share it (24 columns of 16 lanes are then three
// vectors for two rows): B has that half twice. The rows of such a tile.
template <class S>
constexpr bool kShares = kVectorBytes == 64 && sizeof(S) == 4;
template <int V>
constexpr int kSharingRows = V == 3 ? 10 : 16;
constexpr int kMostRows = 16;

template <class S>
bool shares_last_vector(int64_t columns) {
  constexpr int64_t L = lanes<S>();
  return kShares<S> && columns > L && (columns - 1) % L < L / 2;
}

template <class S>
int tile_rows(int vectors, bool shared = false) {
  if (shared) return vectors == 3 ? kSharingRows<3> : kSharingRows<2>;
  return vectors == 3 ? kTileRows<S, 3> : kTileRows<S, 2>;
}

// Where A has element (row, k): kRows at a[row * a_step + k], kColumns at a[k * a_step + row]. kMasked: lanes of B
// beyond `columns` are not there, as where B is read in place.
enum class Form { kRows, kColumns, kRowsMasked, kColumnsMasked };

// A run of k: a and b point to its first element of row 0 and vector 0.
template <class S>
struct Segment {
  const S* a;
  const S* b;
  int64_t k;
};

template <class S>
struct Tile {
  const Segment<S>* segments;
  int64_t count;
  int64_t a_step, b_step;  // b_step: from one k to the next
  int rows, vectors;       // 1 .. tile_rows<S>(vectors, shared), 1 .. 3
  bool shared;             // rows share the last vector; Form::kRows only
  int64_t columns;         // of C that exist: more than vectors - 1 full ones
  S* c;
  int64_t c_step;   // from row to row
  bool accumulate;  // to what is in c
  const S* bias;    // added unless null: one for each column, or for each row
  bool bias_of_rows;
  S low, high;     // C is clamped to
  const S* ahead;  // Form::kRows: unless null, k vectors that soon will be needed are brought into the cache
};

// Computes one tile.
void multiply_tile(Form form, const Tile<float>& tile);
void multiply_tile(Form form, const Tile<double>& tile);

// n vectors as panels of 2, and one of 3 where n is odd: f(first vector, vectors).
template <class F>
LIGHTKERNELS_INLINE void for_panels(int64_t vectors, F&& f) {
  int64_t at = 0;
  if (vectors == 1) return f(int64_t{0}, 1);
  if (vectors % 2) f(at, 3), at = 3;
  for (; at < vectors; at += 2) f(at, 2);
}

inline int64_t panel_count(int64_t vectors) { return vectors == 1 ? 1 : vectors / 2; }
// First vector and vectors of a panel.
inline std::pair<int64_t, int> panel_at(int64_t vectors, int64_t panel) {
  if (vectors == 1) return {0, 1};
  if (vectors % 2 == 0) return {2 * panel, 2};
  return panel == 0 ? std::pair<int64_t, int>{0, 3} : std::pair<int64_t, int>{2 * panel + 1, 2};
}

// `count` rows as equal tiles of at most `most`: f(first, rows).
template <class F>
LIGHTKERNELS_INLINE void for_tiles(int64_t count, int most, F&& f) {
  const int64_t tiles = (count + most - 1) / most;
  for (int64_t t = 0, at = 0; t < tiles; ++t) {
    const int rows = static_cast<int>((count - at + tiles - t - 1) / (tiles - t));
    f(at, rows);
    at += rows;
  }
}

}  // namespace lightkernels::cpu
