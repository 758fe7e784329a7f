// From sums to y: what follows a convolution, applied to a tile of it that is still in L1.
#pragma once

#include "../convolution.h"
#include "vec.h"

namespace lightkernels::cpu {

// Where channel c of `channels` comes to lie when they are shuffled as `shuffle` groups.
inline int64_t shuffled(int64_t c, int64_t channels, int64_t shuffle) {
  const int64_t each = channels / shuffle;
  return c % each * shuffle + c / each;
}

// A tile of sums [rows, columns] and where it goes. One axis is channels, the other pixels at equal distances.
template <class S>
struct Finish {
  const Epilogue* epilogue;
  bool lanes_are_channels;  // else rows are
  const S* sums;
  int64_t sums_step;  // from row to row
  int64_t rows, columns;
  int64_t n, channel;  // of the first
  void* y;             // channel 0 of the first pixel
  int64_t y_pixel, y_channel;
  const void* residual;  // likewise, or null
  int64_t residual_pixel, residual_channel;
  int64_t channels, shuffle;  // channel c is stored as `shuffled` says
};

// dtype is y's; S its Acc.
void finish_tile(DType dtype, const Finish<float>& tile);
void finish_tile(DType dtype, const Finish<double>& tile);

}  // namespace lightkernels::cpu
