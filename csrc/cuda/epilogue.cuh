// What is done to a sum before it is stored, for the kernels of every op: csrc/convolution.h's Epilogue, its
// activations and their derivatives. Formulas: pytorch_ext/_epilogue.py. NaN and infinities give what torch gives.
#pragma once

#include <type_traits>

#include "../convolution.h"
#include "scalars.cuh"

namespace lightkernels::cuda {

template <class A>
__device__ __forceinline__ A clip6(A z) {
  return z < A(0) ? A(0) : z > A(6) ? A(6) : z;
}

// --- one value; alpha is leaky_relu's, elu's, or prelu's slope of the value's channel --------------------------------
template <Activation ACTIVATION, class A>
__device__ __forceinline__ A activate(A z, A alpha) {
  if constexpr (ACTIVATION == Activation::kRelu) return z < A(0) ? A(0) : z;
  if constexpr (ACTIVATION == Activation::kRelu6) return clip6(z);
  if constexpr (ACTIVATION == Activation::kSilu) return z / (A(1) + exp(-z));
  if constexpr (ACTIVATION == Activation::kHardswish) return z * clip6(z + A(3)) / A(6);
  if constexpr (ACTIVATION == Activation::kHardsigmoid) return clip6(z + A(3)) / A(6);
  if constexpr (ACTIVATION == Activation::kSigmoid) return A(1) / (A(1) + exp(-z));
  if constexpr (ACTIVATION == Activation::kTanh) return tanh(z);
  if constexpr (ACTIVATION == Activation::kGelu) return A(0.5) * z * erfc(z * A(-0.70710678118654752440));
  if constexpr (ACTIVATION == Activation::kGeluTanh) {
    return z / (A(1) + exp(A(-2 * 0.79788456080286535588) * (z + A(0.044715) * z * z * z)));  // sigmoid(2 u), u in tanh
  }
  if constexpr (ACTIVATION == Activation::kLeakyRelu || ACTIVATION == Activation::kPrelu) {
    return z > A(0) ? z : z * alpha;
  }
  if constexpr (ACTIVATION == Activation::kElu) return z < A(0) ? alpha * expm1(z) : z;
  return z;
}

// sigmoid(z) and its derivative, each with small results' digits.
template <class A>
struct Logistic {
  A value, slope;
};

template <class A>
__device__ __forceinline__ Logistic<A> logistic(A z) {
  const A e = exp(z < A(0) ? z : -z), y = A(1) / (A(1) + e);
  return {z < A(0) ? e * y : y, e * y * y};
}

// dy * act'(z).
template <Activation ACTIVATION, class A>
__device__ __forceinline__ A derivative(A dy, A z, A alpha) {
  if constexpr (ACTIVATION == Activation::kRelu) return z <= A(0) ? A(0) : dy;
  if constexpr (ACTIVATION == Activation::kRelu6) return z <= A(0) || z >= A(6) ? A(0) : dy;
  if constexpr (ACTIVATION == Activation::kSilu) {
    const A gate = A(1) / (A(1) + exp(-z));
    return dy * gate * (A(1) + z * (A(1) - gate));
  }
  if constexpr (ACTIVATION == Activation::kHardswish) {
    return z <= A(-3) ? A(0) : z < A(3) ? dy * (z / A(3) + A(0.5)) : dy;
  }
  if constexpr (ACTIVATION == Activation::kHardsigmoid) return z > A(-3) && z < A(3) ? dy / A(6) : A(0);
  if constexpr (ACTIVATION == Activation::kSigmoid) return dy * logistic(z).slope;
  if constexpr (ACTIVATION == Activation::kTanh) return dy * (A(4) * logistic(A(2) * z).slope);
  if constexpr (ACTIVATION == Activation::kGelu) {
    const A below = A(0.5) * erfc(z * A(-0.70710678118654752440));
    return dy * (below + z * (A(0.39894228040143267794) * exp(A(-0.5) * z * z)));
  }
  if constexpr (ACTIVATION == Activation::kGeluTanh) {
    const auto of = logistic(A(2 * 0.79788456080286535588) * (z + A(0.044715) * z * z * z));
    return dy * (of.value + z * of.slope * (A(2 * 0.79788456080286535588) * (A(1) + A(3 * 0.044715) * z * z)));
  }
  if constexpr (ACTIVATION == Activation::kLeakyRelu || ACTIVATION == Activation::kPrelu) {
    return z > A(0) ? dy : dy * alpha;
  }
  if constexpr (ACTIVATION == Activation::kElu) return z <= A(0) ? dy * alpha * exp(z) : dy;
  return dy;
}

// --- all of a thread's values: one branch for all of them ------------------------------------------------------------
// f(std::integral_constant<Activation, ...>), on the host too.
template <class F>
__host__ __device__ __forceinline__ void with_activation(Activation activation, F&& f) {
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

// alpha(i) is that of z[i].
template <int N, class A, class Alpha>
__device__ __forceinline__ void activate(Activation activation, A (&z)[N], Alpha&& alpha) {
  if (activation == Activation::kNone) return;
  with_activation(activation, [&](auto constant) {
#pragma unroll
    for (int i = 0; i < N; ++i) z[i] = activate<decltype(constant)::value>(z[i], static_cast<A>(alpha(i)));
  });
}

// Those without a parameter.
template <int N, class A>
__device__ __forceinline__ void activate(Activation activation, A (&z)[N]) {
  activate(activation, z, [](int) { return A(0); });
}

// --- all of an epilogue ----------------------------------------------------------------------------------------------
// What an epilogue holds of one channel of one image. T is the tensors' type.
template <class A>
struct Channel {
  A scale, bias, alpha, gate;
};

template <class T>
__device__ __forceinline__ Channel<Sum<T>> channel_of(const Epilogue& e, int64_t n, int64_t c) {
  using A = Sum<T>;
  Channel<A> of{A(1), A(0), static_cast<A>(e.alpha), A(1)};
  if (e.scale) of.scale = load(static_cast<const T*>(e.scale) + c);
  if (e.bias) of.bias = load(static_cast<const T*>(e.bias) + c);
  if (e.activation == Activation::kPrelu) of.alpha = load(static_cast<const T*>(e.slope) + c * e.slope_c);
  if (e.gate) of.gate = load(static_cast<const T*>(e.gate) + n * e.gate_n + c * e.gate_c);
  return of;
}

// Sums to what is stored. of(i) is the channel of z[i], residual[i] what the residual has there, and 0 without one.
template <int N, class A, class Of>
__device__ __forceinline__ void finish(const Epilogue& e, A (&z)[N], const A (&residual)[N], Of&& of) {
#pragma unroll
  for (int i = 0; i < N; ++i) {
    z[i] = z[i] * of(i).scale + of(i).bias;
    if (e.residual_first) z[i] += residual[i];
  }
  activate(e.activation, z, [&](int i) { return of(i).alpha; });
#pragma unroll
  for (int i = 0; i < N; ++i) {
    if (!e.residual_first) z[i] += residual[i];
    z[i] *= of(i).gate;
  }
}

}  // namespace lightkernels::cuda
