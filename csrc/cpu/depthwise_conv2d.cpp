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

bool sweeps_both(const DepthwiseConv2dBackward& b) {
  return channels_innermost(b.input) && channels_innermost(b.weight) && sweeps_both_nhwc(b.weight);
}

}  // namespace

int64_t depthwise_conv2d_forward_workspace(const DepthwiseConv2dParams& p) { return convolve_workspace(p, false); }
int64_t depthwise_conv2d_backward_input_workspace(const DepthwiseConv2dParams& p) {
  return convolve_workspace(p, true);
}
int64_t depthwise_conv2d_backward_weight_workspace(const DepthwiseConv2dParams& p) {
  return channels_innermost(p) ? backward_weight_nhwc_workspace(p) : backward_weight_nchw_workspace(p);
}
int64_t depthwise_conv2d_backward_workspace(const DepthwiseConv2dBackward& b) {
  if (sweeps_both(b)) return backward_nhwc_workspace(b.weight);
  return std::max(depthwise_conv2d_backward_input_workspace(b.input),
                  depthwise_conv2d_backward_weight_workspace(b.weight));
}

void depthwise_conv2d_forward(const DepthwiseConv2dParams& p, const Launch& launch) { convolve(p, false, launch); }
void depthwise_conv2d_backward_input(const DepthwiseConv2dParams& p, const Launch& launch) {
  convolve(p, true, launch);
}
void depthwise_conv2d_backward_weight(const DepthwiseConv2dParams& p, const Launch& launch) {
  channels_innermost(p) ? backward_weight_nhwc(p, launch) : backward_weight_nchw(p, launch);
}
void depthwise_conv2d_backward(const DepthwiseConv2dBackward& b, const Launch& launch) {
  if (sweeps_both(b)) return backward_nhwc(b.input, b.weight, launch);
  depthwise_conv2d_backward_input(b.input, launch);
  depthwise_conv2d_backward_weight(b.weight, launch);
}

}  // namespace lightkernels::cpu
