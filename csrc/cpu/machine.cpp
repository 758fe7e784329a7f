// This machine's two ceilings, measured beside the kernels: multiply-adds of one core and streaming bandwidth.
// Compiled once per instruction set like the kernels, so each library reports the ceiling of its own vector width.
#include <chrono>
#include <cstdint>

#include "vec.h"

#define LIGHTKERNELS_EXPORT extern "C" __attribute__((visibility("default")))

#if defined(__AVX512F__)
#define LIGHTKERNELS_TOUCH(v) asm volatile("" : "+v"(v))
#elif defined(__x86_64__)
#define LIGHTKERNELS_TOUCH(v) asm volatile("" : "+x"(v))
#else
#define LIGHTKERNELS_TOUCH(v) asm volatile("" : "+w"(v))
#endif

namespace lightkernels::cpu {
namespace {

constexpr int kFloats = kVectorBytes / sizeof(float);
using Floats = Vec<float, kFloats>;
constexpr int kSums = 12;  // covers a latency of 5 cycles at two a cycle, and leaves room in 16 registers

double seconds() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

}  // namespace

// GFLOP/s of one core over `iterations` rounds of kSums independent multiply-adds, all in registers.
LIGHTKERNELS_EXPORT double lightkernels_fma_gflops(int64_t iterations) {
  Floats sums[kSums], scale = splat<kFloats>(0.5f), term = splat<kFloats>(0.25f);
  unroll<kSums>(LIGHTKERNELS_LAMBDA(auto i) { sums[i] = splat<kFloats>(float(i)); });
  LIGHTKERNELS_TOUCH(scale);
  LIGHTKERNELS_TOUCH(term);
  const double start = seconds();
  for (int64_t n = 0; n < iterations; ++n) {
    unroll<kSums>(LIGHTKERNELS_LAMBDA(auto i) {
      sums[i] = sums[i] * scale + term;
      LIGHTKERNELS_TOUCH(sums[i]);
    });
  }
  return 2e-9 * double(iterations) * kSums * kFloats / (seconds() - start);
}

// GB/s, read plus written, of `repeats` copies of `bytes` bytes; a rest below one vector is left out of both.
LIGHTKERNELS_EXPORT double lightkernels_copy_gbps(void* dst, const void* src, int64_t bytes, int64_t repeats) {
  constexpr int kBlock = 4;
  const int64_t vectors = bytes / kVectorBytes;
  float* to = static_cast<float*>(dst);
  const float* from = static_cast<const float*>(src);
  const double start = seconds();
  for (int64_t n = 0; n < repeats; ++n) {
    int64_t v = 0;
    for (; v + kBlock <= vectors; v += kBlock) {
      Floats block[kBlock];
      unroll<kBlock>(LIGHTKERNELS_LAMBDA(auto i) { block[i] = load<kFloats>(from + (v + i) * kFloats); });
      unroll<kBlock>(LIGHTKERNELS_LAMBDA(auto i) { store<kFloats>(to + (v + i) * kFloats, block[i]); });
    }
    for (; v < vectors; ++v) store<kFloats>(to + v * kFloats, load<kFloats>(from + v * kFloats));
    asm volatile("" ::: "memory");  // so that no pass is dropped as a copy of the one before
  }
  return 2e-9 * double(vectors) * kVectorBytes * double(repeats) / (seconds() - start);
}

}  // namespace lightkernels::cpu
