// PLACEHOLDER
#include "../pointwise_conv2d.h"

#include "dense_conv2d.h"

namespace lightkernels::cpu {

int64_t pointwise_conv2d_forward_workspace(const DenseConv2dParams&) { return 0; }
void pointwise_conv2d_forward(const DenseConv2dParams& p, const Launch& launch) {
  with_type(p.dtype, [&](auto type) { dense_forward_typed<decltype(type)>(p, launch); });
}
int64_t pointwise_conv2d_packed_bytes(const DenseConv2dParams&) { return 0; }
void pointwise_conv2d_pack(const DenseConv2dParams&, const Launch&) {}

}  // namespace lightkernels::cpu
