// Upsampling: rows are blended first, then columns, which come out of two vectors by a shuffle whose lanes are a table.
// Backward is a gather too: every pixel of dx sums what it gave to, in the order of dy, so its bits never change.
#include "../upsample2d.h"

#include <algorithm>
#include <numeric>

#include "vec_lanes.h"

namespace lightkernels::cpu {
namespace {

constexpr int64_t kGrain = 16384;  // elements that are worth a thread

// --- tables of one axis ----------------------------------------------------------------------------------------------
// They lie in the workspace, one after the other.
class Memory {
 public:
  explicit Memory(void* begin) : at_(reinterpret_cast<uintptr_t>(begin)) {}
  template <class T>
  T* take(int64_t count) {
    at_ = (at_ + 63) / 64 * 64;
    auto* result = reinterpret_cast<T*>(at_);
    at_ += count * sizeof(T);
    return result;
  }
  int64_t used() const { return static_cast<int64_t>(at_) + 64; }

 private:
  uintptr_t at_;
};

// What dest d takes from the source: `count[d]` elements from first[d] on, each with its weight.
template <class A>
struct Taps {
  int64_t dests, most = 0;  // most: the largest count, rounded up to an even number
  int64_t *first, *count, *begin;
  A* weight;

  Taps(Memory& memory, bool transposed, int64_t in, int64_t out)
      : dests(transposed ? in : out),
        first(memory.take<int64_t>(dests)),
        count(memory.take<int64_t>(dests)),
        begin(memory.take<int64_t>(dests)),
        weight(memory.take<A>(2 * out)) {}

  // Forward, or of the transposed matrix.
  void fill(const Upsample2dParams& p, bool transposed, double step, int64_t in, int64_t out) {
    const auto source = [&](int64_t o) { return source_of<A>(p.mode, p.align_corners, step, in, out, o); };
    int64_t used = 0;
    const bool linear = p.mode == Resample::kBilinear;
    for (int64_t d = 0, o = 0; d < dests; ++d) {
      begin[d] = used;
      if (!transposed) {
        const auto s = source(d);
        first[d] = s.lower;
        weight[used++] = linear && s.upper > s.lower ? A(1) - s.upper_weight : A(1);
        if (linear && s.upper > s.lower) weight[used++] = s.upper_weight;
      } else {
        while (o < out && (linear ? source(o).upper : source(o).lower) < d) ++o;
        first[d] = o;
        for (int64_t to = o; to < out; ++to) {
          const auto s = source(to);
          if (s.lower > d) break;
          const bool both = !linear || s.upper == s.lower;
          weight[used++] = both ? A(1) : s.lower == d ? A(1) - s.upper_weight : s.upper_weight;
        }
      }
      count[d] = used - begin[d];
      most = std::max(most, (count[d] + 1) / 2 * 2);
    }
  }
};

template <int L, class S>
LIGHTKERNELS_INLINE Vec<S, L> pick(Vec<S, L> a, Vec<S, L> b, Vec<SignedOf<sizeof(S)>, L> lane) {
#if defined(__clang__)
  Vec<S, L> result;
  for (int l = 0; l < L; ++l) result[l] = lane[l] < L ? a[lane[l]] : b[lane[l] - L];
  return result;
#else
  return __builtin_shuffle(a, b, lane);
#endif
}

// The same as vectors: a block of L / 2 dests takes its taps from the 2 * L sources from `base` on. Lanes of the first
// half of a vector are the dests' tap k, those of the second their tap k + most / 2.
template <class A>
struct Columns {
  static constexpr int L = lanes<A>(), kHalf = L / 2;
  using Lane = SignedOf<sizeof(A)>;

  int64_t blocks;
  bool fits;      // do all blocks lie within 2 * L sources?
  int64_t* base;  // [blocks]
  Lane* lane;     // [blocks, most / 2, L]
  A* weight;      // the same; 0 where there is no tap

  static int64_t place(int64_t dests, int64_t block) { return std::min(block * kHalf, dests - kHalf); }

  Columns(Memory& memory, int64_t dests, int64_t most)
      : blocks(dests < kHalf ? 0 : (dests + kHalf - 1) / kHalf),
        fits(false),
        base(memory.take<int64_t>(blocks)),
        lane(memory.take<Lane>(blocks * most / 2 * L)),
        weight(memory.take<A>(blocks * most / 2 * L)) {}

  void fill(const Taps<A>& taps) {
    fits = blocks > 0;
    const int64_t pairs = taps.most / 2;
    for (int64_t b = 0; b < blocks && fits; ++b) {
      const int64_t d0 = place(taps.dests, b);
      base[b] = taps.first[d0];
      for (int64_t k = 0; k < pairs; ++k) {
        for (int l = 0; l < L; ++l) {
          const int64_t d = d0 + l % kHalf, tap = l < kHalf ? k : k + pairs, at = (b * pairs + k) * L + l;
          const bool is = tap < taps.count[d];
          const int64_t from = taps.first[d] + tap - base[b];
          fits = fits && (!is || (from >= 0 && from < 2 * L));
          lane[at] = static_cast<Lane>(is ? from : 0);
          weight[at] = is ? taps.weight[taps.begin[d] + tap] : A(0);
        }
      }
    }
  }
};

// --- everything that a call needs ------------------------------------------------------------------------------------
template <class A>
struct Plan {
  static constexpr int64_t kPadding = 2 * lanes<A>();  // a window of two vectors may begin at a row's last element

  int64_t dest_h, dest_w, source_h, source_w, units, grain;
  Memory memory;
  Taps<A> rows, columns;
  Columns<A> vectors;
  A* lines;  // [slots, source_w + kPadding]

  Plan(const Upsample2dParams& p, bool transposed, void* workspace)
      : dest_h(transposed ? p.ih : p.oh),
        dest_w(transposed ? p.iw : p.ow),
        source_h(transposed ? p.oh : p.ih),
        source_w(transposed ? p.ow : p.iw),
        units(p.n * (p.channels_last ? 1 : p.c) * dest_h),
        grain(1 + kGrain / (std::max(dest_w, source_w) * (p.channels_last ? p.c : 1))),
        memory(workspace),
        rows(memory, transposed, p.ih, p.oh),
        columns(memory, transposed, p.iw, p.ow),
        vectors(memory, dest_w, 2 + 2 * ((dest_w + source_w) / dest_w)),
        lines(memory.take<A>(Launch::slots(units, grain) * (source_w + kPadding))) {}

  void fill(const Upsample2dParams& p, bool transposed) {
    rows.fill(p, transposed, p.step_h, p.ih, p.oh);
    columns.fill(p, transposed, p.step_w, p.iw, p.ow);
    if (!p.channels_last && columns.most <= 2 + 2 * ((dest_w + source_w) / dest_w)) vectors.fill(columns);
  }
};

// --- planes ----------------------------------------------------------------------------------------------------------
// line = the weighted sum of a dest row's source rows.
template <class A, class T>
void blend_rows(const Plan<A>& plan, int64_t row, const T* plane, A* line) {
  constexpr int L = lanes<T>();
  const T* from = plane + plan.rows.first[row] * plan.source_w;
  const A* weight = plan.rows.weight + plan.rows.begin[row];
  const int64_t count = plan.rows.count[row], w = plan.source_w;
  if (count == 2) {
    const auto w0 = splat<L>(weight[0]), w1 = splat<L>(weight[1]);
    for (int64_t j = 0; j < w; j += L) {
      write(line + j, load_up_to<L>(from + j, w - j) * w0 + load_up_to<L>(from + w + j, w - j) * w1);
    }
    return;
  }
  for (int64_t j = 0; j < w; j += L) {
    Vec<A, L> sum{};
    for (int64_t k = 0; k < count; ++k) {
      const auto v = load_up_to<L>(from + k * w + j, w - j) * splat<L>(weight[k]);
      sum = k ? sum + v : v;
    }
    write(line + j, sum);
  }
}

template <int L, class A>
LIGHTKERNELS_INLINE Vec<A, L / 2> fold(Vec<A, L> v) {
  Vec<A, L / 2> half[2];
  std::memcpy(half, &v, sizeof v);
  return half[0] + half[1];
}

// y = the weighted sums of the line's elements, and add.
template <class A, class T>
void blend_columns(const Plan<A>& plan, const A* line, const T* add, T* y) {
  constexpr int L = lanes<T>(), kHalf = L / 2;
  const Taps<A>& taps = plan.columns;
  if (!plan.vectors.fits) {
    for (int64_t d = 0; d < taps.dests; ++d) {
      A sum = 0;
      for (int64_t k = 0; k < taps.count[d]; ++k) {
        const A term = line[taps.first[d] + k] * taps.weight[taps.begin[d] + k];
        sum = k ? sum + term : term;
      }
      if (add) sum += load<1>(add + d)[0];
      store<1>(y + d, Vec<A, 1>{sum});
    }
    return;
  }
  const Columns<A>& vectors = plan.vectors;
  const int64_t pairs = taps.most / 2;
  for (int64_t b = 0; b < vectors.blocks; ++b) {
    const int64_t d = vectors.place(taps.dests, b);
    const auto low = read<Vec<A, L>>(line + vectors.base[b]), high = read<Vec<A, L>>(line + vectors.base[b] + L);
    Vec<A, L> sum{};
    for (int64_t k = 0; k < pairs; ++k) {
      const int64_t at = (b * pairs + k) * L;
      const auto weight = read<Vec<A, L>>(vectors.weight + at);
      const auto v = pick<L, A>(low, high, read<Vec<SignedOf<sizeof(A)>, L>>(vectors.lane + at));
      sum += weight != A(0) ? v * weight : Vec<A, L>{};  // no tap: not even a NaN
    }
    auto result = fold<L, A>(sum);
    if (add) result += load<kHalf>(add + d);
    store<kHalf>(y + d, result);
  }
}

template <class A, class T>
void planes(const Plan<A>& plan, const Launch& launch, const T* x, const T* add, T* y) {
  const int64_t width = plan.source_w + plan.kPadding;
  launch.parallel(plan.units, plan.grain, [&](int64_t begin, int64_t end) {
    A* line = plan.lines + Launch::slot_of(begin, plan.grain) * width;
    std::fill(line + plan.source_w, line + width, A(0));
    for (int64_t unit = begin; unit < end; ++unit) {
      blend_rows<A, T>(plan, unit % plan.dest_h, x + unit / plan.dest_h * plan.source_h * plan.source_w, line);
      const int64_t at = unit * plan.dest_w;
      blend_columns<A, T>(plan, line, add ? add + at : nullptr, y + at);
    }
  });
}

// --- pixels ----------------------------------------------------------------------------------------------------------
// One pixel of y: the weighted sum of a rectangle of pixels.
template <int L, class A, class T>
LIGHTKERNELS_INLINE void blend_pixel(const Plan<A>& plan, int64_t row, int64_t column, int64_t c, const T* image,
                                     const T* add, T* y) {
  const Taps<A>&rows = plan.rows, &columns = plan.columns;
  const A *wh = rows.weight + rows.begin[row], *ww = columns.weight + columns.begin[column];
  const int64_t kh = rows.count[row], kw = columns.count[column];
  const T* first = image + (rows.first[row] * plan.source_w + columns.first[column]) * c;
  const auto at = LIGHTKERNELS_LAMBDA(int64_t i, int64_t count) {
    Vec<A, L> sum{};
    for (int64_t u = 0; u < kh; ++u) {
      const T* from = first + u * plan.source_w * c + i;
      Vec<A, L> line{};
      for (int64_t v = 0; v < kw; ++v) {
        const auto term = load_up_to<L>(from + v * c, count) * splat<L>(ww[v]);
        line = v ? line + term : term;
      }
      line *= splat<L>(wh[u]);
      sum = u ? sum + line : line;
    }
    if (add) sum += load_up_to<L>(add + i, count);
    store_up_to<L>(y + i, sum, count);
  };
  int64_t i = 0;
  for (; i + L <= c; i += L) at(i, L);
  if (i < c) at(i, c - i);
}

template <class A, class T>
void pixels(const Plan<A>& plan, const Launch& launch, int64_t c, const T* x, const T* add, T* y) {
  launch.parallel(plan.units, plan.grain, [&](int64_t begin, int64_t end) {
    for (int64_t unit = begin; unit < end; ++unit) {
      const int64_t row = unit % plan.dest_h;
      const T* image = x + unit / plan.dest_h * plan.source_h * plan.source_w * c;
      for (int64_t column = 0; column < plan.dest_w; ++column) {
        const int64_t at = (unit * plan.dest_w + column) * c;
        blend_pixel<lanes<T>(), A, T>(plan, row, column, c, image, add ? add + at : nullptr, y + at);
      }
    }
  });
}

template <class T>
void blend(const Upsample2dParams& p, const Launch& launch, bool transposed, const void* x, void* y) {
  Plan<Acc<T>> plan(p, transposed, launch.workspace);
  plan.fill(p, transposed);
  const T *from = static_cast<const T*>(x), *add = transposed ? nullptr : static_cast<const T*>(p.add);
  if (p.channels_last) return pixels<Acc<T>, T>(plan, launch, p.c, from, add, static_cast<T*>(y));
  planes<Acc<T>, T>(plan, launch, from, add, static_cast<T*>(y));
}

// --- nearest, of any element -----------------------------------------------------------------------------------------
template <class S>
void nearest(const Upsample2dParams& p, const Launch& launch) {
  Memory memory(launch.workspace);
  int64_t *row_of = memory.take<int64_t>(p.oh), *column_of = memory.take<int64_t>(p.ow);
  for (int64_t o = 0; o < p.oh; ++o) row_of[o] = source_of<float>(p.mode, false, p.step_h, p.ih, p.oh, o).lower;
  for (int64_t o = 0; o < p.ow; ++o) column_of[o] = source_of<float>(p.mode, false, p.step_w, p.iw, p.ow, o).lower;
  const int64_t c = p.channels_last ? p.c : 1, units = p.n * (p.channels_last ? 1 : p.c) * p.oh;
  launch.parallel(units, 1 + kGrain / (p.ow * c), [&](int64_t begin, int64_t end) {
    for (int64_t unit = begin; unit < end; ++unit) {
      const int64_t row = unit % p.oh;
      S* y = static_cast<S*>(p.y) + unit * p.ow * c;
      if (unit > begin && row && row_of[row] == row_of[row - 1]) {
        std::memcpy(y, y - p.ow * c, p.ow * c * sizeof(S));
        continue;
      }
      const S* x = static_cast<const S*>(p.x) + (unit / p.oh * p.ih + row_of[row]) * p.iw * c;
      if (c == 1) {
        for (int64_t o = 0; o < p.ow; ++o) y[o] = x[column_of[o]];
      } else {
        for (int64_t o = 0; o < p.ow; ++o) std::memcpy(y + o * c, x + column_of[o] * c, c * sizeof(S));
      }
    }
  });
}

}  // namespace

int64_t upsample2d_workspace(const Upsample2dParams& p) {
  const auto bytes = [&](auto type) {
    using A = decltype(type);
    return std::max(Plan<A>(p, false, nullptr).memory.used(), Plan<A>(p, true, nullptr).memory.used());
  };
  return p.dtype == DType::kFloat64 ? bytes(double{}) : bytes(float{});
}

void upsample2d_forward(const Upsample2dParams& p, const Launch& launch) {
  if (p.mode != Resample::kBilinear && !p.add) {
    if (p.bytes == 1) return nearest<uint8_t>(p, launch);
    if (p.bytes == 2) return nearest<uint16_t>(p, launch);
    return p.bytes == 4 ? nearest<uint32_t>(p, launch) : nearest<uint64_t>(p, launch);
  }
  with_type(p.dtype, [&](auto type) { blend<decltype(type)>(p, launch, false, p.x, p.y); });
}

void upsample2d_backward(const Upsample2dParams& p, const Launch& launch) {
  with_type(p.dtype, [&](auto type) { blend<decltype(type)>(p, launch, true, p.dy, p.dx); });
}

void upsample2d_repeat(const MoveParams& p, const Launch& launch) { move(p, launch); }

}  // namespace lightkernels::cpu
