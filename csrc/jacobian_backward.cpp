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
    values.resize(size_t(3) * rows * 9 * width);
  }
  T* row(int32_t z, int32_t y) {
    return values.data() + (int64_t(z % 3) * rows + (y - first)) * 9 * width;
  }
};

// Stores gradient(i) for n voxels, each component times the scale of its difference.
template <class T, class Gradient>
void fill_block(int n, T sx, T sy, T sz, const Gradient gradient, Block<T>& out) {
  for (int i = 0; i < n; ++i) {
    const Columns<T> g = gradient(i);
    out.column[0][i] = scaled(g.a.x, sx);
    out.column[1][i] = scaled(g.a.y, sx);
    out.column[2][i] = scaled(g.a.z, sx);
    out.column[3][i] = scaled(g.b.x, sy);
    out.column[4][i] = scaled(g.b.y, sy);
    out.column[5][i] = scaled(g.b.z, sy);
    out.column[6][i] = scaled(g.c.x, sz);
    out.column[7][i] = scaled(g.c.y, sz);
    out.column[8][i] = scaled(g.c.z, sz);
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
  store(out, rest(0) - a[0] - a[1]);
  for (int32_t i = 1; i < last; ++i) store(out + i, rest(i) + (a[i - 1] - a[i + 1]));
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
      for (int32_t y = std::max(0, first - 1); y < std::min(last + 1, s.h); ++y) {
        fill({static_cast<const S*>(a_.field) + item * 3 * s.voxels(), s, z, y}, gradient, ring);
      }
      if (z > from) gather_plane(item, z - 1, first, last, ring);
    }
    if (to == s.d) gather_plane(item, to - 1, first, last, ring);
  }

  // Computes the gradients of the columns of a row.
  void fill(const Row<S>& row, const Item& gradient, Ring<T>& ring) const {
    const Shape3& s = a_.shape;
    const T sx = T(s.w - 1) / 4;
    const T sy = Step<T, int64_t>(Difference::kCentral, row.y, s.h, s.w).scale;
    const T sz = Step<T, int64_t>(Difference::kCentral, row.z, s.d, s.w).scale;
    T* to = ring.row(row.z, row.y);
    Block<T> block, gradients;
    in_blocks(s.w, [&](int32_t x, int n) {
      row.read(Difference::kCentral, x, n, block);
      gradient(row.start() + x, n, block,
               [&](const auto& at) { fill_block(n, sx, sy, sz, at, gradients); });
      for (int k = 0; k < 9; ++k) std::copy_n(gradients.column[k], n, to + k * s.w + x);
    });
    // One-sided differences have twice the scale.
    for (int k = 0; k < 3; ++k) {
      to[k * s.w] *= T(2);
      if (s.w > 1) to[k * s.w + s.w - 1] *= T(2);
    }
  }

  void gather_plane(int64_t item, int32_t z, int32_t first, int32_t last, Ring<T>& ring) const {
    const Shape3& s = a_.shape;
    const bool bottom = z == 0, top = z == s.d - 1;
    for (int32_t y = first; y < last; ++y) {
      const bool front = y == 0, back = y == s.h - 1;
      for (int k = 0; k < 3; ++k) {
        const T* a = ring.row(z, y) + k * s.w;
        const T* b_low = ring.row(z, front ? y : y - 1) + (3 + k) * s.w;
        const T* b_high = ring.row(z, back ? y : y + 1) + (3 + k) * s.w;
        const T* c_low = ring.row(bottom ? z : z - 1, y) + (6 + k) * s.w;
        const T* c_high = ring.row(top ? z : z + 1, y) + (6 + k) * s.w;
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
  void operator()(int64_t voxel, int, const Block<T>& block, const Write& write) const {
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
  T mean, mean_pull, factor;
  int64_t first;
  SmoothnessItem(const JacobianArgs& a, int64_t item)
      : a(a), point(a), first(item * a.shape.voxels()) {
    const auto& s = reinterpret_cast<const Statistics*>(a.statistics)[item];
    mean = T(s.change);
    mean_pull = T(s.pull);
    factor = T(double(load(static_cast<const S*>(a.grad)[item])) / s.weight);
  }

  template <class Write>
  void operator()(int64_t voxel, int n, const Block<T>& block, const Write& write) const {
    alignas(64) T weight[kRowVoxels];
    read_weights<S>(a.weight, first + voxel, n, weight);
    const auto p = point;
    const T m = mean, pull = mean_pull, f = factor;
    write([=, &block, &weight](int i) {
      const T w = weight[i];
      return p.gradient(hold(block.columns(i), w > T(0)), w * f, m, pull);
    });
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
