// Integer arithmetic, bits, selection, comparison.
#include <limits>

#include "lanewise.h"

namespace ptx {
namespace {

// --- arithmetic ---

template <class T>
using Unsigned = std::make_unsigned_t<T>;
template <class T>
using Wide = std::conditional_t<sizeof(T) == 8, std::conditional_t<std::is_signed_v<T>, __int128, unsigned __int128>,
                                std::conditional_t<sizeof(T) == 4, std::conditional_t<std::is_signed_v<T>, s64, u64>,
                                                   std::conditional_t<std::is_signed_v<T>, s32, u32>>>;

constexpr auto add = []<class T>(T a, T b) { return T(Unsigned<T>(a) + Unsigned<T>(b)); };
constexpr auto sub = []<class T>(T a, T b) { return T(Unsigned<T>(a) - Unsigned<T>(b)); };
constexpr auto mul_lo = []<class T>(T a, T b) { return T(Wide<T>(a) * Wide<T>(b)); };
constexpr auto mul_hi = []<class T>(T a, T b) { return T((Wide<T>(a) * Wide<T>(b)) >> (8 * sizeof(T))); };
constexpr auto mad_lo = []<class T>(T a, T b, T c) { return T(Wide<T>(a) * Wide<T>(b) + Wide<T>(c)); };
constexpr auto mad_hi = []<class T>(T a, T b, T c) { return add(mul_hi(a, b), c); };
// Division by zero is not defined by PTX; GPUs give all bits set.
constexpr auto divide = []<class T>(T a, T b) {
  if (b == 0) return T(~T(0));
  if (std::is_signed_v<T> && b == T(-1)) return sub(T(0), a);
  return T(a / b);
};
constexpr auto remainder = []<class T>(T a, T b) {
  if (b == 0) return a;
  if (std::is_signed_v<T> && b == T(-1)) return T(0);
  return T(a % b);
};
constexpr auto minimum = []<class T>(T a, T b) { return b < a ? b : a; };
constexpr auto maximum = []<class T>(T a, T b) { return a < b ? b : a; };
constexpr auto negate = []<class T>(T a) { return sub(T(0), a); };
constexpr auto absolute = []<class T>(T a) { return a < 0 ? sub(T(0), a) : a; };
constexpr auto saturating_add = [](s32 a, s32 b) {
  return s32(std::min<s64>(std::max<s64>(s64(a) + b, INT32_MIN), INT32_MAX));
};
constexpr auto saturating_sub = [](s32 a, s32 b) {
  return s32(std::min<s64>(std::max<s64>(s64(a) - b, INT32_MIN), INT32_MAX));
};
constexpr auto difference = []<class T>(T a, T b, T c) { return add(T(a < b ? sub(b, a) : sub(a, b)), c); };

#define PTX_INTEGERS u16, s16, u32, s32, u64, s64
const ForTypes<add, 2, PTX_INTEGERS> add_("add");
const ForTypes<sub, 2, PTX_INTEGERS> sub_("sub");
const ForTypes<mul_lo, 2, PTX_INTEGERS> mul_lo_("mul.lo");
const ForTypes<mul_hi, 2, PTX_INTEGERS> mul_hi_("mul.hi");
const ForTypes<mad_lo, 3, PTX_INTEGERS> mad_lo_("mad.lo");
const ForTypes<mad_hi, 3, PTX_INTEGERS> mad_hi_("mad.hi");
const ForTypes<divide, 2, PTX_INTEGERS> div_("div");
const ForTypes<remainder, 2, PTX_INTEGERS> rem_("rem");
const ForTypes<minimum, 2, PTX_INTEGERS> min_("min");
const ForTypes<maximum, 2, PTX_INTEGERS> max_("max");
const ForTypes<negate, 1, s16, s32, s64> neg_("neg");
const ForTypes<absolute, 1, s16, s32, s64> abs_("abs");
const ForTypes<difference, 3, PTX_INTEGERS> sad_("sad");
const Register add_sat_("add.sat.s32", lanewise<saturating_add, s32, s32, s32>);
const Register sub_sat_("sub.sat.s32", lanewise<saturating_sub, s32, s32, s32>);

template <class T, class W>
void register_wide() {
  static constexpr auto mul = [](T a, T b) { return W(W(a) * W(b)); };
  static constexpr auto mad = [](T a, T b, W c) { return add(W(W(a) * W(b)), c); };
  Register(std::string("mul.wide.") + name_of<T>, lanewise<mul, W, T, T>);
  Register(std::string("mad.wide.") + name_of<T>, lanewise<mad, W, T, T, W>);
}
const bool wide_ =
    (register_wide<u16, u32>(), register_wide<s16, s32>(), register_wide<u32, u64>(), register_wide<s32, s64>(), true);

// --- with carry: mode bit 0 takes it, bit 1 gives it ---

template <class T, int kind>  // 0 add, 1 sub, 2 mad.lo, 3 mad.hi
void carrying(Block&, Warp& w, const Instruction& i) {
  using X = unsigned __int128;
  const T *a = w.in<T>(i.o[1]), *b = w.in<T>(i.o[2]), *c = kind >= 2 ? w.in<T>(i.o[3]) : nullptr;
  T* d = w.out<T>(i.o[0]);
  Mask carry = 0;
  for_lanes(w.mask, [&](int l) {
    // A difference is a + ~b + carry: its carry is that nothing was borrowed. nvcc reads it so (addc after sub.cc).
    const X in = (i.mode & 1) ? (w.carry >> l & 1) ^ (kind == 1) : 0;
    X sum;
    if (kind == 0) sum = X(a[l]) + b[l] + in;
    if (kind == 1) sum = X(a[l]) - b[l] - in;
    if (kind == 2) sum = X(T(X(a[l]) * b[l])) + c[l] + in;
    if (kind == 3) sum = X(T(X(a[l]) * b[l] >> (8 * sizeof(T)))) + c[l] + in;
    d[l] = T(sum);
    carry |= (Mask(sum >> (8 * sizeof(T)) & 1) ^ (kind == 1)) << l;
  });
  if (i.mode & 2) w.carry = (w.carry & ~w.mask) | carry;
}
const Register carry_[] = {{"add.cc.u32", carrying<u32, 0>},    {"add.cc.u64", carrying<u64, 0>},
                           {"sub.cc.u32", carrying<u32, 1>},    {"sub.cc.u64", carrying<u64, 1>},
                           {"mad.lo.cc.u32", carrying<u32, 2>}, {"mad.lo.cc.u64", carrying<u64, 2>},
                           {"mad.hi.cc.u32", carrying<u32, 3>}, {"mad.hi.cc.u64", carrying<u64, 3>}};

// --- bits ---

constexpr auto bit_and = []<class T>(T a, T b) { return T(a & b); };
constexpr auto bit_or = []<class T>(T a, T b) { return T(a | b); };
constexpr auto bit_xor = []<class T>(T a, T b) { return T(a ^ b); };
constexpr auto bit_not = []<class T>(T a) { return T(~a); };
const ForTypes<bit_and, 2, u16, u32, u64> and_("and");
const ForTypes<bit_or, 2, u16, u32, u64> or_("or");
const ForTypes<bit_xor, 2, u16, u32, u64> xor_("xor");
const ForTypes<bit_not, 1, u16, u32, u64> not_("not");

// Amounts beyond the width shift everything out.
constexpr auto left = []<class T>(T a, u32 n) { return n < 8 * sizeof(T) ? T(a << n) : T(0); };
constexpr auto right = []<class T>(T a, u32 n) {
  return T(a >> std::min<u32>(n, 8 * sizeof(T) - 1) >> (n >= 8 * sizeof(T)));
};
template <class... T>
void register_shifts() {
  ((Register(std::string("shl.") + name_of<T>, lanewise<left, T, T, u32>),
    Register(std::string("shr.") + name_of<T>, lanewise<right, T, T, u32>)),
   ...);
}
const bool shifts_ = (register_shifts<PTX_INTEGERS>(), true);

constexpr auto funnel_left = [](u32 low, u32 high, u32 n) { return u32((u64(high) << 32 | low) << n >> 32); };
constexpr auto funnel_right = [](u32 low, u32 high, u32 n) { return u32((u64(high) << 32 | low) >> n); };
constexpr auto left_wrap = [](u32 a, u32 b, u32 n) { return funnel_left(a, b, n & 31); };
constexpr auto left_clamp = [](u32 a, u32 b, u32 n) { return funnel_left(a, b, std::min(n, 32u)); };
constexpr auto right_wrap = [](u32 a, u32 b, u32 n) { return funnel_right(a, b, n & 31); };
constexpr auto right_clamp = [](u32 a, u32 b, u32 n) { return funnel_right(a, b, std::min(n, 32u)); };
const Register shf_[] = {{"shf.l.wrap.u32", lanewise<left_wrap, u32, u32, u32, u32>},
                         {"shf.l.clamp.u32", lanewise<left_clamp, u32, u32, u32, u32>},
                         {"shf.r.wrap.u32", lanewise<right_wrap, u32, u32, u32, u32>},
                         {"shf.r.clamp.u32", lanewise<right_clamp, u32, u32, u32, u32>}};

constexpr auto extract = []<class T>(T a, u32 position, u32 length) {
  constexpr u32 kBits = 8 * sizeof(T);
  position &= 0xff, length &= 0xff;
  if (!length) return T(0);
  const bool negative = std::is_signed_v<T> && (a >> std::min(position + length - 1, kBits - 1) & 1);
  const Unsigned<T> field = position < kBits ? Unsigned<T>(a) >> position : 0;
  const Unsigned<T> mask = length < kBits ? (Unsigned<T>(1) << length) - 1 : ~Unsigned<T>(0);
  // Bits beyond the value's own are copies of the sign.
  const Unsigned<T> known = position >= kBits ? 0 : position ? ~Unsigned<T>(0) >> position : ~Unsigned<T>(0);
  return T((field & mask & known) | (negative ? ~(mask & known) : 0));
};
constexpr auto insert = []<class T>(T a, T b, u32 position, u32 length) {
  constexpr u32 kBits = 8 * sizeof(T);
  position &= 0xff, length &= 0xff;
  if (!length || position >= kBits) return b;
  const T mask = T((length < kBits ? (T(1) << length) - 1 : ~T(0)) << position);
  return T((b & ~mask) | (a << position & mask));
};
template <class... T>
void register_fields() {
  (Register(std::string("bfe.") + name_of<T>, lanewise<extract, T, T, u32, u32>), ...);
}
const bool fields_ = (register_fields<u32, s32, u64, s64>(), true);
const Register bfi_[] = {{"bfi.u32", lanewise<insert, u32, u32, u32, u32, u32>},
                         {"bfi.u64", lanewise<insert, u64, u64, u64, u32, u32>}};

constexpr auto lop3 = [](const Instruction& i, u32 a, u32 b, u32 c) {
  u32 r = 0;
  for (int k = 0; k < 8; ++k) {
    if (i.immediate >> k & 1) r |= (k & 4 ? a : ~a) & (k & 2 ? b : ~b) & (k & 1 ? c : ~c);
  }
  return r;
};
const Register lop3_("lop3.u32", lanewise_of<lop3, u32, u32, u32, u32>);

// Modes: 0 none, 1 f4e, 2 b4e, 3 rc8, 4 ecl, 5 ecr, 6 rc16.
constexpr auto permute = [](const Instruction& i, u32 a, u32 b, u32 c) {
  const u64 both = u64(b) << 32 | a;
  u32 r = 0;
  for (u32 k = 0; k < 4; ++k) {
    const u32 s = c & 3;
    u32 from = 0;
    switch (i.mode) {
      case 0:
        from = c >> (4 * k);
        break;
      case 1:
        from = s + k;
        break;
      case 2:
        from = (s - k) & 7;
        break;
      case 3:
        from = s;
        break;
      case 4:
        from = std::max(s, k);
        break;
      case 5:
        from = std::min(s, k);
        break;
      case 6:
        from = (s & 1) * 2 + (k & 1);
        break;
    }
    u8 byte = u8(both >> (8 * (from & 7)));
    if (i.mode == 0 && (from & 8)) byte = byte & 0x80 ? 0xff : 0;
    r |= u32(byte) << (8 * k);
  }
  return r;
};
const Register prmt_("prmt.u32", lanewise_of<permute, u32, u32, u32, u32>);

constexpr auto count_ones = []<class T>(T a) { return u32(__builtin_popcountll(a)); };
constexpr auto leading_zeros = []<class T>(T a) {
  return a ? u32(__builtin_clzll(a) - (64 - 8 * int(sizeof(T)))) : u32(8 * sizeof(T));
};
constexpr auto reversed = []<class T>(T a) {
  T r = 0;
  for (size_t k = 0; k < 8 * sizeof(T); ++k) r |= (a >> k & 1) << (8 * sizeof(T) - 1 - k);
  return r;
};
constexpr auto find_top = []<class T>(const Instruction& i, T a) {
  Unsigned<T> v = a;
  if (std::is_signed_v<T> && a < 0) v = ~v;
  if (!v) return ~u32(0);
  const u32 at = 8 * sizeof(T) - 1 - leading_zeros(v);
  return i.mode ? u32(8 * sizeof(T) - 1 - at) : at;  // mode: how far to shift it to the top
};
const Register counts_[] = {
    {"popc.u32", lanewise<count_ones, u32, u32>},   {"popc.u64", lanewise<count_ones, u32, u64>},
    {"clz.u32", lanewise<leading_zeros, u32, u32>}, {"clz.u64", lanewise<leading_zeros, u32, u64>},
    {"brev.u32", lanewise<reversed, u32, u32>},     {"brev.u64", lanewise<reversed, u64, u64>},
    {"bfind.u32", lanewise_of<find_top, u32, u32>}, {"bfind.s32", lanewise_of<find_top, u32, s32>},
    {"bfind.u64", lanewise_of<find_top, u32, u64>}, {"bfind.s64", lanewise_of<find_top, u32, s64>}};

// --- moving and selecting: only widths count ---

constexpr auto same = []<class T>(T a) { return a; };
const ForTypes<same, 1, u8, u16, u32, u64> mov_("mov");

template <class T>
void select(Block&, Warp& w, const Instruction& i) {
  const T *a = w.in<T>(i.o[1]), *b = w.in<T>(i.o[2]);
  const Mask p = w.predicate(i.o[3]);
  T* d = w.out<T>(i.o[0]);
  for_lanes(w.mask, [&](int l) { d[l] = p >> l & 1 ? a[l] : b[l]; });
}
const Register selp_[] = {{"selp.u16", select<u16>}, {"selp.u32", select<u32>}, {"selp.u64", select<u64>}};

template <class T, class C>
void select_by_sign(Block&, Warp& w, const Instruction& i) {
  each_lane<T, T, T, C>(w, i, [](T a, T b, C c) { return c >= 0 ? a : b; });
}
const Register slct_[] = {{"slct.u32.s32", select_by_sign<u32, s32>},
                          {"slct.u64.s32", select_by_sign<u64, s32>},
                          {"slct.u32.f32", select_by_sign<u32, f32>},
                          {"slct.u64.f32", select_by_sign<u64, f32>}};

// One register of `bytes` from i.vector smaller ones, and back. Lowest first.
template <class T>
void pack(Block&, Warp& w, const Instruction& i) {
  const int part = sizeof(T) / i.vector;
  for_lanes(w.mask, [&](int l) {
    T r = 0;
    for (int k = 0; k < i.vector; ++k) {
      const T piece = part == 1   ? w.in<u8>(i.o[1 + k])[l]
                      : part == 2 ? w.in<u16>(i.o[1 + k])[l]
                                  : w.in<u32>(i.o[1 + k])[l];
      r |= piece << (8 * part * k);
    }
    w.out<T>(i.o[0])[l] = r;
  });
}
template <class T>
void unpack(Block&, Warp& w, const Instruction& i) {
  const int part = sizeof(T) / i.vector;
  T value[kLanes];
  std::memcpy(value, w.in<T>(i.o[i.vector]), sizeof value);  // it may be one of those written
  for_lanes(w.mask, [&](int l) {
    for (int k = 0; k < i.vector; ++k) {
      const T piece = value[l] >> (8 * part * k);
      if (part == 1) w.out<u8>(i.o[k])[l] = u8(piece);
      if (part == 2) w.out<u16>(i.o[k])[l] = u16(piece);
      if (part == 4) w.out<u32>(i.o[k])[l] = u32(piece);
    }
  });
}
const Register pack_[] = {{"pack.u16", pack<u16>},     {"pack.u32", pack<u32>},     {"pack.u64", pack<u64>},
                          {"unpack.u16", unpack<u16>}, {"unpack.u32", unpack<u32>}, {"unpack.u64", unpack<u64>}};

// --- predicates, a bit for each lane ---

template <auto f>
void predicates(Block&, Warp& w, const Instruction& i) {
  w.set_predicate(i.o[0], f(w.predicate(i.o[1]), w.predicate(i.o[2])));
}
void not_predicate(Block&, Warp& w, const Instruction& i) { w.set_predicate(i.o[0], ~w.predicate(i.o[1])); }
void mov_predicate(Block&, Warp& w, const Instruction& i) { w.set_predicate(i.o[0], w.predicate(i.o[1])); }
const Register predicates_[] = {{"and.pred", predicates<bit_and>},
                                {"or.pred", predicates<bit_or>},
                                {"xor.pred", predicates<bit_xor>},
                                {"not.pred", not_predicate},
                                {"mov.pred", mov_predicate}};

// --- comparison ---

// Mode: bits 0-2 are true for less, equal, greater, bit 3 for unordered; bits 4-5 combine with predicate o[4]: 1 and, 2
// or, 3 xor; bit 6 negates that predicate; bit 7: subnormals are zeros. o[0] is the result, o[1] its opposite (combined
// alike) or kNone.
template <class T>
void compare(Block&, Warp& w, const Instruction& i) {
  const T *a = w.in<T>(i.o[2]), *b = w.in<T>(i.o[3]);
  Mask truth = 0;
  for (int l = 0; l < kLanes; ++l) {
    using C = std::conditional_t<is_half<T>, float, T>;
    C x = a[l], y = b[l];
    if constexpr (std::is_same_v<C, float>) {
      constexpr float kLeast = std::is_same_v<T, f16> ? 0x1p-14f : 0x1p-126f;
      if ((i.mode & 128) && std::fabs(x) < kLeast) x = 0;
      if ((i.mode & 128) && std::fabs(y) < kLeast) y = 0;
    }
    const int relation = x < y ? 1 : x == y ? 2 : x > y ? 4 : 8;
    truth |= Mask((i.mode & relation) != 0) << l;
  }
  Mask opposite = ~truth;
  if (const int how = i.mode >> 4 & 3) {
    const Mask with = w.predicate(i.o[4]) ^ (i.mode & 64 ? kAll : 0);
    auto combine = [&](Mask m) { return how == 1 ? m & with : how == 2 ? m | with : m ^ with; };
    truth = combine(truth), opposite = combine(opposite);
  }
  w.set_predicate(i.o[0], truth);
  if (i.o[1] != kNone) w.set_predicate(i.o[1], opposite);
}
template <class... T>
void register_comparisons() {
  (Register(std::string("setp.") + name_of<T>, compare<T>), ...);
}
const bool comparisons_ = (register_comparisons<PTX_INTEGERS, f16, bf16, f32, f64>(), true);

// set: a predicate as a number. Mode: what true is in o[0], 0 all bits, 1 one as float.
void spread(Block&, Warp& w, const Instruction& i) {
  const Mask p = w.predicate(i.o[1]);
  for_lanes(w.mask, [&](int l) { w.out<u32>(i.o[0])[l] = p >> l & 1 ? (i.mode ? bits<u32>(1.f) : ~u32(0)) : 0; });
}
const Register spread_("spread.u32", spread);

}  // namespace
}  // namespace ptx
