// Host side of a launch: a thread pool given by the caller.
#pragma once

#include <cstdint>

namespace deepatlas {

// The caller's thread pool. ops.h passes PyTorch's, so that torch.set_num_threads holds; a test
// passes a serial loop.
struct Parallel {
  using Body = void (*)(void* context, int64_t begin, int64_t end);
  int threads;
  void (*run)(int64_t count, int64_t grain, void* context, Body body);

  // body(begin, end) over [0, count) in contiguous pieces of at least `grain`.
  template <class F>
  void operator()(int64_t count, int64_t grain, const F& body) const {
    if (count <= 0) return;
    run(count, grain < 1 ? 1 : grain, const_cast<F*>(&body),
        [](void* context, int64_t begin, int64_t end) { (*static_cast<F*>(context))(begin, end); });
  }
};

}  // namespace deepatlas
