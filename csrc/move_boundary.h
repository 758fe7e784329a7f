// From the axes of a move to what its kernels do: axes that are one become one, and the innermost loop is chosen.
#pragma once

#include <algorithm>

#include "boundary.h"
#include "move.h"

namespace lightkernels {

using MoveAxes = std::vector<MoveAxis>;

// Without axes of size 1, outermost in y first, neighbours that follow each other in x and in y as one.
inline MoveAxes merged(MoveAxes axes) {
  axes.erase(std::remove_if(axes.begin(), axes.end(), [](const MoveAxis& a) { return a.size == 1; }), axes.end());
  std::sort(axes.begin(), axes.end(), [](const MoveAxis& a, const MoveAxis& b) { return a.y > b.y; });
  MoveAxes result;
  for (const MoveAxis& axis : axes) {
    if (!result.empty() && result.back().x == axis.x * axis.size && result.back().y == axis.y * axis.size) {
      result.back() = {result.back().size * axis.size, axis.x, axis.y};
    } else {
      result.push_back(axis);
    }
  }
  return result;
}

// A short innermost run of whole words becomes one element.
inline void widen(MoveAxes& axes, int64_t& bytes, const void* x, const void* y) {
  if (axes.empty() || axes.back().x != 1) return;
  const int64_t run = axes.back().size, word = run * bytes;
  if (word > 16 || (word & (word - 1))) return;
  if (reinterpret_cast<uintptr_t>(x) % word || reinterpret_cast<uintptr_t>(y) % word) return;
  for (size_t a = 0; a + 1 < axes.size(); ++a) {
    if (axes[a].x % run || axes[a].y % run) return;
  }
  axes.pop_back();
  for (MoveAxis& axis : axes) axis.x /= run, axis.y /= run;
  bytes = word;
}

// Offsets of all combinations of `axes`, the last axis first; `of` says in what.
inline void combine(const MoveAxes& axes, int64_t MoveAxis::* of, int64_t* offsets) {
  int64_t count = 1;
  offsets[0] = 0;
  for (auto axis = axes.rbegin(); axis != axes.rend(); ++axis) {
    for (int64_t i = 1; i < axis->size; ++i) {
      for (int64_t at = 0; at < count; ++at) offsets[i * count + at] = offsets[at] + i * (*axis).*of;
    }
    count *= axis->size;
  }
}

// The axes that lie within `outside` in x, if these fill it without gaps, and are no more than kWays elements.
inline MoveAxes filling(const MoveAxes& axes, const MoveAxis& outside) {
  MoveAxes group;
  int64_t run = 1;
  if (outside.x > MoveParams::kWays) return {};
  while (run < outside.x) {
    const auto next = std::find_if(axes.begin(), axes.end(), [&](const MoveAxis& a) { return a.x == run; });
    if (next == axes.end() || next->y == outside.y) return {};
    group.insert(group.begin(), *next);
    run *= next->size;
  }
  return run == outside.x ? group : MoveAxes{};
}

// A run of a few bytes, with the axes that go on where it ends in x, or in y, up to kWays elements: the more the
// better.
inline void short_run(MoveParams& p, const MoveAxes& axes, MoveAxes& within) {
  MoveAxes apart = {axes.back()}, together = {axes.back()};
  int64_t in_x = axes.back().size, in_y = in_x;
  for (bool grows = true; grows;) {
    grows = false;
    for (const MoveAxis& axis : axes) {
      if (axis.x == in_x && in_x * axis.size <= MoveParams::kWays) {
        apart.insert(apart.begin(), axis), in_x *= axis.size, grows = true;
      }
    }
  }
  for (auto axis = axes.rbegin() + 1; axis != axes.rend() && in_y * axis->size <= MoveParams::kWays; ++axis) {
    together.insert(together.begin(), *axis), in_y *= axis->size;
  }
  if (in_x == in_y && in_x == axes.back().size) return;
  p.innermost = in_y > in_x ? Innermost::kInterleave : Innermost::kDeinterleave;
  p.length = 1, p.ways = std::max(in_x, in_y);
  within = in_y > in_x ? together : apart;
  combine(within, in_y > in_x ? &MoveAxis::x : &MoveAxis::y, p.streams);
}

// False where there are more axes than a kernel takes: x should be copied first.
inline bool plan(MoveParams& p, const void* x, void* y, int64_t bytes, MoveAxes axes) {
  axes = merged(std::move(axes));
  widen(axes, bytes, x, y);
  if (axes.empty()) axes.push_back({1, 1, 1});
  p = {};
  p.x = const_cast<void*>(x), p.y = y, p.bytes = bytes;
  const MoveAxis last = axes.back();
  p.innermost = last.x == 1 ? Innermost::kRun : Innermost::kPick;
  p.length = last.size, p.step = last.x;
  MoveAxes within = {last};
  if (p.innermost == Innermost::kPick) {
    const auto unit = std::find_if(axes.begin(), axes.end(), [](const MoveAxis& a) { return a.x == 1; });
    const MoveAxes inner = filling(axes, last);
    const bool together = unit != axes.end() && unit->y <= MoveParams::kWays, apart = !inner.empty();
    // The longer streams; of those that fill no vector, the larger block.
    bool interleave = together;
    if (together && apart) {
      const bool fill = std::max(unit->size, last.size) * bytes >= 16;
      interleave = fill ? unit->size >= last.size : unit->size * unit->y >= last.size * last.x;
    }
    if (interleave) {
      p.innermost = Innermost::kInterleave, p.length = unit->size, p.ways = unit->y;
      within.assign(unit, axes.end());
      combine({unit + 1, axes.end()}, &MoveAxis::x, p.streams);
    } else if (apart) {
      p.innermost = Innermost::kDeinterleave, p.ways = last.x;
      within.insert(within.end(), inner.begin(), inner.end());
      combine(inner, &MoveAxis::y, p.streams);
    }
  }
  if (p.innermost == Innermost::kRun && last.size > 1 && last.size * bytes < 16) short_run(p, axes, within);
  for (const MoveAxis& axis : axes) {
    if (std::any_of(within.begin(), within.end(), [&](const MoveAxis& a) { return a.y == axis.y; })) continue;
    if (p.outer == MoveParams::kOuter) return false;
    p.axes[p.outer++] = axis;
  }
  if (p.innermost == Innermost::kInterleave) {  // where there are many streams, the order is theirs
    std::stable_sort(p.axes, p.axes + p.outer, [](const MoveAxis& a, const MoveAxis& b) { return a.x > b.x; });
  }
  return true;
}

// A new tensor of those sizes in x's memory format: channels_last or channels_last_3d where x's strides say so (torch's
// rule, c10/core/MemoryFormat.h), else contiguous.
inline Tensor empty_as(const View& x, const Ints& sizes) {
  std::vector<int64_t> order;  // of dimensions, innermost first
  bool last = (x.dim == 4 || x.dim == 5) && x.strides[1] != 0;
  if (last) {
    order.push_back(1);
    for (int64_t d = x.dim - 1; d > 1; --d) order.push_back(d);
    order.push_back(0);
    int64_t least = 0;
    for (int64_t d : order) {
      last = last && x.sizes[d] != 0 && x.strides[d] >= least && !(d == 0 && least == x.strides[1]);
      least = x.strides[d] * std::max<int64_t>(x.sizes[d], 1);
    }
  }
  const auto dim = static_cast<int64_t>(sizes.size());
  if (!last) {
    order.clear();
    for (int64_t d = dim; d-- > 0;) order.push_back(d);
  }
  Ints strides(dim);
  int64_t run = 1;
  for (int64_t d : order) strides[d] = run, run *= std::max<int64_t>(sizes[d], 1);
  AtenTensorHandle h;
  if (aoti_torch_empty_strided(dim, sizes.data(), strides.data(), x.dtype, x.device, x.index, &h)) {
    fail("cannot allocate an output of shape ", show(sizes));
  }
  return Tensor(h);
}

// y = x moved by a kernel: axes(view of x, view of y) says how.
template <class F>
Tensor move(const Tensor& x_, const Ints& sizes, void (*kernel)(const MoveParams&, const machine::Launch&), F&& axes) {
  Tensor y_ = empty_as(View(x_), sizes);
  const View y(y_);
  if (std::any_of(sizes.begin(), sizes.end(), [](int64_t size) { return size == 0; })) return y_;
  std::optional<Tensor> copy;
  MoveParams p;
  const auto bytes = static_cast<int64_t>(aoti_torch_dtype_element_size(y.dtype));
  if (const View x(x_); !plan(p, x.data, y.data, bytes, axes(x, y))) {
    copy = torch::stable::contiguous(x_);
    const View dense(*copy);
    if (!plan(p, dense.data, y.data, bytes, axes(dense, y))) fail("a tensor of too many dimensions");
  }
  launch(y, p, 0, kernel);
  return y_;
}

}  // namespace lightkernels
