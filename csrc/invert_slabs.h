// How the CPU kernels of inversion share out the blocks of a batch: freely where each writes its
// own voxels, by slabs of the moving map where they scatter into it.
#pragma once

#include <algorithm>
#include <vector>

#include "invert_block.h"

namespace deepatlas {
namespace invert {

inline int64_t blocks_of(const Shape3& s) { return (s.voxels() + kBlock - 1) / kBlock; }

// Calls body(b, block, first voxel, count) for every block of every batch item, in parallel.
template <class F>
void for_each_block(const Parallel& parallel, const InvertArgs& a, const F& body) {
  const int64_t blocks = blocks_of(a.out), voxels = a.out.voxels();
  parallel(a.batch * blocks, 8, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t b = i / blocks, n = (i - b * blocks) * kBlock;
      body(b, i - b * blocks, n, int(std::min<int64_t>(kBlock, voxels - n)));
    }
  });
}

// Levels of the moving map that a block touches.
struct Span {
  int32_t low, high;
  void add(const int32_t* z, int count, int32_t depth) {
    const auto ends = std::minmax_element(z, z + count);
    low = std::min(low, *ends.first);
    high = std::max(high, std::min(*ends.second + 2, depth));
  }
};

// Cuts the levels into `pieces` slabs that blocks touch about equally often.
inline std::vector<int32_t> cut(const Span* spans, int64_t blocks, int32_t depth, int64_t pieces) {
  std::vector<int64_t> load(depth, 0);
  for (int64_t i = 0; i < blocks; ++i) ++load[(spans[i].low + spans[i].high - 1) / 2];
  std::vector<int32_t> cuts(pieces + 1, depth);
  cuts[0] = 0;
  int64_t seen = 0, piece = 1;
  for (int32_t z = 0; z < depth && piece < pieces; ++z) {
    seen += load[z];
    while (piece < pieces && seen * pieces >= blocks * piece) cuts[piece++] = z + 1;
  }
  return cuts;
}

inline int64_t slabs_of(const InvertArgs& a, const Parallel& parallel) {
  if (a.batch * a.out.voxels() < 4096) return 1;
  return std::min<int64_t>((parallel.threads + a.batch - 1) / a.batch, a.in.d);
}

// Each task owns a slab of levels of one batch item: it clears them in the scratch `packed`, calls
// body(b, block, first voxel, count, low, high) for the blocks that touch them, in order, and hands
// the sums over to grad_moving. No atomics, and no sum depends on the cuts: the result is the same
// for any number of threads.
template <class T, class F>
void for_each_slab(const Parallel& parallel, const InvertArgs& a, const std::vector<Span>& spans,
                   T* scratch, const F& body) {
  const int64_t blocks = blocks_of(a.out), slabs = slabs_of(a, parallel);
  const Shape3 packed = packed_shape(a.in);
  const int64_t voxels = a.in.voxels(), packed_voxels = packed.voxels();
  std::vector<std::vector<int32_t>> cuts(a.batch);
  for (int64_t b = 0; b < a.batch; ++b) cuts[b] = cut(&spans[b * blocks], blocks, a.in.d, slabs);
  parallel(a.batch * slabs, 1, [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; ++task) {
      const int64_t b = task / slabs;
      const int32_t low = cuts[b][task - b * slabs], high = cuts[b][task - b * slabs + 1];
      T* sums = scratch + 4 * b * packed_voxels;
      const int64_t plane = int64_t(packed.h) * packed.w;
      std::fill(sums + 4 * low * plane, sums + 4 * high * plane, T(0));
      for (int64_t block = 0; block < blocks && low < high; ++block) {
        const Span span = spans[b * blocks + block];
        if (span.high <= low || span.low >= high) continue;
        const int64_t n = block * kBlock;
        body(b, block, n, int(std::min<int64_t>(kBlock, a.out.voxels() - n)), low, high);
      }
      T* to = static_cast<T*>(a.grad_moving) + b * 3 * voxels;
      for (int64_t row = int64_t(low) * a.in.h; row < int64_t(high) * a.in.h; ++row) {
        const T* from = sums + 4 * row * packed.w;
        T *x = to + row * a.in.w, *y = x + voxels, *z = y + voxels;
        for (int32_t i = 0; i < a.in.w; ++i) {
          x[i] = from[4 * i];
          y[i] = from[4 * i + 1];
          z[i] = from[4 * i + 2];
        }
      }
    }
  });
}

}  // namespace invert
}  // namespace deepatlas
