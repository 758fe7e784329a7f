// Dense convolution of any kernel on the CPU: chooses the algorithm, and makes the gradients of the forward's drivers.
#include "../dilated_conv2d.h"

#include "dense_conv2d.h"

namespace lightkernels::cpu {

int64_t dilated_conv2d_forward_workspace(const DenseConv2dParams& p) { return dense_workspace(forward_of(p)); }
void dilated_conv2d_forward(const DenseConv2dParams& p, const Launch& launch) { dense_convolve(forward_of(p), launch); }
int64_t dilated_conv2d_packed_bytes(const DenseConv2dParams& p) { return dense_packed_bytes(forward_of(p)); }
void dilated_conv2d_pack(const DenseConv2dParams& p, const Launch& launch) {
  pack_dense(forward_of(p), p.packed, launch);
}

int64_t dilated_conv2d_backward_input_workspace(const DenseConv2dParams& p) {
  int64_t most = 0;
  for_backward_input(p, [&](const DenseConv& d) { most = std::max(most, dense_workspace(d)); });
  return most;
}
void dilated_conv2d_backward_input(const DenseConv2dParams& p, const Launch& launch) {
  for_backward_input(p, [&](const DenseConv& d) { dense_convolve(d, launch); });
}

int64_t dilated_conv2d_backward_weight_workspace(const DenseConv2dParams& p) { return dense_weight_workspace(p); }
void dilated_conv2d_backward_weight(const DenseConv2dParams& p, const Launch& launch) {
  dense_backward_weight(p, launch);
}

}  // namespace lightkernels::cpu
