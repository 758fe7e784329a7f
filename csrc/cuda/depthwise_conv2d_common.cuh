// What the kernels of depthwise convolution share.
#pragma once

#include "../depthwise_conv2d.h"
#include "epilogue.cuh"
#include "sums.cuh"

namespace lightkernels::cuda::depthwise {

using Params = DepthwiseConv2dParams;
using Fused = DepthwiseConv2dFused;

}  // namespace lightkernels::cuda::depthwise
