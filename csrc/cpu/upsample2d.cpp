// Upsampling: rows are blended first, then columns, which come out of two vectors by a shuffle whose lanes are a table.
// Backward is a gather too: every pixel of dx sums what it gave to, in the order of dy, so its bits never change.
#include "../upsample2d.h"

#include <algorithm>
#include <numeric>

#include "vec_lanes.h"

namespace lightkernels::cpu {
namespace {

constexpr int64_t kGrain = 16384;  // elements that are worth a thread
constexpr int64_t kChunks = 32;    // of the work, as many as threads can share evenly: each has a line of its own
constexpr int64_t kBeyondCaches = 1 << 24;  // bytes of y which, with x, a cache of 32 MiB does not hold

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

  Taps(Memory& memory, bool transposed, const ResampleAxis& axis)
      : dests(transposed ? axis.in : axis.out),
        first(memory.take<int64_t>(dests)),
        count(memory.take<int64_t>(dests)),
        begin(memory.take<int64_t>(dests)),
        weight(memory.take<A>(2 * axis.out)) {}

  // Forward, or of the transposed matrix.
  void fill(bool transposed, bool bilinear, const ResampleAxis& axis) {
    const auto source = [&](int64_t o) { return source_of<A>(bilinear, axis, o); };
    int64_t used = 0;
    for (int64_t d = 0, o = 0; d < dests; ++d) {
      begin[d] = used;
      if (!transposed) {
        const auto s = source(d);
        first[d] = s.lower;
        weight[used++] = s.upper > s.lower ? A(1) - s.upper_weight : A(1);
        if (s.upper > s.lower) weight[used++] = s.upper_weight;
      } else {
        while (o < axis.out && source(o).upper < d) ++o;
        first[d] = o;
        for (int64_t to = o; to < axis.out; ++to) {
          const auto s = source(to);
          if (s.lower > d) break;
          const A of = s.upper == s.lower ? A(1) : s.lower == d ? A(1) - s.upper_weight : s.upper_weight;
          if (of == 0 && used == begin[d]) {
            first[d] = to + 1;
          } else {
            weight[used++] = of;
          }
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

// The same as vectors: a block of L dests takes its taps from the 2 * L sources from `base` on. Where they reach
// further, a block is L / 2 dests, and lanes of the second half are the same dests' tap k + most / 2.
template <class A>
struct Columns {
  static constexpr int L = lanes<A>();
  using Lane = SignedOf<sizeof(A)>;

  int64_t room;                        // for how many vectors
  int64_t block = 0, blocks, vectors;  // dests in a block, 0 where no vectors will do; blocks; vectors of each
  int64_t* base;                       // [blocks]
  Lane* lane;                          // [blocks, vectors, L]
  A* weight;                           // the same; 0 where there is no tap

  Columns(Memory& memory, int64_t dests, int64_t most)
      : room((2 * dests / L + 2) * most),
        base(memory.take<int64_t>(2 * dests / L + 2)),
        lane(memory.take<Lane>(room * L)),
        weight(memory.take<A>(room * L)) {}

  int64_t place(int64_t dests, int64_t b) const { return std::min(b * block, dests - block); }

  void fill(const Taps<A>& taps) {
    if (!fill(taps, L) && !fill(taps, L / 2)) block = 0;
  }

  bool fill(const Taps<A>& taps, int64_t dests) {
    if (taps.dests < dests) return false;
    block = dests, blocks = (taps.dests + dests - 1) / dests, vectors = taps.most * dests / L;
    if (blocks * vectors > room) return false;
    for (int64_t b = 0; b < blocks; ++b) {
      const int64_t d0 = place(taps.dests, b);
      base[b] = taps.first[d0];
      for (int64_t k = 0; k < vectors; ++k) {
        for (int l = 0; l < L; ++l) {
          const int64_t d = d0 + l % dests, tap = k + l / dests * vectors, at = (b * vectors + k) * L + l;
          const bool is = tap < taps.count[d];
          const int64_t from = taps.first[d] + tap - base[b];
          if (is && from >= 2 * L) return false;
          lane[at] = static_cast<Lane>(is ? from : 0);
          weight[at] = is ? taps.weight[taps.begin[d] + tap] : A(0);
        }
      }
    }
    return true;
  }
};

// --- everything that a call needs ------------------------------------------------------------------------------------
template <class A>
struct Plan {
  static constexpr int64_t kPadding = 2 * lanes<A>();  // a window of two vectors may begin at a row's last element

  int64_t c;  // channels within a column: 1 in planes
  int64_t dest_h, dest_w, source_h, source_w, units, grain;
  Memory memory;
  Taps<A> rows, columns;
  Columns<A> vectors;
  A* lines;  // [slots, source_w * c + kPadding]

  Plan(const Upsample2dParams& p, bool transposed, void* workspace)
      : c(p.channels_last ? p.c : 1),
        dest_h(transposed ? p.h.in : p.h.out),
        dest_w(transposed ? p.w.in : p.w.out),
        source_h(transposed ? p.h.out : p.h.in),
        source_w(transposed ? p.w.out : p.w.in),
        units(p.n * (p.c / c) * dest_h),
        grain(std::max(1 + kGrain / (std::max(dest_w, source_w) * c), units / kChunks)),
        memory(workspace),
        rows(memory, transposed, p.h),
        columns(memory, transposed, p.w),
        vectors(memory, dest_w, transposed ? 2 * (source_w / dest_w) + 2 : 2),
        lines(memory.take<A>(Launch::slots(units, grain) * (source_w * c + kPadding))) {}

  // A chunk's own; what is behind its end is 0.
  A* line(int64_t begin) const {
    const int64_t width = source_w * c;
    A* result = lines + Launch::slot_of(begin, grain) * (width + kPadding);
    std::fill(result + width, result + width + kPadding, A(0));
    return result;
  }

  void fill(const Upsample2dParams& p, bool transposed) {
    rows.fill(transposed, p.bilinear, p.h);
    columns.fill(transposed, p.bilinear, p.w);
    if (!p.channels_last) vectors.fill(columns);
  }
};

// --- planes ----------------------------------------------------------------------------------------------------------
// line = the weighted sum of `K` rows of w elements, or of `count` where K is 0.
template <int K, class A, class T>
void blend_lines(const T* from, const A* weight, int64_t count, int64_t w, A* line) {
  constexpr int L = lanes<T>();
  if (K) count = K;
  const auto at = LIGHTKERNELS_LAMBDA(int64_t j, auto&& load) {
    Vec<A, L> sum = load(from + j) * splat<L>(weight[0]);
    for (int64_t k = 1; k < count; ++k) sum += load(from + k * w + j) * splat<L>(weight[k]);
    write(line + j, sum);
  };
  int64_t j = 0;
  for (; j + L <= w; j += L) at(j, LIGHTKERNELS_LAMBDA(const T* p) { return load<L>(p); });
  if (j < w) at(j, [&](const T* p) { return load_first<L>(p, w - j); });
}

// line = the weighted sum of a dest row's source rows.
template <class A, class T>
void blend_rows(const Plan<A>& plan, int64_t row, const T* plane, A* line) {
  const int64_t count = plan.rows.count[row], w = plan.source_w * plan.c;
  const T* from = plane + plan.rows.first[row] * w;
  const A* weight = plan.rows.weight + plan.rows.begin[row];
  switch (count) {
    case 0:
      return std::fill(line, line + w, A(0));
    case 1:
      return blend_lines<1, A, T>(from, weight, count, w, line);
    case 2:
      return blend_lines<2, A, T>(from, weight, count, w, line);
    case 4:
      return blend_lines<4, A, T>(from, weight, count, w, line);
    default:
      return blend_lines<0, A, T>(from, weight, count, w, line);
  }
}

template <int L, class A>
LIGHTKERNELS_INLINE Vec<A, L / 2> fold(Vec<A, L> v) {
  Vec<A, L / 2> half[2];
  std::memcpy(half, &v, sizeof v);
  return half[0] + half[1];
}

// y = the weighted sums of the line's elements, and add. `kVectors` of each block, if it is not 0.
template <int64_t kVectors, bool kFold, bool kStream, class A, class T>
void blend_blocks(const Columns<A>& columns, int64_t dests, const A* line, const T* add, T* y) {
  constexpr int L = lanes<T>(), D = kFold ? L / 2 : L;
  const int64_t vectors = kVectors ? kVectors : columns.vectors;
  for (int64_t b = 0; b < columns.blocks; ++b) {
    const int64_t d = std::min(b * D, dests - D);
    const auto low = read<Vec<A, L>>(line + columns.base[b]), high = read<Vec<A, L>>(line + columns.base[b] + L);
    Vec<A, L> sum{};
    for (int64_t k = 0; k < vectors; ++k) {
      const int64_t at = (b * vectors + k) * L;
      const auto weight = read<Vec<A, L>>(columns.weight + at);
      const auto v = pick<L, A>(low, high, read<Vec<SignedOf<sizeof(A)>, L>>(columns.lane + at));
      sum += weight != A(0) ? v * weight : Vec<A, L>{};  // where there is no tap, not even a NaN is
    }
    Vec<A, D> result;
    if constexpr (kFold) {
      result = fold<L, A>(sum);
    } else {
      result = sum;
    }
    if (add) result += load<D>(add + d);
    if constexpr (kStream) {
      stream<D>(y + d, result);
    } else {
      store<D>(y + d, result);
    }
  }
}

template <bool kStream, class A, class T>
void blend_columns(const Plan<A>& plan, const A* line, const T* add, T* y) {
  const Taps<A>& taps = plan.columns;
  const Columns<A>& columns = plan.vectors;
  if (columns.block == columns.L && columns.vectors == 2) {
    return blend_blocks<2, false, kStream, A, T>(columns, taps.dests, line, add, y);
  }
  if (columns.block == columns.L) return blend_blocks<0, false, false, A, T>(columns, taps.dests, line, add, y);
  if (columns.block && columns.vectors == 2)
    return blend_blocks<2, true, false, A, T>(columns, taps.dests, line, add, y);
  if (columns.block) return blend_blocks<0, true, false, A, T>(columns, taps.dests, line, add, y);
  for (int64_t d = 0; d < taps.dests; ++d) {
    A sum = 0;
    for (int64_t k = 0; k < taps.count[d]; ++k) sum += line[taps.first[d] + k] * taps.weight[taps.begin[d] + k];
    if (add) sum += load<1>(add + d)[0];
    store<1>(y + d, Vec<A, 1>{sum});
  }
}

template <bool kStream, class A, class T>
void planes(const Plan<A>& plan, const Launch& launch, const T* x, const T* add, T* y) {
  launch.parallel(plan.units, plan.grain, [&](int64_t begin, int64_t end) {
    A* line = plan.line(begin);
    for (int64_t unit = begin; unit < end; ++unit) {
      blend_rows<A, T>(plan, unit % plan.dest_h, x + unit / plan.dest_h * plan.source_h * plan.source_w, line);
      const int64_t at = unit * plan.dest_w;
      blend_columns<kStream, A, T>(plan, line, add ? add + at : nullptr, y + at);
    }
    finish_streams();
  });
}

// --- pixels ----------------------------------------------------------------------------------------------------------
// c channels of a pixel of y: the weighted sum of `KW` pixels of the line, or of `count` where KW is 0.
template <int KW, bool kStream, class A, class T>
LIGHTKERNELS_INLINE void blend_pixel(const A* line, const A* weight, int64_t count, int64_t c, const T* add, T* y) {
  constexpr int L = lanes<T>();
  if (KW) count = KW;
  const auto at = LIGHTKERNELS_LAMBDA(int64_t i) {
    Vec<A, L> sum = read<Vec<A, L>>(line + i) * splat<L>(weight[0]);
    for (int64_t v = 1; v < count; ++v) sum += read<Vec<A, L>>(line + v * c + i) * splat<L>(weight[v]);
    return sum;
  };
  const auto whole = LIGHTKERNELS_LAMBDA(int64_t i) {
    auto sum = at(i);
    if (add) sum += load<L>(add + i);
    if constexpr (kStream) {
      stream<L>(y + i, sum);
    } else {
      store<L>(y + i, sum);
    }
  };
  int64_t i = 0;
  for (; i + L <= c; i += L) whole(i);
  if (i == c) return;
  if (i > 0) return whole(c - L);
  auto sum = at(0);  // the line goes on behind its end
  if (add) sum += load_first<L>(add, c);
  store_first<L>(y, sum, c);
}

template <bool kStream, class A, class T>
void pixels(const Plan<A>& plan, const Launch& launch, const T* x, const T* add, T* y) {
  const Taps<A>& columns = plan.columns;
  const int64_t c = plan.c, width = plan.source_w * c;
  launch.parallel(plan.units, plan.grain, [&](int64_t begin, int64_t end) {
    A* line = plan.line(begin);
    for (int64_t unit = begin; unit < end; ++unit) {
      blend_rows<A, T>(plan, unit % plan.dest_h, x + unit / plan.dest_h * plan.source_h * width, line);
      for (int64_t column = 0; column < plan.dest_w; ++column) {
        const int64_t at = (unit * plan.dest_w + column) * c, count = columns.count[column];
        const A *from = line + columns.first[column] * c, *weight = columns.weight + columns.begin[column];
        const T* of_add = add ? add + at : nullptr;
        if (count == 2) {
          blend_pixel<2, kStream, A, T>(from, weight, count, c, of_add, y + at);
        } else if (count == 4) {
          blend_pixel<4, kStream, A, T>(from, weight, count, c, of_add, y + at);
        } else if (count) {
          blend_pixel<0, kStream, A, T>(from, weight, count, c, of_add, y + at);
        } else {
          std::fill(y + at, y + at + c, T{});
        }
      }
    }
    finish_streams();
  });
}

template <class T>
void blend(const Upsample2dParams& p, const Launch& launch, bool transposed, const void* x, void* y) {
  Plan<Acc<T>> plan(p, transposed, launch.workspace);
  plan.fill(p, transposed);
  const T *from = static_cast<const T*>(x), *add = transposed ? nullptr : static_cast<const T*>(p.add);
  // Whole lines of a result that no cache holds go past them.
  const int64_t line = p.channels_last ? p.c : plan.dest_w, count = plan.units * plan.dest_w * plan.c;
  const bool whole = line % lanes<T>() == 0 && reinterpret_cast<uintptr_t>(y) % 64 == 0;
  constexpr bool kMay = kStreams && std::is_same_v<T, float>;
  const bool past = kMay && whole && count * p.bytes >= kBeyondCaches;
  const auto run = p.channels_last ? (past ? pixels<kMay, Acc<T>, T> : pixels<false, Acc<T>, T>)
                                   : (past ? planes<kMay, Acc<T>, T> : planes<false, Acc<T>, T>);
  run(plan, launch, from, add, static_cast<T*>(y));
}

// --- nearest, of any element -----------------------------------------------------------------------------------------
template <class S>
void nearest(const Upsample2dParams& p, const Launch& launch) {
  Memory memory(launch.workspace);
  int64_t *row_of = memory.take<int64_t>(p.h.out), *column_of = memory.take<int64_t>(p.w.out);
  for (int64_t o = 0; o < p.h.out; ++o) row_of[o] = source_of<float>(false, p.h, o).lower;
  for (int64_t o = 0; o < p.w.out; ++o) column_of[o] = source_of<float>(false, p.w, o).lower;
  const int64_t c = p.channels_last ? p.c : 1, units = p.n * (p.channels_last ? 1 : p.c) * p.h.out;
  launch.parallel(units, 1 + kGrain / (p.w.out * c), [&](int64_t begin, int64_t end) {
    for (int64_t unit = begin; unit < end; ++unit) {
      const int64_t row = unit % p.h.out;
      S* y = static_cast<S*>(p.y) + unit * p.w.out * c;
      if (unit > begin && row && row_of[row] == row_of[row - 1]) {
        std::memcpy(y, y - p.w.out * c, p.w.out * c * sizeof(S));
        continue;
      }
      const S* x = static_cast<const S*>(p.x) + (unit / p.h.out * p.h.in + row_of[row]) * p.w.in * c;
      if (c == 1) {
        for (int64_t o = 0; o < p.w.out; ++o) y[o] = x[column_of[o]];
      } else {
        for (int64_t o = 0; o < p.w.out; ++o) std::memcpy(y + o * c, x + column_of[o] * c, c * sizeof(S));
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
  if (!p.bilinear && !p.add) {
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
