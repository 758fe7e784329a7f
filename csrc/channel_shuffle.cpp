// Boundary of channel_shuffle: checks arguments, allocates y in x's memory format, says which axes move.
#include "channel_shuffle.h"

#include "move_boundary.h"

namespace lightkernels {
namespace {

Tensor forward(const Tensor& x_, int64_t groups) {
  const char* op = "channel_shuffle";
  const View given(x_);
  if (given.dim < 2) fail(op, ": x must have shape [n, c, ...], got ", given.shape());
  const int64_t c = given.sizes[1];
  if (groups < 1 || c % groups) fail(op, ": groups must divide the ", c, " channels, got ", groups);
  return move(x_, Ints(given.sizes, given.sizes + given.dim), machine::channel_shuffle_forward,
              [&](const View& x, const View& y) {
                MoveAxes axes = {{groups, c / groups * x.strides[1], y.strides[1]},
                                 {c / groups, x.strides[1], groups * y.strides[1]}};
                for (int64_t d = 0; d < x.dim; ++d) {
                  if (d != 1) axes.push_back({x.sizes[d], x.strides[d], y.strides[d]});
                }
                return axes;
              });
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(pytorch_ext, LIGHTKERNELS_DISPATCH_KEY, m) { m.impl("channel_shuffle", TORCH_BOX(&forward)); }

}  // namespace lightkernels
