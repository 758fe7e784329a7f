// The weight's gradient of a dense convolution: for every tap, dy turned x x, with k over the pixels that the tap
// reads. Channels are innermost in both factors, so that a tile's rows (output channels) and columns (input channels)
// are read where they lie; what lies otherwise is brought into that order first.
#include "dense_conv2d.h"
#include "pack.h"

namespace lightkernels::cpu {
namespace {

constexpr int64_t kBandBytes = 384 << 10;  // of dy and x that all taps are computed from while they are in L2
constexpr int64_t kBandPixels = 2048;      // a longer sum is one of sums, which keeps its digits

// A tensor [n, h, w, c].
template <class S>
struct Dense {
  const S* data;
  int64_t n, h, w;  // strides
};

template <class E>
class WeightGradient {
  using S = Acc<E>;
  static constexpr int L = lanes<S>();

 public:
  WeightGradient(const DenseConv2dParams& params, void* memory)
      : p(params),
        h(forward_axis(p.kh, p.stride_h, p.padding_t, p.dilation_h)),
        w(forward_axis(p.kw, p.stride_w, p.padding_l, p.dilation_w)) {
    stage_x = !std::is_same_v<E, S> || p.x_strides.c != 1;
    stage_dy = !std::is_same_v<E, S> || p.y_strides.c != 1;
    taps = p.kh * p.kw;
    direct = std::is_same_v<E, S> && taps == 1;
    char* at = static_cast<char*>(memory);
    auto take = [&](int64_t count) {
      char* taken = at;
      at += aligned(count * int64_t{sizeof(S)});
      return reinterpret_cast<S*>(taken);
    };
    staged_x = stage_x ? take(p.n * p.ih * p.iw * p.groups * p.ci) : nullptr;
    staged_dy = stage_dy ? take(p.n * p.oh * p.ow * p.groups * p.co) : nullptr;
    sums = direct ? static_cast<S*>(p.weight) : take(taps * p.groups * p.co * p.ci);
    bytes = at - static_cast<char*>(memory);
  }

  int64_t workspace() const { return bytes; }

  void run(const Launch& launch) {
    x = dense(p.x, p.x_strides, p.ih, p.iw, p.groups * p.ci, staged_x, launch);
    dy = dense(p.y, p.y_strides, p.oh, p.ow, p.groups * p.co, staged_dy, launch);
    products(launch);
    if (!direct) unpack(launch);
    if (p.dbias) bias(launch);
  }

 private:
  static constexpr int64_t kRows = 2 * kTileRows<S, 2>;  // output channels of a unit

  Dense<S> dense(const void* from, const Strides4& s, int64_t rows, int64_t columns, int64_t c, S* staged,
                 const Launch& launch) const {
    if (!staged) return {static_cast<const S*>(from), s.n, s.h, s.w};
    launch.parallel(p.n * rows, 1 + (1 << 15) / std::max<int64_t>(1, columns * c), [&](int64_t begin, int64_t end) {
      for (int64_t unit = begin; unit < end; ++unit) {
        const E* row = static_cast<const E*>(from) + unit / rows * s.n + unit % rows * s.h;
        innermost<E>(row, s.w, s.c, columns, c, staged + unit * columns * c);
      }
    });
    return {staged, rows * columns * c, columns * c, c};
  }

  void products(const Launch& launch) const {
    const int64_t vectors = (p.ci + L - 1) / L, panels = panel_count(vectors), chunks = (p.co + kRows - 1) / kRows;
    const int64_t units = p.groups * taps * chunks * panels;
    const int64_t work = p.n * p.oh * p.ow * p.groups * p.co * p.ci * taps;
    const int64_t row_bytes = p.ow * (p.groups * (p.co + p.ci)) * int64_t{sizeof(S)};
    const int64_t band =
        std::max<int64_t>(1, std::min(kBandBytes / std::max<int64_t>(row_bytes, 1), kBandPixels / p.ow));
    launch.parallel(units, grain_of(units, work), [&](int64_t begin, int64_t end) {
      for (int64_t n = 0; n < p.n; ++n) {
        for (int64_t i = 0; i < p.oh; i += band) {
          for (int64_t unit = begin; unit < end; ++unit) {
            const auto [first, width] = panel_at(vectors, unit % panels);
            const int64_t o = unit / panels % chunks * kRows, tap = unit / panels / chunks % taps;
            const int64_t group = unit / panels / chunks / taps;
            for_tiles(std::min(kRows, p.co - o), tile_rows<S>(width), [&](int64_t at, int rows) {
              one_tile(n, i, std::min(p.oh, i + band), group, tap, o + at, rows, first * L, width, n == 0 && i == 0);
            });
          }
        }
      }
    });
  }

  // Adds the products of rows [i_begin, i_end) to dweight[o .. o + rows, k .. k + width * L] of a tap.
  void one_tile(int64_t n, int64_t i_begin, int64_t i_end, int64_t group, int64_t tap, int64_t o, int rows, int64_t k,
                int width, bool start) const {
    Tile<S> tile{};
    tile.rows = rows, tile.vectors = width, tile.columns = std::min<int64_t>(width * L, p.ci - k);
    tile.c = sums + ((tap * p.groups + group) * p.co + o) * p.ci + k, tile.c_step = p.ci;
    tile.accumulate = !start;
    tile.low = -Limits<S>::infinity(), tile.high = Limits<S>::infinity();
    tile.a_step = dy.w, tile.b_step = w.step * x.w;
    const S* a = dy.data + n * dy.n + group * p.co + o;
    const S* b = x.data + n * x.n + group * p.ci + k;
    const int64_t u = tap / p.kw, v = tap % p.kw;
    const auto [i0, i1] = outputs_of(h, u, p.ih, i_begin, i_end);
    const auto [j0, j1] = outputs_of(w, v, p.iw, 0, p.ow);
    const int64_t iw = w.first + j0 * w.step + v * w.dilation;
    const bool merges = j0 == 0 && j1 == p.ow && dy.h == p.ow * dy.w && h.step * x.h == p.ow * tile.b_step;
    const int64_t count = j0 < j1 && i0 < i1 ? (merges ? 1 : i1 - i0) : 0;
    Segment<S> list[kMostSegments];
    if (count == 0 && tile.accumulate) return;
    multiply_in_turns(
        tile, count,
        [&](int64_t from, int64_t to) {
          for (int64_t s = from; s < to; ++s) {
            const int64_t i = i0 + s, ih = h.first + i * h.step + u * h.dilation;
            list[s - from] = {a + i * dy.h + j0 * dy.w, b + ih * x.h + iw * x.w, merges ? (i1 - i0) * p.ow : j1 - j0};
          }
          return list;
        },
        Form::kColumnsMasked);
  }

  // Outputs in [begin, end) whose tap k lies inside.
  static std::pair<int64_t, int64_t> outputs_of(const Axis& axis, int64_t k, int64_t size, int64_t begin, int64_t end) {
    const int64_t first = axis.first + k * axis.dilation;
    const int64_t from = first >= 0 ? 0 : (-first + axis.step - 1) / axis.step;
    const int64_t to = first >= size ? 0 : (size - 1 - first) / axis.step + 1;
    return {std::max(begin, from), std::min(end, to)};
  }

  void unpack(const Launch& launch) const {
    const int64_t rows = p.groups * p.co;
    launch.parallel(rows, 1 + 32768 / std::max<int64_t>(1, p.ci * taps), [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row) {
        E* to = static_cast<E*>(p.weight) + row * p.weight_strides.n;
        for (int64_t k = 0; k < p.ci; ++k) {
          for (int64_t tap = 0; tap < taps; ++tap) {
            const S value = sums[(tap * rows + row) * p.ci + k];
            store<1>(to + k * p.weight_strides.c + tap / p.kw * p.weight_strides.h + tap % p.kw * p.weight_strides.w,
                     Vec<S, 1>{value});
          }
        }
      }
    });
  }

  void bias(const Launch& launch) const {
    const int64_t c = p.groups * p.co, units = (c + L - 1) / L;
    launch.parallel(units, grain_of(units, p.n * p.oh * p.ow * c), [&](int64_t begin, int64_t end) {
      for (int64_t unit = begin; unit < end; ++unit) {
        const int64_t count = std::min<int64_t>(L, c - unit * L);
        Vec<S, L> total{};
        for (int64_t n = 0; n < p.n; ++n) {
          for (int64_t i = 0; i < p.oh; ++i) {
            Vec<S, L> row{};
            const S* from = dy.data + n * dy.n + i * dy.h + unit * L;
            for (int64_t j = 0; j < p.ow; ++j, from += dy.w) row += load_up_to<L>(from, count);
            total += row;
          }
        }
        store_up_to<L>(static_cast<E*>(p.dbias) + unit * L, total, count);
      }
    });
  }

  DenseConv2dParams p;
  Axis h, w;
  bool stage_x, stage_dy, direct;
  int64_t taps, bytes;
  S *staged_x, *staged_dy, *sums;  // sums: [taps, groups * co, ci]
  Dense<S> x, dy;
};

}  // namespace

int64_t dense_weight_workspace(const DenseConv2dParams& p) {
  return with_type(p.dtype, [&](auto type) { return WeightGradient<decltype(type)>(p, nullptr).workspace(); });
}

void dense_backward_weight(const DenseConv2dParams& p, const Launch& launch) {
  with_type(p.dtype, [&](auto type) { WeightGradient<decltype(type)>(p, launch.workspace).run(launch); });
}

}  // namespace lightkernels::cpu
