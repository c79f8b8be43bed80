// How the CPU kernels of sampling and inversion divide the voxels of a batch between tasks. Where a
// voxel writes its own result, tasks take blocks of voxels; where voxels scatter into a volume,
// tasks take slabs of that volume.
#pragma once

#include <algorithm>
#include <vector>

#include "interpolate.h"
#include "launch.h"

namespace deepatlas {

// The number of voxels in a block, so small that its arrays fit into the first-level cache.
constexpr int kBlockVoxels = 128;

inline int64_t blocks_of(const Shape3& s) { return pieces_of(s.voxels(), kBlockVoxels); }

inline int block_size(const Shape3& s, int64_t block) {
  return int(std::min<int64_t>(kBlockVoxels, s.voxels() - block * kBlockVoxels));
}

// Calls body(b, block, first voxel, count) for every block of every batch item, in parallel. A task
// takes at least `grain` blocks.
template <class F>
void for_each_block(const Parallel& parallel, int64_t batch, const Shape3& shape, int64_t grain,
                    const F& body) {
  const int64_t blocks = blocks_of(shape);
  parallel(batch * blocks, grain, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t b = i / blocks, block = i - b * blocks;
      body(b, block, block * kBlockVoxels, block_size(shape, block));
    }
  });
}

// Calls body(z, y, x, i, count) for the parts of the block of voxels [n, n + block) that lie in one
// row each. A part begins at (z, y, x), which is voxel i of the block, and has `count` voxels.
template <class F>
void for_each_row_part(const Shape3& shape, int64_t n, int block, const F& body) {
  const int64_t row = n / shape.w;
  int32_t z = int32_t(row / shape.h), y = int32_t(row - int64_t(z) * shape.h);
  int32_t x = int32_t(n - row * shape.w);
  for (int i = 0; i < block;) {
    const int count = std::min(block - i, shape.w - x);
    body(z, y, x, i, count);
    i += count;
    x = 0;
    if (++y == shape.h) y = 0, ++z;
  }
}

// The offsets of `count` voxels in a volume. 32-bit products, where they suffice, vectorise on
// every processor.
inline void flatten(const Shape3& s, const int32_t* z, const int32_t* y, const int32_t* x,
                    int count, int64_t* offset) {
  if (s.voxels() <= INT32_MAX) {
    for (int i = 0; i < count; ++i) offset[i] = (z[i] * s.h + y[i]) * s.w + x[i];
  } else {
    for (int i = 0; i < count; ++i) offset[i] = (int64_t(z[i]) * s.h + y[i]) * s.w + x[i];
  }
}

// The levels [low, high) of the volume that a block reads from or writes to.
struct Span {
  int32_t low, high;
  void add(const int32_t* z, int count, int32_t depth) {
    const auto ends = std::minmax_element(z, z + count);
    low = std::min(low, *ends.first);
    high = std::max(high, std::min(*ends.second + 2, depth));
  }
};

// The slabs of every batch item, and the blocks of voxels that scatter into each slab. A task owns
// a slab and adds to it in the order of the blocks. So there are no atomics, and no sum depends on
// where the volume is cut: the result is the same for any number of threads.
class Slabs {
 public:
  Slabs(const std::vector<Span>& spans, int64_t batch, const Shape3& shape, int32_t depth,
        int64_t slabs)
      : spans_(spans), shape_(shape), blocks_(blocks_of(shape)) {
    for (int64_t b = 0; b < batch; ++b) cuts_.push_back(cut(&spans[b * blocks_], depth, slabs));
  }
  int32_t low(int64_t b, int64_t slab) const { return cuts_[b][slab]; }
  int32_t high(int64_t b, int64_t slab) const { return cuts_[b][slab + 1]; }

  // Calls body(block, first voxel, count) in order for the blocks whose span meets [low, high).
  template <class F>
  void for_each_block(int64_t b, int32_t low, int32_t high, const F& body) const {
    for (int64_t block = 0; block < blocks_ && low < high; ++block) {
      const Span span = spans_[b * blocks_ + block];
      if (span.high <= low || span.low >= high) continue;
      body(block, block * kBlockVoxels, block_size(shape_, block));
    }
  }

 private:
  // Where to cut `depth` levels so that about the same number of blocks scatters into each piece.
  std::vector<int32_t> cut(const Span* spans, int32_t depth, int64_t pieces) const {
    std::vector<int64_t> load(depth, 0);
    for (int64_t i = 0; i < blocks_; ++i) ++load[(spans[i].low + spans[i].high - 1) / 2];
    std::vector<int32_t> cuts(pieces + 1, depth);
    cuts[0] = 0;
    int64_t seen = 0, piece = 1;
    for (int32_t z = 0; z < depth && piece < pieces; ++z) {
      seen += load[z];
      while (piece < pieces && seen * pieces >= blocks_ * piece) cuts[piece++] = z + 1;
    }
    return cuts;
  }

  const std::vector<Span>& spans_;
  Shape3 shape_;
  int64_t blocks_;
  std::vector<std::vector<int32_t>> cuts_;
};

}  // namespace deepatlas
