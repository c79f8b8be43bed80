// Jacobians of coordinate fields: the arithmetic of one voxel, for the row loops of jacobian.cpp
// and jacobian_backward.cpp and the functors of jacobian_functors.h.
#pragma once

#include <limits>

#include "kernels.h"

namespace deepatlas {

// As SMOOTHNESS_EPS of the PyTorch body.
inline constexpr double kSmoothnessEps = 1e-3;

template <class T>
inline constexpr T kInfinity = std::numeric_limits<T>::infinity();

// ---- logarithm ----------------------------------------------------------------------------------

// The constants of log_positive: the bits of sqrt(1/2), the length of the mantissa, the number of
// terms of the series, and log(2) in two parts. The first part is so short that its product with
// any exponent is exact.
template <class T>
struct LogParts;
template <>
struct LogParts<float> {
  using Bits = int32_t;
  static constexpr Bits kRootHalf = 0x3f3504f3;
  static constexpr int kMantissa = 23;
  static constexpr int kTerms = 4;
  static constexpr float kHigh = 0x1.62e4p-1f, kLow = 0x1.7f7d1cp-20f;
  DA_HD static Bits bits(float x) { return Bits(to_bits(x)); }
  DA_HD static float value(Bits b) { return from_bits(uint32_t(b)); }
};
template <>
struct LogParts<double> {
  using Bits = int64_t;
  static constexpr Bits kRootHalf = 0x3fe6a09e667f3bcd;
  static constexpr int kMantissa = 52;
  static constexpr int kTerms = 10;
  static constexpr double kHigh = 0x1.62e42fefap-1, kLow = 0x1.cf79abc9e3b3ap-40;
  DA_HD static Bits bits(double x) { return Bits(to_bits(x)); }
  DA_HD static double value(Bits b) { return from_bits(uint64_t(b)); }
};

// The series 2/3 + 2/5 z + 2/7 z^2 + ... from term K on.
template <class T, int K = 1>
DA_HD T log_series(T z) {
  constexpr T term = T(2.0 / (2 * K + 1));
  if constexpr (K == LogParts<T>::kTerms) {
    return term;
  } else {
    return term + z * log_series<T, K + 1>(z);
  }
}

// log(x) for a normal number x > 0, infinity or NaN, with an error of at most 1.2 units in the last
// place. Unlike std::log it has no branch and no call, so that a compiler can vectorise it. It uses
// x = 2^k (1 + f) with 1 + f between sqrt(1/2) and sqrt(2), and log(1 + f) = 2 atanh(s) with s = f
// / (2 + f). The first term that is left out of the series is below 1/20 unit, in float64 below
// 1/100 unit.
template <class T>
DA_HD T log_positive(T x) {
  using Parts = LogParts<T>;
  using Bits = typename Parts::Bits;
  const Bits bits = Parts::bits(x);
  const Bits k = (bits - Parts::kRootHalf) >> Parts::kMantissa;
  const T f = Parts::value(bits - k * (Bits(1) << Parts::kMantissa)) - T(1);
  const T s = f / (T(2) + f), z = s * s;
  // log(1 + f) = f - rest
  const T rest = s * (f - z * log_series<T>(z));
  const T value = T(k) * Parts::kHigh + (f - (rest - T(k) * Parts::kLow));
  return x < kInfinity<T> ? value : x;
}

// log(det), continued so that it is finite and increasing for every determinant: between 0 and eps
// by its tangent at eps, and below 0 by log(eps) - 1 - log(1 - det / eps). Keeps NaN.
template <class T>
struct Logarithm {
  T eps, inverse, floor;

  explicit Logarithm(double bound) {
    constexpr T least = std::numeric_limits<T>::min();
    eps = T(bound) > least ? T(bound) : least;
    inverse = T(1) / eps;
    floor = std::log(eps);
  }
  // 1 / slope at a determinant.
  DA_HD T held(T det) const { return det >= T(0) ? (det < eps ? eps : det) : eps - det; }

  DA_HD T operator()(T det) const {
    const bool open = det >= T(0);
    const T h = held(det);
    const T logarithm = log_positive(open ? h : h * inverse);
    const T tangent = det < eps ? (det - eps) * inverse : T(0);
    return open ? logarithm + tangent : floor - T(1) - logarithm;
  }
};

// ---- columns ------------------------------------------------------------------------------------

// The columns d field / dx, d field / dy and d field / dz, or the gradients of these columns.
template <class T>
struct Columns {
  Vec3<T> a, b, c;
};

// The columns, or those of the identity where the voxel must not count.
template <class T>
DA_HD Columns<T> hold(const Columns<T>& m, bool inside) {
  const T one = T(1), zero = T(0);
  return {{inside ? m.a.x : one, inside ? m.a.y : zero, inside ? m.a.z : zero},
          {inside ? m.b.x : zero, inside ? m.b.y : one, inside ? m.b.z : zero},
          {inside ? m.c.x : zero, inside ? m.c.y : zero, inside ? m.c.z : one}};
}

enum class Difference : int { kCentral, kForward, kBackward };

// The difference at a position of an axis: the offsets of its two voxels, and 1 / their distance in
// normalised coordinates. It is one-sided at the borders. On an axis of size 1 the scale is 0, and
// `unit` adds the column of the identity.
template <class T, class Index>
struct Step {
  Index low, high;
  T scale, unit;

  DA_HD Step(Difference difference, int32_t position, int32_t size, Index stride) {
    const bool first = position == 0, last = position == size - 1;
    const bool back = size > 1 && (difference == Difference::kForward ? last : !first);
    const bool forth = size > 1 && (difference == Difference::kBackward ? first : !last);
    low = back ? -stride : Index(0);
    high = forth ? stride : Index(0);
    scale = T(size - 1) * (back && forth ? T(0.25) : T(0.5));
    unit = size == 1 ? T(1) : T(0);
  }
};

// The gradient of a difference from the gradient of a component of a column. On an axis without
// differences it is 0, even if the gradient is NaN.
template <class T>
DA_HD T scaled(T gradient, T scale) {
  return scale == T(0) ? T(0) : gradient * scale;
}

template <class T>
DA_HD T determinant(const Columns<T>& m) {
  return dot(m.a, cross(m.b, m.c));
}

template <class T>
DA_HD T lesser(T least, const Vec3<T>& u, const Vec3<T>& v) {
  const T next = dot(u, v);
  return next < least ? next : least;
}

// The smallest of the eight determinants that take a forward (p) or a backward (q) difference along
// each axis. Those that are NaN are ignored; if all are, the result is infinity.
template <class T>
DA_HD T least_determinant(const Columns<T>& p, const Columns<T>& q) {
  const Vec3<T> pp = cross(p.b, p.c), pq = cross(p.b, q.c), qp = cross(q.b, p.c),
                qq = cross(q.b, q.c);
  T least = kInfinity<T>;
  least = lesser(least, p.a, pp);
  least = lesser(least, p.a, pq);
  least = lesser(least, p.a, qp);
  least = lesser(least, p.a, qq);
  least = lesser(least, q.a, pp);
  least = lesser(least, q.a, pq);
  least = lesser(least, q.a, qp);
  return lesser(least, q.a, qq);
}

// The determinant of the columns, and that of the columns divided by their lengths (by eps if
// shorter).
template <class T>
struct Frame {
  Vec3<T> bc, ca, ab;
  T det, unit_det;
  // 1 / the product of the lengths.
  T volume;
  // 1 / the squared length of each column, or 0 for a column that is shorter than eps.
  T inverse_a, inverse_b, inverse_c;

  DA_HD Frame(const Columns<T>& m, T eps)
      : bc(cross(m.b, m.c)), ca(cross(m.c, m.a)), ab(cross(m.a, m.b)), det(dot(m.a, bc)) {
    const T a = invert_length(m.a, eps, inverse_a), b = invert_length(m.b, eps, inverse_b),
            c = invert_length(m.c, eps, inverse_c);
    volume = a * b * c;
    unit_det = det * volume;
  }
  DA_HD static T invert_length(const Vec3<T>& column, T eps, T& squared) {
    const T length = std::sqrt(dot(column, column));
    const T inverse = T(1) / (length < eps ? eps : length);
    squared = length < eps ? T(0) : inverse * inverse;
    return inverse;
  }
  // The gradient of the columns from the gradients of the two determinants.
  DA_HD Columns<T> gradient(const Columns<T>& m, T by_det, T by_unit_det) const {
    const T q = by_det + by_unit_det * volume, r = by_unit_det * unit_det;
    const T ra = r * inverse_a, rb = r * inverse_b, rc = r * inverse_c;
    return {{q * bc.x - ra * m.a.x, q * bc.y - ra * m.a.y, q * bc.z - ra * m.a.z},
            {q * ca.x - rb * m.b.x, q * ca.y - rb * m.b.y, q * ca.z - rb * m.b.z},
            {q * ab.x - rc * m.c.x, q * ab.y - rc * m.c.y, q * ab.z - rc * m.c.z}};
  }
};

// ---- the ops at one voxel -----------------------------------------------------------------------

// log_jacobian and its gradient.
template <class T, bool Normalize>
struct LogJacobianPoint {
  Logarithm<T> log;
  explicit LogJacobianPoint(const JacobianArgs& a) : log(a.eps) {}

  DA_HD T value(const Columns<T>& m) const {
    return log(Normalize ? Frame<T>(m, log.eps).unit_det : determinant(m));
  }
  DA_HD Columns<T> gradient(const Columns<T>& m, T grad) const {
    const Frame<T> frame(m, log.eps);
    if (Normalize) return frame.gradient(m, T(0), grad / log.held(frame.unit_det));
    const T q = grad / log.held(frame.det);
    return {{q * frame.bc.x, q * frame.bc.y, q * frame.bc.z},
            {q * frame.ca.x, q * frame.ca.y, q * frame.ca.z},
            {q * frame.ab.x, q * frame.ab.y, q * frame.ab.z}};
  }
};

// The Huber loss, eq. 10.
template <class T>
DA_HD T huber(T x, T delta) {
  const T size = std::fabs(x);
  return size < delta ? T(0.5) * x * x : delta * (size - T(0.5) * delta);
}

// What smoothness_loss keeps of a batch item between its two passes, and for the backward pass.
struct Statistics {
  // The weighted mean of D.
  double change;
  // The weighted mean of the derivative of the first Huber loss.
  double pull;
  // The sum of the weights, or 1 where that is 0.
  double weight;
};

// smoothness_loss, eq. 11. The first pass computes D and the second Huber loss. The first Huber
// loss needs the mean of D.
template <class T, bool Log>
struct SmoothnessPoint {
  Logarithm<T> log;
  T delta;
  explicit SmoothnessPoint(const JacobianArgs& a) : log(kSmoothnessEps), delta(T(a.delta)) {}

  DA_HD T orthonormality(const Frame<T>& frame) const {
    return (Log ? log(frame.unit_det) : frame.unit_det) - T(1);
  }
  DA_HD T change(const Columns<T>& m, T& second) const {
    const Frame<T> frame(m, log.eps);
    second = huber(orthonormality(frame), delta);
    return log(frame.det);
  }
  // `share` is the weight of the voxel divided by the sum of the weights, times the gradient of the
  // loss.
  DA_HD Columns<T> gradient(const Columns<T>& m, T share, T mean, T mean_pull) const {
    const Frame<T> frame(m, log.eps);
    const T pull = clamp(log(frame.det) - mean, -delta, delta) - mean_pull;
    const T turn = clamp(orthonormality(frame), -delta, delta) * share;
    return frame.gradient(m, pull * share / log.held(frame.det),
                          Log ? turn / log.held(frame.unit_det) : turn);
  }
};

}  // namespace deepatlas
