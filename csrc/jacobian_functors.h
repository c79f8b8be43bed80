// The functors of the Jacobian ops that CUDA runs, called once for each voxel or partial sum. No
// thread communicates with another, and every sum has a fixed order, so the results are
// deterministic.
#pragma once

#include "jacobian.h"

namespace deepatlas {

// The fields of a batch as the functors read them.
template <class S, class Index>
struct Field {
  using T = Accumulate<S>;
  using Along = Step<T, Index>;
  const S* field;
  Shape3 shape;
  explicit Field(const JacobianArgs& a) : field(static_cast<const S*>(a.field)), shape(a.shape) {}
  DA_HD Index voxels() const { return Index(shape.voxels()); }

  DA_HD Along along_x(Difference d, const Place& p) const { return {d, p.x, shape.w, Index(1)}; }
  DA_HD Along along_y(Difference d, const Place& p) const {
    return {d, p.y, shape.h, Index(shape.w)};
  }
  DA_HD Along along_z(Difference d, const Place& p) const {
    return {d, p.z, shape.d, Index(shape.h) * Index(shape.w)};
  }
  DA_HD Vec3<T> column(const S* p, const Along& s) const {
    const S *q = p + voxels(), *r = q + voxels();
    return {(load(p[s.high]) - load(p[s.low])) * s.scale,
            (load(q[s.high]) - load(q[s.low])) * s.scale,
            (load(r[s.high]) - load(r[s.low])) * s.scale};
  }
  DA_HD Columns<T> columns(Index item, Index voxel, const Place& place, Difference d) const {
    const S* p = field + item * 3 * voxels() + voxel;
    const Along x = along_x(d, place), y = along_y(d, place), z = along_z(d, place);
    Columns<T> m{column(p, x), column(p, y), column(p, z)};
    m.a.x += x.unit;
    m.b.y += y.unit;
    m.c.z += z.unit;
    return m;
  }
};

// The logarithm of the determinant of each voxel.
template <class S, class Index, bool Normalize>
struct LogJacobianForward {
  using T = Accumulate<S>;
  Field<S, Index> field;
  LogJacobianPoint<T, Normalize> point;
  S* output;
  explicit LogJacobianForward(const JacobianArgs& a)
      : field(a), point(a), output(static_cast<S*>(a.output)) {}

  DA_HD void operator()(Index i) const {
    const Index item = i / field.voxels(), voxel = i - item * field.voxels();
    const Place place = place_of(voxel, field.shape);
    store(output + i, point.value(field.columns(item, voxel, place, Difference::kCentral)));
  }
};

// The determinant of each voxel, or the smallest one of forward and backward differences.
template <class S, class Index>
struct DeterminantForward {
  using T = Accumulate<S>;
  Field<S, Index> field;
  bool digital;
  T* output;
  explicit DeterminantForward(const JacobianArgs& a)
      : field(a), digital(a.digital), output(static_cast<T*>(a.output)) {}

  DA_HD void operator()(Index i) const {
    const Index item = i / field.voxels(), voxel = i - item * field.voxels();
    const Place place = place_of(voxel, field.shape);
    if (!digital) {
      output[i] = determinant(field.columns(item, voxel, place, Difference::kCentral));
      return;
    }
    output[i] = least_determinant(field.columns(item, voxel, place, Difference::kForward),
                                  field.columns(item, voxel, place, Difference::kBackward));
  }
};

// ---- gradients ----------------------------------------------------------------------------------

// The gradient of the columns of a voxel, for each op.
template <class S, class Index, bool Normalize>
struct LogJacobianGradient {
  using T = Accumulate<S>;
  LogJacobianPoint<T, Normalize> point;
  const S* grad;
  explicit LogJacobianGradient(const JacobianArgs& a)
      : point(a), grad(static_cast<const S*>(a.grad)) {}
  DA_HD Columns<T> operator()(const Columns<T>& m, Index, Index i) const {
    return point.gradient(m, load(grad[i]));
  }
};

template <class S, class Index, bool Log>
struct SmoothnessGradient {
  using T = Accumulate<S>;
  SmoothnessPoint<T, Log> point;
  const S *grad, *weight;
  const double* statistics;
  explicit SmoothnessGradient(const JacobianArgs& a)
      : point(a),
        grad(static_cast<const S*>(a.grad)),
        weight(static_cast<const S*>(a.weight)),
        statistics(a.statistics) {}
  DA_HD Columns<T> operator()(const Columns<T>& m, Index item, Index i) const {
    const double* s = statistics + 3 * item;
    const T w = weight ? load(weight[i]) : T(1);
    const T factor = T(double(load(grad[item])) / s[2]);
    return point.gradient(hold(m, w > T(0)), w * factor, T(s[0]), T(s[1]));
  }
};

// The gradients of the nine components of the columns, times the scales of their differences.
template <class S, class Index, class Gradient>
struct ColumnGradients {
  using T = Accumulate<S>;
  Field<S, Index> field;
  Gradient gradient;
  T* columns;  // [batch, 9, shape]
  explicit ColumnGradients(const JacobianArgs& a)
      : field(a), gradient(a), columns(static_cast<T*>(a.columns)) {}

  DA_HD void operator()(Index i) const {
    const Index n = field.voxels(), item = i / n, voxel = i - item * n;
    const Place place = place_of(voxel, field.shape);
    const Difference d = Difference::kCentral;
    const Columns<T> g = gradient(field.columns(item, voxel, place, d), item, i);
    T* out = columns + item * 9 * n + voxel;
    put(out, n, g.a, field.along_x(d, place).scale);
    put(out + 3 * n, n, g.b, field.along_y(d, place).scale);
    put(out + 6 * n, n, g.c, field.along_z(d, place).scale);
  }
  DA_HD static void put(T* out, Index n, const Vec3<T>& g, T scale) {
    out[0] = scaled(g.x, scale);
    out[n] = scaled(g.y, scale);
    out[2 * n] = scaled(g.z, scale);
  }
};

// The gradient of the field. The value of a voxel enters the differences of its neighbours. At a
// border it enters its own difference, with the sign that it would have in that of the missing
// neighbour.
template <class S, class Index>
struct GatherColumns {
  using T = Accumulate<S>;
  Shape3 shape;
  const T* columns;
  S* grad_field;
  explicit GatherColumns(const JacobianArgs& a)
      : shape(a.shape),
        columns(static_cast<const T*>(a.columns)),
        grad_field(static_cast<S*>(a.grad_field)) {}

  DA_HD static T sides(const T* p, int32_t position, int32_t size, Index stride) {
    const T low = position > 0 ? p[-stride] : -p[0];
    const T high = position < size - 1 ? p[stride] : -p[0];
    return low - high;
  }
  DA_HD void operator()(Index i) const {
    const Index n = Index(shape.voxels()), item = i / n, voxel = i - item * n;
    const Place p = place_of(voxel, shape);
    const T* from = columns + item * 9 * n + voxel;
    S* to = grad_field + item * 3 * n + voxel;
    for (int k = 0; k < 3; ++k) {
      const T x = sides(from + k * n, p.x, shape.w, Index(1));
      const T y = sides(from + (3 + k) * n, p.y, shape.h, Index(shape.w));
      const T z = sides(from + (6 + k) * n, p.z, shape.d, Index(shape.h) * Index(shape.w));
      store(to + k * n, x + (y + z));
    }
  }
};

// ---- sums of smoothness_loss --------------------------------------------------------------------

// `partial` threads sum the voxels of a batch item, each with the stride `partial`, so that
// neighbouring threads read neighbouring memory. Then kReduced threads sum these sums, and one
// thread sums the rest.
constexpr int64_t kMostPartial = 65536, kReduced = 256;

inline int64_t partial_sums(const JacobianArgs& a) {
  const int64_t wanted = (a.shape.voxels() + 7) / 8;
  return wanted < 1 ? 1 : (wanted < kMostPartial ? wanted : kMostPartial);
}

// The layout of JacobianArgs::sums.
struct SumBuffers {
  int64_t partial;
  double* first;    // [batch, 3, partial]
  double* reduced;  // [batch, 3, kReduced]
  double* second;   // [batch]
  explicit SumBuffers(const JacobianArgs& a) : partial(partial_sums(a)) {
    first = a.sums;
    reduced = first + 3 * a.batch * partial;
    second = reduced + 3 * a.batch * kReduced;
  }
  static int64_t size(const JacobianArgs& a) {
    return a.batch * (3 * partial_sums(a) + 3 * kReduced + 1);
  }
};

// The partial sums of the weights, of D, which is kept for the second pass, and of the second Huber
// loss.
template <class S, class Index, bool Log>
struct SmoothnessFirst {
  using T = Accumulate<S>;
  Field<S, Index> field;
  SmoothnessPoint<T, Log> point;
  const S* weight;
  T* change;
  double* sums;
  Index partial;
  explicit SmoothnessFirst(const JacobianArgs& a)
      : field(a),
        point(a),
        weight(static_cast<const S*>(a.weight)),
        change(static_cast<T*>(a.change)),
        sums(SumBuffers(a).first),
        partial(Index(partial_sums(a))) {}

  DA_HD void operator()(Index i) const {
    const Index n = field.voxels(), item = i / partial, first = i - item * partial;
    T by_weight = T(0), by_change = T(0), by_frame = T(0);
    for (Index v = first; v < n; v += partial) {
      const Place place = place_of(v, field.shape);
      const T w = weight ? load(weight[item * n + v]) : T(1);
      T frame;
      const T d =
          point.change(hold(field.columns(item, v, place, Difference::kCentral), w > T(0)), frame);
      change[item * n + v] = d;
      by_weight += w;
      by_change += w * d;
      by_frame += w * frame;
    }
    double* out = sums + item * 3 * partial + first;
    out[0] = double(by_weight);
    out[partial] = double(by_change);
    out[2 * partial] = double(by_frame);
  }
};

// The partial sums of the first Huber loss and of its derivative, from the mean of D.
template <class S, class Index>
struct SmoothnessSecond {
  using T = Accumulate<S>;
  Index voxels, partial;
  T delta;
  const S* weight;
  const T* change;
  const double* statistics;
  double* sums;
  explicit SmoothnessSecond(const JacobianArgs& a)
      : voxels(Index(a.shape.voxels())),
        partial(Index(partial_sums(a))),
        delta(T(a.delta)),
        weight(static_cast<const S*>(a.weight)),
        change(static_cast<const T*>(a.change)),
        statistics(a.statistics),
        sums(SumBuffers(a).first) {}

  DA_HD void operator()(Index i) const {
    const Index item = i / partial, first = i - item * partial;
    const T mean = T(statistics[3 * item]);
    T by_loss = T(0), by_pull = T(0);
    for (Index v = first; v < voxels; v += partial) {
      const T w = weight ? load(weight[item * voxels + v]) : T(1);
      const T x = change[item * voxels + v] - mean;
      by_loss += w * huber(x, delta);
      by_pull += w * clamp(x, -delta, delta);
    }
    double* out = sums + item * 3 * partial + first;
    out[0] = double(by_loss);
    out[partial] = double(by_pull);
    out[2 * partial] = 0;
  }
};

// Sums rows of `partial` numbers to rows of kReduced numbers.
struct ReduceSums {
  int64_t partial;
  const double* from;
  double* to;
  explicit ReduceSums(const JacobianArgs& a) {
    const SumBuffers buffers(a);
    partial = buffers.partial;
    from = buffers.first;
    to = buffers.reduced;
  }
  DA_HD void operator()(int64_t i) const {
    const int64_t row = i / kReduced, first = i - row * kReduced;
    double sum = 0;
    for (int64_t j = first; j < partial; j += kReduced) sum += from[row * partial + j];
    to[i] = sum;
  }
};

DA_HD double total(const double* row) {
  double sum = 0;
  for (int64_t j = 0; j < kReduced; ++j) sum += row[j];
  return sum;
}

// The statistics of a batch item after the first pass (Last is false) and after the second pass.
template <class S, bool Last>
struct SmoothnessTotals {
  const double* reduced;
  double *second, *statistics;
  S* output;
  explicit SmoothnessTotals(const JacobianArgs& a)
      : reduced(SumBuffers(a).reduced),
        second(SumBuffers(a).second),
        statistics(a.statistics),
        output(static_cast<S*>(a.output)) {}

  DA_HD void operator()(int64_t item) const {
    const double* rows = reduced + item * 3 * kReduced;
    double* s = statistics + 3 * item;
    if (Last) {
      s[1] = total(rows + kReduced) / s[2];
      store(output + item, Accumulate<S>(total(rows) / s[2] + second[item]));
      return;
    }
    const double weight = total(rows);
    s[2] = weight == 0 ? 1 : weight;
    s[0] = total(rows + kReduced) / s[2];
    s[1] = 0;
    second[item] = total(rows + 2 * kReduced) / s[2];
  }
};

}  // namespace deepatlas
