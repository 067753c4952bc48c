package dev.cabochon.core

/** What a person can mend; the message is one sentence: what was found, what was expected, what to do. */
class ModelException(sentence: String) : Exception(sentence)
