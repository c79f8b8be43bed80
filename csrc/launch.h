// The host side of a launch: the thread pool of the caller, and the limits that both sides share.
#pragma once

#include <cstdint>

namespace deepatlas {

// The caller's thread pool. ops.h passes PyTorch's pool, so that torch.set_num_threads applies; the
// tests pass their own.
struct Parallel {
  using Body = void (*)(void* context, int64_t begin, int64_t end);
  int threads;
  void (*run)(int64_t count, int64_t grain, void* context, Body body);

  // Calls body(begin, end) for contiguous ranges that cover [0, count). Each range but the last has
  // at least `grain` elements.
  template <class F>
  void operator()(int64_t count, int64_t grain, const F& body) const {
    if (count <= 0) return;
    run(count, grain < 1 ? 1 : grain, const_cast<F*>(&body),
        [](void* context, int64_t begin, int64_t end) { (*static_cast<F*>(context))(begin, end); });
  }
};

// The largest number of voxels along an axis. Positions are computed in the type of the data, and
// float32 cannot tell voxels apart beyond 2^24. Indices along one axis have 32 bits.
constexpr int64_t kLongestAxis = int64_t(1) << 24;

// A CUDA launch has at most this many threads. Kernels loop over more elements in strides.
constexpr int64_t kThreadsPerBlock = 256;
constexpr int64_t kMostBlocks = int64_t(1) << 20;

// How many elements one block of a reduction on CUDA sums up (see reduce.cuh).
constexpr int64_t kReducedPerBlock = 4096;

// Whether a kernel can use 32-bit indices, which halve the address arithmetic, for tensors of at
// most `elements` elements. An index plus the stride of the loop must not overflow.
inline bool fits_32_bit(int64_t elements) {
  return elements < (int64_t(1) << 31) - kThreadsPerBlock * kMostBlocks;
}

}  // namespace deepatlas
