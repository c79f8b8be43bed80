// Inversion of one block of voxels on the CPU: the arithmetic of invert.h in stages. The compiler
// vectorises the loops over the voxels of a block, called lanes here. It cannot vectorise the loads
// of the eight corners, so these load all channels of a corner at once.
#pragma once

#if defined(__AVX__)
#include <immintrin.h>
#endif

#include <algorithm>
#include <cstring>

#include "blocks.h"
#include "invert.h"

namespace deepatlas {
namespace invert {

// Four channels of a voxel as one vector, as GCC and Clang support them for every processor.
template <class T>
struct FourOf {
  typedef T type __attribute__((vector_size(4 * sizeof(T)), aligned(alignof(T)), may_alias));
};
template <class T>
using Four = typename FourOf<T>::type;

// One vector per lane, component by component.
template <class T>
struct Lanes {
  alignas(64) T x[kBlockVoxels], y[kBlockVoxels], z[kBlockVoxels];
  DA_HD Vec3<T> operator[](int i) const { return {x[i], y[i], z[i]}; }
  DA_HD void set(int i, const Vec3<T>& v) {
    x[i] = v.x;
    y[i] = v.y;
    z[i] = v.z;
  }
};

// One vector per lane, lane by lane, as the corners give them.
template <class T>
struct Quads {
  alignas(64) T at[kBlockVoxels][4];
  DA_HD Vec3<T> operator[](int i) const { return {at[i][0], at[i][1], at[i][2]}; }
};

// The places of the lanes on the packed map: see Held.
template <class T>
struct Cells {
  Lanes<T> held, fraction;
  alignas(64) int32_t z[kBlockVoxels], y[kBlockVoxels], x[kBlockVoxels];
  alignas(64) int64_t offset[kBlockVoxels];
};

// The slopes of g per voxel.
template <class T>
struct Slopes {
  Quads<T> by_x, by_y, by_z;
};

// The number of lanes in complete vectors that hold `count` voxels. The additional lanes contain
// old values, which do no harm.
inline int padded_lanes(int count) { return (count + 15) / 16 * 16; }

// ---- stages -------------------------------------------------------------------------------------

// The coordinates of the voxels of a block.
template <class T>
void place(const Shape3& out, int64_t n, int count, Lanes<T>& identity) {
  for_each_row_part(out, n, count, [&](int32_t z, int32_t y, int32_t x, int first, int part) {
    for (int k = 0; k < part; ++k) identity.set(first + k, normalised<T>(out, z, y, x + k));
  });
  for (int i = count; i < padded_lanes(count); ++i) identity.set(i, {T(0), T(0), T(0)});
}

// t = S c_fixed of the voxels of a block.
template <class S, class T>
void aim(const S* fixed, int64_t voxels, const Matrix3<T>& matrix, int count, Lanes<T>& target) {
  for (int i = 0; i < count; ++i) {
    target.set(
        i, matrix(Vec3<T>{load(fixed[i]), load(fixed[i + voxels]), load(fixed[i + 2 * voxels])}));
  }
  for (int i = count; i < padded_lanes(count); ++i) target.set(i, {T(0), T(0), T(0)});
}

// The places of the lanes on the packed map.
template <class T>
void locate(const MovingGrid<T>& grid, const Lanes<T>& u, int count, Cells<T>& to) {
  const auto axis = [count](const T* __restrict from, T limit, T half, T last, T* __restrict held,
                            T* __restrict fraction, int32_t* __restrict base) {
    for (int i = 0; i < count; ++i) {
      const Held<T> at(from[i], limit, half, last);
      held[i] = at.held;
      fraction[i] = at.fraction;
      base[i] = at.base;
    }
  };
  axis(u.z, grid.limit.z, grid.half.z, grid.last.z, to.held.z, to.fraction.z, to.z);
  axis(u.y, grid.limit.y, grid.half.y, grid.last.y, to.held.y, to.fraction.y, to.y);
  axis(u.x, grid.limit.x, grid.half.x, grid.last.x, to.held.x, to.fraction.x, to.x);
  flatten(grid.packed, to.z, to.y, to.x, count, to.offset);
}

// The packed map of one batch item, and the offsets, in scalars, from a corner to the next along y
// and z.
template <class T>
struct PackedMap {
  const T* voxels;
  int64_t along_y, along_z;
  PackedMap(const void* packed, const MovingGrid<T>& grid, int64_t b)
      : voxels(static_cast<const T*>(packed) + 4 * b * grid.packed.voxels()),
        along_y(grid.packed.h > 1 ? 4 * int64_t(grid.packed.w) : 0),
        along_z(grid.packed.d > 1 ? 4 * int64_t(grid.packed.w) * grid.packed.h : 0) {}
};

template <class T>
DA_HD const Four<T>& four(const T* p) {
  return *reinterpret_cast<const Four<T>*>(p);
}
template <class T>
DA_HD Four<T>& four(T* p) {
  return *reinterpret_cast<Four<T>*>(p);
}

// The two voxels of a corner pair along x, which are neighbours in memory.
template <class T>
struct Pair {
  Four<T> near, far;
  DA_HD explicit Pair(const T* p) : near(four(p)), far(four(p + 4)) {}
  DA_HD Pair(const Four<T>& a, const Four<T>& b) : near(a), far(b) {}
  DA_HD Pair minus(const Pair& other) const { return {near - other.near, far - other.far}; }
  DA_HD Pair plus(const Pair& other, T f) const {
    return {near + f * other.near, far + f * other.far};
  }
  DA_HD void along(Four<T>& to) const { to = far - near; }
  DA_HD void at(T f, Four<T>& to) const { to = near + f * (far - near); }
};

#if defined(__AVX__) && defined(__FMA__)
// Both voxels in one register.
template <>
struct Pair<float> {
  __m256 both;
  DA_HD explicit Pair(const float* p) : both(_mm256_loadu_ps(p)) {}
  DA_HD explicit Pair(const __m256& v) : both(v) {}
  DA_HD Pair minus(const Pair& other) const { return Pair(_mm256_sub_ps(both, other.both)); }
  DA_HD Pair plus(const Pair& other, float f) const {
    return Pair(_mm256_fmadd_ps(_mm256_set1_ps(f), other.both, both));
  }
  DA_HD void along(Four<float>& to) const {
    to = _mm_sub_ps(_mm256_extractf128_ps(both, 1), _mm256_castps256_ps128(both));
  }
  DA_HD void at(float f, Four<float>& to) const {
    const __m128 near = _mm256_castps256_ps128(both);
    to = _mm_fmadd_ps(_mm_set1_ps(f), _mm_sub_ps(_mm256_extractf128_ps(both, 1), near), near);
  }
};
#endif

// The values of g, and its slopes. The sums are those of Solver::sample.
template <class T>
void read(const PackedMap<T>& map, const Cells<T>& cells, int count, Quads<T>& value) {
  for (int i = 0; i < count; ++i) {
    const T* p = map.voxels + 4 * cells.offset[i];
    const T* q = p + map.along_z;
    const T fy = cells.fraction.y[i];
    const Pair<T> p0(p), q0(q);
    const Pair<T> low = p0.plus(Pair<T>(p + map.along_y).minus(p0), fy);
    const Pair<T> high = q0.plus(Pair<T>(q + map.along_y).minus(q0), fy);
    low.plus(high.minus(low), cells.fraction.z[i]).at(cells.fraction.x[i], four(value.at[i]));
  }
}

template <class T>
void read(const PackedMap<T>& map, const Cells<T>& cells, int count, Quads<T>& value,
          Slopes<T>& slopes) {
  for (int i = 0; i < count; ++i) {
    const T* p = map.voxels + 4 * cells.offset[i];
    const T* q = p + map.along_z;
    const T fx = cells.fraction.x[i], fy = cells.fraction.y[i], fz = cells.fraction.z[i];
    const Pair<T> p0(p), q0(q);
    const Pair<T> dp = Pair<T>(p + map.along_y).minus(p0), dq = Pair<T>(q + map.along_y).minus(q0);
    const Pair<T> low = p0.plus(dp, fy), rise = q0.plus(dq, fy).minus(low);
    const Pair<T> row = low.plus(rise, fz);
    row.at(fx, four(value.at[i]));
    row.along(four(slopes.by_x.at[i]));
    dp.plus(dq.minus(dp), fz).at(fx, four(slopes.by_y.at[i]));
    rise.at(fx, four(slopes.by_z.at[i]));
  }
}

// The arrays that the steps of a block need. `moved` is the length of the last step in voxels.
template <class T>
struct Work {
  Cells<T> cells;
  Quads<T> value;
  Slopes<T> slopes;
  Lanes<T> next;
  alignas(64) T moved[kBlockVoxels];
};

template <class T>
void plain_steps(const Cells<T>& __restrict cells, const Quads<T>& __restrict value,
                 const Lanes<T>& __restrict target, int lanes, Lanes<T>& __restrict next) {
  for (int i = 0; i < lanes; ++i) next.set(i, cells.held[i] - value[i] + target[i]);
}

template <class T>
void newton_steps(const MovingGrid<T>& grid, const Slopes<T>& __restrict slopes,
                  const Lanes<T>& __restrict u, int lanes, Lanes<T>& __restrict next) {
  for (int i = 0; i < lanes; ++i) {
    next.set(i, u[i] + newton_step(grid, u[i], next[i] - u[i], slopes.by_x[i], slopes.by_y[i],
                                   slopes.by_z[i]));
  }
}

// Computes the next place of the first `lanes` lanes.
template <class T>
void step(const MovingGrid<T>& grid, const PackedMap<T>& map, bool newton, const Lanes<T>& target,
          int lanes, const Lanes<T>& u, Work<T>& work) {
  locate(grid, u, lanes, work.cells);
  if (newton) {
    read(map, work.cells, lanes, work.value, work.slopes);
  } else {
    read(map, work.cells, lanes, work.value);
  }
  plain_steps(work.cells, work.value, target, lanes, work.next);
  if (newton) newton_steps(grid, work.slopes, u, lanes, work.next);
}

// Takes one step of every lane in place. With `measure`, it also computes work.moved.
template <class T>
void advance(const MovingGrid<T>& grid, const PackedMap<T>& map, bool newton, bool measure,
             const Lanes<T>& target, int count, Lanes<T>& u, Work<T>& work) {
  const int lanes = padded_lanes(count);
  step(grid, map, newton, target, lanes, u, work);
  if (measure) {
    for (int i = 0; i < lanes; ++i) {
      work.moved[i] = length(scaled(work.next[i] - u[i], grid.half));
    }
  }
  for (int i = 0; i < lanes; ++i) u.set(i, work.next[i]);
}

// Lanes stop one by one, but the stages drop them by groups: neighbours need about the same number of
// steps, and moving single lanes together after every step costs as much as the step itself.
constexpr int kGroup = 16;

template <class T>
void copy_group(const Lanes<T>& from, int at, Lanes<T>& to, int there) {
  std::copy_n(from.x + at, kGroup, to.x + there);
  std::copy_n(from.y + at, kGroup, to.y + there);
  std::copy_n(from.z + at, kGroup, to.z + there);
}

// Takes a step of the lanes that still move: those with open[i] = 1. Closes those whose step was
// shorter than the tolerance, or NaN.
template <class T>
void advance_open(const MovingGrid<T>& grid, const PackedMap<T>& map, bool newton, T tolerance,
                  const Lanes<T>& target, int lanes, Lanes<T>& __restrict u, Work<T>& work,
                  int32_t* __restrict open) {
  step(grid, map, newton, target, lanes, u, work);
  const T square = tolerance * tolerance;
  for (int i = 0; i < lanes; ++i) {
    const Vec3<T> now = u[i], next = work.next[i], moved = scaled(next - now, grid.half);
    const bool moves = open[i] != 0;
    u.x[i] = moves ? next.x : now.x;
    u.y[i] = moves ? next.y : now.y;
    u.z[i] = moves ? next.z : now.z;
    open[i] = moves & (dot(moved, moved) >= square);
  }
}

// Runs the recursion in place.
template <class T>
void solve(const MovingGrid<T>& grid, const PackedMap<T>& map, const InvertArgs& a, int count,
           const Lanes<T>& target, Lanes<T>& u, Work<T>& work) {
  const T tolerance = T(a.tolerance);
  if (!(tolerance > T(0))) {
    for (int k = 0; k < a.iterations; ++k) {
      advance(grid, map, a.newton, false, target, count, u, work);
    }
    return;
  }
  Lanes<T> moving = u, aims = target;
  alignas(64) int32_t open[kBlockVoxels];
  // The first lane of each group that is left.
  int first[kBlockVoxels / kGroup];
  int left = padded_lanes(count);
  for (int i = 0; i < left; ++i) open[i] = i < count;
  for (int i = 0; i < left; i += kGroup) first[i / kGroup] = i;
  for (int k = 0; k < a.iterations && left > 0; ++k) {
    advance_open(grid, map, a.newton, tolerance, aims, left, moving, work, open);
    // The last group takes the place of one that is done.
    for (int i = left - kGroup; i >= 0; i -= kGroup) {
      int32_t any = 0;
      for (int j = 0; j < kGroup; ++j) any |= open[i + j];
      if (any) continue;
      copy_group(moving, i, u, first[i / kGroup]);
      left -= kGroup;
      copy_group(moving, left, moving, i);
      copy_group(aims, left, aims, i);
      std::copy_n(open + left, kGroup, open + i);
      first[i / kGroup] = first[left / kGroup];
    }
  }
  for (int i = 0; i < left; i += kGroup) copy_group(moving, i, u, first[i / kGroup]);
}

// The level of a lane that does not scatter.
constexpr int32_t kNowhere = -2;

// Distributes -weight over the corners of each lane, in the levels [low, high) of a packed volume.
template <class T>
void scatter(T* volume, const PackedMap<T>& map, const Cells<T>& cells, const Quads<T>& weight,
             int count, int32_t low, int32_t high) {
  for (int i = 0; i < count; ++i) {
    const Four<T> all = four(weight.at[i]);
    T* p = volume + 4 * cells.offset[i];
    const T fx = cells.fraction.x[i], fy = cells.fraction.y[i], fz = cells.fraction.z[i];
    const int32_t z = cells.z[i];
    const auto level = [&](T* to, const Four<T>& share) __attribute__((always_inline)) {
      const Four<T> far = share * fy, near = share - far;
      const Four<T> near1 = near * fx, far1 = far * fx;
      four(to) -= near - near1;
      four(to + 4) -= near1;
      four(to + map.along_y) -= far - far1;
      four(to + map.along_y + 4) -= far1;
    };
    const Four<T> upper = all * fz;
    if (z >= low && z < high) level(p, all - upper);
    if (z + 1 >= low && z + 1 < high) level(p + map.along_z, upper);
  }
}

}  // namespace invert
}  // namespace deepatlas
