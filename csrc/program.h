// The program: a flat list of operations over numbered buffers, run by all threads of a pool with a barrier after each.
//
// One struct describes every operation; which fields it reads stands beside its kind. Weights are packed once (pack.cpp)
// and never copied. A row of an activation buffer is padded with zeros to a multiple of 32 elements, and the number of
// rows to a multiple of 32, so that no kernel has a tail.
#pragma once
#include <atomic>
#include <cstdint>

namespace millpond {

enum OpKind : int32_t { kEmbed = 0, kNorm = 1, kLinear = 2, kRopeKv = 3, kAttention = 4, kGather = 5 };
enum DType : int32_t {
  kF32 = 0,
  kBF16 = 1,
  kI8 = 2,
  kQ4 = 3,     // 4 bits, groups of 32 inputs with a scale: scale * (q - 8)
  kQ4Min = 4,  // and a minimum: scale * q + minimum
};
// A group of a panel of 32 outputs: the bits, then a half a column as scale, then one as minimum (gemm_q4.h).
constexpr int64_t q4_group_bytes(int32_t dtype) { return 512 + (dtype == kQ4Min ? 128 : 64); }
enum Epilogue : int32_t {
  kStoreF32 = 0,      // out f32 = y
  kStoreAct = 1,      // out act = y
  kAddF32 = 2,        // out f32 += y
  kSiluMul = 3,       // out act = silu(gate) * up; columns come as 16 of gate, 16 of up
  kGeluTanhMul = 4,   // the same with gelu (tanh form)
  kGeluTanh = 5,      // out act = gelu(y), tanh form
  kGelu = 6,          // out act = gelu(y), erf form
  kGeluMul = 7,       // gated, erf form
  kSilu = 8,
};
enum NormFlags : int32_t { kLayerNorm = 1, kOutF32 = 2, kOutAdd = 4 };
enum EmbedFlags : int32_t { kRotatedTable = 1 };  // int8, as products of 7-bit rows have it (hadamard.h)
enum LinearFlags : int32_t { kFindPeaks = 1 };  // with kStoreF32: where each row is largest
enum AttentionFlags : int32_t { kLogitRowsAlone = 1 };  // rows without logits may stay as they were

struct Op {
  int32_t kind;
  int32_t rows;   // 0: the step's T tokens, 1: its L logit rows
  int32_t in, out;
  int32_t flags;
  int32_t n[11];
  float f[4];
  const void* p[6];
};
// kEmbed     out f32 [T,E]; n0=E n1=table dtype n2=vocabulary; f0=scale; p0=packed table, p1=its scales (int8), p2=position table f32 [P,E] or null; flags
// kNorm      in f32 [*,E], out; n0=E; f0=eps; p0=weight f32, p1=bias f32 or null; flags
// kLinear    in act [*,K], out [*,N]; n0=N n1=K n2=weight dtype n3=epilogue n5=planes of A (int8; with 1 the weights are rotated); p0=packed, p1=scales f32 [N] (int8), p2=bias f32 or null
// kRopeKv    in f32 [T,(H+2G)D], out act [T,HD]; n0=H n1=G n2=D n3=rotary n4=block size n5=cache dtype; f0=eps of q/k norm, f1=scale of q;
//            p0=cos|sin table f32 [P,rotary] or null, p1/p2=q/k norm weight or null, p3/p4=K/V cache of the layer
// kAttention in act [T,HD], out act; n0=H n1=G n2=D n3=window (0: none) n4=block size n5=cache dtype; p0=ALiBi slopes f32 [H] or null, p3/p4=cache; flags
// kGather    in [T,E] -> out [L,E] of the same dtype; n0=E

struct Buffer {
  void* data;
  int64_t stride;  // elements
  int32_t dtype;
};

struct Step {
  int32_t T, B, L, max_blocks;
  const int32_t *token_ids, *positions, *slots, *query_start, *context_len, *block_tables, *logit_rows;
  int32_t* peaks;  // out [L]: column of each logit row's largest value, the first of equals; -1 where a value is NaN
  float* sums;     // out [L][N/32], or null: the sum of e^x over each panel of a logit row; of use where no value is above 60
};

// The largest values of a row so far, of every sixteenth column each.
struct alignas(64) Peak {
  float value[16], column[16], nan[16];
};

// Long contexts of few sequences are shared out part by part (attention.h).
struct Parts {
  int64_t each;                // most parts a tile and kv head has; 0: nothing is shared out
  float* data;                 // results of every part, until the last one of its tile is there
  std::atomic<int32_t>* done;  // parts that are there, for each tile and kv head
};

struct Context {
  const Step* step;
  const Buffer* buffers;
  const int32_t* token_sequence;  // [T] which sequence a row belongs to
  const char* has_logits;         // [T] whether a row is one of the logit rows
  const int32_t* tile_start;      // [B+1] first attention tile of a sequence, per kv head; set for the current attention shape
  int32_t act_dtype;
  std::atomic<int32_t>* counter;  // of the current op: next piece of work
  void* scratch;                  // of this thread
  const Op* next_linear;          // the next product after the current op, null after the last
  Peak* peaks;                    // of this thread, one a logit row
  void* int_rows;                 // of all threads: rows of A as integers (gemm_i8.h, gemm_q4.h)
  int64_t first_row;              // of the step that the first row of a band is (program.cpp); else 0
  Parts parts;                    // of attention
  int64_t cache_bytes;            // the second-level cache of a core
};

constexpr int64_t kManyRows = 33;  // from here on threads share the integer rows of A
constexpr int kTileRows = 32;  // rows of an attention tile
constexpr int kPartTokens = 512;  // keys between two merges of attention's results
constexpr int kMostHeadDim = 256;
constexpr int64_t kScratchBytes = 8 << 20;

using Kernel = void (*)(const Op&, const Context&, int thread, int num_threads);
struct KernelTable {
  Kernel run[6];
  Kernel quantise;             // before a product of integer weights with many rows
  uint32_t (*thread_begin)();  // sets the thread's modes for a step; returns those it had
  void (*thread_end)(uint32_t modes);
  int64_t (*read_sum)(const void* data, int64_t bytes);  // bandwidth probe
};

}  // namespace millpond

extern "C" {
const millpond::KernelTable* millpond_kernels_avx2();
const millpond::KernelTable* millpond_kernels_avx512();
const millpond::KernelTable* millpond_kernels_avx512_bf16();
const millpond::KernelTable* millpond_kernels_amx();
}
