// Boundary of activation: checks arguments, finds how x lies in memory, allocates outputs that lie the same, fills
// Params. Compiled once for each CPU library and once, with LIGHTKERNELS_CUDA, for the CUDA library.
#include "activation.h"

#include <algorithm>

#include "boundary.h"

namespace lightkernels {
namespace {

// Do x's elements fill one run of memory, in some order of its dimensions? Those, outermost first, without sizes of 1.
bool dense_order(const View& v, std::vector<int64_t>& order) {
  order.clear();
  for (int64_t d = 0; d < v.dim; ++d) {
    if (v.sizes[d] != 1) order.push_back(d);
  }
  if (order.empty() || std::any_of(order.begin(), order.end(), [&](int64_t d) { return v.sizes[d] == 0; })) return true;
  std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) { return v.strides[a] > v.strides[b]; });
  int64_t run = 1;
  for (auto d = order.rbegin(); d != order.rend(); ++d) {
    if (v.strides[*d] != run) return false;
    run *= v.sizes[*d];
  }
  return true;
}

Tensor new_strided(const View& like, const Ints& strides) {
  AtenTensorHandle h;
  if (aoti_torch_empty_strided(like.dim, like.sizes, strides.data(), like.dtype, like.device, like.index, &h)) {
    fail("cannot allocate an output of shape ", like.shape());
  }
  return Tensor(h);
}

Ints contiguous_strides(const View& v) {
  Ints strides(v.dim);
  int64_t run = 1;
  for (int64_t d = v.dim; d-- > 0;) strides[d] = run, run *= std::max<int64_t>(v.sizes[d], 1);
  return strides;
}

// x, or a copy of it that is dense, in x's memory format; `order` is that of its dimensions.
Tensor dense(const Tensor& x_, std::vector<int64_t>& order) {
  const View x(x_);
  if (dense_order(x, order)) return x_;
  Ints strides = contiguous_strides(x);
  if (is_channels_last(x)) {
    const int64_t c = x.sizes[1], h = x.sizes[2], w = x.sizes[3];
    strides = {h * w * c, 1, w * c, c};
  }
  Tensor copy = new_strided(x, strides);
  torch::stable::copy_(copy, x_);
  dense_order(View(copy), order);
  return copy;
}

bool same_strides(const View& a, const View& b) {
  for (int64_t d = 0; d < a.dim; ++d) {
    if (a.sizes[d] != 1 && a.strides[d] != b.strides[d]) return false;
  }
  return true;
}

// Everything but the pointers. `order` is that of x's dimensions in memory.
ActivationParams params(const char* op, const View& x, const std::string& activation, double alpha,
                        const std::optional<Tensor>& slope_, const std::vector<int64_t>& order,
                        std::optional<Tensor>& dense_slope) {
  ActivationParams p{};
  p.dtype = dtype_of(op, x);
  p.activation = activation_of(op, activation);
  p.alpha = alpha;
  p.rows = p.channels = p.inner = 1;
  if ((p.activation == Activation::kPrelu) != slope_.has_value()) {
    fail(op, ": slope belongs to prelu, and prelu needs it");
  }
  for (int64_t d : order) p.inner *= x.sizes[d];
  if (!slope_) return p;
  const View slope(*slope_);
  const int64_t c = x.dim > 1 ? x.sizes[1] : 1;
  if (slope.dim != 1 || (slope.sizes[0] != 1 && slope.sizes[0] != c)) {
    fail(op, ": slope must have shape [", c, "] or [1], got ", slope.shape());
  }
  if (slope.dtype != x.dtype) fail(op, ": slope must be ", dtype_name(x), ", got ", dtype_name(slope));
  if (!slope.same_place(x)) fail(op, ": tensors must be on one device, slope is on another than x");
  p.slope = slope.data;
  p.slope_c = slope.sizes[0] > 1;
  if (p.slope_c && slope.strides[0] != 1) {
    dense_slope = torch::stable::contiguous(*slope_);
    p.slope = View(*dense_slope).data;
  }
  if (!p.slope_c) return p;
  p.channels = c, p.inner = 1;
  bool inside = false;
  for (int64_t d : order) {
    if (d == 1) {
      inside = true;
    } else {
      (inside ? p.inner : p.rows) *= x.sizes[d];
    }
  }
  return p;
}

void check_rank(const char* op, const View& x) {
  if (x.dim < 1) fail(op, ": x must have at least one dimension, got ", x.shape());
}

Tensor forward(const Tensor& given, const std::string& activation, double alpha, const std::optional<Tensor>& slope) {
  const char* op = "activation";
  check_rank(op, View(given));
  std::vector<int64_t> order;
  std::optional<Tensor> dense_slope;
  const Tensor x_ = dense(given, order);
  const View x(x_);
  auto p = params(op, x, activation, alpha, slope, order, dense_slope);
  Tensor y = new_strided(x, Ints(x.strides, x.strides + x.dim));
  if (p.rows * p.channels * p.inner == 0) return y;
  p.x = x.data, p.y = View(y).data;
  launch(x, p, 0, machine::activation_forward);
  return y;
}

std::tuple<Tensor, Tensor> backward(const Tensor& dy_given, const Tensor& given, const std::string& activation,
                                    double alpha, const std::optional<Tensor>& slope) {
  const char* op = "activation_backward";
  const View first(given), dy_first(dy_given);
  check_rank(op, first);
  if (dy_first.dim != first.dim || !std::equal(first.sizes, first.sizes + first.dim, dy_first.sizes)) {
    fail(op, ": dy must have x's shape ", first.shape(), ", got ", dy_first.shape());
  }
  if (dy_first.dtype != first.dtype) {
    fail(op, ": dy must be ", dtype_name(first), ", got ", dtype_name(dy_first));
  }
  if (!dy_first.same_place(first)) fail(op, ": tensors must be on one device, dy is on another than x");
  std::vector<int64_t> order;
  std::optional<Tensor> dense_slope, dense_dy;
  const Tensor x_ = dense(given, order);
  const View x(x_);
  auto p = params(op, x, activation, alpha, slope, order, dense_slope);
  const Ints strides(x.strides, x.strides + x.dim);
  Tensor dx = new_strided(x, strides);
  Tensor dslope = lightkernels::empty(x, {slope ? View(*slope).sizes[0] : 0}, {1}, 1);
  if (p.rows * p.channels * p.inner == 0) {
    torch::stable::zero_(dslope);
    return {dx, dslope};
  }
  p.dy = dy_first.data;
  if (!same_strides(x, dy_first)) {
    dense_dy = new_strided(x, strides);
    torch::stable::copy_(*dense_dy, dy_given);
    p.dy = View(*dense_dy).data;
  }
  p.x = x.data, p.dx = View(dx).data, p.dslope = View(dslope).data;
  launch(x, p, machine::activation_backward_workspace(p), machine::activation_backward);
  return {dx, dslope};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(pytorch_ext, LIGHTKERNELS_DISPATCH_KEY, m) {
  m.impl("activation", TORCH_BOX(&forward));
  m.impl("activation_backward", TORCH_BOX(&backward));
}

}  // namespace lightkernels
