"""Self-check of an installation: imports and exercises every engine, one line each; the last step of `make setup`.

    python -m mathpipe.pipeline.selfcheck            # all engines
    python -m mathpipe.pipeline.selfcheck vllm daft  # some of them

Each engine runs in a process of its own, so that a crash in native code is reported with the engine's name. Exits 1 when
one fails, with its last words and what to do. The DeepSpeed check also compiles DeepSpeed's CPU collectives (once per
machine; torch keeps them in ~/.cache/torch_extensions).
"""

from __future__ import annotations

import importlib
import io
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from mathpipe.pipeline.config import Runtime, nearest

TIMEOUT_S = 600
REBUILD = "delete .venv and run `make setup` again"


def tiny_llama() -> Any:
    """A random Llama of two layers, with untied embeddings."""
    import transformers

    config = transformers.LlamaConfig(
        vocab_size=128, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=2,
        max_position_embeddings=128, tie_word_embeddings=False,
    )  # fmt: skip
    return transformers.LlamaForCausalLM(config).eval()


def check_torch() -> str:
    """Matrix product against a hand-made sum, in float32 and bfloat16."""
    import torch

    a = torch.arange(4096, dtype=torch.float32).reshape(64, 64) / 4096
    for dtype, tolerance in ((torch.float32, 1e-5), (torch.bfloat16, 2e-2)):
        found, wanted = (a.to(dtype) @ a.to(dtype)).float(), (a[:, :, None] * a[None, :, :]).sum(1)
        assert torch.allclose(found, wanted, rtol=tolerance), f"wrong product in {dtype}"
    return f"torch {torch.__version__}, {'CUDA' if torch.cuda.is_available() else 'CPU'}"


def check_transformers() -> str:
    """Forward pass of a random tiny Llama; a causal model's first logits do not see later tokens."""
    import torch
    import transformers

    model = tiny_llama()
    with torch.no_grad():
        short, long = (model(torch.tensor([tokens])).logits for tokens in ([3, 1, 4], [3, 1, 4, 1, 5]))
    assert torch.allclose(short, long[:, :3], atol=1e-5), "logits depend on later tokens"
    return f"transformers {transformers.__version__}"


def check_deepspeed() -> str:
    """One ZeRO-2 step on two processes (one on a GPU), started as a training stage is."""
    processes = 1 if Runtime().uses_gpu() else 2
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    found = subprocess.run([*command, "-m", "mathpipe.pipeline.selfcheck", "--rank"], capture_output=True, text=True)
    assert found.returncode == 0, found.stdout + found.stderr
    return found.stdout.strip().splitlines()[-1]


def deepspeed_rank() -> None:
    """What each process of `check_deepspeed` does."""
    import deepspeed
    import torch

    deepspeed.init_distributed()
    torch.manual_seed(0)
    model = torch.nn.Linear(8, 8)
    settings = {
        "train_micro_batch_size_per_gpu": 2,
        "zero_optimization": {"stage": 2},
        "zero_allow_untested_optimizer": True,
    }
    engine, *_ = deepspeed.initialize(model=model, optimizer=torch.optim.AdamW(model.parameters(), lr=0.1), config=settings)
    before = engine.module.weight.detach().clone()
    engine.backward(engine(torch.ones(2, 8, device=engine.device)).square().mean())
    engine.step()
    assert not torch.equal(before, engine.module.weight), "the step changed nothing"
    total = torch.ones(1, device=engine.device)
    torch.distributed.all_reduce(total)
    if torch.distributed.get_rank() == 0:
        print(f"deepspeed {deepspeed.__version__}, {int(total.item())} process(es), {torch.distributed.get_backend()}", flush=True)


def check_vllm() -> str:
    """Engine start on a random tiny Llama in the transformers layout, two greedy answers of eight tokens that agree."""
    os.environ.update(VLLM_ENABLE_V1_MULTIPROCESSING="0", VLLM_CPU_KVCACHE_SPACE="1", VLLM_LOGGING_LEVEL="ERROR")
    os.environ.update(VLLM_NO_USAGE_STATS="1", HF_HUB_OFFLINE="1")
    import vllm

    with tempfile.TemporaryDirectory() as folder:
        tiny_llama().save_pretrained(folder)
        engine = vllm.LLM(
            folder, dtype="float32", enforce_eager=True, distributed_executor_backend="uni", seed=0,
            skip_tokenizer_init=True, max_model_len=64,
        )  # fmt: skip
        greedy = vllm.SamplingParams(temperature=0, max_tokens=8, ignore_eos=True, detokenize=False, logprobs=0, flat_logprobs=True)
        first, second = engine.generate([vllm.TokensPrompt(prompt_token_ids=[3, 1, 4])] * 2, greedy, use_tqdm=False)
    answer = list(first.outputs[0].token_ids)
    assert len(answer) == 8 and answer == list(second.outputs[0].token_ids), "greedy answers differ"
    return f"vllm {vllm.__version__}"


def check_fasttext() -> str:
    """A classifier learns two words apart. Its matrix, of 32 MiB, is large enough to be fresh memory (mathpipe.corpus.fit says why)."""
    import fasttext

    dim = 8
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "train.txt"
        file.write_text("__label__math prime theorem lemma\n__label__other cake recipe oven\n" * 50, encoding="utf-8")
        model = fasttext.train_supervised(
            str(file), dim=dim, wordNgrams=2, bucket=32 * 2**20 // (4 * dim), epoch=25, lr=0.5, minCount=1, thread=1, verbose=0
        )
    labels, scores = model.predict("lemma theorem", k=2)
    assert labels[0] == "__label__math" and scores[0] > 0.9, f"predicted {labels} {scores}"
    return "fasttext"


def check_warc() -> str:
    """A gzip WARC written by warcio is read back by fastwarc and by warcio."""
    from fastwarc.warc import ArchiveIterator
    from warcio.archiveiterator import ArchiveIterator as SlowIterator
    from warcio.warcwriter import WARCWriter

    file = io.BytesIO()
    writer = WARCWriter(file, gzip=True)
    http = b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\n\r\n<p>$x^2$</p>"
    writer.write_record(writer.create_warc_record("http://a.example/", "response", payload=io.BytesIO(http)))
    fast = [record.reader.read() for record in ArchiveIterator(io.BytesIO(file.getvalue()), parse_http=True)]
    slow = [record.content_stream().read() for record in SlowIterator(io.BytesIO(file.getvalue()))]
    assert fast == slow == [b"<p>$x^2$</p>"], f"read back {fast} and {slow}"
    return "fastwarc, warcio"


def check_resiliparse() -> str:
    """The main text of a page without its navigation."""
    from resiliparse.extract.html2text import extract_plain_text

    page = "<html><body><nav><a href='/'>Home</a></nav><main><h1>Primes</h1><p>There are infinitely many primes.</p></main></body></html>"
    text = extract_plain_text(page, main_content=True)
    assert "infinitely many primes" in text and "Home" not in text, f"extracted {text!r}"
    return "resiliparse"


def check_daft() -> str:
    """MinHash signatures: equal for equal texts, different for different ones."""
    import daft

    frame = daft.from_pydict({"text": ["a prime has two divisors"] * 2 + ["bake the cake for an hour"]})
    signatures = frame.select(frame["text"].minhash(num_hashes=16, ngram_size=2)).to_pydict()["text"]
    assert signatures[0] == signatures[1] != signatures[2], "signatures do not tell texts apart"
    return f"daft {daft.__version__}"


def check_duckdb() -> str:
    """Parquet written by pyarrow with zstd is read by a query."""
    import duckdb
    import pyarrow as pa
    import pyarrow.parquet as pq

    with tempfile.TemporaryDirectory() as folder:
        file = f"{folder}/numbers.parquet"
        pq.write_table(pa.table({"n": list(range(10))}), file, compression="zstd")
        total = duckdb.connect().execute(f"select sum(n) from read_parquet('{file}')").fetchone()
    assert total == (45,), f"sum {total}"
    return f"duckdb {duckdb.__version__}, pyarrow {pa.__version__}"


def check_docutils() -> str:
    """A math role becomes MathML."""
    import docutils
    from docutils.core import publish_string

    html = publish_string("Euler: :math:`e^{i\\pi} = -1`", writer="html5", settings_overrides={"math_output": "MathML"}).decode()
    assert "<math" in html, "no <math> element"
    return f"docutils {docutils.__version__}"


def check_luigi() -> str:
    """A task runs with the local scheduler and makes its target."""
    import logging

    import luigi

    class Touch(luigi.Task):
        path = luigi.Parameter()

        def output(self) -> luigi.LocalTarget:
            return luigi.LocalTarget(self.path)

        def run(self) -> None:
            Path(str(self.path)).touch()

    logging.getLogger("luigi").setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory() as folder:
        task = Touch(path=f"{folder}/done")
        assert luigi.build([task], local_scheduler=True, no_lock=True, log_level="ERROR") and task.complete(), "the task did not run"
    return f"luigi {luigi.__version__}"


def check_math_verify() -> str:
    """Equal answers in different form are equal, others are not."""
    from math_verify import parse, verify

    gold = parse("$\\frac{1}{2}$")
    assert verify(gold, parse("$\\boxed{0.5}$")) and not verify(gold, parse("$\\boxed{0.6}$")), "1/2 against 0.5 and 0.6"
    return "math-verify"


def check_sandbox() -> str:
    """A program answers, and its attempts to write, to start a process and to open a socket fail."""
    hostile = ("open('x', 'w')", "import os; os.fork()", "import socket; socket.socket()")
    with importlib.import_module("mathpipe.eval.sandbox").Sandbox(num_workers=1) as sandbox:
        honest, *others = sandbox.run(["print(6 * 7)", *hostile])
        assert honest.stdout == "42\n", f"6 * 7 gave {honest}"
        assert all("PermissionError" in outcome.error for outcome in others), f"not refused: {others}"
    return sandbox.kind


CHECKS: dict[str, tuple[Callable[[], str], str]] = {
    "vllm": (check_vllm, f"vLLM needs about 3 GB of free memory and a CPU with AVX2; otherwise {REBUILD}"),
    "torch": (check_torch, REBUILD),
    "transformers": (check_transformers, REBUILD),
    "deepspeed": (
        check_deepspeed,
        "DeepSpeed compiles its CPU collectives once: it needs g++ and Python.h (apt-get install g++ python3-dev); after an interrupted "
        "compilation delete ~/.cache/torch_extensions; then run `make setup` again",
    ),
    "fasttext": (check_fasttext, REBUILD),
    "warc": (check_warc, REBUILD),
    "resiliparse": (check_resiliparse, REBUILD),
    "daft": (check_daft, REBUILD),
    "duckdb": (check_duckdb, REBUILD),
    "docutils": (check_docutils, REBUILD),
    "luigi": (check_luigi, REBUILD),
    "math-verify": (check_math_verify, REBUILD),
    "sandbox": (check_sandbox, "the line above says it; programs that a model wrote are not run without"),
}
"""Engine → its check and what to do when it fails; the slowest first, since two run at a time."""


def run_apart(name: str) -> tuple[bool, str, float]:
    """Run one check in a child process; whether it passed, its words, its seconds."""
    started = time.monotonic()
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"}
    command = [sys.executable, "-m", "mathpipe.pipeline.selfcheck", "--one", name]
    try:
        found = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, env=environment)
    except subprocess.TimeoutExpired:
        return False, f"no answer within {TIMEOUT_S} s", time.monotonic() - started
    words = found.stdout.strip().splitlines()
    if found.returncode == 0 and words:
        return True, words[-1], time.monotonic() - started
    died = f"\nkilled by signal {-found.returncode}" if found.returncode < 0 else ""
    return False, (found.stdout + found.stderr).strip()[-3000:] + died, time.monotonic() - started


def main(argv: list[str]) -> int:
    """Check the named engines (all by default); the exit code is 1 when one failed."""
    if argv[:1] == ["--rank"]:
        deepspeed_rank()
        return 0
    if argv[:1] == ["--one"]:
        print(CHECKS[argv[1]][0](), flush=True)
        return 0
    for name in argv:
        if name not in CHECKS:
            print(f"unknown engine {name!r}{nearest(name, CHECKS)} (engines: {', '.join(CHECKS)})", file=sys.stderr)
            return 2
    names, failed = argv or list(CHECKS), []
    with ThreadPoolExecutor(max_workers=2) as pool:
        for name, (passed, words, seconds) in zip(names, pool.map(run_apart, names), strict=True):
            print(f"  {name:<13} {'ok    ' if passed else 'FAILED'} {seconds:5.1f} s  {words if passed else ''}".rstrip(), flush=True)
            if not passed:
                failed.append((name, words))
    for name, words in failed:
        print(f"\n{name} does not work:\n{words}\nWhat to do: {CHECKS[name][1]}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
