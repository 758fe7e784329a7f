// Times the CPU kernels of depthwise convolution alone, without torch or Python: the tool for perf, callgrind and
// tuning.
//
// make kernel-alone [ISA=avx512|avx2|base] [ARGS="batch filter layout pass"]
//   layout: nhwc | nchw; pass: forward | backward | backward_input | backward_weight. One thread; medians of 25
//   samples, each beside a memcpy of as many bytes (x and y together; dx too for backward) and the same multiply-adds
//   at the peak of csrc/cpu/machine.cpp.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>

#include "../csrc/depthwise_conv2d.h"
#include "kernel_alone.h"

namespace {

using lightkernels::Activation;
using lightkernels::DepthwiseConv2dParams;
using lightkernels::DType;
namespace cpu = lightkernels::cpu;

struct Layer {
  const char* name;
  int64_t c, size, k, stride, dilation;
};

// The depthwise layers of the survey of peers (bench/shapes/depthwise_conv2d.csv).
constexpr Layer kLayers[] = {
    {"3x3 s1 32x112", 32, 112, 3, 1, 1}, {"3x3 s2 32x112", 32, 112, 3, 2, 1},  {"3x3 s1 96x112", 96, 112, 3, 1, 1},
    {"3x3 s2 96x112", 96, 112, 3, 2, 1}, {"3x3 s1 144x56", 144, 56, 3, 1, 1},  {"3x3 s2 144x56", 144, 56, 3, 2, 1},
    {"3x3 s1 192x28", 192, 28, 3, 1, 1}, {"3x3 s2 192x28", 192, 28, 3, 2, 1},  {"3x3 s1 384x14", 384, 14, 3, 1, 1},
    {"3x3 s2 384x14", 384, 14, 3, 2, 1}, {"3x3 s1 960x7", 960, 7, 3, 1, 1},    {"3x3 s2 960x7", 960, 7, 3, 2, 1},
    {"5x5 240x28", 240, 28, 5, 1, 1},    {"5x5 672x14", 672, 14, 5, 1, 1},     {"7x7 96x56", 96, 56, 7, 1, 1},
    {"7x7 384x14", 384, 14, 7, 1, 1},    {"31x31 128x56", 128, 56, 31, 1, 1},  {"3x3 d2 256x32", 256, 32, 3, 1, 2},
    {"3x3 d4 256x32", 256, 32, 3, 1, 4}, {"3x3 d12 256x32", 256, 32, 3, 1, 12}};

}  // namespace

int main(int argc, char** argv) {
  const int64_t n = argc > 1 ? std::atoi(argv[1]) : 1;
  const std::string filter = argc > 2 ? argv[2] : "", layout = argc > 3 ? argv[3] : "nhwc";
  const std::string pass = argc > 4 ? argv[4] : "forward";
  lightkernels_fma_gflops(1 << 22);
  const double peak = lightkernels_fma_gflops(1 << 24) * 1e9;
  std::printf("%s, %s, batch %ld, one thread, peak %.0f GFLOP/s\n", pass.c_str(), layout.c_str(), long(n), peak / 1e9);
  std::printf("%-16s %10s %12s %10s %12s\n", "layer", "us", "at peak, us", "copy, us", "us / larger");
  for (const Layer& l : kLayers) {
    if (!std::strstr(l.name, filter.c_str())) continue;
    const int64_t padding = l.dilation * (l.k - 1) / 2, out = (l.size - 1) / l.stride + 1;
    const int64_t x_count = n * l.c * l.size * l.size, y_count = n * l.c * out * out, w_count = l.c * l.k * l.k;
    float *x = filled(x_count, 13), *y = filled(y_count, 7), *w = filled(w_count, 5), *b = filled(l.c, 3);
    DepthwiseConv2dParams p{};
    const bool forward = pass == "forward", input = pass == "backward_input", both = pass == "backward";
    p.x = x, p.y = y, p.weight = w, p.bias = input ? nullptr : b, p.dtype = DType::kFloat32;
    p.activation = forward ? Activation::kRelu6 : Activation::kNone;
    p.n = n, p.c = l.c, p.ih = p.iw = l.size, p.oh = p.ow = out, p.multiplier = 1, p.kh = p.kw = l.k;
    p.stride_h = p.stride_w = l.stride, p.padding_t = p.padding_l = padding, p.dilation_h = p.dilation_w = l.dilation;
    if (layout == "nchw") {
      p.x_strides = {l.c * l.size * l.size, l.size * l.size, l.size, 1},
      p.y_strides = {l.c * out * out, out * out, out, 1};
    } else {
      p.x_strides = {l.c * l.size * l.size, 1, l.c * l.size, l.c}, p.y_strides = {l.c * out * out, 1, l.c * out, l.c};
    }
    const bool packed = layout != "nchw" && (forward || input);  // as nn.DepthwiseConv2d keeps it for inference
    p.weight_c = packed ? 1 : l.k * l.k, p.weight_h = packed ? l.k * l.c : l.k, p.weight_w = packed ? l.c : 1;
    lightkernels::DepthwiseConv2dBackward gradients{p, p};
    float *dx = filled(x_count, 2), *dw = filled(w_count, 2);
    gradients.input.x = dx, gradients.weight.weight = dw;
    gradients.weight.weight_c = l.k * l.k, gradients.weight.weight_h = l.k, gradients.weight.weight_w = 1;
    const int64_t workspace = forward ? cpu::depthwise_conv2d_forward_workspace(p)
                              : input ? cpu::depthwise_conv2d_backward_input_workspace(p)
                              : both  ? cpu::depthwise_conv2d_backward_workspace(gradients)
                                      : cpu::depthwise_conv2d_backward_weight_workspace(p);
    const int64_t moved = both ? 2 * x_count + y_count : x_count + y_count;
    float *memory = filled(workspace / 4 + 16, 2), *from = filled(moved / 2, 2), *to = filled(moved / 2, 2);
    const cpu::Launch launch = on_one_thread(memory);
    const auto run = [&] {
      if (forward) return cpu::depthwise_conv2d_forward(p, launch);
      if (input) return cpu::depthwise_conv2d_backward_input(p, launch);
      if (both) return cpu::depthwise_conv2d_backward(gradients, launch);
      cpu::depthwise_conv2d_backward_weight(p, launch);
    };
    const auto [time, copy] = medians(run, [&] {
      std::memcpy(to, from, moved / 2 * 4);
      asm volatile("" ::: "memory");
    });
    const double at_peak = (both ? 4.0 : 2.0) * y_count * l.k * l.k / peak;
    std::printf("%-16s %10.1f %12.1f %10.1f %12.2f\n", l.name, time * 1e6, at_peak * 1e6, copy * 1e6,
                time / std::max(at_peak, copy));
    for (float* memory_ : {x, y, w, b, dx, dw, memory, from, to}) std::free(memory_);
  }
}
