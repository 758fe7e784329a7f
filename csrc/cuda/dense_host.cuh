// Which kernel answers which dense convolution: operands, tiles, grids.
#pragma once

#include <initializer_list>
#include <numeric>
#include <stdexcept>

#include "dense_conv2d.cuh"

namespace lightkernels::cuda::dense {

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

template <class F>
void with_type(DType dtype, F&& f) {
  switch (dtype) {
    case DType::kFloat32:
      return f(float{});
    case DType::kFloat64:
      return f(double{});
    case DType::kFloat16:
      return f(__half{});
    case DType::kBFloat16:
      return f(__nv_bfloat16{});
  }
}

// --- what can be read or written 16 bytes at once --------------------------------------------------------------------
// Strides over one element do not matter.
inline bool whole_chunks(const void* data, int64_t element, int64_t channels, int64_t channel_stride,
                         std::initializer_list<std::pair<int64_t, int64_t>> sizes_and_strides) {
  const int64_t vector = kChunk / element;
  if (channel_stride != 1 || channels % vector || reinterpret_cast<uintptr_t>(data) % kChunk) return false;
  for (const auto& [size, stride] : sizes_and_strides) {
    if (size > 1 && stride % vector) return false;
  }
  return true;
}

inline bool image_chunks(const void* data, int64_t element, int64_t channels, const Strides4& s, int64_t n, int64_t h,
                         int64_t w) {
  return whole_chunks(data, element, channels, s.c, {{n, s.n}, {h, s.h}, {w, s.w}});
}

// Those over one element as 0: else no promise of alignment would hold for pixels outside, which are named, not read.
inline Strides4 strides_of(const Strides4& s, int64_t n, int64_t h, int64_t w) {
  return {n > 1 ? s.n : 0, s.c, h > 1 ? s.h : 0, w > 1 ? s.w : 0};
}

// Channels as planes without gaps, in whole chunks of 16-bit pixels.
inline bool image_planes(const void* data, int64_t element, int64_t channels, const Strides4& s, int64_t n, int64_t h,
                         int64_t w) {
  return element == 2 && (h == 1 || s.h == w * s.w) &&
         whole_chunks(data, element, h * w, w > 1 ? s.w : 1, {{n, s.n}, {channels, s.c}});
}

// A product of x as it lies and weight.
inline bool is_product(const DenseConv2dParams& p) {
  return p.kh == 1 && p.kw == 1 && p.stride_h == 1 && p.stride_w == 1 && p.padding_t == 0 && p.padding_l == 0 &&
         p.oh == p.ih && p.ow == p.iw;
}

// Coordinates of a pixel and a tap, and their sums, are counted in 31 bits.
inline bool small(const DenseConv2dParams& p) {
  constexpr int64_t kMost = int64_t{1} << 29;
  for (int64_t size : {p.ih, p.iw, p.oh, p.ow, p.padding_t, -p.padding_t, p.padding_l, -p.padding_l, p.kh, p.kw}) {
    if (size >= kMost) return false;
  }
  return p.oh < kMost / p.stride_h && p.ow < kMost / p.stride_w && p.kh < kMost / p.dilation_h &&
         p.kw < kMost / p.dilation_w;
}

// --- weight ----------------------------------------------------------------------------------------------------------
// As the product reads it: rows of [kh][kw][k], k in whole chunks. Weight that does not lie so is packed first.
struct WeightRows {
  int64_t rows, k;                   // of a group
  int64_t group, row, column, u, v;  // strides in elements
  int64_t vectors;                   // chunks of a tap
  bool as_it_is;
};

inline WeightRows weight_rows(const DenseConv2dParams& p, bool backward) {
  const int64_t element = size_of(p.dtype), vector = kChunk / element;
  const Strides4& s = p.weight_strides;
  WeightRows w{};
  w.rows = backward ? p.ci : p.co, w.k = backward ? p.co : p.ci;
  w.group = p.co * s.n, w.row = backward ? s.c : s.n, w.column = backward ? s.n : s.c, w.u = s.h, w.v = s.w;
  w.vectors = ceil_div(w.k, vector);
  w.as_it_is = whole_chunks(p.weight, element, w.k, w.column,
                            {{p.groups, w.group}, {w.rows, w.row}, {p.kh, w.u}, {p.kw, w.v}}) &&
               (p.groups == 1 || w.group == w.rows * w.row);
  return w;
}

inline int64_t packed_weight_bytes(const DenseConv2dParams& p, bool backward) {
  const WeightRows w = weight_rows(p, backward);
  return w.as_it_is ? 0 : p.groups * w.rows * p.kh * p.kw * w.vectors * kChunk;
}

template <bool ONE>
void pack(const DenseConv2dParams& p, const WeightRows& w, void* packed, void* stream) {
  Packing k{};
  k.weight = p.weight, k.packed = packed;
  k.group_rows = w.group, k.row = w.row, k.column = w.column, k.stride_u = w.u, k.stride_v = w.v;
  k.ci = w.k, k.chunks = p.groups * w.rows * p.kh * p.kw * w.vectors;
  k.vectors = Divider(w.vectors), k.taps_w = Divider(p.kw), k.taps_h = Divider(p.kh), k.rows = Divider(w.rows);
  const int64_t blocks = ceil_div(k.chunks, 256);
  with_type(p.dtype, [&](auto type) {
    launch_kernel(pack_weight<decltype(type), ONE>, dim3(static_cast<unsigned>(blocks < 4096 ? blocks : 4096)),
                  dim3(256), 0, stream, k);
  });
}

// --- the product -----------------------------------------------------------------------------------------------------
template <class T>
using Large = std::conditional_t<sizeof(T) == 2, Tile<128, 128, 2, 4, 3>, Tile<128, 128, 4, 2, 3>>;
using Medium = Tile<64, 64, 2, 2, 4>;
using Narrow = Tile<128, 32, 4, 1, 4>;
constexpr int64_t kBlocks = 216;  // two for each multiprocessor of an A100

template <class T, class Tile, Copy COPY, bool ONE>
void launch_product(Problem p, const Result& r, int64_t groups, void* stream) {
  const int64_t tiles_n = ceil_div(p.co, Tile::kN), tiles_m = ceil_div(p.lines, Tile::kM);
  const double blocks = 1.0 * tiles_n * tiles_m * groups * p.classes;
  if (blocks >= 2147483648.0) throw std::runtime_error("a dense convolution takes more blocks than a grid holds");
  p.tiles_n = Divider(tiles_n), p.tiles_m = Divider(tiles_m), p.groups = Divider(groups);
  launch_kernel(convolve<T, Tile, COPY, ONE>, dim3(static_cast<unsigned>(blocks)), dim3(Tile::kThreads), 0, stream, p,
                r);
}

template <class T, Copy COPY, bool ONE>
void choose_tile(const Problem& p, const Result& r, int64_t groups, void* stream) {
  if constexpr (sizeof(T) == 8) {
    launch_product<T, Medium, COPY, ONE>(p, r, groups, stream);
  } else {
    const bool enters = p.input_activation != Activation::kNone || p.input_gate;  // which large tiles have no room for
    const int64_t large = ceil_div(p.lines, 128) * ceil_div(p.co, 128) * groups * p.classes;
    if (COPY == Copy::kAsync && p.co <= 32 && ceil_div(p.lines, 128) * groups * p.classes >= kBlocks) {
      if constexpr (COPY == Copy::kAsync) launch_product<T, Narrow, COPY, ONE>(p, r, groups, stream);
    } else if (large >= kBlocks && !enters && (p.co % 128 == 0 || p.co % 128 > 64 || p.co > 512)) {
      launch_product<T, Large<T>, COPY, ONE>(p, r, groups, stream);
    } else {
      launch_product<T, Medium, COPY, ONE>(p, r, groups, stream);
    }
  }
}

inline Result forward_result(const DenseConv2dParams& p) {
  const int64_t element = size_of(p.dtype), channels = p.groups * p.co;
  const Epilogue& e = p.epilogue;
  Result r{};
  r.y = p.y, r.strides = strides_of(p.y_strides, p.n, p.oh, p.ow), r.h = p.oh, r.w = p.ow;
  r.shuffle = p.shuffle, r.per_shuffle = channels / p.shuffle;
  r.chunks = p.shuffle == 1 && image_chunks(p.y, element, p.co, p.y_strides, p.n, p.oh, p.ow);
  r.residual_chunks = e.residual && image_chunks(e.residual, element, p.co, e.residual_strides, p.n, p.oh, p.ow);
  r.vector_chunks = true;
  for (const void* vector : {e.scale, e.bias, e.slope}) r.vector_chunks &= whole_chunks(vector, element, p.co, 1, {});
  r.gate_chunks = whole_chunks(e.gate, element, p.co, e.gate_c, {{p.n, e.gate_n}});
  r.pixels_first = p.y_strides.w < p.y_strides.c;
  r.epilogue = e;
  return r;
}

// Everything but the weight.
inline Problem forward_problem(const DenseConv2dParams& p) {
  Problem k{};
  k.x = p.x, k.x_strides = strides_of(p.x_strides, p.n, p.ih, p.iw), k.ih = p.ih, k.iw = p.iw;
  k.ci = p.ci, k.co = p.co, k.lines = p.n * p.oh * p.ow, k.kh = p.kh, k.kw = p.kw;
  k.stride_h = p.stride_h, k.stride_w = p.stride_w;
  k.first_h = -p.padding_t, k.first_w = -p.padding_l, k.step_h = p.dilation_h, k.step_w = p.dilation_w;
  k.columns = Divider(p.ow), k.rows = Divider(p.oh), k.classes_w = Divider(1), k.classes = 1;
  k.lines_first = p.x_strides.w < p.x_strides.c;
  k.chunks = image_chunks(p.x, size_of(p.dtype), p.ci, p.x_strides, p.n, p.ih, p.iw);
  k.planes = is_product(p) && image_planes(p.x, size_of(p.dtype), p.groups * p.ci, p.x_strides, p.n, p.ih, p.iw);
  k.input_activation = p.input_activation, k.input_gate = p.input_gate;
  k.input_gate_n = p.input_gate_n, k.input_gate_c = p.input_gate_c;
  return k;
}

// dx = the product of dy and the turned weight, on each of the grids that a stride makes of dx's pixels.
inline Problem backward_problem(const DenseConv2dParams& p) {
  Problem k{};
  k.x = p.y, k.x_strides = strides_of(p.y_strides, p.n, p.oh, p.ow), k.ih = p.oh, k.iw = p.ow;
  k.ci = p.co, k.co = p.ci, k.kh = p.kh, k.kw = p.kw;
  k.stride_h = k.stride_w = 1, k.first_h = p.padding_t, k.first_w = p.padding_l;
  const int64_t class_h = p.stride_h < p.ih ? p.stride_h : p.ih, class_w = p.stride_w < p.iw ? p.stride_w : p.iw;
  const int64_t rows = ceil_div(p.ih, p.stride_h), columns = ceil_div(p.iw, p.stride_w);
  k.lines = p.n * rows * columns, k.rows = Divider(rows), k.columns = Divider(columns);
  k.classes = class_h * class_w, k.classes_w = Divider(class_w);
  k.step_h = -p.dilation_h, k.step_w = -p.dilation_w;
  if (p.stride_h > 1 || p.stride_w > 1) {
    k.step_h = p.dilation_h, k.step_w = p.dilation_w, k.class_h = p.stride_h, k.class_w = p.stride_w;
    k.class_taps_h = p.stride_h / std::gcd(p.stride_h, p.dilation_h);
    k.class_taps_w = p.stride_w / std::gcd(p.stride_w, p.dilation_w);
    k.class_step_h = p.dilation_h / std::gcd(p.stride_h, p.dilation_h);
    k.class_step_w = p.dilation_w / std::gcd(p.stride_w, p.dilation_w);
  }
  k.lines_first = p.y_strides.w < p.y_strides.c;
  k.chunks = image_chunks(p.y, size_of(p.dtype), p.co, p.y_strides, p.n, p.oh, p.ow);
  k.planes = is_product(p) && image_planes(p.y, size_of(p.dtype), p.groups * p.co, p.y_strides, p.n, p.oh, p.ow);
  return k;
}

inline Result backward_result(const DenseConv2dParams& p) {
  Result r{};
  r.y = p.x, r.strides = strides_of(p.x_strides, p.n, p.ih, p.iw), r.h = p.ih, r.w = p.iw, r.shuffle = 1,
  r.per_shuffle = p.groups * p.ci;
  r.chunks = image_chunks(p.x, size_of(p.dtype), p.ci, p.x_strides, p.n, p.ih, p.iw);
  r.pixels_first = p.x_strides.w < p.x_strides.c;
  return r;
}

template <bool ONE>
void product(const DenseConv2dParams& p, Problem k, const Result& r, bool backward, const Launch& launch) {
  const WeightRows w = weight_rows(p, backward);
  const int64_t taps = w.vectors * kChunk / size_of(p.dtype);
  k.weight = p.weight, k.weight_row = w.rows > 1 || p.groups > 1 ? w.row : 0;
  k.weight_u = p.kh > 1 ? w.u : 0, k.weight_v = p.kw > 1 ? w.v : 0;
  if (!w.as_it_is) {
    pack<ONE>(p, w, launch.workspace, launch.stream);
    k.weight = launch.workspace, k.weight_v = taps, k.weight_u = p.kw * taps, k.weight_row = p.kh * p.kw * taps;
  }
  k.vectors = Divider(w.vectors), k.taps_w = Divider(p.kw);
  // Channels of a group and the chunks of a sum are counted in 31 bits, elements and pixels in 63.
  constexpr int64_t kMost = int64_t{1} << 27;
  if (w.vectors >= kMost || p.kh >= kMost / w.vectors || p.kh * w.vectors >= kMost / p.kw || k.co >= kMost) {
    throw std::runtime_error("a dense convolution has too many channels or taps for one group");
  }
  with_type(p.dtype, [&](auto type) {
    using T = decltype(type);
    if (sizeof(T) < 8 && k.chunks && small(p)) {
      if constexpr (sizeof(T) < 8) choose_tile<T, Copy::kAsync, ONE>(k, r, p.groups, launch.stream);
    } else if (sizeof(T) == 2 && k.planes && small(p)) {
      if constexpr (sizeof(T) == 2) choose_tile<T, Copy::kPlanes, ONE>(k, r, p.groups, launch.stream);
    } else {
      choose_tile<T, Copy::kGather, ONE>(k, r, p.groups, launch.stream);
    }
  });
}

}  // namespace lightkernels::cuda::dense
