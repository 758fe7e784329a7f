// Winograd's F(m x m, 3 x 3) in three steps, for a block of tiles at a time: the inputs' transform, for each of the
// (m + 2)^2 positions in a tile a matrix product tiles x channels, and the transform back.
#include "dense_conv2d_winograd.h"

#include <tuple>

#include "pack.h"
#include "winograd.h"

namespace lightkernels::cpu {
namespace {

constexpr int64_t kMostTiles = 168;  // of a block: a multiple of a product's tile

// Tiles of m along one axis, over all sub-grids of a dilated convolution.
struct TileAxis {
  int64_t dilation, in, out, padding, m, count;

  TileAxis(const Axis& axis, int64_t in_, int64_t out_, int64_t m_)
      : dilation(axis.dilation), in(in_), out(out_), padding(-axis.first), m(m_), count(0) {
    for (int64_t phase = 0; phase < std::min(dilation, out); ++phase) {
      count += ((out - phase + dilation - 1) / dilation + m - 1) / m;
    }
  }

  // What tile number `t` reads and writes along the axis, in pixels of the image.
  struct Place {
    int64_t in, out;           // the first input and output; `dilation` apart
    int64_t in_begin, in_end;  // of the m + 2 inputs, those inside
    int64_t out_count;         // of the m outputs
  };
  Place at(int64_t t) const {
    int64_t phase = 0;
    for (;; ++phase) {
      const int64_t tiles = ((out - phase + dilation - 1) / dilation + m - 1) / m;
      if (t < tiles) break;
      t -= tiles;
    }
    const GridAxis grid(phase, dilation, in, out, padding);
    const int64_t first = t * m - grid.padding;
    Place place{};
    place.in = grid.in_first + first * dilation, place.out = phase + t * m * dilation;
    place.in_begin = std::max<int64_t>(0, -first);
    place.in_end = std::min(m + 2, grid.in - first);
    place.out_count = std::min(m, grid.out - t * m);
    return place;
  }
};

template <class E, int M>
class Winograd {
  using S = Acc<E>;
  static constexpr int L = lanes<S>(), N = M + 2;
  using V = Vec<S, L>;

 public:
  Winograd(const DenseConv& conv, void* memory)
      : d(conv), limits(d.epilogue.activation), h(d.h, d.ih, d.oh, M), w(d.w, d.iw, d.ow, M) {
    staged_in = !std::is_same_v<E, S> || d.in_strides.c != 1;
    tiles = d.n * h.count * w.count;
    const int64_t blocks = std::max<int64_t>(1, (tiles + kMostTiles - 1) / kMostTiles);
    block = (tiles + blocks - 1) / blocks;
    vectors = (d.co + L - 1) / L;
    in_step = d.ci + (d.ci * int64_t{sizeof(S)} % 4096 == 0 ? 16 : 0);
    out_step = vectors * L;
    char* at = static_cast<char*>(memory);
    auto take = [&](int64_t count) {
      char* taken = at;
      at += aligned(count * int64_t{sizeof(S)});
      return reinterpret_cast<S*>(taken);
    };
    packed = d.packed ? static_cast<const S*>(d.packed) : take(packed_bytes() / int64_t{sizeof(S)});
    stage = staged_in ? take(d.n * d.ih * d.iw * d.ci) : nullptr;
    // Planes of pixels come of vectors of channels at the end, where a plane is dense and nothing else is to be done.
    const Strides4& y = d.out_strides;
    const bool planes = y.c != 1 && y.w == 1 && y.h == d.ow && y.c == d.oh * d.ow;
    staged_out = std::is_same_v<E, S> && planes && d.epilogue.is_clamp() ? take(d.n * d.oh * d.ow * d.co) : nullptr;
    inputs = take(N * N * block * in_step);
    products = take(N * N * block * out_step);
    bytes = at - static_cast<char*>(memory);
  }

  int64_t packed_bytes() const { return aligned(d.groups * N * N * vectors * L * d.ci * int64_t{sizeof(S)}); }
  int64_t workspace() const { return bytes; }

  // [groups, positions, panels, ci, width * L]
  void pack(void* to, const Launch& launch) const {
    launch.parallel(d.groups * vectors, 1, [&](int64_t begin, int64_t end) {
      for (int64_t unit = begin; unit < end; ++unit) {
        pack_vector(unit / vectors, unit % vectors, static_cast<S*>(to));
      }
    });
  }

  void run(const Launch& launch) const {
    if (!d.packed) pack(const_cast<S*>(packed), launch);
    for (int64_t group = 0; group < d.groups; ++group) {
      const S* in = static_cast<const S*>(d.in) + group * d.ci;
      Strides4 strides = d.in_strides;
      if (staged_in) {
        bring_in(group, launch);
        in = stage, strides = {d.ih * d.iw * d.ci, 1, d.iw * d.ci, d.ci};
      }
      for (int64_t first = 0; first < tiles; first += block) {
        const int64_t count = std::min(block, tiles - first);
        const int64_t in_work = count * d.ci * N * N * 4, out_work = count * d.co * N * N * 4;
        launch.parallel(count, grain_of(count, in_work), [&](int64_t begin, int64_t end) {
          for (int64_t t = begin; t < end; ++t) transform_input(in, strides, first + t, t);
        });
        multiply(group, count, launch);
        launch.parallel(count, grain_of(count, out_work), [&](int64_t begin, int64_t end) {
          for (int64_t t = begin; t < end; ++t) transform_output(group, first + t, t);
        });
      }
      if (staged_out) bring_out(group, launch);
    }
  }

 private:
  void bring_in(int64_t group, const Launch& launch) const {
    const int64_t rows = d.n * d.ih;
    launch.parallel(rows, grain_of(rows, rows * d.iw * d.ci), [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row) {
        const E* from = static_cast<const E*>(d.in) + row / d.ih * d.in_strides.n + row % d.ih * d.in_strides.h +
                        group * d.ci * d.in_strides.c;
        innermost<E>(from, d.in_strides.w, d.in_strides.c, d.iw, d.ci, stage + row * d.iw * d.ci);
      }
    });
  }

  void bring_out(int64_t group, const Launch& launch) const {
    const int64_t pixels = d.oh * d.ow, units = d.n * vectors;
    launch.parallel(units, grain_of(units, d.n * pixels * d.co), [&](int64_t begin, int64_t end) {
      for (int64_t unit = begin; unit < end; ++unit) {
        const int64_t n = unit / vectors, o = unit % vectors * L;
        S* to = static_cast<S*>(d.out) + n * d.out_strides.n + (group * d.co + o) * d.out_strides.c;
        innermost<S>(staged_out + n * pixels * d.co + o, 1, d.co, std::min<int64_t>(L, d.co - o), pixels, to);
      }
    });
  }

  void pack_vector(int64_t group, int64_t vector, S* to) const {
    constexpr int64_t kChunk = 8;
    S weights[kChunk * 9 * L];
    const int64_t present = std::min<int64_t>(L, d.co - vector * L);
    const E* w0 = static_cast<const E*>(d.weight) + group * d.w_group + vector * L * d.w_o;
    int64_t first = 0, width = 0;  // of the panel that the vector is in
    for (int64_t p = 0; first + width <= vector; ++p) std::tie(first, width) = panel_at(vectors, p);
    for (int64_t k0 = 0; k0 < d.ci; k0 += kChunk) {
      const int64_t chunk = std::min(kChunk, d.ci - k0);
      const E* from = w0 + k0 * d.w_k;
      if (d.w_k == 9 && d.w_u == 3 && d.w_v == 1 && present == L) {
        innermost<E>(from, 1, d.w_o, chunk * 9, L, weights);
      } else {
        for (int64_t i = 0; i < chunk * 9; ++i) {
          const E* tap = from + i / 9 * d.w_k + i % 9 / 3 * d.w_u + i % 3 * d.w_v;
          for (int64_t o = 0; o < L; ++o) weights[i * L + o] = o < present ? load<1>(tap + o * d.w_o)[0] : S(0);
        }
      }
      for (int64_t k = 0; k < chunk; ++k) {
        V g[3][3], u[N][N];
        unroll<9>(LIGHTKERNELS_LAMBDA(auto t) { g[t / 3][t % 3] = load<L, S>(weights + (k * 9 + t) * L); });
        transform_both<N, 3, S, V>(g, u, WinogradWeight<M>{});
        S* out =
            to + group * N * N * vectors * L * d.ci + first * L * d.ci + (k0 + k) * width * L + (vector - first) * L;
        unroll<N * N>(LIGHTKERNELS_LAMBDA(auto p) { store<L, S>(out + p * vectors * L * d.ci, u[p / N][p % N]); });
      }
    }
  }

  // Tile number `tile` of all, number t of the block.
  void transform_input(const S* in, const Strides4& s, int64_t tile, int64_t t) const {
    const auto row = h.at(tile / w.count % h.count), column = w.at(tile % w.count);
    const S* from = in + tile / w.count / h.count * s.n + row.in * s.h + column.in * s.w;
    const int64_t row_step = h.dilation * s.h, column_step = w.dilation * s.w;
    for (int64_t c = 0; c < d.ci; c += L) {
      const int64_t count = d.ci - c;
      V x[N][N], v[N][N];
      unroll<N>(LIGHTKERNELS_LAMBDA(auto i) {
        const bool inside = i >= row.in_begin && i < row.in_end;
        unroll<N>(LIGHTKERNELS_LAMBDA(auto j) {
          x[i][j] = inside && j >= column.in_begin && j < column.in_end
                        ? load_up_to<L, S>(from + i * row_step + j * column_step + c, count)
                        : V{};
        });
      });
      transform_both<N, N, S, V>(x, v, WinogradInput<M>{});
      unroll<N * N>(LIGHTKERNELS_LAMBDA(auto p) {
        store_up_to<L, S>(inputs + (p * block + t) * in_step + c, v[p / N][p % N], count);
      });
    }
  }

  void multiply(int64_t group, int64_t count, const Launch& launch) const {
    const int64_t panels = panel_count(vectors), units = N * N * panels;
    launch.parallel(units, grain_of(units, N * N * count * d.ci * d.co), [&](int64_t begin, int64_t end) {
      for (int64_t unit = begin; unit < end; ++unit) {
        const int64_t position = unit / panels;
        const auto [first, width] = panel_at(vectors, unit % panels);
        Segment<S> segment{};
        Tile<S> tile{};
        segment.b = packed + ((group * N * N + position) * vectors + first) * L * d.ci, segment.k = d.ci;
        tile.segments = &segment, tile.count = 1;
        tile.a_step = in_step, tile.b_step = width * L;
        tile.vectors = width, tile.columns = width * L;
        tile.c_step = out_step;
        tile.low = -limits.infinity(), tile.high = limits.infinity();
        for_tiles(count, tile_rows<S>(width), [&](int64_t at, int rows) {
          tile.rows = rows;
          segment.a = inputs + (position * block + at) * in_step;
          tile.c = products + (position * block + at) * out_step + first * L;
          multiply_tile(Form::kRows, tile);
        });
      }
    });
  }

  void transform_output(int64_t group, int64_t tile, int64_t t) const {
    const auto row = h.at(tile / w.count % h.count), column = w.at(tile % w.count);
    const int64_t n = tile / w.count / h.count;
    const bool direct = staged_out || (std::is_same_v<E, S> && d.out_strides.c == 1 && d.epilogue.is_clamp());
    const Strides4 s = staged_out ? Strides4{d.oh * d.ow * d.co, 1, d.ow * d.co, d.co} : d.out_strides;
    E* y = static_cast<E*>(d.out);
    if (staged_out) y = reinterpret_cast<E*>(staged_out) - group * d.co;
    y += n * s.n + row.out * s.h + column.out * s.w;
    for (int64_t o = 0; o < d.co; o += L) {
      const int64_t count = std::min<int64_t>(L, d.co - o), channel = group * d.co + o;
      V m[N][N], z[M][M];
      unroll<N * N>(
          LIGHTKERNELS_LAMBDA(auto p) { m[p / N][p % N] = load<L, S>(products + (p * block + t) * out_step + o); });
      transform_both<M, N, S, V>(m, z, WinogradOutput<M>{});
      if (!direct) {
        finish(z, n, channel, count, row, column);
        continue;
      }
      V bias{};
      if (d.epilogue.bias) bias = load_up_to<L>(static_cast<const S*>(d.epilogue.bias) + channel, count);
      unroll<M>(LIGHTKERNELS_LAMBDA(auto i) {
        if (i >= row.out_count) return;
        unroll<M>(LIGHTKERNELS_LAMBDA(auto j) {
          if (j >= column.out_count) return;
          S* to = reinterpret_cast<S*>(y) + i * h.dilation * s.h + j * w.dilation * s.w + channel;
          store_up_to<L, S>(to, clamp(z[i][j] + bias, splat<L>(limits.low), splat<L>(limits.high)), count);
        });
      });
    }
  }

  void finish(const V (&z)[M][M], int64_t n, int64_t channel, int64_t count, const TileAxis::Place& row,
              const TileAxis::Place& column) const {
    for (int64_t i = 0; i < row.out_count; ++i) {
      Finish<S> f = finish_from<E>(d, n, row.out + i * h.dilation, column.out);
      f.y_pixel *= w.dilation, f.residual_pixel *= w.dilation;
      f.lanes_are_channels = true, f.channel = channel, f.columns = count;
      f.rows = column.out_count, f.sums = reinterpret_cast<const S*>(z[i]), f.sums_step = L;
      finish_tile(d.dtype, f);
    }
  }

  DenseConv d;
  Limits<S> limits;
  TileAxis h, w;
  bool staged_in;
  int64_t tiles, block, vectors, in_step, out_step, bytes;
  const S* packed;
  S *stage, *staged_out;  // [n, ih, iw, ci], [n, oh, ow, co], or null
  S *inputs, *products;   // [positions, tiles, in_step]; [positions, tiles, out_step]
};

// f(a Winograd of d).
template <class F>
auto with_winograd(const DenseConv& d, int tile, void* memory, F&& f) {
  auto with_tile = [&](auto type) {
    using E = decltype(type);
    if (tile == 2) return f(Winograd<E, 2>(d, memory));
    if (tile == 3) return f(Winograd<E, 3>(d, memory));
    if (tile == 4) return f(Winograd<E, 4>(d, memory));
    return f(Winograd<E, 6>(d, memory));
  };
  return with_type(d.dtype, with_tile);
}

}  // namespace

int winograd_tile(const DenseConv& d) {
  if (d.h.count != 3 || d.w.count != 3 || d.h.step != 1 || d.w.step != 1 || d.algorithm == Algorithm::kDirect) return 0;
  if (d.shuffle != 1 || d.input_gate || d.input_activation != Activation::kNone || d.ih < 1 || d.iw < 1) return 0;
  switch (d.algorithm) {
    case Algorithm::kWinograd2:
      return 2;
    case Algorithm::kWinograd3:
      return 3;
    case Algorithm::kWinograd4:
      return 4;
    case Algorithm::kWinograd6:
      return 6;
    default:
      break;
  }
  if (d.dtype == DType::kFloat64 || d.ci < 32 || d.co < 32) return 0;
  // Multiply-adds for each pair of channels of an image, those of the transforms included.
  auto inside = [](const Axis& axis, int64_t in, int64_t out) {
    double taps = 0;
    for_same_taps(axis, in, 0, out, [&](int64_t begin, int64_t end, int64_t k0, int64_t k1) {
      taps += double(end - begin) * double(k1 - k0);
    });
    return taps;
  };
  double least = inside(d.h, d.ih, d.oh) * inside(d.w, d.iw, d.ow);
  int best = 0;
  for (int m : {2, 3, 4, 6}) {
    const TileAxis h(d.h, d.ih, d.oh, m), w(d.w, d.iw, d.ow, m);
    const double n = m + 2, tiles = double(h.count) * double(w.count), transforms = n * n * n * (1. / d.co + 1. / d.ci);
    const double streamed = tiles < 24 ? 24 / tiles : 1;  // weights that few tiles share come from memory
    const double cost = 1.15 * tiles * (n * n * streamed + 4 * transforms);
    if (cost < least) least = cost, best = m;
  }
  return best;
}

int64_t winograd_workspace(const DenseConv& d, int tile) {
  return with_winograd(d, tile, nullptr, [](auto&& winograd) { return winograd.workspace(); });
}
int64_t winograd_packed_bytes(const DenseConv& d, int tile) {
  return with_winograd(d, tile, nullptr, [](auto&& winograd) { return winograd.packed_bytes(); });
}
void winograd_pack(const DenseConv& d, int tile, void* packed, const Launch& launch) {
  with_winograd(d, tile, nullptr, [&](auto&& winograd) { winograd.pack(packed, launch); });
}
void winograd_convolve(const DenseConv& d, int tile, const Launch& launch) {
  with_winograd(d, tile, launch.workspace, [&](auto&& winograd) { winograd.run(launch); });
}

}  // namespace lightkernels::cpu
