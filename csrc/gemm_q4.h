// linear with weights of 4 bits in groups of 32 inputs, each group with a scale and perhaps a minimum, as GGUF has them.
//
// A row of A becomes int8 by groups too: y = sum over groups of s_a * (s_w * sum(q * a)) + minimum * s_a * sum(a). The sums inside are
// integers and exact, and the groups are added one by one as floats, in the same order whatever the number of rows or the
// instruction set: a result's bits depend on neither. A group of a panel is [2][4][16][4] bytes, the low halves k 0 to 15 and
// the high ones k 16 to 31 (what VNNI multiplies by fours of k), then 32 scales and 32 minimums as halves.
#pragma once
#include "gemm_i8.h"

namespace millpond {
namespace MILLPOND_ISA {

constexpr int64_t kVectorRows = 4;  // so many rows are multiplied at once without tiles

// Rows of A as integers. A number of a group stands at [row / 16][group][row % 16]; with few rows at [row][group].
struct GroupRows {
  int8_t* ints;
  float* scale;
  union {
    float* sum;      // scale * sum(a), for minimums
    int32_t* shift;  // -8 * sum(a): what q - 8 takes away from the sum of q
  };
  int64_t stride, groups, row_step, group_step;

  int64_t at(int64_t row) const { return row / 16 * 16 * groups + row % 16 * row_step; }
};

static inline GroupRows place_groups(void* memory, int64_t rows, int64_t K) {
  const int64_t groups = ceil32(K) / 32, stride = groups * 32 + 64, padded = (rows + 31) & ~int64_t(31);
  GroupRows place;
  place.ints = (int8_t*)memory;
  place.scale = (float*)(place.ints + padded * stride);
  place.sum = place.scale + padded * groups;
  place.stride = stride;
  place.groups = groups;
  place.row_step = rows <= kVectorRows ? groups : 1;
  place.group_step = rows <= kVectorRows ? 1 : 16;
  return place;
}

// Turns rows [first, last) of the op's input into integers, a group at a time. One that is not finite has the scale NaN.
static void quantise_groups(const Op& op, const Context& ctx, int64_t first, int64_t last, const GroupRows& rows) {
  const Buffer& in = ctx.buffers[op.in];
  for (int64_t r = first; r < last; ++r) {
    const bf16* x = (const bf16*)in.data + r * in.stride;
    int8_t* ints = rows.ints + r * rows.stride;
    int64_t at = rows.at(r);
    for (int64_t g = 0; g < rows.groups; ++g, x += 32, ints += 32, at += rows.group_step) {
      const v16 a = vload_bf16(x), b = vload_bf16(x + 16), zero = vset(0.0f);
      const float largest = vhmax(vmax(vmax(a, zero - a), vmax(b, zero - b))), bad = vsum((a - a) + (b - b));
      const bool is_zero = bad != 0.0f || largest < 1e-30f;
      const v16 inverse = vset(is_zero ? 0.0f : 127.0f / largest);
      const v16 p = is_zero ? zero : vround(a * inverse), q = is_zero ? zero : vround(b * inverse);
      const float scale = bad != 0.0f ? __builtin_nanf("") : is_zero ? 0.0f : largest / 127.0f, sum = vsum(p + q);
      vstore_bytes(ints, p);
      vstore_bytes(ints + 16, q);
      rows.scale[at] = scale;
      if (op.n[2] == kQ4Min) rows.sum[at] = scale * sum;
      else rows.shift[at] = int32_t(sum) * -8;
    }
  }
}

// y += one group's integer sums of a row.
template <bool kMin>
static inline v16 add_group(v16 y, v16 sums, const float* scale, const float* sum, v16 weight_scale, v16 minimum) {
  y = vfma(sums * vset(*scale), weight_scale, y);
  return kMin ? vfma(vset(*sum), minimum, y) : y;
}

// c[kRows][32] = rows of A from `row` on . panel, straight from the packed bytes.
template <bool kMin, int kRows, typename Side>
static void block_q4(const GroupRows& rows, int64_t row, const uint8_t* w, float* c, Side& side) {
  v16 y[kRows][2];
  const int8_t* a[kRows];
  int64_t at[kRows];
  for (int r = 0; r < kRows; ++r) {
    y[r][0] = y[r][1] = vset(0.0f);
    a[r] = rows.ints + (row + r) * rows.stride;
    at[r] = rows.at(row + r);
  }
  for (int64_t g = 0; g < rows.groups; ++g, w += kMin ? 640 : 576) {
    side.step();
    for (int half = 0; half < 2; ++half) {
      b64 low[4], high[4];
      for (int j = 0; j < 4; ++j) {
        const b64 bits = bload(w + half * 256 + j * 64);
        low[j] = blow_halves(bits), high[j] = bhigh_halves(bits);
      }
      const v16 scale = vload_f16(w + 512 + half * 32), minimum = kMin ? vload_f16(w + 576 + half * 32) : scale;
      for (int r = 0; r < kRows; ++r) {
        const int64_t place = at[r] + g * rows.group_step;
        b64 sums = bset(kMin ? 0 : rows.shift[place]), more = bset(0);
        for (int j = 0; j < 4; ++j) {
          int32_t four[2];
          memcpy(four, a[r] + g * 32 + j * 4, 4);
          memcpy(four + 1, a[r] + g * 32 + j * 4 + 16, 4);
          sums = bdot(sums, low[j], bset(four[0]));
          more = bdot(more, high[j], bset(four[1]));
        }
        y[r][half] = add_group<kMin>(y[r][half], bto_float(badd(sums, more)), rows.scale + place, rows.sum + place, scale, minimum);
      }
    }
  }
  for (int r = 0; r < kRows; ++r) vstore(c + r * 32, y[r][0]), vstore(c + r * 32 + 16, y[r][1]);
}

template <bool kMin, typename Side>
static void blocks_q4(const GroupRows& rows, int64_t row, int64_t count, const uint8_t* w, float* c, Side& side) {
  for (; count >= 4; row += 4, count -= 4, c += 128) block_q4<kMin, 4>(rows, row, w, c, side);
  if (count == 3) block_q4<kMin, 3>(rows, row, w, c, side);
  if (count == 2) block_q4<kMin, 2>(rows, row, w, c, side);
  if (count == 1) block_q4<kMin, 1>(rows, row, w, c, side);
}

#if MILLPOND_AMX
// Tiles 0 to 3 hold sums of `rows` x 16, 4 and 5 a group of A, 6 and 7 one of the weights.
static inline void load_group_tiles(int64_t rows) {
  TileConfig config;
  memset(&config, 0, sizeof config);
  config.palette = 1;
  for (int i = 0; i < 8; ++i) config.colsb[i] = 64, config.rows[i] = uint8_t(rows);
  config.colsb[4] = config.colsb[5] = 32;
  config.rows[6] = config.rows[7] = 8;
  asm volatile("ldtilecfg %0" ::"m"(config));
}

constexpr int64_t kMostOpenGroups = 20;  // longer sums are cut, so that open weights stay in the first-level cache
constexpr int64_t kOpenGroups = 16;

// Groups of a panel with their halves of bytes apart, for tiles: [half][group][8][16][4]; scales and minimums as floats.
struct alignas(64) OpenPanel {
  int8_t bits[2][kMostOpenGroups][512];
  float scale[2][kMostOpenGroups][16], minimum[2][kMostOpenGroups][16];
};

template <bool kMin, typename Side>
static void open_panel(const uint8_t* w, int64_t groups, OpenPanel& panel, Side& side) {
  const b64 eight = bset(0x08080808);
  for (int64_t g = 0; g < groups; ++g, w += kMin ? 640 : 576) {
    side.step();
    for (int half = 0; half < 2; ++half) {
      int8_t* bits = panel.bits[half][g];
      for (int j = 0; j < 4; ++j) {
        const b64 x = bload(w + half * 256 + j * 64), low = blow_halves(x), high = bhigh_halves(x);
        bstore(bits + j * 64, kMin ? low : bsub8(low, eight));
        bstore(bits + 256 + j * 64, kMin ? high : bsub8(high, eight));
      }
      vstore(panel.scale[half][g], vload_f16(w + 512 + half * 32));
      if (kMin) vstore(panel.minimum[half][g], vload_f16(w + 576 + half * 32));
    }
  }
}

// Sums of one group of 16 rows times one of 16 columns; four groups in turn have their own tiles (zeroed after use, see tiles.h).
template <int kTurn>
static inline void multiply_group(const int8_t* a, int64_t stride, const int8_t* w) {
  switch (kTurn) {
    case 0: {
      _tile_loadd(4, a, stride);
      _tile_loadd(6, w, 64);
      _tile_zero(0);
      _tile_dpbssd(0, 4, 6);
      _tile_zero(4);
      _tile_zero(6);
      break;
    }
    case 1: {
      _tile_loadd(5, a, stride);
      _tile_loadd(7, w, 64);
      _tile_zero(1);
      _tile_dpbssd(1, 5, 7);
      _tile_zero(5);
      _tile_zero(7);
      break;
    }
    case 2: {
      _tile_loadd(4, a, stride);
      _tile_loadd(6, w, 64);
      _tile_zero(2);
      _tile_dpbssd(2, 4, 6);
      _tile_zero(4);
      _tile_zero(6);
      break;
    }
    case 3: {
      _tile_loadd(5, a, stride);
      _tile_loadd(7, w, 64);
      _tile_zero(3);
      _tile_dpbssd(3, 5, 7);
      _tile_zero(5);
      _tile_zero(7);
      break;
    }
  }
}
template <int kTurn>
static inline void store_group(int32_t (*sums)[256]) {
  switch (kTurn) {
    case 0: _tile_stored(0, sums[0], 64); break;
    case 1: _tile_stored(1, sums[1], 64); break;
    case 2: _tile_stored(2, sums[2], 64); break;
    case 3: _tile_stored(3, sums[3], 64); break;
  }
}

// One column half of a panel for 16 rows of A, or 8. A group's tile is multiplied, two groups later stored, and one more later
// added to the result: nothing waits for what was begun just before.
template <bool kMin, int kRows, typename Side>
struct HalfPanel {
  const int8_t *a, *w;
  int64_t stride;
  const float *scale, *sum, *weight_scale, *minimum;
  Side& side;
  v16 y[kRows];
  int32_t (*sums)[256];

  template <int kTurn>
  inline __attribute__((always_inline)) void multiply(int64_t g) {
    side.step();
    multiply_group<kTurn>(a + g * 32, stride, w + g * 512);
  }
  template <int kTurn>
  inline __attribute__((always_inline)) void add(int64_t g) {
    const v16 s = vload(weight_scale + g * 16), m = kMin ? vload(minimum + g * 16) : s;
    for (int r = 0; r < kRows; ++r) y[r] = add_group<kMin>(y[r], vload_i32(sums[kTurn] + r * 16), scale + g * 16 + r, sum + g * 16 + r, s, m);
  }
  // The step of group g, g % 4 == kTurn; `is_edge` where not all three groups exist.
  template <int kTurn>
  inline __attribute__((always_inline)) void step(int64_t g, int64_t groups, bool is_edge) {
    if (!is_edge || g < groups) multiply<kTurn>(g);
    if (!is_edge || (g >= 2 && g < groups + 2)) store_group<(kTurn + 2) % 4>(sums);
    if (!is_edge || (g >= 3 && g < groups + 3)) add<(kTurn + 1) % 4>(g - 3);
  }
  inline __attribute__((always_inline)) void four_steps(int64_t g, int64_t groups, bool is_edge) {
    step<0>(g, groups, is_edge);
    step<1>(g + 1, groups, is_edge);
    step<2>(g + 2, groups, is_edge);
    step<3>(g + 3, groups, is_edge);
  }
};

// c[kRows][.] (+)= groups [g0, g1) of kRows rows of A from `row` (a multiple of 16) on . one half of an open panel.
template <bool kMin, int kRows, typename Side>
static __attribute__((noinline)) void half_panel(const GroupRows& rows, int64_t row, int64_t g0, int64_t g1, const OpenPanel& panel, int64_t half,
                                                 float* c, Side& side) {
  alignas(64) int32_t sums[4][256];
  const int64_t G = g1 - g0, at = rows.at(row) + g0 * 16;
  HalfPanel<kMin, kRows, Side> work{rows.ints + row * rows.stride + g0 * 32, panel.bits[half][0], rows.stride, rows.scale + at, rows.sum + at,
                                    panel.scale[half][0], panel.minimum[half][0], side, {}, sums};
  c += half * 16;
  for (int r = 0; r < kRows; ++r) work.y[r] = g0 ? vload(c + r * 32) : vset(0.0f);
  work.four_steps(0, G, true);
  int64_t g = 4;
  for (; g + 4 <= G; g += 4) work.four_steps(g, G, false);
  for (; g < G + 3; g += 4) work.four_steps(g, G, true);
  for (int r = 0; r < kRows; ++r) vstore(c + r * 32, work.y[r]);
}

// c[count][32] = rows of A from `row` (a multiple of 16) on . panel.
template <bool kMin, typename Side>
static void tiles_q4(const GroupRows& rows, int64_t row, int64_t count, const uint8_t* w, OpenPanel& panel, float* c, Side& side) {
  const int64_t cut = rows.groups > kMostOpenGroups ? kOpenGroups : rows.groups;
  for (int64_t g0 = 0; g0 < rows.groups; g0 += cut) {
    const int64_t g1 = min64(rows.groups, g0 + cut);
    open_panel<kMin>(w + g0 * (kMin ? 640 : 576), g1 - g0, panel, side);
    for (int64_t r = 0; r < count; r += 16)
      for (int64_t half = 0; half < 2; ++half) {
        if (count - r > 8) half_panel<kMin, 16>(rows, row + r, g0, g1, panel, half, c + r * 32, side);
        else half_panel<kMin, 8>(rows, row + r, g0, g1, panel, half, c + r * 32, side);
      }
  }
}
#endif

template <int kEpilogue, bool kMin>
static void run_linear_q4(const Op& op, const Context& ctx, int thread, int num_threads) {
  const int64_t M = op.rows ? ctx.step->L : ctx.step->T;
  const int64_t panels = ceil32(op.n[0]) / 32, G = ceil32(op.n[1]) / 32;
  const Cut cut = cut_linear(op, ctx, M, num_threads);
  const bool is_small = M <= kFewRows;  // then every thread makes its own integers, and needs to wait for nobody
  const GroupRows rows = place_groups(is_small ? ctx.scratch : ctx.int_rows, M, op.n[1]);
  if (is_small) quantise_groups(op, ctx, 0, M, rows);
  Side<bf16, kEpilogue, 0> side{{}, {op, ctx, nullptr}};
  if (kEpilogue == kStoreF32 && (op.flags & kFindPeaks)) clear_peaks(ctx.peaks, M);
  alignas(64) float two[2][128 * 32];  // of one panel: the block at work, and the one whose rows are being stored
  int64_t steps_of_panel = (min64(M, cut.rows) + 3) / 4 * G;
#if MILLPOND_AMX
  const bool is_tiled = M > kVectorRows;
  OpenPanel open;
  if (is_tiled) {
    load_group_tiles(M <= 8 ? 8 : 16);
    steps_of_panel = ((min64(M, cut.rows) + 15) / 16 * 2 + 1) * G;
  }
#endif
  int64_t turn = 0, piece = thread;
  while (piece < cut.groups * cut.row_blocks) {
    const int64_t next = num_threads + ctx.counter->fetch_add(1, std::memory_order_relaxed);
    const int64_t p0 = piece / cut.row_blocks * cut.panels, p1 = min64(panels, p0 + cut.panels);
    const int64_t m0 = piece % cut.row_blocks * cut.rows, count = min64(M, m0 + cut.rows) - m0;
    aim_ahead(op, ctx, cut, piece, next, (p1 - p0) * steps_of_panel, thread, num_threads, side.ahead);
    for (int64_t p = p0; p < p1; ++p, turn ^= 1) {
      const uint8_t* w = (const uint8_t*)op.p[0] + p * panel_bytes(op);
      if (M > 32) side.pending.expect(m0, count, p);
#if MILLPOND_AMX
      if (is_tiled) tiles_q4<kMin>(rows, m0, count, w, open, two[turn], side);
      else
#endif
        blocks_q4<kMin>(rows, m0, count, w, two[turn], side);
      side.pending.flush();
      side.pending.take(two[turn], m0, count, p, G);
    }
    piece = next;
  }
  side.pending.flush();
#if MILLPOND_AMX
  if (is_tiled) load_tile_config();
#endif
}

}  // namespace MILLPOND_ISA
}  // namespace millpond
