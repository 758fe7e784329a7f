// The driver of dense convolution where channels are innermost.
#pragma once

#include "dense_conv2d.h"

namespace lightkernels::cpu {

int64_t nhwc_workspace(const DenseConv& d);
int64_t nhwc_packed_bytes(const DenseConv& d);
void nhwc_pack(const DenseConv& d, void* packed, const Launch& launch);
void nhwc_convolve(const DenseConv& d, const Launch& launch);

}  // namespace lightkernels::cpu
