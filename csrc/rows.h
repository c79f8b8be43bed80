// Rows of voxels on the CPU, in blocks whose arrays stay inside the first-level cache, and sums over
// them that do not depend on the number of threads.
#pragma once

#include <algorithm>
#include <cstdint>

#include "common.h"

namespace deepatlas {

constexpr int kBlock = 256;  // voxels a block

// f(first voxel of the block, count) over a row.
template <class F>
void in_blocks(int32_t width, const F& f) {
  for (int32_t x = 0; x < width; x += kBlock) f(x, int(std::min(kBlock, width - x)));
}

// The weights of a block of voxels; ones without a mask.
template <class S, class T>
void read_weights(const void* whole, int64_t offset, int n, T* __restrict weight) {
  if (whole == nullptr) {
    std::fill(weight, weight + n, T(1));
    return;
  }
  const S* __restrict p = static_cast<const S*>(whole) + offset;
  for (int i = 0; i < n; ++i) weight[i] = load(p[i]);
}

// Sums over the rows of a plane, kept apart by x so that they vectorise, in double from time to
// time.
template <class T>
class PlaneSums {
 public:
  explicit PlaneSums(int32_t width) : lanes_(std::min(width, int32_t(kBlock))) {}

  template <class F>  // f(i, first, second, third) adds to the three sums
  void add(int n, const F& f) {
    T* __restrict a = lane_[0], * __restrict b = lane_[1], * __restrict c = lane_[2];
    for (int i = 0; i < n; ++i) f(i, a[i], b[i], c[i]);
    if (++blocks_ == 32) flush();
  }
  void finish(double* sums) {
    flush();
    for (int k = 0; k < 3; ++k) sums[k] = total_[k], total_[k] = 0;
  }

 private:
  void flush() {
    for (int k = 0; k < 3; ++k) {
      for (int i = 0; i < lanes_; ++i) total_[k] += double(lane_[k][i]), lane_[k][i] = T(0);
    }
    blocks_ = 0;
  }
  int32_t lanes_;
  int blocks_ = 0;
  double total_[3] = {0, 0, 0};
  alignas(64) T lane_[3][kBlock] = {};
};

}  // namespace deepatlas
