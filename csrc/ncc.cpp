// Correlation over the whole volume on the CPU, and the choice between it and the windows of
// ncc_window.cpp. The work is divided into pieces of a fixed size whose moments are merged in
// order, so that the result does not depend on the number of threads.
#include "ncc.h"

#include <algorithm>
#include <vector>

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

template <bool Masked, class S>
void gradient(const Slopes slopes, const S* __restrict a, const S* __restrict b,
              const S* __restrict mask, int64_t count, S* __restrict target) {
  for (int64_t i = 0; i < count; ++i) {
    const double weight = Masked ? double(load(mask[i])) : 1;
    const double x = Masked ? held(a[i], weight) : double(load(a[i]));
    const double y = Masked ? held(b[i], weight) : double(load(b[i]));
    store(target + i, Accumulate<S>(slopes(x, y, weight)));
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
    const auto by = [&](const Slopes& s, const S* own, const S* other, void* result) {
      if (result == nullptr) return;
      S* target = static_cast<S*>(result) + item * voxels + first;
      if (mask != nullptr) {
        gradient<true>(s, own, other, mask + first, count, target);
      } else {
        gradient<false, S>(s, own, other, nullptr, count, target);
      }
    };
    by(slopes.by_a, a, b, args.grad_a);
    by(slopes.by_b, b, a, args.grad_b);
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
