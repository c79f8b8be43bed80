// edge_difference on the CPU, a row of voxels at a time: the sums over the nine rows around it
// along z and y come first, then those along x. The backward pass sums the slopes of a plane along
// x and y at once, and keeps three such planes for the sums along z.
#include "edges.h"

#include <vector>

#include "rows.h"

namespace deepatlas {
namespace {

// The differences of the voxels of a row, not divided by 18, and their roots.
template <class T>
class EdgeRow {
 public:
  explicit EdgeRow(int32_t width)
      : width_(width), data_(3 * (size_t(width) + 2) + 4 * size_t(width)) {
    T* next = data_.data();
    for (T** padded : {&along_x_, &along_y_, &along_z_}) *padded = next, next += width + 2;
    for (T** plain : {&x, &y, &z, &root}) *plain = next, next += width;
  }
  EdgeRow(const EdgeRow&) = delete;

  template <class S>
  void read(const S* image, const Shape3& s, int32_t at_z, int32_t at_y) {
    const int64_t plane = int64_t(s.h) * s.w;
    const int64_t below = (at_z > 0 ? at_z - 1 : 0) * plane, here = at_z * plane,
                  above = (at_z + 1 < s.d ? at_z + 1 : at_z) * plane;
    const int64_t before = int64_t(at_y > 0 ? at_y - 1 : 0) * s.w, row = int64_t(at_y) * s.w,
                  after = int64_t(at_y + 1 < s.h ? at_y + 1 : at_y) * s.w;
    sums(image + below + before, image + here + before, image + above + before, image + below + row,
         image + here + row, image + above + row, image + below + after, image + here + after,
         image + above + after);
    differences();
  }

  // Each has `width` voxels.
  T *x, *y, *z, *root;

 private:
  // The sums along z and y of the nine rows around the row, for each of the three differences.
  template <class S>
  void sums(const S* __restrict a0, const S* __restrict a1, const S* __restrict a2,
            const S* __restrict b0, const S* __restrict b1, const S* __restrict b2,
            const S* __restrict c0, const S* __restrict c1, const S* __restrict c2) {
    T* __restrict px = along_x_ + 1;
    T* __restrict py = along_y_ + 1;
    T* __restrict pz = along_z_ + 1;
    for (int32_t i = 0; i < width_; ++i) {
      const T a = load(a0[i]) + load(a1[i]) + load(a2[i]);
      const T b = load(b0[i]) + load(b1[i]) + load(b2[i]);
      const T c = load(c0[i]) + load(c1[i]) + load(c2[i]);
      px[i] = a + b + c;
      py[i] = c - a;
      pz[i] =
          (load(a2[i]) - load(a0[i])) + (load(b2[i]) - load(b0[i])) + (load(c2[i]) - load(c0[i]));
    }
    for (T* padded : {along_x_, along_y_, along_z_}) {
      padded[0] = padded[1];
      padded[width_ + 1] = padded[width_];
    }
  }
  // The sums and the difference along x.
  void differences() {
    const T* __restrict px = along_x_;
    const T* __restrict py = along_y_;
    const T* __restrict pz = along_z_;
    T* __restrict to_x = x;
    T* __restrict to_y = y;
    T* __restrict to_z = z;
    T* __restrict to_root = root;
    for (int32_t i = 0; i < width_; ++i) {
      const T dx = px[i + 2] - px[i], dy = py[i] + py[i + 1] + py[i + 2],
              dz = pz[i] + pz[i + 1] + pz[i + 2];
      to_x[i] = dx;
      to_y[i] = dy;
      to_z[i] = dz;
      to_root[i] = edge_root(dx, dy, dz);
    }
  }

  int32_t width_;
  std::vector<T> data_;
  // For the differences along x, y and z: rows with one more value at either end.
  T *along_x_, *along_y_, *along_z_;
};

constexpr int64_t kVoxelsPerTask = 8192;

template <class S>
const S* item_of(const void* images, int64_t item, const EdgesArgs& a) {
  return static_cast<const S*>(images) + item * a.shape.voxels();
}

template <class S>
void forward(const EdgesArgs& a, const Parallel& parallel) {
  using T = Accumulate<S>;
  const Shape3& s = a.shape;
  const int64_t grain = planes_per_task(s, kVoxelsPerTask);
  parallel(a.items() * s.d, grain, [&](int64_t begin, int64_t end) {
    EdgeRow<T> moving(s.w), fixed(s.w);
    alignas(64) T weight[kRowVoxels];
    PlaneSums<T> sums(s.w);
    for (int64_t plane = begin; plane < end; ++plane) {
      const int64_t item = plane / s.d;
      const int32_t z = int32_t(plane - item * s.d);
      for (int32_t y = 0; y < s.h; ++y) {
        moving.read(item_of<S>(a.moving, item, a), s, z, y);
        fixed.read(item_of<S>(a.fixed, item, a), s, z, y);
        const int64_t row = item / a.channels * s.voxels() + (int64_t(z) * s.h + y) * s.w;
        in_blocks(s.w, [&](int32_t x, int n) {
          read_weights<S>(a.mask, row + x, n, weight);
          const T* __restrict m = moving.root + x;
          const T* __restrict f = fixed.root + x;
          sums.add(n, [&](int i, T& by_difference, T& by_power, T& by_weight) {
            const T w = weight[i], change = m[i] - f[i], edge = edge_of(f[i]);
            by_difference += w > T(0) ? w * change * change : T(0);
            by_power += w > T(0) ? w * edge * edge : T(0);
            by_weight += w;
          });
        });
      }
      sums.finish(a.sums + 3 * plane);
    }
  });
  auto* statistics = reinterpret_cast<EdgeStatistics*>(a.statistics);
  total_planes(a.sums, a.batch, a.channels * s.d, [&](int64_t b, const double* total) {
    statistics[b] = edge_statistics(total[0], total[1], total[2]);
    store(static_cast<S*>(a.value) + b, T(statistics[b].loss));
  });
}

// The slopes of one plane after another, summed along x and y. Along z, `spread` has to be summed
// and `turned` has to be subtracted.
template <class S>
class EdgePlanes {
  using T = Accumulate<S>;

 public:
  explicit EdgePlanes(const EdgesArgs& a)
      : a_(a),
        s_(a.shape),
        plane_(int64_t(a.shape.h) * a.shape.w),
        own_(a.shape.w),
        other_(a.shape.w),
        data_(size_t(6) * plane_ + 9 * size_t(a.shape.w) + 3 * (size_t(a.shape.w) + 2)) {}

  // Computes plane z of an item, which is kept until plane z + 3 is computed.
  void add(const void* own, const void* other, int64_t item, int32_t z, const EdgeSlope<T>& slope) {
    for (int32_t y = 0; y < s_.h; ++y) {
      own_.read(item_of<S>(own, item, a_), s_, z, y);
      other_.read(item_of<S>(other, item, a_), s_, z, y);
      slopes(item / a_.channels * s_.voxels() + (int64_t(z) * s_.h + y) * s_.w, slope);
      sum_along_x(y);
      if (y > 0) sum_along_y(z, y - 1);
    }
    sum_along_y(z, s_.h - 1);
  }

  // Stores the gradient of plane z. The planes beside it must have been computed.
  void store_plane(int32_t z, S* __restrict out) const {
    const bool first = z == 0, last = z == s_.d - 1;
    const T *below = spread(first ? z : z - 1), *here = spread(z),
            *above = spread(last ? z : z + 1);
    const T *low = turned(first ? z : z - 1), *high = turned(last ? z : z + 1);
    const T low_sign = first ? T(-1) : T(1), high_sign = last ? T(-1) : T(1);
    for (int64_t i = 0; i < plane_; ++i) {
      store(out + i, below[i] + here[i] + above[i] + (low_sign * low[i] - high_sign * high[i]));
    }
  }

 private:
  // The slopes of a row, with the values that count beyond its ends.
  void slopes(int64_t row, const EdgeSlope<T>& slope) {
    alignas(64) T weight[kRowVoxels];
    T *x = padded(0), *y = padded(1), *z = padded(2);
    in_blocks(s_.w, [&](int32_t first, int n) {
      read_weights<S>(a_.mask, row + first, n, weight);
      const T* __restrict own = own_.root + first;
      const T* __restrict other = other_.root + first;
      for (int i = 0; i < n; ++i) weight[i] = slope(own[i], other[i], weight[i]);
      multiply(weight, own_.x + first, n, x + 1 + first);
      multiply(weight, own_.y + first, n, y + 1 + first);
      multiply(weight, own_.z + first, n, z + 1 + first);
    });
    x[0] = -x[1], x[s_.w + 1] = -x[s_.w];
    y[0] = y[1], y[s_.w + 1] = y[s_.w];
    z[0] = z[1], z[s_.w + 1] = z[s_.w];
  }
  // Where k is 0 the product is 0, even if the other factor is NaN.
  static void multiply(const T* __restrict k, const T* __restrict by, int n, T* __restrict out) {
    for (int i = 0; i < n; ++i) out[i] = k[i] == T(0) ? T(0) : k[i] * by[i];
  }

  void sum_along_x(int32_t row) {
    const T* __restrict x = padded(0);
    const T* __restrict y = padded(1);
    const T* __restrict z = padded(2);
    T* __restrict to_x = kept(0, row);
    T* __restrict to_y = kept(1, row);
    T* __restrict to_z = kept(2, row);
    for (int32_t i = 0; i < s_.w; ++i) {
      to_x[i] = x[i] - x[i + 2];
      to_y[i] = y[i] + y[i + 1] + y[i + 2];
      to_z[i] = z[i] + z[i + 1] + z[i + 2];
    }
  }

  void sum_along_y(int32_t z, int32_t row) {
    const bool first = row == 0, last = row == s_.h - 1;
    const int32_t before = first ? row : row - 1, after = last ? row : row + 1;
    const T low_sign = first ? T(-1) : T(1), high_sign = last ? T(-1) : T(1);
    const T *x0 = kept(0, before), *x1 = kept(0, row), *x2 = kept(0, after);
    const T *y0 = kept(1, before), *y2 = kept(1, after);
    const T *z0 = kept(2, before), *z1 = kept(2, row), *z2 = kept(2, after);
    T* __restrict to_spread = spread(z) + int64_t(row) * s_.w;
    T* __restrict to_turned = turned(z) + int64_t(row) * s_.w;
    for (int32_t i = 0; i < s_.w; ++i) {
      to_spread[i] = x0[i] + x1[i] + x2[i] + (low_sign * y0[i] - high_sign * y2[i]);
      to_turned[i] = z0[i] + z1[i] + z2[i];
    }
  }

  // The parts of data_: six planes, nine rows, and three padded rows.
  T* at(int64_t offset) const { return const_cast<T*>(data_.data()) + offset; }
  T* spread(int32_t z) const { return at(z % 3 * plane_); }
  T* turned(int32_t z) const { return at((3 + z % 3) * plane_); }
  T* kept(int k, int32_t row) const { return at(6 * plane_ + (3 * k + row % 3) * int64_t(s_.w)); }
  T* padded(int k) const { return at(6 * plane_ + 9 * int64_t(s_.w) + k * (int64_t(s_.w) + 2)); }

  const EdgesArgs& a_;
  const Shape3 s_;
  int64_t plane_;
  EdgeRow<T> own_, other_;
  std::vector<T> data_;
};

template <class S>
void gradient(const EdgesArgs& a, bool fixed, const Parallel& parallel) {
  using T = Accumulate<S>;
  const Shape3& s = a.shape;
  const void *own = fixed ? a.fixed : a.moving, *other = fixed ? a.moving : a.fixed;
  S* out = static_cast<S*>(fixed ? a.grad_fixed : a.grad_moving);
  const auto* statistics = reinterpret_cast<const EdgeStatistics*>(a.statistics);
  const int64_t grain = 2 * planes_per_task(s, kVoxelsPerTask);
  parallel(a.items() * s.d, grain, [&](int64_t begin, int64_t end) {
    EdgePlanes<S> planes(a);
    // Each turn handles one item, or the part of it that belongs to this task.
    while (begin < end) {
      const int64_t item = begin / s.d, b = item / a.channels;
      const int32_t from = int32_t(begin - item * s.d);
      const int32_t to = int32_t(std::min<int64_t>(s.d, end - item * s.d));
      const EdgeSlope<T> slope(statistics[b], load(static_cast<const S*>(a.grad)[b]), fixed);
      int32_t next = std::max(0, from - 1);
      for (int32_t z = from; z < to; ++z) {
        for (; next <= std::min(s.d - 1, z + 1); ++next) planes.add(own, other, item, next, slope);
        planes.store_plane(z, out + item * s.voxels() + z * (int64_t(s.h) * s.w));
      }
      begin += to - from;
    }
  });
}

}  // namespace

int64_t edges_sums_cpu(const EdgesArgs& a) { return 3 * a.items() * a.shape.d; }

void edges_forward_cpu(const EdgesArgs& args, const Parallel& parallel) {
  with_scalar(args.scalar, [&](auto s) { forward<decltype(s)>(args, parallel); });
}

void edges_backward_cpu(const EdgesArgs& args, const Parallel& parallel) {
  with_scalar(args.scalar, [&](auto s) {
    if (args.grad_moving != nullptr) gradient<decltype(s)>(args, false, parallel);
    if (args.grad_fixed != nullptr) gradient<decltype(s)>(args, true, parallel);
  });
}

}  // namespace deepatlas
