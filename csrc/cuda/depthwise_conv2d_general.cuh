// Depthwise convolution of any size, stride, dilation, multiplier, strides and dtype: 64-bit throughout, one tap at a
// time.
#pragma once

#include "depthwise_conv2d_common.cuh"

namespace lightkernels::cuda::depthwise {

constexpr int kGeneralThreads = 128, kGeneralOutputs = 4, kGeneralTaps = 4;

// Outputs of one plane that share their taps are `step` columns apart, so that lanes along the width stay contiguous.
struct GeneralTiles {
  int64_t count, step;
  Divider steps, rows, channels, multiplier;
  bool channels_fastest;
};

struct GeneralTile {
  int64_t n, c, row, column;
};

__device__ __forceinline__ GeneralTile tile_at(int64_t index, const GeneralTiles& tiles) {
  GeneralTile at;
  if (tiles.channels_fastest) at.c = split(index, tiles.channels);
  at.column = split(index, tiles.steps);
  at.row = split(index, tiles.rows);
  if (!tiles.channels_fastest) at.c = split(index, tiles.channels);
  at.n = index;
  return at;
}

// finish(z, n, c, row, column) makes what is stored of a thread's sums.
template <class T, class Finish>
__device__ __forceinline__ void sums_in_general(const Params& p, const GeneralTiles& tiles, Finish&& finish) {
  const int64_t stride = static_cast<int64_t>(gridDim.x) * kGeneralThreads;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kGeneralThreads + threadIdx.x; i < tiles.count; i += stride) {
    const auto [n, c, row, column] = tile_at(i, tiles);
    const T* weight = static_cast<const T*>(p.weight) + c * p.weight_c;
    const T* x = static_cast<const T*>(p.x) + n * p.x_strides.n + tiles.multiplier.divide(c) * p.x_strides.c;
    const int64_t top = row * p.stride_h - p.padding_t, left = column * p.stride_w - p.padding_l;
    const int64_t apart = tiles.step * p.stride_w;
    Sum<T> z[kGeneralOutputs];
#pragma unroll
    for (int j = 0; j < kGeneralOutputs; ++j) z[j] = p.bias ? load(static_cast<const T*>(p.bias) + c) : Sum<T>(0);
    for (int64_t u = 0; u < p.kh; ++u) {
      const int64_t input_row = top + u * p.dilation_h;
      if (input_row < 0 || input_row >= p.ih) continue;
      const T* line = x + input_row * p.x_strides.h;
#pragma unroll 1
      for (int64_t v = 0; v < p.kw; ++v) {
        const Sum<T> w = load(weight + u * p.weight_h + v * p.weight_w);
        const int64_t input_column = left + v * p.dilation_w;
#pragma unroll
        for (int j = 0; j < kGeneralOutputs; ++j) {
          const int64_t at = input_column + j * apart;
          const Sum<T> value = at >= 0 && at < p.iw ? load(line + at * p.x_strides.w) : Sum<T>(0);
          z[j] += w * value;
        }
      }
    }
    finish(z, n, c, row, column);
    T* y = static_cast<T*>(p.y) + n * p.y_strides.n + c * p.y_strides.c + row * p.y_strides.h;
#pragma unroll
    for (int j = 0; j < kGeneralOutputs; ++j) {
      const int64_t at = column + j * tiles.step;
      if (at < p.ow) store(y + at * p.y_strides.w, z[j]);
    }
  }
}

// traffic: l2 5.37, loads 2.72, stores 2.00, shared 1.00 (tests/test_gpu_traffic.py)
template <class T>
__global__ void __launch_bounds__(kGeneralThreads, 1) forward_general(const Params p, const GeneralTiles tiles) {
  sums_in_general<T>(p, tiles, [&](auto& z, int64_t, int64_t, int64_t, int64_t) { activate(p.activation, z); });
}

// The same with all of an epilogue.
// traffic: l2 4.00, loads 2.62, stores 2.00, shared 1.00 (tests/test_gpu_traffic.py)
template <class T>
__global__ void __launch_bounds__(kGeneralThreads, 1) forward_fused(const Fused f, const GeneralTiles tiles) {
  sums_in_general<T>(f.conv, tiles, [&](auto& z, int64_t n, int64_t c, int64_t row, int64_t column) {
    const Epilogue& e = f.epilogue;
    Sum<T> residual[kGeneralOutputs];
    const Strides4& s = e.residual_strides;
    const T* from = static_cast<const T*>(e.residual) + n * s.n + c * s.c + row * s.h;
#pragma unroll
    for (int j = 0; j < kGeneralOutputs; ++j) {
      const int64_t at = column + j * tiles.step;
      residual[j] = e.residual && at < f.conv.ow ? load(from + at * s.w) : Sum<T>(0);
    }
    const auto channel = channel_of<T>(e, n, c);
    finish(e, z, residual, [&](int) { return channel; });
  });
}

// Of one axis: dx's index i meets the taps t with i + padding - t * dilation = stride * (dy's index), which are a first
// one and every `taps`-th after it, each `rows` lower in dy.
struct Meeting {
  int64_t taps, rows;
};

__device__ __forceinline__ void first_meeting(int64_t shifted, int64_t stride, int64_t dilation, const Meeting& every,
                                              int64_t& tap, int64_t& row) {
  for (tap = 0; tap < every.taps; ++tap) {
    const int64_t distance = shifted - tap * dilation;
    if (distance % stride == 0) {
      row = distance / stride;
      return;
    }
  }
  tap = INT64_MAX;  // none
  row = 0;
}

// traffic: l2 4.32, loads 5.00, stores 1.00, shared 1.00 (tests/test_gpu_traffic.py)
template <class T>
__global__ void __launch_bounds__(kGeneralThreads, 1)
    backward_input_general(const Params p, const GeneralTiles tiles, const Meeting every_h, const Meeting every_w) {
  const int64_t stride = static_cast<int64_t>(gridDim.x) * kGeneralThreads;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kGeneralThreads + threadIdx.x; i < tiles.count; i += stride) {
    const auto [n, c, row, column] = tile_at(i, tiles);  // of dx
    int64_t first_u, first_row, first_v, first_column;
    first_meeting(row + p.padding_t, p.stride_h, p.dilation_h, every_h, first_u, first_row);
    first_meeting(column + p.padding_l, p.stride_w, p.dilation_w, every_w, first_v, first_column);
    Sum<T> sum = 0;
    for (int64_t out = c * p.multiplier; out < (c + 1) * p.multiplier; ++out) {
      const T* weight = static_cast<const T*>(p.weight) + out * p.weight_c;
      const T* y = static_cast<const T*>(p.y) + n * p.y_strides.n + out * p.y_strides.c;
      for (int64_t u = first_u, q = first_row; u < p.kh && q >= 0; u += every_h.taps, q -= every_h.rows) {
        if (q >= p.oh) continue;
#pragma unroll 1
        for (int64_t v = first_v, r = first_column; v < p.kw && r >= 0; v += every_w.taps, r -= every_w.rows) {
          if (r >= p.ow) continue;
          sum += load(weight + u * p.weight_h + v * p.weight_w) * load(y + q * p.y_strides.h + r * p.y_strides.w);
        }
      }
    }
    store(static_cast<T*>(p.x) + n * p.x_strides.n + c * p.x_strides.c + row * p.x_strides.h + column * p.x_strides.w,
          sum);
  }
}

// Work of a block: kGeneralTaps taps of a row of one channel's taps, over the outputs of one split of (n, row, column).
struct GeneralSplits {
  int64_t blocks, count, per_split;
  Divider columns, rows, tap_tiles, tap_rows, multiplier;
};

// A is Sum<T>, spelled out so that every compiler gives the kernel one name.
// traffic: l2 47.09, loads 15.60, stores 2.50, shared 1.00 (tests/test_gpu_traffic.py)
template <class T, class A>
__global__ void __launch_bounds__(kGeneralThreads, 1)
    backward_weight_general(const Params p, const GeneralSplits tiles, A* partial) {
  constexpr int N = power_of_two(kGeneralTaps + 1);
  __shared__ A shared[kGeneralThreads / kWarp][N];
  const int64_t begin = blockIdx.y * tiles.per_split;
  const int64_t end = begin + tiles.per_split < tiles.count ? begin + tiles.per_split : tiles.count;
  for (int64_t block = blockIdx.x; block < tiles.blocks; block += gridDim.x) {
    int64_t c = block;
    const int64_t v0 = split(c, tiles.tap_tiles) * kGeneralTaps, u = split(c, tiles.tap_rows);
    const T* x = static_cast<const T*>(p.x) + tiles.multiplier.divide(c) * p.x_strides.c;
    const T* y = static_cast<const T*>(p.y) + c * p.y_strides.c;
    A sums[N] = {};
    for (int64_t i = begin + threadIdx.x; i < end; i += kGeneralThreads) {
      int64_t n = i;
      const int64_t column = split(n, tiles.columns), row = split(n, tiles.rows);
      const A dy = load(y + n * p.y_strides.n + row * p.y_strides.h + column * p.y_strides.w);
      sums[kGeneralTaps] += dy;
      const int64_t input_row = row * p.stride_h + u * p.dilation_h - p.padding_t;
      if (input_row < 0 || input_row >= p.ih) continue;
      const T* line = x + n * p.x_strides.n + input_row * p.x_strides.h;
#pragma unroll
      for (int v = 0; v < kGeneralTaps; ++v) {
        const int64_t input_column = column * p.stride_w + (v0 + v) * p.dilation_w - p.padding_l;
        const bool inside = input_column >= 0 && input_column < p.iw;
        sums[v] += dy * (inside ? load(line + input_column * p.x_strides.w) : A(0));
      }
    }
    const A* total = sum_over_block<kGeneralThreads>(sums, shared);
    const int v = threadIdx.x;
    A* out = partial + blockIdx.y * (p.kh * p.kw + 1) * p.c + c;
    if (v < kGeneralTaps && v0 + v < p.kw) out[(u * p.kw + v0 + v) * p.c] = total[v];
    if (v == kGeneralTaps && u == 0 && v0 == 0) out[p.kh * p.kw * p.c] = total[v];
    __syncthreads();  // before `shared` is written again
  }
}

constexpr int kFinishLanes = 32, kFinishGroups = 8;

// dweight and dbias from every split's partial[split][tap][c]: lanes along (tap, c), groups along the splits.
// traffic: l2 4.15, loads 1.00, stores 8.20, shared 1.00 (tests/test_gpu_traffic.py)
template <class T, class A>
__global__ void __launch_bounds__(kFinishLanes* kFinishGroups)
    backward_weight_finish(const Params p, int64_t splits, const A* partial) {
  __shared__ A shared[kFinishGroups][kFinishLanes];
  const int64_t taps = p.kh * p.kw, count = (taps + 1) * p.c, stride = static_cast<int64_t>(gridDim.x) * kFinishLanes;
  for (int64_t first = static_cast<int64_t>(blockIdx.x) * kFinishLanes; first < count; first += stride) {
    const int64_t i = first + threadIdx.x;
    A sum = 0;
    if (i < count) {
#pragma unroll 4
      for (int64_t s = threadIdx.y; s < splits; s += kFinishGroups) sum += __ldg(partial + s * count + i);
    }
    shared[threadIdx.y][threadIdx.x] = sum;
    __syncthreads();
    if (threadIdx.y == 0 && i < count) {
#pragma unroll
      for (int g = 1; g < kFinishGroups; ++g) sum += shared[g][threadIdx.x];
      const int64_t tap = i / p.c, c = i - tap * p.c;
      if (tap < taps) {
        store(static_cast<T*>(p.weight) + c * taps + tap, sum);
      } else if (p.bias) {
        store(static_cast<T*>(p.bias) + c, sum);
      }
    }
    __syncthreads();
  }
}

}  // namespace lightkernels::cuda::depthwise
