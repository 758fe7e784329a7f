// Tensor-core instructions: mma, and ldmatrix and stmatrix, which bring its operands.
//
// Lane l is number t = l % 4 of group g = l / 4; PTX says which elements of a matrix lie in which of its registers.
#include <cstring>

#include "lanewise.h"

namespace ptx {
namespace {

// An operand as numbers: f16, bf16 two in a register, tf32 (of which 13 bits do not count) one.
template <class T>
struct Operand {
  static constexpr int kIn = is_half<T> ? 2 : 1;  // in a register
  static double value(u32 raw, int k) {
    if constexpr (is_half<T>)
      return float(T{u16(raw >> (16 * k))});
    else
      return bits<f32>(raw & ~u32(0x1fff));
  }
};

// D[16 x 8] = A[16 x K] B[K x 8] + C. Registers: D in o[0 ..], then A, B, C. Sums are carried in double and rounded
// once, which is closer than the hardware's own order.
template <class T, int K, class Sum>
void multiply(Block&, Warp& w, const Instruction& i) {
  using In = Operand<T>;
  constexpr int kStep = 4 * In::kIn;  // columns of A that four lanes hold side by side
  constexpr int kHalves = K / kStep;  // times two rows, eight apart: registers of A
  constexpr int kSums = std::is_same_v<Sum, f32> ? 4 : 2;
  double a[16][K], b[K][8];
  for (int l = 0; l < kLanes; ++l) {
    const int g = l / 4, t = l % 4;
    for (int half = 0; half < kHalves; ++half) {
      for (int e = 0; e < In::kIn; ++e) {
        const int column = half * kStep + t * In::kIn + e;
        for (int r = 0; r < 2; ++r) a[g + 8 * r][column] = In::value(w.in<u32>(i.o[kSums + 2 * half + r])[l], e);
        b[column][g] = In::value(w.in<u32>(i.o[kSums + 2 * kHalves + half])[l], e);
      }
    }
  }
  const int c = kSums + 3 * kHalves;
  double sums[kLanes][4];
  for (int l = 0; l < kLanes; ++l) {
    for (int e = 0; e < 4; ++e) {
      const int row = l / 4 + 8 * (e / 2), column = 2 * (l % 4) + e % 2;
      double sum;
      if constexpr (std::is_same_v<Sum, f32>)
        sum = w.in<f32>(i.o[c + e])[l];
      else
        sum = float(f16{u16(w.in<u32>(i.o[c + e / 2])[l] >> (16 * (e % 2)))});
      for (int k = 0; k < K; ++k) sum += a[row][k] * b[k][column];
      sums[l][e] = sum;
    }
  }
  for_lanes(w.mask, [&](int l) {
    for (int e = 0; e < 4; ++e) {
      if constexpr (std::is_same_v<Sum, f32>) {
        w.out<f32>(i.o[e])[l] = f32(sums[l][e]);
      } else if (e % 2 == 0) {
        w.out<u32>(i.o[e / 2])[l] = f16::round(sums[l][e]).raw | u32(f16::round(sums[l][e + 1]).raw) << 16;
      }
    }
  });
}

// D[8 x 8] = A[8 x 4] B[4 x 8] + C in float64.
void multiply_f64(Block&, Warp& w, const Instruction& i) {
  double a[8][4], b[4][8], sums[kLanes][2];
  for (int l = 0; l < kLanes; ++l) a[l / 4][l % 4] = w.in<f64>(i.o[2])[l], b[l % 4][l / 4] = w.in<f64>(i.o[3])[l];
  for (int l = 0; l < kLanes; ++l) {
    for (int e = 0; e < 2; ++e) {
      sums[l][e] = w.in<f64>(i.o[4 + e])[l];
      for (int k = 0; k < 4; ++k) sums[l][e] = std::fma(a[l / 4][k], b[k][2 * (l % 4) + e], sums[l][e]);
    }
  }
  for_lanes(w.mask, [&](int l) { w.out<f64>(i.o[0])[l] = sums[l][0], w.out<f64>(i.o[1])[l] = sums[l][1]; });
}

const Register mma_[] = {{"mma.m16n8k16.f32.f16", multiply<f16, 16, f32>},
                         {"mma.m16n8k16.f32.bf16", multiply<bf16, 16, f32>},
                         {"mma.m16n8k16.f16.f16", multiply<f16, 16, f16>},
                         {"mma.m16n8k8.f32.f16", multiply<f16, 8, f32>},
                         {"mma.m16n8k8.f32.bf16", multiply<bf16, 8, f32>},
                         {"mma.m16n8k8.f16.f16", multiply<f16, 8, f16>},
                         {"mma.m16n8k8.f32.tf32", multiply<f32, 8, f32>},
                         {"mma.m16n8k4.f32.tf32", multiply<f32, 4, f32>},
                         {"mma.m8n8k4.f64.f64", multiply_f64}};

// --- 8 x 8 matrices of 16 bits in shared memory: lane 8 m + r holds the address of row r of matrix m ---

struct Rows {
  uint64_t address[kLanes];
  uint8_t* where[kLanes];
  Mask good;

  Rows(Block& block, Warp& w, const Instruction& i, Access access, const Data* data = nullptr) {
    const Mask all = w.mask;
    for (int l = 0; l < kLanes; ++l) {
      const uint64_t base = i.o[15] == 4 ? w.in<u32>(i.o[14])[l] : i.o[15] == 8 ? w.in<u64>(i.o[14])[l] : 0;
      address[l] = (base + i.immediate) & (kWindow - 1);
    }
    if (i.vector < 4) w.mask &= (1u << (8 * i.vector)) - 1;
    good = reach(block, w, i, Space::kShared, address, 16, access, where, data);
    w.mask = all;
  }
};

// Which element of its matrix is half `e` of lane l's register. Mode 1: transposed.
inline void place(int l, int e, bool transposed, int& row, int& column) {
  row = l / 4, column = 2 * (l % 4) + e;
  if (transposed) std::swap(row, column);
}

void load_matrix(Block& block, Warp& w, const Instruction& i) {
  const Rows rows(block, w, i, Access::kLoad);
  for (int m = 0; m < i.vector; ++m) {
    u32 values[kLanes] = {};
    for (int l = 0; l < kLanes; ++l) {
      for (int e = 0; e < 2; ++e) {
        int row, column;
        place(l, e, i.mode, row, column);
        u16 element = 0xffff;
        if (rows.good >> (8 * m + row) & 1) std::memcpy(&element, rows.where[8 * m + row] + 2 * column, 2);
        values[l] |= u32(element) << (16 * e);
      }
    }
    for_lanes(w.mask, [&](int l) { w.out<u32>(i.o[m])[l] = values[l]; });
  }
}

void store_matrix(Block& block, Warp& w, const Instruction& i) {
  Data data = {};  // of the rows, as lane 8 m + r names them
  for (int m = 0; m < i.vector; ++m) {
    for_lanes(w.mask, [&](int l) {
      for (int e = 0; e < 2; ++e) {
        int row, column;
        place(l, e, i.mode, row, column);
        const u16 element = u16(w.in<u32>(i.o[m])[l] >> (16 * e));
        std::memcpy(data[8 * m + row] + 2 * column, &element, 2);
      }
    });
  }
  Rows(block, w, i, Access::kStore, &data);
}
const Register matrices_[] = {{"ldmatrix", load_matrix}, {"stmatrix", store_matrix}};

}  // namespace
}  // namespace ptx
