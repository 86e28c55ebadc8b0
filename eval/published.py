"""Numbers of the DeepSeekMath paper (arXiv 2402.03300) that the report sets beside ours."""

from __future__ import annotations

MODELS: dict[str, tuple[str, dict[str, float]]] = {
    "start": ("DeepSeek-Coder-Base-v1.5 7B before decay", {"mmlu": 42.9, "bbh": 42.9}),
    "base": (
        "DeepSeekMath-Base 7B",
        {"mmlu": 54.9, "bbh": 59.5, "gsm8k": 64.2, "math": 36.2, "gsm8k-pot": 66.9, "math-pot": 31.4, "ocw": 15.4, "sat": 84.4,
         "mmlu_stem": 56.5, "cmath": 71.7},
    ),
    "sft": (
        "DeepSeekMath-Instruct 7B",
        {"gsm8k": 82.9, "math": 46.8, "cmath": 84.6, "mgsm_zh": 73.2, "gsm8k-tir": 83.7, "math-tir": 57.5, "cmath-tir": 84.3,
         "mgsm_zh-tir": 72.0},
    ),
    "grpo": (
        "DeepSeekMath-RL 7B",
        {"gsm8k": 88.2, "math": 51.7, "cmath": 88.8, "mgsm_zh": 79.6, "gsm8k-tir": 86.7, "math-tir": 58.8, "cmath-tir": 87.6,
         "mgsm_zh-tir": 78.4},
    ),
}  # fmt: skip
"""Our model → (its counterpart, task → per cent): the paper's tables of results and, to the same digits, evaluation_results.json of its
repository (MATH with tools of the Instruct model: 57.4 in the paper, 57.5 there)."""

GSM8K_MATH = {"sft": (82.9, 46.8), "grpo": (88.2, 51.7)}
"""Model → GSM8K and MATH with chain of thought, per cent: what the paper's RL gained."""

ROUND_4_OVERLAP = 0.98
"""Share of round 4's data collected in round 3 already (section 2.1): "nearly 98 %"."""
FIGURE_5 = {"rft": "RFT", "online_rft": "Online RFT", "grpo_os": "GRPO+OS", "grpo_ps": "GRPO+PS"}
"""Arm → its name in figure 5, in the order of the accuracies there (section 5.2.1)."""
BY_RULE = {"plain": "GRPO+OS, exact rewards", "steps": "GRPO+PS, exact rewards"}
"""Ours: the same supervision by rules instead of a reward model."""
CORPUS = {"pages": 35_500_000, "tokens": 120_000_000_000}
"""The paper's corpus after four rounds (section 2.1)."""

ABLATION_COLUMNS = ("GSM8K", "MATH", "GSM8K+Python", "MATH+Python", "MMLU", "BBH", "HumanEval", "MBPP")
ABLATIONS: dict[str, tuple[str, tuple[float, ...]]] = {
    "general-math": ("general 400B → math 150B", (19.1, 14.4, 14.3, 6.7, 33.1, 32.7, 12.8, 13.2)),
    "code-math": ("code 400B → math 150B", (21.9, 15.3, 17.4, 9.4, 36.2, 35.3, 12.2, 17.0)),
    "math": ("math 150B", (20.5, 13.1, 11.4, 6.5, 32.3, 32.5, 11.6, 13.2)),
    "mixed": ("code 400B and math 150B in one stage", (17.6, 12.1, 19.7, 13.5, 33.5, 35.6, 29.3, 39.4)),
}
"""Arm → (the paper's setting, 1.3B parameters, per cent of ABLATION_COLUMNS; section 5.1)."""
ARXIV_COLUMNS = ("GSM8K", "MATH", "CMATH")
ARXIV: dict[str, tuple[str, tuple[float, ...]]] = {
    "general": ("no math training", (2.9, 3.0, 12.3)),
    "general-arxiv": ("MathPile, mostly arXiv", (2.7, 3.3, 1.2)),
    "general-math": ("DeepSeekMath Corpus", (23.8, 13.6, 41.5)),
}
"""Arm → (the paper's corpus, 1.3B parameters after 150B tokens of it, per cent; section 2.2 and 5.1)."""
