// SIMD by the compiler's vector extensions: one source, the width is the instruction set's this file is compiled for.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>

#if defined(__SSE2__)
// GCC 12 takes the "undefined" registers of its own intrinsics for mistakes, five thousand times.
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"
#include <immintrin.h>
#pragma GCC diagnostic pop
#endif

#include "../launch.h"

#define LIGHTKERNELS_INLINE [[gnu::always_inline]] inline

namespace lightkernels::cpu {

#if defined(__AVX512F__)
constexpr int kVectorBytes = 64, kRegisters = 32;
#elif defined(__AVX2__)
constexpr int kVectorBytes = 32, kRegisters = 16;
#elif defined(__aarch64__)
constexpr int kVectorBytes = 16, kRegisters = 32;
#else
constexpr int kVectorBytes = 16, kRegisters = 16;
#endif

// --- scalars ---

struct Half {
  uint16_t bits;
};
struct BFloat16 {
  uint16_t bits;
};

// What sums of T are carried in.
template <class T>
using Acc = std::conditional_t<std::is_same_v<T, double>, double, float>;

// Lanes of a full register of Acc<T>.
template <class T>
constexpr int lanes() {
  return kVectorBytes / sizeof(Acc<T>);
}

// Calls f(T{}) with the C++ type of a dtype.
template <class F>
LIGHTKERNELS_INLINE auto with_type(DType dtype, F&& f) {
  switch (dtype) {
    case DType::kFloat64:
      return f(double{});
    case DType::kFloat16:
      return f(Half{});
    case DType::kBFloat16:
      return f(BFloat16{});
    default:
      return f(float{});
  }
}

// --- loops that vanish: f is called with compile-time indices, so arrays indexed by them live in registers ---

template <class F, int... I>
LIGHTKERNELS_INLINE void unroll_(F&& f, std::integer_sequence<int, I...>) {
  (f(std::integral_constant<int, I>{}), ...);
}
template <int N, class F>
LIGHTKERNELS_INLINE void unroll(F&& f) {
  unroll_(f, std::make_integer_sequence<int, N>{});
}
#define LIGHTKERNELS_LAMBDA(...) [&](__VA_ARGS__) __attribute__((always_inline))

// --- vectors ---

template <class S, int L>
struct VecOf {
  typedef S type __attribute__((vector_size(L * sizeof(S))));
};
template <class S, int L>
using Vec = typename VecOf<S, L>::type;

template <class V, class T>
LIGHTKERNELS_INLINE V read(const T* p) {
  V v;
  static_assert(sizeof(V) % sizeof(T) == 0);
  std::memcpy(&v, p, sizeof v);
  return v;
}
template <class V, class T>
LIGHTKERNELS_INLINE void write(T* p, V v) {
  static_assert(sizeof(V) % sizeof(T) == 0);
  std::memcpy(p, &v, sizeof v);
}

#if defined(__F16C__)
template <int L>
LIGHTKERNELS_INLINE Vec<float, L> half_to_float(const Half* p) {
  if constexpr (L == 1) return Vec<float, 1>{_cvtsh_ss(p->bits)};
  if constexpr (L == 4) return (Vec<float, 4>)_mm_cvtph_ps(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)));
  if constexpr (L == 8) return (Vec<float, 8>)_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
#if defined(__AVX512F__)
  if constexpr (L == 16) {
    return (Vec<float, 16>)_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  }
#endif
}
template <int L>
LIGHTKERNELS_INLINE void float_to_half(Vec<float, L> v, Half* p) {
  constexpr int kNearest = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
  if constexpr (L == 1) p->bits = _cvtss_sh(v[0], kNearest);
  if constexpr (L == 4) _mm_storel_epi64(reinterpret_cast<__m128i*>(p), _mm_cvtps_ph((__m128)v, kNearest));
  if constexpr (L == 8) _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph((__m256)v, kNearest));
#if defined(__AVX512F__)
  if constexpr (L == 16) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtps_ph((__m512)v, kNearest));
  }
#endif
}
#else
template <int L>
LIGHTKERNELS_INLINE Vec<float, L> half_to_float(const Half* p) {
  using U = Vec<uint32_t, L>;
  const U h = __builtin_convertvector(read<Vec<uint16_t, L>>(p), U);
  const U magnitude = (h & 0x7fff) << 13, infinite = (U)((h & 0x7c00) == 0x7c00) & 0x7f800000;
  const auto scaled =
      (Vec<float, L>)magnitude * 0x1p112f;  // the exponents' biases differ by 112; subnormals come right
  return (Vec<float, L>)((U)scaled | infinite | (h & 0x8000) << 16);
}
template <int L>
LIGHTKERNELS_INLINE void float_to_half(Vec<float, L> v, Half* p) {
  using U = Vec<uint32_t, L>;
  const U bits = (U)v, size = bits & 0x7fffffff;
  const U normal = (size + 0xfff + ((size >> 13) & 1) - (112u << 23)) >> 13;
  const U subnormal = (U)((Vec<float, L>)size + 0.5f) - 0x3f000000;  // the addition rounds at 2^-24
  U half = size < 0x38800000 ? subnormal : normal;
  half = size >= 0x47800000 ? U{} + 0x7c00 : half;
  half = size > 0x7f800000 ? U{} + 0x7e00 : half;
  const auto stored = __builtin_convertvector(half | (bits >> 16 & 0x8000), Vec<uint16_t, L>);
  std::memcpy(static_cast<void*>(p), &stored, sizeof stored);
}
#endif

// L values of T, as Acc<T>.
template <int L, class T>
LIGHTKERNELS_INLINE Vec<Acc<T>, L> load(const T* p) {
  if constexpr (std::is_same_v<T, Half>) {
    return half_to_float<L>(p);
  } else if constexpr (std::is_same_v<T, BFloat16>) {
    auto wide = __builtin_convertvector(read<Vec<uint16_t, L>>(p), Vec<uint32_t, L>) << 16;
    return (Vec<float, L>)wide;
  } else {
    return read<Vec<T, L>>(p);
  }
}

// The inverse of load, rounding to nearest even.
template <int L, class T>
LIGHTKERNELS_INLINE void store(T* p, Vec<Acc<T>, L> v) {
  if constexpr (std::is_same_v<T, Half>) {
    float_to_half<L>(v, p);
  } else if constexpr (std::is_same_v<T, BFloat16>) {
    auto bits = (Vec<uint32_t, L>)v;
    auto rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    auto nan = (Vec<uint32_t, L>)(v != v);
    auto b = __builtin_convertvector((rounded & ~nan) | (nan & 0x7fc0), Vec<uint16_t, L>);
    std::memcpy(static_cast<void*>(p), &b, sizeof b);
  } else {
    std::memcpy(p, &v, sizeof v);
  }
}

// The first `count` < L lanes alone: memory beyond them is neither read (they are 0) nor written.
template <int L, class T>
LIGHTKERNELS_INLINE Vec<Acc<T>, L> load_first(const T* p, int64_t count) {
#if defined(__AVX512F__)
  if constexpr (std::is_same_v<T, float> && L == 16) {
    return (Vec<float, L>)_mm512_maskz_loadu_ps(static_cast<__mmask16>((1u << count) - 1), p);
  }
#endif
#if defined(__AVX2__)
  if constexpr (std::is_same_v<T, float> && L == 8) {
    const Vec<int32_t, 8> lane = {0, 1, 2, 3, 4, 5, 6, 7};
    return (Vec<float, L>)_mm256_maskload_ps(p, (__m256i)(lane < static_cast<int32_t>(count)));
  }
#endif
  T values[L] = {};
  for (int l = 0; l < L && l < count; ++l) values[l] = p[l];
  return load<L>(values);
}
template <int L, class T>
LIGHTKERNELS_INLINE void store_first(T* p, Vec<Acc<T>, L> v, int64_t count) {
#if defined(__AVX512F__)
  if constexpr (std::is_same_v<T, float> && L == 16) {
    return _mm512_mask_storeu_ps(p, static_cast<__mmask16>((1u << count) - 1), (__m512)v);
  }
#endif
#if defined(__AVX2__)
  if constexpr (std::is_same_v<T, float> && L == 8) {
    const Vec<int32_t, 8> lane = {0, 1, 2, 3, 4, 5, 6, 7};
    return _mm256_maskstore_ps(p, (__m256i)(lane < static_cast<int32_t>(count)), (__m256)v);
  }
#endif
  T values[L];
  store<L>(values, v);
  for (int l = 0; l < L && l < count; ++l) p[l] = values[l];
}

// As many of L lanes as `count` says, which may be any number.
template <int L, class T>
LIGHTKERNELS_INLINE Vec<Acc<T>, L> load_up_to(const T* p, int64_t count) {
  if (count >= L) return load<L>(p);
  return count > 0 ? load_first<L>(p, count) : Vec<Acc<T>, L>{};
}
template <int L, class T>
LIGHTKERNELS_INLINE void store_up_to(T* p, Vec<Acc<T>, L> v, int64_t count) {
  if (count >= L) return store<L>(p, v);
  if (count > 0) store_first<L>(p, v, count);
}

template <int L, class S>
LIGHTKERNELS_INLINE Vec<S, L> splat(S s) {
  return s - Vec<S, L>{};  // s - 0 is s, which the compiler knows; s + 0 is not where s is -0
}

// NaN stays NaN. Two instructions, of which GCC makes eight where they are written as comparisons of vectors.
template <class V>
LIGHTKERNELS_INLINE V clamp(V v, V low, V high) {
#if defined(__AVX512F__)
  if constexpr (std::is_same_v<V, Vec<float, 16>>) return _mm512_min_ps(high, _mm512_max_ps(low, v));
#endif
#if defined(__AVX2__)
  if constexpr (std::is_same_v<V, Vec<float, 8>>) return _mm256_min_ps(high, _mm256_max_ps(low, v));
#endif
#if defined(__SSE2__)
  if constexpr (std::is_same_v<V, Vec<float, 4>>) return _mm_min_ps(high, _mm_max_ps(low, v));
#endif
  v = v < low ? low : v;
  return v > high ? high : v;
}

template <class V>
LIGHTKERNELS_INLINE auto sum(V v) {
  auto s = v[0];
  for (size_t i = 1; i < sizeof(V) / sizeof(s); ++i) s += v[i];
  return s;
}

// Tells the compiler that v is changed here, so that it is loaded once and not read from memory at each use.
template <class V>
LIGHTKERNELS_INLINE void keep_in_register(V& v) {
#if defined(__x86_64__)
  if constexpr (sizeof(V) >= 16) asm("" : "+v"(v));
#elif defined(__aarch64__)
  if constexpr (sizeof(V) == 16) asm("" : "+w"(v));
#endif
}

// Brings the cache line at p nearer: into L2 to be read, or into L1 to be written. Any address will do.
template <bool kWrite, class T>
LIGHTKERNELS_INLINE void fetch(const T* p) {
  __builtin_prefetch(p, kWrite, kWrite ? 3 : 2);
}

// Whole cache lines may be stored past the caches, which saves reading them first. Only where a vector is a line.
constexpr bool kStreams = kVectorBytes == 64;

template <int L, class T>
LIGHTKERNELS_INLINE void stream(T* p, Vec<Acc<T>, L> v) {
#if defined(__AVX512F__)
  if constexpr (std::is_same_v<T, float> && L == 16) return _mm512_stream_ps(p, (__m512)v);
#endif
  store<L>(p, v);
}

// Before other threads may read what was streamed.
inline void finish_streams() {
#if defined(__AVX512F__)
  _mm_sfence();
#endif
}

}  // namespace lightkernels::cpu
