// Contract of PixelShuffle and of its inverse: y[.., c, h * r + i, w * r + j] = x[.., (c * r + i) * r + j, h, w] is a
// move (move.h), and so is the way back.
#pragma once

#include "move.h"

namespace lightkernels {

// Each machine defines the same functions.
#define LIGHTKERNELS_PIXEL_SHUFFLE_PROTOTYPES                            \
  void pixel_shuffle_forward(const MoveParams& p, const Launch& launch); \
  void pixel_unshuffle_forward(const MoveParams& p, const Launch& launch);

namespace cpu {
LIGHTKERNELS_PIXEL_SHUFFLE_PROTOTYPES
}
namespace cuda {
LIGHTKERNELS_PIXEL_SHUFFLE_PROTOTYPES
}

}  // namespace lightkernels
