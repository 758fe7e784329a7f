// Depthwise convolution on NVIDIA GPUs: which kernel answers which Params, with how many blocks.
//
// 3x3, 5x5 and 7x7 at stride 1 and 2 have kernels of their own for both layouts, everything else the general ones. dx
// of stride 1 is the forward pass with the kernel turned by 180 degrees. dweight is summed in two passes, in a fixed
// order.
#include "depthwise_conv2d_general.cuh"
#include "depthwise_conv2d_nchw.cuh"
#include "depthwise_conv2d_nhwc.cuh"

namespace lightkernels::cuda {
namespace {

using namespace depthwise;  // NOLINT

constexpr int64_t kMaxGridX = (int64_t{1} << 31) - 1, kMaxGridYZ = 65535, kSmall = int64_t{1} << 30;

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
int64_t at_most(int64_t a, int64_t b) { return a < b ? a : b; }
int64_t at_least(int64_t a, int64_t b) { return a > b ? a : b; }

dim3 grid_of(int64_t x, int64_t y = 1, int64_t z = 1) {
  return dim3(static_cast<unsigned>(at_most(x, kMaxGridX)), static_cast<unsigned>(at_most(y, kMaxGridYZ)),
              static_cast<unsigned>(at_most(z, kMaxGridYZ)));
}

// --- which path ------------------------------------------------------------------------------------------------------
enum class Path { kNchw, kNhwcWide, kNhwcPair, kGeneral };

// Is every pixel of the tensor aligned to `vector` elements, counted in channels?
bool aligned(const void* data, const Strides4& s, int64_t vector, int64_t element) {
  return reinterpret_cast<uintptr_t>(data) % (vector * element) == 0 && s.n % vector == 0 && s.h % vector == 0 &&
         s.w % vector == 0;
}

bool small(const Params& p) {
  for (int64_t size : {p.ih, p.iw, p.oh, p.ow, p.padding_t, -p.padding_t, p.padding_l, -p.padding_l, p.c}) {
    if (size >= kSmall) return false;
  }
  // Tiles of one image, and outputs of one channel, are counted in 31 bits; a thread's tile reaches less than 16 beyond
  // the image. Blocks of channels are a grid's y.
  constexpr int64_t kCount = int64_t{1} << 31;
  return p.c <= kMaxGridYZ && p.c * (p.oh + 16) < kCount / (p.ow + 16) && p.c * (p.ih + 16) < kCount / (p.iw + 16) &&
         p.n * (p.oh + 16) < kCount / (p.ow + 16);
}

Path path_of(const Params& p) {
  const bool specialised = p.dtype != DType::kFloat64 && p.multiplier == 1 && p.kh == p.kw &&
                           (p.kh == 3 || p.kh == 5 || p.kh == 7) && p.stride_h == p.stride_w && p.stride_h <= 2 &&
                           p.dilation_h == 1 && p.dilation_w == 1 && small(p);
  if (!specialised) return Path::kGeneral;
  if (p.x_strides.w == 1 && p.y_strides.w == 1) return Path::kNchw;
  if (p.x_strides.c != 1 || p.y_strides.c != 1) return Path::kGeneral;
  const int64_t element = size_of(p.dtype);
  for (int64_t vector : {16 / element, int64_t{2}}) {
    if (p.c % vector == 0 && aligned(p.x, p.x_strides, vector, element) && aligned(p.y, p.y_strides, vector, element)) {
      return vector == 2 ? Path::kNhwcPair : Path::kNhwcWide;
    }
  }
  return Path::kGeneral;
}

// --- from run-time numbers to template arguments ---------------------------------------------------------------------
template <class T>
struct Type {
  using type = T;
};

template <int N>
using Int = std::integral_constant<int, N>;

template <class F>
void with_type(DType dtype, F&& f) {
  if (dtype == DType::kFloat32) return f(Type<float>{});
  if (dtype == DType::kFloat16) return f(Type<__half>{});
  if (dtype == DType::kBFloat16) return f(Type<__nv_bfloat16>{});
  f(Type<double>{});
}

// f(Type<T>, Int<K>) for the dtypes and kernel sizes of the specialised kernels.
template <class F>
void with_type_and_size(const Params& p, F&& f) {
  auto with_size = [&](auto type) {
    if (p.kh == 3) return f(type, Int<3>{});
    if (p.kh == 5) return f(type, Int<5>{});
    f(type, Int<7>{});
  };
  if (p.dtype == DType::kFloat32) return with_size(Type<float>{});
  if (p.dtype == DType::kFloat16) return with_size(Type<__half>{});
  with_size(Type<__nv_bfloat16>{});
}

template <class F>
void with_stride(int64_t stride, F&& f) {
  if (stride == 1) return f(Int<1>{});
  f(Int<2>{});
}

// f(Int<V>), the channels of a thread.
template <class T, class F>
void with_vector(Path path, F&& f) {
  if (path == Path::kNhwcWide) return f(Int<16 / sizeof(T)>{});
  f(Int<2>{});
}

// --- NCHW ------------------------------------------------------------------------------------------------------------
template <class Kernel>
void launch_nchw(Kernel kernel, const Params& p, int64_t rows, int64_t columns, void* stream) {
  const NchwTiles tiles{static_cast<unsigned>(p.c * rows * columns), Divider(columns), Divider(rows)};
  launch_kernel(kernel, grid_of(ceil_div(tiles.count, kNchwThreads), p.n), dim3(kNchwThreads), 0, stream, p, tiles);
}

void forward_in_nchw(const Params& p, void* stream) {
  with_type_and_size(p, [&](auto type, auto size) {
    with_stride(p.stride_h, [&](auto stride) {
      constexpr int kRows = size() == 7 && stride() == 1 ? 8 : 4;
      launch_nchw(forward_nchw<typename decltype(type)::type, size(), stride(), kRows>, p, ceil_div(p.oh, kRows), p.ow,
                  stream);
    });
  });
}

void backward_input_in_nchw(const Params& p, void* stream) {
  with_type_and_size(p, [&](auto type, auto size) {
    constexpr int kPairs = 4;
    launch_nchw(backward_input_stride2_nchw<typename decltype(type)::type, size(), kPairs>, p,
                ceil_div(ceil_div(p.ih + (p.padding_t & 1), 2), kPairs), p.iw, stream);
  });
}

// --- NHWC ------------------------------------------------------------------------------------------------------------
struct NhwcBlocks {
  unsigned lanes, channels;  // of a block; blocks along the channels
};

// As few blocks along the channels as lanes allow, all about equally full.
NhwcBlocks nhwc_blocks(int64_t c, int vector, int lanes) {
  const int64_t vectors = ceil_div(c, vector), blocks = ceil_div(vectors, lanes);
  return {static_cast<unsigned>(ceil_div(vectors, blocks)), static_cast<unsigned>(blocks)};
}

template <int V, class Kernel>
void launch_nhwc(Kernel kernel, const Params& p, int64_t rows, int64_t columns, void* stream) {
  const unsigned strip_bits = columns > 1;
  const NhwcTiles tiles{static_cast<unsigned>(rows * (ceil_div(columns, 1 << strip_bits) << strip_bits)), strip_bits,
                        Divider(rows)};
  const auto [lanes, channels] = nhwc_blocks(p.c, V, kNhwcLanes<V>);
  const dim3 block(lanes, static_cast<unsigned>(at_most(kNhwcThreads / lanes, tiles.count)));
  launch_kernel(kernel, grid_of(ceil_div(tiles.count, block.y), channels, p.n), block, 0, stream, p, tiles);
}

void forward_in_nhwc(const Params& p, Path path, void* stream) {
  with_type_and_size(p, [&](auto type, auto size) {
    using T = typename decltype(type)::type;
    with_stride(p.stride_h, [&](auto stride) {
      with_vector<T>(path, [&](auto vector) {
        constexpr int kRows = vector() == 8 ? 1 : 2, kColumns = stride() == 1 ? 4 : 2;
        launch_nhwc<vector()>(forward_nhwc<T, size(), stride(), vector(), kRows, kColumns>, p, ceil_div(p.oh, kRows),
                              ceil_div(p.ow, kColumns), stream);
      });
    });
  });
}

void backward_input_in_nhwc(const Params& p, Path path, void* stream) {
  with_type_and_size(p, [&](auto type, auto size) {
    using T = typename decltype(type)::type;
    with_vector<T>(path, [&](auto vector) {
      constexpr int kPairs = vector() == 8 ? 1 : 2;
      launch_nhwc<vector()>(backward_input_stride2_nhwc<T, size(), vector(), kPairs>, p,
                            ceil_div(p.ih + (p.padding_t & 1), 2),
                            ceil_div(ceil_div(p.iw + (p.padding_l & 1), 2), kPairs), stream);
    });
  });
}

// --- any -------------------------------------------------------------------------------------------------------------
GeneralTiles general_tiles(const Params& p, int64_t c, int64_t h, int64_t step, const Strides4& written) {
  return {p.n * c * h * step,
          step,
          Divider(step),
          Divider(h),
          Divider(c),
          Divider(p.multiplier),
          written.c == 1 && written.w != 1};
}

void forward_in_general(const Params& p, void* stream) {
  const auto tiles = general_tiles(p, p.c, p.oh, ceil_div(p.ow, kGeneralOutputs), p.y_strides);
  with_type(p.dtype, [&](auto type) {
    launch_kernel(forward_general<typename decltype(type)::type>, grid_of(ceil_div(tiles.count, kGeneralThreads)),
                  dim3(kGeneralThreads), 0, stream, p, tiles);
  });
}

Meeting meeting(int64_t stride, int64_t dilation) {
  int64_t a = stride, b = dilation;
  while (b) {
    const int64_t rest = a % b;
    a = b, b = rest;
  }
  return {stride / a, dilation / a};
}

void backward_input_in_general(const Params& p, void* stream) {
  const auto tiles = general_tiles(p, p.c / p.multiplier, p.ih, p.iw, p.x_strides);
  with_type(p.dtype, [&](auto type) {
    launch_kernel(backward_input_general<typename decltype(type)::type>,
                  grid_of(ceil_div(tiles.count, kGeneralThreads)), dim3(kGeneralThreads), 0, stream, p, tiles,
                  meeting(p.stride_h, p.dilation_h), meeting(p.stride_w, p.dilation_w));
  });
}

// The forward pass that computes dx where stride and multiplier are 1.
Params turned(const Params& p) {
  Params q = p;
  q.x = p.y, q.y = p.x;
  q.x_strides = p.y_strides, q.y_strides = p.x_strides;
  q.ih = p.oh, q.iw = p.ow, q.oh = p.ih, q.ow = p.iw;
  q.padding_t = p.dilation_h * (p.kh - 1) - p.padding_t;
  q.padding_l = p.dilation_w * (p.kw - 1) - p.padding_l;
  q.weight = static_cast<char*>(p.weight) + ((p.kh - 1) * p.weight_h + (p.kw - 1) * p.weight_w) * size_of(p.dtype);
  q.weight_h = -p.weight_h, q.weight_w = -p.weight_w;
  q.bias = nullptr;
  q.activation = Activation::kNone;
  return q;
}

// --- dweight ---------------------------------------------------------------------------------------------------------
constexpr int kWeightRows = 4, kWeightColumns = 4;  // outputs of a thread's tile: rows of NCHW, columns of NHWC
constexpr int64_t kTargetBlocks = 1024;             // enough to fill any GPU a few times over
constexpr int64_t kMaxSplits = 512;

// How dweight is cut: `count` units of work, in `splits` parts of `per_split`, for each of `blocks` groups of taps.
struct Cut {
  Path path;
  int64_t blocks, count, splits, per_split;
};

// For NHWC: V <= 4 in wgrad's lanes leaves room for K rows of taps in a block.
int weight_vector(const Params& p, Path path) {
  return path == Path::kNhwcPair ? 2 : static_cast<int>(16 / size_of(p.dtype));
}

NhwcBlocks weight_nhwc_blocks(const Params& p, Path path) {
  return nhwc_blocks(p.c, weight_vector(p, path), weight_vector(p, path) == 8 ? 16 : kWarp);
}

unsigned weight_nhwc_groups(const Params& p, Path path) {
  return kNhwcThreads / (weight_nhwc_blocks(p, path).lanes * static_cast<unsigned>(p.kh));
}

Cut cut_of(const Params& p) {
  Cut cut{path_of(p)};
  int64_t per_pass, passes = 4;  // units that a block takes at once; the least passes that are worth a split
  if (cut.path == Path::kNchw) {
    cut.blocks = p.c;
    cut.count = p.n * ceil_div(p.oh, kWeightRows) * p.ow;
    per_pass = kNchwThreads;
  } else if (cut.path == Path::kGeneral) {
    cut.blocks = p.c * p.kh * ceil_div(p.kw, kGeneralTaps);
    cut.count = p.n * p.oh * p.ow;
    per_pass = kGeneralThreads;
  } else {
    cut.blocks = weight_nhwc_blocks(p, cut.path).channels;
    cut.count = p.n * p.oh * ceil_div(p.ow, kWeightColumns);
    per_pass = weight_nhwc_groups(p, cut.path);
  }
  const int64_t splits =
      at_least(at_most(at_most(ceil_div(kTargetBlocks, cut.blocks), kMaxSplits), cut.count / (per_pass * passes)), 1);
  cut.per_split = ceil_div(cut.count, splits);
  cut.splits = ceil_div(cut.count, cut.per_split);
  return cut;
}

void partial_in_nchw(const Params& p, const Cut& cut, float* partial, void* stream) {
  const NchwSplits tiles{static_cast<unsigned>(cut.count), static_cast<unsigned>(cut.per_split), Divider(p.ow),
                         Divider(ceil_div(p.oh, kWeightRows))};
  with_type_and_size(p, [&](auto type, auto size) {
    with_stride(p.stride_h, [&](auto stride) {
      launch_kernel(backward_weight_nchw<typename decltype(type)::type, size(), stride(), kWeightRows>,
                    grid_of(cut.blocks, cut.splits), dim3(kNchwThreads), 0, stream, p, tiles, partial);
    });
  });
}

void partial_in_nhwc(const Params& p, const Cut& cut, float* partial, void* stream) {
  const NhwcSplits tiles{static_cast<unsigned>(cut.count), static_cast<unsigned>(cut.per_split),
                         Divider(ceil_div(p.ow, kWeightColumns)), Divider(p.oh)};
  const dim3 block(weight_nhwc_blocks(p, cut.path).lanes, weight_nhwc_groups(p, cut.path), static_cast<unsigned>(p.kh));
  with_type_and_size(p, [&](auto type, auto size) {
    using T = typename decltype(type)::type;
    with_stride(p.stride_h, [&](auto stride) {
      with_vector<T>(cut.path, [&](auto vector) {
        launch_kernel(backward_weight_nhwc<T, size(), stride(), vector(), kWeightColumns>,
                      grid_of(cut.splits, cut.blocks), block, 0, stream, p, tiles, partial);
      });
    });
  });
}

void partial_in_general(const Params& p, const Cut& cut, void* partial, void* stream) {
  const GeneralSplits tiles{cut.blocks,    cut.count,
                            cut.per_split, Divider(p.ow),
                            Divider(p.oh), Divider(ceil_div(p.kw, kGeneralTaps)),
                            Divider(p.kh), Divider(p.multiplier)};
  with_type(p.dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    launch_kernel(backward_weight_general<T, Sum<T>>, grid_of(cut.blocks, cut.splits), dim3(kGeneralThreads), 0, stream,
                  p, tiles, static_cast<Sum<T>*>(partial));
  });
}

}  // namespace

int64_t depthwise_conv2d_forward_workspace(const DepthwiseConv2dParams&) { return 0; }
int64_t depthwise_conv2d_fused_workspace(const DepthwiseConv2dFused&) { return 0; }
int64_t depthwise_conv2d_backward_input_workspace(const DepthwiseConv2dParams&) { return 0; }

int64_t depthwise_conv2d_backward_weight_workspace(const DepthwiseConv2dParams& p) {
  return cut_of(p).splits * (p.kh * p.kw + 1) * p.c * (p.dtype == DType::kFloat64 ? 8 : 4);
}

void depthwise_conv2d_forward(const DepthwiseConv2dParams& p, const Launch& launch) {
  const Path path = path_of(p);
  if (path == Path::kNchw) return forward_in_nchw(p, launch.stream);
  if (path == Path::kGeneral) return forward_in_general(p, launch.stream);
  forward_in_nhwc(p, path, launch.stream);
}

void depthwise_conv2d_fused(const DepthwiseConv2dFused& f, const Launch& launch) {
  const Params& p = f.conv;
  const auto tiles = general_tiles(p, p.c, p.oh, ceil_div(p.ow, kGeneralOutputs), p.y_strides);
  with_type(p.dtype, [&](auto type) {
    launch_kernel(forward_fused<typename decltype(type)::type>, grid_of(ceil_div(tiles.count, kGeneralThreads)),
                  dim3(kGeneralThreads), 0, launch.stream, f, tiles);
  });
}

void depthwise_conv2d_backward_input(const DepthwiseConv2dParams& p, const Launch& launch) {
  if (p.stride_h == 1 && p.stride_w == 1 && p.multiplier == 1) return depthwise_conv2d_forward(turned(p), launch);
  const Path path = path_of(p);
  if (path == Path::kNchw) return backward_input_in_nchw(p, launch.stream);
  if (path == Path::kGeneral) return backward_input_in_general(p, launch.stream);
  backward_input_in_nhwc(p, path, launch.stream);
}

void depthwise_conv2d_backward_weight(const DepthwiseConv2dParams& p, const Launch& launch) {
  const Cut cut = cut_of(p);
  if (cut.path == Path::kNchw) {
    partial_in_nchw(p, cut, static_cast<float*>(launch.workspace), launch.stream);
  } else if (cut.path == Path::kGeneral) {
    partial_in_general(p, cut, launch.workspace, launch.stream);
  } else {
    partial_in_nhwc(p, cut, static_cast<float*>(launch.workspace), launch.stream);
  }
  with_type(p.dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    launch_kernel(backward_weight_finish<T, Sum<T>>, grid_of(ceil_div((p.kh * p.kw + 1) * p.c, kFinishLanes)),
                  dim3(kFinishLanes, kFinishGroups), 0, launch.stream, p, cut.splits,
                  static_cast<const Sum<T>*>(launch.workspace));
  });
}

int64_t depthwise_conv2d_backward_workspace(const DepthwiseConv2dBackward& b) {
  return depthwise_conv2d_backward_weight_workspace(b.weight);
}

void depthwise_conv2d_backward(const DepthwiseConv2dBackward& b, const Launch& launch) {
  depthwise_conv2d_backward_input(b.input, launch);
  depthwise_conv2d_backward_weight(b.weight, launch);
}

}  // namespace lightkernels::cuda
