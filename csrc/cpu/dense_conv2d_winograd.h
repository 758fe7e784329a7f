// Dense 3x3 convolution of stride 1, and its weight's gradient, by Winograd's algorithm, on the sub-grids of a dilated
// one.
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

// The gradient of d's weight from d.in and d.out, the gradient of the output, which have channels innermost and the
// type that sums are carried in: into dweight [taps, groups, co, ci]. The workspace is in bytes.
int64_t winograd_weight_workspace(const DenseConv& d, int tile);
void winograd_backward_weight(const DenseConv& d, int tile, void* dweight, const Launch& launch);

}  // namespace lightkernels::cpu
