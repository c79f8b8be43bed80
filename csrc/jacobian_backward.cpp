// The gradients of the Jacobian ops with respect to the field on the CPU. The value of a voxel
// enters the differences of its neighbours, so its gradient is gathered from the gradients of their
// columns. These are kept for three planes, in tiles of rows that fit into the second-level cache.
// No two tasks write the same voxel, and what a voxel gathers does not depend on the division into
// tasks.
#include <algorithm>
#include <vector>

#include "jacobian_rows.h"

namespace deepatlas {
namespace {

constexpr int64_t kTileBytes = 512 * 1024;

// The gradients of the columns, nine numbers a voxel, for three planes of a tile: its rows, and one
// more row at either side. `first` is the first of these rows.
template <class T>
struct Ring {
  int32_t width, first, rows;
  std::vector<T> values;

  Ring(int32_t width, int32_t most) : width(width), first(0), rows(most + 2) {
    values.resize(size_t(3) * 9 * rows * width + 2);
  }
  // Component k of a row. The rows of a plane follow each other. There is a value before the first row
  // and one after the last.
  T* row(int k, int32_t z, int32_t y) {
    return values.data() + 1 + (int64_t(z % 3 * 9 + k) * rows + (y - first)) * width;
  }
};

// Stores the values of gradient(i) for n voxels, each component times the scale of its difference, in
// nine rows that do not overlap with anything that `gradient` reads.
template <class T, class Gradient>
void fill_rows(int n, T sx, T sy, T sz, const Gradient gradient, T* const* rows) {
  T *ax = rows[0], *ay = rows[1], *az = rows[2], *bx = rows[3], *by = rows[4], *bz = rows[5],
    *cx = rows[6], *cy = rows[7], *cz = rows[8];
#pragma GCC ivdep
  for (int i = 0; i < n; ++i) {
    const Columns<T> g = gradient(i);
    ax[i] = g.a.x * sx, ay[i] = g.a.y * sx, az[i] = g.a.z * sx;
    bx[i] = g.b.x * sy, by[i] = g.b.y * sy, bz[i] = g.b.z * sy;
    cx[i] = g.c.x * sz, cy[i] = g.c.y * sz, cz[i] = g.c.z * sz;
  }
  // On an axis without differences the gradient is 0, even if it was NaN.
  const T scale[3] = {sx, sy, sz};
  for (int k = 0; k < 9; ++k) {
    if (scale[k / 3] == T(0)) std::fill_n(rows[k], n, T(0));
  }
}

// The rows before and after a row along one axis. At a border that is the row itself, with the
// opposite sign.
template <class T>
struct Sides {
  const T *low, *high;
  T low_sign, high_sign;
};

// Gathers the gradient of a row: `a` are the gradients along the row itself.
template <class S, class T>
void gather(const T* __restrict a, const Sides<T>& b, const Sides<T>& c, int32_t width,
            S* __restrict out) {
  const T* __restrict bl = b.low, * __restrict bh = b.high;
  const T* __restrict cl = c.low, * __restrict ch = c.high;
  const T bls = b.low_sign, bhs = b.high_sign, cls = c.low_sign, chs = c.high_sign;
  const auto rest = [&](int32_t i) {
    return (bls * bl[i] - bhs * bh[i]) + (cls * cl[i] - chs * ch[i]);
  };
  const int32_t last = width - 1;
  if (last == 0) return store(out, rest(0));
  // To have complete vectors, the ends are first computed as if the row went on.
  for (int32_t i = 0; i < width; ++i) store(out + i, rest(i) + (a[i - 1] - a[i + 1]));
  store(out, rest(0) - a[0] - a[1]);
  store(out + last, rest(last) + a[last - 1] + a[last]);
}

// The gradient of the field. `Item` computes the gradients of the columns of one batch item, as
// LogJacobianItem below.
template <class S, class Item>
class Backward {
 public:
  using T = Accumulate<S>;
  explicit Backward(const JacobianArgs& a) : a_(a) {
    const int64_t row = int64_t(3) * 9 * sizeof(T) * std::max(1, a.shape.w);
    const int64_t most = std::max<int64_t>(4, kTileBytes / row - 2);
    tiles_ = int32_t((a.shape.h + most - 1) / most);
    tile_ = tiles_ > 0 ? (a.shape.h + tiles_ - 1) / tiles_ : 0;
  }

  void operator()(const Parallel& parallel) const {
    const int64_t plane = std::max<int64_t>(1, int64_t(a_.shape.h) * a_.shape.w);
    parallel(a_.batch * a_.shape.d, std::max<int64_t>(2, 16384 / plane),
             [&](int64_t begin, int64_t end) {
               Ring<T> ring(a_.shape.w, tile_);
               for (int64_t from = begin; from < end;) {
                 const int64_t item = from / a_.shape.d, origin = item * a_.shape.d;
                 const int64_t to = std::min(end, origin + a_.shape.d);
                 const Item gradient(a_, item);
                 for (int32_t first = 0; first < a_.shape.h; first += tile_) {
                   slab(item, gradient, int32_t(from - origin), int32_t(to - origin), first, ring);
                 }
                 from = to;
               }
             });
  }

 private:
  // Computes the gradient of the planes [from, to) of a batch item, for the tile that begins at row
  // `first`.
  void slab(int64_t item, const Item& gradient, int32_t from, int32_t to, int32_t first,
            Ring<T>& ring) const {
    const Shape3& s = a_.shape;
    const int32_t last = std::min(first + tile_, s.h);
    ring.first = first - 1;
    for (int32_t z = std::max(0, from - 1); z < std::min(to + 1, s.d); ++z) {
      fill(item, gradient, z, std::max(0, first - 1), std::min(last + 1, s.h), ring);
      if (z > from) gather_plane(item, z - 1, first, last, ring);
    }
    if (to == s.d) gather_plane(item, to - 1, first, last, ring);
  }

  // Computes the gradients of the columns of the rows [first, last) of a plane.
  void fill(int64_t item, const Item& gradient, int32_t z, int32_t first, int32_t last,
            Ring<T>& ring) const {
    const Shape3& s = a_.shape;
    const FieldRows<S> rows(a_, item);
    const T sx = T(s.w - 1) / 4;
    const T sz = Step<T, int64_t>(Difference::kCentral, z, s.d, s.w).scale;
    Block<T> block;
    in_row_blocks(s, first, last, [&](int32_t y, int32_t x, int n) {
      const T sy = Step<T, int64_t>(Difference::kCentral, y, s.h, s.w).scale;
      T* to[9];
      for (int k = 0; k < 9; ++k) to[k] = ring.row(k, z, y) + x;
      rows.read(Difference::kCentral, z, y, x, n, block);
      gradient(rows.voxel(z, y, x), n, block,
               [&](const auto& at) { fill_rows(n, sx, sy, sz, at, to); });
    });
    // One-sided differences have twice the scale.
    for (int32_t y = first; y < last; ++y) {
      for (int k = 0; k < 3; ++k) {
        T* row = ring.row(k, z, y);
        row[0] *= T(2);
        if (s.w > 1) row[s.w - 1] *= T(2);
      }
    }
  }

  void gather_plane(int64_t item, int32_t z, int32_t first, int32_t last, Ring<T>& ring) const {
    const Shape3& s = a_.shape;
    const bool bottom = z == 0, top = z == s.d - 1;
    for (int32_t y = first; y < last; ++y) {
      const bool front = y == 0, back = y == s.h - 1;
      for (int k = 0; k < 3; ++k) {
        const T* a = ring.row(k, z, y);
        const T* b_low = ring.row(3 + k, z, front ? y : y - 1);
        const T* b_high = ring.row(3 + k, z, back ? y : y + 1);
        const T* c_low = ring.row(6 + k, bottom ? z : z - 1, y);
        const T* c_high = ring.row(6 + k, top ? z : z + 1, y);
        const Sides<T> b{b_low, b_high, T(front ? -1 : 1), T(back ? -1 : 1)};
        const Sides<T> c{c_low, c_high, T(bottom ? -1 : 1), T(top ? -1 : 1)};
        S* out = static_cast<S*>(a_.grad_field) + (item * 3 + k) * s.voxels();
        gather(a, b, c, s.w, out + (int64_t(z) * s.h + y) * s.w);
      }
    }
  }

  const JacobianArgs& a_;
  int32_t tile_, tiles_;
};

// Calls write(f), where f(i) is the gradient of the columns of voxel i of a block of n voxels that
// begins at `voxel` of the batch item.
template <class S, bool Normalize>
struct LogJacobianItem {
  using T = Accumulate<S>;
  LogJacobianPoint<T, Normalize> point;
  const S* grad;
  LogJacobianItem(const JacobianArgs& a, int64_t item)
      : point(a), grad(static_cast<const S*>(a.grad) + item * a.shape.voxels()) {}

  template <class Write>
  void operator()(int64_t voxel, int, Block<T>& block, const Write& write) const {
    const auto p = point;
    const S* __restrict g = grad + voxel;
    write([=, &block](int i) { return p.gradient(block.columns(i), load(g[i])); });
  }
};

template <class S, bool Log>
struct SmoothnessItem {
  using T = Accumulate<S>;
  const JacobianArgs& a;
  SmoothnessPoint<T, Log> point;
  SmoothnessPoint<T, Log, PlainLogarithm<T>> plain;
  T mean, mean_pull, factor;
  int64_t first;
  SmoothnessItem(const JacobianArgs& a, int64_t item)
      : a(a), point(a), plain(a), first(item * a.shape.voxels()) {
    const auto& s = reinterpret_cast<const Statistics*>(a.statistics)[item];
    mean = T(s.change);
    mean_pull = T(s.pull);
    factor = T(double(load(static_cast<const S*>(a.grad)[item])) / s.weight);
  }

  template <class Write>
  void operator()(int64_t voxel, int n, Block<T>& block, const Write& write) const {
    alignas(64) T weight[kRowVoxels];
    read_weights<S>(a.weight, first + voxel, n, weight);
    if (a.weight != nullptr) block.hold(weight, n);
    Frames<T> frames;
    frames.compute(block, n, point.log.eps);
    frames.plain(n, point.log.eps) ? slopes(plain, n, weight, frames)
                                   : slopes(point, n, weight, frames);
    write([&](int i) {
      FrameSlope<T> slope;
      slope.q = frames.det[i];
      slope.r = {frames.inverse_a[i], frames.inverse_b[i], frames.inverse_c[i]};
      return slope(block.columns(i));
    });
  }

  // Computes the slopes of n voxels: q takes the place of `det` and r that of `inverse`.
  template <class Point>
  void slopes(const Point& of, int n, const T* __restrict weight, Frames<T>& frames) const {
    const auto p = of;
    const T m = mean, pull = mean_pull, f = factor;
    alignas(64) T change[kRowVoxels], orthonormality[kRowVoxels];
    if (p.always_linear()) {
      for (int i = 0; i < n; ++i) {
        change[i] = p.log(frames.det[i]);
        // It is below -delta, unless it is NaN.
        orthonormality[i] = frames.unit_det[i] < kInfinity<T> ? -p.delta : frames.unit_det[i];
      }
    } else {
      for (int i = 0; i < n; ++i) {
        p.terms(frames.det[i], frames.unit_det[i], change[i], orthonormality[i]);
      }
    }
    for (int i = 0; i < n; ++i) {
      const FrameSlope<T> slope =
          p.slope(frames[i], change[i], orthonormality[i], weight[i] * f, m, pull);
      frames.det[i] = slope.q;
      frames.inverse_a[i] = slope.r.x;
      frames.inverse_b[i] = slope.r.y;
      frames.inverse_c[i] = slope.r.z;
    }
  }
};

}  // namespace

void log_jacobian_backward_cpu(const JacobianArgs& args, const Parallel& parallel) {
  with_scalar(args.scalar, [&](auto s) {
    using S = decltype(s);
    args.normalize ? Backward<S, LogJacobianItem<S, true>>(args)(parallel)
                   : Backward<S, LogJacobianItem<S, false>>(args)(parallel);
  });
}

void smoothness_backward_cpu(const JacobianArgs& args, const Parallel& parallel) {
  with_scalar(args.scalar, [&](auto s) {
    using S = decltype(s);
    args.logarithm ? Backward<S, SmoothnessItem<S, true>>(args)(parallel)
                   : Backward<S, SmoothnessItem<S, false>>(args)(parallel);
  });
}

}  // namespace deepatlas
