// The softmax of a chunk with probabilities as integers of 16 bits, thirty-two at a time: half of the instructions of floats.
//
// What becomes a bf16 or 8 bits right after needs no more. Rows with ALiBi over an int8 cache, and what is not finite or huge, take
// the way through floats (attention_softmax.h), as does everything where VNNI and bf16 are missing.
#pragma once
#include "attention_softmax.h"

namespace millpond {
namespace MILLPOND_ISA {

#if MILLPOND_BF16
constexpr float kLog2e = 1.44269504f;
constexpr float kHuge = 1e30f;  // beyond it products with the constants below might overflow

// Sixteen scores from key i of the chunk on: -inf where hidden, and with the ALiBi bias.
static inline v16 show(const RowView& row, const Seen& seen, int64_t chunk_start, int64_t i, v16 x) {
  static const float lane[16] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
  const v16 hidden = vset(-__builtin_inff());
  if (row.slope != 0.0f) x = vfma(vload(lane) + vset(float(chunk_start + i - row.position)), vset(row.slope), x);
  if (seen.high < i + 16) x = vselect_below(seen.high - i, x, hidden);
  return seen.low > i ? vselect_below(seen.low - i, hidden, x) : x;
}

// Two times sixteen floats as 16 bits, in groups of four in turn: 0-3 of x, 0-3 of y, 4-7 of x, ...
static inline __m512i pack_signed(v16 x, v16 y) { return _mm512_packs_epi32(_mm512_cvtps_epi32(x.a), _mm512_cvtps_epi32(y.a)); }
static inline __m512i pack_unsigned(v16 x, v16 y) { return _mm512_packus_epi32(_mm512_cvtps_epi32(x.a), _mm512_cvtps_epi32(y.a)); }
static inline __m512i words(int x) { return _mm512_set1_epi16(int16_t(x)); }

// The scores of a row: what it sees of one chunk, and their largest.
struct RowScores {
  v16 x[kChunk / 16];
  float largest;
  bool is_usable;  // all are numbers, or hidden
};

template <bool kWhole, typename Cache>
static inline void gather_scores(const RowView& row, const Seen& seen, int64_t chunk_start, const ChunkView<Cache>& chunk,
                                 const AttentionScratch<bf16>& w, int64_t r, int64_t blocks, RowScores& scores) {
  v16 best = vset(-__builtin_inff());
  __mmask16 numbers = 0xffff;
  for (int64_t i = 0; i < (kWhole ? kChunk / 32 : blocks); ++i) {
    v16 &x = scores.x[i * 2], &y = scores.x[i * 2 + 1];
    x = load_raw_scores(w, chunk, r, i * 32), y = load_raw_scores(w, chunk, r, i * 32 + 16);
    if (!kWhole) x = show(row, seen, chunk_start, i * 32, x), y = show(row, seen, chunk_start, i * 32 + 16, y);
    numbers = _mm512_mask_cmp_ps_mask(numbers, x.a, y.a, _CMP_ORD_Q);
    best = vmax(vmax(best, x), y);
  }
  scores.largest = vhmax(best);
  scores.is_usable = numbers == 0xffff && scores.largest < kHuge && !(scores.largest < -kHuge && scores.largest > -__builtin_inff());
}

// 2^(u / 256 - 127) as bf16, for u from 0 on: the bits of u / 2 would be that with a straight line for the fraction, whose error
// 2^f - 1 - f is close to f (f - 1) / 3. Relative error below 6.2e-3; rounding to bf16 alone has 3.9e-3.
static inline __m512i power_bf16(__m512i u) {
  const __m512i fraction = _mm512_slli_epi16(u, 8);
  const __m512i slope = _mm512_sub_epi16(words(83), _mm512_mulhi_epu16(fraction, words(81)));
  return _mm512_srli_epi16(_mm512_sub_epi16(u, _mm512_mulhi_epu16(fraction, slope)), 1);
}

// 2^(-u / 2048) in units of 1 / 32767, for u from 0 on and for negative ones 0. Relative error below 3e-3 where it is large.
static inline __m512i power_q15(__m512i u) {
  const __m512i fraction = _mm512_slli_epi16(u, 5);
  const __m512i slope = _mm512_sub_epi16(words(21940), _mm512_mulhi_epu16(fraction, words(5556)));
  const __m512i mantissa = _mm512_sub_epi16(words(32767), _mm512_mulhi_epu16(fraction, slope));
  return _mm512_srlv_epi16(mantissa, _mm512_srli_epi16(u, 11));
}

// Row r of a chunk of bf16 that it sees whole, relative to the largest score of the part's chunks before it: what is larger by less
// than 2^60 is as exact in a bf16, and to look for the chunk's own largest first would cost as much as all the rest. False: nothing was
// done, a score is larger than that or not a number.
static inline bool softmax_row16_as_before(const ChunkView<bf16>& chunk, AttentionScratch<bf16>& w, int64_t r) {
  const v16 scale = vset(256.0f * kLog2e), offset = vset((127.0f - kLog2e * w.max[r]) * 256.0f), most = vset(65535.0f);
  const __m512i in_order = _mm512_setr_epi64(0, 2, 4, 6, 1, 3, 5, 7), ones = words(0x3f80);
  v16 sums = vload(w.sums + r * 16);
  __m512i peak = _mm512_setzero_si512();
  for (int64_t i = 0; i < kChunk / 32; ++i) {
    const v16 x = vfma(load_raw_scores(w, chunk, r, i * 32), scale, offset), y = vfma(load_raw_scores(w, chunk, r, i * 32 + 16), scale, offset);
    const __m512i u = pack_unsigned(vmin(x, most), vmin(y, most));  // of what is not a number, vmin makes the largest
    peak = _mm512_max_epu16(peak, u);
    const __m512i p = _mm512_permutexvar_epi64(in_order, power_bf16(u));
    sums.a = _mm512_dpbf16_ps(sums.a, (__m512bh)p, (__m512bh)ones);
    _mm512_storeu_si512(w.p + r * kChunk + i * 32, p);
  }
  if (_mm512_cmpgt_epu16_mask(peak, words((127 + 60) * 256))) return false;
  vstore(w.sums + r * 16, sums);
  return true;
}

// Row r of a chunk of bf16; false: nothing was done, the row wants floats.
template <bool kWhole>
static inline bool softmax_row16(const RowView& row, const Seen& seen, int64_t chunk_start, const ChunkView<bf16>& chunk,
                                 AttentionScratch<bf16>& w, int64_t r, int64_t D) {
  const int64_t blocks = kWhole ? kChunk / 32 : (seen.used + 31) / 32;
  RowScores scores;
  gather_scores<kWhole>(row, seen, chunk_start, chunk, w, r, blocks, scores);
  if (!scores.is_usable) return false;
  v16 sums = move_maximum(w, r, D, scores.largest);
  const v16 scale = vset(256.0f * kLog2e), offset = vset((127.0f - kLog2e * w.max[r]) * 256.0f);
  const __m512i in_order = _mm512_setr_epi64(0, 2, 4, 6, 1, 3, 5, 7), ones = words(0x3f80);
  for (int64_t i = 0; i < blocks; ++i) {
    const __m512i u = pack_unsigned(vfma(scores.x[i * 2], scale, offset), vfma(scores.x[i * 2 + 1], scale, offset));
    const __m512i p = _mm512_permutexvar_epi64(in_order, power_bf16(u));
    sums.a = _mm512_dpbf16_ps(sums.a, (__m512bh)p, (__m512bh)ones);
    _mm512_storeu_si512(w.p + r * kChunk + i * 32, p);
  }
  if (!kWhole)
    for (int64_t i = blocks; i < kChunk / 32; ++i) _mm512_storeu_si512(w.p + r * kChunk + i * 32, _mm512_setzero_si512());
  vstore(w.sums + r * 16, sums);
  return true;
}

// The scales of a chunk's values in units of 1 / 32767 of the largest one, in the order of `pack_signed`. Only what a row sees counts.
struct ValueScales {
  __m512i share[kChunk / 32];
  float largest;
};

template <bool kWhole>
static inline void gather_value_scales(const Seen& seen, const ChunkView<int8_t>& chunk, int64_t blocks, ValueScales& scales) {
  v16 scale[kChunk / 16], peak = vset(0.0f);
  for (int64_t i = 0; i < blocks * 2; ++i) {
    scale[i] = vload(chunk.v_scale[i / 2] + i % 2 * 16);
    if (!kWhole) {
      if (seen.high < i * 16 + 16) scale[i] = vselect_below(seen.high - i * 16, scale[i], vset(0.0f));
      if (seen.low > i * 16) scale[i] = vselect_below(seen.low - i * 16, vset(0.0f), scale[i]);
    }
    peak = vmax(peak, scale[i]);
  }
  scales.largest = vhmax(peak);
  const v16 factor = vset(scales.largest > 0.0f ? 32767.0f / scales.largest : 0.0f);
  for (int64_t i = 0; i < blocks; ++i) scales.share[i] = pack_signed(scale[i * 2] * factor, scale[i * 2 + 1] * factor);
}

// The largest of thirty-two words, none of them negative.
static inline int32_t largest_word(__m512i x) {
  const __m256i half = _mm256_max_epi16(_mm512_castsi512_si256(x), _mm512_extracti64x4_epi64(x, 1));
  const __m128i quarter = _mm_max_epi16(_mm256_castsi256_si128(half), _mm256_extracti128_si256(half, 1));
  return 0xffff ^ (_mm_cvtsi128_si32(_mm_minpos_epu16(_mm_xor_si128(quarter, _mm_set1_epi32(-1)))) & 0xffff);
}

// What makes 8 bits of a row's weights, the largest of which is `peak`, so that it becomes 255: a shift to between 16384 and 32767,
// then a factor; and what one of the 8 bits is worth, in units of `unit`. Sixteen rows.
static inline void scale_codes16(const int32_t* peak, float unit, float* worth, int32_t* shift, int32_t* factor) {
  const __m512i largest = _mm512_loadu_si512(peak);
  const __mmask16 some = _mm512_test_epi32_mask(largest, largest);
  const __m512i exponent = _mm512_srli_epi32(_mm512_castps_si512(_mm512_cvtepi32_ps(largest)), 23);
  const __m512i shifts = _mm512_maskz_sub_epi32(some, _mm512_set1_epi32(127 + 14), exponent);
  const __m512 moved = _mm512_cvtepi32_ps(_mm512_sllv_epi32(largest, shifts));
  const __m512i factors = _mm512_maskz_cvttps_epi32(some, _mm512_add_ps(_mm512_div_ps(_mm512_set1_ps(255.0f * 32768.0f), moved), _mm512_set1_ps(0.5f)));
  _mm512_storeu_si512(shift, shifts);
  _mm512_storeu_si512(factor, factors);
  _mm512_storeu_ps(worth, _mm512_maskz_div_ps(some, _mm512_set1_ps(unit * 32768.0f), _mm512_cvtepi32_ps(_mm512_sllv_epi32(factors, shifts))));
}

static inline void store_codes16(AttentionScratch<bf16>& w, int64_t r, const __m512i* weights, int64_t blocks, int32_t shift, int32_t factor) {
  const __m512i shifts = words(shift), factors = words(factor);
  const __m512i in_order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
  for (int64_t i = 0; i < kChunk / 32; i += 2) {
    __m512i two[2];
    for (int64_t j = 0; j < 2; ++j)
      two[j] = i + j < blocks ? _mm512_mulhrs_epi16(_mm512_sllv_epi16(weights[i + j], shifts), factors) : _mm512_setzero_si512();
    _mm512_storeu_si512(w.p_codes + r * kChunk + i * 32, _mm512_permutexvar_epi32(in_order, _mm512_packus_epi16(two[0], two[1])));
  }
}

// Row r of a chunk of int8, relative to the largest score of the chunk alone; `settle` makes the rest of it.
template <bool kWhole>
static inline bool softmax_row16(const RowView& row, const Seen& seen, int64_t chunk_start, const ChunkView<int8_t>& chunk,
                                 AttentionScratch<bf16>& w, int64_t r, const ValueScales& values) {
  const int64_t blocks = kWhole ? kChunk / 32 : (seen.used + 31) / 32;
  const float q_scale = w.q_scale[r];
  if (row.slope != 0.0f || !(q_scale < kHuge)) return false;
  RowScores scores;
  gather_scores<kWhole>(row, seen, chunk_start, chunk, w, r, blocks, scores);
  if (!scores.is_usable || scores.largest == -__builtin_inff()) return false;
  // Rounded up a little, so that the largest does not come out below 0.
  const float top = scores.largest * (q_scale * kLog2e * 2048.0f);
  const v16 scale = vset(-q_scale * kLog2e * 2048.0f), offset = vset(__builtin_fmaf(__builtin_fabsf(top), 2.5e-7f, top));
  __m512i sums = _mm512_setzero_si512(), weights[kChunk / 32];
  for (int64_t i = 0; i < blocks; ++i) {
    const __m512i p = power_q15(pack_signed(vfma(scores.x[i * 2], scale, offset), vfma(scores.x[i * 2 + 1], scale, offset)));
    sums = _mm512_dpwssd_epi32(sums, p, words(1));
    weights[i] = _mm512_mulhrs_epi16(p, values.share[i]);
  }
  __m512i peak = weights[0];
  for (int64_t i = 1; i < blocks; ++i) peak = _mm512_max_epi16(peak, weights[i]);
  alignas(64) int32_t largest[16] = {largest_word(peak)}, shift[16], factor[16];
  alignas(64) float worth[16];
  scale_codes16(largest, values.largest * (1.0f / 32767.0f), worth, shift, factor);
  w.p_scale[r] = worth[0];
  store_codes16(w, r, weights, blocks, shift[0], factor[0]);
  w.chunk_max[r] = scores.largest * q_scale;
  _mm512_storeu_si512(w.fresh + r * 16, sums);
  return true;
}

// Up to sixteen rows from `first` on that see all of a chunk of int8, to the same bits as one by one: each row's steps wait for each
// other, so all rows do one step before the next, and what is one number a row is found for all at once. False: nothing was done, a row
// wants the other way.
static inline bool softmax_group16(const ChunkView<int8_t>& chunk, AttentionScratch<bf16>& w, int64_t first, int64_t rows, const ValueScales& values) {
  alignas(64) float largest[16], scale[16], offset[16];
  alignas(64) int32_t peak[16], shift[16], factor[16];
  __m512i weights[16][kChunk / 32];
  __mmask16 numbers = 0xffff;
  vstore(largest, vset(0.0f));
  bstore(peak, bset(0));
  for (int64_t r = 0; r < rows; ++r) {
    v16 best = vset(-__builtin_inff());
    for (int64_t i = 0; i < kChunk; i += 32) {
      const v16 x = load_raw_scores(w, chunk, first + r, i), y = load_raw_scores(w, chunk, first + r, i + 16);
      numbers = _mm512_mask_cmp_ps_mask(numbers, x.a, y.a, _CMP_ORD_Q);
      best = vmax(vmax(best, x), y);
    }
    largest[r] = vhmax(best);
  }
  const v16 top = vload(largest), q_scale = vload(w.q_scale + first);
  const __mmask16 usable = _mm512_cmp_ps_mask(top.a, vset(kHuge).a, _CMP_LT_OQ) & _mm512_cmp_ps_mask(top.a, vset(-kHuge).a, _CMP_GE_OQ) &
                           _mm512_cmp_ps_mask(q_scale.a, vset(kHuge).a, _CMP_LT_OQ);
  const __mmask16 wanted = __mmask16((1u << rows) - 1);
  if (numbers != 0xffff || (usable & wanted) != wanted) return false;
  const v16 per_octave = q_scale * vset(kLog2e) * vset(2048.0f), highest = top * per_octave;
  vstore(scale, vset(0.0f) - per_octave);
  vstore(offset, vfma(vmax(highest, vset(0.0f) - highest), vset(2.5e-7f), highest));
  for (int64_t r = 0; r < rows; ++r) {
    __m512i sums = _mm512_setzero_si512(), most = sums;
    for (int64_t i = 0; i < kChunk / 32; ++i) {
      const v16 x = load_raw_scores(w, chunk, first + r, i * 32), y = load_raw_scores(w, chunk, first + r, i * 32 + 16);
      const __m512i p = power_q15(pack_signed(vfma(x, vset(scale[r]), vset(offset[r])), vfma(y, vset(scale[r]), vset(offset[r]))));
      sums = _mm512_dpwssd_epi32(sums, p, words(1));
      weights[r][i] = _mm512_mulhrs_epi16(p, values.share[i]);
      most = _mm512_max_epi16(most, weights[r][i]);
    }
    _mm512_storeu_si512(w.fresh + (first + r) * 16, sums);
    peak[r] = largest_word(most);
  }
  scale_codes16(peak, values.largest * (1.0f / 32767.0f), w.p_scale + first, shift, factor);
  vstore(w.chunk_max + first, top * q_scale);
  for (int64_t r = 0; r < rows; ++r) store_codes16(w, first + r, weights[r], kChunk / 32, shift[r], factor[r]);
  return true;
}

// Brings what the rows of a chunk have, each relative to its own largest score, to the largest of all chunks so far.
static inline void settle(AttentionScratch<bf16>& w, int64_t rows) {
  for (int64_t r = 0; r < rows; r += 16) {
    const v16 old = vload(w.max + r), here = vload(w.chunk_max + r), top = vmax(old, here);
    const v16 finite = vmax(top, vset(-3e38f));
    const v16 fade = vexp(old - finite), scale = vexp(here - finite);
    vstore(w.max + r, top);
    vstore(w.fade + r, fade);
    vstore(w.p_scale + r, vload(w.p_scale + r) * scale);
    alignas(64) float weight[16];
    vstore(weight, scale * vset(1.0f / 32767.0f));
    for (int64_t i = 0; i < min64(16, rows - r); ++i) {
      float* sums = w.sums + (r + i) * 16;
      vstore(sums, vfma(vload_i32(w.fresh + (r + i) * 16), vset(weight[i]), vload(sums) * vset(w.fade[r + i])));
    }
  }
}
#endif

// The softmax of a chunk for all rows of a tile.
template <typename Act, typename Cache>
static inline void softmax_rows(const RowView* view, int64_t rows, int64_t chunk_start, const ChunkView<Cache>& chunk, AttentionScratch<Act>& w,
                                int64_t D) {
  for (int64_t r = 0; r < rows; ++r) softmax_row(view[r], chunk_start, chunk, w, r, D), w.fade[r] = 1.0f;
}

#if MILLPOND_BF16
static inline bool is_whole(const RowView& row, const Seen& seen) { return seen.low <= 0 && seen.high >= kChunk && row.slope == 0.0f; }

static inline void softmax_rows(const RowView* view, int64_t rows, int64_t chunk_start, const ChunkView<bf16>& chunk, AttentionScratch<bf16>& w,
                                int64_t D) {
  for (int64_t r = 0; r < rows; ++r) {
    const Seen seen = seen_of(view[r], chunk_start, chunk.count * 32);
    const bool has_all = is_whole(view[r], seen);
    if (has_all && w.max[r] > -kHuge && softmax_row16_as_before(chunk, w, r)) continue;
    const bool is_done = has_all ? softmax_row16<true>(view[r], seen, chunk_start, chunk, w, r, D)
                                 : softmax_row16<false>(view[r], seen, chunk_start, chunk, w, r, D);
    if (!is_done) softmax_row(view[r], chunk_start, chunk, w, r, D);
  }
}

static inline void softmax_rows(const RowView* view, int64_t rows, int64_t chunk_start, const ChunkView<int8_t>& chunk, AttentionScratch<bf16>& w,
                                int64_t D) {
  ValueScales whole, part;
  Seen of_part{0, 0, 0};
  bool has_whole = false;
  for (int64_t r = 0; r < rows; ++r) {
    const Seen seen = seen_of(view[r], chunk_start, chunk.count * 32);
    if (r % 16 == 0 && is_whole(view[r], seen)) {
      const int64_t count = min64(16, rows - r);
      bool is_group = true;
      for (int64_t i = 1; i < count; ++i) is_group &= is_whole(view[r + i], seen_of(view[r + i], chunk_start, chunk.count * 32));
      if (is_group) {
        if (!has_whole) gather_value_scales<true>(seen, chunk, kChunk / 32, whole), has_whole = true;
        if (softmax_group16(chunk, w, r, count, whole)) {
          r += count - 1;
          continue;
        }
      }
    }
    bool is_done;
    if (is_whole(view[r], seen)) {
      if (!has_whole) gather_value_scales<true>(seen, chunk, kChunk / 32, whole), has_whole = true;
      is_done = softmax_row16<true>(view[r], seen, chunk_start, chunk, w, r, whole);
    } else {  // rows of one token come one after the other, and see the same
      if (seen.low != of_part.low || seen.high != of_part.high) gather_value_scales<false>(seen, chunk, (seen.used + 31) / 32, part), of_part = seen;
      is_done = softmax_row16<false>(view[r], seen, chunk_start, chunk, w, r, part);
    }
    if (is_done) continue;
    softmax_row(view[r], chunk_start, chunk, w, r, D);
    w.chunk_max[r] = w.max[r];
    bstore(w.fresh + r * 16, bset(0));
  }
  settle(w, rows);
}
#endif

}  // namespace MILLPOND_ISA
}  // namespace millpond
