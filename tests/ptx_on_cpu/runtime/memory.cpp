#include "memory.h"

#include <algorithm>
#include <sstream>

namespace ptx {

void Memory::track(uint64_t address, uint64_t bytes, uint32_t itemsize, const std::string& name, bool initialised,
                   bool writable) {
  if (!bytes) return;
  const uint64_t end = address + bytes;
  // What is tracked anew replaces what lay there.
  allocations.erase(std::remove_if(allocations.begin(), allocations.end(),
                                   [&](const Allocation& a) { return a.begin < end && address < a.end; }),
                    allocations.end());
  // A cell has a bit for each of its bytes, and is found by shifting.
  const uint32_t granule = itemsize & (itemsize - 1) ? 1 : std::min(itemsize, 8u);
  Allocation a{address, end, address % granule ? 1 : granule, name, writable, {}, {}, {}};
  Cell fresh;
  if (initialised) fresh.written = 0xff;
  a.cells.assign((bytes + a.granule - 1) / a.granule, fresh);
  a.touched.assign(bytes, 0);
  for (auto& stamps : a.sector_stamp) stamps.assign((end + 31) / 32 - address / 32, 0);
  allocations.insert(std::upper_bound(allocations.begin(), allocations.end(), a,
                                      [](const Allocation& x, const Allocation& y) { return x.begin < y.begin; }),
                     std::move(a));
  last_ = 0;
}

void Memory::grow(uint64_t address, uint64_t bytes, uint32_t itemsize, const std::string& name, bool writable) {
  uint64_t begin = address, end = address + bytes;
  std::vector<Allocation> within;
  for (Allocation& a : allocations) {
    if (a.end <= address || a.begin >= address + bytes) continue;
    begin = std::min(begin, a.begin), end = std::max(end, a.end), writable &= a.writable;
    within.push_back(std::move(a));
    a.end = a.begin;  // gone
  }
  allocations.erase(
      std::remove_if(allocations.begin(), allocations.end(), [](const Allocation& a) { return a.end == a.begin; }),
      allocations.end());
  track(begin, end - begin, itemsize, name, true, writable);
  Allocation& all = *find(begin);
  for (const Allocation& a : within) {  // what nobody has written stays so
    for (uint64_t k = 0; k < a.touched.size(); ++k) {
      if (a.cells[k / a.granule].written >> (k % a.granule) & 1) continue;
      const uint64_t at = a.begin - begin + k;
      all.cells[at / all.granule].written &= ~(1u << (at % all.granule));
    }
  }
}

Allocation* Memory::find(uint64_t address) {
  if (last_ < allocations.size()) {
    Allocation& a = allocations[last_];
    if (address >= a.begin && address < a.end) return &a;
  }
  auto after = std::upper_bound(allocations.begin(), allocations.end(), address,
                                [](uint64_t x, const Allocation& a) { return x < a.begin; });
  if (after == allocations.begin()) return nullptr;
  --after;
  if (address >= after->end) return nullptr;
  last_ = after - allocations.begin();
  return &*after;
}

std::string Memory::nearest(uint64_t address) const {
  const Allocation* best = nullptr;
  uint64_t distance = ~0ull;
  for (const Allocation& a : allocations) {
    const uint64_t d = address < a.begin ? a.begin - address : address - a.end;
    if (d < distance) distance = d, best = &a;
  }
  std::ostringstream text;
  if (!best) {
    text << "nothing is tracked";
  } else if (address >= best->end) {
    text << distance << " bytes after the end of " << best->name << " (" << best->end - best->begin << " bytes)";
  } else {
    text << distance << " bytes before " << best->name << " (" << best->end - best->begin << " bytes)";
  }
  return text.str();
}

void Memory::begin_launch() {
  if (stamp > 1u << 31) {  // start over: what was written stays written
    stamp = 0;
    for (Allocation& a : allocations) {
      for (Cell& c : a.cells) c.write_stamp = c.read_stamp = 0;
      for (auto& stamps : a.sector_stamp) std::fill(stamps.begin(), stamps.end(), 0);
    }
  }
  launch_stamp = ++stamp;
  for (Allocation& a : allocations) std::fill(a.touched.begin(), a.touched.end(), 0);
}

void Memory::end_launch(Report& report) {
  for (const Allocation& a : allocations) {
    for (const uint8_t t : a.touched) {
      report.global[0].unique_bytes += t & 1;
      report.global[1].unique_bytes += t >> 1;
    }
  }
}

}  // namespace ptx
