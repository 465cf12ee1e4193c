// A chunk of 128 tokens of one kv head: where its keys and values lie, fetching them ahead, and the two products of a tile of
// query rows with them. Both products take blocks of 32 tokens in order, so they add up the same way chunk by chunk or block by block.
#pragma once
#include "gemm.h"

namespace millpond {
namespace MILLPOND_ISA {

constexpr int kChunk = 128;     // tokens

// A chunk's blocks of one kv head. Block i of the chunk holds tokens [32 i, 32 i + 32) of it.
template <typename Cache>
struct ChunkView {
  const Cache* k[kChunk / 32];
  const Cache* v[kChunk / 32];
  int64_t count;      // blocks of 32 tokens
  int64_t size;       // tokens in a cache block, the row length of K
  const float* k_scale[kChunk / 32];  // of an int8 cache
  const float* v_scale[kChunk / 32];
};

// Decode reads each block once, from memory, and has little to compute: the next chunk's lines are asked for while this one
// is multiplied, a line of every block in turn (see Prefetcher for why in turn).
template <typename Cache>
struct ChunkPrefetcher {
  static constexpr bool kScaled = sizeof(Cache) == 1;
  static constexpr int64_t kRowLines = 2;  // lines of 32 tokens in a row of K
  ChunkView<Cache> chunk;
  int64_t lines = 0, lines_each = 0, done = 0;

  void aim(const ChunkView<Cache>& next, int64_t D, int64_t steps) {
    chunk = next;
    lines = chunk.count ? D * int64_t(sizeof(Cache)) / 2 : 0;  // of a block's keys, and of its values
    lines_each = (lines + steps - 1) / steps;
    done = 0;
    if (!kScaled) return;
    for (int64_t i = 0; i < chunk.count; ++i)
      for (int64_t t = 0; t < 32; t += 16) {
        _mm_prefetch((const char*)(chunk.k_scale[i] + t), _MM_HINT_T1);
        _mm_prefetch((const char*)(chunk.v_scale[i] + t), _MM_HINT_T1);
      }
  }
  inline void step() {
    const int64_t last = min64(lines, done + lines_each), row_bytes = chunk.size * 4;
    for (; done < last; ++done)
      for (int64_t i = 0; i < chunk.count; ++i) {
        _mm_prefetch((const char*)chunk.k[i] + done / kRowLines * row_bytes + done % kRowLines * 64, _MM_HINT_T1);
        _mm_prefetch((const char*)chunk.v[i] + done * 64, _MM_HINT_T1);
      }
  }
};

// s[rows][kChunk] = q . K of the chunk
template <typename Ahead>
static void scores(const float* q, int64_t rows, int64_t D, const ChunkView<float>& chunk, Ahead& ahead, float* s) {
  for (int64_t i = 0; i < chunk.count; ++i) {
    for (int64_t d = 0; d < D; d += 32) ahead.step();
    for (int64_t r = 0; r < rows; ++r) {
      v16 a = vset(0.0f), b = vset(0.0f);
      const float* k = chunk.k[i];
      for (int64_t d = 0; d < D; ++d, k += chunk.size) {
        v16 x = vset(q[r * D + d]);
        a = vfma(x, vload(k), a);
        b = vfma(x, vload(k + 16), b);
      }
      vstore(s + r * kChunk + i * 32, a);
      vstore(s + r * kChunk + i * 32 + 16, b);
    }
  }
}

// o[rows][D] += p[rows][kChunk] . V of the chunk
template <typename Ahead>
static void mix(const float* p, int64_t rows, int64_t D, const ChunkView<float>& chunk, Ahead& ahead, float* o) {
  for (int64_t i = 0; i < chunk.count * D; i += 32) ahead.step();
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t d = 0; d < D; d += 32) {
      v16 a = vload(o + r * D + d), b = vload(o + r * D + d + 16);
      for (int64_t i = 0; i < chunk.count; ++i) {
        const float* v = chunk.v[i] + d;
        for (int64_t t = 0; t < 32; ++t, v += D) {
          v16 x = vset(p[r * kChunk + i * 32 + t]);
          a = vfma(x, vload(v), a);
          b = vfma(x, vload(v + 16), b);
        }
      }
      vstore(o + r * D + d, a);
      vstore(o + r * D + d + 16, b);
    }
}

#if MILLPOND_AMX
template <bool kTwoRows>
static inline void score_step(const bf16* q, int64_t D, const ChunkView<bf16>& chunk, int64_t i, int64_t d) {
  const bf16* k = chunk.k[i] + d * chunk.size;
  tile_step<Tile::kBF16, kTwoRows>(q + d, q + 16 * D + d, D * 2, k, k + 32, chunk.size * 4);
}

template <bool kTwoRows>
static inline void mix_step(const bf16* p, int64_t D, const ChunkView<bf16>& chunk, int64_t i, int64_t d) {
  const bf16 *weights = p + i * 32, *v = chunk.v[i] + d * 2;
  tile_step<Tile::kBF16, kTwoRows>(weights, weights + 16 * kChunk, kChunk * 2, v, v + 32, D * 4);
}

template <bool kTwoRows, typename Ahead>
static inline void scores_amx(const bf16* q, int64_t D, const ChunkView<bf16>& chunk, Ahead& ahead, float* s) {
  for (int64_t i = 0; i < chunk.count; ++i) {
    zero_tiles<kTwoRows>();
    for (int64_t d = 0; d < D; d += 32) ahead.step(), score_step<kTwoRows>(q, D, chunk, i, d);
    store_tiles<kTwoRows>(s + i * 32, kChunk);
  }
}

template <bool kTwoRows, typename Ahead>
static inline void mix_amx(const bf16* p, int64_t D, const ChunkView<bf16>& chunk, Ahead& ahead, float* o) {
  for (int64_t d = 0; d < D; d += 32) {
    load_tiles<kTwoRows>(o + d, D);
    for (int64_t i = 0; i < chunk.count; ++i) ahead.step(), mix_step<kTwoRows>(p, D, chunk, i, d);
    store_tiles<kTwoRows>(o + d, D);
  }
}

template <typename Ahead>
static void scores(const bf16* q, int64_t rows, int64_t D, const ChunkView<bf16>& chunk, Ahead& ahead, float* s) {
  if (rows > 16) scores_amx<true>(q, D, chunk, ahead, s);
  else scores_amx<false>(q, D, chunk, ahead, s);
}
template <typename Ahead>
static void mix(const bf16* p, int64_t rows, int64_t D, const ChunkView<bf16>& chunk, Ahead& ahead, float* o) {
  if (rows > 16) mix_amx<true>(p, D, chunk, ahead, o);
  else mix_amx<false>(p, D, chunk, ahead, o);
}
#else
// a, b += sum over pairs of x[pair] . w[pair][32 columns]; rows of w are `stride` pairs apart.
static inline void pair_dot(const bf16* x, const bf16* w, int64_t pairs, int64_t stride, v16& a, v16& b) {
  for (int64_t i = 0; i < pairs; ++i, w += stride * 2) {
#if MILLPOND_BF16
    int32_t pair;
    memcpy(&pair, x + i * 2, 4);
    __m512bh xs = (__m512bh)_mm512_set1_epi32(pair);
    a.a = _mm512_dpbf16_ps(a.a, xs, (__m512bh)_mm512_loadu_si512(w));
    b.a = _mm512_dpbf16_ps(b.a, xs, (__m512bh)_mm512_loadu_si512(w + 32));
#else
    v16 x0 = vset(bf16_to_float(x[i * 2])), x1 = vset(bf16_to_float(x[i * 2 + 1])), first, second;
    vload_pairs(w, first, second);
    a = vfma(x1, second, vfma(x0, first, a));
    vload_pairs(w + 32, first, second);
    b = vfma(x1, second, vfma(x0, first, b));
#endif
  }
}

template <typename Ahead>
static void scores(const bf16* q, int64_t rows, int64_t D, const ChunkView<bf16>& chunk, Ahead& ahead, float* s) {
  for (int64_t i = 0; i < chunk.count; ++i) {
    for (int64_t d = 0; d < D; d += 32) ahead.step();
    for (int64_t r = 0; r < rows; ++r) {
      v16 a = vset(0.0f), b = vset(0.0f);
      pair_dot(q + r * D, chunk.k[i], D / 2, chunk.size, a, b);
      vstore(s + r * kChunk + i * 32, a);
      vstore(s + r * kChunk + i * 32 + 16, b);
    }
  }
}
template <typename Ahead>
static void mix(const bf16* p, int64_t rows, int64_t D, const ChunkView<bf16>& chunk, Ahead& ahead, float* o) {
  for (int64_t i = 0; i < chunk.count * D; i += 32) ahead.step();
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t d = 0; d < D; d += 32) {
      v16 a = vload(o + r * D + d), b = vload(o + r * D + d + 16);
      for (int64_t i = 0; i < chunk.count; ++i) pair_dot(p + r * kChunk + i * 32, chunk.v[i] + d * 2, 16, D, a, b);
      vstore(o + r * D + d, a);
      vstore(o + r * D + d + 16, b);
    }
}
#endif

}  // namespace MILLPOND_ISA
}  // namespace millpond
