// The CUDA launchers of the Jacobian ops: the functors of jacobian_functors.h. One kernel writes
// the gradients of the columns to memory, nine numbers a voxel, and another one gathers them. That
// is half the work of a single kernel that computes those of the six neighbours again for every
// voxel.
#include <type_traits>

#include "jacobian_functors.h"
#include "launch.cuh"

namespace deepatlas {
namespace {

// Calls f(scalar, index, flag) with a value of the type of the data, a value of the index type, and
// the flag as a type.
template <class F>
const char* with_types(const JacobianArgs& a, bool flag, const F& f) {
  const bool narrow = fits_32_bit(a.batch * 9 * a.shape.voxels());
  return with_scalar(a.scalar, [&](auto s) {
    const auto indexed = [&](auto yes) {
      return narrow ? f(s, int32_t(), yes) : f(s, int64_t(), yes);
    };
    return flag ? indexed(std::true_type()) : indexed(std::false_type());
  });
}

template <class S, class Index, class Gradient>
const char* backward(const JacobianArgs& a, void* stream) {
  const int64_t count = a.batch * a.shape.voxels();
  const char* error = for_each_cuda<Index>(count, ColumnGradients<S, Index, Gradient>(a), stream);
  return error ? error : for_each_cuda<Index>(count, GatherColumns<S, Index>(a), stream);
}

template <class S, class Index, bool Log>
const char* smoothness(const JacobianArgs& a, void* stream) {
  const int64_t partial = a.batch * partial_sums(a), reduced = a.batch * 3 * kReduced;
  const char* error = for_each_cuda<Index>(partial, SmoothnessFirst<S, Index, Log>(a), stream);
  if (!error) error = for_each_cuda<int64_t>(reduced, ReduceSums(a), stream);
  if (!error) error = for_each_cuda<int64_t>(a.batch, SmoothnessTotals<S, false>(a), stream);
  if (!error) error = for_each_cuda<Index>(partial, SmoothnessSecond<S, Index>(a), stream);
  if (!error) error = for_each_cuda<int64_t>(reduced, ReduceSums(a), stream);
  if (!error) error = for_each_cuda<int64_t>(a.batch, SmoothnessTotals<S, true>(a), stream);
  return error;
}

}  // namespace

int64_t smoothness_sums_cuda(const JacobianArgs& a) { return SumBuffers::size(a); }

const char* log_jacobian_forward_cuda(const JacobianArgs& a, void* stream) {
  return with_types(a, a.normalize, [&](auto s, auto index, auto normalize) {
    using F = LogJacobianForward<decltype(s), decltype(index), decltype(normalize)::value>;
    return for_each_cuda<decltype(index)>(a.batch * a.shape.voxels(), F(a), stream);
  });
}

const char* log_jacobian_backward_cuda(const JacobianArgs& a, void* stream) {
  return with_types(a, a.normalize, [&](auto s, auto index, auto normalize) {
    using S = decltype(s);
    using Index = decltype(index);
    using G = LogJacobianGradient<S, Index, decltype(normalize)::value>;
    return backward<S, Index, G>(a, stream);
  });
}

const char* jacobian_determinant_cuda(const JacobianArgs& a, void* stream) {
  return with_types(a, false, [&](auto s, auto index, auto) {
    using F = DeterminantForward<decltype(s), decltype(index)>;
    return for_each_cuda<decltype(index)>(a.batch * a.shape.voxels(), F(a), stream);
  });
}

const char* smoothness_forward_cuda(const JacobianArgs& a, void* stream) {
  return with_types(a, a.logarithm, [&](auto s, auto index, auto log) {
    return smoothness<decltype(s), decltype(index), decltype(log)::value>(a, stream);
  });
}

const char* smoothness_backward_cuda(const JacobianArgs& a, void* stream) {
  return with_types(a, a.logarithm, [&](auto s, auto index, auto log) {
    using S = decltype(s);
    using Index = decltype(index);
    using G = SmoothnessGradient<S, Index, decltype(log)::value>;
    return backward<S, Index, G>(a, stream);
  });
}

}  // namespace deepatlas
