// What happens to a product's block of results: scale, bias, activation, store; and `Side`, the work that rides along a product.
//
// A block of results leaves the matrix units through memory. Storing it at once would leave them idle, so its rows are stored a
// few at a time during the k-steps of the next block, together with the prefetches of the weights that come after.
#pragma once
#include "program.h"
#include "simd.h"

namespace millpond {
namespace MILLPOND_ISA {

template <int kValue>
struct Constant {
  static constexpr int value = kValue;
};

// Calls `run` with the epilogue as a constant, so that each is compiled apart.
template <typename Run>
static inline void choose_epilogue(int32_t epilogue, const Run& run) {
  switch (epilogue) {
    case kStoreF32: return run(Constant<kStoreF32>());
    case kStoreAct: return run(Constant<kStoreAct>());
    case kAddF32: return run(Constant<kAddF32>());
    case kSiluMul: return run(Constant<kSiluMul>());
    case kGeluTanhMul: return run(Constant<kGeluTanhMul>());
    case kGeluMul: return run(Constant<kGeluMul>());
    case kGeluTanh: return run(Constant<kGeluTanh>());
    case kGelu: return run(Constant<kGelu>());
    case kSilu: return run(Constant<kSilu>());
  }
}

// Keeps what is larger than all before it; columns past the matrix do not count.
static inline void note_peak(Peak& peak, v16 x, int64_t column, int64_t columns) {
  static const float lane[16] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
  if (column + 16 > columns) x = vselect_below(columns - column, x, vset(-__builtin_inff()));
  const v16 best = vload(peak.value);
  vstore(peak.column, vselect_greater(x, best, vload(lane) + vset(float(column)), vload(peak.column)));
  vstore(peak.value, vselect_greater(x, best, x, best));
  vstore(peak.nan, vkeep_nan(x, vload(peak.nan)));
}

// The sum of e^x over one panel of a row; columns past the matrix do not count.
static inline float panel_sum(v16 x, v16 y, int64_t column, int64_t columns) {
  const v16 zero = vset(0.0f);
  v16 low = vexp(x), high = vexp(y);
  if (column + 16 > columns) low = vselect_below(columns - column, low, zero);
  if (column + 32 > columns) high = vselect_below(columns - column - 16, high, zero);
  return vsum(low + high);
}

static inline void clear_peaks(Peak* peaks, int64_t rows) {
  for (int64_t r = 0; r < rows; ++r) {
    vstore(peaks[r].value, vset(-__builtin_inff()));
    vstore(peaks[r].column, vset(0.0f));
    vstore(peaks[r].nan, vset(0.0f));
  }
}

// One half of a row of results. kPlanes 0: floats; 1: integer sums; 2: sums of high parts, and 512 behind them of low parts.
template <int kPlanes>
static inline v16 load_result(const float* c) {
  if (kPlanes == 0) return vload(c);
  const v16 high = vload_i32((const int32_t*)c);
  return kPlanes == 1 ? high : vfma(high, vset(256.0f), vload_i32((const int32_t*)c + 512));
}

// Stores `rows` rows of one panel from c[rows][32] to rows [row0, row0 + rows) of the output.
template <typename Act, int kEpilogue, int kPlanes>
static inline void store_rows(const Op& op, const Context& ctx, const float* c, const float* row_scale, int64_t row0, int64_t rows,
                              int64_t panel) {
  const Buffer& out = ctx.buffers[op.out];
  const float* scale = kPlanes ? (const float*)op.p[1] + panel * 32 : nullptr;
  const float* bias = op.p[2] ? (const float*)op.p[2] + panel * 32 : nullptr;
  for (int64_t r = 0; r < rows; ++r, ++row0, c += 32) {
    v16 x = load_result<kPlanes>(c), y = load_result<kPlanes>(c + 16);
    if (kPlanes) x = x * vset(row_scale[row0]) * vload(scale), y = y * vset(row_scale[row0]) * vload(scale + 16);
    if (bias) x = x + vload(bias), y = y + vload(bias + 16);
    float* f = (float*)out.data + row0 * out.stride + panel * 32;
    Act* a = (Act*)out.data + row0 * out.stride + panel * 32;
    Act* half = (Act*)out.data + row0 * out.stride + panel * 16;
    switch (kEpilogue) {
      case kStoreF32:
        vstore(f, x), vstore(f + 16, y);
        if (op.flags & kFindPeaks) {
          note_peak(ctx.peaks[row0], x, panel * 32, op.n[0]), note_peak(ctx.peaks[row0], y, panel * 32 + 16, op.n[0]);
          if (ctx.step->sums) ctx.step->sums[row0 * (ceil32(op.n[0]) / 32) + panel] = panel_sum(x, y, panel * 32, op.n[0]);
        }
        break;
      case kStoreAct: vstore_act<Act>(a, x), vstore_act<Act>(a + 16, y); break;
      case kAddF32: vstore(f, vload(f) + x), vstore(f + 16, vload(f + 16) + y); break;
      case kSiluMul: vstore_act<Act>(half, vsilu(half, x) * y); break;
      case kGeluTanhMul: vstore_act<Act>(half, vgelu_tanh(x) * y); break;
      case kGeluMul: vstore_act<Act>(half, vgelu(x) * y); break;
      case kGeluTanh: vstore_act<Act>(a, vgelu_tanh(x)), vstore_act<Act>(a + 16, vgelu_tanh(y)); break;
      case kGelu: vstore_act<Act>(a, vgelu(x)), vstore_act<Act>(a + 16, vgelu(y)); break;
      case kSilu: vstore_act<Act>(a, vsilu(a, x)), vstore_act<Act>(a + 16, vsilu(a, y)); break;
    }
  }
}

// Fetches a range of memory into the second-level cache, a little at each step of the work at hand. Eight places of the range
// advance together: one stream of software prefetches is bounded by the first-level fill buffers (about 10 GB/s a core), several
// streams set the hardware prefetcher to work on as many pages and reach what the memory gives.
struct Prefetcher {
  static constexpr int64_t kStreams = 8;
  const char* base = nullptr;
  int64_t stream_lines = 0, done = 0;
  int64_t due = 0, each = 0;  // lines of a stream in 65,536ths: whole ones would all be asked for early, and then nothing

  void aim(const void* data, int64_t bytes, int64_t steps) {
    base = (const char*)data;
    stream_lines = bytes / 64 / kStreams;
    each = ((stream_lines << 16) + steps - 1) / steps;
    done = due = 0;
  }
  inline void step() {
    due += each;
    const int64_t last = min64(stream_lines, due >> 16);
    for (; done < last; ++done)
      for (int64_t v = 0; v < kStreams; ++v) _mm_prefetch(base + (v * stream_lines + done) * 64, _MM_HINT_T1);
  }
};

// A finished block whose rows are stored during the k-steps of the next one.
template <typename Act, int kEpilogue, int kPlanes>
struct Pending {
  const Op& op;
  const Context& ctx;
  const float* row_scale;  // of integer rows
  const float* c = nullptr;
  int64_t row0 = 0, rows = 0, panel = 0, done = 0, each = 0;

  // Takes a block over; `steps` k-steps follow. The one before must be flushed.
  void take(const float* block, int64_t first_row, int64_t num_rows, int64_t of_panel, int64_t steps) {
    c = block;
    row0 = first_row;
    rows = num_rows;
    panel = of_panel;
    done = 0;
    each = (num_rows + steps - 1) / steps;
  }
  inline void step() {
    if (done < rows) advance(min64(each, rows - done));
  }
  void flush() {
    if (done < rows) advance(rows - done);
  }
  inline void advance(int64_t count) {
    store_rows<Act, kEpilogue, kPlanes>(op, ctx, c + done * 32, row_scale, row0 + done, count, panel);
    done += count;
  }
  // Asks for the lines that a block will be stored to, so that the stores need not wait for them.
  void expect(int64_t first_row, int64_t num_rows, int64_t of_panel) const {
    const Buffer& out = ctx.buffers[op.out];
    constexpr bool kGated = kEpilogue == kSiluMul || kEpilogue == kGeluTanhMul || kEpilogue == kGeluMul;
    constexpr bool kF32 = kEpilogue == kStoreF32 || kEpilogue == kAddF32;
    constexpr int64_t kBytes = (kGated ? 16 : 32) * int64_t(kF32 ? 4 : sizeof(Act));
    const char* line = (const char*)out.data + first_row * out.stride * (kBytes / (kGated ? 16 : 32)) + of_panel * kBytes;
    const int64_t row_bytes = out.stride * (kBytes / (kGated ? 16 : 32));
    for (int64_t r = 0; r < num_rows; ++r, line += row_bytes) {
      __builtin_prefetch(line, 1);
      if (kBytes > 64) __builtin_prefetch(line + 64, 1);
    }
  }
};

// All that rides along.
template <typename Act, int kEpilogue, int kPlanes>
struct Side {
  Prefetcher ahead;
  Pending<Act, kEpilogue, kPlanes> pending;
  inline void step() {
    ahead.step();
    pending.step();
  }
};

}  // namespace MILLPOND_ISA
}  // namespace millpond
