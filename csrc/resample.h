// Trilinear and nearest sampling of a volume [B, C, D, H, W] and its two gradients: the positions
// to sample at, and one functor for each direction. CUDA runs the functors (resample.cu). The CPU
// runs the same inline arithmetic in blocks of voxels (resample_block.h, resample.cpp).
#pragma once

#include "interpolate.h"
#include "kernels.h"

namespace deepatlas {

// ---- the positions: row(b, z, y)(x) is the position in voxels of the volume ---------------------

// From absolute normalised coordinates [B, 3, out], channels x, y, z. `half` is the derivative of
// the position by the coordinate. Stored is the type of the gradient by the coordinates.
template <class S>
struct CoordsSource {
  using T = Accumulate<S>;
  using Stored = S;
  const S* coords;
  int64_t voxels;
  int32_t h, w;
  Vec3<T> half;

  explicit CoordsSource(const SampleArgs& a)
      : coords(static_cast<const S*>(a.coords)),
        voxels(a.out.voxels()),
        h(a.out.h),
        w(a.out.w),
        half{T(0.5) * T(a.in.w - 1), T(0.5) * T(a.in.h - 1), T(0.5) * T(a.in.d - 1)} {}

  struct Row {
    const S *x, *y, *z;
    Vec3<T> half;
    DA_HD Vec3<T> operator()(int32_t i) const {
      return {(finite(load(x[i])) + T(1)) * half.x, (finite(load(y[i])) + T(1)) * half.y,
              (finite(load(z[i])) + T(1)) * half.z};
    }
  };
  DA_HD Row row(int64_t b, int32_t z, int32_t y) const {
    const S* p = coords + b * 3 * voxels + (int64_t(z) * h + y) * w;
    return {p, p + voxels, p + 2 * voxels, half};
  }
};

// From the identity of the output grid plus a displacement [B, 3, out] in normalised coordinates.
template <class S>
struct DisplacementSource {
  using T = Accumulate<S>;
  using Stored = S;
  CoordsSource<S> field;
  AxisMap<T> x, y, z;
  Vec3<T> half;

  explicit DisplacementSource(const SampleArgs& a)
      : field(a), x(a.in.w, a.out.w), y(a.in.h, a.out.h), z(a.in.d, a.out.d), half(field.half) {}

  struct Row {
    typename CoordsSource<S>::Row field;
    AxisMap<T> x;
    T y, z;
    DA_HD Vec3<T> operator()(int32_t i) const {
      return {x(i) + finite(load(field.x[i])) * field.half.x,
              y + finite(load(field.y[i])) * field.half.y,
              z + finite(load(field.z[i])) * field.half.z};
    }
  };
  DA_HD Row row(int64_t b, int32_t zi, int32_t yi) const {
    return {field.row(b, zi, yi), x, y(yi), z(zi)};
  }
};

// From theta [B, 3, 4] applied to the identity of the output grid, both in normalised coordinates.
template <class S>
struct AffineSource {
  using T = Accumulate<S>;
  using Stored = T;
  const T* theta;
  Shape3 out;
  Vec3<T> half;

  explicit AffineSource(const SampleArgs& a)
      : theta(static_cast<const T*>(a.coords)), out(a.out), half(CoordsSource<S>(a).half) {}

  DA_HD static T normalised(int32_t i, int32_t size) {
    return size > 1 ? T(2 * i - (size - 1)) / T(size - 1) : T(0);
  }
  struct Row {
    Vec3<T> slope, start, half;
    int32_t w;
    DA_HD Vec3<T> operator()(int32_t i) const {
      const T x = normalised(i, w);
      return {(finite(slope.x * x + start.x) + T(1)) * half.x,
              (finite(slope.y * x + start.y) + T(1)) * half.y,
              (finite(slope.z * x + start.z) + T(1)) * half.z};
    }
  };
  DA_HD Row row(int64_t b, int32_t zi, int32_t yi) const {
    const T* t = theta + 12 * b;
    const T y = normalised(yi, out.h), z = normalised(zi, out.d);
    return {{t[0], t[4], t[8]},
            {t[1] * y + t[2] * z + t[3], t[5] * y + t[6] * z + t[7], t[9] * y + t[10] * z + t[11]},
            half,
            out.w};
  }
};

// ---- the arithmetic of one voxel ----------------------------------------------------------------

// Adds g * d value / d position to `sum`.
template <class S, class T, class Index>
DA_HD void add_position_gradient(const S* p, const Steps<Index>& step, const LinearAxis<T>& z,
                                 const LinearAxis<T>& y, const LinearAxis<T>& x, T g,
                                 Vec3<T>& sum) {
  const S* q = p + step.z;
  const T a0 = load(p[0]), a1 = load(p[step.x]);
  const T b0 = load(p[step.y]), b1 = load(p[step.y + step.x]);
  const T c0 = load(q[0]), c1 = load(q[step.x]);
  const T d0 = load(q[step.y]), d1 = load(q[step.y + step.x]);
  const T a = x.w0 * a0 + x.w1 * a1, b = x.w0 * b0 + x.w1 * b1;
  const T c = x.w0 * c0 + x.w1 * c1, d = x.w0 * d0 + x.w1 * d1;
  const T da = x.d0 * a0 + x.d1 * a1, db = x.d0 * b0 + x.d1 * b1;
  const T dc = x.d0 * c0 + x.d1 * c1, dd = x.d0 * d0 + x.d1 * d1;
  sum.x += g * (z.w0 * (y.w0 * da + y.w1 * db) + z.w1 * (y.w0 * dc + y.w1 * dd));
  sum.y += g * (z.w0 * (y.d0 * a + y.d1 * b) + z.w1 * (y.d0 * c + y.d1 * d));
  sum.z += g * (z.d0 * (y.w0 * a + y.w1 * b) + z.d1 * (y.w0 * c + y.w1 * d));
}

// The adjoint of one z-level of `interpolate`: distributes g over four voxels.
template <class T, class Index, class Add>
DA_HD void scatter_level(T* p, const Steps<Index>& step, T zy0, T zy1, T x0, T x1, T g,
                         const Add& add) {
  const T g0 = zy0 * g, g1 = zy1 * g;
  add(p, x0 * g0);
  add(p + step.x, x1 * g0);
  add(p + step.y, x0 * g1);
  add(p + step.y + step.x, x1 * g1);
}

// ---- functors, called once for each voxel of the output -----------------------------------------

// The three axes of a sample.
template <class Axis>
struct Cell {
  Axis z, y, x;

  // The offset of the first voxel of the cell.
  template <class Index>
  DA_HD Index offset(const Shape3& in) const {
    return offset_of<Index>(in, z.base, y.base, x.base);
  }
};

template <class T>
DA_HD Cell<LinearAxis<T>> locate_linear(int padding, const Vec3<T>& position, const Shape3& in) {
  return {locate_linear(padding, position.z, in.d), locate_linear(padding, position.y, in.h),
          locate_linear(padding, position.x, in.w)};
}

template <class T>
DA_HD Cell<NearestAxis<T>> locate_nearest(int padding, const Vec3<T>& position, const Shape3& in) {
  return {locate_nearest(padding, position.z, in.d), locate_nearest(padding, position.y, in.h),
          locate_nearest(padding, position.x, in.w)};
}

// A voxel of the output: its batch item, its offset there, and the position that it is sampled at.
template <class Src, class Index>
struct VoxelOf {
  int64_t b;
  Index n;
  Vec3<typename Src::T> position;
  DA_HD VoxelOf(const Src& source, const Shape3& out, Index i) {
    const Index plane = Index(out.h) * Index(out.w), voxels = plane * Index(out.d);
    b = i / voxels;
    n = i - Index(b) * voxels;
    const Index z = n / plane, rest = n - z * plane, y = rest / Index(out.w);
    position = source.row(b, int32_t(z), int32_t(y))(int32_t(rest - y * Index(out.w)));
  }
};

// The values of all channels. M is the mode.
template <class S, template <class> class SourceT, int M, class Index>
struct SampleForward {
  using T = Accumulate<S>;
  SourceT<S> source;
  int padding;
  Index channels;
  Shape3 in, out;
  const S* volume;
  S* output;

  explicit SampleForward(const SampleArgs& a)
      : source(a),
        padding(a.padding),
        channels(Index(a.channels)),
        in(a.in),
        out(a.out),
        volume(static_cast<const S*>(a.volume)),
        output(static_cast<S*>(a.output)) {}

  DA_HD void operator()(Index i) const {
    const VoxelOf<SourceT<S>, Index> v(source, out, i);
    const Index voxels = Index(in.voxels()), out_voxels = Index(out.voxels());
    const S* p = volume + Index(v.b) * channels * voxels;
    S* o = output + Index(v.b) * channels * out_voxels + v.n;
    if (M == kNearest) {
      const auto cell = locate_nearest(padding, v.position, in);
      const T weight = cell.z.weight * cell.y.weight * cell.x.weight;
      p += cell.template offset<Index>(in);
      for (Index c = 0; c < channels; ++c, p += voxels, o += out_voxels) {
        store(o, weight == T(1) ? load(*p) : weight);
      }
      return;
    }
    const auto cell = locate_linear(padding, v.position, in);
    const LinearAxis<T>&z = cell.z, &y = cell.y, &x = cell.x;
    const Weights<T> w{z.w0 * y.w0, z.w0 * y.w1, z.w1 * y.w0, z.w1 * y.w1, x.w0, x.w1};
    const Steps<Index> step(in);
    p += cell.template offset<Index>(in);
    for (Index c = 0; c < channels; ++c, p += voxels, o += out_voxels) {
      store(o, interpolate(p, step, w));
    }
  }
};

// Both gradients. A voxel with a NaN position contributes nothing, and its own gradient is 0.
template <class S, template <class> class SourceT, int M, class Index, class Add>
struct SampleBackward {
  using T = Accumulate<S>;
  using Stored = typename SourceT<S>::Stored;
  SourceT<S> source;
  int padding;
  Index channels;
  Shape3 in, out;
  const S* volume;
  const S* grad;
  T* grad_volume;
  Stored* grad_coords;
  Add add;

  explicit SampleBackward(const SampleArgs& a)
      : source(a),
        padding(a.padding),
        channels(Index(a.channels)),
        in(a.in),
        out(a.out),
        volume(static_cast<const S*>(a.volume)),
        grad(static_cast<const S*>(a.grad)),
        grad_volume(static_cast<T*>(a.grad_volume)),
        grad_coords(static_cast<Stored*>(a.grad_coords)) {}

  DA_HD void store_gradient(const VoxelOf<SourceT<S>, Index>& v, const Vec3<T>& g) const {
    const Index out_voxels = Index(out.voxels());
    Stored* o = grad_coords + Index(v.b) * 3 * out_voxels + v.n;
    store(o, g.x);
    store(o + out_voxels, g.y);
    store(o + 2 * out_voxels, g.z);
  }

  DA_HD void operator()(Index i) const {
    const VoxelOf<SourceT<S>, Index> v(source, out, i);
    const Index voxels = Index(in.voxels()), out_voxels = Index(out.voxels());
    const Index start = Index(v.b) * channels * voxels;
    const S* g = grad + Index(v.b) * channels * out_voxels + v.n;
    Vec3<T> sum{T(0), T(0), T(0)};
    if (M == kNearest) {
      const auto cell = locate_nearest(padding, v.position, in);
      if (grad_volume != nullptr && cell.z.weight * cell.y.weight * cell.x.weight == T(1)) {
        T* p = grad_volume + start + cell.template offset<Index>(in);
        for (Index c = 0; c < channels; ++c, p += voxels, g += out_voxels) add(p, load(*g));
      }
      if (grad_coords != nullptr) store_gradient(v, sum);
      return;
    }
    const auto cell = locate_linear(padding, v.position, in);
    const LinearAxis<T>&z = cell.z, &y = cell.y, &x = cell.x;
    // For a NaN position all weights are NaN, except w1 on an axis of size 1.
    const T check = z.w0 + y.w0 + x.w0;
    if (check == check) {
      const Steps<Index> step(in);
      Index offset = start + cell.template offset<Index>(in);
      for (Index c = 0; c < channels; ++c, offset += voxels, g += out_voxels) {
        const T value = load(*g);
        if (grad_volume != nullptr) {
          T* p = grad_volume + offset;
          scatter_level(p, step, z.w0 * y.w0, z.w0 * y.w1, x.w0, x.w1, value, add);
          if (in.d > 1) {
            scatter_level(p + step.z, step, z.w1 * y.w0, z.w1 * y.w1, x.w0, x.w1, value, add);
          }
        }
        if (grad_coords != nullptr) {
          add_position_gradient(volume + offset, step, z, y, x, value, sum);
        }
      }
    }
    if (grad_coords != nullptr) {
      store_gradient(v, {sum.x * source.half.x, sum.y * source.half.y, sum.z * source.half.z});
    }
  }
};

}  // namespace deepatlas
