// The two products of attention over an int8 cache, as integers.
//
// A query row becomes 7 bits with one scale, and so do, chunk by chunk, the probabilities times the values' scales (8 bits where
// VNNI is; a row's own largest decides, so a chunk's other rows and tokens that a row does not see have no say). Sums of a chunk
// are exact; what the scales make of them is added up in floats, chunk by chunk.
#pragma once
#include "softmax16.h"

namespace millpond {
namespace MILLPOND_ISA {

// Up to here vector units are quicker: tiles take as long for one row as for sixteen, and sums of integers are equal anyhow.
constexpr int64_t kRowsWithoutTiles = MILLPOND_AMX ? 8 : kTileRows;

static inline v16 load_act(const float* p) { return vload(p); }
static inline v16 load_act(const bf16* p) { return vload_bf16(p); }

// w.q -> w.q_codes, w.q_scale and w.q_sum.
template <typename Act>
static inline void quantise_queries(AttentionScratch<Act>& w, int64_t rows, int64_t padded, int64_t D) {
  alignas(64) float row[kMaxHeadDim];
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t d = 0; d < D; d += 16) vstore(row + d, load_act(w.q + r * D + d));
    w.q_scale[r] = quantise_row(row, D, w.q_codes + r * D);
    w.q_sum[r] = 0;
    if (rows > kRowsWithoutTiles && D % 64 == 0) continue;  // tiles take signed keys
    for (int64_t d = 0; d < D; ++d) w.q_sum[r] += w.q_codes[r * D + d];
  }
  if (rows <= kRowsWithoutTiles) return;
  memset(w.q_codes + rows * D, 0, (padded - rows) * D);
  memset(w.p_codes + rows * kChunk, 0, (padded - rows) * kChunk);
}

static inline b64 four_bytes(const void* p) {
  int32_t four;
  memcpy(&four, p, 4);
  return bset(four);
}

#if MILLPOND_BF16
// Keys plus 128, unsigned, times signed queries; 128 times the sum of the query's codes is too much.
template <int R, typename Ahead>
static inline void vector_scores(const int8_t* q, const int32_t* q_sum, int64_t D, const ChunkView<int8_t>& chunk, Ahead& ahead, int32_t* s) {
  for (int64_t i = 0; i < chunk.count; ++i) {
    b64 a[R], b[R];
    for (int r = 0; r < R; ++r) a[r] = b[r] = bset(-128 * q_sum[r]);
    const int8_t* k = chunk.k[i];
    for (int64_t d = 0; d < D; d += 4, k += chunk.size * 4) {
      if (d % 32 == 0) ahead.step();
      const b64 x = bflip(bload(k)), y = bflip(bload(k + 64));
      for (int r = 0; r < R; ++r) {
        const b64 four = four_bytes(q + r * D + d);
        a[r] = bdot(a[r], x, four);
        b[r] = bdot(b[r], y, four);
      }
    }
    for (int r = 0; r < R; ++r) bstore(s + r * kChunk + i * 32, a[r]), bstore(s + r * kChunk + i * 32 + 16, b[r]);
  }
}
#else
template <int R, typename Ahead>
static inline void vector_scores(const int8_t* q, const int32_t*, int64_t D, const ChunkView<int8_t>& chunk, Ahead& ahead, int32_t* s) {
  for (int64_t i = 0; i < chunk.count; ++i) {
    b64 a[R], b[R];
    for (int r = 0; r < R; ++r) a[r] = b[r] = bset(0);
    const int8_t* k = chunk.k[i];
    for (int64_t d = 0; d < D; d += 4, k += chunk.size * 4) {
      if (d % 32 == 0) ahead.step();
      const b64 x = bload(k), y = bload(k + 64);
      for (int r = 0; r < R; ++r) {
        const b64 four = four_bytes(q + r * D + d);
        a[r] = bdot_signed(a[r], four, x);
        b[r] = bdot_signed(b[r], four, y);
      }
    }
    for (int r = 0; r < R; ++r) bstore(s + r * kChunk + i * 32, a[r]), bstore(s + r * kChunk + i * 32 + 16, b[r]);
  }
}
#endif

// sums[R][D] = codes of p . codes of V.
template <int R, typename Ahead>
static inline void vector_mix(const uint8_t* p, int64_t D, const ChunkView<int8_t>& chunk, Ahead& ahead, int32_t* sums) {
  for (int64_t d = 0; d < D; d += 32) {
    b64 a[R], b[R];
    for (int r = 0; r < R; ++r) a[r] = b[r] = bset(0);
    for (int64_t i = 0; i < chunk.count; ++i) {
      ahead.step();
      const int8_t* v = chunk.v[i] + d * 4;
      for (int64_t t = 0; t < 32; t += 4, v += D * 4) {
        const b64 x = bload(v), y = bload(v + 64);
        for (int r = 0; r < R; ++r) {
          const b64 four = four_bytes(p + r * kChunk + i * 32 + t);
          a[r] = bdot(a[r], four, x);
          b[r] = bdot(b[r], four, y);
        }
      }
    }
    for (int r = 0; r < R; ++r) bstore(sums + r * D + d, a[r]), bstore(sums + r * D + d + 16, b[r]);
  }
}

#if MILLPOND_AMX
template <bool kTwoRows>
static inline void score_step(const int8_t* q, int64_t D, const ChunkView<int8_t>& chunk, int64_t i, int64_t d) {
  const int8_t* k = chunk.k[i] + d * chunk.size;
  tile_step<Tile::kI8, kTwoRows>(q + d, q + 16 * D + d, D, k, k + 64, chunk.size * 4);
}

// `v`: values of tokens 64 i and on.
template <bool kTwoRows>
static inline void mix_step(const uint8_t* p, int64_t D, const int8_t* v, int64_t i, int64_t d) {
  const uint8_t* weights = p + i * 64;
  tile_step<Tile::kU8, kTwoRows>(weights, weights + 16 * kChunk, kChunk, v + d * 4, v + d * 4 + 64, D * 4);
}

template <bool kTwoRows, typename Ahead>
static inline void int8_scores_amx(const int8_t* q, int64_t D, const ChunkView<int8_t>& chunk, Ahead& ahead, int32_t* s) {
  for (int64_t i = 0; i < chunk.count; ++i) {
    zero_tiles<kTwoRows>();
    for (int64_t d = 0; d < D; d += 64) {
      ahead.step();
      ahead.step();
      score_step<kTwoRows>(q, D, chunk, i, d);
    }
    store_tiles<kTwoRows>(s + i * 32, kChunk);
  }
}

// A tile of values is 64 tokens deep, two blocks of 32. Returns where those from block i on lie one behind the other, if need be
// after a copy to `room`; a block that is not there counts as zeros.
static inline const int8_t* join_values(const ChunkView<int8_t>& chunk, int64_t i, int64_t D, int8_t* room) {
  const int64_t bytes = 32 * D;
  const bool has_second = i + 1 < chunk.count;
  if (has_second && chunk.v[i + 1] == chunk.v[i] + bytes) return chunk.v[i];
  for (int64_t b = 0; b < bytes; b += 64) bstore(room + b, bload(chunk.v[i] + b));
  for (int64_t b = 0; b < bytes; b += 64) bstore(room + bytes + b, has_second ? bload(chunk.v[i + 1] + b) : bset(0));
  return room;
}

template <bool kTwoRows, typename Ahead>
static inline void int8_mix_amx(const uint8_t* p, int64_t D, const ChunkView<int8_t>& chunk, Ahead& ahead, int8_t* room, int32_t* sums) {
  const int8_t* v[kChunk / 64];
  for (int64_t i = 0; i < chunk.count; i += 2) v[i / 2] = join_values(chunk, i, D, room + i * 32 * D);
  for (int64_t d = 0; d < D; d += 32) {
    zero_tiles<kTwoRows>();
    for (int64_t i = 0; i * 2 < chunk.count; ++i) {
      ahead.step();
      ahead.step();
      mix_step<kTwoRows>(p, D, v[i], i, d);
    }
    store_tiles<kTwoRows>(sums + d, D);
  }
}
#endif

// One chunk's scores of a tile's rows.
template <typename Act>
static inline void scores(AttentionScratch<Act>& w, int64_t rows, int64_t D, const ChunkView<Act>& chunk, ChunkPrefetcher<Act>& ahead) {
  scores(w.q, rows, D, chunk, ahead, w.s);
}
template <typename Act>
static inline void scores(AttentionScratch<Act>& w, int64_t rows, int64_t D, const ChunkView<int8_t>& chunk, ChunkPrefetcher<int8_t>& ahead) {
  int32_t* s = (int32_t*)w.s;
#if MILLPOND_AMX
  if (rows > 16 && D % 64 == 0) return int8_scores_amx<true>(w.q_codes, D, chunk, ahead, s);
  if (rows > kRowsWithoutTiles && D % 64 == 0) return int8_scores_amx<false>(w.q_codes, D, chunk, ahead, s);
#endif
  for_rows<kRowsOfBlock>(rows, [&](auto count, int64_t r) {
    vector_scores<decltype(count)::value>(w.q_codes + r * D, w.q_sum + r, D, chunk, ahead, s + r * kChunk);
  });
}

// Adds the chunk's values, weighed, to the results of a tile's rows.
template <typename Act>
static inline void mix(AttentionScratch<Act>& w, int64_t rows, int64_t D, const ChunkView<Act>& chunk, ChunkPrefetcher<Act>& ahead) {
  mix(w.p, rows, D, chunk, ahead, w.o);
}
template <typename Act>
static inline void multiply_values(AttentionScratch<Act>& w, int64_t rows, int64_t D, const ChunkView<int8_t>& chunk,
                                   ChunkPrefetcher<int8_t>& ahead) {
#if MILLPOND_AMX
  if (rows > 16) return int8_mix_amx<true>(w.p_codes, D, chunk, ahead, w.values, w.chunk_sums);
  if (rows > kRowsWithoutTiles) return int8_mix_amx<false>(w.p_codes, D, chunk, ahead, w.values, w.chunk_sums);
#endif
  for_rows<kRowsOfBlock>(rows, [&](auto count, int64_t r) {
    vector_mix<decltype(count)::value>(w.p_codes + r * kChunk, D, chunk, ahead, w.chunk_sums + r * D);
  });
}
template <typename Act>
static inline void mix(AttentionScratch<Act>& w, int64_t rows, int64_t D, const ChunkView<int8_t>& chunk, ChunkPrefetcher<int8_t>& ahead) {
  multiply_values(w, rows, D, chunk, ahead);
  for (int64_t r = 0; r < rows; ++r) {
    const v16 scale = vset(w.p_scale[r]), fade = vset(w.fade[r]);
    float* o = w.o + r * D;
    for (int64_t d = 0; d < D; d += 16) vstore(o + d, vfma(vload_i32(w.chunk_sums + r * D + d), scale, vload(o + d) * fade));
  }
}

}  // namespace MILLPOND_ISA
}  // namespace millpond
