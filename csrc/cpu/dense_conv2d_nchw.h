// The driver of dense convolution where pixels are innermost.
#pragma once

#include "dense_conv2d.h"

namespace lightkernels::cpu {

int64_t nchw_workspace(const DenseConv& d);
int64_t nchw_packed_bytes(const DenseConv& d);
void nchw_pack(const DenseConv& d, void* packed, const Launch& launch);
void nchw_convolve(const DenseConv& d, const Launch& launch);

}  // namespace lightkernels::cpu
