// The transforms of Winograd's F(m x m, 3 x 3), made from their points by the compiler.
//
// A tile of m outputs along an axis is A^T [(G g) * (B^T d)], with n = m + 2 products for the n inputs d and 3 weights
// g (Lavin & Gray, arXiv 1509.09308; the construction is Toom and Cook's, turned). The points are those with the least
// rounding error that were found (docs/measured.md).
//
// One or two outputs whose outer inputs both lie in the padding, as in the sub-grids of a large dilation, are the
// product of a 1 x 1 or 2 x 2 Toeplitz matrix: 1 or 3 products instead of 3 or 4, with factors 1 and -1.
#pragma once

#include "vec.h"

namespace lightkernels::cpu {

// Along an axis, what a tile's outputs take: kAlone1 and kAlone2 stand alone in the padding.
enum class Scheme { kF2, kF3, kF4, kF6, kAlone1, kAlone2 };

template <Scheme kScheme>
struct Winograd {
  static constexpr bool kAlone = kScheme == Scheme::kAlone1 || kScheme == Scheme::kAlone2;
  static constexpr int kOutputs = kScheme == Scheme::kAlone1                             ? 1
                                  : kScheme == Scheme::kAlone2 || kScheme == Scheme::kF2 ? 2
                                  : kScheme == Scheme::kF3                               ? 3
                                  : kScheme == Scheme::kF4                               ? 4
                                                                                         : 6;
  static constexpr int kSkipped = kAlone ? 1 : 0;  // of the inputs, at either end
  static constexpr int kInputs = kOutputs + 2 - 2 * kSkipped, kProducts = kAlone ? 2 * kOutputs - 1 : kInputs;
  double output[kOutputs][kProducts], weight[kProducts][3], input[kProducts][kInputs];  // A^T, G, B^T

  constexpr Winograd() : output{}, weight{}, input{} {
    if constexpr (kScheme == Scheme::kAlone1) {
      output[0][0] = weight[0][1] = input[0][0] = 1;
    } else if constexpr (kScheme == Scheme::kAlone2) {  // g1 (d0 + d1), (g2 - g1) d1, (g0 - g1) d0
      weight[0][1] = weight[1][2] = weight[2][0] = 1, weight[1][1] = weight[2][1] = -1;
      input[0][0] = input[0][1] = input[1][1] = input[2][0] = 1;
      output[0][0] = output[0][1] = output[1][0] = output[1][2] = 1;
    } else {
      from_points();
    }
  }

 private:
  constexpr void from_points() {
    constexpr int M = kOutputs, N = kProducts;
    constexpr double kPoints2[] = {0, 1, -1}, kPoints3[] = {0, 1, -1, 0.5}, kPoints4[] = {0, 0.75, -0.75, 1.25, -1.25},
                     kPoints6[] = {0, 1, -1, 2, -2, 0.5, -0.5};
    const double* points = M == 2 ? kPoints2 : M == 3 ? kPoints3 : M == 4 ? kPoints4 : kPoints6;
    for (int j = 0; j < N; ++j) {  // the last one stands for the point at infinity
      const bool infinity = j == N - 1;
      double product[N + 1] = {1}, norm = 1;  // of x - point over all the others: coefficients, lowest first
      int degree = 0;
      for (int l = 0; l < N - 1; ++l) {
        if (l == j) continue;
        for (int k = ++degree; k > 0; --k) product[k] = product[k - 1] - points[l] * product[k];
        product[0] *= -points[l];
        if (!infinity) norm *= points[j] - points[l];
      }
      for (int k = 0; k < N; ++k) input[j][k] = product[k];
      double power = 1;
      for (int i = 0; i < (M > 3 ? M : 3); ++i) {
        if (i < M) output[i][j] = infinity ? (i == M - 1 ? 1 : 0) : power;
        if (i < 3) weight[j][i] = infinity ? (i == 2 ? 1 : 0) : power / norm;
        if (!infinity) power *= points[j];
      }
    }
  }
};

template <Scheme kScheme>
inline constexpr Winograd<kScheme> kWinograd{};

// out[i] = sum over k of matrix[i][k] in[k], zeros left out; f(i, k) is the matrix at compile time.
template <int I, int K, class S, class V, class Element>
LIGHTKERNELS_INLINE void transform(const V (&in)[K], V (&out)[I], Element) {
  unroll<I>(LIGHTKERNELS_LAMBDA(auto i) {
    V sum{};
    bool empty = true;
    unroll<K>(LIGHTKERNELS_LAMBDA(auto k) {
      constexpr S kFactor = static_cast<S>(Element::at(i, k));
      if constexpr (kFactor != 0) {
        if (empty) {
          sum = kFactor == 1 ? in[k] : in[k] * kFactor;
        } else if (kFactor == 1) {
          sum += in[k];
        } else if (kFactor == -1) {
          sum -= in[k];
        } else {
          sum += in[k] * kFactor;
        }
        empty = false;
      }
    });
    out[i] = sum;
  });
}

template <Scheme kScheme>
struct OfInput {
  static constexpr double at(int i, int k) { return kWinograd<kScheme>.input[i][k]; }
};
template <Scheme kScheme>
struct OfWeight {
  static constexpr double at(int i, int k) { return kWinograd<kScheme>.weight[i][k]; }
};
template <Scheme kScheme>
struct OfOutput {
  static constexpr double at(int i, int k) { return kWinograd<kScheme>.output[i][k]; }
};

// A matrix turned: what gradients take.
template <class Element>
struct Turned {
  static constexpr double at(int i, int k) { return Element::at(k, i); }
};

// out = R in C^t for the matrices R [I, K] of `rows` and C [J, H] of `columns`.
template <class S, int K, int H, int I, int J, class V, class Rows, class Columns>
LIGHTKERNELS_INLINE void transform_both(const V (&in)[K][H], V (&out)[I][J], Rows rows, Columns columns) {
  V half[K][J];
  unroll<K>(LIGHTKERNELS_LAMBDA(auto r) { transform<J, H, S, V>(in[r], half[r], columns); });
  unroll<J>(LIGHTKERNELS_LAMBDA(auto c) {
    V column[K], result[I];
    unroll<K>(LIGHTKERNELS_LAMBDA(auto r) { column[r] = half[r][c]; });
    transform<I, K, S, V>(column, result, rows);
    unroll<I>(LIGHTKERNELS_LAMBDA(auto r) { out[r][c] = result[r]; });
  });
}

}  // namespace lightkernels::cpu
