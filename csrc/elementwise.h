// embed, norm, gather, and rope + KV write: the operations that touch a row once.
#pragma once
#include "hadamard.h"
#include "kv_int8.h"
#include "program.h"
#include "simd.h"

namespace millpond {
namespace MILLPOND_ISA {

// The rows this thread takes; small steps stay on one thread, a row costs less than waking a second one.
static inline void share_rows(int64_t rows, int thread, int num_threads, int64_t& first, int64_t& last) {
  if (rows < 4) num_threads = 1;
  first = thread < num_threads ? rows * thread / num_threads : rows;
  last = thread < num_threads ? rows * (thread + 1) / num_threads : rows;
}

// Numbers of one column of a group of 4 bits (gemm_q4.h), times `factor`.
static inline void expand_q4(const uint8_t* group, int64_t column, bool has_minimum, float factor, int64_t count, float* x) {
  const uint8_t* bits = group + column / 16 * 256 + column % 16 * 4;
  const float scale = half_to_float(group + 512 + column * 2);
  const float minimum = has_minimum ? half_to_float(group + 576 + column * 2) : -8.0f * scale;
  for (int64_t i = 0; i < count; ++i) {
    const uint8_t two = bits[i % 16 / 4 * 64 + i % 4];
    x[i] = (scale * float(i < 16 ? two & 15 : two >> 4) + minimum) * factor;
  }
}

// A row of a table of int8 times `factor`; a rotated one (hadamard.h) is rotated back.
static inline void expand_i8(const int8_t* w, int64_t E, bool is_rotated, float factor, float* x) {
  alignas(64) float block[kHadamard];
  for (int64_t e = 0; e < E; e += kHadamard, w += 2048) {
    const int64_t count = min64(kHadamard, E - e);
    for (int64_t i = 0; i < kHadamard; ++i) block[i] = float(w[i / 4 * 64 + i % 4]) * factor;
    if (is_rotated) {
      v16 four[4] = {vload(block), vload(block + 16), vload(block + 32), vload(block + 48)};
      hadamard64(four);
      for (int i = 0; i < 4; ++i) vstore(block + i * 16, four[i] * vset(1.0f / kHadamard));
    }
    memcpy(x + e, block, count * 4);
  }
}

static void run_embed(const Op& op, const Context& ctx, int thread, int num_threads) {
  const Buffer& out = ctx.buffers[op.out];
  const int64_t E = op.n[0], vocabulary = op.n[2], KT = ceil32(E) / 32;
  const int32_t dtype = op.n[1];
  int64_t first, last;
  share_rows(ctx.step->T, thread, num_threads, first, last);
  for (int64_t t = first; t < last; ++t) {
    int64_t id = max64(0, min64(ctx.step->token_ids[t], vocabulary - 1));
    float* x = (float*)out.data + t * out.stride;
    int64_t panel = id / 32, tile = id % 32 / 16, column = id % 16;
    if (dtype == kF32) {
      const float* w = (const float*)op.p[0] + panel * E * 32 + id % 32;
      for (int64_t e = 0; e < E; ++e) x[e] = w[e * 32] * op.f[0];
    } else if (dtype == kBF16) {
      const bf16* w = (const bf16*)op.p[0] + panel * KT * 1024 + tile * 512 + column * 2;
      for (int64_t e = 0; e < E; ++e) x[e] = bf16_to_float(w[e / 32 * 1024 + e % 32 / 2 * 32 + e % 2]) * op.f[0];
    } else if (dtype >= kQ4) {
      const uint8_t* w = (const uint8_t*)op.p[0] + panel * KT * q4_group_bytes(dtype);
      for (int64_t g = 0; g < KT; ++g, w += q4_group_bytes(dtype)) expand_q4(w, id % 32, dtype == kQ4Min, op.f[0], min64(32, E - g * 32), x + g * 32);
    } else {
      const int8_t* w = (const int8_t*)op.p[0] + panel * ((E + 63) / 64) * 2048 + tile * 1024 + column * 4;
      expand_i8(w, E, op.flags & kRotatedTable, ((const float*)op.p[1])[id] * op.f[0], x);
    }
    if (op.p[2]) {
      const float* position = (const float*)op.p[2] + int64_t(ctx.step->positions[t]) * E;
      for (int64_t e = 0; e < E; ++e) x[e] += position[e];
    }
  }
}

// One row's mean and 1/deviation (layer norm) or 1/root mean square; n is a multiple of 16.
static inline void row_moments(const float* x, int64_t n, bool layer, float eps, float& mean, float& inverse) {
  mean = 0.0f;
  if (layer) {
    v16 sum = vset(0.0f);
    for (int64_t i = 0; i < n; i += 16) sum = sum + vload(x + i);
    mean = vsum(sum) / float(n);
  }
  v16 squares = vset(0.0f), m = vset(mean);
  for (int64_t i = 0; i < n; i += 16) {
    v16 d = vload(x + i) - m;
    squares = vfma(d, d, squares);
  }
  inverse = 1.0f / __builtin_sqrtf(vsum(squares) / float(n) + eps);
}

template <typename Act>
static void norm_rows(const Op& op, const Context& ctx, int64_t first, int64_t last) {
  const Buffer &in = ctx.buffers[op.in], &out = ctx.buffers[op.out];
  const int64_t E = op.n[0];
  const float *weight = (const float*)op.p[0], *bias = (const float*)op.p[1];
  for (int64_t t = first; t < last; ++t) {
    const float* x = (const float*)in.data + t * in.stride;
    float mean, inverse;
    row_moments(x, E, op.flags & kLayerNorm, op.f[0], mean, inverse);
    v16 m = vset(mean), s = vset(inverse);
    float* f = (float*)out.data + t * out.stride;
    Act* a = (Act*)out.data + t * out.stride;
    for (int64_t i = 0; i < E; i += 16) {
      v16 y = (vload(x + i) - m) * s * vload(weight + i);
      if (bias) y = y + vload(bias + i);
      if (op.flags & kOutAdd) vstore(f + i, vload(f + i) + y);
      else if (op.flags & kOutF32) vstore(f + i, y);
      else vstore_act<Act>(a + i, y);
    }
  }
}

static void run_norm(const Op& op, const Context& ctx, int thread, int num_threads) {
  int64_t first, last;
  share_rows(op.rows ? ctx.step->L : ctx.step->T, thread, num_threads, first, last);
  if (ctx.act_dtype == kF32) norm_rows<float>(op, ctx, first, last);
  else norm_rows<bf16>(op, ctx, first, last);
}

static void run_gather(const Op& op, const Context& ctx, int thread, int num_threads) {
  const Buffer &in = ctx.buffers[op.in], &out = ctx.buffers[op.out];
  const int64_t bytes = in.dtype == kBF16 ? 2 : 4;
  int64_t first, last;
  share_rows(ctx.step->L, thread, num_threads, first, last);
  for (int64_t i = first; i < last; ++i)
    memcpy((char*)out.data + i * out.stride * bytes, (const char*)in.data + ctx.step->logit_rows[i] * in.stride * bytes, op.n[0] * bytes);
}

// Norm of one head in place (Qwen3, Gemma 3); D is a multiple of 32.
static inline void norm_head(float* x, const float* weight, int64_t D, float eps) {
  float mean, inverse;
  row_moments(x, D, false, eps, mean, inverse);
  for (int64_t i = 0; i < D; i += 16) vstore(x + i, vload(x + i) * vset(inverse) * vload(weight + i));
}

// Rotates the first `rotary` dimensions, halves paired; table row: cos[rotary/2], sin[rotary/2].
static inline void rotate_head(float* x, const float* table, int64_t rotary) {
  const int64_t half = rotary / 2;
  int64_t i = 0;
  for (; i + 16 <= half; i += 16) {
    v16 a = vload(x + i), b = vload(x + i + half), c = vload(table + i), s = vload(table + i + half);
    vstore(x + i, a * c - b * s);
    vstore(x + i + half, b * c + a * s);
  }
  for (; i < half; ++i) {
    float a = x[i], b = x[i + half], c = table[i], s = table[i + half];
    x[i] = a * c - b * s;
    x[i + half] = b * c + a * s;
  }
}

// Cache layout of a block and kv head. f32: K [D][size], V [size][D]. bf16: K [D/2][size][2], V [size/2][D][2].
// The first token of a block clears the values behind what this step writes: a masked probability is 0, but 0 * NaN is not.
static inline void write_kv(float* k_block, float* v_block, const float* k, const float* v, int64_t D, int64_t size, int64_t offset,
                            int64_t clear_from) {
  for (int64_t d = 0; d < D; ++d) k_block[d * size + offset] = k[d];
  memcpy(v_block + offset * D, v, D * 4);
  if (clear_from < size) memset(v_block + clear_from * D, 0, (size - clear_from) * D * 4);
}
static inline void write_kv(bf16* k_block, bf16* v_block, const float* k, const float* v, int64_t D, int64_t size, int64_t offset,
                            int64_t clear_from) {
  bf16 k_row[256], v_row[256];
  for (int64_t d = 0; d < D; d += 16) vstore_bf16(k_row + d, vload(k + d)), vstore_bf16(v_row + d, vload(v + d));
  for (int64_t d = 0; d < D; d += 2) memcpy(k_block + (d / 2 * size + offset) * 2, k_row + d, 4);
  // Nothing but the values of this token: another thread may be writing the other token of the pair.
  for (int64_t d = 0; d < D; d += 16) vscatter_pairs(v_block + offset / 2 * D * 2 + d * 2, offset % 2, v_row + d);
  if (clear_from % 2) {
    for (int64_t d = 0; d < D; ++d) v_block[(clear_from / 2 * D + d) * 2 + 1] = 0;
    ++clear_from;
  }
  if (clear_from < size) memset(v_block + clear_from * D, 0, (size - clear_from) * D * 2);
}

// Asks for a token's row, half of it in the other cores' caches, and for the lines its keys and values will be written to, which
// were last touched a step ago.
template <typename Act>
static inline void expect_row(const Op& op, const Context& ctx, int64_t t) {
  const Step& step = *ctx.step;
  const Buffer& in = ctx.buffers[op.in];
  const float* row = (const float*)in.data + t * in.stride;
  for (int64_t i = 0; i < (op.n[0] + 2 * op.n[1]) * op.n[2]; i += 16) __builtin_prefetch(row + i, 0);
  const int64_t G = op.n[1], D = op.n[2], size = op.n[4], block = step.slots[t] / size, offset = step.slots[t] % size;
  if (op.n[5] == kI8) {
    const int64_t base = block * G * int8_block_bytes(D, size);
    for (int64_t i = base; i < base + G * int8_block_bytes(D, size); i += int8_block_bytes(D, size))
      expect_kv_int8((const int8_t*)op.p[3] + i, (const int8_t*)op.p[4] + i, D, size, offset);
    return;
  }
  const int64_t pair = sizeof(Act) == 2 ? 2 : 1;  // elements of one key that lie together
  for (int64_t g = 0; g < G; ++g) {
    const int64_t base = (block * G + g) * size * D;
    const Act *k = (const Act*)op.p[3] + base + offset * pair, *v = (const Act*)op.p[4] + base + offset / pair * pair * D;
    for (int64_t d = 0; d < D; d += pair) __builtin_prefetch(k + d * size, 1);
    for (int64_t i = 0; i < D * pair; i += 64 / int64_t(sizeof(Act))) __builtin_prefetch(v + i, 1);
  }
}

template <typename Act>
static inline void store_query(const float* x, int64_t D, bool is_rotated, float scale, Act* out) {
  for (int64_t d = 0; d < D; d += 64) {
    v16 four[4];
    const int count = int(min64(64, D - d) / 16);
    for (int i = 0; i < count; ++i) four[i] = vload(x + d + i * 16);
    if (is_rotated) hadamard64(four);
    for (int i = 0; i < count; ++i) vstore_act<Act>(out + d + i * 16, four[i] * vset(scale));
  }
}

template <typename Act>
static void rope_kv_rows(const Op& op, const Context& ctx, int64_t first, int64_t last) {
  const Buffer &in = ctx.buffers[op.in], &out = ctx.buffers[op.out];
  const int64_t H = op.n[0], G = op.n[1], D = op.n[2], rotary = op.n[3], size = op.n[4];
  const Step& step = *ctx.step;
  constexpr int64_t kAhead = 4;  // tokens
  for (int64_t t = first; t < min64(last, first + kAhead); ++t) expect_row<Act>(op, ctx, t);
  for (int64_t t = first; t < last; ++t) {
    if (t + kAhead < last) expect_row<Act>(op, ctx, t + kAhead);
    float* row = (float*)in.data + t * in.stride;
    Act* q_out = (Act*)out.data + t * out.stride;
    const float* table = op.p[0] ? (const float*)op.p[0] + int64_t(step.positions[t]) * rotary : nullptr;
    for (int64_t h = 0; h < H + G; ++h) {
      float* x = row + h * D;
      const float* weight = (const float*)op.p[h < H ? 1 : 2];
      if (weight) norm_head(x, weight, D, op.f[0]);
      if (table) rotate_head(x, table, rotary);
      if (h < H) store_query<Act>(x, D, op.n[5] == kI8 && is_rotated_head(D), op.f[1], q_out + h * D);
    }
    const int64_t block = step.slots[t] / size, offset = step.slots[t] % size;
    const int64_t left = step.query_start[ctx.token_sequence[t] + 1] - ctx.first_row - t;
    const int64_t clear_from = offset == 0 ? min64(size, left) : size;
    for (int64_t g = 0; g < G; ++g) {
      if (op.n[5] == kI8) {
        const int64_t base = (block * G + g) * int8_block_bytes(D, size);
        write_kv_int8((int8_t*)op.p[3] + base, (int8_t*)op.p[4] + base, row + (H + g) * D, row + (H + G + g) * D, D, size, offset);
        continue;
      }
      const int64_t base = (block * G + g) * size * D;
      write_kv((Act*)op.p[3] + base, (Act*)op.p[4] + base, row + (H + g) * D, row + (H + G + g) * D, D, size, offset, clear_from);
    }
  }
}

static void run_rope_kv(const Op& op, const Context& ctx, int thread, int num_threads) {
  int64_t first, last;
  share_rows(ctx.step->T, thread, num_threads, first, last);
  if (ctx.act_dtype == kF32) rope_kv_rows<float>(op, ctx, first, last);
  else rope_kv_rows<bf16>(op, ctx, first, last);
}

}  // namespace MILLPOND_ISA
}  // namespace millpond
