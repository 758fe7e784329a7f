// PLACEHOLDER
#include "../dilated_conv2d.h"

#include "dense_conv2d.h"

namespace lightkernels::cpu {

int64_t dilated_conv2d_forward_workspace(const DenseConv2dParams&) { return 0; }
int64_t dilated_conv2d_backward_input_workspace(const DenseConv2dParams&) { return 0; }
int64_t dilated_conv2d_backward_weight_workspace(const DenseConv2dParams&) { return 0; }
void dilated_conv2d_forward(const DenseConv2dParams& p, const Launch& launch) {
  with_type(p.dtype, [&](auto type) { dense_forward_typed<decltype(type)>(p, launch); });
}
void dilated_conv2d_backward_input(const DenseConv2dParams& p, const Launch& launch) {
  with_type(p.dtype, [&](auto type) { dense_backward_input_typed<decltype(type)>(p, launch); });
}
void dilated_conv2d_backward_weight(const DenseConv2dParams& p, const Launch& launch) {
  with_type(p.dtype, [&](auto type) { dense_backward_weight_typed<decltype(type)>(p, launch); });
}
int64_t dilated_conv2d_packed_bytes(const DenseConv2dParams&) { return 0; }
void dilated_conv2d_pack(const DenseConv2dParams&, const Launch&) {}

}  // namespace lightkernels::cpu
