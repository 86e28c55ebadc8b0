"""What the report reads: artifacts by name, and every artifact they were made from, through the manifests."""

from __future__ import annotations

import random
from functools import cached_property
from pathlib import Path
from typing import Any

from mathpipe.eval.markup import plot
from mathpipe.pipeline import artifact


class Entry:
    """One finished artifact."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.manifest = artifact.read_manifest(path)
        self.name: str = self.manifest["stage"]

    @cached_property
    def metrics(self) -> list[dict[str, Any]]:
        """Lines of metrics.jsonl."""
        return artifact.read_metrics(self.path)

    def file(self, name: str) -> Path:
        """A file of the artifact."""
        return self.path / name

    def curve(self, key: str, x: str = "step", scale: float = 1.0) -> tuple[list[float], list[float]] | None:
        """(x, y) of the lines that have `key`; None when fewer than two do."""
        rows = [row for row in self.metrics if row.get(key) is not None and row.get(x) is not None]
        return ([row[x] for row in rows], [scale * row[key] for row in rows]) if len(rows) > 1 else None

    def plots(self, wanted: dict[str, dict[str, str]], x: str = "step") -> list[str]:
        """One figure per title for the curves that exist; `wanted` is title → legend → metrics key (`key%` for per cent)."""
        found = []
        for title, curves in wanted.items():
            series = {legend: self.curve(key.rstrip("%"), x, 100.0 if key.endswith("%") else 1.0) for legend, key in curves.items()}
            drawn = {legend: curve for legend, curve in series.items() if curve}
            if drawn:
                found.append(plot(title, drawn, x, "%" if all(key.endswith("%") for key in curves.values()) else ""))
        return found


class Source:
    """The report's inputs and their history."""

    def __init__(self, paths: dict[str, Path]) -> None:
        self._entries = {name: Entry(path) for name, path in paths.items()}

    def __getitem__(self, name: str) -> Entry:
        return self._entries[name]

    def __contains__(self, name: str) -> bool:
        return name in self._entries

    def history(self) -> list[Entry]:
        """Every artifact the inputs were made from, themselves included, each after what it was made from."""
        seen: dict[Path, Entry] = {}

        def visit(entry: Entry) -> None:
            for made_from in entry.manifest.get("inputs", {}).values():
                path = Path(made_from["path"]).resolve()
                if path not in seen and artifact.is_complete(path):  # gc may have taken it
                    visit(Entry(path))
            seen[entry.path.resolve()] = entry

        for entry in self._entries.values():
            if entry.path.resolve() not in seen:
                visit(entry)
        return list(seen.values())

    def made_from(self, entry: Entry, name: str) -> Path | None:
        """Folder of an input of an artifact, or None when it has gone."""
        made_from = entry.manifest.get("inputs", {}).get(name)
        return Path(made_from["path"]) if made_from and artifact.is_complete(Path(made_from["path"])) else None


def require(entry: Entry, *keys: str) -> Any:
    """A value of a manifest.

    Raises:
        ContractError: it is not there.
    """
    value: Any = entry.manifest
    for key in keys:
        if not isinstance(value, dict) or key not in value:
            raise artifact.ContractError(f"{entry.path / artifact.MANIFEST}: no {'.'.join(keys)}; run stage {entry.name} again")
        value = value[key]
    return value


def sample(file_rows: list[dict[str, Any]], count: int, seed: str) -> list[dict[str, Any]]:
    """At most `count` rows, drawn with the seed."""
    return random.Random(seed).sample(file_rows, min(count, len(file_rows)))
