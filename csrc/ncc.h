// The arithmetic of correlation, for the CPU kernels (ncc.cpp, ncc_window.cpp) and the CUDA kernels
// (ncc_functors.h, ncc_window_functors.h). All of it is in float64, whatever the data: where a map
// is nearly flat, its variance is a small difference of large numbers. ncc_window.cpp repeats
// window_terms() in vectors.
#pragma once

#include "kernels.h"

namespace deepatlas {
namespace ncc {

// The moments of a set of voxels: the sum of the weights, the weighted means of a and b, and the
// weighted sums of the squares and of the product of the deviations from these means. In
// NccArgs::moments, one row for each channel, the last three are divided by the sum of the weights.
struct Moments {
  double n, a, b, aa, bb, ab;
};
constexpr int64_t kMoments = sizeof(Moments) / sizeof(double);

DA_HD double divisor(double n) { return n == 0 ? 1 : n; }
// Keeps NaN.
DA_HD double at_least(double x, double low) { return x < low ? low : x; }

// The moments of the union of two disjoint sets (Chan, Golub and LeVeque 1983).
DA_HD Moments merge(const Moments& p, const Moments& q) {
  if (q.n == 0) return p;
  if (p.n == 0) return q;
  const double n = p.n + q.n, share = q.n / n, weight = p.n * share;
  const double da = q.a - p.a, db = q.b - p.b;
  return {n,
          p.a + da * share,
          p.b + db * share,
          p.aa + q.aa + da * da * weight,
          p.bb + q.bb + db * db * weight,
          p.ab + q.ab + da * db * weight};
}

// The value, or 0 where the weight is 0, even if the value is NaN.
template <class S>
DA_HD double held(S value, double weight) {
  return weight > 0 ? double(load(value)) : 0;
}

// Adds up voxels one after another, as deviations from the first one that has a weight. So no value
// that is far from 0 is squared, and there is no division for a running mean.
struct Tally {
  double n = 0, pivot_a = 0, pivot_b = 0, a = 0, b = 0, aa = 0, bb = 0, ab = 0;

  DA_HD void add(double x, double y, double weight) {
    pivot_a = n == 0 ? x : pivot_a;
    pivot_b = n == 0 ? y : pivot_b;
    const double dx = x - pivot_a, dy = y - pivot_b, wx = weight * dx, wy = weight * dy;
    n += weight;
    a += wx;
    b += wy;
    aa += wx * dx;
    bb += wy * dy;
    ab += wx * dy;
  }
  DA_HD Moments moments() const {
    const double mean_a = a / divisor(n), mean_b = b / divisor(n);
    return {
        n, pivot_a + mean_a, pivot_b + mean_b, aa - mean_a * a, bb - mean_b * b, ab - mean_a * b};
  }
};

// The moments with the last three divided by the sum of the weights.
DA_HD Moments normalised(const Moments& m) {
  const double n = divisor(m.n);
  return {m.n, m.a, m.b, m.aa / n, m.bb / n, m.ab / n};
}

// The smallest variances with which a map is not flat.
struct Floors {
  double a, b;
};

// `single` says that the PyTorch body would compute in float32. The smallest floor is that of the
// body.
DA_HD Floors global_floors(const Moments& m, double eps, bool single) {
  const double least = single ? 1.0842021724855044e-19 : 1.4916681462400413e-154;
  return {at_least(eps * eps * (m.aa + m.a * m.a), least),
          at_least(eps * eps * (m.bb + m.b * m.b), least)};
}

DA_HD Floors window_floors(const Moments& m, double eps) {
  const double least = 1.1754943508222875e-38;
  return {at_least(eps * m.aa, least), at_least(eps * m.bb, least)};
}

// A correlation and the coefficients of its gradient. The gradient by a is
// weight * (cross * (b - mean b) + own_a * (a - mean a)), and that by b is analogous.
struct Correlation {
  double value, cross, own_a, own_b;
};

// From the variances and the covariance, where 1 / `share` is the sum of the weights.
DA_HD Correlation correlate(double va, double vb, double covariance, const Floors& floors,
                            double share) {
  const double root_a = std::sqrt(at_least(va, floors.a));
  const double root_b = std::sqrt(at_least(vb, floors.b));
  const double inverse = 1 / (root_a * root_b), by_a = root_b * inverse, by_b = root_a * inverse;
  const double value = covariance * inverse, slope = -value * share;
  return {value, inverse * share, va >= floors.a ? slope * by_a * by_a : 0,
          vb >= floors.b ? slope * by_b * by_b : 0};
}

DA_HD Correlation correlate_channel(const Moments& m, double eps, bool single) {
  return correlate(m.aa, m.bb, m.ab, global_floors(m, eps, single), 1 / divisor(m.n));
}

// The gradient by a of the correlation over the whole volume. That by b is the same with the maps
// exchanged.
struct Slopes {
  double mean_a, mean_b, cross, own;

  DA_HD double operator()(double a, double b, double weight) const {
    return weight * (cross * (b - mean_b) + own * (a - mean_a));
  }
};

struct SlopePair {
  Slopes by_a, by_b;
};

DA_HD SlopePair channel_slopes(const Moments& m, double eps, bool single, double grad) {
  const Correlation c = correlate_channel(m, eps, single);
  return {{m.a, m.b, grad * c.cross, grad * c.own_a}, {m.b, m.a, grad * c.cross, grad * c.own_b}};
}

// The part of a window in the mean of the correlations and in the gradient: its value and its
// coefficients times the weight at its centre. The gradient of a voxel by a is the sum of cross * b
// + own_a * a + constant_a over the windows that contain the voxel, times its weight, divided by
// the sum of the weights of the channel.
struct WindowTerms {
  double value, cross, own_a, constant_a, own_b, constant_b;
};

// From the sums over a window of the centred maps, of their squares and of their product, and from
// 1 / the sum of its weights. In a window without weight, the sums may contain rounding errors of
// values that a running sum has added and subtracted again. So `centre`, the weight at the centre
// of the window, decides whether it counts.
DA_HD WindowTerms window_terms(double a, double b, double aa, double bb, double ab, double share,
                               const Floors& floors, double centre) {
  const double mean_a = a * share, mean_b = b * share;
  const Correlation c = correlate(aa * share - mean_a * mean_a, bb * share - mean_b * mean_b,
                                  ab * share - mean_a * mean_b, floors, share);
  const bool counts = centre > 0;
  const double cross = counts ? centre * c.cross : 0;
  const double own_a = counts ? centre * c.own_a : 0, own_b = counts ? centre * c.own_b : 0;
  return {counts ? centre * c.value : 0,
          cross,
          own_a,
          counts ? -(cross * mean_b + own_a * mean_a) : 0,
          own_b,
          counts ? -(cross * mean_a + own_b * mean_b) : 0};
}

// How many voxels a window extends from its centre along each axis, at most to the end of the axis.
struct Reach3 {
  int32_t z, y, x;
  Reach3(int64_t window, const Shape3& s)
      : z(along(window, s.d)), y(along(window, s.h)), x(along(window, s.w)) {}
  static int32_t along(int64_t window, int32_t size) {
    const int64_t half = window / 2;
    return half < size ? int32_t(half) : size - 1;
  }
};

// How many voxels of an axis lie within `reach` of position i.
DA_HD int32_t extent(int32_t i, int32_t reach, int32_t size) {
  const int32_t low = i < reach ? i : reach, last = size - 1 - i;
  return low + 1 + (last < reach ? last : reach);
}

}  // namespace ncc
}  // namespace deepatlas
