// How a kernel is run: what the boundary hands to `<op>_forward(params, launch)` on each machine.
#pragma once

#include <cstdint>

namespace lightkernels {

// Scalar types a kernel may be asked for. Sums are carried in double for kFloat64 and in float for the rest.
enum class DType : int32_t { kFloat32, kFloat64, kFloat16, kBFloat16 };

inline int64_t size_of(DType dtype) { return dtype == DType::kFloat64 ? 8 : dtype == DType::kFloat32 ? 4 : 2; }

namespace cpu {

// Kernels own no threads: they hand ranges of work units to the boundary's thread pool.
struct Launch {
  using Body = void (*)(int64_t begin, int64_t end, void* context);

  void* workspace;  // the bytes that `<op>_workspace(params)` asked for, 64-byte aligned
  void (*parallel_for)(int64_t units, int64_t grain, Body body, void* context);

  // Runs f(begin, end) over [0, units) in chunks of about `grain` units or more: never of less than half of that.
  template <class F>
  void parallel(int64_t units, int64_t grain, F&& f) const {
    if (units <= grain) return f(int64_t{0}, units);
    parallel_for(
        units, grain, [](int64_t begin, int64_t end, void* context) { (*static_cast<F*>(context))(begin, end); }, &f);
  }

  // Chunks that run at once may keep something of their own each: `slots` are enough, and `slot_of` is a chunk's.
  static int64_t slots(int64_t units, int64_t grain) { return slot_of(units - 1, grain) + 1; }
  static int64_t slot_of(int64_t begin, int64_t grain) { return begin / ((grain + 1) / 2); }
};

}  // namespace cpu

namespace cuda {

struct Launch {
  void* workspace;  // device memory, the bytes that `<op>_workspace(params)` asked for, 256-byte aligned
  void* stream;     // cudaStream_t
};

}  // namespace cuda
}  // namespace lightkernels
