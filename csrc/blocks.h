// How the CPU kernels of sampling and inversion share out the voxels of a batch: in blocks, freely
// where each writes its own voxels, by slabs of the volume where they scatter into it.
#pragma once

#include <algorithm>
#include <vector>

#include "interpolate.h"
#include "launch.h"

namespace deepatlas {

constexpr int kBlock = 128;  // voxels a block: its arrays stay inside the first-level cache

inline int64_t blocks_of(const Shape3& s) { return (s.voxels() + kBlock - 1) / kBlock; }

inline int block_size(const Shape3& s, int64_t block) {
  return int(std::min<int64_t>(kBlock, s.voxels() - block * kBlock));
}

// Calls body(b, block, first voxel, count) for every block of every batch item, in parallel, at
// least `grain` blocks a task.
template <class F>
void for_each_block(const Parallel& parallel, int64_t batch, const Shape3& shape, int64_t grain,
                    const F& body) {
  const int64_t blocks = blocks_of(shape);
  parallel(batch * blocks, grain, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t b = i / blocks, block = i - b * blocks;
      body(b, block, block * kBlock, block_size(shape, block));
    }
  });
}

// Levels of the volume that a block touches.
struct Span {
  int32_t low, high;
  void add(const int32_t* z, int count, int32_t depth) {
    const auto ends = std::minmax_element(z, z + count);
    low = std::min(low, *ends.first);
    high = std::max(high, std::min(*ends.second + 2, depth));
  }
};

// The slabs of every batch item, and the blocks of its voxels that touch each. A task that owns a
// slab adds to it in the order of the blocks: no atomics, and no sum depends on the cuts, so that
// the result is the same for any number of threads.
class Slabs {
 public:
  Slabs(const std::vector<Span>& spans, int64_t batch, const Shape3& shape, int32_t depth,
        int64_t slabs)
      : spans_(spans), shape_(shape), blocks_(blocks_of(shape)) {
    for (int64_t b = 0; b < batch; ++b) cuts_.push_back(cut(&spans[b * blocks_], depth, slabs));
  }
  int32_t low(int64_t b, int64_t slab) const { return cuts_[b][slab]; }
  int32_t high(int64_t b, int64_t slab) const { return cuts_[b][slab + 1]; }

  // Calls body(block, first voxel, count) for the blocks that touch levels [low, high), in order.
  template <class F>
  void for_each_block(int64_t b, int32_t low, int32_t high, const F& body) const {
    for (int64_t block = 0; block < blocks_ && low < high; ++block) {
      const Span span = spans_[b * blocks_ + block];
      if (span.high <= low || span.low >= high) continue;
      body(block, block * kBlock, block_size(shape_, block));
    }
  }

 private:
  // Where to cut `depth` levels so that blocks touch the pieces about equally often.
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
