// Activations and their derivatives on vectors, for the kernels of every op. Formulas: pytorch_ext/_epilogue.py. NaN
// and infinities give what torch gives.
#pragma once

#include <type_traits>

#include "../convolution.h"
#include "vec.h"

namespace lightkernels::cpu {

// --- 2^n and exp -----------------------------------------------------------------------------------------------------
template <class S>
using Whole = std::conditional_t<std::is_same_v<S, double>, int64_t, int32_t>;

// v * 2^n, n whole and beyond what an exponent holds too.
template <int L, class S>
LIGHTKERNELS_INLINE Vec<S, L> scale2(Vec<S, L> v, Vec<S, L> n) {
#if defined(__AVX512F__)
  if constexpr (std::is_same_v<S, float> && L == 16) return (Vec<S, L>)_mm512_scalef_ps((__m512)v, (__m512)n);
  if constexpr (std::is_same_v<S, double> && L == 8) return (Vec<S, L>)_mm512_scalef_pd((__m512d)v, (__m512d)n);
#endif
  using I = Vec<Whole<S>, L>;
  constexpr int kBits = std::is_same_v<S, double> ? 52 : 23, kBias = std::is_same_v<S, double> ? 1023 : 127;
  constexpr S kMagic = std::is_same_v<S, double> ? S(6755399441055744.0) : S(12582912.0);
  const I whole = (I)(n + kMagic) - (I)splat<L>(kMagic), half = whole >> 1;  // two steps: each half is an exponent
  return v * (Vec<S, L>)((half + kBias) << kBits) * (Vec<S, L>)((whole - half + kBias) << kBits);
}

// x = n * ln2 + r with n whole and |r| <= ln2 / 2, for x that is not beyond where exp is 0 or infinite.
template <class V>
struct Reduced {
  V n, r;
};

template <int L, class S>
LIGHTKERNELS_INLINE Reduced<Vec<S, L>> reduce(Vec<S, L> x) {
  constexpr bool kDouble = std::is_same_v<S, double>;
  const S magic = kDouble ? S(6755399441055744.0) : S(12582912.0);  // adding it rounds to a whole number
  const Vec<S, L> n = (x * S(1.44269504088896340736) + magic) - magic;
  const Vec<S, L> r = x - n * (kDouble ? S(0.693147180369123816490) : S(0.693145751953125));
  return {n, r - n * (kDouble ? S(1.90821492927058770002e-10) : S(1.42860682030941723212e-6))};
}

// (e^r - 1 - r) / r^2 for |r| <= ln2 / 2: minimax in float (0.02 ulp of e^r), Taylor in double.
template <int L, class S>
LIGHTKERNELS_INLINE Vec<S, L> exp_tail(Vec<S, L> r) {
  if constexpr (std::is_same_v<S, double>) {
    Vec<S, L> e = splat<L>(S(1.0 / 6227020800));
    constexpr double kFactorials[] = {479001600, 39916800, 3628800, 362880, 40320, 5040, 720, 120, 24, 6, 2};
    unroll<11>(LIGHTKERNELS_LAMBDA(auto i) { e = e * r + S(1 / kFactorials[i]); });
    return e;
  } else {
    Vec<S, L> e = splat<L>(1.3843653723597527e-3f) * r + 8.37415549904108e-3f;
    e = e * r + 4.166800156235695e-2f;
    e = e * r + 1.6666431725025177e-1f;
    return e * r + 0.5f;
  }
}

#if defined(__AVX512F__)
// e^x for |x| <= 105: 2^(n / 32) * 2^r, of which the 32 roots lie in two registers, so that two terms of a minimax
// polynomial are enough (1.5 ulp). 1.7 times as fast as the general one, with which silu took 1.9 ns a vector.
LIGHTKERNELS_INLINE Vec<float, 16> exp_by_roots(Vec<float, 16> x) {
  alignas(64) static constexpr float kRoots[] = {
      1.f,         1.0218972f,  1.04427373f, 1.06714046f, 1.09050775f, 1.1143868f,  1.13878858f, 1.1637249f,
      1.18920708f, 1.21524739f, 1.24185777f, 1.26905096f, 1.29683959f, 1.32523668f, 1.35425556f, 1.38390994f,
      1.41421354f, 1.44518077f, 1.47682619f, 1.50916445f, 1.54221082f, 1.5759809f,  1.61049032f, 1.64575553f,
      1.68179286f, 1.71861935f, 1.75625217f, 1.79470909f, 1.8340081f,  1.87416768f, 1.91520655f, 1.95714414f};
  const Vec<float, 16> whole = splat<16>(12582912.f / 32);  // adding it rounds to a 32nd
  const Vec<float, 16> shifted = x * 1.44269504088896340736f + whole, n = shifted - whole;
  const Vec<float, 16> r = x * 1.44269504088896340736f - n;
  const auto root =
      (Vec<float, 16>)_mm512_permutex2var_ps(_mm512_load_ps(kRoots), (__m512i)shifted, _mm512_load_ps(kRoots + 16));
  return scale2<16, float>((r * root) * (r * 0.24022649228572845f + 0.6931573152542114f) + root, n);
}
#endif

template <int L, class S>
LIGHTKERNELS_INLINE Vec<S, L> exp(Vec<S, L> x) {
  constexpr bool kDouble = std::is_same_v<S, double>;
  x = clamp(x, splat<L>(kDouble ? S(-746) : S(-105)), splat<L>(kDouble ? S(710) : S(89)));
#if defined(__AVX512F__)
  if constexpr (!kDouble && L == 16) return exp_by_roots(x);
#endif
  const auto [n, r] = reduce<L, S>(x);
  return scale2<L, S>((exp_tail<L, S>(r) * r + S(1)) * r + S(1), n);
}

// exp(x) - 1 for x <= 0, with small results' digits.
template <int L, class S>
LIGHTKERNELS_INLINE Vec<S, L> expm1(Vec<S, L> x) {
  using I = Vec<Whole<S>, L>;
  constexpr int kBits = std::is_same_v<S, double> ? 52 : 23;
  constexpr S kMagic = std::is_same_v<S, double> ? S(6755399441055744.0) : S(12582912.0);
  const auto [n, r] = reduce<L, S>(clamp(x, splat<L>(S(-40)), splat<L>(S(0))));
  const auto power = (Vec<S, L>)((I)splat<L>(S(1)) + ((I)(n + kMagic) << kBits));  // 2^n
  return ((exp_tail<L, S>(r) * r + S(1)) * r) * power + (power - S(1));
}

// --- the functions behind activations --------------------------------------------------------------------------------
template <int L, class S>
LIGHTKERNELS_INLINE Vec<S, L> copy_sign(Vec<S, L> size, Vec<S, L> sign) {
  using I = Vec<Whole<S>, L>;
  const I top = (I)splat<L>(S(-0.0));
  return (Vec<S, L>)((I)size | ((I)sign & top));
}

template <int L, class S>
LIGHTKERNELS_INLINE Vec<S, L> absolute(Vec<S, L> v) {
  using I = Vec<Whole<S>, L>;
  return (Vec<S, L>)((I)v & ~(I)splat<L>(S(-0.0)));
}

template <int L, class S>
LIGHTKERNELS_INLINE Vec<S, L> sigmoid(Vec<S, L> z) {
  return S(1) / (exp<L, S>(-z) + S(1));
}

// z * sigmoid(u); of silu, u is z.
template <int L, class S>
LIGHTKERNELS_INLINE Vec<S, L> silu_of(Vec<S, L> z, Vec<S, L> u) {
#if defined(__AVX512DQ__)
  if constexpr (std::is_same_v<S, float> && L == 16) {  // the smaller in size, with u's sign: NaN is lost, but not in z
    return z / (exp_by_roots(-(Vec<S, L>)_mm512_range_ps((__m512)u, _mm512_set1_ps(105), 2)) + 1.f);
  }
#endif
  return z / (exp<L, S>(-u) + S(1));
}

// sigmoid(z) and its derivative, each with small results' digits.
template <class V>
struct Logistic {
  V value, slope;
};

template <int L, class S>
LIGHTKERNELS_INLINE Logistic<Vec<S, L>> logistic(Vec<S, L> z) {
  const Vec<S, L> e = exp<L, S>(-absolute<L, S>(z)), y = S(1) / (e + S(1));
  return {z < S(0) ? e * y : y, e * y * y};
}

template <int L, class S>
LIGHTKERNELS_INLINE Vec<S, L> tanh(Vec<S, L> z) {
  const Vec<S, L> e = expm1<L, S>(absolute<L, S>(z) * S(-2));  // in (-1, 0]
  return copy_sign<L, S>(-e / (e + S(2)), z);
}

template <int L, class S, int N>
LIGHTKERNELS_INLINE Vec<S, L> horner(Vec<S, L> x, const S (&coefficients)[N]) {
  Vec<S, L> p = splat<L>(coefficients[0]);
  unroll<N - 1>(LIGHTKERNELS_LAMBDA(auto i) { p = p * x + coefficients[i() + 1]; });
  return p;
}

// Cephes' (Moshier, "Methods and Programs for Mathematical Functions", 1989): a rational below 1, and 1 - e^(-x^2)
// times another above.
template <int L>
LIGHTKERNELS_INLINE Vec<double, L> erf(Vec<double, L> z) {
  constexpr double kT[] = {9.60497373987051638749e0, 9.00260197203842689217e1, 2.23200534594684319226e3,
                           7.00332514112805075473e3, 5.55923013010394962768e4};
  constexpr double kU[] = {1,
                           3.35617141647503099647e1,
                           5.21357949780152679795e2,
                           4.59432382970980127987e3,
                           2.26290000613890934246e4,
                           4.92673942608635921086e4};
  constexpr double kP[] = {2.46196981473530512524e-10, 5.64189564831068821977e-1, 7.46321056442269912687e0,
                           4.86371970985681366614e1,   1.96520832956077098242e2,  5.26445194995477358631e2,
                           9.34528527171957607540e2,   1.02755188689515710272e3,  5.57535335369399327526e2};
  constexpr double kQ[] = {1,
                           1.32281951154744992508e1,
                           8.67072140885989742329e1,
                           3.54937778887819891062e2,
                           9.75708501743205489753e2,
                           1.82390916687909736289e3,
                           2.24633760818710981792e3,
                           1.65666309194161350182e3,
                           5.57535340817727675546e2};
  using V = Vec<double, L>;
  const V x = clamp(absolute<L, double>(z), splat<L>(0.), splat<L>(6.5)), square = z * z;
  const V near = z * horner<L, double>(square, kT) / horner<L, double>(square, kU);
  const V far = 1. - exp<L, double>(-x * x) * (horner<L, double>(x, kP) / horner<L, double>(x, kQ));
  return x < 1. ? near : copy_sign<L, double>(far, z);
}

// The normal distribution: the part below z, and its density there without 1 / sqrt(2 pi).
template <class V>
struct Normal {
  V below, bell;
};

template <int L, class S>
LIGHTKERNELS_INLINE Normal<Vec<S, L>> normal(Vec<S, L> z) {
  const Vec<S, L> bell = exp<L, S>(S(-0.5) * z * z);
  if constexpr (std::is_same_v<S, double>) {
    return {0.5 * (1. + erf<L>(z * 0.70710678118654752440)), bell};
  } else {
    // What lies beyond |z|, over the bell: a minimax polynomial in 1 / (1 + 0.27 |z|), to 2^-25.
    constexpr float kTail[] = {0.02891527671571023f, -0.12625527348055438f, 0.16929141573663345f,
                               -0.0686209783397203f, 0.10739942293620433f,  0.07224029794059407f,
                               0.10175916234158006f, 0.10755050691018617f,  0.10772018099232122f};
    const Vec<S, L> t = 1.f / (absolute<L, S>(z) * 0.27f + 1.f);
    const Vec<S, L> beyond = bell * (t * horner<L, S>(t, kTail));
    return {z < 0.f ? beyond : 1.f - beyond, bell};
  }
}

template <int L, class S>
LIGHTKERNELS_INLINE Vec<S, L> clip6(Vec<S, L> z) {
  return clamp(z, splat<L>(S(0)), splat<L>(S(6)));
}

// --- one vector; alpha is leaky_relu's, elu's, or prelu's slopes of the values' channels -----------------------------
template <Activation kActivation, int L, class S>
LIGHTKERNELS_INLINE Vec<S, L> activate(Vec<S, L> z, Vec<S, L> alpha) {
  constexpr S kRoot = 0.79788456080286535588;  // of 2 / pi
  switch (kActivation) {
    case Activation::kNone:
      return z;
    case Activation::kRelu:
      return clamp(z, splat<L>(S(0)), splat<L>(S(__builtin_inf())));
    case Activation::kRelu6:
      return clip6<L, S>(z);
    case Activation::kSilu:
      return silu_of<L, S>(z, z);
    case Activation::kHardswish:
      return z * clip6<L, S>(z + S(3)) * S(1.0 / 6);
    case Activation::kHardsigmoid:
      return clip6<L, S>(z + S(3)) * S(1.0 / 6);
    case Activation::kSigmoid:
      return sigmoid<L, S>(z);
    case Activation::kTanh:
      return tanh<L, S>(z);
    case Activation::kGelu:
      return z * normal<L, S>(z).below;
    case Activation::kGeluTanh:
      return silu_of<L, S>(z, S(2) * kRoot * (z + S(0.044715) * z * z * z));  // (1 + tanh(u)) / 2 is sigmoid(2 u)
    case Activation::kLeakyRelu:
    case Activation::kPrelu:
      return z > S(0) ? z : z * alpha;
    case Activation::kElu:
      return z < S(0) ? alpha * expm1<L, S>(z) : z;
  }
}

// dy * act'(z).
template <Activation kActivation, int L, class S>
LIGHTKERNELS_INLINE Vec<S, L> derivative(Vec<S, L> dy, Vec<S, L> z, Vec<S, L> alpha) {
  constexpr S kRoot = 0.79788456080286535588;  // of 2 / pi
  const Vec<S, L> zero{};
  switch (kActivation) {
    case Activation::kNone:
      return dy;
    case Activation::kRelu:
      return z <= S(0) ? zero : dy;
    case Activation::kRelu6:
      return (z <= S(0)) | (z >= S(6)) ? zero : dy;
    case Activation::kSilu: {
      const Vec<S, L> gate = sigmoid<L, S>(z);
      return dy * gate * (S(1) + z * (S(1) - gate));
    }
    case Activation::kHardswish: {
      const Vec<S, L> slope = z < S(3) ? z * S(1.0 / 3) + S(0.5) : splat<L>(S(1));
      return z <= S(-3) ? zero : dy * slope;
    }
    case Activation::kHardsigmoid:
      return (z > S(-3)) & (z < S(3)) ? dy * S(1.0 / 6) : zero;
    case Activation::kSigmoid:
      return dy * logistic<L, S>(z).slope;
    case Activation::kTanh:
      return dy * (S(4) * logistic<L, S>(S(2) * z).slope);
    case Activation::kGelu: {
      const auto [below, bell] = normal<L, S>(z);
      return dy * (below + z * (S(0.39894228040143267794) * bell));
    }
    case Activation::kGeluTanh: {
      const auto [gate, slope] = logistic<L, S>(S(2) * kRoot * (z + S(0.044715) * z * z * z));
      return dy * (gate + z * slope * (S(2) * kRoot * (S(1) + S(3 * 0.044715) * z * z)));
    }
    case Activation::kLeakyRelu:
    case Activation::kPrelu:
      return z > S(0) ? dy : dy * alpha;
    case Activation::kElu:
      return z <= S(0) ? dy * alpha * exp<L, S>(z) : dy;
  }
}

// --- chosen at run time ----------------------------------------------------------------------------------------------
// f(std::integral_constant<Activation, ...>).
template <class F>
LIGHTKERNELS_INLINE void with_activation(Activation activation, F&& f) {
  switch (activation) {
#define LIGHTKERNELS_CASE(NAME) \
  case Activation::NAME:        \
    return f(std::integral_constant<Activation, Activation::NAME>{})
    LIGHTKERNELS_CASE(kNone);
    LIGHTKERNELS_CASE(kRelu);
    LIGHTKERNELS_CASE(kRelu6);
    LIGHTKERNELS_CASE(kSilu);
    LIGHTKERNELS_CASE(kHardswish);
    LIGHTKERNELS_CASE(kHardsigmoid);
    LIGHTKERNELS_CASE(kSigmoid);
    LIGHTKERNELS_CASE(kTanh);
    LIGHTKERNELS_CASE(kGelu);
    LIGHTKERNELS_CASE(kGeluTanh);
    LIGHTKERNELS_CASE(kLeakyRelu);
    LIGHTKERNELS_CASE(kElu);
    LIGHTKERNELS_CASE(kPrelu);
#undef LIGHTKERNELS_CASE
  }
}

template <int L, class S>
LIGHTKERNELS_INLINE Vec<S, L> activate(Vec<S, L> z, Activation activation, S alpha, Vec<S, L> slope) {
  with_activation(
      activation, LIGHTKERNELS_LAMBDA(auto constant) {
        constexpr Activation kActivation = decltype(constant)::value;
        z = activate<kActivation, L, S>(z, kActivation == Activation::kPrelu ? slope : splat<L>(alpha));
      });
  return z;
}

template <int L, class S>
LIGHTKERNELS_INLINE Vec<S, L> derivative(Vec<S, L> dy, Vec<S, L> z, Activation activation, S alpha, Vec<S, L> slope) {
  with_activation(
      activation, LIGHTKERNELS_LAMBDA(auto constant) {
        constexpr Activation kActivation = decltype(constant)::value;
        dy = derivative<kActivation, L, S>(dy, z, kActivation == Activation::kPrelu ? slope : splat<L>(alpha));
      });
  return dy;
}

}  // namespace lightkernels::cpu
