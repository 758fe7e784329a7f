// The weight's gradient of a dense convolution: for every tap, dy turned x x, with k over the pixels that the tap
// reads. A tile's rows are channels of one factor, which is read where it lies, channels or pixels innermost; its
// columns are channels of the other, which come innermost first where they are not. Taps of few channels that lie side
// by side are columns of one product: the three of a 3x3 stem are 9. Where Winograd's tiles win, they make the
// products.
#include "dense_conv2d.h"
#include "dense_conv2d_winograd.h"
#include "pack.h"

namespace lightkernels::cpu {
namespace {

constexpr int64_t kBandBytes = 384 << 10;  // of dy and x that all taps are computed from while they are in L2
constexpr int64_t kBandPixels = 2048;      // a longer sum is one of sums, which keeps its digits

template <class S>
struct Dense {
  const S* data;
  int64_t n, c, h, w;  // strides: that of c or that of w is 1
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
    winograd = winograd_tile(innermost_forward());
    beside = !winograd && p.groups == 1 && p.dilation_w == 1 && p.ih * p.iw > 0 &&
             vectors_of(p.kw * p.ci) < p.kw * vectors_of(p.ci);
    tap_columns = beside ? 1 : p.kw, taps = p.kh * tap_columns;
    const int64_t inputs = beside ? p.kw * p.ci : p.ci;
    const bool dy_is_rows = !winograd && in_planes(p.y_strides, p.co),
               x_is_rows = !winograd && !beside && p.stride_w == 1 && in_planes(p.x_strides, p.ci);
    if (dy_is_rows || x_is_rows) {  // the factor with more channels stays where it is
      swapped = !dy_is_rows || (x_is_rows && p.co < p.ci && filled(p.co) > 0.6);
    } else {
      swapped = !winograd && filled(p.co) > filled(inputs);
    }
    stage_x = !std::is_same_v<E, S> || beside || (p.x_strides.c != 1 && !(swapped && x_is_rows));
    stage_dy = !std::is_same_v<E, S> || (p.y_strides.c != 1 && !(!swapped && dy_is_rows));
    rows = swapped ? inputs : p.co, columns = swapped ? p.co : inputs;
    direct = std::is_same_v<E, S> && p.kh * p.kw == 1 && !swapped;
    left = right = 0, width = p.iw;
    if (beside) {  // rows of x with all that their taps read
      left = std::max<int64_t>(0, p.padding_l);
      right = std::max<int64_t>(0, w.first + (p.ow - 1) * p.stride_w + p.kw - p.iw);
      width += left + right;
      w.first += left;
    }
    char* at = static_cast<char*>(memory);
    auto take = [&](int64_t count) {
      char* taken = at;
      at += aligned(count * int64_t{sizeof(S)});
      return reinterpret_cast<S*>(taken);
    };
    staged_x = stage_x ? take(p.n * p.ih * width * p.groups * p.ci) : nullptr;
    staged_dy = stage_dy ? take(p.n * p.oh * p.ow * p.groups * p.co) : nullptr;
    sums = direct ? static_cast<S*>(p.weight) : take(taps * p.groups * rows * columns);
    winograd_memory = at;
    if (winograd) at += winograd_weight_workspace(innermost_forward(), winograd);
    bytes = at - static_cast<char*>(memory);
  }

  int64_t workspace() const { return bytes; }

  void run(const Launch& launch) {
    x = dense(p.x, p.x_strides, p.ih, p.iw, p.groups * p.ci, staged_x, launch, left, right);
    dy = dense(p.y, p.y_strides, p.oh, p.ow, p.groups * p.co, staged_dy, launch);
    if (winograd) {
      winograd_backward_weight(innermost_forward(), winograd, sums, {winograd_memory, launch.parallel_for});
    } else {
      products(launch);
    }
    if (!direct) unpack(launch);
    if (p.dbias) bias(launch);
  }

 private:
  static constexpr int64_t kRows = 2 * kTileRows<S, 2>;  // of a unit

  // Are pixels innermost, and planes apart by other than 4 KB, at which all rows of a tile would share a set of L1?
  static bool in_planes(const Strides4& s, int64_t channels) {
    return std::is_same_v<E, S> && s.w == 1 && s.c != 1 && channels >= 4 && s.c * int64_t{sizeof(S)} % 4096 != 0;
  }
  // The convolution whose weight's gradient this is, of x and dy as they are read here.
  DenseConv innermost_forward() const {
    DenseConv d = forward_of(p);
    d.in = x.data, d.in_strides = {x.n, 1, x.h, x.w}, d.out = const_cast<S*>(dy.data),
    d.out_strides = {dy.n, 1, dy.h, dy.w};
    d.dtype = p.dtype == DType::kFloat64 ? p.dtype : DType::kFloat32;
    d.shuffle = 1, d.packed = nullptr, d.epilogue = Epilogue{};
    return d;
  }
  static int64_t vectors_of(int64_t channels) { return (channels + L - 1) / L; }
  // The part of a row of vectors that is there.
  static double filled(int64_t channels) { return channels ? double(channels) / double(vectors_of(channels) * L) : 1; }

  // Channels come innermost in `staged`, unless it is null; zeros are put before and after each row.
  Dense<S> dense(const void* from, const Strides4& s, int64_t rows, int64_t pixels, int64_t c, S* staged,
                 const Launch& launch, int64_t before = 0, int64_t after = 0) const {
    if (!staged) return {static_cast<const S*>(from), s.n, s.c, s.h, s.w};
    const int64_t length = (before + pixels + after) * c;
    launch.parallel(p.n * rows, 1 + (1 << 15) / std::max<int64_t>(1, length), [&](int64_t begin, int64_t end) {
      for (int64_t unit = begin; unit < end; ++unit) {
        const E* row = static_cast<const E*>(from) + unit / rows * s.n + unit % rows * s.h;
        S* to = staged + unit * length;
        std::fill(to, to + before * c, S(0));
        innermost<E>(row, s.w, s.c, pixels, c, to + before * c);
        std::fill(to + (before + pixels) * c, to + length, S(0));
      }
    });
    return {staged, rows * length, 1, length, c};
  }

  void products(const Launch& launch) const {
    const int64_t vectors = vectors_of(columns), panels = panel_count(vectors), chunks = (rows + kRows - 1) / kRows;
    const int64_t each = (rows + std::max<int64_t>(chunks, 1) - 1) / std::max<int64_t>(chunks, 1);
    const int64_t units = p.groups * taps * chunks * panels;
    const int64_t work = p.n * p.oh * p.ow * p.groups * rows * columns * taps;
    const int64_t row_bytes = p.ow * (p.groups * (p.co + p.ci)) * int64_t{sizeof(S)};
    const int64_t band =
        std::max<int64_t>(1, std::min(kBandBytes / std::max<int64_t>(row_bytes, 1), kBandPixels / p.ow));
    launch.parallel(units, grain_of(units, work), [&](int64_t begin, int64_t end) {
      for (int64_t n = 0; n < p.n; ++n) {
        for (int64_t i = 0; i < p.oh; i += band) {
          for (int64_t unit = begin; unit < end; ++unit) {
            const auto [first, wide] = panel_at(vectors, unit % panels);
            const int64_t o = unit / panels % chunks * each, tap = unit / panels / chunks % taps;
            const int64_t group = unit / panels / chunks / taps;
            for_tiles(std::min(each, rows - o), tile_rows<S>(wide), [&](int64_t at, int count) {
              one_tile(n, i, std::min(p.oh, i + band), group, tap, o + at, count, first * L, wide, n == 0 && i == 0);
            });
          }
        }
      }
    });
  }

  // Adds the products of rows [i_begin, i_end) of dy to sums[o .. o + count, k .. k + wide * L] of a tap.
  void one_tile(int64_t n, int64_t i_begin, int64_t i_end, int64_t group, int64_t tap, int64_t o, int count, int64_t k,
                int wide, bool start) const {
    Tile<S> tile{};
    tile.rows = count, tile.vectors = wide, tile.columns = std::min<int64_t>(wide * L, columns - k);
    tile.c = sums + ((tap * p.groups + group) * rows + o) * columns + k, tile.c_step = columns;
    tile.accumulate = !start;
    tile.low = -Limits<S>::infinity(), tile.high = Limits<S>::infinity();
    const int64_t x_step = w.step * x.w, c_step = swapped ? x.c : dy.c;  // of rows
    const bool planes = c_step != 1;
    tile.a_step = planes ? c_step : swapped ? x_step : dy.w, tile.b_step = swapped ? dy.w : x_step;
    const S* of_dy = dy.data + n * dy.n + (group * p.co + (swapped ? k : o)) * dy.c;
    const S* of_x = x.data + n * x.n + (group * p.ci + (swapped ? o : k)) * x.c;
    const int64_t u = tap / tap_columns, v = tap % tap_columns;
    const auto [i0, i1] = outputs_of(h, u, p.ih, i_begin, i_end);
    const auto [j0, j1] = outputs_of(w, v, width, 0, p.ow);
    const int64_t iw = w.first + j0 * w.step + v * w.dilation;
    const bool merges = j0 == 0 && j1 == p.ow && dy.h == p.ow * dy.w && h.step * x.h == p.ow * x_step;
    const int64_t segments = j0 < j1 && i0 < i1 ? (merges ? 1 : i1 - i0) : 0;
    Segment<S> list[kMostSegments];
    if (segments == 0 && tile.accumulate) return;
    multiply_in_turns(
        tile, segments,
        [&](int64_t from, int64_t to) {
          for (int64_t s = from; s < to; ++s) {
            const int64_t i = i0 + s, ih = h.first + i * h.step + u * h.dilation;
            const S *row_of_dy = of_dy + i * dy.h + j0 * dy.w, *row_of_x = of_x + ih * x.h + iw * x.w;
            list[s - from] = {swapped ? row_of_x : row_of_dy, swapped ? row_of_dy : row_of_x,
                              merges ? (i1 - i0) * p.ow : j1 - j0};
          }
          return list;
        },
        planes ? Form::kRowsMasked : Form::kColumnsMasked);
  }

  // Outputs in [begin, end) whose tap k lies inside.
  static std::pair<int64_t, int64_t> outputs_of(const Axis& axis, int64_t k, int64_t size, int64_t begin, int64_t end) {
    const int64_t first = axis.first + k * axis.dilation;
    const int64_t from = first >= 0 ? 0 : (-first + axis.step - 1) / axis.step;
    const int64_t to = first >= size ? 0 : (size - 1 - first) / axis.step + 1;
    return {std::max(begin, from), std::min(end, to)};
  }

  void unpack(const Launch& launch) const {
    const int64_t channels = p.groups * p.co, all = p.kh * p.kw;
    launch.parallel(channels, 1 + 32768 / std::max<int64_t>(1, p.ci * all), [&](int64_t begin, int64_t end) {
      for (int64_t channel = begin; channel < end; ++channel) {
        const int64_t group = channel / p.co, o = channel % p.co;
        E* to = static_cast<E*>(p.weight) + channel * p.weight_strides.n;
        for (int64_t u = 0; u < p.kh; ++u) {
          for (int64_t v = 0; v < p.kw; ++v) {
            const int64_t tap = beside ? u : u * p.kw + v, first = beside ? v * p.ci : 0;
            const S* from = sums + (tap * p.groups + group) * rows * columns;
            for (int64_t k = 0; k < p.ci; ++k) {
              const S value = from[swapped ? (first + k) * columns + o : o * columns + first + k];
              store<1>(to + k * p.weight_strides.c + u * p.weight_strides.h + v * p.weight_strides.w, Vec<S, 1>{value});
            }
          }
        }
      }
    });
  }

  void bias(const Launch& launch) const {
    const int64_t c = p.groups * p.co, lanes_ = dy.c == 1 ? L : 1, units = (c + lanes_ - 1) / lanes_;
    launch.parallel(units, grain_of(units, p.n * p.oh * p.ow * c), [&](int64_t begin, int64_t end) {
      for (int64_t unit = begin; unit < end; ++unit) {
        const int64_t count = dy.c == 1 ? std::min<int64_t>(L, c - unit * L) : 1;
        Vec<S, L> total{};
        for (int64_t n = 0; n < p.n; ++n) {
          for (int64_t i = 0; i < p.oh; ++i) {
            Vec<S, L> row{};
            const S* from = dy.data + n * dy.n + i * dy.h + unit * lanes_ * dy.c;
            if (dy.c == 1) {
              for (int64_t j = 0; j < p.ow; ++j, from += dy.w) row += load_up_to<L>(from, count);
            } else {
              for (int64_t j = 0; j < p.ow; j += L) row += load_up_to<L>(from + j, p.ow - j);
            }
            total += row;
          }
        }
        for (int l = 1; dy.c != 1 && l < L; ++l) total[0] += total[l];
        store_up_to<L>(static_cast<E*>(p.dbias) + unit * lanes_, total, count);
      }
    });
  }

  DenseConv2dParams p;
  Axis h, w;
  bool beside, swapped;  // the taps of a row of the kernel are one product; its rows are x's channels, not dy's
  bool stage_x, stage_dy, direct;
  int64_t tap_columns, taps, rows, columns;  // taps along a row, and in all; a tap's product
  int64_t left, right, width;                // pixels of zeros, and of all, in a row of x
  int64_t bytes;
  int winograd;  // its tiles' side, or 0
  void* winograd_memory;
  S *staged_x, *staged_dy, *sums;  // sums: [taps, groups, rows, columns]
  Dense<S> x{}, dy{};
};

}  // namespace

int64_t dense_weight_workspace(const DenseConv2dParams& p) {
  return with_type(p.dtype, [&](auto type) { return WeightGradient<decltype(type)>(p, nullptr).workspace(); });
}

void dense_backward_weight(const DenseConv2dParams& p, const Launch& launch) {
  with_type(p.dtype, [&](auto type) { WeightGradient<decltype(type)>(p, launch.workspace).run(launch); });
}

}  // namespace lightkernels::cpu
