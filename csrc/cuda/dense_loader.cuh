// How a block of a dense convolution gets its operands: x by one of the ways of Copy, weight in chunks always.
#pragma once

#include "dense_source.cuh"
#include "epilogue.cuh"

namespace lightkernels::cuda::dense {

// The pixels whose values a thread copies.
template <class T, int COUNT, class Coord>
struct Pixels {
  const T* base[COUNT];  // of the pixel that meets the first tap, which may lie outside
  Coord top[COUNT], left[COUNT];
};

template <int V, class T>
__device__ __forceinline__ void load_shared(const T* p, Sum<T> (&v)[V]) {
  const auto word = *reinterpret_cast<const typename Bits<V * sizeof(T)>::type*>(p);
  T part[V];
  memcpy(part, &word, sizeof(word));
#pragma unroll
  for (int i = 0; i < V; ++i) v[i] = cuda::widen(part[i]);
}

template <int V, class T>
__device__ __forceinline__ void store_shared(T* p, const Sum<T> (&v)[V]) {
  T part[V];
#pragma unroll
  for (int i = 0; i < V; ++i) cuda::narrow(v[i], part[i]);
  typename Bits<V * sizeof(T)>::type word;
  memcpy(&word, part, sizeof(word));
  *reinterpret_cast<decltype(word)*>(p) = word;
}

// ONE: a 1x1 kernel without padding or classes, with input_activation and input_gate.
template <class T, class Tile, Copy COPY, bool ONE>
struct Loader {
  using Coord = std::conditional_t<COPY == Copy::kGather, int64_t, int>;
  static constexpr bool kPlanes = COPY == Copy::kPlanes;
  static constexpr int kV = kVector<T>, kColumns = kStepBytes / kChunk;
  using ShareA = Share<Tile::kThreads, Tile::kM, kColumns>;
  using ShareB = Share<Tile::kThreads, Tile::kN, kColumns>;
  static constexpr int kA = ShareA::kCount, kB = ShareB::kCount, kApart = Tile::kThreads / kColumns;
  // Of planes, a line is a channel.
  static constexpr int kLine = kPlanes ? Tile::kM * static_cast<int>(sizeof(T)) : kStepBytes;
  static constexpr int kLineChunks = kLine / kChunk, kLinesApart = Tile::kThreads / kLineChunks;

  const Problem& p;
  const Block<Tile>& at;
  char* shared;
  Taps<Coord> taps_h, taps_w;
  ShareA a;
  Pixels<T, kPlanes ? 1 : kA, Coord> pixels;
  const T* weight;  // of this thread's first output channel
  int outputs;      // channels from there on
  int c, u, v;      // what this thread's chunk of the next step is: channel and tap
  uint4 held[COPY == Copy::kGather ? kA : 1];

  __device__ __forceinline__ Loader(const Problem& p_, const Block<Tile>& at_, char* shared_)
      : p(p_), at(at_), shared(shared_), a{COPY == Copy::kGather && p_.lines_first} {
    taps_h = {static_cast<int>(p.kh), static_cast<Coord>(p.first_h), static_cast<Coord>(p.step_h), 0, 1};
    taps_w = {static_cast<int>(p.kw), static_cast<Coord>(p.first_w), static_cast<Coord>(p.step_w), 0, 1};
    if (!ONE && p.classes > 1) {
      taps_h = taps_of_class<Coord>(at.class_h, p.kh, p.first_h, p.step_h, p.class_h, p.class_taps_h, p.class_step_h);
      taps_w = taps_of_class<Coord>(at.class_w, p.kw, p.first_w, p.step_w, p.class_w, p.class_taps_w, p.class_step_w);
      if (taps_w.count == 0) taps_h.count = 0;
    }
#pragma unroll
    for (int i = 0; i < (kPlanes ? 1 : kA); ++i) {
      int64_t n = at.m0() + first_pixel(i);
      const bool inside = n < p.lines;
      const int64_t column = split(n, p.columns), row = split(n, p.rows);
      const int64_t top = row * p.stride_h + taps_h.first, left = column * p.stride_w + taps_w.first;
      pixels.base[i] = static_cast<const T*>(p.x) + n * p.x_strides.n + at.group * p.ci * p.x_strides.c +
                       top * p.x_strides.h + left * p.x_strides.w;
      pixels.top[i] = static_cast<Coord>(inside ? top : int64_t{1} << 30 << (sizeof(Coord) == 8 ? 30 : 0));
      pixels.left[i] = static_cast<Coord>(left);
      if (ONE && !inside) pixels.base[i] = nullptr;
    }
    const int64_t o = at.n0 + threadIdx.x / kColumns;
    outputs = static_cast<int>(p.co - o);
    weight = static_cast<const T*>(p.weight) + (at.group * p.co + o) * p.weight_row + taps_h.begin * p.weight_u +
             taps_w.begin * p.weight_v;
    c = 0, u = 0, v = 0;
    move(threadIdx.x % kColumns * kV);
  }

  // Line and chunk of the i-th chunk that this thread copies of x, and its (first) pixel within the tile.
  __device__ __forceinline__ int line(int i) const {
    return kPlanes ? static_cast<int>(threadIdx.x) / kLineChunks + i * kLinesApart : a.line(i);
  }
  __device__ __forceinline__ int column(int i) const {
    return kPlanes ? static_cast<int>(threadIdx.x) % kLineChunks : a.column(i);
  }
  __device__ __forceinline__ int first_pixel(int i) const { return kPlanes ? column(i) * kV : a.line(i); }

  __device__ __forceinline__ char* target(int step, int i) const {
    return stage(step) + place<kLine>(line(i), column(i));
  }

  __device__ __forceinline__ int steps() const {
    const int64_t chunks = taps_h.count * taps_w.count * p.vectors.divisor;
    return static_cast<int>((chunks + kColumns - 1) / kColumns);
  }

  __device__ __forceinline__ void move(int by) {
    c += by;
    const int channels = static_cast<int>(p.vectors.divisor) * kV;
    if constexpr (!ONE) {
      while (c >= channels) {
        c -= channels;
        if (++v >= taps_w.count) v = 0, ++u;
        if (u >= taps_h.count) break;
      }
    }
  }

  __device__ __forceinline__ char* stage(int step) const {
    return shared + static_cast<unsigned>(step) % Tile::kStages * Tile::kStageBytes;
  }

  __device__ __forceinline__ bool meets(int i, int64_t h, int64_t w) const {
    if constexpr (ONE) return pixels.base[i];
    if constexpr (COPY != Copy::kGather) {
      return static_cast<unsigned>(pixels.top[i] + static_cast<int>(h)) < static_cast<unsigned>(p.ih) &&
             static_cast<unsigned>(pixels.left[i] + static_cast<int>(w)) < static_cast<unsigned>(p.iw);
    }
    const int64_t row = pixels.top[i] + h, column = pixels.left[i] + w;
    return row >= 0 && row < p.ih && column >= 0 && column < p.iw;
  }

  // Begins to copy step `to`, which must be the one after that of the last call.
  __device__ __forceinline__ void begin(int to) {
    const bool inside = ONE ? c < static_cast<int>(p.vectors.divisor) * kV : u < taps_h.count;
    const int column = threadIdx.x % kColumns, line = threadIdx.x / kColumns;
    if constexpr (COPY == Copy::kAsync) {
      const Coord h = ONE ? 0 : u * taps_h.step, w = ONE ? 0 : v * taps_w.step;
      const int64_t offset = h * p.x_strides.h + w * p.x_strides.w + c;
#pragma unroll
      for (int i = 0; i < kA; ++i) {
        copy_async(target(to, i), pixels.base[i] + offset, inside && meets(i, h, w));
      }
    } else if constexpr (kPlanes) {
#pragma unroll
      for (int i = 0; i < kA; ++i) {
        const int channel = to * kStep<T> + this->line(i);
        copy_async(target(to, i), pixels.base[0] + channel * p.x_strides.c, channel < p.ci && meets(0, 0, 0));
      }
    }
    const int64_t offset = (ONE ? 0 : u * taps_h.apart * p.weight_u + v * taps_w.apart * p.weight_v) + c;
#pragma unroll
    for (int i = 0; i < kB; ++i) {
      copy_async(stage(to) + Tile::kOperandA + place<kStepBytes>(line + i * kApart, column),
                 weight + offset + i * kApart * p.weight_row, inside && i * kApart < outputs);
    }
    move(kStep<T>);
  }

  // Reads this thread's part of x of a step.
  __device__ __forceinline__ void fetch(int step) {
#pragma unroll
    for (int i = 0; i < kA; ++i) {
      int64_t tap = int64_t{step} * kColumns + a.column(i);
      const int64_t channel = split(tap, p.vectors) * kV;
      int64_t h = 0, w = 0;
      bool inside = tap == 0;
      if constexpr (!ONE) {
        w = taps_w.count == p.kw ? split(tap, p.taps_w) : taps_w.count ? tap % taps_w.count : 0;
        if (taps_w.count != p.kw && taps_w.count) tap /= taps_w.count;
        inside = tap < taps_h.count;
        h = tap * taps_h.step, w *= taps_w.step;
      }
      const T* from = pixels.base[i] + h * p.x_strides.h + w * p.x_strides.w + channel * p.x_strides.c;
      held[i] = gather(from, p.x_strides.c, inside && meets(i, h, w) ? p.ci - channel : 0, p.chunks);
    }
  }

  __device__ __forceinline__ void deposit(int step) const {
#pragma unroll
    for (int i = 0; i < kA; ++i) {
      *reinterpret_cast<uint4*>(target(step, i)) = held[i];
    }
  }

  // x' of what this thread itself copied: its own copies it may read before a barrier.
  __device__ __forceinline__ void enter(int step) const {
    if (p.input_activation == Activation::kNone && !p.input_gate) return;
    constexpr int kPart = kV < 4 ? kV : 4, kParts = kV / kPart;  // few at once, for all sums wait in registers
#pragma unroll 1
    for (int part = 0; part < kA * kParts; ++part) {
      const int i = part / kParts, first = part % kParts * kPart;
      T* const values = reinterpret_cast<T*>(target(step, i)) + first;
      Sum<T> z[kPart];
      load_shared(values, z);
      activate(p.input_activation, z);
      int64_t n = at.m0() + first_pixel(i);
      if (p.input_gate && n < p.lines) {
        split(n, p.columns), split(n, p.rows);
        const int64_t channel = int64_t{step} * kStep<T> + (kPlanes ? line(i) : column(i) * kV + first);
        const T* gate = static_cast<const T*>(p.input_gate) + n * p.input_gate_n;
#pragma unroll
        for (int j = 0; j < kPart; ++j) {
          const int64_t k = channel + (kPlanes ? 0 : j);
          if (k < p.ci) z[j] *= load(gate + (at.group * p.ci + k) * p.input_gate_c);
        }
      }
      store_shared(values, z);
    }
  }
};

}  // namespace lightkernels::cuda::dense
