// Contract of convolutions over all channels of a group, which pointwise_conv2d and dilated_conv2d share:
// y[n,o,i,j] = epilogue(sum_{k,u,v} w[o,k,u,v] x'[n, k, i*sh+u*dh-pt, j*sw+v*dw-pl]), k over the channels of o's group.
#pragma once

#include <cstdint>

#include "convolution.h"

namespace lightkernels {

enum class Algorithm : int32_t { kAuto, kDirect, kWinograd2, kWinograd3, kWinograd4, kWinograd6 };

// One set of roles for forward and backward; what each function writes is said at its prototype.
// All sizes but n, ih and iw are positive, shapes agree, and padding may be negative (cropping).
struct DenseConv2dParams {
  void* x;                    // [n, groups * ci, ih, iw]
  void* weight;               // [groups * co, ci, kh, kw]
  void* y;                    // [n, groups * co, oh, ow]
  DType dtype;                // of all, and of the epilogue's and the gate
  int64_t n, groups, ci, co;  // channels are those of one group
  int64_t ih, iw, oh, ow;
  int64_t kh, kw;
  int64_t stride_h, stride_w;
  int64_t padding_t, padding_l;
  int64_t dilation_h, dilation_w;
  Strides4 x_strides, y_strides;
  Strides4 weight_strides;  // n: of the output channel, c: of the input channel
  Algorithm algorithm;      // dilated_conv2d's choice; a Winograd is asked for only where strides are 1 and kernels 3x3
  Epilogue epilogue;
  void* packed;  // forward: what <op>_pack made of weight for this very layer and layout, or null
  void* dbias;   // backward_weight: [groups * co], contiguous

  // pointwise_conv2d alone (kh = kw = 1, no padding, no dilation): x' = act(x) * input_gate, and channel
  // j * shuffle + g of y is channel g * (groups * co / shuffle) + j of what the epilogue makes.
  Activation input_activation;  // without a parameter
  void* input_gate;             // [n, groups * ci], or null
  int64_t input_gate_n, input_gate_c;
  int64_t shuffle;  // divides groups * co; 1: as they are
};

}  // namespace lightkernels
