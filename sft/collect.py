"""examples: public sets and a generated family as SFT examples of one schema, without duplicates, their programs verified.

The paper's 776K examples (section 3.1) are not published; which sets stand in is the config's choice. Notes:

1. Of examples with the same question and solution (Unicode, case and white space aside) the first is kept. A question that comes
   again with another solution stays: MetaMathQA samples several for one question on purpose, as section 3.1's set does formats.
2. Generated examples are drawn with replacement and not deduplicated: their family is small, and its share is `num_examples`.
3. Programs are run (verify.py); what fails is a reject, its reason the verdict.

Artifact: `data/` with the columns of schema.py, `rejects/` with id, url, reason, question, detail; a file of each for every
CHUNK records of a source, `<place of the source>-<reader>-<number>.parquet`. Files that exist are kept.
"""

from __future__ import annotations

import hashlib
import itertools
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from mathpipe.eval.sandbox import Sandbox
from mathpipe.pipeline import artifact, log, stage
from mathpipe.sft import generated, sources, verify
from mathpipe.sft.config import ExamplesConfig, ExamplesInputs
from mathpipe.sft.readers import READERS, Unusable
from mathpipe.sft.schema import SCHEMA, Example, to_row

CHUNK = 10_000
IDS_PER_SOURCE = 2**40
"""Ids are the place of the source times this, plus the number of the record: they do not depend on what is rejected."""
REJECT_SCHEMA = pa.schema([("id", pa.int64()), *((name, pa.string()) for name in ("url", "reason", "question", "detail"))])
Record = tuple[int, Any]
"""Number in its source, and a record of a public set or a finished example."""


def run(config: ExamplesConfig, inputs: ExamplesInputs, out: Path) -> dict[str, Any]:
    """Read every source; facts: counts by source, format and language, rejects by reason, the family's bounds."""
    names = [*(source.reader for source in config.sources), *([generated.SOURCE] if config.num_examples else [])]
    seen: set[bytes] = set()
    sandbox = Sandbox(config.runtime.sandbox, config.runtime.num_workers, config.timeout_s)
    with sandbox, log.Progress(out, len(names), "sources", "examples") as progress:
        for place, name in enumerate(names):
            records = enumerate(generate(config) if name == generated.SOURCE else sources.records(config.sources[place], config.seed))
            for number, chunk in enumerate(chunks(records)):
                stem = f"{place:02d}-{name}-{number:05d}"
                if not (out / "data" / f"{stem}.parquet").exists():
                    rows, rejects = collect(config, chunk, place, name, seen, sandbox)
                    artifact.write_parquet(out / "rejects" / f"{stem}.parquet", pa.Table.from_pylist(rejects, REJECT_SCHEMA))
                    artifact.write_parquet(out / "data" / f"{stem}.parquet", pa.Table.from_pylist(rows, SCHEMA))
                seen |= digests(out / "data" / f"{stem}.parquet")
                progress.advance(0, f"{name}: {number * CHUNK + len(chunk):,} records")
            progress.advance(1)
    if sandbox.kind != "auto":
        log.logger().info("sandbox of the programs: %s", sandbox.kind)
    return describe(out) | {"max_number": config.max_number, "max_result": config.max_result}


def generate(config: ExamplesConfig) -> Iterator[Example]:
    """The generated examples."""
    fractions = {"cot": config.cot_frac, "pot": config.pot_frac, "tir": config.tir_frac}
    return generated.make_examples(config.num_examples, fractions, config.seed, config.max_number, config.max_result)


def chunks(records: Iterable[Record]) -> Iterator[list[Record]]:
    """CHUNK records at a time."""
    iterator = iter(records)
    while chunk := list(itertools.islice(iterator, CHUNK)):
        yield chunk


def collect(
    config: ExamplesConfig, chunk: Sequence[Record], place: int, name: str, seen: set[bytes], sandbox: Sandbox
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """(rows of SCHEMA, rejects) of some records of a source.

    Args:
        seen: digests of the examples before; not changed.
    """
    rejects: list[dict[str, Any]] = []
    fresh: dict[int, Example] = {}
    here: set[bytes] = set()

    def reject(number: int, reason: str, question: str, detail: str = "") -> None:
        url = f"examples://{name}/{number}"
        rejects.append({"id": place * IDS_PER_SOURCE + number, "url": url, "reason": reason, "question": question, "detail": detail})

    for number, record in chunk:
        try:
            example = record if isinstance(record, Example) else read(name, record)
        except Unusable as error:
            reject(number, str(error), "", repr(record)[:500])
            continue
        key = digest(example.question, example.text)
        if name != generated.SOURCE and (key in seen or key in here):
            reject(number, "duplicate", example.question)
            continue
        here.add(key)
        fresh[number] = example
    rows = []
    found = list(fresh.values())
    checked = verify.verify(found, sandbox) if config.verify != "off" else ((example, "", "") for example in found)
    for number, (example, verdict, detail) in zip(fresh, checked, strict=True):
        if config.verify == "drop" and verdict not in ("", verify.OK):
            reject(number, verdict, example.question, detail)
        else:
            rows.append(to_row(example, number, place * IDS_PER_SOURCE + number, verdict))
    return rows, sorted(rejects, key=lambda row: row["id"])


def read(name: str, record: Any) -> Example:
    """The record of a set as an example.

    Raises:
        Unusable: it has not the set's form.
    """
    reader = READERS[name]
    if not isinstance(record, dict):
        raise Unusable("not a JSON object")
    missing = [field for field in reader.fields if field not in record]
    if missing:
        raise Unusable(f"no field {', '.join(missing)}")
    return reader.read(record)


def digest(question: str, answer: str) -> bytes:
    """What is equal for examples that differ in nothing but Unicode form, case and white space."""
    plain = (" ".join(unicodedata.normalize("NFKC", text).casefold().split()) for text in (question, answer))
    return hashlib.blake2b("\n".join(plain).encode(), digest_size=16).digest()


def digests(file: Path) -> set[bytes]:
    """Digests of the examples of a file; `text` is question and answer with a line break between, which is white space."""
    table = pq.read_table(file, columns=["question", "text"])
    pairs = zip(table["question"].to_pylist(), table["text"].to_pylist(), strict=True)
    return {digest(question, text[len(question) :]) for question, text in pairs}


def describe(out: Path) -> dict[str, Any]:
    """Counts for the manifest.

    Raises:
        ValueError: no example is left.
    """
    table = pa.concat_tables(artifact.read_columns(out, ["source", "format", "language", "verified", "num_tokens", "question"]))
    rejects = pa.concat_tables(artifact.read_columns(out, ["url", "reason"], "rejects"))
    if not len(table):
        raise ValueError(f"{out}: no example is left; look at the reasons in {out / 'rejects'}")
    by = {name: table[name].to_pylist() for name in ("source", "format", "language", "verified")}
    kinds = Counter(zip(by["source"], by["format"], by["language"], strict=True))
    dropped = Counter((url.split("/")[2], reason) for url, reason in zip(*rejects.to_pydict().values(), strict=True))
    facts = {
        "num_examples": len(table), "num_tokens": pc.sum(table["num_tokens"]).as_py(),
        "num_questions": pc.count_distinct(table["question"]).as_py(),
        "num_by_format": dict(sorted(Counter(by["format"]).items())), "num_by_language": dict(sorted(Counter(by["language"]).items())),
        "examples": [{"source": s, "format": f, "language": lang, "count": n} for (s, f, lang), n in sorted(kinds.items())],
        "programs": dict(sorted(Counter(verdict for verdict in by["verified"] if verdict).items())),
        "rejects": [{"source": source, "reason": reason, "count": n} for (source, reason), n in sorted(dropped.items())],
    }  # fmt: skip
    for line in [*facts["examples"], *facts["rejects"]]:
        log.logger().info("%8d %s", line["count"], " ".join(str(value) for key, value in line.items() if key != "count"))
    return facts


if __name__ == "__main__":
    stage.main(run)
