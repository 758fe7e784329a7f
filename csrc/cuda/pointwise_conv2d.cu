// PLACEHOLDER
#include "../pointwise_conv2d.h"

#include <stdexcept>

#include "launch.cuh"

namespace lightkernels::cuda {

int64_t pointwise_conv2d_forward_workspace(const DenseConv2dParams&) { return 0; }
void pointwise_conv2d_forward(const DenseConv2dParams&, const Launch&) { throw std::runtime_error("pointwise_conv2d: no CUDA kernel yet"); }
int64_t pointwise_conv2d_packed_bytes(const DenseConv2dParams&) { return 0; }
void pointwise_conv2d_pack(const DenseConv2dParams&, const Launch&) {}

}  // namespace lightkernels::cuda
