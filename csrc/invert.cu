// The CUDA launchers of inversion: the functors of invert_functors.h, one thread for each voxel.
#include "invert_functors.h"
#include "launch.cuh"

namespace deepatlas {
namespace {

using namespace invert;

// Calls f with a value of the C++ type of the maps and a value of the index type.
template <class F>
const char* dispatch(const InvertArgs& a, const F& f) {
  const int64_t in = packed_shape(a.in).voxels(), out = a.out.voxels();
  const bool narrow = fits_32_bit(a.batch * 3 * (in > out ? in : out));
  return with_scalar(a.scalar, [&](auto s) { return narrow ? f(s, int32_t()) : f(s, int64_t()); });
}

template <class S, class Index>
const char* pack(const InvertArgs& a, void* stream) {
  return for_each_cuda<Index>(a.batch * packed_shape(a.in).voxels(), Pack<S, Index>(a), stream);
}

template <class S, class Index>
const char* finish(const InvertArgs& a, const Shape3& shape, const void* map, void* grad,
                   void* partial, void* stream) {
  const Finish<S, Index> functor(a, shape, kAlongColumns, map, grad, partial);
  return for_each_cuda<Index>(a.batch * functor.lines.count, functor, stream);
}

}  // namespace

const char* invert_forward_cuda(const InvertArgs& a, void* stream) {
  return dispatch(a, [&](auto s, auto i) {
    using S = decltype(s);
    using Index = decltype(i);
    const char* error = pack<S, Index>(a, stream);
    return error != nullptr
               ? error
               : for_each_cuda<Index>(a.batch * a.out.voxels(), Solve<S, Index>(a), stream);
  });
}

const char* invert_implicit_cuda(const InvertArgs& a, void* stream) {
  return dispatch(a, [&](auto s, auto i) {
    using S = decltype(s);
    using Index = decltype(i);
    const char* error = pack<S, Index>(a, stream);
    return error != nullptr
               ? error
               : for_each_cuda<Index>(a.batch * a.out.voxels(),
                                      ImplicitBackward<S, Index, AtomicAdd>(a), stream);
  });
}

const char* invert_unrolled_cuda(const InvertArgs& a, void* stream) {
  return dispatch(a, [&](auto s, auto i) {
    using S = decltype(s);
    using Index = decltype(i);
    const char* error = pack<S, Index>(a, stream);
    if (error == nullptr) {
      error = for_each_cuda<Index>(a.batch * a.out.voxels(),
                                   UnrolledBackward<S, Index, AtomicAdd>(a), stream);
    }
    if (error == nullptr) {
      error = finish<S, Index>(a, a.in, a.moving, a.grad_moving, a.partial_moving, stream);
    }
    if (error == nullptr) {
      error = finish<S, Index>(a, a.out, a.fixed, a.grad_fixed, a.partial_fixed, stream);
    }
    return error;
  });
}

}  // namespace deepatlas
