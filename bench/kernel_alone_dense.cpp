// Times the CPU kernels of pointwise and dense convolution alone, without torch or Python.
//
// make kernel-alone KERNELS=dense [ISA=avx512|avx2|base] [ARGS="batch filter layout pass"]
//   layout: nhwc | nchw; pass: forward (weight packed before, as modules keep it) | backward_input | backward_weight.
//   One thread; medians of 25 samples, each beside a memcpy of as many bytes (x and y together). The multiply-adds at
//   the peak of csrc/cpu/machine.cpp are those of a direct sum inside the image: Winograd's tiles need fewer.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>

#include "../csrc/dilated_conv2d.h"
#include "../csrc/pointwise_conv2d.h"
#include "kernel_alone.h"

namespace {

using lightkernels::Activation;
using lightkernels::DenseConv2dParams;
using lightkernels::DType;
namespace cpu = lightkernels::cpu;

struct Layer {
  const char* name;
  int64_t c, co, size, k, stride, dilation, groups;
};

// The pointwise and dense layers of the survey of peers (bench/shapes), and the stems.
constexpr Layer kLayers[] = {
    {"pw 32-64x112", 32, 64, 112, 1, 1, 1, 1},       {"pw 96-24x56", 96, 24, 56, 1, 1, 1, 1},
    {"pw 144-24x56", 144, 24, 56, 1, 1, 1, 1},       {"pw 192-64x28", 192, 64, 28, 1, 1, 1, 1},
    {"pw 384-64x14", 384, 64, 14, 1, 1, 1, 1},       {"pw 576-96x14", 576, 96, 14, 1, 1, 1, 1},
    {"pw 960-160x7", 960, 160, 7, 1, 1, 1, 1},       {"pw 320-1280x7", 320, 1280, 7, 1, 1, 1, 1},
    {"gconv g3 240-60x28", 240, 60, 28, 1, 1, 1, 3}, {"gconv g3 60-240x28", 60, 240, 28, 1, 1, 1, 3},
    {"3x3 256-256x32", 256, 256, 32, 3, 1, 1, 1},    {"3x3 d2 256-256x32", 256, 256, 32, 3, 1, 2, 1},
    {"3x3 d6 256-256x32", 256, 256, 32, 3, 1, 6, 1}, {"3x3 d12 256-256x32", 256, 256, 32, 3, 1, 12, 1},
    {"stem 3x3 s2 3-32", 3, 32, 224, 3, 2, 1, 1},    {"stem 7x7 s2 3-64", 3, 64, 224, 7, 2, 1, 1}};

// Taps along an axis that lie inside the image, over all outputs.
int64_t taps(const Layer& l, int64_t out, int64_t padding) {
  int64_t count = 0;
  for (int64_t o = 0; o < out; ++o) {
    for (int64_t k = 0; k < l.k; ++k) {
      const int64_t i = o * l.stride + k * l.dilation - padding;
      count += i >= 0 && i < l.size;
    }
  }
  return count;
}

}  // namespace

int main(int argc, char** argv) {
  const int64_t n = argc > 1 ? std::atoi(argv[1]) : 1;
  const std::string filter = argc > 2 ? argv[2] : "", layout = argc > 3 ? argv[3] : "nhwc";
  const std::string pass = argc > 4 ? argv[4] : "forward";
  std::printf("%s, %s, batch %ld, one thread\n", pass.c_str(), layout.c_str(), long(n));
  std::printf("%-20s %10s %10s %12s %10s %12s\n", "layer", "us", "GFLOP/s", "at peak, us", "copy, us", "us / larger");
  for (const Layer& l : kLayers) {
    if (!std::strstr(l.name, filter.c_str())) continue;
    const bool forward = pass == "forward", input = pass == "backward_input", pointwise = l.k == 1;
    const int64_t padding = l.dilation * (l.k - 1) / 2, out = (l.size - 1) / l.stride + 1;
    const int64_t x_count = n * l.c * l.size * l.size, y_count = n * l.co * out * out;
    const int64_t w_count = l.co * l.c / l.groups * l.k * l.k;
    float *x = filled(x_count, 13), *y = filled(y_count, 7), *w = filled(w_count, 5), *b = filled(l.co, 3);
    DenseConv2dParams p{};
    p.x = x, p.y = y, p.weight = w, p.dtype = DType::kFloat32, p.shuffle = forward ? l.groups : 1;
    p.n = n, p.groups = l.groups, p.ci = l.c / l.groups, p.co = l.co / l.groups;
    p.ih = p.iw = l.size, p.oh = p.ow = out, p.kh = p.kw = l.k;
    p.stride_h = p.stride_w = l.stride, p.padding_t = p.padding_l = padding, p.dilation_h = p.dilation_w = l.dilation;
    if (layout == "nchw") {
      p.x_strides = {l.c * l.size * l.size, l.size * l.size, l.size, 1};
      p.y_strides = {l.co * out * out, out * out, out, 1};
    } else {
      p.x_strides = {l.c * l.size * l.size, 1, l.c * l.size, l.c},
      p.y_strides = {l.co * out * out, 1, l.co * out, l.co};
    }
    p.weight_strides = {p.ci * l.k * l.k, l.k * l.k, l.k, 1};
    if (forward) {
      p.epilogue.bias = b, p.epilogue.activation = l.groups > 1 ? Activation::kNone : Activation::kRelu6;
    } else if (!input) {
      p.dbias = b;
    }
    const int64_t packed_bytes = !forward    ? 0
                                 : pointwise ? cpu::pointwise_conv2d_packed_bytes(p)
                                             : cpu::dilated_conv2d_packed_bytes(p);
    float* packed = filled(packed_bytes / 4 + 16, 2);
    if (packed_bytes > 0) {
      DenseConv2dParams to = p;
      to.packed = packed;
      pointwise ? cpu::pointwise_conv2d_pack(to, on_one_thread(nullptr))
                : cpu::dilated_conv2d_pack(to, on_one_thread(nullptr));
      p.packed = packed;
    }
    const int64_t workspace =
        forward ? (pointwise ? cpu::pointwise_conv2d_forward_workspace(p) : cpu::dilated_conv2d_forward_workspace(p))
        : input ? cpu::dilated_conv2d_backward_input_workspace(p)
                : cpu::dilated_conv2d_backward_weight_workspace(p);
    const int64_t moved = x_count + y_count;
    float *memory = filled(workspace / 4 + 16, 2), *from = filled(moved / 2, 2), *to = filled(moved / 2, 2);
    const cpu::Launch launch = on_one_thread(memory);
    const auto run = [&] {
      if (forward) return pointwise ? cpu::pointwise_conv2d_forward(p, launch) : cpu::dilated_conv2d_forward(p, launch);
      if (input) return cpu::dilated_conv2d_backward_input(p, launch);
      cpu::dilated_conv2d_backward_weight(p, launch);
    };
    double peak = 0;  // beside the samples: the clock is not the same all the time
    const auto at_rest = [&] { peak = std::max(peak, lightkernels_fma_gflops(1 << 22) * 1e9); };
    at_rest();
    const auto [time, copy] = medians(run, [&] {
      std::memcpy(to, from, moved / 2 * 4);
      asm volatile("" ::: "memory");
    });
    at_rest();
    const int64_t along = taps(l, out, padding);
    const double at_peak = 2.0 * n * l.co * p.ci * along * along / peak;
    std::printf("%-20s %10.1f %10.0f %12.1f %10.1f %12.2f\n", l.name, time * 1e6, at_peak * peak / time / 1e9,
                at_peak * 1e6, copy * 1e6, time / std::max(at_peak, copy));
    for (float* memory_ : {x, y, w, b, packed, memory, from, to}) std::free(memory_);
  }
}
