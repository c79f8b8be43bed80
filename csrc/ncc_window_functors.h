// Correlation within windows as CUDA runs it (see ncc_functors.h for `Launch`). The sums over the
// windows are computed axis by axis in two sets of float64 maps, for a group of channels at a time.
// Along x one thread sums up the neighbours of one voxel. Along y and z a thread takes a running
// sum through a short column, and neighbouring threads go through neighbouring columns.
#pragma once

#include "ncc.h"

namespace deepatlas {
namespace ncc {
namespace device {

// The number of voxels that a running sum goes through.
constexpr int32_t kColumn = 16;
// The sums of a, b, aa, bb, ab and, with a mask, of the weights.
constexpr int kMaps = 6;
// The coefficients of WindowTerms: cross, own_a, constant_a, own_b and constant_b.
constexpr int kTerms = 5;

inline int64_t maps_of(const NccArgs& args) { return args.mask ? kMaps : kMaps - 1; }

// How many channels use the workspace at a time.
inline int64_t group_size(const NccArgs& args) {
  const int64_t fitting = args.group_values / (2 * maps_of(args) * args.shape.voxels());
  return fitting < 1 ? 1 : (fitting < args.items() ? fitting : args.items());
}

// The largest number of elements of a tensor or of a set of maps.
inline int64_t most_elements(const NccArgs& args) {
  const int64_t all = args.items() * args.shape.voxels();
  const int64_t maps = args.window > 0 ? kMaps * group_size(args) * args.shape.voxels() : 0;
  return all > maps ? all : maps;
}

// The channels [first, first + count) of the arguments.
struct Group {
  int64_t first, count;
};

// A voxel of a group: its channel, counted in the group (item) and in the batch (channel), and its
// indices.
template <class Index>
struct Place {
  Index item;
  int64_t channel;
  int32_t z, y, x;
};

// What the functors of the windows share. A set of maps is [map, item of the group, z, y, x].
template <class S, class Index>
struct WindowJob {
  const S *a, *b, *mask;
  const Moments* moments;
  Shape3 shape;
  Reach3 reach;
  Index voxels, items;
  int64_t channels, first;
  double eps;

  WindowJob(const NccArgs& args, const Group& group)
      : a(static_cast<const S*>(args.a)),
        b(static_cast<const S*>(args.b)),
        mask(static_cast<const S*>(args.mask)),
        moments(reinterpret_cast<const Moments*>(args.moments)),
        shape(args.shape),
        reach(args.window, args.shape),
        voxels(Index(args.shape.voxels())),
        items(Index(group.count)),
        channels(args.channels),
        first(group.first),
        eps(args.eps) {}

  // The voxel of element i of [items, depth, h, w].
  DA_HD Place<Index> place(Index i, int32_t depth) const {
    const Index row = i / Index(shape.w), plane = row / Index(shape.h);
    const Index item = plane / Index(depth);
    return {item, first + int64_t(item), int32_t(plane - item * Index(depth)),
            int32_t(row - plane * Index(shape.h)), int32_t(i - row * Index(shape.w))};
  }
  DA_HD Index offset(const Place<Index>& p) const { return offset_of<Index>(shape, p.z, p.y, p.x); }
  DA_HD Index map_size() const { return items * voxels; }
  DA_HD const S* mask_of(int64_t channel) const {
    return mask == nullptr ? nullptr : mask + channel / channels * int64_t(voxels);
  }
};

// The sums of the maps and of their products along x, with one call for each voxel.
template <class S, class Index>
struct SumAlongX {
  WindowJob<S, Index> job;
  double* target;

  DA_HD void operator()(Index i) const {
    const auto p = job.place(i, job.shape.d);
    const Index at = job.offset(p), row = at - Index(p.x);
    const S* a = job.a + p.channel * int64_t(job.voxels) + row;
    const S* b = job.b + p.channel * int64_t(job.voxels) + row;
    const S* weights = job.mask_of(p.channel);
    const double mean_a = job.moments[p.channel].a, mean_b = job.moments[p.channel].b;
    const int32_t last = p.x + job.reach.x < job.shape.w ? p.x + job.reach.x : job.shape.w - 1;
    double sa = 0, sb = 0, saa = 0, sbb = 0, sab = 0, n = 0;
    for (int32_t x = p.x > job.reach.x ? p.x - job.reach.x : 0; x <= last; ++x) {
      const double weight = weights ? double(load(weights[row + x])) : 1;
      if (!(weight > 0)) continue;
      const double u = double(load(a[x])) - mean_a, v = double(load(b[x])) - mean_b;
      const double wu = weight * u, wv = weight * v;
      sa += wu;
      sb += wv;
      saa += wu * u;
      sbb += wv * v;
      sab += wu * v;
      n += weight;
    }
    const Index step = job.map_size();
    double* to = target + i;
    to[0] = sa;
    to[step] = sb;
    to[2 * step] = saa;
    to[3 * step] = sbb;
    to[4 * step] = sab;
    if (weights) to[5 * step] = n;
  }
};

// Running sums of a set of maps [count, size] along an axis, with one call for each column of
// kColumn voxels. `inner` is the offset from one position of the axis to the next.
template <class Index>
struct SumAlongAxis {
  Index inner;
  int32_t length, reach, columns;
  const double* source;
  double* target;

  SumAlongAxis(Index inner, int32_t length, int32_t reach, const double* source, double* target)
      : inner(inner),
        length(length),
        reach(reach),
        columns(int32_t(pieces_of(length, kColumn))),
        source(source),
        target(target) {}

  // i is an element of [everything outside the axis, columns, inner].
  DA_HD void operator()(Index i) const {
    const Index line = i / inner, outer = line / Index(columns);
    const Index base = outer * Index(length) * inner + (i - line * inner);
    const int32_t first = int32_t(line - outer * Index(columns)) * kColumn;
    const int32_t last = first + kColumn < length ? first + kColumn : length;
    const double* from = source + base;
    double* to = target + base;
    double sum = 0;
    for (int32_t k = first > reach ? first - reach : 0; k < first + reach && k < length; ++k) {
      sum += from[Index(k) * inner];
    }
    for (int32_t k = first; k < last; ++k) {
      if (k > first && k > reach) sum -= from[Index(k - reach - 1) * inner];
      if (k + reach < length) sum += from[Index(k + reach) * inner];
      to[Index(k) * inner] = sum;
    }
  }
};

// The sums of the moments along z, which complete them, and the terms of each window. A term that
// is not needed is null. `values`, unless it is null, receives the sum of the values of each
// column, [items, columns, h, w].
template <class S, class Index>
struct TermsOfWindows {
  WindowJob<S, Index> job;
  const double* source;
  double* values;
  double* terms[kTerms];
  int32_t columns;

  TermsOfWindows(const WindowJob<S, Index>& job, const double* source, double* values)
      : job(job),
        source(source),
        values(values),
        terms{},
        columns(int32_t(pieces_of(job.shape.d, kColumn))) {}

  // Adds the maps at one voxel to the sums, or subtracts them.
  DA_HD void move(double* sums, Index at, double sign) const {
    for (int m = 0; m < kMaps - 1; ++m) sums[m] += sign * source[Index(m) * job.map_size() + at];
    if (job.mask != nullptr) sums[kMaps - 1] += sign * source[5 * job.map_size() + at];
  }
  // 1 / the sum of the weights of the window.
  DA_HD double share_of(const double* sums, int32_t z, const Place<Index>& p) const {
    if (job.mask != nullptr) return 1 / (sums[kMaps - 1] > 0 ? sums[kMaps - 1] : 1);
    return 1 / (double(extent(z, job.reach.z, job.shape.d)) *
                double(extent(p.y, job.reach.y, job.shape.h)) *
                double(extent(p.x, job.reach.x, job.shape.w)));
  }
  // i is an element of [items, columns, h, w].
  DA_HD void operator()(Index i) const {
    const auto p = job.place(i, columns);
    const Index inner = Index(job.shape.h) * Index(job.shape.w);
    const Index base = p.item * job.voxels + Index(p.y) * Index(job.shape.w) + Index(p.x);
    const int32_t depth = job.shape.d, reach = job.reach.z, first = p.z * kColumn;
    const int32_t last = first + kColumn < depth ? first + kColumn : depth;
    const Floors floors = window_floors(job.moments[p.channel], job.eps);
    const S* weights = job.mask_of(p.channel);
    double sums[kMaps] = {0, 0, 0, 0, 0, 0}, value = 0;
    for (int32_t k = first > reach ? first - reach : 0; k < first + reach && k < depth; ++k) {
      move(sums, base + Index(k) * inner, 1);
    }
    for (int32_t z = first; z < last; ++z) {
      if (z > first && z > reach) move(sums, base + Index(z - reach - 1) * inner, -1);
      if (z + reach < depth) move(sums, base + Index(z + reach) * inner, 1);
      const Index at = base + Index(z) * inner;
      const double centre = weights ? double(load(weights[at - p.item * job.voxels])) : 1;
      const WindowTerms t = window_terms(sums[0], sums[1], sums[2], sums[3], sums[4],
                                         share_of(sums, z, p), floors, centre);
      value += t.value;
      if (terms[0]) terms[0][at] = t.cross;
      if (terms[1]) terms[1][at] = t.own_a;
      if (terms[2]) terms[2][at] = t.constant_a;
      if (terms[3]) terms[3][at] = t.own_b;
      if (terms[4]) terms[4][at] = t.constant_b;
    }
    if (values != nullptr) values[i] = value;
  }
};

// Reducer: the mean of the correlations of a channel from the sums of its columns.
template <class S>
struct ValueOfChannel {
  using Value = double;
  const double* values;
  int64_t columns;
  const Moments* moments;
  S* value;

  DA_HD Value piece(int64_t item, int thread, int threads) const {
    double sum = 0;
    for (int64_t i = thread; i < columns; i += threads) sum += values[item * columns + i];
    return sum;
  }
  DA_HD Value join(Value p, Value q) const { return p + q; }
  DA_HD void finish(int64_t item, Value sum) const {
    store(value + item, Accumulate<S>(sum / divisor(moments[item].n)));
  }
};

// The sums of the terms along x, which complete them, and the gradients, with one call for each
// voxel.
template <class S, class Index>
struct GradientFromTerms {
  WindowJob<S, Index> job;
  const double* terms[kTerms];
  const S* grad;
  S *grad_a, *grad_b;

  DA_HD void operator()(Index i) const {
    const auto p = job.place(i, job.shape.d);
    const Index at = job.offset(p);
    const int32_t low = p.x > job.reach.x ? p.x - job.reach.x : 0;
    const int32_t last = p.x + job.reach.x < job.shape.w ? p.x + job.reach.x : job.shape.w - 1;
    double sums[kTerms] = {0, 0, 0, 0, 0};
    for (int t = 0; t < kTerms; ++t) {
      if (terms[t] == nullptr) continue;
      const double* row = terms[t] + (i - Index(p.x));
      for (int32_t x = low; x <= last; ++x) sums[t] += row[x];
    }
    const Moments& m = job.moments[p.channel];
    const S* weights = job.mask_of(p.channel);
    const double weight = weights ? double(load(weights[at])) : 1;
    const double scale = double(load(grad[p.channel])) / divisor(m.n) * weight;
    const int64_t index = p.channel * int64_t(job.voxels) + int64_t(at);
    const double u = weight > 0 ? double(load(job.a[index])) - m.a : 0;
    const double v = weight > 0 ? double(load(job.b[index])) - m.b : 0;
    if (grad_a != nullptr) {
      store(grad_a + index, Accumulate<S>(scale * (sums[0] * v + sums[1] * u + sums[2])));
    }
    if (grad_b != nullptr) {
      store(grad_b + index, Accumulate<S>(scale * (sums[0] * u + sums[3] * v + sums[4])));
    }
  }
};

// ---- the order of the launches ------------------------------------------------------------------

// Calls body(group, first set of maps, second set of maps) for each group of channels, until there
// is an error.
template <class F>
const char* for_each_group(const NccArgs& args, const F& body) {
  const int64_t most = group_size(args);
  for (int64_t first = 0; first < args.items(); first += most) {
    const int64_t rest = args.items() - first;
    const Group group{first, rest < most ? rest : most};
    const char* error = body(group, args.workspace,
                             args.workspace + maps_of(args) * group.count * args.shape.voxels());
    if (error) return error;
  }
  return nullptr;
}

// The sums of the moments along x, in `first`, and then along y, in `second`.
template <class S, class Index, class Launch>
const char* sum_moments(const NccArgs& args, const WindowJob<S, Index>& job, double* first,
                        double* second, const Launch& launch) {
  const int64_t size = int64_t(job.map_size()), w = job.shape.w, h = job.shape.h;
  const char* error = launch.template each<Index>(size, SumAlongX<S, Index>{job, first});
  if (error) return error;
  const SumAlongAxis<Index> along_y(Index(w), int32_t(h), job.reach.y, first, second);
  return launch.template each<Index>(maps_of(args) * size / h * along_y.columns, along_y);
}

template <class S, class Index, class Launch>
const char* window_forward(const NccArgs& args, const Launch& launch) {
  return for_each_group(args, [&](const Group& group, double* first, double* second) {
    const WindowJob<S, Index> job(args, group);
    const char* error = sum_moments(args, job, first, second, launch);
    if (error) return error;
    const TermsOfWindows<S, Index> values(job, second, first);
    const int64_t columns = int64_t(values.columns) * job.shape.h * job.shape.w;
    error = launch.template each<Index>(group.count * columns, values);
    if (error) return error;
    return launch.reduce(group.count, ValueOfChannel<S>{first, columns, job.moments + group.first,
                                                        static_cast<S*>(args.value) + group.first});
  });
}

template <class S, class Index, class Launch>
const char* window_backward(const NccArgs& args, const Launch& launch) {
  return for_each_group(args, [&](const Group& group, double* first, double* second) {
    const WindowJob<S, Index> job(args, group);
    const int64_t size = int64_t(job.map_size()), w = job.shape.w, h = job.shape.h;
    const char* error = sum_moments(args, job, first, second, launch);
    if (error) return error;
    TermsOfWindows<S, Index> terms(job, second, nullptr);
    GradientFromTerms<S, Index> gradient{job,
                                         {},
                                         static_cast<const S*>(args.grad),
                                         static_cast<S*>(args.grad_a),
                                         static_cast<S*>(args.grad_b)};
    int64_t count = 0;
    const bool used[kTerms] = {true, args.grad_a != nullptr, args.grad_a != nullptr,
                               args.grad_b != nullptr, args.grad_b != nullptr};
    for (int t = 0; t < kTerms; ++t) {
      if (!used[t]) continue;
      terms.terms[t] = first + count * size;
      gradient.terms[t] = terms.terms[t];
      ++count;
    }
    error = launch.template each<Index>(group.count * terms.columns * h * w, terms);
    if (error) return error;
    const SumAlongAxis<Index> along_z(Index(h * w), job.shape.d, job.reach.z, first, second);
    error = launch.template each<Index>(count * group.count * along_z.columns * h * w, along_z);
    if (error) return error;
    const SumAlongAxis<Index> along_y(Index(w), int32_t(h), job.reach.y, second, first);
    error = launch.template each<Index>(count * size / h * along_y.columns, along_y);
    if (error) return error;
    return launch.template each<Index>(size, gradient);
  });
}

}  // namespace device
}  // namespace ncc
}  // namespace deepatlas
