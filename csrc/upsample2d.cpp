// Boundary of upsample2d: checks arguments, takes torch's scale rules, sees where nearest is only a move.
#include "upsample2d.h"

#include "move_boundary.h"

namespace lightkernels {
namespace {

enum class Mode { kNearest, kNearestExact, kBilinear };

Mode mode_of(const char* op, const std::string& name) {
  if (name == "nearest") return Mode::kNearest;
  if (name == "nearest-exact") return Mode::kNearestExact;
  if (name == "bilinear") return Mode::kBilinear;
  fail(op, ": mode must be one of nearest, nearest-exact, bilinear, got '", name, "'");
}

// torch's coordinates (ATen/native/UpSample.h), in A: a scale that is given decides, not the sizes. But sizes that
// stay, and of nearest those that double, come before any scale.
template <class A>
ResampleAxis axis_of(Mode mode, bool align_corners, std::optional<double> scale, int64_t in, int64_t out) {
  if (out == in && mode != Mode::kNearestExact) return {in, out, 1, 0};
  if (out == 2 * in && mode == Mode::kNearest) return {in, out, 0.5, 0};
  const double half = mode == Mode::kNearest || align_corners ? 0 : 0.5;
  if (align_corners) return {in, out, out > 1 ? static_cast<A>(in - 1) / static_cast<A>(out - 1) : A(0), half};
  if (scale && *scale > 0) return {in, out, static_cast<A>(1.0 / *scale), half};
  return {in, out, static_cast<A>(in) / static_cast<A>(out), half};
}

void check_rank(const char* op, const char* name, const View& x) {
  if (x.dim != 4) fail(op, ": ", name, " must have shape [n, c, h, w], got ", x.shape());
}

// All but pointers and format.
Upsample2dParams params(const char* op, const View& x, int64_t ih, int64_t iw, int64_t oh, int64_t ow,
                        std::optional<double> scale_h, std::optional<double> scale_w, const std::string& mode,
                        bool align_corners) {
  Upsample2dParams p{};
  const Mode kind = mode_of(op, mode);
  p.bilinear = kind == Mode::kBilinear;
  if (align_corners && !p.bilinear) fail(op, ": align_corners belongs to bilinear");
  if (ih < 1 || iw < 1 || oh < 1 || ow < 1) {
    fail(op, ": sizes must be positive, got [", ih, ", ", iw, "] and [", oh, ", ", ow, "]");
  }
  p.n = x.sizes[0], p.c = x.sizes[1];
  p.bytes = static_cast<int64_t>(aoti_torch_dtype_element_size(x.dtype));
  const auto of = p.bilinear && x.dtype == aoti_torch_dtype_float64() ? axis_of<double> : axis_of<float>;
  p.h = of(kind, align_corners, scale_h, ih, oh), p.w = of(kind, align_corners, scale_w, iw, ow);
  return p;
}

// t's memory where t is dense, in the format that is asked for; else a copy's, which is.
void* dense(const Tensor& t_, bool channels_last, std::optional<Tensor>& copy) {
  const View t(t_);
  const int64_t c = t.sizes[1], h = t.sizes[2], w = t.sizes[3];
  std::array<int64_t, 4> strides = {c * h * w, h * w, w, 1};
  if (channels_last) strides = {c * h * w, 1, w * c, c};
  for (int64_t d = 0; d < 4; ++d) {
    if (t.sizes[d] == 1 || t.strides[d] == strides[d]) continue;
    copy = lightkernels::empty(t, {t.sizes[0], c, h, w}, strides);
    torch::stable::copy_(*copy, t_);
    return View(*copy).data;
  }
  return t.data;
}

// How many outputs there are to each input, if they are as many along the whole axis; else 0.
int64_t repeats(const ResampleAxis& axis) {
  const int64_t times = axis.out / axis.in;
  if (axis.out % axis.in) return 0;
  for (int64_t o = 0; o < axis.out; ++o) {
    if (source_of<float>(false, axis, o).lower != o / times) return 0;
  }
  return times;
}

Tensor forward(const Tensor& x_, const Ints& size, std::optional<double> scale_h, std::optional<double> scale_w,
               const std::string& mode, bool align_corners, const std::optional<Tensor>& add_) {
  const char* op = "upsample2d";
  const View x(x_);
  check_rank(op, "x", x);
  if (size.size() != 2) fail(op, ": size must be (height, width), got ", show(size));
  auto p = params(op, x, x.sizes[2], x.sizes[3], size[0], size[1], scale_h, scale_w, mode, align_corners);
  const Ints sizes = {p.n, p.c, p.h.out, p.w.out};
  const bool only_moves = !p.bilinear && !add_;
  if (x.dtype != aoti_torch_dtype_uint8() || !only_moves) p.dtype = dtype_of(op, x);
  if (add_) {
    const View add(*add_);
    if (add.dim != 4 || !std::equal(sizes.begin(), sizes.end(), add.sizes)) {
      fail(op, ": add must have y's shape ", show(sizes), ", got ", add.shape());
    }
    if (add.dtype != x.dtype) fail(op, ": add must be ", dtype_name(x), ", got ", dtype_name(add));
    if (!add.same_place(x)) fail(op, ": tensors must be on one device, add is on another than x");
  }
  if (only_moves && p.n * p.c > 0) {
    const int64_t rh = repeats(p.h), rw = repeats(p.w);
    if (rh && rw) {
      return move(x_, sizes, machine::upsample2d_repeat, [&](const View& x, const View& y) {
        return MoveAxes{{p.n, x.strides[0], y.strides[0]},         {p.c, x.strides[1], y.strides[1]},
                        {p.h.in, x.strides[2], rh * y.strides[2]}, {rh, 0, y.strides[2]},
                        {p.w.in, x.strides[3], rw * y.strides[3]}, {rw, 0, y.strides[3]}};
      });
    }
  }
  Tensor y_ = empty_as(x, sizes);
  if (p.n * p.c == 0) return y_;
  std::optional<Tensor> x_copy, add_copy;
  p.channels_last = is_channels_last(x);
  p.y = View(y_).data;
  p.x = dense(x_, p.channels_last, x_copy);
  if (add_) p.add = dense(*add_, p.channels_last, add_copy);
  launch(x, p, machine::upsample2d_workspace(p), machine::upsample2d_forward);
  return y_;
}

Tensor backward(const Tensor& dy_, const Ints& size, std::optional<double> scale_h, std::optional<double> scale_w,
                const std::string& mode, bool align_corners) {
  const char* op = "upsample2d_backward";
  const View dy(dy_);
  check_rank(op, "dy", dy);
  if (size.size() != 2) fail(op, ": size must be (height, width), got ", show(size));
  auto p = params(op, dy, size[0], size[1], dy.sizes[2], dy.sizes[3], scale_h, scale_w, mode, align_corners);
  p.dtype = dtype_of(op, dy);
  Tensor dx = empty_as(dy, {p.n, p.c, p.h.in, p.w.in});
  if (p.n * p.c == 0) return dx;
  std::optional<Tensor> copy;
  p.channels_last = is_channels_last(dy);
  p.dy = dense(dy_, p.channels_last, copy), p.dx = View(dx).data;
  launch(dy, p, machine::upsample2d_workspace(p), machine::upsample2d_backward);
  return dx;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(pytorch_ext, LIGHTKERNELS_DISPATCH_KEY, m) {
  m.impl("upsample2d", TORCH_BOX(&forward));
  m.impl("upsample2d_backward", TORCH_BOX(&backward));
}

}  // namespace lightkernels
