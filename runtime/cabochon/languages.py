"""Names of languages, as the prompts use them."""

from __future__ import annotations

from cabochon.errors import RequestError

LANGUAGE_NAMES = {
    "af": "Afrikaans", "am": "Amharic", "ar": "Arabic", "as": "Assamese", "az": "Azerbaijani", "be": "Belarusian",
    "bg": "Bulgarian", "bn": "Bengali", "bo": "Tibetan", "bs": "Bosnian", "ca": "Catalan", "cs": "Czech",
    "cy": "Welsh", "da": "Danish", "de": "German", "ee": "Ewe", "el": "Greek", "en": "English", "eo": "Esperanto",
    "es": "Spanish", "et": "Estonian", "eu": "Basque", "fa": "Persian", "fi": "Finnish", "fo": "Faroese",
    "fr": "French", "ga": "Irish", "gl": "Galician", "gu": "Gujarati", "ha": "Hausa", "he": "Hebrew", "hi": "Hindi",
    "hr": "Croatian", "ht": "Haitian Creole", "hu": "Hungarian", "hy": "Armenian", "id": "Indonesian", "ig": "Igbo",
    "is": "Icelandic", "it": "Italian", "ja": "Japanese", "jv": "Javanese", "ka": "Georgian", "kk": "Kazakh",
    "km": "Khmer", "kn": "Kannada", "ko": "Korean", "ku": "Kurdish", "ky": "Kyrgyz", "la": "Latin",
    "lb": "Luxembourgish", "lo": "Lao", "lt": "Lithuanian", "lv": "Latvian", "mg": "Malagasy", "mi": "Maori",
    "mk": "Macedonian", "ml": "Malayalam", "mn": "Mongolian", "mr": "Marathi", "ms": "Malay", "mt": "Maltese",
    "my": "Burmese", "ne": "Nepali", "nl": "Dutch", "no": "Norwegian", "ny": "Chichewa",
    "or": "Odia", "pa": "Punjabi", "pl": "Polish", "ps": "Pashto", "pt": "Portuguese", "ro": "Romanian",
    "ru": "Russian", "rw": "Kinyarwanda", "sd": "Sindhi", "si": "Sinhala", "sk": "Slovak", "sl": "Slovenian",
    "sn": "Shona", "so": "Somali", "sq": "Albanian", "sr": "Serbian", "st": "Sesotho", "su": "Sundanese",
    "sv": "Swedish", "sw": "Swahili", "ta": "Tamil", "te": "Telugu", "tg": "Tajik", "th": "Thai", "ti": "Tigrinya",
    "tk": "Turkmen", "tl": "Tagalog", "tr": "Turkish", "tt": "Tatar", "tw": "Twi", "uk": "Ukrainian", "ur": "Urdu",
    "uz": "Uzbek", "vi": "Vietnamese", "wo": "Wolof", "xh": "Xhosa", "yi": "Yiddish", "yo": "Yoruba",
    "zh": "Chinese", "zu": "Zulu",
}  # fmt: skip
"""English names of languages, each under one ISO 639-1 code."""
NAMES_BY_CODE = LANGUAGE_NAMES | {"nb": "Norwegian"}
"""By every code that is understood: Norwegian as most people write it, Bokmål, has one of its own."""

_BY_LOWER_CASE = {name.lower(): name for name in LANGUAGE_NAMES.values()}


def language_name(language: str) -> str:
    """The English name of a language, given as such a name or as an ISO 639-1 code, in any case.

    A name that is not in the table passes as it is, because a model may know more languages than this file.

    Raises:
        RequestError: an unknown code, or something that cannot be a name.
    """
    given = language.strip() if isinstance(language, str) else ""
    known = NAMES_BY_CODE.get(given.lower()) or _BY_LOWER_CASE.get(given.lower())
    if known:
        return known
    # The few names of two or three letters are in the table, so what is as short is a code, pt-BR included.
    parts = given.replace("-", " - ").split(" ")
    if min(map(len, given.split("-"))) < 4 or not all(part.isalpha() or part == "-" for part in parts):
        raise RequestError(
            f"{language!r} is not a language that cabochon knows: give its English name (German) "
            "or its two-letter code (de)."
        )
    return given[0].upper() + given[1:]
