// PLACEHOLDER
#include "../dilated_conv2d.h"

#include <stdexcept>

#include "launch.cuh"

namespace lightkernels::cuda {

int64_t dilated_conv2d_forward_workspace(const DenseConv2dParams&) { return 0; }
void dilated_conv2d_forward(const DenseConv2dParams&, const Launch&) { throw std::runtime_error("dilated_conv2d: no CUDA kernel yet"); }
int64_t dilated_conv2d_packed_bytes(const DenseConv2dParams&) { return 0; }
void dilated_conv2d_pack(const DenseConv2dParams&, const Launch&) {}
int64_t dilated_conv2d_backward_input_workspace(const DenseConv2dParams&) { return 0; }
int64_t dilated_conv2d_backward_weight_workspace(const DenseConv2dParams&) { return 0; }
void dilated_conv2d_backward_input(const DenseConv2dParams&, const Launch&) { throw std::runtime_error("dilated_conv2d: no CUDA kernel yet"); }
void dilated_conv2d_backward_weight(const DenseConv2dParams&, const Launch&) { throw std::runtime_error("dilated_conv2d: no CUDA kernel yet"); }

}  // namespace lightkernels::cuda
