"""Domains, annotation, and how seeds grow, on pages made by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from corpus_artifacts import finish, folder
from round_artifacts import make_pages, make_scores

from mathpipe.corpus import annotate, domains, grow, score, selection
from mathpipe.corpus.round_config import (
    AnnotateConfig,
    AnnotateInputs,
    DomainsConfig,
    DomainsInputs,
    GrowConfig,
    GrowInputs,
    ScoreConfig,
    ScoreInputs,
    SelectConfig,
    SelectInputs,
)
from mathpipe.pipeline import artifact

LINES = [
    [(f"https://m.ox.ac.uk/q/{i}.html", 0.9 - i / 100) for i in range(8)],
    [(f"http://www.m.ox.ac.uk:8080/blog/{i}.html", 0.1) for i in range(6)],
    [(f"https://n.ox.ac.uk/{i}", 0.2) for i in range(10)] + [(f"https://shop.com/{i}", 0.95 if i == 0 else 0.0) for i in range(10)],
]
"""A host with mathematics under /q/, one of the same university without, and a shop of which one page of ten is collected."""


def collect(base: Path, num_pages: int) -> tuple[Path, Path, Path]:
    """Pages, scores and the selection of the best pages."""
    pages = make_pages(base, [[{"url": url} for url, _ in lines] for lines in LINES])
    scores = make_scores(base, [[p for _, p in lines] for lines in LINES])
    out = folder(base, "select")
    return pages, scores, finish(out, selection.run(SelectConfig(top_tokens=(10 * num_pages,)), SelectInputs(pages, scores), out))


def judge(base: Path, by: str = "host", num_pages: int = 9) -> tuple[Path, list[dict[str, Any]]]:
    pages, scores, selected = collect(base, num_pages)
    out = folder(base, f"domains-{by}")
    finish(out, domains.run(DomainsConfig(by=by), DomainsInputs(pages, scores, selected), out))
    return out, pq.read_table(out / "domains.parquet").to_pylist()


def test_a_domain_is_math_only_above_ten_percent_and_the_table_says_why(tmp_path: Path) -> None:
    out, rows = judge(tmp_path)
    assert [(row["host"], row["num_pages"], row["num_collected"], row["is_math"]) for row in rows] == [
        ("m.ox.ac.uk", 14, 8, True), ("shop.com", 10, 1, False), ("n.ox.ac.uk", 10, 0, False),
    ]  # fmt: skip
    assert rows[0]["collected_frac"] == 8 / 14
    assert rows[0]["mean_score"] == pytest.approx((sum(0.9 - i / 100 for i in range(8)) + 0.6) / 14, abs=1e-6)
    assert rows[0]["examples"] == [f"https://m.ox.ac.uk/q/{i}.html" for i in range(3)], "best scores first"
    assert rows[0]["verdict"] == "8 of 14 pages collected: math-related, more than 10 %"
    assert rows[1]["verdict"] == "1 of 10 pages collected: not math-related, not more than 10 %"
    assert pq.read_table(out / "math_hosts.parquet")["host"].to_pylist() == ["m.ox.ac.uk"]


def test_a_registered_domain_has_all_its_hosts(tmp_path: Path) -> None:
    out, rows = judge(tmp_path, "registered_domain")
    assert [(row["host"], row["num_pages"], row["num_collected"]) for row in rows] == [("ox.ac.uk", 24, 8), ("shop.com", 10, 1)]
    assert len(rows[0]["examples"]) == 3
    assert pq.read_table(out / "math_hosts.parquet")["host"].to_pylist() == ["m.ox.ac.uk", "n.ox.ac.uk"]


def test_tables_of_many_files_are_added_up_in_parts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    whole = judge(tmp_path)[1]
    monkeypatch.setattr(domains, "PENDING_ROWS", 1)
    assert judge(tmp_path)[1] == whole


@pytest.mark.parametrize(("host", "domain"), [
    ("docs.python-sympy.example", "python-sympy.example"), ("ann.github.io", "ann.github.io"), ("github.io", "github.io"),
    ("localhost", "localhost"), ("127.0.0.1", "127.0.0.1"), ("[::1]", "[::1]"), ("www.xn--bcher-kva.example", "xn--bcher-kva.example"),
])  # fmt: skip
def test_registered_domains(host: str, domain: str) -> None:
    assert domains.domain_of(host) == domain


def decide(base: Path, config: AnnotateConfig) -> tuple[Path, list[dict[str, Any]]]:
    judged, _ = judge(base)
    out = folder(base, "annotate")
    inputs = AnnotateInputs(base / "pages", base / "select", judged, base / "score")
    finish(out, annotate.run(config, inputs, out))
    return out, [json.loads(line) for line in (out / "decisions.jsonl").read_text(encoding="utf-8").split("\n")[:-1]]


def test_the_policy_judges_every_port_of_a_host(tmp_path: Path) -> None:
    _, decisions = decide(tmp_path, AnnotateConfig(accept_frac=0.9))
    found = {decision["prefix"]: (decision["decision"], decision["reason"]) for decision in decisions}
    assert found == {
        "m.ox.ac.uk/": ("math", "8 of 8 pages collected"), "m.ox.ac.uk:8080/": ("not_math", "0 of 6 pages collected"),
    }  # fmt: skip


def test_a_file_gives_its_decisions_on_these_hosts(tmp_path: Path) -> None:
    export = tmp_path / "export.jsonl"
    config = AnnotateConfig(source="file", file=str(export))
    with pytest.raises(ValueError, match=r"export\.jsonl: No such file"):
        decide(tmp_path, config)
    answers = [
        {"prefix": "m.ox.ac.uk/q/", "decision": "math", "reason": "exercises\u2028and more", "who": "ann"},
        {"prefix": "elsewhere.org/", "decision": "math", "reason": "of another round", "who": "ann"},
        {"prefix": "m.ox.ac.uk:8080/", "decision": "not_math", "reason": "a blog", "who": "bob"},
    ]
    artifact.write_lines(export, answers)
    out, decisions = decide(tmp_path, config)
    assert decisions == [answers[0], answers[2]]
    assert grow.read_verdicts(out) == {"m.ox.ac.uk/q/": True, "m.ox.ac.uk:8080/": False}
    assert config.fingerprint()


ROUND = {"round": 2, "num_tokens": 90, "num_domains": 3, "num_math_domains": 1, "num_math": 1, "num_positives": 5, "num_negatives": 5}
FIGURES = {"held_out": {"n": 1, "f1": 0.9, "ece": 0.1}, "out_of_domain": {"n": 0}, "annotation_source": "file"}


def grown(base: Path, config: GrowConfig, before: list[int] | None = None, num_pages: int = 9) -> tuple[dict[str, Any], list[int], Path]:
    """Grow from seed 0 with decisions of people: /q/ is math, n.ox.ac.uk is not."""
    judged, _ = judge(base, num_pages=num_pages)
    for name in ("train", "select", "domains-host", "annotate"):
        finish(folder(base, name), {**ROUND, **FIGURES})
    pq.write_table(pa.table({"id": [0]}), base / "train" / "seeds.parquet")
    decisions = [{"prefix": "m.ox.ac.uk/q/", "decision": "math"}, {"prefix": "n.ox.ac.uk/", "decision": "not_math"}]
    (base / "annotate" / "decisions.jsonl").write_text("".join(json.dumps(decision) + "\n" for decision in decisions))
    previous = None
    if before is not None:
        previous = finish(folder(base, "round1"), {"round": 1})
        pq.write_table(pa.table({"id": before}), previous / "collected.parquet")
    out = folder(base, "grow")
    inputs = GrowInputs(base / "pages", base / "train", base / "select", judged, base / "annotate", previous)
    facts = grow.run(config, inputs, out)
    return facts, pq.read_table(out / "seeds.parquet")["id"].to_pylist(), finish(out, facts)


def test_seeds_grow_by_uncollected_pages_under_math_prefixes(tmp_path: Path) -> None:
    facts, seeds, out = grown(tmp_path / "all", GrowConfig())
    assert seeds == [0] and facts["new_seeds"] == 0, "all of /q/ was collected"
    assert pq.read_table(out / "math_hosts.parquet")["host"].to_pylist() == ["m.ox.ac.uk"]
    assert (facts["held_out_f1"], facts["out_of_domain_f1"], facts["ece"], facts["stopped"]) == (0.9, None, 0.1, None)
    facts, seeds, _ = grown(tmp_path / "some", GrowConfig(), num_pages=6)
    assert seeds == [0, 5, 6, 7] and facts["new_seeds"] == 3
    assert len(grown(tmp_path / "few", GrowConfig(max_new_seeds=2), num_pages=6)[1]) == 3


def test_targets_of_links_on_math_pages_are_seeds_but_not_where_people_said_no(tmp_path: Path) -> None:
    with pytest.raises(artifact.ContractError, match="set pages.keep_links"):
        grown(tmp_path, GrowConfig(hyperlinks=True))
    links = [
        (0, "m.ox.ac.uk:8080/blog/3.html"),  # from a math page
        (1, "n.ox.ac.uk/4"),  # people called this host not math
        (2, "shop.com/0"),  # collected already
        (1000, "shop.com/5"),  # not from a math page
    ]
    artifact.write_parquet(
        tmp_path / "pages" / "links" / "00000.parquet", pa.table({"id": [row for row, _ in links], "url": [url for _, url in links]})
    )
    facts, seeds, _ = grown(tmp_path, GrowConfig(hyperlinks=True))
    assert seeds == [0, 1003]
    assert (facts["new_seeds"], facts["linked_seeds"]) == (1, 1)
    assert grown(tmp_path, GrowConfig())[1] == [0]


@pytest.mark.parametrize(("limit", "stopped"), [(1.0, None), (0.95, None), (0.8, 2)])
def test_the_loop_ends_at_the_overlap_asked_for(tmp_path: Path, limit: float, stopped: int | None) -> None:
    collected = [0, 1, 2, 3, 4, 5, 6, 7, 2010]
    facts, _, _ = grown(tmp_path, GrowConfig(stop_at_overlap=limit), collected[1:])
    assert facts["overlap"] == 8 / 9 and facts["stopped"] == stopped
    assert grown(tmp_path, GrowConfig(stop_at_overlap=limit), collected)[0]["stopped"] == (2 if limit < 1 else None)


def test_later_rounds_pass_the_result_on(tmp_path: Path) -> None:
    facts, seeds, before = grown(tmp_path, GrowConfig(stop_at_overlap=0.5), [0, 1, 2, 3, 4, 5, 6, 7])
    assert facts["stopped"] == 2
    pages, base = tmp_path / "pages", tmp_path / "3"
    trained = finish(folder(base, "train"), {"round": 3, "stopped": 2})
    scores = finish(folder(base, "score"), score.run(ScoreConfig(), ScoreInputs(pages, trained), base / "score"))
    out = folder(base, "select")
    finish(tmp_path / "select", ROUND | {"max_tokens": 90, "lowest_score": 0.8, "num_pages": 9, "score_histogram": {}})
    selected = finish(out, selection.run(SelectConfig(), SelectInputs(pages, scores, tmp_path / "select"), out))
    out = folder(base, "domains")
    finish(out, domains.run(DomainsConfig(), DomainsInputs(pages, scores, selected, tmp_path / "domains-host"), out))
    assert pq.read_table(out / "domains.parquet") == pq.read_table(tmp_path / "domains-host" / "domains.parquet")
    decided, judged = folder(base, "annotate"), tmp_path / "annotate"
    finish(judged, {"num_decisions": 2, "num_math": 1})
    for config in (AnnotateConfig(), AnnotateConfig(source="human")):
        found = annotate.run(config, AnnotateInputs(pages, selected, out, scores, judged), decided)
        assert found == {"round": 3, "annotation_source": config.source, "num_decisions": 2, "num_math": 1, "stopped": 2}
        assert (decided / "decisions.jsonl").read_bytes() == (judged / "decisions.jsonl").read_bytes()
    finish(decided, found)
    last = folder(base, "grow")
    passed = grow.run(GrowConfig(), GrowInputs(pages, trained, selected, out, decided, before), last)
    line = artifact.read_metrics(last)
    assert line == [artifact.read_metrics(before)[0] | {"round": 3, "overlap": 1.0, "new_seeds": 0}]
    assert passed["stopped"] == 2 and passed["round"] == 3
    for name in ("seeds", "collected", "math_hosts"):
        assert (last / f"{name}.parquet").read_bytes() == (before / f"{name}.parquet").read_bytes()
