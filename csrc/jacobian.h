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

// A normal number x > 0 as 2^k (1 + f), with 1 + f between sqrt(1/2) and sqrt(2). The logarithm is
// computed from s = f / (2 + f), by log(1 + f) = 2 atanh(s).
template <class T>
struct Split {
  T k, f;
  DA_HD explicit Split(T x) {
    using Parts = LogParts<T>;
    using Bits = typename Parts::Bits;
    const Bits bits = Parts::bits(x);
    const Bits exponent = (bits - Parts::kRootHalf) >> Parts::kMantissa;
    k = T(exponent);
    f = Parts::value(bits - exponent * (Bits(1) << Parts::kMantissa)) - T(1);
  }
  DA_HD T denominator() const { return T(2) + f; }
  DA_HD T logarithm(T s) const {
    using Parts = LogParts<T>;
    const T z = s * s;
    // log(1 + f) = f - rest
    const T rest = s * (f - z * log_series<T>(z));
    return k * Parts::kHigh + (f - (rest - k * Parts::kLow));
  }
};

// log(x) for a normal number x > 0, infinity or NaN, with an error of at most 1.2 units in the last
// place. Unlike std::log it has no branch and no call, so that a compiler can vectorise it. The
// first term that is left out of the series is below 1/20 unit, in float64 below 1/100 unit.
template <class T>
DA_HD T log_positive(T x) {
  const Split<T> split(x);
  const T value = split.logarithm(split.f / split.denominator());
  return x < kInfinity<T> ? value : x;
}
// Two logarithms with a single division.
template <class T>
DA_HD void split_logarithms(const Split<T>& p, const Split<T>& q, T& log_p, T& log_q) {
  const T inverse = T(1) / (p.denominator() * q.denominator());
  log_p = p.logarithm(p.f * (q.denominator() * inverse));
  log_q = q.logarithm(q.f * (p.denominator() * inverse));
}
// The logarithms of two such numbers. The errors are at most 1.3 units.
template <class T>
DA_HD void log_positive(T x, T y, T& log_x, T& log_y) {
  T u, v;
  split_logarithms(Split<T>(x), Split<T>(y), u, v);
  log_x = x < kInfinity<T> ? u : x;
  log_y = y < kInfinity<T> ? v : y;
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

  DA_HD T operator()(T det) const { return continued(det, log_positive(argument(det))); }
  // The logarithms of two determinants.
  DA_HD void operator()(T first, T second, T& log_first, T& log_second) const {
    log_positive(argument(first), argument(second), log_first, log_second);
    log_first = continued(first, log_first);
    log_second = continued(second, log_second);
  }

 private:
  // The number whose logarithm the value of a determinant is made of, and that value.
  DA_HD T argument(T det) const {
    const T h = held(det);
    return det >= T(0) ? h : h * inverse;
  }
  DA_HD T continued(T det, T logarithm) const {
    const T tangent = det < eps ? (det - eps) * inverse : T(0);
    return det >= T(0) ? logarithm + tangent : floor - T(1) - logarithm;
  }
};

// The same for determinants that are known to lie between eps and infinity.
template <class T>
struct PlainLogarithm {
  T eps;
  explicit PlainLogarithm(double bound) : eps(Logarithm<T>(bound).eps) {}
  DA_HD T held(T det) const { return det; }
  DA_HD T operator()(T det) const {
    const Split<T> split(det);
    return split.logarithm(split.f / split.denominator());
  }
  DA_HD void operator()(T first, T second, T& log_first, T& log_second) const {
    split_logarithms(Split<T>(first), Split<T>(second), log_first, log_second);
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

// The squared lengths of the columns.
template <class T>
DA_HD Vec3<T> squared_lengths(const Columns<T>& m) {
  return {dot(m.a, m.a), dot(m.b, m.b), dot(m.c, m.c)};
}

// The determinant of the columns, and that of the columns divided by their lengths (by eps if
// shorter).
template <class T>
struct Frame {
  T det, unit_det;
  // 1 / the product of the lengths.
  T volume;
  // 1 / the squared length of each column, or 0 for a column that is shorter than eps.
  Vec3<T> inverse;

  Frame() = default;
  DA_HD Frame(const Columns<T>& m, T eps) : Frame(determinant(m), squared_lengths(m), eps) {}
  // The product of the lengths overflows for no shorter columns than the determinant itself, so one
  // division suffices.
  DA_HD Frame(T determinant, const Vec3<T>& squared, T eps) : det(determinant) {
    const T a = std::sqrt(squared.x), b = std::sqrt(squared.y), c = std::sqrt(squared.z);
    const T held_a = a < eps ? eps : a, held_b = b < eps ? eps : b, held_c = c < eps ? eps : c;
    volume = T(1) / (held_a * held_b * held_c);
    unit_det = det * volume;
    inverse = {a < eps ? T(0) : square(volume * (held_b * held_c)),
               b < eps ? T(0) : square(volume * (held_c * held_a)),
               c < eps ? T(0) : square(volume * (held_a * held_b))};
  }
  DA_HD static T square(T x) { return x * x; }
};

// The gradient of columns: q times that of their determinant, minus r times each column. It is split
// off so that the CPU can compute the factors of many voxels first.
template <class T>
struct FrameSlope {
  T q;
  Vec3<T> r;

  FrameSlope() = default;
  // From the gradients of the two determinants.
  DA_HD FrameSlope(const Frame<T>& frame, T by_det, T by_unit_det)
      : q(by_det + by_unit_det * frame.volume), r(frame.inverse * (by_unit_det * frame.unit_det)) {}
  DA_HD Columns<T> operator()(const Columns<T>& m) const {
    return {cross(m.b, m.c) * q - m.a * r.x, cross(m.c, m.a) * q - m.b * r.y,
            cross(m.a, m.b) * q - m.c * r.z};
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
    if constexpr (Normalize) {
      const Frame<T> frame(m, log.eps);
      return FrameSlope<T>(frame, T(0), grad / log.held(frame.unit_det))(m);
    } else {
      const Vec3<T> bc = cross(m.b, m.c);
      const T q = grad / log.held(dot(m.a, bc));
      return {bc * q, cross(m.c, m.a) * q, cross(m.a, m.b) * q};
    }
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
template <class T, bool Log, class Logarithm = deepatlas::Logarithm<T>>
struct SmoothnessPoint {
  Logarithm log;
  T delta;
  explicit SmoothnessPoint(const JacobianArgs& a) : log(kSmoothnessEps), delta(T(a.delta)) {}

  // D and D^ - 1 from the determinants of the columns and of the unit columns.
  DA_HD void terms(T det, T unit_det, T& change, T& orthonormality) const {
    if constexpr (Log) {
      log(det, unit_det, change, orthonormality);
    } else {
      change = log(det);
      orthonormality = unit_det;
    }
    orthonormality -= T(1);
  }
  // Whether the second Huber loss is linear everywhere: the determinant of unit columns is at most 1
  // up to rounding, so D^ - 1 is at most -1.
  DA_HD bool always_linear() const { return Log && delta < T(0.99); }
  // From the columns: D, and the second Huber loss.
  DA_HD T change(const Columns<T>& m, T& second) const {
    const Frame<T> frame(m, log.eps);
    T change, orthonormality;
    terms(frame.det, frame.unit_det, change, orthonormality);
    second = huber(orthonormality, delta);
    return change;
  }
  // `share` is the weight of the voxel divided by the sum of the weights, times the gradient of the
  // loss.
  DA_HD FrameSlope<T> slope(const Frame<T>& frame, T change, T orthonormality, T share, T mean,
                            T mean_pull) const {
    const T pull = (clamp(change - mean, -delta, delta) - mean_pull) * share;
    const T turn = clamp(orthonormality, -delta, delta) * share;
    const T held = log.held(frame.det);
    if constexpr (!Log) return {frame, pull / held, turn};
    // Both slopes of the logarithm with one division. The determinant of unit columns is at most 1.
    const T held_unit = log.held(frame.unit_det), inverse = T(1) / (held * held_unit);
    return {frame, pull * (held_unit * inverse), turn * (held * inverse)};
  }
  DA_HD Columns<T> gradient(const Columns<T>& m, T share, T mean, T mean_pull) const {
    const Frame<T> frame(m, log.eps);
    T change, orthonormality;
    terms(frame.det, frame.unit_det, change, orthonormality);
    return slope(frame, change, orthonormality, share, mean, mean_pull)(m);
  }
};

}  // namespace deepatlas
