// Depthwise convolution, channels innermost: which kernel computes what, and how work is cut into units.
//
// The gradient of the input is a convolution too: at stride 1 of dy with the turned kernel, at stride s one convolution
// for each of the s * s phases of dx, each with the taps that reach it. So forward and backward share all kernels.
#include "depthwise_conv2d_nhwc_fixed.h"
#include "depthwise_conv2d_nhwc_rows.h"
#include "depthwise_conv2d_nhwc_weight.h"

namespace lightkernels::cpu {
namespace {

bool is_fixed(const DepthwiseConv2dParams& p) {
  return p.dtype == DType::kFloat32 && p.kh == p.kw && (p.kh == 3 || p.kh == 5 || p.kh == 7) &&
         p.stride_h == p.stride_w && p.multiplier == 1 && p.c >= lanes<float>() &&
         (p.stride_h == 1 || (p.stride_h == 2 && p.dilation_h == 1 && p.dilation_w == 1));
}

// Calls f(K, S) with the kernel size and stride of a fixed kernel as constants.
template <class F>
void with_fixed(const DepthwiseConv2dParams& p, F&& f) {
  using std::integral_constant;
  auto with_stride = [&](auto k) {
    if (p.stride_h == 1) return f(k, integral_constant<int, 1>{});
    f(k, integral_constant<int, 2>{});
  };
  if (p.kh == 3) return with_stride(integral_constant<int, 3>{});
  if (p.kh == 5) return with_stride(integral_constant<int, 5>{});
  with_stride(integral_constant<int, 7>{});
}

// --- weights as the channels-innermost kernels want them: Acc<E>, channels side by side ---

bool needs_packing(const DepthwiseConv2dParams& p, int64_t layers) {
  return p.weight_c != 1 || size_of(p.dtype) == 2 || layers > 1;
}

int64_t packed_bytes(const DepthwiseConv2dParams& p) { return p.kh * p.kw * p.c * acc_size(p); }

template <class E>
struct Weight {
  const Acc<E>* data;   // tap (0, 0) of channel 0 of layer 0; channels are next to each other
  int64_t layer, h, w;  // strides of layers and taps
};

// [layers, kh, kw, c / layers] from channel `c * layers + layer`. Blocks of 16 move whole cache lines on both sides.
template <class E>
void pack(const DepthwiseConv2dParams& p, int64_t layers, Acc<E>* packed) {
  const E* weight = static_cast<const E*>(p.weight);
  const int64_t taps = p.kh * p.kw, channels = p.c / layers;
  for (int64_t layer = 0; layer < layers; ++layer, packed += taps * channels) {
    for (int64_t c0 = 0; c0 < channels; c0 += 16) {
      const int64_t count = std::min<int64_t>(16, channels - c0);
      for (int64_t u = 0; u < p.kh; ++u) {
        for (int64_t v = 0; v < p.kw; ++v) {
          const E* from = weight + (c0 * layers + layer) * p.weight_c + u * p.weight_h + v * p.weight_w;
          Acc<E>* to = packed + (u * p.kw + v) * channels + c0;
          for (int64_t c = 0; c < count; ++c) to[c] = load<1>(from + c * layers * p.weight_c)[0];
        }
      }
    }
  }
}

template <class E>
Weight<E> weight_of(const DepthwiseConv2dParams& p, int64_t layers, void* workspace) {
  if constexpr (std::is_same_v<E, Acc<E>>) {
    if (!needs_packing(p, layers)) return {static_cast<const E*>(p.weight), 0, p.weight_h, p.weight_w};
  }
  auto* packed = static_cast<Acc<E>*>(workspace);
  pack<E>(p, layers, packed);
  const int64_t channels = p.c / layers;
  return {packed, p.kh * p.kw * channels, p.kw * channels, channels};
}

// The bias in Acc<E>, or null.
template <class E>
const Acc<E>* bias_of(const DepthwiseConv2dParams& p, void* workspace) {
  if constexpr (std::is_same_v<E, Acc<E>>) {
    return static_cast<const E*>(p.bias);
  } else {
    if (!p.bias) return nullptr;
    auto* bias = static_cast<float*>(workspace);
    for (int64_t c = 0; c < p.c; ++c) bias[c] = load<1>(static_cast<const E*>(p.bias) + c)[0];
    return bias;
  }
}

// --- channels innermost ---

// At stride 1 the
// transposed convolution is a forward one, of dy with the turned kernel.
DepthwiseConv2dParams turned(const DepthwiseConv2dParams& p) {
  DepthwiseConv2dParams t = p;
  t.x = p.y, t.x_strides = p.y_strides, t.ih = p.oh, t.iw = p.ow;
  t.y = p.x, t.y_strides = p.x_strides, t.oh = p.ih, t.ow = p.iw;
  t.padding_t = (p.kh - 1) * p.dilation_h - p.padding_t, t.padding_l = (p.kw - 1) * p.dilation_w - p.padding_l;
  t.bias = nullptr, t.activation = Activation::kNone;
  return t;
}

// A convolution of dilation (dh, dw) and stride 1 is dh * dw convolutions without dilation, each on every dh-th row and
// dw-th column. Grid (i, j) has the outputs i + dh * a, j + dw * b; without dilation there is one grid, p itself.
DepthwiseConv2dParams grid_of(const DepthwiseConv2dParams& p, int64_t i, int64_t j) {
  DepthwiseConv2dParams g = p;
  auto cut = [](int64_t phase, int64_t d, int64_t& in, int64_t& out, int64_t& padding, int64_t& in_stride,
                int64_t& out_stride) {
    const int64_t whole = floor_div(phase - padding, d), start = phase - padding - whole * d;
    in = (in - start + d - 1) / d, out = (out - phase + d - 1) / d;
    padding = -whole;
    in_stride *= d, out_stride *= d;
    return start;
  };
  const int64_t row = cut(i, p.dilation_h, g.ih, g.oh, g.padding_t, g.x_strides.h, g.y_strides.h);
  const int64_t column = cut(j, p.dilation_w, g.iw, g.ow, g.padding_l, g.x_strides.w, g.y_strides.w);
  g.x = static_cast<float*>(p.x) + row * p.x_strides.h + column * p.x_strides.w;
  g.y = static_cast<float*>(p.y) + i * p.y_strides.h + j * p.y_strides.w;
  g.dilation_h = g.dilation_w = 1;
  return g;
}

// f(grid, n, band) for all bands of R output rows of all grids; units count up to `bands_of(p, R)`.
int64_t grids_h(const DepthwiseConv2dParams& p) { return std::min(p.dilation_h, p.oh); }
int64_t grids_w(const DepthwiseConv2dParams& p) { return std::min(p.dilation_w, p.ow); }
int64_t bands_of(const DepthwiseConv2dParams& p, int64_t rows) {
  const int64_t per_grid = ((p.oh - 1) / p.dilation_h + rows) / rows;
  return p.n * grids_h(p) * grids_w(p) * per_grid;
}
template <class F>
void for_bands(const DepthwiseConv2dParams& p, int64_t rows, int64_t begin, int64_t end, F&& f) {
  const int64_t grids = grids_h(p) * grids_w(p), per_grid = bands_of(p, rows) / (p.n * grids);
  for (int64_t unit = begin; unit < end; ++unit) {
    const int64_t grid = unit / per_grid % grids, oh = unit % per_grid * rows;
    const DepthwiseConv2dParams g = grid_of(p, grid / grids_w(p), grid % grids_w(p));
    if (oh < g.oh && g.ow > 0) f(g, unit / per_grid / grids, oh);
  }
}

void fixed_nhwc(const DepthwiseConv2dParams& p, const Weight<float>& weight, const Launch& launch) {
  with_fixed(p, [&](auto k, auto s) {
    constexpr int K = k, S = s;
    const bool streams = S == 1 && streams_output(p);
    auto bands = [&](auto rows, auto kernel) {
      constexpr int R = rows;
      launch.parallel(bands_of(p, R), grain_of(p, bands_of(p, R)), [&](int64_t begin, int64_t end) {
        for_bands(p, R, begin, end, [&](const DepthwiseConv2dParams& grid, int64_t n, int64_t oh) {
          BandNhwc<float> band = band_of<K, S, R, float>(grid, n, oh);
          band.weight = weight.data, band.w_h = weight.h, band.w_w = weight.w;
          band.bias = static_cast<const float*>(p.bias), band.far = bytes_of(p) > kFarBytes;
          band.stream = streams;
          kernel(band);
        });
        if (streams) finish_streams();
      });
    };
    if constexpr (K == 3 && kRegisters == 32) {
      if (p.ow >= kSweepColumns && p.dilation_h == 1 && p.dilation_w == 1) {
        return bands(std::integral_constant<int, kSweepBandRows>{}, band_sweep_nhwc<K, S, kSweepBandRows, float>);
      }
    }
    bands(std::integral_constant<int, kTileRows<K, S>>{}, band_nhwc<K, S, kTileRows<K, S>, kTileColumns<K, S>, float>);
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

// Channels that a row is worked through at a time: few where the kernel is large, so that its weights stay cached.
int64_t channel_block(const DepthwiseConv2dParams& p) { return p.kh * p.kw > 64 ? 16 : kChannelBlock; }

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
  const Weight<E> weight = weight_of<E>(p, conv.layers, launch.workspace);
  if constexpr (std::is_same_v<E, float>) {
    if (is_fixed(p) && !transposed) return fixed_nhwc(p, weight, launch);
    if (is_fixed(p) && p.stride_h == 1) {
      return fixed_nhwc(turned(p),
                        {weight.data + (p.kh - 1) * weight.h + (p.kw - 1) * weight.w, 0, -weight.h, -weight.w}, launch);
    }
    if (is_fixed(p)) return fixed_transposed_nhwc(p, weight, launch);
  }
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

// --- gradient of the weight ---

// Rows of the batch are cut
// into chunks that sum apart and are then added in order: how many there are follows from the shape alone, so the
// result does not depend on the number of threads.
struct Chunks {
  static constexpr int64_t kMost = 16;
  int64_t units, count;

  Chunks(const DepthwiseConv2dParams& p, int64_t units_) : units(units_) {
    const int64_t work = p.n * p.c * (p.ih * p.iw + p.oh * p.ow), sums = (p.kh * p.kw + 1) * p.c;
    count = std::clamp<int64_t>(std::min(work / (8 * sums), work / 65536), 1, std::min(kMost, units));
  }
  int64_t begin(int64_t chunk) const { return units * chunk / count; }
};

constexpr int64_t kSweepBytes = 256 * 1024;

template <class E>
void backward_weight_typed(const DepthwiseConv2dParams& p, const Launch& launch) {
  using A = Acc<E>;
  A* sums = static_cast<A*>(launch.workspace);  // [chunks, kh * kw + 1, c], the bias's gradient last
  const int64_t taps = p.kh * p.kw, size = (taps + 1) * p.c;
  int64_t chunk_count = 1;
  if (is_fixed(p)) {
    if constexpr (std::is_same_v<E, float>) {
      with_fixed(p, [&](auto k, auto s) {
        constexpr int K = k, S = s, L = lanes<float>();
        // Rows whose x and dy stay in L2 while the channels are gone through, a register's width at a time.
        const int64_t row_bytes = (p.iw * S + p.ow) * p.c * 4;
        const int64_t rows = std::clamp<int64_t>(kSweepBytes / std::max<int64_t>(1, row_bytes), 1, p.oh);
        const Chunks chunks(p, bands_of(p, rows));
        chunk_count = chunks.count;
        launch.parallel(chunks.count, 1, [&](int64_t begin, int64_t end) {
          for (int64_t chunk = begin; chunk < end; ++chunk) {
            A* to = sums + chunk * size;
            std::fill_n(to, size, A(0));
            for_bands(p, rows, chunks.begin(chunk), chunks.begin(chunk + 1),
                      [&](const DepthwiseConv2dParams& grid, int64_t n, int64_t oh) {
                        const int64_t oh_end = std::min(grid.oh, oh + rows);
                        for_channels_once<L>(0, p.c, [&](int64_t c, int done) {
                          constexpr int U = kSweepRows<K>;
                          int64_t u = 0;
                          for (; u + U <= K; u += U) {
                            rows_backward_weight_nhwc<K, S, U, float>(grid, n, oh, oh_end, u, c, done, p.c, to);
                          }
                          for (; u < K; ++u) {
                            rows_backward_weight_nhwc<K, S, 1, float>(grid, n, oh, oh_end, u, c, done, p.c, to);
                          }
                        });
                      });
          }
        });
      });
    }
  } else {
    constexpr int L = lanes<E>();
    const Axis h = forward_axis(p.kh, p.stride_h, p.padding_t, p.dilation_h);
    const Axis w = forward_axis(p.kw, p.stride_w, p.padding_l, p.dilation_w);
    const ChannelMap map{1, p.multiplier};
    const Chunks chunks(p, p.n * p.oh);
    chunk_count = chunks.count;
    const int64_t block_size = channel_block(p), blocks = p.c < block_size + L ? 1 : p.c / block_size;
    launch.parallel(chunks.count * blocks, 1, [&](int64_t begin, int64_t end) {
      for (int64_t unit = begin; unit < end; ++unit) {
        const int64_t chunk = unit / blocks, block = unit % blocks;
        const int64_t c_begin = block * block_size, c_end = block == blocks - 1 ? p.c : c_begin + block_size;
        A* to = sums + chunk * size;
        for (int64_t tap = 0; tap <= taps; ++tap) std::fill(to + tap * p.c + c_begin, to + tap * p.c + c_end, A(0));
        for (int64_t at = chunks.begin(chunk); at < chunks.begin(chunk + 1); ++at) {
          const int64_t n = at / p.oh, oh = at % p.oh;
          RowNhwc<E> row{};
          row.x_w = p.x_strides.w, row.iw = p.iw, row.first = w.first, row.step = w.step, row.dilation = w.dilation;
          row.kw = p.kw, row.map = map, row.ow = p.ow, row.y_w = p.y_strides.w;
          row.y = static_cast<E*>(p.y) + n * p.y_strides.n + oh * p.y_strides.h;
          const E* x = static_cast<const E*>(p.x) + n * p.x_strides.n;
          const auto [u_begin, u_end] = h.inside(oh, p.ih);
          for (int64_t u = u_begin; u < u_end; ++u) {
            row.x = x + (h.first + oh * h.step + u * h.dilation) * p.x_strides.h;
            row_backward_weight_any(row, c_begin, c_end, p.c, to + u * p.kw * p.c);
          }
          sum_row_nhwc(row, c_begin, c_end, to + taps * p.c);
        }
      }
    });
  }
  // [chunks, taps + 1, c] to [c, taps] and [c].
  E *dweight = static_cast<E*>(p.weight), *dbias = static_cast<E*>(p.bias);
  launch.parallel(p.c, 256, [&](int64_t begin, int64_t end) {
    for (int64_t chunk = 1; chunk < chunk_count; ++chunk) {
      for (int64_t tap = 0; tap <= taps; ++tap) {
        A *to = sums + tap * p.c, *from = to + chunk * size;
        for (int64_t c = begin; c < end; ++c) to[c] += from[c];
      }
    }
    for (int64_t c0 = begin; c0 < end; c0 += 16) {  // blocks of whole cache lines on both sides
      for (int64_t tap = 0; tap < taps; ++tap) {
        for (int64_t c = c0; c < std::min(end, c0 + 16); ++c) {
          store<1>(dweight + c * taps + tap, Vec<A, 1>{sums[tap * p.c + c]});
        }
      }
    }
    for (int64_t c = begin; dbias && c < end; ++c) store<1>(dbias + c, Vec<A, 1>{sums[taps * p.c + c]});
  });
}

}  // namespace

int64_t convolve_nhwc_workspace(const DepthwiseConv2dParams& p, bool transposed) {
  const int64_t bias = size_of(p.dtype) == 2 && p.bias && !transposed ? p.c * acc_size(p) : 0;
  return (needs_packing(p, transposed ? p.multiplier : 1) ? packed_bytes(p) : 0) + bias;
}

int64_t backward_weight_nhwc_workspace(const DepthwiseConv2dParams& p) {
  return Chunks(p, Chunks::kMost).count * (p.kh * p.kw + 1) * p.c * acc_size(p);
}

void convolve_nhwc(const DepthwiseConv2dParams& p, bool transposed, const Launch& launch) {
  with_type(p.dtype, [&](auto type) { convolve_typed<decltype(type)>(p, transposed, launch); });
}

void backward_weight_nhwc(const DepthwiseConv2dParams& p, const Launch& launch) {
  with_type(p.dtype, [&](auto type) { backward_weight_typed<decltype(type)>(p, launch); });
}

}  // namespace lightkernels::cpu
