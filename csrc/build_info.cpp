// The module pytorch_ext._build: how this library was built, and what this CPU can do. It needs no torch.
#include <pybind11/pybind11.h>

#include <string>

extern const char* const build_facts;  // JSON, written by setup.py

namespace {

pybind11::dict cpu_features() {
  pybind11::dict features;
#if defined(__x86_64__)
  __builtin_cpu_init();
#define FEATURE(name) features[name] = static_cast<bool>(__builtin_cpu_supports(name))
  FEATURE("sse4.2");
  FEATURE("avx");
  FEATURE("avx2");
  FEATURE("fma");
  FEATURE("avx512f");
  FEATURE("avx512dq");
  FEATURE("avx512bw");
  FEATURE("avx512vl");
  FEATURE("avx512vnni");
  FEATURE("avx512bf16");
#undef FEATURE
#endif
  return features;
}

}  // namespace

PYBIND11_MODULE(_build, m) {
  m.doc() = "Build facts and CPU features.";
  m.def("facts", [] { return std::string(build_facts); }, "How the libraries were built, as JSON.");
  m.def("cpu_features", &cpu_features, "Instruction sets of this CPU, name -> present (x86-64 only).");
}
