// What an op's boundary needs of torch, through its stable ABI only: checks, layouts, allocation, launching.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <array>
#include <optional>
#include <sstream>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "convolution.h"

#ifdef LIGHTKERNELS_CUDA
#ifndef LIGHTKERNELS_DISPATCH_KEY  // tests/ptx_on_cpu/cuda.py names another, so that CPU tensors can be sent there
#define LIGHTKERNELS_DISPATCH_KEY CUDA
#endif
// Lives in libtorch_cuda, which a CPU-only torch lacks: weak, so that this library loads there too.
extern "C" __attribute__((weak)) AOTITorchError aoti_torch_get_current_cuda_stream(int32_t device_index, void** stream);
#else
#define LIGHTKERNELS_DISPATCH_KEY CPU
#endif

namespace lightkernels {

#ifdef LIGHTKERNELS_CUDA
namespace machine = cuda;
#else
namespace machine = cpu;
#endif

using torch::stable::Tensor;
using Ints = std::vector<int64_t>;

template <class... Args>
[[noreturn, gnu::cold, gnu::noinline]] void fail(const Args&... args) {
  std::ostringstream text;
  (text << ... << args);
  throw std::runtime_error(text.str());
}

template <class List>
std::string show(const List& list) {
  std::ostringstream text;
  text << '[';
  for (size_t i = 0; i < list.size(); ++i) text << (i ? ", " : "") << list[i];
  text << ']';
  return text.str();
}

inline void check(AOTITorchError error) {
  if (error != AOTI_TORCH_SUCCESS) fail("a call into torch failed; its own message is on stderr");
}

// A tensor's facts, read once: every accessor is a call into torch.
struct View {
  void* data;
  int64_t dim;
  const int64_t* sizes;
  const int64_t* strides;
  int32_t dtype, device, index;

  explicit View(const Tensor& t) {
    AtenTensorHandle h = t.get();
    int64_t *s, *st;
    check(aoti_torch_get_data_ptr(h, &data));
    check(aoti_torch_get_dim(h, &dim));
    check(aoti_torch_get_sizes(h, &s));
    check(aoti_torch_get_strides(h, &st));
    check(aoti_torch_get_dtype(h, &dtype));
    check(aoti_torch_get_device_type(h, &device));
    check(aoti_torch_get_device_index(h, &index));
    sizes = s;
    strides = st;
  }

  std::string shape() const { return show(torch::headeronly::IntHeaderOnlyArrayRef(sizes, dim)); }
  bool same_place(const View& o) const { return device == o.device && index == o.index; }
};

// As Python writes it, for messages.
[[gnu::cold]] inline std::string dtype_name(const View& v) {
  const std::pair<int32_t, const char*> names[] = {
      {aoti_torch_dtype_float32(), "float32"},     {aoti_torch_dtype_float64(), "float64"},
      {aoti_torch_dtype_float16(), "float16"},     {aoti_torch_dtype_bfloat16(), "bfloat16"},
      {aoti_torch_dtype_uint8(), "uint8"},         {aoti_torch_dtype_int8(), "int8"},
      {aoti_torch_dtype_int16(), "int16"},         {aoti_torch_dtype_int32(), "int32"},
      {aoti_torch_dtype_int64(), "int64"},         {aoti_torch_dtype_bool(), "bool"},
      {aoti_torch_dtype_complex64(), "complex64"}, {aoti_torch_dtype_complex128(), "complex128"},
  };
  for (const auto& [dtype, name] : names) {
    if (dtype == v.dtype) return std::string("torch.") + name;
  }
  return "another";
}

inline DType dtype_of(const char* op, const View& v) {
  if (v.dtype == aoti_torch_dtype_float32()) return DType::kFloat32;
  if (v.dtype == aoti_torch_dtype_float64()) return DType::kFloat64;
  if (v.dtype == aoti_torch_dtype_float16()) return DType::kFloat16;
  if (v.dtype == aoti_torch_dtype_bfloat16()) return DType::kBFloat16;
  fail(op, ": dtype must be float32, float64, float16 or bfloat16, got ", dtype_name(v));
}

inline Activation activation_of(const char* op, const std::string& name) {
  const std::pair<const char*, Activation> names[] = {
      {"none", Activation::kNone},
      {"relu", Activation::kRelu},
      {"relu6", Activation::kRelu6},
      {"silu", Activation::kSilu},
      {"hardswish", Activation::kHardswish},
      {"hardsigmoid", Activation::kHardsigmoid},
      {"sigmoid", Activation::kSigmoid},
      {"tanh", Activation::kTanh},
      {"gelu", Activation::kGelu},
      {"gelu_tanh", Activation::kGeluTanh},
      {"leaky_relu", Activation::kLeakyRelu},
      {"elu", Activation::kElu},
      {"prelu", Activation::kPrelu},
  };
  std::string known;
  for (const auto& [known_name, activation] : names) {
    if (name == known_name) return activation;
    known += (known.empty() ? "" : ", ") + std::string(known_name);
  }
  fail(op, ": activation must be one of ", known, ", got '", name, "'");
}

// torch's rule (c10/core/MemoryFormat.h) for 4-D tensors: are the strides ordered n > h > w > c?
inline bool is_channels_last(const View& v) {
  if (v.dim != 4 || v.strides[1] == 0) return false;
  int64_t least = 0;
  for (int d : {1, 3, 2, 0}) {
    if (v.sizes[d] == 0 || v.strides[d] < least) return false;
    if (d == 0 && least == v.strides[1]) return false;
    least = v.strides[d] * (v.sizes[d] > 1 ? v.sizes[d] : 1);
  }
  return true;
}

inline Tensor empty(const View& like, std::array<int64_t, 4> sizes, std::array<int64_t, 4> strides, int64_t dim = 4) {
  AtenTensorHandle h;
  if (aoti_torch_empty_strided(dim, sizes.data(), strides.data(), like.dtype, like.device, like.index, &h)) {
    fail("cannot allocate an output of shape ", show(torch::headeronly::IntHeaderOnlyArrayRef(sizes.data(), dim)));
  }
  return Tensor(h);
}

// A new [n, c, h, w] tensor in the memory format of `like`.
inline Tensor empty_nchw(const View& like, int64_t n, int64_t c, int64_t h, int64_t w) {
  auto size = [](int64_t s) { return s > 1 ? s : 1; };  // torch strides over empty dimensions as if they held one
  if (is_channels_last(like) && n * c * h * w > 0) return empty(like, {n, c, h, w}, {h * w * c, 1, w * c, c});
  return empty(like, {n, c, h, w}, {size(c) * size(h) * size(w), size(h) * size(w), size(w), 1});
}

// Calls kernel(params, launch) with the workspace it asks for.
template <class Params>
void launch(const View& on, const Params& params, int64_t workspace_bytes,
            void (*kernel)(const Params&, const machine::Launch&)) {
  std::optional<Tensor> workspace;
  void* memory = nullptr;
  if (workspace_bytes > 0) {
    int64_t size = workspace_bytes, stride = 1;
    AtenTensorHandle h;
    check(aoti_torch_empty_strided(1, &size, &stride, aoti_torch_dtype_uint8(), on.device, on.index, &h));
    workspace.emplace(h);
    memory = workspace->data_ptr();
  }
#ifdef LIGHTKERNELS_CUDA
  if (!aoti_torch_get_current_cuda_stream) fail("this torch has no CUDA");
  torch::stable::accelerator::DeviceGuard guard(on.index);
  void* stream;
  check(aoti_torch_get_current_cuda_stream(on.index, &stream));
  kernel(params, machine::Launch{memory, stream});
#else
  kernel(params, machine::Launch{memory, [](int64_t units, int64_t grain, machine::Launch::Body body, void* context) {
                                   check(torch_parallel_for(0, units, grain, body, context));
                                 }});
#endif
}

}  // namespace lightkernels
