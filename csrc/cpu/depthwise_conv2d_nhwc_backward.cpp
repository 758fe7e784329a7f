// Gradients of depthwise convolution, channels innermost: of the weight and bias, or of everything in one sweep.
#include "depthwise_conv2d_nhwc.h"
#include "depthwise_conv2d_nhwc_both.h"
#include "depthwise_conv2d_nhwc_weight.h"

namespace lightkernels::cpu {
namespace {

// The units of a batch are cut into chunks that sum apart and are then added in order: how many there are follows from
// the shape alone, so the result does not depend on the number of threads.
struct Chunks {
  static constexpr int64_t kMost = 16;
  int64_t units, count;

  Chunks(const DepthwiseConv2dParams& p, int64_t units_) : units(units_) {
    const int64_t work = p.n * p.c * (p.ih * p.iw + p.oh * p.ow), sums = (p.kh * p.kw + 1) * p.c;
    count = std::clamp<int64_t>(std::min(work / (8 * sums), work / 65536), 1, std::min(kMost, units));
  }
  int64_t begin(int64_t chunk) const { return units * chunk / count; }
};

// Sums of all chunks: [chunks, kh * kw + 1, c], the bias's gradient last.
int64_t sums_bytes(const DepthwiseConv2dParams& p) {
  return Chunks(p, Chunks::kMost).count * (p.kh * p.kw + 1) * p.c * acc_size(p);
}

// Output rows whose x and dy stay in L2 while the channels are gone through, a register's width at a time.
int64_t sweep_rows(const DepthwiseConv2dParams& p, int64_t most) {
  constexpr int64_t kSweepBytes = 256 * 1024;
  const int64_t row_bytes = (p.iw * p.stride_h + p.ow) * p.c * 4;
  return std::clamp<int64_t>(kSweepBytes / std::max<int64_t>(1, row_bytes), 1, most);
}

// Each of these writes the sums and returns how many chunks there are.
int64_t sum_fixed(const DepthwiseConv2dParams& p, float* sums, const Launch& launch) {
  const int64_t size = (p.kh * p.kw + 1) * p.c, rows = sweep_rows(p, p.oh);
  const Chunks chunks(p, bands_of(p, rows));
  with_fixed(p, [&](auto k, auto s) {
    constexpr int K = k, S = s, L = lanes<float>(), U = kSweepRows<K>;
    launch.parallel(chunks.count, 1, [&](int64_t begin, int64_t end) {
      for (int64_t chunk = begin; chunk < end; ++chunk) {
        float* to = sums + chunk * size;
        std::fill_n(to, size, 0.0f);
        for_bands(p, rows, chunks.begin(chunk), chunks.begin(chunk + 1),
                  [&](const DepthwiseConv2dParams& grid, int64_t n, int64_t oh) {
                    const int64_t oh_end = std::min(grid.oh, oh + rows);
                    for_channels_once<L>(0, p.c, [&](int64_t c, int done) {
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
  return chunks.count;
}

template <class E>
int64_t sum_any(const DepthwiseConv2dParams& p, Acc<E>* sums, const Launch& launch) {
  constexpr int L = lanes<E>();
  const int64_t taps = p.kh * p.kw, size = (taps + 1) * p.c;
  const Axis h = forward_axis(p.kh, p.stride_h, p.padding_t, p.dilation_h);
  const Axis w = forward_axis(p.kw, p.stride_w, p.padding_l, p.dilation_w);
  const ChannelMap map{1, p.multiplier};
  const Chunks chunks(p, p.n * p.oh);
  const int64_t block_size = channel_block(p), blocks = p.c < block_size + L ? 1 : p.c / block_size;
  launch.parallel(chunks.count * blocks, 1, [&](int64_t begin, int64_t end) {
    for (int64_t unit = begin; unit < end; ++unit) {
      const int64_t chunk = unit / blocks, block = unit % blocks;
      const int64_t c_begin = block * block_size, c_end = block == blocks - 1 ? p.c : c_begin + block_size;
      Acc<E>* to = sums + chunk * size;
      for (int64_t tap = 0; tap <= taps; ++tap) std::fill(to + tap * p.c + c_begin, to + tap * p.c + c_end, 0);
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
  return chunks.count;
}

// Writes dx too.
int64_t sum_both(const DepthwiseConv2dParams& input, const DepthwiseConv2dParams& p, const float* weight, float* sums,
                 const Launch& launch) {
  const int64_t size = (p.kh * p.kw + 1) * p.c;
  int64_t chunk_count = 1;
  with_fixed(p, [&](auto k, auto s) {
    constexpr int K = k, S = s, L = lanes<float>();
    if constexpr (kSweepsBoth<K>) {
      const int64_t first = std::min<int64_t>(0, floor_div(p.padding_t, S));
      const int64_t groups = std::max(p.oh, floor_div(p.ih + p.padding_t - 1, S) + 1) - first;
      const int64_t rows = sweep_rows(p, groups), bands = (groups + rows - 1) / rows;
      const Chunks chunks(p, p.n * bands);
      const bool streams = streams_output(turned(input));
      chunk_count = chunks.count;
      launch.parallel(chunks.count, 1, [&](int64_t begin, int64_t end) {
        for (int64_t chunk = begin; chunk < end; ++chunk) {
          float* to = sums + chunk * size;
          std::fill_n(to, size, 0.0f);
          for (int64_t unit = chunks.begin(chunk); unit < chunks.begin(chunk + 1); ++unit) {
            const int64_t n = unit / bands, g = first + unit % bands * rows, g_end = std::min(g + rows, first + groups);
            for_channels_once<L>(0, p.c, [&](int64_t c, int done) {
              groups_backward_nhwc<K, S, float>(input, p, weight, n, g, g_end, c, done, streams, to);
            });
          }
        }
        if (streams) finish_streams();
      });
    }
  });
  return chunk_count;
}

// [chunks, taps + 1, c] to dweight [c, taps] and dbias [c].
template <class E>
void finish(const DepthwiseConv2dParams& p, Acc<E>* sums, int64_t chunk_count, const Launch& launch) {
  using A = Acc<E>;
  const int64_t taps = p.kh * p.kw, size = (taps + 1) * p.c;
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

int64_t backward_weight_nhwc_workspace(const DepthwiseConv2dParams& p) { return sums_bytes(p); }

void backward_weight_nhwc(const DepthwiseConv2dParams& p, const Launch& launch) {
  with_type(p.dtype, [&](auto type) {
    using E = decltype(type);
    auto* sums = static_cast<Acc<E>*>(launch.workspace);
    if constexpr (std::is_same_v<E, float>) {
      if (is_fixed_nhwc(p)) return finish<E>(p, sums, sum_fixed(p, sums, launch), launch);
    }
    finish<E>(p, sums, sum_any<E>(p, sums, launch), launch);
  });
}

// Narrow rows are all edges: two kernels with tiles of their own are faster (docs/measured.md).
bool sweeps_both_nhwc(const DepthwiseConv2dParams& p) {
  return kSweepsBoth<3> && is_fixed_nhwc(p) && p.kh == 3 && p.dilation_h == 1 && p.dilation_w == 1 && p.ow > 8;
}

int64_t backward_nhwc_workspace(const DepthwiseConv2dParams& p) { return sums_bytes(p) + packed_bytes(p); }

void backward_nhwc(const DepthwiseConv2dParams& input, const DepthwiseConv2dParams& p, const Launch& launch) {
  auto* sums = static_cast<float*>(launch.workspace);
  auto* weight = reinterpret_cast<float*>(static_cast<char*>(launch.workspace) + sums_bytes(p));
  pack<float>(input, 1, weight);
  finish<float>(p, sums, sum_both(input, p, weight, sums, launch), launch);
}

}  // namespace lightkernels::cpu
