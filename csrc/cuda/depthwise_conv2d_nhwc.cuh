// Depthwise convolution of images stored pixel by pixel (channel stride 1): lanes along the channels, V of them a
// thread in one access (16 bytes where channels and alignment allow), several pixels a thread in registers. The weights
// of the block's channels wait in shared memory as floats, taps outermost, whatever their layout was.
#pragma once

#include "depthwise_conv2d_common.cuh"

namespace lightkernels::cuda::depthwise {

constexpr int kNhwcThreads = 256;

// Vectors of channels along threadIdx.x of a block; a block's channels fill at most 128 floats a tap.
template <int V>
constexpr int kNhwcLanes = 128 / V < kWarp ? 128 / V : kWarp;

// Tiles of ROWS x COLUMNS lie in strips, two tiles wide unless the image is narrower, and are numbered down the strips:
// a block's tiles are about as high as they are wide, so that it reads little that its neighbours read too (a tenth
// less in all than a column of tiles). blockIdx.x and threadIdx.y number tiles, blockIdx.y blocks of channels,
// blockIdx.z the batch. The last strip may reach beyond the image.
struct NhwcTiles {
  unsigned count, strip_bits;
  Divider rows;

  // Row and column of a tile among the tiles.
  __device__ __forceinline__ void place(unsigned tile, int& row, int& column) const {
    const unsigned side = tile & ((1u << strip_bits) - 1);
    tile >>= strip_bits;
    row = split(tile, rows);
    column = static_cast<int>((tile << strip_bits) + side);
  }
};

template <int K, int V>
struct NhwcWeights {
  static constexpr int kPart = V < 4 ? V : 4;          // floats of one access
  static constexpr int kLine = kNhwcLanes<V> * V + 4;  // 4 more: a channel's taps spread over eight groups of banks
  alignas(16) float taps[K * K][kLine];

  // Where channel k of a lane is: the lanes' first four channels, then their next four, so that lanes lie side by side.
  static __device__ __forceinline__ int place(int lane, int k) {
    return k / kPart * (kNhwcLanes<V> * kPart) + lane * kPart + k % kPart;
  }

  __device__ __forceinline__ void load(int tap, int lane, float (&w)[V]) const {
    using Word = typename Bits<kPart * sizeof(float)>::type;
#pragma unroll
    for (int k = 0; k < V; k += kPart) {
      const Word word = *reinterpret_cast<const Word*>(&taps[tap][place(lane, k)]);
      memcpy(&w[k], &word, sizeof(word));
    }
  }
};

// Copies the weights of the block's channels to shared memory, in the order in which memory holds them, and returns the
// thread's first channel.
template <class T, int K, int V>
__device__ __forceinline__ int64_t stage_weights(const Params& p, NhwcWeights<K, V>& weights) {
  const int64_t c0 = static_cast<int64_t>(blockIdx.y) * blockDim.x * V;
  const int channels = static_cast<int>(p.c - c0 < blockDim.x * V ? p.c - c0 : blockDim.x * V);
  const T* weight = static_cast<const T*>(p.weight) + c0 * p.weight_c;
  const int thread = threadIdx.y * blockDim.x + threadIdx.x, threads = blockDim.x * blockDim.y;
  if (p.weight_c == 1) {
    for (int tap = threadIdx.y; tap < K * K; tap += blockDim.y) {
      for (int c = threadIdx.x; c < channels; c += blockDim.x) {
        weights.taps[tap][weights.place(c / V, c % V)] = load(weight + c + tap / K * p.weight_h + tap % K * p.weight_w);
      }
    }
  } else {
    for (int i = thread; i < K * K * channels; i += threads) {
      const int c = i / (K * K), tap = i % (K * K);
      weights.taps[tap][weights.place(c / V, c % V)] =
          load(weight + c * p.weight_c + tap / K * p.weight_h + tap % K * p.weight_w);
    }
  }
  __syncthreads();
  return c0 + threadIdx.x * V;
}

// K x K taps, stride S, dilation 1, multiplier 1.
// traffic: l2 1.20, loads 1.01, stores 1.00, shared 1.03 (tests/test_gpu_traffic.py)
template <class T, int K, int S, int V, int ROWS, int COLUMNS>
__global__ void __launch_bounds__(kNhwcThreads, 1) forward_nhwc(const Params p, const NhwcTiles tiles) {
  __shared__ NhwcWeights<K, V> weights;
  const int64_t c = stage_weights<T>(p, weights);
  const unsigned tile = blockIdx.x * blockDim.y + threadIdx.y;
  if (c >= p.c || tile >= tiles.count) return;
  int row0, column0;
  tiles.place(tile, row0, column0);
  row0 *= ROWS, column0 *= COLUMNS;
  const int top = row0 * S - static_cast<int>(p.padding_t), left = column0 * S - static_cast<int>(p.padding_l);
  const int ih = static_cast<int>(p.ih), iw = static_cast<int>(p.iw);

  for (int64_t n = blockIdx.z; n < p.n; n += gridDim.z) {
    const T* x = static_cast<const T*>(p.x) + n * p.x_strides.n + c + left * p.x_strides.w;
    float z[ROWS][COLUMNS][V] = {};
#pragma unroll 1  // a row's loads in flight are enough, more would cost registers
    for (int r = 0; r < (ROWS - 1) * S + K; ++r) {
      const bool row_inside = static_cast<unsigned>(top + r) < static_cast<unsigned>(ih);
      const T* line = x + (top + r) * p.x_strides.h;
      float value[(COLUMNS - 1) * S + K][V];
#pragma unroll
      for (int j = 0; j < (COLUMNS - 1) * S + K; ++j) {
        const bool inside = row_inside && static_cast<unsigned>(left + j) < static_cast<unsigned>(iw);
        load_or_zero(inside, line + j * p.x_strides.w, value[j]);
      }
#pragma unroll
      for (int i = 0; i < ROWS; ++i) {
        const int u = r - i * S;
        if (u < 0 || u >= K) continue;
#pragma unroll
        for (int v = 0; v < K; ++v) {
          float w[V];
          weights.load(u * K + v, threadIdx.x, w);
#pragma unroll
          for (int j = 0; j < COLUMNS; ++j) {
#pragma unroll
            for (int k = 0; k < V; ++k) z[i][j][k] += w[k] * value[j * S + v][k];
          }
        }
      }
    }
    float bias[V] = {};
    if (p.bias) {
#pragma unroll
      for (int k = 0; k < V; ++k) bias[k] = load(static_cast<const T*>(p.bias) + c + k);
    }
    T* y = static_cast<T*>(p.y) + n * p.y_strides.n + c;
#pragma unroll
    for (int i = 0; i < ROWS; ++i) {
#pragma unroll
      for (int j = 0; j < COLUMNS; ++j) {
#pragma unroll
        for (int k = 0; k < V; ++k) z[i][j][k] += bias[k];
        if (row0 + i < p.oh && column0 + j < p.ow) {
          activate(p.activation, z[i][j]);
          store(y + (row0 + i) * p.y_strides.h + (column0 + j) * p.y_strides.w, z[i][j]);
        }
      }
    }
  }
}

// dx of stride 2: a thread computes one pair of rows and PAIRS pairs of columns. Pixel (2q + a - top, 2r + b - left) of
// dx meets the taps of parity (a, b), from rows q, q - 1, ... and columns r, r - 1, ... of dy.
// traffic: l2 1.18, loads 1.00, stores 1.00, shared 1.06 (tests/test_gpu_traffic.py)
template <class T, int K, int V, int PAIRS>
__global__ void __launch_bounds__(kNhwcThreads, 1) backward_input_stride2_nhwc(const Params p, const NhwcTiles tiles) {
  constexpr int H = (K + 1) / 2;  // taps of the even parity; the odd one has one less
  __shared__ NhwcWeights<K, V> weights;
  const int64_t c = stage_weights<T>(p, weights);
  const unsigned tile = blockIdx.x * blockDim.y + threadIdx.y;
  if (c >= p.c || tile >= tiles.count) return;
  const int top = static_cast<int>(p.padding_t), left = static_cast<int>(p.padding_l);
  int q, r0;
  tiles.place(tile, q, r0);
  q += top >> 1, r0 = r0 * PAIRS + (left >> 1);
  const int oh = static_cast<int>(p.oh), ow = static_cast<int>(p.ow);

  for (int64_t n = blockIdx.z; n < p.n; n += gridDim.z) {
    const T* y = static_cast<const T*>(p.y) + n * p.y_strides.n + c;
    float dx[2][2 * PAIRS][V] = {};
#pragma unroll 1
    for (int t = 0; t < H; ++t) {
      const bool row_inside = static_cast<unsigned>(q - t) < static_cast<unsigned>(oh);
      const T* line = y + (q - t) * p.y_strides.h + (r0 - (H - 1)) * p.y_strides.w;
      float value[PAIRS + H - 1][V];
#pragma unroll
      for (int j = 0; j < PAIRS + H - 1; ++j) {
        const bool inside = row_inside && static_cast<unsigned>(r0 - (H - 1) + j) < static_cast<unsigned>(ow);
        load_or_zero(inside, line + j * p.y_strides.w, value[j]);
      }
#pragma unroll
      for (int a = 0; a < 2; ++a) {
        if (2 * t + a >= K) continue;
#pragma unroll
        for (int v = 0; v < K; ++v) {
          float w[V];
          weights.load((2 * t + a) * K + v, threadIdx.x, w);
#pragma unroll
          for (int j = 0; j < PAIRS; ++j) {
#pragma unroll
            for (int k = 0; k < V; ++k) dx[a][2 * j + v % 2][k] += w[k] * value[j + H - 1 - v / 2][k];
          }
        }
      }
    }
    T* x = static_cast<T*>(p.x) + n * p.x_strides.n + c;
#pragma unroll
    for (int a = 0; a < 2; ++a) {
#pragma unroll
      for (int b = 0; b < 2 * PAIRS; ++b) {
        const int i = 2 * q + a - top, j = 2 * r0 + b - left;
        if (i >= 0 && i < p.ih && j >= 0 && j < p.iw) store(x + i * p.x_strides.h + j * p.x_strides.w, dx[a][b]);
      }
    }
  }
}

// Tiles of 1 x COLUMNS outputs numbered (n, row, column tile), split evenly over gridDim.x.
struct NhwcSplits {
  unsigned count, per_split;
  Divider columns, rows;
};

// One block's share of dweight and dbias of its channels: partial[split][tap][c], the bias behind the taps. threadIdx.z
// is the kernel's row, so that a thread holds K sums for each channel and not K * K; threadIdx.y takes every n-th tile.
// traffic: l2 1.72, loads 1.00, stores 8.00, shared 2.00 (tests/test_gpu_traffic.py)
template <class T, int K, int S, int V, int COLUMNS>
__global__ void __launch_bounds__(kNhwcThreads, 1)
    backward_weight_nhwc(const Params p, const NhwcSplits tiles, float* partial) {
  alignas(16) __shared__ float shared[kNhwcThreads][V];
  const int64_t c = (static_cast<int64_t>(blockIdx.y) * blockDim.x + threadIdx.x) * V;
  const int u = threadIdx.z, iw = static_cast<int>(p.iw);
  const unsigned begin = blockIdx.x * tiles.per_split;
  const unsigned end = begin + tiles.per_split < tiles.count ? begin + tiles.per_split : tiles.count;

  float sums[K + 1][V] = {};  // of a row of taps, and of the bias
  for (unsigned unit = begin + threadIdx.y; unit < end && c < p.c; unit += blockDim.y) {
    unsigned tile = unit;
    const int column0 = split(tile, tiles.columns) * COLUMNS, row = split(tile, tiles.rows);
    const int64_t n = tile;
    const int input_row = row * S + u - static_cast<int>(p.padding_t);
    const int left = column0 * S - static_cast<int>(p.padding_l);
    const bool row_inside = input_row >= 0 && input_row < p.ih;
    const T* y = static_cast<const T*>(p.y) + n * p.y_strides.n + row * p.y_strides.h + column0 * p.y_strides.w + c;
    const T* x = static_cast<const T*>(p.x) + n * p.x_strides.n + input_row * p.x_strides.h + left * p.x_strides.w + c;
    float dy[COLUMNS][V];
#pragma unroll
    for (int j = 0; j < COLUMNS; ++j) {
      load_or_zero(column0 + j < p.ow, y + j * p.y_strides.w, dy[j]);
#pragma unroll
      for (int k = 0; k < V; ++k) sums[K][k] += dy[j][k];
    }
#pragma unroll
    for (int i = 0; i < (COLUMNS - 1) * S + K; ++i) {
      float value[V];
      load_or_zero(row_inside && static_cast<unsigned>(left + i) < static_cast<unsigned>(iw), x + i * p.x_strides.w,
                   value);
#pragma unroll
      for (int j = 0; j < COLUMNS; ++j) {
        const int v = i - j * S;
        if (v < 0 || v >= K) continue;
#pragma unroll
        for (int k = 0; k < V; ++k) sums[v][k] += dy[j][k] * value[k];
      }
    }
  }

  const int thread = (threadIdx.z * blockDim.y + threadIdx.y) * blockDim.x + threadIdx.x;
#pragma unroll
  for (int v = 0; v <= K; ++v) {
    __syncthreads();
#pragma unroll
    for (int k = 0; k < V; ++k) shared[thread][k] = sums[v][k];
    __syncthreads();
    if (threadIdx.y > 0 || c >= p.c || (v == K && u > 0)) continue;
    const int tap = v == K ? K * K : u * K + v;
#pragma unroll
    for (int k = 0; k < V; ++k) {
      float total = 0.f;
      for (unsigned g = 0; g < blockDim.y; ++g) total += shared[thread + g * blockDim.x][k];
      partial[(static_cast<int64_t>(blockIdx.x) * (K * K + 1) + tap) * p.c + c + k] = total;
    }
  }
}

}  // namespace lightkernels::cuda::depthwise
