// Convolution over all channels of a group as an implicit matrix product: lines are pixels, columns output channels,
// and the sums run over taps and input channels, a chunk of channels at a time. Forward, and backward_input, which is
// the same with dy for x.
#pragma once

#include "dense_loader.cuh"
#include "dense_store.cuh"

namespace lightkernels::cuda::dense {

// Blocks that a multiprocessor is to hold, where tensor cores take turns with what comes before and behind them. Two
// large tiles of bfloat16 spill on sm_90 and later (nvcc 13.0).
template <class T, class Tile, Copy COPY>
constexpr int kResident = sizeof(T) > 2 || COPY == Copy::kGather ? 1
                          : Tile::kM * Tile::kN < 128 * 128      ? 3
                          : std::is_same_v<T, __half>            ? 2
                                                                 : 1;

// Of a 3x3 kernel, whose weight every block reads; a pointwise one has l2 1.49, what its tile makes of it. Stores are
// those of a stride's dx in NCHW, whose grids of pixels leave gaps.
// traffic: l2 6.06, loads 1.50, stores 2.00, shared 1.05 (tests/test_gpu_traffic.py)
template <class T, class Tile, Copy COPY, bool ONE>
__global__ void __launch_bounds__(Tile::kThreads, (kResident<T, Tile, COPY>))
    convolve(const Problem p, const Result r) {
  constexpr int kRing = Tile::kStages * Tile::kStageBytes;
  __shared__ __align__(128) char shared[kRing > kSlabs<T, Tile> ? kRing : kSlabs<T, Tile>];
  const Block<Tile> at(p);
  const int warp = threadIdx.x / kWarp, m0 = warp / Tile::kWarpsN * Tile::kWarpM,
            n0 = warp % Tile::kWarpsN * Tile::kWarpN;
  constexpr bool kEnters = ONE && Tile::kM * Tile::kN < 128 * 128;  // beside so many sums no register is left for it
  using S = Sums<T, Tile::kWarpM, Tile::kWarpN>;
  S sums;
  typename S::Bias none;
  {
    Loader<T, Tile, COPY, ONE> loader(p, at, shared);
    const int steps = loader.steps();
#pragma unroll
    for (int s = 0; s < Tile::kStages - 1; ++s) {
      if (s < steps) loader.begin(s);
      close_group();
    }
    if constexpr (COPY == Copy::kGather) {
      if (steps > 0) {
        loader.fetch(0);
        loader.deposit(0);
        if constexpr (kEnters) loader.enter(0);
      }
    }
#pragma unroll 1
    for (int step = 0; step < steps; ++step) {
      wait_for_groups<Tile::kStages - 2>();
      if constexpr (kEnters && COPY != Copy::kGather) loader.enter(step);
      __syncthreads();
      if (step + Tile::kStages - 1 < steps) loader.begin(step + Tile::kStages - 1);
      close_group();
      if constexpr (COPY == Copy::kGather) {
        if (step + 1 < steps) loader.fetch(step + 1);
      }
      const char* stage = loader.stage(step);
      sums.template add<COPY == Copy::kPlanes ? Tile::kM : 0, 0, false>(stage, stage + Tile::kOperandA, m0, n0, none);
      if constexpr (COPY == Copy::kGather) {
        if (step + 1 < steps) {
          loader.deposit(step + 1);
          if constexpr (kEnters) loader.enter(step + 1);
        }
      }
    }
  }
  __syncthreads();  // the ring becomes slabs
  store_tile<T, Tile>(p, r, at, shared, sums);
}

// weight[o, u, v, k] of any strides as chunks along k, with zeros behind the last: [o][u][v][chunks].
struct Packing {
  const void* weight;
  void* packed;
  int64_t group_rows, row, column;  // strides: of a group and a row within it, and of k
  int64_t stride_u, stride_v;
  int64_t ci;
  int64_t chunks;  // of all
  Divider vectors, taps_w, taps_h, rows;
};

// traffic: l2 1.24, loads 6.00, stores 1.00, shared 1.00 (tests/test_gpu_traffic.py)
template <class T, bool ONE>
__global__ void __launch_bounds__(256, 1) pack_weight(const Packing p) {
  const int64_t all = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < p.chunks; i += all) {
    int64_t rest = i;
    const int64_t k = split(rest, p.vectors) * kVector<T>, v = split(rest, p.taps_w), u = split(rest, p.taps_h);
    const int64_t row = split(rest, p.rows);
    const T* from = static_cast<const T*>(p.weight) + rest * p.group_rows + row * p.row + k * p.column +
                    u * p.stride_u + v * p.stride_v;
    __stwb(static_cast<uint4*>(p.packed) + i, gather(from, p.column, p.ci - k, false));
  }
}

}  // namespace lightkernels::cuda::dense
