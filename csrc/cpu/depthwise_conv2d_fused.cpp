// Depthwise convolution with all of an epilogue: sums of a part of the image, by the kernels of the plain one in float,
// then the epilogue on them while they are in L2. Parts are rows where channels are innermost, else channels.
#include <algorithm>

#include "depthwise_conv2d_geometry.h"
#include "epilogue.h"

namespace lightkernels::cpu {
namespace {

constexpr int64_t kPartBytes = 128 << 10;  // of sums
constexpr int64_t kMostSlots = 16;         // chunks that run at once, each with memory of its own
constexpr int64_t kGrainWork = 65536;      // multiply-adds that are worth a thread

int64_t aligned(int64_t bytes) { return (bytes + 63) / 64 * 64; }

struct Plan {
  DepthwiseConv2dParams p;  // of one image's sums: bias and activation are left out
  bool channels_last, narrow;
  int64_t part, parts;             // rows or channels of a part; parts of an image
  int64_t units, grain;            // parts of all images; those that are worth a thread
  int64_t sums, x, weight, inner;  // bytes of a slot: for sums, for x and weight in float, for the kernels

  explicit Plan(const DepthwiseConv2dParams& given) : p(given) {
    narrow = size_of(p.dtype) == 2;
    channels_last = p.y_strides.c == 1 && p.x_strides.c == 1 && !(p.c == 1 && p.x_strides.w == 1);
    const int64_t size = acc_size(p), m = p.multiplier;
    if (channels_last) {
      part = std::clamp<int64_t>(kPartBytes / (p.ow * p.c * size), 1, p.oh);
      parts = (p.oh + part - 1) / part;
    } else {
      part = std::clamp<int64_t>(kPartBytes / (p.oh * p.ow * size) / m, 1, p.c / m) * m;
      parts = (p.c + part - 1) / part;
    }
    units = p.n * parts;
    const int64_t work = p.n * p.c * p.oh * p.ow * p.kh * p.kw;
    grain = std::max(1 + units * kGrainWork / std::max(work, kGrainWork), 2 * units / kMostSlots + 1);
    sums = aligned((channels_last ? part * p.ow * p.c : p.oh * p.ow * part) * size);
    x = weight = 0;
    if (narrow) {
      const int64_t rows = std::min(p.ih, (part - 1) * p.stride_h + (p.kh - 1) * p.dilation_h + 1);
      x = aligned((channels_last ? rows * p.iw * (p.c / m) : p.ih * p.iw * (part / m)) * size);
      weight = aligned(p.c * p.kh * p.kw * size);
    }
    // The kernels' memory is for packed weights, and does not depend on the part; 1x1 images may lie either way.
    DepthwiseConv2dParams one = sums_of(p, 0, 0, nullptr);
    if (narrow) one.dtype = DType::kFloat32, one.weight_c = p.kh * p.kw, one.weight_h = p.kw, one.weight_w = 1;
    DepthwiseConv2dParams last = one;
    last.x_strides.c = last.y_strides.c = 1;
    inner = aligned(std::max(depthwise_conv2d_forward_workspace(one), depthwise_conv2d_forward_workspace(last)));
  }

  int64_t slot() const { return sums + x + weight + inner; }
  int64_t bytes() const { return Launch::slots(units, grain) * slot(); }

  // Params of part `index` of image n, into `to`.
  DepthwiseConv2dParams sums_of(const DepthwiseConv2dParams& whole, int64_t n, int64_t index, void* to) const {
    DepthwiseConv2dParams q = whole;
    const int64_t size = size_of(q.dtype), begin = index * part;
    q.n = 1, q.bias = nullptr, q.activation = Activation::kNone, q.y = to;
    int64_t offset = n * q.x_strides.n;
    if (channels_last) {
      q.oh = std::min(part, whole.oh - begin);
      q.padding_t -= begin * q.stride_h;
      q.y_strides = {q.oh * q.ow * q.c, 1, q.ow * q.c, q.c};
    } else {
      q.c = std::min(part, whole.c - begin);
      offset += begin / q.multiplier * q.x_strides.c;
      q.weight = static_cast<char*>(q.weight) + begin * q.weight_c * size;
      q.y_strides = {q.c * q.oh * q.ow, q.oh * q.ow, q.ow, 1};
    }
    q.x = static_cast<char*>(q.x) + offset * size;
    return q;
  }
};

// `count` 16-bit floats, `step` apart, in float.
template <class E>
void widen(const E* from, int64_t step, float* to, int64_t count) {
  constexpr int L = lanes<float>();
  if (step == 1) {
    for (int64_t i = 0; i < count; i += L) store_up_to<L>(to + i, load_up_to<L>(from + i, count - i), count - i);
  } else {
    for (int64_t i = 0; i < count; ++i) to[i] = load<1>(from + i * step)[0];
  }
}

// What q reads, in float: x's rows that its outputs meet, and the weight.
template <class E>
void widen_arguments(DepthwiseConv2dParams& q, bool channels_last, float* x, float* weight) {
  const E* from = static_cast<const E*>(q.x);
  const int64_t c = q.c / q.multiplier, first = -q.padding_t;
  const int64_t begin = std::clamp<int64_t>(first, 0, q.ih);
  const int64_t end = std::clamp((q.oh - 1) * q.stride_h + (q.kh - 1) * q.dilation_h + 1 + first, begin, q.ih);
  const int64_t rows = end - begin;
  from += begin * q.x_strides.h;
  if (channels_last) {
    for (int64_t i = 0; i < rows; ++i) {
      for (int64_t j = 0; j < q.iw; ++j) {
        widen(from + i * q.x_strides.h + j * q.x_strides.w, 1, x + (i * q.iw + j) * c, c);
      }
    }
    q.x_strides = {0, 1, q.iw * c, c};
  } else {
    for (int64_t k = 0; k < c; ++k) {
      for (int64_t i = 0; i < rows; ++i) {
        widen(from + k * q.x_strides.c + i * q.x_strides.h, q.x_strides.w, x + (k * rows + i) * q.iw, q.iw);
      }
    }
    q.x_strides = {0, rows * q.iw, q.iw, 1};
  }
  const E* w = static_cast<const E*>(q.weight);
  for (int64_t k = 0; k < q.c; ++k) {
    for (int64_t u = 0; u < q.kh; ++u) {
      widen(w + k * q.weight_c + u * q.weight_h, q.weight_w, weight + (k * q.kh + u) * q.kw, q.kw);
    }
  }
  q.weight_c = q.kh * q.kw, q.weight_h = q.kw, q.weight_w = 1;
  q.x = x, q.weight = weight, q.dtype = DType::kFloat32;
  q.ih = rows, q.padding_t += begin;
}

// The epilogue of part `index` of image n, whose sums are q's.
template <class S>
void finish_part(const DepthwiseConv2dFused& f, const Plan& plan, const DepthwiseConv2dParams& q, int64_t n,
                 int64_t index) {
  const DepthwiseConv2dParams& p = f.conv;
  const Epilogue& e = f.epilogue;
  const int64_t size = size_of(p.dtype), first = index * plan.part;
  Finish<S> t{};
  t.epilogue = &e, t.lanes_are_channels = plan.channels_last, t.n = n, t.channels = p.c, t.shuffle = 1;
  t.y_pixel = p.y_strides.w, t.y_channel = p.y_strides.c;
  t.residual_pixel = e.residual_strides.w, t.residual_channel = e.residual_strides.c;
  t.channel = plan.channels_last ? 0 : first;
  const int64_t row0 = plan.channels_last ? first : 0;
  // Pixels of several rows are one run where both tensors let them be.
  const bool whole =
      p.y_strides.h == p.ow * p.y_strides.w && (!e.residual || e.residual_strides.h == p.ow * e.residual_strides.w);
  const int64_t tiles = whole ? 1 : q.oh, pixels = whole ? q.oh * q.ow : q.ow;
  t.rows = plan.channels_last ? pixels : q.c, t.columns = plan.channels_last ? q.c : pixels;
  t.sums_step = plan.channels_last ? q.c : q.oh * q.ow;
  for (int64_t i = 0; i < tiles; ++i) {
    t.sums = static_cast<const S*>(q.y) + i * q.y_strides.h;
    t.y = static_cast<char*>(p.y) + (n * p.y_strides.n + (row0 + i) * p.y_strides.h) * size;
    if (e.residual) {
      t.residual =
          static_cast<char*>(e.residual) + (n * e.residual_strides.n + (row0 + i) * e.residual_strides.h) * size;
    }
    finish_tile(p.dtype, t);
  }
}

void alone(int64_t units, int64_t, Launch::Body body, void* context) { body(0, units, context); }

}  // namespace

int64_t depthwise_conv2d_fused_workspace(const DepthwiseConv2dFused& f) { return Plan(f.conv).bytes(); }

void depthwise_conv2d_fused(const DepthwiseConv2dFused& f, const Launch& launch) {
  const Plan plan(f.conv);
  launch.parallel(plan.units, plan.grain, [&](int64_t begin, int64_t end) {
    char* memory = static_cast<char*>(launch.workspace) + Launch::slot_of(begin, plan.grain) * plan.slot();
    auto* x = reinterpret_cast<float*>(memory + plan.sums);
    auto* weight = reinterpret_cast<float*>(memory + plan.sums + plan.x);
    const Launch inner{memory + plan.sums + plan.x + plan.weight, alone};
    for (int64_t unit = begin; unit < end; ++unit) {
      const int64_t n = unit / plan.parts, index = unit % plan.parts;
      DepthwiseConv2dParams q = plan.sums_of(f.conv, n, index, memory);
      if (f.conv.dtype == DType::kFloat16) widen_arguments<Half>(q, plan.channels_last, x, weight);
      if (f.conv.dtype == DType::kBFloat16) widen_arguments<BFloat16>(q, plan.channels_last, x, weight);
      depthwise_conv2d_forward(q, inner);
      if (f.conv.dtype == DType::kFloat64) {
        finish_part<double>(f, plan, q, n, index);
      } else {
        finish_part<float>(f, plan, q, n, index);
      }
    }
  });
}

}  // namespace lightkernels::cpu
