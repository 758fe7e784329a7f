// Moves at the speed of memory: several streams become one, or one becomes several, by shuffles of whole vectors.
#include "../move.h"

#include <algorithm>

#include "permute.h"
#include "vec_lanes.h"

namespace lightkernels::cpu {
namespace {

constexpr int64_t kGrain = 1 << 16;         // bytes that are worth a thread
constexpr int64_t kBeyondCaches = 1 << 24;  // bytes of y which, with x, a cache of 32 MiB does not hold

struct Word16 {  // an element of 16 bytes, such as complex128
  uint64_t low, high;
};

// --- interleaving in registers ---------------------------------------------------------------------------------------
// Element q of P interleaved vectors is lane q / P of vector q % P. Vector OUT of the result takes the lanes of sources
// 0 and 1 first, then those of source S, one source at a time.
template <int P, int OUT, int S>
struct TakeIn {
  static constexpr int at(int i, int lanes) {
    const int q = OUT * lanes + i;
    return q % P == S ? lanes + q / P : S == 1 && q % P == 0 ? q / P : i;
  }
};
// Stream OUT of P, taken apart, is elements OUT, OUT + P, ... of P vectors one after the other.
template <int P, int OUT, int S>
struct TakeOut {
  static constexpr int at(int i, int lanes) {
    const int q = i * P + OUT;
    return q / lanes == S ? lanes + q % lanes : S == 1 && q / lanes == 0 ? q : i;
  }
};

constexpr int smallest_factor(int n) {
  for (int f = 2; f * f <= n; ++f) {
    if (n % f == 0) return f;
  }
  return n;
}

template <template <int, int, int> class Take, int P, int L, class S>
LIGHTKERNELS_INLINE void take(const Vec<S, L> (&in)[P], Vec<S, L> (&out)[P]) {
  unroll<P>(LIGHTKERNELS_LAMBDA(auto o) {
    constexpr int kOut = decltype(o)::value;
    out[kOut] = shuffle<Take<P, kOut, 1>, L, S>(in[0], in[1]);
    unroll<P - 2>(LIGHTKERNELS_LAMBDA(auto s) {
      constexpr int kSource = decltype(s)::value + 2;
      out[kOut] = shuffle<Take<P, kOut, kSource>, L, S>(out[kOut], in[kSource]);
    });
  });
}

// v[s] is a stream each -> they follow each other, interleaved. A = P * Q streams are P times Q streams first.
template <int A, int L, class S>
LIGHTKERNELS_INLINE void interleave(Vec<S, L> (&v)[A]) {
  if constexpr (A > 1) {
    constexpr int P = smallest_factor(A), Q = A / P;
    Vec<S, L> group[P][Q];
    unroll<P>(LIGHTKERNELS_LAMBDA(auto p) {
      unroll<Q>(LIGHTKERNELS_LAMBDA(auto q) { group[p][q] = v[q * P + p]; });
      interleave<Q, L, S>(group[p]);
    });
    unroll<Q>(LIGHTKERNELS_LAMBDA(auto q) {
      Vec<S, L> in[P], out[P];
      unroll<P>(LIGHTKERNELS_LAMBDA(auto p) { in[p] = group[p][q]; });
      take<TakeIn, P, L, S>(in, out);
      unroll<P>(LIGHTKERNELS_LAMBDA(auto p) { v[q * P + p] = out[p]; });
    });
  }
}

// The inverse.
template <int A, int L, class S>
LIGHTKERNELS_INLINE void deinterleave(Vec<S, L> (&v)[A]) {
  if constexpr (A > 1) {
    constexpr int P = smallest_factor(A), Q = A / P;
    Vec<S, L> group[P][Q];
    unroll<Q>(LIGHTKERNELS_LAMBDA(auto q) {
      Vec<S, L> in[P], out[P];
      unroll<P>(LIGHTKERNELS_LAMBDA(auto p) { in[p] = v[q * P + p]; });
      take<TakeOut, P, L, S>(in, out);
      unroll<P>(LIGHTKERNELS_LAMBDA(auto p) { group[p][q] = out[p]; });
    });
    unroll<P>(LIGHTKERNELS_LAMBDA(auto p) {
      deinterleave<Q, L, S>(group[p]);
      unroll<Q>(LIGHTKERNELS_LAMBDA(auto q) { v[q * P + p] = group[p][q]; });
    });
  }
}

// --- the innermost loops, over some rows -----------------------------------------------------------------------------
struct Rows {
  int64_t count, x, y;  // and their strides
};

// f(i) for i = 0, L, 2L, ...; the last vector slides back to end at `length`, which is no less than L.
template <int L, class F>
LIGHTKERNELS_INLINE void over(int64_t length, F&& f) {
  int64_t i = 0;
  for (; i + L < length; i += L) f(i);
  f(length - L);
}

// Past the caches, or as ever.
template <bool kStream, class S, class V>
LIGHTKERNELS_INLINE void put(S* p, V v) {
#if defined(__AVX512F__)
  if constexpr (kStream) return _mm512_stream_si512(reinterpret_cast<__m512i*>(p), (__m512i)v);
#endif
  write(p, v);
}

template <int A, int L, bool kStream, class S>
void interleave_rows(const MoveParams& p, const S* x, S* y, const Rows& rows) {
  const S* from[A];
  unroll<A>(LIGHTKERNELS_LAMBDA(auto s) { from[s] = x + p.streams[s]; });
  for (int64_t row = 0; row < rows.count; ++row) {
    const int64_t first = row * rows.x;
    S* to = y + row * rows.y;
    over<L>(
        p.length, LIGHTKERNELS_LAMBDA(int64_t i) {
          Vec<S, L> v[A];
          unroll<A>(LIGHTKERNELS_LAMBDA(auto s) { v[s] = read<Vec<S, L>>(from[s] + first + i); });
          interleave<A, L, S>(v);
          unroll<A>(LIGHTKERNELS_LAMBDA(auto s) { put<kStream>(to + i * A + s * L, v[s]); });
        });
  }
}

template <int A, int L, bool kStream, class S>
void deinterleave_rows(const MoveParams& p, const S* x, S* y, const Rows& rows) {
  S* to[A];
  unroll<A>(LIGHTKERNELS_LAMBDA(auto s) { to[s] = y + p.streams[s]; });
  for (int64_t row = 0; row < rows.count; ++row) {
    const S* from = x + row * rows.x;
    const int64_t first = row * rows.y;
    over<L>(
        p.length, LIGHTKERNELS_LAMBDA(int64_t i) {
          Vec<S, L> v[A];
          unroll<A>(LIGHTKERNELS_LAMBDA(auto s) { v[s] = read<Vec<S, L>>(from + i * A + s * L); });
          deinterleave<A, L, S>(v);
          unroll<A>(LIGHTKERNELS_LAMBDA(auto s) { put<kStream>(to[s] + first + i, v[s]); });
        });
  }
}

// Any number of streams, and streams that are shorter than a vector.
template <class S>
void one_by_one(const MoveParams& p, const S* x, S* y, const Rows& rows) {
  for (int64_t row = 0; row < rows.count; ++row, x += rows.x, y += rows.y) {
    if (p.innermost == Innermost::kPick) {
      for (int64_t i = 0; i < p.length; ++i) y[i] = x[i * p.step];
    } else if (p.innermost == Innermost::kInterleave) {
      for (int64_t i = 0; i < p.length; ++i) {
        for (int64_t s = 0; s < p.ways; ++s) y[i * p.ways + s] = x[p.streams[s] + i];
      }
    } else {
      for (int64_t i = 0; i < p.length; ++i) {
        for (int64_t s = 0; s < p.ways; ++s) y[p.streams[s] + i] = x[i * p.ways + s];
      }
    }
  }
}

// Of `bytes`, in vectors that overlap at the end: memcpy's `rep movsb`, which it takes here, is slower.
template <bool kStream>
LIGHTKERNELS_INLINE void copy(const char* x, char* y, int64_t bytes) {
  using V = Vec<uint8_t, kVectorBytes>;
  constexpr int64_t L = sizeof(V);
  if (bytes < L) return static_cast<void>(std::memcpy(y, x, bytes));
  int64_t i = 0;
  for (; i + 4 * L <= bytes; i += 4 * L) {
    V v[4];
    unroll<4>(LIGHTKERNELS_LAMBDA(auto k) { v[k] = read<V>(x + i + k * L); });
    unroll<4>(LIGHTKERNELS_LAMBDA(auto k) { put<kStream>(y + i + k * L, v[k]); });
  }
  for (; i + L <= bytes; i += L) put<kStream>(y + i, read<V>(x + i));
  if (i < bytes) write(y + bytes - L, read<V>(x + bytes - L));
}

template <bool kStream, class S>
void copy_rows(const MoveParams& p, const S* x, S* y, const Rows& rows) {
  for (int64_t row = 0; row < rows.count; ++row, x += rows.x, y += rows.y) {
    copy<kStream>(reinterpret_cast<const char*>(x), reinterpret_cast<char*>(y), p.length * sizeof(S));
  }
}

// --- choosing them ---------------------------------------------------------------------------------------------------
template <class S>
using Loop = void (*)(const MoveParams&, const S*, S*, const Rows&);

// May vectors of L be stored past the caches: are they whole lines, and is y too large to be found there later?
template <int L, class S>
bool streams(const MoveParams& p) {
  if (!kStreams || L * sizeof(S) != 64 || reinterpret_cast<uintptr_t>(p.y) % 64 || p.length % L) return false;
  int64_t bytes = p.length * std::max<int64_t>(p.ways, 1) * p.bytes;
  for (int64_t a = 0; a < p.outer; ++a) {
    if (p.axes[a].y % L) return false;
    bytes *= p.axes[a].size;
  }
  for (int64_t s = 0; s < p.ways && p.innermost == Innermost::kDeinterleave; ++s) {
    if (p.streams[s] % L) return false;
  }
  return bytes >= kBeyondCaches;
}

template <int A, int L, class S>
Loop<S> loop_of_lanes(const MoveParams& p) {
  if (p.length < L) {
    if constexpr (L * sizeof(S) > 16) return loop_of_lanes<A, L / 2, S>(p);
    return one_by_one<S>;
  }
  const bool together = p.innermost == Innermost::kInterleave;
  if constexpr (kStreams && L * sizeof(S) == 64) {
    if (streams<L, S>(p)) return together ? interleave_rows<A, L, true, S> : deinterleave_rows<A, L, true, S>;
  }
  return together ? interleave_rows<A, L, false, S> : deinterleave_rows<A, L, false, S>;
}

template <class S>
Loop<S> loop_of(const MoveParams& p) {
  if (p.innermost == Innermost::kRun) {
    return streams<64 / sizeof(S), S>(p) ? copy_rows<kStreams, S> : copy_rows<false, S>;
  }
  if constexpr (sizeof(S) <= 8) {
    // Bytes of different quarters of a register meet slowly.
    constexpr int L = sizeof(S) == 1 ? 16 : kVectorBytes / sizeof(S);
    switch (p.innermost == Innermost::kPick ? 0 : p.ways) {
      case 2:
        return loop_of_lanes<2, L, S>(p);
      case 3:
        return loop_of_lanes<3, L, S>(p);
      case 4:
        return loop_of_lanes<4, L, S>(p);
      case 6:
        return loop_of_lanes<6, L, S>(p);
      case 8:
        return loop_of_lanes<8, L, S>(p);
      case 9:
        return loop_of_lanes<9, L, S>(p);
      case 16:
        return loop_of_lanes<16, L, S>(p);
    }
  }
  return one_by_one<S>;
}

// --- the outer axes --------------------------------------------------------------------------------------------------
// f(x, y, rows) for indices [begin, end) of the outer axes, those of the last axis together.
template <class S, class F>
void over_outer(const MoveParams& p, int64_t begin, int64_t end, F&& f) {
  const MoveAxis rows = p.outer ? p.axes[p.outer - 1] : MoveAxis{1, 0, 0};
  const int64_t outer = p.outer ? p.outer - 1 : 0;
  int64_t first = begin % rows.size, rest = begin / rows.size, at[MoveParams::kOuter];
  const S* x = static_cast<const S*>(p.x);
  S* y = static_cast<S*>(p.y);
  for (int64_t a = outer; a-- > 0; rest /= p.axes[a].size) {
    at[a] = rest % p.axes[a].size;
    x += at[a] * p.axes[a].x, y += at[a] * p.axes[a].y;
  }
  for (int64_t left = end - begin; left > 0; first = 0) {
    const int64_t count = std::min(rows.size - first, left);
    f(x + first * rows.x, y + first * rows.y, Rows{count, rows.x, rows.y});
    left -= count;
    if (outer && count == rows.size) {  // all of the next axis but its last, without a look at the others
      const MoveAxis& next = p.axes[outer - 1];
      for (; at[outer - 1] + 1 < next.size && left >= rows.size; left -= rows.size) {
        ++at[outer - 1], x += next.x, y += next.y;
        f(x, y, Rows{rows.size, rows.x, rows.y});
      }
    }
    for (int64_t a = outer; a-- > 0;) {
      x += p.axes[a].x, y += p.axes[a].y;
      if (++at[a] < p.axes[a].size) break;
      x -= p.axes[a].size * p.axes[a].x, y -= p.axes[a].size * p.axes[a].y, at[a] = 0;
    }
  }
}

template <class S>
void move_all(const MoveParams& p, const Launch& launch) {
  int64_t units = 1;
  for (int64_t a = 0; a < p.outer; ++a) units *= p.axes[a].size;
  const int64_t bytes = p.length * std::max<int64_t>(p.ways, 1) * p.bytes;
  const auto all = [&](auto&& rows) {
    launch.parallel(units, 1 + kGrain / bytes, [&](int64_t begin, int64_t end) {
      over_outer<S>(p, begin, end, rows);
      finish_streams();
    });
  };
  const Loop<S> loop = loop_of<S>(p);
#if defined(__AVX512BW__)
  if constexpr (sizeof(S) > 1 && sizeof(S) < 16) {
    const int64_t block = p.length * p.ways;
    if (p.ways && p.length * p.bytes < 16 && block <= Permutation<S>::kMost * Permutation<S>::L && units >= 256) {
      const Permutation<S> permutation(p, p.axes[p.outer - 1]);
      if (permutation.rows) {
        return all([&](const S* x, S* y, const Rows& rows) {
          const int64_t done = rows.count / permutation.rows * permutation.rows;
          permutation(done, x, rows.x, y, [](const S* from, S* to, int64_t count) {
            copy<false>(reinterpret_cast<const char*>(from), reinterpret_cast<char*>(to), count * sizeof(S));
          });
          if (done < rows.count) {
            loop(p, x + done * rows.x, y + done * rows.y, {rows.count - done, rows.x, rows.y});
          }
        });
      }
    }
  }
#endif
  all([&](const S* x, S* y, const Rows& rows) { loop(p, x, y, rows); });
}

}  // namespace

void move(const MoveParams& p, const Launch& launch) {
  switch (p.bytes) {
    case 1:
      return move_all<uint8_t>(p, launch);
    case 2:
      return move_all<uint16_t>(p, launch);
    case 4:
      return move_all<uint32_t>(p, launch);
    case 8:
      return move_all<uint64_t>(p, launch);
    default:
      return move_all<Word16>(p, launch);
  }
}

}  // namespace lightkernels::cpu
