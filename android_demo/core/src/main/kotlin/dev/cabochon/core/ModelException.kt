package dev.cabochon.core

/** What a person can mend; the message is one sentence: what was found, what was expected, what to do. */
open class ModelException(sentence: String) : Exception(sentence)

/** A connection failed that may hold at the next try; what came is kept. */
class TransferInterruptedException(sentence: String) : ModelException(sentence)
