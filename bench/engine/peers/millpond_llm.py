"""Ours: `LLM` in this process, speculation off so that every token is computed.

    python bench/engine/peers/millpond_llm.py --model DIR --precision int8 --prompt 128 --output 128 --streams 1
"""

from __future__ import annotations

from contract import asked_cases, make_parser, run, timed

from millpond import LLM, SamplingParams


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--speculation", default="off")
    parser.add_argument("--cache-dtype", default="auto", help="of keys and values")
    args = parser.parse_args()
    cases = asked_cases(args)
    settings: dict[str, object] = {
        "prefix": False,
        "speculation_mode": args.speculation,
        "cache_dtype": args.cache_dtype,
        "max_batch_tokens": max(512, *(min(2048, case.prompt) for case in cases)),
        "max_sequences": max(64, *(case.streams for case in cases)),
    }
    if args.threads:
        settings["threads"] = args.threads
    with LLM(args.model, dtype=args.precision, **settings) as llm:

        def generate(prompts: list[list[int]], output: int) -> tuple[float | None, float]:
            params = SamplingParams(temperature=0, max_tokens=output, ignore_eos=True)

            def call() -> list[int]:
                done = llm.generate(prompts, params, use_tqdm=False)
                return [len(result.outputs[0].token_ids) for result in done]

            return None, timed(call, output)

        run(args, generate, llm.info.vocab_size)


if __name__ == "__main__":
    main()
