// Piecewise linear curves on the CPU. Each segment in turn is compared with a whole block of
// values, which the compiler can vectorise.
#include "piecewise.h"

#include "rows.h"

namespace deepatlas {
namespace {

constexpr int64_t kBlocksPerTask = 32;

// Calls f(first element, count) for blocks that cover all elements, in parallel.
template <class F>
void over_blocks(const PiecewiseArgs& a, const Parallel& parallel, const F& f) {
  parallel(pieces_of(a.count, kRowVoxels), kBlocksPerTask, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin * kRowVoxels; i < std::min(a.count, end * kRowVoxels); i += kRowVoxels) {
      f(i, int(std::min<int64_t>(kRowVoxels, a.count - i)));
    }
  });
}

// Sets `to` to `value` for the elements above a knot.
template <class T>
void select(const T* __restrict x, int n, T knot, T value, T* __restrict to) {
  for (int i = 0; i < n; ++i) to[i] = x[i] > knot ? value : to[i];
}

template <class S, class T>
void read(const void* from, int64_t first, int n, T* __restrict to) {
  const S* __restrict p = static_cast<const S*>(from) + first;
  for (int i = 0; i < n; ++i) to[i] = load(p[i]);
}

}  // namespace

void piecewise_forward_cpu(const PiecewiseArgs& args, const Parallel& parallel) {
  with_scalar(args.scalar, [&](auto s) {
    using S = decltype(s);
    using T = Accumulate<S>;
    const Curve<T> curve(args);
    over_blocks(args, parallel, [&](int64_t first, int n) {
      alignas(64) T x[kRowVoxels], knot[kRowVoxels], value[kRowVoxels], slope[kRowVoxels];
      read<S>(args.source, first, n, x);
      std::fill_n(knot, n, curve.segment[0].knot);
      std::fill_n(value, n, curve.segment[0].value);
      std::fill_n(slope, n, curve.segment[0].slope);
      for (int i = 1; i < curve.segments; ++i) {
        const Segment<T> next = curve.segment[i];
        select(x, n, next.knot, next.knot, knot);
        select(x, n, next.knot, next.value, value);
        select(x, n, next.knot, next.slope, slope);
      }
      S* __restrict to = static_cast<S*>(args.target) + first;
      for (int i = 0; i < n; ++i) store(to + i, value[i] + slope[i] * (x[i] - knot[i]));
    });
  });
}

void piecewise_backward_cpu(const PiecewiseArgs& args, const Parallel& parallel) {
  with_scalar(args.scalar, [&](auto s) {
    using S = decltype(s);
    using T = Accumulate<S>;
    const Curve<T> curve(args);
    over_blocks(args, parallel, [&](int64_t first, int n) {
      alignas(64) T x[kRowVoxels], slope[kRowVoxels];
      read<S>(args.source, first, n, x);
      std::fill_n(slope, n, curve.segment[0].slope);
      for (int i = 1; i < curve.segments; ++i) {
        select(x, n, curve.segment[i].knot, curve.segment[i].slope, slope);
      }
      const S* __restrict grad = static_cast<const S*>(args.grad) + first;
      S* __restrict to = static_cast<S*>(args.target) + first;
      for (int i = 0; i < n; ++i) store(to + i, load(grad[i]) * slope[i]);
    });
  });
}

}  // namespace deepatlas
