// Where addresses lead: windows of generic addresses, bounds, alignment, who wrote what before whom, traffic.
#include <algorithm>
#include <cstring>
#include <sstream>

#include "machine.h"

namespace ptx {
namespace {

struct Spans {  // of one warp-wide request, by address
  uint64_t begin[kLanes];
  int count = 0;
};

// Numbers of sectors, least sectors and bytes that are touched.
template <class F>
void count_request(Traffic& traffic, Spans& spans, uint32_t bytes, F&& each_sector) {
  if (!std::is_sorted(spans.begin, spans.begin + spans.count)) std::sort(spans.begin, spans.begin + spans.count);
  uint64_t end = 0, last_sector = ~0ull, sectors = 0, unique = 0;
  for (int k = 0; k < spans.count; ++k) {
    const uint64_t a = spans.begin[k], b = a + bytes;
    if (b > end) unique += b - std::max(a, end), end = b;
    for (uint64_t s = a / 32; s <= (b - 1) / 32; ++s) {
      if (s == last_sector || (last_sector != ~0ull && s < last_sector)) continue;
      last_sector = s, ++sectors;
      each_sector(s);
    }
  }
  ++traffic.requests;
  traffic.sectors += sectors;
  traffic.ideal_sectors += (unique + 31) / 32;
}

// Banks: 32 of 4 bytes. Lanes go together as far as they ask for 128 bytes: all, half a warp, a quarter.
void count_shared(SharedTraffic& traffic, const uint64_t* address, Mask mask, uint32_t bytes) {
  const int together = bytes <= 4 ? 32 : bytes <= 8 ? 16 : 8;
  ++traffic.requests;
  for (int first = 0; first < kLanes; first += together) {
    uint64_t words[kLanes * 4];
    int count = 0;
    for (int l = first; l < first + together; ++l) {
      if (!(mask >> l & 1)) continue;
      for (uint64_t w = address[l] / 4; w <= (address[l] + bytes - 1) / 4 && count < kLanes * 4; ++w)
        words[count++] = w;
    }
    if (!count) continue;
    std::sort(words, words + count);
    count = std::unique(words, words + count) - words;
    int in_bank[32] = {}, most = 0;
    for (int k = 0; k < count; ++k) most = std::max(most, ++in_bank[words[k] % 32]);
    traffic.wavefronts += most;
    traffic.ideal_wavefronts += (count + 31) / 32;
  }
}

const std::string kSharedName = "shared memory";

std::string show(uint64_t address) {
  std::ostringstream text;
  text << "0x" << std::hex << address;
  return text.str();
}

// One access of a warp, lane by lane: where each leads, or a finding.
struct Judge {
  Block& block;
  Warp& warp;
  const Instruction& at;
  Access access;
  uint32_t bytes;
  const Data* data;

  bool writes() const { return access != Access::kLoad; }
  std::string verb() const { return writes() ? "writes " : "reads "; }

  // What follows gives a lane's pointer to the address a of a space, null where it must not go there.
  uint8_t* global(uint64_t a, int lane) const {
    Allocation* allocation = block.memory.find(a);
    if (!allocation || a + bytes > allocation->end) {
      return refuse(Kind::kOutOfBounds, lane,
                    verb() + std::to_string(bytes) + " bytes, " +
                        (allocation ? "across the end of " + allocation->name : block.memory.nearest(a)));
    }
    if (writes() && !allocation->writable) {
      return refuse(Kind::kOutOfBounds, lane, "writes to " + allocation->name + ", which is read-only");
    }
    const uint64_t offset = a - allocation->begin;
    if (!note_all(allocation->cells, allocation->granule, offset, lane, allocation->name, nullptr)) {
      block.find(warp, Kind::kUninitialised, at, lane,
                 "reads byte " + std::to_string(offset) + " of " + allocation->name + ", which nobody has written");
    }
    const uint8_t bits = access == Access::kLoad ? 1 : access == Access::kStore ? 2 : 3;
    for (uint32_t k = 0; k < bytes; ++k) allocation->touched[offset + k] |= bits;
    return reinterpret_cast<uint8_t*>(a);
  }

  uint8_t* shared(uint64_t a, int lane) const {
    const uint64_t size = block.shared.size() - 16;
    if (a + bytes > size) {
      return refuse(Kind::kOutOfBounds, lane,
                    verb() + std::to_string(bytes) + " bytes at " + std::to_string(a) + " of " + std::to_string(size) +
                        " bytes of shared memory");
    }
    uint8_t* where = block.shared.data() + a;
    if (!note_all(block.shared_cells, block.kernel.shared_granule, a, lane, kSharedName, data ? where : nullptr)) {
      block.find(
          warp, Kind::kUninitialised, at, lane,
          "reads shared memory at " + std::to_string(a) + ", which nobody has written, or cp.async still writes");
    }
    return where;
  }

  uint8_t* local(uint64_t a, int lane) const {
    if (a + bytes > block.kernel.local) return refuse(Kind::kOutOfBounds, lane, verb() + "beyond its local memory");
    const size_t offset = size_t(lane) * block.kernel.local + a;
    if (writes()) {
      std::memset(warp.local_written + offset, 1, bytes);
    } else if (std::memchr(warp.local_written + offset, 0, bytes)) {
      block.find(warp, Kind::kUninitialised, at, lane,
                 "reads its local memory at " + std::to_string(a) + ", which it has not written");
    }
    return warp.local + offset;
  }

  uint8_t* param(uint64_t a, int lane) const {
    if (a + bytes > block.params.size() || writes()) {
      return refuse(Kind::kOutOfBounds, lane, verb() + "beyond the parameters");
    }
    return const_cast<uint8_t*>(block.params.data()) + a;
  }

  uint8_t* refuse(Kind kind, int lane, const std::string& text) const {
    block.find(warp, kind, at, lane, text);
    return nullptr;
  }

 private:
  // Notes a lane's access at `offset` of cells of `granule` bytes. Says whether it was of written memory. A store to
  // what is `held` there, where given, changes only the cells that hold something else.
  bool note_all(std::vector<Cell>& cells, uint32_t granule, uint64_t offset, int lane, const std::string& name,
                const uint8_t* held) const {
    const uint32_t shift = __builtin_ctz(granule);
    bool known = true;
    for (uint64_t b = offset; b < offset + bytes;) {
      const uint64_t cell = b >> shift, end = std::min<uint64_t>((cell + 1) << shift, offset + bytes);
      const uint32_t in = b & (granule - 1);
      const bool changes = !held || std::memcmp(held + (b - offset), (*data)[lane] + (b - offset), end - b) != 0;
      known &= note(cells[cell], in, in + (end - b), lane, name, changes);
      b = end;
    }
    return known;
  }

  // Notes an access of a lane to bytes [begin, end) of the cell. Says whether it was of written memory. `changes`: not
  // for a store of what is there.
  bool note(Cell& cell, uint32_t begin, uint32_t end, int lane, const std::string& name, bool changes) const {
    const Memory& memory = block.memory;
    const uint32_t self = (warp.index * kLanes + lane) << 16 | (warp.sync & 0xffff);
    const bool writes = this->writes(), atomic = access == Access::kAtomic;
    if (changes && cell.write_stamp >= memory.launch_stamp && !(atomic && cell.atomic) &&
        conflict(cell.write_stamp, cell.writer, self)) {
      race(cell.write_stamp, cell.writer, lane, name, writes ? "written" : "read", "written");
    }
    if (writes && cell.read_stamp >= memory.launch_stamp &&
        (conflict(cell.read_stamp, cell.reader, self) || (cell.read_stamp == memory.stamp && beside(cell, self)))) {
      race(cell.read_stamp, cell.reader, lane, name, "written", "read");
    }
    const uint8_t bits = ((1u << (end - begin)) - 1) << begin;
    const bool known = access == Access::kStore || (cell.written & bits) == bits;
    if (writes) {
      cell.written |= bits, cell.write_stamp = memory.stamp, cell.writer = self, cell.atomic = atomic;
    }
    if (access == Access::kLoad) {
      // Of several readers one is kept, and who else there was; a reader of another block stays: it is the one that
      // nothing orders.
      const bool foreign = cell.read_stamp >= memory.launch_stamp && cell.read_stamp < memory.block_stamp;
      if (!foreign) {
        if (cell.read_stamp != memory.stamp) {
          cell.readers = 0;
        } else if (cell.reader >> 21 != self >> 21) {
          cell.readers = 2;
        } else if (cell.readers != 2 && cell.reader != self) {
          cell.readers = (cell.reader & 0xffff) == (self & 0xffff);
        }
        cell.reader = self, cell.read_stamp = memory.stamp;
      }
    }
    return known;
  }

  // Whether nothing orders an earlier access before one of `self` now.
  bool conflict(uint32_t stamp, uint32_t who, uint32_t self) const {
    if (stamp < block.memory.block_stamp) return true;  // another block
    if (stamp < block.memory.stamp) return false;       // before a barrier
    if (who >> 16 == self >> 16) return false;          // the same thread
    const bool same_warp = who >> 21 == self >> 21;
    return !same_warp || (who & 0xffff) == (self & 0xffff);
  }

  // Whether readers other than the one that is kept conflict with a write of `self`.
  bool beside(const Cell& cell, uint32_t self) const {
    return cell.readers == 2 || (cell.readers == 1 && (cell.reader & 0xffff) == (self & 0xffff));
  }

  [[gnu::noinline]] void race(uint32_t stamp, uint32_t who, int lane, const std::string& name, const char* now,
                              const char* before) const {
    std::ostringstream text;
    text << name << " is " << now << " while another thread has " << before << " it, with nothing that orders them: ";
    if (stamp < block.memory.block_stamp) {
      text << "a thread of another block";
    } else {
      const uint32_t self = warp.index * kLanes + lane;
      text << (who >> 16 == self ? "one of several"
                                 : "thread " + std::to_string(who >> 16) + " (counted through the block)");
    }
    block.find(warp, Kind::kRace, at, lane, text.str());
  }
};

}  // namespace

Mask reach(Block& block, Warp& warp, const Instruction& at, Space space, const uint64_t* address, uint32_t bytes,
           Access access, uint8_t** where, const Data* data) {
  const Judge judge{block, warp, at, access, bytes, data};
  Mask good = 0, in_shared = 0;
  uint64_t shared_address[kLanes];
  Spans spans;
  for_lanes(warp.mask, [&](int l) {
    uint64_t a = address[l];
    Space s = space;
    if (s == Space::kGeneric || s == Space::kGlobal) {
      s = a < kSharedWindow  ? Space::kGlobal
          : a < kLocalWindow ? Space::kShared
          : a < kParamWindow ? Space::kLocal
                             : Space::kParam;
      if (s != Space::kGlobal) a &= kWindow - 1;
      if (space == Space::kGlobal && s != Space::kGlobal) {
        return void(
            judge.refuse(Kind::kOutOfBounds, l, judge.verb() + "global memory at an address that is not global"));
      }
    }
    if (a & (bytes - 1)) {  // a power of two
      return void(
          judge.refuse(Kind::kMisaligned, l,
                       judge.verb() + std::to_string(bytes) + " bytes at " + show(a) + ", which they do not divide"));
    }
    switch (s) {
      case Space::kShared:
        where[l] = judge.shared(a, l);
        break;
      case Space::kLocal:
        where[l] = judge.local(a, l);
        break;
      case Space::kParam:
        where[l] = judge.param(a, l);
        break;
      default:
        where[l] = judge.global(a, l);
    }
    if (!where[l]) return;
    good |= 1u << l;
    if (data) std::memcpy(where[l], (*data)[l], bytes);
    if (s == Space::kShared) {
      shared_address[l] = a, in_shared |= 1u << l;
    } else if (s == Space::kGlobal || s == Space::kConst) {
      spans.begin[spans.count++] = a;
    }
  });
  if (access == Access::kAtomic) {
    block.report.atomics += __builtin_popcount(good);
    return good;
  }
  const bool writes = judge.writes();
  Memory& memory = block.memory;
  if (spans.count) {
    count_request(block.report.global[writes], spans, bytes, [&](uint64_t sector) {
      Allocation* allocation = memory.find(std::max(sector * 32, spans.begin[0]));
      if (!allocation) allocation = memory.find(sector * 32 + 31);  // it begins within the sector
      if (!allocation) return;
      uint32_t& stamp = allocation->sector_stamp[writes][sector - allocation->begin / 32];
      if (stamp < memory.block_stamp) ++block.report.global[writes].l2_sectors;
      stamp = memory.stamp;
    });
  }
  if (in_shared) count_shared(block.report.shared[writes], shared_address, in_shared, bytes);
  return good;
}

}  // namespace ptx
