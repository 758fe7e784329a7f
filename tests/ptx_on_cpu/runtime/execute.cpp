// Running a kernel: blocks one after another, in each the warps in turn, in each warp the lanes that are furthest
// behind.
#include <algorithm>
#include <cstring>
#include <sstream>
#include <stdexcept>
#include <unordered_map>

#include "machine.h"

namespace ptx {
namespace {

std::unordered_map<std::string, Handler>& handlers() {
  static std::unordered_map<std::string, Handler> all;
  return all;
}

template <class T>
void broadcast(uint8_t* registers, uint32_t offset, T value) {
  if (offset == kNone) return;
  T* lanes = reinterpret_cast<T*>(registers + offset);
  for (int l = 0; l < kLanes; ++l) lanes[l] = value;
}

}  // namespace

Register::Register(const std::string& name, Handler run) {
  if (!handlers().emplace(name, run).second) throw std::logic_error("two handlers for " + name);
}

Handler handler(const std::string& name) {
  const auto found = handlers().find(name);
  return found == handlers().end() ? nullptr : found->second;
}

void Block::find(Warp& warp, Kind kind, const Instruction& at, int lane, const std::string& text) {
  const auto [entry, fresh] = report.seen.try_emplace({kind, at.line}, report.findings.size());
  if (!fresh) {
    ++report.findings[entry->second].times;
    return;
  }
  const uint32_t thread = warp.index * kLanes + lane;
  report.findings.push_back({kind,
                             text,
                             kernel.name,
                             {index.x, index.y, index.z},
                             {thread % block.x, thread / block.x % block.y, thread / (block.x * block.y)},
                             at.line,
                             1});
}

void Block::start(Warp& w) {
  w.live = w.exists;
  w.others.assign(1, {0, w.exists, false});
  w.at_barrier = 0, w.sync = 0, w.carry = 0, w.passed = 0;
  w.copies.clear(), w.committed.fill(0);
  const auto& s = kernel.specials;
  const uint32_t ids[] = {index.x, index.y, index.z};
  for (int d = 0; d < 3; ++d) broadcast(w.registers, s[5 + d], ids[d]);
}

// Makes the lanes that are furthest behind, and can run, the current ones. False if there are none.
bool Block::pick(Warp& w) {
  const Group *ready = nullptr, *waiting = nullptr;
  for (const Group& g : w.others) {
    const Group*& least = g.waits ? waiting : ready;
    if (!least || g.pc < least->pc) least = &g;
  }
  if (!ready && !waiting) return false;
  w.alone = !ready;
  w.pc = (ready ? ready : waiting)->pc, w.group = 0;
  for (size_t k = 0; k < w.others.size();) {
    if (w.others[k].pc != w.pc) {
      ++k;
      continue;
    }
    w.group |= w.others[k].mask;
    w.others[k] = w.others.back(), w.others.pop_back();
  }
  w.limit = ~0u;
  for (const Group& g : w.others) {
    if (g.pc > w.pc) w.limit = std::min(w.limit, g.pc);
  }
  return true;
}

// Whether all lanes that a warp-wide instruction names are at it. If not, and they may still come, these wait.
bool Block::gather(Warp& w, const Instruction& i) {
  const int first = __builtin_ctz(w.mask);
  const Mask members = w.in<uint32_t>(i.members)[first];
  if (const Mask strangers = w.mask & ~members) {
    find(w, Kind::kWarpSync, i, __builtin_ctz(strangers),
         "a lane runs a warp-wide instruction whose mask leaves it out");
  }
  const Mask missing = members & w.live & ~w.mask;  // those that have ended need not come
  if (!missing) {
    w.passed &= ~members;
    return true;
  }
  const bool may_come = missing & ~w.at_barrier & ~w.group;
  if (may_come && !w.alone) {
    static const Handler ret = handler("ret");
    for (const Group& g : w.others) {  // those that wait to end will not be missed
      if (kernel.code[g.pc].run != ret) w.passed |= g.mask & missing;
    }
    w.others.push_back({w.pc, w.group, true});
    return false;
  }
  std::ostringstream text;
  text << "lanes 0x" << std::hex << missing << " of the mask 0x" << members
       << " of a warp-wide instruction do not come to it";
  find(w, Kind::kWarpSync, i, first, text.str());
  return true;
}

// Runs a warp until all of its lanes have ended or wait at a barrier.
void Block::run_warp(Warp& w) {
  while (pick(w)) {
    bool keep = true;
    while (keep) {
      const Instruction& i = kernel.code[w.pc];
      const size_t others = w.others.size();
      w.next = w.pc + 1;
      w.mask = w.group;
      if (i.guard != kNone) w.mask &= i.unless ? ~w.predicate(i.guard) : w.predicate(i.guard);
      if (w.mask) {
        if (i.members != kNone && !gather(w, i)) break;
        ++report.warp_instructions;
        report.by_class[i.counted_as] += __builtin_popcount(w.mask);
        i.run(*this, w, i);
      }
      if (w.next <= w.pc && report.warp_instructions >= end) {
        throw std::runtime_error(kernel.name + ", PTX line " + std::to_string(i.line) + ": a block has run " +
                                 std::to_string(longest) + " warp instructions and still loops");
      }
      keep = w.group && w.next > w.pc && w.next < w.limit && w.others.size() == others;
      w.pc = w.next;
      if (!keep && w.group) w.others.push_back({w.pc, w.group, false});
    }
  }
}

// Lets those go on who have all come to a barrier. False if nobody waits.
bool Block::release_barriers() {
  uint32_t waiting = 0, live = 0, ended = 0;
  for (const Warp& w : warps) {
    waiting += __builtin_popcount(w.at_barrier), live += __builtin_popcount(w.live);
    ended += __builtin_popcount(w.exists & ~w.live);
  }
  if (!waiting) return false;
  // One barrier at a time: that of the first waiting thread that is complete, else of the first waiting at all.
  struct Open {
    uint32_t id, count, arrived, pc;
    Warp* warp;
    int lane;
    bool mixed;
  };
  std::vector<Open> open;
  for (Warp& w : warps) {
    for_lanes(w.at_barrier, [&](int l) {
      const uint32_t id = w.barrier_id[l], pc = w.barrier_pc[l];
      auto at = std::find_if(open.begin(), open.end(), [&](const Open& o) { return o.id == id; });
      if (at == open.end()) {
        at = open.insert(open.end(), {id, w.barrier_count[l], arrived[id % 16], pc, &w, l, false});
      }
      ++at->arrived;
      // Warps may meet from different places where a count says that they are not all.
      if (at->pc != pc && (!at->count || at->warp == &w)) at->mixed = true;
    });
  }
  const uint32_t all = live + ended;
  auto complete = [&](const Open& o) { return o.arrived >= (o.count ? o.count : all); };
  auto chosen = std::find_if(open.begin(), open.end(), complete);
  if (chosen == open.end()) {
    chosen = open.begin();
    std::ostringstream text;
    text << chosen->arrived << " of " << (chosen->count ? chosen->count : all) << " threads come to barrier "
         << chosen->id;
    if (ended) text << "; " << ended << " have ended";
    find(*chosen->warp, Kind::kBarrier, kernel.code[chosen->pc], chosen->lane, text.str());
  } else if (chosen->mixed) {
    find(*chosen->warp, Kind::kBarrier, kernel.code[chosen->pc], chosen->lane,
         "threads wait at different instructions for one barrier");
  }
  let_go(chosen->id);
  ++memory.stamp;  // what was written before is ordered before what comes
  ++report.barriers;
  return true;
}

void Block::let_go(uint32_t barrier) {
  auto here = [&](const Warp& w) {
    Mask lanes = 0;
    for_lanes(w.at_barrier, [&](int l) { lanes |= w.barrier_id[l] == barrier ? 1u << l : 0; });
    return lanes;
  };
  uint32_t votes = 0, voters = 0;
  for (const Warp& w : warps) votes += __builtin_popcount(here(w) & w.votes), voters += __builtin_popcount(here(w));
  for (Warp& w : warps) {
    Mask go = here(w);
    w.at_barrier &= ~go;
    while (go) {
      const uint32_t pc = w.barrier_pc[__builtin_ctz(go)];
      Mask same = 0;
      for_lanes(go, [&](int l) { same |= w.barrier_pc[l] == pc ? 1u << l : 0; });
      w.mask = same;
      const Instruction& i = kernel.code[pc];
      if (i.mode == 1) for_lanes(same, [&](int l) { w.out<uint32_t>(i.o[2])[l] = votes; });
      if (i.mode == 2) w.set_predicate(i.o[2], votes == voters ? kAll : 0);
      if (i.mode == 3) w.set_predicate(i.o[2], votes ? kAll : 0);
      w.others.push_back({pc + 1, same, false});
      go &= ~same;
    }
  }
  arrived[barrier % 16] = 0;
}

void Block::run() {
  memory.block_stamp = ++memory.stamp;
  arrived.fill(0);
  end = report.warp_instructions + longest;
  for (Warp& w : warps) start(w);
  do {
    for (Warp& w : warps) run_warp(w);
  } while (release_barriers());
  ++report.blocks;
}

void launch(const Kernel& kernel, Dim3 grid, Dim3 block, uint32_t shared_bytes, const std::vector<uint8_t>& params,
            Memory& memory, Report& report, bool backwards, uint64_t longest) {
  const uint32_t threads = block.count(), warps = (threads + kLanes - 1) / kLanes;
  std::vector<uint8_t> registers(size_t{warps} * kernel.register_bytes);
  std::vector<uint8_t> local(size_t{warps} * kLanes * kernel.local), local_written(local.size());
  const uint32_t shared_total =
      shared_bytes ? (kernel.static_shared + 15) / 16 * 16 + shared_bytes : kernel.static_shared;
  std::vector<uint8_t> shared(shared_total + 16);
  std::vector<Cell> cells(shared_total / kernel.shared_granule + 2);
  Block b{kernel, memory, report, grid, block, {0, 0, 0}, shared, cells, params, std::vector<Warp>(warps), longest};
  const auto& s = kernel.specials;
  for (uint32_t k = 0; k < warps; ++k) {
    Warp& w = b.warps[k];
    w.index = k;
    w.exists = threads - k * kLanes >= kLanes ? kAll : (1u << (threads - k * kLanes)) - 1;
    w.registers = registers.data() + size_t{k} * kernel.register_bytes;
    w.constants = kernel.constants.data();
    w.local = local.data() + size_t{k} * kLanes * kernel.local;
    w.local_written = local_written.data() + size_t{k} * kLanes * kernel.local;
    for (int l = 0; l < kLanes; ++l) {
      const uint32_t t = k * kLanes + l;
      const uint32_t values[] = {t % block.x, t / block.x % block.y, t / (block.x * block.y), uint32_t(l), k};
      for (int d = 0; d < 5; ++d) {
        if (s[d] != kNone) reinterpret_cast<uint32_t*>(w.registers + s[d])[l] = values[d];
      }
    }
    const uint32_t sizes[] = {block.x, block.y, block.z, grid.x, grid.y, grid.z};
    for (int d = 0; d < 6; ++d) broadcast(w.registers, s[8 + d], sizes[d]);
  }
  memory.begin_launch();
  const uint64_t blocks = grid.count();
  for (uint64_t k = 0; k < blocks; ++k) {
    const uint64_t at = backwards ? blocks - 1 - k : k;
    b.index = {uint32_t(at % grid.x), uint32_t(at / grid.x % grid.y), uint32_t(at / grid.x / grid.y)};
    // Shared memory begins as nobody's: what is read before it is written is a NaN, and found.
    std::memset(shared.data(), 0xff, shared.size());
    if (shared_total) std::fill(cells.begin(), cells.end(), Cell{});
    if (!local.empty()) {
      std::memset(local.data(), 0xff, local.size());
      std::fill(local_written.begin(), local_written.end(), 0);
    }
    b.run();
  }
  memory.end_launch(report);
}

}  // namespace ptx
