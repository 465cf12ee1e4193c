#include "threads.h"

#include <immintrin.h>
#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <chrono>
#include <climits>

namespace millpond {

constexpr int kBarrierSpins = 4096;  // some 100 microseconds

static void futex_wait(std::atomic<uint32_t>* word, uint32_t seen) { syscall(SYS_futex, word, FUTEX_WAIT_PRIVATE, seen, nullptr, nullptr, 0); }
static void futex_wake_all(std::atomic<uint32_t>* word) { syscall(SYS_futex, word, FUTEX_WAKE_PRIVATE, INT_MAX, nullptr, nullptr, 0); }

ThreadPool::ThreadPool(int num_threads, int spin_us) : num_threads_(num_threads), spin_us_(spin_us) {
  for (int i = 1; i < num_threads_; ++i) workers_.emplace_back([this, i] { work(i); });
}

ThreadPool::~ThreadPool() {
  stop_ = true;
  epoch_.fetch_add(1);
  futex_wake_all(&epoch_);
  for (auto& worker : workers_) worker.join();
}

void ThreadPool::work(int thread) {
  uint32_t seen = 0;
  for (;;) {
    auto until = std::chrono::steady_clock::now() + std::chrono::microseconds(spin_us_);
    for (int i = 0; epoch_.load(std::memory_order_acquire) == seen; ++i) {
      _mm_pause();
      if (i % 64 == 63 && std::chrono::steady_clock::now() > until) {
        sleepers_.fetch_add(1);
        while (epoch_.load(std::memory_order_seq_cst) == seen) futex_wait(&epoch_, seen);
        sleepers_.fetch_sub(1);
        break;
      }
    }
    seen = epoch_.load(std::memory_order_acquire);
    if (stop_) return;
    body_(argument_, thread);
    barrier();
  }
}

void ThreadPool::run(Body body, void* argument) {
  body_ = body;
  argument_ = argument;
  epoch_.fetch_add(1, std::memory_order_seq_cst);
  if (sleepers_.load(std::memory_order_seq_cst) > 0) futex_wake_all(&epoch_);
  body(argument, 0);
  barrier();
}

void ThreadPool::barrier() {
  if (num_threads_ == 1) return;
  uint32_t generation = generation_.load(std::memory_order_acquire);
  if (arrived_.fetch_add(1, std::memory_order_acq_rel) == num_threads_ - 1) {
    arrived_.store(0, std::memory_order_relaxed);
    generation_.store(generation + 1, std::memory_order_seq_cst);
    if (waiting_.load(std::memory_order_seq_cst) > 0) futex_wake_all(&generation_);
    return;
  }
  for (int i = 0; generation_.load(std::memory_order_acquire) == generation; ++i) {
    _mm_pause();
    // By now the other thread was descheduled, not slow: sleep, so that the core goes to whoever holds it up.
    if (i == kBarrierSpins) {
      waiting_.fetch_add(1, std::memory_order_seq_cst);
      while (generation_.load(std::memory_order_seq_cst) == generation) futex_wait(&generation_, generation);
      waiting_.fetch_sub(1, std::memory_order_relaxed);
    }
  }
}

}  // namespace millpond
