"""Licences: what a card says is read as it stands, and what is derived carries everything that its parents did."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from safety.bounds import Bounds
from safety.licences import Licence, Obligations, is_inherited, licences_in, licences_of, obligations_of

LINE = st.text(st.characters(blacklist_categories=["Cs", "Cc"]), min_size=1, max_size=12)
OWN = st.builds(lambda name, link: Licence(f"other:{name}", link), st.from_regex(r"[a-z][a-z0-9 ,#:\"'-]{0,8}[a-z0-9]",
                fullmatch=True), LINE.map(str.strip) | st.just(""))
KNOWN = st.sampled_from(["apache-2.0", "mit", "llama3.2", "cc-by-nc-4.0", "openrail++", "unknown"]).map(Licence)


def card(folder: Path, text: str, **files: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "README.md").write_text(text)
    for name, content in files.items():
        (folder / name.replace("__", ".")).write_text(content)
    return folder


@pytest.mark.parametrize(("front", "found"), [
    ("license: apache-2.0", ["apache-2.0"]), ("licence: 'MIT' # ok", ["mit"]), ("License: Apache-2.0", ["apache-2.0"]),
    ("license: apache-2.0 and mit", ["apache-2.0", "mit"]), ("license: [mit, llama2]", ["mit", "llama2"]),
    ("license:\n- mit\n- gemma", ["mit", "gemma"]), ("license:\n  - mit\n  - \"gemma\"\ntags:\n- x", ["mit", "gemma"]),
    ("license: openrail++", ["openrail++"]), ("license: gpl-2.0+", ["gpl-2.0+"]), ("license: llama3.2", ["llama3.2"]),
    ("license: mit or apache-2.0", ["mit or apache-2.0"]), ("license:", ["unknown"]), ("name: x", ["unknown"]),
    ("license: other", ["other"]), ("license: other\nlicense_name: Qwen-Research", ["other:qwen-research"]),
    ("license: other\nlicense_name: mit", ["other:mit"]), ("license: mit\nlicense_name: x", ["mit"]),
    ("license: [mit, other]\nlicense_name: x\nlicense_link: LICENSE", ["mit", "other:x"]),
    ("license:\n- mit\n\n- gemma\nx: y", ["mit", "gemma"]),
    ("license:\n# two\n- mit\n  # and\n- gemma", ["mit", "gemma"]),
    ("license: [mit,\n  # and\n  gemma]", ["mit", "gemma"]), ("license: mit\n  and gemma\nx: y", ["mit", "gemma"]),
    ("license: mit\n\n# llama2\nx: y", ["mit"]), ("license:\n  mit", ["mit"]), ("license:\n  name: mit", ["name: mit"]),
    ("license: other\nlicense_name:\n\n- x\n\n- y", ["other:x", "other:y"]),
    ("license: [mit, mit]", ["mit"]), ("license: other\nlicense_name:", ["other"]),
])
def test_the_front_matter_says_the_licences(tmp_path: Path, front: str, found: list[str]) -> None:
    assert licences_of(card(tmp_path, f"---\nx: y\n{front}\n---\n# about\nlicense: gpl-3.0\n")) == found


@pytest.mark.parametrize("start", [b"\xef\xbb\xbf", b"\n"])
def test_a_mark_of_the_byte_order_and_ends_of_lines_of_another_system_change_nothing(
    tmp_path: Path, start: bytes
) -> None:
    (tmp_path / "README.md").write_bytes(start + b"---\r\nlicense:\r\n- mit\r\n\r\n- gemma\r\nx: y\r\n---\r\n")
    assert licences_of(tmp_path) == ["mit", "gemma"]


@pytest.mark.parametrize("text", ["", "# no front matter\nlicense: mit\n", "words\n---\nlicense: mit\n---\n", "---\n"])
def test_without_front_matter_the_licence_is_unknown(tmp_path: Path, text: str) -> None:
    assert licences_of(card(tmp_path, text)) == ["unknown"]
    (tmp_path / "README.md").unlink()
    assert licences_of(tmp_path) == ["unknown"]


def test_unknown_and_unnamed_licences_are_refused_unless_the_operator_lists_them() -> None:
    listed = Bounds().supply.licences
    assert not {"unknown", "other"} & set(listed)
    assert "apache-2.0" in listed
    assert not any(name.startswith("other:") for name in listed)


@given(st.lists(OWN | KNOWN, min_size=1, max_size=5, unique=True))
def test_what_a_card_is_given_it_says(licences: list[Licence]) -> None:
    written = Obligations(tuple(sorted(licences)), {}).front_matter("tags: [x]")
    assert sorted(licences_in(written)) == sorted(licences)


@given(OWN | KNOWN)
def test_everything_that_is_said_in_words_is_one_line_a_licence(licence: Licence) -> None:
    words = Obligations((licence,), {}).in_words().splitlines()
    assert [line for line in words if line.startswith("- ")] == [words[2]]
    assert words[-1].endswith("no legal advice.")


def test_known_licences_say_what_they_ask_and_others_that_it_is_not_known() -> None:
    assert Licence("cc0-1.0").asks == ()
    assert any("NOTICE" in asked for asked in Licence("apache-2.0").asks)
    assert any('"Llama 3"' in asked for asked in Licence("llama3").asks)
    assert not any('"Llama 3"' in asked for asked in Licence("llama3.2").asks)
    for name in ("other:mit", "unknown", "mit-extended", "other"):
        assert "not known" in Licence(name).asks[0]


def test_notices_are_carried_once_and_apart_where_they_differ(tmp_path: Path) -> None:
    a = card(tmp_path / "a", "---\nlicense: mit\n---", LICENSE="one", NOTICE__txt="same", config__json="{}")
    b = card(tmp_path / "b", "---\nlicense: other\nlicense_name: b\nlicense_link: LICENSE\n---", LICENSE="two",
             NOTICE__txt="same")
    joined = obligations_of([a, b])
    assert {source.read_text() for source in joined.notices.values()} == {"one", "two", "same"}
    assert "NOTICE.txt" in joined.notices and len(joined.notices) == 3
    own = next(licence for licence in joined.licences if licence.own)
    assert joined.notices[own.link].read_text() == "two"             # the link follows the file to its new name


@pytest.mark.parametrize("name", [
    "LICENSE", "LICENSE.txt", "LICENCE", "License.md", "NOTICE", "Notice.txt", "USE_POLICY.md", "COPYING",
    "LICENSE-MIT", "LICENSES.html",
])
def test_notices_are_known_by_their_names(name: str) -> None:
    assert not is_inherited(name)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "licensed.json", "noticeboard.md", "model.py"])
def test_other_files_are_not_notices(name: str) -> None:
    assert is_inherited(name)


def model(folder: Path, texts: Sequence[str], licence: str) -> Path:
    return card(folder, f"---\nlicense: {licence}\n---\n", **dict(zip(("LICENSE", "NOTICE__md"), texts, strict=False)))


def carried(folder: Path) -> tuple[set[str], dict[str, str]]:
    notices = {file.name: file.read_text() for file in folder.iterdir() if file.name != "README.md"}
    return set(licences_of(folder)), notices


def derived(folder: Path, *parents: Path) -> Path:
    owed = obligations_of(parents)
    folder.mkdir()
    owed.write_notices(folder)
    (folder / "README.md").write_text(owed.front_matter())
    return folder


MODEL = st.tuples(st.lists(st.sampled_from(["x", "y", "z"]), max_size=2), st.sampled_from(["mit", "gemma", "isc"]))


@given(a=MODEL, b=MODEL, c=MODEL)
def test_joining_is_associative_and_commutative_and_gives_back_one_alone(
    tmp_path_factory: pytest.TempPathFactory, a: tuple[list[str], str], b: tuple[list[str], str],
    c: tuple[list[str], str],
) -> None:
    root = tmp_path_factory.mktemp("join")
    one, two, three = (model(root / name, *said) for name, said in zip("abc", (a, b, c), strict=True))
    left = derived(root / "left", derived(root / "ab", one, two), three)
    right = derived(root / "right", one, derived(root / "cb", three, two))
    assert carried(left) == carried(right) == carried(derived(root / "all", three, two, one))
    assert carried(derived(root / "same", one, one)) == carried(one) == carried(derived(root / "alone", one))
    for parent in (one, two, three):
        names, notices = carried(parent)
        assert names <= carried(left)[0]
        assert set(notices.values()) <= set(carried(left)[1].values())
