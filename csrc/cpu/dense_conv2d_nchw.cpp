// Dense convolution where pixels are innermost: weights x pixels. A tile's rows are output channels, its columns are
// pixels, of which a panel [k, pixels] is read where it lies (1x1 kernels) or laid out for all output channels.
#include "dense_conv2d_nchw.h"

#include "pack.h"

namespace lightkernels::cpu {
namespace {

template <class E>
class Nchw {
  using S = Acc<E>;
  static constexpr int L = lanes<S>();
  static constexpr int kMostPixels = 3 * L;  // of a panel

 public:
  Nchw(const DenseConv& conv, void* workspace) : d(conv), limits(d.epilogue.activation) {
    const Strides4 &y = d.out_strides, &r = d.epilogue.residual_strides;
    one_row = y.h == d.ow * y.w && (!d.epilogue.residual || r.h == d.ow * r.w);
    rows = one_row ? 1 : d.oh, row_pixels = one_row ? d.oh * d.ow : d.ow;
    direct = std::is_same_v<E, S> && y.w == 1 && d.epilogue.is_clamp();
    const bool plain = !d.input_gate && d.input_activation == Activation::kNone;
    const bool steps = d.h.step != 1 || d.w.step != 1 || d.h.first != 0 || d.w.first != 0 || d.oh > d.ih || d.ow > d.iw;
    in_place = std::is_same_v<E, S> && plain && d.taps() == 1 && !steps && d.in_strides.w == 1 &&
               (d.in_strides.h == d.ow || !one_row || d.oh == 1) && !conflicts();
    // Weights are read where they lie if k is the order of their memory, or if rows are.
    const bool in_rows = d.w_k == d.taps() && (d.h.count == 1 || d.w_u == d.w.count) &&
                         (d.w.count == 1 || d.w_v == 1) && d.w_o * int64_t{sizeof(S)} % 4096 != 0;
    const bool in_columns = d.taps() == 1 && d.w_o == 1;
    weight_in_place = std::is_same_v<E, S> && d.taps() > 0 && (in_rows || in_columns);
    columns_form = weight_in_place && !in_rows;
    vectors = (row_pixels + L - 1) / L;
    panels = panel_count(vectors);
    units = d.n * d.groups * rows * panels;
    grain = grain_of(units, d.n * d.groups * d.oh * d.ow * d.co * std::max<int64_t>(d.k(), 1));
    if (!in_place) {
      grain = std::max(grain, (units + kMostSlots - 1) / kMostSlots);
      slot_bytes = aligned(std::max<int64_t>(d.k(), 1) * kMostPixels * int64_t{sizeof(S)});
    }
    packed = static_cast<const S*>(d.packed ? d.packed : workspace);
    slots = static_cast<char*>(workspace) + (d.packed ? 0 : packed_bytes());
  }

  int64_t packed_bytes() const {
    return weight_in_place ? 0 : aligned(d.groups * d.co * packed_step() * int64_t{sizeof(S)});
  }
  int64_t workspace() const {
    return (d.packed ? 0 : packed_bytes()) + (in_place ? 0 : Launch::slots(units, grain) * slot_bytes);
  }

  // Rows [k, u, v], as in a dense weight, at a distance that is no multiple of 4 KB.
  void pack(void* to, const Launch& launch) const {
    if (weight_in_place) return;
    launch.parallel(d.groups * d.co, 1 + 65536 / std::max<int64_t>(d.k(), 1), [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row) {
        const E* w = static_cast<const E*>(d.weight) + row / d.co * d.w_group + row % d.co * d.w_o;
        S* out = static_cast<S*>(to) + row * packed_step();
        for (int64_t k = 0; k < d.ci; ++k) {
          for (int64_t u = 0; u < d.h.count; ++u) {
            for (int64_t v = 0; v < d.w.count; ++v) *out++ = load<1>(w + k * d.w_k + u * d.w_u + v * d.w_v)[0];
          }
        }
      }
    });
  }

  void run(const Launch& launch) const {
    if (!d.packed) pack(const_cast<S*>(packed), launch);
    launch.parallel(units, grain, [&](int64_t begin, int64_t end) {
      S* slot = reinterpret_cast<S*>(slots + Launch::slot_of(begin, grain) * slot_bytes);
      for (int64_t unit = begin; unit < end; ++unit) one(unit, slot);
    });
  }

 private:
  // Channels whose distance is a multiple of 4 KB fall into one set of L1: they are laid out first.
  bool conflicts() const { return d.ci >= 32 && d.in_strides.c * int64_t{sizeof(S)} % 4096 == 0; }
  int64_t packed_step() const { return d.k() + (d.k() * int64_t{sizeof(S)} % 4096 == 0 ? 16 : 0); }

  void one(int64_t unit, S* slot) const {
    const auto [first, width] = panel_at(vectors, unit % panels);
    const int64_t row = unit / panels % rows, group = unit / panels / rows % d.groups,
                  n = unit / panels / rows / d.groups;
    const int64_t pixel = first * L, present = std::min<int64_t>(width * L, row_pixels - pixel);
    const E* in = static_cast<const E*>(d.in) + n * d.in_strides.n + group * d.ci * d.in_strides.c;
    Segment<S> segment{nullptr, slot, d.k()};
    Tile<S> tile{};
    tile.b_step = width * L;
    if (in_place) {
      segment.b = reinterpret_cast<const S*>(in) + row * d.in_strides.h + pixel;
      tile.b_step = d.in_strides.c;
    } else {
      lay_out(in, n, group, row, pixel, present, width * L, slot);
    }
    tile.segments = &segment, tile.count = d.k() > 0 ? 1 : 0;
    tile.vectors = width, tile.columns = present;
    tile.bias_of_rows = true;
    const Form form = columns_form ? (in_place ? Form::kColumnsMasked : Form::kColumns)
                                   : (in_place ? Form::kRowsMasked : Form::kRows);
    const S* weight =
        weight_in_place ? static_cast<const S*>(d.weight) + group * d.w_group : packed + group * d.co * packed_step();
    const int64_t w_row = weight_in_place ? d.w_o : packed_step();
    tile.a_step = columns_form ? d.w_k : w_row;
    const int64_t i = one_row ? pixel / d.ow : row, j = one_row ? pixel % d.ow : pixel;
    E* y = static_cast<E*>(d.out) + n * d.out_strides.n + i * d.out_strides.h + j * d.out_strides.w;
    Finish<S> finish{};
    S sums[kTileRows<S, 2> * kMostPixels];
    if (direct) {
      tile.low = limits.low, tile.high = limits.high, tile.c_step = d.out_strides.c * d.shuffle;
    } else {
      tile.low = -limits.infinity(), tile.high = limits.infinity();
      tile.c = sums, tile.c_step = width * L;
      finish = finish_from<E>(d, n, i, j);
      finish.sums = sums, finish.sums_step = width * L, finish.columns = present;
    }
    auto compute = [&](int64_t o, int rows_) {
      const int64_t channel = group * d.co + o;
      tile.rows = rows_, segment.a = weight + o * w_row;
      if (direct) {
        tile.c = reinterpret_cast<S*>(y) + shuffled(channel, d.groups * d.co, d.shuffle) * d.out_strides.c;
        if (d.epilogue.bias) tile.bias = static_cast<const S*>(d.epilogue.bias) + channel;
      }
      multiply_tile(form, tile);
      if (direct) return;
      finish.rows = rows_, finish.channel = channel;
      finish_tile(d.dtype, finish);
    };
    if (!direct || d.shuffle == 1) return for_tiles(d.co, tile_rows<S>(width), compute);
    // Shuffled rows lie at equal distances within a run of channels / shuffle.
    const int64_t each = d.groups * d.co / d.shuffle;
    for (int64_t o = 0; o < d.co;) {
      const int64_t run = std::min(d.co - o, each - (group * d.co + o) % each);
      for_tiles(run, tile_rows<S>(width), [&](int64_t at, int rows_) { compute(o + at, rows_); });
      o += run;
    }
  }

  // slot[k, p] for the panel's pixels: zeros in the padding, and behind the last pixel.
  void lay_out(const E* in, int64_t n, int64_t group, int64_t row, int64_t pixel, int64_t present, int64_t width,
               S* slot) const {
    const int64_t taps = d.taps(), step = taps * width;
    if (present < width || padded()) std::fill(slot, slot + d.k() * width, S(0));
    const E* gate = static_cast<const E*>(d.input_gate);
    if (gate) gate += n * d.input_gate_n + group * d.ci * d.input_gate_c;
    for (int64_t u = 0; u < d.h.count; ++u) {
      for (int64_t v = 0; v < d.w.count; ++v) {
        S* to = slot + (u * d.w.count + v) * width;
        for (int64_t at = 0; at < present;) {  // a run within one row of outputs
          const int64_t i = one_row ? (pixel + at) / d.ow : row, j = one_row ? (pixel + at) % d.ow : pixel + at;
          const int64_t count = std::min(present - at, d.ow - j);
          const int64_t ih = d.h.first + i * d.h.step + u * d.h.dilation;
          const int64_t iw = d.w.first + j * d.w.step + v * d.w.dilation;
          const int64_t skip = iw >= 0 ? 0 : std::min(count, (-iw + d.w.step - 1) / d.w.step);
          const int64_t end = iw >= d.iw ? 0 : std::min(count, (d.iw - 1 - iw) / d.w.step + 1);
          if (ih >= 0 && ih < d.ih && skip < end) {
            const int64_t column = iw + skip * d.w.step;
            copy(in + ih * d.in_strides.h + column * d.in_strides.w, d.iw - column, end - skip, gate, to + at + skip,
                 step);
          }
          at += count;
        }
      }
    }
  }

  bool padded() const {
    return d.h.first < 0 || d.w.first < 0 ||
           d.h.first + (d.oh - 1) * d.h.step + (d.h.count - 1) * d.h.dilation >= d.ih ||
           d.w.first + (d.ow - 1) * d.w.step + (d.w.count - 1) * d.w.dilation >= d.iw;
  }

  // `count` pixels of every channel; `there` are in the row from the first on.
  void copy(const E* from, int64_t there, int64_t count, const E* gate, S* to, int64_t to_step) const {
    const int64_t in_step = d.w.step * d.in_strides.w;
    const bool plain = !gate && d.input_activation == Activation::kNone;
    for (int64_t k = 0; k < d.ci; ++k, from += d.in_strides.c, to += to_step) {
      const S factor = gate ? load<1>(gate + k * d.input_gate_c)[0] : S(1);
      auto f = LIGHTKERNELS_LAMBDA(auto v) {
        constexpr int N = sizeof(v) / sizeof(S);
        if (plain) return v;
        if (d.input_activation != Activation::kNone) v = activate<N, S>(v, d.input_activation, S(0), Vec<S, N>{});
        return v * splat<N>(factor);
      };
      int64_t p = 0;
      if (in_step == 1) {
        for (; p + L <= count; p += L) store<L, S>(to + p, f(load<L>(from + p)));
        if (p < count) store_first<L, S>(to + p, f(load_first<L>(from + p, count - p)), count - p);
      } else {
        if (in_step == 2 && d.in_strides.w == 1) {
          for (; p + L <= count; p += L) {
            const Vec<S, L> a = load<L>(from + 2 * p), b = load_up_to<L>(from + 2 * p + L, there - 2 * p - L);
            store<L, S>(to + p, f(shuffle<EvenLanes, L, S>(a, b)));
          }
        }
        for (; p < count; ++p) store<1, S>(to + p, f(load<1>(from + p * in_step)));
      }
    }
  }

  DenseConv d;
  Limits<S> limits;
  bool one_row;           // an image's outputs are one row of pixels
  bool in_place, direct;  // the input is read, the output written where it lies
  bool weight_in_place, columns_form;
  int64_t rows, row_pixels, vectors, panels, units, grain, slot_bytes = 0;
  const S* packed;
  char* slots;
};

}  // namespace

int64_t nchw_workspace(const DenseConv& d) {
  return with_type(d.dtype, [&](auto type) { return Nchw<decltype(type)>(d, nullptr).workspace(); });
}
int64_t nchw_packed_bytes(const DenseConv& d) {
  return with_type(d.dtype, [&](auto type) { return Nchw<decltype(type)>(d, nullptr).packed_bytes(); });
}
void nchw_pack(const DenseConv& d, void* packed, const Launch& launch) {
  with_type(d.dtype, [&](auto type) { Nchw<decltype(type)>(d, nullptr).pack(packed, launch); });
}
void nchw_convolve(const DenseConv& d, const Launch& launch) {
  with_type(d.dtype, [&](auto type) { Nchw<decltype(type)>(d, launch.workspace).run(launch); });
}

}  // namespace lightkernels::cpu
