// The CUDA launchers of resizing: the functors of resize.h, one thread for each voxel of the
// result.
#include "launch.cuh"
#include "resize.h"

namespace deepatlas {
namespace {

// The largest number of elements of a tensor.
int64_t most_elements(const ResizeArgs& a) {
  return a.items * (a.in.voxels() > a.out.voxels() ? a.in.voxels() : a.out.voxels());
}

}  // namespace

const char* resize_forward_cuda(const ResizeArgs& a, void* stream) {
  return with_scalar(a.scalar, [&](auto s) {
    using S = decltype(s);
    const int64_t count = a.items * a.out.voxels();
    return fits_32_bit(most_elements(a))
               ? for_each_cuda<int32_t>(count, ResizeForward<S, int32_t>(a), stream)
               : for_each_cuda<int64_t>(count, ResizeForward<S, int64_t>(a), stream);
  });
}

const char* resize_backward_cuda(const ResizeArgs& a, void* stream) {
  return with_scalar(a.scalar, [&](auto s) {
    using S = decltype(s);
    const int64_t count = a.items * a.in.voxels();
    return fits_32_bit(most_elements(a))
               ? for_each_cuda<int32_t>(count, ResizeBackward<S, int32_t>(a), stream)
               : for_each_cuda<int64_t>(count, ResizeBackward<S, int64_t>(a), stream);
  });
}

}  // namespace deepatlas
