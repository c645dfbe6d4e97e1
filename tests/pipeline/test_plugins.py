"""A filter of the user's own, in a module that only the recipe names, used by a process that never read the recipe."""

import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import ValidationError

from pipeline.recipe import IngestSpec

PLUGIN = """
from pipeline import Candidate, Filter, register

@register("url_host")
class UrlHost(Filter):
    forbidden: tuple[str, ...] = ()

    def reject(self, candidate: Candidate) -> str | None:
        return "host_forbidden" if any(host in candidate.url for host in self.forbidden) else None
"""

IN_ANOTHER_PROCESS = """
import pickle, sys
from pipeline import Candidate
spec = pickle.load(open("spec.pickle", "rb"))
(only,) = spec.build_filters()
print(only.reject(Candidate("https://example.org/a.jpg", "a cat", 9, 9)))
print(only.reject(Candidate("https://example.net/a.jpg", "a cat", 9, 9)))
"""

SPEC = {
    "source": {"urls": "urls.parquet"},
    "plugins": ["own_filters"],
    "filters": [{"url_host": {"forbidden": ["example.org"]}}],
}


def test_a_plugin_named_by_the_recipe_works_in_a_worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_filters.py").write_text(PLUGIN)
    monkeypatch.chdir(tmp_path)
    make = "import pickle; from pipeline.recipe import IngestSpec; "
    make += f"pickle.dump(IngestSpec.model_validate({SPEC!r}), open('spec.pickle', 'wb'))"
    subprocess.run([sys.executable, "-c", make], check=True)
    done = subprocess.run([sys.executable, "-c", IN_ANOTHER_PROCESS], check=True, capture_output=True, text=True)
    assert done.stdout.split() == ["host_forbidden", "None"]


def test_a_plugin_that_cannot_be_imported_is_named() -> None:
    with pytest.raises(ValidationError, match="plug-in 'own_filters_missing' cannot be imported"):
        IngestSpec.model_validate({**SPEC, "plugins": ["own_filters_missing"]})
