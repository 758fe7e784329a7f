// Streams that are shorter than a vector: a block of them is a few vectors in and a few out, and every lane of these
// comes from some lane of those. Needs instructions that permute any lanes under masks, which AVX-512 has.
#pragma once

#include <algorithm>

#include "../move.h"
#include "vec.h"

namespace lightkernels::cpu {

#if defined(__AVX512BW__)

template <class S>
struct Lanes {
  static constexpr int L = 64 / sizeof(S);

  static __m512i load(uint64_t mask, const void* p) {
    if constexpr (sizeof(S) == 2) return _mm512_maskz_loadu_epi16(static_cast<__mmask32>(mask), p);
    if constexpr (sizeof(S) == 4) return _mm512_maskz_loadu_epi32(static_cast<__mmask16>(mask), p);
    if constexpr (sizeof(S) == 8) return _mm512_maskz_loadu_epi64(static_cast<__mmask8>(mask), p);
  }
  static void store(uint64_t mask, void* p, __m512i v) {
    if constexpr (sizeof(S) == 2) _mm512_mask_storeu_epi16(p, static_cast<__mmask32>(mask), v);
    if constexpr (sizeof(S) == 4) _mm512_mask_storeu_epi32(p, static_cast<__mmask16>(mask), v);
    if constexpr (sizeof(S) == 8) _mm512_mask_storeu_epi64(p, static_cast<__mmask8>(mask), v);
  }
  // v, but lanes from[..] of `source` where the mask is.
  static __m512i pick(__m512i v, uint64_t mask, __m512i from, __m512i source) {
    if constexpr (sizeof(S) == 2) return _mm512_mask_permutexvar_epi16(v, static_cast<__mmask32>(mask), from, source);
    if constexpr (sizeof(S) == 4) return _mm512_mask_permutexvar_epi32(v, static_cast<__mmask16>(mask), from, source);
    if constexpr (sizeof(S) == 8) return _mm512_mask_permutexvar_epi64(v, static_cast<__mmask8>(mask), from, source);
  }
};

template <class S>
struct Permutation {
  static constexpr int L = Lanes<S>::L, kMost = 4;  // vectors in, and out

  struct Segment {
    int64_t at, count;
    uint64_t mask() const { return count == 64 ? ~uint64_t{0} : (uint64_t{1} << count) - 1; }
  };

  static constexpr int kBytes = 1 << 14;  // of the stage

  int rows = 0;  // of the move, in a block
  int ins, outs;
  int64_t runs = 0, run = 0, at[MoveParams::kWays];  // what a row writes: `runs` of `run` elements, where
  int64_t stage = 0;                                 // rows of the move that are staged at once
  Segment in[kMost], out[kMost];
  S from[kMost][kMost][L];  // lane of each out, if it comes from that in
  uint64_t taken[kMost][kMost];

  // Of as many rows as fit; rows is 0 where not even one does, or where a row does not go on where another ends.
  explicit Permutation(const MoveParams& p, const MoveAxis& axis) {
    const int64_t block = p.length * p.ways;
    if (!find_runs(p) || run != axis.y) return;
    for (int64_t m = std::min<int64_t>(axis.size, kMost * L / block); m > 0 && !rows; --m) {
      if (build(p, axis, m)) rows = static_cast<int>(m);
    }
    if (rows) stage = (kBytes / static_cast<int64_t>(sizeof(S)) - runs * L) / (runs * run) / rows * rows;
    if (stage <= 0) rows = 0;
  }

  bool find_runs(const MoveParams& p) {
    if (p.innermost == Innermost::kInterleave) {
      runs = 1, run = p.length * p.ways, at[0] = 0;
      return true;
    }
    int64_t sorted[MoveParams::kWays];
    std::copy(p.streams, p.streams + p.ways, sorted);
    std::sort(sorted, sorted + p.ways);
    for (int64_t s = 0; s < p.ways; ++s) {
      if (s && sorted[s] == sorted[s - 1] + p.length) continue;
      at[runs++] = sorted[s];
    }
    run = p.length * p.ways / runs;
    for (int64_t s = 0; s < p.ways; ++s) {  // are they all as long?
      if (sorted[s] != at[s * p.length / run] + s * p.length % run) return false;
    }
    return true;
  }

  bool build(const MoveParams& p, const MoveAxis& axis, int64_t m) {
    struct Pair {
      int64_t x, y;
    } pairs[kMost * L];
    int64_t count = 0, xs[kMost * L];
    const bool apart = p.innermost == Innermost::kDeinterleave;
    for (int64_t row = 0; row < m; ++row) {
      for (int64_t i = 0; i < p.length; ++i) {
        for (int64_t s = 0; s < p.ways; ++s) {
          const int64_t one = i * p.ways + s, many = p.streams[s] + i;
          pairs[count] = {row * axis.x + (apart ? one : many), row * axis.y + (apart ? many : one)};
          xs[count] = pairs[count].x, ++count;
        }
      }
    }
    std::sort(pairs, pairs + count, [](const Pair& a, const Pair& b) { return a.y < b.y; });
    std::sort(xs, xs + count);
    ins = outs = 0;
    for (int64_t i = 0; i < count; ++i) {
      const bool new_run = std::find(at, at + runs, pairs[i].y) != at + runs;
      if (!extend(in, ins, xs[i], false) || !extend(out, outs, pairs[i].y, new_run)) return false;
    }
    std::memset(from, 0, sizeof from), std::memset(taken, 0, sizeof taken);
    for (int64_t i = 0, o = 0; i < count; ++i) {
      if (pairs[i].y >= out[o].at + out[o].count) ++o;
      int k = 0;
      while (pairs[i].x >= in[k].at + in[k].count) ++k;
      const int64_t lane = pairs[i].y - out[o].at;
      from[o][k][lane] = static_cast<S>(pairs[i].x - in[k].at);
      taken[o][k] |= uint64_t{1} << lane;
    }
    return true;
  }

  // Offsets come in order; one that is there already (x may repeat) changes nothing.
  static bool extend(Segment (&segments)[kMost], int& count, int64_t at, bool apart) {
    if (count && at < segments[count - 1].at + segments[count - 1].count) return true;
    if (count && !apart && at == segments[count - 1].at + segments[count - 1].count && segments[count - 1].count < L) {
      return ++segments[count - 1].count, true;
    }
    if (count == kMost) return false;
    segments[count++] = {at, 1};
    return true;
  }

  // `blocks` of a row of the move to the stage, whose runs are `width` apart. A store may go beyond its segment: what
  // it spoils is written later, or nobody's.
  template <int INS, int OUTS>
  void fill(int64_t blocks, const S* x, int64_t x_step, S* to, int64_t width) const {
    __m512i index[OUTS][INS];
    S* at_out[OUTS];
    for (int o = 0; o < OUTS; ++o) {
      int64_t g = 0;
      while (g + 1 < runs && out[o].at >= at[g + 1]) ++g;
      at_out[o] = to + g * width + (out[o].at - at[g]);
      for (int k = 0; k < INS; ++k) index[o][k] = _mm512_loadu_si512(from[o][k]);
    }
    uint64_t in_mask[INS], pick_mask[OUTS][INS];
    const S* at_in[INS];
    for (int k = 0; k < INS; ++k) in_mask[k] = in[k].mask(), at_in[k] = x + in[k].at;
    for (int o = 0; o < OUTS; ++o) {
      for (int k = 0; k < INS; ++k) pick_mask[o][k] = taken[o][k];
    }
    for (int64_t b = 0; b < blocks; ++b) {
      __m512i v[INS];
      unroll<INS>(LIGHTKERNELS_LAMBDA(auto k) { v[k] = Lanes<S>::load(in_mask[k], at_in[k] + b * x_step); });
      unroll<OUTS>(LIGHTKERNELS_LAMBDA(auto o) {
        __m512i value = _mm512_setzero_si512();
        unroll<INS>(LIGHTKERNELS_LAMBDA(auto k) { value = Lanes<S>::pick(value, pick_mask[o][k], index[o][k], v[k]); });
        _mm512_storeu_si512(at_out[o] + b * rows * run, value);
      });
    }
  }

  // `count` rows of the move, a multiple of `rows`: through a stage in L1, so that y is written in whole vectors.
  template <class Copy>
  void operator()(int64_t count, const S* x, int64_t x_row, S* y, Copy&& copy) const {
    alignas(64) S staged[kBytes / sizeof(S)];
    for (int64_t row = 0; row < count; row += stage) {
      const int64_t now = std::min(stage, count - row), width = now * run + L;
      unroll<kMost>(LIGHTKERNELS_LAMBDA(auto i) {
        unroll<kMost>(LIGHTKERNELS_LAMBDA(auto o) {
          if (ins == i + 1 && outs == o + 1)
            fill<i + 1, o + 1>(now / rows, x + row * x_row, rows * x_row, staged, width);
        });
      });
      for (int64_t g = 0; g < runs; ++g) copy(staged + g * width, y + at[g] + row * run, now * run);
    }
  }
};

#endif

}  // namespace lightkernels::cpu
