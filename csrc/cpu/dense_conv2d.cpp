// Dense convolution on the CPU: chooses the driver of the tensors' layout.
#include "dense_conv2d.h"

#include <cstring>
#include <stdexcept>

#include "dense_conv2d_nchw.h"
#include "dense_conv2d_nhwc.h"

namespace lightkernels::cpu {
namespace {

// In front of packed weights: what they were packed for.
struct Header {
  char made_by[8];
  int64_t layout, dtype, groups, ci, co, taps;

  explicit Header(const DenseConv& d)
      : made_by{'l', 'k', 'd', 'e', 'n', 's', 'e', '1'},
        layout(d.channels_innermost()),
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

int64_t dense_workspace(const DenseConv& d) { return d.channels_innermost() ? nhwc_workspace(d) : nchw_workspace(d); }

void dense_convolve(const DenseConv& conv, const Launch& launch) {
  DenseConv d = conv;
  if (d.packed) {
    const Header expected(d);
    if (std::memcmp(d.packed, &expected, sizeof expected)) {
      throw std::runtime_error("packed was made for a layer of another shape, dtype or memory format");
    }
    d.packed = static_cast<const char*>(d.packed) + kAlign;
  }
  d.channels_innermost() ? nhwc_convolve(d, launch) : nchw_convolve(d, launch);
}

int64_t dense_packed_bytes(const DenseConv& d) {
  const int64_t bytes = d.channels_innermost() ? nhwc_packed_bytes(d) : nchw_packed_bytes(d);
  return bytes > 0 ? kAlign + bytes : 0;
}

void pack_dense(const DenseConv& d, void* packed, const Launch& launch) {
  std::memset(packed, 0, kAlign);
  const Header header(d);
  std::memcpy(packed, &header, sizeof header);
  char* weights = static_cast<char*>(packed) + kAlign;
  d.channels_innermost() ? nhwc_pack(d, weights, launch) : nchw_pack(d, weights, launch);
}

}  // namespace lightkernels::cpu
