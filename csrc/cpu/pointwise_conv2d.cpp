// Pointwise convolution on the CPU: a dense one of one tap.
#include "../pointwise_conv2d.h"

#include "dense_conv2d.h"

namespace lightkernels::cpu {

int64_t pointwise_conv2d_forward_workspace(const DenseConv2dParams& p) { return dense_workspace(forward_of(p)); }
void pointwise_conv2d_forward(const DenseConv2dParams& p, const Launch& launch) {
  dense_convolve(forward_of(p), launch);
}
int64_t pointwise_conv2d_packed_bytes(const DenseConv2dParams& p) { return dense_packed_bytes(forward_of(p)); }
void pointwise_conv2d_pack(const DenseConv2dParams& p, const Launch& launch) {
  pack_dense(forward_of(p), p.packed, launch);
}

}  // namespace lightkernels::cpu
