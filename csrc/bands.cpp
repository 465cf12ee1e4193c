#include "bands.h"

#include <cstring>

namespace millpond {

// Measured on two cores with 2 MB of second-level cache each (docs/design/performance.md, "Bands").
constexpr int64_t kFewestTokens = 128;     // of a step
constexpr int64_t kMostRows = 256;         // of a band, where every thread has one
constexpr int64_t kRowsOfMany = 128;       // where it has more, so that threads end together
constexpr int64_t kMostWeights = 8 << 20;  // bytes between two attentions

static int64_t weight_bytes(const Op& op) {
  const int64_t numbers = int64_t(op.n[0]) * op.n[1];
  switch (op.n[2]) {
    case kF32: return numbers * 4;
    case kBF16: return numbers * 2;
    default: return numbers;
  }
}

static bool is_row_by_row(const Op& op) { return op.rows == 0 && op.kind != kAttention && op.kind != kGather; }

static int64_t row_bytes(const Buffer& buffer) { return buffer.stride * (buffer.dtype == kBF16 ? 2 : 4); }

Bands::Bands(const std::vector<Op>& ops, const std::vector<Buffer>& buffers, int num_threads)
    : whole_(buffers), num_threads_(num_threads), ends_(ops.size(), 0), is_local_(buffers.size(), 1) {
  find_stretches(ops);
  find_local_buffers(ops);
  place_local_buffers();
}

void Bands::find_stretches(const std::vector<Op>& ops) {
  for (size_t begin = 0, end; begin < ops.size(); begin = end) {
    int64_t bytes = 0;
    for (end = begin; end < ops.size() && is_row_by_row(ops[end]); ++end) {
      const Op& op = ops[end];
      if (op.kind == kLinear) bytes += weight_bytes(op);
    }
    if (end == begin) {
      ++end;
      continue;
    }
    if (end - begin > 1 && bytes <= kMostWeights) ends_[begin] = end;
  }
}

// A buffer is local if whoever reads it does so after a write in its own stretch.
void Bands::find_local_buffers(const std::vector<Op>& ops) {
  for (size_t begin = 0, end; begin < ops.size(); begin = end) {
    end = std::max(begin + 1, ends_[begin]);
    std::vector<char> is_written(whole_.size(), 0);
    for (size_t i = begin; i < end; ++i) {
      const Op& op = ops[i];
      const bool is_sum = (op.kind == kLinear && op.n[3] == kAddF32) || (op.kind == kNorm && (op.flags & kOutAdd));
      if (op.in >= 0 && !is_written[op.in]) is_local_[op.in] = 0;
      if ((is_sum && !is_written[op.out]) || !ends_[begin]) is_local_[op.out] = 0;
      is_written[op.out] = 1;
    }
  }
}

void Bands::place_local_buffers() {
  constexpr int64_t kPage = 4096;
  if (std::none_of(ends_.begin(), ends_.end(), [](size_t end) { return end > 0; })) return;
  int64_t bytes = 0;
  std::vector<int64_t> places(whole_.size(), 0);
  for (size_t i = 0; i < whole_.size(); ++i) {
    if (!is_local_[i]) continue;
    places[i] = bytes;
    bytes += (kMostRows * row_bytes(whole_[i]) + kPage - 1) / kPage * kPage;
  }
  for (int thread = 0; thread < num_threads_; ++thread) {
    memory_.emplace_back(aligned_alloc(kPage, bytes + kPage), &free);
    memset(memory_.back().get(), 0, bytes);  // columns behind a row's last one stay zero
    views_.push_back(whole_);
    for (size_t i = 0; i < whole_.size(); ++i)
      if (is_local_[i]) views_.back()[i].data = (char*)memory_.back().get() + places[i];
  }
}

void Bands::cut(int64_t tokens) {
  tokens_ = tokens, blocks_ = (tokens + 31) / 32, count_ = 0;
  if (views_.empty() || tokens < kFewestTokens) return;
  const int64_t each = num_threads_ * (tokens <= num_threads_ * kMostRows ? kMostRows : kRowsOfMany);
  count_ = num_threads_ * ((tokens + each - 1) / each);
  while (most_rows() > kMostRows) ++count_;  // whole groups of 32 rows
}

const Buffer* Bands::view(int thread, int64_t first) {
  std::vector<Buffer>& buffers = views_[thread];
  for (size_t i = 0; i < whole_.size(); ++i)
    if (!is_local_[i]) buffers[i].data = (char*)whole_[i].data + first * row_bytes(whole_[i]);
  return buffers.data();
}

}  // namespace millpond
