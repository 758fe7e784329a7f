// A warp's sums to y: through shared memory, so that lanes lie along what is contiguous, and through the epilogue.
#pragma once

#include "dense_source.cuh"
#include "epilogue.cuh"

namespace lightkernels::cuda::dense {

// Sums wait in slabs of 1024 a warp.
template <class T, class Tile>
constexpr int kSlabs = Tile::kWarps * 1024 * static_cast<int>(sizeof(Sum<T>));

// Chunks of a slab's line change places so that neither the sums of a warp nor lanes along lines or along chunks meet
// in one bank: lines 0-3 and 4-7 take four pairs of chunks each, every line of eight another chunk.
__device__ __forceinline__ int slab_key(int line) { return (line & 3) << 1 | ((line ^ line >> 2) & 1); }

template <int WN, class A>
__device__ __forceinline__ A* slab_place(A* slab, int line, int column) {
  constexpr int kV = kChunk / static_cast<int>(sizeof(A));
  return slab + line * WN + (((column / kV) ^ slab_key(line)) * kV) + column % kV;
}

// kVector elements `stride` apart, of which `inside` are there.
template <class T>
__device__ __forceinline__ void load_chunk(const T* p, int64_t stride, int inside, bool chunks,
                                           Sum<T> (&v)[kVector<T>]) {
  widen<T>(gather(p, stride, inside, chunks), v);
}

// f(line, column, value) of the lines from `first` on. Registers have no index: which slab it is, is asked for each.
template <int FIRST, int ROWS, int LINES, class S, class F>
__device__ __forceinline__ void each_slab(const S& sums, int first, F&& f) {
  if (first == FIRST) {
    sums.template each_line<FIRST, LINES>([&](int line, int column, auto value) { f(line - FIRST, column, value); });
  }
  if constexpr (FIRST + LINES < ROWS) each_slab<FIRST + LINES, ROWS, LINES>(sums, first, f);
}

template <class T, class Tile, class S>
__device__ __forceinline__ void store_tile(const Problem& p, const Result& r, const Block& at, char* shared,
                                           const S& sums) {
  using A = Sum<T>;
  constexpr int kV = kVector<T>, WN = Tile::kWarpN, kLines = 1024 / WN, kChunks = WN / kV;
  static_assert(Tile::kWarpM % kLines == 0);
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  A* const slab = reinterpret_cast<A*>(shared) + warp * 1024;
  const int64_t m_warp = at.m0 + warp / Tile::kWarpsN * Tile::kWarpM;
  const int n_warp = at.n0 + warp % Tile::kWarpsN * WN;
  const Epilogue& e = r.epilogue;
  int64_t known_n = -1;
  int known_c = -1;
  Channel<A> of[kV];
#pragma unroll 1
  for (int first = 0; first < Tile::kWarpM; first += kLines) {
    __syncwarp();
    each_slab<0, Tile::kWarpM, kLines>(sums, first, [&](int line, int column, auto value) {
      *reinterpret_cast<decltype(value)*>(slab_place<WN>(slab, line, column)) = value;
    });
    __syncwarp();
#pragma unroll 1
    for (int item = lane; item < kLines * kChunks; item += kWarp) {
      const int line = r.pixels_first ? item % kLines : item / kChunks;
      const int c0 = n_warp + (r.pixels_first ? item / kLines : item % kChunks) * kV;
      int64_t n = m_warp + first + line;
      if (n >= p.lines || c0 >= p.co) continue;
      int64_t column = split(n, p.columns), row = split(n, p.rows);
      if (p.classes > 1) {
        row = row * p.class_h + at.class_h, column = column * p.class_w + at.class_w;
        if (row >= r.h || column >= r.w) continue;
      }
      const int inside = static_cast<int>(p.co - c0 < kV ? p.co - c0 : kV);
      const int64_t channel = at.group * p.co + c0;
      if (c0 != known_c || (e.gate && n != known_n)) {
        known_c = c0, known_n = n;
#pragma unroll
        for (int v = 0; v < kV; ++v) of[v] = channel_of<T>(e, n, channel + (v < inside ? v : 0));
      }
      A z[kV], residual[kV] = {};
#pragma unroll
      for (int v = 0; v < kV; v += kChunk / static_cast<int>(sizeof(A))) {
        const uint4 word = *reinterpret_cast<const uint4*>(slab_place<WN>(slab, line, c0 - n_warp + v));
        memcpy(&z[v], &word, kChunk);
      }
      if (e.residual) {
        const Strides4& s = e.residual_strides;
        load_chunk(static_cast<const T*>(e.residual) + n * s.n + channel * s.c + row * s.h + column * s.w, s.c, inside,
                   r.residual_chunks, residual);
      }
      finish(e, z, residual, [&](int v) { return of[v]; });
      T* y = static_cast<T*>(r.y) + n * r.strides.n + row * r.strides.h + column * r.strides.w;
      if (r.chunks) {
        __stwb(reinterpret_cast<uint4*>(y + channel), narrow<T>(z));
        continue;
      }
#pragma unroll
      for (int v = 0; v < kV; ++v) {
        if (v >= inside) break;
        int64_t to = channel + v;
        if (r.shuffle > 1) to = to % r.per_shuffle * r.shuffle + to / r.per_shuffle;
        store(y + to * r.strides.c, z[v]);
      }
    }
  }
}

}  // namespace lightkernels::cuda::dense
