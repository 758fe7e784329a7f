// Boundary of dilated_conv2d: checks arguments, allocates outputs in the input's memory format, fills Params.
// Compiled once for each CPU library and once, with LIGHTKERNELS_CUDA, for the CUDA library.
#include "dilated_conv2d.h"

#include "dense_boundary.h"

namespace lightkernels {
namespace {

constexpr const char* kOp = "dilated_conv2d";

DenseConv2dParams layer(const View& x, const View& weight, const Ints& stride, const Ints& padding,
                        const Ints& dilation, int64_t groups, const std::string& algorithm) {
  auto p = dense_layer(kOp, x, weight, stride, padding, dilation, groups);
  const std::pair<const char*, Algorithm> names[] = {
      {"auto", Algorithm::kAuto},           {"direct", Algorithm::kDirect},       {"winograd2", Algorithm::kWinograd2},
      {"winograd3", Algorithm::kWinograd3}, {"winograd4", Algorithm::kWinograd4}, {"winograd6", Algorithm::kWinograd6},
  };
  bool known = false;
  for (const auto& [name, value] : names) {
    if (algorithm == name) p.algorithm = value, known = true;
  }
  if (!known) fail(kOp, ": algorithm must be auto, direct or winograd2, 3, 4 or 6, got '", algorithm, "'");
  if (p.algorithm >= Algorithm::kWinograd2 && (p.kh != 3 || p.kw != 3 || p.stride_h != 1 || p.stride_w != 1)) {
    fail(kOp, ": ", algorithm, " is for 3x3 kernels of stride 1, got [", p.kh, ", ", p.kw, "] and ", show(stride));
  }
  return p;
}

Tensor run(const Tensor& x_, const Tensor& weight_, EpilogueArguments epilogue, const Ints& stride, const Ints& padding,
           const Ints& dilation, int64_t groups, const std::string& algorithm, const Optional& packed,
           const Optional& out) {
  const View x(x_), weight(weight_);
  auto p = layer(x, weight, stride, padding, dilation, groups, algorithm);
  epilogue.into(kOp, p, x);
  Tensor y = dense_output(kOp, p, x, out);
  p.packed = packed ? packed_data(kOp, packed, machine::dilated_conv2d_packed_bytes(p)) : nullptr;
  if (p.n > 0) launch(x, p, machine::dilated_conv2d_forward_workspace(p), machine::dilated_conv2d_forward);
  return y;
}

Tensor forward(const Tensor& x, const Tensor& weight, const Optional& bias, const Ints& stride, const Ints& padding,
               const Ints& dilation, int64_t groups, const std::string& activation, double alpha, const Optional& slope,
               const Optional& scale, const Optional& residual, bool residual_first, const Optional& gate,
               const std::string& algorithm, const Optional& packed) {
  return run(x, weight, {bias, slope, scale, residual, gate, activation, alpha, residual_first, {}}, stride, padding,
             dilation, groups, algorithm, packed, {});
}

void forward_out(const Tensor& x, const Tensor& weight, const Optional& bias, const Ints& stride, const Ints& padding,
                 const Ints& dilation, int64_t groups, const std::string& activation, double alpha,
                 const Optional& slope, const Optional& scale, const Optional& residual, bool residual_first,
                 const Optional& gate, const std::string& algorithm, const Optional& packed, const Tensor& out) {
  run(x, weight, {bias, slope, scale, residual, gate, activation, alpha, residual_first, {}}, stride, padding, dilation,
      groups, algorithm, packed, out);
}

Tensor pack(const Tensor& x_, const Tensor& weight_, const Ints& stride, const Ints& padding, const Ints& dilation,
            int64_t groups, const std::string& algorithm) {
  const View x(x_), weight(weight_);
  auto p = layer(x, weight, stride, padding, dilation, groups, algorithm);
  dense_output_format(p, x);
  const int64_t bytes = machine::dilated_conv2d_packed_bytes(p);
  Tensor packed = empty_bytes(x, bytes);
  p.packed = View(packed).data;
  if (bytes > 0) launch(x, p, 0, machine::dilated_conv2d_pack);
  return packed;
}

Tensor backward_input(const Tensor& dy_, const Tensor& weight_, int64_t ih, int64_t iw, const Ints& stride,
                      const Ints& padding, const Ints& dilation, int64_t groups) {
  const char* op = "dilated_conv2d_backward_input";
  const View dy(dy_), weight(weight_);
  check_dense_tensors(op, dy, weight, "dy");
  if (groups < 1) fail(op, ": groups must be positive, got ", groups);
  const int64_t n = dy.sizes[0], c = weight.sizes[1] * groups;
  auto p = dense_geometry(op, dy, "dx", n, c, ih, iw, weight.sizes, stride, padding, dilation, groups);
  if (dy.sizes[1] != weight.sizes[0] || dy.sizes[2] != p.oh || dy.sizes[3] != p.ow) {
    fail(op, ": dy must have shape [", n, ", ", weight.sizes[0], ", ", p.oh, ", ", p.ow, "], got ", dy.shape());
  }
  Tensor dx_ = empty_nchw(dy, n, c, ih, iw);
  const View dx(dx_);
  p.x = dx.data, p.weight = weight.data, p.y = dy.data;
  p.x_strides = strides_of(dx), p.weight_strides = strides_of(weight), p.y_strides = strides_of(dy);
  if (n * ih * iw > 0) {
    launch(dy, p, machine::dilated_conv2d_backward_input_workspace(p), machine::dilated_conv2d_backward_input);
  }
  return dx_;
}

std::tuple<Tensor, Tensor> backward_weight(const Tensor& dy_, const Tensor& x_, int64_t kh, int64_t kw,
                                           const Ints& stride, const Ints& padding, const Ints& dilation,
                                           int64_t groups) {
  const char* op = "dilated_conv2d_backward_weight";
  const View dy(dy_), x(x_);
  check_dy_and_x(op, dy, x);
  const int64_t co = dy.sizes[1], ci = x.sizes[1];
  if (groups < 1 || ci < 1 || co < 1 || ci % groups || co % groups) {
    fail(op, ": groups must divide x's ", ci, " and dy's ", co, " channels, got ", groups);
  }
  const int64_t sizes[4] = {co, ci / groups, kh, kw};
  auto p = dense_geometry(op, x, "x", x.sizes[0], ci, x.sizes[2], x.sizes[3], sizes, stride, padding, dilation, groups);
  if (dy.sizes[2] != p.oh || dy.sizes[3] != p.ow) {
    fail(op, ": dy must be [", p.oh, ", ", p.ow, "] in its last dimensions, got ", dy.shape());
  }
  Tensor dweight_ = empty(x, {co, p.ci, kh, kw}, {p.ci * kh * kw, kh * kw, kw, 1}), dbias_ = empty(x, {co}, {1}, 1);
  const View dweight(dweight_);
  p.x = x.data, p.weight = dweight.data, p.y = dy.data, p.dbias = View(dbias_).data;
  p.x_strides = strides_of(x), p.weight_strides = strides_of(dweight), p.y_strides = strides_of(dy);
  if (p.n > 0) {
    launch(x, p, machine::dilated_conv2d_backward_weight_workspace(p), machine::dilated_conv2d_backward_weight);
  } else {
    torch::stable::zero_(dweight_);
    torch::stable::zero_(dbias_);
  }
  return {dweight_, dbias_};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(pytorch_ext, LIGHTKERNELS_DISPATCH_KEY, m) {
  m.impl("dilated_conv2d", TORCH_BOX(&forward));
  m.impl("dilated_conv2d_out", TORCH_BOX(&forward_out));
  m.impl("dilated_conv2d_pack", TORCH_BOX(&pack));
  m.impl("dilated_conv2d_backward_input", TORCH_BOX(&backward_input));
  m.impl("dilated_conv2d_backward_weight", TORCH_BOX(&backward_weight));
}

}  // namespace lightkernels
