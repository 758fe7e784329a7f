// Upsampling on NVIDIA GPUs: a thread gathers one pixel, or 16 bytes of its channels, forward and backward.
#include "../upsample2d.h"
#include "scalars.cuh"

namespace lightkernels::cuda {
namespace upsampling {

using Params = Upsample2dParams;

constexpr int kThreads = 256;
constexpr int64_t kMaxGridX = (int64_t{1} << 31) - 1;

// --- coordinates: as source_of (csrc/upsample2d.h) has them, no product and sum in one instruction -------------------
__device__ __forceinline__ float place(float o, float step, float half, bool bilinear) {
  const float at = __fmul_rn(__fadd_rn(o, half), step);
  return bilinear ? __fsub_rn(at, half) : at;
}
__device__ __forceinline__ double place(double o, double step, double half, bool bilinear) {
  const double at = __dmul_rn(__dadd_rn(o, half), step);
  return bilinear ? __dsub_rn(at, half) : at;
}

template <class A>
__device__ __forceinline__ Source<A> source(const ResampleAxis& axis, bool bilinear, int64_t o) {
  A at = place(static_cast<A>(o), static_cast<A>(axis.step), static_cast<A>(axis.half), bilinear);
  if (at < 0) at = 0;
  int64_t lower = static_cast<int64_t>(at);
  if (lower > axis.in - 1) lower = axis.in - 1;
  if (!bilinear) return {lower, lower, A(0)};
  const A weight = at - static_cast<A>(lower);
  return {lower, lower < axis.in - 1 ? lower + 1 : lower, weight < 1 ? weight : A(1)};
}

// Of float64 too, nearest has float's.
template <class A, bool BILINEAR>
__device__ __forceinline__ Source<A> source_at(const ResampleAxis& axis, int64_t o) {
  if constexpr (BILINEAR) return source<A>(axis, true, o);
  const Source<float> s = source<float>(axis, false, o);
  return {s.lower, s.upper, A(0)};
}

// What output o gives to input d.
template <class A>
__device__ __forceinline__ A weight_of(const Source<A>& s, int64_t d) {
  return (s.lower == d ? A(1) - s.upper_weight : A(0)) + (s.upper == d ? s.upper_weight : A(0));
}

// An output that is no later than the first which reads input d: two before where exact numbers have it.
__device__ __forceinline__ int64_t first_of(const ResampleAxis& axis, bool bilinear, int64_t d) {
  if (d == 0 || axis.step == 0) return 0;
  const double reach = bilinear ? static_cast<double>(d) - 1 + axis.half : static_cast<double>(d);
  const auto first = static_cast<int64_t>(reach / axis.step - axis.half) - 2;
  return first < 0 ? 0 : first < axis.out ? first : axis.out - 1;
}

// Position in an image in either format, of V channels at once.
struct Places {
  Divider c, h, w;  // of channels in vectors
  bool channels_last;
};

template <int V>
struct At {
  int64_t n, c, i, j;

  __device__ __forceinline__ At(const Places& places, int64_t index) {
    if (places.channels_last) {
      c = split(index, places.c) * V, j = split(index, places.w), i = split(index, places.h), n = index;
    } else {
      j = split(index, places.w), i = split(index, places.h), c = split(index, places.c), n = index;
    }
  }
};

__device__ __forceinline__ int64_t offset(const Params& p, int64_t n, int64_t c, int64_t i, int64_t j, int64_t h,
                                          int64_t w) {
  return p.channels_last ? ((n * h + i) * w + j) * p.c + c : ((n * p.c + c) * h + i) * w + j;
}

// traffic: l2 1.70, loads 1.11, stores 1.00, shared 1.00 (tests/test_gpu_traffic.py)
template <class T, int V, bool BILINEAR>
__global__ void __launch_bounds__(kThreads) upsample_forward(Params p, Places places, int64_t count) {
  using A = Sum<T>;
  const int64_t step = int64_t{gridDim.x} * kThreads;
  for (int64_t index = int64_t{blockIdx.x} * kThreads + threadIdx.x; index < count; index += step) {
    const At<V> at(places, index);
    const Source<A> h = source_at<A, BILINEAR>(p.h, at.i), w = source_at<A, BILINEAR>(p.w, at.j);
    const T* x = static_cast<const T*>(p.x);
    const auto read = [&](int64_t i, int64_t j, A(&v)[V]) { load(x + offset(p, at.n, at.c, i, j, p.h.in, p.w.in), v); };
    A sum[V];
    read(h.lower, w.lower, sum);
    if constexpr (BILINEAR) {
      A right[V], below[V], corner[V];
      read(h.lower, w.upper, right), read(h.upper, w.lower, below), read(h.upper, w.upper, corner);
#pragma unroll
      for (int k = 0; k < V; ++k) {
        const A top = sum[k] * (1 - w.upper_weight) + right[k] * w.upper_weight;
        const A bottom = below[k] * (1 - w.upper_weight) + corner[k] * w.upper_weight;
        sum[k] = top * (1 - h.upper_weight) + bottom * h.upper_weight;
      }
    }
    const int64_t to = offset(p, at.n, at.c, at.i, at.j, p.h.out, p.w.out);
    if (p.add) {
      A add[V];
      load(static_cast<const T*>(p.add) + to, add);
#pragma unroll
      for (int k = 0; k < V; ++k) sum[k] += add[k];
    }
    store(static_cast<T*>(p.y) + to, sum);
  }
}

// traffic: l2 1.84, loads 1.84, stores 1.00, shared 1.00 (tests/test_gpu_traffic.py)
template <class T, int V, bool BILINEAR>
__global__ void __launch_bounds__(kThreads, 1) upsample_backward(Params p, Places places, int64_t count) {
  using A = Sum<T>;
  const int64_t step = int64_t{gridDim.x} * kThreads;
  for (int64_t index = int64_t{blockIdx.x} * kThreads + threadIdx.x; index < count; index += step) {
    const At<V> at(places, index);
    A sum[V] = {};
    const int64_t left = first_of(p.w, BILINEAR, at.j);
    for (int64_t i = first_of(p.h, BILINEAR, at.i); i < p.h.out; ++i) {
      const Source<A> h = source_at<A, BILINEAR>(p.h, i);
      if (h.lower > at.i) break;
      if (h.upper < at.i) continue;
      const A of_row = BILINEAR ? weight_of(h, at.i) : A(1);
      for (int64_t j = left; j < p.w.out; ++j) {
        const Source<A> w = source_at<A, BILINEAR>(p.w, j);
        if (w.lower > at.j) break;
        if (w.upper < at.j) continue;
        const A weight = of_row * (BILINEAR ? weight_of(w, at.j) : A(1));
        A dy[V];
        load(static_cast<const T*>(p.dy) + offset(p, at.n, at.c, i, j, p.h.out, p.w.out), dy);
#pragma unroll
        for (int k = 0; k < V; ++k) sum[k] += dy[k] * weight;
      }
    }
    store(static_cast<T*>(p.dx) + offset(p, at.n, at.c, at.i, at.j, p.h.in, p.w.in), sum);
  }
}

// Of elements that are nothing but bytes.
// traffic: l2 1.21, loads 1.11, stores 1.00, shared 1.00 (tests/test_gpu_traffic.py)
template <class E>
__global__ void __launch_bounds__(kThreads) upsample_nearest(Params p, Places places, int64_t count) {
  const int64_t step = int64_t{gridDim.x} * kThreads;
  for (int64_t index = int64_t{blockIdx.x} * kThreads + threadIdx.x; index < count; index += step) {
    const At<1> at(places, index);
    const int64_t i = source<float>(p.h, false, at.i).lower, j = source<float>(p.w, false, at.j).lower;
    static_cast<E*>(p.y)[index] = __ldg(static_cast<const E*>(p.x) + offset(p, at.n, at.c, i, j, p.h.in, p.w.in));
  }
}

}  // namespace upsampling

namespace {

using namespace upsampling;  // NOLINT

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

dim3 blocks(int64_t count) {
  const int64_t wanted = (count + kThreads - 1) / kThreads;
  return dim3(static_cast<unsigned>(wanted < kMaxGridX ? wanted : kMaxGridX));
}

bool aligned(std::initializer_list<const void*> pointers) {
  for (const void* p : pointers) {
    if (reinterpret_cast<uintptr_t>(p) % 16) return false;
  }
  return true;
}

// f(type, V, bilinear, places, count) for an image of h by w pixels.
template <class F>
void with_vector(const Params& p, int64_t h, int64_t w, bool aligned, F&& f) {
  with_type(p.dtype, [&](auto type) {
    constexpr int kVector = 16 / sizeof(typename decltype(type)::type);
    const auto of = [&](auto vector) {
      constexpr int V = decltype(vector)::value;
      const Places places = {Divider(p.c / V), Divider(h), Divider(w), p.channels_last};
      const int64_t count = p.n * (p.c / V) * h * w;
      if (p.bilinear) return f(type, vector, std::true_type{}, places, count);
      f(type, vector, std::false_type{}, places, count);
    };
    if (p.channels_last && aligned && p.c % kVector == 0) return of(std::integral_constant<int, kVector>{});
    of(std::integral_constant<int, 1>{});
  });
}

}  // namespace

int64_t upsample2d_workspace(const Upsample2dParams&) { return 0; }

void upsample2d_forward(const Upsample2dParams& p, const Launch& launch) {
  if (!p.bilinear && !p.add) {
    const Places places = {Divider(p.c), Divider(p.h.out), Divider(p.w.out), p.channels_last};
    const int64_t count = p.n * p.c * p.h.out * p.w.out;
    const auto kernel = p.bytes == 1   ? upsample_nearest<unsigned char>
                        : p.bytes == 2 ? upsample_nearest<unsigned short>  // NOLINT
                        : p.bytes == 4 ? upsample_nearest<unsigned>
                                       : upsample_nearest<uint2>;
    return launch_kernel(kernel, blocks(count), dim3(kThreads), 0, launch.stream, p, places, count);
  }
  with_vector(p, p.h.out, p.w.out, aligned({p.x, p.add, p.y}),
              [&](auto type, auto vector, auto bilinear, const Places& places, int64_t count) {
                launch_kernel(
                    upsample_forward<typename decltype(type)::type, decltype(vector)::value, decltype(bilinear)::value>,
                    blocks(count), dim3(kThreads), 0, launch.stream, p, places, count);
              });
}

void upsample2d_backward(const Upsample2dParams& p, const Launch& launch) {
  with_vector(
      p, p.h.in, p.w.in, aligned({p.dy, p.dx}),
      [&](auto type, auto vector, auto bilinear, const Places& places, int64_t count) {
        launch_kernel(
            upsample_backward<typename decltype(type)::type, decltype(vector)::value, decltype(bilinear)::value>,
            blocks(count), dim3(kThreads), 0, launch.stream, p, places, count);
      });
}

void upsample2d_repeat(const MoveParams& p, const Launch& launch) { move(p, launch); }

}  // namespace lightkernels::cuda
