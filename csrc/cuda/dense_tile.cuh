// Tiles of a matrix product for dense convolutions: how they lie in shared memory, how they come there, and how a warp
// multiplies its share, by tensor cores (float16, bfloat16) or by multiply-adds in full precision (float32, float64).
#pragma once

#include "scalars.cuh"

namespace lightkernels::cuda::dense {

constexpr int kWarp = 32, kChunk = 16;  // bytes of a chunk, what one access of memory moves
constexpr int kStepBytes = 64;          // of the summed index in one stage: 32 halves, 16 floats

template <class T>
constexpr int kVector = kChunk / static_cast<int>(sizeof(T));
template <class T>
constexpr int kStep = kStepBytes / static_cast<int>(sizeof(T));

// A block makes M x N sums, a warp of it kWarpM x kWarpN; shared memory holds the next STAGES steps of both operands.
template <int M, int N, int WARPS_M, int WARPS_N, int STAGES>
struct Tile {
  static constexpr int kM = M, kN = N, kStages = STAGES, kWarps = WARPS_M * WARPS_N, kThreads = kWarp * kWarps;
  static constexpr int kWarpsN = WARPS_N, kWarpM = M / WARPS_M, kWarpN = N / WARPS_N;
  static constexpr int kOperandA = M * kStepBytes, kStageBytes = (M + N) * kStepBytes;
  static_assert(kWarpM % 32 == 0 && kWarpN % 32 == 0 && STAGES * kStageBytes <= 48 * 1024);
};

// --- shared memory ---------------------------------------------------------------------------------------------------
// Where a chunk of a line lies. Chunks change places from line to line, so that eight lines' chunks of one number, and
// eight chunks of one line, lie in different banks; every eight lines alike.
template <int LINE>  // bytes
__device__ __forceinline__ int place(int line, int chunk) {
  if constexpr (LINE == 64) return line * LINE + ((chunk ^ (line >> 1 & 3)) * kChunk);
  return line * LINE + ((chunk ^ (line & 7)) * kChunk);
}

__device__ __forceinline__ unsigned shared_address(const void* p) {
  return static_cast<unsigned>(__cvta_generic_to_shared(p));
}

// Copies a chunk without a detour through registers; zeros where not `inside`. It is there after a wait.
__device__ __forceinline__ void copy_async(char* to, const void* from, bool inside) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(to)), "l"(from),
               "r"(inside ? kChunk : 0)
               : "memory");
}

__device__ __forceinline__ void close_group() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Until all but the last PENDING groups of this thread's copies are there.
template <int PENDING>
__device__ __forceinline__ void wait_for_groups() {
  asm volatile("cp.async.wait_group %0;" ::"n"(PENDING) : "memory");
}

// --- a chunk in registers --------------------------------------------------------------------------------------------
template <class T>
struct Chunk {
  T value[kVector<T>];
};

// --- tensor cores ----------------------------------------------------------------------------------------------------
// Four 8x8 matrices; lane 8 i + j names line j of matrix i.
template <bool TURNED>
__device__ __forceinline__ void load_matrices(const char* line, unsigned (&r)[4]) {
  if constexpr (TURNED) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared_address(line))
                 : "memory");
  } else {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared_address(line))
                 : "memory");
  }
}

template <class T>
__device__ __forceinline__ void multiply_add(float (&c)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
  if constexpr (std::is_same_v<T, __half>) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  } else {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  }
}

// --- a warp's sums ---------------------------------------------------------------------------------------------------
// Both have: add<M, N, BIAS>(a, b, m0, n0, bias), of operands whose lines are along the summed index, a[m][k] and
// b[n][k] (M or N is 0 then), or across it, a[k][m] and b[k][n], M and N wide; with BIAS it sums a's rows too. And
// each_line(f), f(row, column, sums side by side).
template <class T, int WM, int WN>
struct TensorCores {
  static constexpr int kI = WM / 16, kJ = WN / 8;
  float sum[kI][kJ][4] = {};
  using Bias = float[kI][4];

  template <int M, int N, bool BIAS>
  __device__ __forceinline__ void add(const char* a, const char* b, int m0, int n0, Bias& bias) {
    const int lane = threadIdx.x % kWarp, eight = lane % 8, sixteen = lane % 16, upper = lane / 16, odd = lane / 8 % 2;
#pragma unroll
    for (int k = 0; k < 2; ++k) {  // 16 of the summed index
      unsigned fb[kJ / 2][4];
#pragma unroll
      for (int j = 0; j < kJ / 2; ++j) {
        const int n = n0 + 16 * j;
        if constexpr (N) {
          load_matrices<true>(b + place<N * 2>(16 * k + sixteen, n / 8 + upper), fb[j]);
        } else {
          load_matrices<false>(b + n * kStepBytes + place<kStepBytes>(eight + upper * 8, 2 * k + odd), fb[j]);
        }
      }
#pragma unroll
      for (int i = 0; i < kI; ++i) {
        const int m = m0 + 16 * i;
        unsigned fa[4];
        if constexpr (M) {
          load_matrices<true>(a + place<M * 2>(16 * k + eight + upper * 8, m / 8 + odd), fa);
        } else {
          load_matrices<false>(a + m * kStepBytes + place<kStepBytes>(sixteen, 2 * k + upper), fa);
        }
#pragma unroll
        for (int j = 0; j < kJ; ++j) multiply_add<T>(sum[i][j], fa, fb[j / 2][j % 2 * 2], fb[j / 2][j % 2 * 2 + 1]);
        if constexpr (BIAS) {
          constexpr unsigned kOnes = std::is_same_v<T, __half> ? 0x3c003c00 : 0x3f803f80;
          multiply_add<T>(bias[i], fa, kOnes, kOnes);
        }
      }
    }
  }

  // f(row, sum) of the rows' sums that this lane answers for.
  template <class F>
  static __device__ __forceinline__ void each_bias(const Bias& bias, F&& f) {
    const int lane = threadIdx.x % kWarp;
    if (lane % 4) return;
#pragma unroll
    for (int i = 0; i < kI; ++i) {
      f(16 * i + lane / 4, bias[i][0]);
      f(16 * i + lane / 4 + 8, bias[i][2]);
    }
  }

  // f(row, column, two sums side by side) of rows within [ROW, ROW + ROWS).
  template <int ROW, int ROWS, class F>
  __device__ __forceinline__ void each_line(F&& f) const {
    const int lane = threadIdx.x % kWarp;
#pragma unroll
    for (int i = ROW / 16; i < (ROW + ROWS) / 16; ++i) {
#pragma unroll
      for (int j = 0; j < kJ; ++j) {
        f(16 * i + lane / 4, 8 * j + lane % 4 * 2, make_float2(sum[i][j][0], sum[i][j][1]));
        f(16 * i + lane / 4 + 8, 8 * j + lane % 4 * 2, make_float2(sum[i][j][2], sum[i][j][3]));
      }
    }
  }

  template <class F>
  __device__ __forceinline__ void each_column(F&& f) const {
    each_line<0, WM>(f);
  }
};

// Lanes are 4 rows x 8 columns; a lane's rows and columns are 4 and 8 apart where lines are along the summed index, and
// chunks of them where lines are across it.
template <class T, int WM, int WN>
struct MultiplyAdds {
  static constexpr int kI = WM / 4, kJ = WN / 8, kV = kVector<T>;
  T sum[kI][kJ] = {};

  static __device__ __forceinline__ Chunk<T> read(const char* p) {
    const uint4 word = *reinterpret_cast<const uint4*>(p);
    Chunk<T> chunk;
    memcpy(&chunk, &word, kChunk);
    return chunk;
  }

  using Bias = T[kI];

  template <int M, int N, bool BIAS>
  __device__ __forceinline__ void add(const char* a, const char* b, int m0, int n0, Bias& bias) {
    static_assert((M == 0) == (N == 0));
    if constexpr (M) {
      add_across<M, N, BIAS>(a, b, m0, n0, bias);
    } else {
      add_along(a, b, m0, n0);
    }
  }

  __device__ __forceinline__ void add_along(const char* a, const char* b, int m0, int n0) {
    const int row = threadIdx.x % kWarp / 8, column = threadIdx.x % 8;
    a += m0 * kStepBytes, b += n0 * kStepBytes;
#pragma unroll
    for (int k = 0; k < kStepBytes / kChunk; ++k) {
      Chunk<T> fb[kJ];
#pragma unroll
      for (int j = 0; j < kJ; ++j) fb[j] = read(b + 8 * j * kStepBytes + place<kStepBytes>(column, k));
#pragma unroll
      for (int i = 0; i < kI; ++i) {
        const Chunk<T> fa = read(a + i / 2 * 8 * kStepBytes + place<kStepBytes>(row + i % 2 * 4, k));
#pragma unroll
        for (int v = 0; v < kV; ++v) {
#pragma unroll
          for (int j = 0; j < kJ; ++j) sum[i][j] += fa.value[v] * fb[j].value[v];
        }
      }
    }
  }

  template <int M, int N, bool BIAS>
  __device__ __forceinline__ void add_across(const char* a, const char* b, int m0, int n0, Bias& bias) {
    const int row = m0 / kV + threadIdx.x % kWarp / 8, column = n0 / kV + threadIdx.x % 8;
#pragma unroll 4
    for (int k = 0; k < kStep<T>; ++k) {
      Chunk<T> fa[kI / kV], fb[kJ / kV];
#pragma unroll
      for (int i = 0; i < kI / kV; ++i) fa[i] = read(a + place<M* static_cast<int>(sizeof(T))>(k, row + 4 * i));
#pragma unroll
      for (int j = 0; j < kJ / kV; ++j) fb[j] = read(b + place<N* static_cast<int>(sizeof(T))>(k, column + 8 * j));
#pragma unroll
      for (int i = 0; i < kI; ++i) {
        const T value = fa[i / kV].value[i % kV];
        if constexpr (BIAS) bias[i] += value;
#pragma unroll
        for (int j = 0; j < kJ; ++j) sum[i][j] += value * fb[j / kV].value[j % kV];
      }
    }
  }

  template <class F>
  static __device__ __forceinline__ void each_bias(const Bias& bias, F&& f) {
    if (threadIdx.x % 8) return;
    const int row = threadIdx.x % kWarp / 8;
#pragma unroll
    for (int i = 0; i < kI; ++i) f((i / kV * 4 + row) * kV + i % kV, bias[i]);
  }

  template <int ROW, int ROWS, class F>
  __device__ __forceinline__ void each_line(F&& f) const {
    const int row = threadIdx.x % kWarp / 8, column = threadIdx.x % 8;
#pragma unroll
    for (int i = ROW / 4; i < (ROW + ROWS) / 4; ++i) {
#pragma unroll
      for (int j = 0; j < kJ; ++j) f(row + 4 * i, column + 8 * j, sum[i][j]);
    }
  }

  template <class F>
  __device__ __forceinline__ void each_column(F&& f) const {
    const int row = threadIdx.x % kWarp / 8, column = threadIdx.x % 8;
#pragma unroll
    for (int i = 0; i < kI; ++i) {
#pragma unroll
      for (int j = 0; j < kJ; j += kV) {
        Chunk<T> chunk;
#pragma unroll
        for (int v = 0; v < kV; ++v) chunk.value[v] = sum[i][j + v];
        uint4 word;
        memcpy(&word, &chunk, kChunk);
        f((i / kV * 4 + row) * kV + i % kV, (j / kV * 8 + column) * kV, word);
      }
    }
  }
};

template <class T, int WM, int WN>
using Sums = std::conditional_t<sizeof(T) == 2, TensorCores<T, WM, WN>, MultiplyAdds<T, WM, WN>>;

}  // namespace lightkernels::cuda::dense
