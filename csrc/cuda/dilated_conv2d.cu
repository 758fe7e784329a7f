// Dense convolution on NVIDIA GPUs, forward and backward: matrix products of pixels and weight (dense_conv2d.cuh).
#include "../dilated_conv2d.h"
#include "dense_host.cuh"
#include "dense_weight.cuh"

namespace lightkernels::cuda {
namespace {

using namespace dense;  // NOLINT

// --- gradient of weight ----------------------------------------------------------------------------------------------
struct WeightCut {
  int64_t vectors, columns_all, tile, tiles_n, tiles_m, splits, per_split;
};

// Splits until there are blocks for every multiprocessor, each of eight steps or more.
WeightCut weight_cut(const DenseConv2dParams& p) {
  const int64_t element = size_of(p.dtype), vector = kChunk / element, step = kStepBytes / element;
  const int64_t pixels = p.n * p.oh * p.ow;
  WeightCut c{};
  c.vectors = ceil_div(p.ci, vector), c.columns_all = p.kh * p.kw * c.vectors * vector;
  c.tile = element < 8 && p.co > 64 && c.columns_all > 64 ? 128 : 64;
  c.tiles_n = ceil_div(c.columns_all, c.tile), c.tiles_m = ceil_div(p.co, c.tile);
  const int64_t blocks = c.tiles_n * c.tiles_m * p.groups, steps = ceil_div(pixels, step);
  int64_t splits = ceil_div(kBlocks, blocks);
  splits = splits < steps / 8 ? splits : steps / 8;
  splits = splits > 1 ? splits : 1;
  c.per_split = ceil_div(steps, splits) * step, c.splits = ceil_div(pixels, c.per_split);
  return c;
}

int64_t weight_workspace(const DenseConv2dParams& p) {
  const WeightCut c = weight_cut(p);
  return c.splits * p.groups * p.co * (c.columns_all + 1) * (p.dtype == DType::kFloat64 ? 8 : 4);
}

WeightProblem weight_problem(const DenseConv2dParams& p, const WeightCut& c, void* workspace) {
  const int64_t element = size_of(p.dtype), sum = p.dtype == DType::kFloat64 ? 8 : 4;
  WeightProblem k{};
  k.y = p.y, k.y_strides = strides_of(p.y_strides, p.n, p.oh, p.ow);
  k.x = p.x, k.x_strides = strides_of(p.x_strides, p.n, p.ih, p.iw);
  k.ih = p.ih, k.iw = p.iw, k.ci = p.ci, k.co = p.co;
  k.pixels = p.n * p.oh * p.ow, k.per_split = c.per_split, k.columns_all = c.columns_all;
  k.stride_h = p.stride_h, k.stride_w = p.stride_w, k.first_h = -p.padding_t, k.first_w = -p.padding_l;
  k.step_h = p.dilation_h, k.step_w = p.dilation_w;
  k.columns = Divider(p.ow), k.rows = Divider(p.oh), k.vectors = Divider(c.vectors), k.taps_w = Divider(p.kw);
  k.tiles_n = Divider(c.tiles_n), k.tiles_m = Divider(c.tiles_m), k.groups = Divider(p.groups);
  k.chunks = c.vectors * p.kh * p.kw;
  k.lines_first = p.x_strides.w < p.x_strides.c;
  k.y_chunks = image_chunks(p.y, element, p.co, p.y_strides, p.n, p.oh, p.ow);
  k.x_chunks = image_chunks(p.x, element, p.ci, p.x_strides, p.n, p.ih, p.iw);
  k.bias = p.dbias;
  k.partial = workspace;
  k.partial_bias = static_cast<char*>(workspace) + c.splits * p.groups * p.co * c.columns_all * sum;
  return k;
}

template <class T, class Tile>
void launch_weight(const WeightProblem& k, Copy copy, int64_t blocks, void* stream) {
  const dim3 grid(static_cast<unsigned>(blocks)), block(Tile::kThreads);
  if constexpr (sizeof(T) < 8) {
    if (copy == Copy::kAsync) {
      return launch_kernel(backward_dense_weight<T, Tile, Copy::kAsync>, grid, block, 0, stream, k);
    }
  }
  if constexpr (sizeof(T) == 2) {
    if (copy == Copy::kPlanes) {
      return launch_kernel(backward_dense_weight<T, Tile, Copy::kPlanes>, grid, block, 0, stream, k);
    }
  }
  launch_kernel(backward_dense_weight<T, Tile, Copy::kGather>, grid, block, 0, stream, k);
}

Copy copy_of(const DenseConv2dParams& p, const WeightProblem& k) {
  const int64_t element = size_of(p.dtype);
  if (element < 8 && k.y_chunks && k.x_chunks && small(p)) return Copy::kAsync;
  const bool planes = is_product(p) && small(p) &&
                      image_planes(p.y, element, p.groups * p.co, p.y_strides, p.n, p.oh, p.ow) &&
                      image_planes(p.x, element, p.groups * p.ci, p.x_strides, p.n, p.ih, p.iw);
  return planes ? Copy::kPlanes : Copy::kGather;
}

void backward_weight(const DenseConv2dParams& p, const Launch& launch) {
  const WeightCut c = weight_cut(p);
  const WeightProblem k = weight_problem(p, c, launch.workspace);
  const double blocks = 1.0 * c.tiles_n * c.tiles_m * p.groups * c.splits;
  if (blocks >= 2147483648.0) throw std::runtime_error("a dense convolution takes more blocks than a grid holds");
  with_type(p.dtype, [&](auto type) {
    using T = decltype(type);
    const Copy copy = copy_of(p, k);
    if (c.tile == 128) {
      if constexpr (sizeof(T) < 8) launch_weight<T, Large<T>>(k, copy, static_cast<int64_t>(blocks), launch.stream);
    } else {
      launch_weight<T, Medium>(k, copy, static_cast<int64_t>(blocks), launch.stream);
    }
    WeightSums s{};
    s.partial = k.partial, s.partial_bias = k.partial_bias, s.weight = p.weight, s.bias = p.dbias;
    s.strides = p.weight_strides, s.splits = c.splits, s.rows = p.groups * p.co, s.columns_all = c.columns_all;
    s.ci = p.ci, s.row_of = Divider(c.columns_all), s.chunks = Divider(c.vectors * kVector<T>);
    s.taps_w = Divider(p.kw);
    const int64_t threads = s.rows * (s.columns_all + 1), all = ceil_div(threads, 256);
    launch_kernel(backward_dense_weight_finish<T>, dim3(static_cast<unsigned>(all < 65535 ? all : 65535)), dim3(256), 0,
                  launch.stream, s);
  });
}

}  // namespace

int64_t dilated_conv2d_forward_workspace(const DenseConv2dParams& p) { return dense::packed_weight_bytes(p, false); }
int64_t dilated_conv2d_backward_input_workspace(const DenseConv2dParams& p) {
  return dense::packed_weight_bytes(p, true);
}

void dilated_conv2d_forward(const DenseConv2dParams& p, const Launch& launch) {
  dense::product<false>(p, dense::forward_problem(p), dense::forward_result(p), false, launch);
}

void dilated_conv2d_backward_input(const DenseConv2dParams& p, const Launch& launch) {
  dense::product<false>(p, dense::backward_problem(p), dense::backward_result(p), true, launch);
}

int64_t dilated_conv2d_backward_weight_workspace(const DenseConv2dParams& p) { return weight_workspace(p); }

void dilated_conv2d_backward_weight(const DenseConv2dParams& p, const Launch& launch) { backward_weight(p, launch); }

int64_t dilated_conv2d_packed_bytes(const DenseConv2dParams&) { return 0; }
void dilated_conv2d_pack(const DenseConv2dParams&, const Launch&) {}

}  // namespace lightkernels::cuda
