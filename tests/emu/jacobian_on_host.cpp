// Runs the functors of the Jacobian ops that CUDA runs, one call for each voxel, and compares the
// CPU kernels with them: for every scalar type, odd shapes, masks, folds, NaN, infinity, and
// several threads, on whose number the results must not depend. Also measures the error of
// log_positive. Prints one line for each failure.
#include <limits>

#include "host.h"
#include "jacobian_functors.h"

using namespace deepatlas;
using namespace deepatlas::host;

namespace {

template <class S, class U>
void compare(const std::string& what, const std::vector<U>& found, const std::vector<U>& expected) {
  const double tolerance = sizeof(S) == 8 ? 1e-10 : sizeof(S) == 4 ? 1e-4 : 2e-2;
  compare_scaled(what, found, expected, tolerance, 1);
}

template <class Functor>
void run(int64_t count, const Functor& functor) {
  for_each(threads<3>(), count, functor);
}

// The launches of backward() and smoothness() in jacobian.cu.
template <class S, class Gradient>
void run_backward(JacobianArgs a) {
  const int64_t count = a.batch * a.shape.voxels();
  std::vector<Accumulate<S>> columns(9 * count);
  a.columns = columns.data();
  run(count, ColumnGradients<S, int64_t, Gradient>(a));
  run(count, GatherColumns<S, int64_t>(a));
}

template <class S, bool Log>
void run_smoothness(JacobianArgs a) {
  std::vector<Accumulate<S>> change(a.batch * a.shape.voxels());
  std::vector<double> sums(SumBuffers::size(a));
  a.change = change.data();
  a.sums = sums.data();
  run(a.batch * partial_sums(a), SmoothnessFirst<S, int32_t, Log>(a));
  run(a.batch * 3 * kReduced, ReduceSums(a));
  run(a.batch, SmoothnessTotals<S, false>(a));
  run(a.batch * partial_sums(a), SmoothnessSecond<S, int64_t>(a));
  run(a.batch * 3 * kReduced, ReduceSums(a));
  run(a.batch, SmoothnessTotals<S, true>(a));
}

template <class S>
void run_cpu_smoothness(JacobianArgs a, const Parallel& parallel) {
  std::vector<Accumulate<S>> change(a.batch * a.shape.voxels());
  std::vector<double> sums(smoothness_sums_cpu(a));
  a.change = change.data();
  a.sums = sums.data();
  smoothness_forward_cpu(a, parallel);
}

template <class S, bool Flag>
void check(const std::string& what, JacobianArgs a) {
  using T = Accumulate<S>;
  const int64_t voxels = a.shape.voxels(), count = a.batch * voxels;
  std::vector<S> grad(count), loss_grad(a.batch);
  std::normal_distribution<float> normal;
  for (S& g : grad) store(&g, T(normal(generator)));
  for (S& g : loss_grad) store(&g, T(normal(generator)));
  a.normalize = a.logarithm = Flag;
  a.eps = 1e-2;
  a.delta = 0.3;

  std::vector<S> logs[2], by_field[3];
  for (auto& v : logs) v.resize(count);
  for (auto& v : by_field) v.resize(3 * count);
  a.output = logs[0].data();
  run(count, LogJacobianForward<S, int64_t, Flag>(a));
  a.output = logs[1].data();
  log_jacobian_forward_cpu(a, threads<3>());
  compare<S>(what + " log_jacobian", logs[1], logs[0]);

  a.grad = grad.data();
  a.grad_field = by_field[0].data();
  run_backward<S, LogJacobianGradient<S, int64_t, Flag>>(a);
  a.grad_field = by_field[1].data();
  log_jacobian_backward_cpu(a, threads<1>());
  a.grad_field = by_field[2].data();
  log_jacobian_backward_cpu(a, threads<4>());
  compare<S>(what + " gradient of log_jacobian", by_field[1], by_field[0]);
  same_bits(what + " gradient of log_jacobian", by_field[1], by_field[2]);

  std::vector<T> determinants[2];
  for (auto& v : determinants) v.resize(count);
  a.digital = Flag;
  a.output = determinants[0].data();
  run(count, DeterminantForward<S, int32_t>(a));
  a.output = determinants[1].data();
  jacobian_determinant_cpu(a, threads<3>());
  compare<S>(what + " determinant", determinants[1], determinants[0]);

  std::vector<S> loss[3];
  std::vector<double> statistics[3];
  for (int k = 0; k < 3; ++k) {
    loss[k].resize(a.batch);
    statistics[k].resize(3 * a.batch);
    a.output = loss[k].data();
    a.statistics = statistics[k].data();
    if (k == 0) run_smoothness<S, Flag>(a);
    if (k == 1) run_cpu_smoothness<S>(a, threads<1>());
    if (k == 2) run_cpu_smoothness<S>(a, threads<4>());
  }
  compare<S>(what + " smoothness_loss", loss[1], loss[0]);
  compare<S>(what + " statistics", statistics[1], statistics[0]);
  same_bits(what + " smoothness_loss", loss[1], loss[2]);
  same_bits(what + " statistics", statistics[1], statistics[2]);

  a.grad = loss_grad.data();
  a.statistics = statistics[0].data();
  a.grad_field = by_field[0].data();
  run_backward<S, SmoothnessGradient<S, int64_t, Flag>>(a);
  a.grad_field = by_field[1].data();
  smoothness_backward_cpu(a, threads<1>());
  a.grad_field = by_field[2].data();
  smoothness_backward_cpu(a, threads<4>());
  compare<S>(what + " gradient of smoothness_loss", by_field[1], by_field[0]);
  same_bits(what + " gradient of smoothness_loss", by_field[1], by_field[2]);
}

template <class S>
void check_all(const std::string& scalar, Scalar code) {
  using T = Accumulate<S>;
  const Shape3 shapes[] = {{5, 6, 7}, {1, 4, 2}, {2, 1, 1}, {1, 1, 1}, {3, 2, 261}, {4, 70, 33}};
  for (const Shape3& s : shapes) {
    for (const bool masked : {false, true}) {
      const int64_t voxels = s.voxels();
      std::vector<S> field(2 * 3 * voxels), weight(2 * voxels);
      std::normal_distribution<float> noise(0, 0.3f);
      std::uniform_real_distribution<float> uniform(-0.5f, 1);
      for (int64_t i = 0; i < int64_t(field.size()); ++i) {
        const int64_t v = i % voxels, k = i / voxels % 3;
        const int64_t at = k == 0 ? v % s.w : k == 1 ? v / s.w % s.h : v / s.w / s.h;
        const int64_t n = k == 0 ? s.w : k == 1 ? s.h : s.d;
        const float step = n > 1 ? 2.f / float(n - 1) : 0;
        store(&field[i], T(float(at) * step - 1 + noise(generator) * step));
      }
      for (S& w : weight) store(&w, T(std::max(0.f, uniform(generator))));
      // The mask hides some of these values.
      if (masked && voxels > 40) {
        const double odd[] = {std::nan(""), std::numeric_limits<double>::infinity(), 6e4};
        for (size_t i = 0; i < 9; ++i) store(&field[(i * 131) % field.size()], T(odd[i % 3]));
      }
      JacobianArgs a{};
      a.scalar = code;
      a.batch = 2;
      a.shape = s;
      a.field = field.data();
      a.weight = masked ? weight.data() : nullptr;
      const std::string what = scalar + " " + name_of(s) + (masked ? " masked" : "");
      check<S, false>(what, a);
      check<S, true>(what + " flagged", a);
    }
  }
}

// Measures the error in units in the last place, against the C library in extended precision.
template <class T>
void check_logarithm(const char* name, double bound) {
  std::uniform_real_distribution<double> exponent(std::log2(double(std::numeric_limits<T>::min())),
                                                  std::log2(double(std::numeric_limits<T>::max())));
  double worst = 0, worst_of_pair = 0;
  T other = T(3);
  for (int i = 0; i < 400000; ++i) {
    const T spread = T(std::exp2(exponent(generator) * (i % 2 ? 1 : 1e-3)));
    const T x = std::max(spread, std::numeric_limits<T>::min());
    const long double exact = std::log(static_cast<long double>(x));
    const T nearest = T(exact);
    const T next = std::nextafter(std::fabs(nearest), kInfinity<T>);
    const long double unit = next - std::fabs(nearest);
    worst = std::max(worst, double(std::fabs(log_positive(x) - exact) / unit));
    // The same logarithm, in turn as the first and the second of a pair that shares a division.
    T first, second;
    i % 2 ? log_positive(x, other, first, second) : log_positive(other, x, second, first);
    worst_of_pair = std::max(worst_of_pair, double(std::fabs(first - exact) / unit));
    other = x;
  }
  const T inf = kInfinity<T>, nan = std::numeric_limits<T>::quiet_NaN();
  const bool special =
      log_positive(inf) == inf && std::isnan(log_positive(nan)) && log_positive(T(1)) == T(0);
  if (worst > bound || worst_of_pair > bound + 0.1 || !special) {
    std::printf("log_positive of %s is off by %g units, of a pair by %g\n", name, worst,
                worst_of_pair);
    ++failures;
  }
}

}  // namespace

int main() {
  check_logarithm<float>("float32", 1.2);
  check_logarithm<double>("float64", 1.2);
  return every_scalar(
      [](auto s, const char* name, Scalar code) { check_all<decltype(s)>(name, code); });
}
