// What the kernels of depthwise convolution share: scalars, vectors, division by a constant, activation, sums.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "../depthwise_conv2d.h"
#include "launch.cuh"

namespace lightkernels::cuda::depthwise {

using Params = DepthwiseConv2dParams;

constexpr int kWarp = 32;

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

template <class T>
__device__ __forceinline__ Sum<T> load(const T* p) {
  return widen(__ldg(p));
}

template <class T>
__device__ __forceinline__ void store(T* p, Sum<T> v) {
  narrow(v, *p);
}

// --- vectors of V channels, one memory access each -------------------------------------------------------------------
template <int BYTES>
struct Bits;
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
__device__ __forceinline__ void load(const T* p, float (&v)[V]) {
  using Word = typename Bits<V * sizeof(T)>::type;
  const Word word = __ldg(reinterpret_cast<const Word*>(p));
  T part[V];
  memcpy(part, &word, sizeof(word));
#pragma unroll
  for (int i = 0; i < V; ++i) v[i] = widen(part[i]);
}

template <int V, class T>
__device__ __forceinline__ void load_or_zero(bool inside, const T* p, float (&v)[V]) {
  if (inside) {
    load(p, v);
  } else {
#pragma unroll
    for (int i = 0; i < V; ++i) v[i] = 0.f;
  }
}

template <int V, class T>
__device__ __forceinline__ void store(T* p, const float (&v)[V]) {
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

// --- activation: chosen once for all of a thread's outputs; NaN stays NaN --------------------------------------------
template <class A>
__device__ __forceinline__ A clip6(A z) {
  return z < A(0) ? A(0) : z > A(6) ? A(6) : z;
}

template <int N, class A>
__device__ __forceinline__ void activate(Activation activation, A (&z)[N]) {
  switch (activation) {
    case Activation::kNone:
      break;
    case Activation::kRelu:
#pragma unroll
      for (int i = 0; i < N; ++i) z[i] = z[i] < A(0) ? A(0) : z[i];
      break;
    case Activation::kRelu6:
#pragma unroll
      for (int i = 0; i < N; ++i) z[i] = clip6(z[i]);
      break;
    case Activation::kSilu:
#pragma unroll
      for (int i = 0; i < N; ++i) z[i] = z[i] / (A(1) + exp(-z[i]));
      break;
    case Activation::kHardswish:
#pragma unroll
      for (int i = 0; i < N; ++i) z[i] = z[i] * clip6(z[i] + A(3)) / A(6);
      break;
  }
}

// --- sums over a block, in a fixed order -----------------------------------------------------------------------------
__host__ __device__ constexpr int power_of_two(int n) {
  int p = 1;
  while (p < n) p *= 2;
  return p;
}

// Sums N values, a power of two, over the 32 lanes. Each step halves what a lane holds, so that it takes N exchanges
// and not 5 N: afterwards v[i] is the sum of value lane * N / 32 + i.
template <int N, class A>
__device__ __forceinline__ void sum_over_warp(A (&v)[N], int lane) {
  static_assert(N == power_of_two(N));
  int count = N;
#pragma unroll
  for (int offset = kWarp / 2; offset > 0; offset /= 2) {
    if (count == 1) {
      v[0] += __shfl_xor_sync(~0u, v[0], offset);
      continue;
    }
    count /= 2;
    const bool upper = lane & offset;
#pragma unroll
    for (int i = 0; i < N / 2; ++i) {
      if (i >= count) break;
      const A keep = upper ? v[i + count] : v[i], send = upper ? v[i] : v[i + count];
      v[i] = keep + __shfl_xor_sync(~0u, send, offset);
    }
  }
}

// Sums N values over a block of THREADS; the result is in total[0 .. N) of shared memory, for threads below N to read.
template <int THREADS, int N, class A>
__device__ __forceinline__ const A* sum_over_block(A (&v)[N], A (*shared)[N]) {
  static_assert(THREADS % kWarp == 0);
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  constexpr int kHeld = N > kWarp ? N / kWarp : 1, kLanes = N / kHeld;  // values a lane holds, lanes that hold some
  sum_over_warp(v, lane);
  if (lane % (kWarp / kLanes) == 0) {
#pragma unroll
    for (int i = 0; i < kHeld; ++i) shared[warp][lane / (kWarp / kLanes) * kHeld + i] = v[i];
  }
  __syncthreads();
  if (threadIdx.x < N) {
    A total = shared[0][threadIdx.x];
#pragma unroll
    for (int w = 1; w < THREADS / kWarp; ++w) total += shared[w][threadIdx.x];
    shared[0][threadIdx.x] = total;
  }
  return shared[0];
}

}  // namespace lightkernels::cuda::depthwise
