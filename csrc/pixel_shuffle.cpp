// Boundary of pixel_shuffle and pixel_unshuffle: checks arguments, allocates y in x's memory format, says which axes
// move.
#include "pixel_shuffle.h"

#include "move_boundary.h"

namespace lightkernels {
namespace {

// The axes of a shuffle, from `deep` ([.., c * r * r, h, w]) to `wide` ([.., c, h * r, w * r]), strides in this order.
MoveAxes axes_between(const View& deep, const View& wide, int64_t r) {
  const int64_t d = deep.dim, c = wide.sizes[d - 3], h = deep.sizes[d - 2], w = deep.sizes[d - 1];
  const int64_t *from = deep.strides + d - 3, *to = wide.strides + d - 3;
  MoveAxes axes = {
      {c, r * r * from[0], to[0]}, {r, r * from[0], to[1]}, {r, from[0], to[2]},
      {h, from[1], r * to[1]},     {w, from[2], r * to[2]},
  };
  for (int64_t i = 0; i < d - 3; ++i) axes.push_back({deep.sizes[i], deep.strides[i], wide.strides[i]});
  return axes;
}

// Three dimensions, and a factor whose square is an int64.
void check(const char* op, const View& x, int64_t r) {
  if (x.dim < 3) fail(op, ": x must have shape [..., c, h, w], got ", x.shape());
  if (r < 1 || r > 1 << 15) fail(op, ": the factor must be in 1 .. ", 1 << 15, ", got ", r);
}

Tensor shuffle(const Tensor& x_, int64_t r) {
  const char* op = "pixel_shuffle";
  const View x(x_);
  check(op, x, r);
  Ints sizes(x.sizes, x.sizes + x.dim);
  int64_t* chw = sizes.data() + x.dim - 3;
  if (chw[0] % (r * r)) fail(op, ": the ", chw[0], " channels must be a multiple of ", r * r);
  chw[0] /= r * r, chw[1] *= r, chw[2] *= r;
  return move(x_, sizes, machine::pixel_shuffle_forward,
              [&](const View& x, const View& y) { return axes_between(x, y, r); });
}

Tensor unshuffle(const Tensor& x_, int64_t r) {
  const char* op = "pixel_unshuffle";
  const View x(x_);
  check(op, x, r);
  Ints sizes(x.sizes, x.sizes + x.dim);
  int64_t* chw = sizes.data() + x.dim - 3;
  if (chw[1] % r || chw[2] % r) fail(op, ": height and width must be multiples of ", r, ", got ", x.shape());
  chw[0] *= r * r, chw[1] /= r, chw[2] /= r;
  return move(x_, sizes, machine::pixel_unshuffle_forward, [&](const View& x, const View& y) {
    MoveAxes axes = axes_between(y, x, r);
    for (MoveAxis& axis : axes) std::swap(axis.x, axis.y);
    return axes;
  });
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(pytorch_ext, LIGHTKERNELS_DISPATCH_KEY, m) {
  m.impl("pixel_shuffle", TORCH_BOX(&shuffle));
  m.impl("pixel_unshuffle", TORCH_BOX(&unshuffle));
}

}  // namespace lightkernels
