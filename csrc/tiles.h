// The tiles of the matrix units: a k-step of products of 32 rows and 32 columns, and what goes in and out of its four accumulators.
//
// Every write of a tile, by a load or a product, takes a physical register, and frees the one before it when it retires. While a
// neighbour on the same core holds tiles too, so few of them are left that eight live tiles let nothing run ahead: 57 to 69 cycles
// a product where 15 are possible. A tile that is zeroed gives its register back, so each is zeroed right after its last use: 36
// cycles then, and nothing lost on a quiet core (docs/design/performance.md).
#pragma once
#include "simd.h"

namespace millpond {
namespace MILLPOND_ISA {

#if MILLPOND_AMX
struct alignas(64) TileConfig {
  uint8_t palette, start_row, reserved[14];
  uint16_t colsb[16];
  uint8_t rows[16];
};
static inline void load_tile_config() {
  TileConfig config;
  memset(&config, 0, sizeof config);
  config.palette = 1;
  for (int i = 0; i < 8; ++i) config.colsb[i] = 64, config.rows[i] = 16;
  // NOTE: not _tile_loadconfig: gcc 12 declares its operand as 8 bytes and drops the stores above.
  asm volatile("ldtilecfg %0" ::"m"(config));
}

// The accumulators: tiles 0 to 3 are rows 0-15 and 16-31 by columns 0-15 and 16-31 of c, or 0 and 1 sixteen rows. Rows stand
// `stride` elements of 32 bits apart.
template <bool kTwoRows>
static inline void zero_tiles() {
  _tile_zero(0);
  _tile_zero(1);
  if (kTwoRows) _tile_zero(2);
  if (kTwoRows) _tile_zero(3);
}
template <bool kTwoRows>
static inline void load_tiles(const void* c, int64_t stride) {
  const float* from = (const float*)c;
  _tile_loadd(0, from, stride * 4);
  _tile_loadd(1, from + 16, stride * 4);
  if (kTwoRows) _tile_loadd(2, from + 16 * stride, stride * 4);
  if (kTwoRows) _tile_loadd(3, from + 16 * stride + 16, stride * 4);
}
template <bool kTwoRows>
static inline void store_tiles(void* c, int64_t stride) {
  float* to = (float*)c;
  _tile_stored(0, to, stride * 4);
  _tile_stored(1, to + 16, stride * 4);
  if (kTwoRows) _tile_stored(2, to + 16 * stride, stride * 4);
  if (kTwoRows) _tile_stored(3, to + 16 * stride + 16, stride * 4);
  zero_tiles<kTwoRows>();
}

// What a tile holds: pairs of bf16, or fours of bytes, those of A signed or not.
enum class Tile { kBF16, kI8, kU8 };

// Adds products of A's rows, `second` the lower sixteen, and of two tiles of columns. Strides are in bytes. Loads stand between the
// products that need them, so that both kinds of unit have work.
template <Tile kTile, bool kTwoRows>
static inline void tile_step(const void* a, const void* second, int64_t a_stride, const void* left, const void* right, int64_t b_stride) {
  _tile_loadd(6, left, b_stride);
  _tile_loadd(4, a, a_stride);
  if constexpr (kTile == Tile::kBF16) _tile_dpbf16ps(0, 4, 6);
  if constexpr (kTile == Tile::kI8) _tile_dpbssd(0, 4, 6);
  if constexpr (kTile == Tile::kU8) _tile_dpbusd(0, 4, 6);
  if (!kTwoRows) _tile_zero(6);
  _tile_loadd(7, right, b_stride);
  if constexpr (kTile == Tile::kBF16) _tile_dpbf16ps(1, 4, 7);
  if constexpr (kTile == Tile::kI8) _tile_dpbssd(1, 4, 7);
  if constexpr (kTile == Tile::kU8) _tile_dpbusd(1, 4, 7);
  _tile_zero(4);
  if (kTwoRows) {
    _tile_loadd(5, second, a_stride);
    if constexpr (kTile == Tile::kBF16) _tile_dpbf16ps(2, 5, 6);
    if constexpr (kTile == Tile::kI8) _tile_dpbssd(2, 5, 6);
    if constexpr (kTile == Tile::kU8) _tile_dpbusd(2, 5, 6);
    _tile_zero(6);
    if constexpr (kTile == Tile::kBF16) _tile_dpbf16ps(3, 5, 7);
    if constexpr (kTile == Tile::kI8) _tile_dpbssd(3, 5, 7);
    if constexpr (kTile == Tile::kU8) _tile_dpbusd(3, 5, 7);
    _tile_zero(5);
  }
  _tile_zero(7);
}
#endif

}  // namespace MILLPOND_ISA
}  // namespace millpond
