// Contract of pointwise convolution: a dense one with 1x1 kernels, and with a gate and an activation on its input.
#pragma once

#include "dense_conv2d.h"

namespace lightkernels {

// Each machine defines the same functions. Workspaces and packed weights are in bytes.
#define LIGHTKERNELS_POINTWISE_CONV2D_PROTOTYPES                                                       \
  int64_t pointwise_conv2d_forward_workspace(const DenseConv2dParams& p);                              \
  /* y from x and weight, or from p.packed in its place. */                                            \
  void pointwise_conv2d_forward(const DenseConv2dParams& p, const Launch& launch);                     \
  /* What p.packed takes; 0 where the kernels read weight as it is. p's pointers are not looked at. */ \
  int64_t pointwise_conv2d_packed_bytes(const DenseConv2dParams& p);                                   \
  /* Writes p.packed from weight. */                                                                   \
  void pointwise_conv2d_pack(const DenseConv2dParams& p, const Launch& launch);

namespace cpu {
LIGHTKERNELS_POINTWISE_CONV2D_PROTOTYPES
}
namespace cuda {
LIGHTKERNELS_POINTWISE_CONV2D_PROTOTYPES
}

}  // namespace lightkernels
