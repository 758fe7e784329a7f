// Activations on their own, on NVIDIA GPUs: a thread takes 16 bytes at once, wherever they lie. prelu's dslope is
// summed in two passes, in a fixed order.
#include "../activation.h"
#include "epilogue.cuh"
#include "sums.cuh"

namespace lightkernels::cuda {
namespace activations {

using Params = ActivationParams;

constexpr int kThreads = 256;
constexpr int kFinishGroups = 8;  // of a warp of channels each
constexpr int64_t kMaxGridX = (int64_t{1} << 31) - 1, kTargetBlocks = 1024, kMaxSplits = 512;

// --- forward, and backward without slopes ----------------------------------------------------------------------------
struct Elements {
  int64_t count;
  Divider inner, channels;
};

// alpha[i] of the V elements from `first` on.
template <int V, class T>
__device__ __forceinline__ void alphas(const Params& p, const Elements& e, int64_t first, Sum<T> (&alpha)[V]) {
  const T* slope = static_cast<const T*>(p.slope);
  if (p.activation != Activation::kPrelu || p.channels == 1) {
    const Sum<T> one = p.activation == Activation::kPrelu ? load(slope) : static_cast<Sum<T>>(p.alpha);
#pragma unroll
    for (int i = 0; i < V; ++i) alpha[i] = one;
    return;
  }
  int64_t channel = first, at = split(channel, e.inner);
  channel = split(channel, e.channels);
  Sum<T> now = load(slope + channel);
#pragma unroll
  for (int i = 0; i < V; ++i) {
    if (at == p.inner) {
      at = 0;
      channel = channel + 1 == p.channels ? 0 : channel + 1;
      now = load(slope + channel);
    }
    alpha[i] = now;
    ++at;
  }
}

// V elements from `first` on; beyond the tensor's end they are 0, and are not written.
template <int V, class T>
__device__ __forceinline__ void load_until(int64_t count, const T* p, int64_t first, Sum<T> (&v)[V]) {
  if (first + V <= count) return load(p + first, v);
#pragma unroll
  for (int i = 0; i < V; ++i) v[i] = first + i < count ? load(p + first + i) : Sum<T>(0);
}

template <int V, class T>
__device__ __forceinline__ void store_until(int64_t count, T* p, int64_t first, const Sum<T> (&v)[V]) {
  if (first + V <= count) return store(p + first, v);
#pragma unroll
  for (int i = 0; i < V; ++i) {
    if (first + i < count) store(p + first + i, v[i]);
  }
}

// traffic: l2 1.00, loads 1.00, stores 1.00, shared 1.00 (tests/test_gpu_traffic.py)
template <class T, int V>
__global__ void __launch_bounds__(kThreads) activate_each(Params p, Elements e) {
  const int64_t step = int64_t{gridDim.x} * kThreads * V;
  for (int64_t i = (int64_t{blockIdx.x} * kThreads + threadIdx.x) * V; i < e.count; i += step) {
    Sum<T> z[V], alpha[V];
    load_until(e.count, static_cast<const T*>(p.x), i, z);
    alphas<V, T>(p, e, i, alpha);
    activate(p.activation, z, [&](int k) { return alpha[k]; });
    store_until(e.count, static_cast<T*>(p.y), i, z);
  }
}

// traffic: l2 1.00, loads 1.00, stores 1.00, shared 1.00 (tests/test_gpu_traffic.py)
template <class T, int V>
__global__ void __launch_bounds__(kThreads) derive_each(Params p, Elements e) {
  const int64_t step = int64_t{gridDim.x} * kThreads * V;
  for (int64_t i = (int64_t{blockIdx.x} * kThreads + threadIdx.x) * V; i < e.count; i += step) {
    Sum<T> z[V], dy[V];
    load_until(e.count, static_cast<const T*>(p.x), i, z);
    load_until(e.count, static_cast<const T*>(p.dy), i, dy);
    with_activation(p.activation, [&](auto constant) {
#pragma unroll
      for (int k = 0; k < V; ++k) {
        dy[k] = derivative<decltype(constant)::value>(dy[k], z[k], static_cast<Sum<T>>(p.alpha));
      }
    });
    store_until(e.count, static_cast<T*>(p.dx), i, dy);
  }
}

// --- prelu's backward ------------------------------------------------------------------------------------------------
// `count` units of work (vectors of a channel, or rows), in `splits` parts of `per_split`.
struct Cut {
  int64_t count, splits, per_split;
  int64_t vectors, step_rows, step_at;  // of a plane; what kThreads vectors are, in whole planes and the rest

  Cut(int64_t count_, int64_t blocks, int64_t per_pass, int64_t vectors_)
      : count(count_), vectors(vectors_), step_rows(kThreads / vectors_), step_at(kThreads % vectors_) {
    int64_t most = count / (per_pass * 4);  // a split is worth four passes
    const int64_t wanted = (kTargetBlocks + blocks - 1) / blocks;
    if (most > wanted) most = wanted;
    if (most > kMaxSplits) most = kMaxSplits;
    if (most < 1) most = 1;
    per_split = (count + most - 1) / most;
    splits = (count + per_split - 1) / per_split;
  }
};

// dx and the sum of dslope over one part of a channel's elements, which lie in planes.
// traffic: l2 1.00, loads 1.00, stores 1.00, shared 1.00 (tests/test_gpu_traffic.py)
template <class T, int V, class A>
__global__ void __launch_bounds__(kThreads, 4) prelu_backward_planes(Params p, Cut cut, A* partial) {
  __shared__ A shared[kThreads / kWarp][1];
  const int64_t begin = blockIdx.y * cut.per_split;
  const int64_t end = begin + cut.per_split < cut.count ? begin + cut.per_split : cut.count;
  for (int64_t c = blockIdx.x; c < p.channels; c += gridDim.x) {
    const A alpha = load(static_cast<const T*>(p.slope) + c);
    A total[1] = {0};
    int64_t row = (begin + threadIdx.x) / cut.vectors, at = begin + threadIdx.x - row * cut.vectors;
    for (int64_t j = begin + threadIdx.x; j < end; j += kThreads) {
      const int64_t i = (row * p.channels + c) * p.inner + at * V;
      row += cut.step_rows, at += cut.step_at;
      if (at >= cut.vectors) at -= cut.vectors, ++row;
      A z[V], dy[V];
      load(static_cast<const T*>(p.x) + i, z);
      load(static_cast<const T*>(p.dy) + i, dy);
#pragma unroll
      for (int k = 0; k < V; ++k) {
        total[0] += z[k] > A(0) ? A(0) : dy[k] * z[k];
        dy[k] = derivative<Activation::kPrelu>(dy[k], z[k], alpha);
      }
      store(static_cast<T*>(p.dx) + i, dy);
    }
    const A* sum = sum_over_block<kThreads>(total, shared);
    if (threadIdx.x == 0) partial[blockIdx.y * p.channels + c] = sum[0];
    __syncthreads();
  }
}

// The same of V channels to a lane, where channels are innermost: threadIdx.y goes down the rows.
// traffic: l2 1.01, loads 1.00, stores 1.11, shared 1.00 (tests/test_gpu_traffic.py)
template <class T, int V, class A>
__global__ void __launch_bounds__(kThreads) prelu_backward_rows(Params p, Cut cut, A* partial) {
  __shared__ A shared[V][kThreads];
  const int64_t c = (int64_t{blockIdx.x} * blockDim.x + threadIdx.x) * V, begin = blockIdx.y * cut.per_split;
  const int64_t end = begin + cut.per_split < cut.count ? begin + cut.per_split : cut.count;
  const unsigned me = threadIdx.y * blockDim.x + threadIdx.x;
  A total[V] = {}, alpha[V];
  if (c < p.channels) {
    load(static_cast<const T*>(p.slope) + c, alpha);
    for (int64_t row = begin + threadIdx.y; row < end; row += blockDim.y) {
      const int64_t i = row * p.channels + c;
      A z[V], dy[V];
      load(static_cast<const T*>(p.x) + i, z);
      load(static_cast<const T*>(p.dy) + i, dy);
#pragma unroll
      for (int k = 0; k < V; ++k) {
        total[k] += z[k] > A(0) ? A(0) : dy[k] * z[k];
        dy[k] = derivative<Activation::kPrelu>(dy[k], z[k], alpha[k]);
      }
      store(static_cast<T*>(p.dx) + i, dy);
    }
  }
#pragma unroll
  for (int k = 0; k < V; ++k) shared[k][me] = total[k];
  __syncthreads();
  if (threadIdx.y || c >= p.channels) return;
  for (unsigned g = 1; g < blockDim.y; ++g) {
#pragma unroll
    for (int k = 0; k < V; ++k) total[k] += shared[k][g * blockDim.x + threadIdx.x];
  }
#pragma unroll
  for (int k = 0; k < V; ++k) partial[blockIdx.y * p.channels + c + k] = total[k];
}

// dslope [c] from partial [splits, c].
// traffic: l2 1.00, loads 1.00, stores 1.00, shared 1.00 (tests/test_gpu_traffic.py)
template <class T, class A>
__global__ void __launch_bounds__(kWarp* kFinishGroups)
    prelu_backward_finish(Params p, int64_t splits, const A* partial) {
  __shared__ A shared[kFinishGroups][kWarp];
  const int64_t c = int64_t{blockIdx.x} * kWarp + threadIdx.x;
  A total = 0;
  if (c < p.channels) {
    for (int64_t s = threadIdx.y; s < splits; s += kFinishGroups) total += partial[s * p.channels + c];
  }
  shared[threadIdx.y][threadIdx.x] = total;
  __syncthreads();
  if (threadIdx.y || c >= p.channels) return;
  for (int g = 1; g < kFinishGroups; ++g) total += shared[g][threadIdx.x];
  store(static_cast<T*>(p.dslope) + c, total);
}

}  // namespace activations

namespace {

using namespace activations;  // NOLINT

// --- host ------------------------------------------------------------------------------------------------------------
template <class T>
struct Type {
  using type = T;
};

template <class F>
void with_type(DType dtype, F&& f) {
  if (dtype == DType::kFloat32) return f(Type<float>{});
  if (dtype == DType::kFloat16) return f(Type<__half>{});
  if (dtype == DType::kBFloat16) return f(Type<__nv_bfloat16>{});
  f(Type<double>{});
}

// f(Type<T>, Int<V>): V elements are 16 bytes, or one where `whole` says that tensors do not lie so.
template <class F>
void with_vector(const Params& p, bool whole, F&& f) {
  with_type(p.dtype, [&](auto type) {
    if (whole) return f(type, std::integral_constant<int, 16 / sizeof(typename decltype(type)::type)>{});
    f(type, std::integral_constant<int, 1>{});
  });
}

bool aligned(std::initializer_list<const void*> pointers) {
  for (const void* p : pointers) {
    if (reinterpret_cast<uintptr_t>(p) % 16) return false;
  }
  return true;
}

unsigned blocks(int64_t count) { return static_cast<unsigned>(count < kMaxGridX ? count : kMaxGridX); }

Elements elements(const Params& p) { return {p.rows * p.channels * p.inner, Divider(p.inner), Divider(p.channels)}; }

struct Backward {
  bool rows;  // channels are innermost
  int vector;
  unsigned lanes, groups;
  Cut cut;
};

// A workspace is asked for before its pointers are known: `whole` must not depend on them there, nor do the splits.
Backward backward_of(const Params& p, bool aligned) {
  const int whole = static_cast<int>(16 / size_of(p.dtype));
  const bool rows = p.channels > 1 && p.inner == 1;
  const int vector = aligned && (rows ? p.channels : p.inner) % whole == 0 ? whole : 1;
  if (!rows) {
    const int64_t vectors = p.inner / vector;
    return {false, vector, 0, 0, Cut(p.rows * vectors, p.channels, kThreads, vectors)};
  }
  int64_t lanes = 1;
  while (lanes < kThreads && lanes * vector < p.channels) lanes *= 2;
  const int64_t groups = kThreads / lanes, across = (p.channels + lanes * vector - 1) / (lanes * vector);
  return {true, vector, static_cast<unsigned>(lanes), static_cast<unsigned>(groups), Cut(p.rows, across, groups, 1)};
}

}  // namespace

int64_t activation_backward_workspace(const ActivationParams& p) {
  if (p.activation != Activation::kPrelu) return 0;
  const int64_t one = backward_of(p, false).cut.splits, whole = backward_of(p, true).cut.splits;
  return (one > whole ? one : whole) * p.channels * (p.dtype == DType::kFloat64 ? 8 : 4);
}

void activation_forward(const ActivationParams& p, const Launch& launch) {
  const Elements e = elements(p);
  with_vector(p, aligned({p.x, p.y}), [&](auto type, auto vector) {
    constexpr int kVector = decltype(vector)::value;
    launch_kernel(activate_each<typename decltype(type)::type, kVector>,
                  dim3(blocks((e.count + kThreads * kVector - 1) / (kThreads * kVector))), dim3(kThreads), 0,
                  launch.stream, p, e);
  });
}

void activation_backward(const ActivationParams& p, const Launch& launch) {
  if (p.activation != Activation::kPrelu) {
    const Elements e = elements(p);
    return with_vector(p, aligned({p.x, p.dy, p.dx}), [&](auto type, auto vector) {
      constexpr int kVector = decltype(vector)::value;
      launch_kernel(derive_each<typename decltype(type)::type, kVector>,
                    dim3(blocks((e.count + kThreads * kVector - 1) / (kThreads * kVector))), dim3(kThreads), 0,
                    launch.stream, p, e);
    });
  }
  const bool in_rows = p.channels > 1 && p.inner == 1;
  const Backward b = backward_of(p, aligned({p.x, p.dy, p.dx, in_rows ? p.slope : nullptr}));
  with_vector(p, b.vector > 1, [&](auto type, auto vector) {
    using T = typename decltype(type)::type;
    constexpr int kVector = decltype(vector)::value;
    auto* partial = static_cast<Sum<T>*>(launch.workspace);
    const auto splits = static_cast<unsigned>(b.cut.splits);
    if (b.rows) {
      const int64_t across = (p.channels + int64_t{b.lanes} * kVector - 1) / (int64_t{b.lanes} * kVector);
      launch_kernel(prelu_backward_rows<T, kVector, Sum<T>>, dim3(blocks(across), splits), dim3(b.lanes, b.groups), 0,
                    launch.stream, p, b.cut, partial);
    } else {
      launch_kernel(prelu_backward_planes<T, kVector, Sum<T>>, dim3(blocks(p.channels), splits), dim3(kThreads), 0,
                    launch.stream, p, b.cut, partial);
    }
    launch_kernel(prelu_backward_finish<T, Sum<T>>, dim3(blocks((p.channels + kWarp - 1) / kWarp)),
                  dim3(kWarp, kFinishGroups), 0, launch.stream, p, b.cut.splits, static_cast<const Sum<T>*>(partial));
  });
}

}  // namespace lightkernels::cuda
