// PixelShuffle: of planes it interleaves r rows, of pixels it takes r * r streams apart; back, the other way round.
#include "../pixel_shuffle.h"

namespace lightkernels::cuda {

void pixel_shuffle_forward(const MoveParams& p, const Launch& launch) { move(p, launch); }

void pixel_unshuffle_forward(const MoveParams& p, const Launch& launch) { move(p, launch); }

}  // namespace lightkernels::cuda
