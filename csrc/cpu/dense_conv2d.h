// PLACEHOLDER until gemm.h is there: dense convolution by its formula.
#pragma once

#include <algorithm>
#include <cmath>

#include "../dense_conv2d.h"
#include "vec.h"

namespace lightkernels::cpu {

template <class S>
S act1(S z, Activation a, S alpha, S slope) {
  switch (a) {
    case Activation::kRelu: return z < 0 ? S(0) : z;
    case Activation::kRelu6: return z < 0 ? S(0) : z > 6 ? S(6) : z;
    case Activation::kSilu: return z / (1 + std::exp(-z));
    case Activation::kHardswish: return z * std::min(std::max(z + 3, S(0)), S(6)) / 6;
    case Activation::kHardsigmoid: return std::min(std::max(z + 3, S(0)), S(6)) / 6;
    case Activation::kSigmoid: return 1 / (1 + std::exp(-z));
    case Activation::kTanh: return std::tanh(z);
    case Activation::kGelu: return z / 2 * (1 + std::erf(z * S(M_SQRT1_2)));
    case Activation::kGeluTanh: return z / 2 * (1 + std::tanh(S(M_SQRT2 / std::sqrt(M_PI)) * (z + S(0.044715) * z * z * z)));
    case Activation::kLeakyRelu: return z > 0 ? z : z * alpha;
    case Activation::kElu: return z > 0 ? z : alpha * std::expm1(z);
    case Activation::kPrelu: return z > 0 ? z : z * slope;
    default: return z;
  }
}

template <class E>
Acc<E> get(const void* p, int64_t i) { return load<1>(static_cast<const E*>(p) + i)[0]; }
template <class E>
void put(void* p, int64_t i, Acc<E> v) { store<1>(static_cast<E*>(p) + i, Vec<Acc<E>, 1>{v}); }

template <class E>
void dense_forward_typed(const DenseConv2dParams& p, const Launch& launch) {
  using A = Acc<E>;
  const int64_t c = p.groups * p.co;
  launch.parallel(p.n * c, 1, [&](int64_t begin, int64_t end) {
    for (int64_t unit = begin; unit < end; ++unit) {
      const int64_t n = unit / c, o = unit % c, g = o / p.co;
      const Epilogue& e = p.epilogue;
      for (int64_t i = 0; i < p.oh; ++i)
        for (int64_t j = 0; j < p.ow; ++j) {
          A z = 0;
          for (int64_t u = 0; u < p.kh; ++u)
            for (int64_t v = 0; v < p.kw; ++v) {
              const int64_t ih = i * p.stride_h + u * p.dilation_h - p.padding_t,
                            iw = j * p.stride_w + v * p.dilation_w - p.padding_l;
              if (ih < 0 || ih >= p.ih || iw < 0 || iw >= p.iw) continue;
              for (int64_t k = 0; k < p.ci; ++k) {
                const int64_t ch = g * p.ci + k;
                A x = get<E>(p.x, n * p.x_strides.n + ch * p.x_strides.c + ih * p.x_strides.h + iw * p.x_strides.w);
                x = act1<A>(x, p.input_activation, 0, 0);
                if (p.input_gate) x *= get<E>(p.input_gate, n * p.input_gate_n + ch * p.input_gate_c);
                z += x * get<E>(p.weight, o * p.weight_strides.n + k * p.weight_strides.c + u * p.weight_strides.h +
                                             v * p.weight_strides.w);
              }
            }
          if (e.scale) z *= get<E>(e.scale, o);
          if (e.bias) z += get<E>(e.bias, o);
          A r = 0;
          if (e.residual) {
            const Strides4& s = e.residual_strides;
            r = get<E>(e.residual, n * s.n + o * s.c + i * s.h + j * s.w);
          }
          if (e.residual_first) z += r;
          z = act1<A>(z, e.activation, A(e.alpha), e.slope ? get<E>(e.slope, o * e.slope_c) : A(0));
          if (!e.residual_first) z += r;
          if (e.gate) z *= get<E>(e.gate, n * e.gate_n + o * e.gate_c);
          const int64_t per = c / p.shuffle, to = o % per * p.shuffle + o / per;
          put<E>(p.y, n * p.y_strides.n + to * p.y_strides.c + i * p.y_strides.h + j * p.y_strides.w, z);
        }
    }
  });
}

template <class E>
void dense_backward_input_typed(const DenseConv2dParams& p, const Launch& launch) {
  using A = Acc<E>;
  const int64_t c = p.groups * p.ci;
  launch.parallel(p.n * c, 1, [&](int64_t begin, int64_t end) {
    for (int64_t unit = begin; unit < end; ++unit) {
      const int64_t n = unit / c, ch = unit % c, g = ch / p.ci, k = ch % p.ci;
      for (int64_t ih = 0; ih < p.ih; ++ih)
        for (int64_t iw = 0; iw < p.iw; ++iw) {
          A z = 0;
          for (int64_t u = 0; u < p.kh; ++u)
            for (int64_t v = 0; v < p.kw; ++v) {
              const int64_t si = ih + p.padding_t - u * p.dilation_h, sj = iw + p.padding_l - v * p.dilation_w;
              if (si < 0 || sj < 0 || si % p.stride_h || sj % p.stride_w) continue;
              const int64_t i = si / p.stride_h, j = sj / p.stride_w;
              if (i >= p.oh || j >= p.ow) continue;
              for (int64_t o = 0; o < p.co; ++o) {
                const int64_t oc = g * p.co + o;
                z += get<E>(p.y, n * p.y_strides.n + oc * p.y_strides.c + i * p.y_strides.h + j * p.y_strides.w) *
                     get<E>(p.weight, oc * p.weight_strides.n + k * p.weight_strides.c + u * p.weight_strides.h +
                                          v * p.weight_strides.w);
              }
            }
          put<E>(p.x, n * p.x_strides.n + ch * p.x_strides.c + ih * p.x_strides.h + iw * p.x_strides.w, z);
        }
    }
  });
}

template <class E>
void dense_backward_weight_typed(const DenseConv2dParams& p, const Launch& launch) {
  using A = Acc<E>;
  launch.parallel(p.groups * p.co, 1, [&](int64_t begin, int64_t end) {
    for (int64_t o = begin; o < end; ++o) {
      const int64_t g = o / p.co;
      for (int64_t k = 0; k < p.ci; ++k)
        for (int64_t u = 0; u < p.kh; ++u)
          for (int64_t v = 0; v < p.kw; ++v) {
            A z = 0;
            for (int64_t n = 0; n < p.n; ++n)
              for (int64_t i = 0; i < p.oh; ++i)
                for (int64_t j = 0; j < p.ow; ++j) {
                  const int64_t ih = i * p.stride_h + u * p.dilation_h - p.padding_t,
                                iw = j * p.stride_w + v * p.dilation_w - p.padding_l;
                  if (ih < 0 || ih >= p.ih || iw < 0 || iw >= p.iw) continue;
                  z += get<E>(p.y, n * p.y_strides.n + o * p.y_strides.c + i * p.y_strides.h + j * p.y_strides.w) *
                       get<E>(p.x, n * p.x_strides.n + (g * p.ci + k) * p.x_strides.c + ih * p.x_strides.h +
                                       iw * p.x_strides.w);
                }
            put<E>(p.weight, o * p.weight_strides.n + k * p.weight_strides.c + u * p.weight_strides.h +
                                 v * p.weight_strides.w, z);
          }
      A s = 0;
      for (int64_t n = 0; n < p.n; ++n)
        for (int64_t i = 0; i < p.oh; ++i)
          for (int64_t j = 0; j < p.ow; ++j)
            s += get<E>(p.y, n * p.y_strides.n + o * p.y_strides.c + i * p.y_strides.h + j * p.y_strides.w);
      if (p.dbias) put<E>(p.dbias, o, s);
    }
  });
}

}  // namespace lightkernels::cpu
