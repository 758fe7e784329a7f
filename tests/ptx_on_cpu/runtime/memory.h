// What threads may access, what was written, and by whom: global memory as the caller tracks it, shared memory.
#pragma once

#include <array>
#include <cstdint>
#include <map>
#include <string>
#include <vector>

namespace ptx {

enum class Kind { kOutOfBounds, kMisaligned, kUninitialised, kRace, kBarrier, kWarpSync, kTrap };

struct Finding {
  Kind kind;
  std::string text, kernel;
  std::array<uint32_t, 3> block, thread;
  uint32_t line;
  uint64_t times;
};

struct Traffic {
  uint64_t requests = 0;       // warp-wide loads or stores
  uint64_t sectors = 0;        // of 32 bytes, those that each request touches
  uint64_t ideal_sectors = 0;  // as few as could hold each request's bytes
  uint64_t unique_bytes = 0;   // each byte once for the launch
  uint64_t l2_sectors = 0;     // each sector once for a block
};

struct SharedTraffic {
  uint64_t requests = 0, wavefronts = 0, ideal_wavefronts = 0;
};

struct Report {
  std::vector<Finding> findings;
  std::map<std::pair<Kind, uint32_t>, size_t> seen;  // one finding for a kind and a line
  Traffic global[2];                                 // loads, stores
  SharedTraffic shared[2];
  uint64_t warp_instructions = 0, atomics = 0, barriers = 0, blocks = 0;
  std::array<uint64_t, 8> by_class{};  // thread instructions
};

// Who last wrote and read a few bytes. Stamps grow with every block and every barrier of it: blocks run one after
// another, so a stamp says which block, and between which of its barriers.
struct Cell {
  uint32_t write_stamp = 0, read_stamp = 0;
  uint32_t writer = 0, reader = 0;  // thread of its block, and below it how many warp-wide barriers it had passed
  uint8_t written = 0;              // a bit for each byte, ever
  bool atomic = false;              // that write
  uint8_t readers = 0;  // in the reader's stamp: 0 it alone, 1 others of its warp since they last met, 2 other warps
};

struct Allocation {
  uint64_t begin, end;
  uint32_t granule;  // bytes of a cell
  std::string name;
  bool writable;
  std::vector<Cell> cells;
  std::vector<uint8_t> touched;           // bit 0 read, bit 1 written, this launch; by bytes
  std::vector<uint32_t> sector_stamp[2];  // of the block that last loaded, stored each sector
};

struct Memory {
  std::vector<Allocation> allocations;  // by address, apart
  uint32_t stamp = 0, launch_stamp = 0, block_stamp = 0;

  void track(uint64_t address, uint64_t bytes, uint32_t itemsize, const std::string& name, bool initialised,
             bool writable);
  // Tracks what has values, together with what of it is tracked already: that keeps what was known of it.
  void grow(uint64_t address, uint64_t bytes, uint32_t itemsize, const std::string& name, bool writable);
  bool holds(uint64_t address, uint64_t bytes) {
    const Allocation* a = find(address);
    return a && address + bytes <= a->end;
  }
  void clear() { allocations.clear(), last_ = 0; }
  Allocation* find(uint64_t address);
  // The allocation that ends closest below, or begins closest above: for messages.
  std::string nearest(uint64_t address) const;
  void begin_launch();
  void end_launch(Report& report);

 private:
  size_t last_ = 0;
};

}  // namespace ptx
