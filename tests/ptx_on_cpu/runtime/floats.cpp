// Floating-point arithmetic in every width, and packed.
//
// What GPUs approximate is computed here to half a unit, which is inside the error that PTX documents.
#include <bit>

#include "lanewise.h"

namespace ptx {
namespace {

// f on numbers of any format: halves go through double, which holds their sums and products, and are rounded once.
template <auto f>
struct OnFormat {
  template <class T, class... More>
  constexpr T operator()(T a, More... more) const {
    if constexpr (is_pair<T>) {
      return {(*this)(a.low, more.low...), (*this)(a.high, more.high...)};
    } else if constexpr (is_half<T>) {
      return T::round(f(double(float(a)), double(float(more))...));
    } else {
      return T(f(a, more...));
    }
  }
};

constexpr auto add = [](auto a, auto b) { return a + b; };
constexpr auto sub = [](auto a, auto b) { return a - b; };
constexpr auto mul = [](auto a, auto b) { return a * b; };
constexpr auto fused = [](auto a, auto b, auto c) { return std::fma(a, b, c); };
// One number and a NaN give the number.
constexpr auto minimum = [](auto a, auto b) {
  return a != a ? b : b != b ? a : std::signbit(a) != std::signbit(b) ? (std::signbit(a) ? a : b) : b < a ? b : a;
};
constexpr auto maximum = [](auto a, auto b) {
  return a != a ? b : b != b ? a : std::signbit(a) != std::signbit(b) ? (std::signbit(a) ? b : a) : a < b ? b : a;
};
constexpr auto minimum_nan = [](auto a, auto b) { return a != a || b != b ? decltype(a)(NAN) : minimum(a, b); };
constexpr auto maximum_nan = [](auto a, auto b) { return a != a || b != b ? decltype(a)(NAN) : maximum(a, b); };

// Halves' fma: their product is exact in double, the sum must not be rounded twice.
struct Fused {
  template <class T>
  constexpr T operator()(T a, T b, T c) const {
    if constexpr (is_pair<T>) {
      return {(*this)(a.low, b.low, c.low), (*this)(a.high, b.high, c.high)};
    } else if constexpr (is_half<T>) {
      return T::round(sum_to_odd(double(float(a)) * double(float(b)), float(c)));
    } else {
      return std::fma(a, b, c);
    }
  }
};

// Rounded towards 0, down, up, in float32: sums and products are known to more digits in double, the last of them odd.
template <auto f, Rounding r, bool kFlush>
constexpr auto to_a_side = [](auto... a) {
  const f32 z = directed<f32>(f(double(kFlush ? flushed(a) : a)...), r);
  return kFlush ? flushed(z) : z;
};
// A sum that cancels is -0 where it is rounded down.
template <Rounding r>
double exact_sum(double a, double b) {
  const double s = sum_to_odd(a, b);
  return r == kDown && s == 0 && (std::signbit(a) || std::signbit(b)) ? -0.0 : s;
}
template <Rounding r>
constexpr auto exact_add = [](double a, double b) { return exact_sum<r>(a, b); };
template <Rounding r>
constexpr auto exact_sub = [](double a, double b) { return exact_sum<r>(a, -b); };
template <Rounding r>
constexpr auto exact_fma = [](double a, double b, double c) { return exact_sum<r>(a * b, c); };
// Quotients and roots of floats lie too far from a float for double to round them to it.
constexpr auto divide = [](auto a, auto b) { return a / b; };
constexpr auto reciprocal = [](auto a) { return 1 / a; };
constexpr auto root = [](auto a) { return std::sqrt(a); };
template <Rounding r>
void register_side(const std::string& end) {
  auto both = [&]<auto f, int N>(const char* op) {
    ForTypes<to_a_side<f, r, false>, N, f32>{op + end};
    ForTypes<to_a_side<f, r, true>, N, f32>{op + end + ".ftz"};
  };
  both.template operator()<exact_add<r>, 2>("add");
  both.template operator()<exact_sub<r>, 2>("sub");
  both.template operator()<mul, 2>("mul");
  both.template operator()<exact_fma<r>, 3>("fma");
  both.template operator()<divide, 2>("div");
  both.template operator()<reciprocal, 1>("rcp");
  both.template operator()<root, 1>("sqrt");
}
const bool sides_ = (register_side<kZero>(".rz"), register_side<kDown>(".rm"), register_side<kUp>(".rp"), true);

// Signs are changed in the bits, NaN or not.
struct Negate {
  template <class T>
  constexpr T operator()(T a) const {
    if constexpr (is_pair<T>)
      return {(*this)(a.low), (*this)(a.high)};
    else if constexpr (is_half<T>)
      return {u16(a.raw ^ 0x8000)};
    else
      return -a;
  }
};
struct Absolute {
  template <class T>
  constexpr T operator()(T a) const {
    if constexpr (is_pair<T>)
      return {(*this)(a.low), (*this)(a.high)};
    else if constexpr (is_half<T>)
      return {u16(a.raw & 0x7fff)};
    else
      return std::fabs(a);
  }
};

template <auto f>
constexpr auto flushing_halves = [](auto... a) { return flushed(f(flushed(a)...)); };

// f with subnormals flushed, and saturated to [0, 1]: for float32.
template <auto f, bool kFlush, bool kSaturate>
constexpr auto flushing = [](auto... a) {
  f32 r = kFlush ? f32(f(flushed(a)...)) : f32(f(a...));
  if (kFlush) r = flushed(r);
  return kSaturate ? saturated(r) : r;
};

// `op` for all formats; for float32 with .ftz and .sat too.
template <auto f, int N>
struct Everywhere {
  explicit Everywhere(const std::string& op) {
    ForTypes<f, N, f16, bf16, f16x2, bf16x2, f32, f64, f32x2>{op};
    ForTypes<flushing<f, true, false>, N, f32>{op + ".ftz"};
    ForTypes<flushing<f, false, true>, N, f32>{op + ".sat"};
    ForTypes<flushing<f, true, true>, N, f32>{op + ".ftz.sat"};
    ForTypes<flushing_halves<f>, N, f16, f16x2>{op + ".ftz"};
  }
};
const Everywhere<OnFormat<add>{}, 2> add_("add");
const Everywhere<OnFormat<sub>{}, 2> sub_("sub");
const Everywhere<OnFormat<mul>{}, 2> mul_("mul");
const Everywhere<Fused{}, 3> fma_("fma");
const Everywhere<OnFormat<minimum>{}, 2> min_("min");
const Everywhere<OnFormat<maximum>{}, 2> max_("max");
const Everywhere<OnFormat<minimum_nan>{}, 2> min_nan_("min.nan");
const Everywhere<OnFormat<maximum_nan>{}, 2> max_nan_("max.nan");
const Everywhere<Negate{}, 1> neg_("neg");
const Everywhere<Absolute{}, 1> abs_("abs");

template <class H>
constexpr auto fused_relu = [](H a, H b, H c) {
  const H r = Fused{}(a, b, c);
  return float(r) == float(r) ? (float(r) > 0 ? r : H{0}) : H{0x7fff};
};
const Register fma_relu_[] = {{"fma.relu.f16", lanewise<fused_relu<f16>, f16, f16, f16, f16>},
                              {"fma.relu.bf16", lanewise<fused_relu<bf16>, bf16, bf16, bf16, bf16>}};

// Halves into a float sum.
constexpr auto widened_add = [](auto a, f32 b) { return f32(float(a) + b); };
constexpr auto widened_sub = [](auto a, f32 b) { return f32(float(a) - b); };
constexpr auto widened_fma = [](auto a, auto b, f32 c) { return std::fma(float(a), float(b), c); };
template <class H>
void register_widened() {
  const std::string types = std::string("f32.") + name_of<H>;
  Register("add." + types, lanewise<widened_add, f32, H, f32>);
  Register("sub." + types, lanewise<widened_sub, f32, H, f32>);
  Register("fma." + types, lanewise<widened_fma, f32, H, H, f32>);
}
const bool widened_ = (register_widened<f16>(), register_widened<bf16>(), true);

constexpr auto reciprocal_root = [](auto a) { return decltype(a)(1 / std::sqrt(double(a))); };
constexpr auto power_of_two = [](auto a) { return std::exp2(a); };
constexpr auto log_of_two = [](auto a) { return std::log2(a); };
constexpr auto sine = [](auto a) { return std::sin(a); };
constexpr auto cosine = [](auto a) { return std::cos(a); };
constexpr auto hyperbolic = [](auto a) { return std::tanh(a); };
const Everywhere<OnFormat<divide>{}, 2> div_("div");
const Everywhere<OnFormat<reciprocal>{}, 1> rcp_("rcp");
const Everywhere<OnFormat<root>{}, 1> sqrt_("sqrt");
const Everywhere<OnFormat<reciprocal_root>{}, 1> rsqrt_("rsqrt");
const Everywhere<OnFormat<power_of_two>{}, 1> ex2_("ex2");
const Everywhere<OnFormat<log_of_two>{}, 1> lg2_("lg2");
const Everywhere<OnFormat<sine>{}, 1> sin_("sin");
const Everywhere<OnFormat<cosine>{}, 1> cos_("cos");
const Everywhere<OnFormat<hyperbolic>{}, 1> tanh_("tanh");

// Of the upper half of a's bits, and only that half: a first guess for Newton's steps, as in tanh of a double.
constexpr auto rough_reciprocal = [](f64 a) {
  auto upper = [](f64 v) {
    if (std::fpclassify(v) == FP_SUBNORMAL) return std::copysign(0.0, v);
    return v == v ? std::bit_cast<f64>(std::bit_cast<uint64_t>(v) & ~uint64_t{0xffffffff}) : v;
  };
  return upper(1 / upper(a));
};
const ForTypes<rough_reciprocal, 1, f64> rough_reciprocal_("rcp.ftz");

constexpr auto with_sign = [](auto sign, auto value) { return std::copysign(value, sign); };
const ForTypes<with_sign, 2, f32, f64> copysign_("copysign");

// Mode: 0 finite, 1 infinite, 2 number, 3 notanumber, 4 normal, 5 subnormal.
template <class T>
void test_property(Block&, Warp& w, const Instruction& i) {
  Mask truth = 0;
  for (int l = 0; l < kLanes; ++l) {
    const T x = w.in<T>(i.o[1])[l];
    const int kind = std::fpclassify(x);
    const bool is[] = {bool(std::isfinite(x)), bool(std::isinf(x)), x == x, x != x,
                       kind == FP_NORMAL,      kind == FP_SUBNORMAL};
    truth |= Mask(is[i.mode]) << l;
  }
  w.set_predicate(i.o[0], truth);
}
const Register testp_[] = {{"testp.f32", test_property<f32>}, {"testp.f64", test_property<f64>}};

}  // namespace
}  // namespace ptx
