// Dense convolution as a matrix product: which pixels and channels a block's lines are, and copying them to shared
// memory. Padding, and what lies beyond an edge, is zeros there.
#pragma once

#include "../dense_conv2d.h"
#include "dense_tile.cuh"

namespace lightkernels::cuda::dense {

// How x comes to shared memory.
enum class Copy { kAsync, kGather };  // whole chunks, without registers; anything else

// Where y's values go.
struct Result {
  void* y;
  Strides4 strides;
  int64_t h, w;          // y's pixels
  int64_t per_shuffle;   // channels of one of the shuffled groups
  int64_t shuffle;       // 1: channels stay where they are
  bool chunks;           // can be stored 16 bytes at once
  bool residual_chunks;  // the same of reading the residual
  bool pixels_first;     // lanes along pixels, else along channels
  Epilogue epilogue;
};

// y[n, o, i, j] = sum_{u,v,k} weight[o, u, v, k] x[n, k, i * stride_h + first_h + u * step_h, ...] over pixels (n, i,
// j) of a grid of rows x columns. `classes` > 1: backward_input of a stride; then such a grid is every stride-th pixel
// of dx, each grid meets other taps, and x is dy.
struct Problem {
  const void* x;
  Strides4 x_strides;
  int64_t ih, iw;  // x's pixels
  const void* weight;
  int64_t weight_row, weight_u, weight_v;  // strides; those of k are 1
  int64_t ci, co;                          // k's and o's of a group
  int64_t lines;                           // pixels of a grid
  int64_t kh, kw;
  int64_t stride_h, stride_w, first_h, first_w, step_h, step_w;
  Divider columns, rows;                        // of a grid
  Divider tiles_n, tiles_m, groups, classes_w;  // of a block's number, in this order
  Divider vectors, taps_w;                      // of k: chunks of a tap, taps of a row of the kernel
  int64_t classes;
  bool lines_first;          // lanes along pixels, else along channels: elements one by one
  bool chunks;               // x has its channels in whole chunks: elements one by one are not needed
  int64_t class_h, class_w;  // the stride that made classes; their taps' distances in weight and in dy
  int64_t class_taps_h, class_taps_w, class_step_h, class_step_w;
  Activation input_activation;
  const void* input_gate;
  int64_t input_gate_n, input_gate_c;
};

// What a block is about.
struct Block {
  int64_t m0;
  int n0;  // within the group
  int64_t group;
  int class_h, class_w;
};

template <class Tile>
__device__ __forceinline__ Block block_of(const Problem& p) {
  unsigned index = blockIdx.x;
  Block at;
  at.n0 = split(index, p.tiles_n) * Tile::kN;
  at.m0 = static_cast<int64_t>(split(index, p.tiles_m)) * Tile::kM;
  at.group = split(index, p.groups);
  at.class_w = split(index, p.classes_w);
  at.class_h = static_cast<int>(index);
  return at;
}

// Taps along one axis.
struct Taps {
  int64_t count, first, step;  // in x: where the grid's first pixel meets the first, and how far apart they are
  int64_t begin, apart;        // in weight
};

// Pixel index * stride + class of dx meets tap u in row (that + padding - u * dilation) / stride of dy, if it is whole.
__device__ __forceinline__ Taps taps_of_class(int64_t at, int64_t taps, int64_t padding, int64_t dilation,
                                              int64_t stride, int64_t apart, int64_t step) {
  int64_t begin = 0, shifted = at + padding;
  while (begin < taps && begin < apart && shifted % stride) ++begin, shifted -= dilation;
  if (begin >= taps || begin >= apart) return {0, 0, 0, 0, 1};
  return {(taps - 1 - begin) / apart + 1, shifted / stride, -step, begin, apart};
}

// The lines that a thread copies: COUNT chunks of a tile of LINES lines, COLUMNS chunks each.
template <int THREADS, int LINES, int COLUMNS>
struct Share {
  static constexpr int kCount = LINES * COLUMNS / THREADS;
  static_assert(LINES * COLUMNS % THREADS == 0 && THREADS % COLUMNS == 0);
  bool lines_first;

  __device__ __forceinline__ int line(int i) const {
    const int t = threadIdx.x;
    if constexpr (THREADS % LINES) return t / COLUMNS + i * (THREADS / COLUMNS);
    return lines_first ? t % LINES : t / COLUMNS + i * (THREADS / COLUMNS);
  }
  __device__ __forceinline__ int column(int i) const {
    const int t = threadIdx.x;
    if constexpr (THREADS % LINES) return t % COLUMNS;
    return lines_first ? t / LINES + i * (THREADS / LINES) : t % COLUMNS;
  }
};

// kVector channels from c on, of which `inside` are there, as they lie or one by one.
template <class T>
__device__ __forceinline__ uint4 gather(const T* p, int64_t stride, int64_t inside, bool chunks) {
  uint4 word = make_uint4(0, 0, 0, 0);
  if (inside <= 0) return word;
  if (chunks) return __ldg(reinterpret_cast<const uint4*>(p));
  Chunk<T> chunk;
  memcpy(&chunk, &word, kChunk);
#pragma unroll
  for (int v = 0; v < kVector<T>; ++v) {
    if (v < inside) chunk.value[v] = __ldg(p + v * stride);
  }
  memcpy(&word, &chunk, kChunk);
  return word;
}

}  // namespace lightkernels::cuda::dense
