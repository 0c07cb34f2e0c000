"""The constraints of Llama 2 §3.3 where none are given: hobbies, languages, public figures.

The paper lets the chat model name hobbies and figures, so that it knows them. Fixed lists are our choice: a model too
small to name a figure is too small to act as one.
"""

from __future__ import annotations

from llama2_pl.text.constraints import Constraint

HOBBIES = (
    "tennis", "chess", "gardening", "painting", "hiking", "cooking", "astronomy", "sailing", "photography", "pottery",
    "cycling", "birdwatching", "knitting", "climbing", "jazz", "surfing",
)  # fmt: skip
LANGUAGES = (
    "French", "German", "Spanish", "Italian", "Portuguese", "Dutch", "Swedish", "Polish", "Russian", "Japanese",
    "Chinese", "Korean",
)  # fmt: skip
PUBLIC_FIGURES = (
    "Napoleon", "Mozart", "Marie Curie", "Leonardo da Vinci", "Cleopatra", "Isaac Newton", "Ada Lovelace",
    "Charles Darwin", "Jane Austen", "Galileo Galilei", "William Shakespeare", "Frida Kahlo",
    "Julius Caesar", "Joan of Arc", "Florence Nightingale", "Albert Einstein",
)  # fmt: skip


def default_constraints() -> list[Constraint]:
    """One constraint for each entry; those of one list exclude each other, those of different lists combine."""
    hobbies = [Constraint(f"You enjoy {x}.", f"Hobby: {x}.", kind="hobby") for x in HOBBIES]
    languages = [Constraint(f"Speak in {x}.", f"Language: {x}.", kind="language") for x in LANGUAGES]
    figures = [
        Constraint(f"Always act as {x} from now.", f"Figure: {x}.", kind="figure") for x in PUBLIC_FIGURES
    ]
    return hobbies + languages + figures
