// Contract of depthwise convolution: y[n,c,i,j] = act(b[c] + sum_{u,v} w[c,u,v] x[n, c/m, i*sh+u*dh-pt, j*sw+v*dw-pl]).
#pragma once

#include <cstdint>

#include "convolution.h"

namespace lightkernels {

// One set of roles for all three kernels; what each writes is said at its prototype.
// n, c, kh, kw, oh and ow are positive (ih and iw may be 0 where padding makes up for it), shapes agree, and padding
// may be negative (cropping) on any side.
struct DepthwiseConv2dParams {
  void* x;       // [n, c / multiplier, ih, iw]
  void* weight;  // [c, kh, kw]
  void* bias;    // [c] contiguous, or null
  void* y;       // [n, c, oh, ow]
  DType dtype;   // of all four
  Activation activation;
  int64_t n, c, ih, iw, oh, ow;
  int64_t multiplier;  // outputs per input channel: y's channel c reads x's channel c / multiplier
  int64_t kh, kw;
  int64_t stride_h, stride_w;
  int64_t padding_t, padding_l;
  int64_t dilation_h, dilation_w;
  Strides4 x_strides, y_strides;
  int64_t weight_c, weight_h, weight_w;  // strides of weight
};

// A forward pass with all of an epilogue: of `conv`, bias and activation are not looked at, y and sizes are.
struct DepthwiseConv2dFused {
  DepthwiseConv2dParams conv;
  Epilogue epilogue;
};

// Both gradients at once: two views of one convolution, with the same dy. `input.x` is dx, `weight.weight` is dweight.
struct DepthwiseConv2dBackward {
  DepthwiseConv2dParams input, weight;
};

// Each machine defines the same ten functions. Workspaces are in bytes.
#define LIGHTKERNELS_DEPTHWISE_CONV2D_PROTOTYPES                                                    \
  int64_t depthwise_conv2d_forward_workspace(const DepthwiseConv2dParams& p);                       \
  int64_t depthwise_conv2d_backward_input_workspace(const DepthwiseConv2dParams& p);                \
  int64_t depthwise_conv2d_backward_weight_workspace(const DepthwiseConv2dParams& p);               \
  int64_t depthwise_conv2d_backward_workspace(const DepthwiseConv2dBackward& b);                    \
  /* y from x, weight, bias. */                                                                     \
  void depthwise_conv2d_forward(const DepthwiseConv2dParams& p, const Launch& launch);              \
  int64_t depthwise_conv2d_fused_workspace(const DepthwiseConv2dFused& f);                          \
  /* y from x, weight and the epilogue's tensors. */                                                \
  void depthwise_conv2d_fused(const DepthwiseConv2dFused& f, const Launch& launch);                 \
  /* x (every element) from y and weight; no activation, no bias. */                                \
  void depthwise_conv2d_backward_input(const DepthwiseConv2dParams& p, const Launch& launch);       \
  /* weight and, if not null, bias (both contiguous) from x and y; no activation. Deterministic. */ \
  void depthwise_conv2d_backward_weight(const DepthwiseConv2dParams& p, const Launch& launch);      \
  /* What the two before do. */                                                                     \
  void depthwise_conv2d_backward(const DepthwiseConv2dBackward& b, const Launch& launch);

namespace cpu {
LIGHTKERNELS_DEPTHWISE_CONV2D_PROTOTYPES
}
namespace cuda {
LIGHTKERNELS_DEPTHWISE_CONV2D_PROTOTYPES
}

}  // namespace lightkernels
