// Depthwise convolution, channels innermost, dilated 3 x 3 of stride 1: rows are swept column by column as they lie in
// memory, and the columns that are still to be met again wait in a ring in L1.
//
// The columns of one dilated tile are far apart, often by a power of two: they meet in few sets of the cache and push
// each other out. In the ring they are side by side.
#pragma once

#include "depthwise_conv2d_nhwc_fixed.h"

namespace lightkernels::cpu {

constexpr int kRingRows = 4;      // outputs of a column, dilation_h apart
constexpr int kRingVectors = 2;   // of channels
constexpr int kRingColumns = 64;  // at most

// Where it wins (docs/measured.md): tensors beyond L2, or columns that meet in at most two of L1's 64 sets; and rows
// long enough that most outputs have all their taps. The nine weights of two vectors need 32 registers.
inline bool rings_nhwc(const DepthwiseConv2dParams& p) {
  const bool meet = p.x_strides.w * p.dilation_w * size_of(p.dtype) % 2048 == 0;
  return kRegisters == 32 && p.kh == 3 && p.stride_h == 1 && p.dilation_w > 1 && 2 * p.dilation_w < kRingColumns &&
         p.ow >= 4 * p.dilation_w && p.oh >= kRingRows * p.dilation_h && p.c >= kRingVectors * lanes<float>() &&
         (meet || bytes_of(p) > kFarBytes);
}

template <class E>
struct Ring {
  static constexpr int kRows = kRingRows + 2, kPixel = kRingVectors * lanes<E>();
  alignas(kVectorBytes) E data[kRingColumns][kRows][kPixel];
  int64_t columns = 1;  // a power of two, as few as hold a kernel: the ring shall stay in L1

  explicit Ring(int64_t dilation) {
    while (columns <= 2 * dilation) columns *= 2;
  }
  E* at(int64_t column) { return data[column & (columns - 1)][0]; }
};

// Channels [c, c + kPixel) of one band. Without dilation_w in the band: its columns are the image's.
template <bool kRowsInside, class E>
LIGHTKERNELS_INLINE void sweep_ring_nhwc(const BandNhwc<E>& b, int64_t dilation, int64_t c, Ring<E>& ring,
                                         const Clip<E>& clip) {
  constexpr int L = lanes<E>(), K = 3, R = kRingRows, N = kRingVectors, kRows = Ring<E>::kRows, kPixel = N * L;
  using V = Vec<E, L>;
  const V low = splat<L>(clip.low), high = splat<L>(clip.high);
  V weights[N][K * K], bias[N];
  unroll<N>(LIGHTKERNELS_LAMBDA(auto k) {
    bias[k] = b.bias ? load<L>(b.bias + c + k * L) : V{};
    unroll<K * K>(LIGHTKERNELS_LAMBDA(auto tap) {
      weights[k][tap] = load<L>(b.weight + tap / K * b.w_h + tap % K * b.w_w + c + k * L);
    });
  });
  auto row_exists = LIGHTKERNELS_LAMBDA(int64_t r) { return kRowsInside || (r >= b.row_begin && r < b.row_end); };
  const int64_t iw = b.column_end - b.column_begin;
  const E* x = b.x + b.column_begin * b.x_w + c;  // column 0
  int64_t entered = 0;
  for (int64_t o = 0; o < b.ow; ++o) {
    const int64_t first = o - b.column_begin;  // the column of tap 0
    for (const int64_t end = std::min(first + (K - 1) * dilation + 1, iw); entered < end; ++entered) {
      E* to = ring.at(entered);
      unroll<kRows>(LIGHTKERNELS_LAMBDA(auto r) {
        if (!row_exists(r)) return;
        unroll<N>(LIGHTKERNELS_LAMBDA(auto k) {
          store<L>(to + r * kPixel + k * L, load<L>(x + r * b.x_h + entered * b.x_w + k * L));
        });
      });
    }
    unroll<N>(LIGHTKERNELS_LAMBDA(auto k) {
      V sums[R];
      unroll<R>(LIGHTKERNELS_LAMBDA(auto i) { sums[i] = bias[k]; });
      unroll<K>(LIGHTKERNELS_LAMBDA(auto v) {
        const int64_t column = first + v * dilation;
        if (column < 0 || column >= iw) return;
        const E* from = ring.at(column) + k * L;
        unroll<kRows>(LIGHTKERNELS_LAMBDA(auto r) {
          if (!row_exists(r)) return;
          V value = load<L>(from + r * kPixel);
          keep_in_register(value);
          unroll<R>(LIGHTKERNELS_LAMBDA(auto i) {
            constexpr int u = r - i;
            if constexpr (u >= 0 && u < K) sums[i] += value * weights[k][u * K + v];
          });
        });
      });
      E* y = b.y + o * b.y_w + c + k * L;
      unroll<R>(LIGHTKERNELS_LAMBDA(auto i) {
        if (!kRowsInside && i >= b.rows) return;
        V z = sums[i];
        if (clip.smooth) z = smooth<L, E>(z, b.activation);
        store<L>(y + i * b.y_h, clamp(z, low, high));
      });
    });
  }
}

template <class E>
[[gnu::noinline]] void band_ring_nhwc(const BandNhwc<E>& band, int64_t dilation) {
  const BandNhwc<E> b = band;
  const Clip<E> clip(b.activation);
  Ring<E> ring(dilation);
  const bool rows_inside = b.row_begin == 0 && b.row_end == Ring<E>::kRows && b.rows == kRingRows;
  for_channels<Ring<E>::kPixel>(
      0, b.c, LIGHTKERNELS_LAMBDA(int64_t c) {
        if (rows_inside) {
          sweep_ring_nhwc<true>(b, dilation, c, ring, clip);
        } else {
          sweep_ring_nhwc<false>(b, dilation, c, ring, clip);
        }
      });
}

}  // namespace lightkernels::cpu
