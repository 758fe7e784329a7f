// Boundary of pointwise_conv2d: checks arguments, allocates y in the input's memory format, fills Params.
// Compiled once for each CPU library and once, with LIGHTKERNELS_CUDA, for the CUDA library.
#include "pointwise_conv2d.h"

#include "dense_boundary.h"

namespace lightkernels {
namespace {

constexpr const char* kOp = "pointwise_conv2d";

DenseConv2dParams layer(const View& x, const View& weight, const Ints& stride, int64_t groups) {
  auto p = dense_layer(kOp, x, weight, stride, {0, 0, 0, 0}, {1, 1}, groups);
  if (p.kh != 1 || p.kw != 1) fail(kOp, ": weight must have shape [co, ci / groups, 1, 1], got ", weight.shape());
  return p;
}

Tensor run(const Tensor& x_, const Tensor& weight_, EpilogueArguments epilogue, const Ints& stride, int64_t groups,
           const std::string& input_activation, const Optional& input_gate, int64_t shuffle, const Optional& packed,
           const Optional& out) {
  const View x(x_), weight(weight_);
  auto p = layer(x, weight, stride, groups);
  epilogue.into(kOp, p, x);
  p.input_activation = activation_of(kOp, input_activation);
  if (p.input_activation >= Activation::kLeakyRelu) {
    fail(kOp, ": input_activation must be one without a parameter, got '", input_activation, "'");
  }
  if (input_gate) {
    const View v(*input_gate);
    if (v.dim != 2 || v.sizes[0] != p.n || v.sizes[1] != x.sizes[1]) {
      fail(kOp, ": input_gate must have shape [", p.n, ", ", x.sizes[1], "], got ", v.shape());
    }
    check_like(kOp, "input_gate", v, x);
    p.input_gate = v.data, p.input_gate_n = v.strides[0], p.input_gate_c = v.strides[1];
  }
  if (shuffle < 1 || weight.sizes[0] % shuffle) {
    fail(kOp, ": shuffle must divide the ", weight.sizes[0], " output channels, got ", shuffle);
  }
  p.shuffle = shuffle;
  Tensor y = dense_output(kOp, p, x, out);
  p.packed = packed ? packed_data(kOp, packed, machine::pointwise_conv2d_packed_bytes(p)) : nullptr;
  if (p.n > 0) launch(x, p, machine::pointwise_conv2d_forward_workspace(p), machine::pointwise_conv2d_forward);
  return y;
}

Tensor forward(const Tensor& x, const Tensor& weight, const Optional& bias, const Ints& stride, int64_t groups,
               const std::string& activation, double alpha, const Optional& slope, const Optional& scale,
               const Optional& residual, bool residual_first, const Optional& gate, const std::string& input_activation,
               const Optional& input_gate, int64_t shuffle, const Optional& packed) {
  return run(x, weight, {bias, slope, scale, residual, gate, activation, alpha, residual_first, {}}, stride, groups,
             input_activation, input_gate, shuffle, packed, {});
}

void forward_out(const Tensor& x, const Tensor& weight, const Optional& bias, const Ints& stride, int64_t groups,
                 const std::string& activation, double alpha, const Optional& slope, const Optional& scale,
                 const Optional& residual, bool residual_first, const Optional& gate,
                 const std::string& input_activation, const Optional& input_gate, int64_t shuffle,
                 const Optional& packed, const Tensor& out) {
  run(x, weight, {bias, slope, scale, residual, gate, activation, alpha, residual_first, {}}, stride, groups,
      input_activation, input_gate, shuffle, packed, out);
}

Tensor pack(const Tensor& x_, const Tensor& weight_, const Ints& stride, int64_t groups) {
  const View x(x_), weight(weight_);
  auto p = layer(x, weight, stride, groups);
  dense_output_format(p, x);
  const int64_t bytes = machine::pointwise_conv2d_packed_bytes(p);
  Tensor packed = empty_bytes(x, bytes);
  p.packed = View(packed).data;
  if (bytes > 0) launch(x, p, 0, machine::pointwise_conv2d_pack);
  return packed;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(pytorch_ext, LIGHTKERNELS_DISPATCH_KEY, m) {
  m.impl("pointwise_conv2d", TORCH_BOX(&forward));
  m.impl("pointwise_conv2d_out", TORCH_BOX(&forward_out));
  m.impl("pointwise_conv2d_pack", TORCH_BOX(&pack));
}

}  // namespace lightkernels
