"""Stage volumes: how much of round 1's ranking to keep, judged by the held-out loss of a small model (section 2.1).

The paper pre-trains on the 40, 80, 120 and 160 billion tokens that rank highest and keeps the 40. Here volume N holds
N × `select.top_tokens[0]` tokens, without the pages that touch a benchmark. On each a model of `[sweep]` is trained: the same
initial weights, tokenizer (that of volume 1), number of tokens and schedule; only the corpus differs.

How to read the table (bits per byte, lower is better; it does not depend on the tokenizer):
- `problems`: training problems and solutions of GSM8K and MATH, what the corpus is for. No volume holds one of them: that is
  what decontamination is. The test problems stay out of the choice. The paper counts solved test problems instead, which
  takes a model that solves some.
- `core pages`, `wide pages`: pages that `tokens` held out of volume 1, and of the largest volume but not of volume 1. The wide
  ones gain by a larger volume because it resembles them; take it only where the problems do not lose.
- `epochs`: how often the model saw its corpus. The number of tokens is fixed, so the small volume is repeated while the large
  one is diluted. The answer holds for that number: where the largest volume is not seen once, more tokens may favour it.
- `± SE`: standard error over texts of the difference to volume 1 on the same texts. It says nothing about another training
  run: repeat with `--set sweep.seed=1`, and trust no difference that is smaller than the one between two seeds.

    items/volumeN.parquet   kind, url, num_bytes and nats of every text
    metrics.jsonl           the table, one line a volume
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from mathpipe.pipeline import artifact, log, stage
from mathpipe.pretrain import model, tokens
from mathpipe.pretrain import tokenizer as bpe
from mathpipe.pretrain.config import VolumesConfig, VolumesInputs

KINDS = ("problems", "core pages", "wide pages")
Text = tuple[str, str, str]
"""Kind, URL, text."""


def run(config: VolumesConfig, inputs: VolumesInputs, out: Path) -> dict[str, Any]:
    """Measure every model on the same texts; facts: the best volume, on what it was judged, and the texts of each kind."""
    torch.set_num_threads(config.runtime.num_threads)
    models = [inputs.volume1, inputs.volume2, inputs.volume3, inputs.volume4]
    corpora = [inputs.corpus1, inputs.corpus2, inputs.corpus3, inputs.corpus4]
    texts = held_out_texts(config, inputs)
    files = [out / "items" / f"volume{number}.parquet" for number in range(1, len(models) + 1)]
    with log.Progress(out, len(models) * len(texts), "texts", "held-out loss") as progress:
        for path, file in zip(models, files, strict=True):
            if file.exists():
                progress.advance(len(texts))
            else:
                artifact.write_parquet(file, measure(config, path / model.MODEL, texts, progress))
    (out / "metrics.jsonl").unlink(missing_ok=True)
    items = [pq.read_table(file) for file in files]
    kinds = [kind for kind in KINDS if kind in set(items[0]["kind"].to_pylist())]
    rows = [
        {"volume": number, **corpus_facts(corpora[number - 1], models[number - 1]), **losses(items[number - 1], items[0], kinds)}
        for number in range(1, len(models) + 1)
    ]
    for row in rows:
        artifact.append_metrics(out, **row)
    best = min(rows, key=lambda row: row[f"{kinds[0]} bits_per_byte"])
    counts = {kind: items[0]["kind"].to_pylist().count(kind) for kind in kinds}
    return {"best": best["volume"], "judged_on": kinds[0], "texts": counts, "num_volumes": len(rows)}


def held_out_texts(config: VolumesConfig, inputs: VolumesInputs) -> list[Text]:
    """The texts of all kinds, cut to `max_chars`; a kind that has none is left out and named in the log."""
    frac = artifact.read_manifest(inputs.tokens)["held_out_frac"]
    core, wide = (dict(held_out_pages(path, frac)) for path in (inputs.corpus1, inputs.corpus4))
    found = {
        "problems": sorted(problems(inputs.benchmarks, config.benchmarks)),
        "core pages": sorted(core.items()),
        "wide pages": sorted((url, text) for url, text in wide.items() if url not in core),
    }
    texts = draw(config, found)
    if not texts:
        raise ValueError(f"{inputs.corpus4}: no held-out page; raise tokens.held_out_frac (now {frac})")
    return texts


def draw(config: VolumesConfig, found: Mapping[str, Sequence[tuple[str, str]]]) -> list[Text]:
    """At most `num_texts` of each kind (kind → URL and text), cut to `max_chars`; a kind that has none is named in the log."""
    rng = np.random.default_rng(config.seed)
    texts = []
    for kind, rows in found.items():
        drawn = sorted(rng.permutation(len(rows))[: config.num_texts or None])
        texts += [(kind, rows[i][0], rows[i][1][: config.max_chars]) for i in drawn]
        log.logger().info("%s: %d texts of %d%s", kind, len(drawn), len(rows), "" if rows else "; none, so nothing is judged on them")
    return texts


def problems(benchmarks: Path, names: tuple[str, ...]) -> Iterator[tuple[str, str]]:
    """(URL, text) of the training split of the named benchmarks; texts of so few words that decontamination ignores them are left out."""
    for table in artifact.read_columns(benchmarks, ["url", "text", "benchmark", "split"]):
        for row in table.to_pylist():
            if row["benchmark"] in names and row["split"] == "train" and len(row["text"].split()) >= 10:
                yield row["url"], row["text"]


def held_out_pages(corpus: Path, frac: float) -> Iterator[tuple[str, str]]:
    """(URL, text) of the pages that the tokens stage holds out of this corpus."""
    for table in artifact.read_columns(corpus, ["url", "text"]):
        for url, text in zip(table["url"].to_pylist(), table["text"].to_pylist(), strict=True):
            if tokens.is_held_out(url, frac):
                yield url, text


@torch.inference_mode()
def measure(config: VolumesConfig, path: Path, texts: list[Text], progress: log.Progress) -> pa.Table:
    """Bytes and -log p (nats) of every text, each on its own after an end-of-document token."""
    device = torch.device("cuda" if config.runtime.uses_gpu() else "cpu")
    vocabulary, network = bpe.load(path), model.load(path).to(device).eval()
    ids = [[vocabulary.eos_token_id, *bpe.encode(vocabulary, text)] for _, _, text in texts]
    nats = np.zeros(len(texts))
    for rows in batches([len(row) for row in ids], config.batch_tokens):
        width = len(ids[rows[-1]])
        ids_BT = torch.tensor([ids[i] + [vocabulary.pad_token_id] * (width - len(ids[i])) for i in rows], device=device)
        length_B = torch.tensor([len(ids[i]) for i in rows], device=device)
        counted = torch.arange(1, width, device=device)[None, :] < length_B[:, None]  # padding comes last: no token attends to it
        hidden = network.base_model(input_ids=ids_BT, use_cache=False).last_hidden_state[:, :-1][counted]
        logp = model.log_probs(hidden, network.get_output_embeddings(), ids_BT[:, 1:][counted])
        nats[rows] = -np.bincount(counted.nonzero()[:, 0].cpu().numpy(), logp.double().cpu().numpy(), len(rows))
        progress.advance(len(rows), path.parent.name)
    kinds, urls, bodies = zip(*texts, strict=True)
    return pa.table({"kind": kinds, "url": urls, "num_bytes": [len(text.encode()) for text in bodies], "nats": nats})


def batches(lengths: list[int], batch_tokens: int) -> Iterator[list[int]]:
    """Rows from short to long, in runs whose padded size stays within `batch_tokens` (a run has at least one).

    >>> list(batches([9, 4, 5], 10))
    [[1, 2], [0]]
    """
    batch: list[int] = []
    for row in sorted(range(len(lengths)), key=lambda i: (lengths[i], i)):
        if batch and lengths[row] * (len(batch) + 1) > batch_tokens:
            yield batch
            batch = []
        batch.append(row)
    if batch:
        yield batch


def corpus_facts(corpus: Path, trained: Path) -> dict[str, Any]:
    """Pages, estimated tokens and lowest score of a volume, and how often its model saw it."""
    made, model_facts = artifact.read_manifest(corpus), artifact.read_manifest(trained)
    lowest = min(min(table["score"].to_pylist(), default=math.inf) for table in artifact.read_columns(corpus, ["score"]))
    epochs = model_facts["num_tokens"] / model_facts["num_corpus_tokens"]
    return {"pages": made["num_pages"], "tokens": made["num_tokens"], "lowest_score": lowest, "epochs": epochs}


def losses(items: pa.Table, base: pa.Table, kinds: list[str]) -> dict[str, float | None]:
    """For each kind: bits per byte, its difference to volume 1's, and the standard error of that difference."""
    if not items["url"].equals(base["url"]):
        raise artifact.ContractError("items/: the volumes were measured on different texts; delete the folder and run stage volumes again")
    kind_N, bytes_N = np.array(items["kind"].to_pylist()), items["num_bytes"].to_numpy()
    bits_N, base_N = (table["nats"].to_numpy() / math.log(2) for table in (items, base))
    found: dict[str, float | None] = {}
    for kind in kinds:
        here = kind_N == kind
        found[f"{kind} bits_per_byte"] = float(bits_N[here].sum() / bytes_N[here].sum())
        difference, error = ratio_and_stderr(bits_N[here] - base_N[here], bytes_N[here])
        found |= {f"{kind} difference": difference, f"{kind} stderr": error}
    return found


def ratio_and_stderr(value_N: np.ndarray, size_N: np.ndarray) -> tuple[float, float | None]:
    """Σ value / Σ size and its standard error over N draws (ratio estimator; None for a single one).

    >>> ratio_and_stderr(np.array([3.0, 3.0]), np.array([1, 2]))
    (2.0, 0.6666666666666666)
    """
    count, total = len(value_N), size_N.sum()
    ratio = value_N.sum() / total
    residual = ((value_N - ratio * size_N) ** 2).sum()
    return float(ratio), float(np.sqrt(residual * count / (count - 1)) / total) if count > 1 else None


if __name__ == "__main__":
    stage.main(run)
