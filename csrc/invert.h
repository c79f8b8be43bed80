// Solving c_moving(u) = c_fixed(v) for u: the arithmetic of one voxel of the recursion (eqs 6 and
// 7) and of its two gradients. CUDA runs the functors of invert_functors.h (invert.cu); the CPU
// runs the same arithmetic in blocks of voxels (invert_block.h, invert.cpp).
//
// With the step matrix S, g = S c_moving and t = S c_fixed, one step is
//   u <- clamp(u) - g(clamp(u)) + t.
// clamp limits u to the moving grid. Beyond the grid, g is continued with slope 1, so that every u
// is finite. On an axis of size 1, clamp is 0 and g is continued along the whole axis.
#pragma once

#include <algorithm>

#include "interpolate.h"
#include "kernels.h"

namespace deepatlas {
namespace invert {

// Rounding allowed in |u| <= 1, so that the faces of the volume count as inside. As SLACK of the
// PyTorch body.
constexpr double kSlack = 1e-5;
// An inverse Jacobian that amplifies more is not used. As MAX_AMPLIFICATION of the PyTorch body.
constexpr double kAmplified = 20.0;
// How many places of its path a voxel keeps for the unrolled gradient. It computes earlier ones
// again.
constexpr int kTrail = 32;

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

// The inverse of a Jacobian with columns a, b and c. `good` is false on a fold, where the map is
// too flat, and for NaN.
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

// g as it is sampled: its three channels and an unused one lie side by side, so that one load reads
// a voxel. Rows have at least two voxels, so that the second voxel of a pair along x always exists.
template <class T>
struct alignas(16) Packed {
  T x, y, z, unused;
};

inline Shape3 packed_shape(const Shape3& in) { return {in.d, in.h, in.w > 1 ? in.w : 2}; }

// How many of `batch` items run at once: at least `least`, and more if their packed maps together
// stay below `most` bytes.
inline int64_t together(const InvertArgs& a, int64_t batch, int64_t most, int64_t least) {
  const int64_t bytes = 4 * packed_shape(a.in).voxels() * (a.scalar == Scalar::kFloat64 ? 8 : 4);
  return std::clamp<int64_t>(std::max(most / bytes, least), 1, batch);
}

// The normalised coordinates of a voxel.
template <class T>
DA_HD Vec3<T> normalised(const Shape3& s, int32_t z, int32_t y, int32_t x) {
  return {s.w > 1 ? T(2 * x - (s.w - 1)) / T(s.w - 1) : T(0),
          s.h > 1 ? T(2 * y - (s.h - 1)) / T(s.h - 1) : T(0),
          s.d > 1 ? T(2 * z - (s.d - 1)) / T(s.d - 1) : T(0)};
}

// One axis of a position: u limited to the grid, the voxel below it, and the fraction of the way to
// the next voxel. For a NaN, `held` and `fraction` are NaN; `base` is inside the grid for any u.
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

// The constants of the moving grid.
template <class T>
struct MovingGrid {
  // Voxels per unit of normalised coordinates.
  Vec3<T> half;
  // The largest |u| on the grid: 1, or 0 on an axis of size 1.
  Vec3<T> limit;
  // The index of the last voxel that has a next one.
  Vec3<T> last;
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

// A column of the Jacobian of g by a normalised coordinate, from the slope per voxel. Where g is
// continued, that is the column of the identity.
template <class T>
DA_HD Vec3<T> column(const Vec3<T>& slope, T half, bool continued, const Vec3<T>& unit) {
  return {continued ? unit.x : slope.x * half, continued ? unit.y : slope.y * half,
          continued ? unit.z : slope.z * half};
}

// The Newton step from u, where `rest` is the plain step. Where the inverse Jacobian cannot be
// used, it is the plain step itself.
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

// J^-T grad, where J is the Jacobian of g at the solution; 0 where the solution has no gradient.
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

// One axis of the gradient before a step, from the gradient after it. `slope` is the latter times
// the slope of g per voxel. There is no gradient where clamp limits the coordinate, including the
// border.
template <class T>
DA_HD T reversed(T incoming, T slope, T half, T u, T limit) {
  return std::fabs(u) >= limit ? T(0) : incoming - half * slope;
}

// Whether u is on the grid, up to rounding.
template <class T>
DA_HD bool inside(const Vec3<T>& u) {
  const T most = T(1) + T(kSlack);
  return (std::fabs(u.x) <= most) & (std::fabs(u.y) <= most) & (std::fabs(u.z) <= most);
}

}  // namespace invert
}  // namespace deepatlas
