// cvt: from any number to any other.
#include "lanewise.h"

namespace ptx {
namespace {

enum : uint8_t { kSaturate = 64, kFlush = 128 };  // in i.mode, beside a Rounding

double whole(double x, int rounding) {
  switch (rounding) {
    case kIntZero:
      return std::trunc(x);
    case kIntDown:
      return std::floor(x);
    case kIntUp:
      return std::ceil(x);
    default:
      return std::nearbyint(x);
  }
}

template <class D, class S>
D converted(S s, int rounding, bool saturate, bool flush) {
  if constexpr (!is_float<D> && !is_float<S>) {
    if (!saturate) return D(s);
    using W = __int128;
    const W low = std::numeric_limits<D>::min(), high = std::numeric_limits<D>::max(), v = s;
    return D(v < low ? low : v > high ? high : v);
  } else if constexpr (!is_float<D>) {
    // Out of range goes to the closest; NaN to 0, or, where 64 bits are on either side, to the top bit alone.
    double x = double(s);
    if constexpr (std::is_same_v<S, f32>) {
      if (flush) x = flushed(s);
    }
    if (x != x) return sizeof(D) == 8 || sizeof(S) == 8 ? D(u64(1) << (8 * sizeof(D) - 1)) : D(0);
    x = whole(x, rounding);
    const double low = double(std::numeric_limits<D>::min()), high = std::ldexp(1.0, std::numeric_limits<D>::digits);
    return x <= low ? std::numeric_limits<D>::min() : x >= high ? std::numeric_limits<D>::max() : D(x);
  } else if constexpr (!is_float<S>) {
    if (rounding == kNearest) {
      if constexpr (std::is_same_v<D, f32> || std::is_same_v<D, f64>) return D(s);
    }
    // Of 64 bits, double may not hold all: what is left over decides, in a last bit that is odd or in one step more.
    double x = double(s);
    const __int128 over = x >= 0x1p63 && sizeof(S) == 8 ? __int128(s) - __int128(x) : __int128(s) - __int128(s64(x));
    if constexpr (std::is_same_v<D, f64>) {
      const bool above = over < 0, wants_above = rounding == kUp || (rounding == kZero && s < 0);
      return !over || above == wants_above ? x : std::nextafter(x, above ? -INFINITY : INFINITY);
    }
    if (over && !(bits<u64>(x) & 1)) x = std::nextafter(x, over < 0 ? -INFINITY : INFINITY);
    return directed<D>(x, rounding);
  } else {
    double x;
    if constexpr (is_half<S>)
      x = float(s);
    else
      x = s;
    if constexpr (std::is_same_v<S, f32>) {
      if (flush) x = flushed(s);
    }
    if (rounding >= kIntNearest) x = whole(x, rounding);
    D d = directed<D>(x, rounding >= kIntNearest ? kNearest : rounding);
    if constexpr (std::is_same_v<D, f32>) {
      if (flush) d = flushed(d);
    }
    if (saturate) {
      const double clipped = x > 0 ? x < 1 ? x : 1 : 0;
      d = directed<D>(clipped, rounding >= kIntNearest ? kNearest : rounding);
    }
    return d;
  }
}

// i.reg_bytes is the result's register, i.bytes the source's: both may be wider than the types.
template <class D, class S>
void convert(Block&, Warp& w, const Instruction& i) {
  const int rounding = i.mode & 15;
  const bool saturate = i.mode & kSaturate, flush = i.mode & kFlush;
  const uint8_t* from = w.in<uint8_t>(i.o[1]);
  uint8_t* to = w.out<uint8_t>(i.o[0]);
  D results[kLanes];
  for_lanes(w.mask, [&](int l) {
    S s;
    std::memcpy(&s, from + l * i.bytes, sizeof s);
    results[l] = converted<D>(s, rounding, saturate, flush);
  });
  for_lanes(w.mask, [&](int l) {
    uint64_t wide;
    if constexpr (std::is_integral_v<D>) {
      wide = uint64_t(int64_t(results[l]));
      if constexpr (std::is_unsigned_v<D>) wide = results[l];
    } else {
      wide = 0;
      std::memcpy(&wide, &results[l], sizeof(D));
    }
    std::memcpy(to + l * i.reg_bytes, &wide, i.reg_bytes);
  });
}

template <class D, class... S>
void register_to() {
  (Register(std::string("cvt.") + name_of<D> + "." + name_of<S>, convert<D, S>), ...);
}
template <class... D>
void register_all() {
  (register_to<D, u8, s8, u16, s16, u32, s32, u64, s64, f16, bf16, f32, f64>(), ...);
}
const bool all_ = (register_all<u8, s8, u16, s16, u32, s32, u64, s64, f16, bf16, f32, f64>(), true);

// Two floats into one register: the first is the upper half. Mode bit 4: negative results are 0.
template <class H>
void convert_pair(Block&, Warp& w, const Instruction& i) {
  const f32 *high = w.in<f32>(i.o[1]), *low = w.in<f32>(i.o[2]);
  Pair<H>* d = w.out<Pair<H>>(i.o[0]);
  auto one = [&](f32 x) {
    if ((i.mode & 16) && x <= 0) x = 0;
    return directed<H>(x, i.mode & 15);
  };
  for_lanes(w.mask, [&](int l) { d[l] = {one(low[l]), one(high[l])}; });
}
const Register pairs_[] = {{"cvt.f16x2.f32", convert_pair<f16>}, {"cvt.bf16x2.f32", convert_pair<bf16>}};

// tf32 keeps 10 bits of the fraction. Mode 0: to the nearest, ties away from zero; 1: ties to even.
constexpr auto to_tf32 = [](const Instruction& i, u32 x) {
  if ((x & 0x7f800000) == 0x7f800000) return x;
  return (x + (i.mode ? 0xfff + (x >> 13 & 1) : 0x1000)) & ~u32(0x1fff);
};
const Register tf32_("cvt.tf32.f32", lanewise_of<to_tf32, u32, u32>);

}  // namespace
}  // namespace ptx
