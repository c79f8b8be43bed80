// The threads of the library for NumPy arrays: many callers at once, exceptions, nested calls, a
// changing number, and a fork. test_array_threads_on_host.py builds and runs it, also under the
// thread sanitizer.
#include <sys/wait.h>
#include <unistd.h>

#include <cstdio>
#include <stdexcept>
#include <vector>

#include "array_threads.h"

namespace {

using deepatlas::Parallel;
namespace threads = deepatlas::threads;

std::atomic<int> failures{0};

void expect(bool fine, const char* what) {
  if (!fine) {
    ++failures;
    std::printf("%s\n", what);
  }
}

// Every element is visited once, in ranges of at least the grain but for the last one.
void cover(int64_t count, int64_t grain) {
  std::vector<int> visits(size_t(count), 0);
  threads::parallel()(count, grain, [&](int64_t begin, int64_t end) {
    expect(end == count || end - begin >= grain, "a range is too short");
    for (int64_t i = begin; i < end; ++i) ++visits[size_t(i)];
  });
  for (const int n : visits) expect(n == 1, "an element is not visited once");
}

void cover_all() {
  for (const int64_t count : {0, 1, 2, 7, 100, 1000}) {
    for (const int64_t grain : {1, 3, 50, 5000}) cover(count, grain);
  }
}

void fails_in_one_piece() {
  try {
    threads::parallel()(100, 1, [](int64_t begin, int64_t) {
      if (begin > 0) throw std::runtime_error("of a test");
    });
    expect(false, "the exception is lost");
  } catch (const std::runtime_error&) {
  }
}

void nested() {
  std::atomic<int64_t> sum{0};
  threads::parallel()(8, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      threads::parallel()(10, 1, [&](int64_t a, int64_t b) { sum += b - a; });
    }
  });
  expect(sum == 80, "a nested call misses elements");
}

bool child_computes() {
  const pid_t child = fork();
  if (child == 0) {
    alarm(20);
    std::atomic<int64_t> sum{0};
    threads::parallel()(1000, 1, [&](int64_t begin, int64_t end) { sum += end - begin; });
    _exit(sum == 1000 ? 0 : 1);
  }
  int status = 1;
  waitpid(child, &status, 0);
  return WIFEXITED(status) && WEXITSTATUS(status) == 0;
}

}  // namespace

int main() {
  threads::start();
  for (const int number : {1, 4, 2}) {
    threads::number = number;
    cover_all();
    nested();
    if (number > 1) fails_in_one_piece();
    cover_all();
  }
  threads::number = 3;
  std::vector<std::thread> callers;
  for (int i = 0; i < 6; ++i) {
    callers.emplace_back([] {
      for (int turn = 0; turn < 20; ++turn) cover_all(), nested(), fails_in_one_piece();
    });
  }
  for (std::thread& caller : callers) caller.join();
#if !defined(__SANITIZE_THREAD__)
  // The thread sanitizer does not allow threads after the fork of a process with threads.
  expect(child_computes(), "a forked process does not compute");
#else
  (void)child_computes;
#endif
  std::printf("%d failures\n", failures.load());
  return failures != 0;
}
