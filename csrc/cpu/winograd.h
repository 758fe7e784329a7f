// The transforms of Winograd's F(m x m, 3 x 3), made from their points by the compiler.
//
// A tile of m outputs along an axis is A^T [(G g) * (B^T d)], with n = m + 2 products for the n inputs d and 3 weights
// g (Lavin & Gray, arXiv 1509.09308; the construction is Toom and Cook's, turned). The points are those with the least
// rounding error that were found (docs/measured.md).
#pragma once

#include "vec.h"

namespace lightkernels::cpu {

template <int M>
struct WinogradMatrices {
  static constexpr int N = M + 2;
  double at[M][N], g[N][3], bt[N][N];

  constexpr WinogradMatrices() : at{}, g{}, bt{} {
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
      for (int k = 0; k < N; ++k) bt[j][k] = product[k];
      double power = 1;
      for (int i = 0; i < (M > 3 ? M : 3); ++i) {
        if (i < M) at[i][j] = infinity ? (i == M - 1 ? 1 : 0) : power;
        if (i < 3) g[j][i] = infinity ? (i == 2 ? 1 : 0) : power / norm;
        if (!infinity) power *= points[j];
      }
    }
  }
};

template <int M>
inline constexpr WinogradMatrices<M> kWinograd{};

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

template <int M>
struct WinogradInput {
  static constexpr double at(int i, int k) { return kWinograd<M>.bt[i][k]; }
};
template <int M>
struct WinogradWeight {
  static constexpr double at(int i, int k) { return kWinograd<M>.g[i][k]; }
};
template <int M>
struct WinogradOutput {
  static constexpr double at(int i, int k) { return kWinograd<M>.at[i][k]; }
};

// T X T^t for the matrix of Element: X [K, K], the result [I, I].
template <int I, int K, class S, class V, class Element>
LIGHTKERNELS_INLINE void transform_both(const V (&in)[K][K], V (&out)[I][I], Element element) {
  V half[K][I];
  unroll<K>(LIGHTKERNELS_LAMBDA(auto r) { transform<I, K, S, V>(in[r], half[r], element); });
  unroll<I>(LIGHTKERNELS_LAMBDA(auto c) {
    V column[K], result[I];
    unroll<K>(LIGHTKERNELS_LAMBDA(auto r) { column[r] = half[r][c]; });
    transform<I, K, S, V>(column, result, element);
    unroll<I>(LIGHTKERNELS_LAMBDA(auto r) { out[r][c] = result[r]; });
  });
}

}  // namespace lightkernels::cpu
