// What the programs of `make kernel-alone` share: memory, samples, and a launch on one thread.
#pragma once

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdlib>
#include <functional>
#include <utility>
#include <vector>

#include "../csrc/launch.h"

extern "C" double lightkernels_fma_gflops(int64_t iterations);

namespace {

inline double seconds() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

inline float* filled(int64_t count, int period) {
  auto* p = static_cast<float*>(std::aligned_alloc(4096, (count * 4 + 8191) / 4096 * 4096));
  for (int64_t i = 0; i < count; ++i) p[i] = 0.1f * (i % period);
  return p;
}

// Seconds a call takes: the median over 25 samples of f and g, taken in turn.
inline std::pair<double, double> medians(const std::function<void()>& f, const std::function<void()>& g) {
  f();
  const double start = seconds();
  f();
  const int inner = std::max(1, static_cast<int>(5e-4 / std::max(seconds() - start, 1e-7)));
  std::vector<double> a, b;
  auto sample = [&](const std::function<void()>& call) {
    const double t = seconds();
    for (int i = 0; i < inner; ++i) call();
    return (seconds() - t) / inner;
  };
  for (int i = 0; i < 25; ++i) a.push_back(sample(f)), b.push_back(sample(g));
  std::sort(a.begin(), a.end()), std::sort(b.begin(), b.end());
  return {a[12], b[12]};
}

inline lightkernels::cpu::Launch on_one_thread(void* workspace) {
  using lightkernels::cpu::Launch;
  return {workspace, [](int64_t units, int64_t, Launch::Body body, void* context) { body(0, units, context); }};
}

}  // namespace
