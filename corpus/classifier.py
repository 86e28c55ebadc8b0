"""round N, step train: a fastText classifier, seeds against random crawl pages (section 2.1).

Round 1's positives are an external data set (`seeds`: OpenWebMath in the paper) or random pages of `seed_hosts`; later rounds
add the crawl pages that the round before put into its `seeds.parquet`. Negatives are random crawl pages that are no positives;
with `negatives = "random"` mathematics among them stays, as in the paper. One thread: the same input gives the same model.

Artifact: `model.bin`, `README.md` (model card), `seeds.parquet` (ids of the crawl pages among the seeds). Where the loop has
stopped before, nothing but the manifest.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from mathpipe.corpus import measures, seeds
from mathpipe.corpus.examples import ALL, ID_AND_HOST, LABELS, Examples, draw, is_member, members, on_hosts, without
from mathpipe.corpus.fit import fit
from mathpipe.corpus.round_config import ClassifierConfig, ClassifierInputs
from mathpipe.pipeline import artifact, stage

SEEDS, POSITIVES, NEGATIVES = 1, 2, 3
"""Salts of the three draws."""
PREDICT_BATCH = 1_000
PUNCTUATION = re.compile(r"([^\w\s])")
CJK = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff"
WORD = re.compile(rf"\\[A-Za-z]+|[{CJK}]|[^\W\d_{CJK}]+")
CAMEL_CASE = re.compile(r"(?<=[a-z])(?=[A-Z])")


def run(config: ClassifierConfig, inputs: ClassifierInputs, out: Path) -> dict[str, Any]:
    """Train and test; returns counts, and how the classifier did on held-out examples and on held-out hosts."""
    before = artifact.read_manifest(inputs.previous) if inputs.previous else {"round": 0}
    number = before["round"] + 1
    if before.get("stopped"):
        return {"round": number, "stopped": before["stopped"]}
    seed_ids = draw_seeds(config, inputs)
    examples = Examples(out / "examples.txt")
    examples.write((True, host, classifier_text(text, config.max_words, config.text)) for host, text in seeds.read(config))
    num_external = len(examples)
    positives = draw(members(ids_and_hosts(inputs.pages), seed_ids), ALL, config.max_positives_per_host, config.seed, number, POSITIVES)
    num_positives = num_external + len(positives)
    if not num_positives:
        raise ValueError(f"classifier.seed_hosts: {inputs.pages} has no page of {', '.join(config.seed_hosts)}; name hosts of the crawl")
    wanted = round(num_positives * config.negatives_per_positive)
    negatives = draw(candidates(config, inputs, seed_ids), wanted, config.max_negatives_per_host, config.seed, number, NEGATIVES)
    examples.write(page_examples(config, inputs.pages, positives["id"].to_numpy(), negatives["id"].to_numpy()))
    order = np.random.default_rng([config.seed, number]).permutation(len(examples))
    held_out, learnt = np.split(order, [round(len(order) * config.held_out_frac)])
    model = train(config, examples.lines(learnt.tolist()), out / "model.bin")
    artifact.write_parquet(out / "seeds.parquet", pa.table({"id": seed_ids}))
    facts = {
        "round": number, "num_positives": num_positives, "num_external": num_external, "num_negatives": len(negatives),
        "num_seeds": len(seed_ids), "max_words": config.max_words, "text": config.text,
        "held_out": test(model, examples, held_out), "out_of_domain": out_of_domain(config, examples, out),
    }  # fmt: skip
    (out / "README.md").write_text(measures.model_card(config, facts), encoding="utf-8")
    examples.file.unlink()
    return facts


def ids_and_hosts(pages: Path) -> Iterator[pa.Table]:
    """Ids and hosts of all pages, a file at a time."""
    return artifact.read_columns(pages, ID_AND_HOST.names)


def draw_seeds(config: ClassifierConfig, inputs: ClassifierInputs) -> np.ndarray:
    """Sorted ids of the crawl pages among the seeds."""
    if inputs.previous:
        return pq.read_table(inputs.previous / "seeds.parquet")["id"].to_numpy()
    if config.seed_path or config.seed_dataset:
        return np.zeros(0, np.int64)
    of_hosts = on_hosts(ids_and_hosts(inputs.pages), pa.array(config.seed_hosts, pa.string()), inside=True)
    return draw(of_hosts, config.num_seeds, 0, config.seed, 1, SEEDS)["id"].to_numpy()


def candidates(config: ClassifierConfig, inputs: ClassifierInputs, seed_ids: np.ndarray) -> Iterator[pa.Table]:
    """Ids and hosts of the pages that may be negatives."""
    tables = without(ids_and_hosts(inputs.pages), seed_ids)
    if config.negatives == "uncollected" and inputs.previous:
        return without(tables, pq.read_table(inputs.previous / "collected.parquet")["id"].to_numpy())
    if config.negatives == "outside_domains" and inputs.previous:
        hosts = pq.read_table(inputs.previous / "math_hosts.parquet")["host"].combine_chunks()
        return on_hosts(tables, hosts, inside=False)
    return tables


def page_examples(config: ClassifierConfig, pages: Path, positives: np.ndarray, negatives: np.ndarray) -> Iterator[tuple[bool, str, str]]:
    """(is it math, host, prepared text) of the drawn pages, in the order of the pages."""
    drawn = np.union1d(positives, negatives)
    for file in artifact.parquet_files(pages):
        with pq.ParquetFile(file) as source:
            for group in range(source.num_row_groups):
                is_drawn = is_member(source.read_row_group(group, ["id"])["id"].to_numpy(), drawn)
                if not is_drawn.any():  # of a large crawl, most groups: their texts are not read
                    continue
                rows = source.read_row_group(group, ["id", "host", "text"]).filter(pa.array(is_drawn)).to_pydict()
                is_math = is_member(np.array(rows["id"]), positives).tolist()
                for label, host, text in zip(is_math, rows["host"], rows["text"], strict=True):
                    yield label, host, classifier_text(text, config.max_words, config.text)


def classifier_text(text: str, max_words: int, form: str = "punctuation") -> str:
    """What the classifier reads of a page, in one line of at most `max_words` words.

    `punctuation`: lower case, punctuation apart. `words`: letters and LaTeX commands only, camelCase divided, a Chinese character
    a word: what a page is about without what its site looks like. F1 of six divisions of the hosts, half of them learnt from (800
    examples, epoch 10, lr 0.5), against truth labels, in-domain and out of domain: 14 software manuals .964 and .605 with
    punctuation, .970 and .740 with words; documentation of 20 Python packages .927 and .658, .931 and .608. So both stay.

    >>> classifier_text("Let f(x)\\nbe", 9)
    'let f ( x ) be'
    >>> classifier_text("parseExpr(x_1) = \\\\frac{1}{2} 明天", 9, "words")
    'parse expr x \\\\frac 明 天'
    """
    text = text[: 20 * max_words]
    if form == "words":
        return " ".join(WORD.findall(CAMEL_CASE.sub(" ", text).lower())[:max_words])
    text = text.lower().replace("__label__", "label")  # fastText would read a label
    return " ".join(PUNCTUATION.sub(r" \1 ", text).split()[:max_words])


def train(config: ClassifierConfig, lines: Iterable[bytes], file: Path) -> Any:
    """A model trained on labelled lines, written to `file`."""
    examples = file.with_suffix(".txt")
    with examples.open("wb") as target:
        target.writelines(lines)
    model = fit(
        examples, file, dim=config.dim, lr=config.lr, wordNgrams=config.word_ngrams, minCount=config.min_count,
        epoch=config.epoch, bucket=config.bucket, seed=config.seed,
    )  # fmt: skip
    examples.unlink()
    return model


def out_of_domain(config: ClassifierConfig, examples: Examples, out: Path) -> dict[str, Any]:
    """How a second model, trained without some hosts, does on these: what to expect of sites that no example comes from."""
    hosts = examples.held_out_hosts(config.held_out_hosts_frac, config.seed)
    if not hosts:
        return {"n": 0}
    is_out_E = np.array([host in hosts for host in examples.hosts])
    learnt = np.random.default_rng(config.seed).permutation(np.flatnonzero(~is_out_E))
    file = out / ".out_of_domain.bin"
    model = train(config, examples.lines(learnt.tolist()), file)
    file.unlink()
    return {"num_hosts": len(hosts), **test(model, examples, np.flatnonzero(is_out_E))}


def test(model: Any, examples: Examples, numbers: np.ndarray) -> dict[str, Any]:
    """Precision, recall, F1 and calibration on the examples with these numbers; the negatives' mathematics counts as wrong."""
    p_N = np.zeros(len(numbers), np.float32)
    for start in range(0, len(numbers), PREDICT_BATCH):
        part = numbers[start : start + PREDICT_BATCH].tolist()
        p_N[start : start + len(part)] = probabilities(model, list(examples.texts(part)))
    return measures.measure(np.array(examples.is_math, bool)[numbers], p_N)


def probabilities(model: Any, texts: list[str]) -> np.ndarray:
    """P(math) of prepared texts, in [0, 1]: fastText returns up to 1.00001."""
    if not texts:
        return np.zeros(0, np.float32)
    label_NK, p_NK = model.predict(texts, k=2)
    p_N = [p[list(labels).index(LABELS[True])] if LABELS[True] in labels else 0.0 for labels, p in zip(label_NK, p_NK, strict=True)]
    return np.clip(np.array(p_N, np.float32), 0.0, 1.0)


if __name__ == "__main__":
    stage.main(run)
