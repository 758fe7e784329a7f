// What kernels of every op share: scalars, vectors of them in one memory access, division by a number known at launch.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "launch.cuh"

namespace lightkernels::cuda {

// --- scalars: sums are float, but double for double ------------------------------------------------------------------
template <class T>
using Sum = std::conditional_t<std::is_same_v<T, double>, double, float>;

__device__ __forceinline__ double widen(double v) { return v; }
__device__ __forceinline__ float widen(float v) { return v; }
__device__ __forceinline__ float widen(__half v) { return __half2float(v); }
__device__ __forceinline__ float widen(__nv_bfloat16 v) { return __bfloat162float(v); }

__device__ __forceinline__ void narrow(double v, double& out) { out = v; }
__device__ __forceinline__ void narrow(float v, float& out) { out = v; }
__device__ __forceinline__ void narrow(float v, __half& out) { out = __float2half_rn(v); }
__device__ __forceinline__ void narrow(float v, __nv_bfloat16& out) { out = __float2bfloat16_rn(v); }

// CUDA's own __ldg of 16-bit floats (13.0) is an asm that is not volatile: the compiler moves it before the condition
// that it stands behind, where p may be null.
template <class T>
__device__ __forceinline__ T read_only(const T* p) {
  if constexpr (sizeof(T) == 2) {
    const unsigned short bits = __ldg(reinterpret_cast<const unsigned short*>(p));  // NOLINT
    T value;
    memcpy(&value, &bits, sizeof(value));
    return value;
  } else {
    return __ldg(p);
  }
}

template <class T>
__device__ __forceinline__ Sum<T> load(const T* p) {
  return widen(read_only(p));
}

template <class T>
__device__ __forceinline__ void store(T* p, Sum<T> v) {
  narrow(v, *p);
}

// --- vectors of V channels, one memory access each -------------------------------------------------------------------
template <int BYTES>
struct Bits;
template <>
struct Bits<2> {
  using type = unsigned short;  // NOLINT
};
template <>
struct Bits<4> {
  using type = unsigned;
};
template <>
struct Bits<8> {
  using type = uint2;
};
template <>
struct Bits<16> {
  using type = uint4;
};

template <int V, class T>
__device__ __forceinline__ void load(const T* p, Sum<T> (&v)[V]) {
  using Word = typename Bits<V * sizeof(T)>::type;
  const Word word = __ldg(reinterpret_cast<const Word*>(p));
  T part[V];
  memcpy(part, &word, sizeof(word));
#pragma unroll
  for (int i = 0; i < V; ++i) v[i] = widen(part[i]);
}

template <int V, class T>
__device__ __forceinline__ void load_or_zero(bool inside, const T* p, Sum<T> (&v)[V]) {
  if (inside) {
    load(p, v);
  } else {
#pragma unroll
    for (int i = 0; i < V; ++i) v[i] = 0;
  }
}

template <int V, class T>
__device__ __forceinline__ void store(T* p, const Sum<T> (&v)[V]) {
  using Word = typename Bits<V * sizeof(T)>::type;
  T part[V];
#pragma unroll
  for (int i = 0; i < V; ++i) narrow(v[i], part[i]);
  Word word;
  memcpy(&word, part, sizeof(word));
  __stwb(reinterpret_cast<Word*>(p), word);  // an ordinary store of Word comes out in pieces of 4 bytes (nvcc 13.0)
}

// --- division by a number known at launch: a multiplication and a shift below 2^31, the real thing above -------------
struct Divider {
  int64_t divisor = 1;
  unsigned multiplier = 1, shift = 0;

  Divider() = default;
  explicit Divider(int64_t d) : divisor(d) {
    if (d >= int64_t{1} << 31) return;
    while ((int64_t{1} << shift) < d) ++shift;
    multiplier = static_cast<unsigned>(((uint64_t{1} << 32) * ((uint64_t{1} << shift) - d)) / d + 1);
  }

  // For numerator and divisor below 2^31.
  __device__ __forceinline__ unsigned small(unsigned n) const {
    return (static_cast<unsigned>((uint64_t{n} * multiplier) >> 32) + n) >> shift;
  }

  __device__ __forceinline__ int64_t divide(int64_t n) const {
    return ((n | divisor) >> 31) ? n / divisor : static_cast<int64_t>(small(static_cast<unsigned>(n)));
  }
};

// Splits n into (quotient, remainder): returns the remainder, leaves the quotient.
__device__ __forceinline__ int64_t split(int64_t& n, const Divider& by) {
  const int64_t q = by.divide(n), r = n - q * by.divisor;
  n = q;
  return r;
}

__device__ __forceinline__ int split(unsigned& n, const Divider& by) {
  const unsigned q = by.small(n), r = n - q * static_cast<unsigned>(by.divisor);
  n = q;
  return static_cast<int>(r);
}

}  // namespace lightkernels::cuda
