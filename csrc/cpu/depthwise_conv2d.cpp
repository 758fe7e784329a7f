// Depthwise convolution on the CPU: chooses the kernels of the tensors' layout.
#include "../depthwise_conv2d.h"

#include "depthwise_conv2d_geometry.h"

namespace lightkernels::cpu {
namespace {

bool channels_innermost(const DepthwiseConv2dParams& p) {
  return p.y_strides.c == 1 && p.x_strides.c == 1 && !(p.c == 1 && p.x_strides.w == 1 && p.y_strides.w == 1);
}

void convolve(const DepthwiseConv2dParams& p, bool transposed, const Launch& launch) {
  if (channels_innermost(p)) return convolve_nhwc(p, transposed, launch);
  convolve_nchw(p, transposed, launch);
}

int64_t convolve_workspace(const DepthwiseConv2dParams& p, bool transposed) {
  return channels_innermost(p) ? convolve_nhwc_workspace(p, transposed) : 0;
}

}  // namespace

int64_t depthwise_conv2d_forward_workspace(const DepthwiseConv2dParams& p) { return convolve_workspace(p, false); }
int64_t depthwise_conv2d_backward_input_workspace(const DepthwiseConv2dParams& p) {
  return convolve_workspace(p, true);
}
int64_t depthwise_conv2d_backward_weight_workspace(const DepthwiseConv2dParams& p) {
  return channels_innermost(p) ? backward_weight_nhwc_workspace(p) : backward_weight_nchw_workspace(p);
}

void depthwise_conv2d_forward(const DepthwiseConv2dParams& p, const Launch& launch) { convolve(p, false, launch); }
void depthwise_conv2d_backward_input(const DepthwiseConv2dParams& p, const Launch& launch) {
  convolve(p, true, launch);
}
void depthwise_conv2d_backward_weight(const DepthwiseConv2dParams& p, const Launch& launch) {
  channels_innermost(p) ? backward_weight_nhwc(p, launch) : backward_weight_nchw(p, launch);
}

}  // namespace lightkernels::cpu
