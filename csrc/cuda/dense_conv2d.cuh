// Convolution over all channels of a group as an implicit matrix product: lines are pixels, columns output channels,
// and the sums run over taps and input channels, a chunk of channels at a time. Forward, and backward_input, which is
// the same with dy for x.
#pragma once

#include "dense_store.cuh"

namespace lightkernels::cuda::dense {

// The pixels whose values a thread copies.
template <class T, int COUNT, class Coord>
struct Pixels {
  const T* base[COUNT];  // of the pixel that meets the first tap, which may lie outside
  Coord top[COUNT], left[COUNT];
};

// ONE: a 1x1 kernel without padding or classes, with input_activation and input_gate.
template <class T, class Tile, Copy COPY, bool ONE>
struct Loader {
  using Coord = std::conditional_t<COPY == Copy::kAsync, int, int64_t>;
  static constexpr int kV = kVector<T>, kColumns = kStepBytes / kChunk;
  using ShareA = Share<Tile::kThreads, Tile::kM, kColumns>;
  using ShareB = Share<Tile::kThreads, Tile::kN, kColumns>;
  static constexpr int kA = ShareA::kCount, kB = ShareB::kCount;

  const Problem& p;
  const Block& at;
  char* shared;
  Taps taps_h, taps_w;
  ShareA a;
  Pixels<T, kA, Coord> pixels;
  const T* weight[kB];  // of this thread's output channels; null beyond the last
  int c, u, v;          // what this thread's chunk of the next step is: channel and tap
  uint4 held[COPY == Copy::kGather ? kA : 1];

  __device__ __forceinline__ Loader(const Problem& p_, const Block& at_, char* shared_)
      : p(p_), at(at_), shared(shared_), a{COPY == Copy::kGather && p_.lines_first} {
    taps_h = {p.kh, p.first_h, p.step_h, 0, 1}, taps_w = {p.kw, p.first_w, p.step_w, 0, 1};
    if (!ONE && p.classes > 1) {
      taps_h = taps_of_class(at.class_h, p.kh, p.first_h, p.step_h, p.class_h, p.class_taps_h, p.class_step_h);
      taps_w = taps_of_class(at.class_w, p.kw, p.first_w, p.step_w, p.class_w, p.class_taps_w, p.class_step_w);
      if (taps_w.count == 0) taps_h.count = 0;
    }
#pragma unroll
    for (int i = 0; i < kA; ++i) {
      int64_t n = at.m0 + a.line(i);
      const bool inside = n < p.lines;
      const int64_t column = split(n, p.columns), row = split(n, p.rows);
      const int64_t top = row * p.stride_h + taps_h.first, left = column * p.stride_w + taps_w.first;
      pixels.base[i] = static_cast<const T*>(p.x) + n * p.x_strides.n + at.group * p.ci * p.x_strides.c +
                       top * p.x_strides.h + left * p.x_strides.w;
      pixels.top[i] = static_cast<Coord>(inside ? top : int64_t{1} << 30 << (sizeof(Coord) == 8 ? 30 : 0));
      pixels.left[i] = static_cast<Coord>(left);
    }
    const int line = threadIdx.x / kColumns;
#pragma unroll
    for (int i = 0; i < kB; ++i) {
      const int o = at.n0 + line + i * (Tile::kThreads / kColumns);
      weight[i] = o < p.co ? static_cast<const T*>(p.weight) + (at.group * p.co + o) * p.weight_row +
                                 taps_h.begin * p.weight_u + taps_w.begin * p.weight_v
                           : nullptr;
    }
    c = 0, u = 0, v = 0;
    move(threadIdx.x % kColumns * kV);
  }

  __device__ __forceinline__ int steps() const {
    const int64_t chunks = taps_h.count * taps_w.count * p.vectors.divisor;
    return static_cast<int>((chunks + kColumns - 1) / kColumns);
  }

  __device__ __forceinline__ void move(int by) {
    c += by;
    const int channels = static_cast<int>(p.vectors.divisor) * kV;
    if constexpr (!ONE) {
      while (c >= channels) {
        c -= channels;
        if (++v >= taps_w.count) v = 0, ++u;
        if (u >= taps_h.count) break;
      }
    }
  }

  __device__ __forceinline__ char* stage(int step) const {
    return shared + static_cast<unsigned>(step) % Tile::kStages * Tile::kStageBytes;
  }

  __device__ __forceinline__ bool meets(int i, int64_t h, int64_t w) const {
    if constexpr (COPY == Copy::kAsync) {
      return static_cast<unsigned>(pixels.top[i] + static_cast<int>(h)) < static_cast<unsigned>(p.ih) &&
             static_cast<unsigned>(pixels.left[i] + static_cast<int>(w)) < static_cast<unsigned>(p.iw);
    }
    const int64_t row = pixels.top[i] + h, column = pixels.left[i] + w;
    return row >= 0 && row < p.ih && column >= 0 && column < p.iw;
  }

  // Begins to copy step `to`, which must be the one after that of the last call.
  __device__ __forceinline__ void begin(int to) {
    char* const target = stage(to);
    const bool inside = ONE ? c < static_cast<int>(p.vectors.divisor) * kV : u < taps_h.count;
    const int column = threadIdx.x % kColumns, line = threadIdx.x / kColumns;
    if constexpr (COPY == Copy::kAsync) {
      const int64_t h = ONE ? 0 : u * taps_h.step, w = ONE ? 0 : v * taps_w.step;
      const int64_t offset = h * p.x_strides.h + w * p.x_strides.w + c;
#pragma unroll
      for (int i = 0; i < kA; ++i) {
        copy_async(target + place<kStepBytes>(a.line(i), column), pixels.base[i] + offset, inside && meets(i, h, w));
      }
    }
    const int64_t offset = (ONE ? 0 : u * taps_h.apart * p.weight_u + v * taps_w.apart * p.weight_v) + c;
#pragma unroll
    for (int i = 0; i < kB; ++i) {
      copy_async(target + Tile::kOperandA + place<kStepBytes>(line + i * (Tile::kThreads / kColumns), column),
                 weight[i] + offset, inside && weight[i]);
    }
    move(kStep<T>);
  }

  // Reads this thread's part of x of a step.
  __device__ __forceinline__ void fetch(int step) {
#pragma unroll
    for (int i = 0; i < kA; ++i) {
      int64_t tap = int64_t{step} * kColumns + a.column(i);
      const int64_t channel = split(tap, p.vectors) * kV;
      int64_t h = 0, w = 0;
      bool inside = tap == 0;
      if constexpr (!ONE) {
        w = taps_w.count == p.kw ? split(tap, p.taps_w) : taps_w.count ? tap % taps_w.count : 0;
        if (taps_w.count != p.kw && taps_w.count) tap /= taps_w.count;
        inside = tap < taps_h.count;
        h = tap * taps_h.step, w *= taps_w.step;
      }
      const T* from = pixels.base[i] + h * p.x_strides.h + w * p.x_strides.w + channel * p.x_strides.c;
      held[i] = gather(from, p.x_strides.c, inside && meets(i, h, w) ? p.ci - channel : 0, p.chunks);
    }
  }

  __device__ __forceinline__ void deposit(int step) const {
#pragma unroll
    for (int i = 0; i < kA; ++i) {
      *reinterpret_cast<uint4*>(stage(step) + place<kStepBytes>(a.line(i), a.column(i))) = held[i];
    }
  }

  // x' of what this thread itself copied: its own copies it may read before a barrier.
  __device__ __forceinline__ void enter(int step) const {
    if (p.input_activation == Activation::kNone && !p.input_gate) return;
#pragma unroll 1
    for (int i = 0; i < kA; ++i) {
      uint4* const chunk = reinterpret_cast<uint4*>(stage(step) + place<kStepBytes>(a.line(i), a.column(i)));
      Sum<T> z[kV];
      widen<T>(*chunk, z);
      activate(p.input_activation, z);
      int64_t n = at.m0 + a.line(i);
      if (p.input_gate && n < p.lines) {
        split(n, p.columns), split(n, p.rows);
        const int64_t channel = int64_t{step} * kStep<T> + a.column(i) * kV;
        const T* gate = static_cast<const T*>(p.input_gate) + n * p.input_gate_n;
#pragma unroll
        for (int j = 0; j < kV; ++j) {
          if (channel + j < p.ci) z[j] *= load(gate + (at.group * p.ci + channel + j) * p.input_gate_c);
        }
      }
      *chunk = narrow<T>(z);
    }
  }
};

// traffic: l2 1.00, loads 1.00, stores 1.00, shared 1.00 (tests/test_gpu_traffic.py)
template <class T, class Tile, Copy COPY, bool ONE>
__global__ void __launch_bounds__(Tile::kThreads, 1) convolve(const Problem p, const Result r) {
  constexpr int kRing = Tile::kStages * Tile::kStageBytes;
  __shared__ __align__(128) char shared[kRing > kSlabs<T, Tile> ? kRing : kSlabs<T, Tile>];
  const Block at = block_of<Tile>(p);
  const int warp = threadIdx.x / kWarp, m0 = warp / Tile::kWarpsN * Tile::kWarpM,
            n0 = warp % Tile::kWarpsN * Tile::kWarpN;
  Sums<T, Tile::kWarpM, Tile::kWarpN> sums;
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
        if constexpr (ONE) loader.enter(0);
      }
    }
#pragma unroll 1
    for (int step = 0; step < steps; ++step) {
      wait_for_groups<Tile::kStages - 2>();
      if constexpr (ONE && COPY == Copy::kAsync) loader.enter(step);
      __syncthreads();
      if (step + Tile::kStages - 1 < steps) loader.begin(step + Tile::kStages - 1);
      close_group();
      if constexpr (COPY == Copy::kGather) {
        if (step + 1 < steps) loader.fetch(step + 1);
      }
      const char* stage = loader.stage(step);
      sums.add_lines(stage, stage + Tile::kOperandA, m0, n0);
      if constexpr (COPY == Copy::kGather) {
        if (step + 1 < steps) {
          loader.deposit(step + 1);
          if constexpr (ONE) loader.enter(step + 1);
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

// traffic: l2 1.00, loads 1.00, stores 1.00, shared 1.00 (tests/test_gpu_traffic.py)
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
