// Difference of the edges of two images (section 5.1.5): the arithmetic of one voxel, shared by the
// row loops of edges.cpp and the functors of edges_functors.h.
//
// The Prewitt gradient of a voxel is a difference of its neighbours along one axis and a sum of
// three along the other two, borders replicated; the 18 that it is divided by comes in where its
// square is taken. Its adjoint is the same sums along the other two axes and the difference turned
// round, where a value beyond the border is the border's in a sum and its negative in a difference.
#pragma once

#include "kernels.h"
#include "vec3.h"

namespace deepatlas {

// As EDGE_OFFSET and EDGE_FLOOR of the PyTorch body.
inline constexpr double kEdgeOffset = 1e-6;  // keeps the root differentiable where an image is flat
inline constexpr double kEdgeFloor = 1e-4;   // the least mean square that a difference is taken over
inline constexpr double kEdgeScale = 1.0 / 324;

// What edge_difference keeps of a batch item for its backward pass.
struct EdgeStatistics {
  double loss;
  double spread;  // the mean square of the fixed edges, held above the floor, times the weights' sum
  double open;    // whether it is above the floor, 1 or 0
};

// From the weighted sums over an item: of the squared difference, of the fixed edges squared, of
// the weights.
DA_HD EdgeStatistics edge_statistics(double difference, double power, double weight) {
  const double total = weight == 0 ? 1 : weight, mean = power / total;
  const double held = mean < kEdgeFloor ? kEdgeFloor : mean;  // keeps NaN
  return {difference / total / held, held * total, mean >= kEdgeFloor ? 1.0 : 0.0};
}

// Magnitude of the gradient, and the constant that is taken off again so that flat is 0.
template <class T>
DA_HD T edge_root(T x, T y, T z) {
  return std::sqrt((x * x + y * y + z * z) * T(kEdgeScale) + T(kEdgeOffset));
}
template <class T>
DA_HD T edge_of(T root) {
  return root - T(1e-3);  // the root of the offset
}

// Gradient of the loss by the sums of a voxel's differences, as a factor on these. `own` and
// `other` are roots, `own` that of the image the gradient is for.
template <class T>
struct EdgeSlope {
  T factor, pull;  // pull: how the fixed image's edges lower the loss by being more; moving: 0

  EdgeSlope() = default;
  DA_HD EdgeSlope(const EdgeStatistics& s, double grad, bool fixed)
      : factor(T(2 * grad / s.spread * kEdgeScale)), pull(fixed ? T(s.loss * s.open) : T(0)) {}
  DA_HD T operator()(T own, T other, T weight) const {
    const T change = (own - other) - pull * edge_of(own);
    return weight > T(0) ? factor * weight * change / own : T(0);
  }
};

}  // namespace deepatlas
