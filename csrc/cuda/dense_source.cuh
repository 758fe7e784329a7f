// Dense convolution as a matrix product: which pixels and channels a block's lines are, and copying them to shared
// memory. Padding, and what lies beyond an edge, is zeros there.
#pragma once

#include "../dense_conv2d.h"
#include "dense_tile.cuh"

namespace lightkernels::cuda::dense {

// How images come to shared memory: in whole chunks of a pixel's channels, without a detour through registers; so too,
// in chunks of a channel's pixels (16 bit, 1x1 kernels); anything else.
enum class Copy { kAsync, kPlanes, kGather };

// Where y's values go.
struct Result {
  void* y;
  Strides4 strides;
  int64_t h, w;                                      // y's pixels
  int64_t per_shuffle;                               // channels of one of the shuffled groups
  int64_t shuffle;                                   // 1: channels stay where they are
  bool chunks;                                       // can be stored 16 bytes at once
  bool residual_chunks, vector_chunks, gate_chunks;  // so can be read: the residual, [c] vectors, the gate
  bool pixels_first;                                 // lanes along pixels, else along channels
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
  bool chunks;               // x has its channels in whole chunks
  bool planes;               // and its channels' pixels, for a product of x as it lies
  int64_t class_h, class_w;  // the stride that made classes; their taps' distances in weight and in dy
  int64_t class_taps_h, class_taps_w, class_step_h, class_step_w;
  Activation input_activation;
  const void* input_gate;
  int64_t input_gate_n, input_gate_c;
};

// What a block is about.
template <class Tile>
struct Block {
  int tile_m, n0, group, class_h, class_w;  // n0 within the group

  __device__ __forceinline__ explicit Block(const Problem& p) {
    unsigned index = blockIdx.x;
    n0 = split(index, p.tiles_n) * Tile::kN;
    tile_m = split(index, p.tiles_m);
    group = split(index, p.groups);
    class_w = split(index, p.classes_w);
    class_h = static_cast<int>(index);
  }
  __device__ __forceinline__ int64_t m0() const { return int64_t{tile_m} * Tile::kM; }
};

// Taps along one axis.
template <class Coord>
struct Taps {
  int count;
  Coord first, step;  // in x: where the grid's first pixel meets the first, and how far apart they are
  int begin, apart;   // in weight
};

// Pixel index * stride + class of dx meets tap u in row (that + padding - u * dilation) / stride of dy, if it is whole.
template <class Coord>
__device__ __forceinline__ Taps<Coord> taps_of_class(int at, int64_t taps, int64_t padding, int64_t dilation,
                                                     int64_t stride, int64_t apart, int64_t step) {
  int64_t begin = 0, shifted = at + padding;
  while (begin < taps && begin < apart && shifted % stride) ++begin, shifted -= dilation;
  if (begin >= taps || begin >= apart) return {0, 0, 0, 0, 1};
  return {static_cast<int>((taps - 1 - begin) / apart + 1), static_cast<Coord>(shifted / stride),
          static_cast<Coord>(-step), static_cast<int>(begin), static_cast<int>(apart)};
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
