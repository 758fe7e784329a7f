// Gradients of a dense convolution's weight and bias: a product whose rows are output channels, whose columns are taps
// and input channels, and whose sums run over pixels. Blocks share the pixels of a tile of sums; a second kernel adds
// what they found, in a fixed order.
#pragma once

#include "dense_source.cuh"

namespace lightkernels::cuda::dense {

// Sums over the pixels (n, i, j) of y's grid of y[n, o, i, j] * x[n, k, i * stride_h + first_h + u * step_h, ...].
struct WeightProblem {
  const void* y;
  const void* x;
  Strides4 y_strides, x_strides;
  int64_t ih, iw, ci, co;  // channels of a group
  int64_t pixels, per_split;
  int64_t columns_all;  // of a row of sums: taps times whole chunks of k
  int64_t stride_h, stride_w, first_h, first_w, step_h, step_w;
  Divider columns, rows;  // of y
  Divider tiles_n, tiles_m, groups;
  Divider vectors, taps_w;
  int64_t chunks;  // of a row of sums
  bool lines_first, y_chunks, x_chunks;
  bool bias;
  void* partial;       // [splits][groups * co][columns_all]
  void* partial_bias;  // [splits][groups * co]
};

// The pixel of one line, step by step without a division.
template <class Coord>
struct Walk {
  Coord n, i, j;

  __device__ __forceinline__ void move(const Walk& by, int64_t rows, int64_t columns) {
    j += by.j;
    const bool next = j >= columns;
    j -= next ? static_cast<Coord>(columns) : 0;
    i += by.i + next;
    const bool over = i >= rows;
    i -= over ? static_cast<Coord>(rows) : 0;
    n += by.n + over;
  }
};

template <class Coord>
__device__ __forceinline__ Walk<Coord> walk_from(int64_t pixel, const WeightProblem& p) {
  Walk<Coord> at;
  at.j = static_cast<Coord>(split(pixel, p.columns));
  at.i = static_cast<Coord>(split(pixel, p.rows));
  at.n = static_cast<Coord>(pixel);
  return at;
}

// Lines are pixels, chunks channels.
template <class T, class Tile, Copy COPY>
struct WeightLoader {
  using Coord = std::conditional_t<COPY == Copy::kAsync, int, int64_t>;
  static constexpr int kV = kVector<T>, kLines = kStep<T>, kChunks = Tile::kM / kV;
  static constexpr int kLine = Tile::kM * static_cast<int>(sizeof(T));
  using ShareOf = Share<Tile::kThreads, kLines, kChunks>;
  static constexpr int kCount = ShareOf::kCount;
  static_assert(Tile::kM == Tile::kN);  // so that a thread copies the same pixels of both operands

  const WeightProblem& p;
  char* shared;
  ShareOf share;
  int64_t pixel, end;  // the first of the next step
  Walk<Coord> walk[kCount], step;
  const T* y[kCount];  // of the thread's channels
  const T* x[kCount];
  int64_t y_inside[kCount], x_inside[kCount];  // channels that are there, from the chunk's first
  Coord top[kCount], left[kCount];             // of the chunk's tap
  uint4 held[COPY == Copy::kGather ? 2 * kCount : 1];

  __device__ __forceinline__ WeightLoader(const WeightProblem& p_, char* shared_, int64_t group, int64_t m0, int64_t n0,
                                          int64_t begin, int64_t end_)
      : p(p_), shared(shared_), share{COPY == Copy::kGather && p_.lines_first}, pixel(begin), end(end_) {
    step = walk_from<Coord>(kLines, p);
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      walk[i] = walk_from<Coord>(begin + share.line(i), p);
      const int64_t o = m0 + share.column(i) * kV;
      y[i] = static_cast<const T*>(p.y) + (group * p.co + o) * p.y_strides.c;
      y_inside[i] = p.co - o;
      int64_t tap = n0 / kV + share.column(i);
      const bool inside = tap < p.chunks;
      const int64_t k = split(tap, p.vectors) * kV, v = split(tap, p.taps_w), u = tap;
      x[i] = static_cast<const T*>(p.x) + (group * p.ci + k) * p.x_strides.c;
      x_inside[i] = inside ? p.ci - k : 0;
      top[i] = static_cast<Coord>(p.first_h + u * p.step_h), left[i] = static_cast<Coord>(p.first_w + v * p.step_w);
    }
  }

  __device__ __forceinline__ char* stage(int at) const {
    return shared + static_cast<unsigned>(at) % Tile::kStages * Tile::kStageBytes;
  }

  // Begins to copy, or reads, the next step.
  __device__ __forceinline__ void begin(int at) {
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      const auto& [n, row, column] = walk[i];
      const bool inside = pixel + share.line(i) < end;
      const int64_t h = row * p.stride_h + top[i], w = column * p.stride_w + left[i];
      const bool meets = inside && h >= 0 && h < p.ih && w >= 0 && w < p.iw;
      const T* from_y = y[i] + n * p.y_strides.n + row * p.y_strides.h + column * p.y_strides.w;
      const T* from_x = x[i] + n * p.x_strides.n + h * p.x_strides.h + w * p.x_strides.w;
      if constexpr (COPY == Copy::kAsync) {
        char* const to = stage(at) + place<kLine>(share.line(i), share.column(i));
        copy_async(to, from_y, inside && y_inside[i] > 0);
        copy_async(to + Tile::kOperandA, from_x, meets && x_inside[i] > 0);
      } else {
        held[2 * i] = gather(from_y, p.y_strides.c, inside ? y_inside[i] : 0, p.y_chunks);
        held[2 * i + 1] = gather(from_x, p.x_strides.c, meets ? x_inside[i] : 0, p.x_chunks);
      }
      walk[i].move(step, p.rows.divisor, p.columns.divisor);
    }
    pixel += kLines;
  }

  __device__ __forceinline__ void deposit(int at) const {
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      char* const to = stage(at) + place<kLine>(share.line(i), share.column(i));
      *reinterpret_cast<uint4*>(to) = held[2 * i];
      *reinterpret_cast<uint4*>(to + Tile::kOperandA) = held[2 * i + 1];
    }
  }
};

// Lines are channels, chunks pixels.
template <class T, class Tile>
struct WeightLoader<T, Tile, Copy::kPlanes> {
  static constexpr int kV = kVector<T>, kColumns = kStepBytes / kChunk, kApart = Tile::kThreads / kColumns;
  static constexpr int kCount = Tile::kM / kApart;

  const WeightProblem& p;
  char* shared;
  int64_t pixel, end;  // this thread's first of the next step
  Walk<int> walk, step;
  const T* y;  // of this thread's first channel
  const T* x;
  int64_t y_inside, x_inside;  // channels from there on

  __device__ __forceinline__ WeightLoader(const WeightProblem& p_, char* shared_, int64_t group, int64_t m0, int64_t n0,
                                          int64_t begin, int64_t end_)
      : p(p_), shared(shared_), pixel(begin + threadIdx.x % kColumns * kV), end(end_) {
    step = walk_from<int>(kStep<T>, p), walk = walk_from<int>(pixel, p);
    const int64_t o = m0 + threadIdx.x / kColumns, k = n0 + threadIdx.x / kColumns;
    y = static_cast<const T*>(p.y) + (group * p.co + o) * p.y_strides.c, y_inside = p.co - o;
    x = static_cast<const T*>(p.x) + (group * p.ci + k) * p.x_strides.c, x_inside = p.ci - k;
  }

  __device__ __forceinline__ char* stage(int at) const {
    return shared + static_cast<unsigned>(at) % Tile::kStages * Tile::kStageBytes;
  }

  __device__ __forceinline__ void begin(int at) {
    const int64_t n = walk.n, row = walk.i, column = walk.j;
    const T* from_y = y + n * p.y_strides.n + row * p.y_strides.h + column * p.y_strides.w;
    const T* from_x = x + n * p.x_strides.n + row * p.x_strides.h + column * p.x_strides.w;
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      const int line = threadIdx.x / kColumns + i * kApart;
      char* const to = stage(at) + place<kStepBytes>(line, threadIdx.x % kColumns);
      copy_async(to, from_y + i * kApart * p.y_strides.c, pixel < end && i * kApart < y_inside);
      copy_async(to + Tile::kOperandA, from_x + i * kApart * p.x_strides.c, pixel < end && i * kApart < x_inside);
    }
    walk.move(step, p.rows.divisor, p.columns.divisor);
    pixel += kStep<T>;
  }
};

// One block's share of a tile of sums.
// traffic: l2 4.78, loads 1.58, stores 1.00, shared 1.00 (tests/test_gpu_traffic.py)
template <class T, class Tile, Copy COPY>
__global__ void __launch_bounds__(Tile::kThreads, 1) backward_dense_weight(const WeightProblem p) {
  using A = Sum<T>;
  using S = Sums<T, Tile::kWarpM, Tile::kWarpN>;
  __shared__ __align__(128) char shared[Tile::kStages * Tile::kStageBytes];
  unsigned index = blockIdx.x;
  const int64_t n0 = static_cast<int64_t>(split(index, p.tiles_n)) * Tile::kN;
  const int64_t m0 = static_cast<int64_t>(split(index, p.tiles_m)) * Tile::kM;
  const int64_t group = split(index, p.groups), part = index;
  const int64_t begin = part * p.per_split, end = begin + p.per_split < p.pixels ? begin + p.per_split : p.pixels;
  const int steps = static_cast<int>((end - begin + kStep<T> - 1) / kStep<T>);
  const int warp = threadIdx.x / kWarp, m = warp / Tile::kWarpsN * Tile::kWarpM,
            n = warp % Tile::kWarpsN * Tile::kWarpN;
  const bool with_bias = p.bias && n0 + n == 0;
  S sums;
  typename S::Bias bias = {};
  WeightLoader<T, Tile, COPY> loader(p, shared, group, m0, n0, begin, end);
  constexpr int kAhead = COPY == Copy::kGather ? 1 : Tile::kStages - 1;
  constexpr bool kAcross = COPY != Copy::kPlanes;  // lines are across the summed index: pixels
#pragma unroll
  for (int s = 0; s < kAhead; ++s) {
    if (s < steps) loader.begin(s);
    close_group();
  }
  if constexpr (COPY == Copy::kGather) loader.deposit(0);
#pragma unroll 1
  for (int step = 0; step < steps; ++step) {
    wait_for_groups<kAhead - 1>();
    __syncthreads();
    if (step + kAhead < steps) loader.begin(step + kAhead);
    close_group();
    const char* stage = loader.stage(step);
    if (with_bias) {
      sums.template add<kAcross ? Tile::kM : 0, kAcross ? Tile::kN : 0, true>(stage, stage + Tile::kOperandA, m, n,
                                                                              bias);
    } else {
      sums.template add<kAcross ? Tile::kM : 0, kAcross ? Tile::kN : 0, false>(stage, stage + Tile::kOperandA, m, n,
                                                                               bias);
    }
    if constexpr (COPY == Copy::kGather) {
      if (step + 1 < steps) loader.deposit(step + 1);
    }
  }
  const int64_t row0 = (part * p.groups.divisor + group) * p.co;
  sums.each_column([&](int line, int column, auto value) {
    if (m0 + m + line >= p.co || n0 + n + column >= p.columns_all) return;
    A* to = static_cast<A*>(p.partial) + (row0 + m0 + m + line) * p.columns_all + n0 + n + column;
    __stwb(reinterpret_cast<decltype(value)*>(to), value);
  });
  if (with_bias) {
    S::each_bias(bias, [&](int line, A value) {
      if (m0 + m + line < p.co) static_cast<A*>(p.partial_bias)[row0 + m0 + m + line] = value;
    });
  }
}

struct WeightSums {
  const void* partial;
  const void* partial_bias;
  void* weight;
  void* bias;
  Strides4 strides;
  int64_t splits, rows, columns_all, ci;
  Divider row_of, chunks, taps_w;  // columns_all; chunks of k times kVector
};

// Adds the shares of all splits; lanes along k, as the shares lie.
// traffic: l2 1.22, loads 1.00, stores 8.99, shared 1.00 (tests/test_gpu_traffic.py)
template <class T>
__global__ void __launch_bounds__(256, 1) backward_dense_weight_finish(const WeightSums p) {
  using A = Sum<T>;
  const int64_t sums = p.rows * p.columns_all, all = sums + (p.bias ? p.rows : 0);
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < all;
       i += static_cast<int64_t>(gridDim.x) * blockDim.x) {
    const bool of_bias = i >= sums;
    const int64_t apart = of_bias ? p.rows : sums;
    const A* from = static_cast<const A*>(of_bias ? p.partial_bias : p.partial) + (of_bias ? i - sums : i);
    T* to = static_cast<T*>(p.bias) + (i - sums);
    if (!of_bias) {
      int64_t row = i;
      int64_t tap = split(row, p.row_of);
      const int64_t k = split(tap, p.chunks), v = split(tap, p.taps_w);
      if (k >= p.ci) continue;
      to = static_cast<T*>(p.weight) + row * p.strides.n + k * p.strides.c + tap * p.strides.h + v * p.strides.w;
    }
    A total = 0;
#pragma unroll 4
    for (int64_t s = 0; s < p.splits; ++s) total += __ldg(from + s * apart);
    store(to, total);
  }
}

}  // namespace lightkernels::cuda::dense
