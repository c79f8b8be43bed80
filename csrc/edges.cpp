// edge_difference on the CPU, row by row. Along z and y, each sum of three rows is taken once for all
// rows that share it; the sums along x come last. The backward pass sums the slopes of a plane along
// x and y, and keeps three such planes for the sums along z.
//
// The sums along x read values beside those that were just written, and a processor can hand on what
// still waits to be stored only to a load at the same address. So every stage along x runs one row
// behind the stage that writes for it.
#include "edges.h"

#include <vector>

#include "rows.h"

namespace deepatlas {
namespace {

// Rows of scratch. Each begins at a cache line, and has room for a value before the first voxel and
// for one after the last.
template <class T>
class Rows {
 public:
  Rows(int count, int32_t width)
      : stride_(2 + int64_t(width) / kLine), data_(size_t(count * stride_) + 1) {}
  Rows(const Rows&) = delete;
  T* operator[](int row) { return data_[size_t(1 + row * stride_)].values; }

 private:
  static constexpr int kLine = 64 / sizeof(T);
  struct alignas(64) Line {
    T values[kLine];
  };
  int64_t stride_;
  std::vector<Line> data_;
};

// What the differences of a row are made of: sums over the nine rows around it along z and y, for
// the differences along x, y and z. The first and the last voxel are repeated beyond the ends.
template <class T>
struct EdgeSums {
  const T *__restrict x, *__restrict y, *__restrict z;

  // The differences of voxel i, not divided by 18.
  DA_HD Vec3<T> operator()(int32_t i) const {
    return {x[i + 1] - x[i - 1], y[i - 1] + y[i] + y[i + 1], z[i - 1] + z[i] + z[i + 1]};
  }
  EdgeSums from(int32_t first) const { return {x + first, y + first, z + first}; }
};

// Reads a plane of an image row by row.
template <class S>
class EdgeReader {
  using T = Accumulate<S>;

 public:
  explicit EdgeReader(const Shape3& shape) : s_(shape), along_z_(6, shape.w), sums_(6, shape.w) {}

  void begin(const S* image, int32_t z) {
    const int64_t plane = int64_t(s_.h) * s_.w;
    below_ = image + (z > 0 ? z - 1 : 0) * plane;
    here_ = image + z * plane;
    above_ = image + (z + 1 < s_.d ? z + 1 : z) * plane;
  }
  // Reads row y of the plane, and sums row y - 1. Called for the rows 0 to h in order, where row h
  // does not exist.
  void read(int32_t y) {
    if (y < s_.h) sum_along_z(y);
    if (y > 0) sum_along_y(y - 1);
  }
  // The sums of row y, which are kept until row y + 2 is summed.
  EdgeSums<T> sums(int32_t y) {
    const int at = y % 2 * 3;
    return {sums_[at], sums_[at + 1], sums_[at + 2]};
  }

 private:
  // The sum and the difference of the three rows of an image.
  void sum_along_z(int32_t y) {
    const int64_t row = int64_t(y) * s_.w;
    const S* __restrict below = below_ + row;
    const S* __restrict here = here_ + row;
    const S* __restrict above = above_ + row;
    T* __restrict sum = along_z_[y % 3];
    T* __restrict change = along_z_[3 + y % 3];
    for (int32_t i = 0; i < s_.w; ++i) {
      const T a = load(below[i]), b = load(above[i]);
      sum[i] = a + load(here[i]) + b;
      change[i] = b - a;
    }
  }
  void sum_along_y(int32_t y) {
    const int before = (y > 0 ? y - 1 : 0) % 3, here = y % 3, after = (y + 1 < s_.h ? y + 1 : y) % 3;
    const T* __restrict a = along_z_[before];
    const T* __restrict b = along_z_[here];
    const T* __restrict c = along_z_[after];
    const T* __restrict da = along_z_[3 + before];
    const T* __restrict db = along_z_[3 + here];
    const T* __restrict dc = along_z_[3 + after];
    const int at = y % 2 * 3;
    T* __restrict px = sums_[at];
    T* __restrict py = sums_[at + 1];
    T* __restrict pz = sums_[at + 2];
    for (int32_t i = 0; i < s_.w; ++i) {
      px[i] = a[i] + b[i] + c[i];
      py[i] = c[i] - a[i];
      pz[i] = da[i] + db[i] + dc[i];
    }
    for (T* row : {px, py, pz}) row[-1] = row[0], row[s_.w] = row[s_.w - 1];
  }

  const Shape3 s_;
  const S *below_, *here_, *above_;
  Rows<T> along_z_, sums_;
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
    EdgeReader<S> moving(s), fixed(s);
    alignas(64) T weight[kRowVoxels];
    PlaneSums<T> sums(s.w);
    for (int64_t plane = begin; plane < end; ++plane) {
      const int64_t item = plane / s.d;
      const int32_t z = int32_t(plane - item * s.d);
      moving.begin(item_of<S>(a.moving, item, a), z);
      fixed.begin(item_of<S>(a.fixed, item, a), z);
      for (int32_t next = 0; next < s.h + 2; ++next) {
        if (next <= s.h) moving.read(next), fixed.read(next);
        if (next < 2) continue;
        const int32_t y = next - 2;
        const int64_t row = item / a.channels * s.voxels() + (int64_t(z) * s.h + y) * s.w;
        in_blocks(s.w, [&](int32_t x, int n) {
          read_weights<S>(a.mask, row + x, n, weight);
          const EdgeSums<T> m = moving.sums(y).from(x), f = fixed.sums(y).from(x);
          sums.add(n, [=, &weight](int i, T& by_difference, T& by_power, T& by_weight) {
            const T w = weight[i], root = edge_root(f(i));
            const T change = edge_root(m(i)) - root, edge = edge_of(root);
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
        own_(a.shape),
        other_(a.shape),
        weights_(1, a.shape.w),
        slopes_(6, a.shape.w),
        kept_(9, a.shape.w),
        planes_(size_t(6) * plane_) {}

  // Computes plane z of an item, which is kept until plane z + 3 is computed.
  void add(const void* own, const void* other, int64_t item, int32_t z, const EdgeSlope<T>& slope) {
    own_.begin(item_of<S>(own, item, a_), z);
    other_.begin(item_of<S>(other, item, a_), z);
    const int64_t first = item / a_.channels * s_.voxels() + z * plane_;
    for (int32_t next = 0; next < s_.h + 3; ++next) {
      if (next <= s_.h) own_.read(next), other_.read(next);
      if (next >= 2 && next < s_.h + 2) slopes(next - 2, first + int64_t(next - 2) * s_.w, slope);
      if (next >= 3) sum_along_x(next - 3);
      if (next >= 4) sum_along_y(z, next - 4);
    }
    sum_along_y(z, s_.h - 1);
  }

  // Stores the gradient of plane z. The planes beside it must have been computed.
  void store_plane(int32_t z, S* __restrict out) const {
    const bool first = z == 0, last = z == s_.d - 1;
    const T* __restrict below = spread(first ? z : z - 1);
    const T* __restrict here = spread(z);
    const T* __restrict above = spread(last ? z : z + 1);
    const T* __restrict low = turned(first ? z : z - 1);
    const T* __restrict high = turned(last ? z : z + 1);
    const T low_sign = first ? T(-1) : T(1), high_sign = last ? T(-1) : T(1);
    for (int64_t i = 0; i < plane_; ++i) {
      store(out + i, below[i] + here[i] + above[i] + (low_sign * low[i] - high_sign * high[i]));
    }
  }

 private:
  // The slopes of row y, whose weights begin at `voxel`, with the values that count beyond its ends.
  void slopes(int32_t row, int64_t voxel, const EdgeSlope<T>& slope) {
    T* __restrict weight = weights_[0];
    read_weights<S>(a_.mask, voxel, s_.w, weight);
    const EdgeSums<T> own = own_.sums(row), other = other_.sums(row);
    T* __restrict x = padded(0, row);
    T* __restrict y = padded(1, row);
    T* __restrict z = padded(2, row);
    const EdgeSlope<T> by = slope;
    for (int32_t i = 0; i < s_.w; ++i) {
      const Vec3<T> d = own(i);
      const T k = by(edge_root(d), edge_root(other(i)), weight[i]);
      x[i] = product(k, d.x);
      y[i] = product(k, d.y);
      z[i] = product(k, d.z);
    }
    const int32_t w = s_.w;
    x[-1] = -x[0], x[w] = -x[w - 1];
    y[-1] = y[0], y[w] = y[w - 1];
    z[-1] = z[0], z[w] = z[w - 1];
  }
  // Where k is 0 the product is 0, even if the other factor is NaN.
  DA_HD static T product(T k, T by) { return k == T(0) ? T(0) : k * by; }

  void sum_along_x(int32_t row) {
    const T* __restrict x = padded(0, row);
    const T* __restrict y = padded(1, row);
    const T* __restrict z = padded(2, row);
    T* __restrict to_x = kept(0, row);
    T* __restrict to_y = kept(1, row);
    T* __restrict to_z = kept(2, row);
    for (int32_t i = 0; i < s_.w; ++i) {
      to_x[i] = x[i - 1] - x[i + 1];
      to_y[i] = y[i - 1] + y[i] + y[i + 1];
      to_z[i] = z[i - 1] + z[i] + z[i + 1];
    }
  }

  void sum_along_y(int32_t z, int32_t row) {
    const bool first = row == 0, last = row == s_.h - 1;
    const int32_t before = first ? row : row - 1, after = last ? row : row + 1;
    const T low_sign = first ? T(-1) : T(1), high_sign = last ? T(-1) : T(1);
    const T* __restrict x0 = kept(0, before);
    const T* __restrict x1 = kept(0, row);
    const T* __restrict x2 = kept(0, after);
    const T* __restrict y0 = kept(1, before);
    const T* __restrict y2 = kept(1, after);
    const T* __restrict z0 = kept(2, before);
    const T* __restrict z1 = kept(2, row);
    const T* __restrict z2 = kept(2, after);
    T* __restrict to_spread = spread(z) + int64_t(row) * s_.w;
    T* __restrict to_turned = turned(z) + int64_t(row) * s_.w;
    for (int32_t i = 0; i < s_.w; ++i) {
      to_spread[i] = x0[i] + x1[i] + x2[i] + (low_sign * y0[i] - high_sign * y2[i]);
      to_turned[i] = z0[i] + z1[i] + z2[i];
    }
  }

  T* spread(int32_t z) const { return const_cast<T*>(planes_.data()) + z % 3 * plane_; }
  T* turned(int32_t z) const { return spread(0) + (3 + z % 3) * plane_; }
  T* padded(int k, int32_t row) { return slopes_[3 * (row % 2) + k]; }
  T* kept(int k, int32_t row) { return kept_[3 * (row % 3) + k]; }

  const EdgesArgs& a_;
  const Shape3 s_;
  int64_t plane_;
  EdgeReader<S> own_, other_;
  Rows<T> weights_, slopes_, kept_;
  std::vector<T> planes_;
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
