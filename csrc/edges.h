// The difference between the edges of two images (section 5.1.5): the arithmetic of one voxel, for
// the row loops of edges.cpp and the functors of edges_functors.h.
//
// Each component of the Prewitt gradient is the difference of two neighbours along one axis and the
// sum over three neighbours along both other axes, with replicated borders. It is not divided by 18
// at once; kEdgeScale, applied to the square, does that. The adjoint takes the same sums along the
// other axes and the difference with the opposite sign, where a neighbour beyond the border counts
// as the border's own value in a sum, and as its negative in a difference.
#pragma once

#include "kernels.h"
#include "vec3.h"

namespace deepatlas {

// The offset makes the root differentiable where an image is flat; the floor is the smallest mean
// square of the fixed image's edges that the difference is divided by. As EDGE_OFFSET and
// EDGE_FLOOR of the PyTorch body.
inline constexpr double kEdgeOffset = 1e-6;
inline constexpr double kEdgeFloor = 1e-4;
// 1 / 18^2.
inline constexpr double kEdgeScale = 1.0 / 324;

// What the forward pass keeps of a batch item for the backward pass.
struct EdgeStatistics {
  double loss;
  // The mean square of the fixed image's edges, at least kEdgeFloor, times the sum of the weights.
  double spread;
  // 1 if that mean square is not below the floor, otherwise 0.
  double open;
};

// From the weighted sums over an item of the squared difference, of the squared edges of the fixed
// image, and of the weights.
DA_HD EdgeStatistics edge_statistics(double difference, double power, double weight) {
  const double total = weight == 0 ? 1 : weight, mean = power / total;
  // This keeps NaN.
  const double held = mean < kEdgeFloor ? kEdgeFloor : mean;
  return {difference / total / held, held * total, mean >= kEdgeFloor ? 1.0 : 0.0};
}

// The root that the edge of a voxel is computed from: the magnitude of the gradient with the
// offset.
template <class T>
DA_HD T edge_root(const Vec3<T>& d) {
  return std::sqrt(dot(d, d) * T(kEdgeScale) + T(kEdgeOffset));
}
// The edge of a voxel: its root minus the root of the offset, so that a flat image gives 0.
template <class T>
DA_HD T edge_of(T root) {
  return root - T(1e-3);
}

// The gradient of the loss by the differences of a voxel is these differences times a factor. `own`
// and `other` are the roots of the two images; `own` is that of the image that the gradient is for.
template <class T>
struct EdgeSlope {
  // `pull` is how much stronger edges of the fixed image reduce the loss through its denominator.
  // It is 0 for the moving image, and where the denominator is held at the floor, even if the loss
  // is NaN.
  T factor, pull;

  EdgeSlope() = default;
  DA_HD EdgeSlope(const EdgeStatistics& s, double grad, bool fixed)
      : factor(T(2 * grad / s.spread * kEdgeScale)),
        pull(fixed && s.open != 0 ? T(s.loss) : T(0)) {}
  DA_HD T operator()(T own, T other, T weight) const {
    const T change = (own - other) - pull * edge_of(own);
    return weight > T(0) ? factor * weight * change / own : T(0);
  }
};

}  // namespace deepatlas
