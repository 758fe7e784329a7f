// Depthwise convolution, columns innermost, and any other strides: plane by plane.
#include "depthwise_conv2d_nchw.h"

#include "depthwise_conv2d_nchw_fixed.h"
#include "depthwise_conv2d_nchw_weight.h"

namespace lightkernels::cpu {
namespace {

template <class E>
void convolve_typed(const DepthwiseConv2dParams& p, bool transposed, const Launch& launch) {
  if constexpr (std::is_same_v<E, float>) {
    if (is_fixed_nchw(p) && !transposed) return forward_fixed_nchw(p, launch);
    if (is_fixed_nchw(p) && p.multiplier == 1 && p.ih > 0 && p.iw > 0) {
      if (p.stride_h == 1) return forward_fixed_nchw(turned(p), launch);
      return backward_input_fixed_nchw(p, launch);
    }
  }
  const Convolution conv(p, transposed);
  const int64_t phases_h = std::min(conv.phases_h(p), conv.oh), phases_w = std::min(conv.phases_w(p), conv.ow);
  auto plan_of = [&](int64_t phase) {
    const int64_t i = phase / phases_w, j = phase % phases_w;
    const int64_t oh = (conv.oh - i - 1) / conv.phases_h(p) + 1, ow = (conv.ow - j - 1) / conv.phases_w(p) + 1;
    return plan_nchw<E>(conv.axis_h(p, i), conv.axis_w(p, j), oh, ow, conv.layers);
  };
  constexpr int64_t kPlans = 4;  // that are kept; a larger stride makes its plans anew for each plane
  const PlanNchw plans[kPlans] = {plan_of(0), plan_of(1 % (phases_h * phases_w)), plan_of(2 % (phases_h * phases_w)),
                                  plan_of(3 % (phases_h * phases_w))};
  launch.parallel(p.n * conv.c, grain_of(p, p.n * conv.c), [&](int64_t begin, int64_t end) {
    ScratchNchw<Acc<E>> scratch;
    for (int64_t unit = begin; unit < end; ++unit) {
      const int64_t n = unit / conv.c, c = unit % conv.c;
      PlanesNchw<E> planes;
      planes.x = static_cast<const E*>(conv.in) + n * conv.in_strides.n +
                 c * conv.map.times / conv.map.over * conv.in_strides.c;
      planes.x_layer = conv.in_strides.c, planes.x_h = conv.in_strides.h, planes.x_w = conv.in_strides.w;
      planes.ih = conv.ih, planes.iw = conv.iw, planes.layers = conv.layers;
      planes.weight = static_cast<const E*>(p.weight) + c * conv.layers * p.weight_c;
      planes.w_layer = p.weight_c, planes.w_h = p.weight_h, planes.w_w = p.weight_w;
      planes.bias = !transposed && p.bias ? load<1>(static_cast<const E*>(p.bias) + c)[0] : Acc<E>(0);
      planes.activation = transposed ? Activation::kNone : p.activation;
      planes.y_h = conv.phases_h(p) * conv.out_strides.h, planes.y_w = conv.phases_w(p) * conv.out_strides.w;
      for (int64_t phase = 0; phase < phases_h * phases_w; ++phase) {
        planes.y = static_cast<E*>(conv.out) + n * conv.out_strides.n + c * conv.out_strides.c +
                   phase / phases_w * conv.out_strides.h + phase % phases_w * conv.out_strides.w;
        auto run = [&](const PlanNchw& plan) {
          planes.oh = plan.oh, planes.ow = plan.ow;
          planes_nchw<E>(planes, plan, scratch);
        };
        if (phase < kPlans) {
          run(plans[phase]);
        } else {
          run(plan_of(phase));
          scratch.staged_by = nullptr;  // that plan is gone, and another may take its place in memory
        }
      }
    }
  });
}

template <class E>
void backward_weight_typed(const DepthwiseConv2dParams& p, const Launch& launch) {
  if constexpr (std::is_same_v<E, float>) {
    if (is_fixed_nchw(p)) return backward_weight_fixed_nchw(p, launch);
  }
  using A = Acc<E>;
  const int64_t taps = p.kh * p.kw;
  const Axis h = forward_axis(p.kh, p.stride_h, p.padding_t, p.dilation_h);
  const Axis w = forward_axis(p.kw, p.stride_w, p.padding_l, p.dilation_w);
  launch.parallel(p.c, grain_of(p, p.c), [&](int64_t begin, int64_t end) {
    ScratchNchw<A> scratch;
    for (int64_t c = begin; c < end; ++c) {
      A* sums = static_cast<A*>(launch.workspace) + c * taps;  // [kw, kh]
      std::fill_n(sums, taps, A(0));
      A dbias = 0;
      for (int64_t n = 0; n < p.n; ++n) {
        PlanesNchw<E> planes{};
        planes.x = static_cast<const E*>(p.x) + n * p.x_strides.n + c / p.multiplier * p.x_strides.c;
        planes.x_h = p.x_strides.h, planes.x_w = p.x_strides.w, planes.ih = p.ih, planes.iw = p.iw;
        planes.y = static_cast<E*>(p.y) + n * p.y_strides.n + c * p.y_strides.c;
        planes.y_h = p.y_strides.h, planes.y_w = p.y_strides.w, planes.oh = p.oh, planes.ow = p.ow;
        const bool narrow = lanes<E>() > 8 && p.ow <= 8;
        const bool done = narrow ? add_backward_weight<8>(planes, h, w, scratch, sums, &dbias)
                                 : add_backward_weight<lanes<E>()>(planes, h, w, scratch, sums, &dbias);
        if (!done) direct_backward_weight(planes, h, w, sums, &dbias);
      }
      E* dweight = static_cast<E*>(p.weight) + c * taps;
      for (int64_t u = 0; u < p.kh; ++u) {
        for (int64_t v = 0; v < p.kw; ++v) store<1>(dweight + u * p.kw + v, Vec<A, 1>{sums[v * p.kh + u]});
      }
      if (p.bias) store<1>(static_cast<E*>(p.bias) + c, Vec<A, 1>{dbias});
    }
  });
}

}  // namespace

int64_t backward_weight_nchw_workspace(const DepthwiseConv2dParams& p) { return p.kh * p.kw * p.c * acc_size(p); }

void convolve_nchw(const DepthwiseConv2dParams& p, bool transposed, const Launch& launch) {
  with_type(p.dtype, [&](auto type) { convolve_typed<decltype(type)>(p, transposed, launch); });
}

void backward_weight_nchw(const DepthwiseConv2dParams& p, const Launch& launch) {
  with_type(p.dtype, [&](auto type) { backward_weight_typed<decltype(type)>(p, launch); });
}

}  // namespace lightkernels::cpu
