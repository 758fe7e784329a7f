// Contract of an activation on its own: y = act(x), and dx = dy * act'(x).
#pragma once

#include "convolution.h"

namespace lightkernels {

// x, y, dy and dx are dense and of one memory format: `rows` runs of `channels * inner` elements, in which channel c of
// kPrelu's slope is element / inner % channels. Without kPrelu, rows = channels = 1.
struct ActivationParams {
  void* x;
  void* y;          // forward: written. backward: unused
  void* dy;         // backward only
  void* dx;         // backward only: written
  void* slope;      // kPrelu: [channels] or one element
  int64_t slope_c;  // 0 or 1
  void* dslope;     // backward, kPrelu: [channels], contiguous, written: the sums of dy * x where x < 0
  DType dtype;
  Activation activation;
  double alpha;
  int64_t rows, channels, inner;
};

// Each machine defines the same functions. Workspaces are in bytes.
#define LIGHTKERNELS_ACTIVATION_PROTOTYPES                                  \
  int64_t activation_backward_workspace(const ActivationParams& p);         \
  void activation_forward(const ActivationParams& p, const Launch& launch); \
  void activation_backward(const ActivationParams& p, const Launch& launch);

namespace cpu {
LIGHTKERNELS_ACTIVATION_PROTOTYPES
}
namespace cuda {
LIGHTKERNELS_ACTIVATION_PROTOTYPES
}

}  // namespace lightkernels
