// Dense convolution where channels are innermost: pixels x weights. A tile's rows are pixels at equal distances, read
// where they lie; its columns are output channels; taps that lie in the padding are left out.
#include "dense_conv2d_nhwc.h"

#include "pack.h"

namespace lightkernels::cpu {
namespace {

constexpr int64_t kShuffledBytes = 128 << 10;  // of outputs that wait in L2 to be shuffled
constexpr int64_t kBlockBytes = 192 << 10;     // of the input that one panel of weights meets: it stays in L2

// A rectangle of outputs whose taps are [u_begin, u_end) x [v_begin, v_end).
struct Rectangle {
  int64_t i_begin, i_end, j_begin, j_end, u_begin, u_end, v_begin, v_end;
};

struct Range {
  int64_t i_begin, i_end, j_begin, j_end;
};

// What one unit of work reads and writes; (row, column) of the input at `in` is (in_row, in_column).
template <class S>
struct Block {
  int64_t n, group;
  const S* in;
  int64_t in_h, in_w, in_row, in_column;
  int64_t first_vector, vectors;  // the panel
  const S* weight;                // packed
  void* out;                      // channel 0 of the image's output (0, 0)
  int64_t out_h, out_w;
};

// Pixels in one row, where nothing tells rows apart.
DenseConv merged(DenseConv d) {
  if (d.taps() != 1 || d.h.step != 1 || d.w.step != 1 || d.h.first != 0 || d.w.first != 0 || d.oh > d.ih ||
      d.ow != d.iw) {
    return d;
  }
  const Strides4 &x = d.in_strides, &y = d.out_strides, &r = d.epilogue.residual_strides;
  const bool residual = d.epilogue.residual;
  if (x.h != d.iw * x.w || y.h != d.ow * y.w || (residual && r.h != d.ow * r.w)) return d;
  const int64_t image = d.oh * d.ow;
  d.ih = d.oh = 1, d.iw = d.ow = image;
  if (d.epilogue.gate || d.input_gate) return d;
  if (x.n != image * x.w || y.n != image * y.w || (residual && r.n != image * r.w)) return d;
  d.iw = d.ow = d.n * image, d.n = 1;
  return d;
}

template <class E>
class Nhwc {
  using S = Acc<E>;
  static constexpr int L = lanes<S>();

 public:
  Nhwc(const DenseConv& conv, void* workspace) : d(merged(conv)), limits(d.epilogue.activation) {
    const bool plain = !d.input_gate && d.input_activation == Activation::kNone;
    staged = !std::is_same_v<E, S> || d.in_strides.c != 1 || !plain || conflicts();
    direct = std::is_same_v<E, S> && d.out_strides.c == 1 && d.epilogue.is_clamp() && (d.shuffle == 1 || interleaves());
    waits = direct && d.shuffle > 1;
    vectors = (d.co + L - 1) / L, shares = shares_last_vector<S>(d.co);
    const int64_t row_bytes = std::max<int64_t>(1, d.iw * d.ci * int64_t{sizeof(S)});
    if (d.oh == 1) {
      columns =
          std::max<int64_t>(tile_rows<S>(2), kBlockBytes / std::max<int64_t>(1, d.ci * int64_t{sizeof(S)} * d.w.step));
      columns = std::min(columns / tile_rows<S>(2) * tile_rows<S>(2), std::max<int64_t>(d.ow, 1));
      if (d.taps() > 1) columns = d.ow;
      rows = 1;
    } else {
      columns = d.ow;
      rows = std::min(d.oh, std::max<int64_t>(1, kBlockBytes / row_bytes / d.h.step));
    }
    if (waits) {
      const int64_t most = std::max<int64_t>(1, kShuffledBytes / (d.groups * d.co * int64_t{sizeof(S)}));
      columns = d.oh == 1 && d.taps() == 1 ? std::min(columns, std::max<int64_t>(kMostRows, most)) : columns;
      rows = std::min(rows, std::max<int64_t>(1, most / columns));
    }
    if (d.oh == 1 && d.taps() == 1 && d.ow >= 2 * tile_rows<S>(2)) columns = std::min(columns, (d.ow + 1) / 2);
    bands = even_parts(d.oh, rows), chunks = even_parts(d.ow, columns);
    panels = panel_count(vectors);
    const int64_t blocks = d.n * (waits ? 1 : d.groups) * bands * chunks;
    splits = waits ? 1 : std::min(panels, std::max<int64_t>(1, 16 / blocks));
    units = blocks * splits;
    grain = grain_of(units, d.n * d.groups * d.oh * d.ow * d.co * std::max<int64_t>(d.k(), 1));
    if (staged || waits) grain = std::max(grain, (units + kMostSlots - 1) / kMostSlots);
    if (staged) {
      const int64_t in_rows =
          std::min(d.ih, (rows - 1) * d.h.step + std::max<int64_t>(0, d.h.count - 1) * d.h.dilation + 1);
      const int64_t in_columns = chunks > 1 ? (columns - 1) * d.w.step + 1 : d.iw;
      stage_bytes = aligned(std::max<int64_t>(1, in_rows) * in_columns * stage_step() * int64_t{sizeof(S)});
    }
    slot_bytes = stage_bytes + (waits ? aligned(rows * columns * d.groups * d.co * int64_t{sizeof(S)}) : 0);
    packed = static_cast<const S*>(d.packed ? d.packed : workspace);
    slots = static_cast<char*>(workspace) + (d.packed ? 0 : packed_bytes());
  }

  int64_t packed_bytes() const { return aligned(d.groups * vectors * L * d.k() * int64_t{sizeof(S)}); }
  int64_t workspace() const { return (d.packed ? 0 : packed_bytes()) + Launch::slots(units, grain) * slot_bytes; }

  void pack(void* to, const Launch& launch) const {
    launch.parallel(d.groups * panels, 1, [&](int64_t begin, int64_t end) {
      for (int64_t unit = begin; unit < end; ++unit) {
        const auto [first, width] = panel_at(vectors, unit % panels);
        const int64_t group = unit / panels, k = d.k();
        pack_panel<E>(static_cast<const E*>(d.weight) + group * d.w_group + first * L * d.w_o, d, d.co - first * L,
                      width * L, shares && first + width == vectors,
                      static_cast<S*>(to) + (group * vectors + first) * L * k);
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
  // The number of parts of at most `most`, which is made smaller so that they are equal; 1, or even: for two threads.
  static int64_t even_parts(int64_t count, int64_t& most) {
    int64_t parts = (count + most - 1) / most;
    if (parts > 1) parts = (parts + 1) / 2 * 2;
    most = std::max<int64_t>(1, (count + parts - 1) / std::max<int64_t>(1, parts));
    return (count + most - 1) / most;
  }

  // Pixels whose distance is a multiple of 4 KB fall into one set of L1, which holds fewer of them than a tile has
  // rows.
  bool conflicts() const {
    return d.ci * int64_t{sizeof(S)} >= 4096 && d.in_strides.w * d.w.step * int64_t{sizeof(S)} % 4096 == 0;
  }
  int64_t stage_step() const { return conflicts() ? d.ci + 16 : d.ci; }

  // Shuffles of few groups are written by whole vectors, from a block's outputs in the order they are computed in.
  bool interleaves() const { return d.shuffle >= 2 && d.shuffle <= 4 && d.groups * d.co / d.shuffle >= L; }

  void one(int64_t unit, S* slot) const {
    const int64_t split = unit % splits, block = unit / splits;
    const int64_t chunk = block % chunks, band = block / chunks % bands, image = block / chunks / bands;
    const Range range{band * rows, std::min(d.oh, band * rows + rows), chunk * columns,
                      std::min(d.ow, chunk * columns + columns)};
    const int64_t from = panels * split / splits, to = panels * (split + 1) / splits;
    if (!waits) return one_group(image / d.groups, image % d.groups, range, from, to, slot, nullptr);
    S* outputs = slot + stage_bytes / int64_t{sizeof(S)};
    for (int64_t group = 0; group < d.groups; ++group) one_group(image, group, range, from, to, slot, outputs);
    const int64_t c = d.groups * d.co;
    for (int64_t i = range.i_begin; i < range.i_end; ++i) {
      for (int64_t j = range.j_begin; j < range.j_end; ++j) {
        interleave(outputs + ((i - range.i_begin) * columns + j - range.j_begin) * c, c / d.shuffle,
                   static_cast<S*>(d.out) + image * d.out_strides.n + i * d.out_strides.h + j * d.out_strides.w);
      }
    }
  }

  // to[j * shuffle + g] = from[g * each + j].
  void interleave(const S* from, int64_t each, S* to) const {
    if (d.shuffle == 2) return interleave_of<2>(from, each, to);
    if (d.shuffle == 3) return interleave_of<3>(from, each, to);
    interleave_of<4>(from, each, to);
  }
  template <int G>
  static void interleave_of(const S* from, int64_t each, S* to) {
    for (int64_t j = 0;;) {
      Vec<S, L> in[G];
      unroll<G>(LIGHTKERNELS_LAMBDA(auto g) { in[g] = load<L, S>(from + g * each + j); });
      unroll<G>(LIGHTKERNELS_LAMBDA(auto v) {
        store<L, S>(to + j * G + v * L, interleaved<G, decltype(v)::value, L, S>(in));
      });
      if (j + L >= each) return;
      j = std::min(j + L, each - L);
    }
  }

  // Panels [from, to) of a group for a block of outputs; into `outputs` [rows, columns, channels] unless null.
  void one_group(int64_t n, int64_t group, const Range& range, int64_t from, int64_t to, S* slot, S* outputs) const {
    Block<S> b{};
    b.n = n, b.group = group;
    if (outputs) {
      const int64_t c = d.groups * d.co;
      b.out = outputs - (range.i_begin * columns + range.j_begin) * c, b.out_w = c, b.out_h = columns * c;
    } else {
      b.out = static_cast<E*>(d.out) + n * d.out_strides.n, b.out_w = d.out_strides.w, b.out_h = d.out_strides.h;
    }
    if (staged) {
      stage(b, range.i_begin, range.i_end, range.j_begin, range.j_end, slot);
    } else {
      b.in = static_cast<const S*>(d.in) + n * d.in_strides.n + group * d.ci;
      b.in_h = d.in_strides.h, b.in_w = d.in_strides.w;
    }
    for (int64_t panel = from; panel < to; ++panel) {
      const auto [first, width] = panel_at(vectors, panel);
      b.first_vector = first, b.vectors = width;
      b.weight = packed + (group * vectors + first) * L * d.k();
      for_same_taps(d.h, d.ih, range.i_begin, range.i_end, [&](int64_t i0, int64_t i1, int64_t u0, int64_t u1) {
        for_same_taps(d.w, d.iw, range.j_begin, range.j_end, [&](int64_t j0, int64_t j1, int64_t v0, int64_t v1) {
          rectangle(b, {i0, i1, j0, j1, u0, u1, v0, v1});
        });
      });
    }
  }

  // The block's input as dense S, gated and activated.
  void stage(Block<S>& b, int64_t i_begin, int64_t i_end, int64_t j_begin, int64_t j_end, S* slot) const {
    const int64_t span = std::max<int64_t>(0, d.h.count - 1) * d.h.dilation;
    const int64_t row = std::max<int64_t>(0, std::min(d.ih, d.h.first + i_begin * d.h.step));
    const int64_t row_end = std::max(row, std::min(d.ih, d.h.first + (i_end - 1) * d.h.step + span + 1));
    const int64_t column = chunks > 1 ? std::max<int64_t>(0, d.w.first + j_begin * d.w.step) : 0;
    const int64_t last = chunks > 1 ? d.w.first + (j_end - 1) * d.w.step + 1 : d.iw;
    const int64_t column_end = std::max(column, std::min(d.iw, last));
    b.in = slot, b.in_w = stage_step(), b.in_h = (column_end - column) * b.in_w, b.in_row = row, b.in_column = column;
    const int64_t channel = b.group * d.ci;
    const E* in = static_cast<const E*>(d.in) + b.n * d.in_strides.n + channel * d.in_strides.c;
    const E* gate = static_cast<const E*>(d.input_gate);
    if (gate) gate += b.n * d.input_gate_n + channel * d.input_gate_c;
    for (int64_t i = row; i < row_end; ++i) {
      for (int64_t j = column; j < column_end; ++j) {
        enter<E>(in + i * d.in_strides.h + j * d.in_strides.w, d.in_strides.c, gate, d.input_gate_c, d.input_activation,
                 d.ci, slot + (i - row) * b.in_h + (j - column) * b.in_w);
      }
    }
  }

  void rectangle(const Block<S>& b, const Rectangle& r) const {
    const int64_t height = r.i_end - r.i_begin, width = r.j_end - r.j_begin;
    if (width >= height || 2 * width >= tile_rows<S>(static_cast<int>(b.vectors))) {
      for (int64_t i = r.i_begin; i < r.i_end; ++i) run_of_pixels(b, r, i, r.j_begin, width, false);
    } else {
      for (int64_t j = r.j_begin; j < r.j_end; ++j) run_of_pixels(b, r, r.i_begin, j, height, true);
    }
  }

  // `count` outputs from (i, j) on along a row, or down a column.
  void run_of_pixels(const Block<S>& b, const Rectangle& r, int64_t i, int64_t j, int64_t count, bool down) const {
    Tile<S> tile{};
    const int64_t width = b.vectors * L, channel = b.first_vector * L;
    tile.vectors = static_cast<int>(b.vectors), tile.columns = std::min(width, d.co - channel);
    tile.shared = shares && b.first_vector + b.vectors == vectors;
    tile.a_step = down ? d.h.step * b.in_h : d.w.step * b.in_w;
    tile.b_step = width;
    tile.low = limits.low, tile.high = limits.high;
    const int64_t first_channel = b.group * d.co + channel;
    const int64_t y_pixel = down ? b.out_h : b.out_w;
    E* y = static_cast<E*>(b.out) + i * b.out_h + j * b.out_w;
    Finish<S> finish{};
    S sums[kMostRows * 3 * L];
    if (direct) {
      if (d.epilogue.bias) tile.bias = static_cast<const S*>(d.epilogue.bias) + first_channel;
      tile.c_step = y_pixel;
    } else {
      tile.low = -limits.infinity(), tile.high = limits.infinity();
      tile.c = sums, tile.c_step = width;
      finish = finish_from<E>(d, b.n, i, j, down);
      finish.lanes_are_channels = true, finish.channel = first_channel, finish.columns = tile.columns;
      finish.sums = sums, finish.sums_step = width;
    }
    // Taps that lie one behind the other are one run of k.
    const bool merges = d.w.dilation * b.in_w == d.ci;
    const int64_t runs = merges ? 1 : r.v_end - r.v_begin, k = merges ? d.ci * (r.v_end - r.v_begin) : d.ci;
    const int64_t segments = (r.u_end - r.u_begin) * runs;
    const S* in =
        b.in + (d.h.first + i * d.h.step - b.in_row) * b.in_h + (d.w.first + j * d.w.step - b.in_column) * b.in_w;
    Segment<S> list[kMostSegments];
    for_tiles(count, tile_rows<S>(tile.vectors, tile.shared), [&](int64_t at, int rows_) {
      tile.rows = rows_;
      if (direct) tile.c = reinterpret_cast<S*>(y + at * y_pixel) + first_channel;
      multiply_in_turns(tile, segments, [&](int64_t from, int64_t to) {
        for (int64_t s = from; s < to; ++s) {
          const int64_t u = r.u_begin + s / runs, v = r.v_begin + s % runs;
          list[s - from] = {in + u * d.h.dilation * b.in_h + v * d.w.dilation * b.in_w + at * tile.a_step,
                            b.weight + (u * d.w.count + v) * d.ci * width, k};
        }
        return list;
      });
      if (direct) return;
      finish.rows = rows_;
      finish_tile(d.dtype, finish);
      finish.y = static_cast<E*>(finish.y) + rows_ * finish.y_pixel;
      if (finish.residual) finish.residual = static_cast<const E*>(finish.residual) + rows_ * finish.residual_pixel;
    });
  }

  DenseConv d;
  Limits<S> limits;
  bool staged, direct, shares, waits;  // waits: outputs are shuffled when a block of them is there
  int64_t vectors, panels;             // of one group's output channels
  int64_t rows, columns;               // of a block of outputs
  int64_t bands, chunks, splits;       // blocks down and along an image; parts of the panels
  int64_t units, grain, stage_bytes = 0, slot_bytes;
  const S* packed;
  char* slots;
};

}  // namespace

int64_t nhwc_workspace(const DenseConv& d) {
  return with_type(d.dtype, [&](auto type) { return Nhwc<decltype(type)>(d, nullptr).workspace(); });
}
int64_t nhwc_packed_bytes(const DenseConv& d) {
  return with_type(d.dtype, [&](auto type) { return Nhwc<decltype(type)>(d, nullptr).packed_bytes(); });
}
void nhwc_pack(const DenseConv& d, void* packed, const Launch& launch) {
  with_type(d.dtype, [&](auto type) { Nhwc<decltype(type)>(d, nullptr).pack(packed, launch); });
}
void nhwc_convolve(const DenseConv& d, const Launch& launch) {
  with_type(d.dtype, [&](auto type) { Nhwc<decltype(type)>(d, launch.workspace).run(launch); });
}

}  // namespace lightkernels::cpu
