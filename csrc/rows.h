// Rows of voxels on the CPU, in blocks whose arrays fit into the first-level cache, and sums over
// rows that do not depend on the number of threads.
#pragma once

#include <algorithm>
#include <cstdint>

#include "interpolate.h"

namespace deepatlas {

// The number of voxels in a block of a row.
constexpr int kRowVoxels = 256;

// Calls f(first voxel of the block, count) for each block of a row.
template <class F>
void in_blocks(int32_t width, const F& f) {
  for (int32_t x = 0; x < width; x += kRowVoxels) f(x, int(std::min(kRowVoxels, width - x)));
}

// How many planes a task takes, so that it has about `voxels` voxels.
inline int64_t planes_per_task(const Shape3& shape, int64_t voxels) {
  return std::max<int64_t>(1, voxels / std::max<int64_t>(1, int64_t(shape.h) * shape.w));
}

// The weights of a block of voxels. Without a mask (null) they are 1.
template <class S, class T>
void read_weights(const void* mask, int64_t offset, int n, T* __restrict weight) {
  if (mask == nullptr) {
    std::fill(weight, weight + n, T(1));
    return;
  }
  const S* __restrict p = static_cast<const S*>(mask) + offset;
  for (int i = 0; i < n; ++i) weight[i] = load(p[i]);
}

// Three sums over the rows of a plane. Each position in a block has its own partial sums, so that
// the compiler can vectorise; they are added to a total in float64 after every 32 blocks.
template <class T>
class PlaneSums {
 public:
  explicit PlaneSums(int32_t width) : lanes_(std::min(width, int32_t(kRowVoxels))) {}

  // Calls f(i, first, second, third) for the n voxels of a block; f adds to the three sums.
  template <class F>
  void add(int n, const F& f) {
    T* __restrict a = lane_[0], * __restrict b = lane_[1], * __restrict c = lane_[2];
    for (int i = 0; i < n; ++i) f(i, a[i], b[i], c[i]);
    if (++blocks_ == 32) flush();
  }
  // Stores the sums and starts again from 0.
  void finish(double* sums) {
    flush();
    for (int k = 0; k < 3; ++k) sums[k] = total_[k], total_[k] = 0;
  }

 private:
  void flush() {
    for (int i = 0; i < lanes_; ++i) {
      for (int k = 0; k < 3; ++k) total_[k] += double(lane_[k][i]), lane_[k][i] = T(0);
    }
    blocks_ = 0;
  }
  int32_t lanes_;
  int blocks_ = 0;
  double total_[3] = {0, 0, 0};
  alignas(64) T lane_[3][kRowVoxels] = {};
};

// Calls f(item, sums) for each of `items` items with the sum over its `planes` planes, in order, of
// the three numbers per plane that `sums` holds.
template <class F>
void total_planes(const double* sums, int64_t items, int64_t planes, const F& f) {
  for (int64_t item = 0; item < items; ++item) {
    double total[3] = {0, 0, 0};
    for (int64_t i = item * planes; i < (item + 1) * planes; ++i) {
      for (int k = 0; k < 3; ++k) total[k] += sums[3 * i + k];
    }
    f(item, total);
  }
}

}  // namespace deepatlas
