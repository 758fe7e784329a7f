// What Python sees: programs put together instruction by instruction, memory, launches.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <stdexcept>

#include "machine.h"

namespace py = pybind11;
using namespace ptx;

namespace {

const char* name_of(Kind kind) {
  switch (kind) {
    case Kind::kOutOfBounds:
      return "out-of-bounds";
    case Kind::kMisaligned:
      return "misaligned";
    case Kind::kUninitialised:
      return "uninitialised";
    case Kind::kRace:
      return "race";
    case Kind::kBarrier:
      return "barrier";
    case Kind::kWarpSync:
      return "warp-sync";
    case Kind::kTrap:
      return "trap";
  }
  return "?";
}

py::dict counts_of(const Report& r) {
  py::dict counts;
  static const char* const kNames[] = {"float", "int", "move", "memory", "control", "matrix", "special"};
  py::dict by_class;
  uint64_t all = 0;
  for (int k = 0; k < kClasses; ++k) by_class[kNames[k]] = r.by_class[k], all += r.by_class[k];
  counts["instructions"] = all;
  counts["warp_instructions"] = r.warp_instructions;
  counts["by_class"] = by_class;
  for (const bool stores : {false, true}) {
    py::dict global, shared;
    const Traffic& t = r.global[stores];
    global["requests"] = t.requests, global["sectors"] = t.sectors, global["ideal_sectors"] = t.ideal_sectors;
    global["bytes"] = 32 * t.sectors, global["unique_bytes"] = t.unique_bytes, global["l2_bytes"] = 32 * t.l2_sectors;
    const SharedTraffic& s = r.shared[stores];
    shared["requests"] = s.requests, shared["wavefronts"] = s.wavefronts;
    shared["ideal_wavefronts"] = s.ideal_wavefronts;
    counts[stores ? "global_stores" : "global_loads"] = global;
    counts[stores ? "shared_stores" : "shared_loads"] = shared;
  }
  counts["atomics"] = r.atomics, counts["barriers"] = r.barriers, counts["blocks"] = r.blocks;
  return counts;
}

// The instruction's fields come from decode.py by name.
void add(Kernel& kernel, const std::string& name, const std::vector<uint32_t>& operands, py::dict fields) {
  Instruction i{};
  i.run = handler(name);
  if (!i.run) throw py::key_error(name);
  if (operands.size() > i.o.size()) throw std::length_error(name + " has too many operands");
  i.o.fill(kNone);
  std::copy(operands.begin(), operands.end(), i.o.begin());
  for (const auto& [key, value] : fields) {
    const std::string field = py::cast<std::string>(key);
    if (field == "guard")
      i.guard = py::cast<uint32_t>(value);
    else if (field == "unless")
      i.unless = py::cast<bool>(value);
    else if (field == "counted_as")
      i.counted_as = static_cast<Class>(py::cast<int>(value));
    else if (field == "space")
      i.space = static_cast<Space>(py::cast<int>(value));
    else if (field == "bytes")
      i.bytes = py::cast<int>(value);
    else if (field == "reg_bytes")
      i.reg_bytes = py::cast<int>(value);
    else if (field == "vector")
      i.vector = py::cast<int>(value);
    else if (field == "mode")
      i.mode = py::cast<int>(value);
    else if (field == "signed")
      i.is_signed = py::cast<bool>(value);
    else if (field == "members")
      i.members = py::cast<uint32_t>(value);
    else if (field == "immediate")
      i.immediate = py::cast<int64_t>(value);
    else if (field == "line")
      i.line = py::cast<uint32_t>(value);
    else if (field == "address")
      i.o[14] = py::cast<uint32_t>(value);
    else if (field == "address_bytes")
      i.o[15] = py::cast<uint32_t>(value);
    else
      throw py::key_error(field);
  }
  kernel.code.push_back(i);
}

}  // namespace

PYBIND11_MODULE(_runtime, m) {
  m.attr("CONSTANT") = kConstant;
  m.attr("NONE") = kNone;
  m.attr("SHARED_WINDOW") = kSharedWindow;
  m.attr("LOCAL_WINDOW") = kLocalWindow;
  m.attr("PARAM_WINDOW") = kParamWindow;
  m.def("knows", [](const std::string& name) { return handler(name) != nullptr; });

  py::class_<Kernel>(m, "Kernel")
      .def(py::init<>())
      .def_readwrite("name", &Kernel::name)
      .def_readwrite("register_bytes", &Kernel::register_bytes)
      .def_readwrite("static_shared", &Kernel::static_shared)
      .def_readwrite("local", &Kernel::local)
      .def_readwrite("shared_granule", &Kernel::shared_granule)
      .def_readwrite("specials", &Kernel::specials)
      .def("set_constants",
           [](Kernel& k, py::bytes b) {
             const std::string s = b;
             k.constants.assign(s.begin(), s.end());
           })
      .def("add", add)
      .def("__len__", [](const Kernel& k) { return k.code.size(); });

  py::class_<Memory>(m, "Memory")
      .def(py::init<>())
      .def("track", &Memory::track)
      .def("grow", &Memory::grow)
      .def("holds", &Memory::holds)
      .def("clear", &Memory::clear);

  m.def("launch", [](const Kernel& kernel, std::array<uint32_t, 3> grid, std::array<uint32_t, 3> block, uint32_t shared,
                     py::bytes params, Memory& memory, bool backwards, uint64_t longest) {
    const std::string p = params;
    Report report;
    {
      py::gil_scoped_release release;
      launch(kernel, {grid[0], grid[1], grid[2]}, {block[0], block[1], block[2]}, shared, {p.begin(), p.end()}, memory,
             report, backwards, longest);
    }
    py::list findings;
    for (const Finding& f : report.findings) {
      findings.append(py::make_tuple(name_of(f.kind), f.text, f.kernel, f.block, f.thread, f.line, f.times));
    }
    return py::make_tuple(findings, counts_of(report));
  });
}
