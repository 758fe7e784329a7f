// Contract of a move: elements change places and are nothing but bytes. An op that moves says which axes it has.
#pragma once

#include "launch.h"

namespace lightkernels {

struct MoveAxis {
  int64_t size, x, y;  // strides, in elements; y is dense, x may repeat (stride 0)
};

// What is done at every index of the outer axes.
enum class Innermost : int32_t {
  kRun,           // y[i] = x[i]
  kInterleave,    // y[i * ways + s] = x[streams[s] + i]
  kDeinterleave,  // y[streams[s] + i] = x[i * ways + s]
  kPick,          // y[i] = x[i * step]
};

struct MoveParams {
  static constexpr int kWays = 16, kOuter = 6;

  void* x;
  void* y;
  int64_t bytes;  // of an element: 1, 2, 4, 8 or 16, and its address is a multiple of them
  Innermost innermost;
  int64_t length;  // of i
  int64_t ways, step, streams[kWays];
  int64_t outer;
  MoveAxis axes[kOuter];  // outermost first, in y or, if streams are read, in x
};

// Each machine defines the same function.
namespace cpu {
void move(const MoveParams& p, const Launch& launch);
}
namespace cuda {
void move(const MoveParams& p, const Launch& launch);
}

}  // namespace lightkernels
