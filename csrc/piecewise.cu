// The CUDA launchers of piecewise_linear: the functors of piecewise.h, one thread for each element.
#include "launch.cuh"
#include "piecewise.h"

namespace deepatlas {

const char* piecewise_forward_cuda(const PiecewiseArgs& a, void* stream) {
  return with_scalar(a.scalar, [&](auto s) {
    using F = PiecewiseForward<decltype(s), int64_t>;
    return for_each_cuda<int64_t>(a.count, F(a), stream);
  });
}

const char* piecewise_backward_cuda(const PiecewiseArgs& a, void* stream) {
  return with_scalar(a.scalar, [&](auto s) {
    using F = PiecewiseBackward<decltype(s), int64_t>;
    return for_each_cuda<int64_t>(a.count, F(a), stream);
  });
}

}  // namespace deepatlas
