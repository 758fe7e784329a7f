// Winograd's F(m x m, 3 x 3) in three steps, for a block of tiles at a time: the inputs' transform, for each of the
// (m + 2)^2 positions in a tile a matrix product tiles x channels, and the transform back. The weight's gradient is
// that of these steps: outputs' gradients are transformed by the turned matrix, multiplied with the transformed inputs
// position by position, k over the tiles, and turned back once at the end.
#include "dense_conv2d_winograd.h"

#include <iterator>
#include <tuple>

#include "pack.h"
#include "winograd.h"

namespace lightkernels::cpu {
namespace {

constexpr int64_t kMostTiles = 168;   // of a block: a multiple of a product's tile
constexpr double kSharingTiles = 16;  // with fewer, a product waits for its weights

template <Scheme kScheme>
using SchemeConstant = std::integral_constant<Scheme, kScheme>;

// The schemes along an axis of tiles of m: that of all, or those which are met beside F(3).
constexpr Scheme kMixed[] = {Scheme::kF3, Scheme::kAlone2, Scheme::kAlone1};
constexpr Scheme kWhole2[] = {Scheme::kF2}, kWhole4[] = {Scheme::kF4}, kWhole6[] = {Scheme::kF6};

struct Schemes {
  const Scheme* list;
  int count;

  explicit Schemes(int m)
      : list(m == 2   ? kWhole2
             : m == 3 ? kMixed
             : m == 4 ? kWhole4
                      : kWhole6),
        count(m == 3 ? 3 : 1) {}
};

// f(SchemeConstant of the rows, and of the columns).
template <class F>
LIGHTKERNELS_INLINE void with_schemes(Scheme rows, Scheme columns, F&& f) {
  auto mixed = [&](auto r) {
    if (columns == Scheme::kAlone1) return f(r, SchemeConstant<Scheme::kAlone1>{});
    if (columns == Scheme::kAlone2) return f(r, SchemeConstant<Scheme::kAlone2>{});
    f(r, SchemeConstant<Scheme::kF3>{});
  };
  switch (rows) {
    case Scheme::kF2:
      return f(SchemeConstant<Scheme::kF2>{}, SchemeConstant<Scheme::kF2>{});
    case Scheme::kF4:
      return f(SchemeConstant<Scheme::kF4>{}, SchemeConstant<Scheme::kF4>{});
    case Scheme::kF6:
      return f(SchemeConstant<Scheme::kF6>{}, SchemeConstant<Scheme::kF6>{});
    case Scheme::kF3:
      return mixed(SchemeConstant<Scheme::kF3>{});
    case Scheme::kAlone1:
      return mixed(SchemeConstant<Scheme::kAlone1>{});
    case Scheme::kAlone2:
      return mixed(SchemeConstant<Scheme::kAlone2>{});
  }
}

int products_of(Scheme scheme) {
  int count = 0;
  with_schemes(scheme, scheme, [&](auto constant, auto) { count = Winograd<decltype(constant)::value>::kProducts; });
  return count;
}

// The tiles of one scheme along an axis, over all sub-grids of a dilated convolution that take it.
struct TileAxis {
  int64_t dilation, in, out, padding, m, count;
  Scheme scheme;

  TileAxis() = default;
  TileAxis(const Axis& axis, int64_t in_, int64_t out_, int64_t m_, Scheme scheme_)
      : dilation(axis.dilation), in(in_), out(out_), padding(-axis.first), m(m_), count(0), scheme(scheme_) {
    for (int64_t phase = 0; phase < std::min(dilation, out); ++phase) count += tiles_of(grid_of(phase));
  }

  // What tile number `t` reads and writes along the axis, in pixels of the image.
  struct Place {
    int64_t in, out;           // the first input and output; `dilation` apart
    int64_t in_begin, in_end;  // of the m + 2 inputs, those inside
    int64_t out_count;         // of the m outputs
  };
  Place at(int64_t t) const {
    int64_t phase = 0;
    GridAxis grid = grid_of(phase);
    for (int64_t tiles; t >= (tiles = tiles_of(grid)); t -= tiles) grid = grid_of(++phase);
    const int64_t first = t * m - grid.padding;
    Place place{};
    place.in = grid.in_first + first * dilation, place.out = phase + t * m * dilation;
    place.in_begin = std::max<int64_t>(0, -first);
    place.in_end = std::min(m + 2, grid.in - first);
    place.out_count = std::min(m, grid.out - t * m);
    return place;
  }

 private:
  GridAxis grid_of(int64_t phase) const { return GridAxis(phase, dilation, in, out, padding); }
  int64_t tiles_of(const GridAxis& grid) const {
    Scheme own = scheme;
    if (m == 3) {
      const bool alone = grid.out <= 2 && grid.padding >= 1 && grid.in + grid.padding <= grid.out + 1;
      own = !alone ? Scheme::kF3 : grid.out == 1 ? Scheme::kAlone1 : Scheme::kAlone2;
    }
    return own == scheme ? (grid.out + m - 1) / m : 0;
  }
};

// f(h, w) for each pair of schemes that has tiles.
template <class F>
void for_tiled(const DenseConv& d, int m, F&& f) {
  const Schemes schemes(m);
  TileAxis h[std::size(kMixed)], w[std::size(kMixed)];
  for (int i = 0; i < schemes.count; ++i) {
    h[i] = TileAxis(d.h, d.ih, d.oh, m, schemes.list[i]), w[i] = TileAxis(d.w, d.iw, d.ow, m, schemes.list[i]);
  }
  for (int r = 0; r < schemes.count; ++r) {
    for (int c = 0; c < schemes.count; ++c) {
      if (d.n * h[r].count * w[c].count > 0) f(h[r], w[c]);
    }
  }
}

// The tiles that have one scheme for their rows and one for their columns.
struct Part {
  TileAxis h, w;
  int64_t tiles, block, positions;  // block: tiles that are worked on at a time; positions: products of a tile
  int64_t weights;                  // where its weights are among all, in elements
};

template <class E>
class WinogradConv {
  using S = Acc<E>;
  static constexpr int L = lanes<S>();
  using V = Vec<S, L>;

 public:
  WinogradConv(const DenseConv& conv, int m, void* memory) : d(conv), limits(d.epilogue.activation) {
    staged_in = !std::is_same_v<E, S> || d.in_strides.c != 1;
    vectors = (d.co + L - 1) / L;
    in_step = d.ci + (d.ci * int64_t{sizeof(S)} % 4096 == 0 ? 16 : 0);
    out_step = vectors * L;
    int64_t most = 0;
    for_tiled(d, m, [&](const TileAxis& h, const TileAxis& w) {
      Part part{h, w};
      part.tiles = d.n * h.count * w.count;
      const int64_t blocks = (part.tiles + kMostTiles - 1) / kMostTiles;
      part.block = (part.tiles + blocks - 1) / blocks;
      part.positions = products_of(h.scheme) * products_of(w.scheme);
      part.weights = weights;
      weights += d.groups * part.positions * vectors * L * d.ci;
      most = std::max(most, part.positions * part.block);
      parts[count++] = part;
    });
    char* at = static_cast<char*>(memory);
    auto take = [&](int64_t elements) {
      char* taken = at;
      at += aligned(elements * int64_t{sizeof(S)});
      return reinterpret_cast<S*>(taken);
    };
    packed = d.packed ? static_cast<const S*>(d.packed) : take(weights);
    stage = staged_in ? take(d.n * d.ih * d.iw * d.ci) : nullptr;
    // Planes of pixels come of vectors of channels at the end, where a plane is dense and nothing else is to be done.
    const Strides4& y = d.out_strides;
    const bool planes = y.c != 1 && y.w == 1 && y.h == d.ow && y.c == d.oh * d.ow;
    staged_out = std::is_same_v<E, S> && planes && d.epilogue.is_clamp() ? take(d.n * d.oh * d.ow * d.co) : nullptr;
    inputs = take(most * in_step);
    products = take(most * out_step);
    bytes = at - static_cast<char*>(memory);
  }

  int64_t packed_bytes() const { return aligned(weights * int64_t{sizeof(S)}); }
  int64_t workspace() const { return bytes; }
  // The parts there are, as bits from the second on.
  int64_t layout() const {
    int64_t bits = 0;
    for (int i = 0; i < count; ++i) {
      bits |= int64_t{2} << (6 * static_cast<int>(parts[i].h.scheme) + static_cast<int>(parts[i].w.scheme));
    }
    return bits;
  }

  // Of each part [groups, positions, panels, ci, width * L].
  void pack(void* to, const Launch& launch) const {
    launch.parallel(d.groups * vectors, 1, [&](int64_t begin, int64_t end) {
      for (int64_t unit = begin; unit < end; ++unit) {
        for (int i = 0; i < count; ++i) {
          with_schemes(parts[i].h.scheme, parts[i].w.scheme, [&](auto r, auto c) {
            pack_vector<decltype(r)::value, decltype(c)::value>(unit / vectors, unit % vectors,
                                                                static_cast<S*>(to) + parts[i].weights);
          });
        }
      }
    });
  }

  // dweight [taps, groups, co, ci] from d.in and d.out. What `packed` points to is then the gradient of the transformed
  // weights, of each part [groups, positions, co, ci].
  void weight_gradient(S* dweight, const Launch& launch) const {
    for (int64_t group = 0; group < d.groups; ++group) {
      const S* in = static_cast<const S*>(d.in) + group * d.ci;
      for (int i = 0; i < count; ++i) {
        with_schemes(parts[i].h.scheme, parts[i].w.scheme, [&](auto r, auto c) {
          weight_gradient_of<decltype(r)::value, decltype(c)::value>(parts[i], in, group, launch);
        });
      }
    }
    launch.parallel(d.groups * d.co, 1, [&](int64_t begin, int64_t end) {
      for (int64_t channel = begin; channel < end; ++channel) turn_back(channel / d.co, channel % d.co, dweight);
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
      for (int i = 0; i < count; ++i) {
        with_schemes(parts[i].h.scheme, parts[i].w.scheme, [&](auto r, auto c) {
          run_part<decltype(r)::value, decltype(c)::value>(parts[i], in, strides, group, launch);
        });
      }
      if (staged_out) bring_out(group, launch);
    }
  }

 private:
  template <Scheme kRows, Scheme kColumns>
  void run_part(const Part& part, const S* in, const Strides4& strides, int64_t group, const Launch& launch) const {
    for (int64_t first = 0; first < part.tiles; first += part.block) {
      const int64_t tiles = std::min(part.block, part.tiles - first);
      const int64_t in_work = tiles * d.ci * part.positions * 4, out_work = tiles * d.co * part.positions * 4;
      launch.parallel(tiles, grain_of(tiles, in_work), [&](int64_t begin, int64_t end) {
        for (int64_t t = begin; t < end; ++t) transform_input<kRows, kColumns>(part, in, strides, first + t, t);
      });
      multiply(part, group, tiles, launch);
      launch.parallel(tiles, grain_of(tiles, out_work), [&](int64_t begin, int64_t end) {
        for (int64_t t = begin; t < end; ++t) transform_output<kRows, kColumns>(part, group, first + t, t);
      });
    }
  }

  template <Scheme kRows, Scheme kColumns>
  void weight_gradient_of(const Part& part, const S* in, int64_t group, const Launch& launch) const {
    for (int64_t first = 0; first < part.tiles; first += part.block) {
      const int64_t tiles = std::min(part.block, part.tiles - first);
      const int64_t work = tiles * (d.ci + d.co) * part.positions * 4;
      launch.parallel(tiles, grain_of(tiles, work), [&](int64_t begin, int64_t end) {
        for (int64_t t = begin; t < end; ++t) {
          transform_input<kRows, kColumns>(part, in, d.in_strides, first + t, t);
          transform_gradient<kRows, kColumns>(part, group, first + t, t);
        }
      });
      multiply_gradients(part, group, tiles, first == 0, launch);
    }
  }

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

  template <Scheme kRows, Scheme kColumns>
  void pack_vector(int64_t group, int64_t vector, S* to) const {
    constexpr int R = Winograd<kRows>::kProducts, C = Winograd<kColumns>::kProducts;
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
        V g[3][3], u[R][C];
        unroll<9>(LIGHTKERNELS_LAMBDA(auto t) { g[t / 3][t % 3] = load<L, S>(weights + (k * 9 + t) * L); });
        transform_both<S>(g, u, OfWeight<kRows>{}, OfWeight<kColumns>{});
        S* out =
            to + group * R * C * vectors * L * d.ci + first * L * d.ci + (k0 + k) * width * L + (vector - first) * L;
        unroll<R * C>(LIGHTKERNELS_LAMBDA(auto p) { store<L, S>(out + p * vectors * L * d.ci, u[p / C][p % C]); });
      }
    }
  }

  // Tile number `tile` of the part, number t of the block.
  template <Scheme kRows, Scheme kColumns>
  void transform_input(const Part& part, const S* in, const Strides4& s, int64_t tile, int64_t t) const {
    using R = Winograd<kRows>;
    using C = Winograd<kColumns>;
    const TileAxis &h = part.h, &w = part.w;
    const auto row = h.at(tile / w.count % h.count), column = w.at(tile % w.count);
    const S* from = in + tile / w.count / h.count * s.n + row.in * s.h + column.in * s.w;
    const int64_t row_step = h.dilation * s.h, column_step = w.dilation * s.w;
    for (int64_t c = 0; c < d.ci; c += L) {
      const int64_t present = d.ci - c;
      V x[R::kInputs][C::kInputs], v[R::kProducts][C::kProducts];
      unroll<R::kInputs>(LIGHTKERNELS_LAMBDA(auto i_) {
        constexpr int i = i_ + R::kSkipped;
        const bool inside = i >= row.in_begin && i < row.in_end;
        unroll<C::kInputs>(LIGHTKERNELS_LAMBDA(auto j_) {
          constexpr int j = j_ + C::kSkipped;
          x[i_][j_] = inside && j >= column.in_begin && j < column.in_end
                          ? load_up_to<L, S>(from + i * row_step + j * column_step + c, present)
                          : V{};
        });
      });
      transform_both<S>(x, v, OfInput<kRows>{}, OfInput<kColumns>{});
      unroll<R::kProducts * C::kProducts>(LIGHTKERNELS_LAMBDA(auto p) {
        store_up_to<L, S>(inputs + (p * part.block + t) * in_step + c, v[p / C::kProducts][p % C::kProducts], present);
      });
    }
  }

  void multiply(const Part& part, int64_t group, int64_t tiles, const Launch& launch) const {
    const int64_t panels = panel_count(vectors), units = part.positions * panels, block = part.block;
    const S* weight = packed + part.weights + group * part.positions * vectors * L * d.ci;
    launch.parallel(units, grain_of(units, part.positions * tiles * d.ci * d.co), [&](int64_t begin, int64_t end) {
      for (int64_t unit = begin; unit < end; ++unit) {
        const int64_t position = unit / panels;
        const auto [first, width] = panel_at(vectors, unit % panels);
        Segment<S> segment{};
        Tile<S> tile{};
        segment.b = weight + (position * vectors + first) * L * d.ci, segment.k = d.ci;
        tile.segments = &segment, tile.count = 1;
        tile.a_step = in_step, tile.b_step = width * L;
        tile.vectors = width, tile.columns = width * L;
        tile.c_step = out_step;
        tile.low = -limits.infinity(), tile.high = limits.infinity();
        // The next panel comes from L3 or beyond while this one is multiplied: 1.4 times as fast with few tiles.
        const S* next = segment.b + width * L * d.ci;
        for_tiles(tiles, tile_rows<S>(width), [&](int64_t at, int rows) {
          tile.rows = rows;
          segment.a = inputs + (position * block + at) * in_step;
          tile.ahead = at == 0 ? next : at <= kTileRows<S, 2> ? next + L * d.ci : nullptr;
          tile.c = products + (position * block + at) * out_step + first * L;
          multiply_tile(Form::kRows, tile);
        });
      }
    });
  }

  // The gradient of tile number `tile`'s outputs into that of its products.
  template <Scheme kRows, Scheme kColumns>
  void transform_gradient(const Part& part, int64_t group, int64_t tile, int64_t t) const {
    using R = Winograd<kRows>;
    using C = Winograd<kColumns>;
    const TileAxis &h = part.h, &w = part.w;
    const auto row = h.at(tile / w.count % h.count), column = w.at(tile % w.count);
    const Strides4& s = d.out_strides;
    const S* dy = static_cast<const S*>(d.out) + tile / w.count / h.count * s.n + row.out * s.h + column.out * s.w;
    for (int64_t o = 0; o < d.co; o += L) {
      const int64_t present = d.co - o;
      V z[R::kOutputs][C::kOutputs], m[R::kProducts][C::kProducts];
      unroll<R::kOutputs>(LIGHTKERNELS_LAMBDA(auto i) {
        unroll<C::kOutputs>(LIGHTKERNELS_LAMBDA(auto j) {
          z[i][j] = i < row.out_count && j < column.out_count
                        ? load_up_to<L, S>(dy + i * h.dilation * s.h + j * w.dilation * s.w + group * d.co + o, present)
                        : V{};
        });
      });
      transform_both<S>(z, m, Turned<OfOutput<kRows>>{}, Turned<OfOutput<kColumns>>{});
      unroll<R::kProducts * C::kProducts>(LIGHTKERNELS_LAMBDA(auto p) {
        store<L, S>(products + (p * part.block + t) * out_step + o, m[p / C::kProducts][p % C::kProducts]);
      });
    }
  }

  void multiply_gradients(const Part& part, int64_t group, int64_t tiles, bool start, const Launch& launch) const {
    constexpr int64_t kRows = 2 * kTileRows<S, 2>;
    const int64_t columns = (d.ci + L - 1) / L, panels = panel_count(columns), chunks = (d.co + kRows - 1) / kRows;
    const int64_t each = (d.co + chunks - 1) / chunks, units = part.positions * chunks * panels, block = part.block;
    S* sums = const_cast<S*>(packed) + part.weights + group * part.positions * d.co * d.ci;
    launch.parallel(units, grain_of(units, part.positions * tiles * d.ci * d.co), [&](int64_t begin, int64_t end) {
      for (int64_t unit = begin; unit < end; ++unit) {
        const int64_t position = unit / panels / chunks, o = unit % chunks * each;
        const auto [first, width] = panel_at(columns, unit / chunks % panels);
        Segment<S> segment{};
        Tile<S> tile{};
        segment.b = inputs + position * block * in_step + first * L, segment.k = tiles;
        tile.segments = &segment, tile.count = 1;
        tile.a_step = out_step, tile.b_step = in_step;
        tile.vectors = width, tile.columns = std::min<int64_t>(width * L, d.ci - first * L);
        tile.c_step = d.ci, tile.accumulate = !start;
        tile.low = -limits.infinity(), tile.high = limits.infinity();
        for_tiles(std::min(each, d.co - o), tile_rows<S>(width), [&](int64_t at, int rows) {
          tile.rows = rows;
          segment.a = products + position * block * out_step + o + at;
          tile.c = sums + (position * d.co + o + at) * d.ci + first * L;
          multiply_tile(Form::kColumnsMasked, tile);
        });
      }
    });
  }

  // One output channel's weights.
  void turn_back(int64_t group, int64_t o, S* dweight) const {
    for (int64_t k = 0; k < d.ci; k += L) {
      const int64_t present = d.ci - k;
      V g[3][3] = {};
      for (int i = 0; i < count; ++i) {
        const S* from = packed + parts[i].weights + (group * parts[i].positions * d.co + o) * d.ci + k;
        with_schemes(parts[i].h.scheme, parts[i].w.scheme, [&](auto r, auto c) {
          constexpr Scheme kRows = decltype(r)::value, kColumns = decltype(c)::value;
          constexpr int R = Winograd<kRows>::kProducts, C = Winograd<kColumns>::kProducts;
          V u[R][C], of_part[3][3];
          unroll<R * C>(
              LIGHTKERNELS_LAMBDA(auto p) { u[p / C][p % C] = load_up_to<L, S>(from + p * d.co * d.ci, present); });
          transform_both<S>(u, of_part, Turned<OfWeight<kRows>>{}, Turned<OfWeight<kColumns>>{});
          unroll<9>(LIGHTKERNELS_LAMBDA(auto t) { g[t / 3][t % 3] += of_part[t / 3][t % 3]; });
        });
      }
      unroll<9>(LIGHTKERNELS_LAMBDA(auto t) {
        store_up_to<L, S>(dweight + ((t * d.groups + group) * d.co + o) * d.ci + k, g[t / 3][t % 3], present);
      });
    }
  }

  template <Scheme kRows, Scheme kColumns>
  void transform_output(const Part& part, int64_t group, int64_t tile, int64_t t) const {
    using R = Winograd<kRows>;
    using C = Winograd<kColumns>;
    const TileAxis &h = part.h, &w = part.w;
    const auto row = h.at(tile / w.count % h.count), column = w.at(tile % w.count);
    const int64_t n = tile / w.count / h.count;
    const bool direct = staged_out || (std::is_same_v<E, S> && d.out_strides.c == 1 && d.epilogue.is_clamp());
    const Strides4 s = staged_out ? Strides4{d.oh * d.ow * d.co, 1, d.ow * d.co, d.co} : d.out_strides;
    E* y = static_cast<E*>(d.out);
    if (staged_out) y = reinterpret_cast<E*>(staged_out) - group * d.co;
    y += n * s.n + row.out * s.h + column.out * s.w;
    for (int64_t o = 0; o < d.co; o += L) {
      const int64_t present = std::min<int64_t>(L, d.co - o), channel = group * d.co + o;
      V m[R::kProducts][C::kProducts], z[R::kOutputs][C::kOutputs];
      unroll<R::kProducts * C::kProducts>(LIGHTKERNELS_LAMBDA(auto p) {
        m[p / C::kProducts][p % C::kProducts] = load<L, S>(products + (p * part.block + t) * out_step + o);
      });
      transform_both<S>(m, z, OfOutput<kRows>{}, OfOutput<kColumns>{});
      if (!direct) {
        for (int64_t i = 0; i < row.out_count; ++i)
          finish(part, z[i], n, channel, present, row.out + i * h.dilation, column);
        continue;
      }
      V bias{};
      if (d.epilogue.bias) bias = load_up_to<L>(static_cast<const S*>(d.epilogue.bias) + channel, present);
      unroll<R::kOutputs>(LIGHTKERNELS_LAMBDA(auto i) {
        if (i >= row.out_count) return;
        unroll<C::kOutputs>(LIGHTKERNELS_LAMBDA(auto j) {
          if (j >= column.out_count) return;
          S* to = reinterpret_cast<S*>(y) + i * h.dilation * s.h + j * w.dilation * s.w + channel;
          store_up_to<L, S>(to, clamp(z[i][j] + bias, splat<L>(limits.low), splat<L>(limits.high)), present);
        });
      });
    }
  }

  // One row of a tile's outputs, z.
  void finish(const Part& part, const V* z, int64_t n, int64_t channel, int64_t present, int64_t row,
              const TileAxis::Place& column) const {
    Finish<S> f = finish_from<E>(d, n, row, column.out);
    f.y_pixel *= part.w.dilation, f.residual_pixel *= part.w.dilation;
    f.lanes_are_channels = true, f.channel = channel, f.columns = present;
    f.rows = column.out_count, f.sums = reinterpret_cast<const S*>(z), f.sums_step = L;
    finish_tile(d.dtype, f);
  }

  DenseConv d;
  Limits<S> limits;
  bool staged_in;
  Part parts[9];
  int count = 0;
  int64_t vectors, in_step, out_step, bytes, weights = 0;
  const S* packed;
  S *stage, *staged_out;  // [n, ih, iw, ci], [n, oh, ow, co], or null
  S *inputs, *products;   // [positions, tiles, in_step]; [positions, tiles, out_step]
};

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
  // Multiply-adds for each pair of channels, those of the transforms included.
  auto inside = [](const Axis& axis, int64_t in, int64_t out) {
    double taps = 0;
    for_same_taps(axis, in, 0, out, [&](int64_t begin, int64_t end, int64_t k0, int64_t k1) {
      taps += double(end - begin) * double(k1 - k0);
    });
    return taps;
  };
  double least = double(d.n) * inside(d.h, d.ih, d.oh) * inside(d.w, d.iw, d.ow);
  int best = 0;
  for (int m : {2, 3, 4, 6}) {
    double cost = 0;
    for_tiled(d, m, [&](const TileAxis& h, const TileAxis& w) {
      const double rows = products_of(h.scheme), columns = products_of(w.scheme);
      const double tiles = double(d.n) * double(h.count) * double(w.count);
      const double transforms = rows * columns * std::max(rows, columns) * (1. / d.co + 1. / d.ci);
      const double shared = std::max(tiles, kSharingTiles);  // weights that few share come from memory
      cost += 1.15 * (shared * rows * columns + tiles * 4 * transforms);
    });
    if (cost < least) least = cost, best = m;
  }
  return best;
}

int64_t winograd_layout(const DenseConv& d, int tile) {
  return with_type(d.dtype, [&](auto type) { return WinogradConv<decltype(type)>(d, tile, nullptr).layout(); });
}
int64_t winograd_workspace(const DenseConv& d, int tile) {
  return with_type(d.dtype, [&](auto type) { return WinogradConv<decltype(type)>(d, tile, nullptr).workspace(); });
}
int64_t winograd_packed_bytes(const DenseConv& d, int tile) {
  return with_type(d.dtype, [&](auto type) { return WinogradConv<decltype(type)>(d, tile, nullptr).packed_bytes(); });
}
void winograd_pack(const DenseConv& d, int tile, void* packed, const Launch& launch) {
  with_type(d.dtype, [&](auto type) { WinogradConv<decltype(type)>(d, tile, nullptr).pack(packed, launch); });
}
void winograd_convolve(const DenseConv& d, int tile, const Launch& launch) {
  with_type(d.dtype, [&](auto type) { WinogradConv<decltype(type)>(d, tile, launch.workspace).run(launch); });
}

namespace {

template <class F>
auto with_sums_type(DType dtype, F&& f) {
  return dtype == DType::kFloat64 ? f(double()) : f(float());
}

}  // namespace

int64_t winograd_weight_workspace(const DenseConv& d, int tile) {
  return with_sums_type(d.dtype, [&](auto type) { return WinogradConv<decltype(type)>(d, tile, nullptr).workspace(); });
}
void winograd_backward_weight(const DenseConv& d, int tile, void* dweight, const Launch& launch) {
  with_sums_type(d.dtype, [&](auto type) {
    using S = decltype(type);
    WinogradConv<S>(d, tile, launch.workspace).weight_gradient(static_cast<S*>(dweight), launch);
  });
}

}  // namespace lightkernels::cpu
