// What is copied into another order before it is multiplied: weights into panels, inputs into dense sums' type.
#pragma once

#include "activations.h"
#include "dense_conv2d.h"
#include "vec_lanes.h"

namespace lightkernels::cpu {

// Rows and columns of L x L numbers change places.
template <int L, class S, int B = L>
LIGHTKERNELS_INLINE void transpose(Vec<S, L> (&v)[L]) {
  if constexpr (B > 1) {
    unroll<L>(LIGHTKERNELS_LAMBDA(auto r) {
      constexpr int kRow = r;
      if constexpr (kRow % B < B / 2) {
        const Vec<S, L> a = v[kRow], b = v[kRow + B / 2];
        v[kRow] = shuffle<FirstHalves<B>, L, S>(a, b);
        v[kRow + B / 2] = shuffle<SecondHalves<B>, L, S>(a, b);
      }
    });
    transpose<L, S, B / 2>(v);
  }
}

// Vector V of G vectors' lanes, one lane of each in turn: lane i is lane (V * L + i) / G of vector (V * L + i) % G.
template <int G, int V, int K>
struct TakenFrom {  // vector K where it is its turn, else what is there already
  static constexpr int at(int i, int lanes) { return (V * lanes + i) % G == K ? lanes + (V * lanes + i) / G : i; }
};
template <int G, int V, int L, class S>
LIGHTKERNELS_INLINE Vec<S, L> interleaved(const Vec<S, L> (&in)[G]) {
  Vec<S, L> out = in[0];
  unroll<G>(LIGHTKERNELS_LAMBDA(auto k) {
    constexpr int kSource = k;
    out = shuffle<TakenFrom<G, V, kSource>, L, S>(out, in[kSource]);
  });
  return out;
}

// to[(t * ci + k) * width + o] = w[o, k, u, v] for every tap t = (u, v), zeros where o is `present` or more; where rows
// share the last vector, it has its first half twice.
template <class E>
void pack_panel(const E* w, const DenseConv& d, int64_t present, int64_t width, bool shared, Acc<E>* to) {
  using S = Acc<E>;
  constexpr int L = lanes<S>();
  present = std::min(present, width);
  for (int64_t u = 0; u < d.h.count; ++u) {
    for (int64_t v = 0; v < d.w.count; ++v) {
      const E* tap = w + u * d.w_u + v * d.w_v;
      S* out = to + (u * d.w.count + v) * d.ci * width;
      int64_t k = 0;
      if (d.w_k == 1) {  // vectors along k, L of them turned at a time
        for (; k + L <= d.ci; k += L) {
          for (int64_t o = 0; o < width; o += L) {
            Vec<S, L> block[L];
            unroll<L>(LIGHTKERNELS_LAMBDA(auto i) {
              block[i] = o + i < present ? load<L>(tap + (o + i) * d.w_o + k) : Vec<S, L>{};
            });
            transpose<L, S>(block);
            unroll<L>(LIGHTKERNELS_LAMBDA(auto i) { store<L, S>(out + (k + i) * width + o, block[i]); });
          }
        }
      } else if (d.w_o == 1) {
        for (; k < d.ci; ++k) {
          for (int64_t o = 0; o < width; o += L) {
            store<L, S>(out + k * width + o, load_up_to<L>(tap + k * d.w_k + o, present - o));
          }
        }
      }
      for (; k < d.ci; ++k) {
        for (int64_t o = 0; o < present; ++o) out[k * width + o] = load<1>(tap + o * d.w_o + k * d.w_k)[0];
        for (int64_t o = present; o < width; ++o) out[k * width + o] = S(0);
      }
    }
  }
  if (!shared) return;
  for (int64_t k = 0; k < d.k(); ++k) {
    S* end = to + (k + 1) * width;
    std::copy(end - L, end - L / 2, end - L / 2);
  }
}

// to[j * c + k] = from[j * j_step + k * k_step]: channels come innermost.
template <class E>
void innermost(const E* from, int64_t j_step, int64_t k_step, int64_t columns, int64_t c, Acc<E>* to) {
  using S = Acc<E>;
  constexpr int L = lanes<S>();
  if (k_step == 1) {
    if (j_step == c) c *= columns, columns = 1;
    for (int64_t j = 0; j < columns; ++j) {
      for (int64_t k = 0; k < c; k += L)
        store_up_to<L, S>(to + j * c + k, load_up_to<L>(from + j * j_step + k, c - k), c - k);
    }
    return;
  }
  int64_t j = 0;
  if (j_step == 1 && c == 3) {  // an image's colours
    for (; j + L <= columns; j += L) {
      Vec<S, L> in[3];
      unroll<3>(LIGHTKERNELS_LAMBDA(auto k) { in[k] = load<L>(from + j + k * k_step); });
      unroll<3>(LIGHTKERNELS_LAMBDA(auto v) {
        store<L, S>(to + j * 3 + v * L, interleaved<3, decltype(v)::value, L, S>(in));
      });
    }
  } else if (j_step == 1) {
    for (; j + L <= columns; j += L) {
      int64_t k = 0;
      for (; k + L <= c; k += L) {
        Vec<S, L> block[L];
        unroll<L>(LIGHTKERNELS_LAMBDA(auto i) { block[i] = load<L>(from + j + (k + i) * k_step); });
        transpose<L, S>(block);
        unroll<L>(LIGHTKERNELS_LAMBDA(auto i) { store<L, S>(to + (j + i) * c + k, block[i]); });
      }
      for (; k < c; ++k) {
        const Vec<S, L> v = load<L>(from + j + k * k_step);
        for (int i = 0; i < L; ++i) to[(j + i) * c + k] = v[i];
      }
    }
  }
  for (; j < columns; ++j) {
    for (int64_t k = 0; k < c; ++k) to[j * c + k] = load<1>(from + j * j_step + k * k_step)[0];
  }
}

// to[k] = act(from[k]) * gate[k] for c channels.
template <class E>
LIGHTKERNELS_INLINE void enter(const E* from, int64_t step, const E* gate, int64_t gate_step, Activation activation,
                               int64_t c, Acc<E>* to) {
  using S = Acc<E>;
  constexpr int L = lanes<S>();
  const bool vectors = step == 1 && (!gate || gate_step == 1);
  auto f = LIGHTKERNELS_LAMBDA(auto lanes, int64_t k) {
    constexpr int N = decltype(lanes)::value;
    Vec<S, N> v = load<N>(from + k * step);
    if (activation != Activation::kNone) v = activate<N, S>(v, activation, S(0), Vec<S, N>{});
    if (gate) v = v * load<N>(gate + k * gate_step);
    store<N, S>(to + k, v);
  };
  int64_t k = 0;
  if (vectors) {
    for (; k + L <= c; k += L) f(std::integral_constant<int, L>{}, k);
  }
  for (; k < c; ++k) f(std::integral_constant<int, 1>{}, k);
}

}  // namespace lightkernels::cpu
