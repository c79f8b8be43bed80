// Runs the CUDA kernels of edge_difference and piecewise_linear on the host, functors voxel by
// voxel and reductions with one thread for each CUDA thread, and compares them with the CPU
// kernels: for every scalar type, several channels, odd shapes, and masks over NaN. Prints one line
// for each failure.
#include "host_launch.h"
// The kernels need the definitions above.
#include "edges_functors.h"
#include "host.h"
#include "piecewise.h"

using namespace deepatlas;
using namespace deepatlas::host;

namespace {

template <class S, class U>
void compare(const std::string& what, const std::vector<U>& found, const std::vector<U>& expected) {
  const double tolerance = sizeof(S) == 8 ? 1e-11 : sizeof(S) == 4 ? 1e-5 : 1e-2;
  // Below 1e-6 there are only rounding errors.
  compare_scaled(what, found, expected, tolerance, 1e-6);
}

template <class S>
struct Results {
  std::vector<S> value, by_moving, by_fixed;
  std::vector<double> statistics;
};

// The results of a forward and a backward pass, into memory that holds another value before.
template <class S, class Forward, class Backward>
Results<S> run(EdgesArgs a, const Forward& forward, const Backward& backward) {
  const int64_t all = a.items() * a.shape.voxels();
  const S sentinel = random<S>(1, 1)[0];
  Results<S> r{std::vector<S>(a.batch, sentinel), std::vector<S>(all, sentinel),
               std::vector<S>(all, sentinel), std::vector<double>(3 * a.batch)};
  a.value = r.value.data();
  a.statistics = r.statistics.data();
  forward(a);
  a.grad_moving = r.by_moving.data();
  a.grad_fixed = r.by_fixed.data();
  backward(a);
  return r;
}

template <class S, class Index>
Results<S> on_device(const EdgesArgs& args) {
  const int64_t items = args.items(), voxels = args.shape.voxels();
  std::vector<double> sums(3 * items * edges::channel_pieces(args));
  std::vector<Accumulate<S>> slopes(3 * items * voxels);
  return run<S>(
      args,
      [&](EdgesArgs a) {
        a.sums = sums.data();
        edges::device_forward<S, Index>(a, HostLaunch());
      },
      [&](EdgesArgs a) {
        a.slopes = slopes.data();
        edges::device_backward<S, Index>(a, HostLaunch());
      });
}

template <class S>
Results<S> on_cpu(const EdgesArgs& args, const Parallel& parallel) {
  std::vector<double> sums(edges_sums_cpu(args));
  return run<S>(
      args,
      [&](EdgesArgs a) {
        a.sums = sums.data();
        edges_forward_cpu(a, parallel);
      },
      [&](const EdgesArgs& a) { edges_backward_cpu(a, parallel); });
}

template <class S>
void check(const std::string& what, EdgesArgs a, bool masked, float contrast) {
  const int64_t voxels = a.shape.voxels(), all = a.items() * voxels;
  auto moving = random<S>(all, contrast), fixed = random<S>(all, contrast);
  auto mask = random<S>(a.batch * voxels, 1);
  const auto grad = random<S>(a.batch, 1);
  if (masked) {
    // The second half of the planes has no weight.
    for (int64_t i = 0; i < a.batch * voxels; ++i) {
      const double weight = std::abs(double(load(mask[i])));
      const bool inside = weight > 0.7 && i % voxels < voxels / 2;
      store(&mask[i], Accumulate<S>(inside ? weight : 0));
    }
    // So the last voxel of an image must not be read.
    for (int64_t i = 0; i < a.items(); ++i) {
      store(&moving[(i + 1) * voxels - 1], Accumulate<S>(std::nan("")));
    }
    a.mask = mask.data();
  }
  a.moving = moving.data();
  a.fixed = fixed.data();
  a.grad = grad.data();
  const auto expected = on_cpu<S>(a, threads<1>()), threaded = on_cpu<S>(a, threads<3>());
  same_bits(what + " value", expected.value, threaded.value);
  same_bits(what + " by moving", expected.by_moving, threaded.by_moving);
  same_bits(what + " by fixed", expected.by_fixed, threaded.by_fixed);
  for (const auto& found : {on_device<S, int32_t>(a), on_device<S, int64_t>(a)}) {
    compare<S>(what + " value", found.value, expected.value);
    compare<S>(what + " by moving", found.by_moving, expected.by_moving);
    compare<S>(what + " by fixed", found.by_fixed, expected.by_fixed);
  }
}

template <class S>
void check_curve(const std::string& what, Scalar code) {
  const int64_t count = 3000;
  auto x = random<S>(count, 1), grad = random<S>(count, 1);
  store(&x[5], Accumulate<S>(std::nan("")));
  // This is a knot.
  store(&x[6], Accumulate<S>(0.5));
  PiecewiseArgs a{};
  a.scalar = code;
  a.count = count;
  a.segments = 3;
  const double knots[] = {-1, 0.5, 0.75}, values[] = {0.25, -1, 2}, slopes[] = {-2, 3, 0.5};
  for (int i = 0; i < 3; ++i) a.knot[i] = knots[i], a.value[i] = values[i], a.slope[i] = slopes[i];
  a.source = x.data();
  a.grad = grad.data();
  std::vector<S> found(count), expected(count);
  const auto both = [&](const char* direction, const auto& on_host, const auto& cpu) {
    a.target = found.data();
    on_host();
    a.target = expected.data();
    cpu(a, threads<3>());
    compare<S>(what + direction, found, expected);
  };
  const HostLaunch host;
  const auto curve = [&] { host.each<int64_t>(count, PiecewiseForward<S, int64_t>(a)); };
  const auto slope = [&] { host.each<int64_t>(count, PiecewiseBackward<S, int64_t>(a)); };
  both(" curve", curve, piecewise_forward_cpu);
  both(" slope of the curve", slope, piecewise_backward_cpu);
}

template <class S>
void check_all(const std::string& scalar, Scalar code) {
  check_curve<S>(scalar, code);
  const Shape3 shapes[] = {{5, 6, 7}, {1, 4, 2}, {2, 1, 1}, {1, 1, 1}, {3, 2, 261}, {19, 18, 17}};
  for (const Shape3& s : shapes) {
    for (const bool masked : {false, true}) {
      // Edges above and below the floor.
      for (const float contrast : {1.f, 1e-3f}) {
        EdgesArgs a{};
        a.scalar = code;
        a.batch = 2;
        a.channels = 2;
        a.shape = s;
        check<S>(scalar + " " + name_of(s) + (masked ? " masked" : ""), a, masked, contrast);
      }
    }
  }
}

}  // namespace

int main() {
  return every_scalar(
      [](auto s, const char* name, Scalar code) { check_all<decltype(s)>(name, code); });
}
