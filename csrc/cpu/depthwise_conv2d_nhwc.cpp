// Depthwise convolution, channels innermost: which kernel computes what, and how work is cut into units.
//
// The gradient of the input is a convolution too: at stride 1 of dy with the turned kernel, at stride s one convolution
// for each of the s * s phases of dx, each with the taps that reach it. So forward and backward share all kernels.
#include "depthwise_conv2d_nhwc.h"

#include "depthwise_conv2d_nhwc_ring.h"
#include "depthwise_conv2d_nhwc_rows.h"

namespace lightkernels::cpu {
namespace {

void fixed_nhwc(const DepthwiseConv2dParams& p, const Weight<float>& weight, const Launch& launch) {
  with_fixed(p, [&](auto k, auto s) {
    constexpr int K = k, S = s;
    const bool streams = S == 1 && streams_output(p);
    auto bands = [&](const DepthwiseConv2dParams& q, auto rows, auto kernel) {
      constexpr int R = rows;
      launch.parallel(bands_of(q, R), grain_of(q, bands_of(q, R)), [&](int64_t begin, int64_t end) {
        for_bands(q, R, begin, end, [&](const DepthwiseConv2dParams& grid, int64_t n, int64_t oh) {
          BandNhwc<float> band = band_of<K, S, R, float>(grid, n, oh);
          band.weight = weight.data, band.w_h = weight.h, band.w_w = weight.w;
          band.bias = static_cast<const float*>(p.bias), band.far = bytes_of(p) > kFarBytes;
          band.stream = streams;
          kernel(band);
        });
        if (streams) finish_streams();
      });
    };
    if constexpr (K == 3 && S == 1) {
      if (rings_nhwc(p)) {
        DepthwiseConv2dParams rows = p;
        rows.dilation_w = 1;
        return bands(rows, std::integral_constant<int, kRingRows>{},
                     [&](const BandNhwc<float>& band) { band_ring_nhwc(band, p.dilation_w); });
      }
    }
    if constexpr (K == 3 && kRegisters == 32) {
      if (p.ow >= kSweepColumns && p.dilation_h == 1 && p.dilation_w == 1) {
        return bands(p, std::integral_constant<int, kSweepBandRows>{}, band_sweep_nhwc<K, S, kSweepBandRows, float>);
      }
    }
    bands(p, std::integral_constant<int, kTileRows<K, S>>{},
          band_nhwc<K, S, kTileRows<K, S>, kTileColumns<K, S>, float>);
  });
}

// dx of a fixed kernel at stride 2, in bands of rows.
void fixed_transposed_nhwc(const DepthwiseConv2dParams& p, const Weight<float>& weight, const Launch& launch) {
  with_fixed(p, [&](auto k, auto) {
    constexpr int K = k, S = 2, R = kRegisters == 32 ? 4 : 2, T = 4, kBefore = (K - 1) / S;
    // Coordinates start at a multiple of S at or before the first row and column of dx.
    const int64_t top = floor_div(p.padding_t, S) * S, left = floor_div(p.padding_l, S) * S;
    const int64_t first_row = p.padding_t - top, first_column = p.padding_l - left;
    const int64_t bands = (first_row + p.ih + R - 1) / R;
    const bool streams = streams_output(turned(p));
    launch.parallel(p.n * bands, grain_of(p, p.n * bands), [&](int64_t begin, int64_t end) {
      for (int64_t unit = begin; unit < end; ++unit) {
        const int64_t n = unit / bands, row = unit % bands * R;
        const int64_t oh = (top + row) / S - kBefore,
                      ow = left / S - kBefore;  // of input (0, 0); top + row >= 0 or even
        BandNhwc<float> b{};
        b.x_h = p.y_strides.h, b.x_w = p.y_strides.w, b.y_h = p.x_strides.h, b.y_w = p.x_strides.w;
        b.x = static_cast<float*>(p.y) + n * p.y_strides.n + oh * b.x_h + ow * b.x_w;
        b.y = static_cast<float*>(p.x) + n * p.x_strides.n + (row - first_row) * b.y_h - first_column * b.y_w;
        b.weight = weight.data, b.w_h = weight.h, b.w_w = weight.w;
        b.c = p.c, b.ow = p.iw + first_column;
        b.row_begin = -oh, b.row_end = p.oh - oh, b.column_begin = -ow, b.column_end = p.ow - ow;
        b.first_row = first_row - row, b.rows = first_row + p.ih - row, b.first_column = first_column;
        b.stream = streams;
        band_transposed_nhwc<K, S, R, T>(b);
      }
      if (streams) finish_streams();
    });
  });
}

// f(n, row, c_begin, c_end) for every row and block of channels, in parallel; a block is kept while rows advance, so
// that the rows two outputs share are still in cache.
template <int L, class F>
void for_rows(const DepthwiseConv2dParams& p, int64_t rows, int64_t channels, int64_t block_size, const Launch& launch,
              F&& f) {
  const int64_t blocks = channels < block_size + L ? 1 : channels / block_size;
  const int64_t units = p.n * blocks * rows;
  launch.parallel(units, grain_of(p, units), [&](int64_t begin, int64_t end) {
    for (int64_t unit = begin; unit < end; ++unit) {
      const int64_t block = unit / rows % blocks;
      f(unit / rows / blocks, unit % rows, block * block_size,
        block == blocks - 1 ? channels : block * block_size + block_size);
    }
  });
}

template <class E>
void convolve_typed(const DepthwiseConv2dParams& p, bool transposed, const Launch& launch) {
  const Convolution conv(p, transposed);
  if constexpr (std::is_same_v<E, float>) {
    if (is_fixed_nhwc(p)) {
      const bool as_forward = transposed && p.stride_h == 1;
      const DepthwiseConv2dParams q = as_forward ? turned(p) : p;
      const Weight<E> weight = weight_of<E>(q, 1, launch.workspace);
      return transposed && !as_forward ? fixed_transposed_nhwc(q, weight, launch) : fixed_nhwc(q, weight, launch);
    }
  }
  const Weight<E> weight = weight_of<E>(p, conv.layers, launch.workspace);
  const Acc<E>* bias = transposed ? nullptr : bias_of<E>(p, static_cast<char*>(launch.workspace) + packed_bytes(p));
  const int64_t phases_h = conv.phases_h(p), phases_w = conv.phases_w(p);
  for_rows<lanes<E>()>(
      p, conv.oh, conv.c, channel_block(p), launch, [&](int64_t n, int64_t i, int64_t c_begin, int64_t c_end) {
        const Axis h = conv.axis_h(p, i % phases_h);
        const auto [u_begin, u_end] = h.inside(i / phases_h, conv.ih);
        for (int64_t phase = 0; phase < std::min(phases_w, conv.ow); ++phase) {
          const Axis w = conv.axis_w(p, phase);
          RowNhwc<E> row{};
          row.x = static_cast<const E*>(conv.in) + n * conv.in_strides.n +
                  (h.first + i / phases_h * h.step + u_begin * h.dilation) * conv.in_strides.h;
          row.x_layer = 1, row.x_row = h.dilation * conv.in_strides.h, row.x_w = conv.in_strides.w;
          row.iw = conv.iw, row.first = w.first, row.step = w.step, row.dilation = w.dilation;
          row.weight = weight.data + (h.tap + u_begin * h.tap_step) * weight.h + w.tap * weight.w;
          row.w_layer = weight.layer, row.w_row = h.tap_step * weight.h, row.w_w = w.tap_step * weight.w;
          row.layers = conv.layers, row.kh = u_end - u_begin, row.kw = w.count;
          row.bias = bias, row.activation = transposed ? Activation::kNone : p.activation;
          row.y =
              static_cast<E*>(conv.out) + n * conv.out_strides.n + i * conv.out_strides.h + phase * conv.out_strides.w;
          row.y_w = phases_w * conv.out_strides.w, row.ow = (conv.ow - phase + phases_w - 1) / phases_w;
          row.map = conv.map;
          row_nhwc_any(row, c_begin, c_end);
        }
      });
}

}  // namespace

int64_t convolve_nhwc_workspace(const DepthwiseConv2dParams& p, bool transposed) {
  const int64_t bias = size_of(p.dtype) == 2 && p.bias && !transposed ? p.c * acc_size(p) : 0;
  return (needs_packing(p, transposed ? p.multiplier : 1) ? packed_bytes(p) : 0) + bias;
}

void convolve_nhwc(const DepthwiseConv2dParams& p, bool transposed, const Launch& launch) {
  with_type(p.dtype, [&](auto type) { convolve_typed<decltype(type)>(p, transposed, launch); });
}

}  // namespace lightkernels::cpu
