// A pool of threads that run one function together, with a barrier inside it that spins first and sleeps later.
//
// Between steps workers spin for a while and then sleep in the kernel: decode steps follow each other within microseconds,
// an idle engine must not burn a core. The caller is thread 0.
#pragma once
#include <atomic>
#include <cstdint>
#include <thread>
#include <vector>

namespace millpond {

class ThreadPool {
 public:
  using Body = void (*)(void* argument, int thread);
  ThreadPool(int num_threads, int spin_us);
  ~ThreadPool();
  int size() const { return num_threads_; }
  void run(Body body, void* argument);
  void barrier();  // every thread of the running body must call it equally often

 private:
  void work(int thread);
  const int num_threads_;
  const int64_t spin_us_;
  std::vector<std::thread> workers_;
  Body body_ = nullptr;
  void* argument_ = nullptr;
  alignas(64) std::atomic<uint32_t> epoch_{0};
  alignas(64) std::atomic<int32_t> sleepers_{0};
  alignas(64) std::atomic<int32_t> arrived_{0};
  alignas(64) std::atomic<uint32_t> generation_{0};
  alignas(64) std::atomic<int32_t> waiting_{0};
  bool stop_ = false;
};

}  // namespace millpond
