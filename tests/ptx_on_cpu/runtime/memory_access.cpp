// Instructions that read and write memory: loads, stores, atomics, asynchronous copies, generic addresses.
#include <cstring>

#include "lanewise.h"

namespace ptx {
namespace {

// Addresses of the lanes: register o[at] plus the displacement, in the space's own numbering.
struct Addresses {
  uint64_t a[kLanes];
  Addresses(const Warp& w, const Instruction& i, uint32_t operand) {
    // o[15]: bytes of the address register, 4 or 8; 0: there is none, the displacement is all.
    if (i.o[15] == 4) {
      const uint32_t* r = w.in<uint32_t>(operand);
      for (int l = 0; l < kLanes; ++l) a[l] = uint32_t(r[l] + i.immediate);
    } else if (i.o[15] == 8) {
      const uint64_t* r = w.in<uint64_t>(operand);
      for (int l = 0; l < kLanes; ++l) a[l] = r[l] + i.immediate;
    } else {
      for (int l = 0; l < kLanes; ++l) a[l] = i.immediate;
    }
    // A register may hold a generic address of what the instruction says is shared, or local: take the window off.
    if (i.space != Space::kGeneric && i.space != Space::kGlobal) {
      for (uint64_t& x : a) x &= kWindow - 1;
    }
  }
};

// o[0 .. vector - 1] = memory at o[14].
void load(Block& block, Warp& w, const Instruction& i) {
  const Addresses at(w, i, i.o[14]);
  uint8_t* where[kLanes];
  const uint32_t bytes = i.bytes * i.vector;
  const Mask good = reach(block, w, i, i.space, at.a, bytes, Access::kLoad, where);
  Data data;
  for_lanes(w.mask, [&](int l) {
    if (good >> l & 1)
      std::memcpy(data[l], where[l], bytes);
    else
      std::memset(data[l], 0xff, bytes);
  });
  for (int k = 0; k < i.vector; ++k) {
    uint8_t* to = w.out<uint8_t>(i.o[k]);
    for_lanes(w.mask, [&](int l) {
      uint64_t value = 0;
      std::memcpy(&value, data[l] + k * i.bytes, i.bytes);
      if (i.is_signed && i.bytes < 8) value = uint64_t(int64_t(value << (64 - 8 * i.bytes)) >> (64 - 8 * i.bytes));
      std::memcpy(to + l * i.reg_bytes, &value, i.reg_bytes);
    });
  }
}

// Memory at o[14] = o[0 .. vector - 1].
void store(Block& block, Warp& w, const Instruction& i) {
  const Addresses at(w, i, i.o[14]);
  uint8_t* where[kLanes];
  Data data;
  for (int k = 0; k < i.vector; ++k) {
    const uint8_t* from = w.in<uint8_t>(i.o[k]);
    for_lanes(w.mask, [&](int l) { std::memcpy(data[l] + k * i.bytes, from + l * i.reg_bytes, i.bytes); });
  }
  reach(block, w, i, i.space, at.a, i.bytes * i.vector, Access::kStore, where, &data);
}
const Register access_[] = {{"load", load}, {"store", store}};

// --- atomics: old value into o[0], memory at o[14], operands o[1], o[2]; lane after lane ---

template <class T, auto f>
void atomic(Block& block, Warp& w, const Instruction& i) {
  const Addresses at(w, i, i.o[14]);
  uint8_t* where[kLanes];
  const uint32_t n = i.vector;
  const Mask good = reach(block, w, i, i.space, at.a, sizeof(T) * n, Access::kAtomic, where);
  for (uint32_t k = 0; k < n; ++k) {
    const T *b = w.in<T>(i.o[n + k]), *c = i.mode ? w.in<T>(i.o[2 * n + k]) : b;  // mode: it has a third operand
    T* d = w.out<T>(i.o[k]);
    for_lanes(w.mask, [&](int l) {
      if (!(good >> l & 1)) return;
      T old, operand = b[l], other = c[l];
      std::memcpy(&old, where[l] + k * sizeof(T), sizeof(T));
      const T value = f(old, operand, other);
      std::memcpy(where[l] + k * sizeof(T), &value, sizeof(T));
      d[l] = old;
    });
  }
}

constexpr auto plus = []<class T>(T a, T b, T) -> T {
  if constexpr (is_pair<T>) {
    return {rounded<decltype(a.low)>(double(float(a.low)) + float(b.low)),
            rounded<decltype(a.low)>(double(float(a.high)) + float(b.high))};
  } else if constexpr (is_half<T>) {
    return T::round(double(float(a)) + float(b));
  } else if constexpr (std::is_integral_v<T>) {
    return T(std::make_unsigned_t<T>(a) + std::make_unsigned_t<T>(b));
  } else {
    return a + b;
  }
};
constexpr auto least = []<class T>(T a, T b, T) -> T { return b < a ? b : a; };
constexpr auto most = []<class T>(T a, T b, T) -> T { return a < b ? b : a; };
constexpr auto both = []<class T>(T a, T b, T) -> T { return a & b; };
constexpr auto either = []<class T>(T a, T b, T) -> T { return a | b; };
constexpr auto differ = []<class T>(T a, T b, T) -> T { return a ^ b; };
constexpr auto exchange = []<class T>(T, T b, T) -> T { return b; };
constexpr auto compare_and_swap = []<class T>(T a, T expected, T b) -> T { return a == expected ? b : a; };
constexpr auto increment = [](u32 a, u32 limit, u32) -> u32 { return a >= limit ? 0 : a + 1; };
constexpr auto decrement = [](u32 a, u32 limit, u32) -> u32 { return a == 0 || a > limit ? limit : a - 1; };

template <auto f, class... T>
void register_atomics(const char* op) {
  (Register(std::string("atom.") + op + "." + name_of<T>, atomic<T, f>), ...);
}
const bool atomics_ =
    (register_atomics<plus, u32, s32, u64, s64, f16, bf16, f16x2, bf16x2, f32, f64>("add"),
     register_atomics<least, u32, s32, u64, s64>("min"), register_atomics<most, u32, s32, u64, s64>("max"),
     register_atomics<both, u32, u64>("and"), register_atomics<either, u32, u64>("or"),
     register_atomics<differ, u32, u64>("xor"), register_atomics<exchange, u32, u64>("exch"),
     register_atomics<compare_and_swap, u16, u32, u64>("cas"), register_atomics<increment, u32>("inc"),
     register_atomics<decrement, u32>("dec"), true);

// --- cp.async: read at once, written to shared memory when it is waited for ---

template <class F>
void for_cells(Block& block, const Copy& copy, F&& f) {
  const uint64_t begin = copy.to - block.shared.data(), granule = block.kernel.shared_granule;
  for (uint64_t b = begin / granule; b < (begin + copy.size) / granule; ++b) f(block.shared_cells[b]);
}

// Shared o[0] + immediate, global o[1] (+ o[4], a number), i.bytes; o[2] the bytes to read (the rest is 0), or kNone.
void copy_async(Block& block, Warp& w, const Instruction& i) {
  const Addresses to(w, i, i.o[0]);
  const uint64_t* r = w.in<uint64_t>(i.o[1]);
  uint64_t from[kLanes];
  Mask reads = 0;
  for_lanes(w.mask, [&](int l) {
    from[l] = r[l] + int32_t(i.o[4]);
    if (i.o[2] == kNone || w.in<uint32_t>(i.o[2])[l] > 0) reads |= 1u << l;
    // A part of the bytes must lie as all of them would.
    if (i.o[2] != kNone && w.in<uint32_t>(i.o[2])[l] < i.bytes && (from[l] & (i.bytes - 1))) {
      block.find(w, Kind::kMisaligned, i, l,
                 "copies from an address that " + std::to_string(i.bytes) + " does not divide");
    }
  });
  uint8_t* where[kLanes];
  const Mask all = w.mask;
  w.mask = reads;
  // What is not read need not exist; of a part, the hardware reads no more either.
  Mask good = 0;
  if (reads) {
    const uint32_t part = i.o[2] == kNone ? i.bytes : w.in<uint32_t>(i.o[2])[__builtin_ctz(reads)];
    bool alike = true;
    for_lanes(reads, [&](int l) { alike &= i.o[2] == kNone || w.in<uint32_t>(i.o[2])[l] == part; });
    if (alike && !(part & (part - 1))) {
      good = reach(block, w, i, Space::kGlobal, from, std::min<uint32_t>(part, i.bytes), Access::kLoad, where);
    } else {
      for_lanes(reads, [&](int l) {
        w.mask = 1u << l;
        for (uint32_t b = 0; b < std::min<uint32_t>(w.in<uint32_t>(i.o[2])[l], i.bytes); ++b) {
          uint64_t byte[kLanes];
          uint8_t* there[kLanes];
          byte[l] = from[l] + b;
          if (reach(block, w, i, Space::kGlobal, byte, 1, Access::kLoad, there) && b == 0)
            where[l] = there[l], good |= 1u << l;
        }
      });
    }
  }
  w.mask = all;
  uint8_t* to_where[kLanes];
  for_lanes(reach(block, w, i, Space::kShared, to.a, i.bytes, Access::kStore, to_where), [&](int l) {
    Copy copy{to_where[l], l, w.committed[l], i.bytes, {}};
    const uint32_t size = i.o[2] == kNone ? i.bytes : std::min<uint32_t>(w.in<uint32_t>(i.o[2])[l], i.bytes);
    if (good >> l & 1) std::memcpy(copy.bytes.data(), where[l], size);
    w.copies.push_back(copy);
    for_cells(block, copy,
              [](Cell& cell) { cell.written = 0; });  // from now on it is neither what it was nor what comes
  });
}

void commit_copies(Block&, Warp& w, const Instruction&) {
  for_lanes(w.mask, [&](int l) { ++w.committed[l]; });
}

// Lands each lane's copies but those of its last i.immediate groups; mode 1: all of them.
void wait_for_copies(Block& block, Warp& w, const Instruction& i) {
  std::erase_if(w.copies, [&](const Copy& copy) {
    const bool lands = w.mask >> copy.lane & 1 && (i.mode || copy.group + i.immediate < w.committed[copy.lane]);
    if (!lands) return false;
    std::memcpy(copy.to, copy.bytes.data(), copy.size);
    for_cells(block, copy, [&](Cell& cell) {
      cell.written = 0xff, cell.write_stamp = block.memory.stamp, cell.atomic = false;
      cell.writer = (w.index * kLanes + copy.lane) << 16 | (w.sync & 0xffff);
    });
    return true;
  });
}
const Register copies_[] = {
    {"cp.async", copy_async}, {"cp.async.commit", commit_copies}, {"cp.async.wait", wait_for_copies}};

// --- generic addresses ---

uint64_t window_of(Space space) {
  return space == Space::kShared  ? kSharedWindow
         : space == Space::kLocal ? kLocalWindow
         : space == Space::kParam ? kParamWindow
                                  : 0;
}
// Mode 0: to generic; 1: from generic.
void convert_address(Block&, Warp& w, const Instruction& i) {
  const uint64_t window = window_of(i.space);
  for_lanes(w.mask, [&](int l) {
    uint64_t a = 0;
    std::memcpy(&a, w.in<uint8_t>(i.o[1]) + l * i.bytes, i.bytes);
    a = i.mode ? (window ? a & (kWindow - 1) : a) : a | window;
    std::memcpy(w.out<uint8_t>(i.o[0]) + l * i.reg_bytes, &a, i.reg_bytes);
  });
}
void is_space(Block&, Warp& w, const Instruction& i) {
  Mask truth = 0;
  for (int l = 0; l < kLanes; ++l) {
    const uint64_t a = w.in<uint64_t>(i.o[1])[l] & ~(kWindow - 1);
    const uint64_t window = window_of(i.space);
    truth |= Mask(window ? a == window : a < kSharedWindow) << l;
  }
  w.set_predicate(i.o[0], truth);
}
const Register generic_[] = {{"cvta", convert_address}, {"isspacep", is_space}};

void nothing(Block&, Warp&, const Instruction&) {}
const Register nothing_("nothing", nothing);

}  // namespace
}  // namespace ptx
