// Contract of channel shuffle: y[n, j * groups + i, ...] = x[n, i * (c / groups) + j, ...] is a move (move.h).
#pragma once

#include "move.h"

namespace lightkernels {

// Each machine defines the same function.
namespace cpu {
void channel_shuffle_forward(const MoveParams& p, const Launch& launch);
}
namespace cuda {
void channel_shuffle_forward(const MoveParams& p, const Launch& launch);
}

}  // namespace lightkernels
