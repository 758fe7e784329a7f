// Dense convolution on the CPU: chooses the driver of the tensors' layout.
#include "dense_conv2d.h"

#include <cstring>
#include <stdexcept>

#include "dense_conv2d_nchw.h"
#include "dense_conv2d_nhwc.h"
#include "dense_conv2d_winograd.h"

namespace lightkernels::cpu {
namespace {

// In front of packed weights: what they were packed for.
struct Header {
  char made_by[8];
  int64_t layout, dtype, groups, ci, co, taps;

  Header(const DenseConv& d, int tile)
      : made_by{'l', 'k', 'd', 'e', 'n', 's', 'e', '1'},
        layout(tile ? winograd_layout(d, tile) : d.channels_innermost()),
        dtype(static_cast<int64_t>(d.dtype)),
        groups(d.groups),
        ci(d.ci),
        co(d.co),
        taps(d.taps()) {}
};
static_assert(sizeof(Header) <= kAlign);

}  // namespace

bool DenseConv::channels_innermost() const {
  return out_strides.c == 1 && !(groups * co == 1 && out_strides.w == 1 && ow > 1);
}

int64_t dense_workspace(const DenseConv& d) {
  if (const int tile = winograd_tile(d)) return winograd_workspace(d, tile);
  return d.channels_innermost() ? nhwc_workspace(d) : nchw_workspace(d);
}

void dense_convolve(const DenseConv& conv, const Launch& launch) {
  DenseConv d = conv;
  const int tile = winograd_tile(d);
  if (d.packed) {
    const Header expected(d, tile);
    if (std::memcmp(d.packed, &expected, sizeof expected)) {
      throw std::runtime_error("packed was made for a layer of another shape, dtype or memory format");
    }
    d.packed = static_cast<const char*>(d.packed) + kAlign;
  }
  if (tile) return winograd_convolve(d, tile, launch);
  d.channels_innermost() ? nhwc_convolve(d, launch) : nchw_convolve(d, launch);
}

int64_t dense_packed_bytes(const DenseConv& d) {
  const int tile = winograd_tile(d);
  const int64_t bytes = tile                     ? winograd_packed_bytes(d, tile)
                        : d.channels_innermost() ? nhwc_packed_bytes(d)
                                                 : nchw_packed_bytes(d);
  return bytes > 0 ? kAlign + bytes : 0;
}

void pack_dense(const DenseConv& d, void* packed, const Launch& launch) {
  const int tile = winograd_tile(d);
  const Header header(d, tile);
  std::memset(packed, 0, kAlign);
  std::memcpy(packed, &header, sizeof header);
  char* weights = static_cast<char*>(packed) + kAlign;
  if (tile) return winograd_pack(d, tile, weights, launch);
  d.channels_innermost() ? nhwc_pack(d, weights, launch) : nchw_pack(d, weights, launch);
}

}  // namespace lightkernels::cpu
