// Contract of upsampling (and downsampling) two dimensions, and the coordinates of one: torch's, to the last bit.
#pragma once

#include "convolution.h"
#include "move.h"

namespace lightkernels {

enum class Resample : int32_t { kNearest, kNearestExact, kBilinear };

// Which inputs output o of an axis reads: lower with weight 1 - upper_weight, and upper with the rest.
template <class A>
struct Source {
  int64_t lower, upper;
  A upper_weight;
};

// `step` is what one output is in inputs. Nearest is float's for every dtype, bilinear double's for float64. Sizes that
// are the same, and of nearest those that are doubled, come before any step. Volatile, because a multiplication and an
// addition that became one instruction would end elsewhere.
template <class A>
Source<A> source_of(Resample mode, bool align_corners, double step, int64_t in, int64_t out, int64_t o) {
  if (mode != Resample::kNearestExact && out == in) return {o, o, A(0)};
  if (mode == Resample::kNearest && out == 2 * in) return {o / 2, o / 2, A(0)};
  if (mode != Resample::kBilinear) {
    volatile float at = static_cast<float>(o) + (mode == Resample::kNearest ? 0.0f : 0.5f);
    at = at * static_cast<float>(step);
    const auto lower = static_cast<int64_t>(at);
    return {lower < in ? lower : in - 1, lower < in ? lower : in - 1, A(0)};
  }
  const A half = align_corners ? A(0) : A(0.5);
  volatile A at = (static_cast<A>(o) + half) * static_cast<A>(step);
  at = at - half;
  if (at < 0) at = 0;
  int64_t lower = static_cast<int64_t>(at);
  if (lower > in - 1) lower = in - 1;
  A weight = at - static_cast<A>(lower);
  if (weight > 1) weight = 1;
  return {lower, lower < in - 1 ? lower + 1 : lower, weight};
}

// y and dx are written, all of them dense in one format: [n, c, h, w] or, channels_last, [n, h, w, c].
struct Upsample2dParams {
  void* x;    // forward: [n, c, ih, iw]
  void* add;  // forward: null, or what is added to y
  void* y;    // forward: [n, c, oh, ow]
  void* dy;   // backward
  void* dx;   // backward
  int64_t n, c, ih, iw, oh, ow;
  bool channels_last;
  int64_t bytes;  // of an element; forward by nearest without add knows no more of them
  DType dtype;
  Resample mode;
  bool align_corners;
  double step_h, step_w;  // inputs to an output
};

// Each machine defines the same functions. Workspaces are in bytes.
#define LIGHTKERNELS_UPSAMPLE2D_PROTOTYPES                                   \
  int64_t upsample2d_workspace(const Upsample2dParams& p);                   \
  void upsample2d_forward(const Upsample2dParams& p, const Launch& launch);  \
  void upsample2d_backward(const Upsample2dParams& p, const Launch& launch); \
  /* nearest by whole factors, of any element: a move */                     \
  void upsample2d_repeat(const MoveParams& p, const Launch& launch);

namespace cpu {
LIGHTKERNELS_UPSAMPLE2D_PROTOTYPES
}
namespace cuda {
LIGHTKERNELS_UPSAMPLE2D_PROTOTYPES
}

}  // namespace lightkernels
