// Branches, barriers, and what the lanes of a warp do together.
#include <sstream>

#include "lanewise.h"

namespace ptx {
namespace {

void go(Warp& w, Mask lanes, uint32_t target) {
  if (lanes == w.group) {
    w.next = target;
    return;
  }
  w.others.push_back({target, lanes, false});
  w.group &= ~lanes;
}
void branch(Block&, Warp& w, const Instruction& i) { go(w, w.mask, uint32_t(i.immediate)); }

// Target number o[0] of the i.vector that lie, as numbers, in the constants from o[1] on.
void branch_by_index(Block& block, Warp& w, const Instruction& i) {
  const uint32_t* index = w.in<uint32_t>(i.o[0]);
  for (Mask left = w.mask; left;) {
    const int first = __builtin_ctz(left);
    const uint32_t k = index[first];
    Mask same = 0;
    for_lanes(left, [&](int l) { same |= index[l] == k ? 1u << l : 0; });
    left &= ~same;
    uint32_t target = 0;
    if (k < i.immediate) {
      target = reinterpret_cast<const uint32_t*>(block.kernel.constants.data() + (i.o[1] & ~kConstant))[k];
    } else {
      block.find(w, Kind::kTrap, i, first, "brx.idx: no target has this index");
      w.live &= ~same, w.group &= ~same;
      continue;
    }
    go(w, same, target);
  }
}

void end(Block& block, Warp& w, const Instruction&) {
  if (w.passed & w.mask) {
    for (const Group& g : w.others) {
      const Instruction& at = block.kernel.code[g.pc];
      const int first = __builtin_ctz(g.mask);
      if (!g.waits || !(w.in<uint32_t>(at.members)[first] & w.passed & w.mask)) continue;
      block.find(
          w, Kind::kWarpSync, at, first,
          "lane " + std::to_string(__builtin_ctz(w.passed & w.mask)) + " of its mask has ended without coming to it");
    }
    w.passed &= ~w.mask;
  }
  w.live &= ~w.mask, w.group &= ~w.mask;
}

void trap(Block& block, Warp& w, const Instruction& i) {
  block.find(w, Kind::kTrap, i, __builtin_ctz(w.mask), "trap: the kernel stops itself");
  end(block, w, i);
}

// Barrier o[0], for o[1] threads (kNone: all). Mode 1 popc, 2 and, 3 or: o[2] is what becomes of all threads'
// predicates o[3]; 8: arrives and goes on.
void barrier(Block& block, Warp& w, const Instruction& i) {
  if (i.mode & 8) {
    for_lanes(w.mask, [&](int l) { ++block.arrived[w.in<uint32_t>(i.o[0])[l] % 16]; });
    return;
  }
  if (i.mode) w.votes = (w.votes & ~w.mask) | (w.predicate(i.o[3]) & w.mask);
  for_lanes(w.mask, [&](int l) {
    w.barrier_pc[l] = w.pc;
    w.barrier_id[l] = w.in<uint32_t>(i.o[0])[l];
    w.barrier_count[l] = i.o[1] == kNone ? 0 : w.in<uint32_t>(i.o[1])[l];
  });
  w.at_barrier |= w.mask;
  w.group &= ~w.mask;
}

void warp_barrier(Block&, Warp& w, const Instruction&) { ++w.sync; }

const Register control_[] = {{"bra", branch},  {"brx.idx", branch_by_index}, {"ret", end}, {"trap", trap},
                             {"bar", barrier}, {"bar.warp", warp_barrier}};

// --- lanes together: all of i.members are in w.mask ---

// shfl. Mode 0 up, 1 down, 2 bfly, 3 idx. o[0] = o[2] of another lane, o[1] whether it was in range, or kNone; o[3]
// which lane, o[4] clamp and segment. What a lane that takes no part would give is not defined.
void shuffle(Block& block, Warp& w, const Instruction& i) {
  const u32 *a = w.in<u32>(i.o[2]), *b = w.in<u32>(i.o[3]), *c = w.in<u32>(i.o[4]);
  u32 results[kLanes];
  Mask in_range = 0;
  for_lanes(w.mask, [&](int l) {
    const int lane = l, value = b[l] & 31, clamp = c[l] & 31, segment = c[l] >> 8 & 31;
    const int most = (lane & segment) | (clamp & ~segment), least = lane & segment;
    int from;
    bool valid;
    switch (i.mode) {
      case 0:
        from = lane - value, valid = from >= most;
        break;
      case 1:
        from = lane + value, valid = from <= most;
        break;
      case 2:
        from = lane ^ value, valid = from <= most;
        break;
      default:
        from = least | (value & ~segment), valid = from <= most;
    }
    if (!valid) from = lane;
    in_range |= Mask(valid) << l;
    results[l] = w.mask >> from & 1 ? a[from] : kAll;
    if (!(w.mask >> from & 1)) {
      block.find(w, Kind::kWarpSync, i, l,
                 "reads lane " + std::to_string(from) +
                     (w.exists & ~w.live & 1u << from ? ", which has ended" : ", which takes no part"));
    }
  });
  u32* d = w.out<u32>(i.o[0]);
  for_lanes(w.mask, [&](int l) { d[l] = results[l]; });
  if (i.o[1] != kNone) w.set_predicate(i.o[1], in_range);
}

// vote. Mode 0 all, 1 any, 2 uni, 3 ballot; bit 2 of the mode: the predicate o[1] is negated.
void vote(Block&, Warp& w, const Instruction& i) {
  const Mask p = (w.predicate(i.o[1]) ^ (i.mode & 4 ? kAll : 0)) & w.mask;
  switch (i.mode & 3) {
    case 0:
      return w.set_predicate(i.o[0], p == w.mask ? kAll : 0);
    case 1:
      return w.set_predicate(i.o[0], p ? kAll : 0);
    case 2:
      return w.set_predicate(i.o[0], !p || p == w.mask ? kAll : 0);
    default:
      for_lanes(w.mask, [&](int l) { w.out<u32>(i.o[0])[l] = p; });
  }
}

// match. Mode 0 any: lanes that hold the same; 1 all: all lanes if they do, else 0, and o[2] says which, or kNone.
template <class T>
void match(Block&, Warp& w, const Instruction& i) {
  const T* a = w.in<T>(i.o[1]);
  Mask same[kLanes];
  bool alike = true;
  for_lanes(w.mask, [&](int l) {
    same[l] = 0;
    for_lanes(w.mask, [&](int other) { same[l] |= Mask(a[l] == a[other]) << other; });
    alike &= same[l] == w.mask;
  });
  for_lanes(w.mask, [&](int l) { w.out<u32>(i.o[0])[l] = i.mode ? (alike ? w.mask : 0) : same[l]; });
  if (i.mode && i.o[2] != kNone) w.set_predicate(i.o[2], alike ? kAll : 0);
}

// redux.
template <class T, auto f>
void reduce(Block&, Warp& w, const Instruction& i) {
  const T* a = w.in<T>(i.o[1]);
  T r = a[__builtin_ctz(w.mask)];
  for_lanes(w.mask & (w.mask - 1), [&](int l) { r = f(r, a[l]); });
  for_lanes(w.mask, [&](int l) { w.out<T>(i.o[0])[l] = r; });
}
constexpr auto plus = []<class T>(T a, T b) { return T(u32(a) + u32(b)); };
constexpr auto least = []<class T>(T a, T b) { return b < a ? b : a; };
constexpr auto most = []<class T>(T a, T b) { return a < b ? b : a; };
constexpr auto both = [](u32 a, u32 b) { return a & b; };
constexpr auto either = [](u32 a, u32 b) { return a | b; };
constexpr auto differ = [](u32 a, u32 b) { return a ^ b; };

void active_mask(Block&, Warp& w, const Instruction& i) {
  for_lanes(w.mask, [&](int l) { w.out<u32>(i.o[0])[l] = w.mask; });
}

// elect: the lowest lane, its number into o[0], and which lane it is into predicate o[1].
void elect(Block&, Warp& w, const Instruction& i) {
  const int leader = __builtin_ctz(w.mask);
  for_lanes(w.mask, [&](int l) { w.out<u32>(i.o[0])[l] = leader; });
  w.set_predicate(i.o[1], 1u << leader);
}

const Register together_[] = {{"shfl", shuffle},
                              {"vote", vote},
                              {"match.u32", match<u32>},
                              {"match.u64", match<u64>},
                              {"redux.add.u32", reduce<u32, plus>},
                              {"redux.add.s32", reduce<s32, plus>},
                              {"redux.min.u32", reduce<u32, least>},
                              {"redux.min.s32", reduce<s32, least>},
                              {"redux.max.u32", reduce<u32, most>},
                              {"redux.max.s32", reduce<s32, most>},
                              {"redux.and.u32", reduce<u32, both>},
                              {"redux.or.u32", reduce<u32, either>},
                              {"redux.xor.u32", reduce<u32, differ>},
                              {"activemask", active_mask},
                              {"elect", elect}};

}  // namespace
}  // namespace ptx
