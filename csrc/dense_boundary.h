// What the boundaries of all convolutions share: geometry, epilogues and tensors, checked; and DenseConv2dParams.
#pragma once

#include <algorithm>

#include "boundary.h"
#include "dense_conv2d.h"

namespace lightkernels {

using Optional = std::optional<Tensor>;

inline Strides4 strides_of(const View& v) { return {v.strides[0], v.strides[1], v.strides[2], v.strides[3]}; }

// Rows or columns of the output.
inline int64_t output_size(const char* op, const char* axis, int64_t input, int64_t kernel, int64_t stride,
                           int64_t before, int64_t after, int64_t dilation) {
  const int64_t padded = input + before + after, span = dilation * (kernel - 1) + 1;
  if (kernel < 1 || padded < span) {
    fail(op, ": the padded input's ", axis, " is ", padded, ", but the kernel spans ", span,
         "; the output would be empty");
  }
  return (padded - span) / stride + 1;
}

inline void check_range(const char* op, const char* name, const Ints& values, int64_t most) {
  for (int64_t value : values) {
    if (value > most || value < -most) fail(op, ": ", name, " must not exceed ", most, ", got ", show(values));
  }
}

// Fills p's sizes of the image and the kernel, its geometry and the output's size.
template <class Params>
void set_geometry(Params& p, const char* op, int64_t ih, int64_t iw, int64_t kh, int64_t kw, const Ints& stride,
                  const Ints& padding, const Ints& dilation) {
  for (const auto& [what, value] : {std::pair<const char*, const Ints&>{"stride", stride}, {"dilation", dilation}}) {
    if (value.size() != 2 || value[0] < 1 || value[1] < 1) {
      fail(op, ": ", what, " must be two positive ints, got ", show(value));
    }
  }
  if (padding.size() != 4) fail(op, ": padding must be (top, bottom, left, right), got ", show(padding));
  check_range(op, "stride", stride, INT32_MAX);
  check_range(op, "dilation", dilation, INT32_MAX);
  check_range(op, "padding", padding, INT32_MAX);
  check_range(op, "kernel", {kh, kw}, INT32_MAX);
  p.ih = ih, p.iw = iw, p.kh = kh, p.kw = kw;
  p.stride_h = stride[0], p.stride_w = stride[1];
  p.padding_t = padding[0], p.padding_l = padding[2];
  p.dilation_h = dilation[0], p.dilation_w = dilation[1];
  p.oh = output_size(op, "height", ih, kh, stride[0], padding[0], padding[1], dilation[0]);
  p.ow = output_size(op, "width", iw, kw, stride[1], padding[2], padding[3], dilation[1]);
}

// Sizes of everything; the caller adds pointers and strides. `weight` is [groups * co, ci, kh, kw].
inline DenseConv2dParams dense_geometry(const char* op, const View& like, const char* name, int64_t n, int64_t channels,
                                        int64_t ih, int64_t iw, const int64_t* weight, const Ints& stride,
                                        const Ints& padding, const Ints& dilation, int64_t groups) {
  if (groups < 1 || weight[0] < 1 || weight[0] % groups) {
    fail(op, ": groups must divide weight's ", weight[0], " output channels, got ", groups);
  }
  if (weight[1] < 1 || channels != weight[1] * groups) {
    fail(op, ": ", name, " must have groups * weight.shape[1] = ", groups * weight[1], " channels, got ", channels);
  }
  DenseConv2dParams p{};
  set_geometry(p, op, ih, iw, weight[2], weight[3], stride, padding, dilation);
  p.dtype = dtype_of(op, like);
  p.n = n, p.groups = groups, p.co = weight[0] / groups, p.ci = weight[1];
  p.shuffle = 1;
  return p;
}

inline void check_like(const char* op, const char* name, const View& t, const View& x) {
  if (t.dtype != x.dtype) fail(op, ": ", name, " must be ", dtype_name(x), ", got ", dtype_name(t));
  if (!t.same_place(x)) fail(op, ": tensors must be on one device, ", name, " is on another than x");
}

// The data of a [c] vector; `copy` keeps what it takes to have it contiguous.
inline void* vector_of(const char* op, const char* name, const Optional& t, int64_t c, const View& x, Optional& copy) {
  if (!t) return nullptr;
  const View v(*t);
  if (v.dim != 1 || v.sizes[0] != c) fail(op, ": ", name, " must have shape [", c, "], got ", v.shape());
  check_like(op, name, v, x);
  if (v.strides[0] == 1 || c == 1) return v.data;
  copy = torch::stable::contiguous(*t);
  return View(*copy).data;
}

inline void check_shape(const char* op, const char* name, const View& v, std::array<int64_t, 4> shape) {
  if (v.dim == 4 && std::equal(shape.begin(), shape.end(), v.sizes)) return;
  fail(op, ": ", name, " must have shape ", show(shape), ", got ", v.shape());
}

// The epilogue's tensors, and contiguous copies of the vectors that were not, which must outlive the kernel.
struct EpilogueArguments {
  const Optional &bias, &slope, &scale, &residual, &gate;
  const std::string& activation;
  double alpha;
  bool residual_first;
  Optional copies[3];

  void into(const char* op, DenseConv2dParams& p, const View& x) {
    Epilogue& e = p.epilogue;
    const int64_t c = p.groups * p.co;
    e.activation = activation_of(op, activation), e.alpha = alpha, e.residual_first = residual_first;
    if ((e.activation == Activation::kPrelu) != bool(slope)) {
      fail(op, ": slope belongs to prelu, and prelu needs it");
    }
    e.bias = vector_of(op, "bias", bias, c, x, copies[0]);
    e.scale = vector_of(op, "scale", scale, c, x, copies[1]);
    if (slope) {
      const bool one = View(*slope).dim == 1 && View(*slope).sizes[0] == 1;
      e.slope = vector_of(op, "slope", slope, one ? 1 : c, x, copies[2]);
      e.slope_c = one && c > 1 ? 0 : 1;
    }
    if (residual) {
      const View v(*residual);
      check_shape(op, "residual", v, {p.n, c, p.oh, p.ow});
      check_like(op, "residual", v, x);
      e.residual = v.data, e.residual_strides = strides_of(v);
    }
    if (gate) {
      const View v(*gate);
      if (v.dim != 2 || v.sizes[0] != p.n || v.sizes[1] != c) {
        fail(op, ": gate must have shape [", p.n, ", ", c, "], got ", v.shape());
      }
      check_like(op, "gate", v, x);
      e.gate = v.data, e.gate_n = v.strides[0], e.gate_c = v.strides[1];
    }
  }
};

// weight goes with x, which its op calls `name`.
inline void check_goes_with(const char* op, const View& weight, const View& x, const char* name) {
  if (weight.dtype != x.dtype) {
    fail(op, ": tensors must share one dtype, got ", dtype_name(x), " for ", name, " and ", dtype_name(weight),
         " for weight");
  }
  if (!weight.same_place(x)) fail(op, ": tensors must be on one device, weight is on another than ", name);
}

// What a weight's gradient is made of.
inline void check_dy_and_x(const char* op, const View& dy, const View& x) {
  if (dy.dim != 4 || x.dim != 4 || dy.sizes[0] != x.sizes[0]) {
    fail(op, ": dy and x must have shape [n, c, h, w] with one n, got ", dy.shape(), " and ", x.shape());
  }
  if (dy.dtype != x.dtype) {
    fail(op, ": tensors must share one dtype, got ", dtype_name(dy), " for dy and ", dtype_name(x), " for x");
  }
  if (!dy.same_place(x)) fail(op, ": tensors must be on one device, dy is on another than x");
}

inline void check_dense_tensors(const char* op, const View& x, const View& weight, const char* name) {
  if (x.dim != 4) fail(op, ": ", name, " must have shape [n, c, h, w], got ", x.shape());
  if (weight.dim != 4) fail(op, ": weight must have shape [co, ci / groups, kh, kw], got ", weight.shape());
  check_goes_with(op, weight, x, name);
}

// Of a layer whose x and weight are there: sizes, and where x and weight lie.
inline DenseConv2dParams dense_layer(const char* op, const View& x, const View& weight, const Ints& stride,
                                     const Ints& padding, const Ints& dilation, int64_t groups) {
  check_dense_tensors(op, x, weight, "x");
  auto p = dense_geometry(op, x, "x", x.sizes[0], x.sizes[1], x.sizes[2], x.sizes[3], weight.sizes, stride, padding,
                          dilation, groups);
  p.x = x.data, p.weight = weight.data;
  p.x_strides = strides_of(x), p.weight_strides = strides_of(weight);
  return p;
}

// y's place: a new tensor in the memory format of x, or `out`.
inline Tensor dense_output(const char* op, DenseConv2dParams& p, const View& x, const Optional& out) {
  const int64_t c = p.groups * p.co;
  if (out) {
    const View v(*out);
    check_shape(op, "out", v, {p.n, c, p.oh, p.ow});
    check_like(op, "out", v, x);
    for (int i = 0; i < 4; ++i) {
      if (v.sizes[i] > 1 && v.strides[i] == 0)
        fail(op, ": out must not overlap itself, its stride along dimension ", i, " is 0");
    }
  }
  Tensor y = out ? *out : empty_nchw(x, p.n, c, p.oh, p.ow);
  const View v(y);
  p.y = v.data, p.y_strides = strides_of(v);
  return y;
}

// y is what a new output would be, without one: for packing, where only its memory format counts.
inline void dense_output_format(DenseConv2dParams& p, const View& x) {
  const int64_t c = p.groups * p.co;
  if (is_channels_last(x)) {
    p.y_strides = {p.oh * p.ow * c, 1, p.ow * c, c};
  } else {
    p.y_strides = {p.oh * p.ow * c, p.oh * p.ow, p.ow, 1};
  }
}

inline void* packed_data(const char* op, const Optional& packed, int64_t bytes) {
  if (!packed) return nullptr;
  const View v(*packed);
  if (v.dim != 1 || v.sizes[0] == 0) return nullptr;
  if (v.dtype != aoti_torch_dtype_uint8() || v.strides[0] != 1 || v.sizes[0] != bytes) {
    fail(op, ": packed was made for another layer: ", v.sizes[0], " bytes, this one takes ", bytes);
  }
  return v.data;
}

inline Tensor empty_bytes(const View& like, int64_t bytes) {
  AtenTensorHandle h;
  const int64_t stride = 1;
  check(aoti_torch_empty_strided(1, &bytes, &stride, aoti_torch_dtype_uint8(), like.device, like.index, &h));
  return Tensor(h);
}

}  // namespace lightkernels
