// Solving c_moving(u) = c_fixed(v) for u: the recursion of eqs 6 and 7, its residual and its two
// gradients. The functors run as they are on CUDA (invert.cu); invert.cpp runs the same inline
// arithmetic in blocks of voxels.
//
// With the step matrix S, g = S c_moving and t = S c_fixed, one step is u <- clamp(u) - g(clamp u)
// + t. clamp holds u on the moving grid; beyond it g goes on with slope 1, so that every u is
// finite. An axis of size 1 is such a continuation throughout.
#pragma once

#include "interpolate.h"
#include "kernels.h"

namespace deepatlas {
namespace invert {

constexpr double kSlack = 1e-5;      // rounding allowed on |u| <= 1: the faces count as inside
constexpr double kAmplified = 20.0;  // an inverse Jacobian that amplifies more is not used
constexpr int kTrail = 32;           // iterations a voxel keeps of its path before it recomputes

// ---- matrices -----------------------------------------------------------------------------------

template <class T>
struct Matrix3 {
  Vec3<T> row0, row1, row2;
  DA_HD static Matrix3 read(const T* m) {
    return {{m[0], m[1], m[2]}, {m[3], m[4], m[5]}, {m[6], m[7], m[8]}};
  }
  DA_HD Vec3<T> operator()(const Vec3<T>& v) const {
    return {dot(row0, v), dot(row1, v), dot(row2, v)};
  }
  DA_HD Vec3<T> transposed(const Vec3<T>& v) const { return row0 * v.x + row1 * v.y + row2 * v.z; }
};

// The inverse of a Jacobian with columns a, b, c, for as long as it is one worth having: no fold,
// no plateau, no NaN.
template <class T>
struct Inverse {
  Vec3<T> bc, ca, ab;
  T scale;
  bool good;
  DA_HD Inverse(const Vec3<T>& a, const Vec3<T>& b, const Vec3<T>& c)
      : bc(cross(b, c)), ca(cross(c, a)), ab(cross(a, b)) {
    const T det = dot(a, bc);
    const T size = std::sqrt(dot(bc, bc) + dot(ca, ca) + dot(ab, ab));
    good = (det > T(0)) & (size <= T(kAmplified) * det);
    scale = T(1) / (good ? det : T(1));
  }
  DA_HD Vec3<T> operator()(const Vec3<T>& v) const {
    return {dot(bc, v) * scale, dot(ca, v) * scale, dot(ab, v) * scale};
  }
  DA_HD Vec3<T> transposed(const Vec3<T>& v) const {
    return (bc * v.x + ca * v.y + ab * v.z) * scale;
  }
};

// ---- the two grids ------------------------------------------------------------------------------

// The moving map as it is sampled: g with its three channels (and one unused) side by side, so that
// a corner is one load. Rows hold two voxels at least: the second of a pair along x always exists.
template <class T>
struct alignas(16) Packed {
  T x, y, z, unused;
};

inline Shape3 packed_shape(const Shape3& in) { return {in.d, in.h, in.w > 1 ? in.w : 2}; }

template <class T>
DA_HD Vec3<T> normalised(const Shape3& s, int32_t z, int32_t y, int32_t x) {
  return {s.w > 1 ? T(2 * x - (s.w - 1)) / T(s.w - 1) : T(0),
          s.h > 1 ? T(2 * y - (s.h - 1)) / T(s.h - 1) : T(0),
          s.d > 1 ? T(2 * z - (s.d - 1)) / T(s.d - 1) : T(0)};
}

// One axis of a position: u held on the grid, the voxel below it and the way to the next. NaN stays
// in `held` and `fraction`; `base` is inside whatever u is.
template <class T>
struct Held {
  T held, fraction;
  int32_t base;
  DA_HD Held(T u, T limit, T half, T last) : held(clamp(u, -limit, limit)) {
    const T position = (held + T(1)) * half;
    base = int32_t(clamp_index(position, T(0), last));
    fraction = position - T(base);
  }
};

template <class T>
struct MovingGrid {
  Vec3<T> half;   // voxels per normalised unit
  Vec3<T> limit;  // how far the grid reaches: 1, or 0 on an axis of size 1
  Vec3<T> last;   // last voxel that has a next one
  Shape3 packed;

  explicit MovingGrid(const Shape3& in)
      : half{T(0.5) * T(in.w - 1), T(0.5) * T(in.h - 1), T(0.5) * T(in.d - 1)},
        limit{T(in.w > 1), T(in.h > 1), T(in.d > 1)},
        last{T(in.w > 1 ? in.w - 2 : 0), T(in.h > 1 ? in.h - 2 : 0), T(in.d > 1 ? in.d - 2 : 0)},
        packed(packed_shape(in)) {}

  DA_HD Held<T> along_x(T u) const { return {u, limit.x, half.x, last.x}; }
  DA_HD Held<T> along_y(T u) const { return {u, limit.y, half.y, last.y}; }
  DA_HD Held<T> along_z(T u) const { return {u, limit.z, half.z, last.z}; }
};

// A column of the Jacobian of g by a normalised coordinate, from the slope by voxels; beyond the
// grid, and on an axis of size 1, that of the continuation.
template <class T>
DA_HD Vec3<T> column(const Vec3<T>& slope, T half, bool continued, const Vec3<T>& unit) {
  return {continued ? unit.x : slope.x * half, continued ? unit.y : slope.y * half,
          continued ? unit.z : slope.z * half};
}

// A Newton step from u: `rest` is the plain one. Where the Jacobian is of no use, the plain step.
template <class T>
DA_HD Vec3<T> newton_step(const MovingGrid<T>& grid, const Vec3<T>& u, const Vec3<T>& rest,
                          const Vec3<T>& by_x, const Vec3<T>& by_y, const Vec3<T>& by_z) {
  const T zero(0), one(1);
  const auto outside = [&](T c, T limit) { return (std::fabs(c) > limit) | (limit == T(0)); };
  const Inverse<T> inverse(
      column<T>(by_x, grid.half.x, outside(u.x, grid.limit.x), {one, zero, zero}),
      column<T>(by_y, grid.half.y, outside(u.y, grid.limit.y), {zero, one, zero}),
      column<T>(by_z, grid.half.z, outside(u.z, grid.limit.z), {zero, zero, one}));
  const Vec3<T> step = inverse(rest);
  return {inverse.good ? step.x : rest.x, inverse.good ? step.y : rest.y,
          inverse.good ? step.z : rest.z};
}

// J^-T grad in the frame of S, or 0 where the solution cannot carry a gradient.
template <class T>
DA_HD Vec3<T> implicit_weight(const MovingGrid<T>& grid, bool valid, const Vec3<T>& grad,
                              const Vec3<T>& by_x, const Vec3<T>& by_y, const Vec3<T>& by_z) {
  const T zero(0), one(1);
  const Inverse<T> inverse(column<T>(by_x, grid.half.x, grid.limit.x == zero, {one, zero, zero}),
                           column<T>(by_y, grid.half.y, grid.limit.y == zero, {zero, one, zero}),
                           column<T>(by_z, grid.half.z, grid.limit.z == zero, {zero, zero, one}));
  const Vec3<T> weight = inverse.transposed(grad);
  const bool passes = valid & inverse.good;
  return {passes ? weight.x : zero, passes ? weight.y : zero, passes ? weight.z : zero};
}

// One axis of the reverse of a step: `slope` is d g / d voxel times the incoming gradient. A held
// coordinate, the border included, passes nothing on.
template <class T>
DA_HD T reversed(T incoming, T slope, T half, T u, T limit) {
  return std::fabs(u) >= limit ? T(0) : incoming - half * slope;
}

template <class T>
DA_HD bool inside(const Vec3<T>& u) {
  const T most = T(1) + T(kSlack);
  return (std::fabs(u.x) <= most) & (std::fabs(u.y) <= most) & (std::fabs(u.z) <= most);
}

}  // namespace invert
}  // namespace deepatlas
