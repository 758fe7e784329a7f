// A GPU's block of threads on the CPU: warps of 32 lanes in lock step, registers as arrays of 32 values.
//
// An instruction is decoded once (../decode.py) into a Handler and its operands, and runs for all lanes of a warp that
// are at it. Lanes part at branches and meet again because those that are furthest behind always run first.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <vector>

#include "memory.h"

namespace ptx {

constexpr int kLanes = 32;
using Mask = uint32_t;
constexpr Mask kAll = ~Mask{0};

// An operand is a byte offset: into the warp's registers, or, with this bit, into the kernel's constants.
constexpr uint32_t kConstant = 1u << 31, kNone = ~0u;

struct Block;
struct Warp;
struct Instruction;
using Handler = void (*)(Block&, Warp&, const Instruction&);

enum class Space : uint8_t { kGeneric, kGlobal, kShared, kLocal, kParam, kConst };

// Generic addresses of what is not global memory: no such address exists on the CPU.
constexpr uint64_t kWindow = 1ull << 56;
constexpr uint64_t kSharedWindow = 1 * kWindow, kLocalWindow = 2 * kWindow, kParamWindow = 3 * kWindow;

// What an instruction is counted as.
enum Class : uint8_t {
  kFloatClass,
  kIntClass,
  kMoveClass,
  kMemoryClass,
  kControlClass,
  kMatrixClass,
  kSpecialClass,
  kClasses
};

struct Instruction {
  Handler run;
  uint32_t guard = kNone;  // a predicate
  bool unless = false;     // runs where the guard is false
  Class counted_as = kIntClass;
  Space space = Space::kGeneric;
  uint8_t bytes = 0;      // of an element in memory
  uint8_t reg_bytes = 0;  // of the register it goes to or comes from
  uint8_t vector = 1;     // elements
  uint8_t mode = 0;       // what the handler says
  bool is_signed = false;
  uint32_t members = kNone;  // lanes that must come together for it, as an operand
  int64_t immediate = 0;     // displacement, branch target, table
  uint32_t line = 0;         // of the PTX
  std::array<uint32_t, 16> o{};
};

struct Group {
  uint32_t pc;
  Mask mask;
  bool waits;  // for the other lanes of a warp-wide instruction
};

struct Copy {  // of cp.async, until it is waited for
  uint8_t* to;
  int lane;
  uint32_t group, size;  // of its lane's groups
  std::array<uint8_t, 16> bytes;
};

struct Warp {
  int index;
  Mask exists, live;  // lanes that are threads, and those of them that have not ended
  uint8_t* registers;
  const uint8_t* constants;
  uint8_t *local, *local_written;  // kLanes times the kernel's local memory, and a flag for each byte of it

  uint32_t pc, next, limit;  // of the lanes that run now: where they are, go, and may meet others
  Mask group;                // those lanes
  Mask mask;                 // those whose guard lets them
  bool alone;                // all others wait for lanes to come
  Mask passed;               // lanes that others wait for, and that have gone another way
  std::vector<Group> others;
  Mask carry = 0;
  uint32_t sync = 0;  // warp-wide barriers passed: they order memory within the warp

  Mask at_barrier = 0;
  Mask votes = 0;  // for bar.red
  std::array<uint32_t, kLanes> barrier_pc, barrier_id, barrier_count;

  std::vector<Copy> copies;
  std::array<uint32_t, kLanes> committed;  // groups of copies

  template <class T>
  const T* in(uint32_t operand) const {
    return reinterpret_cast<const T*>((operand & kConstant ? constants : registers) + (operand & ~kConstant));
  }
  template <class T>
  T* out(uint32_t operand) {
    return reinterpret_cast<T*>(registers + operand);
  }
  // Predicates are a bit for each lane.
  Mask predicate(uint32_t operand) const { return *in<Mask>(operand); }
  void set_predicate(uint32_t operand, Mask value) {
    Mask& p = *out<Mask>(operand);
    p = (p & ~mask) | (value & mask);
  }
};

struct Dim3 {
  uint32_t x, y, z;
  uint64_t count() const { return uint64_t{x} * y * z; }
};

struct Kernel {
  std::string name;
  std::vector<Instruction> code;
  std::vector<uint8_t> constants;  // broadcast to 32 lanes each
  uint32_t register_bytes = 0;
  uint32_t static_shared = 0, local = 0;
  uint32_t shared_granule = 4;  // of the narrowest access
  // Offsets of the special registers that the kernel reads, or kNone: tid x y z, laneid, warpid, ctaid x y z, ntid x y
  // z, nctaid x y z.
  std::array<uint32_t, 14> specials;
};

struct Block {
  const Kernel& kernel;
  Memory& memory;
  Report& report;
  Dim3 grid, block, index;
  std::vector<uint8_t>& shared;
  std::vector<Cell>& shared_cells;
  const std::vector<uint8_t>& params;
  std::vector<Warp> warps;
  uint64_t longest;                    // warp instructions that it may take
  std::array<uint32_t, 16> arrived{};  // at each barrier, without waiting
  uint64_t end = 0;                    // the report's count that it must not reach

  void run();
  // A finding at the instruction that runs now, by its first lane.
  void find(Warp& warp, Kind kind, const Instruction& at, int lane, const std::string& text);

 private:
  void start(Warp& warp);
  void run_warp(Warp& warp);
  bool pick(Warp& warp);
  bool gather(Warp& warp, const Instruction& i);
  bool release_barriers();
  void let_go(uint32_t barrier);
};

template <class F>
inline void for_lanes(Mask mask, F&& f) {
  for (; mask; mask &= mask - 1) f(__builtin_ctz(mask));
}

// --- access.cpp: where lanes' addresses lead ---

// Checks, counts and notes an access of each lane of w.mask to `bytes` at its address. Sets the pointer of those lanes
// that may proceed, and returns them. A store may give its data, and is done here: threads that write to shared memory
// what another has written there are no race, as Triton's do where a value is theirs in common.
enum class Access { kLoad, kStore, kAtomic };
using Data = uint8_t[kLanes][32];
Mask reach(Block& block, Warp& warp, const Instruction& at, Space space, const uint64_t* address, uint32_t bytes,
           Access access, uint8_t** where, const Data* data = nullptr);

// Handlers by name, filled by the files that define them.
Handler handler(const std::string& name);  // null where there is none
struct Register {
  Register(const std::string& name, Handler run);
};

void launch(const Kernel& kernel, Dim3 grid, Dim3 block, uint32_t shared_bytes, const std::vector<uint8_t>& params,
            Memory& memory, Report& report, bool backwards, uint64_t longest);

}  // namespace ptx
