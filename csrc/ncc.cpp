// Correlation over the whole volume on the CPU, and the choice between it and the windows of
// ncc_window.cpp. The work is divided into pieces of a fixed size whose moments are merged in
// order, so that the result does not depend on the number of threads.
#include "ncc.h"

#include <algorithm>
#include <vector>

#include "doubles.h"
#include "ncc_window.h"

namespace deepatlas {
namespace ncc {
namespace {

// The number of voxels in a piece.
constexpr int64_t kPiece = 16384;
// The number of tallies that are computed side by side, so that the compiler can vectorise.
constexpr int kLanes = 16;

// kLanes tallies, field by field. Lane i adds up every kLanes-th voxel.
template <bool Masked>
struct Lanes {
  double n[kLanes] = {}, pivot_a[kLanes] = {}, pivot_b[kLanes] = {}, a[kLanes] = {}, b[kLanes] = {},
         aa[kLanes] = {}, bb[kLanes] = {}, ab[kLanes] = {};

  template <class S>
  void add(const S* __restrict x, const S* __restrict y, const S* __restrict mask, int count) {
    for (int i = 0; i < count; ++i) {
      const double weight = Masked ? double(load(mask[i])) : 1;
      Tally t{n[i], pivot_a[i], pivot_b[i], a[i], b[i], aa[i], bb[i], ab[i]};
      t.add(Masked ? held(x[i], weight) : double(load(x[i])),
            Masked ? held(y[i], weight) : double(load(y[i])), weight);
      n[i] = t.n;
      pivot_a[i] = t.pivot_a;
      pivot_b[i] = t.pivot_b;
      a[i] = t.a;
      b[i] = t.b;
      aa[i] = t.aa;
      bb[i] = t.bb;
      ab[i] = t.ab;
    }
  }
  // Adds voxels without a mask, as many as fill all lanes, to lanes that are empty. The first ones
  // are the pivots, so that there is nothing to decide. Returns how many were added.
  template <class S>
  int64_t add_whole(const S* __restrict x, const S* __restrict y, int64_t count) {
    const int64_t whole = count / kLanes * kLanes;
    constexpr int vectors = kLanes / kDoubles;
    Doubles from_x[vectors], from_y[vectors], sums[vectors][5] = {};
    for (int k = 0; k < vectors; ++k) {
      from_x[k] = widen(x + k * kDoubles);
      from_y[k] = widen(y + k * kDoubles);
    }
    for (int64_t i = 0; i < whole; i += kLanes) {
      for (int k = 0; k < vectors; ++k) {
        const Doubles dx = widen(x + i + k * kDoubles) - from_x[k];
        const Doubles dy = widen(y + i + k * kDoubles) - from_y[k];
        sums[k][0] += dx;
        sums[k][1] += dy;
        sums[k][2] += dx * dx;
        sums[k][3] += dy * dy;
        sums[k][4] += dx * dy;
      }
    }
    for (int k = 0; k < vectors; ++k) {
      const int lane = k * kDoubles;
      put(n + lane, every(double(whole / kLanes)));
      put(pivot_a + lane, from_x[k]);
      put(pivot_b + lane, from_y[k]);
      put(a + lane, sums[k][0]);
      put(b + lane, sums[k][1]);
      put(aa + lane, sums[k][2]);
      put(bb + lane, sums[k][3]);
      put(ab + lane, sums[k][4]);
    }
    return whole;
  }
  Moments moments() const {
    Moments all{};
    for (int i = 0; i < kLanes; ++i) {
      const Tally t{n[i], pivot_a[i], pivot_b[i], a[i], b[i], aa[i], bb[i], ab[i]};
      all = merge(all, t.moments());
    }
    return all;
  }
};

template <bool Masked, class S>
Moments moments_of(const S* a, const S* b, const S* mask, int64_t count) {
  Lanes<Masked> lanes;
  int64_t i = 0;
  if (!Masked && count >= kLanes) i = lanes.add_whole(a, b, count);
  for (; i + kLanes <= count; i += kLanes) {
    lanes.add(a + i, b + i, Masked ? mask + i : nullptr, kLanes);
  }
  lanes.add(a + i, b + i, Masked ? mask + i : nullptr, int(count - i));
  return lanes.moments();
}

template <class S>
const S* of_item(const void* data, int64_t item, int64_t voxels) {
  return static_cast<const S*>(data) + item * voxels;
}

template <class S>
const S* mask_of(const NccArgs& args, int64_t item) {
  if (args.mask == nullptr) return nullptr;
  return of_item<S>(args.mask, item / args.channels, args.shape.voxels());
}

// Calls body(item, first voxel, count, number of the piece) for every piece of every channel, in
// parallel.
template <class F>
void for_each_piece(const NccArgs& args, const Parallel& parallel, const F& body) {
  const int64_t voxels = args.shape.voxels(), pieces = pieces_of(voxels, kPiece);
  parallel(args.items() * pieces, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t item = i / pieces, first = (i - item * pieces) * kPiece;
      body(item, first, std::min(kPiece, voxels - first), i);
    }
  });
}

// The moments of every channel.
template <class S>
void channel_moments(const NccArgs& args, const Parallel& parallel) {
  const int64_t voxels = args.shape.voxels(), pieces = pieces_of(voxels, kPiece);
  std::vector<Moments> partial(args.items() * pieces);
  for_each_piece(args, parallel, [&](int64_t item, int64_t first, int64_t count, int64_t piece) {
    const S* a = of_item<S>(args.a, item, voxels) + first;
    const S* b = of_item<S>(args.b, item, voxels) + first;
    const S* mask = mask_of<S>(args, item);
    partial[piece] = mask ? moments_of<true>(a, b, mask + first, count)
                          : moments_of<false, S>(a, b, nullptr, count);
  });
  for (int64_t item = 0; item < args.items(); ++item) {
    Moments all{};
    for (int64_t i = 0; i < pieces; ++i) all = merge(all, partial[item * pieces + i]);
    reinterpret_cast<Moments*>(args.moments)[item] = normalised(all);
  }
}

// The gradients of a piece, by a and by b; those that are not needed are null.
template <bool Masked, bool ByA, bool ByB, class S>
void gradients(const SlopePair& slopes, const S* a, const S* b, const S* mask, int32_t count,
               S* grad_a, S* grad_b) {
  const Slopes by_a = slopes.by_a, by_b = slopes.by_b;
  for_each_vector(count, [&](int32_t i, auto part) DA_INLINE_LAMBDA {
    Doubles x = widen(a + i, part), y = widen(b + i, part);
    const Doubles weight = Masked ? widen(mask + i, part) : every(1), zero = {};
    if (Masked) {
      x = choose(weight > 0, x, zero);
      y = choose(weight > 0, y, zero);
    }
    x -= by_a.mean_a;
    y -= by_a.mean_b;
    const auto write = [&](S* target, Doubles sum) DA_INLINE_LAMBDA {
      narrow(target + i, Masked ? weight * sum : sum, part);
    };
    if (ByA) write(grad_a, by_a.cross * y + by_a.own * x);
    if (ByB) write(grad_b, by_b.cross * x + by_b.own * y);
  });
}

template <bool Masked, class S>
void gradients(const SlopePair& slopes, const S* a, const S* b, const S* mask, int32_t count,
               S* grad_a, S* grad_b) {
  if (grad_a != nullptr && grad_b != nullptr) {
    gradients<Masked, true, true>(slopes, a, b, mask, count, grad_a, grad_b);
  } else if (grad_a != nullptr) {
    gradients<Masked, true, false>(slopes, a, b, mask, count, grad_a, grad_b);
  } else {
    gradients<Masked, false, true>(slopes, a, b, mask, count, grad_a, grad_b);
  }
}

template <class S>
void global_forward(const NccArgs& args) {
  for (int64_t item = 0; item < args.items(); ++item) {
    const Moments& m = reinterpret_cast<const Moments*>(args.moments)[item];
    const double value = correlate_channel(m, args.eps, sizeof(S) < sizeof(double)).value;
    store(static_cast<S*>(args.value) + item, Accumulate<S>(value));
  }
}

template <class S>
void global_backward(const NccArgs& args, const Parallel& parallel) {
  const int64_t voxels = args.shape.voxels();
  for_each_piece(args, parallel, [&](int64_t item, int64_t first, int64_t count, int64_t) {
    const Moments& m = reinterpret_cast<const Moments*>(args.moments)[item];
    const double grad = load(static_cast<const S*>(args.grad)[item]);
    const SlopePair slopes = channel_slopes(m, args.eps, sizeof(S) < sizeof(double), grad);
    const S* a = of_item<S>(args.a, item, voxels) + first;
    const S* b = of_item<S>(args.b, item, voxels) + first;
    const S* mask = mask_of<S>(args, item);
    const auto to = [&](void* result) {
      return result ? static_cast<S*>(result) + item * voxels + first : nullptr;
    };
    if (mask != nullptr) {
      gradients<true>(slopes, a, b, mask + first, int32_t(count), to(args.grad_a), to(args.grad_b));
    } else {
      gradients<false, S>(slopes, a, b, nullptr, int32_t(count), to(args.grad_a),
                          to(args.grad_b));
    }
  });
}

}  // namespace
}  // namespace ncc

void ncc_forward_cpu(const NccArgs& args, const Parallel& parallel) {
  with_scalar(args.scalar, [&](auto s) {
    using S = decltype(s);
    ncc::channel_moments<S>(args, parallel);
    if (args.window == 0) {
      ncc::global_forward<S>(args);
    } else {
      ncc::window_forward<S>(args, parallel);
    }
  });
}

void ncc_backward_cpu(const NccArgs& args, const Parallel& parallel) {
  with_scalar(args.scalar, [&](auto s) {
    using S = decltype(s);
    if (args.window == 0) {
      ncc::global_backward<S>(args, parallel);
    } else {
      ncc::window_backward<S>(args, parallel);
    }
  });
}

}  // namespace deepatlas
