// The threads of the library for NumPy arrays. They are not those of OpenMP: they do not spin after
// a kernel, several Python threads may call kernels at the same time, and a process that was forked
// starts its own.
#pragma once

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <deque>
#include <exception>
#include <mutex>
#include <system_error>
#include <thread>

#include <pthread.h>

#include "common.h"
#include "launch.h"

namespace deepatlas {
namespace threads {

// One call of Parallel: `pieces` ranges of `grain` elements, of which the last one may be shorter.
struct Job {
  Parallel::Body body;
  void* context;
  int64_t count, grain, pieces;
  // The next piece that nobody has taken, and how many are done. Both are guarded by the mutex of
  // the pool, and so is the first exception.
  int64_t next = 0, done = 0;
  std::exception_ptr error = nullptr;

  void run(int64_t piece) const {
    body(context, piece * grain, std::min(count, (piece + 1) * grain));
  }
};

// Whether this thread is inside a job. What it calls runs on it alone.
inline thread_local bool busy = false;

class Pool {
 public:
  void run(Job& job) {
    std::unique_lock<std::mutex> lock(mutex);
    employ(job.pieces - 1);
    jobs.push_back(&job);
    wake.notify_all();
    while (job.next < job.pieces) take(job, lock);
    finished.wait(lock, [&] { return job.done == job.pieces; });
    if (job.error) std::rethrow_exception(job.error);
  }

 private:
  std::mutex mutex;
  std::condition_variable wake, finished;
  // The jobs with pieces that nobody has taken.
  std::deque<Job*> jobs;
  int64_t workers = 0;

  // Runs the next piece of a job. The job may be gone afterwards, unless the caller waits for it.
  void take(Job& job, std::unique_lock<std::mutex>& lock) {
    const int64_t piece = job.next++;
    if (job.next == job.pieces) jobs.erase(std::find(jobs.begin(), jobs.end(), &job));
    lock.unlock();
    std::exception_ptr error;
    busy = true;
    try {
      job.run(piece);
    } catch (...) {
      error = std::current_exception();
    }
    busy = false;
    lock.lock();
    if (error && !job.error) job.error = error;
    if (++job.done == job.pieces) finished.notify_all();
  }

  // Starts threads until there are `wanted`. Where the system refuses, those that exist do the work.
  void employ(int64_t wanted) {
    try {
      for (; workers < wanted; ++workers) std::thread(&Pool::work, this).detach();
    } catch (const std::system_error&) {
    }
  }

  void work() {
    std::unique_lock<std::mutex> lock(mutex);
    for (;;) {
      wake.wait(lock, [&] { return !jobs.empty(); });
      take(*jobs.front(), lock);
    }
  }
};

// Never destroyed: its threads wait in it until the process ends.
inline std::atomic<Pool*> pool{nullptr};
inline std::atomic<int> number{1};

// A fork copies the calling thread only, so the child needs another pool.
inline void start() {
  pool = new Pool();
  pthread_atfork(nullptr, nullptr, [] {
    pool = new Pool();
    busy = false;
  });
}

inline Parallel parallel() {
  return {number, [](int64_t count, int64_t grain, void* context, Parallel::Body body) {
            const int64_t most = number.load();
            grain = std::max(grain, pieces_of(count, most));
            Job job{body, context, count, grain, pieces_of(count, grain)};
            if (busy || job.pieces == 1) {
              body(context, 0, count);
            } else {
              pool.load()->run(job);
            }
          }};
}

}  // namespace threads
}  // namespace deepatlas
