package dev.cabochon.core

import java.io.Reader

/** A token that is found in a text before anything else is. */
class AddedToken(val id: Int, val text: String, val isSpecial: Boolean)

/** tokenizer.json of Gemma 4, read piece by piece; whatever this app would tokenize otherwise is refused. */
class TokenizerDescription private constructor(
    val vocabulary: Map<String, Int>,
    val merges: PairTable,
    val addedTokens: List<AddedToken>,
) {
    val largestToken: Int = maxOf(vocabulary.values.maxOrNull() ?: 0, addedTokens.maxOfOrNull { it.id } ?: 0)

    companion object {
        private const val NAME = "tokenizer.json"

        fun read(source: Reader): TokenizerDescription = source.buffered().use { text ->
            TokenizerReader(JsonReader(text, NAME)).read()
        }

        private class TokenizerReader(private val json: JsonReader) {
            private val vocabulary = HashMap<String, Int>()
            private val addedTokens = ArrayList<AddedToken>()
            private var merges: PairTable? = null

            fun read(): TokenizerDescription {
                json.readObject { key ->
                    when (key) {
                        "added_tokens" -> json.readArray { addedTokens.add(addedToken()) }
                        "model" -> json.readObject(::readModelMember)
                        "normalizer" -> requireEqual(key, json.readValue(), NORMALIZER)
                        "decoder" -> requireEqual(key, json.readValue(), DECODER)
                        // The normalizer leaves no space for it to split at.
                        "pre_tokenizer" -> requireEqual(key, json.readValue(), PRE_TOKENIZER)
                        else -> json.skipValue() // of texts as they are sent through a pipeline of transformers
                    }
                }
                json.requireEnd()
                return TokenizerDescription(vocabulary, merges ?: fail("no merges"), addedTokens)
            }

            private fun addedToken(): AddedToken {
                val token = JsonObject("$NAME, an added token", @Suppress("UNCHECKED_CAST") (json.readValue() as Map<String, Any?>))
                if (listOf("single_word", "lstrip", "rstrip", "normalized").any(token::boolean)) {
                    fail("an added token that stretches beyond its text")
                }
                return AddedToken(id(token.int("id")), token.text("content"), token.boolean("special"))
            }

            private fun readModelMember(key: String) {
                when (key) {
                    "vocab" -> json.readObject { vocabulary[it] = id(json.readInt()) }
                    "merges" -> readMerges()
                    "type" -> requireEqual(key, json.readValue(), "BPE")
                    "byte_fallback" -> requireEqual(key, json.readValue(), true)
                    "ignore_merges" -> requireEqual(key, json.readValue(), false)
                    "dropout", "continuing_subword_prefix", "end_of_word_suffix" ->
                        requireEqual(key, json.readValue(), null)
                    "unk_token", "fuse_unk" -> json.skipValue() // bytes write every character
                    else -> fail("the unknown key $key of the model")
                }
            }

            private fun readMerges() {
                if (vocabulary.isEmpty()) fail("merges before their vocabulary")
                val table = PairTable(2 * vocabulary.size)
                var rank = 0
                json.readArray {
                    val left: String
                    val right: String
                    if (json.isNext('[')) {
                        val pair = ArrayList<String>(2)
                        json.readArray { pair.add(json.readString()) }
                        if (pair.size != 2) fail("a merge of ${pair.size} tokens")
                        left = pair[0]
                        right = pair[1]
                    } else {
                        val pair = json.readString()
                        left = pair.substringBefore(' ')
                        right = pair.substringAfter(' ')
                    }
                    table.add(token(left), token(right), rank++, token(left + right))
                }
                merges = table
            }

            /** Texts lie in an array by their ids. */
            private fun id(id: Int): Int = if (id in 0 until MOST_TOKENS) id else fail("the token $id")

            private fun token(text: String): Int = vocabulary[text] ?: fail("a merge of the unknown token $text")

            private fun requireEqual(key: String, found: Any?, expected: Any?) {
                if (found != expected) fail("$found for $key")
            }

            private fun fail(found: String): Nothing =
                throw ModelException("$NAME has $found, expected a tokenizer of Gemma 4: update the app.")
        }

        private const val MOST_TOKENS = 1 shl 22
        private val SPACE = mapOf("String" to " ")
        private val NORMALIZER = mapOf("type" to "Replace", "pattern" to SPACE, "content" to "▁")
        private val PRE_TOKENIZER =
            mapOf("type" to "Split", "pattern" to SPACE, "behavior" to "MergedWithPrevious", "invert" to false)
        private val DECODER = mapOf(
            "type" to "Sequence",
            "decoders" to listOf(
                mapOf("type" to "Replace", "pattern" to mapOf("String" to "▁"), "content" to " "),
                mapOf("type" to "ByteFallback"),
                mapOf("type" to "Fuse"),
            ),
        )
    }
}
