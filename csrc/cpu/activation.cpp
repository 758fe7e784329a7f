// Activations on their own: one pass over memory, whatever the tensor's shape. prelu's slopes lie along channels, which
// are innermost or in whole planes, and its dslope is summed in parts whose number the shape decides.
#include "../activation.h"

#include <algorithm>

#include "activations.h"

namespace lightkernels::cpu {
namespace {

constexpr int64_t kGrain = 16384;   // elements that are worth a thread
constexpr int64_t kSegment = 4096;  // elements of a part of dslope, where there are no channels

// to[i .. i + L) = f(i) for i = 0, L, 2L, ... so that [i, i + L) covers `count` >= L: the last vector slides back to
// end there. Four are computed before the first is stored: from memory, hardswish's derivative then takes two thirds of
// the time.
template <int L, class T, class F>
LIGHTKERNELS_INLINE void for_vectors(T* to, int64_t count, F&& f) {
  constexpr int kTogether = 4;
  int64_t i = 0;
  for (; i + kTogether * L <= count; i += kTogether * L) {
    Vec<Acc<T>, L> v[kTogether];
    unroll<kTogether>(LIGHTKERNELS_LAMBDA(auto k) { v[k] = f(i + k * L); });
    unroll<kTogether>(LIGHTKERNELS_LAMBDA(auto k) { store<L>(to + i + k * L, v[k]); });
  }
  for (; i + L < count; i += L) store<L>(to + i, f(i));
  if (i < count) store<L>(to + count - L, f(count - L));
}

// y of `count` elements. alpha(i) is the parameter of the elements from i on.
template <Activation kActivation, class T, class Alpha>
LIGHTKERNELS_INLINE void forward_run(const T* x, T* y, int64_t count, Alpha&& alpha) {
  constexpr int L = lanes<T>();
  using A = Acc<T>;
  if (count < L) {
    return store_first<L>(y, activate<kActivation, L, A>(load_first<L>(x, count), alpha(0)), count);
  }
  for_vectors<L>(
      y, count, LIGHTKERNELS_LAMBDA(int64_t i) { return activate<kActivation, L, A>(load<L>(x + i), alpha(i)); });
}

template <Activation kActivation, class T, class Alpha>
LIGHTKERNELS_INLINE void backward_run(const T* dy, const T* x, T* dx, int64_t count, Alpha&& alpha) {
  constexpr int L = lanes<T>();
  using A = Acc<T>;
  if (count < L) {
    const auto g = derivative<kActivation, L, A>(load_first<L>(dy, count), load_first<L>(x, count), alpha(0));
    return store_first<L>(dx, g, count);
  }
  for_vectors<L>(
      dx, count, LIGHTKERNELS_LAMBDA(int64_t i) {
        auto g = load<L>(dy + i), z = load<L>(x + i);
        keep_in_register(g);  // else GCC loads by the mask of a comparison with z: only when z is there
        keep_in_register(z);
        return derivative<kActivation, L, A>(g, z, alpha(i));
      });
}

// --- without channels ------------------------------------------------------------------------------------------------
// f(begin, end) over all elements, cut where a vector ends, by several threads.
template <class T, class F>
void over_elements(const ActivationParams& p, const Launch& launch, F&& f) {
  constexpr int64_t kUnit = 64;
  const int64_t count = p.rows * p.channels * p.inner;
  launch.parallel((count + kUnit - 1) / kUnit, kGrain / kUnit,
                  [&](int64_t begin, int64_t end) { f(begin * kUnit, std::min(end * kUnit, count)); });
}

template <class T>
void forward_flat(const ActivationParams& p, const Launch& launch) {
  using A = Acc<T>;
  const T* x = static_cast<const T*>(p.x);
  T* y = static_cast<T*>(p.y);
  with_activation(p.activation, [&](auto constant) {
    over_elements<T>(p, launch, [&](int64_t begin, int64_t end) {
      const auto alpha = splat<lanes<T>()>(static_cast<A>(p.alpha));
      forward_run<decltype(constant)::value>(
          x + begin, y + begin, end - begin, LIGHTKERNELS_LAMBDA(int64_t) { return alpha; });
    });
  });
}

template <class T>
void backward_flat(const ActivationParams& p, const Launch& launch) {
  using A = Acc<T>;
  const T *x = static_cast<const T*>(p.x), *dy = static_cast<const T*>(p.dy);
  T* dx = static_cast<T*>(p.dx);
  with_activation(p.activation, [&](auto constant) {
    over_elements<T>(p, launch, [&](int64_t begin, int64_t end) {
      const auto alpha = splat<lanes<T>()>(static_cast<A>(p.alpha));
      backward_run<decltype(constant)::value>(
          dy + begin, x + begin, dx + begin, end - begin, LIGHTKERNELS_LAMBDA(int64_t) { return alpha; });
    });
  });
}

// --- prelu -----------------------------------------------------------------------------------------------------------
template <class T>
Acc<T> widen(const T* p) {
  return load_first<lanes<T>()>(p, 1)[0];
}

// f(first element, count, slope of the first, part) for every run of elements with one slope (`step` 0) or with one for
// each (`step` 1). Parts of dslope do not share a run, and runs of one part are one thread's.
struct Runs {
  int64_t count, length, parts;  // of runs; of each but the last; of dslope, for each channel

  explicit Runs(const ActivationParams& p) {
    const int64_t total = p.rows * p.channels * p.inner;
    if (p.channels == 1) {
      count = parts = (total + kSegment - 1) / kSegment, length = kSegment;
    } else if (p.inner > 1) {
      count = p.rows * p.channels, length = p.inner, parts = p.rows;
    } else {
      count = p.rows, length = p.channels;
      parts = std::min<int64_t>(p.rows, std::max<int64_t>(1, std::min<int64_t>(256, total / kGrain)));
    }
  }
};

template <class T>
void forward_prelu(const ActivationParams& p, const Launch& launch) {
  const T *x = static_cast<const T*>(p.x), *slope = static_cast<const T*>(p.slope);
  T* y = static_cast<T*>(p.y);
  constexpr int L = lanes<T>();
  const Runs runs(p);
  const int64_t total = p.rows * p.channels * p.inner;
  launch.parallel(runs.count, 1 + kGrain / runs.length, [&](int64_t begin, int64_t end) {
    for (int64_t run = begin; run < end; ++run) {
      const int64_t first = run * runs.length, count = std::min(runs.length, total - first);
      if (p.channels > 1 && p.inner == 1) {
        forward_run<Activation::kPrelu>(
            x + first, y + first, count,
            LIGHTKERNELS_LAMBDA(int64_t c) { return load_up_to<L>(slope + c, p.channels - c); });
      } else {
        const auto alpha = splat<L>(widen(slope + run % p.channels));
        forward_run<Activation::kPrelu>(x + first, y + first, count, LIGHTKERNELS_LAMBDA(int64_t) { return alpha; });
      }
    }
  });
}

// Sums of dy * x where x is not positive. The last vector slides back: what it meets again counts once.
template <class T>
Acc<T> slope_sum(const T* dy, const T* x, int64_t count) {
  constexpr int L = lanes<T>();
  using V = Vec<Acc<T>, L>;
  V total{};
  const auto add = LIGHTKERNELS_LAMBDA(V g, V z) { total += z > Acc<T>(0) ? V{} : g * z; };
  int64_t i = 0;
  for (; i + L <= count; i += L) add(load<L>(dy + i), load<L>(x + i));
  if (i < count) add(load_first<L>(dy + i, count - i), load_first<L>(x + i, count - i));
  return sum(total);
}

template <class T>
void backward_prelu(const ActivationParams& p, const Launch& launch) {
  using A = Acc<T>;
  constexpr int L = lanes<T>();
  const T *x = static_cast<const T*>(p.x), *dy = static_cast<const T*>(p.dy), *slope = static_cast<const T*>(p.slope);
  T *dx = static_cast<T*>(p.dx), *dslope = static_cast<T*>(p.dslope);
  A* partial = static_cast<A*>(launch.workspace);  // [parts, channels]
  const Runs runs(p);
  const int64_t total = p.rows * p.channels * p.inner;
  if (p.channels > 1 && p.inner == 1) {
    launch.parallel(runs.parts, 1 + kGrain * runs.parts / total, [&](int64_t begin, int64_t end) {
      for (int64_t part = begin; part < end; ++part) {
        A* sums = partial + part * p.channels;
        std::fill(sums, sums + p.channels, A(0));
        for (int64_t row = part * p.rows / runs.parts; row < (part + 1) * p.rows / runs.parts; ++row) {
          const int64_t first = row * p.channels;
          backward_run<Activation::kPrelu>(
              dy + first, x + first, dx + first, p.channels,
              LIGHTKERNELS_LAMBDA(int64_t c) { return load_up_to<L>(slope + c, p.channels - c); });
          for (int64_t c = 0; c < p.channels; c += L) {
            const int64_t count = p.channels - c;
            const auto z = load_up_to<L>(x + first + c, count), g = load_up_to<L>(dy + first + c, count);
            const auto old = load_up_to<L>(sums + c, count);
            store_up_to<L>(sums + c, old + (z > A(0) ? Vec<A, L>{} : g * z), count);
          }
        }
      }
    });
  } else {
    launch.parallel(runs.count, 1 + kGrain / runs.length, [&](int64_t begin, int64_t end) {
      for (int64_t run = begin; run < end; ++run) {
        const int64_t first = run * runs.length, count = std::min(runs.length, total - first);
        const auto alpha = splat<L>(widen(slope + run % p.channels));
        backward_run<Activation::kPrelu>(
            dy + first, x + first, dx + first, count, LIGHTKERNELS_LAMBDA(int64_t) { return alpha; });
        partial[run] = slope_sum(dy + first, x + first, count);
      }
    });
  }
  for (int64_t c = 0; c < p.channels; c += L) {
    const int64_t count = p.channels - c;
    Vec<A, L> sums{};
    for (int64_t part = 0; part < runs.parts; ++part) sums += load_up_to<L>(partial + part * p.channels + c, count);
    store_up_to<L>(dslope + c, sums, count);
  }
}

}  // namespace

int64_t activation_backward_workspace(const ActivationParams& p) {
  if (p.activation != Activation::kPrelu) return 0;
  return Runs(p).parts * p.channels * (p.dtype == DType::kFloat64 ? 8 : 4);
}

void activation_forward(const ActivationParams& p, const Launch& launch) {
  with_type(p.dtype, [&](auto zero) {
    using T = decltype(zero);
    if (p.activation == Activation::kPrelu) return forward_prelu<T>(p, launch);
    forward_flat<T>(p, launch);
  });
}

void activation_backward(const ActivationParams& p, const Launch& launch) {
  with_type(p.dtype, [&](auto zero) {
    using T = decltype(zero);
    if (p.activation == Activation::kPrelu) return backward_prelu<T>(p, launch);
    backward_flat<T>(p, launch);
  });
}

}  // namespace lightkernels::cpu
