// The C ABI: make a program from a list of operations, run steps, pack weights. Called by inference/ops/native.py alone.
#include "program.h"

#include <sys/mman.h>

#include <algorithm>
#include <chrono>
#include <cstring>
#include <cstdlib>
#include <memory>
#include <vector>

#include "bands.h"
#include "isa.h"
#include "threads.h"

#define EXPORT extern "C" __attribute__((visibility("default")))

namespace millpond {

struct Program {
  std::vector<Op> ops;
  std::vector<Buffer> buffers;
  const KernelTable* kernels;
  ThreadPool pool;
  std::unique_ptr<std::atomic<int32_t>[]> counters;
  std::vector<std::unique_ptr<void, decltype(&free)>> scratch;
  std::vector<int32_t> token_sequence, tile_start;
  std::vector<char> has_logits;        // per row of the step
  std::vector<const Op*> next_linear;  // per op
  std::vector<Peak> peaks;             // [thread][logit row]
  bool finds_peaks = false;
  std::vector<int8_t> int_rows;        // room for the widest product's rows of A as integers
  int64_t int_row_bytes = 0;           // of one row
  std::unique_ptr<Bands> bands;
  Parts parts{};
  std::vector<float> part_data;
  std::unique_ptr<std::atomic<int32_t>[]> parts_done;
  int32_t act_dtype;
  Step step{};
  const int64_t cache_bytes = millpond::cache_bytes();
  double* op_seconds = nullptr;  // per op, when profiling

  Program(const KernelTable* table, int num_threads, int spin_us) : kernels(table), pool(num_threads, spin_us) {
    for (int i = 0; i < num_threads; ++i) scratch.emplace_back(aligned_alloc(64, kScratchBytes), &free);
  }
};

static const KernelTable* kernels_of(int isa) {
  switch (isa) {
    case kAvx2: return millpond_kernels_avx2();
    case kAvx512: return millpond_kernels_avx512();
    case kAvx512Bf16: return millpond_kernels_avx512_bf16();
    case kAmx: return millpond_kernels_amx();
  }
  return nullptr;
}

constexpr int64_t kTilesToShare = 4;  // a thread; with more there is always another tile to take

// Decides whether attention's tiles are shared out part by part: with few tiles, threads would wait for the longest.
static void share_parts(Program& program, int64_t kv_heads) {
  const Step& step = program.step;
  const int64_t tiles = program.tile_start[step.B] * kv_heads, most = kTilesToShare * program.pool.size();
  int64_t longest = 0;
  for (int b = 0; b < step.B; ++b) longest = std::max<int64_t>(longest, step.context_len[b]);
  program.parts = Parts{};
  if (longest <= kPartTokens || tiles >= most || program.pool.size() == 1) return;
  if (!program.parts_done) program.parts_done.reset(new std::atomic<int32_t>[most]());
  program.parts.each = (longest + kPartTokens - 1) / kPartTokens;
  const size_t floats = size_t(tiles * program.parts.each) * kTileRows * (kMostHeadDim + 2);
  if (program.part_data.size() < floats) program.part_data.resize(floats);
  program.parts.data = program.part_data.data();
  program.parts.done = program.parts_done.get();
}

// Fills what depends on the step alone: the sequence of each row, and the attention tiles (equal for all layers of a model).
static void prepare(Program& program) {
  const Step& step = program.step;
  program.bands->cut(step.T);
  program.token_sequence.resize(step.T);
  program.has_logits.assign(step.T, 0);
  for (int i = 0; i < step.L; ++i) program.has_logits[step.logit_rows[i]] = 1;
  const int64_t band_rows = program.bands->count() ? program.bands->most_rows() * program.pool.size() : 0;
  const size_t int_bytes = size_t(program.int_row_bytes) * std::max<int64_t>((std::max(step.T, step.L) + 31) / 32 * 32, band_rows);
  if (program.int_rows.size() < int_bytes) program.int_rows.resize(int_bytes);
  if (program.finds_peaks) program.peaks.resize(int64_t(program.pool.size()) * step.L);
  for (int b = 0; b < step.B; ++b)
    for (int t = step.query_start[b]; t < step.query_start[b + 1]; ++t) program.token_sequence[t] = b;
  program.tile_start.assign(step.B + 1, 0);
  for (const Op& op : program.ops) {
    if (op.kind != kAttention) continue;
    const int heads = op.n[0] / op.n[1];
    for (int b = 0; b < step.B; ++b) {
      const int rows = (step.query_start[b + 1] - step.query_start[b]) * heads;
      program.tile_start[b + 1] = program.tile_start[b] + (rows + kTileRows - 1) / kTileRows;
    }
    share_parts(program, op.n[1]);
    break;
  }
}

// Brings the threads' peaks together.
static void find_peaks(const Program& program) {
  const int64_t rows = program.step.L;
  for (int64_t r = 0; r < rows; ++r) {
    float value = -__builtin_inff(), column = 0.0f;
    bool is_nan = false;
    for (int64_t t = 0; t < program.pool.size(); ++t) {
      const Peak& peak = program.peaks[t * rows + r];
      for (int i = 0; i < 16; ++i) {
        is_nan |= peak.nan[i] != peak.nan[i];
        if (peak.value[i] > value || (peak.value[i] == value && peak.column[i] < column)) value = peak.value[i], column = peak.column[i];
      }
    }
    program.step.peaks[r] = is_nan ? -1 : int32_t(column);
  }
}

using Clock = std::chrono::steady_clock;

static double seconds_since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

static bool needs_integers(const Op& op, int64_t rows) { return op.kind == kLinear && op.n[2] >= kI8 && rows >= kManyRows; }

// Ops [from, to) band by band (bands.h). A band is a step of fewer rows that one thread runs alone.
static void run_bands(Program& program, const Context& whole, int thread, size_t from, size_t to) {
  const Step& step = program.step;
  const Bands& bands = *program.bands;
  const Op *end = program.ops.data() + to, *first_linear = program.ops[from].kind == kLinear ? &program.ops[from] : program.next_linear[from];
  std::atomic<int32_t>& turn = program.counters[from];
  std::atomic<int32_t> counter{0};
  Step rows = step;
  Context band = whole;
  band.step = &rows;
  band.counter = &counter;
  band.int_rows = (char*)whole.int_rows + thread * bands.most_rows() * program.int_row_bytes;
  for (int64_t at; (at = turn.fetch_add(1, std::memory_order_relaxed)) < bands.count();) {
    const int64_t first = bands.first_row(at);
    rows.T = int32_t(bands.first_row(at + 1) - first);
    if (!rows.T) continue;  // more threads than rows keep busy
    rows.token_ids = step.token_ids + first;
    rows.positions = step.positions + first;
    rows.slots = step.slots + first;
    band.token_sequence = whole.token_sequence + first;
    band.first_row = first;
    band.buffers = program.bands->view(thread, first);
    const bool is_last = turn.load(std::memory_order_relaxed) >= bands.count();
    for (size_t i = from; i < to; ++i) {
      const Op& op = program.ops[i];
      const auto start = Clock::now();
      band.next_linear = !is_last && program.next_linear[i] >= end ? first_linear : program.next_linear[i];
      counter.store(0, std::memory_order_relaxed);
      if (needs_integers(op, rows.T)) program.kernels->quantise(op, band, 0, 1);
      program.kernels->run[op.kind](op, band, 0, 1);
      if (program.op_seconds && thread == 0) program.op_seconds[i] += seconds_since(start);
    }
  }
  const auto start = Clock::now();
  program.pool.barrier();
  if (program.op_seconds && thread == 0) program.op_seconds[to - 1] += seconds_since(start);
}

static void run_op(Program& program, Context& context, int thread, size_t i) {
  const Op& op = program.ops[i];
  const int num_threads = program.pool.size();
  const auto start = program.op_seconds ? Clock::now() : Clock::time_point();
  context.counter = &program.counters[i];
  context.next_linear = program.next_linear[i];
  if (needs_integers(op, op.rows ? program.step.L : program.step.T)) {
    program.kernels->quantise(op, context, thread, num_threads);
    program.pool.barrier();
  }
  program.kernels->run[op.kind](op, context, thread, num_threads);
  program.pool.barrier();
  if (program.op_seconds && thread == 0) program.op_seconds[i] += seconds_since(start);
}

static void run_thread(void* argument, int thread) {
  Program& program = *(Program*)argument;
  const uint32_t modes = program.kernels->thread_begin();
  Context context{&program.step, program.buffers.data(), program.token_sequence.data(), program.has_logits.data(), program.tile_start.data(),
                  program.act_dtype, nullptr, program.scratch[thread].get(), nullptr, program.peaks.data() + int64_t(thread) * program.step.L,
                  program.int_rows.data(), 0, program.parts, program.cache_bytes};
  for (size_t i = 0; i < program.ops.size();) {
    const size_t end = program.bands->end_of(i);
    if (end) run_bands(program, context, thread, i, end);
    else run_op(program, context, thread, i);
    i = end ? end : i + 1;
  }
  program.kernels->thread_end(modes);
}

// [N,K] int8 -> [N/32][K/64][2][16][16][4]
static void pack_fours(const int8_t* source, int8_t* packed, int64_t N, int64_t K) {
  const int64_t KG = (K + 63) / 64, panels = (N + 31) / 32;
  memset(packed, 0, panels * KG * 2048);
  for (int64_t n = 0; n < N; ++n) {
    int8_t* column = packed + (n / 32) * KG * 2048 + n % 32 / 16 * 1024 + n % 16 * 4;
    const int8_t* row = source + n * K;
    for (int64_t k = 0; k < K; ++k) column[k / 64 * 2048 + k % 64 / 4 * 64 + k % 4] = row[k];
  }
}

// [N,K/32,16] bytes, element i of a group in the low half of byte i % 16 and i + 16 in its high half, scales and minimums [N,K/32] as halves ->
// [N/32][K/32]: bits [2][4][16][4], scales [32], minimums [32]
static void pack_q4(int dtype, const uint8_t* bits, const uint16_t* scales, const uint16_t* minimums, uint8_t* packed, int64_t N, int64_t G) {
  const int64_t group_bytes = q4_group_bytes(dtype);
  memset(packed, 0, (N + 31) / 32 * G * group_bytes);
  for (int64_t n = 0; n < N; ++n) {
    uint8_t* group = packed + n / 32 * G * group_bytes;
    for (int64_t g = 0; g < G; ++g, group += group_bytes, bits += 16) {
      for (int64_t j = 0; j < 4; ++j) memcpy(group + n % 32 / 16 * 256 + j * 64 + n % 16 * 4, bits + j * 4, 4);
      memcpy(group + 512 + n % 32 * 2, scales + n * G + g, 2);
      if (dtype == kQ4Min) memcpy(group + 576 + n % 32 * 2, minimums + n * G + g, 2);
    }
  }
}

// [N,K] bf16 -> [N/32][K/32][2][16][16][2]
static void pack_pairs(const uint16_t* source, uint16_t* packed, int64_t N, int64_t K) {
  const int64_t KT = (K + 31) / 32, panels = (N + 31) / 32;
  memset(packed, 0, panels * KT * 1024 * sizeof(uint16_t));
  for (int64_t n = 0; n < N; ++n) {
    uint16_t* column = packed + (n / 32) * KT * 1024 + (n % 32 / 16) * 512 + (n % 16) * 2;
    const uint16_t* row = source + n * K;
    int64_t k = 0;
    for (; k + 1 < K; k += 2) memcpy(column + k / 32 * 1024 + k % 32 / 2 * 32, row + k, 2 * sizeof(uint16_t));
    if (k < K) column[k / 32 * 1024 + k % 32 / 2 * 32] = row[k];
  }
}

}  // namespace millpond

using namespace millpond;

EXPORT int millpond_best_isa() { return best_isa(); }

EXPORT int64_t millpond_op_bytes() { return sizeof(Op); }

// Memory on huge pages where the system has them: weights and cache are read end to end every step. It starts on a huge page.
EXPORT void* millpond_alloc(int64_t bytes) {
  constexpr int64_t kHugePage = 2 << 20;
  char* start = (char*)mmap(nullptr, bytes + kHugePage, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (start == MAP_FAILED) return nullptr;
  char* aligned = start + (-(intptr_t)start & (kHugePage - 1));
  if (aligned > start) munmap(start, aligned - start);
  const int64_t mapped = (bytes + 4095) & ~int64_t(4095), after = start + bytes + kHugePage - (aligned + mapped);
  if (after >= 4096) munmap(aligned + mapped, after & ~int64_t(4095));
  madvise(aligned, mapped, MADV_HUGEPAGE);
  return aligned;
}
EXPORT void millpond_free(void* p, int64_t bytes) {
  if (p) munmap(p, bytes);
}

EXPORT int64_t millpond_packed_bytes(int dtype, int64_t N, int64_t K) {
  const int64_t panels = (N + 31) / 32, KT = (K + 31) / 32;
  if (dtype >= kQ4) return panels * KT * q4_group_bytes(dtype);
  return dtype == kF32 ? panels * K * 32 * 4 : dtype == kBF16 ? panels * KT * 2048 : panels * ((K + 63) / 64) * 2048;
}

// source [N,K] row-major in the same dtype -> packed (layouts in gemm.h)
EXPORT void millpond_pack(int dtype, const void* source, void* packed, int64_t N, int64_t K) {
  if (dtype == kBF16) return pack_pairs((const uint16_t*)source, (uint16_t*)packed, N, K);
  if (dtype == kI8) return pack_fours((const int8_t*)source, (int8_t*)packed, N, K);
  memset(packed, 0, (N + 31) / 32 * K * 32 * 4);
  for (int64_t n = 0; n < N; ++n)
    for (int64_t k = 0; k < K; ++k) ((float*)packed)[(n / 32) * K * 32 + k * 32 + n % 32] = ((const float*)source)[n * K + k];
}

// The same for 4 bits; K is a multiple of 32, `minimums` may be null without any.
EXPORT void millpond_pack_q4(int dtype, const void* bits, const void* scales, const void* minimums, void* packed, int64_t N, int64_t K) {
  pack_q4(dtype, (const uint8_t*)bits, (const uint16_t*)scales, (const uint16_t*)minimums, (uint8_t*)packed, N, K / 32);
}

EXPORT void* millpond_program_new(int isa, int num_threads, int spin_us, int act_dtype, const Op* ops, int64_t num_ops, const Buffer* buffers,
                                  int64_t num_buffers) {
  const KernelTable* table = isa <= best_isa() ? kernels_of(isa) : nullptr;
  if (!table) return nullptr;
  auto* program = new Program(table, num_threads, spin_us);
  program->ops.assign(ops, ops + num_ops);
  program->buffers.assign(buffers, buffers + num_buffers);
  program->next_linear.assign(num_ops, nullptr);
  for (int64_t i = num_ops - 2; i >= 0; --i)
    program->next_linear[i] = program->ops[i + 1].kind == kLinear ? &program->ops[i + 1] : program->next_linear[i + 1];
  program->counters.reset(new std::atomic<int32_t>[num_ops]);
  program->act_dtype = act_dtype;
  for (const Op& op : program->ops)
    if (op.kind == kLinear && op.n[2] >= kI8) program->int_row_bytes = std::max<int64_t>(program->int_row_bytes, 2 * ((op.n[1] + 63) / 64 * 64 + 64) + 12);
  program->bands = std::make_unique<Bands>(program->ops, program->buffers, num_threads);
  for (const Op& op : program->ops) program->finds_peaks |= op.kind == kLinear && (op.flags & kFindPeaks);
  return program;
}

EXPORT void millpond_program_delete(void* handle) { delete (Program*)handle; }

// Runs one step; returns its seconds.
EXPORT double millpond_program_run(void* handle, const Step* step) {
  const auto start = Clock::now();
  Program& program = *(Program*)handle;
  program.step = *step;
  for (size_t i = 0; i < program.ops.size(); ++i) program.counters[i].store(0, std::memory_order_relaxed);
  prepare(program);
  program.pool.run(run_thread, &program);
  if (program.finds_peaks) find_peaks(program);
  return seconds_since(start);
}

// Adds each op's seconds to op_seconds[num_ops] from now on; null stops it.
EXPORT void millpond_program_profile(void* handle, double* op_seconds) { ((Program*)handle)->op_seconds = op_seconds; }

struct ReadProbe {
  const KernelTable* table;
  const char* data;
  int64_t bytes;
  int num_threads;
};
// Seconds to read `bytes` once with `num_threads` threads: the machine's bandwidth, for doctor and the benches.
EXPORT double millpond_read_seconds(int isa, int num_threads, const void* data, int64_t bytes) {
  const KernelTable* table = isa <= best_isa() ? kernels_of(isa) : nullptr;
  if (!table) return -1;
  ThreadPool pool(num_threads, 1000);
  ReadProbe probe{table, (const char*)data, bytes, num_threads};
  auto body = [](void* argument, int thread) {
    auto& p = *(ReadProbe*)argument;
    int64_t share = p.bytes / p.num_threads & ~int64_t(255);
    volatile int64_t sink = p.table->read_sum(p.data + share * thread, share);
    (void)sink;
  };
  const auto start = Clock::now();
  pool.run(body, &probe);
  return seconds_since(start);
}
