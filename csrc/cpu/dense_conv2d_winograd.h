// The driver of dense 3x3 convolution of stride 1 by Winograd's algorithm, on the sub-grids of a dilated one.
#pragma once

#include "dense_conv2d.h"

namespace lightkernels::cpu {

// Outputs along a tile's side: 2, 3, 4 or 6, or 0 where the direct sum is to be taken.
int winograd_tile(const DenseConv& d);

// Tells apart in which order weights are packed.
int64_t winograd_layout(const DenseConv& d, int tile);
int64_t winograd_workspace(const DenseConv& d, int tile);
int64_t winograd_packed_bytes(const DenseConv& d, int tile);
void winograd_pack(const DenseConv& d, int tile, void* packed, const Launch& launch);
void winograd_convolve(const DenseConv& d, int tile, const Launch& launch);

}  // namespace lightkernels::cpu
