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

  int rows = 0;  // of the move, in a block
  int ins, outs;
  Segment in[kMost], out[kMost];
  S from[kMost][kMost][L];  // lane of each out, if it comes from that in
  uint64_t taken[kMost][kMost];

  // Of as many rows as fit; rows is 0 where not even one does.
  explicit Permutation(const MoveParams& p, const MoveAxis& axis) {
    const int64_t block = p.length * p.ways;
    for (int64_t m = std::min<int64_t>({axis.size, kMost, kMost * L / block}); m > 0 && !rows; --m) {
      if (build(p, axis, m)) rows = static_cast<int>(m);
    }
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
      if (!extend(in, ins, xs[i]) || !extend(out, outs, pairs[i].y)) return false;
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
  static bool extend(Segment (&segments)[kMost], int& count, int64_t at) {
    if (count && at < segments[count - 1].at + segments[count - 1].count) return true;
    if (count && at == segments[count - 1].at + segments[count - 1].count && segments[count - 1].count < L) {
      return ++segments[count - 1].count, true;
    }
    if (count == kMost) return false;
    segments[count++] = {at, 1};
    return true;
  }

  template <int INS, int OUTS>
  void run(int64_t blocks, const S* x, int64_t x_step, S* y, int64_t y_step) const {
    __m512i index[OUTS][INS];
    for (int o = 0; o < OUTS; ++o) {
      for (int k = 0; k < INS; ++k) index[o][k] = _mm512_loadu_si512(from[o][k]);
    }
    for (int64_t b = 0; b < blocks; ++b, x += x_step, y += y_step) {
      __m512i v[INS];
      unroll<INS>(LIGHTKERNELS_LAMBDA(auto k) { v[k] = Lanes<S>::load(in[k].mask(), x + in[k].at); });
      unroll<OUTS>(LIGHTKERNELS_LAMBDA(auto o) {
        __m512i to = _mm512_setzero_si512();
        unroll<INS>(LIGHTKERNELS_LAMBDA(auto k) { to = Lanes<S>::pick(to, taken[o][k], index[o][k], v[k]); });
        Lanes<S>::store(out[o].mask(), y + out[o].at, to);
      });
    }
  }

  void operator()(int64_t blocks, const S* x, int64_t x_step, S* y, int64_t y_step) const {
    unroll<kMost>(LIGHTKERNELS_LAMBDA(auto i) {
      unroll<kMost>(LIGHTKERNELS_LAMBDA(auto o) {
        if (ins == i + 1 && outs == o + 1) run<i + 1, o + 1>(blocks, x, x_step, y, y_step);
      });
    });
  }
};

#endif

}  // namespace lightkernels::cpu
