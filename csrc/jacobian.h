// Jacobians of coordinate fields: the arithmetic of one voxel, shared by the row loops of
// jacobian.cpp and the functors of jacobian_functors.h.
#pragma once

#include <limits>

#include "kernels.h"

namespace deepatlas {

inline constexpr double kSmoothnessEps = 1e-3;  // as SMOOTHNESS_EPS of the PyTorch body

template <class T>
inline constexpr T kInfinity = std::numeric_limits<T>::infinity();

// ---- logarithm ----------------------------------------------------------------------------------

DA_HD double bits_to_double(uint64_t bits) {
#if defined(__CUDA_ARCH__)
  return __longlong_as_double(static_cast<long long>(bits));
#else
  double value;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
#endif
}

DA_HD uint64_t double_to_bits(double value) {
#if defined(__CUDA_ARCH__)
  return static_cast<uint64_t>(__double_as_longlong(value));
#else
  uint64_t bits;
  std::memcpy(&bits, &value, sizeof(bits));
  return bits;
#endif
}

template <class T>
struct LogParts;
template <>
struct LogParts<float> {
  using Bits = int32_t;
  static constexpr Bits kRootHalf = 0x3f3504f3;  // sqrt(1/2)
  static constexpr int kMantissa = 23;
  static constexpr int kTerms = 4;
  // log(2) in two parts, the first short enough for an exact product with any exponent.
  static constexpr float kHigh = 0x1.62e4p-1f, kLow = 0x1.7f7d1cp-20f;
  DA_HD static Bits bits(float x) { return Bits(float_to_bits(x)); }
  DA_HD static float value(Bits b) { return bits_to_float(uint32_t(b)); }
};
template <>
struct LogParts<double> {
  using Bits = int64_t;
  static constexpr Bits kRootHalf = 0x3fe6a09e667f3bcd;
  static constexpr int kMantissa = 52;
  static constexpr int kTerms = 10;
  static constexpr double kHigh = 0x1.62e42fefap-1, kLow = 0x1.cf79abc9e3b3ap-40;
  DA_HD static Bits bits(double x) { return Bits(double_to_bits(x)); }
  DA_HD static double value(Bits b) { return bits_to_double(uint64_t(b)); }
};

// 2/3 + 2/5 z + 2/7 z^2 + ..., from term K on.
template <class T, int K = 1>
DA_HD T log_series(T z) {
  constexpr T term = T(2.0 / (2 * K + 1));
  if constexpr (K == LogParts<T>::kTerms) {
    return term;
  } else {
    return term + z * log_series<T, K + 1>(z);
  }
}

// log(x) of a normal x > 0, infinity or NaN, within 1.2 units in the last place: unlike std::log it
// has no branch and no call, so that a compiler can vectorise it. x = 2^k (1 + f) with 1 + f
// between sqrt(1/2) and sqrt(2), and log(1 + f) = 2 atanh(s), s = f / (2 + f); the first term left
// out of the series is below 1/20 (float64: 1/100) unit.
template <class T>
DA_HD T log_positive(T x) {
  using Parts = LogParts<T>;
  using Bits = typename Parts::Bits;
  const Bits bits = Parts::bits(x);
  const Bits k = (bits - Parts::kRootHalf) >> Parts::kMantissa;
  const T f = Parts::value(bits - k * (Bits(1) << Parts::kMantissa)) - T(1);
  const T s = f / (T(2) + f), z = s * s;
  const T rest = s * (f - z * log_series<T>(z));  // log(1 + f) = f - rest
  const T value = T(k) * Parts::kHigh + (f - (rest - T(k) * Parts::kLow));
  return x < kInfinity<T> ? value : x;
}

// log(det) made finite and increasing for every det: its tangent from eps down to 0, and below 0
// the mirrored logarithm log(eps) - 1 - log(1 - det / eps). Keeps NaN.
template <class T>
struct Logarithm {
  T eps, inverse, floor;

  explicit Logarithm(double bound) {
    constexpr T least = std::numeric_limits<T>::min();
    eps = T(bound) > least ? T(bound) : least;
    inverse = T(1) / eps;
    floor = std::log(eps);
  }
  // The inverse of the slope.
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

// d field / dx, d field / dy and d field / dz; also their gradients.
template <class T>
struct Columns {
  Vec3<T> a, b, c;
};

// The columns themselves, or the identity frame where they must not count.
template <class T>
DA_HD Columns<T> hold(const Columns<T>& m, bool inside) {
  const T one = T(1), zero = T(0);
  return {{inside ? m.a.x : one, inside ? m.a.y : zero, inside ? m.a.z : zero},
          {inside ? m.b.x : zero, inside ? m.b.y : one, inside ? m.b.z : zero},
          {inside ? m.c.x : zero, inside ? m.c.y : zero, inside ? m.c.z : one}};
}

enum class Difference : int { kCentral, kForward, kBackward };

// The two voxels of the difference at `position` of an axis, as offsets, and 1 / their distance in
// normalised coordinates. One-sided at the borders; an axis of size 1 has scale 0, and its column
// is the identity's (`unit`).
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

// Gradient of a field value by a column's gradient, before the differences are gathered.
template <class T>
DA_HD T scaled(T gradient, T scale) {
  return scale == T(0) ? T(0) : gradient * scale;  // 0, not NaN, on an axis without differences
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

// The smallest determinant of forward (p) and backward (q) differences, either along each axis.
// NaN is passed over: infinity if all are.
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

// Determinant of the columns, and of the columns over their lengths (over eps where shorter).
template <class T>
struct Frame {
  Vec3<T> bc, ca, ab;
  T det, unit_det, volume;            // volume: the inverse of the product of the lengths
  T inverse_a, inverse_b, inverse_c;  // of the squared lengths; 0 for a column shorter than eps

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
  // Gradient of the columns given that of the determinant and that of the unit determinant.
  DA_HD Columns<T> gradient(const Columns<T>& m, T by_det, T by_unit_det) const {
    const T q = by_det + by_unit_det * volume, r = by_unit_det * unit_det;
    const T ra = r * inverse_a, rb = r * inverse_b, rc = r * inverse_c;
    return {{q * bc.x - ra * m.a.x, q * bc.y - ra * m.a.y, q * bc.z - ra * m.a.z},
            {q * ca.x - rb * m.b.x, q * ca.y - rb * m.b.y, q * ca.z - rb * m.b.z},
            {q * ab.x - rc * m.c.x, q * ab.y - rc * m.c.y, q * ab.z - rc * m.c.z}};
  }
};

// ---- the two ops at one voxel -------------------------------------------------------------------

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

template <class T>
DA_HD T huber(T x, T delta) {
  const T size = std::fabs(x);
  return size < delta ? T(0.5) * x * x : delta * (size - T(0.5) * delta);
}

// What smoothness_loss keeps of a batch item between its passes, and for its backward pass.
struct Statistics {
  double change;  // weighted mean of D
  double pull;    // weighted mean of the first Huber loss's derivative
  double weight;  // sum of the weights, 1 where they sum to 0
};

// Eq. 11 at one voxel: D and the second Huber loss first, the first one when the mean of D is
// known.
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
  // `share`: the voxel's weight over their sum, times the gradient of the loss.
  DA_HD Columns<T> gradient(const Columns<T>& m, T share, T mean, T mean_pull) const {
    const Frame<T> frame(m, log.eps);
    const T pull = clamp(log(frame.det) - mean, -delta, delta) - mean_pull;
    const T turn = clamp(orthonormality(frame), -delta, delta) * share;
    return frame.gradient(m, pull * share / log.held(frame.det),
                          Log ? turn / log.held(frame.unit_det) : turn);
  }
};

}  // namespace deepatlas
