"""vLLM's `LLM` on the CPU, prefix caching off.

    VENV/bin/python bench/engine/peers/vllm_offline.py --model DIR --cases "{cases}"

Needs a CPU build of vLLM in its own environment. It compiles for minutes at the start: use the template with `{cases}`
and set VLLM_CPU_KVCACHE_SPACE and VLLM_CPU_OMP_THREADS_BIND as its documentation says for the machine.
"""

from __future__ import annotations

from contract import make_parser, run, timed
from vllm import LLM, SamplingParams
from vllm.inputs import TokensPrompt


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--max-len", type=int, default=2304)
    args = parser.parse_args()
    llm = LLM(args.model, dtype="bfloat16", max_model_len=args.max_len, max_num_seqs=64, enable_prefix_caching=False)

    def generate(prompts: list[list[int]], output: int) -> tuple[float | None, float]:
        params = SamplingParams(temperature=0, max_tokens=output, ignore_eos=True)
        inputs = [TokensPrompt(prompt_token_ids=prompt) for prompt in prompts]

        def call() -> list[int]:
            return [len(done.outputs[0].token_ids) for done in llm.generate(inputs, params, use_tqdm=False)]

        return None, timed(call, output)

    run(args, generate, llm.llm_engine.model_config.get_vocab_size())


if __name__ == "__main__":
    main()
