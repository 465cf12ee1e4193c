"""OpenVINO GenAI: a directory that `optimum-cli export openvino` wrote, or a .gguf file, which it converts itself.

    VENV/bin/python bench/engine/peers/openvino_pipeline.py --model OV_DIR --prompt 128 --output 128 --streams 16

Needs `pip install openvino-genai`. The precision is that of the export (`--weight-format int8`). One stream runs in the
pipeline as it comes, several through continuous batching.
"""

from __future__ import annotations

import numpy as np
import openvino as ov
import openvino_genai as genai
from contract import asked_cases, make_parser, run, timed


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--cache-gb", type=int, default=2)
    parser.add_argument("--vocabulary", type=int, default=49152)
    args = parser.parse_args()
    options: dict[str, object] = {"INFERENCE_NUM_THREADS": args.threads} if args.threads else {}
    if max(case.streams for case in asked_cases(args)) > 1:
        scheduler = genai.SchedulerConfig()
        scheduler.cache_size = args.cache_gb
        scheduler.max_num_batched_tokens = 2048
        scheduler.enable_prefix_caching = False
        options["scheduler_config"] = scheduler
    pipeline = genai.LLMPipeline(args.model, "CPU", **options)

    def generate(prompts: list[list[int]], output: int) -> tuple[float | None, float]:
        config = genai.GenerationConfig()
        config.max_new_tokens = output
        config.min_new_tokens = output
        config.ignore_eos = True
        config.do_sample = False
        ids = ov.Tensor(np.array(prompts, dtype=np.int64))
        inputs = genai.TokenizedInputs(ids, ov.Tensor(np.ones((len(prompts), len(prompts[0])), dtype=np.int64)))
        return None, timed(lambda: [len(tokens) for tokens in pipeline.generate(inputs, config).tokens], output)

    run(args, generate, args.vocabulary)


if __name__ == "__main__":
    main()
