// Inversion on the CPU: blocks of voxels divided between threads, and the deterministic scatter.
#include <algorithm>
#include <vector>

#include "invert_functors.h"
#include "invert_slabs.h"

namespace deepatlas {
namespace {

using namespace invert;

// Packs g = S c_moving as the functor Pack does, a row at a time.
template <class S>
void pack(const InvertArgs& a, const Parallel& parallel) {
  using T = Accumulate<S>;
  const Shape3 packed = packed_shape(a.in);
  const int64_t voxels = a.in.voxels(), rows = int64_t(a.in.d) * a.in.h;
  parallel(a.batch * rows, std::max(1, 8192 / packed.w), [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const int64_t b = row / rows;
      const auto matrix = Matrix3<T>::read(static_cast<const T*>(a.matrix) + 9 * b);
      const S* x = static_cast<const S*>(a.moving) + b * 3 * voxels + (row - b * rows) * a.in.w;
      const S *y = x + voxels, *z = y + voxels;
      Packed<T>* __restrict to = static_cast<Packed<T>*>(a.packed) + row * packed.w;
      for (int32_t i = 0; i < a.in.w; ++i) {
        const Vec3<T> g = matrix(Vec3<T>{load(x[i]), load(y[i]), load(z[i])});
        to[i] = {g.x, g.y, g.z, T(0)};
      }
      if (a.in.w == 1) to[1] = to[0];
    }
  });
}

template <class T>
void store_lanes(const Lanes<T>& lanes, int64_t voxels, int count, T* to) {
  std::copy_n(lanes.x, count, to);
  std::copy_n(lanes.y, count, to + voxels);
  std::copy_n(lanes.z, count, to + 2 * voxels);
}

template <class S>
void forward(const InvertArgs& a, const Parallel& parallel) {
  using T = Accumulate<S>;
  const MovingGrid<T> grid(a.in);
  const int64_t voxels = a.out.voxels();
  pack<S>(a, parallel);
  for_each_block(
      parallel, a.batch, a.out, kBlocksPerTask, [&](int64_t b, int64_t, int64_t n, int count) {
        const PackedMap<T> map(a.packed, grid, b);
        const auto matrix = Matrix3<T>::read(static_cast<const T*>(a.matrix) + 9 * b);
        Lanes<T> identity, target;
        Work<T> work;
        place(a.out, n, count, identity);
        aim(static_cast<const S*>(a.fixed) + b * 3 * voxels + n, voxels, matrix, count, target);
        Lanes<T> u = identity;
        solve(grid, map, a, count, target, u, work);

        locate(grid, u, padded_lanes(count), work.cells);
        read(map, work.cells, count, work.value);
        plain_steps(work.cells, work.value, target, count, work.next);
        T* residual = static_cast<T*>(a.residual) + b * voxels + n;
        bool* valid = a.valid + b * voxels + n;
        const bool ruled = a.ruler != nullptr;
        const auto ruler = Matrix3<T>::read(ruled ? static_cast<const T*>(a.ruler) + 9 * b
                                                  : static_cast<const T*>(a.matrix) + 9 * b);
        for (int i = 0; i < count; ++i) {
          const Vec3<T> rest = work.next[i] - u[i];
          const Vec3<T> left = ruled ? ruler(rest) : rest;
          residual[i] = length(scaled(left, grid.half));
          valid[i] = inside(u[i]) & (residual[i] < T(1));
          identity.set(i, u[i] - identity[i]);
        }
        store_lanes(identity, voxels, count, static_cast<T*>(a.displacement) + b * 3 * voxels + n);
      });
}

// ---- the implicit gradient ----------------------------------------------------------------------

template <class T>
void load_lanes(const T* from, int64_t voxels, int count, Lanes<T>& lanes) {
  std::copy_n(from, count, lanes.x);
  std::copy_n(from + voxels, count, lanes.y);
  std::copy_n(from + 2 * voxels, count, lanes.z);
  for (int i = count; i < padded_lanes(count); ++i) lanes.set(i, {T(0), T(0), T(0)});
}

template <class T>
void to_quads(const Lanes<T>& lanes, int count, Quads<T>& quads) {
  for (int i = 0; i < count; ++i) {
    quads.at[i][0] = lanes.x[i];
    quads.at[i][1] = lanes.y[i];
    quads.at[i][2] = lanes.z[i];
    quads.at[i][3] = T(0);
  }
}

// The places of the solution of a block on the packed map.
template <class T>
void locate_solution(const InvertArgs& a, const MovingGrid<T>& grid, int64_t b, int64_t n,
                     int count, Cells<T>& cells) {
  const int64_t voxels = a.out.voxels();
  Lanes<T> identity, u;
  place(a.out, n, count, identity);
  load_lanes(static_cast<const T*>(a.displacement) + b * 3 * voxels + n, voxels, count, u);
  for (int i = 0; i < padded_lanes(count); ++i) u.set(i, identity[i] + u[i]);
  locate(grid, u, padded_lanes(count), cells);
}

template <class S>
void implicit(const InvertArgs& a, const Parallel& parallel) {
  using T = Accumulate<S>;
  const MovingGrid<T> grid(a.in);
  const int64_t voxels = a.out.voxels(), blocks = blocks_of(a.out);
  std::vector<Span> spans(a.batch * blocks);
  pack<S>(a, parallel);
  for_each_block(
      parallel, a.batch, a.out, kBlocksPerTask,
      [&](int64_t b, int64_t block, int64_t n, int count) {
        const PackedMap<T> map(a.packed, grid, b);
        const auto matrix = Matrix3<T>::read(static_cast<const T*>(a.matrix) + 9 * b);
        Work<T> work;
        locate_solution(a, grid, b, n, count, work.cells);
        read(map, work.cells, count, work.value, work.slopes);
        load_lanes(static_cast<const T*>(a.grad) + b * 3 * voxels + n, voxels, count, work.next);
        const bool* valid = a.valid + b * voxels + n;
        for (int i = 0; i < count; ++i) {
          work.next.set(i, matrix.transposed(
                               implicit_weight(grid, valid[i], work.next[i], work.slopes.by_x[i],
                                               work.slopes.by_y[i], work.slopes.by_z[i])));
        }
        store_lanes(work.next, voxels, count, static_cast<T*>(a.grad_fixed) + b * 3 * voxels + n);
        spans[b * blocks + block] = {a.in.d, 0};
        spans[b * blocks + block].add(work.cells.z, count, a.in.d);
      });
  if (a.grad_moving == nullptr) return;
  // The packed map is not needed any more.
  T* scratch = static_cast<T*>(a.packed);
  for_each_slab(
      parallel, a, spans, scratch,
      [&](int64_t b, int64_t, int64_t n, int count, int32_t low, int32_t high) {
        Cells<T> cells;
        Lanes<T> weight;
        Quads<T> quads;
        locate_solution(a, grid, b, n, count, cells);
        load_lanes(static_cast<const T*>(a.grad_fixed) + b * 3 * voxels + n, voxels, count, weight);
        to_quads(weight, count, quads);
        // Where there is no gradient, the place may be NaN.
        for (int i = 0; i < count; ++i) {
          cells.z[i] = is_zero(weight[i]) ? kNowhere : cells.z[i];
        }
        const PackedMap<T> map(scratch, grid, b);
        scatter(scratch + 4 * b * grid.packed.voxels(), map, cells, quads, count, low, high);
      });
}

// ---- the unrolled gradient ----------------------------------------------------------------------

// The path of one block: the last kTrail places in `trail`, and the number of steps of each lane.
template <class T>
struct Path {
  std::vector<Lanes<T>> trail;
  Lanes<T> identity, target, u, incoming, sum;
  Quads<T> weight;
  Work<T> work;
  int32_t steps[kBlockVoxels];
  explicit Path(int iterations) : trail(std::min(iterations, kTrail)) {}
};

template <class S, class T>
void start(const InvertArgs& a, int64_t b, int64_t n, int count, Path<T>& path) {
  const int64_t voxels = a.out.voxels();
  place(a.out, n, count, path.identity);
  aim(static_cast<const S*>(a.fixed) + b * 3 * voxels + n, voxels,
      Matrix3<T>::read(static_cast<const T*>(a.matrix) + 9 * b), count, path.target);
}

// Takes up to `end` steps from the identity, and returns the largest number of steps of a lane.
template <class T>
int walk(const InvertArgs& a, const MovingGrid<T>& grid, const PackedMap<T>& map, int end,
         int count, Path<T>& path, Span* span) {
  const bool stops = a.tolerance > 0;
  path.u = path.identity;
  std::fill_n(path.steps, kBlockVoxels, end);
  int moving = count, k = 0;
  for (; k < end && moving > 0; ++k) {
    path.trail[k % path.trail.size()] = path.u;
    advance(grid, map, false, stops, path.target, count, path.u, path.work);
    if (span != nullptr) span->add(path.work.cells.z, count, a.in.d);
    for (int i = 0; i < count && stops; ++i) {
      if (path.steps[i] <= k || path.work.moved[i] >= T(a.tolerance)) continue;
      path.steps[i] = k + 1;
      --moving;
    }
  }
  return k;
}

// Reverses step k, as UnrolledBackward does.
template <class T>
void reverse_step(const MovingGrid<T>& grid, const PackedMap<T>& map, int k, int count, int32_t low,
                  int32_t high, T* sums, Path<T>& path) {
  const Lanes<T>& u = path.trail[k % path.trail.size()];
  Work<T>& work = path.work;
  locate(grid, u, padded_lanes(count), work.cells);
  bool active[kBlockVoxels], placed[kBlockVoxels];
  for (int i = 0; i < count; ++i) {
    const Vec3<T> in = path.incoming[i], f = work.cells.fraction[i];
    active[i] = (k < path.steps[i]) & !is_zero(in);
    placed[i] = active[i] & (f.x + f.y + f.z == f.x + f.y + f.z);
    work.cells.z[i] = placed[i] ? work.cells.z[i] : kNowhere;
    path.sum.x[i] += active[i] ? in.x : T(0);
    path.sum.y[i] += active[i] ? in.y : T(0);
    path.sum.z[i] += active[i] ? in.z : T(0);
  }
  to_quads(path.incoming, count, path.weight);
  scatter(sums, map, work.cells, path.weight, count, low, high);
  // The path begins at the identity, which has no gradient.
  if (k == 0) return;
  read(map, work.cells, count, work.value, work.slopes);
  const Slopes<T>& slopes = work.slopes;
  for (int i = 0; i < count; ++i) {
    const Vec3<T> in = path.incoming[i];
    const auto slope = [&](const Vec3<T>& by) { return placed[i] ? dot(by, in) : T(0); };
    const T x = reversed(in.x, slope(slopes.by_x[i]), grid.half.x, u.x[i], grid.limit.x);
    const T y = reversed(in.y, slope(slopes.by_y[i]), grid.half.y, u.y[i], grid.limit.y);
    const T z = reversed(in.z, slope(slopes.by_z[i]), grid.half.z, u.z[i], grid.limit.z);
    path.incoming.set(i, {active[i] ? x : in.x, active[i] ? y : in.y, active[i] ? z : in.z});
  }
}

// Turns the gradient by S c into that by the map c: see Finish.
template <class S>
void finish(const InvertArgs& a, const Shape3& shape, const void* map, void* grad, void* partial,
            const Parallel& parallel) {
  const Finish<S, int64_t> functor(a, shape, kAlongRows, map, grad, partial);
  parallel(a.batch * functor.lines.count, 64, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) functor(i);
  });
}

template <class S>
void unrolled(const InvertArgs& a, const Parallel& parallel) {
  using T = Accumulate<S>;
  const MovingGrid<T> grid(a.in);
  const int64_t voxels = a.out.voxels(), blocks = blocks_of(a.out);
  pack<S>(a, parallel);
  std::vector<Span> spans(a.batch * blocks, Span{0, a.in.d});
  if (slabs_of(a, parallel) > 1) {
    for_each_block(parallel, a.batch, a.out, kBlocksPerTask,
                   [&](int64_t b, int64_t block, int64_t n, int count) {
                     Path<T> path(a.iterations);
                     start<S>(a, b, n, count, path);
                     spans[b * blocks + block] = {a.in.d, 0};
                     walk(a, grid, PackedMap<T>(a.packed, grid, b), a.iterations, count, path,
                          &spans[b * blocks + block]);
                   });
  }
  T* scratch = static_cast<T*>(a.scattered);
  for_each_slab(parallel, a, spans, scratch,
                [&](int64_t b, int64_t block, int64_t n, int count, int32_t low, int32_t high) {
                  const PackedMap<T> map(a.packed, grid, b);
                  T* sums = scratch + 4 * b * grid.packed.voxels();
                  Path<T> path(a.iterations);
                  start<S>(a, b, n, count, path);
                  load_lanes(static_cast<const T*>(a.grad) + b * 3 * voxels + n, voxels, count,
                             path.incoming);
                  path.sum = {};
                  for (int end = a.iterations; end > 0;) {
                    int k = walk(a, grid, map, end, count, path, nullptr);
                    end = std::max(0, k - kTrail);
                    while (k-- > end) reverse_step(grid, map, k, count, low, high, sums, path);
                  }
                  const int32_t first = spans[b * blocks + block].low;
                  // The task of only one slab stores the gradient of the fixed map.
                  if (first < low || first >= high) return;
                  store_lanes(path.sum, voxels, count,
                              static_cast<T*>(a.grad_fixed) + b * 3 * voxels + n);
                });
  finish<S>(a, a.in, a.moving, a.grad_moving, a.partial_moving, parallel);
  finish<S>(a, a.out, a.fixed, a.grad_fixed, a.partial_fixed, parallel);
}

}  // namespace

void invert_forward_cpu(const InvertArgs& a, const Parallel& parallel) {
  with_scalar(a.scalar, [&](auto s) { forward<decltype(s)>(a, parallel); });
}

void invert_implicit_cpu(const InvertArgs& a, const Parallel& parallel) {
  with_scalar(a.scalar, [&](auto s) { implicit<decltype(s)>(a, parallel); });
}

void invert_unrolled_cpu(const InvertArgs& a, const Parallel& parallel) {
  with_scalar(a.scalar, [&](auto s) { unrolled<decltype(s)>(a, parallel); });
}

}  // namespace deepatlas
