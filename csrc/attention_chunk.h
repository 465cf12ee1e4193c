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

// a[r], b[r] += sum over numbers of x[r] . w[number][32 columns]; rows of x and of w are so many numbers apart.
template <int R>
static inline void dots(const float* x, int64_t x_stride, const float* w, int64_t w_stride, int64_t count, v16* a, v16* b) {
  for (int64_t i = 0; i < count; ++i, w += w_stride) {
    const v16 left = vload(w), right = vload(w + 16);
    for (int r = 0; r < R; ++r) {
      const v16 one = vset(x[r * x_stride + i]);
      a[r] = vfma(one, left, a[r]);
      b[r] = vfma(one, right, b[r]);
    }
  }
}
// The same in pairs: a row of w is 32 columns of pairs.
template <int R>
static inline void dots(const bf16* x, int64_t x_stride, const bf16* w, int64_t w_stride, int64_t count, v16* a, v16* b) {
  for (int64_t i = 0; i < count; i += 2, w += w_stride * 2) {
#if MILLPOND_BF16
    const __m512bh left = (__m512bh)_mm512_loadu_si512(w), right = (__m512bh)_mm512_loadu_si512(w + 32);
    for (int r = 0; r < R; ++r) {
      int32_t pair;
      memcpy(&pair, x + r * x_stride + i, 4);
      const __m512bh two = (__m512bh)_mm512_set1_epi32(pair);
      a[r].a = _mm512_dpbf16_ps(a[r].a, two, left);
      b[r].a = _mm512_dpbf16_ps(b[r].a, two, right);
    }
#else
    v16 first, second, third, fourth;
    vload_pairs(w, first, second);
    vload_pairs(w + 32, third, fourth);
    for (int r = 0; r < R; ++r) {
      const v16 x0 = vset(bf16_to_float(x[r * x_stride + i])), x1 = vset(bf16_to_float(x[r * x_stride + i + 1]));
      a[r] = vfma(x1, second, vfma(x0, first, a[r]));
      b[r] = vfma(x1, fourth, vfma(x0, third, b[r]));
    }
#endif
  }
}

// s[rows][kChunk] = q . K of the chunk
template <typename Act, typename Ahead>
static inline void vector_scores(const Act* q, int64_t rows, int64_t D, const ChunkView<Act>& chunk, Ahead& ahead, float* s) {
  for (int64_t i = 0; i < chunk.count; ++i) {
    for (int64_t d = 0; d < D; d += 32) ahead.step();
    for_rows<kRowsOfBlock>(rows, [&](auto count, int64_t r) {
      constexpr int R = decltype(count)::value;
      v16 a[R], b[R];
      for (int j = 0; j < R; ++j) a[j] = b[j] = vset(0.0f);
      dots<R>(q + r * D, D, chunk.k[i], chunk.size, D, a, b);
      float* to = s + r * kChunk + i * 32;
      for (int j = 0; j < R; ++j, to += kChunk) vstore(to, a[j]), vstore(to + 16, b[j]);
    });
  }
}

// o[rows][D] += p[rows][kChunk] . V of the chunk
template <typename Act, typename Ahead>
static inline void vector_mix(const Act* p, int64_t rows, int64_t D, const ChunkView<Act>& chunk, Ahead& ahead, float* o) {
  constexpr int64_t kColumn = 4 / sizeof(Act);  // numbers between two columns of values
  for (int64_t i = 0; i < chunk.count * D; i += 32) ahead.step();
  for (int64_t d = 0; d < D; d += 32)
    for_rows<kRowsOfBlock>(rows, [&](auto count, int64_t r) {
      constexpr int R = decltype(count)::value;
      v16 a[R], b[R];
      float* to = o + r * D + d;
      for (int j = 0; j < R; ++j) a[j] = vload(to + j * D), b[j] = vload(to + j * D + 16);
      for (int64_t i = 0; i < chunk.count; ++i) dots<R>(p + r * kChunk + i * 32, kChunk, chunk.v[i] + d * kColumn, D, 32, a, b);
      for (int j = 0; j < R; ++j) vstore(to + j * D, a[j]), vstore(to + j * D + 16, b[j]);
    });
}

static inline void scores(const float* q, int64_t rows, int64_t D, const ChunkView<float>& chunk, ChunkPrefetcher<float>& ahead, float* s) {
  vector_scores(q, rows, D, chunk, ahead, s);
}
static inline void mix(const float* p, int64_t rows, int64_t D, const ChunkView<float>& chunk, ChunkPrefetcher<float>& ahead, float* o) {
  vector_mix(p, rows, D, chunk, ahead, o);
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
static inline void scores(const bf16* q, int64_t rows, int64_t D, const ChunkView<bf16>& chunk, ChunkPrefetcher<bf16>& ahead, float* s) {
  vector_scores(q, rows, D, chunk, ahead, s);
}
static inline void mix(const bf16* p, int64_t rows, int64_t D, const ChunkView<bf16>& chunk, ChunkPrefetcher<bf16>& ahead, float* o) {
  vector_mix(p, rows, D, chunk, ahead, o);
}
#endif

}  // namespace MILLPOND_ISA
}  // namespace millpond
