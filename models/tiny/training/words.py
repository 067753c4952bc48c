"""Word lists of the phrasebook and the little grammar that puts them into sentences.

A noun formats itself: `{place:dem}` in a German template becomes "dem Bahnhof", "der Post" or "dem Museum", the article
in the format being the masculine one; `{thing:a}` in an English one becomes "a key" or "an umbrella". A further
language is one more column in the tables, one more noun class in `_NOUN_CLASSES`, and one more text in each template.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

LANGUAGES: Final = ("en", "de")
"""Written languages, in the order of the columns below."""


@dataclass(frozen=True, slots=True)
class EnglishNoun:
    """A noun without its article."""

    word: str

    @classmethod
    def parse(cls, text: str) -> EnglishNoun:
        return cls(text)

    def __format__(self, article: str) -> str:
        """Empty format: the bare noun; "a": with "a" or "an"."""
        if article == "":
            return self.word
        if article != "a":
            raise ValueError(f"unknown English article {article!r}")
        return f"an {self.word}" if self.word[0] in "aeiou" else f"a {self.word}"


@dataclass(frozen=True, slots=True)
class GermanNoun:
    """A singular noun with its gender."""

    word: str
    gender: int
    """0 masculine, 1 feminine, 2 neuter."""

    @classmethod
    def parse(cls, text: str) -> GermanNoun:
        """From dictionary style: "der Bahnhof"."""
        article, word = text.split(" ", 1)
        return cls(word, ("der", "die", "das").index(article))

    def __format__(self, article: str) -> str:
        """Empty format: the bare noun; else the masculine article (or contraction) of the case wanted."""
        if article == "":
            return self.word
        form = _GERMAN_ARTICLES[article.lower()][self.gender]
        return f"{form.capitalize() if article[0].isupper() else form} {self.word}"


_GERMAN_ARTICLES: Final = {
    "der": ("der", "die", "das"),
    "den": ("den", "die", "das"),
    "dem": ("dem", "der", "dem"),
    "einen": ("einen", "eine", "ein"),
    "mein": ("mein", "meine", "mein"),
    "meinen": ("meinen", "meine", "mein"),
    "zum": ("zum", "zur", "zum"),
    "im": ("im", "in der", "im"),
}
_NOUN_CLASSES: Final[dict[str, Callable[[str], object]]] = {"en": EnglishNoun.parse, "de": GermanNoun.parse}

_SHOPS: Final = """
museum | das Museum; pharmacy | die Apotheke; restaurant | das Restaurant; supermarket | der Supermarkt; bank | die Bank
post office | die Post; library | die Bibliothek; market | der Markt; bakery | die Bäckerei; castle | das Schloss
theater | das Theater; zoo | der Zoo; swimming pool | das Schwimmbad; town hall | das Rathaus"""
_NOUN_TABLES: Final = {
    "shop": _SHOPS,
    "place": _SHOPS
    + """
train station | der Bahnhof; airport | der Flughafen; hotel | das Hotel; hospital | das Krankenhaus; beach | der Strand
church | die Kirche; bridge | die Brücke; park | der Park; harbor | der Hafen; school | die Schule
bus stop | die Bushaltestelle; cinema | das Kino; river | der Fluss""",
    "thing": """
ticket | die Fahrkarte; map | der Stadtplan; key | der Schlüssel; towel | das Handtuch; blanket | die Decke
pillow | das Kissen; suitcase | der Koffer; umbrella | der Regenschirm; passport | der Reisepass; phone | das Telefon
camera | die Kamera; battery | die Batterie; newspaper | die Zeitung; book | das Buch; jacket | die Jacke
bicycle | das Fahrrad; knife | das Messer; spoon | der Löffel; fork | die Gabel; glass | das Glas; bag | die Tasche
watch | die Uhr; shirt | das Hemd; hat | der Hut; coat | der Mantel; plate | der Teller; cup | die Tasse
bottle | die Flasche; chair | der Stuhl; wallet | die Brieftasche; charger | das Ladegerät
toothbrush | die Zahnbürste""",
    "vehicle": "train | der Zug; bus | der Bus; boat | das Boot; ferry | die Fähre",
    "device": """
light | das Licht; heating | die Heizung; television | der Fernseher; radio | das Radio; fan | der Ventilator
lamp | die Lampe; computer | der Computer; washing machine | die Waschmaschine; coffee machine | die Kaffeemaschine
music | die Musik""",
    "room": """
kitchen | die Küche; bedroom | das Schlafzimmer; bathroom | das Badezimmer; living room | das Wohnzimmer
office | das Büro; garage | die Garage; garden | der Garten; hallway | der Flur; basement | der Keller""",
    "opening": "door | die Tür; window | das Fenster; curtain | der Vorhang; cupboard | der Schrank",
    "relative": """
mother | die Mutter; father | der Vater; brother | der Bruder; sister | die Schwester; daughter | die Tochter
son | der Sohn; aunt | die Tante; uncle | der Onkel; neighbor | der Nachbar""",
}
_PLAIN_TABLES: Final = {
    "city": """
Berlin | Berlin; Paris | Paris; London | London; Madrid | Madrid; Vienna | Wien; Rome | Rom; Munich | München
Geneva | Genf; Lisbon | Lissabon; Brussels | Brüssel; Hamburg | Hamburg; Barcelona | Barcelona; Prague | Prag
Warsaw | Warschau; Milan | Mailand; Cologne | Köln; Venice | Venedig; Amsterdam | Amsterdam""",
    "weekday": """
Monday | Montag; Tuesday | Dienstag; Wednesday | Mittwoch; Thursday | Donnerstag; Friday | Freitag; Saturday | Samstag
Sunday | Sonntag""",
    "dish": """
coffees | Kaffee; teas | Tee; beers | Bier; pizzas | Pizzas; salads | Salate; soups | Suppen; sandwiches | Sandwiches
ice creams | Eis; pancakes | Pfannkuchen""",
    "goods": """
apples | Äpfel; oranges | Orangen; eggs | Eier; stamps | Briefmarken; postcards | Postkarten; bananas | Bananen
lemons | Zitronen; tomatoes | Tomaten; potatoes | Kartoffeln; onions | Zwiebeln; candles | Kerzen
bread rolls | Brötchen""",
    "food": """
milk | Milch; bread | Brot; water | Wasser; cheese | Käse; sugar | Zucker; rice | Reis; butter | Butter; fish | Fisch
chicken | Hähnchen; salt | Salz; flour | Mehl; honey | Honig; soap | Seife; pepper | Pfeffer; juice | Saft""",
    "quality": """
broken | kaputt; wet | nass; dirty | schmutzig; clean | sauber; new | neu; old | alt; small | klein; red | rot
black | schwarz; green | grün; blue | blau; white | weiß; heavy | schwer; expensive | teuer""",
}


def _rows(table: str) -> list[list[str]]:
    """Rows of columns: rows end with a semicolon or a line, columns with a vertical bar."""
    return [[column.strip() for column in row.split("|")] for row in table.replace("\n", ";").split(";") if row.strip()]


def word_lists() -> dict[str, list[Mapping[str, object]]]:
    """By slot name, the words that can fill it: each a mapping of language to something that formats itself."""
    lists: dict[str, list[Mapping[str, object]]] = {}
    for name, table in _NOUN_TABLES.items():
        lists[name] = [
            {language: _NOUN_CLASSES[language](column) for language, column in zip(LANGUAGES, row, strict=True)}
            for row in _rows(table)
        ]
    for name, table in _PLAIN_TABLES.items():
        lists[name] = [dict(zip(LANGUAGES, row, strict=True)) for row in _rows(table)]
    return lists
