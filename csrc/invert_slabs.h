// The scatter of inversion on the CPU: its tasks, their scratch, and the conversion of packed sums
// to a map.
#pragma once

#include <algorithm>
#include <vector>

#include "blocks.h"
#include "invert_block.h"

namespace deepatlas {
namespace invert {

constexpr int64_t kBlocksPerTask = 8;

// How many slabs the volume of a batch item is cut into.
inline int64_t slabs_of(const InvertArgs& a, const Parallel& parallel) {
  if (a.batch * a.out.voxels() < 4096) return 1;
  return std::min<int64_t>((parallel.threads + a.batch - 1) / a.batch, a.in.d);
}

// Copies the levels [low, high) of the packed sums of one batch item to grad_moving.
template <class T>
void unpack(const InvertArgs& a, int64_t b, const T* sums, int32_t low, int32_t high) {
  const int64_t voxels = a.in.voxels(), width = packed_shape(a.in).w;
  T* to = static_cast<T*>(a.grad_moving) + b * 3 * voxels;
  for (int64_t row = int64_t(low) * a.in.h; row < int64_t(high) * a.in.h; ++row) {
    const T* from = sums + 4 * row * width;
    T *x = to + row * a.in.w, *y = x + voxels, *z = y + voxels;
    for (int32_t i = 0; i < a.in.w; ++i) {
      x[i] = from[4 * i];
      y[i] = from[4 * i + 1];
      z[i] = from[4 * i + 2];
    }
  }
}

// Each task owns a slab, the levels [low, high) of one batch item. It sets them to 0 in `scratch`,
// calls body(b, block, first voxel, count, low, high) for the blocks that scatter into them, and
// copies the sums to grad_moving.
template <class T, class F>
void for_each_slab(const Parallel& parallel, const InvertArgs& a, const std::vector<Span>& spans,
                   T* scratch, const F& body) {
  const int64_t slabs = slabs_of(a, parallel);
  const Shape3 packed = packed_shape(a.in);
  const int64_t plane = int64_t(packed.h) * packed.w;
  const Slabs cuts(spans, a.batch, a.out, a.in.d, slabs);
  parallel(a.batch * slabs, 1, [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; ++task) {
      const int64_t b = task / slabs, slab = task - b * slabs;
      const int32_t low = cuts.low(b, slab), high = cuts.high(b, slab);
      T* sums = scratch + 4 * b * packed.voxels();
      std::fill(sums + 4 * low * plane, sums + 4 * high * plane, T(0));
      cuts.for_each_block(b, low, high, [&](int64_t block, int64_t n, int count) {
        body(b, block, n, count, low, high);
      });
      unpack(a, b, sums, low, high);
    }
  });
}

}  // namespace invert
}  // namespace deepatlas
