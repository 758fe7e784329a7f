// Instructions that do the same in each lane, with no regard to the others.
#pragma once

#include <tuple>
#include <utility>

#include "machine.h"
#include "numbers.h"

namespace ptx {

// o[0] = f(o[1], o[2], ...), of types R and A...
template <class R, class... A, class F>
inline void each_lane(Warp& w, const Instruction& i, F&& f) {
  [&]<size_t... K>(std::index_sequence<K...>) {
    R* out = w.out<R>(i.o[0]);
    const std::tuple<const A*...> in{w.in<A>(i.o[1 + K])...};
    if (w.mask == kAll) {
      for (int l = 0; l < kLanes; ++l) out[l] = f(std::get<K>(in)[l]...);
    } else {
      for_lanes(w.mask, [&](int l) { out[l] = f(std::get<K>(in)[l]...); });
    }
  }(std::index_sequence_for<A...>{});
}

template <auto f, class R, class... A>
void lanewise(Block&, Warp& w, const Instruction& i) {
  each_lane<R, A...>(w, i, f);
}

// The same with the instruction as f's first argument.
template <auto f, class R, class... A>
void lanewise_of(Block&, Warp& w, const Instruction& i) {
  each_lane<R, A...>(w, i, [&](auto... a) { return f(i, a...); });
}

// Registers `op`.`type` for each type.
template <auto f, int N, class... T>
struct ForTypes {
  explicit ForTypes(const std::string& op) { (one<T>(op), ...); }
  template <class U>
  void one(const std::string& op) {
    const std::string name = op + "." + name_of<U>;
    if constexpr (N == 1) Register(name, lanewise<f, U, U>);
    if constexpr (N == 2) Register(name, lanewise<f, U, U, U>);
    if constexpr (N == 3) Register(name, lanewise<f, U, U, U, U>);
  }
};

}  // namespace ptx
