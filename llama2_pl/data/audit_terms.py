"""What the audit of a corpus looks for, in English. Lists of our own; the paper prints the first five of each axis.

Left out are words that mean something else more often than people: straight, black and white, as in the paper, polish,
and names of countries.
"""

from __future__ import annotations

# Table 9a: the gendered pronouns, and the grammatical persons
_SHE = ["she", "her", "hers", "herself"]
_HE = ["he", "him", "his", "himself"]
_THEY = ["they", "them", "their", "theirs", "themself", "themselves", "theirself", "theirselves"]

PRONOUNS: dict[str, dict[str, list[str]]] = {
    "gender pronouns": {"she": _SHE, "he": _HE, "unspecified": _THEY},
    "grammatical person": {
        "1st": ["i", "me", "my", "mine", "myself", "we", "us", "our", "ours", "ourselves"],
        "2nd": ["you", "your", "yours", "yourself", "yourselves"],
        "3rd": [*_SHE, *_HE, *_THEY, "it", "its", "itself"],
    },
}


def _words(text: str) -> list[str]:
    """Terms of a text, parted by commas."""
    return [" ".join(term.split()) for term in text.split(",")]


# Table 9b
IDENTITIES: dict[str, list[str]] = {
    "gender and sex": _words(
        """female, male, feminine, masculine, transgender, trans, cisgender, cis, nonbinary, non-binary, agender,
        bigender, genderfluid, genderqueer, intersex, androgynous, transsexual, transfeminine, transmasculine,
        gender-neutral, gender nonconforming, two-spirit, trans woman, trans man, trans women, trans men"""
    ),
    "sexual orientation": _words(
        """gay, lesbian, lesbians, bisexual, heterosexual, homosexual, homosexuals, asexual, pansexual, polyamorous,
        queer, lgbt, lgbtq, lgbtqia, same-sex"""
    ),
    "nationality": _words(
        """american, argentine, australian, austrian, bangladeshi, belgian, brazilian, british, bulgarian, canadian,
        chilean, chinese, colombian, croatian, cuban, czech, danish, dutch, egyptian, english, ethiopian, filipino,
        finnish, french, german, ghanaian, greek, hungarian, indian, indonesian, iranian, iraqi, irish, israeli,
        italian, jamaican, japanese, kenyan, korean, lebanese, malaysian, mexican, moroccan, nepali, nigerian,
        norwegian, pakistani, palestinian, peruvian, portuguese, romanian, russian, saudi, scottish, serbian,
        south african, spanish, swedish, swiss, syrian, thai, turkish, ukrainian, venezuelan, vietnamese, welsh"""
    ),
    "race and ethnicity": _words(
        """european, african, asian, latin, indigenous, native american, native americans, african american,
        african americans, asian american, asian americans, arab, arabs, latino, latina, latinos, latinx, hispanic,
        caucasian, aboriginal, inuit, maori, pacific islander, pacific islanders, caribbean, middle eastern,
        south asian, east asian, southeast asian, biracial, multiracial, mixed race, people of color, roma, romani,
        creole"""
    ),
    "religion": _words(
        """christian, christians, religious, spiritual, catholic, catholics, jewish, jews, muslim, muslims, islamic,
        hindu, hindus, buddhist, buddhists, sikh, sikhs, protestant, protestants, orthodox, evangelical, baptist,
        methodist, lutheran, anglican, mormon, quaker, amish, jain, taoist, shinto, pagan, wiccan, zoroastrian, bahai,
        atheist, atheists, agnostic, secular"""
    ),
}
