// Vectors of which some lanes count, and vectors whose lanes change places.
#pragma once

#include "vec.h"

namespace lightkernels::cpu {

// Lanes [begin, end) of L floats: the others are neither read (they are 0) nor written, wherever they lie.
#if defined(__AVX512VL__)
template <int L>
struct LaneRange {
  uint32_t bits;

  LaneRange() = default;
  LIGHTKERNELS_INLINE LaneRange(int64_t begin, int64_t end) {
    auto below = [](int64_t lane) { return lane <= 0 ? 0u : lane >= L ? (1u << L) - 1 : (1u << lane) - 1; };
    bits = below(end) & ~below(begin);
  }
  LIGHTKERNELS_INLINE Vec<float, L> load(const float* p) const {
    if constexpr (L == 16) return (Vec<float, L>)_mm512_maskz_loadu_ps(static_cast<__mmask16>(bits), p);
    if constexpr (L == 8) return (Vec<float, L>)_mm256_maskz_loadu_ps(static_cast<__mmask8>(bits), p);
    if constexpr (L == 4) return (Vec<float, L>)_mm_maskz_loadu_ps(static_cast<__mmask8>(bits), p);
  }
  LIGHTKERNELS_INLINE void store(float* p, Vec<float, L> v) const {
    if constexpr (L == 16) _mm512_mask_storeu_ps(p, static_cast<__mmask16>(bits), (__m512)v);
    if constexpr (L == 8) _mm256_mask_storeu_ps(p, static_cast<__mmask8>(bits), (__m256)v);
    if constexpr (L == 4) _mm_mask_storeu_ps(p, static_cast<__mmask8>(bits), (__m128)v);
  }
};
#elif defined(__AVX2__)
template <int L>
struct LaneRange {
  Vec<int32_t, L> mask;

  LaneRange() = default;
  LIGHTKERNELS_INLINE LaneRange(int64_t begin, int64_t end) {
    Vec<int32_t, L> lane;
    for (int l = 0; l < L; ++l) lane[l] = l;
    auto bound = [](int64_t at) { return static_cast<int32_t>(at < 0 ? 0 : at > L ? L : at); };
    mask = (lane >= bound(begin)) & (lane < bound(end));
  }
  LIGHTKERNELS_INLINE Vec<float, L> load(const float* p) const {
    if constexpr (L == 8) return (Vec<float, L>)_mm256_maskload_ps(p, (__m256i)mask);
    if constexpr (L == 4) return (Vec<float, L>)_mm_maskload_ps(p, (__m128i)mask);
  }
  LIGHTKERNELS_INLINE void store(float* p, Vec<float, L> v) const {
    if constexpr (L == 8) _mm256_maskstore_ps(p, (__m256i)mask, (__m256)v);
    if constexpr (L == 4) _mm_maskstore_ps(p, (__m128i)mask, (__m128)v);
  }
};
#else
template <int L>
struct LaneRange {
  int64_t begin, end;

  LaneRange() = default;
  LaneRange(int64_t begin_, int64_t end_) : begin(begin_), end(end_) {}
  LIGHTKERNELS_INLINE Vec<float, L> load(const float* p) const {
    if (begin <= 0 && end >= L) return lightkernels::cpu::load<L>(p);
    Vec<float, L> v{};
    unroll<L>(LIGHTKERNELS_LAMBDA(auto l) {
      constexpr int i = l;
      if (i >= begin && i < end) v[i] = p[i];
    });
    return v;
  }
  LIGHTKERNELS_INLINE void store(float* p, Vec<float, L> v) const {
    if (begin <= 0 && end >= L) return lightkernels::cpu::store<L>(p, v);
    unroll<L>(LIGHTKERNELS_LAMBDA(auto l) {
      constexpr int i = l;
      if (i >= begin && i < end) p[i] = v[i];
    });
  }
};
#endif

template <int BYTES>
using SignedOf =
    std::conditional_t<BYTES == 1, int8_t,
                       std::conditional_t<BYTES == 2, int16_t, std::conditional_t<BYTES == 4, int32_t, int64_t>>>;

// --- lanes that change places: lane i of the result is lane P::at(i, L) of a and b one after the other ---

template <class P, int L, class S, int... I>
LIGHTKERNELS_INLINE Vec<S, L> shuffle_(Vec<S, L> a, Vec<S, L> b, std::integer_sequence<int, I...>) {
#if defined(__clang__)
  return __builtin_shufflevector(a, b, P::at(I, L)...);
#else
  return __builtin_shuffle(a, b, Vec<SignedOf<sizeof(S)>, L>{P::at(I, L)...});
#endif
}
template <class P, int L, class S>
LIGHTKERNELS_INLINE Vec<S, L> shuffle(Vec<S, L> a, Vec<S, L> b) {
  return shuffle_<P, L, S>(a, b, std::make_integer_sequence<int, L>{});
}

struct EvenLanes {
  static constexpr int at(int i, int) { return 2 * i; }
};
struct OddLanes {
  static constexpr int at(int i, int) { return 2 * i + 1; }
};
// a0 b0 a1 b1 ..., of which there are 2 * L: the first L and the last.
struct InterleavedLow {
  static constexpr int at(int i, int lanes) { return i / 2 + i % 2 * lanes; }
};
struct InterleavedHigh {
  static constexpr int at(int i, int lanes) { return i / 2 + lanes / 2 + i % 2 * lanes; }
};

// Of each block of B lanes, the first half from a and the second from b: the first halves of their blocks, the second.
template <int B>
struct FirstHalves {
  static constexpr int at(int i, int lanes) { return i % B < B / 2 ? i : lanes + i - B / 2; }
};
template <int B>
struct SecondHalves {
  static constexpr int at(int i, int lanes) { return i % B < B / 2 ? i + B / 2 : lanes + i; }
};

// Lane i of the result is the sum of v[i]: a third of the instructions of L sums of their own.
template <int L, int B = L>
LIGHTKERNELS_INLINE Vec<float, L> sum_each(Vec<float, L> (&v)[L]) {
  unroll<B / 2>(LIGHTKERNELS_LAMBDA(auto i) {
    v[i] =
        shuffle<FirstHalves<B>, L, float>(v[i], v[i + B / 2]) + shuffle<SecondHalves<B>, L, float>(v[i], v[i + B / 2]);
  });
  if constexpr (B > 2) return sum_each<L, B / 2>(v);
  return v[0];
}

}  // namespace lightkernels::cpu
