// Channel shuffle: of planes it is a move of runs, of pixels one that interleaves `groups` streams.
#include "../channel_shuffle.h"

namespace lightkernels::cuda {

void channel_shuffle_forward(const MoveParams& p, const Launch& launch) { move(p, launch); }

}  // namespace lightkernels::cuda
