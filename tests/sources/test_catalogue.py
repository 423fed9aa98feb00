from __future__ import annotations

import re
from pathlib import Path

import pytest

from sources import CatalogueInvalid, load_catalogue

CONFIGURATION = Path(__file__).parents[2] / "docs" / "configuration.md"
GOOD = {
    "label": '"head of state"',
    "prompt": '"The head of state of {} is"',
    "paraphrases": '["{} is headed by", "At the head of {} stands", "The leader of {} is"]',
    "questions": '["Who heads {}?", "Q: Who heads {}?\\nA:"]',
    "multi_valued": "false",
    "symmetric": "false",
}


def toml(pid: str = "P999999", **changes: str | None) -> str:
    entries = {key: value for key, value in (GOOD | changes).items() if value is not None}
    return f"[{pid}]\n" + "\n".join(f"{key} = {value}" for key, value in entries.items())


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "extra.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_the_packaged_catalogue_is_valid():
    catalogue = load_catalogue()
    assert catalogue["P35"].label == "head of state"
    for pid, relation in catalogue.items():
        assert relation.pid == pid
        assert relation.prompt.format("Albania").count("Albania") == 1


def test_the_packaged_catalogue_keeps_its_own_rules_of_wording():
    catalogue = load_catalogue()
    assert sum(relation.stated for relation in catalogue.values()) >= 46
    for relation in catalogue.values():
        assert len(relation.variants) >= 2
        for text in (relation.prompt, *relation.variants, *relation.paraphrases, *relation.questions):
            assert not text.startswith("{}")
            assert text.isascii()


def test_no_wording_belongs_to_two_packaged_relations():
    texts = [
        text
        for relation in load_catalogue().values()
        for text in (relation.prompt, *relation.variants, *relation.paraphrases, *relation.questions)
    ]
    assert sorted(set(texts)) == sorted(texts)


def test_the_documented_relation_is_complete_and_loads(tmp_path):
    section = CONFIGURATION.read_text(encoding="utf-8").partition("\n## A relation of your own")[2]
    (example,) = re.findall(r"```toml\n(.+?)```", section, re.DOTALL)
    catalogue = load_catalogue(write(tmp_path, example))
    added = set(catalogue) - set(load_catalogue())
    assert {pid: (catalogue[pid].stated, catalogue[pid].inverse) for pid in added} == {
        "P1037": (True, "^P1037"), "^P1037": (False, None),
    }  # fmt: skip


def test_an_operator_adds_and_replaces(tmp_path):
    extra = write(tmp_path, toml() + "\n" + toml("P35", label='"boss"'))
    catalogue = load_catalogue(extra)
    assert catalogue["P999999"].questions == ("Who heads {}?", "Q: Who heads {}?\nA:")
    assert catalogue["P35"].label == "boss"
    assert len(catalogue) == len(load_catalogue()) + 1


def test_two_properties_that_name_each_other_are_inverses(tmp_path):
    extra = write(tmp_path, toml(inverse='"P999998"') + "\n" + toml("P999998", inverse='"P999999"'))
    catalogue = load_catalogue(extra)
    assert [catalogue[pid].opposite for pid in ("P999999", "P999998")] == ["P999998", "P999999"]


def test_wordings_in_other_scripts(tmp_path):
    extra = write(tmp_path, toml(questions='["{}の首都はどこですか？", "ما هي عاصمة {}؟"]'))
    assert len(load_catalogue(extra)["P999999"].questions) == 2


def test_the_opposite_is_the_inverse_or_for_a_symmetric_relation_itself():
    catalogue = load_catalogue()
    assert [catalogue[pid].opposite for pid in ("P36", "P1376", "P26", "P6", "P17")] == [
        "P1376", "P36", "P26", "^P6", None,
    ]  # fmt: skip
    for relation in catalogue.values():
        assert relation.opposite is None or relation.opposite in catalogue


def test_a_relation_without_a_property_has_words_and_no_statements(tmp_path):
    extra = write(tmp_path, toml(inverse='"^P999999"') + "\n" + toml('"^P999999"', label='"seat of"'))
    catalogue = load_catalogue(extra)
    assert [catalogue[pid].stated for pid in ("P999999", "^P999999")] == [True, False]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (toml("Q35"), "not a property id"),
        (toml(inverse='"Q1"'), "inverse"),
        (toml(inverse='"^^P1"'), "not a property id"),
        (toml(inverse='"P999998"'), "P999998 has no wordings"),
        (toml(inverse='"^P999999"'), "^P999999 has no wordings"),
        (toml(inverse='"P35"', symmetric="true"), "leave inverse out"),
        (toml(inverse='"P999999"'), "symmetric = true"),
        (toml(inverse='"^P35"'), "^P35 is not P999999 read backwards"),
        (toml(inverse='"P35"'), 'P35 does not point back: [P35] must have inverse = "P999999"'),
        (toml("P1376"), 'P1376 does not point back: [P1376] must have inverse = "P36"'),
        (toml("P1234567890123"), "not a property id"),
        (toml(label="7"), "label"),
        (toml(label='""'), "label"),
        (toml(label=None), "label: Field required"),
        (toml(extra="1"), "extra: Extra inputs"),
        (toml() + '\npid = "P1"', "without a key pid"),
        (toml(multi_valued='"no"'), "multi_valued"),
        (toml(prompt='"no slot"'), "exactly once"),
        (toml(prompt='"{} and {}"'), "exactly once"),
        (toml(prompt='"{0} is"'), "exactly once"),
        (toml(prompt='"{} } is"'), "exactly once"),
        (toml(prompt='"{} is "'), "without space"),
        (toml(prompt='"{}\\tis"'), "one line"),
        (toml(paraphrases='["{} a", "{} b"]'), "paraphrases"),
        (toml(paraphrases='["{} a", "{} b", "The head of state of {} is"]'), "occurs twice"),
        (toml(paraphrases='["{} a", "{} b", "{} b"]'), "occurs twice"),
        (toml(paraphrases='["{} a", "{} b", "the head of State of {}, is:"]'), "occurs twice"),
        (toml(variants='["The leader, of {} is"]'), "occurs twice"),
        (toml(paraphrases='["{} a", "{} b", "Who heads {}?"]'), "belongs under questions"),
        (toml(prompt='"Who heads {}? Answer:"'), "belongs under questions"),
        (toml(questions="[]"), "questions"),
        (toml(questions='["Who is {}?", 3]'), "questions.1"),
        (toml(questions='["The head of {} is"]'), "must contain a question mark"),
        ("P35 = 3", "must be a table"),
        ("[P35", "cannot be read as TOML"),
    ],
)
def test_a_mistake_is_named_in_one_line(tmp_path, text, problem):
    path = write(tmp_path, text)
    with pytest.raises(CatalogueInvalid) as caught:
        load_catalogue(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert problem in message
    assert "\n" not in message


def test_a_missing_file(tmp_path):
    with pytest.raises(CatalogueInvalid, match="cannot be read"):
        load_catalogue(tmp_path / "none.toml")
