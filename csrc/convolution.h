// What the contracts of all convolutions share: strides, activations, and what is done to a sum before it is stored.
#pragma once

#include <cstdint>

#include "launch.h"

namespace lightkernels {

// Names and formulas: pytorch_ext/_epilogue.py.
enum class Activation : int32_t {
  kNone,
  kRelu,
  kRelu6,
  kSilu,
  kHardswish,
  kHardsigmoid,
  kSigmoid,
  kTanh,
  kGelu,
  kGeluTanh,
  kLeakyRelu,  // alpha: the slope below 0
  kElu,        // alpha: minus the limit at -inf
  kPrelu,      // slope: one for each channel, or one for all
};

// Strides of a [n, c, h, w] tensor in elements; any values, 0 included.
struct Strides4 {
  int64_t n, c, h, w;
};

// y = (act(sum * scale + bias + before) + after) * gate, where `residual` is either before or after. Tensors are of the
// convolution's dtype; a null pointer leaves its part out.
struct Epilogue {
  Activation activation;
  double alpha;
  void* slope;      // kPrelu: [c], or one element (slope_c = 0)
  int64_t slope_c;  // 0 or 1
  void* scale;      // [c]
  void* bias;       // [c]
  void* residual;   // [n, c, oh, ow]
  Strides4 residual_strides;
  bool residual_first;  // before the activation
  void* gate;           // [n, c]
  int64_t gate_n, gate_c;

  // A bias and a clamp are all that there is.
  bool is_clamp() const {
    return !scale && !residual && !gate &&
           (activation == Activation::kNone || activation == Activation::kRelu || activation == Activation::kRelu6);
  }
};

}  // namespace lightkernels
