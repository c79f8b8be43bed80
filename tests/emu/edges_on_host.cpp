// Runs the kernels of edge_difference and piecewise_linear that CUDA runs on the host, functors
// voxel by voxel and reductions with one thread a CUDA thread, and compares them with the CPU
// kernels: every scalar type, several channels, odd shapes, masks over NaN. Prints one line a
// failure; exit status 1 if any.
#include "host_launch.h"
// above: what the kernels below are written in

#include <cmath>
#include <cstdio>
#include <cstring>
#include <string>
#include <vector>

#include "edges_functors.h"
#include "host.h"
#include "piecewise.h"

using namespace deepatlas;
using namespace deepatlas::host;

namespace {

template <class S, class U>
void compare(const std::string& what, const std::vector<U>& found, const std::vector<U>& expected) {
  const double tolerance = sizeof(S) == 8 ? 1e-11 : sizeof(S) == 4 ? 1e-5 : 1e-2;
  double scale = 1e-6;  // below it there is nothing but rounding
  for (const U& value : expected) scale = std::max(scale, std::abs(double(load(value))));
  for (size_t i = 0; i < found.size(); ++i) {
    const double f = load(found[i]), e = load(expected[i]);
    if ((std::isnan(f) && std::isnan(e)) || std::abs(f - e) <= tolerance * scale) continue;
    std::printf("%s: element %zu is %g, on the CPU %g\n", what.c_str(), i, f, e);
    ++failures;
    return;
  }
}

template <class S>
bool same(const std::vector<S>& a, const std::vector<S>& b) {
  return std::memcmp(a.data(), b.data(), a.size() * sizeof(S)) == 0;
}

template <class S>
struct Results {
  std::vector<S> value, by_moving, by_fixed;
  std::vector<double> statistics;
};

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
  std::vector<double> sums(3 * items * edges::pieces_of(args));
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
    for (int64_t i = 0; i < a.batch * voxels; ++i) {  // the last planes have no weight
      const double weight = std::abs(double(load(mask[i])));
      const bool inside = weight > 0.7 && i % voxels < voxels / 2;
      store(&mask[i], Accumulate<S>(inside ? weight : 0));
    }
    for (int64_t i = 0; i < a.items(); ++i) {  // the first voxel may be seen, the last may not
      store(&moving[(i + 1) * voxels - 1], Accumulate<S>(std::nan("")));
    }
    a.mask = mask.data();
  }
  a.moving = moving.data();
  a.fixed = fixed.data();
  a.grad = grad.data();
  const auto expected = on_cpu<S>(a, threads<1>()), threaded = on_cpu<S>(a, threads<3>());
  if (!same(expected.value, threaded.value) || !same(expected.by_moving, threaded.by_moving) ||
      !same(expected.by_fixed, threaded.by_fixed)) {
    std::printf("%s: the results depend on the number of threads\n", what.c_str());
    ++failures;
  }
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
  store(&x[6], Accumulate<S>(0.5));  // a knot
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
  both(" curve",
       [&] { HostLaunch().each<int64_t>(count, PiecewiseForward<S, int64_t>(a)); },
       piecewise_forward_cpu);
  both(" slope of the curve",
       [&] { HostLaunch().each<int64_t>(count, PiecewiseBackward<S, int64_t>(a)); },
       piecewise_backward_cpu);
}

template <class S>
void check_all(const std::string& scalar, Scalar code) {
  check_curve<S>(scalar, code);
  const Shape3 shapes[] = {{5, 6, 7}, {1, 4, 2}, {2, 1, 1}, {1, 1, 1}, {3, 2, 261}, {19, 18, 17}};
  for (const Shape3& s : shapes) {
    for (const bool masked : {false, true}) {
      for (const float contrast : {1.f, 1e-3f}) {  // above and below the floor
        EdgesArgs a{};
        a.scalar = code;
        a.batch = 2;
        a.channels = 2;
        a.shape = s;
        const std::string what = scalar + " " + std::to_string(s.d) + "x" + std::to_string(s.h) +
                                 "x" + std::to_string(s.w) + (masked ? " masked" : "");
        check<S>(what, a, masked, contrast);
      }
    }
  }
}

}  // namespace

int main() {
  return every_scalar(
      [](auto s, const char* name, Scalar code) { check_all<decltype(s)>(name, code); });
}
