// Contract of dense convolution with kernels of any size, stride and dilation (1 included), forward and backward.
#pragma once

#include "dense_conv2d.h"

namespace lightkernels {

// Each machine defines the same functions. Workspaces and packed weights are in bytes.
#define LIGHTKERNELS_DILATED_CONV2D_PROTOTYPES                                                         \
  int64_t dilated_conv2d_forward_workspace(const DenseConv2dParams& p);                                \
  int64_t dilated_conv2d_backward_input_workspace(const DenseConv2dParams& p);                         \
  int64_t dilated_conv2d_backward_weight_workspace(const DenseConv2dParams& p);                        \
  /* y from x and weight, or from p.packed in its place. */                                            \
  void dilated_conv2d_forward(const DenseConv2dParams& p, const Launch& launch);                       \
  /* x (every element) from y and weight; no epilogue. */                                              \
  void dilated_conv2d_backward_input(const DenseConv2dParams& p, const Launch& launch);                \
  /* weight (contiguous) and, if not null, dbias from x and y; no epilogue. Deterministic. */          \
  void dilated_conv2d_backward_weight(const DenseConv2dParams& p, const Launch& launch);               \
  /* What p.packed takes; 0 where the kernels read weight as it is. p's pointers are not looked at. */ \
  int64_t dilated_conv2d_packed_bytes(const DenseConv2dParams& p);                                     \
  /* Writes p.packed from weight. */                                                                   \
  void dilated_conv2d_pack(const DenseConv2dParams& p, const Launch& launch);

namespace cpu {
LIGHTKERNELS_DILATED_CONV2D_PROTOTYPES
}
namespace cuda {
LIGHTKERNELS_DILATED_CONV2D_PROTOTYPES
}

}  // namespace lightkernels
