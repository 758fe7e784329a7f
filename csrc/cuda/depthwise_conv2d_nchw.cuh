// Depthwise convolution of images stored row by row (width stride 1): lanes along the width, so that every access of a
// warp is contiguous, and several rows a thread in registers, so that an input row is loaded once for all of them.
#pragma once

#include "depthwise_conv2d_common.cuh"

namespace lightkernels::cuda::depthwise {

constexpr int kNchwThreads = 128;

// Tiles of ROWS x 1 numbered (c, row tile, column), the last fastest; the batch is blockIdx.y.
struct NchwTiles {
  unsigned count;
  Divider columns, rows;
};

// K x K taps, stride S, dilation 1, multiplier 1.
// traffic: l2 1.13, loads 1.92, stores 1.00, shared 1.00 (tests/test_gpu_traffic.py)
template <class T, int K, int S, int ROWS>
__global__ void __launch_bounds__(kNchwThreads, K == 3 ? 5 : 4) forward_nchw(const Params p, const NchwTiles tiles) {
  constexpr int kUnroll = K * S == 3 ? K : 1;  // of the loop over columns of taps: beyond 3 taps registers matter more
  unsigned tile = blockIdx.x * kNchwThreads + threadIdx.x;
  if (tile >= tiles.count) return;
  const int column = split(tile, tiles.columns), row0 = split(tile, tiles.rows) * ROWS;
  const int64_t c = tile;

  const T* weight = static_cast<const T*>(p.weight) + c * p.weight_c;
  const float bias = p.bias ? load(static_cast<const T*>(p.bias) + c) : 0.f;
  const int ih = static_cast<int>(p.ih), iw = static_cast<int>(p.iw), oh = static_cast<int>(p.oh);
  const int top = row0 * S - static_cast<int>(p.padding_t), left = column * S - static_cast<int>(p.padding_l);

  for (int64_t n = blockIdx.y; n < p.n; n += gridDim.y) {
    const T* x = static_cast<const T*>(p.x) + n * p.x_strides.n + c * p.x_strides.c + left;
    float z[ROWS];
#pragma unroll
    for (int i = 0; i < ROWS; ++i) z[i] = bias;
#pragma unroll kUnroll
    for (int v = 0; v < K; ++v) {
      const bool inside = static_cast<unsigned>(left + v) < static_cast<unsigned>(iw);
      float w[K];
#pragma unroll
      for (int u = 0; u < K; ++u) w[u] = load(weight + u * p.weight_h + v * p.weight_w);
#pragma unroll
      for (int r = 0; r < (ROWS - 1) * S + K; ++r) {
        const bool row_inside = static_cast<unsigned>(top + r) < static_cast<unsigned>(ih);
        const float value = inside && row_inside ? load(x + (top + r) * p.x_strides.h + v) : 0.f;
#pragma unroll
        for (int i = 0; i < ROWS; ++i) {
          const int u = r - i * S;
          if (u >= 0 && u < K) z[i] += w[u] * value;
        }
      }
    }
    activate(p.activation, z);
    T* y = static_cast<T*>(p.y) + n * p.y_strides.n + c * p.y_strides.c + row0 * p.y_strides.h + column;
#pragma unroll
    for (int i = 0; i < ROWS; ++i) {
      if (row0 + i < oh) store(y + i * p.y_strides.h, z[i]);
    }
  }
}

// dx of stride 2. Row 2q - top of dx meets the even taps and row 2q + 1 - top the odd ones, both from rows q, q - 1,
// ... of dy; a thread computes PAIRS such pairs of rows. Columns have one parity a lane: it picks the taps that it
// meets.
// traffic: l2 1.05, loads 1.01, stores 1.00, shared 1.00 (tests/test_gpu_traffic.py)
template <class T, int K, int PAIRS>
__global__ void __launch_bounds__(kNchwThreads, K == 3 ? 5 : 4)
    backward_input_stride2_nchw(const Params p, const NchwTiles tiles) {
  constexpr int H = (K + 1) / 2, kUnroll = K == 3 ? H : 1;  // taps of the longer parity; see forward_nchw
  unsigned tile = blockIdx.x * kNchwThreads + threadIdx.x;
  if (tile >= tiles.count) return;
  const int column = split(tile, tiles.columns), pair0 = split(tile, tiles.rows) * PAIRS;
  const int64_t c = tile;

  const int top = static_cast<int>(p.padding_t), ih = static_cast<int>(p.ih);
  const int oh = static_cast<int>(p.oh), ow = static_cast<int>(p.ow);
  const int shifted = column + static_cast<int>(p.padding_l), parity = shifted & 1, last_column = shifted >> 1;
  const int first_row = (top >> 1) + pair0 - (H - 1);  // of dy

  const T* weight = static_cast<const T*>(p.weight) + c * p.weight_c + parity * p.weight_w;
  for (int64_t n = blockIdx.y; n < p.n; n += gridDim.y) {
    const T* y = static_cast<const T*>(p.y) + n * p.y_strides.n + c * p.y_strides.c + last_column;
    float dx[2 * PAIRS] = {};
#pragma unroll kUnroll
    for (int t = 0; t < H; ++t) {
      const bool inside = 2 * t + parity < K && static_cast<unsigned>(last_column - t) < static_cast<unsigned>(ow);
      float w[K];
#pragma unroll
      for (int u = 0; u < K; ++u) w[u] = inside ? load(weight + u * p.weight_h + 2 * t * p.weight_w) : 0.f;
#pragma unroll
      for (int r = 0; r < PAIRS + H - 1; ++r) {
        const int row = first_row + r;
        const bool row_inside = static_cast<unsigned>(row) < static_cast<unsigned>(oh);
        const float value = inside && row_inside ? load(y + row * p.y_strides.h - t) : 0.f;
#pragma unroll
        for (int i = 0; i < PAIRS; ++i) {
          const int u = 2 * (i + H - 1 - r);
          if (u >= 0 && u < K) dx[2 * i] += w[u] * value;
          if (u >= 0 && u + 1 < K) dx[2 * i + 1] += w[u + 1] * value;
        }
      }
    }
    const int row0 = 2 * (pair0 + (top >> 1)) - top;  // of dx, -1 where the padding is odd
    T* x = static_cast<T*>(p.x) + n * p.x_strides.n + c * p.x_strides.c + row0 * p.x_strides.h + column;
#pragma unroll
    for (int i = 0; i < 2 * PAIRS; ++i) {
      if (static_cast<unsigned>(row0 + i) < static_cast<unsigned>(ih)) store(x + i * p.x_strides.h, dx[i]);
    }
  }
}

// Tiles of ROWS x 1 outputs of one channel numbered (n, row tile, column), split evenly over gridDim.y.
struct NchwSplits {
  unsigned count, per_split;
  Divider columns, rows;
};

// One block's share of dweight and dbias of channel blockIdx.x: partial[split][tap][c], the bias behind the taps.
// traffic: l2 1.05, loads 1.87, stores 5.00, shared 1.00 (tests/test_gpu_traffic.py)
template <class T, int K, int S, int ROWS>
__global__ void __launch_bounds__(kNchwThreads, K == 7 ? 2 : 4)
    backward_weight_nchw(const Params p, const NchwSplits tiles, float* partial) {
  constexpr int N = power_of_two(K * K + 1);
  __shared__ float shared[kNchwThreads / kWarp][N];
  const int64_t c = blockIdx.x;
  const int ih = static_cast<int>(p.ih), iw = static_cast<int>(p.iw), oh = static_cast<int>(p.oh);
  const unsigned begin = blockIdx.y * tiles.per_split;
  const unsigned end = begin + tiles.per_split < tiles.count ? begin + tiles.per_split : tiles.count;

  float sums[N] = {};
  for (unsigned unit = begin + threadIdx.x; unit < end; unit += kNchwThreads) {
    unsigned tile = unit;
    const int column = split(tile, tiles.columns), row0 = split(tile, tiles.rows) * ROWS;
    const int64_t n = tile;
    const int top = row0 * S - static_cast<int>(p.padding_t), left = column * S - static_cast<int>(p.padding_l);
    const T* y = static_cast<const T*>(p.y) + n * p.y_strides.n + c * p.y_strides.c + row0 * p.y_strides.h + column;
    const T* x = static_cast<const T*>(p.x) + n * p.x_strides.n + c * p.x_strides.c + left;
    float dy[ROWS];
#pragma unroll
    for (int i = 0; i < ROWS; ++i) {
      dy[i] = row0 + i < oh ? load(y + i * p.y_strides.h) : 0.f;
      sums[K * K] += dy[i];
    }
#pragma unroll
    for (int r = 0; r < (ROWS - 1) * S + K; ++r) {
      const bool row_inside = static_cast<unsigned>(top + r) < static_cast<unsigned>(ih);
      const T* line = x + (top + r) * p.x_strides.h;
#pragma unroll
      for (int v = 0; v < K; ++v) {
        const bool inside = row_inside && static_cast<unsigned>(left + v) < static_cast<unsigned>(iw);
        const float value = inside ? load(line + v) : 0.f;
#pragma unroll
        for (int i = 0; i < ROWS; ++i) {
          const int u = r - i * S;
          if (u >= 0 && u < K) sums[u * K + v] += dy[i] * value;
        }
      }
    }
  }

  const float* total = sum_over_block<kNchwThreads>(sums, shared);
  if (threadIdx.x <= K * K) {
    partial[(static_cast<int64_t>(blockIdx.y) * (K * K + 1) + threadIdx.x) * p.c + c] = total[threadIdx.x];
  }
}

}  // namespace lightkernels::cuda::depthwise
