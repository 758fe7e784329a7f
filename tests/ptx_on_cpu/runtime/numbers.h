// PTX's types as C++ ones, rounding included.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <string>
#include <type_traits>

namespace ptx {

using u8 = uint8_t;
using s8 = int8_t;
using u16 = uint16_t;
using s16 = int16_t;
using u32 = uint32_t;
using s32 = int32_t;
using u64 = uint64_t;
using s64 = int64_t;
using f32 = float;
using f64 = double;

template <class To, class From>
inline To bits(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(&to, &from, sizeof to);
  return to;
}

// The float next to d whose last bit says that d is not it ("round to odd"): rounding it again, to fewer bits, gives
// what rounding d at once would.
inline float odd_float(double d) {
  float f = static_cast<float>(d);
  if (f != d && d == d && !std::isinf(f) && !(bits<u32>(f) & 1)) {
    f = bits<float>(bits<u32>(f) + (std::fabs(d) > std::fabs(static_cast<double>(f)) ? 1 : -1));
  } else if (std::isinf(f) && !std::isinf(d)) {
    f = std::copysign(std::numeric_limits<float>::max(), f);  // its last bit is odd
  }
  return f;
}

struct f16 {
  u16 raw;
  operator float() const { return static_cast<float>(bits<_Float16>(raw)); }
  static f16 round(double d) { return {bits<u16>(static_cast<_Float16>(odd_float(d)))}; }
};

struct bf16 {
  u16 raw;
  operator float() const { return bits<float>(static_cast<u32>(raw) << 16); }
  static bf16 round(double d) {
    if (d != d) return {0x7fff};
    const u32 b = bits<u32>(odd_float(d));
    return {static_cast<u16>((b + 0x7fff + (b >> 16 & 1)) >> 16)};
  }
};

// Two of them in 32 bits.
template <class H>
struct Pair {
  H low, high;
};
using f16x2 = Pair<f16>;
using bf16x2 = Pair<bf16>;
struct f32x2 {
  f32 low, high;
};

template <class T>
constexpr bool is_half = std::is_same_v<T, f16> || std::is_same_v<T, bf16>;
template <class T>
constexpr bool is_pair = std::is_same_v<T, f16x2> || std::is_same_v<T, bf16x2> || std::is_same_v<T, f32x2>;
template <class T>
constexpr bool is_float = std::is_floating_point_v<T> || is_half<T>;

// The nearest T.
template <class T>
inline T rounded(double d) {
  if constexpr (is_half<T>) {
    return T::round(d);
  } else {
    return static_cast<T>(d);
  }
}

// a * b + c of halves with one rounding: the product is exact in double, the sum is rounded to odd.
inline double sum_to_odd(double a, double b) {
  const double s = a + b, back = s - a, error = (a - (s - back)) + (b - back);
  if (error == 0 || std::isinf(s) || s != s || (bits<u64>(s) & 1)) return s;
  return bits<double>(bits<u64>(s) + ((error > 0) == (s > 0) ? 1 : -1));
}

// How to round: a float result of fewer digits, or a result that is whole (kInt*). As decode.py numbers them.
enum Rounding : u8 { kNearest, kZero, kDown, kUp, kIntNearest, kIntZero, kIntDown, kIntUp };

// The float nearest to x in a direction.
template <class T>
inline T directed(double x, int rounding) {
  const T near = rounded<T>(x);
  if constexpr (is_half<T>) {
    const double back = float(near);
    if (rounding == kNearest || back == x || x != x) return near;
    const bool above = back > x, wants_above = rounding == kUp || (rounding == kZero && x < 0);
    if (above == wants_above) return near;
    // One step towards the other side; magnitudes are ordered as their bits are.
    if ((near.raw & 0x7fff) == 0) return {u16(above ? 0x8001 : 1)};
    return {u16(near.raw + ((above == (float(near) > 0)) ? -1 : 1))};
  } else {
    const double back = near;
    if (rounding == kNearest || back == x || x != x) return near;
    const bool above = back > x, wants_above = rounding == kUp || (rounding == kZero && x < 0);
    if (above == wants_above) return near;
    return std::nextafter(near, above ? -std::numeric_limits<T>::infinity() : std::numeric_limits<T>::infinity());
  }
}

inline f32 flushed(f32 x) { return std::fabs(x) < std::numeric_limits<f32>::min() ? std::copysign(0.f, x) : x; }
// The subnormals of .f16 are its own; bfloat16 keeps its.
inline f16 flushed(f16 x) { return x.raw & 0x7c00 ? x : f16{u16(x.raw & 0x8000)}; }
inline f16x2 flushed(f16x2 x) { return {flushed(x.low), flushed(x.high)}; }
template <class T>
inline T saturated(T x) {
  return x > T(0) ? (x < T(1) ? x : T(1)) : T(0);  // NaN gives 0
}

template <class T>
inline const char* name_of = "?";
#define PTX_NAME(T) \
  template <>       \
  inline const char* name_of<T> = #T
PTX_NAME(u8);
PTX_NAME(s8);
PTX_NAME(u16);
PTX_NAME(s16);
PTX_NAME(u32);
PTX_NAME(s32);
PTX_NAME(u64);
PTX_NAME(s64);
PTX_NAME(f16);
PTX_NAME(bf16);
PTX_NAME(f32);
PTX_NAME(f64);
PTX_NAME(f16x2);
PTX_NAME(bf16x2);
PTX_NAME(f32x2);
#undef PTX_NAME

}  // namespace ptx
