// epilogue.h, for every activation and type.
#include "epilogue.h"

#include <algorithm>

#include "activations.h"

namespace lightkernels::cpu {
namespace {

// `count` elements `step` apart, as the first lanes of a vector.
template <class E, int L>
LIGHTKERNELS_INLINE Vec<Acc<E>, L> gather(const void* from, int64_t at, int64_t step, int64_t count) {
  const E* p = static_cast<const E*>(from) + at;
  if (step == 1) return load_up_to<L>(p, count);
  if (step == 0) return splat<L>(load<1>(p)[0]);
  Vec<Acc<E>, L> v{};
  for (int64_t l = 0; l < std::min<int64_t>(count, L); ++l) v[l] = load<1>(p + l * step)[0];
  return v;
}

template <class E, int L>
LIGHTKERNELS_INLINE void scatter(void* to, int64_t at, int64_t step, Vec<Acc<E>, L> v, int64_t count) {
  E* p = static_cast<E*>(to) + at;
  if (step == 1) return store_up_to<L>(p, v, count);
  for (int64_t l = 0; l < std::min<int64_t>(count, L); ++l) store<1>(p + l * step, Vec<Acc<E>, 1>{v[l]});
}

// The channel's own factors and terms, of L channels or of one in all lanes.
template <class V>
struct OfChannel {
  V scale, bias, slope, gate;
};

template <class E, int L>
LIGHTKERNELS_INLINE OfChannel<Vec<Acc<E>, L>> of_channels(const Epilogue& e, int64_t n, int64_t c, bool lanes,
                                                          int64_t count) {
  using V = Vec<Acc<E>, L>;
  const int64_t one = lanes ? 1 : 0;
  OfChannel<V> o{V{}, V{}, V{}, V{}};
  if (e.scale) o.scale = gather<E, L>(e.scale, c, one, count);
  if (e.bias) o.bias = gather<E, L>(e.bias, c, one, count);
  if (e.slope) o.slope = gather<E, L>(e.slope, c * e.slope_c, one * e.slope_c, count);
  if (e.gate) o.gate = gather<E, L>(e.gate, n * e.gate_n + c * e.gate_c, one * e.gate_c, count);
  return o;
}

template <class E, Activation kActivation>
[[gnu::noinline]] void finish(const Finish<Acc<E>>& t) {
  using S = Acc<E>;
  constexpr int L = lanes<S>();
  const Epilogue& e = *t.epilogue;
  auto place = [&](int64_t c) { return t.shuffle == 1 ? c : shuffled(c, t.channels, t.shuffle); };
  const bool lanes = t.lanes_are_channels, residual = t.residual, first = residual && e.residual_first;
  const int64_t y_lane = lanes ? t.y_channel : t.y_pixel, r_lane = lanes ? t.residual_channel : t.residual_pixel;
  for (int64_t column = 0; column < t.columns; column += L) {
    const int64_t count = t.columns - column;
    auto of = of_channels<E, L>(e, t.n, t.channel + (lanes ? column : 0), lanes, count);
    for (int64_t row = 0; row < t.rows; ++row) {
      const int64_t c = t.channel + (lanes ? column : row), pixel = lanes ? row : column;
      if (!lanes && row > 0) of = of_channels<E, L>(e, t.n, c, false, count);
      Vec<S, L> z = load_up_to<L>(t.sums + row * t.sums_step + column, count), r{};
      if (residual) r = gather<E, L>(t.residual, c * t.residual_channel + pixel * t.residual_pixel, r_lane, count);
      if (e.scale) z = z * of.scale;
      if (e.bias) z = z + of.bias;
      if (first) z = z + r;
      z = activate<kActivation, L, S>(z, kActivation == Activation::kPrelu ? of.slope : splat<L>(S(e.alpha)));
      if (residual && !first) z = z + r;
      if (e.gate) z = z * of.gate;
      if (lanes && t.shuffle > 1) {
        for (int64_t l = 0; l < std::min<int64_t>(count, L); ++l) {
          scatter<E, 1>(t.y, place(c + l) * t.y_channel + pixel * t.y_pixel, 1, Vec<S, 1>{z[l]}, 1);
        }
      } else {
        scatter<E, L>(t.y, place(c) * t.y_channel + pixel * t.y_pixel, y_lane, z, count);
      }
    }
  }
}

template <class E>
void finish_typed(const Finish<Acc<E>>& tile) {
  with_activation(
      tile.epilogue->activation, LIGHTKERNELS_LAMBDA(auto constant) { finish<E, decltype(constant)::value>(tile); });
}

}  // namespace

void finish_tile(DType dtype, const Finish<float>& tile) {
  if (dtype == DType::kFloat16) return finish_typed<Half>(tile);
  if (dtype == DType::kBFloat16) return finish_typed<BFloat16>(tile);
  finish_typed<float>(tile);
}
void finish_tile(DType, const Finish<double>& tile) { finish_typed<double>(tile); }

}  // namespace lightkernels::cpu
