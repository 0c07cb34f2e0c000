"""`llama2-pl data audit`: pronouns, identities, languages and toxicity of a corpus, as Llama 2 §4.1 counts them.

Nothing is filtered by what is counted: the paper left its corpus as it was on purpose, so that models stay of use for
recognising hate speech, and nobody is written out of it by chance.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import yaml

from llama2_pl.data.audit_terms import IDENTITIES, PRONOUNS
from llama2_pl.data.cleaning.ledger import table
from llama2_pl.data.sampling import is_held_out
from llama2_pl.data.sources import documents, of_kinds
from llama2_pl.data.toxicity import toxicity_scorer
from llama2_pl.files import write_json

Terms = Mapping[str, Mapping[str, Sequence[str]]]  # axis -> part -> the terms that stand for it
Counts = Counter[tuple[str, ...]]

UNKNOWN = "unknown"
THRESHOLD = 0.5  # of a language's probability and of a document's toxicity, both the paper's
_IDENTIFIED = (
    5000  # characters that tell a document's language; our choice, the rest changes nothing but the time
)
_WORD = re.compile(r"[^\W_]+")
_ACRONYM = re.compile(r"\b(?:US|IT)\b")


def audit_corpus(
    sources: dict[str, dict[str, Any]],
    out: str,
    terms: str | None = None,
    languages: bool = False,
    toxicity: str | None = None,
    toxicity_share: float = 0.1,
    toxicity_label: int = 1,
) -> None:
    """Write shares of documents with pronouns, identity terms, languages and toxicity, over all and by source.

    Llama 2 §4.1, Tables 9 and 10. `share` is of all documents; `share_within` is of the documents that the axis has, as
    the paper prints the parts. A document counts once for each term. Nothing is filtered by it, as in the paper.
    The term lists are our choice and in English; the paper's are those of HolisticBias without words with another
    meaning (straight, black, white). Memory holds one document.

    Args:
        sources: as of `data clean`; the kind plays no part.
        out: the JSON file.
        terms: YAML or JSON file ``{axis: [term, …]}`` that adds to an axis of ours or makes a new one.
        languages: tell each document's language with py3langid (the extra `audit`); under a probability of 0.5, or
            where it says that it is none, it is unknown.
        toxicity: folder of a Hugging Face classifier of sequences (the extra `hf`), such as HateBERT fine-tuned on
            ToxiGen, which the paper took. A document's toxicity is the mean over its lines.
        toxicity_share: share of the documents that it reads, chosen by a hash of their text. The paper's 10 %.
        toxicity_label: the classifier's label that means toxic; not used where it has one label.
    """
    if not 0 < toxicity_share <= 1:
        raise ValueError(f"toxicity_share is {toxicity_share}: give a share above 0, up to 1")
    found = of_kinds(sources)
    axes = {**_by_phrase(PRONOUNS), **_by_phrase(identity_terms(terms))}
    counters: list[Callable[[str], list[tuple[str, ...]]]] = [lambda text: count_terms(text, axes)]
    if languages:
        tell = language_teller()
        counters.append(lambda text: [("languages", tell(text))])
    if toxicity:
        score = toxicity_scorer(toxicity, toxicity_label)
        counters.append(lambda text: _toxicity(text, toxicity_share, score))
    counts = {name: Counter[tuple[str, ...]]() for name in found}
    for name, source in found.items():
        for document in documents(source):
            counts[name][("documents",)] += 1
            for counter in counters:
                counts[name].update(counter(document.text))
    total = sum(counts.values(), Counter[tuple[str, ...]]())
    results = {"all": result(total), "sources": {name: result(some) for name, some in counts.items()}}
    write_json(out, results)
    print(f"{printed(results['all'])}\n\n{out}; nothing was filtered, as in the paper")


def identity_terms(path: str | None) -> dict[str, dict[str, list[str]]]:
    """Axis -> term -> itself; ours, with those of a file added."""
    axes = {axis: list(terms) for axis, terms in IDENTITIES.items()}
    for axis, terms in (_read_terms(path) if path else {}).items():
        axes[axis] = [*axes.get(axis, []), *terms]
    return {axis: {term: [term] for term in dict.fromkeys(terms)} for axis, terms in axes.items()}


def _read_terms(path: str) -> dict[str, list[str]]:
    try:
        value = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: neither YAML nor JSON: {str(error).splitlines()[0]}") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path}: holds {type(value).__name__}; give a mapping, axis: [term, term]")
    for axis, terms in value.items():
        if axis in PRONOUNS or not isinstance(axis, str):
            raise ValueError(f"{path}: axis {axis!r} is not for terms of your own; give it another name")
        if not isinstance(terms, list) or not all(isinstance(t, str) and _WORD.search(t) for t in terms):
            raise ValueError(f"{path}: {axis}: {terms!r:.60} is no list of words; write {axis}: [term, term]")
    return value


def _by_phrase(axes: Terms) -> dict[str, dict[str, list[tuple[str, ...]]]]:
    """Each term as the words that it is looked for by."""
    return {
        axis: {part: [tuple(_WORD.findall(term.lower())) for term in terms] for part, terms in parts.items()}
        for axis, parts in axes.items()
    }


def count_terms(
    text: str, axes: Mapping[str, Mapping[str, Sequence[tuple[str, ...]]]]
) -> list[tuple[str, ...]]:
    """("terms", axis) and ("terms", axis, part) of each axis and part that a text has, once.

    Whole words, whatever their case and whatever stands between those of one term; "he's" has he. US and IT in capitals
    are a country and a trade, no pronouns.
    """
    words = _WORD.findall(_ACRONYM.sub(" ", text).lower())
    distinct, joined = set(words), f" {' '.join(words)} "
    found = []
    for axis, parts in axes.items():
        has = [part for part, terms in parts.items() if any(_holds(distinct, joined, term) for term in terms)]
        found += [("terms", axis)] * bool(has) + [("terms", axis, part) for part in has]
    return found


def _holds(distinct: set[str], joined: str, term: tuple[str, ...]) -> bool:
    return distinct.issuperset(term) and (len(term) == 1 or f" {' '.join(term)} " in joined)


def language_teller() -> Callable[[str], str]:
    """Text -> ISO 639 code of its language, or unknown."""
    try:
        from py3langid.langid import MODEL_FILE, LanguageIdentifier
    except ImportError as error:
        raise ImportError("languages needs py3langid: pip install 'llama2-pl[audit]'") from error
    identifier = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)

    def tell(text: str) -> str:
        language, probability = identifier.classify(text[:_IDENTIFIED])
        # zxx is ISO 639's code for what is no language: numbers, markup, code
        return UNKNOWN if probability < THRESHOLD or language == "zxx" else language

    return tell


def _toxicity(text: str, share: float, score: Callable[[str], float]) -> list[tuple[str, ...]]:
    if not is_held_out(text, share):
        return []
    return [("sampled",), *([("toxic",)] if score(text) >= THRESHOLD else [])]


def result(counts: Counts) -> dict[str, Any]:
    """Counts as shares: pronouns (Table 9a), identities (Table 9b), languages (Table 10), toxicity."""
    number = counts[("documents",)]
    axes = [key[1] for key in counts if len(key) == 2 and key[0] == "terms"]
    made: dict[str, Any] = {
        "documents": number,
        "pronouns": {axis: _axis(counts, axis, list(parts)) for axis, parts in PRONOUNS.items()},
        "identities": {
            axis: _axis(counts, axis, [key[2] for key in counts if len(key) == 3 and key[1] == axis])
            for axis in [*IDENTITIES, *sorted(set(axes) - set(IDENTITIES) - set(PRONOUNS))]
        },
    }
    spoken = {key[1]: count for key, count in counts.items() if key[0] == "languages"}
    if spoken:
        made["languages"] = {
            language: {"documents": count, "share": _share(count, number)}
            for language, count in sorted(spoken.items(), key=lambda found: (-found[1], found[0]))
        }
    if counts[("sampled",)]:
        sampled, toxic = counts[("sampled",)], counts[("toxic",)]
        made["toxicity"] = {"sampled": sampled, "toxic": toxic, "share": _share(toxic, sampled)}
    return made


def _axis(counts: Counts, axis: str, parts: Sequence[str]) -> dict[str, Any]:
    whole, number = counts[("terms", axis)], counts[("documents",)]
    listed = sorted(parts, key=lambda part: (-counts[("terms", axis, part)], part))
    return {
        "documents": whole,
        "share": _share(whole, number),
        "parts": {
            part: {
                "documents": (count := counts[("terms", axis, part)]),
                "share": _share(count, number),
                "share_within": _share(count, whole),
            }
            for part in listed
        },
    }


def _share(part: int, whole: int) -> float:
    return part / whole if whole else 0.0


def printed(results: Mapping[str, Any], top: int = 5) -> str:
    """Results as tables; of identities and languages the most frequent."""
    blocks = []
    for title, key, most in (("pronouns", "pronouns", None), ("identities", "identities", top)):
        rows = []
        for axis, found in results[key].items():
            rows.append([axis, found["documents"], f"{found['share']:.2%}", ""])
            rows += [
                [f"  {part}", one["documents"], f"{one['share']:.2%}", f"{one['share_within']:.1%}"]
                for part, one in list(found["parts"].items())[:most]
            ]
        blocks.append(table([title, "documents", "of all", "of these"], rows))
    if "languages" in results:
        rows = [[name, one["documents"], f"{one['share']:.2%}"] for name, one in results["languages"].items()]
        blocks.append(table(["language", "documents", "of all"], rows[:20]))
    if "toxicity" in results:
        one = cast(dict[str, Any], results["toxicity"])
        blocks.append(
            table(
                ["toxicity", "documents", "of the sample"],
                [["sample", one["sampled"], ""], [f"≥ {THRESHOLD}", one["toxic"], f"{one['share']:.2%}"]],
            )
        )
    return "\n\n".join(blocks)
