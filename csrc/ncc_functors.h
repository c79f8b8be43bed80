// Correlation as CUDA runs it: functors of one voxel or one column, reducers for reduce.cuh, and
// the order of their launches. `Launch` is the way of launching: ncc.cu queues kernels, tests/emu
// runs them on the host.
#pragma once

#include "ncc_window_functors.h"

namespace deepatlas {
namespace ncc {
namespace device {

// ---- moments of a channel -----------------------------------------------------------------------

// Reducer: the moments of one piece of a channel, [items, pieces].
template <class S>
struct MomentsOfPiece {
  using Value = Moments;
  const S *a, *b, *mask;
  int64_t voxels, channels, pieces;
  Moments* partial;

  MomentsOfPiece(const NccArgs& args, double* partial)
      : a(static_cast<const S*>(args.a)),
        b(static_cast<const S*>(args.b)),
        mask(static_cast<const S*>(args.mask)),
        voxels(args.shape.voxels()),
        channels(args.channels),
        pieces(pieces_of(voxels, kReducedPerBlock)),
        partial(reinterpret_cast<Moments*>(partial)) {}

  DA_HD Value piece(int64_t block, int thread, int threads) const {
    const int64_t item = block / pieces, first = (block - item * pieces) * kReducedPerBlock;
    const int64_t rest = voxels - first;
    const int64_t count = rest < kReducedPerBlock ? rest : kReducedPerBlock;
    const S *x = a + item * voxels + first, *y = b + item * voxels + first;
    const S* weights = mask ? mask + item / channels * voxels + first : nullptr;
    Tally tally;
    for (int32_t i = thread; i < int32_t(count); i += threads) {
      const double weight = weights ? double(load(weights[i])) : 1;
      tally.add(held(x[i], weight), held(y[i], weight), weight);
    }
    return tally.moments();
  }
  DA_HD Value join(const Value& p, const Value& q) const { return merge(p, q); }
  DA_HD void finish(int64_t block, const Value& value) const { partial[block] = value; }
};

// Reducer: the moments of each channel from its pieces and, without windows, its correlation. With
// windows `value` is null.
template <class S>
struct MomentsOfChannel {
  using Value = Moments;
  const Moments* partial;
  int64_t pieces;
  Moments* moments;
  S* value;
  double eps;

  MomentsOfChannel(const NccArgs& args, const double* partial)
      : partial(reinterpret_cast<const Moments*>(partial)),
        pieces(pieces_of(args.shape.voxels(), kReducedPerBlock)),
        moments(reinterpret_cast<Moments*>(args.moments)),
        value(args.window == 0 ? static_cast<S*>(args.value) : nullptr),
        eps(args.eps) {}

  DA_HD Value piece(int64_t item, int thread, int threads) const {
    Moments all{};
    for (int64_t i = thread; i < pieces; i += threads) {
      all = merge(all, partial[item * pieces + i]);
    }
    return all;
  }
  DA_HD Value join(const Value& p, const Value& q) const { return merge(p, q); }
  DA_HD void finish(int64_t item, const Value& sums) const {
    const Moments m = normalised(sums);
    moments[item] = m;
    if (value == nullptr) return;
    const Correlation c = correlate_channel(m, eps, sizeof(S) < sizeof(double));
    store(value + item, Accumulate<S>(c.value));
  }
};

// ---- gradient of the global correlation ---------------------------------------------------------

// The coefficients of each channel, so that the voxels need not compute square roots.
template <class S>
struct SlopesOfChannel {
  const Moments* moments;
  const S* grad;
  double eps;
  SlopePair* slopes;

  SlopesOfChannel(const NccArgs& args)
      : moments(reinterpret_cast<const Moments*>(args.moments)),
        grad(static_cast<const S*>(args.grad)),
        eps(args.eps),
        slopes(reinterpret_cast<SlopePair*>(args.workspace)) {}
  DA_HD void operator()(int64_t item) const {
    slopes[item] =
        channel_slopes(moments[item], eps, sizeof(S) < sizeof(double), double(load(grad[item])));
  }
};

// The gradients of each voxel.
template <class S, class Index>
struct GlobalGradient {
  const S *a, *b, *mask;
  Index voxels, channels;
  const SlopePair* slopes;
  S *grad_a, *grad_b;

  GlobalGradient(const NccArgs& args)
      : a(static_cast<const S*>(args.a)),
        b(static_cast<const S*>(args.b)),
        mask(static_cast<const S*>(args.mask)),
        voxels(Index(args.shape.voxels())),
        channels(Index(args.channels)),
        slopes(reinterpret_cast<const SlopePair*>(args.workspace)),
        grad_a(static_cast<S*>(args.grad_a)),
        grad_b(static_cast<S*>(args.grad_b)) {}
  DA_HD void operator()(Index i) const {
    const Index item = i / voxels;
    double weight = 1;
    if (mask != nullptr) weight = load(mask[item / channels * voxels + (i - item * voxels)]);
    const double x = held(a[i], weight), y = held(b[i], weight);
    if (grad_a != nullptr) store(grad_a + i, Accumulate<S>(slopes[item].by_a(x, y, weight)));
    if (grad_b != nullptr) store(grad_b + i, Accumulate<S>(slopes[item].by_b(y, x, weight)));
  }
};

// ---- the order of the launches ------------------------------------------------------------------

// How many numbers the workspace needs, for both directions.
inline int64_t workspace_size(const NccArgs& args) {
  const int64_t pieces = pieces_of(args.shape.voxels(), kReducedPerBlock);
  const int64_t parts = pieces * sizeof(Moments), slopes = sizeof(SlopePair);
  int64_t size = args.items() * (parts > slopes ? parts : slopes) / int64_t(sizeof(double));
  if (args.window > 0) {
    const int64_t windows = 2 * maps_of(args) * group_size(args) * args.shape.voxels();
    size = windows > size ? windows : size;
  }
  return size;
}

template <class S, class Launch>
const char* device_forward(const NccArgs& args, const Launch& launch) {
  const MomentsOfPiece<S> part(args, args.workspace);
  const char* error = launch.reduce(args.items() * part.pieces, part);
  if (error) return error;
  error = launch.reduce(args.items(), MomentsOfChannel<S>(args, args.workspace));
  if (error || args.window == 0) return error;
  return fits_32_bit(most_elements(args)) ? window_forward<S, int32_t>(args, launch)
                                          : window_forward<S, int64_t>(args, launch);
}

template <class S, class Launch>
const char* device_backward(const NccArgs& args, const Launch& launch) {
  const bool narrow = fits_32_bit(most_elements(args));
  if (args.window > 0) {
    return narrow ? window_backward<S, int32_t>(args, launch)
                  : window_backward<S, int64_t>(args, launch);
  }
  const char* error = launch.template each<int64_t>(args.items(), SlopesOfChannel<S>(args));
  if (error) return error;
  const int64_t count = args.items() * args.shape.voxels();
  return narrow ? launch.template each<int32_t>(count, GlobalGradient<S, int32_t>(args))
                : launch.template each<int64_t>(count, GlobalGradient<S, int64_t>(args));
}

}  // namespace device
}  // namespace ncc
}  // namespace deepatlas
