// Bands: a long prompt goes through neighbouring operations some rows at a time, each thread with a band of its own.
//
// Op by op, every thread reads rows that another one wrote, and what lies between two ops of a long prompt is larger than a core's
// second-level cache. The ops from one attention to the next need no row but their own, so a thread can take its rows
// through all of them: what passes between them stays in its cache, and threads meet once instead of after each. The price is that
// every band reads the weights again, so it is done for models whose weights between two attentions are small.
#pragma once
#include <algorithm>
#include <cstdlib>
#include <memory>
#include <vector>

#include "program.h"

namespace millpond {

class Bands {
 public:
  // Finds the stretches of ops that can run band by band, and the buffers that pass between ops of one stretch alone.
  Bands(const std::vector<Op>& ops, const std::vector<Buffer>& buffers, int num_threads);

  // Cuts a step of `tokens` rows into bands; none if ops run one after another.
  void cut(int64_t tokens);
  // How many bands the step has, the first row of one (of the one behind the last: the number of rows), and most rows of one.
  int64_t count() const { return count_; }
  int64_t first_row(int64_t band) const { return std::min(tokens_, band * blocks_ / count_ * 32); }
  int64_t most_rows() const { return (blocks_ + count_ - 1) / count_ * 32; }

  // One past the last op of the stretch that begins with `op`; 0 where it runs by itself.
  size_t end_of(size_t op) const { return count_ ? ends_[op] : 0; }

  // The thread's buffers, of rows from `first` on. Those that pass within a stretch are the thread's own.
  const Buffer* view(int thread, int64_t first);

 private:
  void find_stretches(const std::vector<Op>& ops);
  void find_local_buffers(const std::vector<Op>& ops);
  void place_local_buffers();

  const std::vector<Buffer> whole_;
  const int num_threads_;
  std::vector<size_t> ends_;
  std::vector<char> is_local_;  // per buffer
  int64_t tokens_ = 0, blocks_ = 0, count_ = 0;
  std::vector<std::vector<Buffer>> views_;  // per thread
  std::vector<std::unique_ptr<void, decltype(&free)>> memory_;
};

}  // namespace millpond
