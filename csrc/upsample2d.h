// Contract of upsampling (and downsampling) two dimensions, and the coordinates of one: torch's, to the last bit.
#pragma once

#include <type_traits>

#include "convolution.h"
#include "move.h"

namespace lightkernels {

// One axis: output o lies at input (o + half) * step, of bilinear minus half again.
struct ResampleAxis {
  int64_t in, out;
  double step, half;
};

// Which inputs an output reads: lower with weight 1 - upper_weight, and upper with the rest.
template <class A>
struct Source {
  int64_t lower, upper;
  A upper_weight;
};

// A is double for float64's bilinear, else float. Volatile, because a multiplication and an addition that became one
// instruction would end elsewhere.
template <class A>
Source<A> source_of(bool bilinear, const ResampleAxis& axis, int64_t o) {
  if constexpr (std::is_same_v<A, double>) {
    if (!bilinear) {
      const auto s = source_of<float>(false, axis, o);
      return {s.lower, s.upper, 0.0};
    }
  }
  const A half = static_cast<A>(axis.half);
  volatile A at = static_cast<A>(o) + half;
  at = at * static_cast<A>(axis.step);
  if (bilinear) at = at - half;
  if (at < 0) at = 0;
  int64_t lower = static_cast<int64_t>(at);
  if (lower > axis.in - 1) lower = axis.in - 1;
  if (!bilinear) return {lower, lower, A(0)};
  const A weight = at - static_cast<A>(lower);
  return {lower, lower < axis.in - 1 ? lower + 1 : lower, weight < 1 ? weight : A(1)};
}

// y and dx are written, all of them dense in one format: [n, c, h, w] or, channels_last, [n, h, w, c].
struct Upsample2dParams {
  void* x;    // forward: [n, c, h.in, w.in]
  void* add;  // forward: null, or what is added to y
  void* y;    // forward: [n, c, h.out, w.out]
  void* dy;   // backward
  void* dx;   // backward
  int64_t n, c;
  ResampleAxis h, w;
  bool channels_last;
  int64_t bytes;  // of an element; forward by nearest without add knows no more of them
  DType dtype;
  bool bilinear;  // else nearest, of either kind
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
