package dev.cabochon.core

import java.io.Reader

/** Text to token ids and back, by the model's own tokenizer.json. */
class Tokenizer private constructor(private val description: TokenizerDescription) {
    private val merges = description.merges
    private val byteTokens = IntArray(256) { description.vocabulary["<0x%02X>".format(it)] ?: NONE }
    private val byteOfToken = HashMap<Int, Byte>().apply {
        byteTokens.forEachIndexed { byte, token -> if (token != NONE) put(token, byte.toByte()) }
    }
    private val textOfToken: Array<String?> = arrayOfNulls<String>(description.largestToken + 1).also { texts ->
        description.vocabulary.forEach { (text, token) -> texts[token] = text }
        description.addedTokens.forEach { texts[it.id] = it.text }
    }
    private val specialTokens = description.addedTokens.filter { it.isSpecial }.map { it.id }.toSet()
    private val addedByFirst = description.addedTokens.filter { it.text.isNotEmpty() }.groupBy { it.text[0] }
        .mapValues { (_, tokens) -> tokens.sortedByDescending { it.text.length } }

    /** Token ids of a text; control tokens in it become single ids, none is added. */
    fun encode(text: String): IntArray {
        val tokens = TokenList()
        var start = 0
        var position = 0
        while (position < text.length) {
            val added = addedByFirst[text[position]]?.firstOrNull { text.startsWith(it.text, position) }
            if (added == null) {
                position++
            } else {
                encodePlain(text.substring(start, position), tokens)
                tokens.add(added.id)
                position += added.text.length
                start = position
            }
        }
        encodePlain(text.substring(start), tokens)
        return tokens.toArray()
    }

    /** The text of tokens, without control tokens that the tokenizer calls special. */
    fun decode(tokens: IntArray): String = spell(tokens.filter { it !in specialTokens && isKnown(it) })

    /** The text of tokens, control tokens as they are written. */
    fun decodeWithControlTokens(tokens: IntArray): String = spell(tokens.filter(::isKnown))

    /** Whether a token stands for one byte of a character. */
    fun isByte(token: Int): Boolean = token in byteOfToken

    fun startStream(): TokenStream = TokenStream(this)

    private fun spell(tokens: List<Int>): String {
        val text = StringBuilder()
        var index = 0
        while (index < tokens.size) {
            val bytes = ArrayList<Byte>()
            while (index < tokens.size) bytes.add(byteOfToken[tokens[index]] ?: break).also { index++ }
            if (bytes.isNotEmpty()) text.append(readBytes(bytes.toByteArray()))
            if (index < tokens.size) text.append(textOfToken[tokens[index++]]!!.replace(BLANK, ' '))
        }
        return text.toString()
    }

    /** UTF-8, or, where the bytes are none, a replacement character for each of them, as in tokenizers. */
    private fun readBytes(bytes: ByteArray): String {
        val text = String(bytes, Charsets.UTF_8)
        return if (text.toByteArray(Charsets.UTF_8).contentEquals(bytes)) text else "\uFFFD".repeat(bytes.size)
    }

    /** A model's vocabulary may have rows that no token stands for: they part no bytes of a character. */
    private fun isKnown(token: Int): Boolean = textOfToken.getOrNull(token) != null

    private fun encodePlain(text: String, tokens: TokenList) {
        if (text.isEmpty()) return
        val symbols = symbols(text.replace(' ', BLANK))
        PairMerger(symbols, merges).merge().forEach(tokens::add)
    }

    /** One symbol a character; bytes where the vocabulary lacks it. */
    private fun symbols(text: String): IntArray {
        val symbols = TokenList()
        var position = 0
        while (position < text.length) {
            val end = position + Character.charCount(text.codePointAt(position))
            val character = text.substring(position, end)
            val token = description.vocabulary[character]
            if (token != null) {
                symbols.add(token)
            } else {
                character.toByteArray(Charsets.UTF_8).forEach { byte ->
                    val byteToken = byteTokens[byte.toInt() and 0xFF]
                    if (byteToken == NONE) throw ModelException("the tokenizer cannot write $character: choose another text.")
                    symbols.add(byteToken)
                }
            }
            position = end
        }
        return symbols.toArray()
    }

    companion object {
        private const val BLANK = '▁'
        private const val NONE = -1

        fun read(source: Reader): Tokenizer = Tokenizer(TokenizerDescription.read(source))
    }
}

/** Streaming detokenization: text comes out as soon as it cannot change any more. */
class TokenStream(private val tokenizer: Tokenizer) {
    private val held = TokenList()

    /** Adds a token; returns the text that became final, sometimes nothing. */
    fun push(token: Int): String {
        held.add(token)
        // Neighbouring bytes are decoded together, even across control tokens, which have no text: wait for the end.
        if (tokenizer.isByte(token) || tokenizer.decode(intArrayOf(token)).isEmpty()) return ""
        return finish()
    }

    /** The text that is still held back. */
    fun finish(): String = tokenizer.decode(held.toArray()).also { held.clear() }
}

/** Token ids without a box around each. */
class TokenList {
    private var values = IntArray(64)
    var size = 0
        private set

    fun add(token: Int) {
        if (size == values.size) values = values.copyOf(2 * size)
        values[size++] = token
    }

    fun clear() {
        size = 0
    }

    fun toArray(): IntArray = values.copyOf(size)
}
