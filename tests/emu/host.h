// What the programs that run kernels on the host share: threads, random values, comparisons, and
// the count of the failures.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "interpolate.h"
#include "launch.h"

namespace deepatlas::host {

inline int failures = 0;
inline std::mt19937 generator(7);

// Real threads, a new one for each range, so that ThreadSanitizer sees every pair of tasks.
template <int Threads>
Parallel threads() {
  return {Threads, [](int64_t count, int64_t grain, void* context, Parallel::Body body) {
            const int64_t piece = std::max(grain, pieces_of(count, Threads));
            std::vector<std::thread> pool;
            for (int64_t i = 0; i < count; i += piece) {
              pool.emplace_back([=] { body(context, i, std::min(count, i + piece)); });
            }
            for (auto& thread : pool) thread.join();
          }};
}

// Calls a functor once for each element, as CUDA does (launch.cuh).
template <class Functor>
void for_each(const Parallel& parallel, int64_t count, const Functor& functor) {
  parallel(count, 4096, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) functor(i);
  });
}

// Random values of a normal distribution.
template <class S>
std::vector<S> random(int64_t n, float scale) {
  std::normal_distribution<float> normal(0, scale);
  std::vector<S> values(n);
  for (auto& v : values) store(&v, Accumulate<S>(normal(generator)));
  return values;
}

// ---- comparisons --------------------------------------------------------------------------------

// Reports the first element where `found` differs from `expected` by more than allowed(expected).
// NaN equals NaN.
template <class U, class Allowed>
void compare_with(const std::string& what, const std::vector<U>& found,
                  const std::vector<U>& expected, const Allowed& allowed) {
  for (size_t i = 0; i < found.size(); ++i) {
    const double f = load(found[i]), e = load(expected[i]);
    if ((std::isnan(f) && std::isnan(e)) || f == e || std::abs(f - e) <= allowed(e)) continue;
    std::printf("%s: element %zu is %.17g, expected %.17g\n", what.c_str(), i, f, e);
    ++failures;
    return;
  }
}

// With an error relative to each expected value, or to 1 if that is smaller.
template <class U>
void compare_each(const std::string& what, const std::vector<U>& found,
                  const std::vector<U>& expected, double tolerance) {
  compare_with(what, found, expected, [&](double e) { return tolerance * (1 + std::abs(e)); });
}

// With an error relative to the largest expected value, or to `least` if that is smaller.
template <class U>
void compare_scaled(const std::string& what, const std::vector<U>& found,
                    const std::vector<U>& expected, double tolerance, double least) {
  double scale = least;
  for (const U& value : expected) {
    const double e = load(value);
    if (std::isfinite(e)) scale = std::max(scale, std::abs(e));
  }
  compare_with(what, found, expected, [&](double) { return tolerance * scale; });
}

// Results of different numbers of threads must have the same bits.
template <class U>
void same_bits(const std::string& what, const std::vector<U>& a, const std::vector<U>& b) {
  if (a.empty() || std::memcmp(a.data(), b.data(), a.size() * sizeof(U)) == 0) return;
  std::printf("%s: depends on the number of threads\n", what.c_str());
  ++failures;
}

inline std::string name_of(const Shape3& s) {
  return std::to_string(s.d) + "x" + std::to_string(s.h) + "x" + std::to_string(s.w);
}

// ---- main ---------------------------------------------------------------------------------------

// Calls check(S(), name, code) for every scalar type, and returns the exit status of the program.
template <class Check>
int every_scalar(const Check& check) {
  check(double(), "float64", Scalar::kFloat64);
  check(float(), "float32", Scalar::kFloat32);
  check(Half(), "float16", Scalar::kFloat16);
  check(BFloat16(), "bfloat16", Scalar::kBFloat16);
  std::printf("%d failures\n", failures);
  return failures != 0;
}

}  // namespace deepatlas::host
