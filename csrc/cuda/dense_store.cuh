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

// What an epilogue holds of kVector channels, as memory has it: half the registers of what is computed with.
template <class T>
struct Channels {
  Chunk<T> scale, bias, slope, gate;

  // Of the channels from c on, of which `inside` are there, and all but the gate.
  __device__ __forceinline__ void load(const Epilogue& e, int64_t c, int inside, bool chunks) {
    if (e.scale) scale = chunk(e.scale, c, inside, chunks);
    if (e.bias) bias = chunk(e.bias, c, inside, chunks);
    if (e.slope) slope = chunk(e.slope, c * e.slope_c, inside, chunks && e.slope_c, e.slope_c);
  }

  static __device__ __forceinline__ Chunk<T> chunk(const void* p, int64_t at, int inside, bool chunks,
                                                   int64_t stride = 1) {
    const uint4 word = gather(static_cast<const T*>(p) + at, stride, inside, chunks);
    Chunk<T> result;
    memcpy(&result, &word, kChunk);
    return result;
  }

  __device__ __forceinline__ Channel<Sum<T>> of(const Epilogue& e, int v) const {
    using A = Sum<T>;
    return {e.scale ? cuda::widen(scale.value[v]) : A(1), e.bias ? cuda::widen(bias.value[v]) : A(0),
            e.slope ? cuda::widen(slope.value[v]) : static_cast<A>(e.alpha),
            e.gate ? cuda::widen(gate.value[v]) : A(1)};
  }
};

// f(line, column, value) of the lines from `first` on. Registers have no index: which slab it is, is asked for each.
template <int FIRST, int ROWS, int LINES, class S, class F>
__device__ __forceinline__ void each_slab(const S& sums, int first, F&& f) {
  if (first == FIRST) {
    sums.template each_line<FIRST, LINES>([&](int line, int column, auto value) { f(line - FIRST, column, value); });
  }
  if constexpr (FIRST + LINES < ROWS) each_slab<FIRST + LINES, ROWS, LINES>(sums, first, f);
}

template <class T, class Tile, class S>
__device__ __forceinline__ void store_tile(const Problem& p, const Result& r, const Block<Tile>& at, char* shared,
                                           const S& sums) {
  using A = Sum<T>;
  constexpr int kPart = kChunk / static_cast<int>(sizeof(A));  // values that are computed at once
  constexpr int kV = kVector<T>, WN = Tile::kWarpN, kLines = 1024 / WN, kChunks = WN / kV;
  static_assert(Tile::kWarpM % kLines == 0);
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  A* const slab = reinterpret_cast<A*>(shared) + warp * 1024;
  const int64_t m_warp = at.m0() + warp / Tile::kWarpsN * Tile::kWarpM;
  const int n_warp = at.n0 + warp % Tile::kWarpsN * WN;
  const Epilogue& e = r.epilogue;
  int known = -1;  // the first channel of `channels`
  Channels<T> channels;
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
      if (c0 != known) channels.load(e, channel, inside, r.vector_chunks);
      known = c0;
      if (e.gate) {
        channels.gate = channels.chunk(e.gate, n * e.gate_n + channel * e.gate_c, inside, r.gate_chunks, e.gate_c);
      }
      uint4 word = make_uint4(0, 0, 0, 0);  // the residual, then y
      if (e.residual) {
        const Strides4& s = e.residual_strides;
        word = gather(static_cast<const T*>(e.residual) + n * s.n + channel * s.c + row * s.h + column * s.w, s.c,
                      inside, r.residual_chunks);
      }
      Chunk<T> chunk;
      memcpy(&chunk, &word, kChunk);
#pragma unroll
      for (int part = 0; part < kV; part += kPart) {
        A z[kPart], residual[kPart];
        const uint4 held = *reinterpret_cast<const uint4*>(slab_place<WN>(slab, line, c0 - n_warp + part));
        memcpy(z, &held, kChunk);
#pragma unroll
        for (int v = 0; v < kPart; ++v) residual[v] = cuda::widen(chunk.value[part + v]);
        finish(e, z, residual, [&](int v) { return channels.of(e, part + v); });
#pragma unroll
        for (int v = 0; v < kPart; ++v) cuda::narrow(z[v], chunk.value[part + v]);
      }
      T* y = static_cast<T*>(r.y) + n * r.strides.n + row * r.strides.h + column * r.strides.w;
      if (r.chunks) {
        memcpy(&word, &chunk, kChunk);
        __stwb(reinterpret_cast<uint4*>(y + channel), word);
        continue;
      }
#pragma unroll
      for (int v = 0; v < kV; ++v) {
        if (v >= inside) break;
        int64_t to = channel + v;
        if (r.shuffle > 1) to = to % r.per_shuffle * r.shuffle + to / r.per_shuffle;
        y[to * r.strides.c] = chunk.value[v];
      }
    }
  }
}

}  // namespace lightkernels::cuda::dense
