// Runs the functors of inversion that CUDA runs, one call for each voxel, and compares the CPU
// kernels with them: for every scalar type, NaN and infinite coordinates, and several threads.
// Prints one line for each failure.
#include <limits>

#include "host.h"
#include "invert_functors.h"

using namespace deepatlas;
using namespace deepatlas::host;
using namespace deepatlas::invert;

namespace {

// Four ranges, the last one first, so that what a task writes outside its own slab is not
// overwritten.
Parallel backwards() {
  return {4, [](int64_t count, int64_t grain, void* context, Parallel::Body body) {
            const int64_t piece = std::max(grain, (count + 3) / 4);
            for (int64_t i = (count - 1) / piece * piece; i >= 0; i -= piece) {
              body(context, i, std::min(count, i + piece));
            }
          }};
}

// The identity times `scale` plus noise that is so weak that the recursion contracts.
template <class S>
std::vector<S> map(int64_t batch, const Shape3& s, float scale, float noise) {
  std::normal_distribution<float> normal(0, noise);
  const int64_t voxels = s.voxels();
  std::vector<S> values(batch * 3 * voxels);
  for (int64_t i = 0; i < batch * 3 * voxels; ++i) {
    const int64_t n = i % voxels, x = n % s.w, y = n / s.w % s.h, z = n / s.w / s.h;
    const auto at = normalised<float>(s, int32_t(z), int32_t(y), int32_t(x));
    const float axis[3] = {at.x, at.y, at.z};
    store(&values[i], Accumulate<S>(scale * axis[i / voxels % 3] + normal(generator)));
  }
  return values;
}

template <class T>
void compare(const std::string& what, const std::vector<T>& found, const std::vector<T>& expected) {
  compare_each(what, found, expected, sizeof(T) == 8 ? 1e-10 : 3e-4);
}

template <class Functor>
void run(int64_t count, const Functor& functor) {
  for_each(threads<1>(), count, functor);
}

// All results of one way to run the kernels.
template <class T>
struct Results {
  std::vector<T> packed, scattered, displacement, residual, by_moving, by_fixed, by_matrix,
      by_matrix_of_fixed;
  std::vector<uint8_t> valid;
  explicit Results(const InvertArgs& a)
      : packed(a.batch * 4 * packed_shape(a.in).voxels(), T(7)),
        scattered(packed),
        displacement(a.batch * 3 * a.out.voxels()),
        residual(a.batch * a.out.voxels()),
        by_moving(a.batch * 3 * a.in.voxels()),
        by_fixed(displacement),
        by_matrix(a.batch * 9 * a.in.d * std::max(a.in.h, a.in.w)),
        by_matrix_of_fixed(a.batch * 9 * a.out.d * std::max(a.out.h, a.out.w)),
        valid(residual.size()) {}
  void attach(InvertArgs& a) {
    a.packed = packed.data();
    a.scattered = scattered.data();
    a.residual = residual.data();
    a.displacement = displacement.data();
    a.valid = reinterpret_cast<bool*>(valid.data());
    a.grad_moving = by_moving.data();
    a.grad_fixed = by_fixed.data();
    a.partial_moving = by_matrix.data();
    a.partial_fixed = by_matrix_of_fixed.data();
  }
};

// The sums over the lines of each item. The CPU sums along rows, CUDA along columns.
template <class T>
std::vector<T> sums(const std::vector<T>& partial, int64_t batch, int64_t lines) {
  std::vector<T> total(9 * batch);
  for (int64_t i = 0; i < 9 * batch * lines; ++i) total[i / (9 * lines) * 9 + i % 9] += partial[i];
  return total;
}

template <class S>
void check(const std::string& what, InvertArgs a, bool spoilt) {
  using T = Accumulate<S>;
  const int64_t count = a.batch * a.out.voxels();
  auto moving = map<S>(a.batch, a.in, 1, 0.02f);
  auto fixed = map<S>(a.batch, a.out, 1.1f, 0.05f);
  auto grad = map<T>(a.batch, a.out, 0, 1);
  std::vector<T> matrix = map<T>(a.batch, {1, 1, 3}, 0, 0.03f);
  for (size_t i = 0; i < matrix.size(); ++i) matrix[i] += T(i % 9 % 4 == 0);
  const double inf = std::numeric_limits<double>::infinity();
  const double odd[] = {std::nan(""), inf, -inf, 6e4};
  for (size_t i = 0; i < 4; ++i) store(&fixed[(i * 37) % fixed.size()], T(odd[i]));
  // With NaN in the moving map and in the gradient, and zeros in the gradient.
  if (spoilt) {
    store(&moving[moving.size() / 2], T(odd[0]));
    grad[grad.size() / 3] = T(odd[0]);
    for (size_t i = 0; i < grad.size(); i += 5) grad[i] = T(0);
  }
  a.moving = moving.data();
  a.fixed = fixed.data();
  a.matrix = matrix.data();
  a.ruler = a.newton ? matrix.data() : nullptr;
  a.grad = grad.data();

  Results<T> functor(a), one(a), many(a), last_first(a);
  functor.attach(a);
  run(a.batch * packed_shape(a.in).voxels(), Pack<S, int32_t>(a));
  run(count, Solve<S, int64_t>(a));
  one.attach(a);
  invert_forward_cpu(a, threads<1>());
  many.attach(a);
  invert_forward_cpu(a, threads<3>());
  compare(what + " packed map", one.packed, functor.packed);
  compare(what + " displacement", one.displacement, functor.displacement);
  compare(what + " residual", one.residual, functor.residual);
  same_bits(what + " displacement", one.displacement, many.displacement);
  same_bits(what + " valid", one.valid, functor.valid);

  // All ways compute the gradients at the same solution.
  one.displacement = many.displacement = last_first.displacement = functor.displacement;
  last_first.valid = functor.valid;
  functor.attach(a);
  run(count, ImplicitBackward<S, int32_t, PlainAdd>(a));
  one.attach(a);
  invert_implicit_cpu(a, threads<1>());
  many.attach(a);
  invert_implicit_cpu(a, threads<4>());
  last_first.attach(a);
  invert_implicit_cpu(a, backwards());
  compare(what + " implicit, moving", one.by_moving, functor.by_moving);
  compare(what + " implicit, fixed", one.by_fixed, functor.by_fixed);
  same_bits(what + " implicit, moving", one.by_moving, many.by_moving);
  same_bits(what + " implicit, fixed", one.by_fixed, many.by_fixed);
  same_bits(what + " implicit, last first", one.by_moving, last_first.by_moving);
  if (a.newton) return;

  std::fill(functor.by_moving.begin(), functor.by_moving.end(), T(0));
  functor.attach(a);
  run(count, UnrolledBackward<S, int32_t, PlainAdd>(a));
  run(a.batch * a.in.d * a.in.w,
      Finish<S, int64_t>(a, a.in, kAlongColumns, a.moving, a.grad_moving, a.partial_moving));
  run(a.batch * a.out.d * a.out.w,
      Finish<S, int32_t>(a, a.out, kAlongColumns, a.fixed, a.grad_fixed, a.partial_fixed));
  one.attach(a);
  invert_unrolled_cpu(a, threads<1>());
  many.attach(a);
  invert_unrolled_cpu(a, threads<4>());
  last_first.attach(a);
  invert_unrolled_cpu(a, backwards());
  compare(what + " unrolled, moving", one.by_moving, functor.by_moving);
  compare(what + " unrolled, fixed", one.by_fixed, functor.by_fixed);
  compare(what + " unrolled, matrix by moving", sums<T>(one.by_matrix, a.batch, a.in.d * a.in.h),
          sums<T>(functor.by_matrix, a.batch, a.in.d * a.in.w));
  compare(what + " unrolled, matrix by fixed",
          sums<T>(one.by_matrix_of_fixed, a.batch, a.out.d * a.out.h),
          sums<T>(functor.by_matrix_of_fixed, a.batch, a.out.d * a.out.w));
  same_bits(what + " unrolled, moving", one.by_moving, many.by_moving);
  same_bits(what + " unrolled, fixed", one.by_fixed, many.by_fixed);
  same_bits(what + " unrolled, last first", one.by_moving, last_first.by_moving);
  same_bits(what + " unrolled, matrix by moving", one.by_matrix, many.by_matrix);
  same_bits(what + " unrolled, matrix by fixed", one.by_matrix_of_fixed, many.by_matrix_of_fixed);
}

template <class S>
void check_all(const std::string& scalar, Scalar code) {
  struct Case {
    int64_t batch;
    Shape3 in, out;
    int iterations;
    double tolerance;
    bool newton;
  };
  const Case cases[] = {{2, {5, 6, 7}, {4, 9, 5}, 12, 0, false},
                        {2, {5, 6, 7}, {4, 9, 5}, 12, 0.03, false},
                        {2, {5, 6, 7}, {4, 9, 5}, 3, 0, true},
                        {1, {6, 5, 4}, {4, 4, 5}, 12, 0.02, true},
                        {1, {1, 4, 1}, {3, 1, 5}, 5, 0, false},
                        {1, {3, 1, 2}, {1, 1, 1}, 5, 0.01, true},
                        {1, {4, 4, 4}, {3, 4, 5}, 2 * kTrail + 3, 0, false},
                        {1, {4, 4, 4}, {3, 4, 5}, 3 * kTrail, 1e-4, false},
                        {1, {9, 8, 7}, {17, 16, 17}, 4, 0, false}};
  for (const Case& c : cases) {
    InvertArgs a{};
    a.scalar = code;
    a.batch = c.batch;
    a.in = c.in;
    a.out = c.out;
    a.iterations = c.iterations;
    a.tolerance = c.tolerance;
    a.newton = c.newton;
    const std::string what = scalar + " case " + std::to_string(&c - cases);
    check<S>(what, a, false);
    check<S>(what + " with NaN in the maps and the gradient", a, true);
  }
}

}  // namespace

int main() {
  return every_scalar(
      [](auto s, const char* name, Scalar code) { check_all<decltype(s)>(name, code); });
}
