// What the programs that run kernels on the host share: threads, random values, and the final
// count.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "common.h"
#include "launch.h"

namespace deepatlas::host {

inline int failures = 0;
inline std::mt19937 generator(7);

// Real threads, a fresh one a piece: the thread sanitizer sees every pair of tasks.
template <int Threads>
Parallel threads() {
  return {Threads, [](int64_t count, int64_t grain, void* context, Parallel::Body body) {
            const int64_t piece = std::max(grain, (count + Threads - 1) / Threads);
            std::vector<std::thread> pool;
            for (int64_t i = 0; i < count; i += piece) {
              pool.emplace_back([=] { body(context, i, std::min(count, i + piece)); });
            }
            for (auto& thread : pool) thread.join();
          }};
}

// A functor as CUDA runs it (launch.cuh): one call an element.
template <class Functor>
void for_each(const Parallel& parallel, int64_t count, const Functor& functor) {
  parallel(count, 4096, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) functor(i);
  });
}

// In place of atomicAdd: the functors run one after the other.
struct HostAdd {
  template <class T>
  void operator()(T* p, T value) const {
    *p += value;
  }
};

template <class S>
std::vector<S> random(int64_t n, float scale) {
  std::normal_distribution<float> normal(0, scale);
  std::vector<S> values(n);
  for (auto& v : values) store(&v, Accumulate<S>(normal(generator)));
  return values;
}

// check(S(), name, code) for every scalar type; the exit status of main.
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
