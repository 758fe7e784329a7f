// Moves on NVIDIA GPUs. Runs go straight from x to y, as many bytes at once as all addresses allow; streams meet in
// shared memory, so that both what is read and what is written is in whole lines.
#include "../move.h"
#include "scalars.cuh"

namespace lightkernels::cuda {
namespace moves {

constexpr int kThreads = 256, kTileBytes = 16384, kRows = 128;
constexpr int64_t kMaxGridX = (int64_t{1} << 31) - 1;

template <int BYTES>
struct Word {
  using type = typename Bits<BYTES>::type;
};
template <>
struct Word<1> {
  using type = unsigned char;
};

struct Outer {
  int64_t count = 1;
  Divider size[MoveParams::kOuter];

  explicit Outer(const MoveParams& p) {
    for (int64_t a = 0; a < p.outer; ++a) count *= p.axes[a].size, size[a] = Divider(p.axes[a].size);
  }
};

struct Place {
  int64_t x, y;
};

__device__ __forceinline__ Place place_of(const MoveParams& p, const Outer& outer, int64_t index) {
  Place at = {0, 0};
#pragma unroll
  for (int a = MoveParams::kOuter - 1; a >= 0; --a) {  // known indices: an array of parameters has no address
    if (a >= p.outer) continue;
    const int64_t i = split(index, outer.size[a]);
    at.x += i * p.axes[a].x, at.y += i * p.axes[a].y;
  }
  return at;
}

// y[i] = x[i * step], in words: the host has divided lengths and strides by the elements of one.
// traffic: l2 1.00, loads 1.00, stores 1.00, shared 1.00 (tests/test_gpu_traffic.py)
template <int BYTES>
__global__ void __launch_bounds__(kThreads) move_runs(MoveParams p, Outer outer, Divider length) {
  using E = typename Word<BYTES>::type;
  const int64_t count = outer.count * p.length, step = int64_t{gridDim.x} * kThreads;
  for (int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x; i < count; i += step) {
    int64_t index = i;
    const int64_t at = split(index, length);
    const Place place = place_of(p, outer, index);
    static_cast<E*>(p.y)[place.y + at] = __ldg(static_cast<const E*>(p.x) + place.x + at * p.step);
  }
}

// A tile is some rows (indices of the outer axes) of some of the streams' elements; it is read in x's order, kept in
// the order in which the streams are one, and written in y's.
struct Tile {
  int rows, length;  // length: of each stream
  int64_t chunks;    // tiles to a row
  Divider length_, ways, joined;
};

// W elements at once. Position e of the tile in the order of streams is row, stream and element; in the other, row,
// element and stream.
// traffic: l2 1.00, loads 1.00, stores 1.00, shared 5.12 (tests/test_gpu_traffic.py)
template <int BYTES, int W, bool APART>
__global__ void __launch_bounds__(kThreads, 1) move_streams(MoveParams p, Outer outer, Tile tile) {
  using E = typename Word<BYTES>::type;
  using Block = typename Word<BYTES * W>::type;
  __shared__ __align__(16) E shared[kTileBytes / BYTES];
  __shared__ Place places[kRows];
  __shared__ int64_t offsets[MoveParams::kWays];
#pragma unroll
  for (int s = 0; s < MoveParams::kWays; ++s) {
    if (threadIdx.x == 0) offsets[s] = p.streams[s];
  }
  const int64_t groups = (outer.count + tile.rows - 1) / tile.rows;
  const int ways = static_cast<int>(p.ways);
  for (int64_t t = blockIdx.x; t < groups * tile.chunks; t += gridDim.x) {
    const int64_t row0 = t / tile.chunks * tile.rows, first = t % tile.chunks * tile.length;
    const int rows = static_cast<int>(outer.count - row0 < tile.rows ? outer.count - row0 : tile.rows);
    const int length = static_cast<int>(p.length - first < tile.length ? p.length - first : tile.length);
    for (int r = threadIdx.x; r < rows; r += kThreads) places[r] = place_of(p, outer, row0 + r);
    __syncthreads();
    // In the order of streams, which the streams' side of memory is read or written in.
    const auto streams = [&](auto&& f) {
      for (int e = threadIdx.x * W; e < rows * ways * tile.length; e += kThreads * W) {
        unsigned index = e;
        const int i = split(index, tile.length_), s = split(index, tile.ways), row = static_cast<int>(index);
        if (i < length) f(row, s, i);
      }
    };
    // In the order in which they are one.
    const auto joined = [&](auto&& f) {
      for (int e = threadIdx.x * W; e < rows * ways * tile.length; e += kThreads * W) {
        unsigned index = e;
        const int i = split(index, tile.joined), row = static_cast<int>(index);
        if (i < length * ways) f(row, i);
      }
    };
    const int of_row = ways * tile.length;
    if (APART) {
      joined([&](int row, int i) {
        const E* from = static_cast<const E*>(p.x) + places[row].x + first * ways + i;
        *reinterpret_cast<Block*>(shared + row * of_row + i) = __ldg(reinterpret_cast<const Block*>(from));
      });
      __syncthreads();
      streams([&](int row, int s, int i) {
        E part[W];
#pragma unroll
        for (int k = 0; k < W; ++k) part[k] = shared[row * of_row + (i + k) * ways + s];
        Block block;
        memcpy(&block, part, sizeof(block));
        __stwb(reinterpret_cast<Block*>(static_cast<E*>(p.y) + places[row].y + offsets[s] + first + i), block);
      });
    } else {
      streams([&](int row, int s, int i) {
        const E* from = static_cast<const E*>(p.x) + places[row].x + offsets[s] + first + i;
        const Block block = __ldg(reinterpret_cast<const Block*>(from));
        E part[W];
        memcpy(part, &block, sizeof(block));
#pragma unroll
        for (int k = 0; k < W; ++k) shared[row * of_row + (i + k) * ways + s] = part[k];
      });
      __syncthreads();
      joined([&](int row, int i) {
        const Block block = *reinterpret_cast<const Block*>(shared + row * of_row + i);
        __stwb(reinterpret_cast<Block*>(static_cast<E*>(p.y) + places[row].y + first * ways + i), block);
      });
    }
    __syncthreads();
  }
}

}  // namespace moves

namespace {

using namespace moves;  // NOLINT

// Are all offsets multiples of `words` elements, and both addresses of as many bytes?
bool whole(const MoveParams& p, int64_t words) {
  const auto bytes = static_cast<uintptr_t>(words * p.bytes);
  if (reinterpret_cast<uintptr_t>(p.x) % bytes || reinterpret_cast<uintptr_t>(p.y) % bytes || p.length % words) {
    return false;
  }
  for (int64_t a = 0; a < p.outer; ++a) {
    if (p.axes[a].x % words || p.axes[a].y % words) return false;
  }
  for (int64_t s = 0; s < p.ways; ++s) {
    if (p.streams[s] % words) return false;
  }
  return true;
}

template <class F>
void with_bytes(int64_t bytes, F&& f) {
  if (bytes == 1) return f(std::integral_constant<int, 1>{});
  if (bytes == 2) return f(std::integral_constant<int, 2>{});
  if (bytes == 4) return f(std::integral_constant<int, 4>{});
  if (bytes == 8) return f(std::integral_constant<int, 8>{});
  f(std::integral_constant<int, 16>{});
}

dim3 blocks(int64_t count) { return dim3(static_cast<unsigned>(count < kMaxGridX ? count : kMaxGridX)); }

void runs(MoveParams p, const Launch& launch) {
  int64_t words = 16 / p.bytes;
  while (words > 1 && !(p.innermost == Innermost::kRun && whole(p, words))) words /= 2;
  p.bytes *= words, p.length /= words;
  for (int64_t a = 0; a < p.outer; ++a) p.axes[a].x /= words, p.axes[a].y /= words;
  const Outer outer(p);
  with_bytes(p.bytes, [&](auto bytes) {
    launch_kernel(move_runs<decltype(bytes)::value>, blocks((outer.count * p.length + kThreads - 1) / kThreads),
                  dim3(kThreads), 0, launch.stream, p, outer, Divider(p.length));
  });
}

void streams(const MoveParams& p, const Launch& launch) {
  const Outer outer(p);
  const int64_t room = kTileBytes / p.bytes / p.ways, words = p.bytes == 1 ? 8 : 16 / p.bytes;
  Tile tile;
  tile.length = static_cast<int>(p.length <= room ? p.length : room / words * words);
  tile.chunks = (p.length + tile.length - 1) / tile.length;
  int64_t rows = room / tile.length;
  if (rows > kRows) rows = kRows;
  if (rows > outer.count) rows = outer.count;
  tile.rows = static_cast<int>(rows);
  tile.length_ = Divider(tile.length), tile.ways = Divider(p.ways), tile.joined = Divider(tile.length * p.ways);
  const int64_t count = (outer.count + rows - 1) / rows * tile.chunks;
  with_bytes(p.bytes, [&](auto bytes) {
    constexpr int kBytes = decltype(bytes)::value;
    const auto start = [&](auto width) {
      constexpr int kWords = decltype(width)::value;
      const auto kernel = p.innermost == Innermost::kDeinterleave ? move_streams<kBytes, kWords, true>
                                                                  : move_streams<kBytes, kWords, false>;
      launch_kernel(kernel, blocks(count), dim3(kThreads), 0, launch.stream, p, outer, tile);
    };
    if (whole(p, words)) return start(std::integral_constant<int, kBytes == 1 ? 8 : 16 / kBytes>{});
    start(std::integral_constant<int, 1>{});
  });
}

}  // namespace

void move(const MoveParams& p, const Launch& launch) {
  p.innermost == Innermost::kRun || p.innermost == Innermost::kPick ? runs(p, launch) : streams(p, launch);
}

}  // namespace lightkernels::cuda
