// The CUDA launchers of sampling: the functors of resample.h, one thread for each voxel of the
// output.
#include "launch.cuh"
#include "resample.h"

namespace deepatlas {
namespace {

// The largest number of elements of a tensor.
int64_t most_elements(const SampleArgs& a) {
  const int64_t channels = a.channels > 3 ? a.channels : 3;
  const int64_t voxels = a.in.voxels() > a.out.voxels() ? a.in.voxels() : a.out.voxels();
  return a.batch * channels * voxels;
}

template <class S, template <class> class SourceT, class Index>
const char* forward(const SampleArgs& a, void* stream) {
  const int64_t count = a.batch * a.out.voxels();
  if (a.mode == kNearest) {
    return for_each_cuda<Index>(count, SampleForward<S, SourceT, kNearest, Index>(a), stream);
  }
  return for_each_cuda<Index>(count, SampleForward<S, SourceT, kLinear, Index>(a), stream);
}

template <class S, template <class> class SourceT, class Index>
const char* backward(const SampleArgs& a, void* stream) {
  const int64_t count = a.batch * a.out.voxels();
  if (a.mode == kNearest) {
    return for_each_cuda<Index>(count, SampleBackward<S, SourceT, kNearest, Index, AtomicAdd>(a),
                                stream);
  }
  return for_each_cuda<Index>(count, SampleBackward<S, SourceT, kLinear, Index, AtomicAdd>(a),
                              stream);
}

template <template <class> class SourceT>
const char* forward(const SampleArgs& a, void* stream) {
  return with_scalar(a.scalar, [&](auto s) {
    using S = decltype(s);
    return fits_32_bit(most_elements(a)) ? forward<S, SourceT, int32_t>(a, stream)
                                         : forward<S, SourceT, int64_t>(a, stream);
  });
}

template <template <class> class SourceT>
const char* backward(const SampleArgs& a, void* stream) {
  return with_scalar(a.scalar, [&](auto s) {
    using S = decltype(s);
    return fits_32_bit(most_elements(a)) ? backward<S, SourceT, int32_t>(a, stream)
                                         : backward<S, SourceT, int64_t>(a, stream);
  });
}

}  // namespace

const char* sample_forward_cuda(const SampleArgs& a, void* stream) {
  switch (a.source) {
    case Source::kDisplacement:
      return forward<DisplacementSource>(a, stream);
    case Source::kAffine:
      return forward<AffineSource>(a, stream);
    default:
      return forward<CoordsSource>(a, stream);
  }
}

const char* sample_backward_cuda(const SampleArgs& a, void* stream) {
  switch (a.source) {
    case Source::kDisplacement:
      return backward<DisplacementSource>(a, stream);
    case Source::kAffine:
      return backward<AffineSource>(a, stream);
    default:
      return backward<CoordsSource>(a, stream);
  }
}

}  // namespace deepatlas
