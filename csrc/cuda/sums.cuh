// Sums over a warp and over a block, in a fixed order.
#pragma once

#include "scalars.cuh"

namespace lightkernels::cuda {

constexpr int kWarp = 32;

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

}  // namespace lightkernels::cuda
