// Pointwise convolution on NVIDIA GPUs: a matrix product of pixels and weight (dense_conv2d.cuh).
#include "../pointwise_conv2d.h"
#include "dense_host.cuh"

namespace lightkernels::cuda {

int64_t pointwise_conv2d_forward_workspace(const DenseConv2dParams& p) { return dense::packed_weight_bytes(p, false); }

void pointwise_conv2d_forward(const DenseConv2dParams& p, const Launch& launch) {
  dense::product<true>(p, dense::forward_problem(p), dense::forward_result(p), false, launch);
}

int64_t pointwise_conv2d_packed_bytes(const DenseConv2dParams&) { return 0; }
void pointwise_conv2d_pack(const DenseConv2dParams&, const Launch&) {}

}  // namespace lightkernels::cuda
