"""`data audit`: exact counts on a corpus that was counted by hand, and a classifier called by hand."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llama2_pl.data.audit import audit_corpus, language_teller
from llama2_pl.data.toxicity import toxicity_scorer

# By hand: who is in which document.
TOY = [
    "She's gone, and they know. An American woman.",  # she, unspecified; 3rd; american
    "He told me: you are a Trans woman!",  # he; 1st, 2nd, 3rd; trans, trans woman
    "It rains in the US.",  # 3rd alone
    "THE WORDS HERE, SHELTER, HEAT, THEYRE, ITEM",  # nothing: no whole word of any list
    "Us and our Indian, non-binary, American friends; his",  # he; 1st, 3rd; american, indian; non-binary
]


@pytest.fixture
def audited(tmp_path: Path, write_rows: Callable[[str, list], str]) -> Callable[..., dict[str, Any]]:
    def audit(texts: list[str], **options: Any) -> dict[str, Any]:
        path = write_rows("in.jsonl", [{"text": text} for text in texts])
        audit_corpus({"a": {"path": path}, "b": {"path": path}}, str(tmp_path / "audit.json"), **options)
        return json.loads((tmp_path / "audit.json").read_text(encoding="utf-8"))

    return audit


def counted(axis: dict[str, Any]) -> tuple[int, dict[str, int]]:
    """Documents of an axis, and of its parts that have some."""
    return axis["documents"], {
        part: one["documents"] for part, one in axis["parts"].items() if one["documents"]
    }


def test_a_toy_corpus_gives_the_counts_made_by_hand(
    audited: Callable, capsys: pytest.CaptureFixture[str]
) -> None:
    results = audited(TOY)
    one = results["sources"]["a"]
    assert one["documents"] == 5
    assert counted(one["pronouns"]["gender pronouns"]) == (3, {"she": 1, "he": 2, "unspecified": 1})
    assert counted(one["pronouns"]["grammatical person"]) == (4, {"1st": 2, "2nd": 1, "3rd": 4})
    assert counted(one["identities"]["nationality"]) == (2, {"american": 2, "indian": 1})
    assert counted(one["identities"]["gender and sex"]) == (
        2,
        {"trans": 1, "trans woman": 1, "non-binary": 1},
    )
    assert counted(one["identities"]["religion"]) == (0, {})
    he = one["pronouns"]["gender pronouns"]["parts"]["he"]
    assert he == {"documents": 2, "share": 2 / 5, "share_within": 2 / 3}
    whole = results["all"]
    assert (whole["documents"], counted(whole["identities"]["nationality"])[0]) == (10, 4)
    assert whole["pronouns"]["gender pronouns"]["share"] == 3 / 5
    out = capsys.readouterr().out
    assert "gender pronouns             6  60.00%\n  he                        4  40.00%     66.7%" in out
    assert "nothing was filtered" in out


def test_a_file_adds_terms_to_an_axis_and_makes_new_ones(audited: Callable, tmp_path: Path) -> None:
    terms = tmp_path / "terms.yaml"
    terms.write_text("nationality: [Martian]\nage: [old, young at heart]\n", encoding="utf-8")
    texts = ["A martian, young at heart.", "Young. At heart an Indian.", "young heart, older"]
    found = audited(texts, terms=str(terms))["sources"]["a"]["identities"]
    assert counted(found["nationality"]) == (2, {"Martian": 1, "indian": 1})
    assert counted(found["age"]) == (2, {"young at heart": 2})


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[a, b]", "holds list; give a mapping"),
        ("age: old", "age: 'old' is no list of words"),
        ("age: [1]", "age: .* is no list of words"),
        ("gender pronouns: [xe]", "axis 'gender pronouns' is not for terms of your own"),
        ("a: [", "neither YAML nor JSON"),
    ],
)
def test_a_wrong_file_of_terms_is_refused_by_name(
    audited: Callable, tmp_path: Path, text: str, says: str
) -> None:
    (tmp_path / "terms.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=rf"terms\.yaml: {says}"):
        audited(TOY, terms=str(tmp_path / "terms.yaml"))


def test_languages_are_told_and_what_is_none_is_unknown(audited: Callable) -> None:
    pytest.importorskip("py3langid")
    texts = [
        "The committee will meet again on Thursday to talk about the new bridge over the river.",
        "Der Ausschuss trifft sich am Donnerstag wieder, um über die neue Brücke zu sprechen.",
        "Le comité se réunira de nouveau jeudi pour parler du nouveau pont sur la rivière.",
        "委員会は木曜日に再び集まり、川にかかる新しい橋について話し合います。",
        "4711 0815 3.14159 2.71828 17 23 42 4711 0815 99 1024 65536",
    ]
    found = audited([texts[0], *texts], languages=True)["sources"]["a"]["languages"]
    assert {name: one["documents"] for name, one in found.items()} == {
        "en": 2,
        "de": 1,
        "fr": 1,
        "ja": 1,
        "unknown": 1,
    }
    assert next(iter(found)) == "en" and found["en"]["share"] == 2 / 6


def test_without_the_extra_languages_name_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "py3langid", None)
    monkeypatch.setitem(sys.modules, "py3langid.langid", None)
    with pytest.raises(ImportError, match=r"llama2-pl\[audit\]"):
        language_teller()


LINES = [
    "the river is wide",
    "you are a fool",
    "no use",
    "of cold and the river you are of no use at all",
    "a",
    "is is",
]
DOCUMENTS = [f"{LINES[n % 6]}\n\n  {LINES[(n * n + 1) % 6]}\n{LINES[(3 * n + 2) % 6]} {n}" for n in range(12)]


@pytest.fixture(scope="module", params=[1, 2])
def classifier(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Any, Any]:
    """A random BERT of one or two labels: its folder, and itself as transformers has it."""
    transformers = pytest.importorskip("transformers")
    import tokenizers
    import torch

    words = ["[PAD]", "[UNK]", *"the river is wide and cold you are a fool of no use".split()]
    inner = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({word: place for place, word in enumerate(words)}, unk_token="[UNK]")
    )
    inner.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="[PAD]", unk_token="[UNK]", model_max_length=8
    )
    torch.manual_seed(5)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    config = transformers.BertConfig(
        vocab_size=len(words),
        num_labels=request.param,
        initializer_range=1.0,
        max_position_embeddings=8,
        **sizes,
    )
    model = transformers.BertForSequenceClassification(config).eval()
    ids = [torch.tensor([tokenizer(line)["input_ids"][:8]]) for line in LINES]
    with torch.no_grad():  # around one half, so that some documents are toxic and some are not
        model.classifier.bias -= torch.cat([model(input_ids=one).logits for one in ids]).mean(dim=0)
    folder = tmp_path_factory.mktemp(f"classifier{request.param}")
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder, model, tokenizer


def by_hand(text: str, model: Any, tokenizer: Any) -> float:
    """Line by line, without a batch: the mean of the probability of the last label."""
    import torch

    found = []
    for line in text.split("\n"):
        if line.strip():
            ids = torch.tensor([tokenizer(line.strip())["input_ids"][:8]])
            with torch.no_grad():
                logits = model(input_ids=ids).logits[0]
            odds = logits.exp()
            found.append(float(odds[0] / (1 + odds[0]) if len(logits) == 1 else odds[1] / odds.sum()))
    return sum(found) / len(found)


def test_toxicity_is_the_mean_over_lines_of_a_classifier_called_by_hand(
    classifier: tuple[Path, Any, Any], audited: Callable
) -> None:
    folder, model, tokenizer = classifier
    expected = [by_hand(text, model, tokenizer) for text in DOCUMENTS]
    score = toxicity_scorer(str(folder))
    assert [score(text) for text in DOCUMENTS] == pytest.approx(expected, abs=1e-5)
    toxic = sum(value >= 0.5 for value in expected)
    assert 0 < toxic < len(DOCUMENTS)
    found = audited(DOCUMENTS, toxicity=str(folder), toxicity_share=1.0)["sources"]["a"]["toxicity"]
    assert found == {"sampled": 12, "toxic": toxic, "share": toxic / 12}


def test_a_sample_of_documents_is_read_the_same_each_time(
    classifier: tuple[Path, Any, Any], audited: Callable
) -> None:
    texts = [f"the river is {number}" for number in range(100)]
    first, second = (
        audited(texts, toxicity=str(classifier[0]))["sources"]["a"]["toxicity"] for _ in range(2)
    )
    assert first == second and 3 <= first["sampled"] <= 20  # 10 % of 100, within 3 standard deviations


def test_a_classifier_that_is_not_there_or_lacks_the_label_is_refused_by_name(
    classifier: tuple[Path, Any, Any], tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=r"has no config\.json"):
        toxicity_scorer(str(tmp_path))
    if classifier[1].config.num_labels > 1:
        with pytest.raises(ValueError, match=r"toxicity_label is 2: .* has the labels 0 LABEL_0, 1 LABEL_1"):
            toxicity_scorer(str(classifier[0]), label=2)
