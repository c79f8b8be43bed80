// edge_difference as CUDA runs it: functors of one voxel, reducers for reduce.cuh, and the order of
// their launches. `Launch` is the way of launching: edges.cu queues kernels, tests/emu runs them on
// the host. Every sum has a fixed order, so the results are deterministic.
#pragma once

#include "edges.h"

namespace deepatlas {
namespace edges {

// The largest number of elements of a tensor.
inline int64_t most_elements(const EdgesArgs& a) { return a.items() * 3 * a.shape.voxels(); }

// The number of pieces that the sums over a channel are divided into.
inline int64_t channel_pieces(const EdgesArgs& a) {
  return pieces_of(a.shape.voxels(), kReducedPerBlock);
}

// The offsets to the neighbours of a voxel along one axis. Beyond a border the neighbour is the
// voxel itself.
template <class Index>
struct Beside {
  Index low, high;
  DA_HD Beside(int32_t position, int32_t size, Index stride)
      : low(position > 0 ? -stride : Index(0)), high(position + 1 < size ? stride : Index(0)) {}
  DA_HD Index operator[](int side) const { return side < 0 ? low : side > 0 ? high : Index(0); }
  // The sign of a neighbour in the transposed difference. Beyond a border the sign is the opposite
  // one.
  DA_HD int turn(int side) const {
    return side < 0 ? (low != Index(0) ? 1 : -1) : (high != Index(0) ? -1 : 1);
  }
};

// The neighbours of a voxel along the three axes.
template <class Index>
struct Around {
  Beside<Index> z, y, x;
  DA_HD Around(const Place& p, const Shape3& s)
      : z(p.z, s.d, Index(s.h) * Index(s.w)), y(p.y, s.h, Index(s.w)), x(p.x, s.w, Index(1)) {}
};

// The differences of the voxel that p points to, not divided by 18.
template <class S, class Index>
DA_HD Vec3<Accumulate<S>> differences(const S* p, const Around<Index>& around) {
  using T = Accumulate<S>;
  Vec3<T> sum{T(0), T(0), T(0)};
  for (int dz = -1; dz <= 1; ++dz) {
    for (int dy = -1; dy <= 1; ++dy) {
      const S* row = p + around.z[dz] + around.y[dy];
      const T low = load(row[around.x.low]), high = load(row[around.x.high]);
      const T three = low + load(row[0]) + high;
      sum.x += high - low;
      if (dy != 0) sum.y += T(dy) * three;
      if (dz != 0) sum.z += T(dz) * three;
    }
  }
  return sum;
}

// The images of a batch as the functors read them.
template <class S, class Index>
struct Images {
  using T = Accumulate<S>;
  const S *moving, *fixed, *mask;
  Shape3 shape;
  Index voxels, channels;
  explicit Images(const EdgesArgs& a)
      : moving(static_cast<const S*>(a.moving)),
        fixed(static_cast<const S*>(a.fixed)),
        mask(static_cast<const S*>(a.mask)),
        shape(a.shape),
        voxels(Index(a.shape.voxels())),
        channels(Index(a.channels)) {}
  DA_HD T weight(Index item, Index voxel) const {
    return mask ? load(mask[item / channels * voxels + voxel]) : T(1);
  }
};

// Weighted sums: of the squared difference, of the squared edges of the fixed image, and of the
// weights.
struct Sums {
  double difference, power, weight;
};
DA_HD Sums join_sums(const Sums& a, const Sums& b) {
  return {a.difference + b.difference, a.power + b.power, a.weight + b.weight};
}

// Reducer: the sums of one piece of a channel, [items, pieces].
template <class S, class Index>
struct SumsOfPiece {
  using Value = Sums;
  using T = Accumulate<S>;
  Images<S, Index> images;
  int64_t pieces;
  Sums* partial;
  explicit SumsOfPiece(const EdgesArgs& a)
      : images(a), pieces(channel_pieces(a)), partial(reinterpret_cast<Sums*>(a.sums)) {}

  DA_HD Value piece(int64_t block, int thread, int threads) const {
    const Index item = Index(block / pieces);
    const Index first = Index(block - block / pieces * pieces) * Index(kReducedPerBlock);
    const Index rest = images.voxels - first;
    const Index end = first + (rest < Index(kReducedPerBlock) ? rest : Index(kReducedPerBlock));
    Sums sums{0, 0, 0};
    for (Index voxel = first + thread; voxel < end; voxel += threads) {
      const T w = images.weight(item, voxel);
      if (!(w > T(0))) {
        sums.weight += double(w);
        continue;
      }
      const Around<Index> around(place_of(voxel, images.shape), images.shape);
      const Index at = item * images.voxels + voxel;
      const T m = edge_root(differences(images.moving + at, around));
      const T f = edge_root(differences(images.fixed + at, around));
      const T change = m - f, edge = edge_of(f);
      sums = join_sums(sums, {double(w * change * change), double(w * edge * edge), double(w)});
    }
    return sums;
  }
  DA_HD Value join(const Value& p, const Value& q) const { return join_sums(p, q); }
  DA_HD void finish(int64_t block, const Value& value) const { partial[block] = value; }
};

// Reducer: the loss and the statistics of each batch item from the sums of its pieces.
template <class S>
struct SumsOfItem {
  using Value = Sums;
  const Sums* partial;
  int64_t pieces;
  EdgeStatistics* statistics;
  S* value;
  explicit SumsOfItem(const EdgesArgs& a)
      : partial(reinterpret_cast<const Sums*>(a.sums)),
        pieces(a.channels * channel_pieces(a)),
        statistics(reinterpret_cast<EdgeStatistics*>(a.statistics)),
        value(static_cast<S*>(a.value)) {}

  DA_HD Value piece(int64_t item, int thread, int threads) const {
    Sums all{0, 0, 0};
    for (int64_t i = thread; i < pieces; i += threads) {
      all = join_sums(all, partial[item * pieces + i]);
    }
    return all;
  }
  DA_HD Value join(const Value& p, const Value& q) const { return join_sums(p, q); }
  DA_HD void finish(int64_t item, const Value& sums) const {
    const EdgeStatistics s = edge_statistics(sums.difference, sums.power, sums.weight);
    statistics[item] = s;
    store(value + item, Accumulate<S>(s.loss));
  }
};

// The gradient by the differences of each voxel, [items, 3, voxels]: one call for each voxel.
template <class S, class Index>
struct Slopes {
  using T = Accumulate<S>;
  Images<S, Index> images;
  bool fixed;
  const S* grad;
  const EdgeStatistics* statistics;
  T* slopes;
  Slopes(const EdgesArgs& a, bool of_fixed)
      : images(a),
        fixed(of_fixed),
        grad(static_cast<const S*>(a.grad)),
        statistics(reinterpret_cast<const EdgeStatistics*>(a.statistics)),
        slopes(static_cast<T*>(a.slopes)) {}

  DA_HD void operator()(Index i) const {
    const Index item = i / images.voxels, voxel = i - item * images.voxels;
    const Index b = item / images.channels;
    const T w = images.weight(item, voxel);
    Vec3<T> slope{T(0), T(0), T(0)};
    if (w > T(0)) {
      const Around<Index> around(place_of(voxel, images.shape), images.shape);
      const Vec3<T> own = differences((fixed ? images.fixed : images.moving) + i, around);
      const T other = edge_root(differences((fixed ? images.moving : images.fixed) + i, around));
      const EdgeSlope<T> by(statistics[b], double(load(grad[b])), fixed);
      const T k = by(edge_root(own), other, w);
      if (k != T(0)) slope = own * k;
    }
    T* to = slopes + item * 3 * images.voxels + voxel;
    to[0] = slope.x;
    to[images.voxels] = slope.y;
    to[2 * images.voxels] = slope.z;
  }
};

// The gradient of an image from the gradient by the differences: one call for each voxel.
template <class S, class Index>
struct Gather {
  using T = Accumulate<S>;
  Shape3 shape;
  Index voxels;
  const T* slopes;
  S* target;
  Gather(const EdgesArgs& a, bool of_fixed)
      : shape(a.shape),
        voxels(Index(a.shape.voxels())),
        slopes(static_cast<const T*>(a.slopes)),
        target(static_cast<S*>(of_fixed ? a.grad_fixed : a.grad_moving)) {}

  DA_HD void operator()(Index i) const {
    const Index item = i / voxels, voxel = i - item * voxels;
    const Around<Index> around(place_of(voxel, shape), shape);
    const T* p = slopes + item * 3 * voxels + voxel;
    T sum = T(0);
    for (int dz = -1; dz <= 1; ++dz) {
      for (int dy = -1; dy <= 1; ++dy) {
        for (int dx = -1; dx <= 1; ++dx) {
          const T* q = p + around.z[dz] + around.y[dy] + around.x[dx];
          if (dx != 0) sum += T(around.x.turn(dx)) * q[0];
          if (dy != 0) sum += T(around.y.turn(dy)) * q[voxels];
          if (dz != 0) sum += T(around.z.turn(dz)) * q[2 * voxels];
        }
      }
    }
    store(target + i, sum);
  }
};

// ---- the order of the launches ------------------------------------------------------------------

template <class S, class Index, class Launch>
const char* device_forward(const EdgesArgs& a, const Launch& launch) {
  const char* error = launch.reduce(a.items() * channel_pieces(a), SumsOfPiece<S, Index>(a));
  return error ? error : launch.reduce(a.batch, SumsOfItem<S>(a));
}

template <class S, class Index, class Launch>
const char* device_backward(const EdgesArgs& a, const Launch& launch) {
  const int64_t count = a.items() * a.shape.voxels();
  for (const bool fixed : {false, true}) {
    if ((fixed ? a.grad_fixed : a.grad_moving) == nullptr) continue;
    const char* error = launch.template each<Index>(count, Slopes<S, Index>(a, fixed));
    if (!error) error = launch.template each<Index>(count, Gather<S, Index>(a, fixed));
    if (error) return error;
  }
  return nullptr;
}

}  // namespace edges
}  // namespace deepatlas
