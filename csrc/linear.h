// The linear op: which kernel multiplies it, by the dtype of its weights.
#pragma once
#include "gemm_q4.h"

namespace millpond {
namespace MILLPOND_ISA {

static void run_linear(const Op& op, const Context& ctx, int thread, int num_threads) {
  if (op.rows && ctx.step->L == 0) return;  // a part of a prompt that is not its last
  switch (op.n[2]) {
    case kI8:
      if (op.n[5] == 1) return run_linear_planes<1>(op, ctx, thread, num_threads);
      return run_linear_planes<2>(op, ctx, thread, num_threads);
    case kQ4:
      return choose_epilogue(op.n[3], [&](auto epilogue) { run_linear_q4<decltype(epilogue)::value, false>(op, ctx, thread, num_threads); });
    case kQ4Min:
      return choose_epilogue(op.n[3], [&](auto epilogue) { run_linear_q4<decltype(epilogue)::value, true>(op, ctx, thread, num_threads); });
    default: return run_linear_float(op, ctx, thread, num_threads);
  }
}

// Rows of A as integers for a product of many rows, shared by all threads; a barrier follows.
static void run_quantise(const Op& op, const Context& ctx, int thread, int num_threads) {
  const int64_t M = op.rows ? ctx.step->L : ctx.step->T, first = M * thread / num_threads, last = M * (thread + 1) / num_threads;
  if (op.n[2] == kI8) quantise_rows(op, ctx, first, last, place_rows(ctx.int_rows, M, op.n[1]));
  else quantise_groups(op, ctx, first, last, place_groups(ctx.int_rows, M, op.n[1]));
}

}  // namespace MILLPOND_ISA
}  // namespace millpond
