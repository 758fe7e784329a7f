// Boundary of depthwise_conv2d: checks arguments, allocates outputs in the input's memory format, fills Params.
// Compiled once for each CPU library and once, with LIGHTKERNELS_CUDA, for the CUDA library.
#include "depthwise_conv2d.h"

#include "dense_boundary.h"

namespace lightkernels {
namespace {

void set_tensors(DepthwiseConv2dParams& p, const View& x, const View& weight, const View& y) {
  p.x = x.data, p.weight = weight.data, p.y = y.data;
  p.x_strides = strides_of(x), p.y_strides = strides_of(y);
  p.weight_c = weight.strides[0], p.weight_h = weight.strides[2], p.weight_w = weight.strides[3];
}

void check_weight(const char* op, const View& weight, const char* name, const View& x) {
  if (weight.dim != 4 || weight.sizes[1] != 1) {
    fail(op, ": weight must have shape [c, 1, kh, kw], got ", weight.shape());
  }
  check_goes_with(op, weight, x, name);
}

// Those without a parameter: the rest is depthwise_conv2d_fused's.
Activation plain_activation_of(const char* op, const std::string& name) {
  const Activation activation = activation_of(op, name);
  if (activation == Activation::kLeakyRelu || activation == Activation::kElu || activation == Activation::kPrelu) {
    fail(op, ": activation must be one of none, relu, relu6, silu, hardswish, hardsigmoid, sigmoid, tanh, gelu, ",
         "gelu_tanh, got '", name, "'");
  }
  return activation;
}

// Params of a forward pass but for the tensors' data.
DepthwiseConv2dParams forward_params(const char* op, const View& x, const View& weight, const Ints& stride,
                                     const Ints& padding, const Ints& dilation) {
  if (x.dim != 4) fail(op, ": x must have shape [n, c, h, w], got ", x.shape());
  check_weight(op, weight, "x", x);
  const int64_t in_channels = x.sizes[1], c = weight.sizes[0];
  if (in_channels == 0 || c == 0 || c % in_channels) {
    fail(op, ": weight must have a positive multiple of x's ", in_channels, " channels in dimension 0, got ", c);
  }
  DepthwiseConv2dParams p{};
  set_geometry(p, op, x.sizes[2], x.sizes[3], weight.sizes[2], weight.sizes[3], stride, padding, dilation);
  p.dtype = dtype_of(op, x);
  p.n = x.sizes[0], p.c = c, p.multiplier = c / in_channels;
  return p;
}

Tensor forward(const Tensor& x_, const Tensor& weight_, const Optional& bias, const Ints& stride, const Ints& padding,
               const Ints& dilation, const std::string& activation) {
  const char* op = "depthwise_conv2d";
  const View x(x_), weight(weight_);
  auto p = forward_params(op, x, weight, stride, padding, dilation);
  p.activation = plain_activation_of(op, activation);
  Optional dense_bias;  // keeps a compacted bias alive
  p.bias = vector_of(op, "bias", bias, p.c, x, dense_bias);
  Tensor y_ = empty_nchw(x, p.n, p.c, p.oh, p.ow);
  if (p.n == 0) return y_;
  set_tensors(p, x, weight, View(y_));
  launch(x, p, machine::depthwise_conv2d_forward_workspace(p), machine::depthwise_conv2d_forward);
  return y_;
}

Tensor fused(const Tensor& x_, const Tensor& weight_, const Optional& bias, const Ints& stride, const Ints& padding,
             const Ints& dilation, const std::string& activation, double alpha, const Optional& slope,
             const Optional& scale, const Optional& residual, bool residual_first, const Optional& gate) {
  const char* op = "depthwise_conv2d_fused";
  const View x(x_), weight(weight_);
  DepthwiseConv2dFused f{forward_params(op, x, weight, stride, padding, dilation), {}};
  DenseConv2dParams sizes{};  // what the checks of an epilogue go by
  sizes.n = f.conv.n, sizes.groups = 1, sizes.co = f.conv.c, sizes.oh = f.conv.oh, sizes.ow = f.conv.ow;
  EpilogueArguments arguments{bias, slope, scale, residual, gate, activation, alpha, residual_first, {}};
  arguments.into(op, sizes, x);
  f.epilogue = sizes.epilogue;
  Tensor y_ = empty_nchw(x, f.conv.n, f.conv.c, f.conv.oh, f.conv.ow);
  if (f.conv.n == 0) return y_;
  set_tensors(f.conv, x, weight, View(y_));
  launch(x, f, machine::depthwise_conv2d_fused_workspace(f), machine::depthwise_conv2d_fused);
  return y_;
}

// dx, and Params to compute it from dy and weight.
Tensor prepare_input(const char* op, DepthwiseConv2dParams& p, const View& dy, const View& weight, int64_t ih,
                     int64_t iw, int64_t channels, const Ints& stride, const Ints& padding, const Ints& dilation) {
  if (dy.dim != 4) fail(op, ": dy must have shape [n, c, h, w], got ", dy.shape());
  check_weight(op, weight, "dy", dy);
  const int64_t n = dy.sizes[0], c = dy.sizes[1];
  if (channels < 1 || c != weight.sizes[0] || c % channels || c == 0) {
    fail(op, ": dy and weight must have the same positive multiple of ", channels, " channels, got ", c, " and ",
         weight.sizes[0]);
  }
  p = {};
  set_geometry(p, op, ih, iw, weight.sizes[2], weight.sizes[3], stride, padding, dilation);
  if (dy.sizes[2] != p.oh || dy.sizes[3] != p.ow) {
    fail(op, ": dy must be [", p.oh, ", ", p.ow, "] in its last dimensions, got ", dy.shape());
  }
  p.dtype = dtype_of(op, dy);
  p.n = n, p.c = c, p.multiplier = c / channels;
  Tensor dx = empty_nchw(dy, n, channels, ih, iw);
  set_tensors(p, View(dx), weight, dy);
  return dx;
}

// dweight and dbias, and Params to compute them from dy and x.
std::tuple<Tensor, Tensor> prepare_weight(const char* op, DepthwiseConv2dParams& p, const View& dy, const View& x,
                                          int64_t kh, int64_t kw, const Ints& stride, const Ints& padding,
                                          const Ints& dilation) {
  check_dy_and_x(op, dy, x);
  const int64_t n = x.sizes[0], in_channels = x.sizes[1], c = dy.sizes[1];
  if (in_channels == 0 || c == 0 || c % in_channels) {
    fail(op, ": dy must have a positive multiple of x's ", in_channels, " channels, got ", c);
  }
  p = {};
  set_geometry(p, op, x.sizes[2], x.sizes[3], kh, kw, stride, padding, dilation);
  if (dy.sizes[2] != p.oh || dy.sizes[3] != p.ow) {
    fail(op, ": dy must be [", p.oh, ", ", p.ow, "] in its last dimensions, got ", dy.shape());
  }
  p.dtype = dtype_of(op, x);
  p.n = n, p.c = c, p.multiplier = c / in_channels;
  Tensor dweight = empty(x, {c, 1, kh, kw}, {kh * kw, kh * kw, kw, 1}), dbias = empty(x, {c}, {1}, 1);
  set_tensors(p, x, View(dweight), dy);
  p.bias = View(dbias).data;
  return {dweight, dbias};
}

Tensor backward_input(const Tensor& dy_, const Tensor& weight, int64_t ih, int64_t iw, int64_t channels,
                      const Ints& stride, const Ints& padding, const Ints& dilation) {
  const View dy(dy_);
  DepthwiseConv2dParams p;
  Tensor dx = prepare_input("depthwise_conv2d_backward_input", p, dy, View(weight), ih, iw, channels, stride, padding,
                            dilation);
  if (p.n * ih * iw > 0) {
    launch(dy, p, machine::depthwise_conv2d_backward_input_workspace(p), machine::depthwise_conv2d_backward_input);
  }
  return dx;
}

// Fills what prepare_weight prepared.
void compute_weight(const View& x, const DepthwiseConv2dParams& p, Tensor& dweight, Tensor& dbias) {
  if (p.n > 0) {
    return launch(x, p, machine::depthwise_conv2d_backward_weight_workspace(p),
                  machine::depthwise_conv2d_backward_weight);
  }
  torch::stable::zero_(dweight);
  torch::stable::zero_(dbias);
}

std::tuple<Tensor, Tensor> backward_weight(const Tensor& dy, const Tensor& x_, int64_t kh, int64_t kw,
                                           const Ints& stride, const Ints& padding, const Ints& dilation) {
  const View x(x_);
  DepthwiseConv2dParams p;
  auto [dweight, dbias] =
      prepare_weight("depthwise_conv2d_backward_weight", p, View(dy), x, kh, kw, stride, padding, dilation);
  compute_weight(x, p, dweight, dbias);
  return {dweight, dbias};
}

std::tuple<Tensor, Tensor, Tensor> backward(const Tensor& dy_, const Tensor& x_, const Tensor& weight_,
                                            const Ints& stride, const Ints& padding, const Ints& dilation) {
  const char* op = "depthwise_conv2d_backward";
  const View dy(dy_), x(x_), weight(weight_);
  if (x.dim != 4) fail(op, ": x must have shape [n, c, h, w], got ", x.shape());
  DepthwiseConv2dBackward b;
  Tensor dx = prepare_input(op, b.input, dy, weight, x.sizes[2], x.sizes[3], x.sizes[1], stride, padding, dilation);
  auto [dweight, dbias] =
      prepare_weight(op, b.weight, dy, x, weight.sizes[2], weight.sizes[3], stride, padding, dilation);
  if (b.input.n * b.input.ih * b.input.iw > 0) {
    launch(x, b, machine::depthwise_conv2d_backward_workspace(b), machine::depthwise_conv2d_backward);
  } else {
    compute_weight(x, b.weight, dweight, dbias);
  }
  return {dx, dweight, dbias};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(pytorch_ext, LIGHTKERNELS_DISPATCH_KEY, m) {
  m.impl("depthwise_conv2d", TORCH_BOX(&forward));
  m.impl("depthwise_conv2d_fused", TORCH_BOX(&fused));
  m.impl("depthwise_conv2d_backward", TORCH_BOX(&backward));
  m.impl("depthwise_conv2d_backward_input", TORCH_BOX(&backward_input));
  m.impl("depthwise_conv2d_backward_weight", TORCH_BOX(&backward_weight));
}

}  // namespace lightkernels
