// The functors of inversion, called once for each voxel. CUDA runs them, and the tests compare the
// CPU kernels with them.
#pragma once

#include "invert.h"

namespace deepatlas {
namespace invert {

// Packs g = S c_moving, with one call for each packed voxel.
template <class S, class Index>
struct Pack {
  using T = Accumulate<S>;
  Shape3 in, packed;
  const S* moving;
  const T* matrix;
  Packed<T>* to;

  explicit Pack(const InvertArgs& a)
      : in(a.in),
        packed(packed_shape(a.in)),
        moving(static_cast<const S*>(a.moving)),
        matrix(static_cast<const T*>(a.matrix)),
        to(static_cast<Packed<T>*>(a.packed)) {}

  DA_HD void operator()(Index i) const {
    const Index row = i / Index(packed.w), b = row / (Index(in.d) * Index(in.h));
    const Index x = i - row * Index(packed.w), voxels = Index(in.voxels());
    const Index n = row * Index(in.w) + (in.w > 1 ? x : 0) - b * voxels;
    const S* c = moving + b * 3 * voxels + n;
    const Vec3<T> g =
        Matrix3<T>::read(matrix + 9 * b)(Vec3<T>{load(c[0]), load(c[voxels]), load(c[2 * voxels])});
    to[i] = {g.x, g.y, g.z, T(0)};
  }
};

// What the functors of the fixed grid share: a step of the recursion for one voxel.
template <class S, class Index>
struct Solver {
  using T = Accumulate<S>;
  MovingGrid<T> grid;
  Shape3 in, out;
  Index packed_voxels, out_voxels;
  int iterations;
  bool newton;
  T tolerance;
  const S* fixed;
  const T* matrix;
  const Packed<T>* packed;

  explicit Solver(const InvertArgs& a)
      : grid(a.in),
        in(a.in),
        out(a.out),
        packed_voxels(Index(packed_shape(a.in).voxels())),
        out_voxels(Index(a.out.voxels())),
        iterations(a.iterations),
        newton(a.newton),
        tolerance(T(a.tolerance)),
        fixed(static_cast<const S*>(a.fixed)),
        matrix(static_cast<const T*>(a.matrix)),
        packed(static_cast<const Packed<T>*>(a.packed)) {}

  // A voxel of the fixed grid: its batch item, its offset there, and its coordinates.
  struct Voxel {
    Index b, n;
    Vec3<T> identity;
  };
  DA_HD Voxel voxel(Index i) const {
    const Index b = i / out_voxels, n = i - b * out_voxels;
    const Index line = n / Index(out.w), z = line / Index(out.h);
    return {b, n,
            normalised<T>(out, int32_t(z), int32_t(line - z * Index(out.h)),
                          int32_t(n - line * Index(out.w)))};
  }
  template <class F>
  DA_HD Vec3<T> read(const F* field, const Voxel& v) const {
    const F* p = field + v.b * 3 * out_voxels + v.n;
    return {load(p[0]), load(p[out_voxels]), load(p[2 * out_voxels])};
  }
  template <class F>
  DA_HD void write(F* field, const Voxel& v, const Vec3<T>& value) const {
    F* p = field + v.b * 3 * out_voxels + v.n;
    p[0] = value.x;
    p[out_voxels] = value.y;
    p[2 * out_voxels] = value.z;
  }
  // t = S c_fixed.
  DA_HD Vec3<T> target(const Voxel& v) const {
    return Matrix3<T>::read(matrix + 9 * v.b)(read(fixed, v));
  }

  // g and its slopes per voxel at clamp(u).
  struct Sample {
    Vec3<T> held, fraction, value, by_x, by_y, by_z;
    int32_t z, y, x;
  };
  DA_HD static Vec3<T> at(const Packed<T>& p) { return {p.x, p.y, p.z}; }
  DA_HD Sample sample(Index b, const Vec3<T>& u) const {
    const Held<T> x = grid.along_x(u.x), y = grid.along_y(u.y), z = grid.along_z(u.z);
    const Packed<T>* p =
        packed + b * packed_voxels + offset_of<Index>(grid.packed, z.base, y.base, x.base);
    const Index along_y = in.h > 1 ? Index(grid.packed.w) : 0;
    const Packed<T>* q = p + (in.d > 1 ? Index(in.h) * Index(grid.packed.w) : 0);
    const Vec3<T> p00 = at(p[0]), p01 = at(p[1]), p10 = at(p[along_y]), p11 = at(p[along_y + 1]);
    const Vec3<T> q00 = at(q[0]), q01 = at(q[1]), q10 = at(q[along_y]), q11 = at(q[along_y + 1]);
    // Interpolate along y, then along z, then along x.
    const Vec3<T> low0 = lerp(p00, p10, y.fraction), low1 = lerp(p01, p11, y.fraction);
    const Vec3<T> high0 = lerp(q00, q10, y.fraction), high1 = lerp(q01, q11, y.fraction);
    const Vec3<T> left = lerp(low0, high0, z.fraction), right = lerp(low1, high1, z.fraction);
    return {{x.held, y.held, z.held},
            {x.fraction, y.fraction, z.fraction},
            lerp(left, right, x.fraction),
            right - left,
            lerp(lerp(p10 - p00, q10 - q00, z.fraction), lerp(p11 - p01, q11 - q01, z.fraction),
                 x.fraction),
            lerp(high0 - low0, high1 - low1, x.fraction),
            z.base,
            y.base,
            x.base};
  }
  DA_HD Vec3<T> plain_step(Index b, const Vec3<T>& u, const Vec3<T>& t) const {
    const Sample s = sample(b, u);
    return s.held - s.value + t;
  }
  DA_HD Vec3<T> advance(Index b, const Vec3<T>& u, const Vec3<T>& t) const {
    if (!newton) return plain_step(b, u, t);
    const Sample s = sample(b, u);
    return u + newton_step(grid, u, s.held - s.value + t - u, s.by_x, s.by_y, s.by_z);
  }
  // Whether a voxel that moved from u to next takes another step.
  DA_HD bool moves(const Vec3<T>& u, const Vec3<T>& next) const {
    return !(tolerance > T(0)) || length(scaled(next - u, grid.half)) >= tolerance;
  }
};

// The solution, its residual and its validity.
template <class S, class Index>
struct Solve : Solver<S, Index> {
  using T = Accumulate<S>;
  const T* ruler;
  T* displacement;
  T* residual;
  bool* valid;

  explicit Solve(const InvertArgs& a)
      : Solver<S, Index>(a),
        ruler(static_cast<const T*>(a.ruler)),
        displacement(static_cast<T*>(a.displacement)),
        residual(static_cast<T*>(a.residual)),
        valid(a.valid) {}

  DA_HD void operator()(Index i) const {
    const auto v = this->voxel(i);
    const Vec3<T> t = this->target(v);
    Vec3<T> u = v.identity;
    for (int k = 0; k < this->iterations; ++k) {
      const Vec3<T> next = this->advance(v.b, u, t);
      const bool moves = this->moves(u, next);
      u = next;
      if (!moves) break;
    }
    const auto s = this->sample(v.b, u);
    Vec3<T> rest = s.held - s.value + t - u;
    if (ruler != nullptr) rest = Matrix3<T>::read(ruler + 9 * v.b)(rest);
    const T left = length(scaled(rest, this->grid.half));
    this->write(displacement, v, u - v.identity);
    residual[i] = left;
    valid[i] = inside(u) & (left < T(1));
  }
};

// The adjoint of a sample: distributes `weight` over the eight corners of a cell of one batch item.
template <class T, class Index, class Add>
DA_HD void scatter(T* p, const Shape3& in, int32_t z, int32_t y, int32_t x, const Vec3<T>& f,
                   const Vec3<T>& weight, const Add& add) {
  const Steps<Index> step(in);
  const Index voxels = Index(in.voxels());
  p += offset_of<Index>(in, z, y, x);
  // Unrolling this loop would need registers that the callers need.
#if defined(__CUDACC__)
#pragma unroll 1
#endif
  for (int corner = 0; corner < 4; ++corner) {
    const bool next_y = corner & 1, next_z = corner & 2;
    const T share = (next_z ? f.z : T(1) - f.z) * (next_y ? f.y : T(1) - f.y);
    T* q = p + (next_y ? step.y : Index(0)) + (next_z ? step.z : Index(0));
    const T right = share * f.x, left = share - right;
    add(q, left * weight.x);
    add(q + voxels, left * weight.y);
    add(q + 2 * voxels, left * weight.z);
    if (step.x == Index(0)) continue;
    q += step.x;
    add(q, right * weight.x);
    add(q + voxels, right * weight.y);
    add(q + 2 * voxels, right * weight.z);
  }
}

// The gradients of the solution by both maps, by the implicit function theorem.
template <class S, class Index, class Add>
struct ImplicitBackward : Solver<S, Index> {
  using T = Accumulate<S>;
  const T* displacement;
  const bool* valid;
  const T* grad;
  T* grad_moving;
  T* grad_fixed;
  Add add;

  explicit ImplicitBackward(const InvertArgs& a)
      : Solver<S, Index>(a),
        displacement(static_cast<const T*>(a.displacement)),
        valid(a.valid),
        grad(static_cast<const T*>(a.grad)),
        grad_moving(static_cast<T*>(a.grad_moving)),
        grad_fixed(static_cast<T*>(a.grad_fixed)) {}

  DA_HD void operator()(Index i) const {
    const auto v = this->voxel(i);
    const auto s = this->sample(v.b, v.identity + this->read(displacement, v));
    const Vec3<T> weight =
        implicit_weight(this->grid, valid[i], this->read(grad, v), s.by_x, s.by_y, s.by_z);
    const Vec3<T> share = Matrix3<T>::read(this->matrix + 9 * v.b).transposed(weight);
    this->write(grad_fixed, v, share);
    // Where there is no gradient, the place may be NaN.
    if (grad_moving == nullptr || is_zero(share)) return;
    scatter<T, Index>(grad_moving + v.b * 3 * Index(this->in.voxels()), this->in, s.z, s.y, s.x,
                      s.fraction, share * T(-1), add);
  }
};

// The gradients of g and t by reversing the iterations exactly; Finish computes those of the maps.
// A gradient that is exactly 0 stays 0, whatever the maps hold there. A place that is NaN has no
// gradient with respect to the moving map.
template <class S, class Index, class Add>
struct UnrolledBackward : Solver<S, Index> {
  using T = Accumulate<S>;
  const T* grad;
  T* grad_moving;
  T* grad_fixed;
  Add add;

  explicit UnrolledBackward(const InvertArgs& a)
      : Solver<S, Index>(a),
        grad(static_cast<const T*>(a.grad)),
        grad_moving(static_cast<T*>(a.grad_moving)),
        grad_fixed(static_cast<T*>(a.grad_fixed)) {}

  DA_HD void operator()(Index i) const {
    const auto v = this->voxel(i);
    const Vec3<T> t = this->target(v);
    Vec3<T> incoming = this->read(grad, v), sum{T(0), T(0), T(0)};
    T* const to = grad_moving + v.b * 3 * Index(this->in.voxels());
    Vec3<T> trail[kTrail];
    // The trail holds the last kTrail places of the path up to step `end`. They are reversed, and
    // then the earlier part of the path is computed again.
    for (int end = this->iterations; end > 0;) {
      Vec3<T> u = v.identity;
      int steps = 0;
      for (bool moves = true; moves && steps < end; ++steps) {
        trail[steps % kTrail] = u;
        const Vec3<T> next = this->plain_step(v.b, u, t);
        moves = this->moves(u, next);
        u = next;
      }
      end = steps > kTrail ? steps - kTrail : 0;
      for (int k = steps - 1; k >= end; --k) {
        const Vec3<T> share = incoming;
        if (is_zero(share)) continue;
        sum = sum + share;
        u = trail[k % kTrail];
        const auto s = this->sample(v.b, u);
        const T check = s.fraction.x + s.fraction.y + s.fraction.z;
        const bool placed = check == check;
        const auto slope = [&](const Vec3<T>& by) { return placed ? dot(by, share) : T(0); };
        const MovingGrid<T>& grid = this->grid;
        incoming = {reversed(share.x, slope(s.by_x), grid.half.x, u.x, grid.limit.x),
                    reversed(share.y, slope(s.by_y), grid.half.y, u.y, grid.limit.y),
                    reversed(share.z, slope(s.by_z), grid.half.z, u.z, grid.limit.z)};
        if (!placed) continue;
        scatter<T, Index>(to, this->in, s.z, s.y, s.x, s.fraction, share * T(-1), add);
      }
    }
    this->write(grad_fixed, v, sum);
  }
};

// The lines of voxels that the sums over a map are divided into. On the CPU a line is a row along
// x. On CUDA it is a column along y, so that neighbouring threads read neighbouring memory.
enum Lines : bool { kAlongRows, kAlongColumns };

struct LinesOf {
  // The number of voxels in a line, and the offset from one of them to the next.
  int32_t length, inner;
  // The number of lines in a batch item.
  int64_t count;
  LinesOf(const Shape3& s, Lines lines)
      : length(lines == kAlongRows ? s.w : s.h),
        inner(lines == kAlongRows ? 1 : s.w),
        count(int64_t(s.d) * (lines == kAlongRows ? s.h : s.w)) {}
};

// Turns the gradient by S c into the gradient by the map c, in place, and sums up the gradient by
// S, with one call for each line of the map.
template <class S, class Index>
struct Finish {
  using T = Accumulate<S>;
  LinesOf lines;
  Index voxels;
  const S* map;
  const T* matrix;
  T* grad;
  T* partial;  // [batch, lines, 9]

  Finish(const InvertArgs& a, const Shape3& shape, Lines lines_, const void* map_, void* grad_,
         void* partial_)
      : lines(shape, lines_),
        voxels(Index(shape.voxels())),
        map(static_cast<const S*>(map_)),
        matrix(static_cast<const T*>(a.matrix)),
        grad(static_cast<T*>(grad_)),
        partial(static_cast<T*>(partial_)) {}

  DA_HD void operator()(Index i) const {
    const Index b = i / Index(lines.count), line = i - b * Index(lines.count);
    const Index outer = line / Index(lines.inner);
    const Index start = b * 3 * voxels + outer * Index(lines.inner) * Index(lines.length) +
                        (line - outer * Index(lines.inner));
    const Matrix3<T> m = Matrix3<T>::read(matrix + 9 * b);
    Vec3<T> sx{T(0), T(0), T(0)}, sy = sx, sz = sx;
    for (int32_t k = 0; k < lines.length; ++k) {
      const Index n = start + Index(k) * Index(lines.inner);
      const Vec3<T> g{grad[n], grad[n + voxels], grad[n + 2 * voxels]};
      // Where there is no gradient, the map may be NaN.
      if (is_zero(g)) continue;
      const Vec3<T> c{load(map[n]), load(map[n + voxels]), load(map[n + 2 * voxels])};
      sx = sx + c * g.x;
      sy = sy + c * g.y;
      sz = sz + c * g.z;
      const Vec3<T> back = m.transposed(g);
      grad[n] = back.x;
      grad[n + voxels] = back.y;
      grad[n + 2 * voxels] = back.z;
    }
    const Vec3<T> sums[3] = {sx, sy, sz};
    for (int k = 0; k < 3; ++k) {
      partial[9 * i + 3 * k] = sums[k].x;
      partial[9 * i + 3 * k + 1] = sums[k].y;
      partial[9 * i + 3 * k + 2] = sums[k].z;
    }
  }
};

}  // namespace invert
}  // namespace deepatlas
